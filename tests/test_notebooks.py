"""The lessons are unit tests: each notebook that exports a module is run, from its first cell to its last."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LESSONS = [p for p in sorted((ROOT / 'nbs').glob('*.ipynb')) if 'default_exp' in p.read_text(encoding='utf-8')]
STUDIES = [p for p in sorted((ROOT / 'nbs').glob('*.ipynb')) if p not in LESSONS]


@pytest.mark.parametrize('path', LESSONS, ids=lambda p: p.stem)
def test_lesson(path):
    code = 'import sys; from nbdev.test import nbdev_test; nbdev_test(path=sys.argv[1], n_workers=0)'
    env = {**os.environ, 'MPLBACKEND': 'Agg', 'PYTHONWARNINGS': 'ignore::SyntaxWarning'}
    done = subprocess.run([sys.executable, '-c', code, str(path)], cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-8000:]


def test_there_are_lessons_and_studies():
    assert len(LESSONS) >= 10 and {'24_simulator', '34_classical', 'index'} <= {p.stem for p in STUDIES}
