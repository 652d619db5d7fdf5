"""Packed music and batches of windows: hostile files, exact cuts, the same batches however they are made."""

import json
import pickle
import shutil

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from resonance_nb import audio
from resonance_nb.core import ResonanceError
from resonance_nb.corpora import Corpus
from resonance_nb.starter import make_starter
from resonance_nb.windows import RATE, Crop, Levels, Packed, Sampler, Views, loader, pack

torch = pytest.importorskip('torch')


@pytest.fixture(scope='module')
def corpus():
    return make_starter(n_pieces=12)


@pytest.fixture(scope='module')
def music(corpus, tmp_path_factory):
    return pack(corpus, list(corpus.music.index), tmp_path_factory.mktemp('packed'))


def test_what_cannot_be_read_is_left_out_and_told(corpus, tmp_path):
    shutil.copytree(corpus.folder, tmp_path / 'c')
    broken = Corpus(tmp_path / 'c')
    ids = list(broken.music.index)[:4]
    broken.path('music', ids[1]).write_bytes(b'no sound at all')
    broken.path('music', ids[2]).write_bytes(b'')
    found = pack(broken, ids, tmp_path / 'p')
    assert (
        found.ids == [ids[0], ids[3]]
        and set(found.skipped) == {ids[1], ids[2]}
        and all(found.skipped.values())
    )
    assert pack(broken, ids, tmp_path / 'p').skipped == found.skipped
    with pytest.raises(ResonanceError, match='none of the 2 songs can be read'):
        pack(broken, ids[1:3], tmp_path / 'q')


@pytest.mark.parametrize('harm', ['no index', 'cut', 'no levels', 'garbage', 'other songs'])
def test_a_pack_that_is_not_whole_is_made_again(corpus, tmp_path, harm):
    ids = list(corpus.music.index)[:3]
    pack(corpus, ids[:2] if harm == 'other songs' else ids, tmp_path)
    if harm == 'no index':
        (tmp_path / 'index.json').unlink()
    elif harm == 'cut':
        with (tmp_path / 'music.i16').open('r+b') as f:
            f.truncate(1_000)
    elif harm == 'no levels':
        (tmp_path / 'levels.npy').unlink()
    elif harm == 'garbage':
        (tmp_path / 'index.json').write_text('{')
    found = pack(corpus, ids, tmp_path)
    x = audio.resample(corpus.load('music', ids[2]), audio.SAMPLE_RATE, RATE)
    assert found.ids == ids
    np.testing.assert_allclose(found.read(2, 0, len(x)), np.clip(x, -1, 1), atol=1e-4)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.data())
