"""A recording is its sound: files that get other names and other tags are the songs they were."""

import json
import os
import shutil
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
import toy  # noqa: E402
from hostile import make_hostile, png, wav_header, write_av  # noqa: E402
from resonance_nb import identity, indexing, store, workers  # noqa: E402
from resonance_nb import core, decode, sandbox  # noqa: E402
from resonance_nb.catalog import Catalog  # noqa: E402
from resonance_nb.files import AudioError  # noqa: E402
from resonance_nb.songlist import list_songs, list_unreadable, prune, remove  # noqa: E402

mutagen = pytest.importorskip('mutagen')
import mutagen.apev2  # noqa: E402, F811
import mutagen.flac  # noqa: E402
import mutagen.id3  # noqa: E402

SUFFIXES = ('.mp3', '.flac', '.ogg', '.opus', '.m4a', '.wav')
TITLE = {'.mp3': 'TIT2', '.wav': 'TIT2', '.aiff': 'TIT2', '.m4a': '\xa9nam'}
ARTIST = {'.mp3': 'TPE1', '.wav': 'TPE1', '.aiff': 'TPE1', '.m4a': '\xa9ART'}
ALBUM = {'.mp3': 'TALB', '.wav': 'TALB', '.aiff': 'TALB', '.m4a': '\xa9alb'}


@pytest.fixture(autouse=True)
def methods(monkeypatch):
    monkeypatch.setitem(core.METHODS, 'toy', 'toy:Toy')
    monkeypatch.setitem(core.METHODS, 'stream-toy', 'toy:StreamToy')


def write(path, samples, rate=16_000):
    "A file of any of these kinds: samples of shape (n,)."
    wide = np.stack([samples, samples], 1).astype(np.float32)
    if path.suffix == '.m4a':
        write_av(path, wide, rate)
    elif path.suffix == '.mka':
        write_av(path, wide, rate, container='matroska')
    elif path.suffix == '.opus':
        sf.write(path, samples, rate, format='OGG', subtype='OPUS')
    else:
        sf.write(path, samples, rate)
    return path


def tag(path, title=None, artist=None, album=None, picture=0):
    "Write tags, and a picture of so many bytes where there can be one."
    f = mutagen.File(path)
    kind = path.suffix
    if f.tags is None:
        f.add_tags()
    for value, names, plain in ((title, TITLE, 'title'), (artist, ARTIST, 'artist'), (album, ALBUM, 'album')):
        name = names.get(kind, plain)
        if value is not None:
            is_id3 = isinstance(f.tags, mutagen.id3.ID3)
            f.tags[name] = getattr(mutagen.id3, name)(encoding=3, text=[value]) if is_id3 else [value]
    data = png() + bytes(picture)
    if picture and isinstance(f.tags, mutagen.id3.ID3):
        f.tags.add(mutagen.id3.APIC(encoding=3, mime='image/png', type=3, desc='front', data=data))
    elif picture and kind == '.flac':
        p = mutagen.flac.Picture()
        p.type = 3
        p.mime = 'image/png'
        p.data = data
        f.add_picture(p)
    f.save()
    return path


def remuxed(path, to, options=None, **tags):
    "The same packets in another file, as `ffmpeg -c copy` writes them."
    import av

    with av.open(str(path)) as source, av.open(str(to), 'w', options=options or {}) as out:
        sound = source.streams.audio[0]
        stream = out.add_stream_from_template(sound)
        out.metadata.update(tags)
        for packet in source.demux(sound):
            if packet.dts is not None:
                packet.stream = stream
                out.mux(packet)
    return to


def songs_in(folder, suffix, n=8, seconds=4):
    folder.mkdir(parents=True, exist_ok=True)
    return [
        tag(write(folder / f'song {i}{suffix}', toy.melody(i, seconds)), title=f'Old {i}', artist='Nobody')
        for i in range(n)
    ]


def retag_and_rename(paths, folder):
    "Another title, artist, album, name and folder for each file, in one go."
    folder.mkdir(exist_ok=True)
    return [
        tag(p, f'New {i}', f'Artist {i}', 'An album', picture=5000 * i).rename(
            folder / f'{i} renamed{p.suffix}'
        )
        for i, p in enumerate(paths)
    ]


def segments(cat):
    return [(s['name'], s['n_tracks']) for s in cat.store.segments('toy')]


