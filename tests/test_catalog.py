"""The catalogue in ordinary use, and with odd input."""

import csv
import errno
import json
import os
import shlex
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile as sf
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
import toy  # noqa: E402
from resonance_nb import catalog as module  # noqa: E402
from resonance_nb import identity, indexing, segments, store, tags, workers  # noqa: E402
from resonance_nb import core  # noqa: E402
from resonance_nb.catalog import Catalog  # noqa: E402
from resonance_nb.store import StorageError, real_path, show_path, stored_path  # noqa: E402
from resonance_nb.tags import read_tags  # noqa: E402
from resonance_nb.core import ResonanceError  # noqa: E402


@pytest.fixture(autouse=True)
def methods(monkeypatch):
    monkeypatch.setitem(core.METHODS, 'toy', 'toy:Toy')
    monkeypatch.setitem(core.METHODS, 'stream-toy', 'toy:StreamToy')


@pytest.fixture
def music(tmp_path):
    toy.write_songs(tmp_path / 'music', 6)
    return tmp_path / 'music'


@pytest.fixture
def cat(tmp_path, music):
    with Catalog(tmp_path / 'cat', create=True) as c:
        c.index(music, method='toy', progress=False)
        yield c


def clip(i, a=1, b=3):
    return toy.melody(i)[a * 16_000 : b * 16_000]


def counts(report):
    return report.added, report.unchanged, len(report.failed)


def test_index_identify_and_again(cat, music):
    for i, path in enumerate(sorted(music.iterdir())):
        for query in (clip(i), path):
            answer = cat.identify(query, top=2)
            assert (
                answer.decision == 'match'
                and answer.matches[0].path == str(path)
                and len(answer.matches) == 2
            )
            assert answer.matches[0].track_id == core.sha256_file(path)[:16]
    assert cat.identify(clip(0)).matches[0].offset_s == 1.0 and cat.identify(clip(0)).query == 'samples'
    assert cat.identify(clip(77)).decision == 'no-match'
    assert cat.identify(np.zeros(0, np.float32)).matches == []
    assert set(json.loads(json.dumps(cat.identify(clip(1)).as_dict()))['matches'][0]) == {
        'track_id',
        'title',
        'artist',
        'path',
        'score',
        'confidence',
        'offset_s',
    }
    assert counts(cat.index(music, method='toy', progress=False)) == (0, 6, 0)
    assert cat.song(cat.songs()[0]['recording_id'])['duration_s'] == 4.0 and cat.check() == []


def test_a_second_run_opens_no_file(cat, music, monkeypatch):
    monkeypatch.setattr(identity, 'sha256_file', lambda path: pytest.fail('hashed a file that is known'))
    assert counts(cat.index(music, method='toy', progress=False)) == (0, 6, 0)


@pytest.mark.parametrize('jobs', [1, 2])
def test_every_way_of_cutting_gives_the_same(tmp_path, cat, music, jobs):
    with Catalog(tmp_path / 'other', create=True) as other:
        assert counts(
            other.index(
                sorted(music.iterdir(), reverse=True), method='toy', jobs=jobs, batch_files=1, progress=False
            )
        ) == (6, 0, 0)
        assert toy.truth(other, 6) == toy.truth(cat, 6)
        assert len(other.store.segments('toy')) <= segments.REST_SEGMENTS


