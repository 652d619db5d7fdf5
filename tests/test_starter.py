"The starter corpus: what is on offer, that it is the same every time, and that interruptions cost nothing."

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile as sf

import resonance_nb.starter as S
from resonance_nb import scores, voices
from resonance_nb.core import MissingExtra, ResonanceError

pytest.importorskip('music21')
pytest.importorskip('tinysoundfont')
pytest.importorskip('pretty_midi')


@pytest.fixture
def few(monkeypatch):
    "Two crowds and two rooms instead of all of them."
    monkeypatch.setattr(S, 'N_NOISES', 2)
    monkeypatch.setattr(S, 'N_ROOMS', 2)


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    "A corpus of three pieces, made without interruption by one process."
    with pytest.MonkeyPatch.context() as m:
        m.setattr(S, 'N_NOISES', 2)
        m.setattr(S, 'N_ROOMS', 2)
        return S.make_starter(tmp_path_factory.mktemp('whole'), n_pieces=3, jobs=1, progress=False)


def bytes_of(folder):
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for kind in ('music', 'noise', 'rir')
        for p in sorted((folder / kind).iterdir())
    }


def test_more_than_a_thousand_pieces_and_none_with_reserved_rights():
    offer = scores.pieces()
    assert len(offer) > 1_000
    assert len(set(offer)) == len(offer)
    assert not [
        k for k in offer if k.startswith(('palestrina', 'essenFolksong', 'leadSheet', 'josquin', 'trecento'))
    ]
    assert 'monteverdi/madrigal.5.4.mxl' not in offer


def test_a_smaller_choice_begins_a_larger_one_and_is_varied():
    assert S.chosen(200)[:40] == S.chosen(40)
    assert S.chosen(40, seed=1) != S.chosen(40)
    own = scores.offered()
    assert {own[k].name for k, _ in S.chosen(20)} == {c.name for c in scores.COLLECTIONS}
    assert len(set(S.chosen(500))) == 500
    twice = [k for k, v in S.chosen(120) if v == 1]
    assert twice and all((k, 0) in S.chosen(120) for k in twice)


@pytest.mark.parametrize('n', [0, -1, 1_000_000])
def test_impossible_sizes_are_refused(n):
    with pytest.raises(ResonanceError, match='offers 1 to'):
        S.chosen(n)


def test_an_unknown_piece_is_named():
    with pytest.raises(ResonanceError, match='no piece'):
        scores.read_tune('../../etc/passwd')


def test_ties_are_joined_and_notes_sorted():
    tune = scores.read_tune('bach/bwv66.6.mxl')
    assert len(tune.notes) == 163  # music21's own stripTies leaves as many
    assert (np.diff(tune.notes[:, 0]) >= 0).all()
    assert (tune.notes[:, 1] > 0).all() and set(tune.notes[:, 3]) == {0, 1, 2, 3}
    assert tune.bar_q == 4 and tune.artist == 'Johann Sebastian Bach'


@pytest.mark.parametrize('key', ['bach/bwv66.6.mxl', 'airdsAirs/book1.abc#2'])
def test_same_seed_same_bytes(key, tmp_path):
    for name in 'ab':
        samples, row = S.render_piece(key, seed=3)
        S._write(tmp_path / f'{name}.ogg', samples)
    assert (tmp_path / 'a.ogg').read_bytes() == (tmp_path / 'b.ogg').read_bytes()
    assert samples.dtype == np.float32 and 0.6 < np.abs(samples).max() <= 1
    assert 20 < row['duration_s'] <= 40 and row['vocals'] == 'no' and row['source_url'] == f'music21:{key}'
    other = S.render_piece(key, seed=4)[0]
    assert len(other) != len(samples) or not np.array_equal(other, samples)


def test_the_mended_ogg_is_valid(tmp_path):
    import zlib

    x = (0.1 * np.random.default_rng(0).normal(size=50_000)).astype(np.float32)
    S._write(tmp_path / 'x.ogg', x)
    data = (tmp_path / 'x.ogg').read_bytes()
    y, rate = sf.read(tmp_path / 'x.ogg')
    assert rate == 16_000 and len(y) == len(x)
    first = data[: data.index(b'OggS', 4)]  # a page's checksum by the slow definition of the format
    crc = 0
    for byte in first[:22] + bytes(4) + first[26:]:
        crc ^= byte << 24
        for _ in range(8):
            crc = ((crc << 1) ^ 0x04C11DB7) & 0xFFFFFFFF if crc & 0x80000000 else crc << 1
    assert int.from_bytes(first[22:26], 'little') == crc
    assert first[14:18] == bytes(4) and zlib.crc32(b'') == 0


