"Rooms are measured as others measure them, made as they were asked for, and applied without moving the music."

import math
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import signal

from resonance_nb import responses, rooms
from resonance_nb.audio import save
from resonance_nb.core import MissingExtra, ResonanceError, rng_for
from resonance_nb.corpora import write_corpus
from resonance_nb.responses import align, direct_index, measure_room, reverberate, with_drr
from resonance_nb.rooms import RoomBank, shoebox_room, statistical_room, with_rt60
from resonance_nb.starter import default_corpus, render_room

RATE = 16_000
SPLITS = 'train', 'validation', 'test'


def decaying(rt60_s, duration_s, seed=0, floor_db=-300.0):
    "White noise with an exponential envelope, and a floor of stationary noise."
    rng = np.random.default_rng(seed)
    t = np.arange(int(duration_s * RATE)) / RATE
    return rng.normal(size=len(t)) * 10 ** (-3 * t / rt60_s) + 10 ** (floor_db / 20) * rng.normal(size=len(t))


@pytest.fixture(scope='module')
def banks():
    corpus = default_corpus()
    return {split: RoomBank(corpus, split) for split in SPLITS}


@pytest.fixture(scope='module')
def every_room(banks):
    "Every usable room of the corpus: (id, aligned response, facts)."
    return [(id, bank.response(id), bank.facts(id)) for bank in banks.values() for id in bank.ids]


# ---- measuring


@pytest.mark.parametrize('rt60_s', [0.3, 0.8, 2.0, 6.0])
@pytest.mark.parametrize('floor_db', [-300, -60, -45])
def test_rt60_of_noise_with_a_known_decay(rt60_s, floor_db):
    found = [measure_room(decaying(rt60_s, 1.3 * rt60_s + 0.3, seed, floor_db)) for seed in range(5)]
    assert np.median([f.rt60_s for f in found]) == pytest.approx(rt60_s, rel=0.05)
    assert np.median([f.edt_s for f in found]) == pytest.approx(rt60_s, rel=0.12)


def test_rt60_agrees_with_pyroomacoustics():
    experimental = pytest.importorskip('pyroomacoustics.experimental')
    rng = np.random.default_rng(3)
    for seed, rt60_s in enumerate(np.exp(rng.uniform(math.log(0.3), math.log(6), 25))):
        x = decaying(rt60_s, 1.2 * rt60_s, seed)
        ours = responses.decay_time_s(responses.energy_decay_db(x), -5, -35)
        assert ours == pytest.approx(experimental.measure_rt60(x, RATE, 30), rel=0.03)
        # two octaves hold less noise to average
        assert measure_room(x).rt60_s == pytest.approx(ours, rel=0.12)


@settings(max_examples=40, deadline=None)
@given(st.floats(0.15, 6), st.integers(0, 400), st.floats(-60, 0))
def test_closed_forms_of_an_ideal_exponential(rt60_s, delay, level_db):
    k = 6 * math.log(10) / rt60_s
    n = int((1.1 * rt60_s + 0.2) * RATE)
    h = 10 ** (level_db / 20 - 3 * np.arange(n) / RATE / rt60_s) * np.where(np.arange(n) % 2, -1, 1)
    x = np.concatenate([np.zeros(delay), h])
    facts = measure_room(x)
    assert direct_index(x) == delay
    assert facts.c50_db == pytest.approx(10 * math.log10(math.expm1(0.05 * k)), abs=0.02)
    assert facts.drr_db == pytest.approx(10 * math.log10(math.expm1(0.0025 * k)), abs=0.02)
    curve = responses.energy_decay_db(h)[: int(0.6 * n)]
    np.testing.assert_allclose(curve, -60 * np.arange(len(curve)) / RATE / rt60_s, atol=0.02)
    for levels in ((0, -10), (-5, -25), (-5, -35)):
        assert responses.decay_time_s(curve, *levels) == pytest.approx(rt60_s, rel=1e-3)


