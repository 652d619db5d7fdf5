"""What a confidence is worth: fits, reliability, thresholds, and the files that keep them."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resonance_nb import calibration
from resonance_nb.calibration import Calibration
from resonance_nb.core import OWN_METHODS, ResonanceError, method_class


def test_calibration_is_sklearns():
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(0)
    x = rng.normal(3, 20, (300, 2))
    y = rng.random(300) < 1 / (1 + np.exp(-(0.1 * x[:, 0] - 0.05 * x[:, 1])))
    z = (x - x.mean(0)) / x.std(0)
    ref = LogisticRegression(C=1.0, tol=1e-10).fit(z, y)
    ours = calibration.confidences(calibration.fit(x, y), x)
    assert ours == pytest.approx(ref.predict_proba(z)[:, 1], abs=1e-4)


@given(st.lists(st.booleans(), min_size=1, max_size=30))
def test_calibration_is_finite_even_when_separable(y):
    x = np.where(y, 1e3, -1e3) + np.arange(len(y))
    p = calibration.confidences(calibration.fit(x, y), x)
    assert np.isfinite(p).all() and ((p >= 0) & (p <= 1)).all()


def test_calibration_refuses_nonsense():
    for x, y in (([], []), ([1.0, np.nan], [True, False]), ([1.0], [True, False])):
        with pytest.raises(ResonanceError):
            calibration.fit(x, y)


def test_reliability_and_its_error_by_hand():
    p = [0.05, 0.05, 0.95, 1.0, 0.5]
    y = [False, True, True, True, False]
    r = calibration.reliability(p, y)
    assert r['from'].tolist() == pytest.approx([0.0, 0.5, 0.9]) and r.n.tolist() == [2, 1, 2]
    assert calibration.expected_calibration_error(p, y) == pytest.approx((2 * 0.45 + 0.5 + 2 * 0.025) / 5)
    assert calibration.expected_calibration_error([1.0, 0.0], [True, False]) == 0
    assert calibration.expected_calibration_error([1.0, 0.0], [False, True]) == 1
    with pytest.raises(ResonanceError):
        calibration.reliability([1.2], [True])


def test_the_interval_is_wilsons():
    r = calibration.reliability([0.55] * 10, [True] * 8 + [False] * 2)
    z = 1.959963984540054
    middle = (0.8 + z * z / 20) / (1 + z * z / 10)
    half = z * np.sqrt(0.8 * 0.2 / 10 + z * z / 400) / (1 + z * z / 10)
    assert r[['low', 'high']].to_numpy()[0] == pytest.approx([middle - half, middle + half])


def test_the_diagram_shows_the_shares():
    import matplotlib

    matplotlib.use('agg')
    curve = calibration.reliability([0.2, 0.9], [False, True])
    assert calibration.plot_reliability(curve).lines[1].get_ydata().tolist() == [0, 1]


@given(st.lists(st.tuples(st.floats(0, 1), st.sampled_from(['unknown', 'noise', 'known'])), max_size=200))
def test_no_kind_of_negatives_passes_more_often_than_allowed(answers):
    far = 0.1
    answers = [*answers, (0.5, 'unknown'), (0.5, 'noise')]
    confidence, kinds = (np.array(x) for x in zip(*answers))
    accept = calibration.threshold_at(far, confidence, kinds)
    for kind in ('unknown', 'noise'):
        assert (confidence[kinds == kind] >= accept).mean() <= far


def test_the_threshold_is_the_lowest_that_keeps_the_promise():
    confidence = np.r_[np.linspace(0, 0.9, 101), np.linspace(0, 0.5, 101), 1.0]
    kinds = np.repeat(['unknown', 'noise', 'known'], [101, 101, 1])
    accept = calibration.threshold_at(0.01, confidence, kinds)
    assert (confidence[:101] >= accept).sum() == 1 and (
        confidence[:101] >= np.nextafter(accept, 0)
    ).sum() == 2


def test_a_threshold_needs_every_kind():
    with pytest.raises(ResonanceError, match='no noise'):
        calibration.threshold_at(0.01, [0.5], ['unknown'])


def test_what_is_saved_is_loaded(tmp_path):
    one = Calibration({'front_end': 'a'}, -1.5, {'score': 2.0, 'lead': 3.0}, 0.7, {'usual_fifth': 0.5})
    two = Calibration({'front_end': 'b'}, 0.25, {'votes': 1.0}, 0.6, fitted_on={'split': 'validation'})
    calibration.save(tmp_path / 'mine.json', [one, two])
    assert calibration.load_all(tmp_path / 'mine.json') == [one, two]
    assert one.coefficients.tolist() == [-1.5, 2, 3]
    assert one.log_odds(np.array([[1.0, 1.0]])).tolist() == [3.5]
    assert one.confidence(np.array([[1.0, 1.0]])) == pytest.approx(1 / (1 + np.exp(-3.5)))


def entry(**changes):
    "A file of one calibration, as text."
    whole = {'fitted_for': {}, 'intercept': 0.0, 'weights': {'a': 1.0}, 'accept_confidence': 0.5}
    return json.dumps([whole | changes])


@pytest.mark.parametrize(
    'text',
    [
        '',
        '{',
        '[1]',
        '[{"weights": {}}]',
        '{"intercept": 1}',
        entry(intercept=None),
        entry(weights=[1.0]),
        entry(weights={'a': 'much'}),
        entry(constants=None),
        entry(accept_confidence=float('nan')),
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path, text):
    (tmp_path / 'x.json').write_text(text)
    with pytest.raises(ResonanceError, match='no file of calibrations'):
        calibration.load_all(tmp_path / 'x.json')


def test_the_nearest_is_taken_where_nothing_was_fitted():
    landmarks = calibration.load_all(calibration.MODELS / 'landmarks.json')
    votes = calibration.load('landmarks', {'front_end': 'none'}, ('votes', 'chance_votes'))
    assert votes in landmarks and not votes.is_for({'front_end': 'none'})
    dense = method_class('landmark-dense')()
    assert dense.calibration in landmarks and dense.calibration.is_for({'front_end': dense.front.digest()})


@pytest.mark.parametrize('method', OWN_METHODS)
def test_every_recogniser_comes_with_a_calibration_of_its_own(method):
    recognizer = method_class(method)()
    fitted = recognizer.calibration
    assert recognizer.calibrated, (
        f'run resonance calibrate {method}, and copy its file to resonance_nb/models'
    )
    assert 0.5 < fitted.accept_confidence < 1
    assert recognizer.accept_confidence == fitted.accept_confidence
    assert fitted.fitted_on['split'] == 'validation' and fitted.fitted_on['false_accepts_allowed'] <= 0.01
    assert json.dumps(fitted.constants) and all(isinstance(w, float) for w in fitted.weights.values())


NEEDS = {  # the methods that need constants, and one that each of them needs
    'mfcc': 'usual_fifth',
    'chroma': 'usual_fifth',
    'chromaprint': 'chance',
    'landmark': 'least_chance',
    'landmark-dense': 'least_chance',
    'fused': 'noise',
}


@pytest.fixture(params=NEEDS)
def spoiled(request, tmp_path, monkeypatch):
    "A method, the constant it needs, and a function that puts another file in the place of the shipped one."
    kind = method_class(request.param)
    name = f'{kind.calibration_file or kind.name}.json'
    shipped = calibration.load_all(calibration.MODELS / name)
    monkeypatch.setattr(calibration, 'MODELS', tmp_path)

    def put(change):
        entries = [change(dict(c.constants)) for c in shipped]
        calibration.save(tmp_path / name, [replace(c, constants=e) for c, e in zip(shipped, entries)])

    return request.param, NEEDS[request.param], put


def heard_by(method):
    "What a method answers that holds one song."
    rng = np.random.default_rng(0)
    song = (0.1 * rng.standard_normal(10 * 16_000) * (1 + np.sin(np.arange(160_000) / 900))).astype(
        np.float32
    )
    recognizer = method_class(method)()
    recognizer.add('a', song)
    return recognizer.search(song[32_000:112_000], 1)


def test_a_missing_file_of_calibrations_is_one_line(spoiled):
    method, name, put = spoiled
    with pytest.raises(ResonanceError, match='json is missing.*install resonance_nb again') as e:
        heard_by(method)
    assert '\n' not in str(e.value)


@pytest.mark.parametrize(
    'value', ['left out', None, 'text', {'weight': [1]}, [[1.0], [1.0, 2.0]], float('nan')], ids=str
)
def test_a_damaged_constant_is_one_line(spoiled, value):
    method, name, put = spoiled
    put(lambda c: {k: v for k, v in c.items() if k != name} if value == 'left out' else c | {name: value})
    with pytest.raises(ResonanceError, match=f'no usable {name}.*install resonance_nb again') as e:
        heard_by(method)
    assert '\n' not in str(e.value)


def test_the_whole_file_answers(spoiled):
    method, _, put = spoiled
    put(lambda c: c)
    assert [m.track_id for m in heard_by(method)] == ['a']


def test_weights_for_other_features_are_one_line():
    two = Calibration({}, 0.0, {'a': 1.0, 'b': 1.0}, 0.5)
    with pytest.raises(ResonanceError, match='3 features, but a calibration of 2'):
        two.log_odds(np.ones((4, 3)))


@pytest.mark.parametrize('content', [None, b'', b'no array', b'\x93NUMPY\x01\x00v\x00{}'], ids=str)
def test_directions_of_noise_that_cannot_be_read_are_one_line(tmp_path, monkeypatch, content):
    from resonance_nb import evidence

    monkeypatch.setattr(evidence, 'MODELS', tmp_path)
    if content is not None:
        (tmp_path / 'noises.npy').write_bytes(content)
    evidence.shipped_noises.cache_clear()
    with pytest.raises(
        ResonanceError, match='noises.npy (is missing|cannot be read).*install resonance_nb again'
    ):
        evidence.shipped_noises()
    monkeypatch.undo()
    assert evidence.shipped_noises().shape[0] == 64
