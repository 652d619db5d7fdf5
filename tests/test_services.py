"""Packs that can be killed, answers that may be anything, and a client against a server that checks it."""

import csv
import io
import json
import logging
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import traceback
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile as sf
from acrcloud_stub import KEY, SECRET, Stub, found, status
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from toy import melody

from resonance_nb import acrcloud, audio, bench, figures, metrics, openset, packs, services
from resonance_nb.clips import in_venue, render
from resonance_nb.queries import make_protocol, make_queries, QuerySet
from resonance_nb.acrcloud import AccessRefused, AcrCloud
from resonance_nb.answers import Answer, Names, plain, read_answers
from resonance_nb.cli import main
from resonance_nb.core import ResonanceError, rng_for
from resonance_nb.corpora import Corpus, write_corpus
from resonance_nb.landmarks import Landmarks
from resonance_nb.packs import Pack, ServiceError

RATE = audio.SAMPLE_RATE
ROOT = Path(__file__).resolve().parents[1]
MAIN = 'import sys; from resonance_nb.cli import main; main()'
settings.register_profile(
    'services',
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile('services')


@pytest.fixture(scope='module')
def corpus(tmp_path_factory):
    "Twelve melodies and twelve noises, as files."
    folder = tmp_path_factory.mktemp('corpus')
    for kind in ('music', 'noise'):
        (folder / kind).mkdir()
    licence = lambda i: 'CC-BY-ND 4.0' if i == 3 else 'CC0 1.0'
    music = [
        dict(
            id=f's{i:02}',
            file=f'music/{i}.wav',
            title=f'Song No. {i}',
            artist=f'Band {i % 3}',
            duration_s=9.0,
            licence=licence(i),
        )
        for i in range(12)
    ]
    noise = [
        dict(id=f'c{i}', file=f'noise/{i}.wav', duration_s=6.0, concert_use='core', category='crowd')
        for i in range(12)
    ]
    for i in range(12):
        sf.write(
            folder / music[i]['file'], melody(i, 9) + 0.01 * melody(100 + i, 9)[::-1], RATE, subtype='PCM_16'
        )
        sf.write(
            folder / noise[i]['file'],
            0.1 * rng_for(i, 'noise').standard_normal(6 * RATE),
            RATE,
            subtype='PCM_16',
        )
    return write_corpus(folder, pd.DataFrame(music), pd.DataFrame(noise))


@pytest.fixture(scope='module')
def plan(corpus):
    return make_protocol(corpus, 'train')


@pytest.fixture(scope='module')
def queries(corpus, plan):
    return make_queries(corpus, plan, (None, 0, -10), (2, 3))


@pytest.fixture(scope='module')
def packed(corpus, plan, queries, tmp_path_factory):
    return packs.pack(corpus, queries, plan, tmp_path_factory.mktemp('packs') / 'pack', progress=False)


def of_kind(packed, kind):
    "The files that ask such queries, in order, with their queries."
    by_id = {q.query_id: q for q in packed.queries}
    return [(f, by_id[q]) for f, (q, _) in packed.files.items() if by_id[q].kind == kind]


def files_of(folder):
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted(Path(folder).rglob('*')) if p.is_file()
    }


# ---- packs


def test_a_question_is_a_bare_wav(corpus, queries, packed):
    by_id = {q.query_id: q for q in queries}
    assert sorted(q for q, _ in packed.files.values()) == sorted(by_id) and len(packed.files) == len(queries)
    for file, (query_id, _) in packed.files.items():
        data, rate = sf.read(packed.path(file), dtype='int16', always_2d=True)
        want = render(by_id[query_id], corpus)
        assert (
            rate == RATE and data.shape == (len(want), 1) and sf.info(packed.path(file)).subtype == 'PCM_16'
        )
        assert packed.path(file).stat().st_size == 44 + 2 * len(want), 'a header and samples, no tags'
        assert np.abs(data[:, 0] / 32768 - want).max() <= 2 / 32768


def test_nothing_that_goes_out_gives_an_answer_away(packed, queries):
    out = files_of(packed.folder)
    told = ' '.join(out) + out['questions.csv'].decode()
    ids = {q.track_id for q in queries if q.track_id}
    assert ids and not any(t in told for t in ids) and 'Song' not in told and 'known' not in told
    kinds = [q for q, _ in packed.files.values()]
    assert kinds != sorted(kinds) and kinds != [q.query_id for q in queries]
    assert len({packed.path(f).stat().st_mtime_ns for f in packed.files}) == 1, (
        'the dates tell the order of writing'
    )
    known = [packed.files[f][0].split('/')[1] for f, _ in of_kind(packed, 'known')]
    together = sum(a == b for a, b in zip(known, known[1:]))
    assert together < len(known) / 2, 'clips of one song stand together'
    listed = list(csv.DictReader(io.StringIO(out['questions.csv'].decode())))
    assert [r['file'] for r in listed] == [f'questions/{f}' for f in packed.files]
    assert all(
        packs.sha256_file(packed.folder / r['file']) == r['sha256'] and float(r['duration_s']) in (2, 3)
        for r in listed
    )


def test_the_catalogue_lists_who_may_be_found(packed, plan, corpus):
    rows = list(csv.DictReader(io.StringIO((packed.folder / 'catalogue' / 'catalogue.csv').read_text())))
    assert [r['track_id'] for r in rows] == list(plan.catalogue_ids) and not {
        r['track_id'] for r in rows
    } & set(plan.unknown_ids)
    assert all(
        packs.sha256_file(corpus.folder / r['file']) == r['sha256'] and r['title'] and r['licence']
        for r in rows
    )
    told = (packed.folder / 'INSTRUCTIONS.md').read_text()
    n_nd = sum(r['licence'] == 'CC-BY-ND 4.0' for r in rows)
    assert (
        f'{n_nd} of the {len(rows)} songs forbid' in told
        and 'except `answers.json`' in told
        and rows[0]['track_id'] in told
    )
    private = packs.not_to_share(corpus, packed)
    assert {packed.files[f][0].split('/')[1] for f in private} == {'s03'} & {
        q.track_id for q in packed.queries
    }


def test_the_same_seed_gives_the_same_bytes(corpus, plan, queries, packed, tmp_path):
    again = packs.pack(corpus, queries, plan, tmp_path / 'again', progress=False)
    assert files_of(again.folder) == files_of(packed.folder)
    other = packs.pack(corpus, queries, plan, tmp_path / 'other', seed=1, progress=False)
    assert [q for q, _ in other.files.values()] != [q for q, _ in packed.files.values()]


def test_another_rate(corpus, plan, queries, tmp_path):
    few = QuerySet(queries[:3])
    made = packs.pack(corpus, few, plan, tmp_path / 'cd', rate_hz=44_100, progress=False)
    for file, (query_id, _) in made.files.items():
        query = next(q for q in few if q.query_id == query_id)
        data, rate = sf.read(made.path(file))
        assert (rate, len(data)) == (44_100, round(query.duration_s * 44_100))
        back = audio.load(made.path(file))
        want = render(query, corpus)
        # white noise loses what lies close to half the rate
        assert np.corrcoef(back[200:-200], want[200 : len(back) - 200])[0, 1] > 0.95


def test_what_is_too_loud_is_turned_down_not_clipped():
    x = np.sign(np.sin(np.arange(RATE) / 7)).astype(np.float32)  # resampled, a square wave overshoots
    data, rate = sf.read(io.BytesIO(packs.wav_bytes(x, 44_100)))
    top = audio.resample(x, RATE, 44_100)
    assert np.abs(top).max() > 1.05
    assert np.allclose(data, top / np.abs(top).max(), atol=2e-4)


@pytest.mark.parametrize('bad', [[], [math.nan], [[0.1, 0.2]], [math.inf]])
def test_no_sound_no_question(bad):
    with pytest.raises(ServiceError, match='finite samples'):
        packs.wav_bytes(bad)


def test_a_killed_pack_goes_on(corpus, plan, queries, packed, tmp_path, monkeypatch):
    code = (
        'import sys; sys.path.insert(0, sys.argv[3]); from resonance_nb import packs; from resonance_nb.corpora import Corpus\n'
        'from resonance_nb.queries import make_protocol, make_queries\n'
        'c = Corpus(sys.argv[1]); p = make_protocol(c, "train"); q = make_queries(c, p, (None, 0, -10), (2, 3))\n'
        'slow = packs.render\n'
        'def render(*a):\n    import time; time.sleep(0.05); return slow(*a)\n'
        'packs.render = render; packs.pack(c, q, p, sys.argv[2], progress=False)'
    )
    target = tmp_path / 'pack'
    for wanted in (4, 9):
        child = subprocess.Popen([sys.executable, '-c', code, str(corpus.folder), str(target), str(ROOT)])
        while len(list((target / 'questions').glob('q*.wav'))) < wanted and child.poll() is None:
            time.sleep(0.01)
        child.send_signal(signal.SIGKILL)
        child.wait()
    there = {p.name: p.stat().st_ino for p in (target / 'questions').glob('q*.wav')}
    assert 9 <= len(there) < len(queries) and not (target / 'answers.json').exists()
    with pytest.raises(ServiceError, match='not finished'):
        Pack.load(target)
    (target / 'questions' / '.q0001.wav.1.part').write_bytes(b'left behind')
    asked = []
    real = packs.render
    monkeypatch.setattr(packs, 'render', lambda q, *a: (asked.append(q.query_id), real(q, *a))[1])
    made = packs.pack(corpus, queries, plan, target, progress=False)
    # one may lie there without its line in the journal
    assert len(queries) - len(there) <= len(asked) <= len(queries) - len(there) + 1
    assert sum((target / 'questions' / n).stat().st_ino == i for n, i in there.items()) >= len(there) - 1
    assert files_of(target) == files_of(packed.folder) and made.files == packed.files
    asked.clear()
    packs.pack(corpus, queries, plan, target, progress=False)
    assert not asked, 'a finished pack is made again'


