"""What is indexed: listed, searched, removed, checked, repaired; from Python and as a command."""

import csv
import json
import os
import re
import shlex
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile as sf

sys.path.insert(0, str(Path(__file__).parent))
import toy  # noqa: E402
from resonance_nb import identity, indexing, segments, store  # noqa: E402
from resonance_nb import core  # noqa: E402
from resonance_nb.catalog import Catalog  # noqa: E402
from resonance_nb.store import StorageError  # noqa: E402
from resonance_nb.core import ResonanceError  # noqa: E402
from resonance_nb.songlist import (
    fold,
    list_songs,
    list_unreadable,
    mark_missing,
    overview,
    prune,
    remove,
    repair,
)  # noqa: E402

MAIN = 'import sys; from resonance_nb.cli import main; main()'


@pytest.fixture(autouse=True)
def methods(monkeypatch):
    monkeypatch.setitem(core.METHODS, 'toy', 'toy:Toy')
    monkeypatch.setitem(core.METHODS, 'stream-toy', 'toy:StreamToy')


@pytest.fixture
def music(tmp_path):
    toy.write_songs(tmp_path / 'music' / 'a', 4)
    toy.write_songs(tmp_path / 'music' / 'b', 3, first=4)
    return tmp_path / 'music'


@pytest.fixture
def cat(tmp_path, music):
    with Catalog(tmp_path / 'cat', create=True) as c:
        c.index(music, method='toy', progress=False)
        yield c


def titles(songs):
    return [s['title'] for s in songs]


def named(*numbers):
    return [f'song {i:03}' for i in numbers]


def heard(cat, i, method=None):
    "Is this song answered?"
    return cat.identify(toy.melody(i)[16_000:48_000], method=method).decision == 'match'


# ---- finding


def test_case_and_accents_do_not_matter():
    for stored, typed in (
        ('Hoppípolla', 'HOPPIPOLLA'),
        ('Straße', 'strasse'),
        ('Mø', 'mo'),
        ('Łódź', 'LODZ'),
        ('Ænima', 'aenima'),
        ('Don’t', "don't"),
        ('cafe\u0301', 'café'),
        ('ﬁn', 'fin'),
        ('İstanbul', 'istanbul'),
        ('音楽', '音楽'),
    ):
        assert fold(typed) in fold(stored), (stored, typed)
    assert fold('a') not in fold('b') and fold('') == ''


def test_words_and_fields(cat, music):
    with open(music / 'sheet.csv', 'w', encoding='utf-8', newline='') as f:
        csv.writer(f).writerows(
            [
                ['path', 'title', 'artist', 'album'],
                ['a/song 000.wav', 'Jóga', 'Björk', 'Homogenic'],
                ['a/song 001.wav', 'Army of Me', 'Björk', 'Post'],
                ['b/song 004.wav', 'Björk', 'Nobody', ''],
            ]
        )
    cat.import_csv(music / 'sheet.csv')
    assert titles(list_songs(cat, ['bjork'])) == ['Jóga', 'Army of Me', 'Björk']
    assert titles(list_songs(cat, ['BJÖRK', 'post'])) == ['Army of Me']
    assert titles(list_songs(cat, artist='bjork')) == ['Jóga', 'Army of Me'] and titles(
        list_songs(cat, title='bjork')
    ) == ['Björk']
    assert (
        titles(list_songs(cat, album='homo', artist='bjo')) == ['Jóga']
        and list_songs(cat, ['bjork'], album='nowhere') == []
    )
    assert titles(list_songs(cat, [f'b{os.sep}song'])) == ['Björk', *named(5, 6)]
    assert len(list_songs(cat)) == 7 == len(list_songs(cat, [''])) and list_songs(cat, ['100%_']) == []


def test_each_song_says_what_the_contract_says(cat, music):
    cat.index(music / 'b', method='stream-toy', progress=False)
    (music / 'b' / 'song 005.wav').unlink()
    songs = {s['title']: s for s in list_songs(cat)}
    assert all(
        set(s) == {'track_id', 'title', 'artist', 'album', 'duration_s', 'path', 'methods', 'missing'}
        for s in songs.values()
    )
    assert songs['song 000']['methods'] == ['toy'] and songs['song 004']['methods'] == ['toy', 'stream-toy']
    assert [t for t, s in songs.items() if s['missing'] is True] == ['song 005'] and songs['song 000'][
        'missing'
    ] is False
    there = overview(cat)
    assert (there['songs'], there['methods'], there['missing'], there['unreadable']) == (
        7,
        {'toy': 7, 'stream-toy': 3},
        1,
        0,
    )
    assert (
        there['duration_s'] == pytest.approx(28)
        and there['bytes'] >= (cat.folder / 'catalogue.sqlite').stat().st_size
    )


# ---- files that move, change and go


def test_a_whole_folder_that_moved_leaves_nothing_missing(cat, music):
    (music / 'a').rename(music / 'c')
    report = cat.index(music, method='toy', progress=False)
    assert (report.added, report.unchanged, report.missing) == (0, 7, 0) and len(report.notes) == 4
    assert not cat.missing() and cat.check() == []


def test_missing_counts_below_the_folders_that_were_given(cat, music, tmp_path):
    (music / 'a' / 'song 001.wav').unlink(), (music / 'b' / 'song 004.wav').unlink()
    assert cat.index(music / 'a', method='toy', progress=False).missing == 1
    assert cat.index([music / 'a', music / 'b'], method='toy', progress=False).missing == 2
    assert cat.index(music / 'a' / 'song 000.wav', method='toy', progress=False).missing == 0
    assert cat.index(iter([music]), method='toy', progress=False).missing == 2  # a generator is asked once
    assert titles(cat.missing()) == named(1, 4) and titles(cat.missing([music / 'b'])) == named(4)
    assert cat.missing([tmp_path / 'mus']) == []  # no folder of the music, only the beginning of its name


def test_a_song_with_a_copy_is_not_missing(cat, music):
    shutil.copy(music / 'a' / 'song 000.wav', music / 'b' / 'copy.wav')
    cat.index(music, method='toy', progress=False)
    (music / 'a' / 'song 000.wav').unlink()
    assert cat.missing() == []
    (music / 'b' / 'copy.wav').unlink()
    assert titles(cat.missing()) == named(0)


def test_a_file_that_cannot_be_looked_at_is_not_gone(cat, music, monkeypatch):
    real = os.stat

    def stat(path, **how):
        if str(path).startswith(str(music / 'a')):
            raise PermissionError(13, 'Permission denied')
        return real(path, **how)

    (music / 'a').rename(music / 'closed')
    assert len(cat.missing()) == 4
    monkeypatch.setattr(store.os, 'stat', stat)
    assert cat.missing() == [] and remove(cat, missing=True).songs == [] and len(cat) == 7


