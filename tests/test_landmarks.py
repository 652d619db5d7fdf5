"""Landmarks against slow references and invariances, and whole on the corpus in use."""

import json
import os
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resonance_nb import audio
from resonance_nb.clips import render
from resonance_nb.queries import make_protocol, make_queries, song_of
from resonance_nb.catalog import Catalog
from resonance_nb.core import ResonanceError, assert_same_answers, rng_for
from resonance_nb.starter import default_corpus
from sounds import sound
from resonance_nb.hashes import (
    CODE_BITS,
    HEAVIEST,
    Song,
    _pack_postings,
    _unpack_postings,
    build_segment,
    hashes,
    segment_songs,
    tally,
    vote,
)
from resonance_nb.landmarks import FIRST, DenseLandmarks, Landmarks, promising, shares_sound
from resonance_nb.peaks import Front, level_blocks, pack_peaks, peaks, unpack_peaks

RATE = audio.SAMPLE_RATE


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(a, b))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 8 * RATE), max_size=12), st.integers(0, 3))
def test_however_the_samples_are_cut(cuts, seed):
    x = sound(seed)
    assert same(peaks(x), peaks(iter(np.split(x, sorted(cuts)))))


def test_cut_of_a_recording_longer_than_a_block():
    x = np.concatenate([sound(i, 20) for i in range(5)])  # 100 s: four blocks, the last one short
    whole = peaks(x)
    assert whole[2] == len(x) // 512 + 1
    for size in (1_000, 16_000, 333_333):
        assert same(whole, peaks(x[i : i + size] for i in range(0, len(x), size)))


@pytest.mark.parametrize('gain_db', [-30, -6, 6, 20])
def test_gain_changes_nothing(gain_db):
    x = sound(1)
    front = Front(floor_db=-200)
    louder = x * np.float32(2.0 ** round(gain_db / 6))  # powers of two are exact in floating point
    before, after = (
        {*zip(frames.tolist(), bins.tolist())} for frames, bins, _ in (peaks(x, front), peaks(louder, front))
    )
    assert len(before & after) > 0.98 * max(len(before), len(after)) > 40, (
        'only where two levels are equal to the last digit'
    )


def test_a_shift_by_whole_frames_shifts_the_hashes():
    front = Front(eth=0.0)
    x = sound(2, 20)
    frames, bins, _ = peaks(x, front)
    later, moved, _ = peaks(np.concatenate([np.zeros(40 * front.hop, np.float32), x]), front)
    a, b = (set(zip(f.tolist(), b.tolist())) for f, b in ((frames + 40, bins), (later, moved)))
    assert len(a & b) > 0.95 * len(a)


def test_spectrogram_is_librosas():
    librosa = pytest.importorskip('librosa')
    x = sound(3)
    front = Front()
    ours = np.concatenate(list(level_blocks([x], front)))
    theirs = (
        np.abs(librosa.stft(x, n_fft=front.n_fft, hop_length=front.hop, pad_mode='constant')).T
        * 2
        / (front.n_fft / 2)
    )
    theirs_db = 20 * np.log10(np.maximum(theirs[:, front.bin_min : front.bin_max + 1], 1e-5))
    assert ours.shape == theirs_db.shape
    np.testing.assert_allclose(ours, theirs_db, atol=0.02)


def test_equal_levels_give_one_peak():
    # 16 samples a period: every frame is equal
    tone = np.sin(2 * np.pi * 1000 * np.arange(4 * RATE) / RATE).astype(np.float32)
    frames, bins, _ = peaks(tone)
    assert len(frames) < 12