def test_damage_is_repaired(corpus, plan, queries, packed, tmp_path):
    target = tmp_path / 'pack'
    packs.pack(corpus, queries, plan, target, progress=False)
    (target / 'questions' / 'q0002.wav').unlink()
    (target / 'questions' / 'q0004.wav').write_bytes(b'no sound')
    (target / 'questions' / 'q0006.wav').unlink()
    (target / 'questions' / 'q0006.wav').symlink_to(packed.path('q0006.wav'))
    (target / 'questions.csv').unlink()
    (target / 'catalogue' / 'catalogue.csv').write_text('nothing')
    packs.pack(corpus, queries, plan, target, progress=False)
    assert (
        files_of(target) == files_of(packed.folder) and not (target / 'questions' / 'q0006.wav').is_symlink()
    )


def test_a_foreign_folder_is_left_alone(corpus, plan, queries, packed, tmp_path):
    (tmp_path / 'letters').mkdir()
    (tmp_path / 'letters' / 'dear mother.txt').write_text('…')
    with pytest.raises(ServiceError, match='not empty'):
        packs.pack(corpus, queries, plan, tmp_path / 'letters', progress=False)
    assert [p.name for p in (tmp_path / 'letters').iterdir()] == ['dear mother.txt']
    before = files_of(packed.folder)
    others = [dict(seed=1), dict(rate_hz=44_100), dict(venue='club')]
    for how in others:
        with pytest.raises(ServiceError, match='another pack'):
            packs.pack(corpus, queries, plan, packed.folder, progress=False, **how)
    with pytest.raises(ServiceError, match='another pack'):
        packs.pack(corpus, QuerySet(queries[:-1]), plan, packed.folder, progress=False)
    assert files_of(packed.folder) == before
    (tmp_path / 'file').write_text('x')
    with pytest.raises(ServiceError, match='cannot write'):
        packs.pack(corpus, queries, plan, tmp_path / 'file', progress=False)


def test_the_corpus_by_another_name_is_the_same_pack(corpus, plan, queries, packed, tmp_path):
    # the key tells the new name, and others compare the pack
    own = Path(shutil.copytree(packed.folder, tmp_path / 'pack'))
    again = packs.pack(Corpus(corpus.folder, name='otherwise'), queries, plan, own, progress=False)
    assert again.files == packed.files and {
        n for n, b in files_of(own).items() if b != files_of(packed.folder)[n]
    } == {'answers.json'}


def test_links_do_not_lead_out(corpus, plan, queries, tmp_path):
    away = tmp_path / 'away'
    target = tmp_path / 'pack'
    away.mkdir(), packs.pack(corpus, QuerySet(queries[:2]), plan, target, progress=False)
    for folder in ('questions', 'catalogue'):
        moved = target / f'{folder} moved'
        (target / folder).rename(moved)
        (target / folder).symlink_to(away)
        with pytest.raises(ServiceError, match='leads out'):
            packs.pack(corpus, QuerySet(queries[:2]), plan, target, progress=False)
        assert not list(away.iterdir())
        (target / folder).unlink(), moved.rename(target / folder)


def test_no_path_of_a_manifest_leads_out(tmp_path, corpus, plan, queries):
    bad = corpus.music.copy()
    bad.loc[plan.catalogue_ids[0], 'file'] = '../../etc/passwd'
    (tmp_path / 'c').mkdir()
    bad.reset_index().to_csv(tmp_path / 'c' / 'music.csv', index=False)
    with pytest.raises(ResonanceError, match='could leave'):
        packs.pack(Corpus(tmp_path / 'c'), queries, plan, tmp_path / 'pack', progress=False)
    victim = tmp_path / 'linked'
    (victim / 'music').mkdir(parents=True)
    for row in corpus.music.itertuples():
        (victim / row.file).symlink_to(corpus.folder / row.file)
    corpus.music.reset_index().to_csv(victim / 'music.csv', index=False)
    with pytest.raises(ResonanceError, match='leads out'):
        packs.pack(
            Corpus(victim),
            QuerySet(queries[:1]),
            plan,
            tmp_path / 'pack2',
            with_songs='copy',
            progress=False,
        )


@pytest.mark.parametrize('how', ['copy', 'link'])
def test_songs_come_along(how, corpus, plan, queries, tmp_path):
    few = QuerySet(queries[:1])
    made = packs.pack(corpus, few, plan, tmp_path / 'pack', with_songs=how, progress=False)
    rows = list(csv.DictReader(io.StringIO((made.folder / 'catalogue' / 'catalogue.csv').read_text())))
    for r in rows:
        song = made.folder / 'catalogue' / r['file']
        assert packs.sha256_file(song) == r['sha256']
        assert song.samefile(corpus.path('music', r['track_id'])) == (how == 'link')
    assert sorted(p.name for p in (made.folder / 'catalogue' / 'songs').iterdir()) == sorted(
        Path(r['file']).name for r in rows
    )
    (made.folder / 'catalogue' / rows[0]['file']).unlink()
    packs.pack(corpus, few, plan, tmp_path / 'pack', with_songs=how, progress=False)
    assert packs.sha256_file(made.folder / 'catalogue' / rows[0]['file']) == rows[0]['sha256']
    with pytest.raises(ServiceError, match="'copy', 'link' or 'flac'"):
        packs.pack(corpus, few, plan, tmp_path / 'pack', with_songs='steal', progress=False)


def test_songs_in_a_form_that_every_system_reads(corpus, plan, queries, tmp_path):
    made = packs.pack(
        corpus, QuerySet(queries[:1]), plan, tmp_path / 'pack', with_songs='flac', progress=False
    )
    rows = list(csv.DictReader(io.StringIO((made.folder / 'catalogue' / 'catalogue.csv').read_text())))
    for r in rows:
        song = made.folder / 'catalogue' / r['file']
        assert song.suffix == '.flac' and packs.sha256_file(song) == r['sha256']
        assert np.abs(audio.load(song) - corpus.load('music', r['track_id'])).max() <= 2 / 32768
    before = song.stat().st_ino
    packs.pack(corpus, QuerySet(queries[:1]), plan, tmp_path / 'pack', with_songs='flac', progress=False)
    assert song.stat().st_ino == before


def test_a_title_is_no_formula(corpus, plan, queries, tmp_path):
    first = plan.catalogue_ids[0]
    evil = Corpus(
        corpus.folder,
        tables={
            'music': corpus.music.assign(
                title=['=HYPERLINK("x")' if i == first else t for i, t in corpus.music['title'].items()]
            ),
            'noise': corpus.noise,
        },
    )
    made = packs.pack(evil, QuerySet(queries[:1]), plan, tmp_path / 'pack', progress=False)
    row = next(csv.DictReader(io.StringIO((made.folder / 'catalogue' / 'catalogue.csv').read_text())))
    assert row['title'] == "'=HYPERLINK(\"x\")"
    back = read_answers(
        written(tmp_path, 'file,title\nq0001.wav,"' + row['title'].replace('"', '""') + '"\n')
    )[0]
    assert back.title == '=HYPERLINK("x")' and Names(made.songs, plan.catalogue_ids).find(back) == [first]


def test_a_song_that_is_gone_is_told(corpus, plan, queries, tmp_path):
    tables = {
        'music': corpus.music.assign(
            file=[
                'music/gone.wav' if i == plan.catalogue_ids[-1] else f
                for i, f in corpus.music['file'].items()
            ]
        ),
        'noise': corpus.noise,
    }
    with pytest.raises(ServiceError, match='missing'):
        packs.pack(
            Corpus(corpus.folder, tables=tables),
            QuerySet(queries[:1]),
            plan,
            tmp_path / 'p',
            progress=False,
        )


def test_a_venue_is_the_bench_s_own(corpus, plan, queries, tmp_path):
    from resonance_nb.bank import synthesised

    few = QuerySet([q for q in queries if q.kind == 'known' and q.snr_db == 0][:2])
    bank = synthesised()
    with pytest.MonkeyPatch.context() as m:
        m.setattr('resonance_nb.bank.Bank', lambda *_: bank)  # this corpus has no rooms
        made = packs.pack(corpus, few, plan, tmp_path / 'pack', venue='club', progress=False)
    at = in_venue(bank, ['club'], seed=plan.seed)
    for file, (query_id, _) in made.files.items():
        want = render(next(q for q in few if q.query_id == query_id), corpus, degrade=at)
        assert np.abs(audio.load(made.path(file)) - want).max() < 2e-4
    with pytest.raises(ResonanceError, match='unknown venue'):
        packs.pack(corpus, few, plan, tmp_path / 'opera', venue='opera', progress=False)
    assert not (tmp_path / 'opera').exists()


