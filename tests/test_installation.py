"""Files of the package that are missing or damaged: one line that names the file, and no word against the catalogue."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import resonance_nb as rs
from resonance_nb import audio, calibration, codebook, decide, evidence, feel_model, network
from resonance_nb.cli_options import remark_guess
from resonance_nb.core import BrokenInstallation, ResonanceError, method_class, rng_for

RATE = audio.SAMPLE_RATE
NOISE = rng_for(1, 'installation').bytes(600)
CACHES = (network.shipped, codebook.shipped_codebook, evidence.shipped_noises, feel_model.shipped)


def tune(number):
    rng = rng_for(number, 'installation')
    t = np.arange(RATE // 4) / RATE
    notes_hz = 220 * 2 ** (rng.choice([0, 2, 4, 7, 9, 12, 14, 16], (48, 2)) / 12)
    chord = lambda pair: sum(np.sin(2 * np.pi * f * t) for f in pair) * np.exp(-4 * t)
    return (0.2 * np.concatenate([chord(pair) for pair in notes_hz])).astype(np.float32)


@pytest.fixture(scope='module')
def shelf(tmp_path_factory):
    "A catalogue of one song, with two methods, and the song."
    place = tmp_path_factory.mktemp('installation')
    audio.save(place / 'song.wav', tune(0))
    with rs.Catalog(place / 'songs', create=True) as songs:
        for method in ('fused', 'landmark'):
            songs.index(place / 'song.wav', method=method, progress=False)
    return place


@pytest.fixture
def models(tmp_path, monkeypatch):
    "A copy of the files of the package, which is used in their place."
    copied = tmp_path / 'models'
    shutil.copytree(Path(str(calibration.MODELS)), copied)
    for module in (calibration, codebook, decide, evidence, feel_model, network):
        monkeypatch.setattr(module, 'MODELS', copied)
    for cached in CACHES:
        cached.cache_clear()
    yield copied
    for cached in CACHES:
        cached.cache_clear()


def spoil(path, how):
    "Remove a file, cut it, or fill it with nonsense."
    if how == 'missing':
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] if how == 'cut' else NOISE)


def one_line(error, name):
    line = str(error.value)
    assert name in line and line.endswith('install resonance_nb again') and '\n' not in line, line
    for word in ('pickle', 'damaged', '--repair', 'calibrate'):
        assert word not in line, line


SPOILED = ('missing', 'cut', 'nonsense')


@pytest.mark.parametrize('how', SPOILED)
@pytest.mark.parametrize('name', ['fused.json', 'encoder.onnx', 'codebook.npz', 'noises.npy'])
def test_the_catalogue_is_not_blamed(shelf, models, name, how):
    spoil(models / name, how)
    with rs.Catalog(shelf / 'songs') as songs:
        with pytest.raises(BrokenInstallation) as e:
            songs.identify(shelf / 'song.wav', method='fused')
        one_line(e, name)
        with pytest.raises(BrokenInstallation) as e:
            list(rs.listen(shelf / 'song.wav', songs, method='fused'))
        one_line(e, name)
        for problem in songs.problems():
            assert problem.kind == 'not-loaded' and 'install resonance_nb again' in problem.what, problem


@pytest.mark.parametrize('how', SPOILED)
@pytest.mark.parametrize('method', ['landmark', 'chromaprint', 'mfcc', 'chroma', 'embedding', 'fused'])
def test_calibrations_are_not_fitted_again(models, method, how):
    "Nothing is remarked before the one line is told."
    recogniser = method_class(method)
    name = f'{recogniser.calibration_file or method}.json'
    spoil(models / name, how)
    with pytest.raises(BrokenInstallation) as e:
        remark_guess(recogniser())
    one_line(e, name)


@pytest.mark.parametrize('how', SPOILED)
@pytest.mark.parametrize('method, name', [('landmark', 'landmarks.json'), ('fused', 'fused.json')])
def test_a_check_reads_what_an_index_is_judged_by(shelf, models, method, name, how):
    spoil(models / name, how)
    with rs.Catalog(shelf / 'songs') as songs:
        (problem,) = songs.problems()
    assert problem.kind == 'not-loaded' and f'the {method} index' in problem.what, problem
    assert name in problem.what and 'install resonance_nb again' in problem.what, problem


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


OPENED = {
    'encoder.onnx': network.shipped,
    'feel.onnx': feel_model.shipped,
    'feel.safetensors': lambda: feel_model.shipped().stream(),
}


@pytest.mark.parametrize('name', OPENED)
def test_one_flipped_bit_is_told(models, name):
    "It makes another model, which answers all the same."
    OPENED[name]()
    for cached in CACHES:
        cached.cache_clear()
    flip_a_bit(models / name)
    with pytest.raises(BrokenInstallation, match='was changed after it was written') as e:
        OPENED[name]()
    one_line(e, name)


def test_a_feel_that_is_missing_is_the_installations_fault(models):
    (models / 'feel.onnx').unlink()
    with pytest.raises(BrokenInstallation, match='is missing') as e:
        feel_model.shipped()
    one_line(e, 'feel.onnx')


def test_models_of_ones_own_are_compared_where_a_card_lists_them(models, tmp_path):
    mine = tmp_path / 'mine.onnx'
    mine.write_bytes((models / 'feel.onnx').read_bytes())
    flip_a_bit(mine)
    assert feel_model.FeelModel(mine).digest != feel_model.shipped().digest
    for text in ('', '[]', '{"files": {}}', '{"files": {"mine.onnx": 5}}'):
        (tmp_path / 'mine.json').write_text(text)
        assert network.read_listed(mine) == mine.read_bytes()
    (tmp_path / 'mine.json').write_text(json.dumps({'files': {'mine.onnx': {'sha256': '0' * 64}}}))
    with pytest.raises(ResonanceError, match='not the one in mine.json'):
        network.open_session(mine)


def test_every_shipped_model_is_listed():
    for name in ('encoder', 'feel'):
        files = json.loads((network.MODELS / f'{name}.json').read_text())['files']
        assert {p.name for p in network.MODELS.glob(f'{name}*.onnx')} <= {*files}
        for file in files:
            network.read_listed(network.MODELS / file)


@pytest.mark.parametrize('how', SPOILED)
def test_what_a_listener_was_fitted_to(models, how):
    spoil(models / 'listener.json', how)
    with pytest.raises(BrokenInstallation) as e:
        decide.calibration('any')
    one_line(e, 'listener.json')


def test_a_codebook_of_nonsense_is_told_without_advice_on_pickles(tmp_path):
    (tmp_path / 'mine.npz').write_bytes(NOISE)
    with pytest.raises(ResonanceError, match='it is no archive of arrays'):
        codebook.Codebook.load(tmp_path / 'mine.npz')


def test_an_open_catalogue_is_asked_and_stays_open(shelf):
    with rs.Catalog(shelf / 'songs') as songs:
        answer = rs.identify(shelf / 'song.wav', songs, method='landmark')
        assert answer.matches == rs.identify(shelf / 'song.wav', shelf / 'songs', method='landmark').matches
        events = [e.kind for e in rs.listen(shelf / 'song.wav', songs, method='landmark')]
        assert events == [e.kind for e in rs.listen(shelf / 'song.wav', shelf / 'songs', method='landmark')]
        assert len(songs) == 1
    assert answer.as_dict()['elapsed_ms'] == round(answer.elapsed_ms, 1)
