"""What comes into a survey and goes out of it: nothing is lost, nothing is there twice, no nonsense, no path."""

import json
import os
import signal
import subprocess
import sys

import pandas as pd
import pytest
import survey_toy

from resonance_nb.core import ResonanceError
from resonance_nb.survey_formats import export_answers, import_answers, own_table
from resonance_nb.survey_learn import learn_from_answers
from resonance_nb.survey_report import NOT_HEARD, TOO_SOON, report_html, report_lines, survey_report
from resonance_nb.survey_store import (
    Answer,
    Question,
    Settings,
    Song,
    SurveyStore,
    add_answers,
    add_questions,
    add_songs,
    answer_rows,
    consent_version,
    find_person,
    growing,
    join,
    lost_clips,
    write_settings,
)

CODE = 'import sys; from resonance_nb.cli import main; main(sys.argv[1:])'


def run(*words):
    "The command in a process of its own."
    command = [sys.executable, '-c', CODE, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def new_survey(folder, names='abcdef'):
    "A survey without sound."
    folder.mkdir()
    write_settings(folder, Settings())
    with SurveyStore(folder, create=True) as store:
        add_songs(store, [Song(name, title=f'Title {name[-1]}', artist='Ann') for name in names])
    return folder


def answered(folder, n, **more):
    "A person who answers questions as the page has them answered."
    (folder / 'consent.txt').write_text('words\n')
    with SurveyStore(folder) as store:
        person = find_person(store, join(store, consent_version('words'), old_enough=True))
        add_questions(store, person, [Question(i, 'random', (1 + i % 2, 3, 4)) for i in range(n)])
        fields = {'heard_ms': (3_000, 4_000, 3_500), 'response_ms': 14_000} | more
        add_answers(store, person, [Answer(f'{person.name}-{i}', i, i % 3, **fields) for i in range(n)])
    return person.name


def langoustin(path, rows, head='id,song1,song2,song3,picked_song,person_id'):
    path.write_text('\n'.join([head, *rows]) + '\n')
    return path


def test_two_tables_of_one_person_are_both_taken(tmp_path):
    first = langoustin(tmp_path / 'one.csv', ['1,a,b,c,a,P1', '2,b,c,d,d,P1'])
    second = langoustin(tmp_path / 'two.csv', ['1,a,b,d,b,P1', '2,c,d,e,d,P1'])
    with SurveyStore(new_survey(tmp_path / 's')) as store:
        assert [import_answers(store, t)['new'] for t in (first, second, first, second)] == [2, 2, 0, 0]
        assert import_answers(store, second)['known'] == 2
        assert export_answers(store, tmp_path / 'out.csv', 'langoustin') == 4
        assert sorted(pd.read_csv(tmp_path / 'out.csv').id) == [1, 2, 3, 4]
    with SurveyStore(new_survey(tmp_path / 't')) as store:
        assert import_answers(store, tmp_path / 'out.csv')['new'] == 4


@pytest.mark.parametrize('form', ['pairs', 'cblearn'])
def test_two_tables_without_names_are_both_taken(tmp_path, form):
    texts = {
        'pairs': [
            'song1,song2,song3,anchor,positive\na,b,c,1,2\n',
            'song1,song2,song3,anchor,positive\nb,c,d,1,2\n',
        ],
        'cblearn': ['# 0 a\n# 1 b\n# 2 c\n0,1,2\n1,0,2\n', '# 0 b\n# 1 c\n# 2 d\n0,1,2\n1,0,2\n'],
    }[form]
    with SurveyStore(new_survey(tmp_path / 's')) as store:
        for text in texts:
            (tmp_path / 'x.csv').write_text(text)
            told = [import_answers(store, tmp_path / 'x.csv') for _ in range(2)]
            assert [(t['new'], t['known']) for t in told] == [(1, 0), (0, 1)]


def test_an_id_with_another_answer_is_told(tmp_path):
    folder = new_survey(tmp_path / 's')
    answered(folder, 4)
    with SurveyStore(folder) as store:
        table = own_table(store)
        table.to_csv(tmp_path / 'own.csv', index=False)
        assert import_answers(store, tmp_path / 'own.csv')['known'] == 4
        table.loc[2, 'odd'] = '1'
        table.to_csv(tmp_path / 'own.csv', index=False)
        with pytest.raises(ResonanceError, match='row 3: the id .* with another answer'):
            import_answers(store, tmp_path / 'own.csv')


def test_a_table_into_a_survey_that_goes_on_leaves_its_numbers_alone(tmp_path):
    folder = new_survey(tmp_path / 's')
    name = answered(folder, 2)
    with SurveyStore(folder) as store:
        table = langoustin(tmp_path / 'x.csv', [f'1,a,b,e,a,{name}'])
        assert import_answers(store, table)['new'] == 1
        assert [r['number'] for r in answer_rows(store)][:2] == [0, 1]
        assert answer_rows(store)[2]['number'] >= 1_000_000  # the page asks question 2 next


NONSENSE = [
    {'response_ms': 'inf'},
    {'response_ms': 'nan'},
    {'response_ms': '-5'},
    {'pieces': '12 0 0'},
    {'pieces': '9 9 9'},
    {'song1': 'a', 'song2': 'a', 'song3': 'a'},
    {'song1': 'a', 'song2': 'a'},
    {'number': '-1'},
    {'hidden': '-1'},
    {'answered': 'yesterday'},
    {'given': 'yesterday'},
    {'kind': 'repeat', 'repeats': '77'},
    {'kind': 'repeat', 'repeats': '1'},
    {'repeats': '0'},
    {'kind': 'quiz'},
    {'plays': '-1 0 0'},
    {'heard_ms': '1e3 0 0'},
    {'odd': '4'},
    {'number': '9' * 30},
]


@pytest.mark.parametrize('change', NONSENSE, ids=str)
def test_a_row_that_cannot_be_is_told_by_its_number(tmp_path, change):
    answered(new_survey(tmp_path / 's'), 3)
    with SurveyStore(tmp_path / 's') as store:
        table = own_table(store)
    for column, value in change.items():
        table.loc[1, column] = value
    table.to_csv(tmp_path / 'own.csv', index=False)
    with SurveyStore(new_survey(tmp_path / 'new', names=())) as store:
        with pytest.raises(ResonanceError, match='row 2: ') as caught:
            import_answers(store, tmp_path / 'own.csv')
        assert len(str(caught.value).splitlines()) == 1
        for kind in ('songs', 'people', 'questions', 'answers'):
            assert store.rows(f'SELECT count(*) FROM {kind}')[0][0] == 0


def test_repeats_find_their_questions_when_numbers_change(tmp_path):
    folder = new_survey(tmp_path / 's')
    answered(folder, 2)
    with SurveyStore(folder) as store:
        person = find_person(store, join(store, consent_version('words'), old_enough=True))
        add_questions(
            store, person, [Question(0, 'random', (1, 2, 3)), Question(11, 'repeat', (1, 2, 3), repeats=0)]
        )
        add_answers(store, person, [Answer('x-0', 0, 1), Answer('x-1', 11, 1)])
        table = own_table(store).query('person == @person.name')
    table.assign(person='P').to_csv(tmp_path / 'own.csv', index=False)
    table.assign(person='P', uuid=['y-0', 'y-1'])[::-1].to_csv(tmp_path / 'more.csv', index=False)
    with SurveyStore(new_survey(tmp_path / 'new', names=())) as store:
        assert [import_answers(store, tmp_path / t)['new'] for t in ('own.csv', 'more.csv')] == [2, 2]
        rows = {r['uuid']: r for r in answer_rows(store)}
        assert rows['x-1']['repeats'] == rows['x-0']['number'] == 0
        assert rows['y-1']['repeats'] == rows['y-0']['number'] > 11


def test_what_cannot_be_read_leaves_no_survey_behind(tmp_path):
    (tmp_path / 'bad.csv').write_text('one,two\n1,2\n')
    refused = run('survey', 'import', tmp_path / 'deep' / 'new', tmp_path / 'bad.csv')
    assert refused.returncode == 2 and len(refused.stderr.splitlines()) == 1
    assert [p.name for p in tmp_path.iterdir()] == ['bad.csv']


@pytest.mark.parametrize('form', ['own', 'langoustin', 'pairs', 'cblearn'])
def test_tables_tell_no_path(tmp_path, form):
    names = [f'/home/ann/Music/{album}/01.mp3' for album in 'abcd'] + [
        'file:///home/ann/caf%E9.mp3',
        r'C:\Users\ann\e.mp3',
    ]
    folder = new_survey(tmp_path / 's', names)
    answered(folder, 4)
    with SurveyStore(folder) as store:
        add_songs(store, [Song('/home/ann/later.mp3')])
        export_answers(store, tmp_path / 'out.csv', form)
        text = (tmp_path / 'out.csv').read_text()
        assert '/home' not in text and 'Music' not in text and '01.mp3' in text
        assert form != 'own' or 'Title 3,' in text
        import_answers(store, tmp_path / 'out.csv')
        assert store.rows('SELECT count(*) FROM songs')[0][0] == 7  # all were found again


def test_answers_that_were_not_heard_do_not_count(tmp_path):
    folder = new_survey(tmp_path / 's')
    answered(folder, 3)
    answered(folder, 2, plays=(0, 0, 0), heard_ms=(0, 0, 0), response_ms=0)
    answered(folder, 1, heard_ms=(86_400_000,) * 3, response_ms=1)
    table = langoustin(tmp_path / 'x.csv', ['1,a,b,e,a,P1'])
    with SurveyStore(folder) as store:
        import_answers(store, table)
        report = survey_report(store)
        assert len(answer_rows(store)) == 7  # all are kept
    assert (report['answers_kept'], report['people_kept'], report['answers']) == (4, 2, 7)
    assert report['unheard'] == {NOT_HEARD: 2, TOO_SOON: 1}
    assert f'  left out: 2 answers: {NOT_HEARD}' in report_lines(report)
    assert f'{NOT_HEARD}: 2 answers; {TOO_SOON}: 1 answer' in report_html(report)


def test_one_is_not_many(tmp_path):
    folder = new_survey(tmp_path / 's')
    answered(folder, 1)
    answered(folder, 1, heard_ms=(0, 0, 0))
    with SurveyStore(folder) as store:
        text = '\n'.join(report_lines(survey_report(store)))
    assert '1 answer of 1 person counts, of 2 of 2' in text and ', 1 answer: ' in text
    assert '1 answers' not in text and '1 people' not in text


def test_a_model_learns_from_whom_the_report_counts(tmp_path):
    folder = new_survey(tmp_path / 's')
    answered(folder, 3)
    answered(folder, 30, heard_ms=(0, 0, 0))
    with pytest.raises(ResonanceError, match='30 answers left out, as in the report'):
        learn_from_answers(folder, tmp_path / 'model', progress=False)


def test_a_damaged_survey_is_told_in_a_line(tmp_path):
    folder = survey_toy.make(tmp_path / 's')
    database = folder / 'survey.db'
    data = bytearray(database.read_bytes())
    data[5_000:] = b'\x07' * (len(data) - 5_000)
    for gone in folder.glob('survey.db-*'):
        gone.unlink()
    database.write_bytes(data)
    for words in (('report', folder), ('serve', folder, '--port', 0)):
        said = run('survey', *words)
        assert said.returncode == 2 and len(said.stderr.splitlines()) == 1, said.stderr
        assert 'is damaged' in said.stderr


def test_a_survey_that_cannot_be_written_is_told_in_a_line(tmp_path):
    folder = survey_toy.make(tmp_path / 's')
    if os.geteuid() == 0:
        with pytest.raises(ResonanceError, match='cannot be written'), SurveyStore(folder) as store:
            store.db.execute('PRAGMA query_only=ON')
            store.db.execute('DELETE FROM songs')
        return
    (folder / 'survey.db').chmod(0o400)
    folder.chmod(0o500)
    with pytest.raises(ResonanceError, match='survey.db'):
        SurveyStore(folder)
    folder.chmod(0o700)


def test_what_is_served_has_its_words_and_its_clips(tmp_path):
    folder = survey_toy.make(tmp_path / 's')
    with SurveyStore(folder) as store:
        assert lost_clips(store) == []
        for kind in ('opus', 'mp3'):
            (folder / 'clips' / f'{3:016x}.{kind}').unlink()
        assert lost_clips(store) == ['secret/song 3.mp3']
        (folder / 'clips').rename(folder / 'elsewhere')
        with pytest.raises(ResonanceError, match='clips is gone'):
            lost_clips(store)
        (folder / 'consent.txt').unlink()
    said = run('survey', 'serve', folder, '--port', 0)
    assert said.returncode == 2 and len(said.stderr.splitlines()) == 1 and 'consent.txt' in said.stderr


KILLED = """
import sys, time
from pathlib import Path
from resonance_nb.survey_store import growing
with growing(Path(sys.argv[1])) as part:
    (part / 'a file').touch()
    print('at work', flush=True)
    time.sleep(600)
"""


def test_what_a_killed_process_left_goes_with_the_next(tmp_path):
    process = subprocess.Popen([sys.executable, '-c', KILLED, str(tmp_path / 'mine')], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b'at work\n'
    with pytest.raises(ResonanceError, match='another process'), growing(tmp_path / 'mine'):
        pass
    assert len(list(tmp_path.glob('.mine.*.part'))) == 1  # whoever is at work keeps its folder
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    (tmp_path / '.mine.too').mkdir()  # of somebody else
    with growing(tmp_path / 'mine') as part:
        (part / 'whole').touch()
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob('*')) == [
        '.mine.too',
        'mine',
        'mine/whole',
    ]


class Timbre:
    "A stand-in for the model."

    name = digest = 'timbre'

    def embed(self, samples, *, rate_hz=16_000):
        import numpy as np

        return np.ones(4, np.float32)


def test_names_that_are_no_utf8_and_nobody_to_ask(tmp_path, monkeypatch):
    import numpy as np
    from click.testing import CliRunner

    from resonance_nb import audio, feel_library
    from resonance_nb.cli_survey import survey

    monkeypatch.setattr(feel_library, 'load_model', lambda path=None: Timbre())
    music = tmp_path / 'music'
    music.mkdir()
    t = np.arange(25 * 16_000) / 16_000
    for name in (b'a.wav', b'b.wav', b'caf\xe9 \xff.wav'):
        audio.save(tmp_path / 'x.wav', 0.2 * np.sin(2 * np.pi * (300 + len(name)) * t) * (1 + np.sin(t)))
        os.rename(tmp_path / 'x.wav', os.path.join(os.fsencode(music), name))
    words = ['new', str(music), '--out', str(tmp_path / 's'), '--clip', '10', '--for-people', '--json']
    made = CliRunner().invoke(survey, words)
    assert made.exit_code == 0, made.output
    assert json.loads(made.stdout)['songs'] == 3
    assert '--contact' in made.stderr
    with SurveyStore(tmp_path / 's') as store:
        names = [r['name'] for r in store.rows('SELECT name FROM songs')]
    assert sum(name.startswith('file://') for name in names) == 1