def test_two_at_once_are_refused(corpus, plan, queries, tmp_path):
    from filelock import FileLock

    (tmp_path / 'pack').mkdir()
    with FileLock(tmp_path / 'pack' / '.pack.lock'):
        with pytest.raises(ServiceError, match='another process'):
            packs.pack(corpus, queries, plan, tmp_path / 'pack', progress=False)


def changed_key(d, **edit):
    return json.dumps(d | edit)


@pytest.mark.parametrize(
    'edit',
    [
        lambda d: '',
        lambda d: '[1, 2]',
        lambda d: '[' * 100_000,
        lambda d: '{"format": "resonance pack"}',
        lambda d: json.dumps(d)[:-30],
        lambda d: changed_key(d, version=99),
        lambda d: changed_key(d, queries=d['queries'][:-1]),
        lambda d: changed_key(d, files=d['files'][:-1]),
        lambda d: changed_key(d, files=[['../../x.wav', *d['files'][0][1:]], *d['files'][1:]]),
        lambda d: changed_key(d, protocol=3),
        lambda d: changed_key(d, songs=[[1]]),
        lambda d: changed_key(d, queries=[dict(d['queries'][0], start_s=1.5), *d['queries'][1:]]),
    ],
)
def test_a_key_that_was_changed_is_refused(edit, packed, tmp_path):
    d = json.loads((packed.folder / 'answers.json').read_text())
    (tmp_path / 'answers.json').write_text(edit(d))
    with pytest.raises(ResonanceError) as e:
        Pack.load(tmp_path)
    assert len(str(e.value).splitlines()) == 1


def test_no_pack_at_all(tmp_path, corpus, plan):
    with pytest.raises(ServiceError, match='is no pack'):
        Pack.load(tmp_path / 'nowhere')
    with pytest.raises(ServiceError, match='no questions'):
        packs.pack(corpus, QuerySet(), plan, tmp_path / 'p')
    assert not (tmp_path / 'p').exists()


# ---- what comes back


def written(tmp_path, text, name='answers.csv', **how):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode(**how))
    return path


CELL = st.text(st.characters(exclude_categories=('Cs', 'Cc')), max_size=12)
ROW = st.fixed_dictionaries(
    {
        'track_id': CELL,
        'title': CELL,
        'artist': CELL,
        'score': st.none() | st.floats(-1e6, 1e6),
        'offset_s': st.none() | st.floats(-100, 1e4),
        'elapsed_ms': st.none() | st.floats(0, 1e6),
        'status': st.sampled_from(['', 'no-match', 'error']),
        'battery': CELL,
    }
)


def bare(cell):
    "Without the apostrophe that keeps a spreadsheet from running a cell."
    return re.sub(r"^'(?='*[=+\-@])", '', cell.strip())


@given(
    st.lists(ROW, max_size=8),
    st.sampled_from(',;\t|'),
    st.sampled_from(['utf-8', 'utf-8-sig', 'utf-16']),
    st.booleans(),
    st.randoms(),
)
def test_any_table_is_read_back(tmp_path, rows, delimiter, code, windows, order):
    columns = ['file', 'track_id', 'title', 'artist', 'score', 'offset_s', 'elapsed_ms', 'status', 'battery']
    order.shuffle(columns)
    rows = [r | {'file': f'q{i:04}.wav'} for i, r in enumerate(rows, 1)]
    out = io.StringIO()
    writer = csv.writer(out, delimiter=delimiter, lineterminator='\r\n' if windows else '\n')
    writer.writerow([c.replace('_', ' ').title() if windows else c for c in columns])
    writer.writerows([['' if r[c] is None else r[c] for c in columns] for r in rows])
    got = read_answers(written(tmp_path, out.getvalue(), encoding=code))
    assert [a.file for a in got] == [r['file'] for r in rows]
    for a, r in zip(got, rows):
        assert (a.track_id, a.title, a.artist, a.status) == (
            *(bare(r[f]) for f in ('track_id', 'title', 'artist')),
            r['status'],
        )
        for field in ('score', 'offset_s', 'elapsed_ms'):
            assert getattr(a, field) == r[field] or (r[field] is None and math.isnan(getattr(a, field)))


def one_line_or_answers(path):
    try:
        got = read_answers(path)
    except ServiceError as e:
        assert len(str(e).splitlines()) == 1 and str(e).isprintable() and len(str(e)) < 400
        return None
    assert all(isinstance(a, Answer) for a in got)
    return got


@given(st.binary(max_size=300) | st.text(max_size=300).map(lambda t: t.encode('utf-8', 'surrogatepass')))
def test_any_bytes_are_answers_or_one_line(tmp_path, data):
    one_line_or_answers(written(tmp_path, data))
    one_line_or_answers(written(tmp_path, b'file,track_id,score\n' + data))
    one_line_or_answers(written(tmp_path, b'{"file": "q0001.wav"}\n' + data))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**400), 10**400) | st.floats() | st.text(max_size=8),
    lambda x: (
        st.lists(x, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    'file',
                    'track_id',
                    'title',
                    'score',
                    'status',
                    'matches',
                    'answers',
                    'rank',
                    'Track ID',
                    'x',
                ]
            ),
            x,
            max_size=5,
        )
    ),
    max_leaves=20,
)


@given(JSON)
def test_any_json_is_answers_or_one_line(tmp_path, value):
    one_line_or_answers(written(tmp_path, json.dumps(value), 'answers.json'))
    one_line_or_answers(
        written(tmp_path, json.dumps([value, {'file': 'q0001.wav', 'matches': value}]), 'answers.json')
    )


@pytest.mark.parametrize(
    'text, says',
    [
        ('', None),
        ('\n\n', None),
        ('file,track_id\n', None),
        ('file;track_id\n\n\n', None),
        ('[]', None),
        ('track_id,score\ns01,3', 'line 1: there is no column file'),
        ('file,score\nq0001.wav,3', 'line 1: there is no column track_id, title or status'),
        ('file,track_id,Track-ID\nq,1,2', "'track_id' twice"),
        ('file,track_id,score\n\n\nq0001.wav,s01,many', 'line 4: score'),
        ('file,track_id,score\nq0001.wav,s01,inf', 'line 2: score'),
        ('file,track_id,score\nq0001.wav,s01,1_000', 'line 2: score'),
        ('file,track_id,score\nq0001.wav,s01,١٢', 'line 2: score'),
        ('file,track_id,confidence\nq0001.wav,s01,93', 'no number from 0 to 1'),
        ('file,track_id,elapsed_ms\nq0001.wav,s01,-3', 'line 2: elapsed_ms'),
        ('file,track_id,status\nq0001.wav,s01,maybe', 'line 2: status'),
        ('file,track_id,status\nq0001.wav,,match', 'line 2: a match without'),
        ('file,track_id\n,s01', 'line 2: names no file'),
        ('file,title\nq0001.wav,Hello, Goodbye', 'line 2: has 3 cells'),
        ('file,title\n"q0001.wav,x\nq0002.wav,y\n', 'line 2: is no CSV'),
        ('file,title\nq1,"a\nb"\nq2,c,d', 'line 4: has 3 cells'),
        ('file,title\nq1,' + 'x' * 200_000, 'line 2: is no CSV (field larger'),
        (b'file,title\nq1,caf\xe9', 'line 2: is not UTF-8'),
        ('[1]', 'answer 1: is '),
        ('{"answers": 3}', 'holds no list'),
        ('{"a": 1}', 'holds no list'),
        ('[' * 200_000, 'holds no list'),
        ('{"file": "q1", "title": "x"}\n{"file": ', 'line 2: is no JSON'),
        ('[{"title": "x"}]', 'answer 1: there is no column file'),
        ('[{"file": "q1", "matches": [3]}]', 'no list of objects'),
        ('[{"file": "q1", "title": {"a": 1}}]', 'not a text'),
        ('[{"file": "q1", "title": "a", "score": true}]', "score 'True'"),
        ('[{"file": "q1", "title": "a", "score": [1]}]', "score '[1]'"),
        ('[{"file": "q1", "matches": [{"score": 3}]}]', 'no column track_id'),
        ('[{"file": "q1", "status": "match", "matches": []}]', 'a match without'),
    ],
)
def test_what_is_refused_says_where(text, says, tmp_path):
    path = written(tmp_path, text)
    if says is None:
        assert read_answers(path) == []
        return
    with pytest.raises(ServiceError) as e:
        read_answers(path)
    assert (
        says in str(e.value)
        and str(e.value).startswith('answers.csv')
        and len(str(e.value).splitlines()) == 1
    )


def test_files_that_are_none(tmp_path):
    with pytest.raises(ServiceError, match='cannot be read'):
        read_answers(tmp_path / 'gone.csv')
    with pytest.raises(ServiceError, match='cannot be read'):
        read_answers(tmp_path)
    with open(tmp_path / 'huge.csv', 'wb') as f:
        f.truncate(70_000_000)
    with pytest.raises(ServiceError, match='larger than'):
        read_answers(tmp_path / 'huge.csv')