def test_an_answer_says_that_its_file_is_gone(cat, music):
    answer = cat.identify(toy.melody(1)[16_000:48_000])
    assert mark_missing(cat, answer.matches) == answer.matches and not any(
        'missing' in m.as_dict() for m in answer.matches
    )
    (music / 'a' / 'song 001.wav').unlink()
    assert [m.missing for m in mark_missing(cat, answer.matches)] == [True] + [False] * (
        len(answer.matches) - 1
    )


# ---- files that cannot be read


def test_unreadable_files_are_remembered_until_they_are_not(cat, music, tmp_path):
    bad = [music / 'a' / 'bad 1.mp3', music / 'b' / 'bad 2.mp3', music / 'b' / 'bad 3.mp3']
    for path in bad:
        path.write_bytes(b'no music' * 100)
    report = cat.index([music, tmp_path / 'nowhere'], method='toy', progress=False)
    assert len(report.failed) == 4  # what was never there is told, and not kept
    kept = list_unreadable(cat)
    assert [e['path'] for e in kept] == [str(p) for p in bad] and [e['reason'] for e in kept] == [
        dict(report.failed)[str(p)] for p in bad
    ]
    assert [e['path'] for e in list_unreadable(cat, ['BAD 2', 'MUSIC'])] == [str(bad[1])] and overview(cat)[
        'unreadable'
    ] == 3
    cat.index(music / 'a', method='toy', progress=False)
    assert len(list_unreadable(cat)) == 3  # the others were not visited
    sf.write(tmp_path / 'good.wav', toy.melody(30), 16_000)
    shutil.move(tmp_path / 'good.wav', bad[0]), bad[1].unlink()
    # gone: not listed, before any run
    assert [e['path'] for e in list_unreadable(cat)] == [str(bad[0]), str(bad[2])]
    cat.index(music / 'a', method='toy', progress=False)
    assert [e['path'] for e in list_unreadable(cat)] == [str(bad[2])] and len(
        cat.store.rows('SELECT * FROM unreadable')
    ) == 1
    assert [e['path'] for e in remove(cat, [bad[2]]).unreadable] == [str(bad[2])] and list_unreadable(
        cat
    ) == []
    assert len(cat) == 8 and cat.check() == []


def test_a_folder_that_cannot_be_read_is_told_and_its_songs_are_not_missing(cat, music, monkeypatch):
    from resonance_nb import audio

    real = os.scandir

    def scandir(folder):
        if str(folder) == str(music / 'b'):
            raise PermissionError(13, 'Permission denied')
        return real(folder)

    with monkeypatch.context() as m:
        m.setattr(audio.os, 'scandir', scandir)
        report = cat.index(music, method='toy', progress=False)
    assert (report.unchanged, report.missing) == (4, 0) and [e['path'] for e in list_unreadable(cat)] == [
        str(music / 'b')
    ]
    assert titles(remove(cat, [music / 'b'], dry_run=True).songs) == named(4, 5, 6)
    assert cat.index(music, method='toy', progress=False).unchanged == 7 and list_unreadable(cat) == []


def test_a_song_whose_file_went_bad_stays_and_is_told(cat, music):
    path = music / 'a' / 'song 002.wav'
    path.write_bytes(b'now it is no audio')
    cat.index(music, method='toy', progress=False)
    assert [e['path'] for e in list_unreadable(cat)] == [str(path)] and len(cat) == 7 and heard(cat, 2)
    done = remove(cat, [path])
    assert (
        titles(done.songs) == named(2)
        and len(done.unreadable) == 1
        and list_unreadable(cat) == []
        and not heard(cat, 2)
    )


def test_names_that_are_not_utf8_are_listed_and_removed(cat, music):
    good, bad = (
        Path(os.fsdecode(os.fsencode(music) + name)) for name in (b'/caf\xe9\n.wav', b'/\xff broken.mp3')
    )
    try:
        (
            sf.write(music / 'x.wav', toy.melody(40), 16_000),
            (music / 'x.wav').rename(good),
            bad.write_bytes(b'no music' * 99),
        )
    except OSError:
        pytest.skip('this file system takes only UTF-8 names')
    cat.index(music, method='toy', progress=False)
    song = list_songs(cat, ['CAF'])
    assert [s['path'] for s in song] == [str(good)] and [
        e['path'] for e in list_unreadable(cat, ['broken'])
    ] == [str(bad)]
    assert json.loads(json.dumps(song + list_unreadable(cat)))
    done = remove(cat, [os.fsencode(good), bad])
    assert (len(done.songs), len(done.unreadable), len(cat)) == (1, 1, 7)


# ---- removing


def test_remove_by_id_path_and_folder(cat, music):
    by_id = list_songs(cat, ['song 000'])[0]
    done = remove(cat, [by_id['track_id'].upper(), music / 'a' / 'song 002.wav', music / 'b'])
    assert titles(done.songs) == named(0, 2, 4, 5, 6) and done.songs[0] == by_id and done.kept == []
    assert titles(list_songs(cat)) == named(1, 3) and [heard(cat, i) for i in range(7)] == [
        False,
        True,
        False,
        True,
        False,
        False,
        False,
    ]
    assert all(p.exists() for p in music.rglob('*.wav')) and cat.check() == []
    report = cat.index(music, method='toy', progress=False)
    assert (
        (report.added, report.unchanged) == (5, 2)
        and all(heard(cat, i) for i in range(7))
        and cat.check() == []
    )


def test_a_folder_that_is_gone_can_be_named(cat, music, monkeypatch):
    shutil.rmtree(music / 'b')
    monkeypatch.chdir(music)
    assert titles(remove(cat, ['b/'], dry_run=True).songs) == named(4, 5, 6) and len(cat) == 7
    assert titles(remove(cat, ['b/']).songs) == named(4, 5, 6)
    assert remove(cat, missing=True).songs == []


def test_remove_missing_with_and_without_names(cat, music):
    (music / 'a' / 'song 001.wav').unlink(), (music / 'b' / 'song 004.wav').unlink()
    assert titles(remove(cat, [music / 'a'], missing=True, dry_run=True).songs) == named(1)
    assert titles(remove(cat, [music / 'b'], missing=True).songs) == named(4)
    assert titles(remove(cat, missing=True).songs) == named(1) and len(cat) == 5


def test_songs_that_are_elsewhere_too_stay_with_their_folder(cat, music):
    shutil.copy(music / 'a' / 'song 000.wav', music / 'b' / 'copy.wav')
    cat.index(music, method='toy', progress=False)
    done = remove(cat, [music / 'a'])
    assert titles(done.songs) == named(1, 2, 3) and titles(done.kept) == named(0) and heard(cat, 0)
    (music / 'b' / 'copy.wav').unlink()
    assert titles(remove(cat, [music / 'a']).songs) == named(0)  # its only file now
    assert titles(
        remove(cat, [music / 'a', music / 'b'], dry_run=True).songs
        if cat.index(music, method='toy', progress=False)
        else []
    ) == named(*range(7))


