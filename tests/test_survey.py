"""Answers to a survey: nothing that was confirmed is lost, nothing is there twice, nobody can be told from them."""

import json
import subprocess
import sys
import threading
import time
import uuid

import httpx
import numpy as np
import pandas as pd
import pytest
import survey_toy

from resonance_nb import audio
from resonance_nb.core import ResonanceError, rng_for
from resonance_nb.survey_clips import LOUDNESS_LUFS, PEAK_DB, cut_clips, true_peak_db
from resonance_nb.survey_store import SurveyStore, answer_rows, find_person

testclient = pytest.importorskip('starlette.testclient')
pytest.importorskip('uvicorn')

SLOW_S = 120  # a machine ten times slower still gets there


@pytest.fixture
def folder(tmp_path):
    return survey_toy.make(tmp_path / 'survey')


@pytest.fixture
def client(folder):
    from resonance_nb.survey_app import survey_app

    with SurveyStore(folder) as store:
        yield testclient.TestClient(survey_app(store, host='testserver'), base_url='http://testserver')


def joined(client, **more):
    "The header of a new person."
    about = client.get('/api/survey').json()
    answer = client.post('/api/join', json={'consent': about['version'], 'old_enough': True} | more)
    assert answer.status_code == 200, answer.text
    return {'X-Person': answer.json()['token']}


def row_for(question, choice=0, **more):
    "What the page sends."
    row = dict(uuid=str(uuid.uuid4()), number=question['number'], choice=choice, plays=[1, 2, 1])
    return row | dict(heard_ms=[4_000, 3_500, 5_000], response_ms=14_000, hidden=0) | more


def test_a_survey_from_consent_to_withdrawal(client, folder):
    me = joined(client, simulated=True, listening='speakers')
    seen = []
    while questions := client.get(f'/api/questions?after={len(seen) - 1}&n=5', headers=me).json()[
        'questions'
    ]:
        rows = [row_for(q, i % 3 if i else None) for i, q in enumerate(questions)]
        assert client.post('/api/answers', json={'answers': rows}, headers=me).json()['refused'] == {}
        seen += questions
    assert [q['number'] for q in seen] == list(range(12))
    assert client.get('/api/progress', headers=me).json() == {'answered': 12, 'total': 12}
    with SurveyStore(folder) as store:
        kept = answer_rows(store)
        clips = {r['song']: (r['clip'], r['second']) for r in store.rows('SELECT * FROM songs')}
    for row, question in zip(kept, seen):
        pieces = [clips[s][p] for s, p in zip(row['songs'], row['pieces'])]
        assert question['clips'] == [pieces[place] for place in row['shown']]
    assert {r['person'] for r in kept} == {'simulated 1'}
    assert client.post('/api/withdraw', headers=me).json() == {'deleted': 12}
    with SurveyStore(folder) as store:
        assert not answer_rows(store) and not store.rows('SELECT * FROM people')


def test_the_same_answer_twice_is_one(client):
    me = joined(client)
    first = client.get('/api/questions?n=1', headers=me).json()['questions'][0]
    row = row_for(first, 1)
    for _ in range(3):
        answer = client.post('/api/answers', json={'answers': [row, row]}, headers=me).json()
        assert answer['confirmed'] == [row['uuid']] * 2
    again = client.post('/api/answers', json={'answers': [row_for(first, 2)]}, headers=me)
    assert again.json()['confirmed'] == [] and 'has an answer already' in str(again.json()['refused'])
    with SurveyStore(client.app.app.state.desk.store.folder) as store:
        kept = answer_rows(store)
    assert len(kept) == 1 and kept[0]['uuid'] == row['uuid']


def test_an_id_is_of_one_answer(client):
    me = joined(client)
    both = client.get('/api/questions?n=2', headers=me).json()['questions']
    rows = [row_for(q, uuid='one-id-for-both') for q in both]
    for sent in (rows, rows[1:]):  # in a batch, and later by itself
        reply = client.post('/api/answers', json={'answers': sent}, headers=me).json()
        assert reply['confirmed'] == ['one-id-for-both'] * (len(sent) - 1)
        assert 'of another answer' in reply['refused']['one-id-for-both']
    assert client.get('/api/progress', headers=me).json()['answered'] == 1


def test_nobody_answers_for_somebody_else(client):
    one, other = joined(client), joined(client)
    question = client.get('/api/questions?n=1', headers=one).json()['questions'][0]
    row = row_for(question)
    assert client.post('/api/answers', json={'answers': [row]}, headers=one).json()['confirmed']
    refused = client.post('/api/answers', json={'answers': [row]}, headers=other).json()
    assert refused['confirmed'] == [] and list(refused['refused']) == [row['uuid']]
    assert client.post('/api/withdraw', headers={'X-Person': 'guess'}).status_code == 410


