"""What a linter finds in the package, the tests and the scripts, a type checker in the package, and what a formatter would change: nothing.

Their rules stand in `ruff.toml` and `mypy.ini`.
"""

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