def test_workers_run_from_an_unguarded_script(tmp_path, music):
    script = tmp_path / 'script.py'
    script.write_text(
        f'import sys; sys.path.insert(0, {str(Path(toy.__file__).parent)!r})\n'
        'from resonance_nb import core\nfrom resonance_nb.catalog import Catalog\ncore.METHODS["toy"] = "toy:Toy"\n'
        f'print(Catalog({str(tmp_path / "c")!r}, create=True).index({str(music)!r}, method="toy", jobs=2, progress=False).added)\n'
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert (done.stdout, done.stderr, done.returncode) == ('6\n', '', 0)


def test_decoders_in_workers_are_quiet(tmp_path, music, monkeypatch):
    (tmp_path / 'noisy.py').write_text("""if True:
        import os, toy
        class Noisy(toy.Toy):
            def add(self, track_id, samples):
                for place in (1, 2):
                    assert os.path.samestat(os.fstat(place), os.stat(os.devnull)), f'{place} is open'
                os.write(1, b'a library prints'), os.write(2, b'a decoder complains')
                super().add(track_id, samples)
        """)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(core.METHODS, 'noisy', 'noisy:Noisy')
    with Catalog(tmp_path / 'c', create=True) as c:
        report = c.index(music, method='noisy', jobs=2, progress=False)
        assert (counts(report), report.failed) == ((6, 0, 0), [])


def test_a_long_query_is_heard_only_at_its_beginning(cat, tmp_path, monkeypatch):
    "A recording of twenty hours, given as a query by mistake, must not fill the memory."
    path = tmp_path / 'long.wav'
    sf.write(path, np.tile(toy.melody(2), 90), 16_000)  # six minutes
    asked = []
    monkeypatch.setattr(toy.Toy, 'search', lambda self, samples, k=5: asked.append(samples) or [])
    assert cat.identify(path).decision == 'no-match'
    assert module.QUERY_S == 300 and asked[0].shape == (300 * 16_000,)
    np.testing.assert_allclose(asked[0][:16_000], toy.melody(2)[:16_000], atol=1e-4)
    cat.identify(sorted((tmp_path / 'music').iterdir())[0])  # a short one is heard whole
    assert asked[1].shape == (4 * 16_000,)


def test_a_replaced_file_loses_what_a_sheet_said_until_the_sheet_comes_again(cat, music):
    path = sorted(music.iterdir())[0]
    (music / 'metadata.csv').write_text(f'path,artist\n{path.name},Somebody\n')
    cat.import_csv(music / 'metadata.csv'), cat.export_csv(music / 'metadata.csv')
    sf.write(path, 0.5 * toy.melody(0), 16_000)
    assert (
        counts(cat.index(music, method='toy', progress=False)) == (1, 5, 0)
        and cat.songs()[0]['artist'] is None
    )
    assert cat.import_csv(music / 'metadata.csv').updated == 1 and cat.songs()[0]['artist'] == 'Somebody'


def test_long_batches_are_cut_by_sound(tmp_path, music, monkeypatch):
    monkeypatch.setattr(workers, 'BATCH_S', 7.0)
    files = [
        {'path': str(p), 'recording_id': p.stem, 'size': p.stat().st_size, 'mtime_ns': p.stat().st_mtime_ns}
        for p in sorted(music.iterdir())
    ]
    outcome = workers.fingerprint(files, tmp_path / 'part', toy.Toy)
    assert outcome['n_tracks'] == 2 and outcome['left'] == files[2:]
    with Catalog(tmp_path / 'c', create=True) as c:
        assert counts(c.index(music, method='toy', progress=False)) == (6, 0, 0)


def test_work_is_saved_by_the_clock_too(tmp_path, music, monkeypatch):
    monkeypatch.setattr(workers, 'COMMIT_S', 0.0)
    files = [
        {'path': str(p), 'recording_id': p.stem, 'size': p.stat().st_size, 'mtime_ns': p.stat().st_mtime_ns}
        for p in sorted(music.iterdir())
    ]
    outcome = workers.fingerprint(files, tmp_path / 'part', toy.Toy)
    assert outcome['n_tracks'] == 1 and outcome['left'] == files[1:]
    saved = []
    with Catalog(tmp_path / 'c', create=True) as c:
        publish = indexing.publish_segment
        monkeypatch.setattr(
            indexing, 'publish_segment', lambda *args: saved.append(args[3]) or publish(*args)
        )
        assert counts(c.index(music, method='toy', progress=False)) == (6, 0, 0) and saved[:6] == [1] * 6


@pytest.mark.parametrize('method, jobs', [('toy', 1), ('stream-toy', 1), ('stream-toy', 2)])
def test_the_bar_says_how_far_a_long_file_is(tmp_path, music, monkeypatch, method, jobs):
    monkeypatch.setattr(indexing, 'LONG_S', 3.0), monkeypatch.setattr(indexing, 'REDRAWN_S', 0.0)
    said = []
    ticks = []
    bar = SimpleNamespace(update=lambda: ticks.append(1), set_postfix_str=said.append)
    monkeypatch.setattr(indexing, '_bar', lambda total, progress: nullcontext(bar))
    with Catalog(tmp_path / 'c', create=True) as c:
        assert counts(c.index(music, method=method, jobs=jobs, progress=False)) == (6, 0, 0)
    assert len(ticks) == 6 and {text for text in said if text} == {
        f'{p.name}: 0:00 h' for p in music.iterdir()
    }


def test_many_copies_are_told_in_one_line(tmp_path, cat, music):
    for where, n in (('few', 3), ('many', 6)):
        (tmp_path / where).mkdir()
        for path in sorted(music.iterdir())[:n]:
            shutil.copy(path, tmp_path / where)
    few = cat.index(tmp_path / 'few', method='toy', progress=False)
    assert len(few.lines()) == len(few.notes) == 3 and all(
        'the same recording as' in line for line in few.lines()
    )
    many = cat.index([tmp_path / 'many', tmp_path / 'few'], method='toy', progress=False)
    first = sorted((tmp_path / 'many').iterdir())[:3]
    assert len(many.notes) == 6, 'a program reads them all'
    assert many.lines() == [
        f'6 files are the same recordings as others: {", ".join(map(str, first))} and 3 more (--json names all)'
    ]
    shutil.rmtree(tmp_path / 'few'), shutil.rmtree(tmp_path / 'many')
    (tmp_path / 'there').mkdir()
    for path in [*music.iterdir()]:
        path.rename(tmp_path / 'there' / path.name)
    moved = cat.index(tmp_path / 'there', method='toy', progress=False)
    assert (
        moved.moved == len(moved.notes) == 6
        and len(moved.lines()) == 1
        and moved.lines()[0].startswith('6 files were moved: ')
    )


def test_streams_in_blocks_and_two_methods_share_a_catalogue(cat, music, monkeypatch):
    monkeypatch.setattr(toy.StreamToy, 'add', None)  # must not be used
    assert counts(cat.index(music, method='stream-toy', progress=False)) == (6, 0, 0)
    assert cat.methods() == ['toy', 'stream-toy'] and len(cat) == 6
    assert cat.recognizer('stream-toy').songs.keys() == cat.recognizer().songs.keys()
    a, b = (cat.identify(clip(3), method=m).matches[0] for m in cat.methods())
    assert a == b
    with pytest.raises(ResonanceError, match='unknown method'):
        cat.index(music, method='humming', progress=False)


def test_many_segments_are_merged_and_readers_go_on(tmp_path, monkeypatch):
    monkeypatch.setattr(indexing, 'MAX_SEGMENTS', 8)
    songs = toy.write_songs(tmp_path / 'm', 20)
    with Catalog(tmp_path / 'c', create=True) as c, Catalog(tmp_path / 'c') as reader:
        c.index(songs[:1], method='toy', progress=False)
        assert len(reader.recognizer('toy')) == 1
        peak = []
        publish = indexing.publish_segment
        monkeypatch.setattr(
            indexing,
            'publish_segment',
            lambda *a: (publish(*a), peak.append(len(c.store.segments('toy')))),
        )
        c.index(songs, method='toy', batch_files=1, progress=False)
        assert max(peak) <= 10 and len(c.store.segments('toy')) <= segments.REST_SEGMENTS
        assert len(reader.recognizer('toy')) == 20 and c.check() == []
        assert {p.name for p in (tmp_path / 'c' / 'toy').iterdir()} == {
            s['name'] for s in c.store.segments('toy')
        }


def test_reader_that_comes_too_late_reads_the_list_again(cat, music, tmp_path, monkeypatch):
    toy.write_songs(music, 6, first=6)
    with Catalog(tmp_path / 'cat') as reader:
        stale = reader.store.segments('toy')
        fresh = []
        cat.index(music, method='toy', progress=False)
        segments.merge_segments(cat.store, 'toy', 1)
        real = store.Store.segments
        monkeypatch.setattr(
            reader.store,
            'segments',
            lambda m: stale if not fresh and (fresh.append(1) or True) else real(reader.store, m),
        )
        assert len(reader.recognizer('toy')) == 12


def test_a_lost_segment_is_told_and_healed(cat, music):
    place = next((cat.folder / 'toy').iterdir())
    shutil.rmtree(place)
    with Catalog(cat.folder) as c:
        with pytest.raises(
            ResonanceError, match='has lost the folder toy/.*run `resonance check --repair --catalog '
        ):
            c.identify(clip(0))
        assert 'cannot be loaded' in ' '.join(c.check())
        assert counts(c.index(music, method='toy', progress=False)) == (6, 0, 0)
        assert c.identify(clip(0)).decision == 'match' and c.check() == []


def test_segments_that_this_version_cannot_read_are_made_again(cat, music, monkeypatch):
    "Who is told to index the music again can do so by indexing it again."
    real = toy.Toy.load.__func__
    old = {p.name for p in (cat.folder / 'toy').iterdir()}

    def load(cls, folder):
        if Path(folder).name in old:
            raise ResonanceError('version 1; this package reads version 2: index the music again')
        return real(cls, folder)

    monkeypatch.setattr(toy.Toy, 'load', classmethod(load))
    with Catalog(cat.folder) as c:
        with pytest.raises(
            ResonanceError,
            match=r'is damaged .version 1; this package reads version 2.: run `resonance check --repair --catalog ',
        ):
            c.identify(clip(0))
        assert all('run `resonance check --repair --catalog ' in line for line in c.check())
        report = c.index(music, method='toy', progress=False)
        assert counts(report) == (6, 0, 0) and 'version 1' in report.notes[0][1]
        assert c.identify(clip(0)).decision == 'match' and c.check() == []
        assert not old & {p.name for p in (cat.folder / 'toy').iterdir()}
        assert counts(c.index(music, method='toy', progress=False)) == (0, 6, 0)


def test_segments_that_cannot_be_reached_now_stay(cat, music, monkeypatch):
    before = {p.name for p in (cat.folder / 'toy').iterdir()}
    for cause in (PermissionError('no'), MemoryError()):

        def load(cls, folder, cause=cause):
            raise ResonanceError('not readable') from cause

        with monkeypatch.context() as m:
            m.setattr(toy.Toy, 'load', classmethod(load))
            assert counts(cat.index(music, method='toy', progress=False)) == (0, 6, 0)

    def broken(self):
        raise core.MissingExtra('torch is not installed')

    with monkeypatch.context() as m:
        m.setattr(toy.Toy, '__init__', broken)
        with pytest.raises(core.MissingExtra):
            cat.index(music, method='toy', progress=False)
    assert (
        before == {p.name for p in (cat.folder / 'toy').iterdir()}
        and cat.identify(clip(0)).decision == 'match'
    )


def test_sweep_leaves_what_is_not_its_own(cat, music):
    keep = cat.folder / 'toy' / 'notes of the owner'
    for name in ('.part-' + 'a' * 32, 'b' * 32):
        (cat.folder / 'toy' / name).mkdir()
    keep.mkdir()
    assert len(cat.check()) == 2
    cat.index(music, method='toy', progress=False)
    assert keep.is_dir() and cat.check() == []


def test_same_bytes_moved_copied_and_swapped(cat, music):
    a, b, c = sorted(music.iterdir())[:3]
    ids = {s['path']: s['recording_id'] for s in cat.songs()}
    shutil.copy(a, music / 'z copy.wav')
    report = cat.index(music, method='toy', progress=False)
    assert counts(report) == (0, 7, 0) and report.notes == [
        (str(music / 'z copy.wav'), f'the same recording as {a}')
    ]
    assert cat.index(music, method='toy', progress=False).notes == []
    b.rename(music / 'moved.wav')
    report = cat.index(music, method='toy', progress=False)
    assert counts(report) == (0, 7, 0) and report.notes == [
        (str(music / 'moved.wav'), f'moved here from {b}')
    ]
    assert cat.song(ids[str(b)])['path'] == str(music / 'moved.wav')
    a.unlink()  # the copy remains
    c.rename(music / 'tmp'), (music / 'moved.wav').rename(c), (music / 'tmp').rename(music / 'moved.wav')
    os.utime(c, (1, 1)), os.utime(music / 'moved.wav', (2, 2))
    assert counts(cat.index(music, method='toy', progress=False)) == (0, 6, 0)
    assert len(cat) == 6 and {s['path'] for s in cat.songs()} == {str(p) for p in music.iterdir()}
    assert cat.song(ids[str(c)])['path'] == str(music / 'moved.wav') and cat.check() == []


def test_twins_in_one_run(tmp_path):
    paths = toy.write_songs(tmp_path / 'm', 2)
    shutil.copy(paths[0], tmp_path / 'm' / 'twin.wav')
    for name in ('silent 1.wav', 'silent 2.wav'):
        sf.write(tmp_path / 'm' / name, np.zeros(16_000), 16_000)
    with Catalog(tmp_path / 'c', create=True) as c:
        report = c.index(tmp_path / 'm', method='toy', progress=False)
        assert counts(report) == (2, 1, 2)
        reasons = [why for _, why in report.failed]
        assert reasons[0] == 'nothing to fingerprint: silent or too short' and reasons[1].startswith(
            'the same bytes as'
        )


def test_changed_bytes_replace_the_recording(cat, music):
    cat.index(music, method='stream-toy', progress=False)
    path = sorted(music.iterdir())[2]
    old = core.sha256_file(path)[:16]
    sf.write(path, toy.melody(50), 16_000)
    report = cat.index(music, method='toy', progress=False)
    assert counts(report) == (1, 5, 0) and report.notes == [
        (str(path), f'its bytes changed: replaces recording {old}')
    ]
    assert cat.identify(clip(2)).decision == 'no-match' and cat.identify(clip(50)).decision == 'match'
    assert (
        cat.identify(clip(2), method='stream-toy').decision == 'no-match'
        and len(cat.recognizer('stream-toy')) == 5
    )
    path.write_bytes(b'now it is no audio at all')
    report = cat.index(music, method='toy', progress=False)
    assert counts(report) == (0, 5, 1) and len(cat) == 6  # the good recording is not thrown away for it


def test_remove_and_add_again(cat, music):
    song = cat.songs()[4]
    cat.remove(song['recording_id'])
    assert len(cat) == 5 and song['recording_id'] not in cat.recognizer().songs
    with pytest.raises(ResonanceError, match='no song'):
        cat.remove(song['recording_id'])
    assert counts(cat.index(music, method='toy', progress=False)) == (1, 5, 0)
    assert cat.identify(clip(4)).matches[0].track_id == song['recording_id'] and cat.check() == []
    for s in cat.songs():
        cat.remove(s['recording_id'])
    with pytest.raises(ResonanceError, match='holds no songs yet'):
        cat.identify(clip(0))
    assert cat.index([], method='toy', progress=False).added == 0 and cat.store.segments('toy') == []


def test_a_change_by_another_is_seen(cat, tmp_path):
    with Catalog(tmp_path / 'cat') as other:
        assert len(other.recognizer()) == 6
        assert other.recognizer() is other.recognizer()
        cat.remove(cat.songs()[0]['recording_id'])
        assert len(other.recognizer()) == 5


def test_the_catalogue_may_live_among_the_music(music):
    with Catalog(music / 'catalogue', create=True) as c:
        shutil.copy(sorted(music.iterdir())[1], c.folder / 'toy.wav')
        assert counts(c.index(music, method='toy', progress=False)) == (6, 0, 0)


def test_progress_goes_to_stderr(cat, music, capfd, monkeypatch):
    monkeypatch.setattr(indexing, 'no_bar', lambda: False)
    cat.index(music, method='toy', progress=True)
    out, err = capfd.readouterr()
    assert out == '' and '6/6' in err


@pytest.mark.parametrize(
    'make, words',
    [
        (lambda f: None, 'no catalogue at .*make one with `resonance index FOLDER --catalog'),
        (lambda f: (f.mkdir(), (f / 'x.mp3').touch()), 'no catalogue at'),
        (
            lambda f: (f.mkdir(), (f / 'catalogue.sqlite').write_bytes(b'SQLite format 4' * 1000)),
            'is damaged',
        ),
        (
            lambda f: (f.mkdir(), sqlite3.connect(f / 'catalogue.sqlite').execute('CREATE TABLE x (y)')),
            'belongs to another program',
        ),
        (
            lambda f: (
                Catalog(f, create=True).close(),
                sqlite3.connect(f / 'catalogue.sqlite').execute('PRAGMA user_version = 99'),
            ),
            'newer version.*99.*upgrade',
        ),
        (lambda f: f.write_text('a file'), 'no catalogue at'),
    ],
)
def test_what_cannot_be_opened_is_told_in_one_line(tmp_path, make, words):
    make(tmp_path / 'c')
    with pytest.raises(ResonanceError, match=words) as e:
        Catalog(tmp_path / 'c')
    assert '\n' not in str(e.value)


def test_create_refuses_other_peoples_folders(music, tmp_path):
    with pytest.raises(ResonanceError, match='is no catalogue and holds other things'):
        Catalog(music, create=True)
    (tmp_path / 'file').touch()
    with pytest.raises(ResonanceError, match='cannot make a catalogue'):
        Catalog(tmp_path / 'file' / 'c', create=True)
    (tmp_path / 'half').mkdir()
    (tmp_path / 'half' / 'catalogue.sqlite').touch()  # killed before the first table
    with Catalog(tmp_path / 'half') as c:
        assert len(c) == 0


def test_damage_in_the_middle_is_one_line(cat, music):
    cat.close()
    path = cat.folder / 'catalogue.sqlite'
    data = bytearray(path.read_bytes())
    data[4096:] = os.urandom(len(data) - 4096)
    path.write_bytes(data)
    with pytest.raises(ResonanceError) as e, Catalog(cat.folder) as c:
        c.songs()
    assert '\n' not in str(e.value) and 'malformed' in str(e.value)


def test_no_catalogue_is_made_inside_another(cat, tmp_path):
    (tmp_path / 'link').symlink_to(cat.folder)
    for outer in (cat.folder, tmp_path / 'link'):
        for inner in ('inner', 'deep/er'):
            with pytest.raises(
                ResonanceError, match='lies inside the catalogue .*cat: choose another folder'
            ):
                Catalog(outer / inner, create=True)
    assert not any((cat.folder / name).exists() for name in ('inner', 'deep'))
    assert not cat.problems()


def test_a_catalogue_inside_another_that_was_made_before_still_opens(cat, tmp_path):
    Catalog(tmp_path / 'inner', create=True).close()
    shutil.move(tmp_path / 'inner', cat.folder / 'inner')
    for create in (False, True):
        with Catalog(cat.folder / 'inner', create=create) as inner:
            assert len(inner) == 0


def test_read_only_folder_can_be_asked(cat, music):
    cat.close()
    program = """if True:
        import os, sys
        sys.path.insert(0, sys.argv[2])
        import toy
        from resonance_nb import core
        from resonance_nb.catalog import Catalog
        core.METHODS["toy"] = "toy:Toy"
        clip = toy.melody(2)[16_000:48_000]
        with Catalog(sys.argv[1]) as c:  # everything is imported before we become somebody else
            c.identify(clip), c.index(sys.argv[3], method="toy", progress=False)
        os.geteuid() or os.setuid(65534)
        with Catalog(sys.argv[1]) as c:
            print(c.identify(clip).decision)
            try: c.index(sys.argv[3], method="toy", progress=False)
            except core.ResonanceError as e: print(e)
        """
    with tempfile.TemporaryDirectory() as d:  # pytest keeps its own folders closed to others
        os.chmod(d, 0o755)
        folder = shutil.copytree(cat.folder, Path(d, 'c'))
        os.chmod(folder, 0o555)
        words = [str(folder), str(Path(toy.__file__).parent), str(music)]
        done = subprocess.run([sys.executable, '-c', program, *words], capture_output=True, text=True)
        os.chmod(folder, 0o755)
    first, second = done.stdout.splitlines() or [done.stderr, '']
    assert first == 'match' and 'cannot be written to' in second


@pytest.mark.skipif(not hasattr(os, 'setuid'), reason='needs owners of files')
@pytest.mark.parametrize(
    'part, says', [(store.DATABASE, 'you may not read its catalogue.sqlite'), ('toy', 'Permission denied: ')]
)
def test_what_may_not_be_read_is_told(cat, part, says):
    cat.close()
    program = """if True:
        import os, sys
        sys.path.insert(0, sys.argv[2])
        import toy
        from resonance_nb import core
        from resonance_nb.catalog import Catalog
        core.METHODS["toy"] = "toy:Toy"
        clip = toy.melody(2)[16_000:48_000]
        with Catalog(sys.argv[1]) as c:
            c.identify(clip), c.check()
        os.chmod(os.path.join(sys.argv[1], sys.argv[3]), 0)
        os.geteuid() or os.setuid(65534)
        for ask in (lambda c: c.identify(clip), lambda c: print(*c.check()), lambda c: c.unverified()):
            try:
                with Catalog(sys.argv[1]) as c: ask(c)
            except core.ResonanceError as e: print(e)
        """
    with tempfile.TemporaryDirectory() as d:
        os.chmod(d, 0o755)
        folder = shutil.copytree(cat.folder, Path(d, 'c'))
        done = subprocess.run(
            [sys.executable, '-c', program, str(folder), str(Path(toy.__file__).parent), part],
            capture_output=True,
            text=True,
        )
        os.chmod(folder / part, 0o755)
    lines = done.stdout.splitlines()
    assert len(lines) == (3 if part == store.DATABASE else 2) and not done.stderr, done.stderr
    assert all(says in line and 'index the music again' not in line for line in lines)


@settings(derandomize=True, deadline=None, database=None)
@given(
    st.binary(min_size=1, max_size=40).filter(
        lambda b: b'\0' not in b and b'/' not in b and b not in (b'.', b'..')
    )
)
def test_paths_survive_the_database(name):
    path = os.fsdecode(b'/music/' + name)
    text = stored_path(path)
    text.encode('utf-8')
    assert real_path(text) == path
    assert show_path(path).isprintable()
    csv_cell = tags.cell_in(tags.cell_out(text))
    assert real_path(csv_cell) == path


def test_names_that_are_not_utf8(tmp_path):
    good = toy.write_songs(tmp_path / 'm', 1)[0]
    path = Path(os.fsdecode(os.fsencode(tmp_path / 'm') + b'/caf\xe9\n.wav'))
    try:
        good.rename(path)
    except OSError:
        pytest.skip('this file system takes only UTF-8 names')
    with Catalog(tmp_path / 'c', create=True) as c:
        c.index(tmp_path / 'm', method='toy', progress=False)
        song = c.songs()[0]
        assert os.fsencode(song['path']) == os.fsencode(path) and song['title'] == 'caf\\xe9\\n'
        assert json.loads(json.dumps(c.identify(path).as_dict()))['matches'][0]['path'] == str(path)
        c.export_csv(tmp_path / 'metadata.csv')
        assert c.import_csv(tmp_path / 'metadata.csv').unchanged == 1
        assert counts(c.index(tmp_path / 'm', method='toy', progress=False)) == (0, 1, 0)


TAGGED = {
    'title': 'A = B',
    'artist': 'Äö — 音',
    'album': 'One',
    'genre': 'Folk',
    'language': 'deu',
    'licence': 'CC BY 4.0',
}


def tagged(folder, suffix):
    mutagen = pytest.importorskip('mutagen')
    from resonance_nb import audio

    path = folder / f'song{suffix}'
    if suffix == '.m4a':
        import av

        with av.open(str(path), 'w') as c:
            stream = c.add_stream('aac', rate=44_100, layout='mono')
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format='fltp', layout='mono')
            frame.sample_rate, frame.pts = 44_100, 0
            c.mux(stream.encode(frame))
            c.mux(stream.encode(None))
        names = {
            'title': '\xa9nam',
            'artist': '\xa9ART',
            'album': '\xa9alb',
            'genre': '\xa9gen',
            'licence': 'cprt',
        }
    else:
        audio.save(path, toy.melody(0))
        names = dict.fromkeys(TAGGED)
    f = mutagen.File(path)
    if f.tags is None:
        f.add_tags()
    if suffix in ('.mp3', '.wav'):
        from mutagen import id3

        frames = {'title': 'TIT2', 'artist': 'TPE1', 'album': 'TALB', 'genre': 'TCON', 'language': 'TLAN'}
        for name, frame in frames.items():
            f.tags.add(getattr(id3, frame)(encoding=3, text=[TAGGED[name]]))
        f.tags.add(id3.WCOP(url=TAGGED['licence']))
    else:
        for name in names:
            f.tags[names[name] or ('license' if name == 'licence' else name)] = [TAGGED[name]]
    f.save()
    return path, set(names)