HOSTILE = [
    b'',
    b'{',
    b'[]',
    b'null',
    b'"text"',
    b'{"answers": 1}',
    b'{"answers": [1]}',
    b'{"answers": [{}]}',
    b'{"answers": [{"uuid": "12345678", "number": 1e9}]}',
    b'{"answers": NaN}',
    b'\xff\xfe\x00',
    b'[' * 60_000,
    b'{"answers": [' + b'9' * 9_000 + b']}',
    json.dumps({'answers': [row_for({'number': 0}, c) for c in (True,)]}).encode(),
    json.dumps({'answers': [row_for({'number': 0}, uuid='x' * 65)]}).encode(),
    json.dumps({'answers': [row_for({'number': -1})]}).encode(),
    json.dumps({'answers': [row_for({'number': 0}, plays=[1, 2, 3, 4])]}).encode(),
    json.dumps({'answers': [row_for({'number': 0}, heard_ms=['1', 2, 3])]}).encode(),
    json.dumps({'answers': [row_for({'number': 0}, response_ms={'a': 1})]}).encode(),
]


@pytest.mark.parametrize('body', HOSTILE, ids=[str(i) for i in range(len(HOSTILE))])
def test_what_cannot_be_an_answer_is_refused_in_a_line(client, body):
    me = joined(client)
    answer = client.post('/api/answers', content=body, headers=me)
    assert answer.status_code == 400
    assert len(answer.json()['error'].splitlines()) == 1
    with SurveyStore(client.app.app.state.desk.store.folder) as store:
        assert not answer_rows(store)


def test_strangers_and_large_bodies_are_turned_away(client):
    me = joined(client)
    assert client.post('/api/answers', content=b' ' * (1 << 20), headers=me).status_code == 413
    forged = {'Origin': 'https://evil.example'}
    assert client.post('/api/withdraw', headers=me | forged).status_code == 403
    assert client.get('/', headers={'Host': 'evil.example'}).status_code == 421
    for name in ('..%2fsettings.json', '%2e%2e/survey.db', '0000000000000000.db', 'x.opus'):
        assert client.get(f'/clips/{name}').status_code == 404
    for query in ('after=x', 'n=-1', 'after=99999999999', 'n=1000'):
        assert client.get(f'/api/questions?{query}', headers=me).status_code == 400
    assert client.get('/api/questions').status_code == 410


def test_joining_needs_consent_to_these_words_and_the_age(client):
    version = client.get('/api/survey').json()['version']
    for body in (
        {},
        {'consent': version},
        {'consent': 'x', 'old_enough': True},
        {'consent': version, 'old_enough': 1},
    ):
        assert client.post('/api/join', json=body).status_code == 400
    statuses = [
        client.post('/api/join', json={'consent': version, 'old_enough': True}).status_code for _ in range(70)
    ]
    assert statuses[0] == 200 and statuses[-1] == 429


def test_the_report_is_for_the_owner(client):
    assert 'password' in client.get('/report').text
    wrong = client.post('/report', data={'password': 'guess'})
    assert wrong.status_code == 403 and wrong.headers['content-type'].startswith('text/html')
    assert 'name="password"' in wrong.text and 'That is not the password of the owner.' in wrong.text
    page = client.post('/report', data={'password': survey_toy.OWNER})
    assert page.status_code == 200 and 'Agreement' in page.text
    assert 'style=' not in page.text and '<style' not in page.text
    for _ in range(12):
        last = client.post('/report', data={'password': 'guess'})
    assert last.status_code == 429 and 'wait a minute' in last.text and 'name="password"' in last.text
    assert (
        client.post('/report', data={'password': survey_toy.OWNER}).status_code == 200
    )  # the owner comes in


@pytest.mark.parametrize('names, status', [((), 200), (('songs.example.org',), 404)])
def test_the_report_of_a_personal_survey_needs_no_password_here(tmp_path, names, status):
    from resonance_nb.survey_app import survey_app

    folder = survey_toy.make(tmp_path / 'survey', personal=True, owner_hash='')
    with SurveyStore(folder) as store:
        app = survey_app(store, host='127.0.0.1', names=names)
        client = testclient.TestClient(app, base_url='http://127.0.0.1')
        page = client.get('/report')
        assert page.status_code == status and 'name="password"' not in page.text
        assert ('Agreement' if status == 200 else 'This survey has no password') in page.text
        assert client.post('/report', data={'password': ''}).status_code == status


