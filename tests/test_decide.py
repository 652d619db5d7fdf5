"""The live listener: decisions on scripted evidence, any cut of the stream, gaps and silence, memory, recognisers of every kind."""

import gc
import json
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from resonance_nb import decide
from resonance_nb.core import Match, ResonanceError, rng_for
from resonance_nb.decide import Decider, Event, Listener, Rules, calibration, listen, threshold_for
from resonance_nb.network import HOP_S
from resonance_nb.session import Hypothesis, Observation
from resonance_nb.stream import Block

sys.path.insert(0, str(Path(__file__).parent))
from toy import Toy, melody  # noqa: E402

RATE = 16_000
T = 8.0
GRAIN_S = 0.125  # half of a note of `toy`: so well it knows where a clip is


def play(script, threshold=T, rules=Rules(), decider=None):
    """Events of a script: for each quarter of a second a list of claims about the last 2.5 s, a dictionary of such lists by length, or None for nothing to hear.

    A claim is (song, lag, log odds)."""
    decider = decider or Decider(threshold, rules)
    out = []
    for step, said in enumerate(script):
        t = step / 4
        said = said if isinstance(said, dict) else {} if said is None else {2.5: said}
        out += decider.step(
            t,
            [
                Observation(t - long_s, tuple(Hypothesis(*c) for c in claims))
                for long_s, claims in said.items()
            ],
        )
    return out


def told(events, *kinds):
    return [(e.kind, e.track_id) for e in events if e.kind in (kinds or ('match', 'lost'))]


def song(name, seconds, lag_s=0.0, logit=4.0):
    return [[(name, lag_s, logit)]] * round(4 * seconds)


NOTHING = [[]]


# ---- decisions


def test_a_song_is_a_candidate_then_a_match_then_lost():
    events = play(song('a', 10, 3.0) + NOTHING * 120)
    assert [(e.kind, e.track_id) for e in events] == [
        ('listening', None),
        ('candidate', 'a'),
        ('match', 'a'),
        ('lost', 'a'),
    ]
    match, lost = events[2:]
    assert 1 <= match.time_s <= 2.5 and match.offset_s == match.time_s - 3 and match.confidence > 0.9
    assert 12 < lost.time_s < 25 and lost.confidence < match.confidence


def test_surer_evidence_is_quicker_and_a_higher_threshold_slower():
    when = lambda logit, threshold: next(
        (e.time_s for e in play(song('a', 60, 0.0, logit), threshold) if e.kind == 'match'), None
    )
    assert when(6.0, T) < when(4.0, T) < when(2.0, T) and when(4.0, 4.0) < when(4.0, 16.0)
    assert when(60.0, T) == when(6.0, T) and when(60.0, T) > 0, 'no single answer decides'
    assert when(Rules().middle, T) is None


def test_names_that_change_are_not_said():
    rng = rng_for(0, 'flicker')
    other = lambda: [(f'song {rng.integers(40)}', float(rng.uniform(-100, 100)), float(rng.uniform(-3, 4)))]
    assert not told(play([other() for _ in range(4_000)]))


def test_a_name_at_places_that_jump_is_not_said():
    rng = rng_for(0, 'jumps')
    assert not told(play([[('a', float(rng.uniform(0, 200)), 5.0)] for _ in range(400)]))
    assert told(play([[('a', float(rng.uniform(-0.05, 0.05)), 5.0)] for _ in range(40)])) == [('match', 'a')]


def test_unknown_music_is_passed_over():
    assert play([[('a', 0.0, -2.0), ('b', 3.0, -4.0)]] * 400) == [Event('listening', 0.0)]
    assert play(NOTHING * 400) == [Event('listening', 0.0)]


def test_a_candidate_that_comes_to_nothing_is_taken_back_once():
    events = play(song('a', 0.75) + NOTHING * 100)
    assert told(events, 'listening', 'candidate', 'match') == [
        ('listening', None),
        ('candidate', 'a'),
        ('listening', None),
    ]


