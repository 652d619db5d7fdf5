"""What vectors are worth: every measure against a plain loop, a space where the answer is known, and one that has collapsed."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resonance_nb.core import ResonanceError
from resonance_nb.feel_eval import (
    MEASURES,
    SHAPES,
    System,
    average_precision,
    differences,
    evaluate,
    hear,
    heard_of,
    jackknife,
    judgements,
    odd_one_out,
    show_table,
    song_values,
    summary,
    together,
    triplet_values,
)
from resonance_nb.feel_songs import artist_triplets
from resonance_nb.feel_space import effective_rank, mutual_proximity, skewness, times_near, uniformity, unit


def collection(n_artists=6, per_artist=4):
    names = [f'artist {a}' for a in range(n_artists) for _ in range(per_artist)]
    genres = [f'genre {a % 2}' for a in range(n_artists) for _ in range(per_artist)]
    return pd.DataFrame({'artist': names, 'genre': genres}, index=[f's{i}' for i in range(len(names))])


def clustered(music, spread, dim=16, seed=0):
    "Halves of songs around their song around their artist."
    rng = np.random.default_rng(seed)
    artists = pd.factorize(music['artist'])[0]
    songs = rng.normal(size=(artists.max() + 1, dim))[artists] + spread * rng.normal(size=(len(music), dim))
    return songs + 0.1 * spread * rng.normal(size=(2, len(music), dim))


@pytest.fixture
def music():
    return collection()


def test_a_perfect_space_has_perfect_figures(music):
    heard = heard_of('perfect', music, *clustered(music, 0.05))
    values = {m: float(np.nanmean(v)) for m, v in song_values(heard).items()}
    for m in ('self', 'artist_1nn', 'artist_top3', 'artist_map', 'artist_1nn_genre', 'genre_1nn'):
        assert values[m] > 0.99, m
    triplets = artist_triplets(heard.artists, 200, np.random.default_rng(0))
    assert all(v.all() for v in triplet_values(heard, triplets).values())


def test_noise_is_at_chance():
    music = collection(20, 5)
    rng = np.random.default_rng(3)
    heard = heard_of('noise', music, *rng.normal(size=(2, 100, 50)))
    values = song_values(heard)
    assert np.mean(values['self']) < 0.06 and np.mean(values['artist_1nn']) < 0.12
    triplets = artist_triplets(heard.artists, 4_000, rng)
    answers = {k: v.mean() for k, v in triplet_values(heard, triplets).items()}
    assert answers['odd_3way'] == pytest.approx(1 / 3, abs=0.05)
    assert answers['odd_2way'] == pytest.approx(1 / 2, abs=0.05)


def test_every_song_measure_is_a_plain_loop(music):
    heard = heard_of('some', music, *clustered(music, 1.5))
    values = song_values(heard)
    n = len(music)
    for i in range(n):
        others = sorted((j for j in range(n) if j != i), key=lambda j: -heard.songs[i] @ heard.songs[j])
        mates = [heard.artists[j] == heard.artists[i] for j in others]
        alike = [j for j in others if heard.genres[j] == heard.genres[i]]
        strangers = [j for j in others if heard.artists[j] != heard.artists[i]]
        assert values['artist_1nn'][i] == mates[0] and values['artist_top3'][i] == any(mates[:3])
        assert values['artist_1nn_genre'][i] == (heard.artists[alike[0]] == heard.artists[i])
        assert values['genre_1nn'][i] == (heard.genres[others[0]] == heard.genres[i])
        assert values['genre_1nn_filtered'][i] == (heard.genres[strangers[0]] == heard.genres[i])
        assert values['cosine'][i] == pytest.approx(
            np.mean([heard.songs[i] @ heard.songs[j] for j in others])
        )
        there = np.argmax(heard.second @ heard.first[i]) == i
        back = np.argmax(heard.first @ heard.second[i]) == i
        assert values['self'][i] == np.mean([there, back])


def test_the_nameless_are_asked_nothing_about_artists():
    music = collection(3, 2)
    music.iloc[0, 0] = 'Unknown'
    music.iloc[1, 0] = ''
    music.iloc[2, 1] = ''
    values = song_values(heard_of('x', music, *clustered(collection(3, 2), 0.1)))
    assert np.isnan(values['artist_1nn'][:2]).all() and np.isnan(values['artist_map'][:2]).all()
    assert not np.isnan(values['artist_1nn'][2:]).any()
    assert np.isnan(values['genre_1nn'][2]) and not np.isnan(values['self']).any()


@given(st.integers(1, 6), st.integers(1, 12), st.integers(0, 99))
@settings(deadline=None)
def test_average_precision_is_between_the_worst_and_the_best(n, places, seed):
    hits = np.random.default_rng(seed).random((n, places)) < 0.4
    for row, value in zip(hits, average_precision(hits)):
        if not row.any():
            assert np.isnan(value)
        else:
            right = np.flatnonzero(row)
            assert value == pytest.approx(np.mean([(k + 1) / (p + 1) for k, p in enumerate(right)]))


def test_odd_one_out_takes_what_the_nearest_pair_leaves():
    likeness = np.array([[1, 0.9, 0.1], [0.9, 1, 0.2], [0.1, 0.2, 1]])
    triplets = [[0, 1, 2], [2, 0, 1], [1, 2, 0]]
    assert odd_one_out(likeness, triplets).tolist() == [2, 0, 1]


def test_standardised_vectors_know_no_units(music):
    first, second = clustered(music, 1.0)
    units = np.geomspace(1e-3, 1e3, first.shape[1])
    plain = heard_of('a', music, first, second, standardised=True)
    scaled = heard_of('a', music, first * units + 7, second * units + 7, standardised=True)
    np.testing.assert_allclose(plain.likeness, scaled.likeness, atol=1e-6)


def test_a_constant_number_does_no_harm(music):
    first, second = clustered(music, 1.0)
    first[:, 3] = second[:, 3] = 5
    assert np.isfinite(heard_of('a', music, first, second, standardised=True).songs).all()


def test_an_ensemble_needs_the_same_songs(music):
    one = heard_of('a', music, *clustered(music, 1.0))
    other = heard_of('b', music, *clustered(music, 1.0, seed=1))
    both = together(one, other)
    off = ~np.eye(len(music), dtype=bool)
    halves = [(h.first @ h.second.T) for h in (one, other)]
    np.testing.assert_allclose((both.first @ both.second.T)[off], np.mean(halves, axis=0)[off], atol=1e-9)
    assert both.system == 'a + b'
    with pytest.raises(ResonanceError, match='same songs'):
        together(one, heard_of('b', music[::-1], *clustered(music, 1.0)))


def test_vectors_are_kept_and_only_what_is_new_is_heard(music, tmp_path):
    calls = []

    def embed(x):
        calls.append(len(x))
        return np.array([x.sum(), 1.0])

    load = lambda i: np.full(10, float(i[1:]))
    few = hear(System('s', embed), music.iloc[:5], load, folder=tmp_path)
    assert len(calls) == 10
    all_of_them = hear(System('s', embed), music, load, folder=tmp_path)
    assert len(calls) == 2 * len(music)
    np.testing.assert_array_equal(all_of_them.songs[:5], few.songs)


@pytest.mark.parametrize('vector', [np.nan * np.ones(3), np.ones((2, 2)), np.array([np.inf])])
def test_a_vector_is_a_row_of_finite_numbers(vector):
    with pytest.raises(ResonanceError, match='bad gave no vector'):
        System('bad', lambda x: vector)(np.zeros(5))


# ---- hubs and shape


@given(st.integers(3, 12), st.integers(0, 99))
@settings(deadline=None, max_examples=30)
def test_mutual_proximity_is_what_it_says(n, seed):
    vectors = unit(np.random.default_rng(seed).normal(size=(n, 5)))
    likeness = vectors @ vectors.T
    found = mutual_proximity(likeness)
    for a in range(n):
        for b in range(n):
            others = [c for c in range(n) if c not in (a, b)]
            both = [likeness[a, c] < likeness[a, b] and likeness[b, c] < likeness[a, b] for c in others]
            assert a == b or found[a, b] == pytest.approx(np.mean(both))


def test_counts_of_neighbours():
    likeness = np.eye(5) * 9 + np.array([[0, 5, 4, 3, 2]]).T + np.array([[0, 5, 4, 3, 2]])
    counts = times_near(likeness, k=1)
    assert counts.tolist() == [0, 4, 1, 0, 0]
    assert times_near(likeness, k=99).tolist() == [4] * 5
    assert skewness(np.ones(7)) == 0 and skewness(np.array([0, 0, 0, 9])) > 1


def test_the_shape_of_collapsed_and_of_round_spaces():
    rng = np.random.default_rng(0)
    assert effective_rank(np.ones((9, 4))) == 1 and uniformity(unit(np.ones((9, 4)))) == pytest.approx(0)
    assert effective_rank(rng.normal(size=(4_000, 16))) == pytest.approx(16, abs=0.2)
    assert effective_rank(rng.normal(size=(100, 1)) @ np.ones((1, 16))) == pytest.approx(1)
    assert uniformity(unit(rng.normal(size=(500, 64)))) == pytest.approx(-3.9, abs=0.15)


def test_one_artist_has_no_interval():
    music = pd.DataFrame({'artist': ['A'] * 4}, index=list('abcd'))
    value, error = jackknife(heard_of('x', music, *clustered(music, 1.0)), lambda h: 1.0)
    assert value == 1 and np.isnan(error)


# ---- tables


def test_one_table_of_systems_folds_and_an_ensemble(music):
    vectors = dict(zip(music.index, clustered(music, 1.0)[0]))
    rng = np.random.default_rng(0)
    good = System('good', lambda x: vectors[f's{int(x[0])}'] + 0.05 * rng.normal(size=16))
    bad = System('bad', lambda x: rng.normal(size=16))
    load = lambda i: np.full(8, float(i[1:]))
    parts = [music[music['genre'] == g] for g in ('genre 0', 'genre 1')]
    table, rows = evaluate([good, bad], parts, load, ensembles=[('good', 'bad')], n_triplets=100)
    assert set(table['system']) == {'good', 'bad', 'good + bad'}
    assert set(table['measure']) <= set(MEASURES) and set(SHAPES) <= set(table['measure'])
    wide = table.pivot(index='measure', columns='system', values='value')
    assert wide.at['self', 'good'] > wide.at['self', 'bad']
    assert wide.at['odd_3way', 'good'] > wide.at['odd_3way', 'good + bad'] > wide.at['odd_3way', 'bad']
    assert set(table.loc[table['measure'] == 'self', 'n']) == {24}
    better = differences(rows, 'good', 'bad')
    assert (better.loc[better['measure'].isin(['odd_3way', 'artist_1nn']), 'low'] > 0).all()
    page = show_table(table, ('self', 'odd_3way'))
    assert page.frame.shape == (3, 2) and '%' in page.frame.iloc[0, 0]


def test_the_same_triplets_for_every_system(music):
    one, other = (judgements(heard_of(n, music, *clustered(music, 1.0, seed=i))) for i, n in enumerate('ab'))
    assert one['item'].tolist() == other['item'].tolist()
    assert (
        judgements(heard_of('a', music, *clustered(music, 1.0)), seed=1)['item'].tolist()
        != one['item'].tolist()
    )


def test_intervals_redraw_artists():
    "Four songs of an artist that stand or fall together are one piece of evidence."
    music = collection(10, 4)
    right = np.repeat(np.arange(10) % 2, 4).astype(float)
    rows = pd.DataFrame(
        {'measure': 'self', 'item': music.index, 'artist': music['artist'], 'value': right, 'system': 's'}
    )
    row = summary(rows).iloc[0]
    assert row['high'] - row['low'] > 0.45  # of ten artists, not of forty songs
    assert (row['n'], row['artists']) == (40, 10)
