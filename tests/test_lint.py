"""What a linter finds in the package, the tests and the scripts, a type checker in the package, and what a formatter would change: nothing.

Their rules stand in `ruff.toml` and `mypy.ini`.
"""

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.skipif(not find_spec('ruff'), reason='ruff is not installed')
@pytest.mark.parametrize('place', ['resonance_nb', 'tests', 'benchmarks', 'nbs'])
def test_the_linter_finds_nothing(place):
    words = [sys.executable, '-m', 'ruff', 'check', '--no-cache', '--output-format', 'concise']
    words += ['--select', 'F821,E9,PLE'] if place == 'nbs' else []  # cells import for those that follow
    done = subprocess.run([*words, place], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(not find_spec('ruff'), reason='ruff is not installed')
@pytest.mark.parametrize('place', ['nbs', 'figures', 'tests', 'benchmarks'])  # the package is made of `nbs`
def test_the_formatter_changes_nothing(place):
    words = [sys.executable, '-m', 'ruff', 'format', '--check', '--no-cache', place]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f'run `make notebooks`:\n{done.stdout}{done.stderr}'


@pytest.mark.skipif(not find_spec('mypy'), reason='mypy is not installed')
def test_the_type_checker_finds_nothing(tmp_path):
    words = [sys.executable, '-m', 'mypy', '--no-error-summary', '--cache-dir', str(tmp_path)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr


# what mypy says of a call that cannot work; of other things it says too much in cells that import for others
WRONG_CALLS = r'error: (Too many positional arguments|Unexpected keyword argument|Missing positional|Missing named|Module has no attribute).*'


@pytest.mark.skipif(not find_spec('mypy'), reason='mypy is not installed')
def test_chapters_call_what_there_is(tmp_path):
    "Studies are run by the book alone, at some length: a name or an option that is gone shows here at once."
    cells = {}  # of each chapter, as one script
    for path in sorted((ROOT / 'nbs').glob('*.ipynb')):
        code = [
            ''.join(c['source'])
            for c in json.loads(path.read_text('utf-8'))['cells']
            if c['cell_type'] == 'code'
        ]
        plain = [
            re.sub(r'^from \.', 'from resonance_nb.', c, flags=re.M)
            for c in code
            if not re.search(r'^[%!]', c, re.M)
        ]
        # what fails on purpose
        cells[path.stem] = [c for c in plain if 'test_fail' not in c and 'pytest.raises' not in c]
    for name, code in cells.items():
        (tmp_path / f'chapter_{name}.py').write_text('\n\n'.join(code) + '\n', encoding='utf-8')
    words = [
        sys.executable,
        '-m',
        'mypy',
        '--cache-dir',
        str(tmp_path / 'cache'),
        '--config-file',
        os.devnull,
    ]
    words += [
        '--ignore-missing-imports',
        '--follow-imports',
        'silent',
        '--check-untyped-defs',
        '--allow-redefinition',
        '--disable-error-code=call-overload',
    ]
    env = os.environ | {'MYPYPATH': str(ROOT)}
    done = subprocess.run(
        [*words, str(tmp_path)], cwd=ROOT, env=env, capture_output=True, text=True, timeout=1800
    )
    assert 'checked' in done.stdout, done.stdout + done.stderr
    assert not [m[0] for m in re.finditer(rf'chapter_.*{WRONG_CALLS}', done.stdout)]
