"""Running a study chapter: refusals, resume, sweeps, reporting. The chapter is a tiny one made here."""

import json
import os
import signal
import subprocess
import sys
import time

import nbformat
import pytest

from resonance_nb import reporting, runs
from resonance_nb.core import ResonanceError

PARAMETERS = 'seed = 0\nthrows = 100\nlevels = [None, 0.5]\nname = "die"\nfast = True\ncorpus_note = None'
WORK = '''import os, pathlib, time
from resonance_nb.runs import Results, remember
def work():
    with open(pathlib.Path.cwd().parent / 'calls.txt', 'a') as f: f.write('x')
    return seed / 2
value = remember('half', [seed], work)
if name == 'slow': time.sleep(9_999)
if throws < 0: raise ValueError('no throws\\nat all')
results = Results('10_dice', seed=seed)
results.add('half', value, value - 1, value + 1, n=throws, system=name, setting={'levels': len(levels)})
results.finish()'''


@pytest.fixture
def lab(tmp_path):
    (tmp_path / 'nbs').mkdir()
    (tmp_path / 'settings.ini').write_text('[DEFAULT]\n')
    nb = nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_code_cell(PARAMETERS, metadata={'tags': ['parameters']}),
            nbformat.v4.new_code_cell(WORK),
        ]
    )
    nb.metadata['kernelspec'] = {'name': 'python3', 'display_name': 'python3', 'language': 'python'}
    nbformat.write(nb, tmp_path / 'nbs' / '10_dice.ipynb')
    nbformat.write(
        nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell('# x')]),
        tmp_path / 'nbs' / '11_lesson.ipynb',
    )
    return tmp_path


def go(lab, given=None, **more):
    return runs.run_chapter('dice', given, root=lab, progress=False, **more)


@pytest.mark.parametrize(
    'given, said',
    [
        ({'throw': 1}, "no parameter 'throw'; it has: seed, throws"),
        ({'throws': 'x'}, 'takes a whole number'),
        ({'throws': 1.5}, 'takes a whole number'),
        ({'throws': True}, 'takes a whole number'),
        ({'levels': 3}, r'takes a list, e.g. \[null, 0.5\]'),
        ({'levels': ['a']}, 'takes a list'),
        ({'name': 3}, 'takes text'),
        ({'fast': 1}, 'takes true or false'),
        ({'seed': None}, 'got null'),
    ],
)
def test_bad_parameters_are_refused_in_one_line(lab, given, said):
    with pytest.raises(ResonanceError, match=said) as e:
        go(lab, given)
    assert '\n' not in str(e.value) and not (lab / 'runs').exists()


def test_good_parameters_fit():
    defaults = {'a': 1.5, 'b': [None, 0.5], 'c': None, 'd': []}
    assert runs.merge('x', defaults, {'a': 2, 'b': [1, None], 'c': [1], 'd': ['x']}) == {
        'a': 2,
        'b': [1, None],
        'c': [1],
        'd': ['x'],
    }


def test_unknown_chapters_lessons_and_profiles(lab):
    for name, said in (
        ('poker', 'there are: 10_dice, 11_lesson'),
        ('1', 'could be 10_dice, 11_lesson'),
        ('11', 'no parameters cell'),
    ):
        with pytest.raises(ResonanceError, match=said):
            runs.run_chapter(name, root=lab)
    with pytest.raises(ResonanceError, match="no profile 'study'; it has: quick"):
        go(lab, profile='study')


@pytest.mark.parametrize(
    'text, value',
    [
        ('5', 5),
        ('[0, -5]', [0, -5]),
        ('null', None),
        ('true', True),
        ('0.5', 0.5),
        ('abc', 'abc'),
        ('[null, 3]', [None, 3]),
    ],
)
def test_typed_values(text, value):
    assert runs.parse_value(text) == value


@pytest.mark.parametrize('text', ['[0, ', '{a: b: c}', '2020-01-01'])
def test_malformed_values_are_refused(text):
    with pytest.raises(ResonanceError, match='cannot read the value'):
        runs.parse_value(text)