def test_one_answer_in_every_shape(tmp_path):
    "A spreadsheet, an app's JSON, JSON lines, and what `resonance identify --json` prints: the same answers."
    shapes = {
        'a.csv': 'sep=;\r\nFile Name;ID;Track ID;Score;Offset ms;Elapsed s;Status\r\nC:\\x\\q0001.wav;77;s01;0,5;1500;0,25;Found\r\nq0001.wav;78;s02;0,25;;;\r\nq0002.wav;;;;;0,25;No Match\r\n',
        'b.json': json.dumps(
            {
                'version': 3,
                'results': [
                    {
                        'file': 'clips/q0001.wav',
                        'track_id': 's01',
                        'score': 0.5,
                        'offset_s': 1.5,
                        'elapsed_ms': 250,
                        'status': True,
                    },
                    {'file': 'q0001.wav', 'track_id': 's02', 'score': '0.25'},
                    {'file': 'q0002.wav', 'status': 'none', 'elapsed_ms': '250'},
                ],
            }
        ),
        'c.jsonl': '{"query": "pack/q0001.wav", "decision": "match", "elapsed_ms": 250, "matches": [{"track_id": "s01", "score": 0.5, "offset_s": 1.5}, {"track_id": "s02", "score": 0.25}]}\n'
        '{"query": "pack/q0002.wav", "decision": "no-match", "matches": [], "elapsed_ms": 250}\n',
    }
    for name, text in shapes.items():
        got = read_answers(written(tmp_path, text, name))
        assert [a.file.replace('\\', '/').split('/')[-1] for a in got] == [
            'q0001.wav',
            'q0001.wav',
            'q0002.wav',
        ], name
        assert [a.track_id for a in got] == ['s01', 's02', ''] and [a.score for a in got][:2] == [
            0.5,
            0.25,
        ], name
        assert got[0].offset_s == 1.5 and got[0].elapsed_ms == 250 and got[2].elapsed_ms == 250, name
        assert got[0].status == 'match' and got[2].status == 'no-match', name


# ---- names


def test_names_are_compared_without_their_spelling():
    assert plain('  ÉTUDE  No. 7! (feat. Ann & Bob)') == plain('Etude no 7') == 'etude no 7'
    assert plain('Straße') == plain('STRASSE') and plain('Ｆｕｌｌ') == 'full'
    assert plain('が') != plain('か') and plain('…') == '…' and plain('') == ''
    assert plain('Featherweight') == 'featherweight' and plain('Lift') == 'lift'


@given(st.text(max_size=30))
def test_plain_is_idempotent_and_total(text):
    assert isinstance(plain(text), str)
    once = plain(text)
    assert plain(once) == once or not any(c.isalnum() for c in once)


def test_who_is_meant():
    songs = {
        'a': ('Intro', 'Ann'),
        'b': ('Intro', 'Bob'),
        'c': ('Intro', 'Bob'),
        'd': ('Outro', ''),
        'e': ('Solo', 'Eve'),
        'Intro 2': ('x', 'y'),
    }
    who = Names(songs, ['a', 'b', 'd', 'Intro 2'])
    find = lambda **x: who.find(Answer('', '', '', **x))
    assert find(track_id='e', title='Intro') == ['e'], 'an id is an id'
    assert find(track_id='b5c1…', title='intro', artist='ANN') == ['a'], "another world's id is passed over"
    assert find(title='Intro', artist='bob') == ['b'], 'only the catalogue may decide'
    assert find(title='Intro') == ['a', 'b'] and find(title='Intro', artist='Zoe') == []
    assert find(title='Intro 2') == ['Intro 2'], 'a title may be an id'
    assert (
        find(title='outro', artist='anybody') == ['d']
        and find(title='solo') == ['e']
        and find(artist='Ann') == []
    )
    assert find(title='Intro', artist='Ann, Guest') == ['a'] and find(track_id='zzz') == []


# ---- the import


@pytest.fixture(scope='module')
def landmarks(corpus, plan):
    made = Landmarks()
    bench.index(made, corpus, plan.catalogue_ids, progress=False, measure_disk=False)
    return made


@pytest.fixture(scope='module')
def black_box(packed, landmarks):
    "A script that knows only the folder: it hears each WAV and writes a CSV."
    rows = [['file', 'track_id', 'rank', 'score', 'confidence', 'offset_s', 'elapsed_ms', 'status']]
    for path in sorted((packed.folder / 'questions').glob('*.wav')):
        samples = sf.read(path, dtype='float32')[0]
        heard = landmarks.search(samples)
        word = 'match' if heard and heard[0].confidence >= landmarks.accept_confidence else 'no-match'
        rows += [
            [path.name, m.track_id, i, m.score, m.confidence, m.offset_s, 7.5, word]
            for i, m in enumerate(heard, 1)
        ] or [[path.name, '', '', '', '', '', 7.5, word]]
    out = io.StringIO()
    csv.writer(out).writerows(rows)
    return out.getvalue()


@pytest.fixture(scope='module')
def ours(landmarks, queries, corpus):
    return bench.run(landmarks, queries, corpus, progress=False)


def test_the_way_out_and_back_loses_nothing(black_box, packed, ours, tmp_path):
    record = services.import_answers([written(tmp_path, black_box)], packed, 'Black Box')
    told = services.frame(record)
    assert list(told.columns) == list(ours.columns) and (told.dtypes == ours.dtypes).all()
    facts = ['kind', 'track_id', 'start_s', 'duration_s', 'snr_db', 'noise_key', 'span_s', 'query_id', 'k']
    pd.testing.assert_frame_equal(told[facts], ours[facts])
    assert set(told['system']) == {'Black Box'} and set(told['elapsed_ms']) == {7.5}
    timing = ['median_ms']
    exact = ['n', 'tracks', 'top1', 'top1_low', 'top1_high', 'top5', 'mrr', 'mean_rank']
    a = metrics.summarise(told)
    b = metrics.summarise(ours)
    assert 0 < b['top1'].mean() < 1, 'a test that everything passes shows nothing'
    np.testing.assert_allclose(a[exact], b[exact], atol=0.02)  # 16 bits may move one answer in fifty
    np.testing.assert_allclose(a['offset_error_s'], b['offset_error_s'], atol=0.05)
    same = (told['rank'].fillna(9) == ours['rank'].fillna(9)) & (told['accepted'] == ours['accepted'])
    assert same.mean() >= 0.98
    assert list(a.drop(columns=timing).columns) == list(b.drop(columns=timing).columns)


def test_every_measure_takes_the_rows(black_box, packed, ours, tmp_path):
    import matplotlib.pyplot as plt

    told = services.frame(services.import_answers([written(tmp_path, black_box)], packed, 'Black Box'))
    both = pd.concat([ours, told], ignore_index=True)
    assert len(metrics.summarise(both)) == 2 * len(metrics.summarise(ours))
    apart = metrics.compare(told, ours)
    assert (apart['difference'].abs() <= 0.05).all() and (apart['p'] > 0.05).all()
    assert set(figures.table(metrics.summarise(both)).frame.index.get_level_values(0)) == {
        'Black Box',
        'landmark',
    }
    curve = openset.open_set(told)
    assert curve['correct_accept_rate'].iloc[-1] > 0 and len(metrics.cmc(told)) == 5
    figures.plot_accuracy(metrics.summarise(both))
    figures.plot_roc(curve)
    plt.close('all')
    own = openset.summarise_open(both, score='accepted', threshold=0.5)
    a, b = (own[own.system == s]['accepted_correct'].to_numpy() for s in ('Black Box', 'landmark'))
    np.testing.assert_allclose(a, b, atol=0.1)
    assert (
        openset.false_accepts_at_default(told).set_index('kind').loc['all', 'n']
        == (told.kind != 'known').sum()
    )


def test_a_yes_is_its_confidence(packed, tmp_path):
    (known, q), (stranger, _), (noise, _) = (
        of_kind(packed, kind)[0] for kind in ('known', 'unknown', 'noise')
    )
    other = next(t for t in packed.protocol.catalogue_ids if t != q.track_id)
    text = f'file,track_id,score,offset_s,status\n{known},{q.track_id},80,{q.start_s + 0.5},\n{known},{other},30,,\n{stranger},{other},70,,match\n{noise},{other},20,,no-match\n'
    told = services.frame(services.import_answers([written(tmp_path, text)], packed, 'X')).set_index('kind')
    assert list(told['confidence'][['known', 'unknown', 'noise']]) == [1, 1, 0] and list(
        told['accepted'][['known', 'unknown', 'noise']]
    ) == [True, True, False]
    right = told.loc['known']
    assert (right['rank'], right['score'], right['lead'], right['top_id']) == (
        1,
        80,
        50,
        q.track_id,
    ) and right['offset_error_s'] == pytest.approx(0.5)
    assert (
        math.isnan(right['elapsed_ms'])
        and math.isnan(told.loc['noise', 'rank'])
        and told.loc['noise', 'top_id'] == other
    )


def test_unanswered_and_failed_are_counted_apart(packed, tmp_path):
    (a, q), (b, _), (c, _) = of_kind(packed, 'known')[:3]
    text = f'file,track_id,status\n{a},,error\n{a},{q.track_id},match\n{b},,timeout\n{c},,\n'
    record = services.import_answers([written(tmp_path, text)], packed, 'X')
    n = len(packed.files)
    assert services.count_answers(record) == {
        'match': 1,
        'no-match': 1,
        'unanswered': n - 3,
        'error': 1,
        'set aside': 0,
    }
    told = services.frame(record)
    assert len(told) == 2 and metrics.summarise(told, by=[])['top1'].item() == 0.5
    strict = services.frame(record, unanswered='no-match')
    assert (
        len(strict) == n
        and (strict['rank'] == 1).sum() == 1
        and not strict[strict.kind != 'known']['accepted'].any()
    )
    with pytest.raises(ServiceError, match='leave out'):
        services.frame(record, unanswered='perhaps')


