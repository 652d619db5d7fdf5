"""The catalogue under faults: killed, crowded, out of room, fed with rubbish."""

import operator
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import traceback
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

sys.path.insert(0, str(Path(__file__).parent))
import toy  # noqa: E402
from hostile import make_hostile  # noqa: E402
from resonance_nb import core, indexing, segments as pieces, songlist, store  # noqa: E402
from resonance_nb.catalog import Catalog  # noqa: E402
from resonance_nb.store import DATABASE, StorageError, show_path, stored_path  # noqa: E402
from resonance_nb.tags import read_tags  # noqa: E402
from resonance_nb.core import ResonanceError  # noqa: E402
from resonance_nb.songlist import remove, repair  # noqa: E402

TOY = Path(toy.__file__)


@pytest.fixture(autouse=True)
def methods(monkeypatch):
    monkeypatch.setitem(core.METHODS, 'toy', 'toy:Toy')
    monkeypatch.setitem(core.METHODS, 'stream-toy', 'toy:StreamToy')


@pytest.fixture(scope='module')
def music(tmp_path_factory):
    folder = tmp_path_factory.mktemp('music')
    toy.write_songs(folder, 40)
    return folder


def start(catalogue, music, jobs=1, batch=3, method='toy', **env):
    "An indexing process of its own."
    command = [sys.executable, str(TOY), str(catalogue), str(music), str(jobs), str(batch), method]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, 'OMP_NUM_THREADS': '1', **env},
    )


def wait_for(condition):
    while not condition():
        time.sleep(0.005)


def integrity(catalogue):
    with sqlite3.connect(catalogue / 'catalogue.sqlite') as db:
        return [r[0] for r in db.execute('PRAGMA integrity_check')] + db.execute(
            'PRAGMA foreign_key_check'
        ).fetchall()


def segments(catalogue, method='toy'):
    return {p.name for p in (catalogue / method).iterdir()} if (catalogue / method).is_dir() else set()


def named(catalog, method='toy'):
    return {r[0] for r in catalog.store.rows('SELECT name FROM segments WHERE method = ?', method)}


def fork():
    "Fork this process, which has one thread; see `conftest.pytest_pyfunc_call`."
    assert threading.active_count() == 1, threading.enumerate()
    return os.fork()


def killed_at_random(
    tmp_path, music, method, clips, rounds=20, folders=5, jobs=(1, 1, 1, 2), same=operator.eq, **env
):
    "Index with one kill -9 after another, each at a random moment of a run; resume; compare with an undisturbed catalogue."
    rng = random.Random(2024)
    with Catalog(tmp_path / 'calm', create=True) as calm:
        calm.index(music, method=method, progress=False)
        wanted = clips(calm)
    begin = time.monotonic()
    assert start(tmp_path / 'timing', music, method=method, **env).wait() == 0
    whole = time.monotonic() - begin
    moments = []
    found = []
    for round_ in range(rounds):
        # each folder is killed several times, in different states
        folder = tmp_path / f'killed {round_ % folders}'
        process = start(
            folder, music, jobs=jobs[round_ % len(jobs)], batch=rng.choice([1, 3, 7]), method=method, **env
        )
        if round_ % 4:  # most kills fall in the writing part, some in the start
            while process.poll() is None and not segments(folder, method):
                time.sleep(0.002)
            time.sleep(rng.uniform(0, whole / 4))
        else:
            time.sleep(rng.uniform(0, whole))
        process.send_signal(signal.SIGKILL)
        moments.append(process.wait())
        process.stdout.close(), process.stderr.close()
        if not (folder / 'catalogue.sqlite').exists():
            continue
        with Catalog(folder) as torn:  # what was committed can be read at once
            known = [r[0] for r in torn.store.rows('SELECT recording_id FROM indexed')]
            assert len(torn) == len(known)
            assert not known or len(torn.recognizer(method)) == len(known)
            found.append(len(known))
    for i in range(folders):
        folder = tmp_path / f'killed {i}'
        with Catalog(folder, create=True) as torn:
            before = len(torn)
            report = torn.index(music, method=method, progress=False)
            assert (report.added, report.unchanged, report.failed) == (len(wanted[0]) - before, before, [])
            assert same(clips(torn), wanted)
            assert torn.check() == [] and segments(folder, method) == named(torn, method)
        assert integrity(folder) == ['ok']
    return moments, found


