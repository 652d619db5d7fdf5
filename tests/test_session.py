"""Sessions: what is kept of a stream is what the whole sound gives, sums against loops, who is asked and where."""

from types import SimpleNamespace

import numpy as np
import pytest

from resonance_nb import session, table
from resonance_nb.core import Match, rng_for
from resonance_nb.peaks import level_blocks
from resonance_nb.session import (
    LATE_SAMPLES,
    MEMORY,
    STEP_SAMPLES,
    Follows,
    FusedSession,
    SearchSession,
    Session,
    session_of,
)
from resonance_nb.table import FRONT

RATE = 16_000


def noise(seconds, level=0.1, seed=0):
    return (level * rng_for(seed, 'noise').standard_normal(round(seconds * RATE))).astype(np.float32)


@pytest.fixture(scope='module')
def evening(music):
    "Noise, a piece in noise from its second second on, noise."
    x = next(iter(music.values()))[2 * RATE : 13 * RATE]
    return np.concatenate([noise(2, 0.02), x + noise(11, 0.02), noise(1, 0.02)])


@pytest.fixture
def large(fused, monkeypatch):
    "The same songs, as if they were a large collection."
    from resonance_nb.fuse import Fused

    fused.prepare()  # before
    monkeypatch.setattr(table, 'MANY_WINDOWS', 0)
    made = Fused()
    made.merge(fused)
    return made


def fed(fused, x, cuts, longest_s=10.0, at=0):
    "A session that has heard all of it, in pieces."
    heard = fused.session(longest_s)
    heard.begin(at / RATE)
    for piece in np.split(x, cuts):
        heard.feed(piece)
    return heard


# ---- what is kept


@pytest.mark.parametrize('at', [0, 4_000, 1, 12_345])
def test_it_keeps_what_the_whole_sound_gives(fused, evening, at):
    x = evening[: 9 * RATE]
    heard = fed(fused, x, [1, 2_000, 2_001, 50_000, 50_400, 99_999], at=at)
    kept = heard.recent.vectors
    begins = at + -(at + LATE_SAMPLES) % STEP_SAMPLES
    vectors = fused.hear(x[begins - at :]).vectors
    assert heard.recent.start_samples == begins and len(vectors) - 1 <= len(kept) <= len(vectors)
    np.testing.assert_allclose(kept, vectors[: len(kept)], atol=1e-3)
    levels = np.concatenate(list(level_blocks([x], FRONT)))
    first = (heard.levels.start_samples - at) // FRONT.hop
    expected = levels[first:][: len(heard.levels.level_db)]
    np.testing.assert_allclose(heard.levels.level_db, expected, atol=1e-3)
    assert heard.levels.start_samples <= begins + FRONT.hop


def test_it_forgets(fused, evening):
    x = np.concatenate([evening, evening])
    heard = fed(fused, x, np.arange(4_000, len(x), 4_000), longest_s=5.0)
    assert len(heard.recent.vectors) == 16 and len(heard.levels.level_db) <= 5 * RATE // FRONT.hop + 8
    at = heard.recent.start_samples - 2_000
    fresh = fed(fused, x[at:], [], longest_s=5.0, at=at)
    np.testing.assert_allclose(heard.recent.vectors[-12:], fresh.recent.vectors[-12:], atol=2e-2)


def test_it_can_be_asked_about_what_it_holds(fused, evening):
    heard = fused.session(5.0)
    heard.begin(7.0)
    assert heard.held_s == 0
    held_s = []
    for piece in np.array_split(evening[: 9 * RATE], 36):
        heard.feed(piece)
        held_s.append(heard.held_s)
    assert held_s == sorted(held_s) and held_s[2] == 0 and held_s[5] > 0.9
    assert held_s[-1] == pytest.approx(15 * 0.256 + 1)


def test_songs_that_come_begin_the_sums_anew(music, evening):
    from resonance_nb.fuse import Fused

    growing = Fused()
    heard = fed(growing, evening[: 3 * RATE], [])
    assert heard.held_s == 0
    growing.add('a song', next(iter(music.values())))
    assert heard.held_s == 0
    heard.feed(evening[3 * RATE : 5 * RATE])
    assert heard.held_s > 3 and heard.hypotheses(2.5, []).hypotheses[0].track_id == 'a song'


# ---- sums