def test_the_line_is_the_least_squares_line():
    curve = np.concatenate([np.linspace(0, -20, 700), np.linspace(-20.01, -50, 2_500)])
    inside = np.flatnonzero((curve <= -5) & (curve >= -35))
    inside = np.arange(inside[0] - 1, inside[-1] + 2)
    slope = np.polyfit(inside / RATE, curve[inside], 1)[0]
    assert responses.decay_time_s(curve, -5, -35) == pytest.approx(-60 / slope, rel=1e-9)
    assert math.isnan(responses.decay_time_s(curve, -5, -55)) and math.isnan(
        responses.decay_time_s(np.zeros(0), -5, -25)
    )


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.1, 3), st.integers(50, 40_000), st.floats(-90, -20))
def test_a_decay_curve_never_rises(seed, rt60_s, n, floor_db):
    x = decaying(rt60_s, n / RATE, seed, floor_db)
    curve = responses.energy_decay_db(x)
    known = np.isfinite(curve)
    assert curve.shape == (len(x),) and curve[0] == 0
    assert known[: known.sum()].all(), 'once unknown, unknown to the end'
    assert (np.diff(curve[known]) <= 1e-9).all()
    np.testing.assert_allclose(responses.energy_decay_db(1e-3 * x), curve, atol=1e-6)


def test_the_curve_stops_before_the_noise_and_not_too_early():
    x = decaying(1.0, 3.0, 0, -50)
    known = np.isfinite(responses.energy_decay_db(x)).sum() / RATE
    assert 0.65 < known < 50 / 60, 'the decay meets the noise after 0.83 s'
    silent_end = np.concatenate([decaying(0.5, 0.6), np.zeros(2 * RATE)])
    assert measure_room(silent_end).rt60_s == pytest.approx(0.5, rel=0.1)


def test_octaves_are_told_apart():
    t = np.arange(3 * RATE) / RATE
    rng = np.random.default_rng(0)
    out = 0
    wanted = {250: 2.0, 1_000: 1.0, 4_000: 0.5}
    for centre, rt60_s in wanted.items():
        sos = signal.butter(4, [centre / 1.3, centre * 1.3], 'bandpass', fs=RATE, output='sos')
        out = out + signal.sosfilt(sos, rng.normal(size=len(t))) * 10 ** (-3 * t / rt60_s)
    found = responses.octave_rt60_s(out, wanted)
    assert list(found) == list(wanted)
    for centre, rt60_s in wanted.items():
        assert found[centre] == pytest.approx(rt60_s, rel=0.12)
        assert measure_room(out, centre).rt60_s == found[centre]


def test_octave_filters_are_octaves():
    impulse = np.zeros(RATE)
    impulse[RATE // 2] = 1
    for centre, band in zip(responses.OCTAVES_HZ, responses._octaves(impulse, responses.OCTAVES_HZ)):
        f = np.fft.rfftfreq(RATE, 1 / RATE)
        gain = 20 * np.log10(np.abs(np.fft.rfft(band)) + 1e-12)
        at = lambda hz: float(np.interp(hz, f, gain))
        assert at(centre) == pytest.approx(0, abs=0.05)
        assert at(centre / math.sqrt(2)) == pytest.approx(-3, abs=0.2) and at(centre / 2) < -20
        if centre < 4_000:
            assert at(centre * math.sqrt(2)) == pytest.approx(-3, abs=0.2) and at(centre * 2) < -20


def test_measured_times_agree_with_the_corpus(every_room):
    table = default_corpus().rir['rt60_s']
    pairs = np.array([(table[id], facts.rt60_s) for id, _, facts in every_room if table[id] == table[id]])
    assert len(pairs) >= 20
    assert np.corrcoef(np.log(pairs.T))[0, 1] > 0.95
    assert np.median(np.abs(pairs[:, 1] / pairs[:, 0] - 1)) < 0.08


# ---- aligning


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 3_000), st.floats(1e-4, 1), st.sampled_from([-1, 1]))
def test_the_direct_sound_is_found_wherever_it_is(seed, delay, level, sign):
    h = statistical_room(0.6, np.random.default_rng(seed), drr_db=-6)
    rng = np.random.default_rng(seed)
    x = np.concatenate([1e-4 * rng.normal(size=delay), sign * h]) * level
    assert direct_index(x) == delay


