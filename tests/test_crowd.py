"Mixing at a ratio is exact, beds are made of the right recordings, and crowds are restless, repeatable and what they say they are."

import json
import os
import subprocess
import sys
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import sosfilt
from scipy.stats import kstest

from resonance_nb import crowd, mix, voices
from resonance_nb.audio import save
from resonance_nb.core import ResonanceError, rng_for
from resonance_nb.corpora import write_corpus


def db(x):
    return 10 * np.log10(np.mean(np.asarray(x, float) ** 2))


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 2**32 - 1), st.floats(-30, 40), st.floats(-60, 6), st.floats(-60, 6), st.integers(1, 4_000)
)
def test_the_ratio_is_exact_at_any_level(seed, snr_db, music_db, noise_db, n):
    rng = np.random.default_rng(seed)
    music = (rng.normal(size=n) * 10 ** (music_db / 20)).astype(np.float32)
    noise = (rng.standard_t(3, size=n) * 10 ** (noise_db / 20)).astype(np.float32)
    mixture, info = mix.mix_at_snr(music, noise, snr_db)
    assert mixture.dtype == np.float32 and mixture.shape == (n,) and np.abs(mixture).max() <= 1
    assert abs(info.snr_db - snr_db) < 0.1
    in_music = info.common_gain * music.astype(float)
    in_noise = info.common_gain * info.noise_gain * noise.astype(float)
    assert abs(db(in_music) - db(in_noise) - snr_db) < 0.1
    assert np.abs(mixture - (in_music + in_noise)).max() < 1e-5


def test_too_loud_sums_are_turned_down_not_clipped():
    music = np.full(1_000, 0.9, np.float32)
    noise = np.tile(np.float32([1, -1]), 500)
    mixture, info = mix.mix_at_snr(music, noise, 0)
    assert info.common_gain == pytest.approx(1 / 1.8) and mixture.max() == pytest.approx(1, abs=1e-6)
    assert (np.sort(np.unique(mixture.round(5))) == [0, 1]).all()


def test_what_goes_in_is_left_alone():
    music, noise = np.random.default_rng(0).normal(size=(2, 500)).astype(np.float32) * 0.1
    before = music.copy(), noise.copy()
    mix.mix_at_snr(music, noise, -5)
    assert np.array_equal(music, before[0]) and np.array_equal(noise, before[1])


@pytest.mark.parametrize(
    'music, noise, snr, message',
    [
        (np.zeros(100), np.ones(100), 0, 'the music is silent'),
        (np.ones(100), np.zeros(100), 0, 'the noise is silent'),
        (np.ones(100), np.ones(99), 0, 'same length'),
        (np.ones(0), np.ones(0), 0, 'at least one'),
        (np.ones(100), np.full(100, np.nan), 0, 'NaN'),
        (np.ones((2, 100)), np.ones((2, 100)), 0, 'one row'),
        (np.ones(100), np.ones(100), float('nan'), 'finite number'),
        (np.ones(100), np.ones(100), float('inf'), 'finite number'),
    ],
)
def test_nonsense_is_refused_in_one_line(music, noise, snr, message):
    with pytest.raises(ResonanceError, match=message) as e:
        mix.mix_at_snr(music, noise, snr)
    assert '\n' not in str(e.value)


@pytest.mark.parametrize(
    'm, n, start',
    [(16_000, 100_000, 0), (16_000, 100_000, 15_999), (5, 1_000, 3), (1, 10, 0), (40_000, 40_000, 7)],
)
def test_a_loop_has_the_length_and_no_step_at_the_seam(m, n, start):
    slow = np.sin(2 * np.pi * np.arange(m) / 777 + 1).astype(np.float32)
    out = crowd.loop(slow, n, start)
    assert out.shape == (n,) and np.isfinite(out).all()
    if m > 1_000:
        assert np.abs(np.diff(out)).max() < 0.02  # the sine itself moves 0.008 a sample, a hard seam up to 2


def test_a_loop_keeps_its_loudness_through_the_seam():
    noise = np.random.default_rng(1).normal(size=48_000).astype(np.float32)
    out = crowd.loop(noise, 400_000)
    levels = [db(out[i : i + 4_000]) for i in range(0, 400_000, 4_000)]
    assert max(levels) - min(levels) < 1.0


def test_an_empty_recording_cannot_be_looped():
    with pytest.raises(ResonanceError, match='empty'):
        crowd.loop(np.zeros(0), 10)


@pytest.fixture(scope='module')
def corpus(tmp_path_factory):
    "Twelve tones as core noise, one frequency each, and a loud tone that is no crowd."
    home = tmp_path_factory.mktemp('crowds')
    (home / 'noise').mkdir()
    rows = []
    t = np.arange(32_000) / 16_000
    for i in range(13):
        save(home / f'noise/n{i}.wav', (0.3 * np.sin(2 * np.pi * (300 + 100 * i) * t)).astype(np.float32))
        rows.append(
            dict(
                id=f'n{i}',
                file=f'noise/n{i}.wav',
                category='crowd',
                concert_use='core' if i < 12 else 'other',
                duration_s=2.0,
            )
        )
    return write_corpus(home, noise=pd.DataFrame(rows))


def heard(samples):
    "Which tones are in a bed."
    level = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    hz = np.fft.rfftfreq(len(samples), 1 / 16_000)
    power = [level[np.abs(hz - (300 + 100 * i)) < 20].max() for i in range(13)]
    return {f'n{i}' for i, p in enumerate(power) if p > 0.05 * max(power)}