def titles(cat):
    return sorted(s['title'] for s in cat.songs())


def index(cat, *places, **how):
    "What a run of index did: added, known, failed, moved, retagged, missing."
    r = cat.index([*places], method=how.pop('method', 'toy'), progress=False, **how)
    return r.added, r.unchanged, len(r.failed), r.moved, r.retagged, r.missing


@contextmanager
def deaf(monkeypatch):
    "Whoever listens to a file meanwhile fails the test."
    with monkeypatch.context() as m:
        m.setattr(workers, 'learn', lambda *a: pytest.fail('a song that is known was fingerprinted again'))
        yield


@pytest.fixture
def music(tmp_path):
    return tmp_path / 'music'


@pytest.fixture
def cat(tmp_path, music):
    songs_in(music, '.flac', 4)
    with Catalog(tmp_path / 'cat', create=True) as c:
        c.index(music, method='toy', progress=False)
        yield c


# ---- the hash of a sound


def sound(path):
    try:
        return sandbox.sound_sha256(path)
    except AudioError:
        return None


@pytest.mark.parametrize('suffix', [*SUFFIXES, '.aiff'])
def test_tags_and_pictures_do_not_change_it(tmp_path, suffix):
    path = write(tmp_path / f'a{suffix}', toy.melody(1))
    before = sound(path)
    bytes_before = {path.read_bytes()}
    for title, picture in (('One', 0), ('y' * 90_000, 200_000), ('z', 0)):
        assert sound(tag(path, title, 'Somebody', picture=picture)) == before is not None
        bytes_before.add(path.read_bytes())
    f = mutagen.File(path)
    f.delete()
    assert sound(path) == before and len(bytes_before) == 4


words = st.text(st.characters(exclude_categories=('Cs', 'Cc')), max_size=200)


@pytest.mark.parametrize('suffix', SUFFIXES)
def test_any_tags_keep_it_and_any_other_sound_does_not(tmp_path, suffix):
    x = toy.melody(2, 2)
    base = write(tmp_path / f'a{suffix}', x)
    before = sound(base)
    other = tmp_path / f'other{suffix}'
    copy = tmp_path / f'copy{suffix}'

    @settings(derandomize=True, deadline=None, database=None, max_examples=15)
    @given(words, words, st.integers(0, 70_000))
    def retagged(title, artist, picture):
        shutil.copy(base, copy)
        assert sound(tag(copy, title, artist, picture=picture)) == before

    @settings(derandomize=True, deadline=None, database=None, max_examples=8)
    @given(st.integers(100, len(x) - 3000), st.sampled_from(['louder', 'shifted', 'cut', 'noise']))
    def changed(at, how):
        y = x.copy()
        if how == 'louder':
            y *= 0.9
        elif how == 'shifted':
            y = np.roll(y, at)
        elif how == 'cut':
            y = np.delete(y, range(at, at + 2500))
        else:
            y[at : at + 2500] += 0.05 * np.random.default_rng(at).standard_normal(2500).astype(np.float32)
        assert sound(write(other, y)) != before

    retagged()
    changed()


@pytest.mark.parametrize(
    'suffix, options',
    [
        ('.mp3', {}),
        ('.mp3', {'write_xing': '0', 'id3v2_version': '0'}),
        ('.flac', {}),
        ('.ogg', {'page_duration': '100000'}),
        ('.opus', {}),
        ('.m4a', {'movflags': 'faststart'}),
        ('.m4a', {'movflags': 'frag_keyframe+empty_moov', 'frag_duration': '200000'}),
        ('.wav', {}),
        ('.mka', {'cluster_time_limit': '200'}),
    ],
)
def test_the_same_packets_written_anew(tmp_path, suffix, options):
    rate = 48_000 if suffix == '.opus' else 44_100
    path = write(tmp_path / f'a{suffix}', toy.melody(1, rate=rate), rate)
    again = remuxed(
        path, tmp_path / f'b{suffix}', options, title='A title of another length ' * 20, artist='B'
    )
    assert again.read_bytes() != path.read_bytes() and sound(again) == sound(path) is not None
    assert sound(remuxed(again, tmp_path / f'c{suffix}')) == sound(path)