@pytest.mark.parametrize('suffix', ['.mp3', '.flac', '.ogg', '.wav', '.m4a'])
def test_tags(tmp_path, suffix):
    path, names = tagged(tmp_path, suffix)
    found = read_tags(path)
    assert {n: found[n] for n in names} == {n: TAGGED[n] for n in names}


@pytest.mark.parametrize('suffix', ['.mp3', '.flac', '.ogg'])
def test_tags_without_mutagen(tmp_path, suffix, monkeypatch):
    path, _ = tagged(tmp_path, suffix)
    monkeypatch.setitem(sys.modules, 'mutagen', None)
    found = read_tags(path)
    assert {n: found[n] for n in ('title', 'artist', 'album', 'genre')} == {
        n: TAGGED[n] for n in ('title', 'artist', 'album', 'genre')
    }


def test_broken_tags_do_not_stop_indexing(tmp_path, monkeypatch):
    path, _ = tagged(tmp_path, '.mp3')
    data = bytearray(path.read_bytes())
    data[10:60] = b'\xff' * 50
    path.write_bytes(data)
    assert set(read_tags(path)) == set(TAGGED) and read_tags(path)['title']
    assert read_tags(tmp_path / 'not there.mp3')['title'] == 'not there'
    mutagen = pytest.importorskip('mutagen')
    monkeypatch.setattr(mutagen, 'File', lambda path: 1 / 0)
    with Catalog(tmp_path / 'c', create=True) as c:
        assert counts(c.index(path, method='toy', progress=False)) == (1, 0, 0)