@pytest.mark.parametrize('dry_run', [False, True])
def test_a_name_that_means_nothing_stops_everything(cat, music, dry_run):
    before = toy.truth(cat, 7)
    for wrong, says in (
        ('no such song', 'no song has the id'),
        (music / 'a' / 'other.wav', 'other.wav'),
        ('0' * 16, '0' * 16),
        ('song 003', 'did you mean'),
        ('', 'empty'),
        (music.parent / 'mus', 'no song has'),
        ('caf\udce9\n', 'caf'),
    ):
        with pytest.raises(ResonanceError, match=says) as error:
            remove(cat, [music / 'b', wrong], dry_run=dry_run)
        assert '\n' not in str(error.value) and str(error.value).isprintable()
    assert toy.truth(cat, 7) == before and cat.check() == []


def test_a_name_that_means_two_things(cat, music, monkeypatch):
    track_id = list_songs(cat, ['song 005'])[0]['track_id']
    shutil.move(music / 'a', music / track_id)
    cat.index(music, method='toy', progress=False)
    monkeypatch.chdir(music)
    with pytest.raises(ResonanceError, match=f'write ./{track_id}'):
        remove(cat, [track_id])
    assert titles(remove(cat, [f'./{track_id}']).songs) == named(0, 1, 2, 3)
    assert titles(remove(cat, [track_id]).songs) == named(5)


def test_vectors_rows_and_segments_go_with_their_songs(tmp_path, music):
    with Catalog(tmp_path / 'c', create=True) as c:
        for method in ('toy', 'mfcc'):
            c.index(music, method=method, batch_files=7, progress=False)
        old = {s['name'] for s in c.store.segments('toy')}
        gone = {s['track_id'] for s in remove(c, [music / 'a']).songs}
        for table, column in (
            ('songs', 'recording_id'),
            ('files', 'recording_id'),
            ('indexed', 'recording_id'),
            ('track_embeddings', 'track_id'),
        ):
            rows = {r[0] for r in c.store.rows(f'SELECT {column} FROM {table}')}
            assert len(rows) == 3 and not rows & gone, table
        assert [(s['n_tracks'], s['live']) for s in c.store.segments('toy')] == [(3, 3)] and not old & {
            s['name'] for s in c.store.segments('toy')
        }
        assert {p.name for p in (c.folder / 'toy').iterdir()} == {
            s['name'] for s in c.store.segments('toy')
        } and len(toy.Toy.load(next((c.folder / 'toy').iterdir()))) == 3
        assert c.check() == [] and len(c.recognizer('mfcc')) == 3
        remove(c, [music])
        assert (
            len(c) == 0
            and c.store.segments('toy') == c.store.segments('mfcc') == []
            and not [*(c.folder / 'toy').iterdir()]
        )
        with pytest.raises(ResonanceError, match='holds no songs yet'):
            c.identify(toy.melody(0))


def test_songs_go_even_where_tidying_fails(cat, music, monkeypatch):
    monkeypatch.setenv('TOY_FULL', '1')
    assert titles(remove(cat, [music / 'a']).songs) == named(0, 1, 2, 3)
    assert [heard(cat, i) for i in range(7)] == [False] * 4 + [True] * 3 and cat.check() == []


# ---- checking and repairing


