"""The chain: every stage against physics, closed formulas, brute force or another library."""

import json
import math
import os
import subprocess
import sys
from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import integrate, signal

from resonance_nb import dynamics, warp
from resonance_nb.chain import STAGES, apply, stage_from_dict, stage_to_dict
from resonance_nb.codec import Codec, Quantiser, code_and_decode, codec_delay, quantise
from resonance_nb.dynamics import (
    AutoGain,
    Compressor,
    HardClip,
    Limiter,
    Saturator,
    auto_gain,
    compress,
    compressor_curve_db,
    hard_clip,
    limit,
    saturate,
)
from resonance_nb.stages import (
    Air,
    Equaliser,
    Gain,
    air_loss_db,
    amplify,
    colour,
    equalise,
    equaliser_response,
    equaliser_sos,
    through_air,
)
from resonance_nb.warp import ClockSkew, Drift, drift, skew
from resonance_nb.core import ResonanceError, rng_for
from resonance_nb.starter import render_piece

FS = 16_000
EXAMPLES = {
    'equalise': Equaliser(
        60.0, 2, 6_000.0, 4, ((300.0, 4.0, 1.0), (2_000.0, -6.0, 2.0)), (90.0, 9.0), (3_000.0, -3.0)
    ),
    'compress': Compressor(-30.0, 6.0, 0.005, 0.2, 9.0),
    'limit': Limiter(-6.0, 0.1),
    'through_air': Air(60.0),
    'auto_gain': AutoGain(-18.0, 20.0, 0.2),
    'hard_clip': HardClip(-6.0),
    'saturate': Saturator('tanh', 12.0),
    'amplify': Gain(-3.0),
    'code_and_decode': Codec('opus', 16),
    'quantise': Quantiser(8),
    'drift': Drift(1.015, -12.0),
    'skew': ClockSkew(80.0),
}
BOUND = {
    'limit': 10 ** (-6 / 20),
    'hard_clip': 10 ** (-6 / 20),
    'saturate': 1.0,
    'code_and_decode': 1.0,
    'quantise': 1.0,
}


@pytest.fixture(scope='module')
def rag():
    x = render_piece('joplin/maple_leaf_rag.mxl')[0][: 8 * FS]
    return x * np.float32(0.125 / np.sqrt(np.mean(x**2)))


def seconds(n=FS):
    return np.arange(n) / FS


def tone(freq_hz, level_db=0.0, n=FS):
    return (10 ** (level_db / 20) * np.sin(2 * np.pi * freq_hz * seconds(n))).astype(np.float32)


def rms_db(x):
    return 10 * np.log10(np.mean(np.asarray(x, np.float64) ** 2))


def frequency(x):
    "The frequency of one tone, Hz, by its phase: exact to a few thousandths."
    analytic = signal.hilbert(np.asarray(x, np.float64))[1_000:-1_000]
    return np.polyfit(np.arange(len(analytic)), np.unwrap(np.angle(analytic)), 1)[0] * FS / (2 * np.pi)


def lag(y, x, most=2_000):
    "How many samples y comes after x."
    fit = signal.correlate(np.asarray(y, np.float64), np.asarray(x, np.float64), 'full', 'fft')
    middle = len(x) - 1
    return int(np.argmax(fit[middle - most : middle + most + 1])) - most


# ---- what all stages share


def test_the_examples_cover_every_stage():
    assert EXAMPLES.keys() == STAGES.keys()
    assert all(type(p) is STAGES[name][0] for name, p in EXAMPLES.items())


@pytest.mark.parametrize('name', STAGES)
@pytest.mark.parametrize('n', [0, 1, 2, 15, 16, 17, 333, 5_000])
def test_length_type_and_input_are_kept(name, n):
    rng = np.random.default_rng(n)
    x = rng.uniform(-1, 1, n).astype(np.float32)
    kept = x.copy()
    y = STAGES[name][1](x, rng_for(0), EXAMPLES[name])
    assert y.shape == (n,) and y.dtype == np.float32 and np.isfinite(y).all()
    assert n == 0 or np.abs(y).max() <= BOUND.get(name, np.inf)
    np.testing.assert_array_equal(x, kept)
    assert not np.shares_memory(x, y)


@pytest.mark.parametrize('name', STAGES)
@pytest.mark.parametrize(
    'make',
    [
        lambda: np.zeros(3_000),
        lambda: np.ones(3_000),
        lambda: np.full(3_000, 1e-30),
        lambda: np.full(3_000, 1e5),
        lambda: [0.0, 0.5, -0.5],
    ],
    ids=['silence', 'constant', 'tiny', 'huge', 'list'],
)
def test_odd_sounds_stay_finite(name, make):
    y = STAGES[name][1](make(), rng_for(0), EXAMPLES[name])
    assert len(y) == len(make()) and np.isfinite(y).all() and np.abs(y).max() <= BOUND.get(name, np.inf)


@pytest.mark.parametrize('name', [n for n in STAGES if n != 'quantise'])
def test_silence_stays_silence(name):
    y = STAGES[name][1](np.zeros(4_000, np.float32), rng_for(0), EXAMPLES[name])
    assert np.abs(y).max() < 1e-4


@pytest.mark.parametrize('name', STAGES)
@pytest.mark.parametrize('bad', [[0.1, np.nan], [np.inf, 0.0], [-np.inf], [1e7], [[0.1, 0.2]], 0.5], ids=repr)
def test_bad_sound_is_refused_in_one_line(name, bad):
    with pytest.raises(ResonanceError) as e:
        STAGES[name][1](np.asarray(bad), rng_for(0), EXAMPLES[name])
    assert '\n' not in str(e.value)


@pytest.mark.parametrize('name', STAGES)
def test_same_seed_same_bytes_and_no_global_state(name, rag):
    np.random.seed(3)
    state = np.random.get_state()[1].copy()
    a, b = (STAGES[name][1](rag[:30_000], rng_for(5, 'x'), EXAMPLES[name]) for _ in range(2))
    assert a.tobytes() == b.tobytes()
    np.testing.assert_array_equal(np.random.get_state()[1], state)


