"""The crate for music players: it is built and tested where there is cargo, and agrees with the package."""

import importlib.util
import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

CRATE = Path(__file__).resolve().parents[1] / 'rust' / 'resonance-feel'
pytestmark = pytest.mark.skipif(not shutil.which('cargo'), reason='cargo is not installed')


def cargo(*words, **environment):
    "Run cargo in the crate, without the network; give what it printed."
    env = os.environ | {'CARGO_NET_OFFLINE': 'true', 'CARGO_TERM_COLOR': 'never'} | environment
    done = subprocess.run(['cargo', *words], cwd=CRATE, env=env, capture_output=True, text=True)
    if done.returncode and ('no such command' in done.stderr or 'is not installed' in done.stderr):
        pytest.skip(f'cargo {words[0]} is not installed')
    assert done.returncode == 0, done.stdout[-8_000:] + done.stderr[-8_000:]
    return done.stdout


@pytest.fixture(scope='module')
def golden():
    "The script that makes golden vectors."
    spec = importlib.util.spec_from_file_location('golden_vectors', CRATE / 'tests' / 'golden.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope='module')
def command():
    "The path of the command, as the tests build it."
    lines = cargo('build', '--message-format', 'json').splitlines()
    made = [json.loads(line).get('executable') for line in lines if line.startswith('{')]
    return Path(next(path for path in made if path))


def vectors(text):
    "Give the vectors of a file of golden vectors by the names of their sounds."
    rows = [line.split() for line in text.splitlines() if not line.startswith('#')]
    return {name: np.array(numbers, float) for name, *numbers in rows}


def test_the_formatter_changes_nothing():
    cargo('fmt', '--check')


def test_the_linter_finds_nothing():
    cargo('clippy', '--all-targets', '--', '-D', 'warnings')


def test_the_crate_passes_its_tests():
    out = cargo('test', '--', '--show-output')
    assert out.count('test result: ok') >= 5 and 'the largest difference' in out


def test_older_processors_agree():
    for instructions in ('plain', 'avx2'):
        cargo('test', '--test', 'golden', 'weights', RESONANCE_FEEL_CPU=instructions)


def test_golden_vectors_are_those_of_the_package(golden, tmp_path):
    model = pytest.importorskip('resonance_nb.feel_model')
    weights = tmp_path / 'made_up.safetensors'
    weights.write_bytes(golden.made_up())
    pairs = [('golden_made_up.txt', weights)]
    shipped = model.MODELS / 'feel.safetensors'
    pairs += [('golden.txt', shipped)] if shipped.exists() else []
    for name, path in pairs:
        golden.write(path, tmp_path / name)
        made, kept = (vectors((folder / name).read_text('utf-8')) for folder in (tmp_path, golden.HERE))
        assert list(made) == list(kept)
        for sound, vector in made.items():
            np.testing.assert_allclose(kept[sound], vector, rtol=0, atol=1e-5, err_msg=f'{name}, {sound}')


def test_the_onnx_file_gives_the_golden_vectors(golden):
    model = pytest.importorskip('resonance_nb.feel_model')
    if not (model.MODELS / 'feel.onnx').exists():
        pytest.skip('no model of the feel of songs is shipped')
    network = model.FeelModel(model.MODELS / 'feel.onnx')
    kept = vectors((golden.HERE / 'golden.txt').read_text('utf-8'))
    for name, samples in golden.sounds():
        vector = network(samples[None])[0]
        np.testing.assert_allclose(vector, kept[name], rtol=0, atol=1e-5, err_msg=name)


def test_a_file_of_sound_gets_the_vector_of_the_package(golden, command, tmp_path):
    "Stereo at another rate: only the resamplers differ."
    model = pytest.importorskip('resonance_nb.feel_model')
    import soundfile as sf

    from safetensors.numpy import load_file

    weights = tmp_path / 'made_up.safetensors'
    weights.write_bytes(golden.made_up())
    at = np.arange(44_100 * 20) / 44_100
    left = np.sin(2 * np.pi * 220 * at) * np.exp(-3 * (at % 0.5)) / 2
    right = golden.noise(5, len(at)) * (at % 1 < 0.1)
    song = tmp_path / 'song.wav'
    sf.write(song, np.stack([left, right], axis=1), 44_100, 'PCM_24')
    words = [command, song, '--weights', weights]
    said = json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
    arrays = load_file(weights)
    mono = model.at_rate((left + right) / 2, 44_100)
    vector = model.head(*model.segments(model.band_powers(mono, arrays['bank']), arrays), arrays)
    assert said['path'] == str(song) and said['duration_s'] == 20
    assert np.linalg.norm(said['embedding'] - vector) < 1e-2