@pytest.mark.parametrize(
    'x',
    [np.zeros(0), np.zeros(1), np.zeros(5 * RATE), np.ones(1), np.full(3 * RATE, 0.5)],
    ids=['empty', 'one', 'silence', 'click', 'dc'],
)
def test_nothing_to_hear(x):
    recognizer = Landmarks()
    recognizer.add('song', sound(0))
    assert recognizer.search(x.astype(np.float32)) == []
    recognizer.add('nothing', x.astype(np.float32))
    assert len(recognizer) == 1


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 400), st.integers(10, 512)), min_size=1, max_size=60, unique=True),
    st.integers(1, 20),
)
def test_hashes_are_the_loops(points, fan):
    front = Front()
    frames, bins = np.array(sorted(points)).T
    expected = []
    for i in range(len(frames)):
        near = [
            (frames[j] - frames[i], bins[j] - bins[i])
            for j in range(len(frames))
            if front.dt_min <= frames[j] - frames[i] <= front.dt_max
            and abs(bins[j] - bins[i]) <= front.df_max
        ]
        expected += [((bins[i] - 10) << 13 | (df + 64) << 6 | dt, frames[i]) for dt, df in near[:fan]]
    codes, at = hashes(frames, bins, fan, front)
    assert sorted(zip(codes.tolist(), at.tolist())) == sorted((int(c), int(f)) for c, f in expected)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(-50, 50)), max_size=80))
def test_votes_are_the_counts(hits):
    tracks, starts = (np.array([h[i] for h in hits], np.int64) for i in (0, 1))
    found, votes, start = vote(tracks, starts)
    expected = {}
    for t, s in set(hits):
        expected[t] = max(expected.get(t, 0), sum(hits.count((t, s + d)) for d in (-1, 0, 1)))
    assert dict(zip(found.tolist(), votes.tolist())) == expected
    assert list(votes) == sorted(votes, reverse=True)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(-50, 50), st.integers(1, HEAVIEST)), max_size=80))
def test_places_are_the_weighed_counts(hits):
    tracks, starts, weights = (np.array([h[i] for h in hits], np.int64) for i in (0, 1, 2))
    found = {
        (t, s): (v, pull) for t, s, v, pull in zip(*(x.tolist() for x in tally(tracks, starts, weights)))
    }
    for (t, s), (votes, pull) in found.items():
        near = [sum(w for t2, s2, w in hits if (t2, s2) == (t, s + d)) for d in (-1, 0, 1)]
        assert votes == sum(near) and pull == pytest.approx((near[2] - near[0]) / votes)
    assert set(found) == {(t, s) for t, s, _ in hits}
    plain = tally(tracks, starts)
    assert plain[2].tolist() == [
        sum((t2, s2) in ((t, s - 1), (t, s), (t, s + 1)) for t2, s2, _ in hits)
        for t, s in zip(*(x.tolist() for x in plain[:2]))
    ]


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2**CODE_BITS - 1), st.integers(0, 99)), max_size=60),
    st.sampled_from([100, 2**25, 2**31]),
)
def test_postings_come_back_from_their_buckets(hits, n_frames):
    codes, anchors = (np.array([h[i] for h in hits], np.int64) for i in (0, 1))
    none = np.zeros(0, np.int64)
    segment = build_segment({'s': Song(codes, anchors, none, none, n_frames)})
    counts, packed = _pack_postings(segment)
    starts, postings = _unpack_postings(counts, packed)
    assert (starts == segment.starts).all() and (postings == segment.postings).all()
    back = segment_songs(segment)['s']
    assert sorted(zip(back.codes.tolist(), back.anchors.tolist())) == sorted(hits)
    for bad in (
        counts[:-1],
        np.tile(counts, 512),
        counts + (np.arange(len(counts)) == 0).astype(counts.dtype),
    ):
        with pytest.raises(ValueError):
            _unpack_postings(bad, packed)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-200, 20_000), st.integers(1, HEAVIEST)), max_size=200), st.integers(1, 60)
)
def test_the_fullest_places_are_never_left_out(hits, most):
    begin, votes = (np.array([h[i] for h in hits], np.int64) for i in (0, 1))
    kept = promising(begin, votes, most)
    bins = np.zeros(2**12, np.int64)
    own = begin & (2**12 - 1)
    np.add.at(bins, own, votes)
    full = bins + np.roll(bins, 1) + np.roll(bins, -1)
    assert kept.tolist() == np.flatnonzero(full[own] >= np.sort(full)[-most - 1]).tolist()
    # what is left out has no more votes than what is kept
    for b in set(begin.tolist()) - set(begin[kept].tolist()):
        assert votes[np.abs(begin - b) <= 1].sum() <= min((full[own[k]] for k in kept), default=0)


