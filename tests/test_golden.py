"""Golden runs: the first steps of the shipped recipe and a small trial come out as they did (see tests/golden.py)."""

import json

import numpy as np
import pytest

import golden

pytest.importorskip('torch')
pytest.importorskip('lightning')

LOSSES = 0.03  # other instructions change losses by up to 0.004 …
WEIGHTS = 1e-4  # … and lengths of weights by up to 0.00001 of themselves


@pytest.fixture(scope='module')
def kept():
    return json.loads(golden.FILE.read_text(encoding='utf-8'))


def test_the_shipped_recipe_learns_as_it_did(kept):
    """The first fifty steps, small. When this fails, `resonance train --profile shipped` makes another model than before.

    Put back what changed it; or, if it was meant, write the file anew: `make golden WRITE=yes`."""
    far = golden.furthest(golden.training(), kept['training'])
    assert far['losses'] < LOSSES and far['weights'] < WEIGHTS, far


def test_trials_still_find_what_the_kept_ones_found(kept):
    """When this fails, trials find something else than those in `data/trials`.

    Put back what changed them; or raise `trials.TRIALS_VERSION`, write the file anew and make the trials again."""
    found = golden.golden_trial()
    assert found['version'] == kept['trial']['version'], 'another version: `make golden WRITE=yes`'
    assert json.loads(json.dumps(found['choices'])) == kept['trial']['choices']
    far = golden.furthest(found, kept['trial'])
    assert far['losses'] < LOSSES / 3 and far['weights'] < WEIGHTS, far


def test_questions_are_as_hard_as_those_of_the_kept_trials(kept):
    found = golden.questions()
    assert np.abs(np.subtract(found['right'], kept['questions']['right'])).max() <= 3, found


@pytest.mark.parametrize(
    'changes', [{'smoothing': 0.1}, {'levels.last_db': (-4, 6)}, {'learning_rate': 1e-3}], ids=str
)
def test_another_trial_would_be_noticed(kept, changes):
    assert golden.furthest(golden.golden_trial(changes), kept['trial'])['losses'] > 2 * LOSSES


def test_numbers_of_16_bits_learn_the_same(kept):
    from resonance_nb.learning import precision_here

    if precision_here() != 'bf16-mixed':
        pytest.skip('this processor does not multiply 16-bit numbers')
    found = golden.golden_trial({'precision': 'bf16-mixed'})
    assert golden.furthest(found, kept['trial'])['losses'] < 2 * LOSSES