def test_killed_at_twenty_random_moments(tmp_path, music):
    moments, found = killed_at_random(tmp_path, music, 'toy', toy.truth, TOY_DELAY_S='0.01')
    assert moments.count(-signal.SIGKILL) >= 8, f'too few runs were really killed: {moments}'
    assert sum(0 < n < 40 for n in found) >= 2, f'too few kills fell in the middle: {found}'


def test_killed_with_the_real_recogniser(tmp_path):
    toy.write_songs(tmp_path / 'music', 12)
    moments, _ = killed_at_random(
        tmp_path,
        tmp_path / 'music',
        'landmark',
        lambda c: toy.truth(c, 12, 'landmark'),
        rounds=4,
        folders=2,
        same=toy.same_truth,
    )
    assert -signal.SIGKILL in moments


@pytest.mark.alone
@pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork')
def test_killed_at_every_step(tmp_path):
    "Between any two writes: before and after each fsync and each transaction, merging included."
    music = tmp_path / 'music'
    toy.write_songs(music, 4)
    with Catalog(tmp_path / 'calm', create=True) as calm:
        calm.index(music, method='toy', progress=False)
        wanted = toy.truth(calm, 4)

    def child(folder, last_step):
        step = iter(range(1, 10**6))

        def tick():
            if next(step) == last_step:
                os.kill(os.getpid(), signal.SIGKILL)

        sync = pieces.sync_to_disk
        transaction = store.Store.transaction

        def counted_sync(place):
            tick()
            sync(place)

        @contextmanager
        def counted_transaction(self):
            tick()
            with transaction(self) as db:
                yield db
                tick()
            tick()

        indexing.REST_SEGMENTS = 2
        pieces.sync_to_disk = counted_sync
        store.Store.transaction = counted_transaction
        try:
            with Catalog(folder, create=True) as c:
                c.index(music, method='toy', batch_files=1, progress=False)
        finally:
            os._exit(0)

    killed = []
    for last_step in range(1, 200):
        folder = tmp_path / f'step {last_step}'
        pid = fork()
        if not pid:
            child(folder, last_step)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        with Catalog(folder) as torn:
            killed.append(len(torn))
            assert len(torn.recognizer('toy')) == len(torn)
            report = torn.index(music, method='toy', progress=False)
            assert (report.added, report.unchanged, report.failed) == (4 - killed[-1], killed[-1], [])
            assert toy.truth(torn, 4) == wanted and torn.check() == [] and torn.unverified() == []
        if status == 0:
            break
        assert status == -signal.SIGKILL
        shutil.rmtree(folder)
    assert set(killed) == set(range(5)) and killed == sorted(killed) and len(killed) > 25


def killed_at_each_step(tmp_path, base, act, look):
    "Do `act` on copies of a catalogue, killed before every sync, transaction and removed folder, until it ends; `look` at each."

    def child(folder, last_step):
        step = iter(range(1, 10**6))

        def tick():
            if next(step) == last_step:
                os.kill(os.getpid(), signal.SIGKILL)

        def ticking(function):
            return lambda *a, **k: (tick(), function(*a, **k), tick())[1]

        transaction = store.Store.transaction

        @contextmanager
        def counted(self):
            tick()
            with transaction(self) as db:
                db.set_trace_callback(lambda sql: tick())  # before each statement, COMMIT too
                yield db
            db.set_trace_callback(None)
            tick()

        store.Store.transaction = counted
        pieces.sync_to_disk = ticking(pieces.sync_to_disk)
        shutil.rmtree = ticking(shutil.rmtree)
        with Catalog(folder) as c:
            act(c)

    for last_step in range(1, 400):
        folder = tmp_path / f'step {last_step}'
        shutil.copytree(base, folder)
        pid = fork()
        if not pid:
            try:
                child(folder, last_step)
                os._exit(0)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert status in (0, -signal.SIGKILL)
        look(folder, status == 0)
        assert integrity(folder) == ['ok']
        if status == 0:
            return last_step
        shutil.rmtree(folder)


