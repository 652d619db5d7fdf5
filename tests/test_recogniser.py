"""The frame: one rule for odd sound, one for saved indexes and their damage, whatever the recogniser."""

import json
import os
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resonance_nb.audio import SAMPLE_RATE, usable
from resonance_nb.calibration import UNFITTED, Calibration, NothingFitted, load
from resonance_nb.core import (
    OWN_METHODS,
    Calibrated,
    CatalogRecognizer,
    OtherVersion,
    Prepares,
    ResonanceError,
    StreamsIn,
    VectorRecognizer,
    method_class,
)
from resonance_nb.recogniser import Column, Damaged, Ranking, SongIndex, nothing_heard
from resonance_nb.starter import make_starter


@pytest.fixture(scope='module')
def songs():
    corpus = make_starter(n_pieces=12)
    return {t: corpus.load('music', t)[: 30 * SAMPLE_RATE] for t in list(corpus.music.index)[:4]}


@pytest.fixture(scope='module', params=OWN_METHODS)
def index(request, songs):
    made = method_class(request.param)()
    for name, x in songs.items():
        made.add(name, x)
    return made


# ---- odd sound


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf, 1e25], ids=str)
def test_broken_samples_count_as_silence(index, songs, value):
    name, x = list(songs.items())[1]
    clip = x[6 * SAMPLE_RATE : 14 * SAMPLE_RATE].copy()
    silenced = clip.copy()
    clip[[1000, 50_000]] = value
    silenced[[1000, 50_000]] = 0
    assert index.search(clip) == index.search(silenced)
    assert index.search(clip, 1)[0].track_id == name


@pytest.mark.parametrize('n', [0, 1, 100, SAMPLE_RATE, 5 * SAMPLE_RATE])
@pytest.mark.parametrize('value', [0, np.nan, np.inf, 1e30], ids=str)
def test_nothing_is_heard_in_silence(index, value, n):
    x = np.full(n, value, np.float32)
    assert index.search(x) == []
    index.add('silence', x)
    assert len(index) == 4


@pytest.mark.parametrize('n', [1, 2, 50, 300, 2000])
def test_a_short_clip_is_no_error(index, songs, n):
    answers = index.search(next(iter(songs.values()))[100_000 : 100_000 + n])
    assert all(np.isfinite([m.score, m.offset_s, m.confidence]).all() for m in answers)


@pytest.mark.parametrize('x', [np.zeros((2, 5000)), np.float32(0.5)], ids=['stereo', 'number'])
def test_what_is_no_row_of_samples_is_refused(index, x):
    for ask in (index.search, lambda x: index.add('bad', x), lambda x: index.add_stream('bad', [x])):
        with pytest.raises(ResonanceError, match='one row of samples'):
            ask(x)
    assert len(index) == 4


def test_a_known_name_is_refused_before_anything_is_read(index, songs):
    with pytest.raises(ResonanceError, match='already in this index'):
        index.add_stream(next(iter(songs)), (pytest.fail('it was read') for _ in range(2)))


@given(st.lists(st.floats(width=32), max_size=20), st.sampled_from(['f4', 'f8', 'i2']))
def test_usable_samples_are_finite_and_otherwise_the_same(values, dtype):
    x = np.array(values, np.float32)
    x = np.nan_to_num(x).clip(-100, 100).astype(dtype) if dtype == 'i2' else x.astype(dtype)
    y = usable(x)
    good = np.abs(x.astype(float)) < 1e6
    assert y.dtype == np.float32 and y.shape == x.shape and (np.abs(y) < 1e6).all()
    assert (y[good] == x[good]).all() and (y[~good] == 0).all()


# ---- what a recogniser can do is asked, not guessed


def test_every_recogniser_says_what_it_can(index):
    for ability in (CatalogRecognizer, StreamsIn, Prepares, Calibrated):
        assert isinstance(index, ability)
    assert index.calibrated, f'run resonance calibrate {index.name}, and copy its file to resonance_nb/models'
    assert 0 < index.accept_confidence < 1
    assert isinstance(index, VectorRecognizer) == (index.name in ('embedding', 'mfcc', 'chroma'))


# ---- on the disk


def answers(index, songs):
    return [index.search(x[5 * SAMPLE_RATE : 10 * SAMPLE_RATE]) for x in songs.values()]


def test_a_saved_index_is_the_same(index, songs, tmp_path):
    index.save(tmp_path / 'a')
    again = type(index).load(tmp_path / 'a')
    assert len(again) == 4 and answers(again, songs) == answers(index, songs)
    again.save(tmp_path / 'b')
    assert files(tmp_path / 'a') == files(tmp_path / 'b')
    again.save(tmp_path / 'a')  # over the files that it may have mapped
    assert files(tmp_path / 'a') == files(tmp_path / 'b')


def files(folder):
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def test_an_empty_index_is_saved_too(index, tmp_path):
    type(index)().save(tmp_path)
    again = type(index).load(tmp_path)
    assert len(again) == 0 and again.search(np.ones(SAMPLE_RATE, np.float32)) == []