def test_a_reflection_stronger_than_the_direct_sound_is_not_taken_for_it():
    x = np.zeros(4_000)
    x[[300, 700]] = 0.4, 1.0
    assert direct_index(x) == 300
    x[300] = 0.2  # more than 12 dB below: a precursor
    assert direct_index(x) == 700
    lowpassed = np.convolve(x, np.sinc(np.arange(-40, 41) / 2.5) * np.hanning(81))
    assert abs(direct_index(lowpassed) - 740) <= 8, 'the ringing of a filter before the arrival is no arrival'


@pytest.mark.parametrize('floor_db', [-300, -55])
def test_align_moves_scales_and_fades(floor_db):
    x = np.concatenate([np.zeros(900), [3.0], 0.1 * decaying(0.8, 2.0, 1, floor_db)])
    before = x.copy()
    out = align(x)
    assert out.dtype == np.float32 and direct_index(out) == 0 and np.array_equal(x, before)
    assert np.sum(out[:40].astype(float) ** 2) == pytest.approx(1, rel=1e-5)
    assert np.abs(out[-50:]).max() < 1e-4 * np.abs(out).max()
    assert measure_room(out).rt60_s == pytest.approx(measure_room(x).rt60_s, rel=0.03)
    again = align(out)
    np.testing.assert_allclose(again[: len(again) * 8 // 10], out[: len(again) * 8 // 10], atol=1e-6)


@pytest.mark.parametrize(
    'bad, message',
    [
        (np.zeros(8_000), 'silent'),
        (np.full(8_000, np.nan), 'NaN'),
        (np.zeros((2, 4_000)), 'one row'),
        (np.zeros(0), 'at least one'),
        (np.ones(100), '10 ms'),
        (np.r_[0.3, np.zeros(3_000), 1.0, np.zeros(3_000)], 'no clear direct sound'),
        (np.float64(1), 'one row'),
    ],
)
def test_what_is_no_response_is_refused(bad, message):
    with pytest.raises(ResonanceError, match=message) as e:
        align(bad)
    assert '\n' not in str(e.value)


def test_music_stays_where_it_is(every_room):
    "White noise in the room, against itself: the peak of the cross-correlation is at 0 within 2 ms."
    rng = np.random.default_rng(0)
    dry = rng.normal(size=2**15).astype(np.float32)
    late = []
    for id, h, facts in every_room:
        made = with_drr(h, max(facts.drr_db, -6.0))
        found = np.fft.irfft(np.fft.rfft(reverberate(dry, made), 2**16) * np.conj(np.fft.rfft(dry, 2**16)))
        lag = (int(np.argmax(np.abs(found))) + 2**15) % 2**16 - 2**15
        late += [(id, lag)] if abs(lag) > 32 else []
    assert not late


# ---- direct to reverberant


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.3, 4), st.floats(-9, 20))
def test_with_drr_is_exact_and_leaves_the_direct_sound(seed, rt60_s, drr_db):
    h = statistical_room(rt60_s, np.random.default_rng(seed))
    out = with_drr(h, drr_db)
    assert np.array_equal(out[:40], h[:40])
    assert measure_room(out).drr_db == pytest.approx(drr_db, abs=0.1)
    assert np.argmax(np.abs(out)) == 0, 'no reflection above the direct sound'
    np.testing.assert_allclose(with_drr(out, drr_db), out, atol=0.01)


def test_with_drr_on_every_room(every_room):
    errors = [
        measure_room(with_drr(h, drr_db)).drr_db - drr_db
        for (_, h, _), drr_db in zip(every_room, 100 * [-6, 0, 6])
    ]
    assert np.abs(errors).max() < 0.5


def test_theory_of_distance():
    assert responses.drr_at(0.057 * math.sqrt(5_000 / 2), 5_000, 2) == pytest.approx(0)
    assert responses.drr_at(10, 5_000, 2) - responses.drr_at(20, 5_000, 2) == pytest.approx(
        20 * math.log10(2)
    )
    assert responses.drr_at(10, 5_000, 1) - responses.drr_at(10, 5_000, 2) == pytest.approx(
        10 * math.log10(2)
    )
    for bad in ((0, 1, 1), (1, -1, 1), (1, 1, float('nan'))):
        with pytest.raises(ResonanceError, match='positive'):
            responses.drr_at(*bad)


