"""Neighbours of windows become places: votes against a loop, and their odd cases."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from resonance_nb.match import laid_out
from resonance_nb.neighbours import propose

lengths_of_songs = st.lists(st.integers(1, 9), min_size=1, max_size=4)


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
    songs, places = propose(scores, rows, first, step=step)
    found = list(zip(songs.tolist(), places.tolist()))
    assert len(set(found)) == len(found) and set(found) == set(expected)
    got = [expected[f] for f in found]
    assert all(a >= b - 1e-9 for a, b in zip(got, got[1:])), 'best first'
    best = propose(scores, rows, first, most=2, step=step)
    assert list(zip(best[0].tolist(), best[1].tolist())) == found[:2]


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
    scores, rows = np.array([[1.0, 0.0], [0.6, 0.0]]), np.array([[3, -1], [4, -1]])
    songs, places = propose(scores, rows, first)
    assert list(zip(songs.tolist(), places.tolist())) == [(0, 3), (1, -1)]
    heavier = propose(np.array([[0.5], [0.6]]), np.array([[3], [4]]), first)
    assert heavier[0].tolist() == [1, 0], 'a vote for one song was counted for the other'


def test_a_negative_cosine_speaks_against_nothing():
    songs, places = propose(np.array([[-0.9, 0.2]]), np.array([[1, 6]]), np.array([0, 4, 8]))
    assert (songs[0], places[0]) == (1, 2)