@pytest.mark.alone
@pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork')
def test_removing_killed_at_every_step(tmp_path):
    toy.write_songs(tmp_path / 'music' / 'a', 3), toy.write_songs(tmp_path / 'music' / 'b', 2, first=3)
    with Catalog(tmp_path / 'base', create=True) as c:
        (
            c.index(tmp_path / 'music', method='toy', progress=False),
            c.index(tmp_path / 'music' / 'b', method='stream-toy', progress=False),
        )
        whole = toy.truth(c, 5)
    shutil.copytree(tmp_path / 'base', tmp_path / 'calm')
    with Catalog(tmp_path / 'calm') as c:
        remove(c, [tmp_path / 'music' / 'a'])
        less = toy.truth(c, 5)
    seen = []

    def look(folder, finished):
        with Catalog(folder) as torn:
            seen.append(len(torn))
            assert toy.truth(torn, 5) == (whole if len(torn) == 5 else less) and len(torn) in (5, 2)
            assert len(torn.recognizer('toy')) == len(torn) and len(torn.recognizer('stream-toy')) == 2
            assert {p.kind for p in torn.problems()} <= (set() if finished else {'left-over'})
            if len(torn) == 5:
                remove(torn, [tmp_path / 'music' / 'a'])
            assert toy.truth(torn, 5) == less
            report = torn.index(tmp_path / 'music', method='toy', progress=False)  # and all of it comes back
            assert (report.added, report.unchanged, report.failed) == (3, 2, []) and torn.check() == []
            assert toy.truth(torn, 5) == whole and segments(folder) == named(torn)

    assert (
        killed_at_each_step(
            tmp_path, tmp_path / 'base', lambda c: remove(c, [tmp_path / 'music' / 'a']), look
        )
        > 12
    )
    assert (
        seen == sorted(seen, reverse=True)
        and set(seen) == {5, 2}
        and seen.count(5) >= 3
        and seen.count(2) >= 3
    )


@pytest.mark.alone
@pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork')
def test_repairing_killed_at_every_step(tmp_path):
    toy.write_songs(tmp_path / 'music', 3)
    with Catalog(tmp_path / 'base', create=True) as c:
        c.index(tmp_path / 'music', method='toy', progress=False)
        wanted = toy.truth(c, 3)
    shutil.rmtree(next((tmp_path / 'base' / 'toy').iterdir()))
    left = []

    def look(folder, finished):
        with Catalog(folder) as torn:
            assert len(torn) == 3 and (not finished or torn.check() == [])
            left.append(len(torn.store.rows('SELECT * FROM indexed')))
            repair(torn, torn.problems(), progress=False)
            assert torn.check() == [] and toy.truth(torn, 3) == wanted

    assert (
        killed_at_each_step(
            tmp_path, tmp_path / 'base', lambda c: repair(c, c.problems(), progress=False), look
        )
        > 10
    )
    assert left[0] == left[-1] == 3 and 0 in left  # killed before and after the damaged one was forgotten


@pytest.mark.alone
@pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork')
def test_repairing_changed_bytes_killed_at_every_step(tmp_path, monkeypatch):
    "No song leaves an index before it is in it again, so that nothing is forgotten in silence."
    monkeypatch.setenv('TOY_BALLAST', '64')
    toy.write_songs(tmp_path / 'music', 3)
    with Catalog(tmp_path / 'base', create=True) as c:
        (
            c.index(tmp_path / 'music', method='toy', batch_files=2, progress=False),
            c.index(tmp_path / 'music', method='stream-toy', progress=False),
        )
        wanted = toy.truth(c, 3)
        file = c.folder / 'toy' / c.store.segments('toy')[0]['name'] / 'songs.npz'
    data = file.read_bytes()
    file.write_bytes(data.replace(bytes(64), bytes(63) + b'x', 1))  # what no one reads
    kinds = []

    def look(folder, finished):
        with Catalog(folder) as torn:
            assert (
                len(torn.store.rows("SELECT * FROM indexed WHERE method = 'toy'")) == 3
                and toy.truth(torn, 3) == wanted
            )
            kinds.append({p.kind for p in torn.problems()})
            repair(torn, torn.problems(), progress=False)
            assert torn.check() == [] and toy.truth(torn, 3) == wanted and segments(folder) == named(torn)

    assert (
        killed_at_each_step(
            tmp_path, tmp_path / 'base', lambda c: repair(c, c.problems(), progress=False), look
        )
        > 10
    )
    assert 'damaged' in kinds[0] and kinds[-1] == set() and all('not-indexed' not in k for k in kinds)