# ---- making rooms


def test_statistical_rooms_are_what_was_asked():
    rng = np.random.default_rng(11)
    asked = np.exp(rng.uniform(math.log(0.3), math.log(6), 300))
    drr_db = rng.uniform(-12, 12, 300)
    found = [measure_room(statistical_room(t, rng, d)) for t, d in zip(asked, drr_db)]
    errors = np.array([f.rt60_s for f in found]) / asked - 1
    assert np.median(np.abs(errors)) < 0.03 and np.abs(errors).max() < 0.15
    assert abs(np.mean(errors)) < 0.01, 'no bias'
    assert np.abs([f.drr_db - d for f, d in zip(found, drr_db)]).max() < 0.1
    edt = np.array([f.edt_s for f in found]) / asked
    assert 0.9 < np.median(edt) < 1.1


def test_statistical_rooms_have_the_asked_octaves():
    found = [
        responses.octave_rt60_s(statistical_room(1.5, np.random.default_rng(s), warmth=1.3, damping=0.5))
        for s in range(12)
    ]
    median = {c: np.median([f[c] for f in found]) for c in responses.OCTAVES_HZ}
    assert median[125] == pytest.approx(1.5 * 1.3, rel=0.1) and median[4_000] == pytest.approx(
        1.5 * 0.5, rel=0.1
    )
    assert sorted(median.values(), reverse=True)[:2] == [median[125], median[250]]


def test_reflections_come_ever_denser():
    rng = np.random.default_rng(0)
    mix = 0.04
    times = (
        np.concatenate([np.flatnonzero(rooms._first_reflections(RATE, mix, rng)) for _ in range(400)])
        / RATE
        / mix
    )
    share = np.histogram(times, bins=[0.3, 0.5, 0.7, 0.9])[0] / np.sum((times > 0.3) & (times < 0.9))
    expected = np.diff(np.array([0.3, 0.5, 0.7, 0.9]) ** 3) / (0.9**3 - 0.3**3)
    np.testing.assert_allclose(share, expected, atol=0.03)
    energy = np.mean([rooms._first_reflections(RATE, mix, rng)[160:480] ** 2 for _ in range(2_000)])
    t = np.arange(160, 480) / RATE / mix
    assert energy == pytest.approx(np.mean(1 - t**2), rel=0.1)


def test_octave_weights_add_up():
    weights = rooms._weights(4_000)
    np.testing.assert_allclose(weights.sum(0), 1, atol=1e-6)
    assert rooms._noise_octaves(64_000, np.random.default_rng(0)).sum(0).std() == pytest.approx(1, rel=0.02)


def test_with_rt60_on_every_room(every_room):
    errors = []
    refused = 0
    for i, (_, h, facts) in enumerate(every_room[::2]):
        wanted = facts.rt60_s * (0.5, 0.75, 1.4, 2.0)[i % 4]
        try:
            made = with_rt60(h, wanted)
        except ResonanceError:
            refused += 1
            continue
        assert np.isfinite(made).all() and np.array_equal(made[:40], h[:40])
        errors.append(abs(measure_room(made).rt60_s / wanted - 1))
    assert np.median(errors) < 0.02 and max(errors) <= 0.1
    assert refused <= 0.03 * len(every_room) / 2


def test_with_rt60_does_not_lift_the_noise():
    noisy = np.concatenate([[1.0], 0.1 * decaying(0.8, 2.5, 4, -50)])
    made = with_rt60(noisy, 2.0)
    level = lambda x: 10 * np.log10(np.mean(np.square(x, dtype=float)))
    assert measure_room(made).rt60_s == pytest.approx(2.0, rel=0.1)
    assert level(made[int(1.7 * RATE) : int(1.8 * RATE)]) - level(made[100:1_700]) < -45
    ratio = {
        c: a / b
        for (c, a), b in zip(responses.octave_rt60_s(made).items(), responses.octave_rt60_s(noisy).values())
    }
    assert all(1.9 < r < 3.2 for c, r in ratio.items() if c >= 250), (
        'each octave is stretched alike (0.8 to 2 s is a factor of 2.5)'
    )


