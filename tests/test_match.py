"""Rows of windows laid along rows of windows: every function against a loop, and its odd cases."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from resonance_nb.core import ResonanceError
from resonance_nb.match import (
    SAME,
    along,
    best_places,
    best_songs,
    between,
    diagonals,
    laid_out,
    propose,
    rival,
    scan,
)

lengths_of_songs = st.lists(st.integers(1, 9), min_size=1, max_size=4)


def unit(rng, *shape):
    x = rng.standard_normal(shape).astype(np.float32)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


# ---- diagonals


@settings(max_examples=60, deadline=None)
@given(lengths_of_songs, st.integers(0, 8), st.integers(1, 3), st.integers(0, 99))
@example([1], 8, 1, 0)  # a clip longer than all songs together
@example([1], 8, 2, 0)
@example([5, 1, 3], 4, 2, 0)
def test_diagonals_are_a_loop(lengths, n, step, seed):
    similar = np.random.default_rng(seed).uniform(-1, 1, (n, sum(lengths))).astype(np.float32)
    before = similar.copy()
    first, left = laid_out(lengths)
    got = diagonals(similar, left, step)
    assert got.shape == (sum(lengths),) and np.array_equal(similar, before)
    for begin, length in zip(first, lengths):
        for place in range(length):
            total = sum(
                float(similar[i, begin + place + i * step]) for i in range(n) if place + i * step < length
            )
            assert got[begin + place] == pytest.approx(total / max(n, 1), abs=1e-5)


@settings(max_examples=60, deadline=None)
@given(lengths_of_songs, st.integers(0, 8), st.integers(1, 3), st.integers(1, 12), st.integers(0, 99))
@example([1], 8, 1, 1, 0)
@example([9, 9], 8, 2, 5, 0)
def test_scan_is_diagonals_without_the_table(lengths, n, step, at_once, seed):
    rng = np.random.default_rng(seed)
    windows = unit(rng, sum(lengths), 5)
    clip = unit(rng, n, 5)
    left = laid_out(lengths)[1]
    expected = diagonals(clip @ windows.T, left, step)
    # wherever the songs are cut
    np.testing.assert_allclose(scan(clip, windows, left, step, at_once), [expected], atol=1e-5)
    np.testing.assert_allclose(scan(clip, windows, left, step), [expected], atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(
    lengths_of_songs,
    st.integers(0, 9),
    st.integers(1, 3),
    st.integers(1, 12),
    st.integers(2, 5),
    st.integers(0, 99),
)
def test_windows_of_a_clip_take_turns(lengths, n, step, at_once, turns, seed):
    rng = np.random.default_rng(seed)
    windows = unit(rng, sum(lengths), 5)
    clip = unit(rng, n, 5)
    left = laid_out(lengths)[1]
    got = scan(clip, windows, left, step, at_once, turns)
    assert got.shape == (turns, len(windows)) and got.dtype == np.float32
    for turn in range(turns):
        np.testing.assert_allclose(got[turn], diagonals(clip[turn::turns] @ windows.T, left, step), atol=1e-5)


def test_scan_of_no_songs():
    assert scan(np.ones((3, 5), np.float32), np.zeros((0, 5), np.float32), np.zeros(0, int)).shape == (1, 0)


def test_every_other_window_is_found_at_the_same_place():
    rng = np.random.default_rng(0)
    songs = unit(rng, 60, 16)
    first, left = laid_out([25, 35])
    clip = songs[31:43]
    for asked, step in ((clip, 1), (clip[::2], 2), (clip[::3], 3)):
        best, place = best_places(diagonals(asked @ songs.T, left, step), first)
        assert best[1] == pytest.approx(1, abs=1e-5) and place[1] == 31 - 25 and best[0] < 0.7


def test_a_song_does_not_go_on_in_the_next():
    left = laid_out([3, 3])[1]
    similar = np.ones((4, 6), np.float32)
    assert diagonals(similar, left).tolist() == pytest.approx([3 / 4, 2 / 4, 1 / 4] * 2)
    assert diagonals(similar, left, 2).tolist() == pytest.approx([2 / 4, 1 / 4, 1 / 4] * 2)


# ---- songs end to end, and the best place of each


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 9), max_size=6))
def test_laid_out_is_a_loop(lengths):
    first, left = laid_out(np.array(lengths, np.int32))
    assert first.tolist() == [sum(lengths[:i]) for i in range(len(lengths) + 1)]
    assert left.tolist() == [n - 1 - i for n in lengths for i in range(n)]


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
def test_best_songs_are_those_of_best_places(lengths, turns, most, left_out, seed):
    scores = (
        np.random.default_rng(seed).permutation(turns * sum(lengths)).reshape(turns, -1).astype(np.float32)
    )
    first = laid_out(lengths)[0]
    left_out = np.array([i for i in left_out if i < len(lengths)], int)
    found = [best_places(row, first) for row in scores]
    best = np.max([b for b, _ in found], axis=0)
    order = [i for i in np.argsort(-best) if i not in left_out][:most]
    song, place = best_songs(scores, first, most, left_out)
    assert song.tolist() == sorted(order) and place.shape == (turns, len(order))
    assert all(place[t].tolist() == found[t][1][song].tolist() for t in range(turns))


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


# ---- places that neighbours speak for


def slow_votes(scores, rows, first, step):
    "Song and place -> weight, with what its two neighbours have."
    votes = {}
    for i, (line, places) in enumerate(zip(scores, rows)):
        for score, row in zip(line, places):
            if row >= 0:
                song = max(s for s in range(len(first) - 1) if first[s] <= row)
                key = song, int(row) - int(first[song]) - i * step
                votes[key] = votes.get(key, 0) + max(float(score), 0)
    return {(s, p): v + votes.get((s, p - 1), 0) + votes.get((s, p + 1), 0) for (s, p), v in votes.items()}


@settings(max_examples=80, deadline=None)
@given(lengths_of_songs, st.integers(0, 6), st.integers(1, 4), st.integers(1, 3), st.integers(0, 999))
@example([1, 1], 6, 4, 2, 0)
def test_propose_is_a_loop(lengths, n, k, step, seed):
    rng = np.random.default_rng(seed)
    first = laid_out(lengths)[0]
    rows = rng.integers(-1, sum(lengths), (n, k))  # -1 is nothing
    scores = rng.uniform(-0.5, 1, (n, k))
    scores[rows < 0] = -np.inf  # as an index says it
    expected = slow_votes(scores, rows, first, step)
    songs, places = propose(scores, rows, first, 500, step)
    found = list(zip(songs.tolist(), places.tolist()))
    assert len(set(found)) == len(found) and set(found) == set(expected)
    got = [expected[f] for f in found]
    assert all(a >= b - 1e-9 for a, b in zip(got, got[1:])), 'best first'
    few = propose(scores, rows, first, 2, step)
    assert list(zip(few[0].tolist(), few[1].tolist())) == found[:2]


@pytest.mark.parametrize(
    'rows',
    [np.full((3, 4), -1), np.zeros((0, 4), int), np.zeros((2, 0), int)],
    ids=['nothing', 'no clip', 'no neighbours'],
)
def test_nothing_proposes_nothing(rows):
    songs, places = propose(np.zeros(rows.shape), rows, np.array([0, 5, 9]))
    assert songs.tolist() == places.tolist() == []


@pytest.mark.parametrize('step', [1, 2])
def test_a_clip_may_begin_before_its_song(step):
    first = laid_out([10, 10, 10])[0]
    rows = np.full((9, 1), -1)
    rows[5:, 0] = first[1] + np.arange(4) * step  # the second song begins with the clip's sixth window
    songs, places = propose(np.ones((9, 1)), rows, first, step=step)
    assert (songs[0], places[0]) == (1, -5 * step)


def test_neighbouring_songs_do_not_vote_for_each_other():
    first = np.array([0, 4, 8])
    # the last window of one song and the first of the next follow each other in the table: no diagonal goes through both
    rows = np.array([[2], [3], [4], [5]])
    songs, places = propose(np.ones((4, 1)), rows, first)
    assert sorted(zip(songs.tolist(), places.tolist())) == [(0, 2), (1, -2)]
    # places -1 of the second song and 3 of the first: neighbours in the table, strangers in music
    scores = np.array([[1.0, 0.0], [0.6, 0.0]])
    rows = np.array([[3, -1], [4, -1]])
    songs, places = propose(scores, rows, first)
    assert list(zip(songs.tolist(), places.tolist())) == [(0, 3), (1, -1)]
    heavier = propose(np.array([[0.5], [0.6]]), np.array([[3], [4]]), first)
    assert heavier[0].tolist() == [1, 0], 'a vote for one song was counted for the other'


def test_a_negative_cosine_speaks_against_nothing():
    songs, places = propose(np.array([[-0.9, 0.2]]), np.array([[1, 6]]), np.array([0, 4, 8]))
    assert (songs[0], places[0]) == (1, 2)


# ---- along a diagonal


@settings(max_examples=60, deadline=None)
@given(
    lengths_of_songs,
    st.integers(1, 6),
    st.integers(1, 3),
    st.sampled_from([(1.0,), (0.5, 1.0), (1.0, 1.02, 2.0), (2.0, 0.0)]),
    st.integers(0, 999),
)
def test_along_is_a_loop(lengths, n, step, speeds, seed):
    rng = np.random.default_rng(seed)
    first, _ = laid_out(lengths)
    table = unit(rng, sum(lengths), 4)
    clip = unit(rng, n, 4)
    song = rng.integers(0, len(lengths), 12)
    begin = first[song] + rng.integers(-n * step - 2, 12, 12)  # some of them wholly outside
    got, speed = along(lambda rows: table[rows], clip, begin, first[song], first[song + 1], step, speeds)
    for i, (b, s) in enumerate(zip(begin, song)):
        scores = {}
        for v in speeds:
            at = [int(b + np.rint(j * step * v)) for j in range(n)]
            scores[v] = (
                sum(float(table[a] @ clip[j]) for j, a in enumerate(at) if first[s] <= a < first[s + 1]) / n
            )
        assert got[i] == pytest.approx(max(scores.values()), abs=1e-5)
        assert scores[speed[i]] == pytest.approx(max(scores.values()), abs=1e-5)


def test_along_asks_only_for_windows_of_the_song():
    asked = []

    def take(rows):
        asked.append(rows)
        return np.ones((*rows.shape, 2), np.float32)

    first = np.array([5, 5, 8])
    last = np.array([8, 8, 20])
    score, speed = along(
        take, np.full((4, 2), 0.5, np.float32), np.array([-50, 6, 18]), first, last, speeds=(1.0, 1.5)
    )
    assert all((a >= first[:, None]).all() and (a < last[:, None]).all() for a in asked) and len(asked) == 2
    assert score.tolist() == pytest.approx([0, 2 / 4, 2 / 4])
    assert speed.tolist() == [1, 1, 1]  # of equal speeds, the first


def test_a_faster_song_is_followed():
    table = unit(np.random.default_rng(0), 60, 16)
    at = np.rint(np.arange(16) * 1.25).astype(int)
    score, speed = along(
        lambda rows: table[rows],
        table[20 + at],
        np.array([20, 5]),
        np.zeros(2, int),
        np.full(2, 60),
        speeds=(0.8, 1.0, 1.25),
    )
    assert speed[0] == 1.25 and score[0] == pytest.approx(1, abs=1e-5) and score[1] < 0.5


def test_along_nowhere_and_at_no_speed():
    none = np.zeros(0, int)
    take = lambda rows: np.ones((*rows.shape, 2), np.float32)
    score, speed = along(take, np.ones((3, 2), np.float32), none, none, none)
    assert score.shape == speed.shape == (0,)
    with pytest.raises(ResonanceError, match='speed'):
        along(take, np.ones((3, 2), np.float32), none, none, none, speeds=())


# ---- who the rival is


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
def test_the_rival_is_the_best_that_sounds_otherwise(cosines, number):
    score = np.linspace(2, 1, len(cosines) + 1)
    assert rival(score, places_like(*cosines)) == number


def test_how_alike_is_a_choice():
    assert rival(np.array([2.0, 1.0]), places_like(0.5)) == 1
    assert rival(np.array([2.0, 1.0]), places_like(0.5), same=0.4) == 2


def test_without_songs_there_is_no_rival():
    assert rival(np.zeros(0), np.zeros((0, 6, 8), np.float32)) == 0
