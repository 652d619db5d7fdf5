"Concerts: what was asked is what is measured, a record is the concert, and what is hostile is told in one line."

import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from resonance_nb import venue, warp
from resonance_nb.bank import ANECHOIC
from resonance_nb.audio import lufs
from resonance_nb.core import ResonanceError, rng_for
from resonance_nb.starter import default_corpus
from resonance_nb.long_concert import degrade_long
from resonance_nb.bank import Bank, synthesised
from resonance_nb.venue import VENUES, Record, degrade, replay

NAMES = list(VENUES)


def tune(seconds, seed=0):
    "Notes with overtones and pauses: something with a beginning, a middle and an end."
    rng = rng_for(seed, 'tune')
    t = np.arange(4_000) / 16_000
    notes = [
        sum(np.sin(2 * np.pi * f * k * t) / k for k in (1, 2, 3, 5)) * np.exp(-5 * t)
        for f in 150 * 2 ** (rng.integers(0, 36, int(seconds * 4)) / 12)
    ]
    return (0.2 * np.concatenate(notes)).astype(np.float32)


def db(x):
    return 10 * np.log10(np.mean(np.asarray(x, float) ** 2))


@pytest.fixture(scope='module')
def bank():
    "The rooms and crowds of the corpus's training part."
    return Bank(default_corpus(), 'train', rooms_per_venue=12)


@pytest.fixture(scope='module')
def draws(bank):
    "Concerts of every venue from both banks, by RMS and by loudness: 240 of them."
    made = []
    for i in range(240):
        x = tune(2.0, i % 7)
        asked = float(rng_for(1, 'asked', i).uniform(-15, 25))
        where = (synthesised(), bank)[i % 2]
        loudness = ('rms', 'rms', 'lufs')[i % 3]
        out, r = degrade(
            x[16_000:],
            NAMES[i % 6],
            asked,
            rng_for(0, 'draw', i),
            where,
            before=x[:16_000],
            loudness=loudness,
        )
        made.append((x, asked, where, loudness, out, r))
    return made


def test_the_ratio_is_the_asked_one_measured_by_hand(draws):
    for x, asked, where, loudness, _, r in draws:
        whole = np.concatenate([x])
        music, noise = venue.in_the_air(
            r, whole, 16_000, 16_000, where, input_gain=10 ** (r.measured['input_gain_db'] / 20)
        )
        noise = noise[16_000:] * 10 ** (r.measured['crowd_gain_db'] / 20)
        got = lufs(music[16_000:]) - lufs(noise) if loudness == 'lufs' else db(music[16_000:]) - db(noise)
        assert abs(got - asked) <= (0.3 if loudness == 'lufs' else 0.1), (r.venue, loudness)
        assert abs(r.measured['snr_db'] - got) < 0.05


def test_what_comes_out_is_sound(draws):
    for x, _, _, _, out, r in draws:
        assert (
            out.shape == (16_000,)
            and out.dtype == np.float32
            and np.isfinite(out).all()
            and np.abs(out).max() <= 1
        ), r.venue
        assert np.abs(out).max() > 1e-3


def test_rooms_decay_as_asked(draws):
    off = [abs(r.measured['rt60_s'] / r.room.rt60_s - 1) for *_, r in draws if r.room.rt60_s]
    assert len(off) > 100 and np.median(off) <= 0.1 and np.quantile(off, 0.95) <= 0.25
    reverberant = [abs(r.measured['drr_db'] - r.room.drr_db) for *_, r in draws if r.room.rt60_s]
    assert np.median(reverberant) < 0.5


def test_a_record_plays_the_same_bytes_after_a_trip_through_json(draws):
    for x, _, where, _, out, r in draws[:60]:
        again = Record.from_json(r.to_json())
        assert again == r
        assert replay(x[16_000:], again, where, x[:16_000]).tobytes() == out.tobytes()