@pytest.mark.alone
@pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork')
@pytest.mark.parametrize('old', [(1, 0), (2, 1)])
def test_a_new_format_killed_at_every_statement(tmp_path, old):
    "A catalogue of an earlier format becomes one of this one, or stays what it was."
    toy.write_songs(tmp_path / 'music', 3)
    with Catalog(tmp_path / 'base', create=True) as c:
        c.index(tmp_path / 'music', method='toy', progress=False)
        wanted = toy.truth(c, 3)
    toy.age(tmp_path / 'base', old[0])

    def child(folder, last_step):
        step = iter(range(1, 10**6))
        connect = store._connect

        def tick(sql):
            if next(step) == last_step:
                os.kill(os.getpid(), signal.SIGKILL)

        def traced(path):
            db, can_write = connect(path)
            db.set_trace_callback(tick)
            return db, can_write

        store._connect = traced
        Catalog(folder).close()

    formats = []
    for last_step in range(1, 100):
        folder = tmp_path / f'step {last_step}'
        shutil.copytree(tmp_path / 'base', folder)
        pid = fork()
        if not pid:
            try:
                child(folder, last_step)
                os._exit(0)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        formats.append(toy.format_of(folder))
        with Catalog(folder) as c:
            assert toy.truth(c, 3) == wanted and c.check() == []
            assert c.index(tmp_path / 'music', method='toy', progress=False).unchanged == 3
        assert integrity(folder) == ['ok']
        if status == 0:
            break
        assert status == -signal.SIGKILL
    assert set(formats) == {old, (3, 2)} and formats == sorted(formats) and len(formats) > 12


def test_two_processes_at_once_bring_an_old_catalogue_up_to_date(tmp_path, music):
    with Catalog(tmp_path / 'c', create=True) as c:
        c.index(sorted(music.iterdir())[:5], method='toy', progress=False)
    toy.age(tmp_path / 'c', 1)
    runs = [start(tmp_path / 'c', sorted(music.iterdir())[i]) for i in (0, 1, 5)]
    outs = [run.communicate() for run in runs]
    assert [run.returncode for run in runs] == [0, 0, 0], outs
    with Catalog(tmp_path / 'c') as c:
        assert len(c) == 6 and c.check() == [] and c.store.rows('SELECT count(*) FROM unreadable')[0][0] == 0


def test_two_processes_remove_at_once_and_one_indexes(tmp_path, music):
    lost = shutil.copytree(music, tmp_path / 'lost')
    with Catalog(tmp_path / 'c', create=True) as c:
        c.index(lost, method='toy', progress=False)
    for path in sorted(lost.iterdir())[:30]:
        path.unlink()
    toy.write_songs(tmp_path / 'more', 10, first=40)
    code = 'import sys; from resonance_nb.cli import main; main()'
    words = [sys.executable, '-c', code, 'remove', '--missing', '--catalog', str(tmp_path / 'c'), '--json']
    writer = start(tmp_path / 'c', tmp_path / 'more', batch=1, TOY_DELAY_S='0.05')
    removers = [
        subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)
    ]
    outs = [run.communicate() for run in (writer, *removers)]
    assert [run.returncode for run in (writer, *removers)] == [0, 0, 0], outs
    # one of them finds nothing left to do
    assert sorted(len(out.splitlines()) for out, _ in outs[1:]) == [0, 30]
    with Catalog(tmp_path / 'c') as c:
        assert len(c) == len(c.recognizer('toy')) == 20 and c.check() == []
    assert integrity(tmp_path / 'c') == ['ok']