def test_ranks_and_repeats(packed, tmp_path):
    file, q = of_kind(packed, 'known')[0]
    others = [t for t in packed.protocol.catalogue_ids if t != q.track_id]
    ranked = f'file,track_id,rank\n{file},{others[1]},3\n{file},{q.track_id},2\n{file},{others[0]},1\n'
    assert (
        services.frame(services.import_answers([written(tmp_path, ranked)], packed, 'X'))['rank'].item() == 2
    )
    repeated = f'file,track_id\n{file},{others[0]}\n{file},{others[0]}\n{file},{q.track_id}\n'
    assert (
        services.frame(services.import_answers([written(tmp_path, repeated)], packed, 'X'))['rank'].item()
        == 2
    )
    late = 'file,track_id\n' + ''.join(f'{file},{t}\n' for t in [*others[:5], q.track_id])
    row = services.frame(services.import_answers([written(tmp_path, late)], packed, 'X')).iloc[0]
    assert math.isnan(row['rank']) and row['top_id'] == others[0]


def bad_answers(packed):
    (a, q), (b, r) = of_kind(packed, 'known')[:2]
    s, t = packed.protocol.catalogue_ids[:2]
    sha = packed.files[b][1]
    return [
        ('file,track_id\nq9999.wav,s01', 'line 2: the pack has no question'),
        ('file,track_id\n../../etc/passwd,s01', 'the pack has no question'),
        (f'file,track_id,rank\n{a},{s},1\n{a},{t},1', 'line 3: the ranks'),
        (f'file,track_id,rank\n{a},{s},1\n{a},{t},', 'the ranks'),
        (f'file,track_id,status\n{a},{s},match\n{a},,no-match', 'line 3'),
        (f'file,track_id,sha256\n{a},{s},{sha}', 'of another pack'),
        (
            f'{{"file": "{a}", "matches": []}}\n{{"file": "{a}", "matches": [{{"track_id": "{s}"}}]}}',
            'line 2',
        ),
        ('', 'not one answer'),
    ]


@pytest.mark.parametrize('number', range(8))
def test_answers_that_contradict_are_refused(number, packed, tmp_path):
    text, says = bad_answers(packed)[number]
    with pytest.raises(ServiceError) as e:
        services.import_answers([written(tmp_path, text)], packed, 'X')
    assert says in str(e.value) and len(str(e.value).splitlines()) == 1


def test_two_files_may_share_the_work_but_not_a_question(packed, tmp_path):
    (a, q), (b, r) = of_kind(packed, 'known')[:2]
    one = written(tmp_path, f'file,track_id\n{a},{q.track_id}', 'one.csv')
    two = written(tmp_path, f'[{{"file": "{b}", "track_id": "{r.track_id}"}}]', 'two.json')
    assert services.count_answers(services.import_answers([one, two], packed, 'X'))['match'] == 2
    with pytest.raises(ServiceError, match='answered already in one.csv line 2'):
        services.import_answers(
            [one, written(tmp_path, f'file,track_id\n{a},{q.track_id}', 'three.csv')], packed, 'X'
        )


def test_names_that_stay_unclear_are_listed_and_never_resolved_by_the_key(packed, tmp_path):
    file, q = of_kind(packed, 'known')[0]
    twin = Pack(
        packed.folder,
        packed.queries,
        packed.files,
        packed.songs | {t: ('Same', 'Same') for t in packed.protocol.catalogue_ids},
        packed.protocol,
        packed.facts,
    )
    record = services.import_answers([written(tmp_path, f'file,title,artist\n{file},Same,Same\n')], twin, 'X')
    assert (
        len(record['ambiguous']) == 1
        and 'line 2' in record['ambiguous'][0]
        and services.frame(record)['rank'].isna().all()
    )
    record = services.import_answers(
        [written(tmp_path, f'file,title,artist\n{file},Bohemian Rhapsody,Queen\n')], packed, 'X'
    )
    row = services.frame(record).iloc[0]
    assert (
        len(record['unmatched']) == 1
        and row['top_id'] == '? Queen – Bohemian Rhapsody'
        and row['accepted']
        and math.isnan(row['rank'])
    )
    title, artist = packed.songs[q.track_id]
    record = services.import_answers(
        [written(tmp_path, f'file,title,artist\n{file},{title.upper()}!,{artist.lower()}\n')], packed, 'X'
    )
    assert services.frame(record)['rank'].item() == 1 and not record['ambiguous'] + record['unmatched']


def test_a_service_that_searched_something_else(packed, tmp_path):
    (a, q), (b, r) = of_kind(packed, 'unknown')[0], of_kind(packed, 'known')[0]
    path = written(tmp_path, f'file,track_id\n{b},{r.track_id}\n{a},{q.track_id}\n')
    with pytest.raises(ServiceError, match="line 3: .*not in this pack's catalogue"):
        services.import_answers([path], packed, 'X')
    record = services.import_answers([path], packed, 'X', own_catalogue=True)
    assert services.count_answers(record)['set aside'] == 1 and set(services.frame(record)['kind']) == {
        'known'
    }
    assert set(services.frame(record)['system']) == {'X (own catalogue)'}


# ---- records


@pytest.fixture
def record(packed, tmp_path):
    file, q = of_kind(packed, 'known')[0]
    return services.import_answers(
        [written(tmp_path, f'file,track_id,score\n{file},{q.track_id},3\n')],
        packed,
        'shazamkit',
        notes='an iPhone\nof  2026',
    )


def test_a_record_is_kept_and_read(record, packed, queries, tmp_path):
    place = tmp_path / 'services'
    path = services.save_record(record, place / 'ShazamKit.json')
    assert (
        json.loads(path.read_text()) == record
        and record['service'] == 'ShazamKit'
        and record['notes'] == 'an iPhone of 2026'
    )
    assert len(path.read_text().splitlines()) == len(queries) + 3
    for source in (place, path):
        pd.testing.assert_frame_equal(services.rows(source), services.frame(record))
    assert len(services.reported(queries, folder=place)) == 1
    assert (
        services.reported(queries, venue='club', folder=place).empty
        and services.reported(queries[:-1], folder=place).empty
    )
    services.save_record(record | {'notes': 'again'}, path)
    assert services.read_record(path)['notes'] == 'again'
    for other in ({'query_set': 'f' * 16}, {'venue': 'club'}, {'service': 'AudD'}):
        with pytest.raises(ServiceError, match='choose another file'):
            services.save_record(record | other, path)
    with pytest.raises(ServiceError, match='is no record'):
        services.rows(tmp_path / 'gone.json')


@pytest.mark.parametrize(
    'edit',
    [
        lambda r: '',
        lambda r: '[]',
        lambda r: '[' * 99_999,
        lambda r: '{}',
        lambda r: json.dumps(r | {'version': 2}),
        lambda r: json.dumps(r | {'service': '../x'}),
        lambda r: json.dumps(r | {'questions': r['questions'][1:]}),
        lambda r: json.dumps(r | {'questions': 7}),
        lambda r: json.dumps(r | {'service': 'landmark'}),
        lambda r: json.dumps(r | {'questions': [q | {'matches': 'x'} for q in r['questions']]}),
        lambda r: json.dumps({k: v for k, v in r.items() if k != 'venue'}),
    ],
)
def test_a_record_that_was_changed_is_refused(edit, record, tmp_path):
    (tmp_path / 'r.json').write_text(edit(record))
    with pytest.raises(ServiceError) as e:
        services.read_record(tmp_path / 'r.json')
    assert len(str(e.value).splitlines()) == 1


def test_who_has_not_been_asked_is_said(record, ours, queries, tmp_path):
    none = services.status(queries, folder=tmp_path / 'none')
    assert list(none.index) == list(services.SERVICES) and set(none['state']) == {'not yet run'}
    services.save_record(record, tmp_path / 'services' / 'ShazamKit.json')
    state = services.status(queries, folder=tmp_path / 'services')
    assert (
        list(state['state']) == ['run', 'not yet run', 'not yet run']
        and state.loc['ShazamKit', 'answered'] == 1
    )
    assert (
        state.loc['ShazamKit', 'missing'] == len(queries) - 1
        and state.loc['ShazamKit', 'notes'] == 'an iPhone of 2026'
    )
    assert set(services.status(queries, venue='club', folder=tmp_path / 'services')['state']) == {
        'not yet run'
    }

    both = pd.concat([ours, services.reported(queries, folder=tmp_path / 'services')])
    table = figures.table(metrics.summarise(both), caption='A & <b>')
    full = services.complete(table, queries, folder=tmp_path / 'services')
    assert full.html.count('not yet run') == 2 * 2 and 'A &amp; &lt;b&gt;' in full.html
    assert [s for s in full.frame.index.get_level_values('system') if s in services.SERVICES][-2:] == [
        'ACRCloud',
        'AudD',
    ]
    with pytest.raises(ServiceError, match='ShazamKit has answered'):
        services.complete(
            figures.table(metrics.summarise(ours, by=['system', 'duration_s', 'snr_db'])),
            queries,
            folder=tmp_path / 'services',
        )
    alone = services.complete(figures.table(metrics.summarise(ours)), queries, folder=tmp_path / 'none')
    assert alone.html.count('not yet run') == 3 * 2