def test_popular_hashes_are_looked_up_exactly():
    rng = rng_for(1, 'popular')
    codes = rng.choice([5, 6, 7, 1_000], 3_000, p=[0.6, 0.3, 0.05, 0.05])  # whole buckets full of few codes
    anchors = rng.integers(0, 9_000, len(codes))
    none = np.zeros(0, np.int64)
    segment = build_segment({'s': Song(codes, anchors, none, none, 9_000)})
    asked = np.array([4, 5, 6, 7, 8, 1_000, 5])
    which, positions = segment.lookup(asked)
    for i, code in enumerate(asked):
        assert sorted(positions[which == i]) == sorted(anchors[codes == code])


a_song = st.tuples(
    st.lists(st.tuples(st.integers(0, 2**CODE_BITS - 1), st.integers(0, 99)), max_size=30),
    st.sets(st.tuples(st.integers(0, 99), st.integers(0, 502)), max_size=30),
)


@settings(max_examples=30, deadline=None)
@given(st.lists(a_song, min_size=1, max_size=5))
def test_a_segment_gives_back_its_songs(songs):
    column = lambda pairs, i: np.array([p[i] for p in pairs], np.int64)
    made = {
        f's{i}': Song(column(h, 0), column(h, 1), column(sorted(p), 0), column(sorted(p), 1), 100)
        for i, (h, p) in enumerate(songs)
    }
    segment = build_segment(made)
    back = segment_songs(segment)
    assert [*back] == [*made]
    for track_id, a in made.items():
        b = back[track_id]
        assert a.n_frames == b.n_frames
        assert sorted(zip(a.codes, a.anchors)) == sorted(zip(b.codes, b.anchors))
        assert same((a.frames, a.bins), (b.frames, b.bins))
    every = np.unique(np.concatenate([s.codes for s in made.values()]))
    which, positions = segment.lookup(every)
    assert len(positions) == sum(len(s.codes) for s in made.values())
    assert set(which.tolist()) == set(range(len(every)))


@given(st.lists(st.integers(1, 600), min_size=1, max_size=12))
@settings(max_examples=30, deadline=None)
def test_the_song_of_every_frame(lengths):
    none = np.zeros(0, np.int64)
    segment = build_segment({str(i): Song(none, none, none, none, n) for i, n in enumerate(lengths)})
    assert (
        segment.track_at(np.arange(sum(lengths))).tolist()
        == np.repeat(np.arange(len(lengths)), lengths).tolist()
    )


def test_a_long_segment_has_room_for_its_frames():
    rng = rng_for(0, 'long')
    n = 2**27  # 1,190 hours in one song: more than 24 bits of frames
    codes = rng.integers(0, 2**CODE_BITS, 5_000)
    anchors = rng.integers(0, n, 5_000)
    segment = build_segment({'long': Song(codes, anchors, np.sort(anchors), np.zeros(5_000, np.int64), n)})
    back = segment_songs(segment)['long']
    assert sorted(zip(codes, anchors)) == sorted(zip(back.codes, back.anchors))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2_000), st.integers(0, 502)), max_size=60))
def test_packed_peaks_come_back(points):
    frames, bins = (np.array([p[i] for p in sorted(points)], np.int64) for i in (0, 1))
    assert same(unpack_peaks(pack_peaks(frames, bins)), (frames, bins))
    assert pack_peaks(frames, bins).dtype == np.uint16


def test_many_pieces_answer_like_one():
    one = Landmarks()
    many = Landmarks()
    for i in range(12):
        one.add(f's{i}', sound(i))
        many.add(f's{i}', sound(i))
        many.prepare()  # a segment each: more than eight are rewritten into one
    clip = sound(7)[2 * RATE : 5 * RATE]
    assert_same_answers(one.search(clip, 12), many.search(clip, 12))
    assert one.search(clip)[0].track_id == 's7'
    assert one.search(clip)[0].offset_s == pytest.approx(2, abs=0.05)