def test_tags_are_one_clean_line():
    assert (
        tags.clean_tag(' a\n\tb\x00\x1b[31m ') == 'a b[31m'
        and tags.clean_tag(' \n') is None
        and tags.clean_tag('\udc80') is None
    )
    assert len(tags.clean_tag('x' * 10_000)) == 500


texts = st.text(max_size=30).map(tags.clean_tag)


@settings(derandomize=True, deadline=None, database=None, max_examples=20)
@given(st.lists(st.tuples(texts, texts), min_size=6, max_size=6))
def test_csv_round_trip(values):
    import tempfile

    with tempfile.TemporaryDirectory() as home:
        with Catalog(Path(home) / 'c', create=True) as c:
            with c.store.transaction() as db:
                for i, (title, artist) in enumerate(values):
                    file = {
                        'path': f'{home}/{i}.wav',
                        'recording_id': f'{i:016}',
                        'sha256': f'{i:064}',
                        'size': 1,
                        'mtime_ns': 1,
                    }
                    identity.insert_song(
                        db,
                        file,
                        {
                            'tags': dict.fromkeys(tags.TAGS) | {'title': title, 'artist': artist},
                            'duration_s': 1.0,
                        },
                    )
            before = c.songs()
            sheet = Path(home) / 'metadata.csv'
            assert c.export_csv(sheet) == 6
            with open(sheet, newline='', encoding='utf-8') as f:
                rows = list(csv.DictReader(f))
            assert not any(cell.startswith(('=', '+', '-', '@')) for row in rows for cell in row.values())
            report = c.import_csv(sheet)
            assert (report.updated, report.unchanged, report.unknown) == (0, 6, []) and c.songs() == before
            with c.store.transaction() as db:
                db.execute('UPDATE songs SET title = NULL, artist = NULL')
            c.import_csv(sheet)
            assert c.songs() == before