def test_tags_of_every_age_around_an_mp3(tmp_path):
    path = write(tmp_path / 'a.mp3', toy.melody(1))
    plain = sound(path)
    data = path.read_bytes()
    ape = mutagen.apev2.APEv2()
    ape['Title'], ape['Artist'] = 'z' * 3000, 'q'
    id3v1 = b'TAG' + b'x' * 125
    made = tmp_path / 'b.mp3'

    def with_tags(front=b'', ape_too=False, back=b''):
        made.write_bytes(front + data)
        if ape_too:
            ape.save(made)
        made.write_bytes(made.read_bytes() + back)
        return sound(made)

    empty = b'ID3\x03\0\0\0\0\0\x0a' + bytes(10)
    for front, ape_too, back in (
        (b'', False, id3v1),
        (b'', True, b''),
        (b'', True, id3v1),
        (empty, True, id3v1),
        (empty + empty, False, b''),
    ):
        assert with_tags(front, ape_too, back) == plain


def test_what_is_damaged_keeps_it_through_new_tags(tmp_path):
    # all behind their header is sound
    kept = 0
    endless = ('cut.wav', 'huge-claim.wav', 'written-to-a-pipe.wav', 'no-samples.wav')
    for path, _ in make_hostile(tmp_path / 'h'):
        if (
            path.suffix.lower() not in SUFFIXES
            or not path.is_file()
            or path.is_symlink()
            or path.name in endless
        ):
            continue
        before = sound(path)
        try:
            tag(path, 'Another title ' * 40, 'Somebody')
        except Exception:  # no tags can be written into it
            continue
        assert sound(path) == before, path.name
        kept += before is not None
    assert kept > 10


def test_what_is_no_sound_has_none(tmp_path):
    (tmp_path / 'a.mp3').write_bytes(b'ID3\x03\0\0\0\0\x0f\x76' + bytes(2038))
    (tmp_path / 'empty.wav').write_bytes(b'')
    for path in (tmp_path / 'a.mp3', tmp_path / 'empty.wav', tmp_path / 'nowhere.ogg', tmp_path):
        with pytest.raises(AudioError) as e:
            sandbox.sound_sha256(path)
        assert '\n' not in str(e.value)
    (tmp_path / 'no samples.wav').write_bytes(wav_header(data=0))
    with pytest.raises(AudioError, match='holds no sound'):
        list(decode.sound(tmp_path / 'no samples.wav'))


def test_it_is_the_same_in_this_process_and_in_another(tmp_path, monkeypatch):
    path = write(tmp_path / 'a.ogg', toy.melody(1, 30))
    there = sandbox.sound_sha256(path)
    monkeypatch.setenv('RESONANCE_SANDBOX', '0')
    assert sandbox.sound_sha256(path) == there and len(there) == 64


# ---- songs that are renamed and retagged


@pytest.mark.parametrize('jobs', [1, 2])
@pytest.mark.parametrize('suffix', SUFFIXES)
def test_eight_songs_renamed_and_retagged_in_one_go(tmp_path, music, monkeypatch, suffix, jobs):
    if jobs == 2 and suffix != '.ogg':
        pytest.skip('one kind of file is enough for two processes')
    paths = songs_in(music, suffix)
    with Catalog(tmp_path / 'c', create=True) as c:
        assert index(c, music, jobs=jobs) == (8, 0, 0, 0, 0, 0)
        before = segments(c)
        ids = [s['recording_id'] for s in c.songs()]
        new = retag_and_rename(paths, music / 'new')
        with deaf(monkeypatch):
            assert index(c, music, jobs=jobs) == (0, 8, 0, 8, 8, 0)
        assert segments(c) == before and [s['recording_id'] for s in c.songs()] == ids
        for i, (song, path) in enumerate(zip(c.songs(), new)):
            told = [song[k] for k in ('title', 'artist', 'album', 'path', 'sha256')]
            assert told == [f'New {i}', f'Artist {i}', 'An album', str(path), core.sha256_file(path)]
            row = c.store.rows('SELECT * FROM files WHERE recording_id = ?', song['recording_id'])
            assert [tuple(r)[1:] for r in row] == [
                (song['recording_id'], path.stat().st_size, path.stat().st_mtime_ns)
            ]
            match = c.identify(toy.melody(i)[16_000:48_000]).matches[0]
            assert (match.title, match.path) == (f'New {i}', str(path))
        assert not c.missing() and c.check() == [] and not any(s['missing'] for s in list_songs(c))
        with monkeypatch.context() as m:  # and now nothing is even opened
            m.setattr(identity, 'sha256_file', lambda path: pytest.fail('hashed again'))
            m.setattr(identity, 'sound_of_file', lambda path: pytest.fail('demuxed again'))
            assert index(c, music) == (0, 8, 0, 0, 0, 0)


