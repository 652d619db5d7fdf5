"""Every song of a recording: scripted answers, toy songs, cuts of any size, memory, files that are damaged, cue sheets."""

import os
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from resonance_nb.concert import Evening, Part
from resonance_nb.core import Match, rng_for
from resonance_nb.setlist import Found, SetList, _Answer, _Trace, compare, cue_sheet, find_songs

sys.path.insert(0, str(Path(__file__).parent))
from toy import Toy, melody  # noqa: E402

RATE = 16_000


class Scripted:
    "Says at each time what a script says: (from, to, song, lag, confidence)."

    name = 'scripted'
    accept_confidence = 0.5

    def __init__(self, *script):
        self.script = script
        self.asked = []

    def __len__(self):
        return 9

    def search(self, samples, k=5):
        begin = float(samples[0]) if len(samples) else 0.0  # a recording whose samples are their own times
        end = begin + len(samples) / RATE
        self.asked.append((begin, end))
        found = [(min(end, b) - max(begin, a), song, lag, p) for a, b, song, lag, p in self.script]
        return [
            Match(song, p, begin - lag, p)
            for part_s, song, lag, p in sorted(found, reverse=True)
            if part_s >= 4
        ][:k]


def clock(seconds, block_s=7.3):
    "A recording whose samples are the times at which they are heard."
    x = np.arange(round(seconds * RATE)) / RATE
    return [x[i : i + round(block_s * RATE)] for i in range(0, len(x), round(block_s * RATE))]


def listed(found):
    return [f.track_id for f in found]


def test_two_songs_and_what_lies_between():
    found = find_songs(clock(200), Scripted((10, 70, 'a', 10, 0.99), (100, 160, 'b', 80, 0.99)))
    assert listed(found) == ['a', 'b']
    a, b = found
    assert a.from_s == pytest.approx(10, abs=3) and a.to_s == pytest.approx(70, abs=3)
    assert (
        b.from_s == pytest.approx(100, abs=3)
        and b.to_s == pytest.approx(160, abs=3)
        and b.offset_s == pytest.approx(b.from_s - 80, abs=0.01)
    )
    assert all(0.9 < f.confidence <= 1 for f in found)


def test_a_song_does_not_begin_before_its_first_note():
    found = find_songs(clock(100), Scripted((32, 80, 'a', 32, 0.99)))
    assert found[0].from_s == 32 and found[0].offset_s == 0


def test_no_answers_no_songs():
    assert find_songs([], Scripted()) == [] == find_songs(clock(300), Scripted())
    assert find_songs([np.zeros(60 * RATE, np.float32)], Scripted((0, 60, 'a', 0, 0.99))) == [], (
        'silence is not asked about'
    )


def test_doubtful_answers_do_not_add_up_and_one_sure_one_does_not_suffice_alone():
    assert find_songs(clock(300), Scripted((0, 300, 'a', 0, 0.3))) == []
    assert find_songs(clock(60), Scripted((10, 14.5, 'a', 0, 0.9))) == []


def test_answers_at_places_that_jump_are_no_song():
    script = [(5.0 * i, 5.0 * i + 5, 'a', i * 37 % 400 - 200.0, 0.95) for i in range(100)]
    assert find_songs(clock(500), Scripted(*script)) == []


def test_the_same_song_twice_is_told_twice():
    found = find_songs(clock(150), Scripted((10, 60, 'a', 10, 0.99), (60, 110, 'a', 60, 0.99)))
    assert listed(found) == ['a', 'a'] and found[0].to_s == pytest.approx(60, abs=3) == found[1].from_s


def test_a_short_break_is_bridged_and_a_long_one_is_not():
    once = find_songs(clock(150), Scripted((10, 50, 'a', 10, 0.99), (60, 100, 'a', 10, 0.99)))
    assert listed(once) == ['a'] and once[0].to_s == pytest.approx(100, abs=3)
    twice = find_songs(clock(200), Scripted((10, 50, 'a', 10, 0.99), (110, 160, 'a', 10, 0.99)))
    assert listed(twice) == ['a', 'a']


def test_of_two_songs_with_the_same_sound_the_better_one_is_told():
    both = [(10, 70, 'a', 10, 0.99), (10, 70, 'twin', 0, 0.9), (30, 50, 'sample', 20, 0.95)]
    assert listed(find_songs(clock(100), Scripted(*both))) == ['a']


def test_a_crossfade_belongs_to_both():
    found = find_songs(clock(150), Scripted((10, 66, 'a', 10, 0.99), (60, 110, 'b', 60, 0.99)))
    assert listed(found) == ['a', 'b'] and found[0].to_s >= found[1].from_s - 3