def lag(clean, heard, reach=400):
    "Samples by which the recording is late, by whitened cross-correlation between 300 and 3,000 Hz."
    n = 2 * len(clean)
    s = np.fft.rfft(heard, n) * np.conj(np.fft.rfft(clean, n))
    f = np.fft.rfftfreq(n, 1 / 16_000)
    s = np.where((f > 300) & (f < 3_000), s / (np.abs(s) + 1e-9), 0)
    r = np.fft.irfft(s, n)
    return int(np.abs(np.concatenate([r[-reach:], r[: reach + 1]])).argmax()) - reach


def test_the_music_is_where_it_was(bank):
    "A noise burst shows its place better than a tune; drift apart, every venue leaves it within two milliseconds."
    x = (0.2 * np.random.default_rng(3).normal(size=48_000)).astype(np.float32)
    late = []
    for i in range(90):
        r = VENUES[NAMES[i % 6]].draw(rng_for(2, i), bank, None, 2.0, 1.0)
        r = replace(r, source=tuple(s for s in r.source if s['stage'] != 'drift'))
        late.append(abs(lag(x[16_000:], replay(x[16_000:], r, bank, x[:16_000]))))
    assert np.mean(np.array(late) <= 32) >= 0.95, sorted(late)[-8:]


def test_drift_bends_time_about_the_beginning_of_the_clip():
    clicks = np.zeros(80_000, np.float32)
    clicks[8_000::16_000] = 1.0
    r = replace(bare(), source=venue._steps(('drift', warp.Drift(1.02, 0.0))))
    out = replay(clicks[16_000:], r, before=clicks[:16_000], after=np.zeros(3_200, np.float32))
    for k in range(3):
        at = (8_000 + 16_000 * k) / 1.02
        assert abs(np.abs(out[int(at) - 800 : int(at) + 800]).argmax() + int(at) - 800 - at) <= 32


def bare():
    "A concert in which nothing happens to the music."
    r = VENUES['club'].draw(rng_for(0, 'bare'), synthesised(), None, 4.0, 1.0)
    return replace(r, source=(), phone=(), device='', room=ANECHOIC, air_m=0.0)


def test_with_everything_off_the_clip_comes_through():
    x = tune(4.0)
    out = replay(x[16_000:], bare(), before=x[:16_000])
    assert np.corrcoef(out, x[16_000:])[0, 1] > 0.9999


def test_the_past_is_heard_and_the_end_is_not_moved_to_the_beginning(bank):
    x = tune(4.0)
    r = replace(VENUES['arena'].draw(rng_for(5), bank, None, 2.0, 2.0), phone=())
    loud = x[:32_000]
    quiet = np.zeros(32_000, np.float32)
    nothing = np.zeros(32_000, np.float32)
    tail = venue.in_the_air(r, np.concatenate([loud, nothing]), 32_000, 32_000, bank, input_gain=1.0)[0][
        32_000:
    ]
    ahead = venue.in_the_air(
        r, np.concatenate([quiet, nothing[:16_000], x[:16_000]]), 32_000, 32_000, bank, input_gain=1.0
    )[0]
    assert db(tail[:8_000]) > db(tail[-8_000:]) > -200
    assert np.abs(ahead[: 32_000 + 15_000]).max() < 1e-3 * np.abs(ahead).max()


# encoders decide anew for every rounding error
CALM = replace(VENUES['theatre'], codec=venue.Maybe(0.0, VENUES['theatre'].codec.of))


def test_the_level_of_the_recording_does_not_matter():
    x = tune(3.0)
    loud, _ = degrade(x, CALM, 3, rng_for(9))
    soft, _ = degrade(0.01 * x, CALM, 3, rng_for(9))
    assert np.abs(loud - soft).max() < 0.02


CODE = """
import sys, numpy as np
sys.path.insert(0, 'tests')
from test_venue import tune, rng_for, degrade, NAMES
for i, name in enumerate(NAMES):
    out, r = degrade(tune(1.5, i), name, 3.0, rng_for(11, name))
    np.save(f'{sys.argv[1]}/{name}.npy', out)
    print(r.to_json())
"""


