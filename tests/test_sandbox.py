"""Decoding in a process of its own: the same samples, and whatever a decoder does, the program that asked goes on."""

import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from hostile import RATE, tone, write

from resonance_nb import audio, decode, sandbox
from resonance_nb.files import AudioError, TruncatedAudio

DIES = '''
import os, time, ctypes
import numpy as np
from resonance_nb import decode
real = decode.pieces
def pieces(path, *a):
    name = os.path.basename(path)
    for n, x in enumerate(real(path, *a)):
        if n == ('later' in name):
            if 'crash' in name: os.kill(os.getpid(), 11)
            if 'stall' in name: ctypes.PyDLL(None).sleep(60)  # in C, and nothing else runs meanwhile
            if 'memory' in name: np.ones(1 << 34)
            if 'bug' in name: raise RuntimeError('something odd')
        yield x
decode.pieces = pieces
streamed = decode.stream_pieces
def stream_pieces(read, name, *a):
    for n, x in enumerate(streamed(read, name, *a)):
        if n == 3 and 'crash' in name: os.kill(os.getpid(), 11)
        if n == 3 and 'stall' in name: ctypes.PyDLL(None).sleep(60)
        yield x
decode.stream_pieces = stream_pieces
'''


@pytest.fixture
def fragile(monkeypatch, tmp_path):
    "Decoders that do what the names of files say; a folder with a long file to name so."
    sandbox._end_all()
    monkeypatch.setattr(sandbox, '_START', sandbox._START.replace('; serve(', f'; exec({DIES!r}); serve('))
    yield write(tmp_path / 'whole.wav', np.tile(tone(10), (6, 1)))
    sandbox._end_all()


def heard(path, **how):
    got = [np.zeros(0, np.float32)]
    why = None
    try:
        got += audio.stream(path, **how)
    except AudioError as e:
        why = e
    return np.concatenate(got), why


def gone(pid, seconds=60):
    "Does the process end by itself?"
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if 'Z' in open(f'/proc/{pid}/stat').read().split(')')[1].split()[0]:
                return True
        except OSError:
            return True
        time.sleep(0.02)
    return False


def test_the_same_samples_as_without_it(tmp_path):
    path = write(tmp_path / 'a.flac', tone(7, 44_100, 2), 44_100, 'FLAC')
    for start, duration, rate in (
        (0.0, None, RATE),
        (1.234, 2.5, RATE),
        (0.0, 3.0, 11_025),
        (6.9, 5.0, RATE),
    ):
        there, here = (
            np.concatenate([*way.pieces(path, start, duration, rate)]) for way in (sandbox, decode)
        )
        assert np.array_equal(there, here) and len(there) and there.flags.writeable
    assert sandbox.info(path) == decode.info(path)


@pytest.mark.parametrize(
    'what, told',
    [
        ('crash', 'crashed its decoder (SIGSEGV)'),
        pytest.param(
            'memory',
            'needs more memory',
            marks=pytest.mark.skipif(sys.platform != 'linux', reason='only there memory is limited'),
        ),
        ('bug', 'cannot be decoded'),
    ],
)
def test_a_decoder_that_fails_costs_one_line(fragile, what, told):
    bad = fragile.rename(fragile.with_name(f'{what}.wav'))
    for _ in range(2):
        x, why = heard(bad)
        assert (
            not len(x)
            and type(why) is AudioError
            and told in str(why)
            and str(bad) in str(why)
            and len(str(why).splitlines()) == 1
        )
        good = write(fragile.with_name('good.wav'), tone(2))
        assert len(audio.load(good)) == 2 * RATE


def test_what_came_before_a_crash_is_kept(fragile):
    bad = fragile.rename(fragile.with_name('later crash.wav'))
    x, why = heard(bad, block_s=1.0)
    assert type(why) is TruncatedAudio and 'crashed' in str(why) and 0 < len(x) < 60 * RATE
    assert why.decoded_s == pytest.approx(len(x) / RATE, abs=0.01) and np.array_equal(
        x, audio.load(bad, duration_s=len(x) / RATE)[: len(x)]
    )


@pytest.mark.parametrize('name', ['stall.wav', 'later stall.wav'])
def test_a_decoder_that_never_comes_back_is_ended(fragile, monkeypatch, name):
    monkeypatch.setattr(sandbox, 'STALLED_S', 4)
    x, why = heard(fragile.rename(fragile.with_name(name)))
    assert 'stalled' in str(why) and bool(len(x)) == ('later' in name)


def test_whoever_takes_the_samples_may_be_slow(fragile, monkeypatch):
    monkeypatch.setattr(sandbox, 'STALLED_S', 4)
    n = 0
    for i, x in enumerate(sandbox.pieces(fragile, 0.0, None, RATE)):
        time.sleep(5 if i == 1 else 0)
        n += len(x)
    assert n == 60 * RATE


