"Mixing at a ratio is exact, and beds are made of the right recordings."

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resonance_nb import crowd
from resonance_nb.audio import save
from resonance_nb.core import ResonanceError, rng_for
from resonance_nb.corpora import write_corpus


def db(x):
    return 10 * np.log10(np.mean(np.asarray(x, float) ** 2))


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(-30, 40), st.floats(-60, 6), st.floats(-60, 6), st.integers(1, 4_000))
def test_the_ratio_is_exact_at_any_level(seed, snr_db, music_db, noise_db, n):
    rng = np.random.default_rng(seed)
    music = (rng.normal(size=n) * 10 ** (music_db / 20)).astype(np.float32)
    noise = (rng.standard_t(3, size=n) * 10 ** (noise_db / 20)).astype(np.float32)
    mixture, info = crowd.mix_at_snr(music, noise, snr_db)
    assert mixture.dtype == np.float32 and mixture.shape == (n,) and np.abs(mixture).max() <= 1
    assert abs(info.snr_db - snr_db) < 0.1
    in_music, in_noise = info.common_gain * music.astype(float), info.common_gain * info.noise_gain * noise.astype(float)
    assert abs(db(in_music) - db(in_noise) - snr_db) < 0.1
    assert np.abs(mixture - (in_music + in_noise)).max() < 1e-5


def test_too_loud_sums_are_turned_down_not_clipped():
    music = np.full(1_000, 0.9, np.float32)
    noise = np.tile(np.float32([1, -1]), 500)
    mixture, info = crowd.mix_at_snr(music, noise, 0)
    assert info.common_gain == pytest.approx(1 / 1.8) and mixture.max() == pytest.approx(1, abs=1e-6)
    assert (np.sort(np.unique(mixture.round(5))) == [0, 1]).all()


def test_what_goes_in_is_left_alone():
    music, noise = np.random.default_rng(0).normal(size=(2, 500)).astype(np.float32) * 0.1
    before = music.copy(), noise.copy()
    crowd.mix_at_snr(music, noise, -5)
    assert np.array_equal(music, before[0]) and np.array_equal(noise, before[1])


@pytest.mark.parametrize('music, noise, snr, message', [
    (np.zeros(100), np.ones(100), 0, 'the music is silent'),
    (np.ones(100), np.zeros(100), 0, 'the noise is silent'),
    (np.ones(100), np.ones(99), 0, 'same length'),
    (np.ones(0), np.ones(0), 0, 'at least one'),
    (np.ones(100), np.full(100, np.nan), 0, 'NaN'),
    (np.ones((2, 100)), np.ones((2, 100)), 0, 'one row'),
    (np.ones(100), np.ones(100), float('nan'), 'finite number'),
    (np.ones(100), np.ones(100), float('inf'), 'finite number'),
])
def test_nonsense_is_refused_in_one_line(music, noise, snr, message):
    with pytest.raises(ResonanceError, match=message) as e:
        crowd.mix_at_snr(music, noise, snr)
    assert '\n' not in str(e.value)


@pytest.mark.parametrize('m, n, start', [(16_000, 100_000, 0), (16_000, 100_000, 15_999), (5, 1_000, 3), (1, 10, 0), (40_000, 40_000, 7)])
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
    rows, t = [], np.arange(32_000) / 16_000
    for i in range(13):
        save(home / f'noise/n{i}.wav', (0.3 * np.sin(2 * np.pi * (300 + 100 * i) * t)).astype(np.float32))
        rows.append(dict(id=f'n{i}', file=f'noise/n{i}.wav', category='crowd', concert_use='core' if i < 12 else 'other', duration_s=2.0))
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
    assert len(one) == round(1.2345 * 16_000) and np.array_equal(one, two) and np.abs(one).max() == pytest.approx(0.9, abs=1e-3)
    assert not np.array_equal(one, crowd.bed(corpus, 'train', 1.2345, rng_for(2, 'x')))
    with pytest.raises(ResonanceError, match='no samples'):
        crowd.bed(corpus, 'train', 0.0, rng_for(1))


def test_a_split_without_crowds_is_named(corpus, tmp_path):
    bare = write_corpus(tmp_path, noise=corpus.noise[corpus.noise.concert_use == 'other'])
    with pytest.raises(ResonanceError, match='no core crowd noise in its test split'):
        crowd.bed(bare, 'test', 1.0, rng_for(0))