def test_a_run_its_folder_and_its_repetition(lab, monkeypatch):
    monkeypatch.chdir('/')
    run = go(lab, {'seed': 4, 'levels': [1]})
    assert {p.name for p in run.folder.iterdir()} == {
        'out.ipynb',
        'params.yaml',
        'metrics.json',
        'manifest.json',
    }
    assert run.metrics == [
        dict(
            metric='half', value=2.0, low=1.0, high=3.0, n=100, system='die', corpus='', setting={'levels': 1}
        )
    ]
    m = json.loads((run.folder / 'manifest.json').read_text())
    assert (
        m['status'] == 'finished'
        and m['pid'] is None
        and m['seed'] == 4
        and m['changed'] == {'seed': 4, 'levels': [1]}
    )
    assert m['parameters'] == {
        'seed': 4,
        'throws': 100,
        'levels': [1],
        'name': 'die',
        'fast': True,
        'corpus_note': None,
    }
    assert (
        m['package_hash'] == runs.package_hash()
        and m['versions']['numpy']
        and m['duration_s'] > 0
        and m['machine']['cores']
    )
    assert go(lab, {'seed': 4, 'levels': [1]}).manifest == m
    assert (lab / 'calls.txt').read_text() == 'x'
    assert (
        go(lab, {'seed': 4, 'levels': [1]}, force=True).folder == run.folder
        and (lab / 'calls.txt').read_text() == 'xx'
    )


def test_profile_beats_notebook_and_given_beats_profile(lab):
    (lab / 'experiments').mkdir()
    (lab / 'experiments' / '10_dice-study.yaml').write_text('seed: 7\nthrows: 9\n')
    run = go(lab, {'seed': 8}, profile='study')
    assert (
        run.manifest['parameters'] | {'seed': 8, 'throws': 9} == run.manifest['parameters']
        and run.manifest['profile'] == 'study'
    )
    assert json.loads(reporting.collect(run, root=lab).read_text())['run']['profile'] == 'study'
    (lab / 'experiments' / '10_dice-study.yaml').write_text('sed: 7\n')
    with pytest.raises(ResonanceError, match="no parameter 'sed'"):
        go(lab, profile='study')


def test_a_failing_cell_is_named_and_its_notebook_kept(lab):
    with pytest.raises(
        ResonanceError, match=r'10_dice: cell 3 failed with ValueError: no throws; see .*out.ipynb'
    ) as e:
        go(lab, {'throws': -1})
    assert '\n' not in str(e.value)
    folder = next((lab / 'runs' / '10_dice').glob('*/manifest.json')).parent
    assert (
        json.loads((folder / 'manifest.json').read_text())['status'] == 'failed'
        and runs.load_run(folder) is None
    )
    assert 'ValueError' in (folder / 'out.ipynb').read_text()
    with pytest.raises(ResonanceError, match='holds no finished run'):
        reporting.collect(folder, root=lab)


def test_a_killed_run_tells_and_goes_on(lab):
    code = f'from pathlib import Path; from resonance_nb.runs import run_chapter; run_chapter("dice", {{"name": "slow"}}, root=Path({str(lab)!r}), progress=False)'
    child = subprocess.Popen([sys.executable, '-c', code], start_new_session=True, stderr=subprocess.DEVNULL)
    try:
        while not list(lab.glob('runs/*/*/partial/half-*.json')) and child.poll() is None:
            time.sleep(0.1)
    finally:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    manifest = next(lab.glob('runs/*/*/manifest.json'))
    assert json.loads(manifest.read_text())['status'] == 'running' and runs.load_run(manifest.parent) is None
    source = (lab / 'nbs' / '10_dice.ipynb').read_text()
    assert 'time.sleep(9_999)' in source
    # the same run again, with the sleep cut short from outside: the finished piece is not made twice
    (lab / 'sitecustomize.py').write_text(
        'import time; _s = time.sleep; time.sleep = lambda t: _s(min(t, 1))'
    )
    old = os.environ.get('PYTHONPATH')
    os.environ['PYTHONPATH'] = str(lab)
    try:
        run = go(lab, {'name': 'slow'})
    finally:
        os.environ.pop('PYTHONPATH') if old is None else os.environ.update(PYTHONPATH=old)
    assert run.folder == manifest.parent and run.manifest['status'] == 'finished'
    assert (lab / 'calls.txt').read_text() == 'x' and not (run.folder / 'partial').exists()


