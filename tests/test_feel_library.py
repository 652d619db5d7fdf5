"""Vectors of whole songs in a catalogue, the radio that follows a song, and the map."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resonance_nb import audio, feel_library, feel_map, feel_radio
from resonance_nb.catalog import Catalog
from resonance_nb.core import ResonanceError, rng_for
from resonance_nb.feel_library import Library, done, index, model_key, read_library

RATE_HZ = 16_000


class Bands:
    "How loud 32 bands are: a stand-in for a trained model."

    name, digest = 'bands', 'one'

    def embed(self, samples, *, rate_hz=16_000):
        power = np.abs(np.fft.rfft(samples[: len(samples) // 64 * 64])) ** 2
        bands = np.log([1e-9 + part.mean() for part in np.array_split(power[: len(power) // 4], 32)])
        bands -= bands.mean()
        return (bands / np.linalg.norm(bands)).astype(np.float32)


def tone(seed, duration_s=3.0):
    "A chord and a little noise."
    rng = rng_for(seed, 'tone')
    t = np.arange(int(duration_s * RATE_HZ)) / RATE_HZ
    notes_hz = rng.uniform(100, 2_000, 4)
    return (0.1 * sum(np.sin(2 * np.pi * f * t) for f in notes_hz) + 0.01 * rng.normal(size=len(t))).astype(
        'f4'
    )


@pytest.fixture
def music(tmp_path):
    folder = tmp_path / 'music'
    folder.mkdir()
    for i in range(6):
        audio.save(folder / f'song {i}.flac', tone(i))
    return folder


@pytest.fixture
def catalog(tmp_path, music):
    with Catalog(tmp_path / 'songs', create=True) as songs:
        yield songs


def test_hears_only_what_is_new(catalog, music):
    assert index(catalog, music, model=Bands(), progress=False).added == 6
    audio.save(music / 'song 6.flac', tone(6))
    report = index(catalog, music, model=Bands(), progress=False)
    assert (report.added, report.unchanged, report.failed) == (1, 6, [])
    assert len(read_library(catalog, Bands())) == 7


def test_a_vector_spans_its_song(catalog, music):
    index(catalog, music, model=Bands(), progress=False)
    ids, starts_s, ends_s, vectors = catalog.embeddings(model_key(Bands()))
    assert not starts_s.any() and ends_s == pytest.approx(np.full(6, 3.0), abs=0.01)
    assert vectors.shape == (6, 32) and len(set(ids)) == 6


def test_two_models_never_mix(catalog, music):
    other = Bands()
    other.digest = 'two'
    index(catalog, music, model=Bands(), progress=False)
    with pytest.raises(ResonanceError, match='feel index'):
        read_library(catalog, other)
    assert index(catalog, model=other, progress=False).added == 6
    assert len(done(catalog.store, model_key(Bands()))) == len(done(catalog.store, model_key(other))) == 6


def test_vectors_of_other_models_are_counted_and_forgotten_on_demand(catalog, music):
    other = Bands()
    other.digest = 'two'
    index(catalog, music, model=Bands(), progress=False)
    index(catalog, music, model=other, progress=False)
    catalog.add_embeddings(
        catalog.songs()[0]['recording_id'], np.zeros(1), np.ones(1), np.ones((1, 4), 'f4'), 'not of feel'
    )
    assert feel_library.other_vectors(catalog.store, model_key(other)) == {model_key(Bands()): 6}
    assert feel_library.forget_others(catalog, other) == {model_key(Bands()): 6}
    assert feel_library.other_vectors(catalog.store, model_key(other)) == {}
    assert len(read_library(catalog, other)) == 6 and len(catalog.embeddings('not of feel')[0]) == 1
    assert feel_library.forget_others(catalog, other) == {}


def test_the_command_says_that_another_model_was_here(catalog, music, monkeypatch):
    from click.testing import CliRunner

    from resonance_nb.cli_feel import feel

    models = {name: Bands() for name in ('one', 'two')}
    for name, model in models.items():
        model.digest = name
    monkeypatch.setattr(feel_library, 'load_model', lambda path: models[str(path)])

    def said(*words):
        run = CliRunner().invoke(feel, ['index', '--catalog', str(catalog.folder), *map(str, words)])
        assert run.exit_code == 0, run.output
        return run.stdout

    assert 'model' not in said(music, '--model', 'one')
    assert '; 6 vectors of another model kept (--forget-others drops them)' in said('--model', 'two')
    line = json.loads(said('--model', 'one', '--json'))
    assert line['other_models'] == {'feel/bands-two': 6} and line['forgotten'] == 0
    assert '; 6 vectors of other models forgotten' in said('--model', 'two', '--forget-others')
    assert 'model' not in said('--model', 'two')


def test_files_that_are_no_use_cost_one_line(catalog, music):
    (music / 'broken.mp3').write_bytes(b'ID3' + bytes(500))
    audio.save(music / 'silence.wav', np.zeros(3 * RATE_HZ, np.float32))
    audio.save(music / 'click.wav', tone(9, 0.3))
    report = index(catalog, music, model=Bands(), progress=False)
    assert report.added == 6 and len(report.failed) == 3
    assert all('\n' not in line for line in report.lines())
    assert len(catalog) == 6


def test_a_model_that_fails_on_one_song_does_not_end_the_run(catalog, music):
    class Picky(Bands):
        heard = 0

        def embed(self, samples, *, rate_hz=16_000):
            self.heard += 1
            if self.heard == 3:
                raise ValueError('no such feeling')
            vector = super().embed(samples)
            return vector * np.nan if self.heard == 4 else vector

    report = index(catalog, music, model=Picky(), jobs=1, progress=False)
    assert report.added == 4 and len(report.failed) == 2
    assert 'no such feeling' in dict(report.failed).values()
    assert index(catalog, music, model=Bands(), progress=False).added + report.added >= 6


def test_copies_moves_and_changes(catalog, music):
    (music / 'copy.flac').write_bytes((music / 'song 0.flac').read_bytes())
    report = index(catalog, music, model=Bands(), progress=False)
    assert (report.added, report.unchanged) == (6, 1) and len(catalog) == 6
    os.rename(music / 'song 1.flac', music / 'renamed.flac')
    audio.save(music / 'song 2.flac', tone(22))
    report = index(catalog, music, model=Bands(), progress=False)
    assert (report.added, report.moved) == (1, 1)
    library = read_library(catalog, Bands())
    assert {Path(song['path']).name for song in library.songs} >= {'renamed.flac', 'song 2.flac'}
    assert len(library) == 6


def test_songs_that_another_index_knows_are_heard_without_a_folder(catalog, music):
    catalog.index(music, method='landmark', progress=False)
    assert index(catalog, model=Bands(), progress=False).added == 6
    assert catalog.check() == []
    (music / 'song 0.flac').unlink()
    report = index(catalog, model=Bands(), progress=False)
    assert (report.unchanged, report.missing) == (5, 1)


def test_a_catalogue_of_vectors_alone_is_in_order(catalog, music):
    index(catalog, music, model=Bands(), progress=False)
    assert catalog.check() == []
    catalog.index(music / 'song 0.flac', method='landmark', progress=False)
    assert len(catalog.check()) == 5


def test_a_removed_song_takes_its_vector_along(catalog, music):
    index(catalog, music, model=Bands(), progress=False)
    catalog.remove(catalog.songs()[0]['recording_id'])
    assert len(read_library(catalog, Bands())) == 5
    assert len(catalog.embeddings(model_key(Bands()))[0]) == 5


def test_a_vector_that_was_cut_is_made_again(catalog, music):
    index(catalog, music, model=Bands(), progress=False)
    with catalog.store.transaction() as db:
        db.execute('UPDATE track_embeddings SET embedding = substr(embedding, 1, 9) WHERE id = 1')
    assert index(catalog, music, model=Bands(), progress=False).added == 1
    assert len(read_library(catalog, Bands())) == 6


def test_killed_at_any_moment(tmp_path, music):
    "What is committed stays, the database is whole, and the next run does the rest."
    script = f'''
import sys, time
sys.path.insert(0, {os.fspath(Path(__file__).parent)!r})
from test_feel_library import Bands
from resonance_nb.catalog import Catalog
from resonance_nb.feel_library import index

class Slow(Bands):
    def embed(self, samples, *, rate_hz=16_000):
        time.sleep(0.2)
        return super().embed(samples)

index(Catalog(sys.argv[1], create=True), sys.argv[2], model=Slow(), jobs=1, progress=False)
'''
    place = tmp_path / 'killed'
    kept = 0
    for wanted in (1, 3):
        child = subprocess.Popen([sys.executable, '-c', script, place, music])
        while child.poll() is None:
            time.sleep(0.05)
            if (place / 'catalogue.sqlite').exists():
                with Catalog(place, create=True) as songs:
                    if len(done(songs.store, model_key(Bands()))) >= wanted:
                        os.kill(child.pid, signal.SIGKILL)
                        break
        child.wait()
        with Catalog(place) as songs:
            assert songs.store.rows('PRAGMA integrity_check')[0][0] == 'ok'
            now = len(done(songs.store, model_key(Bands())))
            assert now >= max(wanted, kept)
            kept = now
    with Catalog(place) as songs:
        report = index(songs, music, model=Bands(), progress=False)
        assert report.added == 6 - kept and len(read_library(songs, Bands())) == 6


def test_long_recordings_are_streamed(music):
    class Streaming(Bands):
        pushed = 0

        def stream(self):
            return self

        def push(self, samples):
            self.pushed += len(samples)

        def finish(self):
            return np.full(32, 32**-0.5, np.float32)

    model = Streaming()
    heard = feel_library.hear(music / 'song 0.flac', model, long_s=1.0)
    assert model.pushed == pytest.approx(3 * feel_library.HEARD_HZ, abs=2) and heard.vector.shape == (32,)
    model.pushed = 0
    feel_library.hear(music / 'song 0.flac', model)
    assert model.pushed == 0


def test_the_shipped_model_hears_files_as_it_hears_samples(music):
    from resonance_nb import front

    pytest.importorskip('onnxruntime')
    pytest.importorskip('safetensors')
    path = music / 'song 0.flac'
    felt = front.feel(path)
    assert felt.shape == (32,) and np.linalg.norm(felt) == pytest.approx(1, abs=1e-4)
    assert front.feel(audio.load(path, sample_rate_hz=22_050), 22_050) @ felt > 0.9999
    assert front.feel(audio.load(path)) @ felt > 0.99
    streamed = feel_library.hear(path, feel_library.load_model(), long_s=1.0).vector
    assert streamed @ felt > 0.9999


def test_another_model_is_named(tmp_path, monkeypatch):
    pytest.importorskip('onnxruntime')
    (tmp_path / 'bad.onnx').write_bytes(b'no model')
    monkeypatch.setenv('RESONANCE_FEEL_MODEL', str(tmp_path / 'bad.onnx'))
    with pytest.raises(ResonanceError, match='is not a readable network'):
        feel_library.load_model()


def test_a_model_that_was_replaced_is_not_answered_with(tmp_path):
    "The digest and the weights are of the same bytes."
    pytest.importorskip('onnxruntime')
    from resonance_nb import feel_model

    sound = tone(3, 6.0)
    both = {name: feel_model.FeelModel(feel_model.MODELS / name) for name in ('feel.onnx', 'feel-int8.onnx')}
    path = tmp_path / 'own.onnx'
    for name, model in both.items():
        path.write_bytes(model.path.read_bytes())
        again = feel_model.FeelModel(path)
        assert again.digest == model.digest
        np.testing.assert_array_equal(again.embed(sound), model.embed(sound))


def test_weights_beside_a_model_must_be_its_own(tmp_path):
    pytest.importorskip('onnxruntime')
    st_numpy = pytest.importorskip('safetensors.numpy')
    from resonance_nb import feel_model

    path, beside = tmp_path / 'own.onnx', tmp_path / 'own.safetensors'
    path.write_bytes((feel_model.MODELS / 'feel.onnx').read_bytes())
    weights = feel_model.load_weights()
    for other in (
        weights | {'out.bias': weights['out.bias'] + 0.1},
        weights | {'conv1.bias': weights['conv1.bias'][:-1]},
        {name: x for name, x in weights.items() if name != 'gru.hidden.bias'},
    ):
        st_numpy.save_file(other, beside)
        with pytest.raises(ResonanceError, match=r'^\S*own.safetensors holds other weights than own.onnx: '):
            feel_model.FeelModel(path).stream()
    beside.write_bytes(b'half a fi')
    with pytest.raises(ResonanceError, match='holds no weights'):
        feel_model.FeelModel(path).embed(np.zeros(601 * 22_050, 'f4'), rate_hz=22_050)
    st_numpy.save_file(weights, beside)
    assert feel_model.FeelModel(path).stream() is not None


def test_no_songs_have_no_vectors():
    "The program behind the model would end the process."
    pytest.importorskip('onnxruntime')
    model = feel_library.load_model()
    assert model(np.zeros((0, 22_050), 'f4')).shape == (0, 32) and model(np.zeros((2, 0), 'f4')).shape == (
        2,
        32,
    )


@pytest.mark.parametrize('rate_hz', [float('nan'), float('inf'), 0, -1, 1e300])
def test_rates_that_are_none(rate_hz):
    from resonance_nb.feel_model import at_rate

    with pytest.raises(ResonanceError, match='samples a second, not'):
        at_rate(np.ones(100), rate_hz)
    with pytest.raises(ResonanceError, match='real numbers'):
        at_rate(np.ones(100) * 1j, 16_000)


def test_a_folder_of_public_answers_is_no_model(tmp_path, monkeypatch):
    "The studies of people's answers name theirs in `RESONANCE_FEEL`; what plays radios does not stumble over it."
    pytest.importorskip('onnxruntime')
    monkeypatch.setenv('RESONANCE_FEEL', str(tmp_path))
    assert feel_library.load_model().name == 'feel'


# ---- the radio


def made_up(n=200, d=32, seed=0, artists=20):
    "A library that nobody recorded."
    rng = rng_for(seed, 'library')
    vectors = rng.normal(size=(n, d)) + 0.5
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    songs = [
        {
            'recording_id': f'{i:016x}',
            'title': f'Song {i}',
            'artist': f'Artist {i % artists}',
            'genre': 'folk' if i % 2 else 'jazz',
            'path': f'/music/{i}.flac',
            'duration_s': 100.0 + i,
        }
        for i in range(n)
    ]
    return Library(songs, vectors.astype(np.float32), 'feel/none')


def seed_of(library, i):
    return feel_radio.Seed(library.vectors[i], library.songs[i])


@given(st.integers(0, 199), st.integers(1, 40), st.integers(1, 4), st.integers(1, 3))
def test_limits_hold(i, n, per_artist, in_a_row):
    library = made_up(artists=60)
    answer = feel_radio.radio(library, seed_of(library, i), n=n, per_artist=per_artist, in_a_row=in_a_row)
    artists = [pick.song['artist'] for pick in answer.picks]
    assert len(artists) == n and library.songs[i] not in [pick.song for pick in answer.picks]
    assert max(map(artists.count, artists)) <= per_artist
    played = [library.songs[i]['artist'], *artists]
    assert all(len(set(played[j : j + in_a_row + 1])) > 1 for j in range(len(played) - in_a_row))


def test_same_list_every_time():
    library = made_up()
    names = [
        [p.song['title'] for p in feel_radio.radio(library, seed_of(library, 5)).picks] for _ in range(2)
    ]
    assert names[0] == names[1] and len(set(names[0])) == 20


def test_the_library_is_its_own_measure():
    "Nineteen of twenty songs of a library are answered; what is opposite to all of it is not."
    library = made_up()
    scales = feel_radio.fit_scales(library.vectors)
    like = [feel_radio.radio(library, seed_of(library, i), n=1, scales=scales).is_like for i in range(200)]
    assert 0.94 <= np.mean(like) <= 0.96
    opposite = -library.vectors.mean(0)
    seed = feel_radio.Seed(opposite / np.linalg.norm(opposite), {'path': 'x', 'recording_id': None})
    assert not feel_radio.radio(library, seed, scales=scales).is_like


@pytest.mark.parametrize('n', [1, 2, 3])
def test_tiny_libraries(n, tmp_path):
    library = made_up(n)
    answer = feel_radio.radio(library, seed_of(library, 0))
    assert len(answer.picks) == n - 1 and (answer.nearest is None) == (n == 1)
    data = feel_map.write_map(library, tmp_path / 'map.html')
    assert len(data['songs']) == n and len(data['clusters']) == 1


def test_equal_vectors_are_no_trouble(tmp_path):
    library = made_up(12)
    same = Library(library.songs, np.tile(library.vectors[:1], (12, 1)), 'feel/none')
    answer = feel_radio.radio(same, seed_of(same, 0), n=5)  # twelve copies of one recording
    assert answer.picks == [] and answer.nearest is None and not answer.is_like
    data = feel_map.map_data(same, tmp_path, kind='pca')
    assert all(np.isfinite([song['x'], song['y']]).all() for song in data['songs'])


def test_the_same_song_is_played_once():
    library = made_up(30)
    library.songs[3] |= {'title': 'Jóga', 'artist': 'Björk'}
    library.songs[4] |= {'title': 'joga', 'artist': 'BJORK'}
    titles = [p.song['title'] for p in feel_radio.radio(library, seed_of(library, 0), n=29).picks]
    assert ('Jóga' in titles) != ('joga' in titles)
    assert 'joga' not in [p.song['title'] for p in feel_radio.radio(library, seed_of(library, 3), n=29).picks]


def in_two_formats(library, away=0.15):
    "Each song of a library twice, the second a little elsewhere, as MP3 is from Ogg."
    other = rng_for(9, 'formats').normal(size=library.vectors.shape)
    moved = library.vectors + away * other / np.linalg.norm(other, axis=1, keepdims=True)
    moved /= np.linalg.norm(moved, axis=1, keepdims=True)
    songs = [s | {'recording_id': s['recording_id'] + '2', 'path': s['path'] + '.ogg'} for s in library.songs]
    return Library(
        [*library.songs, *songs], np.concatenate([library.vectors, moved]).astype('f4'), 'feel/none'
    )


def test_copies_in_another_format_are_no_measure():
    once = made_up()
    twice = in_two_formats(once)
    alike = []
    for library in (once, twice):
        scales = feel_radio.fit_scales(library.vectors, library.songs)
        answers = [feel_radio.radio(library, seed_of(library, i), scales=scales) for i in range(0, 200, 10)]
        alike.append(np.mean([answer.is_like for answer in answers]))
    assert min(alike) > 0.8
    for i, answer in zip(range(0, 200, 10), answers):
        titles = [pick.song['title'] for pick in answer.picks]
        assert len(set(titles)) == len(titles) == 20 and twice.songs[i]['title'] not in titles
        assert answer.nearest.song['title'] != twice.songs[i]['title']


def test_a_copy_makes_no_lone_song_like():
    library = made_up(1)
    two = in_two_formats(library)
    answer = feel_radio.radio(two, seed_of(two, 0))
    assert (answer.picks, answer.nearest, answer.is_like, answer.reach) == ([], None, False, 0)
    elsewhere = feel_radio.Seed(library.vectors[0], library.songs[0] | {'recording_id': None})
    assert not feel_radio.radio(library, elsewhere).is_like


def test_copies_without_tags_are_played_once():
    library = made_up(30)
    twice = in_two_formats(library, away=0.03)
    for song in twice.songs:
        song |= {'title': None, 'artist': None}
    answer = feel_radio.radio(twice, seed_of(twice, 0), n=60)
    assert len({song['path'].split('.')[0] for song in (pick.song for pick in answer.picks)}) == 29
    assert len(answer.picks) == 29 and answer.reach > 0.1


NAMES = [
    'plain.mp3',
    '#1.mp3',
    ' edge .mp3',
    'line\nbreak.mp3',
    'ünï – 曲.mp3',
    'http:⁄⁄x.mp3',
    'a\\b.mp3',
    '-x.mp3',
]


@pytest.mark.parametrize('absolute', [False, True])
def test_a_list_leads_to_its_files(tmp_path, absolute):
    "Read as players do: comments left out, blanks cut off, URLs opened."
    from urllib.parse import unquote, urlparse

    names = [*NAMES, os.fsdecode(b'latin \xe9.mp3')]
    for name in names:
        (tmp_path / name).write_bytes(os.fsencode(name))
    songs = [
        {'path': str(tmp_path / n), 'title': 'A\nB, "C"', 'artist': None, 'duration_s': 61.4} for n in names
    ]
    (tmp_path / 'lists').mkdir()
    for out in (tmp_path / 'here.m3u8', tmp_path / 'lists' / 'there.m3u'):
        feel_radio.write_m3u([feel_radio.Pick(s, 0.1, 0.9) for s in songs], out, absolute=absolute)
        lines = out.read_text(encoding='utf-8').split('\n')
        assert lines[0] == '#EXTM3U' and lines[1] == '#EXTINF:61,A B, "C"' and lines[-1] == ''
        found = [line.strip() for line in lines if line and not line.startswith('#')]
        opened = []
        for line in found:
            path = unquote(urlparse(line).path, errors='surrogateescape') if '://' in line else line
            opened.append((out.parent / path).read_bytes())
        assert opened == [os.fsencode(name) for name in names]
        if absolute:
            assert all(line.startswith(('/', 'file://')) for line in found)


# ---- the map


def test_clusters_are_found_and_named():
    rng = rng_for(0, 'clusters')
    centres = np.eye(4, 32)
    vectors = np.repeat(centres, 15, axis=0) + 0.05 * rng.normal(size=(60, 32))
    labels = feel_map.clusters(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    groups = [labels[i * 15 : (i + 1) * 15] for i in range(4)]
    assert all(len(set(group.tolist())) == 1 for group in groups) and len(set(labels.tolist())) == 4
    genres = ['folk', 'jazz', 'techno', 'folk']
    songs = [{'genre': genres[i // 15], 'artist': f'Artist {i // 5}'} for i in range(60)]
    names = feel_map.name_clusters(songs, labels.tolist())
    assert len(set(names)) == 4 and {'jazz', 'techno'} <= set(names)


def test_silhouette_is_scikit_learns():
    metrics = pytest.importorskip('sklearn.metrics')
    rng = rng_for(1, 'silhouette')
    vectors, labels = rng.normal(size=(80, 5)), rng.integers(0, 4, 80)
    labels[0] = 9  # alone
    assert feel_map.silhouette(vectors, labels) == pytest.approx(
        metrics.silhouette_score(vectors, labels), abs=1e-6
    )


def test_a_page_that_needs_no_network_and_trusts_no_tag(tmp_path):
    library = made_up(40)
    evil = '</script><script>alert(1)</script>'
    library.songs[0] |= {'title': evil, 'artist': '<img src=x onerror=alert(1)>', 'genre': evil}
    library.songs[1] |= {'path': '/music/50% #1?.mp3', 'title': None}
    feel_map.write_map(library, tmp_path / 'map.html')
    page = (tmp_path / 'map.html').read_text(encoding='utf-8')
    assert page.count('<script') == page.count('</script>') == 2 and '<img' not in page
    assert not re.search(r'(src|href)\s*=\s*["\']?(https?:)?//|@import|url\(', page)
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.S)[1])
    assert data['songs'][0]['title'] == evil
    assert data['songs'][1]['url'].endswith('/music/50%25%20%231%3F.mp3')
    assert data['songs'][1]['title'] == '50% #1?.mp3'
    absolute = feel_map.map_data(library, tmp_path, absolute=True)['songs'][1]['url']
    assert absolute == 'file:///music/50%25%20%231%3F.mp3'


def test_names_on_the_map_can_be_read(tmp_path):
    "They are written in ink, whose contrast is enough in both themes; and a strange file name ends nothing."
    feel_map.write_map(made_up(20), tmp_path / 'map.html')
    page = (tmp_path / 'map.html').read_text(encoding='utf-8')

    def luminance(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
        return np.dot(linear, [0.2126, 0.7152, 0.0722])

    themes = [
        dict(re.findall(r'--(bg|ink|soft|panel): (#\w+)', line))
        for line in page.splitlines()
        if '--bg: ' in line
    ]
    assert len(themes) == 3
    for theme in themes:
        for text, ground in (('ink', 'bg'), ('soft', 'bg'), ('soft', 'panel')):
            colours = [(theme[x] if len(theme[x]) == 7 else '#ffffff') for x in (text, ground)]
            dark, light = sorted(map(luminance, colours))
            assert (light + 0.05) / (dark + 0.05) >= 4.5
    assert page.count('pen.fillText') == 1 and 'pen.fillStyle = ink; pen.fillText' in page
    assert page.count('decodeURI') == page.count('try { return decodeURI(url); } catch') == 1


def test_without_scikit_learn_the_map_is_a_projection(monkeypatch, tmp_path):
    monkeypatch.setattr(feel_map.importlib.util, 'find_spec', lambda name: None)
    said = []
    places, kind = feel_map.layout(made_up(20).vectors, report=said.append)
    assert kind == 'pca' and len(said) == 1 and 'resonance_nb[map]' in said[0]
    with pytest.raises(ResonanceError, match='umap-learn'):
        monkeypatch.setitem(sys.modules, 'umap', None)
        feel_map.layout(made_up(20).vectors, 'umap')


# ---- the command


def command(*words, env=None):
    done = subprocess.run(
        [sys.executable, '-c', 'from resonance_nb.cli import main; main()', *map(str, words)],
        capture_output=True,
        text=True,
        env={**os.environ, **(env or {})},
    )
    return done.returncode, done.stdout, done.stderr


def test_the_command_complains_in_one_line(tmp_path):
    for words in (
        ['feel', 'embed', 'no.mp3', '--model', 'no.onnx'],
        ['feel', 'radio', 'x'],
        ['feel', 'map', '--catalog', tmp_path],
        ['feel', 'sing'],
    ):
        status, out, said = command(*words)
        assert status == 2 and out == '' and said.startswith('resonance') and said.count('\n') == 1, said


@pytest.fixture
def typed(catalog, music, monkeypatch):
    "A catalogue that was heard, and a function that types commands: status, standard output, standard error."
    from resonance_nb.cli import main

    monkeypatch.setattr(feel_library, 'load_model', lambda path=None: Bands())

    def types(*words, capture):
        with pytest.raises(SystemExit) as end:
            main(['feel', *map(str, words)])
        out, said = capture.readouterr()
        return end.value.code, out, said

    index(catalog, music, model=Bands(), progress=False)
    return types


def test_songs_whose_files_are_gone_are_left_out(catalog, music, typed, tmp_path, capfd):
    first = read_library(catalog, Bands()).songs[0]
    for song in read_library(catalog, Bands()).songs[:2]:
        os.unlink(song['path'])
    words = ('--catalog', catalog.folder)
    m3u = tmp_path / 'x.m3u8'
    status, out, said = typed('radio', first['path'], *words, '--anyway', '--m3u', m3u, capture=capfd)
    assert (status, len(out.splitlines())) == (0, 4) and '2 songs left out' in said
    assert 'resonance remove --missing' in said and m3u.read_text().count('#EXTINF') == 4
    _, out, said = typed('map', *words, '--out', tmp_path / 'm.html', '--json', capture=capfd)
    assert json.loads(out)['songs'] == 4 and '2 songs left out' in said
    _, out, _ = typed('index', music, *words, capture=capfd)
    assert '2 songs without a file (`resonance remove --missing --catalog' in out
    for file in music.iterdir():
        file.unlink()
    status, out, said = typed('map', *words, '--out', tmp_path / 'm.html', capture=capfd)
    assert status == 2 and 'the files of all songs are gone' in said


def test_a_list_on_standard_output(catalog, typed, capfd):
    name = read_library(catalog, Bands()).songs[0]['recording_id']
    status, out, said = typed(
        'radio', name, '--catalog', catalog.folder, '--m3u', '-', '--anyway', capture=capfd
    )
    lines = out.splitlines()
    assert status == 0 and lines[0] == '#EXTM3U' and len(lines) == 11
    assert all(os.path.isfile(line) for line in lines if not line.startswith('#'))
    status, out, said = typed(
        'radio', name, '--catalog', catalog.folder, '--m3u', '-', '--json', capture=capfd
    )
    assert status == 2 and 'standard output' in said


@pytest.mark.parametrize('place', ['.', '/', '..'])
def test_a_folder_is_no_file_to_write(catalog, typed, place, capfd):
    name = read_library(catalog, Bands()).songs[0]['recording_id']
    words = ('--catalog', catalog.folder)
    for line in (('map', '--out', place), ('radio', name, '--anyway', '--m3u', place)):
        status, out, said = typed(*line, *words, capture=capfd)
        assert (status, said) == (2, f'resonance: cannot write {place}: it is a folder: name a file\n')


def test_what_is_passed_over_is_said(catalog, music, typed, capfd):
    for name in ('a.jpg', 'b.jpg', 'c.txt'):
        (music / name).write_bytes(b'')
    _, _, said = typed('index', music, '--catalog', catalog.folder, capture=capfd)
    assert 'passed over: 2 .jpg, 1 .txt' in said
    _, out, _ = typed('index', music, '--catalog', catalog.folder, '--json', capture=capfd)
    assert json.loads(out)['passed_over'] == {'.jpg': 2, '.txt': 1}


def test_sound_through_pipes(music, typed, capfd, tmp_path):
    import threading

    path = music / 'song 0.flac'
    line = json.loads(typed('embed', path, '--json', capture=capfd)[1])
    fifo = tmp_path / 'pipe'
    os.mkfifo(fifo)
    writer = threading.Thread(target=lambda: fifo.write_bytes(path.read_bytes()))
    writer.start()
    piped = json.loads(typed('embed', fifo, '--json', capture=capfd)[1])
    writer.join()
    assert piped['embedding'] == line['embedding'] and piped['path'] == str(fifo)
    with open(path, 'rb') as sound:
        done = subprocess.run(
            [
                sys.executable,
                '-c',
                'from resonance_nb.cli import main; main()',
                'feel',
                'embed',
                '-',
                '--json',
            ],
            stdin=sound,
            capture_output=True,
            text=True,
        )
    assert json.loads(done.stdout)['path'] == '-' and len(json.loads(done.stdout)['embedding']) == 32
    done = subprocess.run(
        [sys.executable, '-c', 'from resonance_nb.cli import main; main()', 'feel', 'embed', '-'],
        input='no sound',
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and done.stderr.startswith('resonance: standard input: ')
    assert done.stderr.count('\n') == 1 and '/tmp' not in done.stderr


def test_hints_name_the_model_and_the_command(catalog, typed, capfd, tmp_path):
    class Own(Bands):
        path = tmp_path / 'my own.onnx'

    Own.digest = 'other'
    with pytest.raises(ResonanceError, match=r"`resonance feel index --model '\S*my own.onnx' --catalog "):
        read_library(catalog, Own())
    for words in (('radio', 'x'), ('map', '--out', tmp_path / 'm.html'), ('index',)):
        status, _, said = typed(*words, '--catalog', tmp_path / 'none', capture=capfd)
        assert status == 2 and '`resonance feel index FOLDER --catalog' in said


def test_what_cannot_be_heard_is_not_decoded_again(catalog, music, monkeypatch):
    (music / 'broken.mp3').write_bytes(b'ID3' + bytes(500))
    audio.save(music / 'silence.wav', np.zeros(3 * RATE_HZ, np.float32))
    report = index(catalog, music, model=Bands(), progress=False)
    assert (report.added, len(report.failed)) == (6, 2)
    heard, real = [], feel_library.hear

    def counting(path, *args, **options):
        heard.append(Path(path).name)
        return real(path, *args, **options)

    monkeypatch.setattr(feel_library, 'hear', counting)
    again = index(catalog, music, model=Bands(), progress=False)
    assert heard == [] and sorted(again.failed) == sorted(report.failed)
    assert len(index(catalog, music, model=Bands(), again=True, progress=False).failed) == 2
    assert sorted(heard) == ['broken.mp3', 'silence.wav']
    audio.save(music / 'silence.wav', tone(30))
    (music / 'broken.mp3').unlink()
    last = index(catalog, music, model=Bands(), progress=False)
    assert (last.added, last.failed) == (1, []) and catalog.check() == []


def test_a_large_map_says_that_it_takes_a_while(tmp_path, monkeypatch):
    monkeypatch.setattr(feel_map, 'MANY', 30)
    said = []
    feel_map.map_data(made_up(40), tmp_path, kind='pca', report=said.append)
    assert said == ['40 songs are being arranged; that takes a while']


def test_a_run_that_hears_nothing_says_why(catalog, music, tmp_path):
    from click.testing import CliRunner

    from resonance_nb.cli_feel import feel

    index(catalog, music, model=Bands(), progress=False)
    (tmp_path / 'nobody').mkdir()
    audio.save(tmp_path / 'silence.wav', np.zeros(RATE_HZ * 2, np.float32))

    def complaint(*words):
        run = CliRunner().invoke(feel, ['index', *map(str, words), '--catalog', str(catalog.folder)])
        assert run.stdout == '' and isinstance(run.exception, ResonanceError), run.output
        return str(run.exception)

    assert complaint(tmp_path / 'nobody').startswith('nothing was heard: no audio files were found in ')
    assert complaint(tmp_path / 'silence.wav') == 'nothing was heard: no file could be read'
    for file in music.iterdir():
        file.unlink()
    assert complaint() == 'nothing was heard: the files of all songs are gone'


@pytest.mark.parametrize('words', ['', '  '])
def test_a_radio_of_no_song_is_refused(catalog, music, words):
    index(catalog, music, model=Bands(), progress=False)
    with pytest.raises(ResonanceError, match='^name a song'):
        feel_radio.find_seed(read_library(catalog, Bands()), catalog, words, Bands())


def test_help_imports_nothing_heavy():
    code = (
        'import sys; from click.testing import CliRunner; from resonance_nb.cli import cli; '
        "r = CliRunner().invoke(cli, ['feel', 'radio', '--help']); assert 'M3U' in r.output.upper(), r.output; "
        "print(sorted({'numpy', 'scipy', 'torch', 'sklearn', 'onnxruntime'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == '[]'