def test_no_record_changes_no_figure(ours, queries, tmp_path):
    both = pd.concat([ours, services.reported(queries, folder=tmp_path)])
    pd.testing.assert_frame_equal(both, ours)
    pd.testing.assert_frame_equal(metrics.summarise(both), metrics.summarise(ours))


def test_the_project_s_own_records_are_whole(root):
    for path in (root / 'data' / 'services').glob('*.json'):
        assert services.read_record(path)['service'] in path.stem
    assert set(services.SERVICES) <= {s.removesuffix(' (own catalogue)') for s in services.status().index}
    assert services.services_folder() == root / 'data' / 'services'


@pytest.mark.parametrize(
    'name', ['', '  ', '../x', 'a/b', 'a\nb', 'x' * 41, '.hidden', 'landmark', 'LANDMARK', None, 3.5j]
)
def test_names_of_services(name):
    with pytest.raises(ServiceError) as e:
        services.service_name(name)
    assert len(str(e.value).splitlines()) == 1


# ---- the client


def client(stub, tries=5, **how):
    "A client of the stub that notes how long it would wait."
    waited = []
    made = AcrCloud(
        stub.url,
        KEY,
        SECRET,
        rng_for(0, 'jitter'),
        **{'queries_per_s': 1e6, 'backoff_s': 0.5, 'sleep': waited.append, 'tries': tries, **how},
    )
    made.waited = waited
    return made


WAV = packs.wav_bytes(0.1 * melody(0, 2))


def test_the_signature_is_the_documented_one():
    "A value computed by openssl: printf 'POST\\n/v1/identify\\nabc\\naudio\\n1\\n1700000000' | openssl dgst -sha1 -hmac xyz -binary | base64"
    assert acrcloud.signature('abc', 'xyz', '1700000000') == 'SFkweZ2Dcizt30vG5T4K1ROqB6A='


def test_what_is_sent_is_what_the_documentation_asks(packed):
    heard = []
    with Stub(lambda sample: (heard.append(sample), found('s01', 's02'))[1]) as stub:
        assert [m['title'] for m in client(stub).identify(WAV, 2.0)] == ['s01', 's02']
        assert not stub.wrong and heard == [WAV] and len(stub.asked) == 1
        assert 'Authorization' not in stub.asked[0]


def test_nobody_else_s_password_is_sent(tmp_path, monkeypatch):
    (tmp_path / 'netrc').write_text('machine 127.0.0.1 login me password hunter2\n')
    monkeypatch.setenv('NETRC', str(tmp_path / 'netrc'))
    seen = []
    with Stub(behaviours=[lambda h: (seen.append(dict(h.headers)), h.reply(200, status(1001)))]) as stub:
        made = client(stub)
        made._session.trust_env = True
        assert made.identify(WAV) == [] and 'Authorization' not in seen[0]


def test_where_the_clip_begins():
    "The example is a real reply's: play_offset_ms is the end of what was heard."
    real = dict(
        db_begin_time_offset_ms=113240,
        db_end_time_offset_ms=117220,
        sample_begin_time_offset_ms=0,
        sample_end_time_offset_ms=4660,
        play_offset_ms=117220,
    )
    replies = [
        found('a', **real),
        found('a', **(real | {'sample_begin_time_offset_ms': '1000'})),
        found('a', play_offset_ms='9500'),
        found('a', play_offset_ms=None),
    ]
    with Stub(behaviours=replies) as stub:
        asked = client(stub)
        assert [asked.identify(WAV, 4.66)[0]['offset_s'] for _ in replies] == [
            113.24,
            112.24,
            pytest.approx(4.84),
            None,
        ]


def test_our_bucket_comes_before_the_world():
    both = found(
        'world hit',
        part='music',
        artists=[{'name': 'Ann'}, {'name': 'Bob'}, 3, {}],
        external_ids={'isrc': 'x'},
    )
    both['metadata']['custom_files'] = [{'title': 's07', 'audio_id': 12, 'score': '88'}]
    with Stub(behaviours=[both]) as stub:
        first, second = client(stub).identify(WAV)
    assert (first['title'], first['track_id'], first['score'], first['from']) == (
        's07',
        '12',
        88,
        'custom_files',
    )
    assert (second['title'], second['artist'], second['from'], second['offset_s']) == (
        'world hit',
        'Ann, Bob',
        'music',
        None,
    )


@pytest.mark.parametrize('code', [1001, 2004, 2006])
def test_no_result_is_a_fine_answer(code):
    with Stub(behaviours=[status(code, 'No result')]) as stub:
        reply = client(stub).ask(WAV)
        assert (reply.matches, reply.code, len(stub.asked)) == ([], code, 1) and reply.elapsed_ms > 0


def hang_up(handler):
    handler.close_connection = True
    handler.connection.close()


def half(handler):
    handler.send_response(200)
    handler.send_header('Content-Length', '1000')
    handler.end_headers()
    handler.wfile.write(b'{"status"')
    hang_up(handler)


PASSING = [
    (500, {}),
    (502, b'<html>bad gateway'),
    (503, {}),
    (429, {}),
    status(3000, 'Recognition service error'),
    status(3003, 'Limit exceeded'),
    status(2005, 'timeout'),
    status(3015, 'QpS limit exceeded'),
    b'<html>',
    b'{"status": {"code": ',
    b'',
    b'[]',
    b'{}',
    b'{"status": {"code": "x"}}',
    b'{"status": 3}',
    b'\xff\xfe',
    b'[' * 200_000,
    hang_up,
    half,
]


@pytest.mark.parametrize('bad', PASSING, ids=range(len(PASSING)))
def test_a_bad_day_passes(bad):
    with Stub(lambda _: found('s01'), [bad, bad]) as stub:
        asked = client(stub)
        assert asked.identify(WAV)[0]['title'] == 's01' and len(stub.asked) == 3
        backoff = [w for w in asked.waited if w > 0.01]
        assert len(backoff) == 2 and 0.25 <= backoff[0] <= 0.5 <= backoff[1] <= 1.0


def test_silence_passes_too():
    with Stub(lambda _: found('s01'), [lambda h: time.sleep(0.6)]) as stub:
        assert client(stub, timeout_s=(1, 0.2)).identify(WAV)[0]['title'] == 's01' and len(stub.asked) == 2


def test_patience_ends():
    with Stub(behaviours=[(500, {})] * 9) as stub:
        asked = client(stub, tries=4)
        with pytest.raises(ServiceError, match='no answer in 4 tries: HTTP 500'):
            asked.identify(WAV)
        waits = [w for w in asked.waited if w > 0.01]
        assert len(stub.asked) == 4 and len(waits) == 3 and waits[0] < waits[1] < waits[2], (
            'no wait after the last try'
        )
    with Stub() as stub:
        gone = stub.url
    with pytest.raises(ServiceError, match='no connection'):
        AcrCloud(gone, KEY, SECRET, rng_for(0), tries=2, queries_per_s=1e6, sleep=lambda s: None).identify(
            WAV
        )


def test_retry_after_is_kept():
    from email.utils import formatdate

    replies = [
        (429, {}, {'Retry-After': '7'}),
        (503, {}, {'Retry-After': formatdate(time.time() + 200, usegmt=True)}),
        (429, {}, {'Retry-After': 'soon'}),
        (429, {}, {'Retry-After': '1e9'}),
    ]
    with Stub(lambda _: status(1001), replies) as stub:
        asked = client(stub)
        asked.identify(WAV)
        first, second, third, fourth = (w for w in asked.waited if w > 0.01)
        assert first == 7 and 100 <= second <= 200 and third < 3 and fourth == 300, (
            'a server may ask for minutes, not for years'
        )


@pytest.mark.parametrize(
    'reply, says',
    [
        (status(3001, 'Missing/Invalid Access Key'), '3001'),
        (status(3014, 'Invalid Signature'), '3014'),
        ((401, {}), '401'),
        ((403, {}), '403'),
    ],
)
def test_a_refused_key_is_asked_once(reply, says):
    with Stub(behaviours=[reply] * 3) as stub:
        with pytest.raises(AccessRefused, match=says):
            client(stub).identify(WAV)
        assert len(stub.asked) == 1


@pytest.mark.parametrize(
    'reply, says',
    [
        ((302, {}, {'Location': 'http://127.0.0.1:1/elsewhere'}), '302'),
        ((404, {}), '404'),
        (status(3002, 'Invalid ContentType'), '3002'),
        (status(9999, 'new\nline\x1b[31m'), '9999'),
        (b'{"x": "' + b'y' * 2_100_000 + b'"}', 'more than a reply'),
    ],
)
def test_what_will_not_get_better_is_asked_once(reply, says):
    with Stub(behaviours=[reply] * 3) as stub:
        with pytest.raises(ServiceError, match=says) as e:
            client(stub).identify(WAV)
        assert len(stub.asked) == 1 and len(str(e.value).splitlines()) == 1 and '\x1b' not in str(e.value)


