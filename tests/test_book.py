"""The reader of notebooks, the check of pages, and the book itself where it has been built."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, writes

from resonance_nb import book
from resonance_nb.core import ResonanceError

ROOT = Path(__file__).resolve().parents[1]


def read(*sources, tags=()):
    cells = [new_code_cell(s) for s in sources]
    if tags:
        cells[0].metadata['tags'] = list(tags)
    return book.read_nb(writes(new_notebook(cells=cells))).cells


@pytest.mark.parametrize(
    'top, tag',
    [
        ('#| hide', 'remove-cell'),
        ('# | hide', 'remove-cell'),
        ('#|hide', 'remove-cell'),
        ('#| echo: false', 'remove-input'),
        ('#| output: false', 'remove-output'),
        ('#| code-fold: true', 'hide-input'),
        ('#| eval: false', 'skip-execution'),
        ('#| include: false', 'remove-cell'),
        ('#| default_exp core', 'remove-cell'),
    ],
)
def test_directives_become_tags(top, tag):
    cell = read(f'{top}\nx = 1')[0]
    assert cell.source == 'x = 1' and cell.metadata.tags == [tag]


def test_code_fold_false_shows_the_cell():
    assert 'tags' not in read('#| code-fold: false\nx')[0].metadata


def test_only_the_top_lines_are_directives():
    assert read('x = 1\n#| hide')[0].source == 'x = 1\n#| hide'


def test_export_cells_are_shown_without_the_line():
    cell = read('#| export\ndef f(): ...')[0]
    assert cell.source == 'def f(): ...' and 'tags' not in cell.metadata


def test_the_cell_that_exports_never_runs():
    cell = read('import nbdev; nbdev.nbdev_' + 'export()')[0]
    assert cell.metadata.tags == ['remove-cell', 'skip-execution']


def test_figures_carry_caption_label_and_text():
    mine = read('#| label: fig-a\n#| fig-cap: A: b\n#| fig-alt: bars, in two colours\nplot()')[
        0
    ].metadata.mystnb
    assert mine == {'figure': {'caption': 'A: b', 'name': 'fig-a'}, 'image': {'alt': 'bars, in two colours'}}


def test_a_lesson_has_no_box_and_a_study_has_one():
    assert not [c for c in read('x = 1') if c.cell_type == 'markdown']
    cells = read('seed = 3\nsnr_db = [20, 10, 0]', 'work(seed)', tags=['parameters'])
    assert [c.cell_type for c in cells] == ['code', 'markdown', 'code', 'code']
    assert 'resonance run CHAPTER -p seed 4\n' in cells[1].source


def test_the_box_names_its_chapter(notebooks):
    for name in notebooks:
        path = ROOT / 'nbs' / f'{name}.ipynb'
        assert book.chapter_of(path.read_text(encoding='utf-8')) == name


@pytest.mark.parametrize('value', [[None, -5, 0.5], 'two words', "it's", None, True, 3, ''])
def test_values_survive_the_command_line(value):
    from resonance_nb.runs import parse_value

    assert parse_value(shlex.split(book.word(value))[0]) == value


def test_an_executed_run_hides_its_defaults():
    a = new_code_cell('seed = 0', metadata={'tags': ['parameters']})
    b = new_code_cell('seed = 1')
    b.metadata['tags'] = ['injected-parameters']
    cells = book.read_nb(writes(new_notebook(cells=[a, b]))).cells
    assert 'hide-input' in cells[0].metadata.tags and 'hide-input' not in cells[2].metadata.tags


def test_the_cache_key_follows_package_results_and_corpus(monkeypatch):
    before = read('x = 1')[-1].source
    assert read('x = 1')[-1].source == before
    monkeypatch.setenv('RESONANCE_CORPUS', '/elsewhere')
    elsewhere = read('x = 1')[-1].source
    assert elsewhere != before
    monkeypatch.setattr(book, 'package_hash', lambda: 'changed')
    assert read('x = 1')[-1].source not in (before, elsewhere)


def test_every_notebook_reads_and_is_valid(notebooks):
    import nbformat

    for name in notebooks:
        nb = book.read_nb((ROOT / 'nbs' / f'{name}.ipynb').read_text(encoding='utf-8'))
        nbformat.validate(nb)
        assert not [c.id for c in nb.cells if c.cell_type == 'code' and re.match(r'#\s*\|', c.source)]


def test_renderer_has_no_rule_and_no_heading():
    for shown in (book.build, book.PageReader, book.rerun_box, len):
        text = book.MystRenderer(shown)._repr_markdown_()
        assert text.startswith(f'**`{shown.__qualname__}') and not re.search(r'^(---|#)', text, re.M)
    assert 'chapter' in text or '| strict' in book.MystRenderer(book.build)._repr_markdown_()


@pytest.mark.parametrize(
    'html, said',
    [
        ('<script src="https://a.b/x.js"></script>', 'asks a network'),
        ('<img alt="a" src="//a.b/x.png">', 'asks a network'),
        ('<link rel="stylesheet" href="http://a.b/x.css">', 'asks a network'),
        ('<style>a{background:url(https://a.b/c.png)}</style>', 'asks a network'),
        ('<iframe src="https://a.b"></iframe>', 'asks a network'),
        ('<img alt="a" srcset="https://a.b/x.png 2x">', 'asks a network'),
        ('<img src="data:image/png;base64,AA">', 'without a text'),
        ('<pre>#| export\nx</pre>', 'directive'),
        ('<p>#| hide</p>', 'directive'),
        ('<p>{cite:p}`x`</p>', 'unfinished role'),
        ('<a href="gone.html#x">a</a>', 'not there'),
        ('<a href="#gone">a</a>', 'not on the page'),
    ],
)
def test_a_bad_page_is_found(tmp_path, html, said):
    (tmp_path / 'p.html').write_text(html)
    assert [p for p in book.check_page(tmp_path / 'p.html') if said in p]


def test_a_good_page_is_good(tmp_path):
    (tmp_path / 'p.html').write_text(
        '<link rel="canonical" href="https://a.b/p.html"><a href="https://a.b">out</a><h1 id="t">T</h1><a href="#t">t</a>'
        '<img alt="bars" src="x.png"><pre>x = 1\n#| hide</pre><code>{cite}`x`</code><a href="p.html">self</a>'
    )
    assert book.check_page(tmp_path / 'p.html') == []


def test_a_heavy_page_is_found(tmp_path):
    (tmp_path / 'p.html').write_text('x' * (book.HEAVIEST + 1))
    assert 'weighs' in book.check_page(tmp_path / 'p.html')[0]


def test_missing_pages_and_failed_cells_are_found(tmp_path):
    (tmp_path / '_toc.yml').write_text(
        'format: jb-book\nroot: nbs/index\nparts:\n - chapters:\n    - file: nbs/a\n'
    )
    reports = tmp_path / '_build/html/reports/nbs'
    reports.mkdir(parents=True)
    (reports / 'a.err.log').write_text('Traceback')
    problems = book.check_book(tmp_path)
    assert 'nbs/index: has no page' in problems and 'nbs/a: has no page' in problems
    assert [p for p in problems if 'a cell failed' in p] and [p for p in problems if 'mathjax' in p]


def test_mathjax_is_one_file_from_the_package():
    text = book.mathjax_file().read_text(encoding='utf-8')
    assert len(text) > 2_000_000 and 'MathJax' in text


def test_contents_and_chapters_agree(root):
    promised = {p.removeprefix('nbs/') for p in book.toc_pages(root)}
    there = {p.stem for p in (root / 'nbs').glob('*.ipynb')} | {p.stem for p in (root / 'nbs').glob('*.md')}
    assert promised == there


def small_book(folder, **pages):
    "A book of these pages: name -> code that follows on a note in the file `log`."
    (folder / 'nbs').mkdir()
    for name, code in pages.items():
        cells = [
            new_markdown_cell(f'# {name}'),
            new_code_cell(f"import pathlib, time\nopen('../log', 'a').write('{name}')\n{code}"),
        ]
        about = {'kernelspec': {'name': 'python3', 'display_name': 'Python', 'language': 'python'}}
        (folder / 'nbs' / f'{name}.ipynb').write_text(writes(new_notebook(cells=cells, metadata=about)))
    (folder / 'nbs' / 'index.md').write_text('# Index\n')
    shutil.copy(ROOT / '_config.yml', folder)
    (folder / 'references.bib').touch()
    listed = ''.join(f'- file: nbs/{name}\n' for name in pages)
    (folder / '_toc.yml').write_text(f'format: jb-book\nroot: nbs/index\nchapters:\n{listed}')


def test_pages_are_executed_side_by_side_and_one_that_fails_is_named(tmp_path, capfd):
    "Two pages that wait for each other end only when both are executed at once; the third fails, and the others are kept."
    meet = "open('../{}', 'w').close()\nwhile not pathlib.Path('../{}').exists(): time.sleep(0.05)".format
    small_book(tmp_path, a=meet('one', 'two'), b=meet('two', 'one'), c="raise ValueError('no such luck')")
    with pytest.raises(ResonanceError, match=r'a cell failed in c;'):
        book.build(False, tmp_path, jobs=2)
    assert 'no such luck' in capfd.readouterr().err
    text = (tmp_path / 'nbs' / 'c.ipynb').read_text().replace('raise ', '')
    (tmp_path / 'nbs' / 'c.ipynb').write_text(text)
    assert book.build(False, tmp_path, jobs=2).parent.name == 'nbs'
    assert sorted((tmp_path / 'log').read_text()) == [*'abcc']


def test_an_interrupted_build_goes_on(tmp_path):
    "Ctrl-C at the second page: the first one is not executed again, and the build says where it is."
    small_book(tmp_path, a='', b="while not pathlib.Path('../go').exists(): time.sleep(0.05)")
    code = (
        'import pathlib, signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n'
        'from resonance_nb.book import build; build(False, pathlib.Path(sys.argv[1]), jobs=1)'
    )
    how = dict(start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    start = lambda: subprocess.Popen([sys.executable, '-c', code, str(tmp_path)], **how)
    log = tmp_path / 'log'
    first = start()
    while not (log.exists() and 'b' in log.read_text()) and first.poll() is None:
        time.sleep(0.05)
    os.killpg(first.pid, signal.SIGINT)
    _, err = first.communicate()
    assert log.read_text() == 'ab' and 'interrupted: the pages that were executed are kept' in err
    (tmp_path / 'go').touch()
    second = start()
    said, err = second.communicate()
    assert second.returncode == 0, err
    assert log.read_text() == 'abb' and re.search(
        r'\[1/3\] a … \S+ s\n\[2/3\] b … \S+ s\n\[3/3\] index', said
    )


def test_the_built_book_is_good(root):
    if not (root / '_build' / 'made-with.txt').exists():
        pytest.skip('the book has not been built here: make book')
    assert book.check_book(root) == []


def test_the_built_book_can_be_searched_and_walked(root):
    out = root / '_build' / 'html'
    if not (root / '_build' / 'made-with.txt').exists():
        pytest.skip('the book has not been built here: make book')
    index = (out / 'searchindex.js').read_text(encoding='utf-8')
    names = json.loads(re.search(r'"docnames":\s*(\[.*?\])', index)[1])
    assert set(book.toc_pages(root)) <= set(names)
    pages = book.toc_pages(root)
    for here, after in zip(pages, pages[1:]):
        assert f'{Path(after).name}.html' in (out / f'{here}.html').read_text(encoding='utf-8')
    for study in ('24_simulator', '34_classical'):
        text = (out / 'nbs' / f'{study}.html').read_text(encoding='utf-8')
        assert f'resonance run {study} -p seed' in re.sub('<[^>]+>', '', text)


def test_the_command_asks_for_a_checkout_first(monkeypatch):
    "What the corpus needs is of no use where there is no book."
    from click.testing import CliRunner

    from resonance_nb import core, starter
    from resonance_nb.cli_train import book as command

    def refuse():
        raise ResonanceError('this needs a checkout of the project')

    monkeypatch.setattr(core, 'project_root', refuse)
    monkeypatch.setattr(starter, 'default_corpus', lambda: pytest.fail('the corpus came first'))
    with pytest.raises(ResonanceError, match='this needs a checkout'):
        CliRunner().invoke(command, [], catch_exceptions=False)