@pytest.mark.parametrize('speed', [0.98, 1.02])
def test_a_player_that_is_too_fast(speed):
    drift = [(5.0 * i, 5.0 * i + 5, 'a', 5 * i * (1 - speed), 0.99) for i in range(60)]
    assert listed(find_songs(clock(300), Scripted(*drift))) == ['a']


class Player(Scripted):
    "Plays one song from 32 s on, at a speed; the recogniser knows it now and then, and says where the middle of a stretch is."

    def __init__(self, speed, to_s=130.0, deaf=()):
        super().__init__()
        self.speed = speed
        self.to_s = to_s
        self.deaf = deaf

    def search(self, samples, k=5):
        begin = float(samples[0])
        half = len(samples) / RATE / 2
        end = begin + 2 * half
        if min(end, self.to_s) - max(begin, 32) < 4 or any(a <= end < b for a, b in self.deaf):
            return []
        return [Match('a', 0.99, (begin + half - 32) * self.speed - half, 0.99)]


@pytest.mark.parametrize('speed', [0.95, 0.96, 0.98, 1.0, 1.02, 1.04, 1.05])
@pytest.mark.parametrize('deaf', [(), [(56, 74), (91, 104)]])
def test_the_speed_of_the_player_is_heard(speed, deaf):
    found = find_songs(clock(160), Player(speed, deaf=deaf))
    assert listed(found) == ['a'] and found[0].offset_s == pytest.approx(0, abs=0.1)
    assert found[0].from_s == pytest.approx(32, abs=0.2) and found[0].to_s == pytest.approx(130, abs=3)


@pytest.mark.parametrize('speed', [0.96, 1.0, 1.04])
def test_lags_go_on_as_they_went(speed):
    trace = _Trace(
        'a',
        [
            _Answer(t, t + 10.0, t + 5 - (t + 5) * speed + jitter, 5.0)
            for t, jitter in zip(range(100, 130, 5), (0.03, -0.03, 0.02, 0, -0.02, 0.03))
        ],
    )
    assert trace.speed(100) == pytest.approx(speed, abs=0.006) == trace.speed(140)
    for at_s in (75.0, 105.0, 117.0, 150.0):
        assert trace.lag_s(at_s) == pytest.approx(at_s * (1 - speed), abs=0.2)
    one = _Trace('a', trace.answers[:1])
    assert one.speed(0) == 1 and one.lag_s(0.0) == one.lag_s(200.0) == trace.answers[0].lag_s


@pytest.mark.parametrize('block_s', [0.1, 3.0, 1000.0])
def test_any_cut_gives_the_same_list(block_s):
    said = (10, 70, 'a', 10, 0.99), (100, 133.3, 'b', 80, 0.99)
    assert find_songs(clock(137.7, block_s), Scripted(*said)) == find_songs(clock(137.7), Scripted(*said))


def test_the_end_is_heard_too_and_nothing_twice():
    asked = Scripted()
    find_songs(clock(23.0), asked)
    assert asked.asked[-1][1] == pytest.approx(23.0) and len(asked.asked) == 5
    short = Scripted()
    find_songs(clock(3.0), short)
    assert [round(e - b, 3) for b, e in short.asked] == [3.0]


def test_toy_songs():
    toy = Toy()
    rng = rng_for(0, 'set list')
    for i in range(6):
        toy.add(f'song {i}', melody(i, 60))
    mix = np.concatenate(
        [
            melody(0, 60)[: 40 * RATE],
            melody(77, 30),
            melody(3, 60)[20 * RATE :],
            0.1 * rng.standard_normal(15 * RATE),
        ]
    ).astype(np.float32)
    first, second = find_songs([mix], toy)
    assert (first.track_id, second.track_id) == ('song 0', 'song 3')
    assert first.from_s == pytest.approx(0, abs=0.5) and first.to_s == pytest.approx(40, abs=5)
    assert (
        second.from_s == pytest.approx(70, abs=5)
        and second.to_s == pytest.approx(110, abs=5)
        and second.offset_s == pytest.approx(second.from_s - 50, abs=0.1)
    )


def test_hours_need_no_more_memory_than_minutes():
    one = np.linspace(0, 1, 16_000, dtype=np.float32)
    script = Scripted()

    def peak(seconds):
        tracemalloc.start()
        find_songs((one for _ in range(seconds)), script)
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        script.asked.clear()
        return used

    peak(200)
    assert peak(4_000) < 1.2 * peak(400) + 200_000


# ---- cue sheets


def a_list(songs, duration_s=200.0, query='mix.flac'):
    keys = ('from_s', 'to_s', 'title', 'artist')
    return SetList(
        query, duration_s, [{'path': '/music/file name.ogg', **dict(zip(keys, s))} for s in songs], (), 0.0
    )


def sheet_of(*songs, to='mix.cue', **how):
    sheet, left_out = cue_sheet(a_list(songs, **how), to)
    return sheet.decode('utf-8', 'surrogateescape').splitlines(), left_out