@pytest.mark.parametrize(
    'make, message',
    [
        (lambda: with_rt60(decaying(0.5, 1.0), 5.0), 'choose another room'),
        (lambda: with_rt60(decaying(0.5, 1.0), -1), 'between 0.05 and 20'),
        (lambda: with_rt60(np.r_[1.0, np.zeros(4_000)], 1.0), 'nothing after'),
        (lambda: with_drr(np.r_[1.0, np.zeros(4_000)], 1.0), 'nothing after'),
        (
            lambda: with_rt60(np.r_[1.0, np.random.default_rng(0).normal(size=16_000) * 0.1], 1.0),
            'noise floor',
        ),
        (lambda: with_drr(decaying(0.5, 1.0), math.inf), 'finite'),
        (lambda: statistical_room(math.nan, rng_for(0)), 'between 0.05 and 20'),
        (lambda: statistical_room(1, rng_for(0), damping=0), 'damping'),
        (lambda: statistical_room(1, rng_for(0), math.nan), 'finite'),
        (lambda: shoebox_room('barn', 1, rng_for(0)), 'unknown kind'),
        (lambda: shoebox_room('club', 1, rng_for(0), 500), 'distance'),
        (lambda: shoebox_room('club', 1, rng_for(0), math.nan), 'distance'),
        (lambda: rooms.open_air(rng_for(0), math.nan), '1 and 500'),
        (lambda: reverberate(np.zeros(0), np.ones(1)), 'sound must be'),
        (lambda: reverberate(np.ones(9), np.ones((2, 2))), 'response must be'),
        (lambda: reverberate(np.full(9, np.inf), np.ones(1)), 'NaN or infinite'),
        (lambda: measure_room(np.full(99, np.nan)), 'NaN'),
    ],
)
def test_nonsense_is_refused_in_one_line(make, message):
    with pytest.raises(ResonanceError, match=message) as e:
        make()
    assert '\n' not in str(e.value)


def test_tiny_responses_are_measured_or_unknown():
    for x in ([1.0], [0.0, 1.0], [1.0] + 200 * [0.0], list(np.r_[1.0, 0.1 * np.ones(50)])):
        facts = measure_room(np.array(x))
        assert math.isnan(facts.rt60_s) and (facts.c50_db == math.inf)


def test_boxes_have_the_asked_decay_and_distance():
    pytest.importorskip('pyroomacoustics')
    for kind, hall in rooms.ROOM_KINDS.items():
        for number in range(2):
            rng = rng_for(number, kind)
            wanted = math.exp(rng.uniform(*np.log(hall.rt60_s)))
            h = shoebox_room(kind, wanted, rng)
            facts = measure_room(h)
            assert facts.rt60_s == pytest.approx(wanted, rel=0.1)
            assert direct_index(h) == 0 and np.sum(h[:40].astype(float) ** 2) == pytest.approx(1, rel=1e-4)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(sorted(rooms.ROOM_KINDS)), st.floats(0, 1))
def test_listeners_sit_in_the_room_at_the_distance(seed, kind, u):
    hall = rooms.ROOM_KINDS[kind]
    distance = 0.5 + u * (hall.length_m[1] - 0.5)
    size, source, listener = rooms._box(hall, distance, np.random.default_rng(seed))
    assert np.linalg.norm(source - listener) == pytest.approx(distance)
    assert ((source > 0.3) & (source < size - 0.3) & (listener > 0.3) & (listener < size - 0.3)).all()


def test_a_box_arrives_when_geometry_says():
    pra = pytest.importorskip('pyroomacoustics')
    size = np.array([20.0, 12, 5])
    source = np.array([1.0, 6, 3])
    listener = np.array([11.0, 5, 1.5])
    raw = rooms._traced(size, source, listener, 0.8, 1)
    delay = (
        np.linalg.norm(source - listener) / pra.constants.get('c') * RATE
        + pra.constants.get('frac_delay_length') // 2
    )
    assert direct_index(raw) == pytest.approx(delay, abs=4)