def test_the_same_seed_gives_the_same_concerts_in_two_processes(root, tmp_path):
    "What was drawn exactly, what was measured and heard to the last digits, of which an encoder may make more."
    told = []
    for n in '12':
        (tmp_path / n).mkdir()
        env = {**os.environ, 'OMP_NUM_THREADS': n, 'PYTHONHASHSEED': n}
        done = subprocess.run(
            [sys.executable, '-c', CODE, str(tmp_path / n)], cwd=root, capture_output=True, text=True, env=env
        )
        assert done.returncode == 0, done.stderr[-2_000:]
        told.append([Record.from_json(line) for line in done.stdout.splitlines()])
    assert len(told[0]) == len(NAMES) and [replace(r, measured={}) for r in told[0]] == [
        replace(r, measured={}) for r in told[1]
    ]
    for name, one, other in zip(NAMES, *told):
        assert one.measured == pytest.approx(other.measured, abs=0.01)
        a, b = (np.load(tmp_path / n / f'{name}.npy') for n in '12')
        assert a.shape == b.shape and np.corrcoef(a, b)[0, 1] > 0.9, name
        coded = any(step['stage'] == 'code_and_decode' for step in one.phone)
        assert coded or (np.abs(a - b) > 1e-3).mean() < 1e-3, name


def test_nothing_global_is_touched(bank):
    import random

    np.random.seed(1)
    random.seed(1)
    before = np.random.get_state()[1].copy(), random.getstate()
    for name in NAMES:
        degrade(tune(1.0), name, 0, rng_for(0, name), bank)
    assert np.array_equal(before[0], np.random.get_state()[1]) and before[1] == random.getstate()


def test_the_record_is_plain_json_with_every_value(draws):
    *_, r = draws[0]
    d = json.loads(r.to_json())
    assert (
        {s['stage'] for s in d['source']} >= {'equalise', 'compress', 'limit'}
        and d['scene']['layers']
        and d['room']['distance_m'] > 0
    )
    assert d['measured'].keys() >= {
        'snr_db',
        'clean_start_s',
        'input_gain_db',
        'crowd_gain_db',
        'microphone_gain_db',
    }
    for text, why in (
        ('{}', 'no record'),
        ('nonsense', 'no record'),
        (json.dumps(d | {'version': 99}), 'version 99'),
        (json.dumps(d | {'room': 3}), 'no record'),
    ):
        with pytest.raises(ResonanceError, match=why):
            Record.from_json(text)


def test_a_record_of_another_bank_is_refused(bank):
    x = tune(1.0)
    _, r = degrade(x, 'club', 0, rng_for(0), bank)
    with pytest.raises(ResonanceError, match='was drawn from'):
        replay(x, r, synthesised())


@pytest.mark.parametrize(
    'x, snr_db, why',
    [
        (np.zeros(16_000), 0, 'silent'),
        (np.full(16_000, np.nan), 0, 'NaN'),
        (np.full(16_000, np.inf), 0, 'NaN'),
        (np.zeros(0), 0, 'no samples'),
        (np.ones((2, 100)), 0, 'one row'),
        (np.ones(16_000), 61, '-60 to 60'),
        (np.ones(16_000), -61, '-60 to 60'),
        (np.ones(16_000), float('nan'), '-60 to 60'),
    ],
)
def test_what_cannot_be_played_is_told_in_one_line(x, snr_db, why):
    with pytest.raises(ResonanceError, match=why) as e:
        degrade(x, 'club', snr_db, rng_for(0))
    assert '\n' not in str(e.value)


def test_silence_without_a_crowd_stays_nearly_silent():
    out, r = degrade(np.zeros(8_000), 'club', None, rng_for(0))
    assert np.abs(out).max() < 0.05 and 'snr_db' not in r.measured