def test_hysteresis():
    weak = (song('a', 2) + NOTHING * 3) * 40
    assert told(play(weak)) == [('match', 'a')]
    loud_crowd = song('a', 5) + (song('a', 0.5, logit=2.0) + NOTHING * 2) * 40
    assert told(play(loud_crowd)) == [('match', 'a')]


def test_a_song_that_comes_back_is_named_again():
    assert told(play(song('a', 5) + NOTHING * 120 + song('a', 5, 40.0))) == [
        ('match', 'a'),
        ('lost', 'a'),
        ('match', 'a'),
    ]


def test_segue():
    events = play(song('a', 8) + song('b', 8, 8.0))
    assert told(events) == [('match', 'a'), ('match', 'b')]
    assert events[-1].time_s - 8 < 3 and events[-1].offset_s == pytest.approx(events[-1].time_s - 8)


def test_a_crossfade_does_not_flip_back_and_forth():
    rng = rng_for(0, 'crossfade')
    mixed = [[('a', 0.0, 3.0 + x), ('b', 8.0, 3.0 - x)] for x in rng.normal(0, 4, 48)]
    changes = told(play(song('a', 8) + mixed + song('b', 8, 8.0)))
    assert changes == [('match', 'a'), ('match', 'b')]


def test_longer_stretches_that_still_hold_the_old_song_do_not_hold_up_the_new_one():
    def both(seconds_since):
        old = [('a', 0.0, 6.0)]
        new = [('b', 8.0, 5.0)]
        return {2.5: new} | (
            {5.0: old if seconds_since < 3 else new}
            if seconds_since % 1 < 0.5
            else {10.0: old if seconds_since < 6 else new}
        )

    alone, with_long = (
        play(song('a', 8, 0.0, 6.0) + after)
        for after in (song('b', 9, 8.0, 5.0), [both(i / 4) for i in range(36)])
    )
    assert told(with_long) == told(alone) == [('match', 'a'), ('match', 'b')]
    assert with_long[-1].time_s <= alone[-1].time_s + 0.5


def test_what_began_before_a_song_says_nothing_against_it():
    quiet = {2.5: [('a', 0.0, 4.0)]}, {2.5: [('a', 0.0, 4.0)], 10.0: []}
    assert [e.time_s for e in play(list(quiet) * 6)] == [e.time_s for e in play(song('a', 3))]