def test_csv_finds_songs_in_three_ways(cat, music):
    songs = cat.songs()
    rows = [
        ['title', 'Recording_ID', 'sha256', 'path', 'shoe size'],
        ['by id', songs[0]['recording_id'].upper(), '', '', '43'],
        ['by hash', '', songs[1]['sha256'], '', ''],
        ['by path', '', '', Path(songs[2]['path']).name, ''],
        ['absolute', '', '', songs[3]['path'], ''],
        ['', songs[4]['recording_id'], '', '', ''],
        ['who?', '', '', '../other.wav', ''],
    ]
    for delimiter, encoding in ((',', 'utf-8'), (';', 'utf-8-sig'), ('\t', 'utf-8')):
        with open(music / 'metadata.csv', 'w', newline='', encoding=encoding) as f:
            csv.writer(f, delimiter=delimiter).writerows(rows)
        report = cat.import_csv(music / 'metadata.csv')
        assert report.unknown == [(7, '../other.wav')]
        assert report.updated + report.unchanged == 5
        assert [s['title'] for s in cat.songs()] == [
            'by id',
            'by hash',
            'by path',
            'absolute',
            'song 004',
            'song 005',
        ]
    assert report.updated == 0


@pytest.mark.parametrize(
    'data, words',
    [
        (None, 'cannot read'),
        (b'', 'must name the columns'),
        (b'title,artist\na,b\n', 'must name the columns'),
        (b'path,title\ncaf\xe9,x\n', 'not UTF-8'),
        (b'path,title\na,b,c\n', 'line 2: 3 cells under 2'),
        (b'path,title\n"a,b\n', 'line 2'),
        (b'path,title,title\na,b,c\n', 'title is there twice'),
        (b'path,title\na,"b"c"\n', 'line 2'),
    ],
)
def test_bad_csv_is_one_line(cat, tmp_path, data, words):
    sheet = tmp_path / 'bad.csv'
    if data is not None:
        sheet.write_bytes(data)
    before = cat.songs()
    with pytest.raises(ResonanceError, match=words) as e:
        cat.import_csv(sheet)
    assert '\n' not in str(e.value) and cat.songs() == before