def test_a_sweep_in_parallel_survives_a_failure(lab):
    found = runs.sweep('dice', {'seed': [1, 2], 'throws': [5, -1]}, jobs=2, root=lab)
    assert list(found.status) == ['finished', 'failed'] * 2 and list(found.value.dropna()) == [0.5, 1.0]
    assert len(list(lab.glob('runs/10_dice/*/metrics.json'))) == 2
    began = (lab / 'calls.txt').read_text()
    again = runs.sweep('dice', {'seed': [1, 2], 'throws': [5]}, root=lab)
    assert (lab / 'calls.txt').read_text() == began and list(again.run) == list(found.run.dropna())
    with pytest.raises(ResonanceError, match='no chapter'):
        runs.sweep('poker', {'seed': [1]}, root=lab)


def test_collect_and_read_back(lab):
    run = go(lab, {'seed': 4})
    assert (
        reporting.reported_value('10_dice', 'half', root=lab).text() == 'not yet run'
        and len(reporting.reported('10_dice', lab)) == 0
    )
    with pytest.raises(ResonanceError, match='is a quick run'):
        reporting.collect(run, root=lab)
    path = reporting.collect(run, allow_quick=True, root=lab)
    found = json.loads(path.read_text())
    assert (
        found['run']['package_hash'] == runs.package_hash()
        and found['run']['revision'] is None
        and found['metrics'] == run.metrics
    )
    assert (
        reporting.reported_value('10_dice', 'half', 'die', lab, levels=2).text('.1f')
        == '2.0 (95 % interval 1.0 to 3.0, n = 100)'
    )
    table = reporting.reported('10_dice', lab)
    assert table.levels[0] == 2 and table.run[0] == run.manifest['run']
    for wrong in (dict(levels=3), dict(level=2)):
        with pytest.raises(ResonanceError, match='reports 0 numbers'):
            reporting.reported_value('10_dice', 'half', root=lab, **wrong)


def test_the_key_follows_what_decides_a_result(lab, monkeypatch):
    notebook = lab / 'nbs' / '10_dice.ipynb'
    keys = [runs.run_key(notebook, {'seed': 0}, {}), runs.run_key(notebook, {'seed': 1}, {})]
    keys += [
        runs.run_key(notebook, {'seed': 0}, {'checksum': 'a'}),
        runs.run_key(notebook, {'seed': 0}, {}, 'study'),
    ]
    nb = nbformat.read(notebook, as_version=4)
    nb.cells[1].outputs = [nbformat.v4.new_output('stream', text='x')]
    nbformat.write(nb, notebook)
    assert runs.run_key(notebook, {'seed': 0}, {}) == keys[0], 'outputs decide nothing'
    nb.cells[1].source += '\nmore'
    nbformat.write(nb, notebook)
    keys.append(runs.run_key(notebook, {'seed': 0}, {}))
    monkeypatch.setattr(runs, 'package_hash', lambda: 'another')
    keys.append(runs.run_key(notebook, {'seed': 0}, {}))
    assert len(set(keys)) == len(keys)


def test_environment_is_absolute_and_restored(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('RESONANCE_CORPUS', 'here')
    with runs.environment(RESONANCE_RUN='x'):
        assert os.environ['RESONANCE_CORPUS'] == str(tmp_path / 'here') and os.environ['RESONANCE_RUN'] == 'x'
    assert os.environ['RESONANCE_CORPUS'] == 'here' and 'RESONANCE_RUN' not in os.environ


def test_studies_keep_their_parameters(notebooks):
    for name in ('24_simulator', '34_classical'):
        assert 'seed' in runs.defaults_of(runs.find_chapter(name))


def test_a_chapter_of_public_answers_depends_on_them(monkeypatch, tmp_path):
    notebook = runs.find_chapter('85a_metric_learning')
    monkeypatch.delenv('RESONANCE_FEEL', raising=False)
    assert runs.data_facts(notebook, {}) == {}
    (tmp_path / 'langoustin-answers.csv').write_text('one')
    monkeypatch.setenv('RESONANCE_FEEL', str(tmp_path))
    first = runs.data_facts(notebook, {})
    (tmp_path / 'langoustin-answers.csv').write_text('another')
    second = runs.data_facts(notebook, {})
    assert first['corpus'] == 'public answers' and first['checksum'] != second['checksum']
