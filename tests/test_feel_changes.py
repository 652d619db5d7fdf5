"""Changes of a sound and of a score: what they do, and how far they move the vectors of systems that are known."""

import numpy as np
import pytest

from resonance_nb.audio import rms_db
from resonance_nb.core import ResonanceError
from resonance_nb.feel_changes import CHANGES, FACTORS, low_pass, move_table, moves, tilt, varied
from resonance_nb.feel_eval import System
from resonance_nb.scores import DRUMS, Arrangement


@pytest.fixture(scope='module')
def sounds():
    rng = np.random.default_rng(0)
    t = np.arange(3 * 16_000) / 16_000
    tones = {
        f'{f}': 0.1 * np.sin(2 * np.pi * f * t) + 0.001 * rng.normal(size=len(t)) for f in (200, 450, 1_000)
    }
    return {name: x.astype(np.float32) for name, x in tones.items()}


@pytest.mark.parametrize('name', CHANGES)
@pytest.mark.parametrize('n', [0, 1, 900, 5_000])
def test_changes_take_any_length(name, n):
    x = np.random.default_rng(n).normal(0, 0.1, n).astype(np.float32)
    y = CHANGES[name](x)
    assert y.ndim == 1 and np.isfinite(y).all()


@pytest.mark.parametrize('name', CHANGES)
def test_changes_leave_the_original_alone(name, sounds):
    x = sounds['450']
    before = x.copy()
    y = CHANGES[name](x)
    np.testing.assert_array_equal(x, before)
    assert len(y) != len(x) or not np.array_equal(x, y)


def test_levels_and_filters(sounds):
    x = sounds['1000']
    assert rms_db(CHANGES['−12 dB'](x)) == pytest.approx(rms_db(x) - 12, abs=0.01)
    assert np.abs(CHANGES['+12 dB, clipped'](10 * x)).max() <= 1
    assert rms_db(tilt(tilt(x, 6), -6) - x) < rms_db(x) - 40
    noise = np.random.default_rng(0).normal(0, 0.1, 32_000).astype(np.float32)
    spectrum = np.abs(np.fft.rfft(low_pass(noise, 4_000))) / np.abs(np.fft.rfft(noise))
    at_hz = np.fft.rfftfreq(32_000, 1 / 16_000)
    assert np.median(spectrum[at_hz < 3_000]) == pytest.approx(1, abs=0.02)
    assert np.median(spectrum[at_hz > 6_000]) < 0.01


def test_pitch_and_tempo(sounds):
    def hz(x):
        return np.abs(np.fft.rfft(x * np.hanning(len(x)), 16_000 * 4)).argmax() / 4

    assert hz(CHANGES['a semitone higher'](sounds['450'])) == pytest.approx(450 * 2 ** (1 / 12), abs=2)
    assert hz(CHANGES['4 % faster'](sounds['450'])) == pytest.approx(450, abs=2)
    assert len(CHANGES['4 % faster'](sounds['450'])) == round(48_000 / 1.04)


def test_a_system_that_hears_the_level_is_lost_and_one_that_hears_pitch_is_not(sounds):
    loud = {name: x * np.float32(g) for (name, x), g in zip(sounds.items(), (1, 0.5, 0.25))}
    level = System('level', lambda x: np.array([1.0, rms_db(x) / 20]))
    pitch = System(
        'pitch', lambda x: np.eye(3)[np.searchsorted([300, 700], np.abs(np.fft.rfft(x, 16_000)).argmax())]
    )
    turned = {'−12 dB': CHANGES['−12 dB']}
    of_level, of_pitch = (moves(s, loud, changes=turned) for s in (level, pitch))
    assert not of_level['own'].all() and of_level['moved'].median() > 0.5
    assert of_pitch['own'].all() and of_pitch['moved'].max() < 1e-6
    table = move_table(of_pitch)
    assert table.loc[0, ['own', 'high', 'n']].tolist() == [1, 1, 3]
    with pytest.raises(ResonanceError, match='at least two'):
        moves(pitch, {'one': loud['200']})


def test_a_system_may_answer_everything_alike(sounds):
    rows = moves(System('deaf', lambda x: np.ones(4)), sounds, changes={'−12 dB': CHANGES['−12 dB']})
    assert np.isfinite(rows['moved']).all()


@pytest.mark.parametrize('name', FACTORS)
def test_scores_are_changed_in_one_thing(name):
    notes = np.array([[0, 1, 0, 60, 90], [1, 1, 0, 64, 90], [0, 0.1, DRUMS, 36, 100]], float)
    score = Arrangement(notes, {0: 73}, 2.0)
    other = FACTORS[name](score)
    np.testing.assert_array_equal(score.notes, notes)
    changed = {
        'time': not np.allclose(other.notes[:, :2], notes[:, :2]),
        'pitch': not np.allclose(other.notes[:, 3], notes[:, 3]),
        'velocity': not np.allclose(other.notes[:, 4], notes[:, 4]),
        'programs': other.programs != score.programs,
    }
    assert sum(changed.values()) == 1
    assert other.notes[2, 3] == 36  # the drum is the same drum


def test_a_piece_played_faster_is_shorter():
    score = Arrangement(np.array([[1.0, 1, 0, 60, 90]]), {0: 0}, 2.0)
    fast = varied(score, faster=2, semitones=60)
    assert (fast.duration_s, fast.notes[0].tolist()) == (1.0, [0.5, 0.5, 0, 108, 90])