@pytest.mark.parametrize('split', ['train', 'test'])
def test_a_bed_uses_two_or_three_core_recordings_of_its_split(corpus, split):
    table = corpus.split('noise', split)
    own = set(table.index[table.concert_use == 'core'])
    assert len(own) >= 2
    used = [heard(crowd.bed(corpus, split, 5.0, rng_for(0, split, i))) for i in range(25)]
    assert all(u <= own for u in used) and {len(u) for u in used} <= {2, 3}
    assert len(set(map(frozenset, used))) > 1


def test_beds_have_the_length_and_repeat_with_the_seed(corpus):
    one, two = (crowd.bed(corpus, 'train', 1.2345, rng_for(1, 'x')) for _ in range(2))
    assert (
        len(one) == round(1.2345 * 16_000)
        and np.array_equal(one, two)
        and np.abs(one).max() == pytest.approx(0.9, abs=1e-3)
    )
    assert not np.array_equal(one, crowd.bed(corpus, 'train', 1.2345, rng_for(2, 'x')))
    with pytest.raises(ResonanceError, match='no samples'):
        crowd.bed(corpus, 'train', 0.0, rng_for(1))


def test_a_split_without_crowds_is_named(corpus, tmp_path):
    bare = write_corpus(tmp_path, noise=corpus.noise[corpus.noise.concert_use == 'other'])
    with pytest.raises(ResonanceError, match='no core crowd noise in its test split'):
        crowd.bed(bare, 'test', 1.0, rng_for(0))


# ---- rings


