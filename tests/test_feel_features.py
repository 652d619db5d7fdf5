"""The hand-crafted features of a song: against librosa, under changes of the sound, and for sound that is none."""

import librosa
import numpy as np
import pytest

from resonance_nb.feel_features import (
    FEATURES,
    LIMITS,
    WEIGHTS,
    chroma,
    features,
    intervals,
    loudness_db,
    magnitudes,
    mfcc_statistics,
    onset_curve,
    scaled,
    tempo,
    timbre,
    tuning,
    semitones,
    zero_crossings,
)

RATE_HZ = 16_000


@pytest.fixture(scope='module')
def song():
    "Twelve seconds with a beat at 100 a minute, chords that change, and hiss."
    rng = np.random.default_rng(7)
    t = np.arange(12 * RATE_HZ) / RATE_HZ
    chords = np.array([[0, 4, 7], [5, 9, 12], [7, 11, 14], [0, 4, 7]])[(t // 3).astype(int)]
    hz = 220 * 2 ** (chords / 12)
    tones = np.sin(2 * np.pi * np.cumsum(hz, axis=0) / RATE_HZ).sum(axis=1)
    beat = np.exp(-((t * 100 / 60) % 1) * 12)
    return (0.1 * tones + beat * rng.normal(0, 0.1, len(t))).astype(np.float32)


def named(values):
    return dict(zip(FEATURES, values, strict=True))


@pytest.mark.parametrize('n', [0, 1, 2, 511, 512, 1_023, 1_024, 2_047, 8_191, 8_193])
def test_any_length_has_finite_features(n):
    noise = np.random.default_rng(n).normal(0, 0.1, n).astype(np.float32)
    values = features(noise)
    assert values.shape == (23,) and np.isfinite(values).all() and np.isfinite(scaled(values)).all()
    assert np.isfinite(mfcc_statistics(noise)).all()


@pytest.mark.parametrize('value', [np.nan, np.inf, 1e30, 0.0, 0.5])
def test_broken_and_constant_sound(value):
    values = named(features(np.full(30_000, value, np.float32)))
    assert np.isfinite(list(values.values())).all()
    assert values['tempo'] == 0 and values['zero_crossings'] == 0


@pytest.mark.parametrize('n', [1_024, 200_000, 262_144 + 5, 600_000])
def test_blocks_are_one_transform(n):
    x = np.random.default_rng(0).normal(0, 0.1, n).astype(np.float32)
    ours = np.concatenate(list(magnitudes(x)))
    theirs = np.abs(librosa.stft(x, n_fft=1_024, hop_length=256, pad_mode='constant')).T
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, atol=1e-3)


def test_timbre_is_librosas(song):
    spectra = np.concatenate(list(magnitudes(song)))
    of = librosa.feature
    theirs = [
        of.spectral_centroid(S=spectra.T, sr=RATE_HZ),
        of.spectral_rolloff(S=spectra.T, sr=RATE_HZ, roll_percent=0.95),
        of.spectral_flatness(S=spectra.T),
    ]
    np.testing.assert_allclose(timbre(spectra), np.concatenate(theirs).T, rtol=1e-3, atol=1e-4)


def test_levels_and_crossings_are_librosas(song):
    rms = librosa.feature.rms(y=song, frame_length=1_024, hop_length=1_024, center=False)[0]
    np.testing.assert_allclose(loudness_db(song)[: len(rms)], 20 * np.log10(rms), atol=1e-3)
    assert zero_crossings(song) == pytest.approx(
        librosa.zero_crossings(song, threshold=0, pad=False).mean(), abs=1e-5
    )


@pytest.mark.parametrize('beats', [50, 72, 97, 128, 175])
def test_the_tempo_of_a_metronome(beats):
    x = np.zeros(20 * RATE_HZ, np.float32)
    for at in (np.arange(0, 19.9, 60 / beats) * RATE_HZ).astype(int):
        x[at : at + 100] = np.hanning(100)
    told = tempo(onset_curve(magnitudes(x)))
    octave = np.log2(told / beats)
    assert abs(octave - round(octave)) < 0.03 and abs(octave) < 1.1  # the beat, or its half or double


def test_a_song_keeps_its_features_when_it_is_turned_down(song):
    loud, soft = named(features(song)), named(features(song * np.float32(0.25)))
    assert soft['loudness_mean'] == pytest.approx(loud['loudness_mean'] - 12.04, abs=0.1)
    for name in set(FEATURES) - {'loudness_mean'}:
        assert soft[name] == pytest.approx(loud[name], rel=0.05, abs=0.05), name


def test_intervals_survive_transposition(song):
    notes = chroma(song)
    for k in range(1, 12):
        np.testing.assert_allclose(intervals(np.roll(notes, k, axis=1)), intervals(notes), atol=1e-5)
    assert intervals(np.zeros((0, 12))).tolist() == [0] * 13


@pytest.mark.parametrize('off', [-0.45, -0.2, 0.1, 0.4])
def test_the_tuning_is_found(off):
    t = np.arange(3 * RATE_HZ) / RATE_HZ
    x = sum(np.sin(2 * np.pi * 440 * 2 ** ((s + off) / 12) * t) for s in (-9, -5, 0, 3)).astype(np.float32)
    spectra = np.concatenate(list(magnitudes(x, 8_192, 2_048)))
    assert semitones(tuning(spectra)) == pytest.approx(off, abs=0.03)
    assert semitones(0) == 0


def test_scaled_features_lie_between_their_limits(song):
    assert (LIMITS[0] < LIMITS[1]).all() and len(WEIGHTS) == 23
    plain = scaled(features(song), weights=np.ones(23))
    assert (np.abs(plain) <= 1).all()
    two = np.stack([features(song), features(song[::2])])
    np.testing.assert_allclose(scaled(two)[0], scaled(two[0]))
