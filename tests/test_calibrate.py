"""Calibrating: which clips, which rows, and that the numbers are those of the recipe."""

import json
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from resonance_nb import calibration
from resonance_nb.adaptors import (
    ADAPTORS,
    Adaptor,
    AveragesAdaptor,
    ChromaprintAdaptor,
    FusedAdaptor,
    LandmarkAdaptor,
    adaptor_of,
    candidate_weights,
    without_kin,
)
from resonance_nb.calibrate import calibrate, fit_rows, go_through, put
from resonance_nb.calibration import Calibration, load_all
from resonance_nb.cli_calibrate import _fit_method
from resonance_nb.core import METHODS, ResonanceError
from resonance_nb.fuse import Fused
from resonance_nb.mfcc import Mfcc
from resonance_nb.queries import Query
from resonance_nb.recogniser import Column, Ranking, SongIndex
from resonance_nb.starter import make_starter
from resonance_nb.survey import Clip, Journal, Row, Survey, at_speed, questions, quick, survey_clips


@pytest.fixture(scope='module')
def corpus():
    return make_starter(n_pieces=40)


class Toy:
    "A recogniser of one feature, whose calibration is known."

    name = 'toy'
    fitted_for = {'model': 'toy'}
    calibration = Calibration({'model': 'toy'}, 0.0, {'score': 1.0}, 0.5, {'kept': 1})


class ToyAdaptor(Adaptor):
    "Answers with a number that the clip holds."

    def judge(self, query, clip, condition):
        return [Row(query.kind, query.track_id, 'x', query.kind == 'known', [float(clip[0])])]


def toy_rows(n=200, seed=0):
    rng = np.random.default_rng(seed)
    rows = [
        Row('known', f's{i}', f's{i}', bool(x > -0.5), [float(x)]) for i, x in enumerate(rng.normal(2, 1, n))
    ]
    for kind in ('unknown', 'noise'):
        rows += [Row(kind, '', 's0', False, [float(x)]) for x in rng.normal(-1, 1, n)]
    return rows


@pytest.mark.parametrize('far', [0.005, 0.01, 0.1])
def test_the_threshold_keeps_its_promise_for_each_kind(far):
    rows = toy_rows()
    fitted, confidence = fit_rows(ToyAdaptor(Toy(), {}), rows, false_accepts=far)
    for kind in ('unknown', 'noise'):
        accepted = [c >= fitted.accept_confidence for c, r in zip(confidence, rows) if r.kind == kind]
        assert np.mean(accepted) <= far
    just_below = np.nextafter(fitted.accept_confidence, 0) - 1e-12
    assert any(
        np.mean([c >= just_below for c, r in zip(confidence, rows) if r.kind == k]) > far - 1 / 200
        for k in ('unknown', 'noise')
    )


def test_coefficients_are_those_of_a_logistic_regression():
    from sklearn.linear_model import LogisticRegression

    rows = toy_rows()
    x = np.array([r.evidence for r in rows])
    y = np.array([r.right for r in rows])
    fitted = fit_rows(ToyAdaptor(Toy(), {}), rows)[0]
    mean, scale = x.mean(), x.std()
    ref = LogisticRegression(C=1.0, tol=1e-10).fit((x - mean) / scale, y)
    assert fitted.weights['score'] == pytest.approx(ref.coef_[0, 0] / scale, rel=1e-3)
    assert fitted.constants == {'kept': 1} and fitted.fitted_for == {'model': 'toy'}


def test_what_is_silent_or_doubtful_is_never_accepted():
    rows = toy_rows() + [
        Row('unknown', '', 's1', False, [9.0], doubtful=True),
        Row('noise', ''),
        Row('known', 's1'),
    ]
    fitted, confidence = fit_rows(ToyAdaptor(Toy(), {}), rows)
    assert confidence[-3:].tolist() == [0, 0, 0] and np.isfinite(confidence).all()


def test_a_song_at_another_speed_is_fitted_to_nothing_but_must_not_be_taken_for_another():
    class WithSpeeds(ToyAdaptor):
        negatives = ('unknown', 'noise', 'speed')

    rows = toy_rows()
    before = fit_rows(ToyAdaptor(Toy(), {}), rows)[0]
    wrong = [Row('speed', 's1', 's2', False, [5.0])] * 50
    right = [Row('speed', 's1', 's1', True, [9.0])] * 50
    after, confidence = fit_rows(WithSpeeds(Toy(), {}), rows + wrong + right)
    assert after.weights == before.weights and after.accept_confidence > before.accept_confidence
    assert confidence[-50:].max() == 0 and confidence[-100] > 0.5