def test_half_of_them(cat, music, monkeypatch):
    paths = sorted(music.iterdir())
    before = segments(cat)
    retag_and_rename(paths[:2], music / 'new')
    with deaf(monkeypatch):
        assert index(cat, music) == (0, 4, 0, 2, 2, 0)
    assert titles(cat) == ['New 0', 'New 1', 'Old 2', 'Old 3'] and segments(cat) == before


def test_retagged_where_they_are(cat, music, monkeypatch):
    before = segments(cat)
    ids = {s['recording_id'] for s in cat.songs()}
    for i, path in enumerate(sorted(music.iterdir())):
        tag(path, f'New {i}', picture=9000)
    with deaf(monkeypatch):
        assert index(cat, music) == (0, 4, 0, 0, 4, 0)
    assert titles(cat) == [f'New {i}' for i in range(4)] and segments(cat) == before
    assert {s['recording_id'] for s in cat.songs()} == ids
    assert {s['sha256'] for s in cat.songs()} == {core.sha256_file(p) for p in music.iterdir()}


def test_retagged_with_date_and_size_as_they_were(cat, music):
    path = sorted(music.iterdir())[0]
    info = path.stat()
    path.write_bytes(path.read_bytes().replace(b'Old 0', b'Neu 0'))
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))
    assert index(cat, music) == (0, 4, 0, 0, 0, 0)
    assert index(cat, music, rehash=True) == (0, 4, 0, 0, 1, 0) and titles(cat)[0] == 'Neu 0'


@pytest.mark.parametrize('number', [2, 3])
def test_names_that_were_exchanged(cat, music, monkeypatch, number):
    "A took the name of B and B that of A (or of C, and C that of A); all have new tags."
    paths = sorted(music.iterdir())[:number]
    ids = {s['title']: s['recording_id'] for s in cat.songs()}
    for i, path in enumerate(paths):
        tag(path, f'New {i}', picture=1000 * i).rename(music / f'{i}.tmp')
    for i, path in enumerate(paths):
        (music / f'{(i + 1) % number}.tmp').rename(path)
    with deaf(monkeypatch):
        assert index(cat, music) == (0, 4, 0, number, number, 0)
    for i in range(number):
        song = cat.song(ids[f'Old {(i + 1) % number}'])
        assert (song['title'], song['path']) == (f'New {(i + 1) % number}', str(paths[i]))
    assert len(cat) == 4 and index(cat, music) == (0, 4, 0, 0, 0, 0) and cat.check() == []


def test_a_folder_and_the_files_in_it(cat, music, tmp_path, monkeypatch):
    music.rename(tmp_path / 'library')
    for i, path in enumerate(sorted((tmp_path / 'library').iterdir())):
        tag(path, f'New {i}')
    with deaf(monkeypatch):
        assert index(cat, tmp_path / 'library') == (0, 4, 0, 4, 4, 0)
    assert titles(cat) == [f'New {i}' for i in range(4)] and not cat.missing()


def test_there_and_back_again(cat, music, tmp_path, monkeypatch):
    shutil.copytree(music, tmp_path / 'backup')
    ids = [s['recording_id'] for s in cat.songs()]
    before = cat.songs()
    new = retag_and_rename(sorted(music.iterdir()), music / 'new')
    with deaf(monkeypatch):
        assert index(cat, music)[3:5] == (4, 4)
        for path in new:
            path.unlink()
        # the old bytes, which the ids are made of
        shutil.copytree(tmp_path / 'backup', music, dirs_exist_ok=True)
        assert index(cat, music) == (0, 4, 0, 4, 4, 0)
    assert cat.songs() == before and [s['recording_id'] for s in cat.songs()] == ids and cat.check() == []