def test_the_link_of_a_survey_outlives_the_server(folder, tmp_path):
    from resonance_nb.survey_app import survey_app

    seen = []
    for place in (folder, folder, survey_toy.make(tmp_path / 'other')):
        with SurveyStore(place) as store:
            app = survey_app(store, host='testserver', needs_token=True)
            client = testclient.TestClient(app, base_url='http://testserver')
            assert client.get('/').status_code == 401
            token = app.rules.token
            given = client.get(f'/?token={token}&simulated=1', follow_redirects=False)
            assert given.status_code == 303 and given.headers['location'] == '/?simulated=1'
            words = given.headers['set-cookie'].split('; ')
            assert 'HttpOnly' in words and 'SameSite=Lax' in words and 'Max-Age=34560000' in words
            about = client.get('/api/survey').json()
            assert about['token'] == token
            seen.append((about['survey'], token))
    assert seen[0] == seen[1] and not set(seen[0]) & set(seen[2])
    assert (folder / 'access.json').stat().st_mode & 0o777 == 0o600
    (folder / 'access.json').write_text('{}')
    with SurveyStore(folder) as store, pytest.raises(ResonanceError, match='cannot be read'):
        survey_app(store)


def test_what_was_meant_for_another_survey_is_not_taken(client):
    me = joined(client)
    other = {'X-Survey': 'the one before'}
    assert client.get('/api/progress', headers=me | other).status_code == 409
    assert client.post('/api/withdraw', headers=me | other).status_code == 409
    assert client.get('/api/progress', headers={'X-Person': 'guess'} | other).status_code == 409


def test_a_second_server_of_a_survey_is_told(folder):
    with survey_toy.served(folder):
        command = [sys.executable, '-m', 'resonance_nb', 'survey', 'serve', str(folder), '--port', '0']
        second = subprocess.run(command, capture_output=True, text=True, timeout=SLOW_S)
        assert second.returncode == 2 and not second.stdout
        assert len(second.stderr.splitlines()) == 1 and 'is being served already' in second.stderr
    with survey_toy.served(folder):  # the first ended by kill -9
        pass


def test_a_page_tells_nothing_about_the_songs(client):
    me = joined(client)
    texts = [
        client.get(path, headers=me).text
        for path in ('/', '/survey.js', '/api/survey', '/api/questions?n=12')
    ]
    assert not any('secret' in text.lower() or 'active' in text for text in texts[2:])


def test_no_address_is_kept(folder):
    with (
        survey_toy.served(folder) as server,
        httpx.Client(base_url=server.address, timeout=SLOW_S, verify=False) as client,
    ):
        me = joined(client)
        question = client.get('/api/questions?n=1', headers=me).json()['questions'][0]
        client.post('/api/answers', json={'answers': [row_for(question)]}, headers=me)
        client.post('/api/answers', content=b'{', headers=me)
        token = me['X-Person'].encode()
    files = [p for p in folder.rglob('*') if p.is_file() and 'clips' not in p.parts]
    for path in files:
        data = path.read_bytes()
        assert b'127.0.0.1' not in data and b'localhost' not in data and token not in data, path.name
    assert (folder / 'log.txt').read_bytes() == b''


def answer_for_ever(address, me, choices, confirmed, stop):
    "Answer every question, send again what was not confirmed, and note what was."
    waiting = []
    while not stop.is_set():
        try:
            with httpx.Client(base_url=address, timeout=SLOW_S, verify=False) as client:
                while not stop.is_set():
                    after = max([r['number'] for r in waiting], default=-1)
                    found = client.get(f'/api/questions?after={after}&n=2', headers=me).json()
                    waiting += [row_for(q, int(choices.integers(3))) for q in found['questions']]
                    reply = client.post('/api/answers', json={'answers': waiting}, headers=me).json()
                    confirmed += reply['confirmed']
                    waiting = []
        except httpx.HTTPError:
            time.sleep(0.02)