def test_averages_are_fitted_as_the_shipped_file_was():
    "The recipe, written out: the median of the fifth, two logarithms, and the threshold of the worse kind."
    rng = np.random.default_rng(0)
    rows = []
    for kind, top in (('known', 0.9), ('unknown', 0.7), ('noise', 0.6)):
        for i in range(150):
            scores = np.sort(rng.uniform(0.1, 0.6, 5))[::-1]
            scores[0] = np.clip(rng.normal(top, 0.08), 0.6, 0.999)
            rows.append(Row(kind, f'{i}', 'a', kind == 'known', scores.tolist()))
    rows.append(Row('noise', ''))  # nothing was answered
    adaptor = AveragesAdaptor(Mfcc(), {})
    fitted, confidence = fit_rows(adaptor, rows, false_accepts=0.01)
    usual = np.median([r.evidence[4] for r in rows if r.evidence])
    best = np.array([r.evidence[0] if r.evidence else 0 for r in rows])
    fifth = np.array([max(usual, r.evidence[4]) if r.evidence else usual for r in rows])
    features = np.log(np.maximum(1 - np.stack([best, fifth], 1), 1e-4))
    expected = 1 / (1 + np.exp(-(fitted.intercept + features @ list(fitted.weights.values()))))
    assert fitted.constants == {'usual_fifth': pytest.approx(usual)}
    assert confidence[:-1] == pytest.approx(expected[:-1], abs=1e-9) and confidence[-1] == 0
    kinds = np.array([r.kind for r in rows])
    tops = [np.sort(confidence[kinds == k])[::-1] for k in ('unknown', 'noise')]
    line = max(t[int(0.01 * len(t))] for t in tops)  # one of 150 may pass
    assert fitted.accept_confidence == pytest.approx(line, abs=1e-9) and fitted.accept_confidence > line


def test_chromaprint_s_law_of_chance_looks_at_strangers_only():
    rng = np.random.default_rng(0)
    rows = [
        Row(
            kind,
            '',
            's',
            False,
            [0.3, 0.3, 0.3, 0.3, 0.5 - 2 * bits**-0.5, int(bits), 0.2 + 0.1 * rng.random()],
        )
        for kind in ('unknown', 'noise')
        for bits in rng.integers(100, 4000, 40)
    ]
    rows += [Row('known', '', 's', True, [0.1, 0.1, 0.1, 0.1, 0.1, 5, 0.9]), Row('noise', '')]
    a, b, c = ChromaprintAdaptor(None, {}).constants(rows)['chance']
    assert (np.exp(a), b, c) == (pytest.approx(2, rel=1e-6), pytest.approx(-0.5), pytest.approx(0, abs=1e-6))


def test_kin_are_set_aside_both_ways_round():
    rows = [
        Row('known', 'a', 'a', True, [1.0], alike=['a', 'b']),
        Row('unknown', 'b', 'a'),
        Row('speed', 'a', 'b'),
        Row('unknown', 'c', 'a'),
        Row('known', 'b', 'a'),
    ]
    assert without_kin(rows) == [rows[0], rows[3], rows[4]]


def test_the_conditional_logit_finds_the_weights():
    rng = np.random.default_rng(0)
    true = np.array([20.0, 0.8])
    cases = []
    for _ in range(1500):
        x = rng.normal(size=(8, 2)) * [0.1, 3]
        p = np.exp(x @ true)
        cases.append((x, int(rng.choice(8, p=p / p.sum()))))
    assert candidate_weights(cases) == pytest.approx(true, rel=0.15)


def test_weighing_gives_another_recogniser_and_leaves_the_one_in_use():
    one = Fused()
    one.add('a', tune(3 * 16_000) * np.sin(np.arange(3 * 16_000, dtype=np.float32) / 3_000))
    constants, scoring, songs = deepcopy((one.calibration.constants, vars(one.scoring), one.songs))
    rng = np.random.default_rng(0)
    rows = [
        Row('known', 'a', evidence=[0, *rng.normal([[2], [4]] * np.eye(1, 6), 1).ravel()]) for _ in range(50)
    ]
    adaptor = FusedAdaptor(one, {})
    other = adaptor.weigh(rows)
    assert adaptor.recognizer is one and other is not one
    assert one.calibration.constants == constants
    assert one.scoring.weights == scoring['weights'] == constants['score_weights']
    assert other.scoring.weights == other.calibration.constants['score_weights'] != constants['score_weights']
    assert other.scoring.floor == scoring['floor'] and other.scoring.noises is one.scoring.noises
    other.add('b', tune(3 * 16_000))
    assert [*one.songs] == [*songs] and [*other.songs] == [*songs, 'b']