def test_another_song_took_the_old_name(cat, music):
    path = sorted(music.iterdir())[0]
    tag(path, 'New 0').rename(music / 'z.flac')
    write(path, toy.melody(50))
    report = cat.index(music, method='toy', progress=False)
    assert (report.added, report.unchanged, report.moved, report.retagged, len(cat)) == (1, 4, 1, 1, 5)
    assert cat.identify(toy.melody(0)[16_000:48_000]).matches[0].title == 'New 0'
    assert cat.identify(toy.melody(50)[16_000:48_000]).matches[0].path == str(path)
    assert index(cat, music) == (0, 5, 0, 0, 0, 0) and cat.check() == []


# ---- copies


def test_a_copy_with_other_tags_is_a_copy(cat, music, monkeypatch):
    path = sorted(music.iterdir())[0]
    before = cat.songs()
    tag(shutil.copy(path, music / 'copy.flac') and music / 'copy.flac', 'The copy')
    with deaf(monkeypatch):
        report = cat.index(music, method='toy', progress=False)
    assert (report.added, report.unchanged, report.moved, report.retagged) == (0, 5, 0, 0)
    assert (
        report.notes == [(str(music / 'copy.flac'), f'the same recording as {path}')]
        and cat.songs() == before
    )
    with monkeypatch.context() as m:  # a copy that is known is not opened again
        m.setattr(identity, 'sha256_file', lambda path: pytest.fail('hashed again'))
        m.setattr(identity, 'read_tags', lambda path: pytest.fail('read again'))
        assert index(cat, music) == (0, 5, 0, 0, 0, 0)
    path.unlink()
    with deaf(monkeypatch):
        assert index(cat, music) == (0, 4, 0, 1, 1, 0)
    assert 'The copy' in titles(cat) and 'Old 0' not in titles(cat) and len(cat) == 4 and cat.check() == []


def test_twins_in_one_run_with_different_tags(tmp_path, music):
    a, b = (
        tag(write(music_file, toy.melody(3)), title)
        for music_file, title in [
            (p, p.stem) for p in (music / 'a.mp3', music / 'b.mp3') if music.mkdir(exist_ok=True) is None
        ]
    )
    with Catalog(tmp_path / 'c', create=True) as c:
        report = c.index(music, method='toy', progress=False)
        assert (report.added, report.unchanged, titles(c)) == (1, 1, ['a'])
        assert report.notes == [(str(b), f'the same recording as {a}')]
        assert index(c, music) == (0, 2, 0, 0, 0, 0)
        assert index(c, music, method='stream-toy') == (1, 1, 0, 0, 0, 0) and len(c) == 1 and c.check() == []


def test_the_same_sound_in_another_container(tmp_path, music):
    music.mkdir()
    remuxed(write(music / 'a.m4a', toy.melody(3, rate=44_100), 44_100), music / 'b.mka', title='B')
    with Catalog(tmp_path / 'c', create=True) as c:
        assert index(c, music)[:3] == (1, 1, 0)
        (music / 'a.m4a').unlink()
        assert index(c, music) == (0, 1, 0, 1, 1, 0) and titles(c) == ['B']


def test_encoded_again_is_another_song(cat, music):
    x, rate = sf.read(sorted(music.iterdir())[0])
    write(music / 'again.ogg', x, rate)
    assert index(cat, music) == (1, 4, 0, 0, 0, 0) and len(cat) == 5


def test_a_file_that_cannot_be_reached_has_not_moved(cat, music, tmp_path, monkeypatch):
    path = sorted(music.iterdir())[0]
    (tmp_path / 'other').mkdir()
    copy = tag(Path(shutil.copy(path, tmp_path / 'other')), 'The copy')
    real = os.stat

    def stat(p, *a, **k):
        if str(p) == str(path):
            raise PermissionError(13, 'Permission denied', str(p))
        return real(p, *a, **k)

    with monkeypatch.context() as m:
        m.setattr(os, 'stat', stat)
        report = cat.index(tmp_path / 'other', method='toy', progress=False)
    assert (report.moved, report.retagged, report.notes) == (
        0,
        0,
        [(str(copy), f'the same recording as {path}')],
    )
    assert titles(cat) == [f'Old {i}' for i in range(4)]


