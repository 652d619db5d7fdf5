"""Rows of windows laid along rows of windows: every function against a loop, and its odd cases."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from resonance_nb.match import SAME, align, best_places, best_songs, between, laid_out, runner_up, scan

lengths_of_songs = st.lists(st.integers(1, 9), min_size=1, max_size=4)


def unit(rng, *shape):
    x = rng.standard_normal(shape).astype(np.float32)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


# ---- diagonals


def slow_diagonals(similar, lengths, step=1):
    "Mean of the diagonal that begins at each window; what lies beyond the end of a song counts nothing."
    n = len(similar)
    starts = laid_out(lengths)[0]
    inside = lambda place, length: [i for i in range(n) if place + i * step < length]
    return [
        sum(float(similar[i, begin + place + i * step]) for i in inside(place, length)) / max(n, 1)
        for begin, length in zip(starts, lengths)
        for place in range(length)
    ]


@settings(max_examples=60, deadline=None)
@given(lengths_of_songs, st.integers(0, 8), st.integers(1, 3), st.integers(1, 12), st.integers(0, 99))
@example([1], 8, 1, 1, 0)
@example([9, 9], 8, 2, 5, 0)
def test_scan_is_a_loop(lengths, n, step, at_once, seed):
    rng = np.random.default_rng(seed)
    windows = unit(rng, sum(lengths), 5)
    clip = unit(rng, n, 5)
    remaining = laid_out(lengths)[1]
    expected = slow_diagonals(clip @ windows.T, lengths, step)
    # wherever the songs are cut
    got = scan(clip, windows, remaining, step=step, at_once=at_once)
    np.testing.assert_allclose(got, [expected], atol=1e-5)
    np.testing.assert_allclose(scan(clip, windows, remaining, step=step), [expected], atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(
    lengths_of_songs,
    st.integers(0, 9),
    st.integers(1, 3),
    st.integers(1, 12),
    st.integers(2, 5),
    st.integers(0, 99),
)
def test_windows_of_a_clip_take_turns(lengths, n, step, at_once, phases, seed):
    rng = np.random.default_rng(seed)
    windows = unit(rng, sum(lengths), 5)
    clip = unit(rng, n, 5)
    remaining = laid_out(lengths)[1]
    got = scan(clip, windows, remaining, step=step, phases=phases, at_once=at_once)
    assert got.shape == (phases, len(windows)) and got.dtype == np.float32
    for phase in range(phases):
        expected = slow_diagonals(clip[phase::phases] @ windows.T, lengths, step)
        np.testing.assert_allclose(got[phase], expected, atol=1e-5)


def test_scan_of_no_songs():
    assert scan(np.ones((3, 5), np.float32), np.zeros((0, 5), np.float32), np.zeros(0, int)).shape == (1, 0)


def test_every_other_window_is_found_at_the_same_place():
    rng = np.random.default_rng(0)
    songs = unit(rng, 60, 16)
    starts, remaining = laid_out([25, 35])
    clip = songs[31:43]
    for step in (1, 2, 3):
        best, place = best_places(scan(clip[::step], songs, remaining, step=step)[0], starts)
        assert best[1] == pytest.approx(1, abs=1e-5) and place[1] == 31 - 25 and best[0] < 0.7


def test_a_song_does_not_go_on_in_the_next():
    remaining = laid_out([3, 3])[1]
    ones = np.ones((6, 1), np.float32)
    for step in (1, 2):
        got = scan(ones[:4], ones, remaining, step=step)[0]
        expected = [[3 / 4, 2 / 4, 1 / 4], [2 / 4, 1 / 4, 1 / 4]][step - 1] * 2
        assert got.tolist() == pytest.approx(expected)


# ---- songs end to end, and the best place of each


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 9), max_size=6))
def test_laid_out_is_a_loop(lengths):
    starts, remaining = laid_out(np.array(lengths, np.int32))
    assert starts.tolist() == [sum(lengths[:i]) for i in range(len(lengths) + 1)]
    assert remaining.tolist() == [n - 1 - i for n in lengths for i in range(n)]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.lists(st.sampled_from([-1.0, -0.25, 0.0, 0.5, 1.0]), min_size=1, max_size=8),
        min_size=1,
        max_size=6,
    )
)
@example([[0.5, 0.5], [0.5]])
def test_best_places_are_the_first_of_the_best(songs):
    best, place = best_places(np.concatenate(songs).astype(np.float32), laid_out([len(s) for s in songs])[0])
    assert best.tolist() == [max(s) for s in songs]
    assert place.tolist() == [s.index(max(s)) for s in songs]  # of equal places, the first


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 8), min_size=1, max_size=9),
    st.integers(1, 3),
    st.integers(1, 10),
    st.sets(st.integers(0, 8)),
    st.integers(0, 99),
)
def test_best_songs_are_those_of_best_places(lengths, phases, most, left_out, seed):
    scores = (
        np.random.default_rng(seed).permutation(phases * sum(lengths)).reshape(phases, -1).astype(np.float32)
    )
    first = laid_out(lengths)[0]
    left_out = np.array([i for i in left_out if i < len(lengths)], int)
    found = [best_places(row, first) for row in scores]
    best = np.max([b for b, _ in found], axis=0)
    order = [i for i in np.argsort(-best) if i not in left_out][:most]
    song, place = best_songs(scores, first, most, left_out)
    assert song.tolist() == sorted(order) and place.shape == (phases, len(order))
    assert all(place[t].tolist() == found[t][1][song].tolist() for t in range(phases))


# ---- between two windows


@settings(max_examples=80, deadline=None)
@given(st.floats(-0.49, 0.49), st.floats(0.01, 3), st.floats(-2, 2))
def test_the_top_of_a_parabola_is_where_it_is(top, bend, height):
    before, here, after = (height - bend * (x - top) ** 2 for x in (-1, 0, 1))
    assert float(between(before, here, after)) == pytest.approx(top, abs=1e-6)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(*[st.floats(-1, 1, width=32)] * 3), max_size=20))
def test_never_more_than_half_a_window(triples):
    before, here, after = np.array(triples, np.float32).reshape(-1, 3).T
    got = between(before, here, after)
    assert got.shape == here.shape and np.isfinite(got).all() and (np.abs(got) <= 0.5).all()
    for shift, b, h, a in zip(got, before, here, after):  # towards the higher neighbour, never away from it
        assert shift * (float(a) - float(b)) >= 0


@pytest.mark.parametrize(
    'three', [(0, 0, 0), (0.5, 0.5, 0.5), (0, 1, 2), (1, 0, 1), (3, 1, 2), (0.3, 0.3, 0.3 + 1e-12)], ids=str
)
def test_where_there_is_no_top_nothing_moves(three):
    assert float(between(*three)) == 0


def test_a_top_beyond_the_neighbour_stays_within_half_a_window():
    assert between(
        np.array([0.0, 2.0]), np.array([1.9, 1.9]), np.array([2.0, 0.0])
    ).tolist() == pytest.approx([0.5, -0.5])
    assert between(np.zeros((2, 3)), np.ones((2, 3)), np.full((2, 3), 0.5)).shape == (2, 3)


# ---- along a diagonal


@settings(max_examples=60, deadline=None)
@given(lengths_of_songs, st.integers(1, 6), st.integers(0, 999))
def test_align_is_a_loop(lengths, n, seed):
    rng = np.random.default_rng(seed)
    starts, _ = laid_out(lengths)
    windows = unit(rng, sum(lengths), 4)
    clip = unit(rng, n, 4)
    song = rng.integers(0, len(lengths), 12)
    begins = starts[song] + rng.integers(-n - 2, 12, 12)  # some of them wholly outside
    cosine, shift = align(lambda rows: windows[rows] @ clip.T, n, begins, starts[song], starts[song + 1])
    for i, (b, s) in enumerate(zip(begins, song)):
        mean = {}
        for late in range(-2, 3):
            at = b + late + np.arange(n)
            inside = (at >= starts[s]) & (at < starts[s + 1])
            mean[late] = float(np.sum(windows[at[inside]] * clip[inside])) / n
        best = max((-1, 0, 1), key=lambda late: mean[late])
        assert cosine[i] == pytest.approx(mean[best], abs=1e-5)
        top = float(between(mean[best - 1], mean[best], mean[best + 1]))
        if sorted(mean[late] for late in (-1, 0, 1))[-2] < mean[best] - 1e-4:
            assert shift[i] == pytest.approx(best + top, abs=0.02)


def test_align_asks_only_for_windows_of_the_song():
    asked = []

    def products(rows):
        asked.append(rows)
        return np.ones((*rows.shape, 4), np.float32)

    starts = np.array([5, 5, 8])
    ends = np.array([8, 8, 20])
    cosine, shift = align(products, 4, np.array([-50, 6, 18]), starts, ends)
    (rows,) = asked
    assert (rows >= starts[:, None]).all() and (rows < ends[:, None]).all()
    assert cosine.tolist() == pytest.approx([0, 3 / 4, 3 / 4]) and (np.abs(shift) <= 1.5).all()


def test_align_nowhere():
    none = np.zeros(0, int)
    products = lambda rows: np.ones((*rows.shape, 3), np.float32)
    cosine, shift = align(products, 3, none, none, none)
    assert cosine.shape == shift.shape == (0,)


# ---- who the runner-up is


def places_like(*cosines, windows=6, dim=8):
    "Vectors of places, each of a known cosine with the first."
    base = np.zeros((windows, dim), np.float32)
    base[:, 0] = 1
    made = []
    for i, c in enumerate(cosines):
        other = np.zeros_like(base)
        other[:, 0], other[:, 1 + i % (dim - 1)] = c, np.sqrt(1 - c * c)
        made.append(other)
    return np.stack([base, *made])


@pytest.mark.parametrize(
    'cosines, number',
    [
        ((), 1),
        ((0.1,), 1),
        ((0.99,), 2),
        ((0.99, 0.99), 3),
        ((0.99, 0.2), 2),
        ((0.2, 0.99), 1),
        ((0.99, 0.99, -0.3, 0.99), 3),
        ((SAME - 0.01,), 1),
        ((SAME + 0.01,), 2),
    ],
    ids=str,
)
def test_the_runner_up_is_the_best_that_sounds_otherwise(cosines, number):
    score = np.linspace(2, 1, len(cosines) + 1)
    assert runner_up(score, places_like(*cosines)) == number


def test_how_alike_is_a_choice():
    assert runner_up(np.array([2.0, 1.0]), places_like(0.5)) == 1
    assert runner_up(np.array([2.0, 1.0]), places_like(0.5), same=0.4) == 2


def test_without_songs_there_is_no_runner_up():
    assert runner_up(np.zeros(0), np.zeros((0, 6, 8), np.float32)) == 0