def changed(**what):
    return lambda folder, about: (folder / 'index.json').write_text(json.dumps(about | what))


def first_array(folder):
    return sorted(folder.glob('*.npy'))[-1]


HARM = {
    'no folder': lambda folder, about: shutil.rmtree(folder),
    'no json': lambda folder, about: (folder / 'index.json').unlink(),
    'half a json': lambda folder, about: (folder / 'index.json').write_text('{'),
    'a list': lambda folder, about: (folder / 'index.json').write_text('[]'),
    'no array': lambda folder, about: first_array(folder).unlink(),
    'half an array': lambda folder, about: first_array(folder).write_bytes(
        first_array(folder).read_bytes()[:-7]
    ),
    'noise': lambda folder, about: first_array(folder).write_bytes(os.urandom(400)),
    'songs of another index': lambda folder, about: changed(tracks=about['tracks'][:-1])(folder, about),
    'two songs of one name': lambda folder, about: changed(
        tracks=[['one', *numbers] for _, *numbers in about['tracks']]
    )(folder, about),
    'endless songs': lambda folder, about: changed(
        tracks=[[t, *(10**30 for _ in numbers)] for t, *numbers in about['tracks']]
    )(folder, about),
    'songs without length': lambda folder, about: changed(tracks=[[t] for t, *_ in about['tracks']])(
        folder, about
    ),
    'no songs': changed(tracks=3),
}


@pytest.mark.parametrize('harm', HARM.values(), ids=HARM)
def test_damage_is_told_in_one_line_with_what_helps(index, tmp_path, harm):
    folder = tmp_path / 'saved'
    index.save(folder)
    harm(folder, json.loads((folder / 'index.json').read_text()))
    with pytest.raises(ResonanceError) as error:
        type(index).load(folder)
    text = str(error.value)
    assert '\n' not in text and text.startswith(str(folder)) and text.endswith('; index the music again')
    assert not isinstance(error.value, OtherVersion)


@pytest.mark.parametrize(
    'harm', [changed(version=99), changed(format='resonance songs'), changed(front_end='another')]
)
def test_another_version_is_no_damage(index, tmp_path, harm):
    index.save(tmp_path)
    harm(tmp_path, json.loads((tmp_path / 'index.json').read_text()))
    with pytest.raises(OtherVersion, match='index the music again'):
        type(index).load(tmp_path)


# ---- a recogniser of one's own


class Loudest(SongIndex):
    "The loudest tenth of a second, as two numbers: the least that the frame asks for."

    name = 'loudest'
    calibration = Calibration({'model': 'loudest'}, 0.0, {'score': 1.0}, 0.5)

    def kept_of(self, blocks):
        x = np.concatenate([np.zeros(0, np.float32), *blocks])
        powers = (x[: len(x) // 1600 * 1600].reshape(-1, 1600) ** 2).mean(axis=1)
        return np.array([powers.max(), powers.mean()], np.float32) if powers.any() else None

    def columns(self):
        return {'powers': Column('<f4')}

    def rank(self, samples, k=5):
        kept = self.kept_of([samples])
        if kept is None or not self.songs:
            return nothing_heard(1)
        score = -np.array([np.abs(song - kept).sum() for song in self.songs.values()])
        order = np.argsort(-score, kind='stable')
        names = [[*self.songs][i] for i in order]
        return Ranking(names, score[order], np.zeros(len(order)), score[order, None])


def test_the_least_recogniser_has_everything(songs, tmp_path):
    index = Loudest()
    for name, x in songs.items():
        index.add_stream(name, np.array_split(x, 7))
    name, x = list(songs.items())[2]
    assert index.calibrated and index.search(x, 1)[0].track_id == name
    index.save(tmp_path)
    again = Loudest.load(tmp_path)
    assert again.search(x) == index.search(x)
    again.retain({name})
    index.merge(again)
    assert len(again) == 1 and len(index) == 4
    assert json.loads((tmp_path / 'index.json').read_text())['format'] == 'resonance loudest'


def test_without_a_calibration_it_says_so():
    class Bare(Loudest):
        name = 'bare'
        calibration = SongIndex.calibration

    index = Bare()
    assert index.calibration is UNFITTED and not index.calibrated
    with pytest.raises(NothingFitted, match='run `resonance calibrate bare`'):
        load('bare', index.fitted_for)


def test_a_column_refuses_rows_that_do_not_fit():
    column = Column('<f4', 3)
    rows = column.joined([np.ones((2, 3)), np.zeros((1, 3))])
    assert [p.shape for p in column.split(rows, [2, 1])] == [(2, 3), (1, 3)]
    for bad, counts in ((rows, [1, 1]), (rows, [3, 0]), (rows[:, :2], [2, 1]), (rows.astype('<f8'), [2, 1])):
        with pytest.raises(Damaged, match='do not fit'):
            column.split(bad, counts)
    with pytest.raises(Damaged, match='not finite'):
        column.split(rows / 0, [2, 1])