def test_a_disk_that_is_unplugged_and_comes_back(cat, music, tmp_path, monkeypatch):
    "Its copy elsewhere answers for it meanwhile; nothing is learned again, and nothing is forgotten."
    shutil.copytree(music, tmp_path / 'here')
    for i, path in enumerate(sorted((tmp_path / 'here').iterdir())[:2]):
        tag(path, f'Here {i}')
    for path in sorted((tmp_path / 'here').iterdir())[2:]:
        path.unlink()
    music.rename(tmp_path / 'unplugged')
    with deaf(monkeypatch):
        assert (
            index(cat, tmp_path / 'here') == (0, 2, 0, 2, 2, 0) and len(cat) == 4 and len(cat.missing()) == 2
        )
        (tmp_path / 'unplugged').rename(music)
        assert index(cat, music) == (0, 4, 0, 0, 0, 0)
        assert index(cat, music, tmp_path / 'here') == (0, 6, 0, 0, 0, 0)
    assert len(cat) == 4 and not cat.missing() and titles(cat) == ['Here 0', 'Here 1', 'Old 2', 'Old 3']


def test_links(tmp_path, music, monkeypatch):
    songs_in(tmp_path / 'store', '.mp3', 2)
    music.mkdir()
    for path in sorted((tmp_path / 'store').iterdir()):
        (music / path.name).symlink_to(path)
    with Catalog(tmp_path / 'c', create=True) as c:
        assert index(c, music) == (2, 0, 0, 0, 0, 0)
        with deaf(monkeypatch):
            tag(tmp_path / 'store' / 'song 0.mp3', 'New 0')
            assert index(c, music) == (0, 2, 0, 0, 1, 0) and titles(c) == ['New 0', 'Old 1']
            tag(tmp_path / 'store' / 'song 1.mp3', 'New 1').rename(tmp_path / 'store' / 'z.mp3')
            (music / 'z.mp3').symlink_to(tmp_path / 'store' / 'z.mp3')
            assert index(c, music) == (0, 2, 1, 1, 1, 0)  # the old link leads nowhere
        assert titles(c) == ['New 0', 'New 1'] and {Path(s['path']).name for s in c.songs()} == {
            'song 0.mp3',
            'z.mp3',
        }


def test_a_copy_that_nobody_looked_at_takes_over(cat, music, tmp_path):
    "The song's file becomes another song; its copy is in a folder that is not indexed this time."
    path = sorted(music.iterdir())[0]
    (tmp_path / 'other').mkdir()
    copy = tag(Path(shutil.copy(path, tmp_path / 'other')), 'The copy')
    assert index(cat, tmp_path / 'other')[:3] == (0, 1, 0)
    write(path, toy.melody(60))
    assert index(cat, music)[:2] == (1, 3)
    song = next(s for s in cat.songs() if s['path'] == str(copy))
    assert index(cat, tmp_path / 'other') == (0, 1, 0, 0, 1, 0)
    assert cat.song(song['recording_id'])['title'] == 'The copy' and cat.check() == []
    assert index(cat, music, tmp_path / 'other') == (0, 5, 0, 0, 0, 0)


# ---- what was put right by hand, tables, pruning


def test_corrections_stay_where_the_file_says_what_it_said(cat, music, tmp_path):
    sheet = tmp_path / 'sheet.csv'
    sheet.write_text(f'path,title,artist\n{music}/song 0.flac,Right 0,Right\n{music}/song 1.flac,Right 1,\n')
    assert cat.import_csv(sheet).updated == 2
    tag(music / 'song 0.flac', album='New album')  # title and artist as before
    tag(music / 'song 1.flac', 'From the file').rename(music / 'z.flac')
    assert index(cat, music) == (0, 4, 0, 1, 2, 0)
    told = {s['path']: (s['title'], s['artist'], s['album']) for s in cat.songs()}
    assert told[str(music / 'song 0.flac')] == ('Right 0', 'Right', 'New album')
    assert told[str(music / 'z.flac')] == ('From the file', 'Nobody', None)


def test_an_old_table_finds_retagged_songs(cat, music, tmp_path):
    cat.export_csv(tmp_path / 'old.csv')
    retag_and_rename(sorted(music.iterdir()), music / 'new')
    index(cat, music)
    report = cat.import_csv(tmp_path / 'old.csv')
    assert (report.updated, report.unknown) == (4, []) and titles(cat) == [f'Old {i}' for i in range(4)]
    cat.export_csv(tmp_path / 'new.csv')
    assert cat.import_csv(tmp_path / 'new.csv').unchanged == 4


