"""Verification against slow loops and invariances."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import convolve1d, maximum_filter

from resonance_nb.core import rng_for
from resonance_nb.verify import (
    FEWEST,
    agreement,
    highest,
    padded,
    places,
    ranges,
    realign,
    soft_map,
    without_loudest,
)


def levels(seed, shape=(90, 60)):
    return rng_for(seed, 'levels').normal(-50, 8, shape).astype(np.float32)


@pytest.mark.parametrize('seed', range(3))
def test_the_map_is_scipys_maximum_filter(seed):
    level_db = levels(seed)
    plain = np.exp((level_db - maximum_filter(level_db, (7, 31), mode='nearest')) / 4.0)
    spread = plain.std()
    plain = plain - plain.mean(axis=1, keepdims=True)
    plain /= plain.std(axis=1, keepdims=True) + 0.5 * spread
    plain = convolve1d(plain, [1, 4, 1], axis=0, mode='constant')
    np.testing.assert_allclose(soft_map(level_db), (plain - plain.mean()) / plain.std(), atol=1e-3)


@given(st.integers(0, 20), st.integers(0, 15), st.integers(0, 20), st.integers(1, 40), st.integers(1, 40))
@settings(max_examples=40, deadline=None)
def test_the_highest_is_scipys_maximum_filter(seed, frames, bins, rows, columns):
    frames = 2 * frames + 1
    bins = 2 * bins + 1
    x = levels(seed, (rows, columns))
    np.testing.assert_array_equal(highest(x, frames, bins), maximum_filter(x, (frames, bins), mode='nearest'))


@given(st.floats(-60, 30))
@settings(max_examples=20, deadline=None)
def test_gain_changes_nothing(gain_db):
    np.testing.assert_allclose(
        soft_map(levels(1) + np.float32(gain_db), floor_db=-300),
        soft_map(levels(1), floor_db=-300),
        atol=2e-3,
    )


def test_silence_is_like_no_peak():
    level_db = levels(2)
    level_db[30:60] = -100
    cells = soft_map(level_db)
    # silence speaks for nothing and against nothing
    assert abs(cells[35:55]).max() < 1e-6 and cells.std() == pytest.approx(1, abs=1e-4)
    for nothing in (
        np.full((20, 60), -100, np.float32),
        np.zeros((0, 60), np.float32),
        np.full((5, 60), -30, np.float32),
    ):
        assert not soft_map(nothing).any()


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 6)), max_size=20))
@settings(max_examples=50, deadline=None)
def test_ranges_are_ranges(pairs):
    starts, counts = (np.array([p[i] for p in pairs], np.int64) for i in (0, 1))
    assert ranges(starts, counts).tolist() == [i for s, n in pairs for i in range(s, s + n)]


def scene(seed):
    "Three songs end to end with their peaks, and a map."
    rng = rng_for(seed, 'scene')
    ends = np.array([0, 200, 260, 500])
    frames = np.sort(rng.integers(0, 500, 400))
    return ends, frames, rng.integers(0, 60, 400), soft_map(levels(seed))


@given(
    st.integers(0, 20),
    st.lists(st.tuples(st.integers(0, 2), st.integers(-80, 240)), min_size=1, max_size=12),
    st.integers(-3, 3),
)
@settings(max_examples=40, deadline=None)
def test_agreement_is_the_loop(seed, suspected, shift):
    ends, frames, bins, cells = scene(seed)
    track = np.array([t for t, _ in suspected])
    start = np.array([s for _, s in suspected]) + ends[track]
    at = places(frames, bins, start, ends[track], ends[track + 1], len(cells))
    expected = []
    for t, s in zip(track, start):
        mine = [
            (f - s, b) for f, b in zip(frames, bins) if ends[t] <= f < ends[t + 1] and 0 <= f - s < len(cells)
        ]
        under = [cells[f + shift, b] for f, b in mine if 0 <= f + shift < len(cells)]
        expected.append(sum(under) / np.sqrt(max(len(mine), FEWEST)))
    np.testing.assert_allclose(agreement(padded(cells), at, (shift,))[0], expected, atol=1e-4)
    few = np.arange(0, len(start), 2)
    np.testing.assert_allclose(
        agreement(padded(cells), at.only(few), (shift,))[0], np.array(expected)[few], atol=1e-4
    )


@pytest.mark.parametrize('pitch', [0.99, 1.006])
@pytest.mark.parametrize('speed', [0.98, 1.01])
def test_bent_agreement_is_the_loop(speed, pitch):
    ends, frames, bins, cells = scene(3)
    at = places(frames, bins, np.array([20, 300]), np.array([0, 260]), np.array([200, 500]), len(cells))
    expected = []
    for s, low, high in ((20, 0, 200), (300, 260, 500)):
        mine = [(f - s, b) for f, b in zip(frames, bins) if low <= f < high and 0 <= f - s < len(cells)]
        total = 0
        for f, b in mine:
            f2 = round((f - len(cells) / 2) * speed + len(cells) / 2)
            b2 = min(max(round((b + 10) * pitch) - 10, 0), cells.shape[1] - 1)
            total += cells[f2, b2] if 0 <= f2 < len(cells) else 0
        expected.append(total / np.sqrt(max(len(mine), FEWEST)))
    np.testing.assert_allclose(agreement(padded(cells), at, (0,), speed, pitch, 10)[0], expected, atol=1e-4)
    np.testing.assert_allclose(
        agreement(padded(cells), at, (0,), speed, np.full(2, pitch), 10)[0], expected, atol=1e-4
    )


def test_noise_agrees_by_about_one():
    rng = rng_for(5, 'chance')
    frames = np.sort(rng.integers(0, 50_000, 20_000))
    bins = rng.integers(0, 60, 20_000)
    start = rng.integers(100, 49_000, 3_000)
    at = places(frames, bins, start, np.zeros(3_000, int), np.full(3_000, 50_000), 90)
    z = agreement(padded(soft_map(levels(5))), at)
    assert abs(z.mean()) < 0.1 and 0.85 < z.std() < 1.15


def test_the_best_alignment_gives_its_own_agreement():
    ends, frames, bins, cells = scene(7)
    at = places(
        frames, bins, np.array([20, 300, 240]), np.array([0, 260, 200]), np.array([200, 500, 260]), len(cells)
    )
    maps = [padded(cells), padded(np.roll(cells, 1, 0))]
    best = realign(maps, at, 10, toll=0.0)
    for i in range(3):
        one = agreement(maps[best.number[i]], at, (best.shift[i],), best.speed[i], best.pitch[i], 10)[0, i]
        assert one == pytest.approx(best.z[i], abs=1e-4)
    assert (best.z >= agreement(maps[0], at)[0] - 1e-6).all()
    straight = realign(maps, at, 10, bend=False)
    assert (straight.speed == 1).all() and (straight.pitch == 1).all() and (straight.z <= best.z + 1e-9).all()


def test_what_one_moment_says_is_left_out():
    cells = np.zeros((100, 60), np.float32)
    frames = np.arange(0, 100, 2)
    bins = np.arange(50)
    at = places(frames, bins, np.array([0]), np.array([0]), np.array([100]), 100)
    cells[frames[:10], bins[:10]] = 3  # all in the first fifth
    maps = [padded(cells)]
    best = realign(maps, at, 0, bend=False)
    assert best.z[0] > 3 and without_loudest(maps, at, best, 0)[0] == pytest.approx(0, abs=1e-6)
    cells[frames, bins] = 3
    maps = [padded(cells)]
    best = realign(maps, at, 0, bend=False)
    assert without_loudest(maps, at, best, 0)[0] == pytest.approx(best.z[0] * np.sqrt(0.8), rel=1e-3)
