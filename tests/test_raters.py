"""Simulated raters, whose known ears are found again; bounds of the ceiling; tables of answers, also the public ones."""

import os
from pathlib import Path

import numpy as np
import pytest

from resonance_nb import metrics, raters
from resonance_nb.core import ResonanceError
from resonance_nb.raters import Answers, read_answers, write_answers

FEEL = Path(os.environ.get('RESONANCE_FEEL') or 'none is named')
SHARED = np.array([5.0, 2.5, 1.2, 0.6, 0.3, 0.15])


def survey(seed, n_raters=8, each=200, spread=0.6, lapse=0.05, n_songs=150):
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(n_songs, len(SHARED)))
    panel = raters.simulate_panel(SHARED, n_raters, rng, spread=spread, lapse=lapse)
    who = np.repeat(np.arange(n_raters), each)
    triplets = raters.draw_triplets(n_songs, len(who), rng)
    return vectors, panel, raters.simulate_answers(vectors, triplets, who, panel, rng)


def error(fit, panel):
    return abs(np.log(fit.weights) - np.log(panel.weights)).mean()


@pytest.mark.parametrize('seed', range(3))
def test_known_ears_are_found_and_shrinkage_finds_them_best(seed):
    vectors, panel, answers = survey(seed)
    alone, shrunk, one = (raters.fit_raters(vectors, answers, spread=s) for s in (5.0, 0.6, 0.0))
    assert error(shrunk, panel) < min(error(alone, panel), error(one, panel))
    assert np.corrcoef(np.log(shrunk.weights).ravel(), np.log(panel.weights).ravel())[0, 1] > 0.85
    assert np.corrcoef(np.log(one.shared), np.log(SHARED))[0, 1] > 0.95
    assert np.allclose(one.weights, one.shared)


def test_careless_raters_are_found():
    vectors, panel, answers = survey(1, n_raters=4, each=600, spread=0.2)
    careless = raters.Panel(panel.weights, np.array([0.02, 0.02, 0.02, 0.6]))
    rng = np.random.default_rng(9)
    answers = raters.simulate_answers(vectors, answers.triplets, answers.raters, careless, rng)
    found = raters.fit_raters(vectors, answers, spread=0.2).lapse
    assert found.argmax() == 3 and found[3] > 0.25 and found[:3].max() < 0.15


def test_more_answers_come_closer():
    vectors, panel, answers = survey(2, each=600)
    within = np.arange(len(answers)) % 600
    errors = [
        error(raters.fit_raters(vectors, answers.take(within < n), spread=0.6), panel) for n in (30, 600)
    ]
    assert errors[1] < 0.7 * errors[0]


def test_personal_weights_predict_more_only_where_people_differ():
    for spread, sign in ((0.9, 1), (0.0, -1)):
        vectors, _, answers = survey(3, spread=spread)
        surprise = lambda s: raters.held_out(vectors, answers, s, n_folds=3, rng=np.random.default_rng(0))
        gain = (surprise(0.0) - surprise(0.7)).mean()
        assert sign * gain > 0


def test_the_best_possible_lies_between_the_bounds():
    inside = 0
    for seed in range(10):
        vectors, panel, _ = survey(seed, each=1)
        rng = np.random.default_rng(seed)
        block = np.repeat(raters.draw_triplets(150, 60, rng), 8, axis=0)
        who = np.tile(np.arange(8), 60)
        answers = raters.simulate_answers(vectors, block, who, panel, rng)
        limit = raters.ceiling(answers)
        p = raters.answer_chances(raters.pair_squares(vectors, block), panel.weights[who], panel.lapse[who])
        best = p.reshape(60, 8, 3).mean(1).max(1).mean()
        assert limit.others[0] - 0.06 < best < limit.all[0] + 0.06
        p = p.reshape(60, 8, 3)
        pairs = ((p.sum(1) ** 2).sum() - (p**2).sum()) / (60 * 8 * 7)
        inside += limit.pairs[1] < pairs < limit.pairs[2]
    assert inside >= 7


def test_dice_agree_in_a_third():
    rng = np.random.default_rng(0)
    dice = raters.Panel(np.ones((10, 6)), np.ones(10))
    block = np.repeat(raters.draw_triplets(50, 100, rng), 10, axis=0)
    who = np.tile(np.arange(10), 100)
    limit = raters.ceiling(raters.simulate_answers(rng.normal(size=(50, 6)), block, who, dice, rng))
    assert limit.pairs[0] == pytest.approx(1 / 3, abs=0.03)


@pytest.mark.parametrize('gain, discordant', [(0.1, 0.3), (0.08, 0.2)])
def test_the_planned_survey_sees_the_gain(gain, discordant):
    n = raters.answers_needed(gain, discordant=discordant)
    shares = [(discordant + gain) / 2, (discordant - gain) / 2, 1 - discordant]
    draws = np.random.default_rng(0).multinomial(n, shares, size=500)
    p = [metrics.mcnemar([1] * a + [0] * b, [0] * a + [1] * b) for a, b, _ in draws]
    assert 0.68 < np.mean(np.array(p) < 0.05) < 0.88