def test_a_title_that_is_the_name_of_the_file_follows_it(tmp_path, music):
    music.mkdir()
    write(music / 'working title.wav', toy.melody(0))
    with Catalog(tmp_path / 'c', create=True) as c:
        index(c, music)
        (music / 'working title.wav').rename(music / 'Final.wav')
        assert index(c, music) == (0, 1, 0, 1, 0, 0) and titles(c) == ['Final']


def test_pruning_and_removing_after_a_move(cat, music):
    paths = sorted(music.iterdir())
    retag_and_rename(paths[:2], music / 'new')
    paths[3].unlink()
    assert index(cat, music)[3:] == (2, 2, 1)
    assert [s['title'] for s in prune(cat, [music])[0].songs] == ['Old 3'] and len(cat) == 3
    assert [s['title'] for s in remove(cat, [music / 'new' / '0 renamed.flac']).songs] == ['New 0']
    assert cat.store.rows('SELECT count(*) FROM sounds')[0][0] == 2
    assert index(cat, music) == (1, 2, 0, 0, 0, 0) and cat.check() == []


def test_a_moved_song_in_another_method(cat, music):
    retag_and_rename(sorted(music.iterdir()), music / 'new')
    assert index(cat, music, method='stream-toy') == (4, 0, 0, 4, 4, 0)
    assert titles(cat) == [f'New {i}' for i in range(4)] and len(cat) == 4
    assert (
        cat.recognizer('toy').songs.keys() == cat.recognizer('stream-toy').songs.keys() and cat.check() == []
    )


def test_what_cannot_be_taken_apart_is_known_by_its_bytes(tmp_path, music, monkeypatch):
    monkeypatch.setattr(identity, 'sound_of_file', lambda path: None)
    paths = songs_in(music, '.flac', 3)
    with Catalog(tmp_path / 'c', create=True) as c:
        index(c, music)
        paths[0].rename(music / 'z.flac')
        tag(paths[1], 'New 1')
        assert (
            index(c, music) == (1, 2, 0, 1, 0, 0) and titles(c) == ['New 1', 'Old 0', 'Old 2'] and len(c) == 3
        )


# ---- catalogues of an earlier format, and death


@pytest.mark.parametrize('version', [1, 2])
def test_an_earlier_format_learns_it_when_it_sees_the_files_again(cat, music, monkeypatch, version, capfd):
    cat.close()
    toy.age(cat.folder, version)
    monkeypatch.setattr(indexing, 'MANY_FILES', 3)
    told = []
    with Catalog(cat.folder, report=told.append) as c, deaf(monkeypatch):
        assert f'format {version}' in told[0] and 'format 3' in told[0]
        assert c.store.rows('SELECT count(*) FROM sounds')[0][0] == 0
        assert c.index(music, method='toy', progress=True).unchanged == 4
        assert '4 songs were indexed by an earlier version' in capfd.readouterr().err
        assert c.store.rows('SELECT count(*) FROM sounds WHERE sha256 IS NOT NULL')[0][0] == 4
        c.index(music, method='toy', progress=True)
        assert 'earlier' not in capfd.readouterr().err
        retag_and_rename(sorted(music.iterdir()), music / 'new')
        assert index(c, music) == (0, 4, 0, 4, 4, 0) and titles(c) == [f'New {i}' for i in range(4)]


def test_an_earlier_format_that_is_asked_too_late(cat, music):
    "Its files were renamed and retagged before it saw them again: their sound was never known."
    cat.close()
    toy.age(cat.folder, 2)
    retag_and_rename(sorted(music.iterdir()), music / 'new')
    with Catalog(cat.folder) as c:
        assert index(c, music) == (4, 0, 0, 0, 0, 4) and len(c.missing()) == 4


def test_an_earlier_format_that_cannot_be_written_still_answers(cat, music, monkeypatch):
    (music / 'bad.mp3').write_bytes(b'no music' * 99)
    assert index(cat, music)[:3] == (0, 4, 1)
    cat.close()
    toy.age(cat.folder, 2)
    real = store._connect
    monkeypatch.setattr(store, '_connect', lambda path: (real(path)[0], False))
    with Catalog(cat.folder) as c:
        assert (
            c.identify(toy.melody(1)[16_000:48_000]).matches[0].title == 'Old 1'
            and len(list_songs(c)) == 4
            and len(list_unreadable(c)) == 1
        )
        assert c.store.rows('PRAGMA user_version')[0][0] == 2