@pytest.mark.parametrize('n', [1, 2, 17, 300])
@pytest.mark.parametrize('name', NAMES)
def test_a_few_samples_are_enough(n, name):
    out, r = degrade(np.full(n, 0.5, np.float32), name, 0.0, rng_for(0, n))
    assert out.shape == (n,) and np.isfinite(out).all() and abs(r.measured['snr_db']) <= 0.1


def test_loudness_needs_a_little_sound():
    with pytest.raises(ResonanceError, match='0.4 s'):
        degrade(np.full(100, 0.5), 'club', 0.0, rng_for(0), loudness='lufs')


def test_the_crowd_alone_and_no_crowd(bank):
    waiting, r = venue.crowd_alone(2, 'festival', rng_for(1), bank)
    assert waiting.shape == (32_000,) and db(waiting) > -60 and not r.music
    assert np.array_equal(waiting, replay(np.zeros(32_000), r, bank, np.zeros(32_000)))
    with pytest.raises(ResonanceError, match='no samples'):
        venue.crowd_alone(0, 'festival', rng_for(1), bank)


def test_an_unknown_venue_names_the_known_ones():
    with pytest.raises(ResonanceError, match='phone-on-shoulder'):
        degrade(tune(1.0), 'opera', 0, rng_for(0))


def test_draws_stay_within_their_distributions(bank):
    for name in NAMES:
        v = VENUES[name]
        for i in range(40):
            r = v.draw(rng_for(0, name, i), bank)
            eq = next(s for s in r.source if s['stage'] == 'equalise')
            assert (
                v.pa_high_pass_hz.low <= eq['high_pass_hz'] <= v.pa_high_pass_hz.high
                and v.pa_low_pass_hz.low <= eq['low_pass_hz'] <= v.pa_low_pass_hz.high
            )
            assert v.distance_m.low <= r.room.distance_m <= v.distance_m.high and (
                r.room.kind == 'open-air'
            ) == (name == 'festival')
            drift = next((s for s in r.source if s['stage'] == 'drift'), {'stretch': 1, 'pitch_cents': 0})
            assert 0.98 <= drift['stretch'] <= 1.02 and abs(drift['pitch_cents']) <= 20


def test_a_bank_never_leaves_its_split():
    corpus = default_corpus()
    for split in ('train', 'test'):
        bank = Bank(corpus, split, rooms_per_venue=10)
        own = set(corpus.split('rir', split).index)
        sounds = set(corpus.split('noise', split).index)
        for name in NAMES:
            for i in range(10):
                r = VENUES[name].draw(rng_for(3, i), bank)
                assert not r.room.id or r.room.id in own
                assert not r.device or r.device in own
                used = {s for s, *_ in r.scene['layers']} | {e['source'] for e in r.scene['events']}
                assert {s for s in used if not s.startswith('synthesised/')} <= sounds


def test_a_broken_response_is_skipped_and_told(tmp_path):
    from resonance_nb.audio import save
    from resonance_nb.corpora import write_corpus
    from resonance_nb.starter import render_room

    import pandas as pd

    (tmp_path / 'rir').mkdir()
    rows = []
    for i in range(12):
        x, row = render_room(i)
        save(tmp_path / row['file'], x)
        rows.append(row)
    broken = tmp_path / rows[0]['file']
    broken.write_bytes(broken.read_bytes()[:40])
    (tmp_path / rows[2]['file']).unlink()
    corpus = write_corpus(tmp_path, rir=pd.DataFrame(rows))
    banks = [Bank(corpus, s, rooms_per_venue=6) for s in ('train', 'validation', 'test')]
    for b in banks:
        for i in range(6):
            out, _ = degrade(tune(1.0), 'theatre', 5, rng_for(0, i), b)
            assert np.isfinite(out).all()
    told = dict(x for b in banks for x in b.rooms.skipped)
    assert set(told) == {rows[0]['id'], rows[2]['id']} and all('\n' not in why for why in told.values())