@pytest.mark.parametrize(
    'make', [Landmarks, DenseLandmarks, lambda: Landmarks(*FIRST)], ids=['compact', 'dense', 'first']
)
def test_saved_and_loaded_it_answers_the_same(make, tmp_path):
    recognizer = make()
    for i in range(6):
        recognizer.add(f's{i}', sound(i))
    recognizer.save(tmp_path)
    again = type(recognizer).load(tmp_path)
    assert (again.front, again.search_settings, again.accept_confidence) == (
        recognizer.front,
        recognizer.search_settings,
        recognizer.accept_confidence,
    )
    for i in range(6):
        clip = sound(i)[2 * RATE : 5 * RATE]
        assert again.search(clip, 6) == recognizer.search(clip, 6) == recognizer.search(clip, 6)
        assert again.search(clip)[0].track_id == f's{i}'


@pytest.mark.parametrize(
    'speed, cents', [(1.0, 0), (1.015, 0), (0.985, 0), (1.0, 17), (1.01, -12), (0.99, 20)]
)
def test_players_that_drift_are_followed(speed, cents):
    librosa = pytest.importorskip('librosa')
    recognizer = Landmarks()
    for i in range(12):
        recognizer.add(f's{i}', sound(i, 20))
    clip = sound(4, 20)[6 * RATE : 12 * RATE]
    heard = librosa.effects.pitch_shift(
        librosa.effects.time_stretch(clip, rate=speed), sr=RATE, n_steps=cents / 100
    )
    first, second = recognizer.search(heard[: 5 * RATE], 2)
    assert first.track_id == 's4' and first.score > 1.3 * second.score
    assert first.offset_s == pytest.approx(6, abs=0.25)


