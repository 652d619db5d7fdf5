"""Artists, folds, halves and triplets: nobody judges whom he taught, whatever the table."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resonance_nb.core import ResonanceError
from resonance_nb.feel_songs import artist_key, artist_triplets, artists, excerpt, folds, halves


def table(names, **columns):
    return pd.DataFrame({'artist': names, **columns}, index=[f's{i}' for i in range(len(names))])


NAMES = st.lists(st.sampled_from(['A', 'a ', 'B', 'C', 'D', '', 'Unknown']), min_size=0, max_size=40)


@given(NAMES, st.integers(1, 3), st.integers(1, 4), st.integers(0, 3))
@settings(deadline=None)
def test_no_artist_judges_and_teaches(names, n_folds, per_artist, seed):
    music = table(names)
    try:
        parts = folds(music, n_folds=n_folds, per_artist=per_artist, seed=seed)
    except ResonanceError:
        return
    of = dict(zip(music.index, artists(music)))
    judged = []
    for part in parts:
        testing = [of[i] for i in part.test]
        assert '' not in testing
        assert not set(testing) & {of[i] for i in part.train}
        assert max(np.unique(np.array(testing, str), return_counts=True)[1]) <= per_artist
        assert {of[i] for i in part.train} | set(testing) == set(of.values())
        judged += list(dict.fromkeys(testing))
    assert len(judged) == len(set(judged))  # each artist judges in one fold
    assert parts == folds(music, n_folds=n_folds, per_artist=per_artist, seed=seed)


def test_versions_and_short_songs_keep_out():
    music = table(
        ['A', 'A', 'B', 'B', 'C', 'C', 'D', 'D', 'D'],
        duration_s=[60.0] * 8 + [5.0],
        version_group=['x', '', 'x', 'y', '', '', 'y', '', ''],
    )
    for part in folds(music):
        groups = set(music.loc[list(part.test), 'version_group']) - {''}
        assert not groups & set(music.loc[list(part.train), 'version_group'])
        assert 's8' not in part.test


def test_only_judges_judge():
    music = table(['A', 'A', 'B', 'B', 'B'])
    parts = folds(music, judges=['s0', 's1', 's2', 's3'])
    assert all('s4' not in part.test for part in parts)
    assert sum('s4' in part.train for part in parts) == 1  # not where its artist judges
    with pytest.raises(ResonanceError, match='artists with two songs'):
        folds(music, judges=['s0', 's2'])


def test_a_table_needs_artists():
    with pytest.raises(ResonanceError, match='artist'):
        folds(pd.DataFrame({'title': ['x']}))


def test_names():
    assert artist_key('  Björk\n') == artist_key('BJÖRK') == 'björk'
    assert not any(map(artist_key, ['', None, 3, 'VARIOUS ARTISTS', 'n/a', '--', float('nan')]))


@given(st.lists(st.sampled_from('ABC '), min_size=0, max_size=20), st.integers(0, 9))
@settings(deadline=None)
def test_triplets_are_what_they_say(names, seed):
    names = [n.strip() for n in names]
    genres = [str(i % 2) for i in range(len(names))]
    for kinds in (None, genres):
        try:
            triplets = artist_triplets(names, 20, np.random.default_rng(seed), genres=kinds)
        except ResonanceError:
            continue
        for a, b, odd in triplets:
            assert a != b and names[a] == names[b] != '' != names[odd] != names[a]
            assert kinds is None or kinds[a] == kinds[b] == kinds[odd]


def test_no_triplets():
    assert artist_triplets(['A', 'A', 'B'], 0, np.random.default_rng(0)).shape == (0, 3)
    with pytest.raises(ResonanceError, match='triplets'):
        artist_triplets(['A', 'B', 'C'], 5, np.random.default_rng(0))


def test_halves_and_excerpts():
    x = np.arange(7, dtype=np.float32)
    assert [len(h) for h in halves(x)] == [3, 4]
    assert [len(h) for h in halves(x[:0])] == [0, 0]
    rng = np.random.default_rng(0)
    sound = np.concatenate([np.zeros(160_000), rng.normal(0, 0.1, 40_000)]).astype(np.float32)
    pieces = [excerpt(sound, 1.0, rng, tries=40) for _ in range(20)]
    assert all(np.abs(p).max() > 0 for p in pieces)
    assert len(excerpt(np.zeros(50_000, np.float32), 1.0, rng)) == 16_000
