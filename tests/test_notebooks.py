"""The lessons are unit tests: each notebook that exports a module is run, from its first cell to its last.

The book's build runs the same cells. Where it has executed exactly this notebook with this package, that is the result."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from resonance_nb.book import read_nb

ROOT = Path(__file__).resolve().parents[1]
LESSONS = [
    p for p in sorted((ROOT / 'nbs').glob('*.ipynb')) if 'default_exp' in p.read_text(encoding='utf-8')
]
STUDIES = [p for p in sorted((ROOT / 'nbs').glob('*.ipynb')) if p not in LESSONS]


def executed(path, cache=ROOT / '_build' / '.jupyter_cache'):
    "The notebook as the book's build has executed it, with this package, results and corpus; None when it has not."
    if not cache.exists():
        return None
    from jupyter_cache import get_cache

    try:
        return get_cache(cache).merge_match_into_notebook(read_nb(path.read_text(encoding='utf-8')))[1]
    except KeyError:
        return None


def errors(notebook):
    "What went wrong in an executed notebook."
    return [
        f'{o.ename}: {o.evalue}'
        for c in notebook.cells
        for o in c.get('outputs', [])
        if o.output_type == 'error'
    ]


@pytest.mark.parametrize('path', LESSONS, ids=lambda p: p.stem)
def test_lesson(path, record_property):
    if 'ELSEWHERE' not in os.environ and (made := executed(path)) is not None:  # another machine must run it
        record_property('run by', 'the book')
        assert errors(made) == []
        return
    code = 'import sys; from nbdev.test import nbdev_test; nbdev_test(path=sys.argv[1], n_workers=0)'
    env = {**os.environ, 'MPLBACKEND': 'Agg', 'PYTHONWARNINGS': 'ignore::SyntaxWarning'}
    done = subprocess.run(
        [sys.executable, '-c', code, str(path)], cwd=ROOT, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-8000:]


def test_what_the_book_has_executed_counts_for_the_same_notebook_and_package_only(tmp_path, monkeypatch):
    import nbformat
    from jupyter_cache import get_cache

    path = tmp_path / 'lesson.ipynb'
    folder = tmp_path / 'cache'
    made = read_nb(LESSONS[0].read_text(encoding='utf-8'))
    path.write_text(LESSONS[0].read_text(encoding='utf-8'), encoding='utf-8')
    assert executed(path, folder) is None
    code = next(c for c in made.cells if c.cell_type == 'code')
    code.execution_count = 1
    code.outputs = [nbformat.v4.new_output('error', ename='ValueError', evalue='no', traceback=[])]
    nbformat.write(made, tmp_path / 'made.ipynb')
    get_cache(folder).cache_notebook_file(tmp_path / 'made.ipynb', check_validity=False)
    assert errors(executed(path, folder)) == ['ValueError: no'], 'a cell that failed fails here, too'
    monkeypatch.setenv('RESONANCE_CORPUS', '/elsewhere')
    assert executed(path, folder) is None
    monkeypatch.undo()
    path.write_text(path.read_text(encoding='utf-8').replace('import', 'import  ', 1), encoding='utf-8')
    assert executed(path, folder) is None


@pytest.mark.parametrize('path', LESSONS, ids=lambda p: p.stem)
def test_the_book_executes_what_a_lesson_tests(path):
    "It leaves out what `nbdev_test` leaves out: cells that say so, and the one that exports."
    import nbformat

    cells = {c.id: c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == 'code'}
    skipped = [
        c.id
        for c in read_nb(path.read_text(encoding='utf-8')).cells
        if 'skip-execution' in c.metadata.get('tags', [])
    ]
    assert [i for i in skipped if not ('#| eval: false' in cells[i] or 'nbdev_export(' in cells[i])] == []


def test_there_are_lessons_and_studies():
    assert len(LESSONS) >= 10 and {'24_simulator', '34_classical', 'index'} <= {p.stem for p in STUDIES}