def test_a_table_comes_back_and_says_that_it_is_simulated(tmp_path):
    _, _, answers = survey(4, each=20)
    write_answers(answers, tmp_path / 'a.csv')
    back = read_answers(tmp_path / 'a.csv')
    assert back.simulated and len(back) == len(answers)
    said = lambda a: [
        (a.names[r], [a.songs[i] for i in t], int(o)) for r, t, o in zip(a.raters, a.triplets, a.odd)
    ]
    assert said(back) == said(answers)
    assert 'simulated' in (tmp_path / 'a.csv').read_text().splitlines()[1]


@pytest.mark.parametrize(
    'text, says',
    [
        ('', 'not a readable table'),
        ('id,song1\n1,a\n', 'no column song2'),
        ('song1,song2,song3,picked_song,person_id\na,b,c,x,1\n', 'answer 1 does not name'),
        ('song1,song2,song3,picked_song,person_id\na,a,c,a,1\n', 'answer 1 does not name'),
    ],
)
def test_bad_tables_are_one_line(tmp_path, text, says):
    (tmp_path / 'a.csv').write_text(text)
    with pytest.raises(ResonanceError, match=says):
        read_answers(tmp_path / 'a.csv')


def test_nothing_to_fit():
    empty = Answers(['a', 'b', 'c'], np.zeros((0, 3), int), np.zeros(0, int), np.zeros(0, int), ['x'])
    with pytest.raises(ResonanceError, match='without answers'):
        raters.fit_raters(np.eye(3), empty)
    with pytest.raises(ResonanceError, match='nothing can be said'):
        raters.ceiling(empty)


@pytest.mark.skipif(
    not (FEEL / 'langoustin-answers.csv').exists(), reason='no public answers: RESONANCE_FEEL'
)
def test_the_public_answers():
    answers = read_answers(FEEL / 'langoustin-answers.csv')
    assert (len(answers), len(answers.names), len(answers.songs)) == (601, 49, 715)
    assert not answers.simulated
    limit = raters.ceiling(answers)
    assert (limit.n_triplets, limit.n_pairs) == (10, 52)
    assert limit.pairs[0] == pytest.approx(24 / 52)


PAIRS = 'song1,song2,song3,anchor,positive\n9,12,7,1,2\n7,12,30,3,1\n9,30,12,,\n12,7,9,2,3\n'


def test_pairs_that_belong_together_go_round(tmp_path):
    path = tmp_path / 'pairs.csv'
    path.write_text(PAIRS)
    answers, waiting = raters.read_pairs(path)
    odd = [answers.songs[t[o]] for t, o in zip(answers.triplets, answers.odd)]
    assert (odd, waiting, answers.simulated) == (['7', '12', '12'], [['9', '30', '12']], False)
    raters.write_pairs(answers, path, waiting=waiting)
    again, still = raters.read_pairs(path)
    assert (again.songs, still) == (answers.songs, waiting)
    assert np.array_equal(again.triplets, answers.triplets) and np.array_equal(again.odd, answers.odd)
    write_answers(answers, tmp_path / 'answers.csv')  # from one form into the other
    common = read_answers(tmp_path / 'answers.csv')
    assert np.array_equal(common.odd, answers.odd) and common.names == [raters.UNNAMED]


def test_pairs_written_by_a_table_program_are_read(tmp_path):
    path = tmp_path / 'pairs.csv'
    path.write_text(PAIRS.replace(',1,2', ',1.0,2.0'))
    assert raters.read_pairs(path)[0].odd[0] == 2


@pytest.mark.parametrize('row', ['a,b,c,1,', 'a,b,c,0,2', 'a,b,c,2,2', 'a,b,c,1,4', 'a,b,c,x,y'])
def test_a_pair_that_is_none_is_told(tmp_path, row):
    path = tmp_path / 'pairs.csv'
    path.write_text(f'{PAIRS}{row}\n')
    with pytest.raises(ResonanceError, match='row 5 does not name two of its three songs'):
        raters.read_pairs(path)


def test_simulated_answers_are_not_written_without_their_mark(tmp_path):
    _, _, answers = survey(0, each=3)
    with pytest.raises(ResonanceError, match='would pass for real ones'):
        raters.write_pairs(answers, tmp_path / 'pairs.csv')
    assert not (tmp_path / 'pairs.csv').exists()


@pytest.mark.skipif(not (FEEL / 'mecomp-human-triplets.csv').exists(), reason='no public answers')
def test_the_public_pairs(tmp_path):
    answers, waiting = raters.read_pairs(FEEL / 'mecomp-human-triplets.csv')
    assert (len(answers), len(waiting)) == (60, 1940)
    raters.write_pairs(answers, tmp_path / 'pairs.csv', waiting=waiting)
    again, still = raters.read_pairs(tmp_path / 'pairs.csv')
    assert np.array_equal(again.odd, answers.odd) and still == waiting and again.songs == answers.songs