def test_a_killed_parent_leaves_no_workers(tmp_path, music):
    process = start(tmp_path / 'c', music, jobs=2, batch=2, TOY_DELAY_S='0.2')
    children = Path(f'/proc/{process.pid}/task/{process.pid}/children')
    if not children.parent.exists():
        pytest.skip('the list of child processes is in /proc on Linux only')
    threads = Path(f'/proc/{process.pid}/task')

    def pids():
        return [int(p) for t in threads.iterdir() for p in (t / 'children').read_text().split()]

    wait_for(lambda: len(pids()) == 2)
    workers = pids()
    wait_for(lambda: segments(tmp_path / 'c'))
    process.kill()
    process.communicate()

    def gone(pid):
        try:
            return Path(f'/proc/{pid}/stat').read_text().rsplit(')', 1)[1].split()[0] == 'Z'
        except OSError:
            return True

    wait_for(lambda: all(map(gone, workers)))


def test_two_indexers_at_once(tmp_path, music):
    toy.write_songs(tmp_path / 'more', 10, first=30)  # half of them are in the other folder too
    shutil.copytree(music, tmp_path / 'all')
    first = start(tmp_path / 'c', tmp_path / 'all', TOY_DELAY_S='0.05')
    wait_for(lambda: segments(tmp_path / 'c'))
    second = start(tmp_path / 'c', tmp_path / 'more')
    with Catalog(tmp_path / 'c') as reader:  # readers never wait
        seen = len(reader.recognizer('toy')) if reader.methods() else 0
        assert seen < 40 and first.poll() is None
        with pytest.raises(core.ResonanceError, match='another process is indexing'):
            reader.index(music, method='toy', progress=False, wait=False)
    (out1, err1), (out2, err2) = first.communicate(), second.communicate()
    assert (first.returncode, second.returncode, err1) == (0, 0, '')
    assert err2 == 'another process is indexing this catalogue; waiting for it\n'
    assert (out1, out2) == ('40 0 0\n', '0 10 0\n')
    with Catalog(tmp_path / 'c') as c:
        assert len(c) == len(c.recognizer('toy')) == 40 and c.check() == []
    assert integrity(tmp_path / 'c') == ['ok']


def test_two_start_at_once_with_nothing_there(tmp_path, music):
    halves = [tmp_path / 'a', tmp_path / 'b']
    for i, half in enumerate(halves):
        toy.write_songs(half, 12, first=8 * i)
    runs = [start(tmp_path / 'c', half, jobs=i + 1) for i, half in enumerate(halves)]
    outs = [r.communicate() for r in runs]
    assert [r.returncode for r in runs] == [0, 0], outs
    added = sum(int(out.split()[0]) for out, _ in outs)
    with Catalog(tmp_path / 'c') as c:
        assert added == len(c) == len(c.recognizer('toy')) == 20


@pytest.fixture
def small_disk(tmp_path):
    "A disk of 1 MB."
    place = tmp_path / 'disk'
    place.mkdir()
    done = (
        shutil.which('mount')
        and subprocess.run(
            ['mount', '-t', 'tmpfs', '-o', 'size=1m', 'tmpfs', str(place)], capture_output=True
        ).returncode
        == 0
    )
    if not done:
        pytest.skip('no permission to mount a small tmpfs; the next test simulates a full disk')
    yield place
    subprocess.run(['umount', '-l', str(place)], check=True)


@pytest.mark.parametrize('jobs', [1, 2])
def test_disk_full(small_disk, music, monkeypatch, jobs):
    monkeypatch.setenv('TOY_BALLAST', '100000')
    with Catalog(small_disk / 'c', create=True) as c:
        with pytest.raises(StorageError) as error:
            c.index(music, method='toy', jobs=jobs, batch_files=2, progress=False)
        kept = len(c)
        assert f'{kept} new songs of this run are kept' in str(error.value) and '\n' not in str(error.value)
        assert 0 < kept < 40
        assert c.check() == []
    filler = open(small_disk / 'filler', 'wb', buffering=0)  # not one byte more
    try:
        while filler.write(b'x' * 512):
            pass
    except OSError:
        pass
    with Catalog(small_disk / 'c') as c:
        song = c.songs()[0]
        assert c.identify(song['path']).matches[0].track_id == song['recording_id']
        with pytest.raises(StorageError):
            c.index(music, method='toy', batch_files=2, progress=False)
    filler.close()
    (small_disk / 'filler').unlink()
    monkeypatch.setenv('TOY_BALLAST', '0')
    with Catalog(small_disk / 'c') as c:
        report = c.index(music, method='toy', progress=False)
        assert (report.added, report.unchanged) == (40 - kept, kept)
        assert len(c.recognizer('toy')) == 40 and c.check() == []
    assert integrity(small_disk / 'c') == ['ok']


