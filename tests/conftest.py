"""Where the tests find things, and what they must not touch."""

import os
import shutil
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# other profiles begin with this one: no limit of time, on whichever machine
settings.register_profile('patient', deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile('patient')

ROOT = Path(__file__).resolve().parents[1]


def pytest_configure(config):
    """Name the corpus: the one in `RESONANCE_CORPUS`; else the starter corpus, made on first use.

    Its path, those of teachers and of public answers are made absolute."""
    os.chdir(ROOT)
    for name in ('RESONANCE_CORPUS', 'RESONANCE_MODELS', 'RESONANCE_FEEL'):
        if os.environ.get(name):
            os.environ[name] = str((Path(config.invocation_params.dir) / os.environ[name]).resolve())
    os.environ.setdefault('OMP_NUM_THREADS', '1')
    os.environ.setdefault('PYDEVD_DISABLE_FILE_VALIDATION', '1')
    os.environ.setdefault('MPLBACKEND', 'Agg')
    os.environ.pop('RESONANCE_RUN', None)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    """Run a test with the mark `alone` in a Python of its own, with one thread.

    What is forked has a copy of every lock, also of those that another thread holds just now; nobody opens them.
    """
    if pyfuncitem.get_closest_marker('alone') is None or 'RESONANCE_ALONE' in os.environ:
        return None
    not_ours = ('PYTEST_ADDOPTS', 'PYTEST_XDIST_WORKER', 'PYTEST_CURRENT_TEST')
    env = {name: value for name, value in os.environ.items() if name not in not_ours}
    env |= {'RESONANCE_ALONE': '1', **{f'{name}_NUM_THREADS': '1' for name in ('OMP', 'OPENBLAS', 'MKL')}}
    words = ['-m', 'pytest', '-p', 'no:xdist', '-p', 'no:cacheprovider', pyfuncitem.nodeid]
    done = subprocess.run([sys.executable, *words], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, f'{done.stdout[-20_000:]}\n{done.stderr[-5_000:]}'
    return True


def pytest_terminal_summary(terminalreporter):
    "What was not looked at, and what it takes; which lessons the book's build had run."
    done = terminalreporter.stats
    books = sum(('run by', 'the book') in r.user_properties for r in done.get('passed', []))
    if books:
        terminalreporter.write_line(f'{books} lessons were run by the book, with this package')
    why = Counter(r.longrepr[2].removeprefix('Skipped: ') for r in done.get('skipped', []))
    if why:
        terminalreporter.write_line(
            f'{why.total()} skipped: ' + '; '.join(f'{reason} ({n})' for reason, n in sorted(why.items()))
        )


@pytest.fixture(scope='session')
def root() -> Path:
    "The checkout."
    return ROOT


@pytest.fixture(scope='session')
def notebooks(root):
    "Every chapter as a parsed notebook, by name."
    import nbformat

    return {p.stem: nbformat.read(p, as_version=4) for p in sorted((root / 'nbs').glob('*.ipynb'))}


@pytest.fixture(scope='module')
def music():
    "Sixteen seconds of five pieces of the starter corpus, by their ids."
    pytest.importorskip('onnxruntime')
    from resonance_nb.starter import make_starter

    corpus = make_starter(n_pieces=12)
    return {t: corpus.load('music', t)[: 16 * 16_000] for t in list(corpus.music.index)[:5]}


@pytest.fixture(scope='module')
def fused(music):
    "The default recogniser with the first four of them."
    from resonance_nb.fuse import Fused

    index = Fused()
    for name in list(music)[:4]:
        index.add(name, music[name])
    return index


@pytest.fixture(scope='session')
def axe(tmp_path_factory):
    "The rules of axe-core: a file that RESONANCE_AXE names, else from npm."
    if named := os.environ.get('RESONANCE_AXE'):
        return Path(named).read_text(encoding='utf-8')
    if not shutil.which('npm'):
        pytest.skip('axe-core is not here: no npm, and RESONANCE_AXE names no axe.min.js')
    folder = tmp_path_factory.mktemp('axe')
    words = ['npm', 'pack', 'axe-core@4', '--silent']
    try:
        done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=120)
    except subprocess.TimeoutExpired:
        pytest.skip('axe-core cannot be had: npm does not answer')
    if done.returncode:
        pytest.skip('axe-core cannot be had: npm has no network')
    with tarfile.open(next(folder.glob('*.tgz'))) as packed:
        return packed.extractfile('package/axe.min.js').read().decode()