def test_the_wrong_secret_is_noticed_by_the_other_side():
    with Stub() as stub:
        wrong = AcrCloud(stub.url, KEY, 'guess', rng_for(0), queries_per_s=1e6)
        with pytest.raises(AccessRefused, match='3014.*Invalid Signature'):
            wrong.identify(WAV)
        assert stub.wrong == ['Invalid Signature']


def test_the_rate_is_kept():
    with Stub(behaviours=[(500, {})]) as stub:
        asked = AcrCloud(stub.url, KEY, SECRET, rng_for(0), queries_per_s=20, backoff_s=0.001)
        began = time.monotonic()
        for _ in range(5):
            asked.identify(WAV)
    # a busy machine makes it only longer
    assert len(stub.times) == 6 and stub.times[-1] - began > 5 * 0.05 - 0.01, 'tries count, too'
    slow = AcrCloud('127.0.0.1', KEY, SECRET, rng_for(0), sleep=(waited := []).append)
    for _ in range(4):
        slow._wait_turn()
    assert waited == pytest.approx([1, 2, 3], abs=0.5), 'one a second unless told otherwise'


def test_the_jitter_comes_from_the_generator():
    def waits(seed):
        with Stub(behaviours=[(500, {})] * 4) as stub:
            asked = AcrCloud(
                stub.url,
                KEY,
                SECRET,
                np.random.default_rng(seed),
                queries_per_s=1e9,
                backoff_s=1,
                sleep=(waited := []).append,
            )
            asked.identify(WAV)
        return [w for w in waited if w > 0.01]

    assert waits(1) == waits(1) != waits(2)


@pytest.mark.parametrize('sample', [b'', b'x' * 5_000_000])
def test_samples_that_are_not_sent(sample):
    with Stub() as stub:
        with pytest.raises(ServiceError, match='takes samples of'):
            client(stub).identify(sample)
        assert not stub.asked


@given(JSON)
def test_any_metadata_is_read(value):
    for reply in (
        {'metadata': value},
        {'metadata': {'music': value, 'custom_files': [value]}},
        {'metadata': {'music': [{'title': 'x', 'artists': value, 'score': value, 'play_offset_ms': value}]}},
    ):
        for m in acrcloud._songs_in(reply, 3.0):
            assert all(isinstance(m[k], str) for k in ('track_id', 'title', 'artist'))
            assert all(m[k] is None or math.isfinite(m[k]) for k in ('score', 'offset_s'))


def test_the_secret_is_nowhere(caplog, tmp_path, packed):
    said = []
    with (
        caplog.at_level(logging.DEBUG),
        Stub(behaviours=[(500, {}), hang_up, status(3014, 'no'), status(1001)]) as stub,
    ):
        asked = client(stub)
        for _ in range(2):
            try:
                asked.identify(WAV)
            except ServiceError as e:
                said += [
                    str(e),
                    repr(e),
                    ''.join(traceback.format_exception(e)),
                    repr(e.__context__),
                    repr(vars(e)),
                ]
        acrcloud.answer_pack(asked, packed, tmp_path / 'out.jsonl', limit=2, progress=False)
    said += [
        repr(asked),
        str(asked),
        repr(vars(asked)),
        repr(asked._session.headers),
        caplog.text,
        (tmp_path / 'out.jsonl').read_text(),
    ]
    assert len(said) > 8 and caplog.text
    assert not [text for text in said if SECRET in text]
    assert not any(
        SECRET.encode() in v if isinstance(v, bytes) else SECRET in v
        for fields in stub.asked
        for v in fields.values()
    )


@pytest.mark.parametrize(
    'host',
    [
        '',
        'http://identify.example',
        'ftp://x',
        'https://user:pw@host',
        'host/path',
        'host?x=1',
        'a b',
        'host:99999999',
        'https://',
        'http://127.0.0.1.example',
        'x\ny',
        None,
    ],
)
def test_hosts_that_are_none(host):
    with pytest.raises(ServiceError) as e:
        acrcloud.acrcloud_url(host)
    assert len(str(e.value).splitlines()) == 1


def test_hosts_and_keys(monkeypatch):
    assert (
        acrcloud.acrcloud_url(' identify-eu-west-1.acrcloud.com/ ')
        == 'https://identify-eu-west-1.acrcloud.com/v1/identify'
    )
    assert acrcloud.acrcloud_url('http://localhost:8080') == 'http://localhost:8080/v1/identify'
    for name in acrcloud.ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv('ACRCLOUD_HOST', 'h')
    with pytest.raises(ServiceError, match='set ACRCLOUD_ACCESS_KEY, ACRCLOUD_ACCESS_SECRET in'):
        AcrCloud.from_environment(rng_for(0))
    monkeypatch.setenv('ACRCLOUD_ACCESS_KEY', KEY), monkeypatch.setenv('ACRCLOUD_ACCESS_SECRET', ' \n')
    with pytest.raises(ServiceError, match='set ACRCLOUD_ACCESS_SECRET in'):
        AcrCloud.from_environment(rng_for(0))
    monkeypatch.setenv('ACRCLOUD_ACCESS_SECRET', SECRET + '\n')
    assert SECRET not in repr(AcrCloud.from_environment(rng_for(0)))
    for bad in (dict(queries_per_s=0), dict(tries=0), dict(queries_per_s=math.nan)):
        with pytest.raises(ServiceError, match='positive rate'):
            AcrCloud('h', KEY, SECRET, rng_for(0), **bad)


# ---- asking a whole pack


def truth_of(packed):
    "What a perfect service would say to a sample: its song if it is in the catalogue."
    by_sha = {sha: q for q, sha in packed.files.values()}
    by_id = {q.query_id: q for q in packed.queries}

    def answer(sample):
        query = by_id[by_sha[acrcloud.hashlib.sha256(sample).hexdigest()]]
        if query.kind != 'known':
            return status(1001, 'No result')
        return found(query.track_id, play_offset_ms=round(1000 * (query.start_s + query.duration_s)))

    return answer


def test_a_perfect_service_is_perfect(packed, tmp_path):
    with Stub(truth_of(packed)) as stub:
        told = acrcloud.answer_pack(client(stub), packed, tmp_path / 'out.jsonl', progress=False)
    assert told == {'kept': 0, 'asked': len(packed.files), 'left': 0, 'failed': []} and not stub.wrong
    got = services.frame(services.import_answers([tmp_path / 'out.jsonl'], packed, 'acrcloud'))
    assert (
        (got['system'] == 'ACRCloud').all()
        and (got[got.kind == 'known']['rank'] == 1).all()
        and not got[got.kind != 'known']['accepted'].any()
    )
    assert got['offset_error_s'].abs().max() < 0.001 and (got['elapsed_ms'] > 0).all()


def test_only_what_is_missing_is_asked(packed, tmp_path):
    out = tmp_path / 'out.jsonl'
    answer = truth_of(packed)
    with Stub(answer) as stub:
        acrcloud.answer_pack(client(stub), packed, out, limit=4, progress=False)
        whole = out.read_bytes()
        out.write_bytes(whole + b'{"file": "q0005.wav", "sha2')
        told = acrcloud.answer_pack(client(stub), packed, out, limit=3, progress=False)
        assert (told['kept'], told['asked'], told['left']) == (4, 3, len(packed.files) - 7)
        assert out.read_bytes().startswith(whole) and len(stub.asked) == 7
    assert [json.loads(line)['file'] for line in out.read_text().splitlines()] == list(packed.files)[:7]


def test_a_service_that_is_down_is_left_in_peace(packed, tmp_path):
    out = tmp_path / 'out.jsonl'
    with Stub(truth_of(packed), [found('s02'), *[(500, {})] * 100]) as stub:
        told = acrcloud.answer_pack(client(stub, tries=2), packed, out, progress=False)
        assert (
            told['asked'] == 1
            and len(told['failed']) == 3
            and len(stub.asked) == 1 + 3 * 2
            and 'HTTP 500' in told['failed'][0][1]
        )
        stub.behaviours.clear()
        assert acrcloud.answer_pack(client(stub), packed, out, progress=False)['left'] == 0
    with Stub(behaviours=[found('s02'), (404, {}), (404, {}), found('s02'), (404, {}), found('s02')]) as stub:
        told = acrcloud.answer_pack(client(stub), packed, tmp_path / 'b.jsonl', limit=6, progress=False)
        assert told['asked'] == 3 and [f for f, _ in told['failed']] == [
            list(packed.files)[i] for i in (1, 2, 4)
        ], 'failures in a row end it, not single ones'


def test_a_refused_key_ends_it_at_once(packed, tmp_path):
    with Stub(behaviours=[status(1001), status(3001, 'Invalid Access Key')]) as stub:
        with pytest.raises(AccessRefused):
            acrcloud.answer_pack(client(stub), packed, tmp_path / 'out.jsonl', progress=False)
        assert len(stub.asked) == 2 and len((tmp_path / 'out.jsonl').read_text().splitlines()) == 1