def test_simulated_rooms_can_be_drawn():
    pytest.importorskip('pyroomacoustics')
    bank = Bank(shoebox=True, rooms_per_venue=8)
    seen = {bank.room(VENUES['club'], i).kind for i in range(8)}
    assert seen == {'shoebox', 'statistical'}
    r = replace(
        VENUES['club'].draw(rng_for(0), bank, 10.0),
        room=next(x for x in (bank.room(VENUES['club'], i) for i in range(8)) if x.kind == 'shoebox'),
    )
    assert np.isfinite(replay(tune(1.0), r, bank)).all()


@pytest.mark.parametrize('name', ['club', 'arena'])
def test_blocks_play_the_same_concert_as_a_whole(name):
    x = tune(24.0)
    made, r = degrade_long(
        lambda: (x[i : i + 7_001] for i in range(0, len(x), 7_001)), name, 4.0, rng_for(21), block_s=5.0
    )
    parts = list(made)
    out = np.concatenate(parts)
    whole = degrade(x, name, 4.0, rng_for(21))[0]
    assert out.shape == x.shape and np.abs(out).max() <= 1 and max(map(len, parts)) == 80_000
    assert abs(r.measured['snr_db'] - 4) <= 0.1
    drifts = any(s['stage'] == 'drift' for s in r.source)
    assert np.corrcoef(out[:79_000], whole[:79_000])[0, 1] > 0.9
    if not drifts:
        assert np.corrcoef(out, whole)[0, 1] > 0.9
    jumps = np.abs(np.diff(out))
    seams = np.zeros(len(out) - 1, bool)
    for seam in range(80_000, len(out), 80_000):
        seams[seam - 20 : seam + 820] = True
    # a hard cut between two concerts would jump by more than the music does
    assert jumps[seams].max() <= 1.25 * jumps[~seams].max()


def test_long_recordings_need_bounded_memory():
    "Three times the length needs no more memory; keeping the recording once would take 7.7 MB more."
    import tracemalloc

    block = tune(20.0)
    peaks = []
    for blocks in (9, 3, 9):  # the first call fills caches
        tracemalloc.start()
        for _ in degrade_long(
            lambda: (block for _ in range(blocks)), 'theatre', 10.0, rng_for(0), block_s=20.0
        )[0]:
            pass
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] < peaks[1] + 3e6, peaks


def test_a_silent_or_empty_or_broken_recording_of_any_length_is_told():
    for blocks, why in (
        ([np.zeros(1_000)], 'silent'),
        ([], 'no samples'),
        ([np.ones(10), np.full(10, np.nan)], 'NaN'),
    ):
        with pytest.raises(ResonanceError, match=why):
            list(degrade_long(lambda: iter(blocks), 'club', 0.0, rng_for(0))[0])


def test_a_bank_can_be_sent_to_another_process_and_makes_the_same_rooms():
    import pickle

    bank = Bank()
    room = bank.room(VENUES['club'], 5)
    response = bank.response(room)
    sent = pickle.dumps(bank)
    assert len(sent) < 10_000  # what it remembers stays
    again = pickle.loads(sent)
    assert again.room(VENUES['club'], 5) == room and again.digest == bank.digest
    np.testing.assert_array_equal(again.response(room), response)
    assert again.facts(room) == bank.facts(room)


@pytest.mark.parametrize('rng', [1, None, np.random.RandomState(1)])
def test_a_seed_is_no_generator(rng):
    with pytest.raises(ResonanceError, match='rng must be a generator'):
        degrade(np.ones(16_000, np.float32), 'club', 5, rng)


@pytest.mark.parametrize('snr_db', ['0', [0], 1j])
def test_a_ratio_that_is_no_number_is_one_line(snr_db):
    with pytest.raises(ResonanceError, match='a signal-to-noise ratio is a number of dB'):
        degrade(np.ones(16_000, np.float32), 'club', snr_db, rng_for(0, 'ratio'))


def test_an_unknown_venue_is_told_all_that_there_are():
    with pytest.raises(ResonanceError, match="unknown venue 'pub'; .*club.*hard-mix"):
        degrade(np.ones(16_000, np.float32), 'pub', 0, rng_for(0, 'venue'))
