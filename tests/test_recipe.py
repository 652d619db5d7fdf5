"""Recipes: wrong choices are refused, old names are read, and trials are found again by what they were made from."""

import hashlib
import json
from dataclasses import asdict, fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resonance_nb import runs
from resonance_nb.core import ResonanceError
from resonance_nb.recipe import OLD_NAMES, PROFILES, Recipe, changed, from_card
from resonance_nb.trials import base_recipe, choices


@pytest.mark.parametrize('name', PROFILES)
def test_a_recipe_comes_back_from_its_card(name):
    assert from_card(json.loads(json.dumps(asdict(PROFILES[name])))) == PROFILES[name]


def test_old_and_new_names_mean_the_same():
    names = {f.name for f in fields(Recipe)}
    assert set(OLD_NAMES.values()) <= names and not names & set(OLD_NAMES)
    for old, today in OLD_NAMES.items():
        plain = asdict(Recipe())
        plain[old] = plain.pop(today)
        assert from_card(plain) == Recipe()
    assert changed(Recipe(), {'masked': 0.5, 'cut.windows': 3}) == changed(
        Recipe(), {'spec_augment': 0.5, 'crop.windows': 3}
    )


def test_every_card_of_the_repository_is_read(root):
    for path in sorted((root / 'data' / 'models').glob('*.json')):
        card = json.loads(path.read_text())
        read = from_card(card['recipe'])
        assert read.learning_rate == card['recipe']['rate'] and read.n_songs == card['recipe']['n_songs']


def test_the_shipped_recipe_is_that_of_the_card(root):
    card = json.loads((root / 'data' / 'models' / 'encoder.json').read_text())
    stored = from_card(card['recipe'])
    own = {'steps', 'precision', 'validate_every'}  # of the machine and the script that made it
    later = {'speeds', 'rooms', 'concert_sets', 'minutes', 'keep'}  # not in the recipes of its time
    for f in fields(Recipe):
        if f.name not in own | later:
            assert getattr(stored, f.name) == getattr(PROFILES['shipped'], f.name), f.name
    assert list(PROFILES['shipped'].speeds) == card['speeds']
    assert f'--minutes {PROFILES["shipped"].minutes}' in card['command']
    assert f'--producers {PROFILES["shipped"].concert_sets}' in card['command']


@given(st.dictionaries(st.text(max_size=8), st.integers() | st.text(max_size=3), max_size=3))
def test_nonsense_is_refused_in_one_line(stored):
    try:
        assert isinstance(from_card(stored), Recipe)
    except ResonanceError as e:
        assert '\n' not in str(e) or any('\n' in name for name in stored)


def digest(recipes):
    text = json.dumps(runs.plain([choices(r) for r in recipes]), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def test_kept_trials_are_found_by_the_same_choices():
    "Digests of what decides a trial, written down before choices got their names of today."
    base = base_recipe(200, 48, n_mels=256)
    assert digest([changed(base, {'seed': s}) for s in (0, 1)]) == BASE
    others = [
        {'spec_augment': 0.5},
        {'dropped_stages': ['room']},
        {'crop.shift_s': 0.0},
        {'hard_negatives': 0.5},
    ]
    assert digest([changed(base, c) for c in others]) == OTHERS


BASE = '6cd4b194cc3e95c8'
OTHERS = 'b9f4338a3d44c904'
