"""A system among people: its agreement, the ceiling on the same answers, and what may be claimed. No answer here is a person's."""

import numpy as np
import pytest

from resonance_nb.core import ResonanceError
from resonance_nb.feel_agreement import agreement, better, claim, named_by, power_table, share_of_ceiling
from resonance_nb.feel_eval import heard_of
from resonance_nb.raters import Answers, ceiling


def answered(picks, people=None, names=None):
    "Answers to one triplet a row, of as many raters as there are columns."
    picks = np.asarray(picks)
    n, raters = picks.shape
    songs = [f's{i}' for i in range(3 * n)]
    triplets = np.repeat(np.arange(3 * n).reshape(n, 3), raters, axis=0)
    who = np.tile(np.arange(raters), n)
    return Answers(songs, triplets, picks.ravel(), who, names or [f'person {i}' for i in range(raters)])


def test_all_agree():
    answers = answered(np.ones((6, 4), int))
    found = share_of_ceiling(np.ones(24, int), answers)
    assert all(v == pytest.approx((1, 1, 1)) for v in found.values())
    wrong = share_of_ceiling(np.zeros(24, int), answers)
    assert wrong['share'][0] == 0 and wrong['above_chance'][0] == pytest.approx(-0.5)


def test_the_ceiling_is_that_of_the_raters_chapter():
    rng = np.random.default_rng(0)
    answers = answered(rng.integers(0, 3, (40, 5)))
    found = share_of_ceiling(rng.integers(0, 3, 200), answers)
    assert found['ceiling'][0] == pytest.approx(ceiling(answers).others[0])
    assert found['system'][0] == pytest.approx(1 / 3, abs=0.12)


def test_triplets_of_one_person_say_nothing_of_a_ceiling():
    with pytest.raises(ResonanceError, match='no triplet was answered by two'):
        share_of_ceiling(np.zeros(5, int), answered(np.zeros((5, 1), int)))


def test_intervals_redraw_people():
    "Two hundred answers by four people are four pieces of evidence."
    answers = answered(np.tile([0, 0, 1, 1], (50, 1)))
    value, low, high = agreement(np.zeros(200, int), answers)
    assert value == 0.5 and high - low > 0.7


def test_a_system_names_what_its_nearest_pair_leaves():
    import pandas as pd

    vectors = np.array([[1, 0], [1, 0.1], [0, 1.0]])
    heard = heard_of('x', pd.DataFrame({'artist': list('abc')}, index=['s2', 's0', 's1']), vectors, vectors)
    answers = answered([[0], [1]])
    assert named_by(heard, answers.take([0])).tolist() == [1]  # s2 and s0 are alike
    with pytest.raises(ResonanceError, match='x has not heard 3 of the songs, among them s3'):
        named_by(heard, answers)


def test_better_is_a_paired_question():
    answers = answered(np.zeros((100, 3), int))
    good, bad = np.zeros(300, int), np.r_[np.zeros(150, int), np.ones(150, int)]
    found = better(good, bad, answers)
    assert found['difference'] == 0.5 and found['discordant'] == 0.5 and found['p'] < 1e-9
    assert better(good, good, answers)['p'] == 1


def test_claims_need_people_and_enough_of_them():
    picks = np.zeros((30, 12), int)
    named = np.zeros(360, int)
    assert claim(named, answered(picks)).startswith('100%')
    assert 'simulated raters only' in claim(named, answered(picks, names=['simulated 1'] * 12))
    assert claim(named[:90], answered(picks[:, :3])).startswith('not yet: 90 answers by 3 people')
    few = answered(picks).take(np.arange(200))
    assert claim(named[:200], few).startswith('not yet: 200 answers by 12 people')
    lonely = answered(np.zeros((300, 1), int))
    once = Answers(
        lonely.songs, lonely.triplets, lonely.odd, np.arange(300) % 15, [f'p{i}' for i in range(15)]
    )
    assert 'the ceiling is unknown' in claim(np.zeros(300, int), once)


def test_the_power_table():
    table = power_table((0.1, 0.05))
    assert table.loc['10%', '30% discordant'] == 234 and table.loc['5%', '30% discordant'] == 940
    assert (np.diff(table.to_numpy(), axis=1) > 0).all()
