"""The listener's rules: what was recorded decides as it was decided; promises are kept."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resonance_nb.concert import Evening, Part
from resonance_nb.decide import Rules, calibration, threshold_for
from resonance_nb.session import Hypothesis, Observation
from resonance_nb.tuning import (
    THRESHOLDS,
    Recording,
    RecordingDecider,
    candidate_rules,
    falling_rates,
    false_alarms,
    fit_listener,
    replayed,
    tried,
    waits,
)


def recorded(seed, song='a', logit=3.0, from_s=10.0, until_s=30.0, length_s=40.0):
    "A decider that has followed a made-up stream, and its events."
    rng = np.random.default_rng(seed)
    decider = RecordingDecider(Rules())
    events = []
    for time_s in np.arange(0.25, length_s, 0.25):
        lengths = Rules().plan_s[round(time_s * 4) % len(Rules().plan_s)]
        on = from_s < time_s < until_s
        hypotheses = (
            Hypothesis(song, from_s, round(float(rng.normal(logit if on else -4.0, 1.0)), 3)),
            Hypothesis('other', 3.0, round(float(rng.normal(-2.0, 1.0)), 3)),
        )
        held = [min(s, float(time_s)) for s in lengths]
        events += decider.step(float(time_s), [Observation(float(time_s) - s, hypotheses) for s in held])
    return decider, events


@given(st.integers(0, 10_000))
@settings(max_examples=25, deadline=None, derandomize=True)
def test_a_replay_by_the_same_rules_decides_the_same(seed):
    decider, events = recorded(seed)
    steps = json.loads(json.dumps(decider.steps))  # as it comes back from a file
    again = replayed(steps, Rules(), 4.0)
    assert [(e.kind, e.track_id, e.time_s) for e in again] == [(e.kind, e.track_id, e.time_s) for e in events]


def test_a_higher_threshold_is_never_sooner_and_never_more_often_wrong():
    quiet = [Recording(Evening((), 40.0), recorded(s, logit=0.5)[0].steps, lively=False) for s in range(6)]
    lively = [Recording(Evening((Part('song', 10.0, 20.0, 'a'),), 40.0), recorded(9)[0].steps)]
    counts = [false_alarms(quiet, Rules(), t) for t in THRESHOLDS]
    named = [waits(lively, Rules(), t, {})[0].named_s.iloc[0] for t in (2.0, 4.0, 8.0)]
    assert counts == sorted(counts, reverse=True) and counts[0] > 0
    assert named == sorted(named)


@given(st.lists(st.integers(0, 60), min_size=10, max_size=10))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_promised_rates_fall_and_are_never_nothing(counts):
    table = falling_rates(np.array(sorted(counts, reverse=True)), THRESHOLDS, 4.0)
    rates = np.array(table)[:, 1]
    assert (np.diff(rates) <= 0).all() and (rates > 0).all() and np.isfinite(rates).all()


def test_the_margin_multiplies():
    counts = np.array([60, 40, 30, 15, 9, 4, 2, 1, 0, 0])
    one, two = (np.array(falling_rates(counts, THRESHOLDS, 4.0, margin=m))[:, 1] for m in (1.0, 2.0))
    assert two == pytest.approx(2 * one)


def test_the_rules_with_the_shortest_wait_are_kept():
    lively = [
        Recording(Evening((Part('song', 10.0, 20.0, 'a'),), 40.0), recorded(s)[0].steps) for s in (1, 2)
    ]
    quiet = [Recording(Evening((), 1800.0), recorded(3, logit=0.0)[0].steps, lively=False)]
    fitted = fit_listener(lively + quiet, {}, 'toy', facts={'corpus': 'made up'}, progress=False)
    trials = [tried(r, lively + quiet, {}) for r in candidate_rules()]
    best = min(trials, key=lambda t: t.cost)
    assert fitted['rules'] == {k: v for k, v in vars(best.rules).items() if v != vars(Rules())[k]}
    assert fitted['fitted_on']['corpus'] == 'made up' and fitted['fitted_on']['evenings'] == 2
    assert threshold_for(0.5, fitted['false_alarms']) == pytest.approx(best.facts['threshold'], abs=0.05)


def test_the_shipped_rules_are_among_those_that_are_tried():
    assert calibration('')['rules'] in list(candidate_rules())