def test_what_was_weighed_is_asked_in_the_next_pass():
    class Weighs(ToyAdaptor):
        passes = ('weights', 'rows')

        def candidates(self, query, clip, condition):
            return self.judge(query, clip, condition)

        def weigh(self, rows):
            return SimpleNamespace(name='weighed', heard=len(rows))

    adaptor = Weighs(Toy(), {})
    go_through(adaptor, list(clips()), Journal(None, {}), progress=False)
    assert adaptor.recognizer == SimpleNamespace(name='weighed', heard=12)


# --- surveys and journals


def test_a_survey_asks_every_condition_once(corpus):
    survey = Survey((None, 5), (2,), n_noise_only=3, conditions=('crowd',), speeds=(0.96,))
    plan, queries = questions(corpus, survey)
    clips = list(survey_clips(corpus, survey, plan, queries))
    names = [c.name for c in clips]
    assert len(set(names)) == len(names) == len(queries) + len(plan.known_ids) + len(plan.unknown_ids)
    again = {c.name: c for c in survey_clips(corpus, survey, *questions(corpus, survey))}
    for clip in (clips[0], clips[-1]):
        assert np.array_equal(clip.sound(), again[clip.name].sound())


def test_speed_shortens_and_raises():
    t = np.arange(16_000 * 12) / 16_000
    tone = np.sin(2 * np.pi * 440 * t).astype(np.float32)
    for speed in (0.94, 1.06):
        x = at_speed(tone, 1.0, speed)
        assert len(x) == 80_000
        peak = np.argmax(np.abs(np.fft.rfft(x * np.hanning(len(x))))) * 16_000 / len(x)
        assert peak == pytest.approx(440 * speed, abs=0.3)


def clips(n=12):
    for i in range(n):
        kind = ('known', 'unknown', 'noise')[i % 3]
        query = Query(f'q{i}', kind, f't{i}', 0.0, 1.0, None, f'q{i}', 1.0)
        yield Clip(f'q{i}', query, 'crowd', lambda i=i: np.array([i + 1.0]))


def test_what_was_stopped_goes_on(tmp_path):
    facts = {'method': 'toy'}
    whole = go_through(ToyAdaptor(Toy(), {}), list(clips()), Journal(None, facts), progress=False)
    path = tmp_path / 'toy.jsonl'
    go_through(ToyAdaptor(Toy(), {}), list(clips(5)), Journal(path, facts), progress=False)
    with path.open('a') as file:
        file.write('{"asked": "rows: q5", "rows": [{"kind"')

    class Counts(ToyAdaptor):
        n = 0

        def judge(self, *args):
            Counts.n += 1
            return super().judge(*args)

    assert go_through(Counts(Toy(), {}), list(clips()), Journal(path, facts), progress=False) == whole
    assert Counts.n == 7
    assert go_through(Counts(Toy(), {}), list(clips()), Journal(path, facts), progress=False) == whole
    assert Counts.n == 7, 'nothing is asked again'
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_a_journal_of_other_questions_is_refused(tmp_path):
    Journal(tmp_path / 'a.jsonl', {'queries': 'one'}).keep('q', [])
    with pytest.raises(ResonanceError, match='other questions'):
        Journal(tmp_path / 'a.jsonl', {'queries': 'two'})


# --- the whole


def test_every_method_has_an_adaptor():
    assert ADAPTORS.keys() <= METHODS.keys()
    assert all(issubclass(adaptor_of(method), Adaptor) for method in METHODS)