def test_answers_are_not_mixed(packed, corpus, plan, queries, tmp_path):
    out = tmp_path / 'out.jsonl'
    other = packs.pack(corpus, queries, plan, tmp_path / 'other', seed=5, progress=False)
    with Stub() as stub:
        acrcloud.answer_pack(client(stub), packed, out, limit=2, progress=False)
        with pytest.raises(ServiceError, match='line 1: answers a question of another pack'):
            acrcloud.answer_pack(client(stub), other, out, progress=False)
        with pytest.raises(ServiceError, match='line 2: q0001.wav is of another pack|line 1|answer'):
            services.import_answers([out], other, 'X')
        for text in (b'file,track_id\n', b'{"file": 3}\n', b'[1]\n', b'\xff\n', b'[' * 99_999 + b'\n'):
            out.write_bytes(text)
            with pytest.raises(ServiceError, match='line 1'):
                acrcloud.answer_pack(client(stub), packed, out, progress=False)
            assert out.read_bytes() == text
        other.path('q0001.wav').write_bytes(b'changed')
        other.path('q0002.wav').unlink()
        told = acrcloud.answer_pack(client(stub), other, tmp_path / 'new.jsonl', limit=3, progress=False)
        assert (
            [f for f, _ in told['failed']] == ['q0001.wav', 'q0002.wav']
            and told['asked'] == 1
            and len(stub.asked) == 3
        )
        with pytest.raises(ServiceError, match='cannot write'):
            acrcloud.answer_pack(client(stub), packed, tmp_path, progress=False)


# ---- the command


def resonance(*words, env=None, **how):
    done = subprocess.run(
        [sys.executable, '-c', MAIN, *map(str, words)],
        capture_output=True,
        text=True,
        env={**os.environ, **(env or {})},
        **how,
    )
    return done.returncode, done.stdout, done.stderr


def here(*words):
    "The command in this process: quicker, for what it says at once."
    out = io.StringIO()
    err = io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as e:
        main(['bench', *map(str, words)])
    return e.value.code, out.getvalue(), err.getvalue()


def keys(stub, secret=SECRET):
    return {'ACRCLOUD_HOST': stub.url, 'ACRCLOUD_ACCESS_KEY': KEY, 'ACRCLOUD_ACCESS_SECRET': secret}


@pytest.fixture(scope='module')
def commanded(corpus, tmp_path_factory):
    "A pack made by the command."
    out = tmp_path_factory.mktemp('command') / 'pack'
    words = [
        'bench',
        'pack',
        '--corpus',
        corpus.folder,
        '--split',
        'train',
        '--snr-db',
        'clean,-5',
        '--durations',
        '2',
        '--max-songs',
        '4',
        '--seed',
        '3',
        '--out',
        out,
    ]
    code, said, err = resonance(*words)
    assert code == 0, err
    return out, words, said, err


def test_the_command_packs_what_bench_asks(commanded, corpus):
    out, words, said, err = commanded
    made = Pack.load(out)
    plan = make_protocol(corpus, 'train', seed=3)
    assert (
        list(made.queries)
        == list(make_queries(corpus, plan, [None, -5], [2], excerpts=1, seed=3, max_tracks=4))
        and made.protocol == plan
    )
    assert (
        f'{len(made.files)} questions' in said
        and 'answers.json' in said
        and ('forbids derived works' in err) == bool(packs.not_to_share(corpus, made))
    )
    before = files_of(out)
    assert resonance(*words)[0] == 0 and files_of(out) == before
    code, _, err = resonance(*words, '--rate', '44100')
    assert code == 2 and 'another pack' in err


def test_the_way_of_a_service_by_command(commanded, landmarks, corpus, tmp_path):
    out = commanded[0]
    made = Pack.load(out)
    heard = []
    for f, (query_id, _) in made.files.items():
        query = next(q for q in made.queries if q.query_id == query_id)
        heard.append(
            {
                'Datei': 'x',
                'File': f,
                'Track ID': query.track_id if query.kind == 'known' else '',
                'Score': '0,9',
            }
        )
    pd.DataFrame(heard).to_csv(tmp_path / 'answers.csv', sep=';', index=False, encoding='utf-8-sig')
    words = [
        'bench',
        'import',
        tmp_path / 'answers.csv',
        '--pack',
        out,
        '--service',
        'shazamkit',
        '--notes',
        'test',
        '--out',
        tmp_path / 'services' / 'r.json',
    ]
    code, said, err = resonance(*words)
    assert code == 0 and err == '', err
    assert 'ShazamKit' in said and '100.0%' in said and '0 unanswered' in said and 'false accepts' in said
    assert services.read_record(tmp_path / 'services' / 'r.json')['notes'] == 'test'
    (tmp_path / 'answers.csv').write_text('file,title\nq0001.wav,Unheard Of\n')
    code, said, err = resonance(*words)
    assert code == 0 and 'unmatched: answers.csv line 2' in err and 'unanswered' in said


def test_acrcloud_by_command_survives_a_kill(commanded, tmp_path):
    pack = commanded[0]
    out = tmp_path / 'answers.jsonl'
    made = Pack.load(pack)
    words = ['bench', 'acrcloud', '--pack', pack, '--out', out, '--rate', '40']
    with Stub(truth_of(made)) as stub:
        child = subprocess.Popen(
            [sys.executable, '-c', MAIN, *map(str, words)],
            env={**os.environ, **keys(stub)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while (not out.exists() or out.read_bytes().count(b'\n') < 4) and child.poll() is None:
            time.sleep(0.005)
        child.send_signal(signal.SIGKILL)
        child.wait()
        there = out.read_bytes().count(b'\n')
        assert 4 <= there < len(made.files)
        code, said, err = resonance(*words, env=keys(stub))
        assert code == 0, err
        assert f'{len(made.files)} answers' in said and 'resonance bench import' in said
        assert len(made.files) <= len(stub.asked) <= len(made.files) + 1 and not stub.wrong, (
            'at most the answer on its way is asked again'
        )
    assert sorted(json.loads(line)['file'] for line in out.read_text().splitlines()) == list(made.files)
    code, said, err = resonance(
        'bench', 'import', out, '--pack', pack, '--service', 'acrcloud', '--out', tmp_path / 'ACRCloud.json'
    )
    assert code == 0 and '100.0%' in said and ' 0 unanswered' in said


def test_the_command_says_what_went_wrong(commanded, tmp_path):
    pack = commanded[0]
    out = tmp_path / 'answers.jsonl'
    with Stub(behaviours=[status(1001), (404, {}), (404, {}), (404, {})]) as stub:
        code, said, err = resonance(
            'bench', 'acrcloud', '--pack', pack, '--out', out, '--rate', '100', env=keys(stub)
        )
        assert (
            code == 2
            and '1 answer in' in said
            and len([line for line in err.splitlines() if 'HTTP 404' in line]) == 3
        )
        code, said, err = resonance(
            'bench', 'acrcloud', '--pack', pack, '--out', out, env=keys(stub, 'wrong secret')
        )
        assert code == 2 and '3014' in err and 'wrong secret' not in err and 'Traceback' not in err
    nothing = {k: v for k, v in os.environ.items() if not k.startswith('ACRCLOUD')}
    done = subprocess.run(
        [sys.executable, '-c', MAIN, 'bench', 'acrcloud', '--pack', str(pack), '--out', str(out)],
        capture_output=True,
        text=True,
        env=nothing,
    )
    assert (
        done.returncode == 2
        and done.stderr.count('\n') == 1
        and all(name in done.stderr for name in acrcloud.ENVIRONMENT)
    )


@pytest.mark.parametrize(
    'words, says',
    [
        (
            [
                'pack',
                '--out',
                '{music}',
                '--corpus',
                '{corpus}',
                '--split',
                'train',
                '--snr-db',
                'clean',
                '--durations',
                '2',
            ],
            'choose another folder',
        ),
        (['pack'], '--out'),
        (['pack', '--out', 'x', '--venue', 'opera'], 'opera'),
        (['pack', '--out', 'x', '--rate', '11025'], '11025'),
        (['pack', '--out', 'x', '--with-songs', 'steal'], 'steal'),
        (['--seed', '3', 'pack', '--out', 'x'], '--seed: put the options behind the word pack'),
        (['pack', '--corpus', '{music}', '--out', 'x'], 'not a corpus'),
        (['import', 'gone.csv', '--pack', '{pack}', '--service', 'X'], 'gone.csv'),
        (['import', 'x.csv', '--pack', '{music}', '--service', 'X'], 'is no pack'),
        (['import', 'x.csv', '--pack', '{pack}', '--service', 'landmark'], 'our own methods'),
        (['import', '--pack', '{pack}', '--service', 'X'], 'FILE'),
        (['acrcloud', '--pack', '{music}', '--out', 'x'], 'is no pack'),
        (['acrcloud', '--pack', '{pack}', '--out', 'x', '--rate', '0'], '--rate'),
        (['frobnicate'], 'frobnicate'),
    ],
)
def test_a_complaint_is_one_line(words, says, commanded, corpus, tmp_path, monkeypatch):
    places = {'pack': commanded[0], 'corpus': corpus.folder, 'music': corpus.folder / 'music'}
    for name, value in zip(acrcloud.ENVIRONMENT, ('127.0.0.1', 'k', 's')):
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    code, out, err = here(*(w.format(**places) for w in words))
    assert code == 2 and out == '' and says in err and err.count('\n') == 1 and err.startswith('resonance'), (
        err
    )


@pytest.mark.parametrize('command', ['pack', 'import', 'acrcloud'])
def test_help_teaches(command):
    code, out, err = here(command, '--help')
    assert code == 0 and f'resonance bench {command}' in out and err == ''
    assert command in here('--help')[1]