def tracks_of(lines):
    "Time in frames, title and performer of each track, read as a player reads them."
    out = []
    for line in lines:
        word, _, rest = line.strip().partition(' ')
        if word == 'TRACK':
            assert rest == f'{len(out) + 1:02} AUDIO'
            out.append([None, None, None])
        elif word in ('TITLE', 'PERFORMER'):
            assert rest[0] == rest[-1] == '"' and rest.count('"') == 2
            out[-1][1 if word == 'TITLE' else 2] = rest[1:-1]
        elif rest.startswith('01 '):
            minutes, seconds, frames = map(int, rest[3:].split(':'))
            assert seconds < 60 and frames < 75
            out[-1][0] = (minutes * 60 + seconds) * 75 + frames
    return out


def test_a_cue_sheet():
    lines, left_out = sheet_of(
        (4.5, 60, 'One', 'Somebody'), (61.2, 100, None, None), (150, 199, 'Two "and" three\nfour', 'Zoë')
    )
    assert lines[0] == 'FILE "mix.flac" WAVE' and left_out == 0
    assert tracks_of(lines) == [
        [337, 'One', 'Somebody'],
        [4590, 'file name', None],
        [7500, 'Unknown', None],
        [11250, "Two 'and' three\\nfour", 'Zoë'],
    ]
    assert '    INDEX 00 00:00:00' in lines and sum('INDEX 00' in line for line in lines) == 1


def test_cue_sheets_of_nothing_of_hours_and_of_songs_that_begin_together():
    assert tracks_of(sheet_of()[0]) == [[0, 'Unknown', None]]
    assert tracks_of(sheet_of((0.02, 190, 'One', None))[0]) == [[0, 'One', None]]
    late, _ = sheet_of((71_000, 71_990, 'Late', None), duration_s=72_000.0)
    assert (
        tracks_of(late) == [[0, 'Unknown', None], [71_000 * 75, 'Late', None]]
        and '    INDEX 01 1183:20:00' in late
    )
    assert [
        t[0] for t in tracks_of(sheet_of((0, 90, 'a', None), (90, 95, 'b', None), (90, 199, 'c', None))[0])
    ] == [0, 6750, 6751]


def test_a_cue_sheet_of_many_songs_says_how_many_it_leaves_out():
    songs = [(40.0 * i, 40.0 * i + 20, f'song {i}', None) for i in range(120)]
    lines, left_out = sheet_of(*songs, duration_s=4_800.0)
    tracks = tracks_of(lines)
    assert len(tracks) == 99 and left_out == 21 and tracks[98][1] == 'song 98'
    assert sheet_of(*songs[:60], duration_s=2_400.0)[1] == 0


def test_the_recording_is_named_as_seen_from_the_sheet(tmp_path):
    assert (
        sheet_of(query=str(tmp_path / 'a' / 'x.mp3'), to=tmp_path / 'x.cue')[0][0]
        == f'FILE "{os.path.join("a", "x.mp3")}" MP3'
    )
    odd = os.fsdecode(b'caf\xe9 "x".aiff')
    assert sheet_of(query=odd)[0][0] == f'FILE "{os.fsdecode(b"caf")}\udce9 \'x\'.aiff" AIFF'


# ---- what a list is worth


def test_compare():
    on = Evening((Part('song', 10, 40, 'a'), Part('unknown', 60, 30, 'u'), Part('song', 100, 40, 'b')), 150)
    say = lambda track, begin, end: Found(track, begin, end, 0.0, 0.9)
    songs, names = compare(on, [say('b', 102, 139), say('a', 20, 60), say('a', 10, 15), say('u', 60, 90)])
    assert songs.found.tolist() == [True, True] and names.right.tolist() == [False, True, False, True]
    assert songs.from_error_s.tolist() == [10, 2] and songs.to_error_s.tolist() == [10, -1]
    assert not compare(on, [say('a', 40, 90)])[0].found.any(), 'less than half of it'
    assert compare(on, [say('live', 10, 50)], {'live': 'a'})[0].found.tolist() == [True, False]
    quick = compare(on, [say('a', 10 / 1.1, 50 / 1.1)], tempo=1.1)[0]
    assert quick.from_error_s[0] == pytest.approx(0) and quick.to_error_s[0] == pytest.approx(0)
    assert len(compare(Evening((), 9), [])[0]) == 0 and compare(Evening((), 9), [say('a', 1, 2)])[
        1
    ].right.tolist() == [False]


def test_a_recording_without_songs_is_compared_too():
    songs, names = compare(Evening((), 300.0), [])
    assert len(songs[songs.found]) == 0 and list(songs[songs.found].from_error_s) == [] and len(names) == 0