@pytest.mark.parametrize('number', range(len(voices.RECIPES)))
def test_crowds_are_sound_and_do_not_clip(number):
    x, row = S.render_noise(number)
    assert row['category'] == list(voices.RECIPES)[number] and row['concert_use'] == 'core'
    assert 20 <= row['duration_s'] <= 30 and np.isfinite(x).all() and np.abs(x).max() <= 0.61
    seconds = x[: len(x) // 16_000 * 16_000].reshape(-1, 16_000)
    assert np.sqrt((seconds**2).mean(1)).min() > 1e-3  # never silent for a second


def test_rooms_decay_as_built_and_share_a_room_id():
    for number in range(0, S.N_ROOMS, 4):
        x, row = S.render_room(number)
        energy = np.cumsum(x[::-1].astype(float) ** 2)[::-1]
        db = 10 * np.log10(energy / energy[0])
        measured_s = 3 * (np.argmax(db < -30) - np.argmax(db < -10)) / 16_000
        assert 0.5 * row['rt60_s'] < measured_s < 1.5 * row['rt60_s'], (row, measured_s)
        assert S.render_room(number + 1)[1]['room_id'] == row['room_id']


def test_made_twice_is_the_same_corpus(few, whole, tmp_path):
    made = S.make_starter(tmp_path / 'a', n_pieces=3, jobs=3, progress=False)
    assert bytes_of(tmp_path / 'a') == bytes_of(whole.folder)
    assert made.checksum() == whole.checksum() and made.check() == [] and len(made.music) == 3
    before = {
        p: p.stat().st_mtime_ns
        for p in (tmp_path / 'a').rglob('*.*')
        if p.suffix in ('.ogg', '.csv', '.flac')
    }
    S.make_starter(tmp_path / 'a', n_pieces=3, progress=False)
    assert before == {p: p.stat().st_mtime_ns for p in before}
    with pytest.raises(ResonanceError, match='another starter corpus'):
        S.make_starter(tmp_path / 'a', n_pieces=3, seed=1, progress=False)


def test_killed_and_resumed_is_the_same_corpus(few, whole, tmp_path):
    script = 'import resonance_nb.starter as S, sys; S.N_NOISES = S.N_ROOMS = 2; S.make_starter(sys.argv[1], n_pieces=3, jobs=1, progress=False)'
    broken = tmp_path / 'broken'
    p = subprocess.Popen([sys.executable, '-c', script, str(broken)], start_new_session=True)
    rows = broken / '.rows'
    while not (rows.is_dir() and len(list(rows.glob('*.json'))) >= 2):
        assert p.poll() is None
        time.sleep(0.01)
    os.killpg(p.pid, signal.SIGKILL)
    p.wait()
    assert not (broken / 'music.csv').exists()
    kept = {f: f.stat().st_mtime_ns for f in rows.glob('*.json')}
    resumed = S.make_starter(broken, n_pieces=3, progress=False)
    assert resumed.checksum() == whole.checksum() and resumed.check() == []
    assert bytes_of(broken).items() >= bytes_of(whole.folder).items()
    assert all(f.stat().st_mtime_ns == t for f, t in kept.items())  # what was done was not done again


def test_a_bad_score_costs_only_itself(few, tmp_path, monkeypatch):
    monkeypatch.setattr(S, 'chosen', lambda n, seed: [('bach/bwv66.6.mxl', 0), ('bach/none.mxl', 0)])
    with pytest.warns(UserWarning, match='left out of the starter corpus: bach/none.mxl'):
        made = S.make_starter(tmp_path / 'c', n_pieces=2, progress=False)
    assert list(made.music.index) == ['bach-bwv66-6']


def test_a_missing_library_is_named(monkeypatch):
    real = scores.importlib.util.find_spec
    monkeypatch.setattr(
        scores.importlib.util, 'find_spec', lambda name: None if name == 'tinysoundfont' else real(name)
    )
    with pytest.raises(MissingExtra, match='pip install --no-deps tinysoundfont'):
        S.make_starter()


def test_version_groups_only_where_a_song_comes_twice(few, tmp_path):
    (tmp_path / '.rows').mkdir()
    for i, (key, v) in enumerate(
        [('bach/bwv66.6.mxl', 0), ('bach/bwv66.6.mxl', 1), ('airdsAirs/book1.abc#2', 0)]
    ):
        row = dict(
            id=f'x{i}', kind='music', file=f'music/x{i}.ogg', version_group=key.split('.')[0], duration_s=1.0
        )
        (tmp_path / '.rows' / f'music-{i}.json').write_text(json.dumps(row))
    for kind, make in (('noise', S.render_noise), ('rir', S.render_room)):
        (tmp_path / '.rows' / f'{kind}-0.json').write_text(json.dumps(make(0)[1]))
    S._tables(tmp_path)
    assert S._tables(tmp_path) is None
    text = (tmp_path / 'music.csv').read_text()
    assert text.count('bach/bwv66') == 2 and 'airdsAirs' not in text


def test_an_older_version_is_made_anew(few, tmp_path, monkeypatch):
    S.make_starter(tmp_path, n_pieces=1, jobs=1, progress=False)
    stray = tmp_path / 'music' / 'stray.ogg'
    stray.write_bytes(b'of an older version')
    monkeypatch.setattr(S, 'VERSION', S.VERSION + 1)
    made = S.make_starter(tmp_path, n_pieces=1, jobs=1, progress=False)
    assert (
        not stray.exists()
        and made.check() == []
        and json.loads((tmp_path / 'starter.json').read_text())['version'] == S.VERSION
    )