def test_metadata_survives_another_method(cat, music):
    sheet = music / 'metadata.csv'
    sheet.write_text('path,title,licence\nsong 000.wav,Mine,CC0\n')
    assert cat.import_csv(sheet).updated == 1
    cat.index(music, method='stream-toy', progress=False)
    assert (cat.songs()[0]['title'], cat.songs()[0]['licence']) == ('Mine', 'CC0')


def test_embeddings(cat):
    rng = np.random.default_rng(0)
    ids = sorted(s['recording_id'] for s in cat.songs())[:2]
    vectors = rng.standard_normal((2, 3, 8))
    for i, v in zip(ids, vectors):
        cat.add_embeddings(i, [0, 1, 2], [2, 3, 4], v, 'm')
        cat.add_embeddings(i, [0, 1, 2], [2, 3, 4], v, 'm')  # again: replaced, not doubled
    got, starts, ends, matrix = cat.embeddings('m')
    assert got == [i for i in ids for _ in range(3)] and matrix.dtype == np.float32
    np.testing.assert_array_equal(matrix, vectors.reshape(6, 8).astype(np.float32))
    np.testing.assert_array_equal(ends - starts, np.full(6, 2.0))
    raw = cat.store.rows('SELECT embedding, embedding_dim FROM track_embeddings LIMIT 1')[0]
    assert raw[0] == vectors[0, 0].astype('<f4').tobytes() and raw[1] == 8
    assert cat.embeddings('other')[3].shape == (0, 0)
    for bad in (np.ones((2, 8)), np.full((3, 8), np.nan), np.ones(3), np.ones((3, 4))):
        with pytest.raises(ResonanceError):
            cat.add_embeddings(ids[0], [0, 1, 2], [2, 3, 4], bad, 'm')
    with pytest.raises(ResonanceError, match='no song'):
        cat.add_embeddings('nobody', [], [], np.ones((0, 8)), 'm')
    np.testing.assert_array_equal(cat.embeddings('m')[3], matrix)
    cat.remove(ids[0])
    assert cat.embeddings('m')[0] == [ids[1]] * 3