def damage(place, what):
    if what == 'gone':
        return shutil.rmtree(place)
    for path in place.iterdir():
        path.write_bytes(
            {
                'empty': b'',
                'half': path.read_bytes()[: path.stat().st_size // 2],
                'noise': b'\xee' * path.stat().st_size,
            }[what]
        )


@pytest.mark.parametrize('what', ['gone', 'empty', 'half', 'noise'])
def test_repair_makes_damaged_segments_anew_and_touches_nothing_else(tmp_path, music, what):
    with Catalog(tmp_path / 'c', create=True) as c:
        (
            c.index(music / 'a', method='landmark', progress=False),
            c.index(music / 'b', method='landmark', progress=False),
            c.index(music, method='toy', progress=False),
        )
        bad, whole = (c.folder / 'landmark' / s['name'] for s in c.store.segments('landmark'))
        before = {
            p: (p.read_bytes(), p.stat().st_mtime_ns)
            for place in (whole, c.folder / 'toy')
            for p in place.rglob('*')
            if p.is_file()
        }
        damage(bad, what)
        (c.folder / 'toy' / f'.part-{"a" * 32}').mkdir(), (c.folder / 'toy' / 'notes of the owner').mkdir()
        problems = c.problems()
        assert sorted(p.kind for p in problems) == ['damaged', 'left-over'] and c.check() == [
            f'{p.what}: {p.todo}' for p in problems
        ]
        assert [(p.method, len(p.songs)) for p in problems if p.songs] == [('landmark', 4)]
    with Catalog(tmp_path / 'c') as c:
        reports = repair(c, c.problems(), progress=False)
        assert {m: (r.added, r.failed) for m, r in reports.items()} == {'landmark': (4, [])}
        assert c.check() == [] and len(c.recognizer('landmark')) == len(c.recognizer('toy')) == 7
        found = [c.identify(toy.melody(i), method='landmark', top=1).matches[0].track_id for i in range(7)]
        assert found == [s['track_id'] for s in list_songs(c)]
        assert {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in before} == before and (
            c.folder / 'toy' / 'notes of the owner'
        ).is_dir()
        assert repair(c, c.problems(), progress=False) == {}


def test_repair_leaves_to_people_what_only_they_can_do(tmp_path, music):
    with Catalog(tmp_path / 'c', create=True) as c:
        c.index(music, method='landmark', progress=False)
        (music / 'a' / 'song 001.wav').unlink()
        damage(next((c.folder / 'landmark').iterdir()), 'half')
        assert repair(c, c.problems(), progress=False)['landmark'].added == 6
        assert [p.kind for p in c.problems()] == ['file-gone'], 'indexing would not help it'
        remove(c, missing=True)
        assert c.check() == [] and len(c) == 6


@pytest.mark.parametrize('method', ['landmark', 'mfcc'])
def test_indexing_a_part_brings_back_all_of_what_was_damaged(tmp_path, music, method):
    toy.write_songs(tmp_path / 'more', 1, first=7)
    with Catalog(tmp_path / 'c', create=True) as c:
        c.index(music, method=method, progress=False), c.index(music, method='toy', progress=False)
        if method == 'landmark':
            damage(next((c.folder / 'landmark').iterdir()), 'half')
        else:
            with c.store.transaction() as db:
                db.execute("UPDATE track_embeddings SET model_name = 'mfcc/of another version'")
        (music / 'b' / 'song 006.wav').unlink()
        report = c.index(tmp_path / 'more', method=method, progress=False)
        notes = ' '.join(text for _, text in report.notes)
        assert report.added == 7 and '6 songs indexed again' in notes and '1 song of it could not be' in notes
        assert len(c.recognizer(method)) == 7 and [p.kind for p in c.problems()] == ['file-gone']
        notes = c.index(tmp_path / 'more', method=method, progress=False).notes
        assert notes == [], 'what is whole is not touched again'


def test_what_could_not_be_indexed_again_is_not_called_repaired(tmp_path, music):
    with Catalog(tmp_path / 'c', create=True) as c:
        c.index(music / 'a', method='landmark', progress=False)
        damage(next((c.folder / 'landmark').iterdir()), 'half')
    (music / 'a' / 'song 001.wav').unlink()
    done = subprocess.run(
        [sys.executable, '-c', MAIN, 'check', '--repair', '--catalog', str(tmp_path / 'c')],
        capture_output=True,
        text=True,
    )
    lines = done.stdout.splitlines()
    assert (
        done.returncode == 2
        and lines[0].endswith(': 1 song could not be indexed again')
        and 'repaired' not in done.stdout
    )
    assert '3 songs indexed again (landmark)' in lines and lines[-1] == '2 problems left'


def test_repair_of_songs_in_no_index(cat, music):
    with cat.store.transaction() as db:
        db.execute(
            "DELETE FROM indexed WHERE recording_id IN (SELECT recording_id FROM songs WHERE title < 'song 002')"
        )
    assert [p.kind for p in cat.problems()] == ['not-indexed'] * 2 and not heard(cat, 0)
    assert repair(cat, cat.problems(), progress=False)['toy'].added == 2
    assert cat.check() == [] and heard(cat, 0)


def test_repair_of_vectors_that_are_cut_short(tmp_path, music):
    with Catalog(tmp_path / 'c', create=True) as c:
        c.index(music, method='mfcc', progress=False)
        with c.store.transaction() as db:
            db.execute(
                "DELETE FROM track_embeddings WHERE track_id IN (SELECT recording_id FROM songs WHERE title = 'song 003')"
            )
        assert [p.kind for p in c.problems()] == ['damaged']
        assert repair(c, c.problems(), progress=False)['mfcc'].added == 1  # the others are whole
        assert c.check() == [] and len(c.recognizer('mfcc')) == 7


@pytest.mark.parametrize(
    'error',
    [
        core.MissingExtra('torch is not installed'),
        ResonanceError('no'),
        MemoryError(),
        PermissionError(13, 'Permission denied'),
    ],
)
def test_what_only_cannot_be_loaded_here_is_not_repaired(cat, monkeypatch, error):
    if type(error) is ResonanceError:
        error.__cause__ = PermissionError(13, 'Permission denied')

    def load(cls, folder):
        raise error

    before = {
        p: p.stat().st_mtime_ns for p in cat.folder.rglob('*') if 'toy' in str(p.relative_to(cat.folder))
    }
    with monkeypatch.context() as m:
        m.setattr(toy.Toy, 'load', classmethod(load))
        assert [p.kind for p in cat.problems()] == ['not-loaded'] and repair(
            cat, cat.problems(), progress=False
        ) == {}
    with monkeypatch.context() as m:
        m.setattr(toy.Toy, '__init__', lambda self: (_ for _ in ()).throw(error))
        assert [p.kind for p in cat.problems()] == ['not-loaded'] and repair(
            cat, cat.problems(), progress=False
        ) == {}
    assert cat.check() == [] and before == {p: p.stat().st_mtime_ns for p in before}


def test_what_another_process_is_writing_is_not_left_over(cat):
    (cat.folder / 'toy' / f'.part-{"a" * 32}').mkdir()
    with store.writer_lock(cat.folder, wait=True):
        assert cat.check() == []
    assert [p.kind for p in cat.problems()] == ['left-over']


def test_a_damaged_database_is_one_problem(cat, monkeypatch):
    real = store.Store.rows

    def rows(self, sql, *values):
        return (
            [('row 3 missing from index',), ('another',)] if 'integrity' in sql else real(self, sql, *values)
        )

    monkeypatch.setattr(store.Store, 'rows', rows)
    problems = cat.problems()
    assert (
        [p.kind for p in problems] == ['database']
        and 'your music is not' in problems[0].todo
        and repair(cat, problems) == {}
    )


# ---- bytes that change where the shapes still fit


def flip(path, at=-1):
    "Change one bit of a file."
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def files_below(folder):
    return {p: p.read_bytes() for p in folder.rglob('*') if p.is_file()}


@pytest.mark.parametrize(
    'method, name', [('landmark', 'peaks.npy'), ('chromaprint', 'words.npy'), ('fused', 'codes.npy')]
)
def test_a_changed_bit_is_seen_by_check_alone_and_its_songs_are_made_anew(
    tmp_path, music, monkeypatch, method, name
):
    with Catalog(tmp_path / 'c', create=True) as c:
        (
            c.index(music / 'a', method=method, progress=False),
            c.index(music / 'b', method=method, progress=False),
        )
        bad, whole = (c.folder / method / s['name'] for s in c.store.segments(method))
        before = files_below(whole)
        flip(bad / name)
    with monkeypatch.context() as m:  # opening and asking take no time for it
        for room in (identity, segments):
            m.setattr(room, 'sha256_file', lambda path: pytest.fail(f'{path} was hashed'))
        with Catalog(tmp_path / 'c') as c:
            assert c.identify(toy.melody(5), method=method).matches
    with Catalog(tmp_path / 'c') as c:
        found = c.problems()
        assert [(p.kind, p.method, len(p.songs)) for p in found] == [('damaged', method, 4)]
        (line,) = c.check()
        assert bad.name in line and name in line and 'resonance check --repair' in line and line.isprintable()
        assert c.index(music, method=method, progress=False).unchanged == 7 and c.problems() == found
        assert repair(c, found, progress=False)[method].added == 4
        assert c.check() == [] and len(c.recognizer(method)) == 7 and not bad.exists()
        assert files_below(whole) == before and repair(c, c.problems(), progress=False) == {}


@pytest.mark.parametrize(
    'spoil',
    [
        lambda data: b'',
        lambda data: b'\x00\xff' * 40,
        lambda data: data[: len(data) // 2],
        lambda data: data.replace(b'peaks', b'../../../peaks'),
        lambda data: b'\n' + data,
    ],
)
def test_checksums_that_changed_are_damage_too(tmp_path, music, spoil):
    with Catalog(tmp_path / 'c', create=True) as c:
        c.index(music, method='landmark', progress=False)
        sums = next((c.folder / 'landmark').glob(f'*/{segments.CHECKSUMS}'))
        sums.write_bytes(spoil(sums.read_bytes()))
        assert (
            [p.kind for p in c.problems()] == ['damaged']
            and len(c.check()) == 1
            and c.check()[0].isprintable()
        )
        assert repair(c, c.problems(), progress=False)['landmark'].added == 7 and c.check() == []


@pytest.mark.parametrize('method', ['landmark', 'landmark-dense', 'chromaprint', 'fused'])
def test_an_index_of_another_version_is_told_with_the_command_that_makes_it_again(tmp_path, music, method):
    with Catalog(tmp_path / 'c', create=True) as c:
        c.index(music / 'a', method=method, progress=False)
        for about in (c.folder / method).glob('*/index.json'):
            about.write_text(json.dumps(json.loads(about.read_text()) | {'version': 77}))
    with Catalog(tmp_path / 'c') as c:
        with pytest.raises(ResonanceError, match='was made by another version') as told:
            c.identify(toy.melody(1), method=method)
        assert f'`resonance check --repair --catalog {c.folder}`' in str(told.value) and len(
            str(told.value)
        ) < 300 + len(str(c.folder))
        found = c.problems()
        assert [(p.kind, p.method, len(p.songs)) for p in found] == [('outdated', method, 4)]
        assert repair(c, found, progress=False)[method].added == 4 and c.check() == []
        assert c.identify(toy.melody(1), method=method, top=1).matches[0].title == 'song 001'


def test_checksums_are_those_of_sha256sum(cat):
    if not shutil.which('sha256sum'):
        pytest.skip('needs sha256sum')
    place = next((cat.folder / 'toy').iterdir())
    done = subprocess.run(
        ['sha256sum', '--check', '--strict', segments.CHECKSUMS], cwd=place, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, 'songs.npz: OK\n')


def test_what_cannot_be_made_again_keeps_its_place(tmp_path, music):
    with Catalog(tmp_path / 'c', create=True) as c:
        c.index(music, method='landmark', progress=False)
        (music / 'a' / 'song 001.wav').unlink(), flip(next((c.folder / 'landmark').glob('*/peaks.npy')))
        assert repair(c, c.problems(), progress=False)['landmark'].added == 6
        assert [(p.kind, len(p.songs)) for p in c.problems()] == [('damaged', 1), ('file-gone', 0)]
        # it may still be right
        assert c.identify(toy.melody(1), method='landmark', top=1).matches[0].title == 'song 001'
        remove(c, missing=True)
        assert c.check() == [] and len(c) == 6


def test_changed_bytes_are_not_merged_into_a_new_segment(tmp_path, music):
    songs = sorted(music.rglob('*.wav'))
    with Catalog(tmp_path / 'c', create=True) as c:
        for path in songs[:4]:
            c.index(path, method='landmark', progress=False)
        bad = c.folder / 'landmark' / c.store.segments('landmark')[0]['name']
        flip(bad / 'peaks.npy')
        (
            c.index(songs[4], method='landmark', progress=False),
            c.index(songs[5], method='landmark', progress=False),
        )
        assert (
            len(c.store.segments('landmark')) < 6
            and bad.is_dir()
            and [p.segment for p in c.problems()] == [bad.name]
        )
        c.index(songs[6], method='landmark', progress=False)
        remove(c, [songs[6]])
        assert [p.segment for p in c.problems()] == [bad.name]
        assert repair(c, c.problems(), progress=False)['landmark'].added == 1
        assert c.check() == [] and len(c.recognizer('landmark')) == 6


def test_a_segment_is_not_written_again_alone(tmp_path, music, monkeypatch):
    with Catalog(tmp_path / 'c', create=True) as c:
        with monkeypatch.context() as m:
            m.setattr(indexing, 'REST_SEGMENTS', 5)
            for path in sorted(music.rglob('*.wav'))[:5]:
                c.index(path, method='landmark', progress=False)
        before = c.store.segments('landmark')
        smallest = min(before, key=lambda s: s['bytes'])  # one of the two that would be merged
        flip(c.folder / 'landmark' / smallest['name'] / 'peaks.npy')
        c.index(music / 'a', method='landmark', progress=False)
        assert c.store.segments('landmark') == before and len(before) == 5


def without_checksums(folder):
    "Make a catalogue what an earlier version of the package would have made."
    for sums in [*folder.rglob(segments.CHECKSUMS)]:
        sums.unlink()


def test_catalogues_without_checksums_stay_as_good_as_they_were(tmp_path, music):
    songs = sorted(music.rglob('*.wav'))
    with Catalog(tmp_path / 'c', create=True) as c:
        for path in songs[:4]:
            c.index(path, method='toy', progress=False)
        c.index(music, method='mfcc', progress=False)  # has no files
        assert c.unverified() == []
        without_checksums(c.folder)
    with Catalog(tmp_path / 'c') as c:
        assert c.check() == [] and heard(c, 2, 'toy')
        assert c.unverified() == [f'toy/{s["name"]}' for s in c.store.segments('toy')]
        report = c.index(songs[:5], method='toy', progress=False)
        assert (report.added, report.unchanged) == (1, 4) and c.check() == []
        assert len(c.unverified()) == 2  # two were merged with the new one, and have checksums now


# ---- catalogues of the first format


def test_an_old_catalogue_is_brought_up_to_date(cat, music):
    wanted = toy.truth(cat, 7)
    cat.close()
    toy.age(cat.folder, 1)
    assert toy.format_of(cat.folder) == (1, 0)
    (music / 'bad.mp3').write_bytes(b'no music' * 99)
    with Catalog(cat.folder) as c, Catalog(cat.folder) as other:
        assert (
            toy.format_of(cat.folder) == (3, 2)
            and toy.truth(c, 7) == toy.truth(other, 7) == wanted
            and list_unreadable(c) == []
        )
        assert (
            c.index(music, method='toy', progress=False).unchanged == 7
            and len(list_unreadable(other)) == 1
            and c.check() == []
        )


def test_an_upgrade_is_told_once_to_whoever_asks(cat, capfd):
    cat.close()
    for report in (True, False):
        toy.age(cat.folder, 1)
        told = []
        for _ in range(2):  # the second time there is nothing to upgrade
            Catalog(cat.folder, report=told.append if report else None).close()
        assert len(told) == report and toy.format_of(cat.folder) == (3, 2)
        assert all('earlier version' in line and 'upgraded' in line and line.isprintable() for line in told)
    assert capfd.readouterr() == ('', '')  # importers get no line that they did not ask for


@pytest.mark.parametrize(
    'words',
    [
        ['songs'],
        ['check'],
        ['remove', '--missing'],
        ['index', 'music', '--method', 'landmark'],
        ['identify', 'clip.wav'],
        ['listen', '--input', 'clip.wav'],
    ],
)
def test_every_command_tells_of_an_upgrade_on_standard_error(home, words):
    sf.write(home / 'clip.wav', toy.melody(4)[8_000:], 16_000)
    toy.age(home / 'c', 1)
    status, out, err = resonance(*words, '--json', '--catalog', 'c', cwd=home)
    told = [line for line in err.splitlines() if 'upgraded' in line]
    assert (
        status == 0
        and len(told) == 1
        and told[0].startswith('resonance: the catalogue')
        and isinstance(rows(out), list)
    )
    assert 'upgraded' not in resonance(*words, '--json', '--catalog', 'c', cwd=home)[2]


def test_an_old_catalogue_that_cannot_be_written_to_is_still_asked(cat, music, monkeypatch):
    cat.close()
    toy.age(cat.folder, 1)
    # an error in the middle
    monkeypatch.setattr(store, '_SCHEMA', store._SCHEMA.replace('COMMIT;', 'SELECT no_room;'))
    with Catalog(cat.folder, report=lambda line: pytest.fail(line)) as c:  # it is not upgraded
        assert heard(c, 3) and list_unreadable(c) == [] and len(list_songs(c)) == 7 and c.check() == []
        with pytest.raises(StorageError, match='cannot be written to'):
            c.index(music, method='toy', progress=False)
    assert toy.format_of(cat.folder) == (1, 0)
    monkeypatch.undo()
    Catalog(cat.folder).close()
    assert toy.format_of(cat.folder) == (3, 2)


def test_a_read_only_catalogue_of_the_old_format(cat, music):
    cat.close()
    toy.age(cat.folder, 1)
    reading = (cat.folder / 'catalogue.sqlite').absolute().as_uri() + '?immutable=1'
    db = sqlite3.connect(reading, uri=True, isolation_level=None)
    db.row_factory = sqlite3.Row
    assert store._renew(db, True) is False and store._renew(db, False) is False
    assert db.execute('SELECT count(*) FROM unreadable').fetchone()[0] == 0
    db.close()
    assert toy.format_of(cat.folder) == (1, 0)


# ---- the commands


def resonance(*words, cwd=None):
    done = subprocess.run(
        [sys.executable, '-c', MAIN, *map(os.fsencode, map(str, words))],
        cwd=cwd,
        capture_output=True,
        timeout=300,
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def rows(out):
    return [json.loads(line) for line in out.splitlines()]


@pytest.fixture
def home(tmp_path, music):
    (music / 'broken.mp3').write_bytes(b'no music here' * 50)
    with Catalog(tmp_path / 'c', create=True) as c:
        c.index(music, method='landmark', progress=False)
    return tmp_path


def test_songs_command(home):
    status, out, err = resonance('songs', '--catalog', 'c', cwd=home)
    *lines, last = out.splitlines()
    assert (
        (status, err, len(lines)) == (0, '', 7)
        and 'song 003' in lines[3]
        and 'landmark' in lines[3]
        and 'a/song 003.wav' in lines[3]
    )
    assert (
        last.startswith('7 songs, 0.0 hours; landmark 7; ')
        and 'MB in' in last
        and last.endswith('; 1 file not readable (--unreadable)')
    )
    status, out, err = resonance(
        'songs', 'SÓNG 00', f'{os.sep}b{os.sep}', '--catalog', 'c', '--json', cwd=home
    )
    assert (status, err) == (0, '') and titles(rows(out)) == named(4, 5, 6)
    assert set(rows(out)[0]) == {
        'track_id',
        'title',
        'artist',
        'album',
        'duration_s',
        'path',
        'methods',
        'missing',
    }
    assert resonance('songs', 'nothing of that kind', '--catalog', 'c', cwd=home)[1].startswith(
        '0 of 7 songs'
    )
    status, out, err = resonance('songs', '--unreadable', '--catalog', 'c', '--json', cwd=home)
    assert status == 0 and [(set(r), Path(r['path']).name) for r in rows(out)] == [
        ({'path', 'reason', 'seen_at'}, 'broken.mp3')
    ]
    assert resonance('songs', '--missing', '--catalog', 'c', '--json', cwd=home)[:2] == (0, '')


def test_titles_go_out_to_a_spreadsheet_and_come_back(home):
    assert resonance('songs', '--export', 'titles.csv', '--catalog', 'c', cwd=home) == (
        0,
        '7 songs in titles.csv\n',
        '',
    )
    with open(home / 'titles.csv', encoding='utf-8', newline='') as f:
        table = list(csv.DictReader(f))
    table[0]['artist'] = 'Müller'
    with open(home / 'titles.csv', 'w', encoding='utf-8', newline='') as f:
        out = csv.DictWriter(f, table[0].keys())
        out.writeheader(), out.writerows(table), out.writerow({'path': 'other.wav', 'artist': 'Nobody'})
    status, out, err = resonance('songs', '--import', 'titles.csv', '--catalog', 'c', cwd=home)
    assert (status, out) == (
        0,
        '1 song changed, 6 as before, 1 unknown\n',
    ) and err == 'titles.csv, line 9: no song fits other.wav\n'
    status, out, err = resonance('songs', '--artist', 'muller', '--catalog', 'c', '--json', cwd=home)
    assert [s['artist'] for s in rows(out)] == ['Müller']
    status, out, err = resonance('songs', '--import', 'titles.csv', '--catalog', 'c', '--json', cwd=home)
    assert rows(out) == [
        {'file': 'titles.csv', 'updated': 0, 'unchanged': 7, 'unknown': [{'line': 9, 'row': 'other.wav'}]}
    ]
    (home / 'titles.csv').write_text('path,title\nother.wav,x\n')
    status, out, err = resonance('songs', '--import', 'titles.csv', '--catalog', 'c', cwd=home)
    assert status == 2 and out == '' and err.splitlines()[-1].startswith('resonance: nothing was imported')


def test_index_says_what_is_gone_and_remove_forgets_it(home):
    (home / 'music' / 'a' / 'song 001.wav').unlink(), (home / 'music' / 'b' / 'song 004.wav').unlink()
    status, out, err = resonance('index', 'music/a', '--catalog', 'c', '--method', 'landmark', cwd=home)
    assert status == 0 and out.splitlines()[-1].startswith(
        'the files of 1 song are gone (`resonance songs --missing --catalog '
    )
    status, out, err = resonance(
        'index', 'music', '--catalog', 'c', '--method', 'landmark', '--json', cwd=home
    )
    assert [r['missing'] for r in rows(out)] == [2]
    (
        sf.write(home / 'clip.wav', toy.melody(4)[8_000:], 16_000),
        sf.write(home / 'other.wav', toy.melody(5)[8_000:], 16_000),
    )
    status, out, err = resonance(
        'identify', 'clip.wav', 'other.wav', '--catalog', 'c', '--json', '--top', 1, cwd=home
    )
    gone, there = (r['matches'][0] for r in rows(out))
    assert gone['title'] == 'song 004' and gone['missing'] is True and 'missing' not in there
    status, out, err = resonance('identify', 'clip.wav', 'other.wav', '--catalog', 'c', cwd=home)
    assert out.splitlines()[0].endswith('(its file is gone)') and 'gone' not in out.splitlines()[1]
    listed = resonance('songs', '--missing', '--catalog', 'c', '--json', cwd=home)[1]
    would = resonance('remove', '--missing', '--dry-run', '--catalog', 'c', '--json', cwd=home)
    assert would == (0, listed, '') and titles(rows(listed)) == named(1, 4)
    assert resonance('remove', '--missing', '--catalog', 'c', '--json', cwd=home) == (0, listed, '')
    assert resonance('remove', '--missing', '--catalog', 'c', cwd=home)[1].startswith(
        '0 songs removed; 5 songs in c'
    )
    assert (
        json.loads(resonance('identify', 'clip.wav', '--catalog', 'c', '--json', cwd=home)[1])['decision']
        == 'no-match'
    )
    status, out, err = resonance('remove', 'music', '--catalog', 'c', cwd=home)
    assert status == 0 and out.splitlines()[-1] == '5 songs and 1 unreadable file removed; 0 songs in c'


def test_check_command(home):
    assert resonance('check', '--catalog', 'c', cwd=home) == (0, 'all is well: 7 songs in c\n', '')
    assert resonance('check', '--catalog', 'c', '--json', cwd=home) == (0, '', '')
    damage(next((home / 'c' / 'landmark').iterdir()), 'half')
    (home / 'c' / 'landmark' / ('b' * 32)).mkdir()
    status, out, err = resonance('check', '--catalog', 'c', cwd=home)
    assert (
        status == 2
        and len(out.splitlines()) == 3
        and out.splitlines()[-1] == '2 problems left'
        and out.count('--repair') == 2
    )
    status, out, err = resonance('check', '--catalog', 'c', '--json', cwd=home)
    assert (
        status == 2
        and [(set(r), r['repaired']) for r in rows(out)]
        == [({'kind', 'problem', 'todo', 'repaired'}, False)] * 2
    )
    status, out, err = resonance('check', '--repair', '--catalog', 'c', cwd=home)
    assert status == 0 and out.splitlines()[-2:] == [
        '7 songs indexed again (landmark)',
        'all is well: 7 songs in c',
    ]
    (home / 'music' / 'a' / 'song 000.wav').unlink()
    damage(next((home / 'c' / 'landmark').iterdir()), 'noise')
    status, out, err = resonance('check', '--repair', '--catalog', 'c', '--json', cwd=home)
    assert status == 2 and [(r['kind'], r['repaired']) for r in rows(out)] == [
        ('damaged', False),
        ('file-gone', False),
    ], 'one song of it is not mended'


def test_check_tells_a_changed_bit_in_one_line(home):
    without_checksums(home / 'c')
    status, out, err = resonance('check', '--catalog', 'c', cwd=home)
    assert (status, out) == (0, 'all is well: 7 songs in c\n') and err.startswith(
        '1 segment without checksums (made by an earlier version'
    )
    assert len(err.splitlines()) == 1 and resonance('check', '--catalog', 'c', '--json', cwd=home) == (
        0,
        '',
        err,
    )
    shutil.rmtree(home / 'c')
    assert resonance('index', 'music', '--catalog', 'c', '--method', 'landmark', cwd=home)[0] == 0
    for peaks in (home / 'c' / 'landmark').glob('*/peaks.npy'):
        flip(peaks)
    status, out, err = resonance('check', '--catalog', 'c', '--json', cwd=home)
    assert (
        (status, err) == (2, '')
        and {r['kind'] for r in rows(out)} == {'damaged'}
        and 'peaks.npy' in rows(out)[0]['problem']
    )
    status, out, err = resonance('check', '--repair', '--catalog', 'c', cwd=home)
    assert status == 0 and out.splitlines()[-2:] == [
        '7 songs indexed again (landmark)',
        'all is well: 7 songs in c',
    ]


@pytest.mark.parametrize(
    'words', [['check', '--repair'], ['check'], ['songs'], ['identify', 'clip.wav'], ['index', 'music']]
)
@pytest.mark.parametrize('emptied', [True, False])
def test_a_catalogue_that_lost_its_database_is_not_taken_for_a_new_one(home, words, emptied):
    c = home / 'c'
    before = sorted(p.name for p in c.glob('*/*'))
    for extra in ('-wal', '-shm'):
        (c / f'catalogue.sqlite{extra}').unlink(missing_ok=True)
    (c / 'catalogue.sqlite').write_bytes(b'') if emptied else (c / 'catalogue.sqlite').unlink()
    status, out, err = resonance(*words, '--catalog', 'c', cwd=home)
    assert (
        (status, out) == (2, '')
        and len(err.splitlines()) == 1
        and 'your music is not' in err
        and 'catalogue.sqlite' in err
    )
    assert before and sorted(p.name for p in c.glob('*/*')) == before, 'nothing is swept away'


def test_pruning_forgets_what_is_gone_and_only_that(home):
    (home / 'music' / 'a' / 'song 001.wav').unlink()
    (home / 'music' / 'b').rename(home / 'elsewhere')
    index = lambda *words: resonance(
        'index', *words, '--catalog', 'c', '--method', 'landmark', '--json', cwd=home
    )
    told = json.loads(index('music')[1])
    assert (told['songs'], told['missing'], told['pruned']) == (7, 4, 0)
    told = json.loads(index('music/a', '--prune')[1])
    assert (told['songs'], told['missing'], told['pruned']) == (6, 0, 1), (
        'of another folder nothing is forgotten'
    )
    told = json.loads(index('elsewhere', 'music', '--prune')[1])
    assert (told['songs'], told['unchanged'], told['pruned']) == (6, 6, 0), (
        'what was moved is no longer missing'
    )
    shutil.rmtree(home / 'music'), shutil.rmtree(home / 'elsewhere')
    (home / 'music').mkdir()  # as a disk that is not plugged in
    status, out, err = index('music', '--prune')
    assert json.loads(out)['songs'] == 6 and 'nothing of' in err and 'is forgotten' in err


def test_of_two_folders_the_one_that_is_not_there_keeps_its_songs(tmp_path, music):
    with Catalog(tmp_path / 'c', create=True) as c:
        c.index(music, method='landmark', progress=False)
        (music / 'a' / 'song 001.wav').unlink(), shutil.rmtree(music / 'b'), (music / 'b').mkdir()
        removal, kept = prune(c, [music / 'a', music / 'b'])
        assert (
            [s['title'] for s in removal.songs] == ['song 001'] and kept == [str(music / 'b')] and len(c) == 6
        )
        assert prune(c, [music / 'a'])[0].songs == [] and c.missing([music / 'b']) and len(c) == 6


def test_tags_written_without_a_new_date_are_read_when_asked(tmp_path, music):
    path = music / 'a' / 'song 001.wav'
    with Catalog(tmp_path / 'c', create=True) as c:
        c.index(music, method='landmark', progress=False)
        was = os.stat(path)
        data = bytearray(path.read_bytes())
        data[-2:] = bytes(b ^ 1 for b in data[-2:])
        path.write_bytes(data), os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))
        assert c.index(music, method='landmark', progress=False).unchanged == 7
        report = c.index(music, method='landmark', progress=False, rehash=True)
        assert (report.added, report.unchanged, len(c)) == (1, 6, 7) and 'its bytes changed' in report.notes[
            0
        ][1]


def commands(text):
    "The commands that a message names, as a shell takes them."
    return [shlex.split(words) for words in re.findall('`(resonance [^`]+)`', text)]


def test_the_commands_that_check_names_can_be_typed(home):
    (home / 'c').rename(home / "the c's")
    next((home / "the c's").glob('*/*/index.json')).unlink()
    (home / 'music' / 'a' / 'song 001.wav').rename(home / 'music' / 'song 001 moved.wav')
    status, out, _ = resonance('check', '--catalog', "the c's", cwd=home)
    told = commands(out)
    assert status == 2 and {tuple(words[1:3]) for words in told} == {
        ('check', '--repair'),
        ('index', 'FOLDER'),
        ('remove', '--missing'),
    }
    for words in sorted(told, key=lambda words: words[1] != 'index'):
        assert words[-2:] == ['--catalog', str(home / "the c's")]
        status, _, err = resonance(
            *[str(home / 'music') if w == 'FOLDER' else w for w in words[1:]], cwd=home
        )
        assert status == 0, err
    status, out, _ = resonance('check', '--catalog', "the c's", cwd=home)
    assert status == 0 and out.startswith('all is well: 7 songs')


def test_a_damaged_database_is_told_in_one_line(home):
    path = home / 'c' / 'catalogue.sqlite'
    data = bytearray(path.read_bytes())
    data[4096:] = os.urandom(len(data) - 4096)
    path.write_bytes(data)
    for words in (['check'], ['check', '--repair'], ['songs'], ['remove', '--missing']):
        status, out, err = resonance(*words, '--catalog', 'c', cwd=home)
        text = out + err
        assert (
            status == 2
            and text.count('is damaged') == 1
            and 'your music is not' in text
            and 'Traceback' not in text
            and len(err.splitlines()) <= 1
        )
    path.write_bytes(b'SQLite format 4' * 1000)
    status, out, err = resonance('check', '--catalog', 'c', cwd=home)
    assert (
        (status, out) == (2, '')
        and len(err.splitlines()) == 1
        and 'is damaged' in err
        and 'index your music into a new folder' in err
    )


@pytest.mark.parametrize(
    'words, says',
    [
        (['songs'], '--catalog'),
        (['songs', '--catalog', 'nowhere'], 'resonance index'),
        (['songs', '--missing', '--unreadable', '--catalog', 'c'], 'do not go together'),
        (['songs', 'word', '--export', 'x.csv', '--catalog', 'c'], 'takes nothing to look for'),
        (['songs', '--unreadable', '--artist', 'x', '--catalog', 'c'], 'takes nothing'),
        (['songs', '--import', 'nowhere.csv', '--catalog', 'c'], 'cannot read'),
        (['songs', '--export', 'no/such/folder.csv', '--catalog', 'c'], 'cannot write'),
        (['remove', '--catalog', 'c'], '--missing'),
        (['remove', 'no such', '--catalog', 'c'], 'no song has'),
        (['remove', 'song 001', '--catalog', 'c'], 'did you mean'),
        (['remove', 'x', '--catalog', 'music'], 'no catalogue'),
        (['check', '--catalog', 'music'], 'no catalogue'),
    ],
)
def test_a_complaint_is_one_line_and_status_2(home, words, says):
    status, out, err = resonance(*words, cwd=home)
    assert (
        (status, out) == (2, '')
        and says in err
        and len(err.splitlines()) == 1
        and err.startswith('resonance')
    )


@pytest.mark.parametrize('command', ['songs', 'remove', 'check'])
def test_every_help_teaches(command):
    status, out, err = resonance(command, '--help')
    assert (
        (status, err) == (0, '')
        and f'resonance {command}' in out.split('Options:')[0].split('\n', 1)[1]
        and '--json' in out
    )


def test_another_writer_is_waited_for_or_told(home):
    holder = subprocess.Popen(
        [
            sys.executable,
            '-c',
            'import sys\nfrom pathlib import Path\nfrom resonance_nb.store import writer_lock\n'
            'with writer_lock(Path(sys.argv[1]), wait=True): print("held", flush=True); sys.stdin.read()',
            str(home / 'c'),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout.readline() == 'held\n'
    try:
        status, out, err = resonance('remove', 'music/a', '--no-wait', '--catalog', 'c', cwd=home)
        assert (
            (status, out) == (2, '') and 'another process is indexing' in err and len(err.splitlines()) == 1
        )
        # looking never waits
        assert resonance('remove', 'music/a', '--dry-run', '--catalog', 'c', cwd=home)[0] == 0
        assert (
            resonance('check', '--catalog', 'c', cwd=home)[0]
            == resonance('songs', '--catalog', 'c', cwd=home)[0]
            == 0
        )
        waiting = subprocess.Popen(
            [sys.executable, '-c', MAIN, 'remove', 'music/a', '--catalog', 'c'],
            cwd=home,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert (
            waiting.stderr.readline() == 'another process is indexing this catalogue; waiting for it\n'
            and waiting.poll() is None
        )
    finally:
        holder.communicate()
    out, err = waiting.communicate(timeout=120)
    assert waiting.returncode == 0 and out.splitlines()[-1].startswith('4 songs removed; 3 songs in')


def test_a_read_only_catalogue_is_listed_and_not_changed(home):
    program = """if True:
        import os, sys
        from resonance_nb.catalog import Catalog
        from resonance_nb import cli, cli_catalog, core, songlist, audio, landmarks
        import resonance_nb.stream, filelock
        with Catalog(sys.argv[1]) as c: c.check()  # everything is imported before we become somebody else
        os.geteuid() or os.setuid(65534)
        for words in (['songs', '--json'], ['check'], ['remove', '--missing'], ['remove', sys.argv[2]]):
            try: cli.main([*words, '--catalog', sys.argv[1]])
            except SystemExit as e: print('status', e.code)
        """
    for folder in [home, *home.parents]:
        if folder.stat().st_mode & 0o777 == 0o700:
            os.chmod(folder, 0o755)
    places = [home / 'c', *(p for p in (home / 'c').rglob('*') if p.is_dir())]
    for place in places:
        os.chmod(place, 0o555)
    try:
        done = subprocess.run(
            [sys.executable, '-c', program, str(home / 'c'), str(home / 'music' / 'a')],
            capture_output=True,
            text=True,
        )
    finally:
        for place in places:
            os.chmod(place, 0o755)
    assert [line for line in done.stdout.splitlines() if line.startswith('status')] == [
        'status 0',
        'status 0',
        'status 2',
        'status 2',
    ], done.stdout + done.stderr
    assert len(done.stderr.splitlines()) == 2 and all('cannot' in line for line in done.stderr.splitlines())
    assert (
        json.loads(resonance('check', '--catalog', 'c', '--json', cwd=home)[1] or '{}') == {}
        and resonance('songs', '--catalog', 'c', cwd=home)[1].count('\n') == 8
    )
