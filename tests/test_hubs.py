"""How much noise weighs: a rule in words, what it counts, and that the command writes what it chose."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resonance_nb.calibration import load_all
from resonance_nb.cli_calibrate import _fit_noises
from resonance_nb.core import ResonanceError
from resonance_nb.hubs import (
    HUB,
    MOST_LOST,
    MOST_NAMED,
    WEIGHTS,
    Effect,
    effects,
    lightest,
    metronome,
    noise_clips,
    synthetic_hubs,
    tones,
)
from resonance_nb.starter import make_starter
from resonance_nb.survey import Row


def measured(named, right):
    "Effects of the weights 0, 1, 2 …"
    return [Effect(float(w), n, r) for w, (n, r) in enumerate(zip(named, right, strict=True))]


@pytest.mark.parametrize(
    'named, right, weight',
    [
        ([0.0, 0.0, 0.0], [0.9, 0.9, 0.9], 0),  # nothing is named, nothing need be taken off
        ([0.2, 0.004, 0.0], [0.9, 0.9, 0.9], 1),  # the lightest that is enough, not the one that names least
        ([0.2, MOST_NAMED, 0.0], [0.9, 0.9 - MOST_LOST, 0.5], 1),  # both promises hold at their limits
        ([0.2, 0.1, 0.0], [0.9, 0.9, 0.7], 1),  # the songs cannot bear 2; of the others, 1 names least
        ([0.2, 0.2, 0.2], [0.9, 0.9, 0.9], 0),  # of equals, the lightest
        ([0.2, 0.1, 0.004], [0.9, 0.5, 0.9], 2),  # a weight that songs cannot bear is passed over
        ([0.2, 0.1, 0.0], [0.9, 0.8, 0.7], 0),  # songs can bear none
        ([0.2, 0.0, 0.0], [0.8, 0.9, 0.9], 1),  # songs that gain lose nothing
    ],
)
def test_the_lightest_weight_that_keeps_both_promises(named, right, weight):
    made_up = measured(named, right)
    assert lightest(made_up).weight == lightest(made_up[::-1]).weight == weight


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=9))
def test_songs_never_lose_more_than_allowed(shares):
    made_up = measured(*zip(*shares))
    chosen = lightest(made_up, most_named=0.1, most_lost=0.05)
    assert made_up[0].right - chosen.right <= 0.05 + 1e-6
    bearable = [e for e in made_up if made_up[0].right - e.right <= 0.05]
    if any(e.named <= 0.1 for e in bearable):
        assert chosen.named <= 0.1 + 1e-6
        assert not [e for e in bearable if e.named <= 0.1 and e.weight < chosen.weight]


def test_there_must_be_something_to_choose_from():
    with pytest.raises(ResonanceError, match='no weight'):
        lightest([])


def test_the_worst_kind_of_question_counts_and_only_what_is_accepted():
    rows = [Row('noise', '', HUB + 'rain', False, [10.0, c]) for c in (0.9, 0.6, 0.59, 0.0)]
    rows += [Row('unknown', 'b', HUB + 'rain', False, [10.0, 0.7])] + [
        Row('unknown', 'b', 'a', False, [10.0, 0.9])
    ] * 9
    rows += [Row('known', 'a', 'a', True, [10.0, c]) for c in (0.9, 0.8, 0.1)]
    rows += [Row('known', 'a', 'b', False, [10.0, 0.9])]
    assert effects(rows, 0.6) == [Effect(10.0, named=0.5, right=0.5)]


def test_weights_come_in_their_order_whatever_that_of_the_rows():
    rows = [Row('known', 'a', 'a', True, [w, 0.9]) for w in (40.0, 0.0, 10.0)]
    assert [e.weight for e in effects(rows, 0.6)] == [0, 10, 40]


def test_without_known_songs_nothing_can_be_lost():
    with pytest.raises(ResonanceError, match='without clips of known songs'):
        effects([Row('noise', '', '', False, [0.0, 0.0])], 0.6)


def test_tones_and_clicks_are_where_they_should_be():
    spectrum = np.abs(np.fft.rfft(tones([350, 440], duration_s=1.0)))
    assert sorted(np.argsort(spectrum)[-2:]) == [350, 440]
    loud = np.flatnonzero(np.abs(metronome(120, duration_s=2.0)) > 0.3)
    assert set(loud // 8_000) == {0, 1, 2, 3} and (loud % 8_000).max() < 400


def test_questions_are_no_recordings_of_the_catalogue():
    held, asked = (synthetic_hubs(2.0, number=n) for n in (0, 1))
    for name in held:
        a, b = held[name], asked[name]
        assert len(a) == len(b) == 32_000
        assert np.corrcoef(a, b)[0, 1] < 0.9, name


def test_the_command_writes_what_the_rule_chose_and_goes_on(tmp_path, monkeypatch):
    corpus = make_starter(n_pieces=12)
    assert len({c.name for c in noise_clips(corpus)}) == len(list(noise_clips(corpus)))
    told = _fit_noises(corpus, tmp_path, quick=True)
    (fitted,) = load_all(tmp_path / 'fused.json')
    assert fitted.constants['noise'] == {'likeness': 0.5, 'weight': told['weight']}
    assert told['weight'] in WEIGHTS and 0 <= told['noise_named'] <= 1 and 0 <= told['songs_right'] <= 1
    assert np.load(told['file']).shape[0] == told['directions'] == 64
    assert {'score_weights', 'floor', 'few', 'steady'} <= fitted.constants.keys()
    journal = tmp_path / 'journal' / 'noises.jsonl'
    before = journal.read_bytes()
    assert all(len(json.loads(line)['rows']) == len(WEIGHTS) for line in before.splitlines()[1:])
    monkeypatch.setattr('resonance_nb.hubs.answers_under', lambda *a: pytest.fail('asked twice'))
    assert _fit_noises(corpus, tmp_path, quick=True) == told
    assert journal.read_bytes() == before
