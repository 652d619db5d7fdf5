"""What is fitted to the encoder, and what is taken off in a small catalogue."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resonance_nb.core import ResonanceError
from resonance_nb.small import StrangerAnswer, penalties, without_alike
from resonance_nb.vectors import blocks_of, coloured_noise, noise_directions, save_noises


@pytest.mark.parametrize('exponent', [0, 1, 2])
def test_the_power_of_coloured_noise_falls_as_asked(exponent):
    from scipy.signal import welch

    f, power = welch(coloured_noise(exponent, duration_s=30), 16_000, nperseg=4096)
    band = (f > 100) & (f < 4000)
    slope = np.polyfit(np.log(f[band]), np.log(power[band]), 1)[0]
    assert slope == pytest.approx(-exponent, abs=0.1)


def test_directions_are_found_and_have_unit_length():
    rng = np.random.default_rng(0)
    true = np.eye(8)[:3]
    vectors = np.concatenate([t + 0.05 * rng.normal(size=(50, 8)) for t in true])
    found = noise_directions(vectors, n_directions=3)
    assert np.linalg.norm(found, axis=1) == pytest.approx(np.ones(3))
    assert (found @ true.T).max(0) == pytest.approx(np.ones(3), abs=0.01)
    with pytest.raises(ResonanceError, match='as many vectors'):
        noise_directions(vectors[:2], n_directions=3)


def test_noises_are_written_as_they_are_read(tmp_path):
    x = np.random.default_rng(0).normal(size=(5, 8))
    save_noises(tmp_path / 'n.npy', x)
    assert np.load(tmp_path / 'n.npy', allow_pickle=False) == pytest.approx(x, abs=2e-3)


@given(st.integers(0, 9))
@settings(deadline=None)
def test_blocks_are_four_vectors_side_by_side(n):
    x = np.arange(3.0 * n).reshape(n, 3)
    naive = [np.concatenate(x[i : i + 4]) for i in range(n - 3)]
    assert np.array_equal(blocks_of(x), np.array(naive).reshape(-1, 12))


def test_penalties_let_no_more_pass_and_fall_with_the_size():
    rng = np.random.default_rng(0)
    logits = [rng.normal(m, 1, 2000) for m in (0.0, -2.0, -1.0, -6.0)]
    off = penalties(logits, 0.4, false_accepts=0.005)
    assert off == sorted(off, reverse=True) and off[-1] == 0
    for x, p in zip(logits, off):
        assert np.mean(x - p > 0.4) <= 0.006


def test_songs_that_share_audio_are_no_strangers():
    answers = [
        StrangerAnswer('a', 'b', 3.0, True),
        StrangerAnswer('a', 'b', 2.0, False),
        StrangerAnswer('a', 'c', 1.0, False),
    ]
    assert without_alike(answers).tolist() == [1.0]