def test_the_tables_of_the_contract(cat):
    columns = {
        t: {r[1] for r in cat.store.rows(f'PRAGMA table_info({t})')} for t in ('songs', 'track_embeddings')
    }
    assert columns['songs'] >= {
        'recording_id',
        'title',
        'artist',
        'album',
        'duration_s',
        'language',
        'genre',
        'path',
        'sha256',
        'licence',
        'added_at',
    }
    assert columns['track_embeddings'] == {
        'id',
        'track_id',
        'chunk_start',
        'chunk_end',
        'embedding',
        'model_name',
        'embedding_dim',
        'created_at',
    }
    indexed = {
        r[2]
        for i in cat.store.rows('PRAGMA index_list(track_embeddings)')
        for r in cat.store.rows(f'PRAGMA index_info({i[1]})')
    }
    assert indexed == {'track_id', 'model_name'}
    assert (
        cat.store.rows('PRAGMA journal_mode')[0][0] == 'wal'
        and cat.store.rows('PRAGMA foreign_keys')[0][0] == 1
    )


def test_import_is_light():
    code = 'import sys, resonance_nb.catalog; print(sorted({"numpy", "av", "soundfile", "scipy", "tqdm", "filelock", "pandas", "mutagen"} & set(sys.modules)))'
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stdout == '[]\n'