def test_stopping_in_the_middle_leaves_nothing_behind(fragile):
    for _ in range(3):
        pieces = sandbox.pieces(fragile, 0.0, None, RATE)
        next(pieces)
        pid = sandbox._busy[0].process.pid
        pieces.close()
        assert not sandbox._busy and gone(pid)
    assert len(audio.load(fragile)) == 60 * RATE


def test_one_process_for_one_file_after_another(fragile):
    audio.load(fragile, 0, 1)
    pid = sandbox._idle[0].process.pid
    for _ in range(5):
        audio.load(fragile, 1, 1), audio.info(fragile)
        with pytest.raises(AudioError, match='no such file'):
            audio.load(fragile.with_name('nothing.wav'))
    assert [d.process.pid for d in sandbox._idle] == [pid] and not sandbox._busy


def test_several_threads_at_once(fragile):
    whole = audio.load(fragile)
    same = []
    run = lambda: same.append(
        all(np.array_equal(audio.load(fragile, k, 3), whole[k * RATE : (k + 3) * RATE]) for k in range(8))
    )
    threads = [threading.Thread(target=run) for _ in range(4)]
    [t.start() for t in threads], [t.join() for t in threads]
    assert same == [True] * 4 and len(sandbox._idle) <= 4 and not sandbox._busy


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='this system does not fork')
@pytest.mark.filterwarnings('ignore:.*fork.*:DeprecationWarning')
def test_a_fork_has_decoders_of_its_own(fragile):
    whole = audio.load(fragile)
    child = os.fork()
    if not child:
        same = np.array_equal(audio.load(fragile), whole) and np.array_equal(
            audio.load(fragile, 3, 1), whole[3 * RATE : 4 * RATE]
        )
        sandbox._end_all()
        os._exit(0 if same else 1)
    others = [np.array_equal(audio.load(fragile, k, 1), whole[k * RATE : (k + 1) * RATE]) for k in range(20)]
    assert os.waitpid(child, 0)[1] == 0 and all(others)


