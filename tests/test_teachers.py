"""Teachers of any sound: short, broken, silent; and the real networks, where their weights are here."""

import csv
import os
from pathlib import Path

import numpy as np
import pytest

from resonance_nb import teachers
from resonance_nb.audio import mel_filters
from resonance_nb.core import ResonanceError
from resonance_nb.fronts import kaldi_bands
from resonance_nb.teachers import KINDS, Lesson, Teacher, fit_whitening, side_by_side

needs_weights = pytest.mark.skipif(
    not all(map(teachers.have, KINDS)), reason="no teachers' weights are named: RESONANCE_MODELS"
)


@pytest.mark.parametrize('name', KINDS)
@pytest.mark.parametrize('n', [1, 100, 1024, 47_999, 96_001])
def test_every_length_gives_whole_patches(name, n):
    kind = KINDS[name]
    cut = kind.windows.cut(np.random.default_rng(n).normal(size=n).astype('float32') * 0.1)
    assert len(cut) == max(1, n // (kind.windows.frames * kind.windows.hop))
    assert cut.dtype == np.float32 and np.isfinite(cut).all()
    assert cut.shape[1:] == ((1, 128, 500) if kind.windows.upright else (187, 96))


@pytest.mark.parametrize('name', KINDS)
def test_pictures_of_silence_are_level(name):
    picture = KINDS[name].windows.picture(np.zeros(20_000, 'float32'))
    assert np.ptp(picture) == 0 and np.isfinite(picture).all()


def test_side_by_side_reaches_the_end():
    long = Lesson(np.zeros((21, 2), 'float32'), np.zeros((21, 1), 'float32'), 2.992)
    coarse = Lesson(np.arange(12, dtype='float32')[:, None], np.zeros((12, 1), 'float32'), 5.0)
    under = side_by_side(long, coarse).vectors[:, 2]
    assert under[0] == 0 and under[-1] == 11 and (np.diff(under) >= 0).all()


def test_whitening_forgets_no_direction():
    rng = np.random.default_rng(1)
    songs = rng.normal(size=(100, 8)) * [9, 5, 3, 1, 1, 1, 1e-3, 0] + 4
    plain = fit_whitening(songs, n_axes=7, power=0)(songs)
    scaled = (songs - songs.mean(0)) / (songs.std(0) + 1e-6)
    pairs = lambda z: ((z[:, None] - z[None]) ** 2).sum(2)
    np.testing.assert_allclose(pairs(plain), pairs(scaled), rtol=1e-3, atol=1e-3)


def test_no_weights_are_one_line(monkeypatch, tmp_path):
    monkeypatch.delenv('RESONANCE_MODELS', raising=False)
    with pytest.raises(ResonanceError, match='set RESONANCE_MODELS'):
        Teacher('musicnn')
    with pytest.raises(ResonanceError, match='musicnn_msd.onnx is missing'):
        Teacher('musicnn', tmp_path)
    (tmp_path / 'musicnn_msd.onnx').write_bytes(b'no network')
    with pytest.raises(ResonanceError, match='not a readable network'):
        Teacher('musicnn', tmp_path)


@needs_weights
@pytest.mark.parametrize(
    'name, bands', [('musicnn', mel_filters(16_000, 512, 96)), ('efficientat', kaldi_bands())]
)
def test_bands_are_those_beside_the_weights(name, bands):
    load = pytest.importorskip('safetensors.numpy').load_file
    stored = load(teachers.models_folder() / KINDS[name].file.replace('.onnx', '.safetensors'))
    np.testing.assert_allclose(bands, stored['frontend.mel_fb'], atol=1e-6)


@needs_weights
def test_teachers_hear_what_is_there():
    t = np.arange(16_000 * 6) / 16_000
    noise = 0.1 * np.random.default_rng(0).normal(size=len(t)).astype('float32')
    chord = sum(np.sin(2 * np.pi * f * t) * np.exp(-((t * 2) % 1) * 3) for f in (220, 277, 330)).astype(
        'float32'
    )
    for name, kind in KINDS.items():
        teacher = Teacher(name)
        heard = [teacher.listen(x) for x in (0.2 * chord, 0.1 * chord, noise)]
        assert heard[0].vectors.shape[0] == int(6 / kind.patch_s)
        assert heard[0].tags.shape[1] == len(teacher.labels)
        cosine = lambda a, b: a.mean @ b.mean / np.linalg.norm(a.mean) / np.linalg.norm(b.mean)
        assert cosine(heard[0], heard[1]) > cosine(heard[0], heard[2]) + 0.02


@needs_weights
@pytest.mark.skipif(
    not os.environ.get('RESONANCE_CORPUS'), reason='no open corpus is named: RESONANCE_CORPUS'
)
def test_a_teacher_names_the_style():
    from resonance_nb.audio import load

    folder = Path(os.environ['RESONANCE_CORPUS'])
    rows = list(csv.DictReader((folder / 'music.csv').open(encoding='utf-8')))
    chiptunes = [r for r in rows if r['genre'] == 'chiptune'][:3]
    if not chiptunes:
        pytest.skip('the corpus has no chiptunes')
    teacher = Teacher('musicnn')
    for row in chiptunes:
        tags = teacher.listen(load(folder / row['file'])[: 16_000 * 20]).tags.mean(0)
        assert 'electronic' in np.array(teacher.labels)[np.argsort(-tags)[:6]]