def test_pieces_are_cut_from_their_song_alone(quarters, data):
    lengths = 2_000 * np.array(quarters)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    x = np.random.default_rng(0).integers(-30_000, 30_000, starts[-1]).astype(np.int16)
    ids = [str(i) for i in range(len(lengths))]
    music = Packed(ids, np.arange(len(ids)), starts, x, np.zeros(len(x) // 2_000), {})
    row = data.draw(st.integers(0, len(ids) - 1))
    start = data.draw(st.integers(-6_000, 12_000))
    n = data.draw(st.integers(0, 9_000))
    own = x[starts[row] : starts[row + 1]] / np.float32(32_768)
    expected = [own[i] if 0 <= i < len(own) else 0 for i in range(start, start + n)]
    assert music.read(row, start, n).tolist() == expected


def test_a_batch_has_each_song_once_and_neighbours_if_asked(music):
    near = np.stack([np.roll(np.arange(len(music)), -i - 1)[:3] for i in range(len(music))])
    sampler = Sampler(music, 6, seed=3, neighbours=near, hard_negatives=0.5)
    for step in range(20):
        rows = sampler.draw(step).rows
        assert len(set(music.songs[rows])) == len(rows) == 6
    plain = Sampler(music, 1_000, seed=3)
    assert plain.n_songs == len(set(music.songs)) and plain.steps_per_epoch == 1
    assert {tuple(plain.draw(s).starts) for s in range(5)}.__len__() == 5  # other places in every epoch


def test_both_views_are_the_same_sound_when_nothing_is_done_to_it(music):
    views = Views(Sampler(music, 5, Crop(shift_s=0.0), seed=1), None)
    clean, heard, songs = views.batch(4)
    assert (
        torch.equal(clean, heard)
        and clean.shape == (10, RATE)
        and torch.equal(songs, songs[::2].repeat_interleave(2))
    )
    shifted = Views(Sampler(music, 5, Crop(shift_s=0.25), seed=1), None)
    drawn = shifted.sampler.draw(4)
    clean, heard, _ = shifted.batch(4)
    for i, (row, start) in enumerate(zip(drawn.rows, drawn.starts)):
        for k in range(2):
            np.testing.assert_array_equal(
                heard[2 * i + k], music.read(row, start + drawn.heard_at[i, k], RATE)
            )


def test_processes_change_nothing(music):
    views = Views(Sampler(music, 4, seed=2), None, front=lambda x: x[:, ::100])
    one, two = ([torch.cat(b[:2]) for b in loader(views, 5, 12, workers=w)] for w in (0, 2))
    assert len(one) == 7 and all(torch.equal(a, b) for a, b in zip(one, two))


def test_levels_move():
    levels = Levels((5, 15), (-5, 10), 100)
    assert (
        levels.at(0) == (5, 15)
        and levels.at(50) == (0, 12.5)
        and levels.at(10**6) == (-5, 10) == Levels((5, 15), (-5, 10), 0).at(0)
    )


def test_a_silent_song_is_no_endless_search(tmp_path):
    x = np.zeros(8_000, np.int16)
    silent = Packed(['s'], np.array([0]), np.array([0, 8_000]), x, np.full(4, -120.0), {})
    clean, heard, _ = Views(Sampler(silent, 3), None).batch(0)
    assert clean.shape == (2, RATE) and not clean.any()
    assert json.dumps(Sampler(silent, 3).draw(0).starts.tolist())


def test_copies_at_other_speeds_are_versions_of_their_song(corpus, tmp_path):
    ids = list(corpus.music.index)[:3]
    plain = pack(corpus, ids, tmp_path / 'plain')
    copies = pack(corpus, ids, tmp_path / 'copies', speeds=(1.0, 1.0, 0.5))
    assert copies.ids == [i for i in ids for _ in range(3)]
    lengths = np.diff(copies.starts).reshape(3, 3)
    np.testing.assert_allclose(lengths[:, 2], 2 * lengths[:, 0], atol=4_000)
    assert (copies.songs.reshape(3, 3) == plain.songs[:, None]).all()
    assert copies.read(3, 0, 900).tolist() == plain.read(1, 0, 900).tolist()
    rows = Sampler(copies, 2, seed=1)
    drawn = np.concatenate([rows.draw(s).rows for s in range(300)]) % 3
    assert np.mean(drawn == 2) == pytest.approx(1 / 3, abs=0.08)
    assert pack(corpus, ids, tmp_path / 'copies').ids == ids, 'other speeds: made again'


def test_another_process_maps_the_same_file(music):
    sent = pickle.dumps(music)
    assert len(sent) < music.samples.nbytes / 5
    assert pickle.loads(sent).read(2, 100, 999).tolist() == music.read(2, 100, 999).tolist()


def test_a_process_that_is_started_afresh_makes_the_same_batches(music):
    views = Views(Sampler(music, 4, seed=2), None)
    fork, spawn = (
        [b[1] for b in loader(views, 0, 3, workers=1, start_method=method)] for method in ('fork', 'spawn')
    )
    assert len(fork) == len(spawn) == 3 and all(torch.equal(a, b) for a, b in zip(fork, spawn))


@pytest.mark.skipif(not torch.cuda.is_available(), reason='no graphics card')
def test_a_card_cuts_the_same_windows(music):
    here, there = (Views(Sampler(music, 4, seed=2), None, device=d).batch(3) for d in ('cpu', 'cuda'))
    assert all(torch.equal(a, b.cpu()) for a, b in zip(here, there))
