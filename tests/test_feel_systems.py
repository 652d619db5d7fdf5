"""Systems that are compared: the contract of a player's file, its shortest sound, and rows that need no weights."""

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from resonance_nb.core import ResonanceError
from resonance_nb.feel_systems import SYSTEMS, of_file, random_network, system

MECOMP = Path(os.environ.get('RESONANCE_MODELS', '')) / 'mecomp_embedding.onnx'


def identity(path, taken='audio', given='embedding'):
    "A file that gives back the first two samples."
    nodes = [helper.make_node('Slice', [taken, 'zero', 'two', 'one'], [given])]
    axes = {'zero': [0], 'two': [2], 'one': [1]}
    constants = [helper.make_tensor(k, TensorProto.INT64, [1], v) for k, v in axes.items()]
    graph = helper.make_graph(
        nodes,
        'first',
        [helper.make_tensor_value_info(taken, TensorProto.FLOAT, ['songs', 'samples'])],
        [helper.make_tensor_value_info(given, TensorProto.FLOAT, ['songs', 2])],
        constants,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid('', 18)], ir_version=9), path)
    return path


def test_a_file_hears_mono_at_its_own_rate(tmp_path):
    heard = of_file(identity(tmp_path / 'first.onnx'), name='first', shortest=4)
    assert heard.name == 'first'
    tone = np.sin(np.arange(16_000) / 20).astype(np.float32) + 0.5
    assert heard(tone).shape == (2,)
    with pytest.raises(ResonanceError, match='first needs 4 samples at 22050 Hz, not 3'):
        heard(np.zeros(2, np.float32))
    with pytest.raises(ResonanceError, match='one row of samples'):
        heard(np.zeros((2, 40_000)))


@pytest.mark.parametrize('names', [dict(taken='sound'), dict(given='vector')])
def test_a_file_that_breaks_the_contract_is_refused(tmp_path, names):
    path = identity(tmp_path / 'other.onnx', **names)
    with pytest.raises(ResonanceError, match='not "audio" into "embedding"'):
        of_file(path)


@pytest.mark.parametrize('content', [None, b'', b'RIFF'])
def test_what_is_no_file_is_refused(tmp_path, content):
    path = tmp_path / 'x.onnx'
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ResonanceError, match='not a readable network'):
        system(str(path))


def test_systems_by_name(monkeypatch):
    monkeypatch.delenv('RESONANCE_MODELS', raising=False)
    with pytest.raises(ResonanceError, match='choose from'):
        system('nobody')
    with pytest.raises(ResonanceError, match='RESONANCE_MODELS'):
        system('mecomp')
    sound = np.random.default_rng(0).normal(0, 0.1, 20_000).astype(np.float32)
    made = [system(n) for n in SYSTEMS if n not in ('mecomp', 'mecomp-z', 'musicnn', 'efficientat')]
    assert len({s.name for s in made}) == len(made)
    assert all(np.isfinite(s(sound)).all() for s in made)
    assert all(np.isfinite(s(sound[:0])).all() for s in made)


def test_random_weights_are_a_promise():
    sound = np.random.default_rng(0).normal(0, 0.1, 20_000).astype(np.float32)
    np.testing.assert_array_equal(random_network(sound), random_network(sound))
    np.testing.assert_allclose(random_network(0.5 * sound), random_network(sound), atol=1e-3)
    assert random_network(sound, dim=5, seed=3).shape == (5,)


@pytest.mark.skipif(
    not MECOMP.is_file(), reason='RESONANCE_MODELS names no folder with mecomp_embedding.onnx'
)
def test_the_incumbent_hears_loudness():
    incumbent = system('mecomp')
    sound = np.random.default_rng(0).normal(0, 0.1, 64_000).astype(np.float32)
    assert incumbent(sound).shape == (32,)
    assert np.linalg.norm(incumbent(sound)) == pytest.approx(1, abs=1e-3)
    assert incumbent(sound) @ incumbent(0.1 * sound) < 0.999
    with pytest.raises(ResonanceError, match='2048'):
        incumbent(sound[:1_400])