@pytest.mark.parametrize('broken', [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize('make', [Landmarks, DenseLandmarks], ids=['compact', 'dense'])
def test_a_broken_sample_does_not_silence_the_rest(make, broken):
    recognizer = make()
    for i in range(6):
        recognizer.add(f's{i}', sound(i))
    clip = sound(3)[2 * RATE : 6 * RATE].copy()
    clip[[100, 30_000]] = broken
    best = recognizer.search(clip)[0]
    assert best.track_id == 's3' and best.score > 8 and best.offset_s == pytest.approx(2, abs=0.1)
    assert recognizer.search(np.full(RATE, broken, np.float32)) == []


@pytest.mark.parametrize('cls', [Landmarks, DenseLandmarks])
@pytest.mark.parametrize('n_songs', [1, 3, 8])
def test_a_handful_of_songs_is_no_reason_to_believe(cls, n_songs):
    corpus = default_corpus()
    music = corpus.split('music', 'validation').index.tolist()
    recognizer = cls()
    length = 5 * RATE
    for track in music[:n_songs]:
        recognizer.add(track, corpus.load('music', track))
    rng = rng_for(n_songs, 'strangers')
    said = 0
    own = song_of(corpus.music)
    strangers = [t for t in music[n_songs:] if own[t] not in {own[s] for s in music[:n_songs]}][:40]
    for track in strangers:
        x = corpus.load('music', track)
        at = int(rng.integers(0, max(1, len(x) - length)))
        best = recognizer.search(x[at : at + length], 1)
        said += bool(best) and best[0].confidence >= recognizer.accept_confidence
    assert said <= max(2, 1 + len(strangers) // 20)
    known = corpus.load('music', music[0])[length : 2 * length]
    assert recognizer.search(known, 1)[0].confidence >= recognizer.accept_confidence


@pytest.mark.parametrize('cls', [Landmarks, DenseLandmarks])
@pytest.mark.parametrize('n_songs', [3, 12, 40])
def test_songs_of_the_same_few_notes_are_told_apart(cls, n_songs):
    def chords(seed, duration_s=20):
        rng = rng_for(seed, 'chords')
        t = np.arange(RATE // 4) / RATE
        notes_hz = 220 * 2 ** (rng.choice([0, 3, 5, 7, 10, 12, 15, 17], duration_s * 4) / 12)
        note = lambda f: sum(np.sin(2 * np.pi * f * k * t) / k for k in range(1, 6)) * np.exp(-6 * t)
        return (0.2 * np.concatenate([note(f) for f in notes_hz])).astype(np.float32)

    recognizer = cls()
    for i in range(n_songs):
        recognizer.add(str(i), chords(i))
    for i in range(3):
        best = recognizer.search(chords(i)[8 * RATE + 137 : 14 * RATE], 1)[0]
        assert best.track_id == str(i) and best.confidence >= recognizer.accept_confidence
        stranger = recognizer.search(chords(900 + i)[8 * RATE + 137 : 14 * RATE], 1)
        assert not stranger or stranger[0].confidence < recognizer.accept_confidence


def test_a_moment_in_common_is_not_a_song():
    recognizer = Landmarks()
    fill = sound(99, 1.2)
    for i in range(8):
        song = sound(i, 20)
        song[5 * RATE : 5 * RATE + len(fill)] = fill if i == 3 else song[5 * RATE : 5 * RATE + len(fill)]
        recognizer.add(f's{i}', song)
    clip = sound(50, 8)
    clip[3 * RATE : 3 * RATE + len(fill)] = fill  # a stranger that plays the same fill
    best = recognizer.search(clip)
    assert not best or best[0].confidence < recognizer.accept_confidence


def test_the_order_of_addition_does_not_matter():
    forth = Landmarks()
    back = Landmarks()
    for name in ('a', 'b', 'c', 'd'):
        forth.add(name, sound(0))
    for name in ('c', 'd', 'b', 'a'):  # the same sound under four names: all votes are equal
        back.add(name, sound(0))
        back.prepare()
    for k in (1, 2, 4):
        found, other = (made.search(sound(0)[RATE : 4 * RATE], k) for made in (forth, back))
        assert_same_answers(found, other)
        assert found == sorted(found, key=lambda m: (-m.score, m.track_id))
        assert other == sorted(other, key=lambda m: (-m.score, m.track_id))


def test_a_catalogue_of_one_song_does_not_know_every_clip():
    recognizer = Landmarks()
    recognizer.add('the only one', sound(0, 60))
    for seed in range(1, 20):
        best = recognizer.search(sound(seed, 10))
        assert not best or best[0].confidence < recognizer.accept_confidence
    assert recognizer.search(sound(0, 60)[20 * RATE : 30 * RATE])[0].confidence > 0.99


def test_a_second_copy_is_no_reason_for_doubt():
    recognizer = Landmarks()
    for i in range(8):
        recognizer.add(f's{i}', sound(i, 20))
    recognizer.add('copy of s3', sound(3, 20))
    first, second = recognizer.search(sound(3, 20)[5 * RATE : 10 * RATE])[:2]
    assert {first.track_id, second.track_id} == {
        's3',
        'copy of s3',
    } and first.confidence > recognizer.accept_confidence


def test_other_settings_are_not_called_calibrated():
    assert Landmarks().calibrated and DenseLandmarks().calibrated and not Landmarks(Front(pns=25)).calibrated


@pytest.mark.parametrize(
    'harm', ['cut', 'garbage', 'pickle', 'missing', 'version', 'front', 'json', 'empty', 'peaks', 'search']
)
def test_a_damaged_index_is_refused_in_one_line(tmp_path, harm):
    recognizer = Landmarks()
    recognizer.add('song', sound(0))
    recognizer.save(tmp_path)
    about = tmp_path / 'index.json'
    positions = tmp_path / 'postings.npy'
    told = json.loads(about.read_text())
    if harm == 'cut':
        positions.write_bytes(positions.read_bytes()[:-10])
    elif harm == 'garbage':
        positions.write_bytes(os.urandom(500))
    elif harm == 'pickle':
        np.save(positions, np.array([{}], dtype=object), allow_pickle=True)
    elif harm == 'missing':
        positions.unlink()
    elif harm == 'version':
        about.write_text(json.dumps(told | {'version': 99}))
    elif harm == 'front':
        about.write_text(json.dumps(told | {'front': told['front'] | {'pns': 20}}))
    elif harm == 'peaks':
        np.save(tmp_path / 'peaks.npy', np.full(5_000, 127, np.uint16))  # beyond the end of the song
    elif harm == 'search':
        about.write_text(json.dumps(told | {'search': {'unheard': 1}}))
    elif harm == 'json':
        about.write_text('{')
    elif harm == 'empty':
        positions.write_bytes(b'')
    with pytest.raises(ResonanceError) as error:
        Landmarks.load(tmp_path)
    assert '\n' not in str(error.value)


def test_songs_that_share_sound_are_told_from_those_that_do_not():
    one, other, third = (sound(seed, 20) for seed in (5, 6, 7))
    medley = np.concatenate([other[: 7 * RATE], one[3 * RATE : 10 * RATE], other[7 * RATE :]])
    assert (
        shares_sound(medley, one)
        and shares_sound(one, medley)
        and shares_sound(0.1 * one[: 5 * RATE], medley)
    )
    assert not shares_sound(one, third) and not shares_sound(third[: 2 * RATE], medley)
    assert not shares_sound(np.zeros(0, np.float32), one) and not shares_sound(
        one, np.zeros(RATE, np.float32)
    )


def test_merging_other_settings_is_refused():
    with pytest.raises(ResonanceError, match='cannot merge'):
        Landmarks().merge(Landmarks(Front(pns=20)))


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    "All music of the corpus but the unknown songs of its test split, indexed as a user would."
    corpus = default_corpus()
    plan = make_protocol(corpus, 'test')
    folder = tmp_path_factory.mktemp('whole')
    with Catalog(folder / 'catalogue', create=True) as songs:
        report = songs.index(
            [corpus.path('music', i) for i in plan.catalogue_ids], method='landmark', jobs=2, progress=False
        )
        assert not report.failed
        yield corpus, plan, songs


def test_every_song_is_found_where_it_is(whole):
    corpus, plan, songs = whole
    by_stem = {os.path.splitext(os.path.basename(s['path']))[0]: s['recording_id'] for s in songs.songs()}
    queries = make_queries(corpus, replace(plan, known_ids=plan.catalogue_ids), [None], [10], n_noise_only=0)
    queries = [q for q in queries if q.kind == 'known']
    right = errors = 0
    for query in queries:
        path = corpus.path('music', query.track_id)
        best = songs.identify(render(query, corpus)).matches[:1]
        if best and best[0].track_id == by_stem[path.stem]:
            right += 1
            errors += abs(best[0].offset_s - query.start_s) > 0.1
    assert len(queries) > 20
    assert right >= 0.99 * len(queries)
    assert errors <= 0.01 * len(queries), 'places more than 0.1 s off'


def test_unknown_songs_and_crowds_are_met_with_silence(whole):
    corpus, plan, songs = whole
    queries = [q for q in make_queries(corpus, plan, [None, 0], [5, 10], excerpts=2) if q.kind != 'known']
    wrong = sum(songs.identify(render(q, corpus)).decision == 'match' for q in queries)
    assert len(queries) > 40
    assert wrong <= 0.03 * len(queries)  # 1 % is asked and reported by the study; here, room for a small n


def test_an_index_merged_with_itself_stays_as_it_is():
    index = Landmarks()
    index.add('a', sound(1, 4))
    index.merge(index)
    assert len(index) == 1 and [m.track_id for m in index.search(sound(1, 4))] == ['a']


def test_what_came_last_is_compacted_too():
    index = Landmarks()
    index.add('a', sound(1, 4))
    index.prepare()
    index.add('b', sound(2, 4))
    index.songs.compact()
    assert len(index.songs.segments()) == 1 and len(index) == 2