@pytest.mark.parametrize('which', ['fused', 'large'])
def test_sums_are_those_of_diagonals(which, request, evening):
    heard = fed(request.getfixturevalue(which), evening[: 9 * RATE], np.arange(4_000, 9 * RATE, 4_000))
    t = heard.sums.table
    vectors = heard.recent.vectors @ t.axes.T
    step = max(2, t.row_windows)
    for sums, behind in zip(heard.sums.sums, heard.sums.behind_windows):
        last = len(vectors) - 1 - behind
        for row in (0, 5, 6, 11, t.starts_rows[2] - 1, t.starts_rows[2], t.starts_rows[2] + 9):
            begins = t.starts_rows[np.searchsorted(t.starts_rows, row, 'right') - 1]
            rows = step // t.row_windows
            steps = range(min(last // step, (row - begins) // rows) + 1)
            for k, memory in enumerate(MEMORY):
                expected = sum(
                    memory ** (step // 2 * i) * (t.rows[row - rows * i] @ vectors[last - step * i])
                    for i in steps
                )
                assert sums[k, row] == pytest.approx(expected, abs=1e-3)


def test_phases_of_a_large_collection_are_two_windows_apart(large, evening):
    behind = fed(large, evening[: 9 * RATE], []).sums.behind_windows
    assert abs(behind[0] - behind[1]) == 2 and behind.max() <= 3


# ---- where it looks


def test_what_is_expected_is_looked_for_where_it_should_be(fused, evening, music, monkeypatch):
    monkeypatch.setattr(session, 'CLOSE', 1)
    heard = fed(fused, evening[: 8 * RATE], np.arange(4_000, 8 * RATE, 4_000))
    name, other = list(music)[:2]
    names = lambda expected: [h.track_id for h in heard.hypotheses(2.5, expected).hypotheses]
    assert names([]) == [name]
    assert names([('not here', 0.5), (other, -1e4)]) == [name]
    found = {h.track_id: h for h in heard.hypotheses(2.5, [(other, 0.5)]).hypotheses}
    assert set(found) == {name, other} and found[name].logit > found[other].logit
    assert abs(found[other].lag_s - 0.5) < 0.7


@pytest.mark.parametrize('length_s', [1.25, 2.5, 5.0])
def test_it_says_what_a_search_says(fused, evening, music, length_s):
    heard = fed(fused, evening[: 8 * RATE], [])
    seen = heard.hypotheses(length_s, [])
    begins = round(seen.began_s * RATE)
    searched = fused.evidence(fused.hear(evening[begins : begins + round(length_s * RATE)]))
    best = seen.hypotheses[0]
    assert best.track_id == searched.track_ids[0] == next(iter(music))
    assert seen.began_s - best.lag_s == pytest.approx(searched.start_s[0], abs=0.05)
    assert best.logit == pytest.approx(fused.logit(searched)[0], rel=0.2)


# ---- who is asked


def test_a_recogniser_that_follows_is_followed(fused):
    opened = session_of(fused, 5.0)
    assert isinstance(fused, Follows) and isinstance(opened, FusedSession)
    opened.begin(0.0)
    assert isinstance(opened, Session)


class Scripted:
    "Says one thing of whatever it hears."

    name = 'scripted'

    def __init__(self, matches):
        self.matches = matches
        self.lengths = []

    def search(self, samples, k=5):
        self.lengths.append(len(samples))
        return self.matches[:k]


def test_any_other_is_searched():
    asked = session_of(Scripted([Match('song', 3.0, 12.0, 0.9), Match('other', 1.0, 0.0, 1.0)]), 5.0)
    assert isinstance(asked, SearchSession)
    asked.begin(100.0)
    asked.feed(noise(3))
    asked.feed(noise(4))
    seen = asked.hypotheses(2.5, [('song', 1.0)])
    assert asked.held_s == 5.0 and asked.recognizer.lengths == [round(2.5 * RATE)]
    assert seen.began_s == pytest.approx(104.5)
    song, other = seen.hypotheses
    assert (song.track_id, song.lag_s) == ('song', pytest.approx(92.5))
    assert song.logit == pytest.approx(np.log(9)) and np.isfinite(other.logit) and other.logit > 10


def test_a_session_begins_anew():
    asked = SearchSession(SimpleNamespace(search=lambda x, k: []), 5.0)
    asked.begin(0.0)
    asked.feed(noise(3))
    asked.begin(10.0)
    assert asked.held_s == 0
    asked.feed(noise(1))
    assert asked.hypotheses(5.0).began_s == 10.0