def test_what_cannot_be_asked_is_told(cat, music):
    cat.index(music, method='toy', progress=False)
    song = sorted(music.iterdir())[0]
    for method, told in (
        ('landmark', 'has no index for landmark, but for toy: run '),
        ('foo', "unknown method 'foo'; choose from: "),
    ):
        with pytest.raises(ResonanceError, match=told):
            cat.identify(song, method=method)
    with pytest.raises(ResonanceError, match='at least 1'):
        cat.identify(song, top=0)
    with pytest.raises(ResonanceError, match='jobs'):
        cat.index(music, method='toy', jobs=0)


# ---- what answers and catalogues say of themselves


def test_an_answer_is_made_of_objects_and_prints_as_the_command_does(cat):
    answer = cat.identify(clip(2), top=2)
    best, other = answer.matches
    with pytest.raises(TypeError):
        best['title']
    with pytest.raises(AttributeError):
        best.title = 'another'
    assert str(answer).split('\n') == [f'samples: {best}', f'    or {other}']
    assert str(best).endswith(f'(at 0:01.0, confidence {best.confidence:.1%})')
    assert list(best.as_dict()) == ['track_id', 'title', 'artist', 'path', 'score', 'confidence', 'offset_s']
    flagged = replace(best, another_version=True, missing=True)
    assert list(flagged.as_dict())[-2:] == ['another_version', 'missing']
    assert str(flagged).startswith('another version of ') and str(flagged).endswith('(its file is gone)')
    assert str(cat.identify(clip(77))).startswith('samples: no match; nearest: ')
    assert str(cat.identify(np.zeros(0, np.float32))) == 'samples: no match'


def test_a_catalogue_says_where_it_is_and_what_it_holds(tmp_path, music):
    with Catalog(tmp_path / 'c', create=True) as c:
        assert repr(c) == f'Catalog({str(tmp_path / "c")!r}: 0 songs, indexed by none)'
        c.index(music, method='toy', progress=False)
        assert repr(c).endswith(': 6 songs, indexed by toy)')
    assert repr(c).endswith(': closed, or damaged)')


def test_options_have_names_and_what_is_not_there_is_told_at_once(cat, music, tmp_path):
    for method, first in ((cat.index, music), (cat.identify, clip(0)), (Catalog, music)):
        with pytest.raises(TypeError, match='positional'):
            method(first, 'toy')
    before = len(cat)
    with pytest.raises(ResonanceError, match='there is no .*nothere$'):
        cat.index(tmp_path / 'nothere', progress=False)
    report = cat.index([tmp_path / 'nothere', music], method='toy', progress=False)
    assert (report.unchanged, len(report.failed), len(cat)) == (before, 1, before)


@pytest.mark.parametrize('wrong', [np.zeros((2, 16_000)), b'clip.wav', 5, [[1, 2], [3]], 'ab\0c'])
def test_what_is_no_question_is_refused_in_one_line(cat, wrong):
    with pytest.raises(ResonanceError) as e:
        cat.identify(wrong)
    assert '\n' not in str(e.value)


def test_the_folder_that_is_proposed_can_be_made(tmp_path):
    "A folder of music is no place for a catalogue; the command that is shown works."
    music = tmp_path / 'my music'
    music.mkdir()
    (music / 'song.ogg').touch()
    with pytest.raises(core.ResonanceError, match='no catalogue at .*, where other things are') as e:
        Catalog(music)
    proposed = shlex.split(str(e.value).split('`')[1])[-1]
    assert Path(proposed) == tmp_path / 'my music.catalogue'
    Catalog(proposed, create=True).close()


@pytest.mark.parametrize(
    'code, says', [('EROFS', 'read-only disk'), ('EACCES', "another user's"), ('ENOSPC', 'its disk is full')]
)
def test_what_refuses_a_catalogue_is_told_apart(tmp_path, monkeypatch, code, says):
    def refuse(*_, **__):
        number = getattr(errno, code)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(indexing.tempfile, 'TemporaryFile', refuse)
    with Catalog(tmp_path / 'c', create=True) as songs:
        songs.store.can_write = False
        with pytest.raises(StorageError, match=says) as e:
            songs.index(tmp_path, method='landmark', progress=False)
    assert (str(e.value).count("another user's") == 1) == (code == 'EACCES')