def test_boxes_leave_every_generator_alone():
    pra = pytest.importorskip('pyroomacoustics')
    pra.random.seed(7)
    expected = pra.random.get_rng().random(3)
    pra.random.seed(7)
    np.random.seed(5)
    before = np.random.get_state()[1].copy()
    first = shoebox_room('living-room', 0.4, rng_for(1))
    assert np.array_equal(pra.random.get_rng().random(3), expected)
    assert np.array_equal(np.random.get_state()[1], before)
    pra.random.seed(99)
    assert np.array_equal(shoebox_room('living-room', 0.4, rng_for(1)), first)


def test_without_pyroomacoustics_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, 'pyroomacoustics', None)
    with pytest.raises(MissingExtra, match=r'resonance_nb\[rooms\]'):
        shoebox_room('club', 0.8, rng_for(0))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(1, 500))
def test_the_open_air_has_ground_and_echoes_only(seed, distance_m):
    h = rooms.open_air(np.random.default_rng(seed), distance_m)
    assert h.shape == (RATE,) and direct_index(h) == 0 and np.isfinite(h).all()
    assert np.sum(h[:40].astype(float) ** 2) == pytest.approx(1, rel=1e-4)
    assert np.count_nonzero(h[40:900]) <= 1, 'between the ground and the first echo there is nothing'
    assert np.abs(h[900:]).max() > 0 and measure_room(h).drr_db > -6


def test_same_seed_same_room_in_another_process(tmp_path):
    "To the last digits, which other threads and libraries may turn; another draw would be another room."
    code = (
        'import sys; import numpy as np; from resonance_nb import rooms; from resonance_nb.core import rng_for;'
        'np.savez(sys.argv[1], statistical=rooms.statistical_room(1.2, rng_for(5, "room"), -3), open=rooms.open_air(rng_for(5), 40),'
        'longer=rooms.with_rt60(rooms.statistical_room(0.6, rng_for(6)), 1.0), box=rooms.shoebox_room("club", 0.7, rng_for(7)))'
    )
    pytest.importorskip('pyroomacoustics')
    subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', code, str(tmp_path / 'there.npz')],
        check=True,
        env={**os.environ, 'PYTHONHASHSEED': '7'},
    )
    here = {
        'statistical': statistical_room(1.2, rng_for(5, 'room'), -3),
        'open': rooms.open_air(rng_for(5), 40),
        'longer': with_rt60(statistical_room(0.6, rng_for(6)), 1.0),
        'box': shoebox_room('club', 0.7, rng_for(7)),
    }
    with np.load(tmp_path / 'there.npz') as there:
        for name, made in here.items():
            assert made.std() > 1e-3 and there[name].dtype == made.dtype
            np.testing.assert_allclose(
                there[name], made, rtol=0, atol=1e-4 * np.abs(made).max(), err_msg=name
            )


# ---- applying


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 30_000), st.integers(1, 30_000))
def test_convolution_is_scipys(seed, n, m):
    rng = np.random.default_rng(seed)
    x = rng.uniform(-1, 1, n).astype(np.float32)
    h = rng.normal(size=m).astype(np.float32)
    h /= np.sqrt(np.sum(h**2))
    kept = x.copy(), h.copy()
    out = reverberate(x, h)
    assert out.dtype == np.float32 and out.shape == (n,)
    np.testing.assert_allclose(out, signal.fftconvolve(x.astype(float), h.astype(float))[:n], atol=1e-5)
    assert np.array_equal(x, kept[0]) and np.array_equal(h, kept[1])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 9_000))
def test_nothing_comes_before_its_cause(seed, at):
    rng = np.random.default_rng(seed)
    x = np.zeros(10_000, np.float32)
    x[at:] = rng.normal(size=10_000 - at)
    out = reverberate(x, statistical_room(0.5, rng))
    assert np.abs(out[:at]).max() < 1e-4
    assert not reverberate(np.zeros(100), [1.0, 0.5]).any()


def test_the_past_is_heard_in_the_clip():
    music = np.random.default_rng(1).normal(size=3 * RATE).astype(np.float32)
    h = statistical_room(2.0, rng_for(1), -6)
    whole = reverberate(music, h)[RATE:]
    alone = reverberate(music[RATE:], h)
    tail = reverberate(np.r_[music[:RATE], np.zeros(2 * RATE, np.float32)], h)[RATE:]
    np.testing.assert_allclose(whole, alone + tail, atol=1e-3)
    assert np.std(tail[:1_600]) > 0.2 * np.std(alone[:1_600])