def test_another_process_gives_the_same_sounds(tmp_path):
    "To the last digits, which other threads and libraries may turn, and a rounding with them; another draw would be another sound."
    code = (
        'import sys, numpy as np; sys.path.insert(0, "tests"); from test_chain import EXAMPLES; from resonance_nb.chain import apply\n'
        'x = (0.3 * np.sin(np.arange(20_000) ** 1.3 / 50)).astype("float32")\n'
        'np.savez(sys.argv[1], **{name: apply(x, np.random.default_rng(4), [(name, p)]) for name, p in EXAMPLES.items()})'
    )
    subprocess.run(
        [sys.executable, '-c', code, str(tmp_path / 'there.npz')],
        check=True,
        env={**os.environ, 'PYTHONHASHSEED': '7'},
    )
    x = (0.3 * np.sin(np.arange(20_000) ** 1.3 / 50)).astype('float32')
    with np.load(tmp_path / 'there.npz') as there:
        for name, p in EXAMPLES.items():
            here = apply(x, np.random.default_rng(4), [(name, p)])
            assert here.shape == there[name].shape and here.std() > 0.01
            assert (np.abs(there[name] - here) > 1e-4).mean() < 1e-3, name


def test_importing_is_cheap():
    code = 'import sys, resonance_nb.chain; print([m for m in ("scipy", "pandas", "torch", "av", "soxr") if m in sys.modules])'
    assert (
        subprocess.run(
            [sys.executable, '-c', code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == '[]'
    )


# ---- parameters


@pytest.mark.parametrize(
    'make',
    [
        lambda: Gain('3'),
        lambda: Gain(None),
        lambda: Gain(math.nan),
        lambda: Gain(math.inf),
        lambda: Gain(True),
        lambda: Compressor(-20, 0.5, 0.01, 0.1),
        lambda: Compressor(-20, 2, -0.01, 0.1),
        lambda: Compressor(-20, 2, 0.01, 0.0),
        lambda: Limiter(-3.0, 0.0),
        lambda: Limiter(-3.0, 0.1, 1.0),
        lambda: Air(-1.0),
        lambda: AutoGain(-20.0, -5.0, 0.1),
        lambda: HardClip(3.0),
        lambda: Saturator('cubic', 3.0),
        lambda: Saturator('tanh', 99.0),
        lambda: Codec('vorbis', 32),
        lambda: Codec('aac', 500),
        lambda: Codec('opus', 0),
        lambda: Quantiser(1),
        lambda: Quantiser(32),
        lambda: Drift(3.0),
        lambda: Drift(1.0, 900.0),
        lambda: ClockSkew(1e6),
        lambda: Equaliser(9_000.0),
        lambda: Equaliser(0.0),
        lambda: Equaliser(100.0, 0),
        lambda: Equaliser(peaks=((100.0, 3.0),)),
        lambda: Equaliser(peaks=(100.0, 3.0, 1.0)),
        lambda: Equaliser(peaks=((100.0, 3.0, 0.0),)),
        lambda: Equaliser(low_shelf=(100.0,)),
        lambda: Equaliser(high_shelf=3.0),
        lambda: Equaliser(peaks=((100.0, math.nan, 1.0),)),
        lambda: Equaliser(peaks=None),
        lambda: Equaliser(100.0, 2.5),
        lambda: Quantiser(7.5),
    ],
)
def test_bad_parameters_are_refused_in_one_line(make):
    with pytest.raises(ResonanceError) as e:
        make()
    assert '\n' not in str(e.value)


def test_numpy_numbers_become_plain():
    p = Equaliser(np.float32(100), np.int64(2), peaks=[[np.float64(500), 3, np.float32(1)]])
    assert json.loads(json.dumps(stage_to_dict('equalise', p)))['peaks'] == [[500.0, 3, 1.0]]
    assert type(Quantiser(np.int64(8)).bits) is int and hash(p) == hash(
        Equaliser(100.0, 2, peaks=((500.0, 3, 1.0),))
    )


@pytest.mark.parametrize('name', STAGES)
def test_steps_travel_through_json(name):
    told = json.loads(json.dumps(stage_to_dict(name, EXAMPLES[name]), allow_nan=False))
    assert told.keys() == {'stage', *(f.name for f in fields(EXAMPLES[name]))}
    assert stage_from_dict(told) == (name, EXAMPLES[name]) and told['stage'] == name


@pytest.mark.parametrize(
    'd, match',
    [
        ({'stage': 'reverb'}, 'unknown stage'),
        ({}, 'unknown stage None'),
        ('limit', 'a step is a dictionary'),
        ({'stage': []}, 'unknown stage'),
        ({'stage': 'limit', 'ceiling': -3}, "no parameter 'ceiling'"),
        ({'stage': 'limit', 'ceiling_db': -3}, "lacks a parameter.*release_s"),
        ({'stage': 'amplify', 'gain_db': 'loud'}, 'must be a number'),
        ({'stage': 'amplify', 'gain_db': 3, 'LIMITS': {}}, "no parameter 'LIMITS'"),
    ],
)
def test_bad_steps_are_refused(d, match):
    with pytest.raises(ResonanceError, match=match):
        stage_from_dict(d)


def test_apply_runs_the_steps_in_order(rag):
    steps = [('amplify', Gain(20.0)), ('hard_clip', HardClip(-6.0)), ('amplify', Gain(-20.0))]
    np.testing.assert_array_equal(
        apply(rag, None, steps),
        np.clip(rag * np.float32(10), -np.float32(10**-0.3), np.float32(10**-0.3)) * np.float32(0.1),
    )
    assert np.abs(apply(rag, None, []) - rag).max() == 0 and not np.shares_memory(apply(rag, None, []), rag)
    assert apply(np.zeros(0), None, steps).shape == (0,)
    with pytest.raises(ResonanceError, match='takes Gain parameters, not HardClip'):
        apply(rag, None, [('amplify', HardClip(-6.0))])
    with pytest.raises(ResonanceError, match='unknown stage'):
        apply(rag, None, [('Amplify', Gain(0.0))])


# ---- equaliser

HZ = st.floats(20, 7_800)
EQUALISERS = st.builds(
    Equaliser,
    st.none() | HZ,
    st.integers(1, 8),
    st.none() | HZ,
    st.integers(1, 8),
    st.lists(st.tuples(HZ, st.floats(-24, 24), st.floats(0.2, 10)), max_size=4),
    st.none() | st.tuples(HZ, st.floats(-24, 24)),
    st.none() | st.tuples(HZ, st.floats(-24, 24)),
)


@settings(max_examples=60, deadline=None)
@given(EQUALISERS)
def test_response_is_scipys(p):
    sos = equaliser_sos(p)
    f = np.geomspace(10, 7_990, 300)
    assert sos.shape[1] == 6
    if len(sos):
        _, want = signal.freqz_sos(sos, worN=f, fs=FS)
        np.testing.assert_allclose(equaliser_response(p, f), want, rtol=1e-6, atol=1e-9)
        poles = np.concatenate([np.roots(s[3:]) for s in sos])
        assert np.abs(poles).max() < 1
    else:
        assert (equaliser_response(p, f) == 1).all()


@pytest.mark.parametrize('order', [1, 2, 4, 8])
@pytest.mark.parametrize('hz', [30.0, 150.0, 3_400.0, 7_000.0])
def test_passes_are_butterworth(order, hz):
    f = np.geomspace(10, 7_900, 200)
    ratio = np.tan(np.pi * f / FS) / np.tan(np.pi * hz / FS)  # the bilinear transform bends the axis
    low = equaliser_response(Equaliser(low_pass_hz=hz, low_pass_order=order), f)
    high = equaliser_response(Equaliser(hz, order), f)
    np.testing.assert_allclose(np.abs(low) ** 2, 1 / (1 + ratio ** (2 * order)), rtol=1e-5, atol=1e-12)
    np.testing.assert_allclose(np.abs(high) ** 2, 1 / (1 + ratio ** (-2.0 * order)), rtol=1e-5, atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(st.floats(40, 6_000), st.floats(-20, 20), st.floats(0.3, 8))
def test_peaks_and_shelves_have_their_gain(hz, gain_db, q):
    def at(p, f):
        return float(20 * np.log10(np.abs(equaliser_response(p, np.array([f]))))[0])

    assert at(Equaliser(peaks=((hz, gain_db, q),)), hz) == pytest.approx(gain_db, abs=1e-6)
    assert (
        at(Equaliser(peaks=((hz, gain_db, q),)), 0.0)
        == pytest.approx(0, abs=1e-6)
        == at(Equaliser(peaks=((hz, gain_db, q),)), FS / 2)
    )
    low = Equaliser(low_shelf=(hz, gain_db))
    high = Equaliser(high_shelf=(hz, gain_db))
    for p, full, none in ((low, 0.0, FS / 2), (high, FS / 2, 0.0)):
        assert at(p, full) == pytest.approx(gain_db, abs=1e-6)
        assert at(p, none) == pytest.approx(0, abs=1e-6)
        assert at(p, hz) == pytest.approx(gain_db / 2, abs=1e-6)  # half of the gain at the corner


@pytest.mark.parametrize('q', [0.7, 2.0, 6.0])
def test_the_width_of_a_peak_is_its_q(q):
    "Between the points of half the gain in dB there are f/Q hertz (narrow peaks at low frequencies, where nothing is bent)."
    f = np.linspace(50, 2_500, 200_000)
    gain = 20 * np.log10(np.abs(equaliser_response(Equaliser(peaks=((500.0, 12.0, q),)), f)))
    inside = f[gain >= 6]
    assert inside[-1] - inside[0] == pytest.approx(500 / q, rel=0.03)


@settings(max_examples=20, deadline=None)
@given(EQUALISERS, st.integers(0, 99))
def test_filtering_is_multiplying_the_spectrum(p, seed):
    x = np.random.default_rng(seed).standard_normal(4_000).astype(np.float32) * 0.1
    n = 1 << 16  # four seconds: the slowest filter has rung out
    want = np.fft.irfft(np.fft.rfft(x, n) * equaliser_response(p, np.fft.rfftfreq(n, 1 / FS)), n)[:4_000]
    np.testing.assert_allclose(equalise(x, None, p), want, atol=2e-4 * max(1, np.abs(want).max()))


def test_the_response_measured_with_a_sweep():
    p = EXAMPLES['equalise']
    n = 8 * FS
    t = seconds(n)
    # 20 Hz to 7.8 kHz, exponential
    sweep = 0.5 * np.sin(2 * np.pi * 20 * 8 / np.log(390) * (390 ** (t / 8) - 1))
    x = np.fft.rfft(sweep, 2 * n)
    y = np.fft.rfft(equalise(sweep.astype('f4'), None, p), 2 * n)
    f = np.fft.rfftfreq(2 * n, 1 / FS)
    for hz in np.geomspace(40, 7_000, 20):
        near = np.abs(f - hz) < 2
        gain = 10 * np.log10((np.abs(y[near]) ** 2).sum() / (np.abs(x[near]) ** 2).sum())
        assert gain == pytest.approx(20 * np.log10(abs(equaliser_response(p, np.array([hz]))[0])), abs=0.3)


# ---- compressor


@settings(max_examples=60, deadline=None)
@given(arrays(np.float64, st.integers(1, 300), elements=st.floats(0, 2)), st.floats(0.001, 3))
def test_the_envelope_is_the_recursion(peaks, release_s):
    alpha = math.exp(-1 / (release_s * 1_000))
    want = []
    y = 0.0
    for m in np.maximum(peaks, 1e-6):
        y = max(m, alpha * y)
        want.append(y)
    np.testing.assert_allclose(np.exp(dynamics.released(peaks, release_s)), np.maximum(want, 0), rtol=1e-9)


def test_gains_are_straight_lines_between_the_middles():
    g = np.random.default_rng(0).uniform(0, 2, 50)
    for n in (1, 790, 800):
        np.testing.assert_allclose(
            dynamics.per_sample(g[: -(-n // 16)], n),
            np.interp(np.arange(n), 16 * np.arange(50) + 7.5, g)[:n] if n > 16 else g[:1],
            atol=1e-6,
        )


@settings(max_examples=100, deadline=None)
@given(st.floats(-60, 0), st.floats(1, 100), st.floats(0.01, 30), st.floats(-100, 20))
def test_the_curve_is_the_tutorials(threshold, ratio, knee, level):
    "Equation 4 of Giannoulis, Massberg and Reiss, case by case, as output minus input."
    if 2 * (level - threshold) < -knee:
        out = level
    elif 2 * abs(level - threshold) <= knee:
        out = level + (1 / ratio - 1) * (level - threshold + knee / 2) ** 2 / (2 * knee)
    else:
        out = threshold + (level - threshold) / ratio
    assert compressor_curve_db(Compressor(threshold, ratio, 0.01, 0.1, 0.0, knee), level) == pytest.approx(
        out - level, abs=1e-6
    )


@pytest.mark.parametrize(
    'p',
    [
        Compressor(-20.0, 4.0, 0.005, 1.0, 0.0, 6.0),
        Compressor(-30.0, 2.0, 0.02, 1.0, 5.0, 0.0),
        Compressor(-12.0, 20.0, 0.001, 1.0, 0.0, 12.0),
    ],
)
@pytest.mark.parametrize('hz', [100.0, 443.0, 2_000.0 / 1.7])
def test_static_curve_measured_with_tones(p, hz):
    for level in np.arange(-42.0, 0.1, 3):
        x = tone(hz, level, 2 * FS)
        gain = rms_db(compress(x, None, p)[FS:]) - rms_db(x[FS:])
        assert gain == pytest.approx(float(compressor_curve_db(p, level)) + p.makeup_db, abs=0.2)


@pytest.mark.parametrize('attack_s', [0.005, 0.02, 0.1])
def test_attack_time_on_a_step(attack_s):
    p = Compressor(-30.0, 4.0, attack_s, 0.3, 0.0, 0.0)
    x = tone(1_000) * np.where(seconds() < 0.3, 0.02, 0.5).astype('f4')
    # the gain can be read where the sound is large
    crest = np.abs(x) > 0.9 * np.where(seconds() < 0.3, 0.02, 0.5)
    t = seconds()[crest]
    g = 20 * np.log10(compress(x, None, p)[crest] / x[crest])
    assert g[t < 0.29].max() == pytest.approx(float(compressor_curve_db(p, 20 * np.log10(0.02))), abs=0.05)
    last = g[t > 0.95].mean()
    reached = t[(t > 0.299) & (g <= 0.632 * last)][0] - 0.3
    assert reached == pytest.approx(attack_s, rel=0.15, abs=0.001)


@pytest.mark.parametrize('release_s', [0.05, 0.2, 0.5])
def test_release_time_on_a_step(release_s):
    "The envelope falls to 37 %, which is 8.7 dB, in the release time; the curve says what gain that is."
    p = Compressor(-50.0, 3.0, 0.002, release_s, 0.0, 0.0)
    n = 4 * FS
    level = np.where(seconds(n) < 0.5, 0.8, 0.004)
    x = tone(1_000, n=n) * level.astype('f4')
    crest = np.abs(x) > 0.9 * level
    t = seconds(n)[crest]
    g = 20 * np.log10(compress(x, None, p)[crest] / x[crest])
    loud_db = 20 * np.log10(0.8)
    fallen = float(compressor_curve_db(p, loud_db - 8.686))
    reached = t[(t > 0.5) & (g >= fallen)][0] - 0.5
    assert reached == pytest.approx(release_s, rel=0.15)


def test_the_whole_compressor_against_a_loop(rag):
    p = EXAMPLES['compress']
    x = rag[:20_000]
    a = math.exp(-1 / (p.attack_s * 1_000))
    alpha = math.exp(-1 / (p.release_s * 1_000))
    y = 0.0
    s = None
    nodes = []
    for k in range(0, len(x), 16):
        y = max(float(np.abs(x[k : k + 16]).max()), 1e-6, alpha * y)
        g = float(compressor_curve_db(p, 20 * math.log10(y)))
        s = g if s is None else a * s + (1 - a) * g
        nodes.append(10 ** ((s + p.makeup_db) / 20))
    want = x * np.interp(np.arange(len(x)), 16 * np.arange(len(nodes)) + 7.5, nodes)
    np.testing.assert_allclose(compress(x, None, p), want, atol=1e-6)


def test_crest_factor_falls(rag):
    def crest_db(x):
        return 20 * np.log10(np.abs(x).max()) - rms_db(x)

    before = crest_db(rag)
    tamed = {
        'compress': compress(rag, None, Compressor(-32.0, 8.0, 0.001, 0.2)),
        'limit': limit(rag, None, Limiter(-18.0, 0.05)),
        'clip': hard_clip(rag, None, HardClip(-15.0)),
        'tanh': saturate(rag, None, Saturator('tanh', 20.0)),
    }
    assert all(crest_db(y) < before - 2 for y in tamed.values()), {
        k: crest_db(y) for k, y in tamed.items()
    } | {'before': before}


# ---- limiter


@settings(max_examples=200, deadline=None)
@given(
    arrays(np.float32, st.integers(1, 400), elements=st.floats(-4, 4, width=32)),
    st.floats(-40, 6),
    st.floats(0.001, 1),
    st.sampled_from([0.0, 0.001, 0.002, 0.005, 0.02]),
)
def test_the_limiter_never_passes_its_ceiling(x, ceiling_db, release_s, lookahead_s):
    y = limit(x, None, Limiter(ceiling_db, release_s, lookahead_s))
    ceiling = 10 ** (ceiling_db / 20)
    assert np.abs(y).max() <= ceiling
    assert (np.abs(y) <= np.abs(x)).all() and (x * y >= 0).all()  # it only turns down, and never over
    if np.abs(x).max() <= ceiling * (1 - 1e-6):
        np.testing.assert_array_equal(y, x)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10_000), st.floats(-30, 0), st.sampled_from([0.0, 0.001, 0.002, 0.004]), st.floats(1, 1e4)
)
def test_the_gain_alone_keeps_the_wall(seed, ceiling_db, lookahead_s, spike):
    "Without the clip at the end: the proof in the text holds up to rounding, even for spikes."
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal(3_000) * 0.1).astype(np.float32)
    x[rng.integers(3_000, size=8)] *= np.float32(spike)
    kept = np.clip
    np.clip = lambda v, low, high: v
    try:
        y = limit(x, None, Limiter(ceiling_db, 0.01, lookahead_s))
    finally:
        np.clip = kept
    assert np.abs(y).max() <= 10 ** (ceiling_db / 20) * (1 + 1e-5)


def test_the_limiter_is_smooth_where_a_clip_is_not():
    x = tone(440, 6.0)

    def distortion(y):
        power = np.abs(np.fft.rfft(y * np.hanning(len(y)))) ** 2
        return 10 * np.log10((power.sum() - power[437:444].sum()) / power[437:444].sum())

    assert distortion(np.clip(x, -0.5, 0.5)) > -20
    assert distortion(limit(x, None, Limiter(-6.02, 0.2))) < -50


def test_the_limiter_begins_early_and_lets_go():
    x = np.full(FS, 0.1, np.float32)
    x[8_000:8_016] = 1.0
    g = limit(x, None, Limiter(-12.0, 0.1, 0.005)) / x
    begins = np.flatnonzero(g < 0.999)[0]
    assert 8_000 - 16 * 8 <= begins <= 8_000 - 16 * 4  # 5 ms and at most a few control steps before
    assert (np.diff(g[begins:8_000]) <= 1e-6).all()
    depth = 10 ** (-12 / 20)
    assert g[8_008] == pytest.approx(depth, rel=1e-3)
    back = np.flatnonzero(g[8_100:] > 0.999)[0] + 8_100
    assert (back - 8_000) / FS == pytest.approx(0.1 * -math.log(depth), rel=0.1)


# ---- causality and the past


@pytest.mark.parametrize(
    'name, ahead',
    [
        ('equalise', 0),
        ('compress', 24),
        ('limit', 24 + 16 * 3),
        ('auto_gain', 24),
        ('hard_clip', 0),
        ('saturate', 0),
        ('amplify', 0),
    ],
)
def test_no_stage_knows_the_future(name, ahead):
    rng = np.random.default_rng(0)
    x = rng.standard_normal(6_000).astype(np.float32) * 0.2
    for at in (2_000, 3_007, 4_015):
        other = x.copy()
        other[at:] = rng.standard_normal(6_000 - at) * 2
        a, b = (STAGES[name][1](v, None, EXAMPLES[name])[: at - ahead] for v in (x, other))
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    'name, tolerance_db',
    [('equalise', -100), ('compress', -60), ('limit', -100), ('auto_gain', -60), ('through_air', -100)],
)
def test_three_seconds_of_past_are_enough(name, tolerance_db, rag):
    run = STAGES[name][1]
    p = EXAMPLES[name]
    clip = slice(5 * FS, 8 * FS)
    whole = run(rag, None, p)[clip]
    cut = run(rag[2 * FS :], None, p)[3 * FS :]
    assert rms_db(whole - cut + 1e-12) - rms_db(whole) < tolerance_db


# ---- air

# ISO 9613-2:1996, table 2: dB per kilometre in the octaves from 63 Hz to 8 kHz.
PUBLISHED = {
    (10, 70): (0.1, 0.4, 1.0, 1.9, 3.7, 9.7, 32.8, 117),
    (20, 70): (0.1, 0.3, 1.1, 2.8, 5.0, 9.0, 22.9, 76.6),
    (30, 70): (0.1, 0.3, 1.0, 3.1, 7.4, 12.7, 23.1, 59.3),
    (15, 20): (0.3, 0.6, 1.2, 2.7, 8.2, 28.2, 88.8, 202),
    (15, 50): (0.1, 0.5, 1.2, 2.2, 4.2, 10.8, 36.2, 129),
    (15, 80): (0.1, 0.3, 1.1, 2.4, 4.1, 8.3, 23.7, 82.8),
}


@pytest.mark.parametrize('weather', PUBLISHED)
def test_air_is_the_published_table(weather):
    exact = 1_000 * 10 ** (0.3 * np.arange(-4, 4))  # the exact middles of the octaves
    np.testing.assert_allclose(
        air_loss_db(Air(1_000.0, *weather), exact), PUBLISHED[weather], rtol=0.01, atol=0.051
    )


@pytest.mark.parametrize('distance', [10.0, 100.0, 400.0])
def test_air_measured_with_tones(distance):
    for hz in (250, 1_000, 4_000, 7_000):
        x = tone(hz, -6.0)
        gain = rms_db(through_air(x, None, Air(distance))[1_000:-1_000]) - rms_db(x[1_000:-1_000])
        assert gain == pytest.approx(-float(air_loss_db(Air(distance), hz)), abs=0.02)


def test_air_moves_nothing_and_does_not_wrap():
    x = np.zeros(4_000, np.float32)
    x[[0, 2_000]] = 1
    y = through_air(x, None, Air(100.0))
    assert np.argmax(y) in (0, 2_000)
    np.testing.assert_allclose(y[2_000 - 500 : 2_000], y[2_001:2_501][::-1], atol=1e-6)
    assert np.abs(y[-1_000:]).max() < 1e-4
    np.testing.assert_array_equal(through_air(x, None, Air(0.0)), x)


def test_two_halves_of_the_way_are_the_way(rag):
    twice = through_air(through_air(rag, None, Air(40.0)), None, Air(40.0))
    np.testing.assert_allclose(twice[200:-200], through_air(rag, None, Air(80.0))[200:-200], atol=1e-5)


# ---- automatic gain


@pytest.mark.parametrize('level_db', [-35.0, -20.0, -3.0])
@pytest.mark.parametrize('strength', [0.0, 0.5, 1.0])
def test_automatic_gain_in_the_steady_state(level_db, strength):
    x = tone(500, level_db, 3 * FS)
    is_db = rms_db(x)
    y = auto_gain(x, None, AutoGain(-24.0, 60.0, 0.1, strength))
    assert rms_db(y[2 * FS :]) == pytest.approx(is_db + strength * (-24 - is_db), abs=0.05)


def test_automatic_gain_is_bounded(rag):
    p = AutoGain(-10.0, 6.0, 0.1)
    for x in (rag, rag * np.float32(1e-3), np.r_[np.zeros(FS, 'f4'), rag, np.zeros(FS, 'f4')]):
        y = auto_gain(x, None, p)
        assert (np.abs(y) <= np.abs(x) * (10 ** (6 / 20) * (1 + 1e-5))).all()
        assert (np.abs(y) >= np.abs(x) * (10 ** (-6 / 20) * (1 - 1e-5))).all()


def test_automatic_gain_takes_its_time():
    "The mean square reaches 63 % of a step in `time_s`; before it all, the gain is 0 dB."
    level = np.where(seconds(3 * FS) < 1.5, 0.1, 0.4)
    # a square wave: every sample tells the gain
    x = (level * np.where(np.arange(3 * FS) % 20 < 10, 1, -1)).astype('f4')
    p = AutoGain(-20.0, 60.0, 0.2)
    g = auto_gain(x, None, p) / x
    power = 10 ** (-20 / 10) / g**2  # what it believed
    assert g[0] == pytest.approx(1, rel=0.01) and power[int(1.49 * FS)] == pytest.approx(0.01, rel=0.01)
    reached = np.flatnonzero(power[int(1.5 * FS) :] >= 0.01 + 0.632 * (0.16 - 0.01))[0] / FS
    assert reached == pytest.approx(0.2, rel=0.05)


# ---- overload


def harmonics(shape, amplitude, count=9):
    "The Fourier coefficients of an overloaded sine, by quadrature."
    parts = [
        integrate.quad(
            lambda a, n=n: 2 / np.pi * shape(amplitude * np.sin(a)) * np.sin(n * a), 0, np.pi, limit=200
        )[0]
        for n in range(1, count + 1)
    ]
    return np.array(parts)


@pytest.mark.parametrize('drive_db', [-20.0, 0.0, 6.0, 12.0])
@pytest.mark.parametrize('kind', ['tanh', 'arctan', 'clip'])
def test_harmonics_are_those_of_the_quadrature(kind, drive_db):
    shapes = {
        'tanh': np.tanh,
        'arctan': lambda u: 2 / np.pi * np.arctan(np.pi * u / 2),
        'clip': lambda u: np.clip(u, -1, 1),
    }
    x = tone(50)
    y = (
        hard_clip(amplify(x, None, Gain(drive_db)), None, HardClip(0.0))
        if kind == 'clip'
        else saturate(x, None, Saturator(kind, drive_db))
    )
    got = 2 / FS * np.abs(np.fft.rfft(y.astype(np.float64)))[50 : 50 * 10 : 50]
    want = np.abs(harmonics(shapes[kind], 10 ** (drive_db / 20)))
    np.testing.assert_allclose(got, want, atol=2e-4)
    # THD
    assert np.linalg.norm(got[1:]) / got[0] == pytest.approx(
        np.linalg.norm(want[1:]) / want[0], rel=0.01, abs=2e-4
    )


def test_weak_tanh_has_the_third_harmonic_of_its_series():
    "tanh u = u - u^3/3 + ..., so a sine of amplitude a has a third harmonic of a^2/12."
    spectrum = np.abs(np.fft.rfft(saturate(tone(100), None, Saturator('tanh', -20.0)).astype(np.float64)))
    assert spectrum[300] / spectrum[100] == pytest.approx(0.1**2 / 12, rel=0.03)


@settings(max_examples=50, deadline=None)
@given(
    arrays(np.float32, st.integers(1, 50), elements=st.floats(-100, 100, width=32)),
    st.sampled_from(['tanh', 'arctan']),
    st.floats(-60, 60),
)
def test_saturation_is_odd_rising_and_bounded(x, shape, drive_db):
    p = Saturator(shape, drive_db)
    y = saturate(np.sort(x), None, p)
    assert np.abs(y).max() <= 1 and (np.diff(y) >= -1e-6).all()
    np.testing.assert_allclose(saturate(-np.sort(x), None, p), -y, atol=1e-6)


@pytest.mark.parametrize('shape', ['tanh', 'arctan'])
def test_saturation_has_slope_one_at_zero(shape):
    x = tone(300, -70.0)
    np.testing.assert_allclose(saturate(x, None, Saturator(shape, 0.0)), x, atol=1e-9, rtol=1e-5)


# ---- device


def test_colour_is_causal_convolution(rag):
    h = np.random.default_rng(0).standard_normal(700).astype(np.float32) * 0.1
    np.testing.assert_allclose(colour(rag, h), np.convolve(rag.astype('f8'), h)[: len(rag)], atol=1e-5)
    np.testing.assert_allclose(colour(rag[:20], h), np.convolve(rag[:20], h)[:20], atol=1e-6)
    np.testing.assert_allclose(colour(rag, [1.0]), rag, atol=1e-6)
    assert colour(rag[:0], h).shape == (0,)
    for bad in ([], [np.nan], [[1.0]]):
        with pytest.raises(ResonanceError, match='response'):
            colour(rag, bad)


# ---- codecs

RATES = {
    'opus': (6, 8, 12, 16, 24, 32, 64, 128),
    'aac': (8, 12, 16, 24, 32, 48, 64),
    'mp3': (8, 16, 24, 32, 40, 48, 64, 96, 128, 160),
}
CODECS = [Codec(name, kbps) for name, rates in RATES.items() for kbps in rates]


@pytest.mark.parametrize('p', CODECS, ids=lambda p: f'{p.name}-{p.bitrate_kbps}')
def test_a_codec_keeps_length_time_and_bytes(p, rag):
    x = rag[2 * FS : 5 * FS + 123]
    y = code_and_decode(x, None, p)
    assert y.shape == x.shape and y.dtype == np.float32 and np.abs(y).max() <= 1
    assert abs(lag(y, x)) <= 32  # 2 ms
    assert code_and_decode(x, None, p).tobytes() == y.tobytes()
    f, power_x = signal.welch(x, FS)
    _, power_y = signal.welch(y, FS)
    middle = (f > 200) & (f < 1_500)
    # the same sound where every codec has bits
    assert abs(10 * np.log10(power_y[middle].sum() / power_x[middle].sum())) < 3


@pytest.mark.parametrize('name', RATES)
def test_few_bits_cost_the_treble_and_fidelity(name):
    noise = (np.random.default_rng(0).standard_normal(4 * FS) * 0.1).astype('f4')
    few, many = (code_and_decode(noise, None, Codec(name, RATES[name][i])) for i in (0, -1))
    f, spectrum = signal.welch(few, FS)
    assert 10 * np.log10(spectrum[f > 7_500].mean() / spectrum[(f > 300) & (f < 1_500)].mean()) < -20
    assert rms_db(many - noise) < rms_db(few - noise) - 3


@pytest.mark.parametrize('name', RATES)
@pytest.mark.parametrize('n', [1, 100, 320, 1_023])
def test_short_sounds_through_codecs(name, n):
    y = code_and_decode(tone(500, -6.0, n), None, Codec(name, 32))
    assert y.shape == (n,) and np.isfinite(y).all()


@pytest.mark.parametrize('name', RATES)
def test_the_end_is_not_lost(name, rag):
    "The last tenth of a second comes back, too."
    x = rag[: 2 * FS + 77]
    y = code_and_decode(x, None, Codec(name, 48))
    assert np.corrcoef(x[-1_600:], y[-1_600:])[0, 1] > 0.9


@pytest.mark.parametrize('name', RATES)
def test_codecs_get_what_a_recorder_gets(name, rag):
    "Sound beyond full scale is cut before it is coded, as 16-bit samples would be."
    loud = rag[: 2 * FS] * np.float32(20)
    p = Codec(name, 32)
    np.testing.assert_array_equal(
        code_and_decode(loud, None, p), code_and_decode(np.clip(loud, -1, 1), None, p)
    )


def test_aac_would_come_late():
    assert codec_delay(Codec('aac', 32)) > 500  # otherwise the test of the delay shows nothing


# ---- bits


@pytest.mark.parametrize('bits', [6, 8, 10, 12, 14, 16])
def test_signal_to_noise_of_rounding_a_sine(bits):
    full = 1 - 2.0**-bits  # the largest sine that is only rounded, never cut
    x = full * np.sin(2 * np.pi * 997.13 * seconds(8 * FS))
    error = quantise(x, None, Quantiser(bits, dither=False)) - x
    assert rms_db(x) - rms_db(error) == pytest.approx(6.02 * bits + 1.76 + 20 * np.log10(full), abs=0.35)
    dithered = quantise(0.9 * x, rng_for(0), Quantiser(bits)) - 0.9 * x
    step = 2.0 ** (1 - bits)
    # a twelfth for rounding, a sixth for the dither
    assert np.mean(dithered**2) == pytest.approx(step**2 / 4, rel=0.05)


def test_dither_parts_the_error_from_the_sound():
    "The mean and the power of the error no longer follow the sound; without dither both do."
    step = 2.0**-7
    levels = (np.arange(9) / 8 - 0.5) * step
    x = np.repeat(levels, 20_000).astype('f4')
    for dither, close in ((True, True), (False, False)):
        error = ((quantise(x, rng_for(1), Quantiser(8, dither)) - x) / step).reshape(9, -1).astype('f8')
        assert (np.abs(error.mean(1)).max() < 0.02) == close
        assert (np.ptp((error**2).mean(1)) < 0.02) == close


@settings(max_examples=50, deadline=None)
@given(
    arrays(np.float32, st.integers(1, 60), elements=st.floats(-2, 2, width=32)),
    st.integers(2, 16),
    st.booleans(),
)
def test_quantised_sound_lies_on_the_grid(x, bits, dither):
    y = quantise(x, rng_for(2), Quantiser(bits, dither)).astype('f8') * 2 ** (bits - 1)
    np.testing.assert_array_equal(y, np.rint(y))
    assert y.min() >= -(2 ** (bits - 1)) and y.max() <= 2 ** (bits - 1) - 1
    if not dither:
        inside = np.abs(x) < 1 - 2.0 ** (1 - bits)
        assert np.abs(y / 2 ** (bits - 1) - x)[inside].max(initial=0) <= 2.0**-bits + 1e-6


def test_dither_needs_a_generator(rag):
    with pytest.raises(ResonanceError, match='dither is random'):
        quantise(rag, None, Quantiser(8))
    assert (
        quantise(rag, rng_for(0), Quantiser(8)).tobytes() != quantise(rag, rng_for(1), Quantiser(8)).tobytes()
    )


# ---- drift

DRIFTS = [Drift(s, c) for s in (0.98, 1.0, 1.013, 1.02) for c in (-20.0, 0.0, 7.0, 20.0)]


@pytest.mark.parametrize('p', DRIFTS, ids=lambda p: f'{p.stretch:g}-{p.pitch_cents:g}')
def test_pitch_follows_the_cents_alone(p):
    for hz in (220.0, 997.0, 3_000.0):
        got = frequency(drift(tone(hz, -6.0, 2 * FS), None, p, anchor=FS)[2_000:-2_000])
        assert 1_200 * math.log2(got / hz) == pytest.approx(p.pitch_cents, abs=0.3)


@pytest.mark.parametrize('anchor', [0, 20_000, 44_123])
@pytest.mark.parametrize('p', DRIFTS, ids=lambda p: f'{p.stretch:g}-{p.pitch_cents:g}')
def test_tempo_follows_the_stretch_alone_and_the_anchor_stays(p, anchor):
    n = 4 * FS
    at = np.arange(anchor % 3_100, n, 3_100)  # one of the clicks is the anchor
    x = np.zeros(n, np.float32)
    x[at] = 1
    y = drift(x, None, p, anchor=anchor)
    want = anchor + (at - anchor) / p.stretch
    for t in want[(want > 500) & (want < n - 500)].round().astype(int):
        assert abs(int(np.argmax(np.abs(y[t - 300 : t + 300]))) - 300) <= 32, t  # 2 ms


@pytest.mark.parametrize('anchor', [0, 30_000, 8 * FS])
def test_around_the_anchor_the_music_is_itself(anchor, rag):
    y = drift(rag, None, Drift(1.004), anchor=anchor)
    near = slice(max(0, anchor - 1_600), anchor + 1_600)
    assert abs(lag(y[near], rag[near], 100)) <= 6  # 0.4 % of the way to the edges
    like = skew(rag, None, ClockSkew(4_000.0), anchor=anchor)  # the same times, and hardly another pitch
    assert max(np.corrcoef(y[near], v[near])[0, 1] for v in (rag, like)) > 0.9


def test_neutral_drift_is_the_sound_itself(rag):
    np.testing.assert_array_equal(drift(rag, None, Drift(), anchor=5_000), rag)
    np.testing.assert_array_equal(skew(rag, None, ClockSkew(0.0)), rag)


def test_the_vocoder_without_a_change_is_the_identity(rag):
    np.testing.assert_allclose(warp._stretched(rag, 1.0, 5_000, 0, len(rag)), rag, atol=1e-5)
    np.testing.assert_allclose(warp._stretched(rag, 1.0, 5_000, 1_000, 9_000), rag[1_000:9_000], atol=1e-5)


def test_there_and_back_again(rag):
    back = drift(
        drift(rag, None, Drift(1.02, 15.0), anchor=4 * FS), None, Drift(1 / 1.02, -15.0), anchor=4 * FS
    )
    inside = slice(FS, 7 * FS)
    assert spectral_distance_db(back[inside], rag[inside]) < 0.5 * spectral_distance_db(
        drift(rag, None, Drift(1.02, 15.0))[inside], rag[inside]
    )


def spectral_distance_db(x, y):
    "Mean difference of two log-mel spectrograms, dB."
    from resonance_nb.audio import log_mel

    n = min(len(x), len(y))
    return float(np.abs(log_mel(x[:n], top_db=50) - log_mel(y[:n], top_db=50)).mean())


def warped_distance_db(y, x, stretch):
    "Mean difference from the log-mel spectrogram of x with its time axis stretched, dB."
    from resonance_nb.audio import log_mel

    want, got = (np.maximum(log_mel(v, top_db=None), -45) for v in (x, y))
    columns = np.arange(5, min(got.shape[1], want.shape[1] / stretch) - 10)
    whole, part = np.divmod(columns * stretch, 1)
    whole = whole.astype(int)
    return float(np.abs(want[:, whole] * (1 - part) + want[:, whole + 1] * part - got[:, columns]).mean())


@pytest.mark.parametrize('stretch', [0.98, 1.02])
def test_stretching_is_near_librosas(stretch, rag):
    import librosa

    theirs = librosa.effects.time_stretch(rag, rate=stretch)[: 7 * FS]
    mine = drift(rag, None, Drift(stretch))[: len(theirs)]
    assert spectral_distance_db(mine, theirs) < spectral_distance_db(rag, theirs)
    # The truth is the spectrogram of the input on a stretched time axis; it is met better than by librosa.
    assert warped_distance_db(mine, rag, stretch) < 0.8 < warped_distance_db(theirs, rag, stretch)
    assert rms_db(mine) - rms_db(rag[: int(len(theirs) * stretch)]) == pytest.approx(0, abs=0.4)


@pytest.mark.parametrize('cents', [-100.0, 100.0])
def test_shifting_is_near_librosas(cents, rag):
    import librosa
    import soxr

    theirs = librosa.effects.pitch_shift(rag, sr=FS, n_steps=cents / 100)[: 7 * FS]
    mine = drift(rag, None, Drift(1.0, cents))[: 7 * FS]
    assert spectral_distance_db(mine, theirs) < spectral_distance_db(rag[: 7 * FS], theirs)
    # The truth is the sound played faster, with the time axis of its spectrogram pulled back.
    ratio = 2 ** (cents / 1_200)
    faster = soxr.resample(rag, FS * ratio, FS)
    assert warped_distance_db(mine, faster, 1 / ratio) < 1.2 < warped_distance_db(theirs, faster, 1 / ratio)


@pytest.mark.parametrize('function, p', [(drift, Drift(1.02)), (skew, ClockSkew(50.0))])
@pytest.mark.parametrize('anchor', [-1, 8 * FS + 1])
def test_the_anchor_lies_in_the_sound(function, p, anchor, rag):
    with pytest.raises(ResonanceError, match='anchor'):
        function(rag, None, p, anchor=anchor)


# ---- clock


@pytest.mark.parametrize('ppm', [-100.0, -20.0, 50.0, 100.0, 5_000.0])
@pytest.mark.parametrize('anchor', [0, 33_333, 4 * FS])
def test_skew_is_the_closed_form(ppm, anchor):
    n = 4 * FS
    for hz in (440.0, 3_000.0, 6_000.0):
        x = tone(hz, -3.0, n)
        want = 10 ** (-3 / 20) * np.sin(
            2 * np.pi * hz * (anchor + (np.arange(n) - anchor) * (1 + ppm * 1e-6)) / FS
        )
        inside = slice(400, -400)
        error = (skew(x, None, ClockSkew(ppm), anchor=anchor) - want)[inside]
        # input was there
        edge = np.abs(np.arange(n) * (1 + ppm * 1e-6) - anchor * ppm * 1e-6 - n / 2)[inside] < n / 2 - 20
        assert rms_db(error[edge]) - rms_db(want) < -50


def test_skew_against_soxr(rag):
    import soxr

    ppm = 3_000.0
    theirs = soxr.resample(rag.astype('f8'), FS * (1 + ppm * 1e-6), FS, 'VHQ')
    mine = skew(rag, None, ClockSkew(ppm))
    n = len(theirs)
    assert rms_db(mine[200 : n - 200] - theirs[200 : n - 200]) - rms_db(rag) < -50
    assert np.abs(mine[n + 40 :]).max() == 0  # silence where the input has ended


def test_a_second_clock_undoes_the_first(rag):
    back = skew(
        skew(rag, None, ClockSkew(100.0), anchor=4 * FS),
        None,
        ClockSkew((1 / (1 + 100e-6) - 1) * 1e6),
        anchor=4 * FS,
    )
    assert rms_db((back - rag)[1_000:-1_000]) - rms_db(rag) < -45
