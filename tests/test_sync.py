"""The package is what the notebooks export, and the notebooks are clean."""

import filecmp
import os
import shutil
import subprocess
import sys

import pytest


@pytest.fixture(scope='module')
def copy(root, tmp_path_factory):
    "A copy of what nbdev reads and writes."
    here = tmp_path_factory.mktemp('sync')
    for name in ('nbs', 'resonance_nb'):
        shutil.copytree(
            root / name, here / name, ignore=shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints')
        )
    for name in ('settings.ini', 'setup.py', 'README.md'):
        shutil.copy(root / name, here / name)
    return here


def nbdev(here, command):
    env = {**os.environ, 'PYTHONPATH': str(here), 'PYTHONDONTWRITEBYTECODE': '1'}
    code = f'from nbdev.{"export" if command == "export" else "clean"} import *; nbdev_clean()'
    if command == 'export':
        code = 'from nbdev.doclinks import nbdev_export; nbdev_export()'
    done = subprocess.run([sys.executable, '-c', code], cwd=here, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def changed(root, here, folder, pattern):
    names = {p.name for base in (root, here) for p in (base / folder).glob(pattern)} - {'_modidx.py'}
    assert names
    same = lambda n: (
        (here / folder / n).exists() and filecmp.cmp(root / folder / n, here / folder / n, shallow=False)
    )
    return sorted(n for n in names if not (root / folder / n).exists() or not same(n))


def test_notebooks_are_clean(root, copy):
    nbdev(copy, 'clean')
    assert not changed(root, copy, 'nbs', '*.ipynb'), 'run nbdev_clean'


def test_package_is_exported(root, copy):
    for path in (copy / 'resonance_nb').glob('*.py'):
        if path.name not in ('__init__.py', '__main__.py', '_modidx.py'):
            path.unlink()
    nbdev(copy, 'export')
    assert not changed(root, copy, 'resonance_nb', '*.py'), 'run nbdev_export'


def test_index_of_the_package_is_current(root, copy):
    nbdev(copy, 'export')
    assert filecmp.cmp(root / 'resonance_nb/_modidx.py', copy / 'resonance_nb/_modidx.py', shallow=False), (
        'run nbdev_export'
    )