class Loudness(SongIndex):
    "The loudness of every second; a recogniser that brings neither an adaptor nor a file."

    name = 'loudness'

    def kept_of(self, blocks):
        samples = np.concatenate(list(blocks))
        seconds = samples[: len(samples) // 16_000 * 16_000].reshape(-1, 16_000)
        return np.sqrt((seconds**2).mean(axis=1)) if len(seconds) else None

    def columns(self):
        return {'loudness': Column('<f4')}

    def rank(self, samples, k=5):
        mean = np.sqrt((samples**2).mean())
        score = np.array([-np.abs(kept - mean).min() for kept in self.songs.values()])
        order = np.argsort(-score)
        ids = [list(self.songs)[i] for i in order]
        return Ranking(ids, score[order], np.zeros(len(order)), score[order][:, None])


def test_a_new_recogniser_is_calibrated_without_a_file(corpus, tmp_path, monkeypatch):
    monkeypatch.setitem(METHODS, 'loudness', f'{__name__}:Loudness')
    recognizer = Loudness()
    recognizer.add('a', tune(3 * 16_000))
    assert not recognizer.calibrated and [m.confidence for m in recognizer.search(tune(16_000))] == [0.5]
    fitted = _fit_method('loudness', corpus, tmp_path, quick=True)
    (calibration,) = load_all(Path(fitted['file']))
    assert calibration.is_for(recognizer.fitted_for) and list(calibration.weights) == ['feature 1']


def tune(n):
    return 0.1 * np.sin(np.arange(n, dtype=np.float32) / 7)


def test_a_small_calibration_of_landmarks(corpus, tmp_path):
    survey = Survey(
        (None, 5),
        (5,),
        n_noise_only=10,
        conditions=('crowd',),
        speeds=(0.96,),
        fillers=0,
        max_tracks=8,
        false_accepts=0.1,
    )
    outcome = calibrate('landmark', corpus, survey=survey, folder=tmp_path / 'journal', progress=False)
    assert set(outcome.answered) == {'unknown', 'noise', 'speed'} and max(outcome.answered.values()) <= 0.1
    assert outcome.accepted_right <= outcome.named_right
    assert outcome.file == 'landmarks.json'
    put(tmp_path / outcome.file, outcome.calibration)
    assert load_all(tmp_path / outcome.file) == [outcome.calibration]
    shipped = load_all(calibration.MODELS / outcome.file)
    assert any(tuple(c.weights) == tuple(outcome.calibration.weights) for c in shipped)
    # the second time, nothing is asked: the answer comes from the journal
    before = (tmp_path / 'journal' / 'landmark.jsonl').read_bytes()
    assert (
        calibrate('landmark', corpus, survey=survey, folder=tmp_path / 'journal', progress=False) == outcome
    )
    assert (tmp_path / 'journal' / 'landmark.jsonl').read_bytes() == before


def test_what_cannot_be_calibrated(corpus):
    with pytest.raises(ResonanceError, match='shazam cannot be calibrated; choose from'):
        calibrate('shazam', corpus)
    with pytest.raises(ResonanceError, match='at least five songs'):
        AveragesAdaptor(Mfcc(), {}).constants([Row('known', 'a', 'a', True, [0.9, 0.1])])


def test_a_quick_survey_is_smaller():
    for adaptor in ADAPTORS.values():
        small = quick(adaptor.survey)
        assert len(small.snr_db) * len(small.durations_s) <= 2 and small.conditions == ('crowd',)
    assert quick(LandmarkAdaptor.survey).speeds == (0.96,)


def test_put_leaves_other_settings_alone(tmp_path):
    one = Calibration({'model': 'a'}, 0.0, {'x': 1.0}, 0.5)
    two = Calibration({'model': 'b'}, 0.0, {'x': 1.0}, 0.6)
    newer = Calibration({'model': 'a'}, 1.0, {'x': 2.0}, 0.7)
    for c in (one, two, newer):
        put(tmp_path / 'deep' / 'x.json', c)
    assert load_all(tmp_path / 'deep' / 'x.json') == [newer, two]


def test_a_fit_of_fused_says_what_it_knows_nothing_of(tmp_path, monkeypatch, capsys):
    "A new encoder brings directions of noise of its own; until they are in use, no song sounds like noise."
    from resonance_nb.cli_calibrate import _remark_not_in_use
    from resonance_nb.fuse import Fused
    from resonance_nb.network import MODELS

    _remark_not_in_use(tmp_path, MODELS)
    assert capsys.readouterr().err == ''
    (tmp_path / 'codebook.npz').write_bytes(b'of another encoder')
    monkeypatch.setattr(Fused, 'calibrated', False)
    _remark_not_in_use(tmp_path, MODELS)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and 'codebook.npz is not in use' in lines[0]
    assert 'knows no directions of noise' in lines[1] and str(MODELS) in lines[1]