# ---- the bank


def test_every_room_is_what_the_rule_says(every_room, banks):
    assert len(every_room) >= 20
    for _, h, facts in every_room:
        assert h.dtype == np.float32 and not h.flags.writeable and direct_index(h) == 0
        assert 0.15 <= facts.rt60_s <= 8 and facts == measure_room(h)
    of = [set(bank.ids) for bank in banks.values()]
    assert not (of[0] & of[1] or of[0] & of[2] or of[1] & of[2])
    known = default_corpus().rir
    for split, bank in banks.items():
        found = {*bank.ids, *bank.device_ids, *(id for id, _ in bank.skipped)}
        assert found == set(default_corpus().split('rir', split).index), 'used or told'
        assert all(known.at[id, 'group'] != 'device' for id in bank.ids) and all(
            why and '\n' not in why for _, why in bank.skipped
        )


def test_devices_are_short_and_flat_on_average(banks):
    for bank in banks.values():
        for id in bank.device_ids:
            h = bank.device(id)
            gain = np.abs(signal.freqz(h, worN=np.arange(300, 3_401), fs=RATE)[1])
            assert np.sqrt(np.mean(gain**2)) == pytest.approx(1, rel=1e-3)
            assert len(h) <= RATE // 4 and direct_index(h) == 0 and not h.flags.writeable


@pytest.fixture
def small(tmp_path):
    (tmp_path / 'rir').mkdir()
    rows = []
    for number in range(0, 24, 2):
        samples, row = render_room(number)
        save(tmp_path / row['file'], samples)
        rows.append(row)
    return write_corpus(tmp_path, rir=pd.DataFrame(rows)), rows


def test_broken_files_are_told_not_fatal(small, tmp_path):
    corpus, rows = small
    ids = list(corpus.split('rir', 'train').index)
    files = dict(zip(corpus.rir.index, corpus.rir['file']))
    (tmp_path / files[ids[0]]).unlink()
    (tmp_path / files[ids[1]]).write_bytes(b'no sound')
    save(tmp_path / files[ids[2]], np.zeros(8_000, np.float32))
    bank = RoomBank(corpus, 'train')
    assert not bank.skipped, 'nothing is decoded before it is asked for'
    assert bank.ids == ids[3:]
    assert [id for id, _ in bank.skipped] == ids[:3] and 'silent' in dict(bank.skipped)[ids[2]]
    assert bank.response(ids[3]) is bank.response(ids[3])
    with pytest.raises(ResonanceError, match='no usable room'):
        bank.response(ids[0])
    for id in ids[3:]:
        (tmp_path / files[id]).unlink()
    empty = RoomBank(corpus, 'train')
    for _ in range(2):
        with pytest.raises(ResonanceError, match='no usable room response'):
            empty.ids
    assert len(empty.skipped) == len(ids) and empty.device_ids == []


def test_pipes_dishes_and_hiss_are_no_rooms():
    t = np.arange(2 * RATE) / RATE
    rng = np.random.default_rng(0)
    low, high = (
        signal.sosfilt(signal.butter(4, band, 'bandpass', fs=RATE, output='sos'), rng.normal(size=len(t)))
        for band in ((430, 520), (900, 1_200))
    )
    pipe = np.r_[1.0, 0.1 * (low * 10 ** (-3 * t / 3) + high * 10 ** (-3 * t / 0.5))]
    for bad, message in (
        (pipe, 'which no room does'),
        (np.r_[1.0, 0.1 * decaying(1.0, 2.0, 0, -15)], 'above its noise floor'),
        (np.r_[1.0, 0.2 * decaying(0.05, 0.5)], 'no room for a concert'),
        (np.r_[1.0, 0.2 * decaying(12.0, 13)], 'no room for a concert'),
    ):
        with pytest.raises(ResonanceError, match=message):
            rooms._usable(bad)
    with pytest.raises(ResonanceError, match='no microphone'):
        rooms._as_device(decaying(2.0, 2.0))