@pytest.mark.parametrize('jobs', [1, 2])
def test_disk_full_simulated(tmp_path, music, monkeypatch, jobs):
    with Catalog(tmp_path / 'c', create=True) as c:
        c.index(sorted(music.iterdir())[:4], method='toy', progress=False)
        monkeypatch.setenv('TOY_FULL', '1')
        with pytest.raises(StorageError, match=r'No space left.* 0 new songs'):
            c.index(music, method='toy', jobs=jobs, progress=False)
        assert len(c) == len(c.recognizer('toy')) == 4 and segments(tmp_path / 'c') == named(c)
        monkeypatch.delenv('TOY_FULL')
        assert c.index(music, method='toy', jobs=jobs, progress=False).added == 36


@pytest.mark.parametrize('last', [False, True])
def test_a_file_that_crashes_its_reader(tmp_path, music, monkeypatch, last):
    culprit = sorted(music.iterdir())[11 if last else 5]
    monkeypatch.setenv('TOY_CRASH_ID', core.sha256_file(culprit)[:16])
    with Catalog(tmp_path / 'c', create=True) as c:
        report = c.index(sorted(music.iterdir())[:12], method='toy', jobs=2, batch_files=4, progress=False)
        assert report.added == 11 and report.failed == [
            (str(culprit), 'crashed the program that reads it (SIGSEGV)')
        ]
        monkeypatch.delenv('TOY_CRASH_ID')
        assert c.index(music, method='toy', progress=False).added == 29


def test_a_worker_that_cannot_start(tmp_path, music, monkeypatch):
    monkeypatch.setattr(sys, 'executable', shutil.which('false'))
    with (
        Catalog(tmp_path / 'c', create=True) as c,
        pytest.raises(core.ResonanceError, match='a worker process could not start'),
    ):
        c.index(music, method='toy', jobs=2, progress=False)


def test_interrupted_from_the_keyboard(tmp_path, music):
    "One song is never done: the run waits for it when all others are in, on a fast machine and on a slow one."
    waits = sorted(music.iterdir())[10]  # the first of its batch
    process = start(tmp_path / 'c', music, jobs=2, batch=2, TOY_WAIT_ID=core.sha256_file(waits)[:16])

    def n_indexed():
        assert process.poll() is None, process.stderr.read()
        with suppress(sqlite3.OperationalError):  # there is no catalogue yet, or no table in it
            with closing(sqlite3.connect(f'file:{tmp_path / "c" / DATABASE}?mode=ro', uri=True)) as db:
                return db.execute('SELECT count(*) FROM indexed').fetchone()[0]

    wait_for(lambda: n_indexed() == 38)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    line = [text for text in err.splitlines() if 'interrupted:' in text]
    with Catalog(tmp_path / 'c') as c:
        assert len(c) == 38 and line == [
            'interrupted: 38 new songs of this run are kept; run the same command again to go on'
        ]
        assert segments(tmp_path / 'c') == named(c)
        assert c.index(music, method='toy', progress=False).added == 2