def test_kill_9_loses_nothing_that_was_confirmed(tmp_path):
    folder = survey_toy.make(tmp_path / 'survey', n_songs=40, n_questions=4_000)
    rng = rng_for(0, 'kills')
    confirmed, stop, thread, port, me = [], threading.Event(), None, 0, None
    for _ in range(20):
        with survey_toy.served(folder, port=port) as server:
            if thread is None:
                port = int(server.address.rstrip('/').rpartition(':')[2])
                with httpx.Client(base_url=server.address, timeout=SLOW_S, verify=False) as client:
                    me = joined(client)
                words = (server.address, me, rng_for(0, 'choices'), confirmed, stop)
                thread = threading.Thread(target=answer_for_ever, args=words)
                thread.start()
            before, end_s = len(confirmed), time.monotonic() + SLOW_S
            while len(confirmed) < before + 2 and time.monotonic() < end_s:  # it is at work
                time.sleep(0.01)
            time.sleep(rng.uniform(0, 0.1))
        # the block ends with kill -9
    stop.set()
    thread.join(SLOW_S)
    assert len(confirmed) >= 40
    with SurveyStore(folder) as store:
        assert store.rows('PRAGMA integrity_check')[0][0] == 'ok'
        kept = answer_rows(store)
        assert find_person(store, me['X-Person'])
    ids = [r['uuid'] for r in kept]
    assert not set(confirmed) - set(ids), 'a confirmed answer is missing'
    assert len(ids) == len(set(ids)) and len({r['number'] for r in kept}) == len(kept)


def test_clips_are_equally_loud_and_fade(tmp_path):
    rng = rng_for(0, 'clips')
    t = np.arange(40 * 16_000) / 16_000
    loud = np.clip(2 * np.sin(2 * np.pi * 220 * t) * (1 + np.sin(2 * np.pi * t)), -1, 1)
    songs = {'loud': loud, 'quiet': 0.003 * loud, 'noise': 0.5 * rng.uniform(-1, 1, len(t))}
    for name, samples in songs.items():
        audio.save(tmp_path / f'{name}.wav', samples)
        (tmp_path / name).mkdir()
        clips = cut_clips(tmp_path / f'{name}.wav', tmp_path / name, second=True)
        assert len(clips) == 2 and abs(clips[0].start_s - clips[1].start_s) >= 12
        for path in (tmp_path / name).iterdir():
            x = audio.load(path, sample_rate_hz=48_000)
            assert abs(len(x) / 48_000 - 12) < 0.1
            assert abs(audio.lufs(x, 48_000) - LOUDNESS_LUFS) < 0.7
            assert true_peak_db(x) < PEAK_DB + 0.1
            edge, inner = np.abs(x[:240]).max(), np.abs(x[48_000:96_000]).max()
            assert edge < 0.2 * inner
    with pytest.raises(ResonanceError, match='shorter than'):
        audio.save(tmp_path / 'short.wav', loud[:16_000])
        cut_clips(tmp_path / 'short.wav', tmp_path)


def test_public_answers_come_in_and_go_out(tmp_path):
    import os
    from pathlib import Path

    home = os.environ.get('RESONANCE_FEEL')
    if not home:
        pytest.skip('RESONANCE_FEEL names no folder of public answers')
    from click.testing import CliRunner

    from resonance_nb.cli_survey import survey

    run = lambda *words: CliRunner().invoke(survey, [str(w) for w in words], catch_exceptions=False)
    for name, form in (('langoustin-answers.csv', 'langoustin'), ('mecomp-human-triplets.csv', 'pairs')):
        told = json.loads(run('import', tmp_path / form, Path(home) / name, '--json').stdout)
        assert told['form'] == form
        for out in (form, 'own', 'cblearn'):
            run('export', tmp_path / form, '--format', out, '--out', tmp_path / f'{form}-{out}.csv')
            run('import', tmp_path / f'{form}-{out}', tmp_path / f'{form}-{out}.csv')
        ours, own = pd.read_csv(tmp_path / f'{form}-{form}.csv'), pd.read_csv(tmp_path / f'{form}-own.csv')
        assert len(own) == told['new'] == len(ours)
        public = pd.read_csv(Path(home) / name)
        public = public.sort_values("id", ignore_index=True) if "id" in public else public
        if form == 'langoustin':
            pd.testing.assert_frame_equal(ours, public)
        else:
            answered = public.dropna().reset_index(drop=True).astype({'anchor': int, 'positive': int})
            assert (
                ours[['song1', 'song2', 'song3']].to_numpy(str)
                == answered[['song1', 'song2', 'song3']].to_numpy(str)
            ).all()
            both = np.sort(answered[['anchor', 'positive']].to_numpy(), axis=1)
            assert (ours[['anchor', 'positive']].to_numpy() == both).all()
        again = run('export', tmp_path / f'{form}-own', '--out', tmp_path / 'again.csv')
        assert again.exit_code == 0
        pd.testing.assert_frame_equal(pd.read_csv(tmp_path / 'again.csv'), own)
