"""The embedding recogniser: any cut of the input, catalogue and command line, damaged indexes."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from resonance_nb import audio
from resonance_nb.catalog import Catalog
from resonance_nb.core import CatalogRecognizer, ResonanceError, VectorRecognizer
from resonance_nb.starter import make_starter

torch = pytest.importorskip('torch')

from resonance_nb.embedding import Embedding, evidence_features  # noqa: E402
from resonance_nb.network import HOP_S  # noqa: E402
from resonance_nb.encoders import Encoder, Settings, shipped  # noqa: E402
from resonance_nb.network import WEIGHTS  # noqa: E402

RATE = audio.SAMPLE_RATE


@pytest.fixture(scope='module')
def corpus():
    return make_starter(n_pieces=12)


@pytest.fixture(scope='module')
def index(corpus):
    made = Embedding()
    for track in list(corpus.music.index)[:8]:
        made.add(track, corpus.load('music', track))
    return made


def test_clean_clips_are_found_where_they_are(index, corpus):
    for track in list(corpus.music.index)[:8]:
        x = corpus.load('music', track)
        if len(x) < 12 * RATE:
            continue
        best = index.search(x[3 * RATE : 8 * RATE])[0]
        assert best.track_id == track and best.score > 0.8 and 0 <= best.confidence <= 1


def test_it_fulfils_the_contract(index):
    assert isinstance(index, VectorRecognizer) and isinstance(index, CatalogRecognizer)
    assert index.model_name == f'embedding/{index.digest}@{HOP_S:g}s', (
        'rows of another encoder, or at other times, are not taken for these'
    )


@pytest.mark.parametrize('pieces', [1, 2, 7, 400])
def test_chunks_change_nothing(corpus, pieces):
    x = corpus.load('music', corpus.music.index[0])
    one = Embedding()
    many = Embedding()
    one.add('s', x)
    many.add_stream('s', np.array_split(x, pieces))
    np.testing.assert_allclose(one.songs['s'], many.songs['s'], atol=1e-4)


@pytest.mark.parametrize(
    'x',
    [np.zeros(0), np.zeros(1), np.zeros(90_000), np.full(50_000, np.nan)],
    ids=['empty', 'one', 'silent', 'nan'],
)
def test_nothing_is_heard_in_silence(index, x):
    x = x.astype(np.float32)
    assert index.search(x) == []
    made = Embedding()
    made.add('s', x)
    assert len(made) == 0


def test_short_and_broken_clips(index, corpus):
    x = corpus.load('music', corpus.music.index[1])[: 6 * RATE].copy()
    for n in (1_000, 15_999, 16_000, 16_001, 24_000):
        assert len(index.search(x[:n])) == 5
    x[[500, 40_000]] = np.inf
    assert all(np.isfinite([m.score, m.confidence]).all() for m in index.search(x))


def test_lead_is_over_the_other_one():
    scores = np.concatenate([[0.9, 0.5, 0.4, 0.35, 0.3], np.zeros(200)])
    rows = evidence_features(scores, 9)
    assert (
        rows[:3, 1].tolist() == pytest.approx([0.4, -0.4, -0.5])
        and rows.shape == (205, 4)
        and (rows[:, 2] == 0.3).all()
    )
    assert evidence_features(np.zeros(0), 0).shape == (0, 4)
    few = evidence_features(np.array([0.5, 0.1]), 9)
    # two songs do not show what chance can do
    assert few[0, 1] == pytest.approx(0.12) and few[0, 2] == pytest.approx(0.38)


@pytest.mark.parametrize(
    'harm', ['cut', 'garbage', 'pickle', 'missing', 'version', 'model', 'json', 'nan', 'lengths']
)
def test_a_damaged_index_is_refused_in_one_line(index, tmp_path, harm):
    index.save(tmp_path)
    about = tmp_path / 'index.json'
    vectors = tmp_path / 'vectors.npy'
    told = json.loads(about.read_text())
    if harm == 'cut':
        vectors.write_bytes(vectors.read_bytes()[:-10])
    elif harm == 'garbage':
        vectors.write_bytes(os.urandom(300))
    elif harm == 'pickle':
        np.save(vectors, np.array([{}], dtype=object), allow_pickle=True)
    elif harm == 'missing':
        vectors.unlink()
    elif harm == 'version':
        about.write_text(json.dumps(told | {'version': 99}))
    elif harm == 'model':
        about.write_text(json.dumps(told | {'front_end': 'embedding/0123456789abcdef'}))
    elif harm == 'json':
        about.write_text('{')
    elif harm == 'nan':
        broken = np.load(vectors)
        broken[3, 3] = np.nan
        np.save(vectors, broken)
    elif harm == 'lengths':
        about.write_text(json.dumps(told | {'tracks': [[t, n + 1] for t, n in told['tracks']]}))
    with pytest.raises(ResonanceError) as error:
        Embedding.load(tmp_path)
    assert '\n' not in str(error.value)


def test_in_a_catalogue(corpus, tmp_path):
    music = tmp_path / 'music'
    music.mkdir()
    for track in list(corpus.music.index)[:5]:
        audio.save(music / f'{track.replace("/", "_")}.flac', corpus.load('music', track))
    with Catalog(tmp_path / 'c', create=True) as songs:
        assert songs.index(music, method='embedding', progress=False).added == 5
        assert songs.index(music, method='embedding', progress=False).added == 0
        ids, starts, ends, vectors = songs.embeddings(Embedding().model_name)
        assert vectors.shape[1] == 128 and len(set(ids)) == 5 and np.allclose(ends - starts, 1.0)
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-4)
        clip = tmp_path / 'clip.flac'
        audio.save(clip, corpus.load('music', corpus.music.index[2])[4 * RATE : 9 * RATE])
        found = songs.identify(clip, method='embedding')
        assert corpus.music.index[2].replace('/', '_') in found.matches[0].path and found.matches[
            0
        ].offset_s == pytest.approx(4, abs=0.3)


def test_another_encoder_is_not_compared():
    other = Embedding(Encoder(Settings('cnn3', 128)).eval())
    assert not other.calibrated and other.model_name != Embedding().model_name
    with pytest.raises(ResonanceError, match='cannot merge'):
        other.merge(Embedding())


@pytest.mark.parametrize('n_songs', [1, 3, 8])
def test_a_handful_of_songs_is_no_reason_to_believe(n_songs):
    from resonance_nb.starter import default_corpus

    corpus = default_corpus()
    made = Embedding()
    said = 0
    music = corpus.split('music', 'validation').index.tolist()
    for track in music[:n_songs]:
        made.add(track, corpus.load('music', track))
    strangers = [corpus.load('music', t)[5 * RATE : 10 * RATE] for t in music[n_songs : n_songs + 30]]
    for clip in strangers:
        best = made.search(clip, 1)
        said += bool(best) and best[0].confidence >= made.accept_confidence
    assert said <= 1 + len(strangers) // 20
    assert (
        made.search(corpus.load('music', music[0])[5 * RATE : 10 * RATE], 1)[0].confidence
        >= made.accept_confidence
    )


def test_the_shipped_model_is_small_and_has_its_card_among_the_data():
    root = Path(__file__).parents[1]
    shipped_card = WEIGHTS.with_suffix('.json')
    assert WEIGHTS.stat().st_size <= 8e6 and sum(p.numel() for p in shipped()[0].parameters()) <= 2e6
    assert (root / 'data' / 'models' / 'encoder.json').read_bytes() == shipped_card.read_bytes()
    fitted = Embedding().calibration
    assert fitted.is_for({'encoder': shipped()[1]['digest']}), 'run make calibrate'