def test_ctrl_c_in_the_middle_of_a_commit_waits_for_its_end(tmp_path, music, monkeypatch, capfd):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    real = indexing._tick_off

    def interrupted(file, facts, run):
        signal.raise_signal(signal.SIGINT)  # the songs are committed, and not yet counted
        real(file, facts, run)

    monkeypatch.setattr(indexing, '_tick_off', interrupted)
    try:
        with Catalog(tmp_path / 'c', create=True) as c:
            with pytest.raises(KeyboardInterrupt):
                c.index(music, method='toy', batch_files=3, progress=False)
            assert len(c) == 3 and 'interrupted: 3 new songs of this run are kept' in capfd.readouterr().err
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize('method, jobs', [('toy', 1), ('stream-toy', 2)])
def test_hostile_folder(tmp_path, method, jobs):
    expected = make_hostile(tmp_path / 'music')
    mute = {'silence.flac', 'one-sample.wav'}  # good files in which there is nothing to recognise
    with Catalog(tmp_path / 'c', create=True) as c:
        report = c.index(tmp_path / 'music', method=method, jobs=jobs, progress=False)
        failed = {path: why for path, why in report.failed}
        known = {r[0] for r in c.store.rows('SELECT path FROM files')}
        for path, outcome in expected:
            if path.is_dir() and not path.is_symlink():
                continue  # a folder with the name of a song is searched like any other
            if outcome == 'fail' or path.name in mute:
                assert [p for p, _ in report.failed].count(str(path)) == 1, (path, outcome)
                assert stored_path(path) not in known
            elif outcome == 'ok':
                assert str(path) not in failed and stored_path(path) in known, (path, failed.get(str(path)))
            else:  # 'partial': kept when a second of it could be heard, and told in one line either way
                told = failed | dict(report.notes)
                assert str(path) in told and (str(path) in failed) != (stored_path(path) in known), path
        assert sum(outcome == 'fail' for _, outcome in expected) >= 10 and len(expected) >= 30
        lines = report.lines()
        copies = sum(text.startswith('the same recording as') for _, text in report.notes)
        assert copies > 3 and len(lines) == len(report.failed) + len(report.notes) - copies + 1
        assert all(line.isprintable() and line.count(show_path(tmp_path / 'music')) <= 3 for line in lines)
        assert len(c) == len(c.recognizer(method)) == report.added and c.check() == []
        again = c.index(tmp_path / 'music', method=method, progress=False)
        assert again.added == 0 and len(again.failed) == len(report.failed)


@pytest.mark.parametrize(
    'table, column', [('songs', 'path'), ('songs', 'title'), ('files', 'path'), ('segments', 'method')]
)
def test_a_text_that_is_none_is_told_in_one_line(tmp_path, music, table, column):
    with Catalog(tmp_path / 'c', create=True) as c:
        c.index(music, method='toy', progress=False)
    with sqlite3.connect(tmp_path / 'c' / DATABASE) as db:  # one bit of a row's head makes bytes of a text
        db.execute(
            f'UPDATE {table} SET {column} = CAST({column} AS BLOB) WHERE rowid = (SELECT max(rowid) FROM {table})'
        )
    with Catalog(tmp_path / 'c') as c:
        for ask in (c.songs, c.problems, lambda: songlist.list_songs(c), lambda: songlist.overview(c)):
            try:
                ask()
            except ResonanceError as e:
                assert str(e).isprintable() and 'damaged' in str(e)
        if table == 'songs':
            with pytest.raises(ResonanceError, match='is damaged'):
                c.songs()


def test_tags_come_from_no_other_file(tmp_path):
    import av

    sf.write(tmp_path / 'secret.flac', np.zeros(16_000, 'f4'), 16_000)
    with (
        av.open(str(tmp_path / 'secret.flac')) as source,
        av.open(str(tmp_path / 'secret.mka'), 'w', format='matroska') as to,
    ):
        stream = to.add_stream_from_template(source.streams.audio[0])
        to.metadata['title'] = 'a secret'
        for packet in source.demux(source.streams.audio[0]):
            if packet.pts is not None:
                packet.stream = stream
                to.mux(packet)
    assert read_tags(tmp_path / 'secret.mka')['title'] == 'a secret'
    for name, text in (
        (
            'list.mp3',
            f'#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{tmp_path}/secret.mka\n#EXT-X-ENDLIST\n',
        ),
        ('list.m4a', f'ffconcat version 1.0\nfile {tmp_path}/secret.mka\n'),
    ):
        (tmp_path / name).write_text(text)
        assert read_tags(tmp_path / name)['title'] == 'list'
