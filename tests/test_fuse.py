"""The fused recogniser: any cut of the input, clips where they are, odd sounds, orders and merges, damaged indexes, catalogue and command line."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resonance_nb import audio
from resonance_nb.queries import song_of
from resonance_nb import evidence
from resonance_nb import fuse as module
from resonance_nb import table as tables
from resonance_nb.catalog import Catalog
from resonance_nb.core import (
    METHODS,
    Recognizer,
    VectorRecognizer,
    ResonanceError,
    assert_same_answers,
    method_class,
    rng_for,
)
from resonance_nb.starter import default_corpus, make_starter
from resonance_nb.network import HOP_S
from resonance_nb.verify import padded, soft_map
from sounds import sound

torch = pytest.importorskip('torch')

from resonance_nb.embedding import Embedding, clip_vectors  # noqa: E402
from resonance_nb.encoders import Encoder, Settings  # noqa: E402
from resonance_nb.evidence import Candidates, features  # noqa: E402
from resonance_nb.fuse import LONGEST_S, PIECES, Fused  # noqa: E402
from resonance_nb.codebook import shipped_codebook  # noqa: E402
from resonance_nb.table import BLOCK, FRONT, LEAD_WINDOWS, SCANNED_AXES, Proposals  # noqa: E402

RATE = audio.SAMPLE_RATE
MAIN = 'import sys; from resonance_nb.cli import main; main()'
N_SONGS, SONG_S = 8, 18


def windows_in(seconds):
    "How many a song of whole seconds has: the last begins 128 ms, four frames of the peaks, or more before its end."
    return int((seconds - 0.128) / HOP_S) + 1


@pytest.fixture(scope='module')
def music():
    "Name -> the first seconds of a starter piece; the first `N_SONGS` are in the index, the others are strangers to it."
    corpus = make_starter(n_pieces=12)
    return {t: corpus.load('music', t)[: SONG_S * RATE] for t in corpus.music.index}


@pytest.fixture(scope='module')
def known(music):
    return list(music)[:N_SONGS]


@pytest.fixture(scope='module')
def index(music, known):
    made = Fused()
    for name in known:
        made.add(name, music[name])
    return made


@pytest.fixture(scope='module')
def other():
    "A small encoder that has learned nothing."
    torch.manual_seed(0)
    return Encoder(Settings('cnn3', 128)).eval()


def noise(seconds, seed=0):
    return (0.01 * rng_for(seed, 'noise').standard_normal(round(seconds * RATE))).astype(np.float32)


def cut(x, start_s, seconds=5.0):
    return x[round(start_s * RATE) : round((start_s + seconds) * RATE)]


def of_songs(**sounds):
    made = Fused()
    for name, x in sounds.items():
        made.add(name, x)
    return made


def alike(a, b, codes=1.0):
    "Whether two indexes keep the same of the same songs; `codes`: the least share of the 64 bytes of a row, where vectors were made in other batches."
    assert a.songs.keys() == b.songs.keys()
    for name, one in a.songs.items():
        two = b.songs[name]
        assert (
            one.n_frames == two.n_frames
            and one.codes.dtype == two.codes.dtype == np.uint8
            and one.codes.shape == two.codes.shape
        )
        assert all(np.array_equal(getattr(one, k), getattr(two, k)) for k in ('frames', 'bins')), name
        assert (one.codes == two.codes).mean(axis=1).min() >= codes, name
    return True


def ties_go_by_name(matches, names):
    "Whether equal songs come in the order of their names: equal in what is told of them, where a last digit may turn."
    assert {m.track_id for m in matches} == set(names) and matches[0].score - matches[-1].score < 0.0015
    return matches == sorted(matches, key=lambda m: (-m.score, m.track_id))


def sane(matches):
    return all(
        np.isfinite([m.score, m.offset_s, m.confidence]).all() and 0 <= m.confidence <= 1 for m in matches
    )


# ---- what is kept of a song


@pytest.fixture(scope='module')
def short():
    return of_songs(s=sound(1, 5))


@settings(max_examples=8, deadline=None)
@given(st.lists(st.integers(0, 5 * RATE), max_size=10))
def test_however_the_samples_are_cut(short, cuts):
    many = Fused()
    many.add_stream('s', iter(np.split(sound(1, 5), sorted(cuts))))
    assert (
        alike(short, many, codes=0.95)
        and len(many.songs['s'].codes) == 5
        and len(many.songs['s'].frames) > 50
    )


def test_cut_of_a_song_longer_than_what_is_waited_for(music):
    "Vectors are made when 256 windows have come together: a longer song is encoded in several goes, others for each cut."
    x = np.concatenate(list(music.values())[:4])[: 70 * RATE]
    one = of_songs(s=x)
    assert len(one.songs['s'].codes) == -(-windows_in(70) // BLOCK) > 256 / BLOCK
    for size in (9_999, 1_070_000):
        many = Fused()
        many.add_stream('s', (x[i : i + size] for i in range(0, len(x), size)))
        # windows that are a sixteenth of a second late have less than two thirds
        assert alike(one, many, codes=0.95)


def test_a_song_is_sixty_four_bytes_for_four_windows_and_its_peaks(index, known, music):
    for name in known:
        song = index.songs[name]
        n = len(music[name])
        assert song.codes.shape == (-(-windows_in(SONG_S) // BLOCK), 64) and song.codes.dtype == np.uint8
        assert song.n_frames == n // FRONT.hop + 1
        assert (
            (np.diff(song.frames) >= 0).all() and 0 <= song.frames.min() and song.frames.max() < song.n_frames
        )
        assert 0 <= song.bins.min() and song.bins.max() <= FRONT.bin_max - FRONT.bin_min


def test_four_vectors_in_64_bytes_stand_for_what_the_encoder_gave(index, known, music):
    exact = Embedding()
    t = index.table()
    for name in known[:4]:
        exact.add(name, music[name])
        vectors = exact.songs[name]
        number = t.track_ids.index(name)
        first = t.starts_windows[number]
        last = t.ends_windows[number]
        assert first % BLOCK == 0 and last - first == windows_in(SONG_S) > len(vectors)
        kept = index.table().vectors(np.arange(first, last))
        assert (kept[: len(vectors)] * vectors).sum(1).mean() > 0.9, (
            'unit vectors, so this is a cosine but for the length'
        )
        np.testing.assert_allclose(
            t.rows[t.starts_rows[number] + LEAD_WINDOWS :][: last - first], kept @ t.axes.T, atol=1e-4
        )
        end = [music[name][begin:] for begin in range(0, len(music[name]), round(HOP_S * RATE))][
            len(vectors) : len(kept)
        ]
        behind = np.stack([clip_vectors(exact.encoder, x)[0] for x in end])
        assert (kept[len(vectors) :] * behind).sum(1).mean() > 0.8, (
            'they hear the end of the song, and then silence'
        )
    rows = np.array([[first + 5, first], [first + 6, first + 5]])
    np.testing.assert_allclose(index.table().vectors(rows), kept[rows - first], atol=1e-6)
    np.testing.assert_allclose(t.axes @ t.axes.T, np.eye(SCANNED_AXES), atol=1e-5)


@pytest.fixture
def large(index, monkeypatch):
    "The same songs, as if they were a large collection."
    index.table()  # before
    monkeypatch.setattr(tables, 'MANY_WINDOWS', 0)
    made = Fused()
    made.merge(index)
    return made


def test_of_a_large_collection_one_window_of_four_is_scanned(index, large, known):
    few = index.table()
    many = large.table()
    assert (few.row_windows, many.row_windows) == (1, BLOCK)
    for i in range(len(known)):
        one, of_four = (t.rows[t.starts_rows[i] : t.starts_rows[i + 1]] for t in (few, many))
        np.testing.assert_allclose(of_four, one[::BLOCK], atol=1e-5)
    assert (many.starts_windows == few.starts_windows).all() and (many.ends_windows == few.ends_windows).all()


@pytest.mark.parametrize('long_s', [1.0, 1.3, 2.0, 3.1, 5.0, 10.0])
def test_a_large_collection_gives_the_same_answers(index, large, known, music, long_s):
    rng = rng_for(0, 'large', str(long_s))
    agreed = 0
    for name in known:
        at = int(rng.uniform(0, (SONG_S - long_s) * RATE))
        heard = index.hear(
            music[name][at : at + round(long_s * RATE)]
            + 0.01 * rng.standard_normal(round(long_s * RATE)).astype(np.float32)
        )
        one = index.evidence(heard)
        other = large.evidence(heard)
        assert other.track_ids[0] == one.track_ids[0] == name
        agreed += other.start_s[0] == pytest.approx(one.start_s[0], abs=0.02) and other.score[
            0
        ] == pytest.approx(one.score[0], rel=0.02)
    # what is shorter falls between two rows, or is found in another repetition
    assert agreed >= (N_SONGS if long_s > 2 else N_SONGS - 1 if long_s == 2 else 0)


def test_a_large_collection_finds_a_clip_that_begins_before_its_song(large, known, music):
    found = large.search(np.concatenate([noise(3) * 0.05, music[known[2]][: 5 * RATE]]))[0]
    assert found.track_id == known[2] and found.offset_s == pytest.approx(-3, abs=0.05)


def test_a_known_name_is_refused_before_anything_is_read(index, known):
    with pytest.raises(ResonanceError, match=f'{known[0]} is already in this index'):
        index.add_stream(known[0], (pytest.fail('read a song that is known') for _ in range(3)))
    assert len(index) == N_SONGS


def test_a_stream_that_breaks_off_leaves_nothing_behind(music):
    def breaking():
        yield sound(2)
        raise OSError('the disk is gone')

    made = of_songs(a=sound(1))
    with pytest.raises(OSError, match='the disk'):
        made.add_stream('b', breaking())
    assert len(made) == 1 and made.search(cut(sound(1), 0.7, 4))[0].track_id == 'a'
    made.add('b', sound(2))
    assert made.search(cut(sound(2), 0.7, 4))[0].track_id == 'b'


# ---- clips are found where they are


@pytest.mark.parametrize('start_s', [0.0, 1.37, 3.111, 6.9, 10.6333, SONG_S - 5])
def test_clean_clips_are_found_where_they_are(index, known, music, start_s):
    for name in known[1::2]:
        best, second = index.search(cut(music[name], start_s), 2)
        assert best.track_id == name and best.offset_s == pytest.approx(start_s, abs=0.05)
        assert best.score > second.score and best.confidence >= index.accept_confidence


@pytest.mark.parametrize('seconds', [1, 2.03, 14.9, 15.1])
def test_clips_of_any_length_are_found(index, known, music, seconds):
    for name in known[:3]:
        best = index.search(cut(music[name], 6.321, seconds), 1)[0]
        assert best.track_id == name and best.offset_s == pytest.approx(6.321, abs=0.05)


def test_what_is_no_music_of_the_catalogue_is_refused(index):
    clips = [cut(sound(seed, SONG_S), start_s) for seed in (8, 9) for start_s in (2.2, 9.87)]
    clips += [noise(5), np.sin(2 * np.pi * 440 * np.arange(5 * RATE) / RATE).astype(np.float32)]
    said = [index.search(clip, 1)[0] for clip in clips]
    assert not [m for m in said if m.confidence >= index.accept_confidence]


@pytest.fixture(scope='module')
def validation():
    "Songs of the corpus in use, a clip of each of the first eight, and clips of other songs."
    corpus = default_corpus()
    own = song_of(corpus.music)
    names = corpus.split('music', 'validation').index.tolist()
    songs = of_songs(**{t: corpus.load('music', t, duration_s=SONG_S) for t in names[:N_SONGS]})
    strangers = [t for t in names[N_SONGS:] if own[t] not in {own[s] for s in names[:N_SONGS]}][:22]
    clips = lambda track, *starts_s: [
        corpus.load('music', track, start_s=start_s, duration_s=5) for start_s in starts_s
    ]
    return (
        songs,
        {t: clips(t, 9.05)[0] for t in names[:N_SONGS]},
        [c for t in strangers for c in clips(t, 8.2)],
    )


@pytest.mark.parametrize('n_songs', [1, 3, 8])
def test_a_handful_of_songs_is_no_reason_to_believe(validation, n_songs):
    songs, own, strangers = validation
    few = Fused()
    few.merge(songs)
    few.retain(set([*own][:n_songs]))
    said = sum(m.confidence >= few.accept_confidence for clip in strangers for m in few.search(clip, 1))
    assert len(few) == n_songs and strangers and said <= 1 + len(strangers) // 20
    for name in [*own][:n_songs]:
        best = few.search(own[name], 1)[0]
        assert best.track_id == name and best.confidence >= few.accept_confidence


@pytest.fixture(scope='module')
def brief(music):
    "Songs of 0.4 to 2.4 s, so that most of their last blocks are not full."
    return {
        name: x[9 * RATE :][: round((0.4 + i * 0.18) * RATE)] for i, (name, x) in enumerate(music.items())
    }


def test_a_place_is_a_window_that_hears_something_of_the_song(brief):
    index = of_songs(**brief)
    table = index.table()
    for i, x in enumerate(brief.values()):
        hop = round(HOP_S * RATE)
        n = int(table.ends_windows[i] - table.starts_windows[i])
        assert 1_500 < len(x) - hop * (n - 1) < hop + 2_600, 'samples of the song that the last window hears'
        rows = table.rows[table.starts_rows[i] : table.starts_rows[i + 1]]
        assert not rows[:LEAD_WINDOWS].any() and len(rows) == LEAD_WINDOWS + n
        assert rows[LEAD_WINDOWS:].any(axis=1).all()


@pytest.mark.parametrize('seconds', [0.4, 0.6, 0.8, 1.0])
def test_the_end_of_a_short_song_is_found_where_it_is(brief, seconds):
    index = of_songs(**brief)
    there = 0
    long = {name: x for name, x in brief.items() if len(x) > seconds * RATE}
    for name, x in long.items():
        best = index.search(x[-round(seconds * RATE) :])[0]
        there += best.track_id == name and abs(best.offset_s - (len(x) / RATE - seconds)) < 0.1
    assert there >= len(long) - 1, f'{there} of {len(long)}'


def test_a_song_that_an_older_package_kept_without_its_end_answers_too(brief):
    index = of_songs(**brief)
    for song in index.songs.values():
        song.codes = song.codes[:1]
    table = index.table()
    assert (
        table.ends_windows - table.starts_windows
        == np.minimum([BLOCK], [int((len(x) / RATE - 0.128) / HOP_S) + 1 for x in brief.values()])
    ).all()
    assert all(
        index.search(x[: round(0.8 * RATE)])[0].track_id == name for name, x in list(brief.items())[3:]
    )


@pytest.mark.parametrize('off_s', [-0.12, -0.06, 0.0, 0.06, 0.12])
def test_peaks_put_right_where_the_vectors_were_a_little_off(index, known, music, off_s):
    heard = index.hear(cut(music[known[3]], 4.8))
    found = evidence.check_peaks(
        index.table(),
        padded(soft_map(heard.level_db, floor_db=FRONT.floor_db)),
        Proposals(np.array([3]), np.array([(4.8 + off_s) / HOP_S]), np.ones(1)),
        index.scoring,
    )
    assert found.start_s[0] == pytest.approx(4.8, abs=0.02)
    assert found.agreement[0] > found.agreement_rest[0] > 20


def test_answers_are_in_order_and_no_more_than_asked_for(index, known, music):
    clip = cut(music[known[2]], 5.1)
    every = index.search(clip, 100)
    assert {m.track_id for m in every} == set(known)
    assert [m.score for m in every] == sorted((m.score for m in every), reverse=True) and sane(every)
    for k in (0, 1, 5):
        assert index.search(clip, k) == every[:k]
    assert index.search(clip) == every[:5] == index.search(clip.astype(float))


def test_only_the_promising_are_looked_at_closely(index, known, music, monkeypatch):
    monkeypatch.setattr(module, 'CANDIDATES', 3)
    monkeypatch.setattr(evidence, 'FINALISTS', 1)
    for name in known:
        found = index.search(cut(music[name], 3.111), 8)
        assert (
            len(found) == 3
            and found[0].track_id == name
            and found[0].offset_s == pytest.approx(3.111, abs=0.05)
        )


# ---- odd sounds


def spoiled(x, value, where=(500, 40_000)):
    x = x.copy()
    x[[*where]] = value
    return x


NOTHING = {
    'empty': np.zeros(0),
    'one sample of silence': np.zeros(1),
    'silence': np.zeros(5 * RATE),
    'less than can be heard': np.full(RATE, 1e-6),
    'nan': np.full(3 * RATE, np.nan),
    'inf': np.full(3 * RATE, np.inf),
    'one nan': np.full(1, np.nan),
    'long silence': np.zeros(16 * RATE),
}
ODD = {
    'one sample': lambda x: np.ones(1),
    'two samples': lambda x: np.ones(2),
    'half a second': lambda x: x[: RATE // 2],
    'a window': lambda x: x[:RATE],
    'a window and a sample': lambda x: x[: RATE + 1],
    'dc': lambda x: np.full(3 * RATE, 0.5),
    'a click': lambda x: np.eye(1, 3 * RATE, RATE)[0],
    'some nan': lambda x: spoiled(x, np.nan),
    'some inf': lambda x: spoiled(x, -np.inf),
    'quiet': lambda x: x * 1e-3,
    'loud': lambda x: x * 1e3,
    'very loud': lambda x: x * 1e12,
    'as loud as numbers go': lambda x: x / np.abs(x).max() * 3e38,
    'a spike': lambda x: spoiled(x, 1e30, (30_000,)),
    'square': lambda x: np.sign(x),
    'white noise': lambda x: noise(3),
    'ends in silence': lambda x: np.append(x, np.zeros(3 * RATE)),
    'silence in between': lambda x: np.concatenate([x[:RATE], np.zeros(3 * RATE), x[RATE : 2 * RATE]]),
    'highest tone': lambda x: np.tile([0.5, -0.5], RATE),
    'doubles beyond floats': lambda x: np.append(x.astype(float), 1e300),
    'integers': lambda x: (x * 30_000).astype(np.int16),
}


@pytest.mark.parametrize('x', NOTHING.values(), ids=NOTHING)
def test_nothing_is_heard_in_silence(index, x):
    assert index.search(x.astype(np.float32)) == [] == index.search(x)
    made = Fused()
    made.add('s', x.astype(np.float32))
    assert len(made) == 0 and made.search(sound(1)) == []


@pytest.mark.filterwarnings('ignore::RuntimeWarning')
@pytest.mark.parametrize('make', ODD.values(), ids=ODD)
def test_odd_sounds_are_answered_and_indexed(index, known, music, make, tmp_path):
    x = make(cut(music[known[4]], 3, 4))
    found = index.search(x)
    assert sane(found) and len(found) in (0, 5)
    made = Fused()
    made.merge(index)
    made.retain(set(known[:2]))
    made.add('odd', x)  # does no harm to what is there already …
    best = made.search(cut(music[known[0]], 4.4))[0]
    assert best.track_id == known[0] and best.offset_s == pytest.approx(4.4, abs=0.05)
    assert sane(made.search(x)) and sane(made.search(cut(music[known[5]], 4.4)))
    made.save(tmp_path)  # … and comes back from disk
    assert alike(Fused.load(tmp_path), made)


@pytest.mark.filterwarnings('ignore::RuntimeWarning')
@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf, 1e25], ids=str)
def test_a_broken_sample_does_not_silence_the_rest(index, known, music, value):
    "A clip in which one float is broken, by a fault of the disk or of a plug-in, is still known by all the others."
    best = index.search(spoiled(cut(music[known[4]], 3.3, 6), value, (48_000,)), 1)[0]
    assert (
        best.track_id == known[4]
        and best.offset_s == pytest.approx(3.3, abs=0.05)
        and best.confidence >= index.accept_confidence
    )


@pytest.mark.parametrize('gain', [1e-2, 20.0, 1e4])
def test_loudness_hardly_matters(index, known, music, gain):
    clip = cut(music[known[1]], 7.77)
    a = index.search(clip, 1)[0]
    b = index.search(clip * np.float32(gain), 1)[0]
    assert a.track_id == b.track_id == known[1] and b.score == pytest.approx(a.score, rel=0.1)


def test_catalogues_of_no_song_and_of_one_and_two(index, known, music):
    clips = [cut(music[t], 5.2) for t in known[:2]]
    made = Fused()
    assert (
        len(made) == 0 and made.search(clips[0]) == [] and made.evidence(made.hear(clips[0])).track_ids == []
    )
    for n, name in enumerate(known[:2], 1):
        made.add(name, music[name])
        for clip, own in zip(clips, known):
            found = made.search(clip)
            assert len(found) == n == len(made) and sane(found)
            assert own not in made.songs or found[0].track_id == own
    made.retain(set())
    assert len(made) == 0 and made.search(clips[0]) == []


# ---- orders, merges, and what is left out


def test_the_order_of_addition_does_not_matter(music, known):
    short = {t: cut(music[t], 0, 7) for t in known[:4]}
    forth = of_songs(**short)
    back = of_songs(**dict(reversed(short.items())))
    for x in (music[known[1]], music[known[6]]):
        for clip in (cut(x, 1.21), cut(x, 3.01, 2)):
            assert_same_answers(forth.search(clip, 9), back.search(clip, 9))


def test_equal_songs_are_answered_in_the_order_of_their_names():
    forth, back = (of_songs(**dict.fromkeys(names, sound(0)[: 4 * RATE])) for names in ('abcd', 'cdba'))
    for k in (1, 2, 4):
        assert_same_answers(forth.search(cut(sound(0), 1, 3), k), back.search(cut(sound(0), 1, 3), k))
    for made in (forth, back):
        assert ties_go_by_name(made.search(cut(sound(0), 1, 3)), 'abcd')


def test_merged_and_retained_is_as_never_added(music, known):
    short = {t: cut(music[t], 0, 4) for t in known[:5]}
    some = lambda *numbers: of_songs(**{known[i]: short[known[i]] for i in numbers})
    # one song is in both
    a = some(0, 1, 2)
    b = some(2, 3, 4)
    whole = some(0, 1, 2, 3, 4)
    clips = [cut(music[known[i]], 0.94, 3) for i in (0, 4, 7)]
    before = b.search(clips[1], 9)
    a.merge(b)
    assert len(a) == 5 and len(b) == 3 and b.search(clips[1], 9) == before and alike(a, whole)
    for clip in clips:
        assert_same_answers(a.search(clip, 9), whole.search(clip, 9))
    a.retain({known[0], known[4], 'never there'})
    never = some(0, 4)
    assert len(a) == 2 and alike(a, never)
    for clip in clips:
        assert_same_answers(a.search(clip, 9), never.search(clip, 9))


def test_a_song_that_is_here_already_stays_as_it_is():
    a = of_songs(x=sound(1), y=sound(2))
    b = of_songs(x=sound(3))
    a.merge(b)
    assert alike(a, of_songs(x=sound(1), y=sound(2)))
    b.merge(Fused())
    assert alike(b, of_songs(x=sound(3)))


def test_the_table_is_made_anew_after_every_change(music, known):
    made = Fused()
    for n, name in enumerate(known[:3], 1):
        made.add(name, cut(music[name], 0, 8))
        assert [m.track_id for m in made.search(cut(music[name], 2.1, 4), 9)][0] == name and len(
            made.search(cut(music[name], 2.1, 4), 9)
        ) == n
    more = of_songs(late=sound(5))
    made.merge(more)
    assert made.search(cut(sound(5), 1.3, 4))[0].track_id == 'late'
    made.retain({*known[:3]})
    assert 'late' not in {m.track_id for m in made.search(cut(sound(5), 1.3, 4))}
    made.add('late', sound(5))
    assert made.search(cut(sound(5), 1.3, 4))[0].track_id == 'late'


@pytest.mark.parametrize('n_out', [1, 3, N_SONGS])
def test_songs_left_out_are_as_if_they_were_not_there(index, known, music, n_out):
    out = known[:n_out]
    rest = Fused()
    rest.merge(index)
    rest.retain(set(known[n_out:]))
    for name in (known[0], known[7]):
        heard = index.hear(cut(music[name], 6.13))
        a = index.evidence(heard, out)
        b = rest.evidence(heard)
        by_name = [np.argsort(e.track_ids) for e in (a, b)]  # two that are nearly equal may change places
        assert sorted(a.track_ids) == sorted(b.track_ids) == sorted(known[n_out:])
        for what in ('score', 'cosine', 'agreement', 'start_s', 'features'):
            np.testing.assert_allclose(
                *(getattr(e, what)[order] for e, order in zip((a, b), by_name)), atol=1e-4, err_msg=what
            )
    again = index.evidence(index.hear(cut(music[known[0]], 6.13)), ['a name that nobody has'])
    assert len(again.track_ids) == N_SONGS and again.track_ids[0] == known[0], 'nothing is left out for good'


@pytest.mark.parametrize('copies', [2, 12])
def test_a_second_copy_is_no_reason_for_doubt(index, known, music, copies):
    "The same recording, once on an album and once on a best-of; labels that sell one album in six countries."
    made = Fused()
    more = of_songs(**{'copy 1': music[known[3]]})
    # what is kept of it is the same
    more.songs |= {f'copy {i}': more.songs['copy 1'] for i in range(2, copies)}
    made.merge(index)
    made.merge(more)
    found = made.search(cut(music[known[3]], 8.08), copies + 1)
    assert {m.track_id for m in found[:copies]} == {known[3], *(f'copy {i}' for i in range(1, copies))}
    assert all(
        m.confidence >= made.accept_confidence and m.offset_s == pytest.approx(8.08, abs=0.05)
        for m in found[:copies]
    )
    assert found[copies].confidence < made.accept_confidence


# ---- clips that are not all song


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 400 * RATE))
def test_pieces_of_a_clip(n):
    found = module._pieces(noise(1)[:16_000].repeat(-(-n // 16_000))[:n] if n else np.zeros(0, np.float32))
    assert 1 <= len(found) <= PIECES and found[0].start == 0 and found[-1].stop == n
    assert all(0 <= p.start <= p.stop <= n and p.stop - p.start <= 1.25 * LONGEST_S * RATE for p in found)
    if n <= PIECES * LONGEST_S * RATE:  # nothing of it is skipped
        assert all(a.stop >= b.start for a, b in zip(found, found[1:]))
    assert len(found) == 1 or all(p.stop - p.start == LONGEST_S * RATE for p in found)


@pytest.mark.parametrize(
    'before_s, start_s, seconds, after_s',
    [(20, 0, 18, 0), (20, 1.5, 16, 10), (0, 6.2, 11.8, 16), (12, 5, 8.5, 0)],
)
def test_a_song_in_a_part_of_a_long_clip(index, known, music, before_s, start_s, seconds, after_s):
    clip = np.concatenate([noise(before_s), cut(music[known[2]], start_s, seconds), noise(after_s, 1)])
    assert len(clip) > 1.25 * LONGEST_S * RATE
    best = index.search(clip, 2)[0]
    assert best.track_id == known[2] and best.offset_s == pytest.approx(start_s - before_s, abs=0.05)
    assert best.confidence >= index.accept_confidence


def test_a_long_clip_of_nothing_is_refused(index):
    found = index.search(noise(45))
    assert sane(found) and not [m for m in found if m.confidence >= index.accept_confidence]


@pytest.mark.parametrize('after_s', [0.5, 3, 30])
def test_a_clip_longer_than_the_song(music, known, after_s):
    short = of_songs(**{t: cut(music[t], 2, 5) for t in known[:4]})
    for name in known[:2]:
        best = short.search(np.concatenate([cut(music[name], 2, 5), noise(after_s)]), 1)[0]
        assert (
            best.track_id == name
            and best.offset_s == pytest.approx(0, abs=0.05)
            and best.confidence >= short.accept_confidence
        )


def test_a_clip_that_goes_on_after_the_song(index, known, music):
    clip = np.concatenate([cut(music[known[3]], SONG_S - 4.3, 4.3), noise(4)])
    best = index.search(clip, 1)[0]
    assert best.track_id == known[3] and best.offset_s == pytest.approx(SONG_S - 4.3, abs=0.05)


@pytest.mark.parametrize('before_s', [0.3, 1, 2.6, 5])
def test_a_clip_that_begins_before_the_song(index, known, music, before_s):
    "The telephone listens while the audience still applauds."
    best = index.search(np.concatenate([noise(before_s), cut(music[known[2]], 0, 10 - before_s)]), 1)[0]
    assert best.track_id == known[2] and best.offset_s == pytest.approx(-before_s, abs=0.05)
    assert best.confidence >= index.accept_confidence


# ---- the two numbers and the confidence


FLOOR = {'rival': 15.0, 'others': 12.0, 'agreement': 4.0}


def features_of(score, cosine, agreements, self_similarity):
    "Features where the first is its only duplicate, and no part agrees more than the rest."
    return features(
        score,
        duplicate=np.arange(len(score)) == 0,
        cosine=cosine,
        agreements=agreements,
        agreements_rest=agreements,
        self_similarity=self_similarity,
        n_windows=9,
        floor=FLOOR,
    )


def test_features_are_what_they_are_called():
    score = np.array([50.0, 30, 20, 18, 16, 14, *np.full(15, 13.0)])
    same = np.linspace(0.5, 1, 21)
    duplicate = np.arange(21) == 0
    evidence = dict(
        cosine=0.01 * score,
        agreements=score / 2,
        agreements_rest=score / 4,
        self_similarity=same,
        n_windows=17,
        floor=FLOOR,
    )
    rows = features(score, duplicate=duplicate, **evidence)
    assert rows.shape == (21, 9) and (rows[:, 0] == score).all() and (rows[:, 8] == same).all()
    assert rows[:3, 1].tolist() == [20, -20, -30], (
        'the lead of the first is over the second, that of the others over the first'
    )
    np.testing.assert_allclose(
        rows[:, 2:5], np.stack([0.01 * score, np.log(score / 2), np.log(score / 4)], 1)
    )
    assert (rows[:, 5] == np.log(17)).all()
    np.testing.assert_allclose(rows[:, 6], score[4:14].mean())
    np.testing.assert_allclose(
        rows[:, 7], score[1:7].mean() / 2, err_msg='the six of the others whose peaks agree best'
    )
    duplicate[1] = True
    rows = features(score, duplicate=duplicate, **evidence)
    assert rows[:3, 1].tolist() == [30, 10, -30], 'a duplicate is no runner-up'
    np.testing.assert_allclose(rows[:, 7], score[2:8].mean() / 2, err_msg='nor one of the others')


def test_peaks_of_songs_that_the_vectors_do_not_like_say_nothing():
    rng = np.random.default_rng(0)
    n = 60
    score = np.sort(rng.normal(20, 3, n))[::-1]
    cosine = rng.uniform(0, 1, n)
    agree = rng.normal(4, 1, n)
    rows = features_of(score, cosine, agree, np.ones(n))
    near = sorted(range(1, n), key=lambda i: -cosine[i])[:20]
    np.testing.assert_allclose(rows[:, 7], np.mean(sorted(agree[i] for i in near)[-6:]))


@pytest.mark.parametrize('n_others', [0, 1, 19, 20, 40])
def test_a_floor_holds_where_there_are_few_songs(n_others):
    n = 1 + n_others
    low = np.full(1 + n_others, 1.0)
    rows = features_of(np.array([20.0, *low[1:]]), 0.1 * low, low, low)
    taken = (1, 1, 1) if n_others >= 20 else (FLOOR['rival'], FLOOR['others'], FLOOR['agreement'])
    assert (20 - rows[0, 1], rows[0, 6], rows[0, 7]) == pytest.approx(taken), (
        'few songs do not show what strangers reach'
    )
    high = np.full(n, 100.0)
    rows = features_of(high, 0.1 * low, high, low)
    assert not n_others or rows[0, 1] == 0 and rows[0, 7] == 100, 'whoever reaches more shows it'


def test_features_of_weak_ones():
    rows = features(
        np.array([20.0, 3.0]),
        duplicate=np.array([True, False]),
        cosine=np.array([0.5, 0.1]),
        agreements=np.array([4.0, -3.0]),
        agreements_rest=np.array([0.0, -9.0]),
        self_similarity=np.ones(2),
        n_windows=0,
        floor=FLOOR,
    )
    assert (
        rows[1, 3] == rows[0, 4] == rows[1, 4] == np.log(0.5)
        and (rows[:, 5] == 0).all()
        and np.isfinite(rows).all()
    )
    none = np.zeros(0)
    assert features_of(none, none, none, none).shape == (0, 9)


def test_products_with_windows_need_no_vectors(index):
    rows = np.array([[0, 5, 6], [7, 7, 100]])
    others = np.random.default_rng(0).normal(size=(4, 128)).astype(np.float32)
    t = index.table()
    np.testing.assert_allclose(t.products(rows, others), t.vectors(rows) @ others.T, atol=1e-4)
    assert t.products(rows, others[:0]).shape == (2, 3, 0)


def test_how_little_a_song_changes_is_the_length_of_its_mean_vector(index, known, music):
    heard = index.hear(cut(music[known[5]], 2.83))
    told = index.evidence(heard)
    t = index.table()
    n = len(heard.vectors)
    for name, start_s, same in zip(told.track_ids, told.start_s, told.features[:, 8]):
        first, last = (edge[t.track_ids.index(name)] for edge in (t.starts_windows, t.ends_windows))
        rows = lambda at: (
            index.table().vectors(np.minimum(first + max(at, 0) + np.arange(n), last - 1)).mean(axis=0)
        )
        # vectors are taken from the window next to the place that the peaks may have moved a little
        at = int(start_s // HOP_S)
        assert any(abs(same - np.linalg.norm(rows(at + d))) < 1e-4 for d in range(-2, 4))
    assert (told.features[:, 8] < 0.99).all() and (told.features[:, 8] > 0).all()


def test_evidence_is_what_search_answers(index, known, music):
    clip = cut(music[known[5]], 2.83)
    heard = index.hear(clip)
    assert (
        heard.vectors.shape[1] == 128
        and 15 <= len(heard.vectors) <= 17
        and len(heard.level_db) == len(clip) // FRONT.hop + 1
    )
    np.testing.assert_allclose(np.linalg.norm(heard.vectors, axis=1), 1, atol=1e-4)
    told = index.evidence(heard)
    found = index.search(clip, N_SONGS)
    assert (
        isinstance(told, Candidates)
        and told.track_ids == [m.track_id for m in found]
        and told.features.shape == (N_SONGS, 9)
    )
    np.testing.assert_allclose(told.score, [m.score for m in found], atol=7e-4)  # an answer has three digits
    np.testing.assert_allclose(told.start_s, [m.offset_s for m in found], atol=7e-4)
    weights = index.calibration.constants['score_weights']
    np.testing.assert_allclose(
        told.score, weights['cosine'] * told.cosine + weights['agreement'] * told.agreement, atol=1e-5
    )
    assert (
        told.cosine[0] > 0.7 > told.cosine[1:].max()
        and told.agreement[0] > 10
        and (np.abs(told.cosine) <= 1.001).all()
    )


# ---- on disk


def test_saved_and_loaded_it_answers_the_same(index, known, music, tmp_path):
    folder = tmp_path / 'made' / 'when missing'
    index.save(folder)
    again = Fused.load(folder)
    assert len(again) == N_SONGS and again.model_name == index.model_name and alike(again, index)
    for start_s in (0.5, 3.33):
        clip = cut(music[known[3]], start_s)
        assert_same_answers(again.search(clip, 9), index.search(clip, 9))
    assert sum(p.stat().st_size for p in folder.iterdir()) < 5_000 * N_SONGS
    again.add('new', sound(1))  # a loaded index can grow, shrink, be merged and saved over the old one
    again.retain({'new', known[0]})
    again.save(folder)
    assert alike(Fused.load(str(folder)), again) and len(Fused.load(folder)) == 2


def test_an_empty_index_and_strange_names_come_back(tmp_path):
    Fused().save(tmp_path)
    assert len(Fused.load(tmp_path)) == 0 and Fused.load(tmp_path).search(sound(1)) == []
    names = ['Ä "quoted" 音', 'two\nlines', '', os.fsdecode(b'caf\xe9')]
    made = of_songs(**dict.fromkeys(names, sound(1, 3)))
    made.save(tmp_path)
    assert [*Fused.load(tmp_path).songs] == names
    assert ties_go_by_name(Fused.load(tmp_path).search(cut(sound(1, 3), 0.5, 2)), names)


class Trap:
    "An object that leaves a mark when it is read from a pickle."

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def a_pickle(name):
    return lambda folder, told: np.save(
        folder / f'{name}.npy', np.array([Trap(folder / 'read')], dtype=object), allow_pickle=True
    )


def an_array(name, change):
    return lambda folder, told: np.save(folder / f'{name}.npy', change(np.load(folder / f'{name}.npy')))


def some_bytes(name, change):
    return lambda folder, told: (folder / name).write_bytes(change((folder / name).read_bytes()))


def told_otherwise(**changes):
    return lambda folder, told: (folder / 'index.json').write_text(json.dumps(told | changes))


def a_song(**changes):
    "The second song's row with other numbers."

    def harm(folder, told):
        row = dict(zip(('name', 'windows', 'peaks', 'frames'), told['tracks'][1]))
        told['tracks'][1] = [*(row | {k: v(row[k]) for k, v in changes.items()}).values()]
        (folder / 'index.json').write_text(json.dumps(told))

    return harm


def a_header(shape, room=0):
    "An array that claims a shape and holds nothing."

    def harm(folder, told):
        words = (
            f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".encode() + b' ' * room + b'\n'
        )
        (folder / 'codes.npy').write_bytes(b'\x93NUMPY\x02\x00' + len(words).to_bytes(4, 'little') + words)

    return harm


def an_archive(folder, told):
    np.savez(folder / 'other.npz', codes=np.load(folder / 'codes.npy'))
    (folder / 'other.npz').rename(folder / 'codes.npy')


HARM = {
    'no index.json': lambda folder, told: (folder / 'index.json').unlink(),
    'no codes': lambda folder, told: (folder / 'codes.npy').unlink(),
    'no peaks': lambda folder, told: (folder / 'peaks.npy').unlink(),
    'no folder': lambda folder, told: shutil.rmtree(folder),
    'json cut': some_bytes('index.json', lambda b: b[:-10]),
    'json empty': some_bytes('index.json', lambda b: b''),
    'json no utf-8': some_bytes('index.json', lambda b: b'\xff\xfe' + b),
    'json a list': some_bytes('index.json', lambda b: b'[1, 2]'),
    'codes cut': some_bytes('codes.npy', lambda b: b[:-10]),
    'peaks cut': some_bytes('peaks.npy', lambda b: b[:-10]),
    'codes empty': some_bytes('codes.npy', lambda b: b''),
    'peaks garbage': some_bytes('peaks.npy', lambda b: os.urandom(500)),
    'codes with a broken header': some_bytes(
        'codes.npy', lambda b: b'\x93NUMPY\x01\x00\x10\x00{"descr": [[[[,\n' + b' ' * 20
    ),
    'codes an archive': an_archive,
    'codes like an archive': some_bytes('codes.npy', lambda b: b'PK\x03\x04' + b),
    'codes larger than any memory': a_header((10**13, 16)),
    'codes with a long header': a_header((85, 16), 20_000),
    'codes pickled': a_pickle('codes'),
    'peaks pickled': a_pickle('peaks'),
    'codes of another type': an_array('codes', lambda x: x.astype(np.int16)),
    'peaks of another type': an_array('peaks', lambda x: x.astype('<u4')),
    'codes of another width': an_array('codes', lambda x: x[:, :8]),
    'codes flat': an_array('codes', np.ravel),
    'codes a number': an_array('codes', lambda x: x[0, 0]),
    'a window too few': an_array('codes', lambda x: x[1:]),
    'a peak too many': an_array('peaks', lambda x: np.append(x, x[:1])),
    'peaks after the end': a_song(frames=lambda n: n // 2),
    'peaks too high': an_array('peaks', lambda x: x & np.uint16(127) | np.uint16(505 << 7)),
    'peaks dealt to the wrong song': a_song(peaks=lambda n: n + 1),
    'windows dealt to the wrong song': a_song(windows=lambda n: n - 1),
    'a song without windows': a_song(windows=lambda n: 0),
    'negative peaks': a_song(peaks=lambda n: -n),
    'negative frames': a_song(frames=lambda n: -n),
    'endless windows': a_song(windows=lambda n: float('inf')),
    'windows that are no number': a_song(windows=lambda n: float('nan')),
    'more frames than can be counted': a_song(frames=lambda n: 10**30),
    'a word for a number': a_song(peaks=lambda n: 'many'),
    'no tracks': told_otherwise(tracks=[]),
    'tracks of another form': told_otherwise(tracks=[['a', 85]]),
    'tracks a number': told_otherwise(tracks=3),
    'newer': told_otherwise(version=3),
    'older': told_otherwise(version=1),
    'another format': told_otherwise(format='resonance embeddings'),
    'another front end': told_otherwise(front_end='fused/0123456789abcdef'),
    'no version': lambda folder, told: (folder / 'index.json').write_text(
        json.dumps({k: v for k, v in told.items() if k != 'version'})
    ),
    'one name for two songs': lambda folder, told: (folder / 'index.json').write_text(
        json.dumps(told | {'tracks': [['same', *t[1:]] for t in told['tracks']]})
    ),
}


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('harm', HARM.values(), ids=HARM)
def test_a_damaged_index_is_refused_in_one_line(index, known, tmp_path, harm):
    folder = tmp_path / 'saved'
    made = Fused()
    made.merge(index)
    made.retain(set(known[:2]))
    made.save(folder)
    harm(folder, json.loads((folder / 'index.json').read_text()))
    with pytest.raises(ResonanceError) as error:
        Fused.load(folder)
    assert '\n' not in str(error.value) and str(folder) in str(error.value)
    assert not (folder / 'read').exists(), 'a pickle was read'


# ---- another model


def test_another_encoder_is_not_compared(index, other, tmp_path):
    made = Fused(other)
    made.add('s', sound(1))
    assert made.model_name != index.model_name and not made.calibrated and made.digest in made.model_name
    assert made.search(cut(sound(1), 1.1, 4), 1)[0].track_id == 's' and sane(made.search(sound(2)))
    for a, b in ((index, made), (made, index)):
        with pytest.raises(ResonanceError, match=f'cannot merge {b.model_name} into {a.model_name}'):
            a.merge(b)
    made.save(tmp_path)
    with pytest.raises(
        ResonanceError,
        match=f'{tmp_path} .*{made.model_name}; here: {index.model_name}.: index the music again',
    ):
        Fused.load(tmp_path)
    assert alike(Fused.load(tmp_path, encoder=other), made)


def test_another_codebook_is_not_compared(index, other):
    book = shipped_codebook()
    changed = type(book)(book.kind, book.arrays | {'centroids': book.arrays['centroids'] + np.float32(1e-3)})
    made = Fused(codebook=changed)
    assert made.model_name != index.model_name and not made.calibrated and shipped_codebook() is book
    with pytest.raises(ResonanceError, match='cannot merge'):
        made.merge(index)


def test_vectors_of_a_width_that_the_codebook_does_not_know_are_refused_at_once():
    with pytest.raises(ResonanceError, match='64.*128|128.*64'):
        Fused(Encoder(Settings('cnn3', 64)).eval())


# ---- the contract


def test_it_fulfils_the_contract(index):
    assert isinstance(index, Recognizer) and all(
        hasattr(index, n) for n in ('merge', 'retain', '__len__', 'add_stream')
    )
    assert (
        0 < index.accept_confidence < 1 and len(index) == N_SONGS and not isinstance(index, VectorRecognizer)
    )
    assert index.name == 'fused' and method_class('fused') is Fused and next(iter(METHODS)) == 'fused', (
        'the best comes first'
    )
    assert index.model_name == f'fused/{index.digest}@0.256s/{shipped_codebook().digest}/{FRONT.digest()}'


def test_what_was_fitted_was_fitted_to_what_is_shipped(index):
    assert index.calibrated, 'run resonance calibrate fused'
    fitted = index.calibration
    constants = fitted.constants
    assert len(fitted.weights) == 9 and set(constants['score_weights']) == {'cosine', 'agreement'}
    assert set(constants['floor']) == {'rival', 'others', 'agreement'}
    sizes = constants['few']['songs']
    off = constants['few']['logit']
    assert sizes == sorted(sizes) and off == sorted(off, reverse=True) and off[0] > 0 == off[-1], (
        'the smaller the catalogue, the more is asked'
    )
    assert not fitted.is_for({'model': 'another model'})


# ---- in a catalogue


@pytest.fixture
def catalogue(music, known, tmp_path):
    "Four songs as files, in two segments."
    folder = tmp_path / 'music'
    folder.mkdir()
    for name in known[:4]:
        audio.save(folder / f'{name}.flac', cut(music[name], 0, 8))
    with Catalog(tmp_path / 'c', create=True) as songs:
        assert songs.index(folder, method='fused', progress=False, batch_files=2).added == 4
        yield songs, folder


def test_in_a_catalogue(catalogue, music, known):
    songs, folder = catalogue
    assert songs.index(folder, method='fused', progress=False).added == 0 and len(songs) == 4
    ids = {Path(s['path']).stem: s['recording_id'] for s in songs.songs()}
    direct = of_songs(**{ids[t]: audio.load(folder / f'{t}.flac') for t in known[:4]})
    for name in known[:4]:
        clip = cut(music[name], 2.6)
        found = songs.identify(clip, top=3)  # the best method that is there, by default
        assert (
            found.decision == 'match'
            and found.matches[0].track_id == ids[name]
            and found.matches[0].offset_s == pytest.approx(2.6, abs=0.05)
        )
        keys = ('track_id', 'score', 'offset_s', 'confidence')
        assert_same_answers([{k: getattr(m, k) for k in keys} for m in found.matches], direct.search(clip, 3))
    assert songs.identify(cut(music[known[7]], 2.6), method='fused').decision == 'no-match'
    assert songs.identify(np.zeros(RATE, np.float32), method='fused').matches == []
    assert songs.check() == []


def test_songs_that_are_removed_and_files_that_are_gone(catalogue, music, known):
    songs, folder = catalogue
    ids = {Path(s['path']).stem: s['recording_id'] for s in songs.songs()}
    clip = cut(music[known[1]], 2.9)
    gone = folder / f'{known[1]}.flac'
    gone.unlink()
    assert any('is gone' in line for line in songs.check())
    assert songs.index(folder, method='fused', progress=False).unchanged == 3
    assert songs.identify(clip, method='fused').matches[0].track_id == ids[known[1]], (
        'the file may be on a disk that is not there today'
    )
    songs.remove(ids[known[1]])
    found = songs.identify(clip, method='fused')
    assert (
        found.decision == 'no-match'
        and ids[known[1]] not in {m.track_id for m in found.matches}
        and len(found.matches) == 3
    )
    assert len(songs.recognizer('fused')) == 3 and songs.check() == []
    assert songs.identify(cut(music[known[0]], 2.9), method='fused').decision == 'match', (
        'its neighbour in the segment'
    )
    audio.save(gone, cut(music[known[1]], 0, 8))
    assert (
        songs.index(folder, method='fused', progress=False).added == 1
        and songs.identify(clip, method='fused').decision == 'match'
    )
    assert songs.check() == []


def test_files_that_hold_no_music(catalogue):
    import soundfile as sf

    songs, folder = catalogue
    audio.save(folder / 'silence.flac', np.zeros(3 * RATE, np.float32))
    sf.write(folder / 'far too loud.wav', 40 * sound(1), RATE, subtype='FLOAT')
    (folder / 'no music.mp3').write_bytes(b'no music here' * 50)
    report = songs.index(folder, method='fused', progress=False)
    assert report.added == 1 and sorted(Path(p).name for p, _ in report.failed) == [
        'no music.mp3',
        'silence.flac',
    ]
    assert (
        songs.identify(cut(sound(1), 1.2, 4), method='fused').matches[0].title == 'far too loud'
        and songs.check() == []
    )


def test_a_damaged_segment_is_told_with_its_cure(catalogue):
    songs, folder = catalogue
    place = next((songs.folder / 'fused').iterdir())
    np.save(place / 'codes.npy', np.zeros((3, 16), np.uint8))
    with Catalog(songs.folder) as again:
        with pytest.raises(
            ResonanceError,
            match='the fused index of .* is damaged .its arrays do not fit its songs.: run `resonance check --repair ',
        ) as error:
            again.identify(sound(1), method='fused')
        assert '\n' not in str(error.value)
        (problem,) = again.check()
        assert place.name in problem and 'run `resonance check --repair --catalog ' in problem
        again.index(folder, method='fused', progress=False)
        assert again.check() == [] and len(again.recognizer('fused')) == 4


# ---- on the command line


def resonance(*words, cwd=None):
    "Exit status, standard output, standard error."
    done = subprocess.run(
        [sys.executable, '-c', MAIN, *map(str, words)], cwd=cwd, capture_output=True, text=True
    )
    return done.returncode, done.stdout, done.stderr


def test_the_command_speaks_the_contract(tmp_path, music, known):
    (tmp_path / 'music').mkdir()
    for i in range(3):
        audio.save(tmp_path / 'music' / f'song {i}.flac', cut(music[known[i]], 0, 11))
    audio.save(tmp_path / 'known.wav', cut(music[known[2]], 4.1, 6))
    audio.save(tmp_path / 'stranger.wav', cut(music[known[6]], 4.1, 6))
    audio.save(tmp_path / 'silence.wav', np.zeros(5 * RATE, np.float32))
    status, out, err = resonance(
        'index', 'music', '--catalog', 'c', '--method', 'fused', '--jobs', 1, '--json', cwd=tmp_path
    )
    told = json.loads(out)
    assert status == 0 and (told['added'], told['unchanged'], told['songs'], told['failed']) == (
        3,
        0,
        3,
        [],
    ), err
    status, out, err = resonance(
        'identify', 'known.wav', 'stranger.wav', 'silence.wav', '--catalog', 'c', '--json', cwd=tmp_path
    )
    answers = [json.loads(line) for line in out.splitlines()]
    assert (
        status == 0
        and err == ''
        and [a['query'] for a in answers] == ['known.wav', 'stranger.wav', 'silence.wav']
    )
    for answer in answers:
        assert set(answer) == {'query', 'decision', 'matches', 'calibrated', 'elapsed_ms'}
        for match in answer['matches']:
            assert set(match) == {'track_id', 'title', 'artist', 'path', 'score', 'confidence', 'offset_s'}
            assert 0 <= match['confidence'] <= 1 and len(match['track_id']) == 16
    assert [a['decision'] for a in answers] == ['match', 'no-match', 'no-match'] and answers[2][
        'matches'
    ] == []
    assert answers[0]['matches'][0]['title'] == 'song 2' and answers[0]['matches'][0][
        'offset_s'
    ] == pytest.approx(4.1, abs=0.05)


@pytest.mark.parametrize(
    'code',
    [
        'import resonance_nb, resonance_nb.match, resonance_nb.fuse',  # the class is there before the network is
        'try:\n    from resonance_nb.cli import main; main(["--help"])\nexcept SystemExit: pass',
    ],
    ids=['import', 'help'],
)
def test_torch_comes_only_when_it_is_needed(code):
    done = subprocess.run(
        [sys.executable, '-c', f'import sys\n{code}\nprint("torch" in sys.modules)'],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == 'False', done.stderr


# ---- what draws answers and should not, other speeds, other versions


def tones(*frequencies_hz, seconds=20):
    at = np.arange(seconds * RATE) / RATE
    return (0.2 * sum(np.sin(2 * np.pi * f * at) for f in frequencies_hz)).astype(np.float32)


def clicks(per_minute, seconds=20, pitch_hz=1_000):
    x = np.zeros(seconds * RATE, np.float32)
    every = round(60 * RATE / per_minute)
    click = np.sin(2 * np.pi * pitch_hz * np.arange(400) / RATE) * np.exp(-np.arange(400) / 80)
    for at in range(0, len(x) - 400, every):
        x[at : at + 400] += 0.8 * click
    return x


@pytest.fixture(scope='module')
def with_magnets(index):
    found = Fused()
    found.merge(index)
    for name, x in {
        'tone': tones(440),
        'metronome': clicks(120),
        'white': 10 * noise(20, 5),
        'hum': tones(50, 100, 150, 200),
    }.items():
        found.add(name, x)
    return found


@pytest.mark.parametrize(
    'clip',
    [
        tones(350, 440, seconds=5),
        tones(1_000, seconds=5),
        tones(220, seconds=10),
        clicks(100, 8),
        clicks(140, 8),
        10 * noise(5, 9),
    ],
    ids=['dial tone', 'tone', 'low tone', 'clicks', 'quick clicks', 'white noise'],
)
def test_tones_beats_and_noise_in_the_library_are_nobodys_answer(with_magnets, clip):
    assert not [m for m in with_magnets.search(clip) if m.confidence >= with_magnets.accept_confidence]


def test_songs_are_found_beside_them(with_magnets, index, known, music):
    for t in known[:4]:
        clip = cut(music[t], 5) + 0.02 * rng_for(3, t).standard_normal(5 * RATE).astype(np.float32)
        best = with_magnets.search(clip, 1)[0]
        assert best.track_id == t and best.confidence >= with_magnets.accept_confidence


def test_a_recording_of_noise_is_found_by_itself_only(with_magnets):
    own = with_magnets.search(10 * noise(20, 5)[5 * RATE : 10 * RATE], 1)[0]
    assert own.track_id == 'white' and own.offset_s == pytest.approx(5, abs=0.1)
    found = with_magnets.evidence(with_magnets.hear(10 * noise(5, 9)))
    at = found.track_ids.index('white')
    assert found.penalty[at] > 1 and found.penalty.max() == found.penalty[at]


def test_a_place_among_many_like_it_is_steady(with_magnets, known, music):
    assert with_magnets.evidence(with_magnets.hear(tones(440, seconds=5))).steady[0]
    assert not with_magnets.evidence(with_magnets.hear(cut(music[known[1]], 5))).steady.any()


@pytest.mark.parametrize('percent', [-4, -2, 0, 2, 4])
def test_a_deck_that_runs_too_fast_or_too_slow(index, known, music, percent):
    import soxr

    right = 0
    for t in known[:6]:
        clip = soxr.resample(cut(music[t], 6, 6), RATE * (1 + percent / 100), RATE)
        best = index.search(clip, 1)[0]
        right += (
            best.track_id == t and best.confidence >= index.accept_confidence and abs(best.offset_s - 6) < 0.3
        )
    assert right >= 5


def test_at_another_speed_only_the_right_song_is_named(index, known, music):
    import soxr

    few = Fused()
    few.merge(index)
    few.retain(set(few.songs) - {known[0]})
    for percent in (-4, 4):
        clip = soxr.resample(cut(music[known[0]], 6, 6), RATE * (1 + percent / 100), RATE)
        assert not [m for m in few.search(clip) if m.confidence >= few.accept_confidence]


def test_the_recording_another_version_or_nobody_knows(index, known, music):
    song = music[known[0]]
    voice = music[known[1]]
    n = min(len(song), len(voice))
    versions = Fused()
    versions.merge(index)
    versions.retain(set(versions.songs) - {known[0], known[1]})
    versions.add('duet', song[:n] + 2 * voice[:n])
    clip = cut(song, 6, 8)
    assert index.relation(clip, index.search(clip, 1)[0]) == 'recording'
    best = versions.search(clip, 1)[0]
    assert best.track_id == 'duet' and versions.relation(clip, best) == 'version'
    crowd = clip + clip.std() * rng_for(1).standard_normal(len(clip)).astype(np.float32)
    assert index.relation(crowd, index.search(crowd, 1)[0]) is None


def test_a_relation_of_a_clip_beside_the_song(index, known, music):
    from resonance_nb.core import Match

    for offset_s in (-100.0, 1e4):
        assert index.relation(cut(music[known[0]], 6), Match(known[0], 1.0, offset_s, 0.9)) is None
    assert index.relation(np.zeros(0, np.float32), Match(known[0], 1.0, 0.0, 0.9)) is None


def test_a_catalogue_says_that_a_clip_is_another_version(known, music, tmp_path):
    song = music[known[0]]
    voice = music[known[1]]
    n = min(len(song), len(voice))
    (
        audio.save(tmp_path / 'duet.flac', song[:n] + 2 * voice[:n]),
        audio.save(tmp_path / 'other.flac', music[known[2]]),
    )
    with Catalog(tmp_path / 'catalogue', create=True) as catalog:
        catalog.index([tmp_path / 'duet.flac', tmp_path / 'other.flac'], method='fused', progress=False)
        best = catalog.identify(cut(song, 6, 8)).matches[0]
        assert best.path.endswith('duet.flac') and best.another_version is True
        for clip in (cut(song[:n] + 2 * voice[:n], 6, 8), cut(music[known[2]], 6, 8)):
            answer = catalog.identify(clip)
            assert answer.decision == 'match' and not answer.matches[0].another_version