@pytest.mark.alone
@pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork')
@pytest.mark.parametrize('old', [False, True])
def test_killed_at_every_step_of_a_move(tmp_path, music, old):
    "Before every statement: what was learned stays, and running again does the rest. The old format is upgraded on the way."
    from test_catalog_faults import integrity, killed_at_each_step

    songs_in(music, '.flac', 3)
    with Catalog(tmp_path / 'base', create=True) as c:
        index(c, music)
        before = segments(c)
        ids = {s['recording_id'] for s in c.songs()}
    if old:
        toy.age(tmp_path / 'base', 2)
    else:
        retag_and_rename(sorted(music.iterdir()), music / 'new')
    states = []

    def look(folder, finished):
        with Catalog(folder) as c:
            states.append(
                len(c.store.rows('SELECT * FROM sounds'))
                if old
                else sum(s['title'].startswith('New') for s in c.songs())
            )
            assert states[-1] in range(4) if old else states[-1] in (0, 3)
            if not old:
                assert index(c, music) == (0, 3, 0, 3 - states[-1], 3 - states[-1], 0)
                assert titles(c) == ['New 0', 'New 1', 'New 2']
            else:
                assert (
                    index(c, music) == (0, 3, 0, 0, 0, 0) and len(c.store.rows('SELECT * FROM sounds')) == 3
                )
            assert segments(c) == before and {s['recording_id'] for s in c.songs()} == ids and c.check() == []
        assert integrity(folder) == ['ok']

    sandbox._end_all()
    assert killed_at_each_step(tmp_path, tmp_path / 'base', lambda c: index(c, music), look) > 8
    assert states == sorted(states) and {*states} == ({0, 1, 2, 3} if old else {0, 3})


def test_the_command_says_how_many_moved(tmp_path, music, capfd):
    from resonance_nb.cli import main

    songs_in(music, '.flac', 3)
    words = ['index', str(music), '--catalog', str(tmp_path / 'c'), '--method', 'landmark', '--jobs', '1']

    def told(*more):
        with pytest.raises(SystemExit) as e:
            main([*words, *more])
        assert not e.value.code
        return capfd.readouterr().out.splitlines()

    assert told()[-1].startswith('3 added, 0 unchanged; 3 songs in')
    retag_and_rename(sorted(music.iterdir())[:2], music / 'new')
    assert told()[-1].startswith('0 added, 3 unchanged in sound (2 moved, 2 with new tags); 3 songs in')
    row = json.loads(told('--json')[0])
    assert (row['moved'], row['retagged'], row['unchanged'], row['missing']) == (0, 0, 3, 0)


def test_a_folder_without_music_makes_no_catalogue(tmp_path, capfd):
    from resonance_nb.cli import main

    (tmp_path / 'e' / 'sub').mkdir(parents=True)
    (tmp_path / 'e' / 'notes.txt').write_text('no music')
    with pytest.raises(SystemExit) as e:
        main(['index', str(tmp_path / 'e'), '--catalog', str(tmp_path / 'c')])
    out, err = capfd.readouterr()
    assert e.value.code == 2 and out == '' and not (tmp_path / 'c').exists()
    assert err.splitlines() == [
        'passed over: 1 .txt',
        f'resonance: nothing was indexed: no audio files were found in {tmp_path / "e"}',
    ]


def test_a_repair_that_another_process_made_is_told_as_such(cat, music, monkeypatch, capfd):
    from resonance_nb import songlist
    from resonance_nb.cli import main

    folder = cat.folder
    real = songlist.repair
    cat.close()

    def too_late(catalog, problems):
        with Catalog(folder) as other:
            real(other, other.problems(), progress=False)
        return real(catalog, problems, progress=False)

    for repair, told in (
        (lambda *a: real(*a, progress=False), 'repaired: '),
        (too_late, 'repaired by another process: '),
    ):
        shutil.rmtree(next((folder / 'toy').iterdir()))
        monkeypatch.setattr(songlist, 'repair', repair)
        with pytest.raises(SystemExit) as e:
            main(['check', '--repair', '--catalog', str(folder)])
        out = capfd.readouterr().out.splitlines()
        assert not e.value.code and out[0].startswith(told) and out[-1].startswith('all is well')
