"""Silence around a clip says nothing for a song and nothing against it, whatever the method."""

import numpy as np
import pytest

from resonance_nb.audio import SAMPLE_RATE, search_stretches, stretches
from resonance_nb.core import OWN_METHODS, Match, method_class
from resonance_nb.starter import make_starter

SILENCES = {
    'before': (30, 0),
    'after': (0, 30),
    'around': (12, 17),
}


@pytest.fixture(scope='module')
def songs():
    corpus = make_starter(n_pieces=12)
    return {t: corpus.load('music', t)[: 40 * SAMPLE_RATE] for t in list(corpus.music.index)[:6]}


def quiet(seconds, level=0.0):
    return (level * np.random.default_rng(0).standard_normal(round(seconds * SAMPLE_RATE))).astype(np.float32)


@pytest.mark.parametrize('method', OWN_METHODS)
def test_silence_around_a_clip_changes_no_answer(method, songs):
    index = method_class(method)()
    for name, x in songs.items():
        index.add(name, x)
    name, x = list(songs.items())[2]
    clip = x[8 * SAMPLE_RATE : 18 * SAMPLE_RATE]
    alone = index.search(clip, 1)[0]
    assert alone.track_id == name
    for before_s, after_s in SILENCES.values():
        for level in (0.0, 1e-5):
            best = index.search(np.concatenate([quiet(before_s, level), clip, quiet(after_s, level)]), 1)[0]
            assert best.track_id == name and abs(best.confidence - alone.confidence) < 0.02
            assert best.offset_s == pytest.approx(alone.offset_s - before_s, abs=0.3)


@pytest.mark.parametrize('method', ['landmark', 'fused', 'embedding', 'chromaprint'])
def test_two_parts_of_a_song_with_a_long_pause(method, songs):
    index = method_class(method)()
    for name, x in songs.items():
        index.add(name, x)
    name, x = list(songs.items())[4]
    clip = np.concatenate(
        [x[5 * SAMPLE_RATE : 10 * SAMPLE_RATE], quiet(20), x[20 * SAMPLE_RATE : 26 * SAMPLE_RATE]]
    )
    best = index.search(clip, 1)[0]
    assert best.track_id == name and best.confidence >= index.accept_confidence
    assert min(abs(best.offset_s - 5), abs(best.offset_s + 5)) < 0.3  # of the first part, or of the second


@pytest.mark.parametrize(
    'parts, expected',
    [
        ([(0, 5)], [(0, 0)]),
        ([(1, 5)], [(0, 5)]),
        ([(0, 3), (1, 5), (0, 3)], [(3, 8)]),
        ([(0, 0.5), (1, 5), (0, 0.5)], [(0, 6)]),
        ([(1, 2), (0, 0.8), (1, 2)], [(0, 4.8)]),
        ([(1, 2), (0, 3), (1, 2)], [(0, 2), (5, 7)]),
        ([(0, 2), (1, 2), (0, 3), (1, 2), (0, 4)], [(2, 4), (7, 9)]),
    ],
)
def test_where_the_sound_is(parts, expected):
    x = np.concatenate([quiet(seconds, 0.1 * loud) for loud, seconds in parts])
    if expected == [(0, 0)]:
        expected = [(0, len(x) / SAMPLE_RATE)]
    found = [(s.start / SAMPLE_RATE, s.stop / SAMPLE_RATE) for s in stretches(x)]
    assert found == pytest.approx(np.array(expected), abs=0.1)


@pytest.mark.parametrize(
    'x', [np.zeros(0), np.zeros(1), np.full(100, np.nan), np.full(50_000, 0.5), np.full(50_000, np.inf)]
)
def test_nothing_that_sounds_is_left_whole(x):
    assert stretches(x.astype(np.float32)) == [slice(0, len(x))]


def test_a_broken_sample_does_not_silence_the_rest():
    x = quiet(10, 0.1)
    x[80_000] = 1e25
    assert stretches(x) == [slice(0, len(x))]


def test_several_stretches_are_several_chances():
    x = np.concatenate([quiet(3, 0.1), quiet(5), quiet(3, 0.1)])
    sure = lambda part: [Match('a', 1.0, 0.0, 0.8)]
    assert search_stretches(sure, x[:48_000])[0].confidence == 0.8
    assert search_stretches(sure, x)[0].confidence == pytest.approx(2 / 3, abs=1e-3)  # odds of 4 become 2
    assert search_stretches(lambda part: [], x) == []