def old_loop(noise, n, start=0, fade_s=0.5):
    "The loop that earlier results were made with."
    x = np.asarray(noise, dtype=np.float32)
    start = int(start) % len(x)
    fade = min(int(fade_s * 16_000), len(x) // 3)
    if start + n <= len(x):
        return x[start : start + n].copy()
    if fade:
        ramp = np.linspace(0, np.pi / 2, fade, dtype=np.float32)
        closed = x[fade:].copy()
        closed[-fade:] = closed[-fade:] * np.cos(ramp) + x[:fade] * np.sin(ramp)
        x = closed
    return x[(start - fade + np.arange(n)) % len(x)]


@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 30_000),
    st.integers(1, 60_000),
    st.integers(-10, 10**9),
    st.sampled_from([0.0, 0.01, 0.5, 3.0]),
)
def test_a_loop_is_what_it_was_sample_for_sample(m, n, start, fade_s):
    noise = np.random.default_rng(m).normal(size=m).astype(np.float32)
    assert crowd.loop(noise, n, start, fade_s=fade_s).tobytes() == old_loop(noise, n, start, fade_s).tobytes()


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40_000), st.sampled_from([0.0, 0.1, 0.5]))
def test_a_ring_closes_and_keeps_its_middle(m, fade_s):
    slow = np.sin(np.arange(m) / 100).astype(np.float32)
    before = slow.copy()
    closed = crowd.ring(slow, fade_s)
    fade = min(int(fade_s * 16_000), m // 3)
    assert len(closed) == m - fade and np.array_equal(slow, before) and closed.flags.owndata
    assert np.array_equal(closed[: m - 2 * fade], slow[fade : m - fade])
    if fade > 1_000:  # across the seam it moves no faster than the sine and the fade do
        assert np.abs(np.diff(np.tile(closed, 2))).max() < 0.02


def test_a_ring_of_nothing_is_refused():
    for bad in (np.zeros(0), np.zeros((2, 100))):
        with pytest.raises(ResonanceError, match='cannot loop'):
            crowd.ring(bad)


# ---- loudness


def k_weighted_lufs(x):
    "BS.1770-4 from the analogue prototypes of its two filters and vectorised gating: independent of pyloudnorm."
    k = np.tan(np.pi * 1681.974450955533 / 16_000)
    q = 0.7071752369554196
    vh = 10 ** (3.999843853973347 / 20)
    vb = vh**0.4996667741545416
    a0 = 1 + k / q + k * k
    shelf = [
        (vh + vb * k / q + k * k) / a0,
        2 * (k * k - vh) / a0,
        (vh - vb * k / q + k * k) / a0,
        1,
        2 * (k * k - 1) / a0,
        (1 - k / q + k * k) / a0,
    ]
    k = np.tan(np.pi * 38.13547087602444 / 16_000)
    q = 0.5003270373238773
    a0 = 1 + k / q + k * k
    high = [1, -2, 1, 1, 2 * (k * k - 1) / a0, (1 - k / q + k * k) / a0]
    y = sosfilt([shelf, high], np.asarray(x, float))
    total = np.concatenate([[0], np.cumsum(y**2)])
    at = np.arange(0, len(y) - 6_400 + 1, 1_600)
    power = (total[at + 6_400] - total[at]) / 6_400
    level = -0.691 + 10 * np.log10(np.maximum(power, 1e-30))
    loud = level > -70
    gate = -0.691 + 10 * np.log10(power[loud].mean()) - 10
    return -0.691 + 10 * np.log10(power[loud & (level > gate)].mean())


def loudness_of(x):
    "Of a sound at any level: measured at an RMS of 0.1."
    rms = np.sqrt(np.mean(np.asarray(x, float) ** 2))
    return k_weighted_lufs(np.asarray(x, float) * 0.1 / rms) + 20 * np.log10(rms / 0.1)


@pytest.fixture(scope='module')
def tracks():
    "Pieces of music of the corpus at hand."
    from resonance_nb.starter import default_corpus

    corpus = default_corpus()
    return [
        corpus.load('music', id, 5.0, 20.0)
        for id in corpus.music.index[:: max(1, len(corpus.music) // 12)][:12]
    ]


@pytest.fixture(scope='module')
def banks():
    "A bank of the corpus at hand, and one of synthesised sounds."
    from resonance_nb.starter import default_corpus

    return [crowd.CrowdBank(default_corpus(), 'train'), crowd.CrowdBank(seed=1)]


def test_over_a_thousand_draws_the_ratio_is_what_was_asked(tracks, banks):
    n = 16_000
    worst = {'rms': 0.0, 'lufs': 0.0}
    done = 0
    for i in range(1_000):
        rng = rng_for(0, 'ratio', i)
        bank = banks[i % 2]
        track = tracks[rng.integers(len(tracks))]
        at = rng.integers(max(1, len(track) - n))
        music = track[at : at + n] * np.float32(10 ** rng.uniform(-2, 0))
        scene = crowd.draw_scene(bank, 1.0, rng, before_s=1.0, events_per_minute=20)
        noise = crowd.render_scene(scene, bank, len(music), music=music)
        asked = float(rng.uniform(-20, 30))
        if np.abs(music).max() < 1e-6 or len(music) < n:
            continue
        for loudness, measure in (('rms', db), ('lufs', loudness_of)):
            mixture, info = mix.mix_at_snr(music, noise, asked, loudness=loudness)
            assert np.abs(mixture).max() <= 1 and mixture.dtype == np.float32
            in_music = info.common_gain * music.astype(float)
            got = measure(in_music) - measure(mixture - in_music)  # from the mixture itself
            worst[loudness] = max(worst[loudness], abs(got - asked))
            assert abs(info.snr_db - asked) < 1e-6
        done += 1
    assert done > 950 and worst['rms'] <= 0.1 and worst['lufs'] <= 0.3, worst


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(-60, 60), st.floats(-80, 0), st.sampled_from(['rms', 'lufs']))
def test_the_level_of_the_music_does_not_matter(seed, snr_db, music_db, loudness):
    rng = np.random.default_rng(seed)
    music, noise = (0.2 * rng.normal(size=(2, 8_000))).astype(np.float32)
    factor = 10 ** (music_db / 20)
    loud, at_full = mix.mix_at_snr(music, noise, snr_db, loudness=loudness)
    quiet, at_less = mix.mix_at_snr(music * factor, noise, snr_db, loudness=loudness)
    assert at_less.noise_gain == pytest.approx(at_full.noise_gain * factor, rel=1e-5)
    assert np.allclose(
        quiet / at_less.common_gain / factor,
        loud / at_full.common_gain,
        rtol=1e-4,
        atol=1e-4 / at_full.common_gain,
    )
    assert mix.crowd_gain(music, noise, snr_db, loudness=loudness) == at_full.noise_gain


def test_loudness_and_rms_differ_where_they_should():
    "A hum at 40 Hz is strong and hardly heard; a pause counts for RMS and not for loudness."
    t = np.arange(32_000) / 16_000
    music = np.sin(2 * np.pi * 1_000 * t)
    hum = np.sin(2 * np.pi * 40 * t)
    assert 20 * np.log10(mix.crowd_gain(music, hum, 0, loudness='lufs') / mix.crowd_gain(music, hum, 0)) > 5
    half = np.where(t < 1, music, 0)
    assert 20 * np.log10(mix.crowd_gain(music, half, 0)) == pytest.approx(3.01, abs=0.05)
    assert (
        abs(20 * np.log10(mix.crowd_gain(music, half, 0, loudness='lufs'))) < 1.5
    )  # blocks that straddle the edge


@pytest.mark.parametrize('snr_db, fine', [(60, True), (-60, True), (60.1, False), (-61, False), (1e9, False)])
def test_ratios_out_of_reach_are_refused(snr_db, fine):
    noise = np.random.default_rng(0).normal(size=1_000)
    if fine:
        assert mix.mix_at_snr(0.1 * noise[::-1], noise, snr_db)[1].snr_db == pytest.approx(snr_db)
    else:
        with pytest.raises(ResonanceError, match='from -60 to 60 dB'):
            mix.mix_at_snr(noise, noise, snr_db)


def test_loudness_needs_enough_sound_and_a_known_measure():
    x = np.random.default_rng(0).normal(size=6_400)
    assert mix.mix_at_snr(x, x, 3, loudness='lufs')[1].snr_db == pytest.approx(3)
    with pytest.raises(ResonanceError, match='0.4 s'):
        mix.mix_at_snr(x[:-1], x[:-1], 3, loudness='lufs')
    with pytest.raises(ResonanceError, match="'rms' or 'lufs'"):
        mix.mix_at_snr(x, x, 3, loudness='peak')
    assert mix.mix_at_snr(x[:1], x[:1], 0)[1].snr_db == 0


# ---- claps


@pytest.mark.parametrize('clappers', [100, 400])
def test_independent_clappers_are_a_poisson_process(clappers):
    times = voices._clap_times(60 * 16_000, np.random.default_rng(clappers), clappers, 0.0, 120.0).ravel()
    times = np.sort(times[(times >= 0) & (times < 60)])
    assert len(times) / 60 == pytest.approx(4 * clappers, rel=0.06)  # paces are uniform from 3 to 5 a second
    counts = np.bincount((times * 100).astype(int), minlength=6_000)
    assert 0.85 < counts.var() / counts.mean() < 1.15
    gaps = np.diff(times)
    assert kstest(gaps / gaps.mean(), 'expon').statistic < 0.02


def test_one_clapper_is_regular_and_starts_before_the_beginning():
    times = voices._clap_times(20 * 16_000, np.random.default_rng(3), 1, 0.0, 120.0)[0]
    gaps = np.diff(times)
    assert (
        times[0] < 0 and times[-1] > 20 and 0.19 < np.median(gaps) < 0.35 and gaps.std() / gaps.mean() < 0.2
    )


def envelope_line(samples, low_hz=0.7, high_hz=3.5):
    "The strongest frequency of the envelope in a range, and how far it stands out of the median."
    power = (samples[: len(samples) // 160 * 160].reshape(-1, 160).astype(float) ** 2).mean(1)
    level = np.abs(np.fft.rfft((power / power.mean() - 1) * np.hanning(len(power)), 1 << 15))
    hz = np.fft.rfftfreq(1 << 15, 0.01)
    inside = (hz >= low_hz) & (hz <= high_hz)
    best = np.argmax(np.where(inside, level, 0))
    return hz[best], level[best] / np.median(level[inside])


@pytest.mark.parametrize('tempo_bpm', [80, 100, 120, 150])
def test_entrained_applause_has_a_beat_and_free_applause_has_none(tempo_bpm):
    n = 20 * 16_000
    hz, stands_out = envelope_line(
        voices.applause(n, np.random.default_rng(0), entrainment=1.0, tempo_bpm=tempo_bpm)
    )
    assert hz == pytest.approx(tempo_bpm / 60, rel=0.02) and stands_out > 20
    assert envelope_line(voices.applause(n, np.random.default_rng(0), tempo_bpm=tempo_bpm))[1] < 8


def test_entrainment_grows_the_beat():
    depths = []
    for e in (0.0, 0.5, 0.8, 1.0):
        heard = voices.applause(320_000, np.random.default_rng(1), entrainment=e, tempo_bpm=120)
        power = (heard.reshape(-1, 160).astype(float) ** 2).mean(1)
        depths.append(
            abs(np.mean((power / power.mean()) * np.exp(-2j * np.pi * 2 * np.arange(len(power)) * 0.01)))
        )
    assert depths == sorted(depths) and depths[-1] > 5 * depths[0]


@pytest.mark.parametrize('make', [voices.applause, voices.chant])
def test_made_sounds_have_shape_and_seed(make):
    for n in (1, 2, 999, 40_000):
        one, two = (make(n, np.random.default_rng(7)) for _ in range(2))
        assert (
            one.shape == (n,)
            and one.dtype == np.float32
            and np.array_equal(one, two)
            and np.abs(one).max() <= 0.9001
        )
    assert not np.array_equal(one, make(n, np.random.default_rng(8)))
    with pytest.raises(ResonanceError, match='at least one'):
        make(0, np.random.default_rng(0))
    with pytest.raises(ResonanceError, match='whole number'):
        make(10.5, np.random.default_rng(0))


@pytest.mark.parametrize(
    'make, wrong',
    [
        (voices.applause, dict(clappers=0)),
        (voices.applause, dict(entrainment=1.1)),
        (voices.applause, dict(entrainment=float('nan'))),
        (voices.applause, dict(tempo_bpm=0)),
        (voices.chant, dict(voices=0)),
        (voices.chant, dict(tempo_bpm=-1)),
        (voices.chant, dict(f0_hz=(300, 200))),
    ],
)
def test_impossible_crowds_are_refused(make, wrong):
    with pytest.raises(ResonanceError, match='needs 1'):
        make(100, np.random.default_rng(0), **wrong)


def test_global_random_state_is_left_alone():
    np.random.seed(5)
    before = np.random.get_state()[1].copy()
    voices.applause(8_000, np.random.default_rng(0))
    voices.chant(8_000, np.random.default_rng(0))
    voices.sing_along(np.ones(8_000), np.random.default_rng(0))
    assert np.array_equal(np.random.get_state()[1], before)


# ---- voices


@pytest.mark.parametrize('f0_hz', [130, 200, 260])
def test_a_voice_has_its_pitch_and_its_vowels(f0_hz):
    heard = voices.chant(80_000, np.random.default_rng(2), voices=1, f0_hz=(f0_hz, f0_hz)).astype(float)
    spectrum = np.abs(np.fft.rfft(heard, 1 << 18)) ** 2
    same = np.fft.irfft(spectrum)[: 16_000 // 50]
    lag = 30 + np.argmax(same[30:])
    assert 16_000 / lag == pytest.approx(f0_hz, rel=0.12)  # the pitch wavers and falls
    hz = np.fft.rfftfreq(1 << 18, 1 / 16_000)
    assert spectrum[(hz > 200) & (hz < 3_300)].sum() > 0.9 * spectrum.sum()


@pytest.mark.parametrize('tempo_bpm', [90, 120])
def test_a_chant_repeats_with_its_bar(tempo_bpm):
    bar = round(4 * 60 / tempo_bpm * 16_000)
    heard = voices.chant(12 * bar, np.random.default_rng(3), tempo_bpm=tempo_bpm)
    power = np.convolve(heard.astype(float) ** 2, np.ones(800) / 800, 'same')[::100]
    power -= power.mean()

    def likeness(shift):
        s = shift // 100
        return np.corrcoef(power[s:], power[: len(power) - s])[0, 1]

    assert likeness(bar) > 0.8 and likeness(bar) > likeness(int(0.9 * bar)) + 0.3


def test_singers_come_late_and_never_early():
    x = np.zeros(32_000, np.float32)
    x[8_000] = 1
    for seed in range(5):
        heard = voices.sing_along(x, np.random.default_rng(seed))
        assert np.abs(heard[: 8_000 + 320]).max() < 1e-5 * np.abs(heard).max()
        power = np.cumsum(heard.astype(float) ** 2)
        assert power[8_000 + 4_000] > 0.999 * power[-1]  # within a quarter of a second it is over


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 20_000), st.integers(0, 1_000), st.floats(0.001, 10))
def test_singing_along_is_linear_and_keeps_the_shape(n, seed, factor):
    music = np.random.default_rng(seed).normal(size=n).astype(np.float32) * 0.1
    before = music.copy()
    one = voices.sing_along(music, np.random.default_rng(seed))
    many = voices.sing_along(music * np.float32(factor), np.random.default_rng(seed))
    assert one.shape == (n,) and one.dtype == np.float32 and np.array_equal(music, before)
    assert np.allclose(many, one * factor, rtol=1e-3, atol=1e-6 * factor)


def test_what_comes_before_does_not_change_with_what_comes_after():
    rng = np.random.default_rng(0)
    music = (0.1 * rng.normal(size=32_000)).astype(np.float32)
    other = music.copy()
    other[16_000:] = 0
    a, b = (voices.sing_along(x, np.random.default_rng(1)) for x in (music, other))
    assert np.allclose(a[:16_000], b[:16_000], atol=1e-6) and not np.allclose(
        a[18_000:], b[18_000:], atol=1e-3
    )


def test_singers_go_on_in_the_next_piece_of_the_music():
    "With a quarter of a second of past, a later piece is what it is in the whole."
    music = (0.1 * np.random.default_rng(0).normal(size=64_000)).astype(np.float32)
    whole = voices.sing_along(music, np.random.default_rng(1))
    for at in (20_000, 33_333):
        piece = voices.sing_along(music[at:], np.random.default_rng(1), start=at)
        assert np.allclose(piece[4_000:], whole[at + 4_000 :], atol=1e-4)


def test_singing_stays_on_the_note_in_the_band_of_a_voice():
    t = np.arange(96_000) / 16_000
    levels = {}
    for f in (60, 440, 700, 6_000):
        heard = voices.sing_along(np.sin(2 * np.pi * f * t), np.random.default_rng(2))[8_000:]
        levels[f] = db(heard)
        if f == 440:
            power = np.abs(np.fft.rfft(heard * np.hanning(len(heard)))) ** 2
            cents = 1_200 * np.log2(np.fft.rfftfreq(len(heard), 1 / 16_000)[1:] / f)
            assert power[1:][np.abs(cents) < 80].sum() > 0.95 * power.sum()  # near the note
            assert power[1:][np.abs(cents) < 4].sum() < 0.7 * power.sum()  # and not on it
    assert levels[700] > levels[60] + 20 and levels[700] > levels[6_000] + 20


@pytest.mark.parametrize('music', [np.zeros(0), np.zeros((2, 9)), np.array([0.0, np.nan])])
def test_nobody_sings_along_to_nonsense(music):
    with pytest.raises(ResonanceError, match='one row of finite samples'):
        voices.sing_along(music, np.random.default_rng(0))


# ---- banks


@pytest.mark.parametrize('split', ['train', 'validation', 'test'])
def test_a_bank_stays_within_its_split(split):
    from resonance_nb.starter import default_corpus

    corpus = default_corpus()
    table = corpus.split('noise', split)
    core = set(table.index[table.concert_use == 'core'])
    bank = crowd.CrowdBank(corpus, split)
    for kind in ('bed', *crowd.EVENTS):
        ids = bank.sources(kind)
        made = [i for i in ids if i.startswith('synthesised/')]
        assert ids == sorted(ids) and ids and set(ids) - set(made) <= core
        assert all(i.split('/')[1:3] == [kind, split] for i in made)
        assert bool(made) == (table.duration_s[[i for i in ids if i not in made]].sum() < crowd.SCARCE_S)
        assert kind != 'bed' or (table.duration_s[[i for i in ids if i not in made]] >= 3).all()
    used = set()
    for i in range(60):
        scene = crowd.draw_scene(bank, 5.0, rng_for(0, i), events_per_minute=30)
        used |= {s for s, *_ in scene.layers} | {e.source for e in scene.events}
    assert all(s in core or s.split('/')[2] == split for s in used) and len(used) > 5 and not bank.skipped


def test_single_claps_and_coughs_are_no_bed():
    table = pd.DataFrame(
        dict(
            category='clap_single cough whistle babble_cafe crowd applause_cheer crowd_scream Shout clapping bar'.split(),
            duration_s=[9.0] * 9 + [2.9],
        )
    )
    sorts = crowd._sorts(table.set_index(pd.Index(list('abcdefghij'))))
    assert sorts == {
        'bed': ['d', 'e'],
        'applause': ['f', 'i'],
        'cheer': ['f'],
        'whistle': ['c'],
        'scream': ['g', 'h'],
        'chant': [],
        'clap-along': [],
    }


def test_sounds_are_even_read_only_rings(banks):
    for bank in banks:
        for kind in ('bed', *crowd.EVENTS):
            for source in bank.sources(kind)[:2]:
                sound = bank.sound(source)
                assert sound is bank.sound(source) and sound.dtype == np.float32 and not sound.flags.writeable
                blocks = db_blocks(sound, 1_600)
                mean = 10 * np.log10(np.mean(10 ** (blocks / 10)))
                assert abs(10 * np.log10(np.mean(10 ** (blocks[blocks > mean - 10] / 10)))) < 0.1


def db_blocks(x, size):
    "Level of consecutive blocks, dB."
    x = np.asarray(x[: len(x) // size * size], float).reshape(-1, size)
    return 10 * np.log10((x**2).mean(1) + 1e-12)


def test_synthesised_sounds_differ_between_splits_and_seeds():
    ids = [(crowd.CrowdBank(split=s, seed=k), k) for s in ('train', 'test') for k in (0, 1)]
    sounds = [b.sound(b.sources('whistle')[0]).tobytes() for b, _ in ids]
    assert len(set(sounds)) == 4
    with pytest.raises(ResonanceError, match='unknown split'):
        crowd.CrowdBank(split='trian')
    with pytest.raises(ResonanceError, match='a crowd has no'):
        crowd.CrowdBank().sources('silence')
    with pytest.raises(ResonanceError, match='no sound of this bank'):
        crowd.CrowdBank().sound('synthesised/cheer/test/0/0')


@pytest.fixture
def faulty(tmp_path):
    "Beds, of which most cannot be used: missing, broken, silent, too short inside, and two that are fine."
    (tmp_path / 'noise').mkdir()
    t = np.arange(64_000) / 16_000
    rng = np.random.default_rng(0)
    good = {f'good{i}': (0.1 * rng.normal(size=len(t))).astype(np.float32) for i in range(2)}
    for name, x in {**good, 'silent': np.zeros(64_000, np.float32), 'short': good['good0'][:4_000]}.items():
        save(tmp_path / f'noise/{name}.wav', x)
    (tmp_path / 'noise/broken.wav').write_bytes(b'RIFF and then nothing that makes sense' * 9)
    (tmp_path / 'noise/empty.wav').write_bytes(b'')
    names = [*good, 'silent', 'short', 'broken', 'empty', 'missing']
    rows = [
        dict(id=i, file=f'noise/{i}.wav', category='crowd', concert_use='core', duration_s=4.0) for i in names
    ]

    def corpus(keep=names):
        corpus = write_corpus(tmp_path, noise=pd.DataFrame([r for r in rows if r['id'] in keep]))
        corpus.split = lambda kind, split: corpus.noise  # all of them in one split
        return corpus

    return corpus


def test_files_that_cannot_be_used_are_skipped_and_told(faulty):
    bank = crowd.CrowdBank(faulty())
    scenes = [crowd.draw_scene(bank, 2.0, rng_for(0, i), events_per_minute=0) for i in range(20)]
    assert {s for scene in scenes for s, *_ in scene.layers} == {'good0', 'good1'} == set(bank.sources('bed'))
    why = dict(bank.skipped)
    assert len(bank.skipped) == len(why) == 5
    assert (
        'silent' in why['silent']
        and 'half a second' in why['short']
        and 'no such file' in why['missing']
        and 'empty' in why['empty']
    )
    with pytest.raises(ResonanceError, match='broken'):
        bank.sound('broken')
    assert len(bank.skipped) == 5
    warm = [crowd.draw_scene(bank, 2.0, rng_for(0, i), events_per_minute=0) for i in range(20)]
    fresh = [
        crowd.draw_scene(crowd.CrowdBank(faulty()), 2.0, rng_for(0, i), events_per_minute=0)
        for i in range(20)
    ]
    assert scenes == warm == fresh


def test_when_nothing_is_left_it_is_said(faulty):
    bank = crowd.CrowdBank(faulty(['broken', 'missing', 'silent', 'short', 'empty']))
    # as if there had been enough of them
    bank._kinds['bed'] = [i for i in bank._kinds['bed'] if '/' not in i]
    with pytest.raises(ResonanceError, match='not one bed recording of the train split can be used') as e:
        crowd.draw_scene(bank, 2.0, rng_for(0))
    assert '\n' not in str(e.value) and len(bank.skipped) == 5
    with pytest.raises(ResonanceError, match='no core crowd noise'):
        crowd.CrowdBank(faulty([]))


# ---- scenes


@pytest.fixture(scope='module')
def bank():
    return crowd.CrowdBank(seed=1)


def lone(bank, *events, level_db=0.0, swing_db=0.0):
    "A scene with the first bed, held still."
    return crowd.Scene(((bank.sources('bed')[0], 77, level_db),), swing_db, 5, events, None, 0)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**31),
    st.integers(-40_000, 400_000),
    st.lists(st.integers(0, 60_000), max_size=5),
    st.booleans(),
)
def test_a_scene_in_pieces_is_the_scene(seed, start, cuts, many):
    bank = crowd.CrowdBank(seed=1)
    scene = crowd.draw_scene(
        bank, 10.0, np.random.default_rng(seed), before_s=2.0, events_per_minute=60 if many else 6
    )
    whole = crowd.render_scene(scene, bank, 60_000, start=start)
    edges = sorted({0, 60_000, 1, *cuts})
    parts = [crowd.render_scene(scene, bank, b - a, start=start + a) for a, b in zip(edges, edges[1:])]
    assert np.concatenate(parts).tobytes() == whole.tobytes()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.floats(0.1, 60), st.floats(0, 20), st.floats(0, 40))
def test_a_scene_survives_json_and_gives_the_same_bytes(seed, duration_s, before_s, rate):
    bank = crowd.CrowdBank(seed=1)
    scene = crowd.draw_scene(
        bank,
        duration_s,
        np.random.default_rng(seed),
        before_s=before_s,
        events_per_minute=rate,
        sing_along=0.5,
    )
    again = crowd.Scene.from_dict(json.loads(json.dumps(scene.to_dict())))
    assert again == scene and hash(again) == hash(scene)
    assert (
        crowd.render_scene(again, bank, 9_000, start=-100).tobytes()
        == crowd.render_scene(scene, bank, 9_000, start=-100).tobytes()
    )
    assert all(-before_s <= e.start_s <= duration_s and e.kind in crowd.EVENTS for e in scene.events)
    assert list(scene.events) == sorted(scene.events, key=lambda e: e.start_s) and 2 <= len(scene.layers) <= 3


ANOTHER = """
import sys, numpy as np
from resonance_nb import crowd, mix, voices
bank = crowd.CrowdBank(seed=1)
for i in range(6):
    scene = crowd.draw_scene(bank, 4.0, np.random.default_rng(i), before_s=1.0, events_per_minute=60, sing_along=0.5)
    music = np.random.default_rng(i).normal(size=64_000).astype(np.float32)
    np.save(f'{folder}/{i}.npy', crowd.render_scene(scene, bank, 64_000, music=music))
    print(scene)
"""


def test_another_process_makes_the_same_scenes(tmp_path):
    "The same draws exactly, the same sound to the last digits, which other threads and libraries may turn."
    (tmp_path / 'here').mkdir(), (tmp_path / 'there').mkdir()
    here = StringIO()
    with redirect_stdout(here):
        exec(ANOTHER, {'folder': tmp_path / 'here'})
    env = {**os.environ, 'OMP_NUM_THREADS': '2', 'PYTHONHASHSEED': '7'}
    code = f'folder = {str(tmp_path / "there")!r}\n{ANOTHER}'
    assert (
        subprocess.run(
            [sys.executable, '-c', code], capture_output=True, text=True, env=env, check=True
        ).stdout
        == here.getvalue()
    )
    assert here.getvalue().count('\n') == 6
    for i in range(6):
        one, other = (np.load(tmp_path / where / f'{i}.npy') for where in ('here', 'there'))
        assert one.std() > 1e-3
        np.testing.assert_allclose(other, one, rtol=0, atol=1e-4 * np.abs(one).max())


def test_the_number_of_events_and_singers_is_what_was_asked(bank):
    scenes = [
        crowd.draw_scene(
            bank,
            20.0,
            rng_for(3, i),
            before_s=10.0,
            events_per_minute=12,
            sing_along=0.3,
            kinds=('whistle', 'scream'),
        )
        for i in range(300)
    ]
    counts = np.array([len(s.events) for s in scenes])
    assert counts.mean() == pytest.approx(6, abs=0.6) and counts.var() / counts.mean() == pytest.approx(
        1, abs=0.3
    )
    assert {e.kind for s in scenes for e in s.events} == {'whistle', 'scream'}
    assert np.mean([s.sing_along_db is not None for s in scenes]) == pytest.approx(0.3, abs=0.08)
    assert {len(s.layers) for s in scenes} == {2, 3}
    assert not any(crowd.draw_scene(bank, 20.0, rng_for(4, i), kinds=()).events for i in range(5))
    starts = np.array([e.start_s for s in scenes for e in s.events])
    assert np.mean(starts < 0) == pytest.approx(1 / 3, abs=0.04)


@pytest.mark.parametrize('kind', list(crowd.EVENTS))
def test_an_event_is_heard_when_it_happens_and_only_then(banks, kind):
    facts = crowd.EVENTS[kind]
    rng = rng_for(5, kind)
    for bank in banks:
        rises = []
        for _ in range(10):
            event = replace(crowd._draw_event(bank, kind, (2.0, 3.0), rng), level_db=6.0)
            n = round((event.start_s + event.duration_s + 1) * 16_000)
            bed, full = (crowd.render_scene(scene, bank, n) for scene in (lone(bank), lone(bank, event)))
            difference = full - bed
            begin = round(event.start_s * 16_000)
            end = begin + round(event.duration_s * 16_000)
            assert not difference[:begin].any() and not difference[end:].any()
            # no click
            assert np.abs(np.diff(difference[: begin + 20])).max() < 0.05 * np.abs(difference).max()
            at = begin + int(min(facts.rise_s, event.duration_s / 2) * 16_000)
            span = 12_000 if kind in ('chant', 'clap-along') else 4_800  # a beat, or 0.3 s
            assert db(difference[at : at + span]) > -20, event  # at once as loud as a bed
            rises.append(db(full[at : at + span]) - db(full[begin - span : begin]))
            assert facts.duration_s[0] <= event.duration_s <= facts.duration_s[1]
        assert np.median(rises) > 2 and np.mean(np.array(rises) > 0) > 0.8, rises


def test_an_event_is_as_loud_as_it_says():
    bank = crowd.CrowdBank(seed=1)
    source = bank.sources('applause')[0]
    for level_db in (-6.0, 0.0, 9.0):
        event = crowd.Event('applause', 1.0, 8.0, level_db, source, 4_321)
        heard = crowd.render_scene(lone(bank, event), bank, 160_000) - crowd.render_scene(
            lone(bank), bank, 160_000
        )
        assert db(heard[32_000:112_000]) == pytest.approx(20 * np.log10(crowd.BED_RMS) + level_db, abs=1.0)


def test_the_swing_is_as_wide_as_asked_smooth_and_slow():
    for swing_db in (0.0, 2.0, 5.0):
        spread = []
        for seed in range(8):
            scene = crowd.Scene((), swing_db, seed, (), None, 0)
            gain = crowd._swing(scene, -160_123, 16_000 * 120)
            level = 20 * np.log10(gain.astype(float))
            spread.append(level.std())
            assert np.abs(np.diff(level)).max() < swing_db * 1e-3 + 1e-6  # dB a sample
        assert np.mean(spread) == pytest.approx(swing_db, rel=0.15, abs=1e-6)


def test_a_crowd_is_restless(banks):
    "The level of half-second windows varies more than that of the same bed, looped at a constant level."
    for bank in banks:
        more = []
        for i in range(30):
            scene = crowd.draw_scene(bank, 10.0, rng_for(6, i), swing_db=(2, 4))
            still = replace(scene, swing_db=0.0, events=())
            more.append(
                np.std(db_blocks(crowd.render_scene(scene, bank, 160_000), 8_000))
                - np.std(db_blocks(crowd.render_scene(still, bank, 160_000), 8_000))
            )
        assert np.median(more) > 1 and np.mean(np.array(more) > 0) > 0.85


def test_no_click_where_a_ring_closes(corpus):
    "Over a minute of 2-s tones every sample step stays as small as a tone makes it."
    bank = crowd.CrowdBank(corpus, 'train')
    tone = [i for i in corpus.split('noise', 'train').index if corpus.noise.concert_use[i] == 'core'][0]
    bank._all.add(tone)
    scene = crowd.Scene(((tone, 12_345, 0.0),), 0.0, 0, (), None, 0)
    heard = crowd.render_scene(scene, bank, 60 * 16_000)
    hz = 300 + 100 * int(tone[1:])
    step = 2 * np.pi * hz / 16_000 * np.abs(heard).max()
    assert np.abs(np.diff(heard)).max() < 1.05 * step


def test_the_audience_sings_at_its_level_and_only_when_there_is_music(bank, tracks):
    scene = replace(lone(bank), sing_along_db=-3.0, sing_seed=9)
    music = tracks[0][:48_000]
    without = crowd.render_scene(scene, bank, 48_000)
    sung = crowd.render_scene(scene, bank, 48_000, music=music) - without
    assert db(sung) == pytest.approx(20 * np.log10(crowd.BED_RMS) - 3, abs=0.05)
    assert np.array_equal(crowd.render_scene(scene, bank, 48_000, music=np.zeros(48_000)), without)
    assert np.array_equal(
        crowd.render_scene(replace(scene, sing_along_db=None), bank, 48_000, music=music), without
    )
    quieter = crowd.render_scene(scene, bank, 48_000, music=0.01 * music) - without
    assert np.allclose(quieter, sung, atol=1e-4)
    with pytest.raises(ResonanceError, match='shape'):
        crowd.render_scene(scene, bank, 48_000, music=music[:-1])
    with pytest.raises(ResonanceError, match='finite'):
        crowd.render_scene(scene, bank, 10, music=np.full(10, np.nan))


def test_beds_have_a_common_strength(banks):
    for bank in banks:
        levels = [
            db(
                crowd.render_scene(
                    replace(crowd.draw_scene(bank, 8.0, rng_for(7, i)), events=()), bank, 128_000
                )
            )
            for i in range(40)
        ]
        assert abs(np.median(levels) + 20) < 1.5 and np.percentile(np.abs(np.array(levels) + 20), 90) < 5


@pytest.mark.parametrize(
    'wrong',
    [
        dict(duration_s=0.0),
        dict(duration_s=float('nan')),
        dict(duration_s=float('inf')),
        dict(before_s=-1),
        dict(events_per_minute=-1),
        dict(sing_along=1.5),
        dict(layers=(0, 2)),
        dict(layers=(3, 2)),
        dict(swing_db=(2, 1)),
        dict(kinds=('sneeze',)),
        dict(events_per_minute=float('nan')),
    ],
)
def test_impossible_scenes_are_refused(bank, wrong):
    with pytest.raises(ResonanceError, match='a scene needs'):
        crowd.draw_scene(bank, **{'duration_s': 5.0, 'rng': rng_for(0), **wrong})


@pytest.mark.parametrize(
    'spoil',
    [
        lambda d: d.pop('layers'),
        lambda d: d.update(layers=[['a', 1]]),
        lambda d: d.update(swing_db=float('nan')),
        lambda d: d.update(more=1),
        lambda d: d['events'][0].update(kind='sneeze'),
        lambda d: d['events'][0].update(level_db=float('inf')),
        lambda d: d['events'][0].pop('source'),
        lambda d: d.update(events=None),
        lambda d: d['events'][0].update(start_s='soon'),
        lambda d: d.update(sing_along_db='loud'),
    ],
)
def test_facts_that_are_no_scene_are_refused(bank, spoil):
    event = crowd.Event('cheer', 1.0, 2.0, 0.0, bank.sources('cheer')[0], 3)
    facts = json.loads(json.dumps(lone(bank, event).to_dict()))
    assert crowd.Scene.from_dict(facts) == lone(bank, event)
    spoil(facts)
    with pytest.raises(ResonanceError, match='no crowd scene') as e:
        crowd.Scene.from_dict(facts)
    assert '\n' not in str(e.value)
    with pytest.raises(ResonanceError, match='no crowd scene'):
        crowd.Scene.from_dict([1, 2])


def test_a_scene_of_another_bank_or_without_samples_is_refused(bank):
    scene = lone(crowd.CrowdBank(seed=2))
    with pytest.raises(ResonanceError, match='the bank that the scene was drawn from'):
        crowd.render_scene(scene, bank, 100)
    with pytest.raises(ResonanceError, match='at least one'):
        crowd.render_scene(lone(bank), bank, 0)
    assert crowd.render_scene(lone(bank), bank, 1, start=-(10**9)).shape == (1,)
