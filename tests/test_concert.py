"""Evenings: what is on, what is recorded, and what was said of it."""

import math
import tracemalloc

import numpy as np
import pytest

from resonance_nb import concert
from resonance_nb.audio import SAMPLE_RATE, rms_db
from resonance_nb.core import ResonanceError, rng_for
from resonance_nb.decide import Event


class Tones:
    "A corpus of sines: half a second of silence, then a minute of a pitch of its own."

    name = 'tones'

    def load(self, kind, id, start_s=0.0, duration_s=None):
        n = round(60.5 * SAMPLE_RATE)
        x = 0.3 * np.sin(2 * np.pi * (200 + 10 * int(id)) * np.arange(n) / SAMPLE_RATE).astype(np.float32)
        x[: SAMPLE_RATE // 2] = 0
        a = round(start_s * SAMPLE_RATE)
        return x[a : a + round(duration_s * SAMPLE_RATE)] if duration_s else x[a:]


def evening(seed=0, n=12, **k):
    return concert.draw_evening(
        Tones(),
        [str(i) for i in range(30)],
        [str(i) for i in range(30, 40)],
        rng_for(seed, 'evening'),
        n_songs=n,
        **k,
    )


def test_every_known_song_is_played_once_and_begins_with_its_first_sound():
    e = evening(n=20)
    known = [p.track_id for p in e.parts if p.kind == 'song']
    assert len(set(known)) == len(known) > 8
    assert {p.offset_s for p in e.parts if p.kind != 'talk'} == {0.5}
    assert (
        all(a.start_s < b.start_s for a, b in zip(e.parts, e.parts[1:])) and e.parts[-1].end_s <= e.duration_s
    )


def test_songs_overlap_only_where_they_fade():
    overlaps = [
        (a, b)
        for s in range(4)
        for e in [evening(s, n=15)]
        for a, b in zip(e.parts, e.parts[1:])
        if b.start_s < a.end_s
    ]
    assert overlaps and all(
        math.isclose(a.end_s - b.start_s, b.fade_s) and b.fade_s <= 3 for a, b in overlaps
    )


@pytest.mark.parametrize('known, unknown', [([], []), ([], None)])
def test_nothing_to_play_is_refused(known, unknown):
    with pytest.raises(ResonanceError, match='needs songs'):
        concert.draw_evening(Tones(), known, unknown or [], rng_for(0), n_songs=3)


def test_an_hour_needs_no_more_memory_than_a_minute():
    e = evening(n=60)
    assert e.duration_s > 3_000
    tracemalloc.start()
    n = sum(len(x) for x in concert.played(e, Tones()))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert n == round(e.duration_s * SAMPLE_RATE) and peak < 60e6  # the samples alone are more than 200 MB


def test_pauses_are_silent_on_the_desk_and_songs_are_equally_loud():
    e = evening(3)
    dry = np.concatenate(list(concert.played(e, Tones())))
    alone = [
        p
        for p, b, a in zip(e.parts[1:], e.parts, [*e.parts[2:], None])
        if p.kind == 'song' and b.end_s <= p.start_s and (a is None or a.start_s >= p.end_s)
    ]
    levels = [
        rms_db(dry[round((p.start_s + 4) * SAMPLE_RATE) : round((p.end_s - 4) * SAMPLE_RATE)]) for p in alone
    ]
    assert len(levels) > 2 and max(levels) - min(levels) < 0.5
    on = np.zeros(len(dry), bool)
    for p in e.parts:
        on[round(p.start_s * SAMPLE_RATE) : round(p.end_s * SAMPLE_RATE) + 1] = True
    assert not dry[~on].any()


@pytest.mark.parametrize('snr_db', [-5, 5])
def test_the_level_is_that_of_what_is_played(snr_db):
    e = evening(1, n=2, longest_s=6, pause_s=(4, 6))
    record = concert.heard(e, Tones(), 'club', snr_db, seed=1)[1]
    share = e.playing_s() / e.duration_s
    assert share < 0.9 and math.isclose(
        record.measured['snr_db'], snr_db + 10 * math.log10(share), abs_tol=0.05
    )


def test_the_same_seed_is_the_same_recording():
    e = evening(1, n=1, longest_s=4)
    one, two, other = (
        np.concatenate(list(concert.heard(e, Tones(), 'hard-mix', 0, seed)[0])) for seed in (1, 1, 2)
    )
    assert np.array_equal(one, two) and not np.allclose(one, other)


def test_a_name_is_right_until_some_seconds_after_the_song():
    on = concert.Evening((concert.Part('song', 10, 20, 'a'), concert.Part('unknown', 60, 20, 'b')), 100)
    at = lambda *times: concert.judge(on, [Event('match', t, 'a') for t in times])[1].right.tolist()
    assert at(9.9, 10.1, 30 + concert.GRACE_S - 0.1, 30 + concert.GRACE_S + 0.1, 65) == [
        False,
        True,
        True,
        False,
        False,
    ]


def test_a_silent_listener_has_no_names_and_waits_for_ever():
    on = concert.Evening((concert.Part('song', 10, 20, 'a'),), 40)
    songs, said = concert.judge(
        on, [Event('listening', 0), Event('candidate', 12, 'a'), Event('lost', 20, 'a')]
    )
    assert songs.named_s.isna().all() and len(said) == 0 and said.right.sum() == 0