@pytest.mark.skipif(not os.path.isdir('/proc/self'), reason='needs /proc')
@pytest.mark.parametrize('how', [signal.SIGKILL, signal.SIGINT])
def test_no_decoder_outlives_the_program(fragile, how):
    # a job in the background ignores it
    program = (
        'import signal, sys, time; signal.signal(signal.SIGINT, signal.default_int_handler); '
        'from resonance_nb import sandbox; p = sandbox.pieces(sys.argv[1], 0.0, None, 16_000); next(p); '
        'print(sandbox._busy[0].process.pid, flush=True); time.sleep(600)'
    )
    with subprocess.Popen(
        [sys.executable, '-c', program, str(fragile)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as parent:
        pid = int(parent.stdout.readline())
        parent.send_signal(how)
    assert gone(pid)


def test_a_folder_that_is_gone_is_no_reason_to_fail(fragile, monkeypatch, tmp_path):
    (tmp_path / 'gone').mkdir()
    monkeypatch.chdir(tmp_path / 'gone')
    (tmp_path / 'gone').rmdir()
    assert len(audio.load(fragile, 0, 1)) == RATE


def test_a_path_is_that_of_the_folder_we_are_in(fragile, monkeypatch):
    audio.load(fragile, 0, 1)  # a process that began elsewhere
    monkeypatch.chdir(fragile.parent)
    assert (
        len(audio.load(fragile.name, 0, 1)) == RATE
        and len(audio.load(os.fsencode(fragile.name), 0, 1)) == RATE
    )


@pytest.mark.parametrize('path', [None, 3.5, 'a\0b', '\ud800', b'\xff', '', '/'])
def test_what_is_no_file_is_told(path):
    with pytest.raises(AudioError) as told:
        audio.load(path)
    assert str(told.value).isprintable()


def test_without_it_everything_is_here(fragile, monkeypatch):
    monkeypatch.setenv('RESONANCE_SANDBOX', '0')
    assert len(audio.load(fragile)) == 60 * RATE and not sandbox._idle and not sandbox._busy


def test_a_library_with_a_file_that_kills_decoders_is_indexed(fragile, tmp_path):
    from resonance_nb.catalog import Catalog

    music = tmp_path / 'music'
    music.mkdir()
    for i, name in enumerate(('a.wav', 'crash.wav', 'later crash.wav', 'z.wav')):
        write(
            music / name,
            np.roll(np.tile(tone(6), (2, 1)), 7_777 * i, axis=0)
            + 0.05 * np.random.default_rng(i).standard_normal((12 * RATE, 1)).astype('float32'),
        )
    with Catalog(tmp_path / 'c', create=True) as c:
        report = c.index(music, method='landmark', progress=False)
        failed = dict(report.failed)
        assert report.added + len(failed) == 4 and 'crashed its decoder' in failed[str(music / 'crash.wav')]
        assert {os.path.basename(s['path']) for s in c.songs()} >= {'a.wav', 'z.wav'}


# ---- streams


@pytest.fixture
def radio(fragile):
    "A recording as bytes, and a pipe to send it through."
    data = write(
        fragile.with_name('radio.ogg'), np.tile(tone(10), (2, 1)), container='OGG', coding='VORBIS'
    ).read_bytes()
    r, w = os.pipe()
    with open(r, 'rb') as reading, open(w, 'wb', buffering=0) as writing:
        yield data, reading, writing


def send(writing, *parts):
    "Write parts with their pauses, seconds, in a thread, and close."

    def run():
        with writing:
            for data, pause_s in parts:
                writing.write(data)
                time.sleep(pause_s)

    threading.Thread(target=run, daemon=True).start()


def streamed(reading, name='a pipe'):
    got = [np.zeros(0, np.float32)]
    why = None
    try:
        got += sandbox.stream_pieces(reading.read1, name, RATE)
    except AudioError as e:
        why = e
    return np.concatenate(got), why


def test_a_stream_is_decoded_as_it_comes(radio, tmp_path):
    data, reading, writing = radio
    writing.write(data[: len(data) // 2])  # less than a pipe holds; no more before something was heard
    pieces = sandbox.stream_pieces(reading.read1, 'a pipe', RATE)
    heard = [next(pieces) for _ in range(4)]
    send(writing, (data[len(data) // 2 :], 0))
    heard += pieces
    whole = audio.load(tmp_path / 'radio.ogg')
    heard = np.concatenate(heard)
    assert len(heard) == len(whole) and np.abs(heard - whole).max() < 1e-3 and not sandbox._busy


def test_a_radio_may_pause_and_a_decoder_may_not(radio, monkeypatch):
    monkeypatch.setattr(sandbox, 'STALLED_S', 4)
    data, reading, writing = radio
    third = len(data) // 3
    send(writing, (data[:third], 6), (data[third:], 0))
    x, why = streamed(reading)
    assert len(x) == 20 * RATE and why is None


@pytest.mark.parametrize('name, said', [('crash', 'crashed its decoder'), ('stall', 'stalled its decoder')])
def test_a_stream_whose_decoder_dies_costs_a_line(radio, monkeypatch, name, said):
    monkeypatch.setattr(sandbox, 'STALLED_S', 4)
    data, reading, writing = radio
    send(writing, (data, 0))
    x, why = streamed(reading, name)
    assert type(why) is TruncatedAudio and said in str(why) and 0 < len(x) < 20 * RATE and not sandbox._busy


def test_a_stream_that_breaks_off_says_why_after_what_came(radio):
    data = radio[0]
    portions = []

    def read(n):
        if len(portions) == 20:
            raise AudioError('a pipe: breaks off')
        portions.append(data[1000 * len(portions) :][:1000])
        return portions[-1]

    got = []
    with pytest.raises(AudioError, match='a pipe: breaks off$'):
        for x in sandbox.stream_pieces(read, 'a pipe', RATE):
            got.append(x)
    assert sum(map(len, got)) > 0 and not sandbox._busy


def test_stopping_a_stream_leaves_nothing_behind(radio):
    data, reading, writing = radio
    writing.write(data[: len(data) // 2])
    pieces = sandbox.stream_pieces(reading.read1, 'a pipe', RATE)
    next(pieces)
    pid = sandbox._busy[0].process.pid
    pieces.close()
    assert not sandbox._busy and not sandbox._idle and gone(pid)
    writing.close()


@pytest.mark.skipif(not os.path.isdir('/proc/self'), reason='needs /proc')
@pytest.mark.parametrize('how', [signal.SIGKILL, signal.SIGINT])
def test_no_decoder_of_a_radio_that_pauses_outlives_the_program(radio, how):
    program = (
        'import signal, sys, time; signal.signal(signal.SIGINT, signal.default_int_handler); from resonance_nb import pipe, sandbox; '
        's = pipe.from_pipe(sys.stdin.buffer); next(s); print(sandbox._busy[0].process.pid, flush=True); [None for _ in s]'
    )
    with subprocess.Popen(
        [sys.executable, '-c', program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as parent:
        parent.stdin.write(radio[0])
        parent.stdin.flush()
        pid = int(parent.stdout.readline())
        parent.send_signal(how)
        assert gone(pid)


def test_a_stream_without_the_wall_is_the_same(radio, monkeypatch):
    data, reading, writing = radio
    send(writing, (data, 0))
    monkeypatch.setenv('RESONANCE_SANDBOX', '0')
    assert len(streamed(reading)[0]) == 20 * RATE and not sandbox._idle