def test_a_loop_moves_without_a_word():
    decider = Decider(T)
    loop = [[('a', 4.0 * (step // 16), 5.0)] for step in range(400)]  # the same four seconds, again and again
    assert told(play(loop, decider=decider)) == [('match', 'a')]
    assert decider.named.lag_s == pytest.approx(4.0 * (399 // 16), abs=0.1)


def test_two_places_of_one_song_that_sound_the_same():
    rng = rng_for(0, 'chorus')
    decider = Decider(T)
    assert told(play([[('a', 60.0 * rng.integers(2), 5.0)] for _ in range(400)], decider=decider)) == [
        ('match', 'a')
    ]
    assert min(abs(decider.named.lag_s - x) for x in (0, 60)) < 0.1


@pytest.mark.parametrize('speed', [0.98, 1.02])
def test_drift(speed):
    decider = Decider(T)
    drifting = [[('a', (step / 4) * (1 - speed), 5.0)] for step in range(4 * 300)]
    assert told(play(drifting, decider=decider)) == [('match', 'a')]
    assert decider.named.lag_s == pytest.approx(300 * (1 - speed), abs=0.15)


def test_two_recordings_of_the_same_sound_do_not_take_turns():
    rng = rng_for(0, 'twins')
    twins = [[('one', 0.0, x), ('two', 7.0, y)] for x, y in rng.uniform(2, 8, (1_200, 2))]
    assert len(told(play(twins))) == 1


def test_a_pause_is_survived_and_a_long_one_is_not():
    short = play(song('a', 5) + [None] * 20 + song('a', 5))
    assert told(short) == [('match', 'a')]
    long = play(song('a', 5) + [None] * 40 + song('b', 5, 15.0))
    assert told(long) == [('match', 'a'), ('lost', 'a'), ('match', 'b')]
    assert long[-2 if long[-2].kind == 'lost' else -3].time_s == 4.75 + Rules().quiet_s
    assert told(play(song('a', 0.75) + [None] * 60), 'candidate', 'listening') == [
        ('listening', None),
        ('candidate', 'a'),
        ('listening', None),
    ]


names = some.sampled_from(['a', 'b', 'c', 'd'])
claims = some.lists(
    some.tuples(names, some.sampled_from([0.0, 0.1, 5.0, -30.0]), some.floats(-9, 12)), max_size=4
)
steps = some.one_of(
    some.none(), claims, some.dictionaries(some.sampled_from([2.5, 5.0, 10.0]), claims, max_size=3)
)


@settings(max_examples=150, deadline=None)
@given(some.lists(some.tuples(steps, some.integers(1, 12)), max_size=25), some.sampled_from([2.0, 6.0, 12.0]))
def test_events_make_sense_whatever_is_heard(script, threshold):
    decider = Decider(threshold)
    named = None
    candidate = None
    events = play([said for said, times in script for _ in range(times)], decider=decider)
    assert [e.time_s for e in events] == sorted(e.time_s for e in events)
    for i, e in enumerate(events):
        assert 0 <= e.confidence <= 1 and (e.track_id is None) == (e.offset_s is None) == (
            e.kind == 'listening'
        )
        if e.kind == 'listening':
            assert named is None and (i == 0 or candidate is not None)
            candidate = None
        elif e.kind == 'candidate':
            assert named is None and candidate != e.track_id
            candidate = e.track_id
        elif e.kind == 'match':
            assert named != e.track_id
            named = e.track_id
            candidate = None
        else:
            assert e.kind == 'lost' and named == e.track_id
            named = None
    assert (decider.named.track_id if decider.named else None) == named
    assert len(decider.accumulators) <= decide.ACCUMULATORS + 1


def test_memory_does_not_grow():
    rng = rng_for(0, 'hours')
    decider = Decider(T)

    def some_hours(steps):
        for step in range(steps):
            t = decider.heard_s + 0.25 if decider.heard_s is not None else 0.0
            claims = tuple(
                Hypothesis(
                    f'song {rng.integers(50)}',
                    float(rng.choice([0.0, rng.uniform(-50, 50)])),
                    float(rng.normal(0, 4)),
                )
                for _ in range(6)
            )
            decider.step(t, [Observation(t - 2.5, claims)])

    tracemalloc.start()
    held = []
    for _ in range(3):
        some_hours(1_500)
        gc.collect()
        held.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert held[2] - held[1] < 50_000 and len(decider.accumulators) <= decide.ACCUMULATORS + 1


# ---- what comes with the package


def test_thresholds():
    rows = calibration('')['false_alarms']
    assert [t for t, _ in rows] == sorted(t for t, _ in rows) and [r for _, r in rows] == sorted(
        (r for _, r in rows), reverse=True
    )
    asked = [threshold_for(r) for r in (1_000, 60, 10, 1, 0.5, 0.1, 0.001)]
    assert asked == sorted(asked) and asked[0] == rows[0][0] and asked[-1] > rows[-1][0]
    for wrong in (0, -0.5, float('nan'), float('inf')):
        with pytest.raises(ResonanceError, match='above 0'):
            threshold_for(wrong)
        with pytest.raises(ResonanceError, match='above 0'):
            Listener(Toy(), false_per_hour=wrong)


def test_the_rules_are_fitted_to_what_is_shipped():
    from resonance_nb.fuse import Fused

    listener = Listener(Fused())
    assert listener.calibrated, 'run resonance calibrate listener'
    assert listener.rules.candidate < listener.decider.threshold, 'a song is suspected before it is named'


def test_fitted_rules_are_read_back(tmp_path, monkeypatch):
    (tmp_path / 'models').mkdir()
    fitted = {
        'calibrated': True,
        'model': 'mine',
        'rules': {'plan_s': [[2.0], [4.0, 8.0]], 'gain': 0.25},
        'false_alarms': [[3, 9], [5, 1]],
    }
    (tmp_path / 'models' / 'listener.json').write_text(json.dumps(fitted))
    monkeypatch.setattr(decide, 'MODELS', tmp_path / 'models')
    assert calibration('mine')['calibrated'] and not calibration('another')['calibrated']
    assert calibration('mine')['rules'] == Rules(plan_s=((2.0,), (4.0, 8.0)), gain=0.25)
    toy = Toy()
    toy.model_name = 'mine'
    listener = Listener(toy, 1.0)
    assert listener.calibrated and listener.rules.gain == 0.25 and listener.decider.threshold == 5
    assert not Listener(toy, 1.0, Rules()).calibrated and not Listener(Toy()).calibrated


def test_events_as_json():
    lines = [
        json.dumps(e.as_dict())
        for e in (
            Event('listening', np.float64(0)),
            Event('match', 2.25, 'a', np.float64(1.23456), np.float32(0.5)),
        )
    ]
    assert [json.loads(line) for line in lines] == [
        {'kind': 'listening', 'time_s': 0.0, 'track_id': None, 'offset_s': None, 'confidence': 0.0},
        {'kind': 'match', 'time_s': 2.25, 'track_id': 'a', 'offset_s': 1.235, 'confidence': 0.5},
    ]


def test_importing_it_does_not_import_torch():
    code = (
        "import resonance_nb.decide, sys; print([m for m in ('torch', 'faiss', 'scipy') if m in sys.modules])"
    )
    assert (
        subprocess.run(
            [sys.executable, '-c', code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == '[]'
    )


# ---- streams and any recogniser


@pytest.fixture(scope='module')
def toy():
    made = Toy()
    for i in range(4):
        made.add(f'song {i}', melody(i, 20))
    return made


def hush(seconds):
    return np.zeros(round(seconds * RATE), np.float32)


def noise(seconds, level=0.05):
    return (level * rng_for(1, 'decide', seconds).standard_normal(round(seconds * RATE))).astype(np.float32)


@pytest.fixture(scope='module')
def show():
    "Noise, a song, noise, a stranger, another song."
    return np.concatenate(
        [
            noise(4),
            melody(0, 20)[2 * RATE : 14 * RATE],
            noise(14),
            melody(99, 10),
            melody(2, 20)[5 * RATE : 15 * RATE],
        ]
    )


def blocks_of(x, sizes=(4_000,), start_s=0.0):
    "Blocks of these sizes, again and again."
    out = []
    at = 0
    i = 0
    while at < len(x):
        n = min(sizes[i % len(sizes)], len(x) - at)
        out.append(Block(start_s + at / RATE, x[at : at + n]))
        at = at + n
        i = i + 1
    return out


@pytest.fixture(scope='module')
def said(toy, show):
    return list(listen(blocks_of(show), toy))


def test_a_show(said):
    assert told(said) == [('match', 'song 0'), ('lost', 'song 0'), ('match', 'song 2')]
    first, lost, second = (e for e in said if e.kind in ('match', 'lost'))
    assert 5 < first.time_s < 9 and first.offset_s == pytest.approx(first.time_s - 4 + 2, abs=GRAIN_S)
    assert (
        16 < lost.time_s < 30
        and 40 < second.time_s < 45
        and second.offset_s == pytest.approx(second.time_s - 40 + 5, abs=GRAIN_S)
    )


@pytest.mark.parametrize('sizes', [(160,), (4_001,), (1, 7_999), (100_000, 3), (10_000_000,)], ids=str)
def test_any_cut_gives_the_same_events(toy, show, said, sizes):
    assert list(listen(blocks_of(show, sizes), toy)) == said


@settings(max_examples=8, deadline=None)
@given(some.lists(some.integers(0, 30_000), min_size=1, max_size=6).filter(any))
def test_any_other_cut_too(toy, show, said, sizes):
    part = show[: 9 * RATE]
    assert list(listen(blocks_of(part, sizes), toy)) == [e for e in said if e.time_s <= 9]


def test_the_clock_may_begin_anywhere(toy, show, said):
    later = list(listen(blocks_of(show[: 9 * RATE], start_s=4_000 * HOP_S), toy))
    expected = [replace(e, time_s=e.time_s + 4_000 * HOP_S) for e in said if e.time_s <= 9]
    assert [e.as_dict() for e in later] == [e.as_dict() for e in expected]  # to the millisecond


def test_loss_is_survived_and_told_of(toy):
    x = melody(0, 20)
    whole = blocks_of(x)
    hole = lambda a_s, b_s: [b for b in whole if not a_s <= b.start_s < b_s]
    assert told(listen(hole(6, 6.25), toy)) == told(listen(hole(6, 9), toy)) == [('match', 'song 0')]
    odd = [*blocks_of(x[: 6 * RATE + 1_234]), *blocks_of(x[9 * RATE + 777 :], start_s=9 + 777 / RATE)]
    assert told(listen(odd, toy)) == [('match', 'song 0')], 'a loss in the middle of a step'
    listener = Listener(toy)
    for b in whole[:24]:
        listener.push(b)
    events = listener.push(Block(100_000.0, x[:4_000]))
    assert told(events) == [('lost', 'song 0')] and 0 <= events[0].time_s - 6 - listener.rules.quiet_s < HOP_S
    with pytest.raises(ResonanceError, match='comes after one that ends at 100000.250 s'):
        listener.push(Block(7.0, x[:4_000]))


def test_silence(toy):
    assert [e.kind for e in listen(blocks_of(hush(30)), toy)] == ['listening']
    events = list(
        listen(blocks_of(np.concatenate([melody(0, 8), hush(3), melody(0, 20)[11 * RATE :], hush(10)])), toy)
    )
    assert told(events) == [('match', 'song 0'), ('lost', 'song 0')] and 25.5 < events[-1].time_s < 27.25, (
        'it went on during the pause'
    )


def test_broken_samples_and_empty_blocks(toy, said, show):
    x = show[: 9 * RATE].copy()
    x[20_000:20_003] = np.nan, np.inf, -np.inf
    b = blocks_of(x)
    b.insert(3, Block(b[3].start_s, x[:0]))
    assert told(listen(b, toy)) == told(e for e in said if e.time_s <= 9)
    assert list(listen([], toy)) == [] and Listener(toy).end() == []


class Scripted:
    "Knows what to say without listening; counts how much it was given."

    name = 'scripted'

    def __init__(self, answer):
        self.answer = answer
        self.lengths = []

    def search(self, samples, k=5):
        self.lengths.append(len(samples))
        return self.answer


def test_certainty_is_no_error_and_nothing_is_a_fine_answer():
    blocks = blocks_of(noise(5))
    sure, none = (Scripted([Match('a', 1.0, 0.0, c)] if c else []) for c in (1.0, 0.0))
    assert not told(listen(blocks, none)) and none.lengths
    assert not told(listen(blocks, Scripted([Match('a', 1.0, 0.0, 0.0)])))
    list(listen(blocks, sure))
    assert max(sure.lengths) <= 5 * RATE and min(sure.lengths) >= Rules().first_s * RATE


def test_the_last_unfinished_step_counts():
    recognizer = Scripted([])
    listener = Listener(recognizer)
    for b in blocks_of(noise(3.9)):
        listener.push(b)
    recognizer.lengths.clear()
    assert listener.end() == [] and max(recognizer.lengths) == round(3.9 * RATE)
    asked = len(recognizer.lengths)
    assert listener.end() == [] and len(recognizer.lengths) == asked


def test_no_stretch_is_asked_about_twice_at_one_step():
    recognizer = Scripted([])
    listener = None
    for n in range(1, 30):
        recognizer.lengths.clear()
        listener = listener or Listener(recognizer)
        listener.push(Block((n - 1) * HOP_S, noise(HOP_S)))
        assert len(set(recognizer.lengths)) == len(recognizer.lengths) and (len(recognizer.lengths) > 0) == (
            n >= 5
        )


def test_memory_of_a_stream_is_bounded():
    recognizer = Scripted([])
    listener = Listener(recognizer)
    piece = noise(60)
    tracemalloc.start()
    for minute in range(4):
        for b in blocks_of(piece, start_s=60.0 * minute):
            listener.push(b)
        recognizer.lengths.clear()
        if not minute:
            before = tracemalloc.get_traced_memory()[0]
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 100_000


# ---- the fused recogniser, step by step


@pytest.fixture(scope='module')
def evening(music):
    "Noise, a piece in noise from its second second on, noise."
    x = next(iter(music.values()))[2 * RATE : 13 * RATE]
    return np.concatenate([noise(2, 0.02), x + noise(11, 0.02), noise(1, 0.02)])


def test_fused_names_the_piece_however_the_stream_is_cut(fused, evening, music):
    name = next(iter(music))
    events = list(listen(blocks_of(evening), fused))
    assert told(events) == [('match', name)] and not [e for e in events if e.track_id not in (None, name)]
    match = next(e for e in events if e.kind == 'match')
    assert 3 < match.time_s < 7 and match.offset_s == pytest.approx(match.time_s, abs=0.1)
    cut_anew = list(listen(blocks_of(evening, (31_111, 1, 777)), fused))
    assert [(e.kind, e.track_id) for e in cut_anew] == [(e.kind, e.track_id) for e in events]
    # vectors of other batches: a step sooner or later where a threshold lies between two last digits
    for one, other in zip(cut_anew, events):
        assert abs(one.time_s - other.time_s) < 0.3 and one.confidence == pytest.approx(
            other.confidence, abs=0.05
        )
        assert one.track_id is None or one.offset_s - one.time_s == pytest.approx(
            other.offset_s - other.time_s, abs=0.02
        )


def test_songs_may_come_while_it_listens(music, evening):
    from resonance_nb.fuse import Fused

    growing = Fused()
    name = next(iter(music))
    listener = Listener(growing)
    events = []
    for b in blocks_of(evening):
        if b.start_s == 4.0:
            growing.add('another', music[list(music)[4]])
        if b.start_s == 5.0:
            growing.add(name, music[name])
        events += listener.push(b)
    assert told(events) == [('match', name)] and events[-1].time_s > 5


@pytest.fixture
def large(fused, monkeypatch):
    "The same songs, as if they were a large collection."
    from resonance_nb import fuse, table

    fused.prepare()  # before
    monkeypatch.setattr(table, 'MANY_WINDOWS', 0)
    made = fuse.Fused()
    made.merge(fused)
    return made


def test_a_large_collection_is_listened_for_as_well(fused, large, evening, music):
    name = next(iter(music))
    few, many = ([e for e in listen(blocks_of(evening), f) if e.kind == 'match'] for f in (fused, large))
    assert [e.track_id for e in many] == [name] and many[0].time_s == pytest.approx(few[0].time_s, abs=0.8)
    assert many[0].offset_s == pytest.approx(many[0].time_s, abs=0.1)


def test_an_empty_catalogue_has_nothing_to_say(evening):
    pytest.importorskip('torch')
    from resonance_nb.fuse import Fused

    assert list(listen(blocks_of(evening[: 4 * RATE]), Fused())) == [Event('listening', 0.0)]
