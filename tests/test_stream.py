"""Streams: buffers and steps against their definitions, files and pipes of every kind, microphones that go and come back, and threads that end."""

import io
import os
import struct
import subprocess
import sys
import threading
import time
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile as sf
import soxr
from hypothesis import example, given, settings
from hypothesis import strategies as some

from resonance_nb import audio, ffmpeg, sandbox
from resonance_nb import microphone as hardware
from resonance_nb import pipe as piping
from resonance_nb import stream as st
from resonance_nb.core import MissingExtra, ResonanceError
from resonance_nb.stream import Block, RingBuffer

sys.path.insert(0, str(Path(__file__).parent))
from hostile import RATE, make_hostile, tone, wav_header, write, write_av  # noqa: E402


@pytest.fixture(autouse=True)
def no_thread_stays():
    before = set(threading.enumerate())
    yield
    until = time.monotonic() + 60
    while (left := set(threading.enumerate()) - before) and time.monotonic() < until:
        time.sleep(0.01)
    assert not left, f'threads that did not end: {left}'


@pytest.fixture(scope='module')
def sound():
    return tone(4.0)[:, 0]


def joined(blocks):
    return np.concatenate([b.samples for b in blocks] or [np.zeros(0, np.float32)])


def check_blocks(blocks, block_s=0.25):
    "Blocks follow on each other, and are what they should be."
    end = 0
    for b in blocks:
        assert b.samples.dtype == np.float32 and b.samples.ndim == 1 and len(b.samples)
        assert np.isfinite(b.samples).all() and np.abs(b.samples).max() <= 1
        assert round(b.start_s * RATE) == end + round(b.gap_s * RATE)
        end = round(b.end_s * RATE)
    assert all(len(b.samples) == round(block_s * RATE) for b in blocks[:-1])
    return blocks


# ---- the last seconds

lengths = some.lists(
    some.tuples(some.integers(0, 900), some.sampled_from([0, 0, 0, 0, 1, 30, 200, 399, 400, 5_000])),
    max_size=25,
)


def stream_of(cuts, seed=0):
    "Blocks of these lengths, each after a gap of so many samples, in random numbers."
    rng = np.random.default_rng(seed)
    at = 0
    for n, lost in cuts:
        at += lost
        yield Block(at / RATE, rng.uniform(0.1, 1, n).astype(np.float32), lost / RATE)
        at += n


@settings(max_examples=80, deadline=None)
@given(lengths)
def test_ring_holds_the_end_of_everything(cuts):
    ring = RingBuffer(400 / RATE)
    everything = np.zeros(0, np.float32)
    begun = 0
    for b in stream_of(cuts):
        lost = round(b.start_s * RATE) - len(everything)
        if lost >= 400 or begun == len(everything):
            begun = len(everything) + lost  # nothing of before is left
        everything = np.concatenate([everything, np.zeros(lost, np.float32), b.samples])
        ring.write(b)
        held = min(400, len(everything) - begun)
        assert ring.end_s == b.end_s and ring.held_s == held / RATE
        for n in (1, 37, 400, 999):
            assert np.array_equal(ring.last(n / RATE), everything[len(everything) - min(n, held) :])


def test_ring_takes_what_is_longer_than_itself_and_bare_samples(sound):
    ring = RingBuffer(1)
    ring.write(sound)
    assert np.array_equal(ring.last(1), sound[-RATE:]) and ring.end_s == 4
    ring.write(sound[:100].tolist())
    assert np.array_equal(ring.last(1), np.concatenate([sound[100 - RATE :], sound[:100]]))


def test_ring_gives_copies(sound):
    ring = RingBuffer(1)
    ring.write(sound[:RATE])
    kept = ring.last(1)
    ring.write(sound[RATE : 2 * RATE])
    assert np.array_equal(kept, sound[:RATE]) and kept.flags.c_contiguous and kept.flags.owndata
    kept[:] = 9
    assert ring.last(1).max() < 1


def test_ring_begins_anew_with_another_stream(sound):
    ring = RingBuffer(2)
    ring.write(Block(100.0, sound))
    ring.write(Block(0.0, sound[:50]))
    assert np.array_equal(ring.last(2), sound[:50]) and ring.end_s == 50 / RATE


@pytest.mark.parametrize('bad', [0, -1, float('nan'), float('inf'), 1e-9])
def test_lengths_that_mean_nothing_are_refused(bad, tmp_path, sound):
    path = write(tmp_path / 'a.wav', sound[:, None])
    for call in (
        RingBuffer,
        RingBuffer(1).last,
        lambda s: list(st.every([], s)),
        lambda s: st.from_file(path, s),
        lambda s: piping.from_raw(io.BytesIO(), block_s=s),
        lambda s: st.with_back_pressure([], s),
    ):
        with pytest.raises(ResonanceError, match='no length'):
            call(bad)


def test_an_hour_in_flat_memory(sound):
    "Blocks of lengths that fit nowhere, through steps and buffer."
    ring = RingBuffer(10)
    pieces = [sound[:n] for n in (3_999, 4_001, 60_000, 1, 12_345)]

    def hour():
        at, i = 0, 0
        while at < 3_600 * RATE:
            yield Block(at / RATE, pieces[i % 5])
            at = at + len(pieces[i % 5])
            i = i + 1

    n = 0
    early = None
    tracemalloc.start()
    try:
        for step in st.every(hour()):
            ring.write(step)
            n += 1
            if n % 4 == 0:
                ring.last(5)
            if n == 400:
                early = tracemalloc.get_traced_memory()[0]
                tracemalloc.reset_peak()
        now, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert n >= 14_400 and now < early + 100_000 and peak < early + 1_000_000


# ---- the same places


def steps_by_definition(cuts, size):
    "What `every` gives, from the whole stream at once."
    blocks = list(stream_of(cuts))
    heard = np.zeros(round(blocks[-1].end_s * RATE) if blocks else 0, bool)
    x = np.zeros(len(heard), np.float32)
    for b in blocks:
        x[round(b.start_s * RATE) :][: len(b.samples)] = b.samples
        heard[round(b.start_s * RATE) :][: len(b.samples)] = True
    x, heard = (np.pad(v, (0, -len(v) % size)).reshape(-1, size) for v in (x, heard))
    return {k: x[k] for k in np.flatnonzero(heard.any(1))}


@settings(max_examples=80, deadline=None)
@given(lengths, some.sampled_from([1, 7, 100, 400, 4_000]))
@example([(1, 0), (0, 1)], 7)
def test_steps_are_where_they_should_be(cuts, size):
    got = list(st.every(stream_of(cuts), size / RATE))
    wanted = steps_by_definition(cuts, size)
    assert [round(s.start_s * RATE) for s in got] == [k * size for k in wanted]
    for s, x in zip(got, wanted.values()):
        assert len(s.samples) == size and np.array_equal(s.samples, x)
    told = sum(round(s.gap_s * RATE) for s in got)
    ended = np.cumsum([n for n, _ in cuts][::-1])[::-1] > 0 if cuts else []  # gaps with sound after them
    assert told == sum(lost for (_, lost), more in zip(cuts, ended) if more)


@settings(max_examples=100, deadline=None)
@given(some.lists(some.integers(0, 9_999), max_size=30), some.integers(0, 3))
def test_steps_do_not_depend_on_the_blocks(cuts, empty):
    x = np.random.default_rng(1).standard_normal(9_999).astype(np.float32)

    def cut_at(places):
        "The same sound and the same gap of 1 000 samples, in other blocks."
        places = sorted({0, 3_333, *places})
        for a, b in zip(places, [*places[1:], len(x)]):
            at = a + 1_000 * (a >= 3_333)
            yield from (
                Block(at / RATE, x[a:a], 1_000 / RATE * (a == 3_333 and i == 0)) for i in range(empty)
            )
            yield Block(at / RATE, x[a:b], 1_000 / RATE * (a == 3_333 and not empty))

    as_told = lambda blocks: [(s.start_s, s.gap_s, s.samples.tobytes()) for s in blocks]
    assert as_told(st.every(cut_at(cuts), 0.05)) == as_told(st.every(cut_at([]), 0.05))


def test_steps_are_memory_of_their_own(sound):
    steps = list(st.every([Block(0.0, sound)]))
    steps[0].samples[:] = 5
    assert sound.max() < 1 and steps[1].samples.max() < 1


def test_a_step_back_in_time_is_refused(sound):
    with pytest.raises(ResonanceError, match='comes after one that ends at 4.000 s'):
        list(st.every([Block(0.0, sound), Block(3.9, sound)]))


def test_steps_come_as_soon_as_they_are_full(sound):
    taken = []

    def blocks():
        for i in range(16):
            taken.append(i)
            yield Block(i / 4, sound[i * 4_000 :][:4_000])

    steps = st.every(blocks())
    assert next(steps).start_s == 0 and taken == [0]
    assert next(steps).start_s == 0.25 and taken == [0, 1]


def test_one_sample_and_nothing():
    assert list(st.every([])) == [] and list(st.every([Block(0.0, np.zeros(0, np.float32))])) == []
    (only,) = st.every([Block(0.3, np.ones(1, np.float32))])
    assert (
        only.start_s == 0.25 and len(only.samples) == 4_000 and only.samples[800] == only.samples.sum() == 1
    )


# ---- silence


def test_silence():
    rng = np.random.default_rng(0)
    hiss = rng.standard_normal(RATE).astype(np.float32)
    for nothing in (
        [],
        np.zeros(9),
        np.full(9, 0.5),
        np.array([0.3]),
        hiss * 9e-5,
        hiss * 9e-5 - 0.1,
        np.array([np.nan] * 9),
        [np.inf, np.nan, 0, 0],
    ):
        assert st.silent(nothing) is True
    for something in (hiss * 1.2e-4, hiss, np.r_[np.zeros(RATE), hiss * 1e-3]):
        assert st.silent(something) is False
    assert st.silent(hiss * 0.01, level_db=-30) and not st.silent(hiss * 9e-5, level_db=-90)


# ---- files


@pytest.fixture(scope='module')
def hostile(tmp_path_factory):
    return make_hostile(tmp_path_factory.mktemp('hostile'))


def test_hostile_files(hostile):
    for path, expectation in hostile:
        heard = []
        said = None
        try:
            with st.from_file(path, report=(told := []).append) as source:
                for block in source:
                    heard.append(block)
        except ResonanceError as e:
            said = e
        check_blocks(heard)
        assert said is None or '\n' not in str(said)
        odd = path.name in ('nan.wav', 'inf.wav')
        assert len(told) == odd and all('non-finite' in line and line.isprintable() for line in told), (
            path.name
        )
        if path.name in ('nan.wav', 'inf.wav'):  # refused by `audio.load`; a listener goes on
            assert said is None and len(joined(heard)) == 4 * RATE and joined(heard)[30_000] == 0
        elif expectation == 'ok':
            assert said is None and np.array_equal(joined(heard), audio.load(path)), path.name
        elif expectation == 'partial':
            assert isinstance(said, audio.TruncatedAudio) and heard, path.name
            assert np.array_equal(joined(heard), np.concatenate(list(take_all(audio.stream(path))))), (
                path.name
            )
        else:
            assert isinstance(said, audio.AudioError) and not heard, path.name


def take_all(blocks):
    try:
        yield from blocks
    except audio.AudioError:
        pass


@pytest.mark.parametrize('block_s', [1 / RATE, 0.01, 0.25, 1.3, 99])
def test_blocks_of_a_file(tmp_path, block_s):
    x = tone(1.5, rate=44_100, channels=2)
    path = write(tmp_path / 'a.flac', x, 44_100, 'FLAC')
    blocks = check_blocks(list(st.from_file(path, block_s)), block_s)
    assert np.array_equal(joined(blocks), audio.load(path))


def open_files():
    return len(os.listdir('/proc/self/fd')) if os.path.isdir('/proc/self/fd') else 0


def test_twenty_hours_are_opened_and_left_in_flat_memory(tmp_path):
    size = 20 * 3_600 * RATE * 2
    with open(tmp_path / 'night.wav', 'wb') as f:
        f.write(wav_header(data=size, riff=size + 36))
        f.truncate(44 + size)
    before = open_files()
    ring = RingBuffer(10)
    tracemalloc.start()
    try:
        with st.from_file(tmp_path / 'night.wav') as night:
            for block in night:
                ring.write(block)
                if block.end_s >= 600:
                    break
            peak = tracemalloc.get_traced_memory()[1]
            assert len(sandbox._busy) == 1
    finally:
        tracemalloc.stop()
    assert ring.end_s == 600 and peak < 5_000_000 and open_files() <= before and not sandbox._busy
    assert list(night) == [] and night.lost_s == 0
    night.close()


def test_a_file_at_its_own_pace(tmp_path, sound):
    path = write(tmp_path / 'a.wav', sound[: RATE // 2, None])
    began = time.monotonic()
    at = []
    with st.from_file(path, 0.1, realtime=True) as source:
        assert source.live
        for block in source:
            at.append(time.monotonic() - began)
    assert all(a > 0.1 * (i + 1) - 0.01 for i, a in enumerate(at)) and len(at) == 5


def test_closing_a_file_that_waits(tmp_path, sound):
    path = write(tmp_path / 'a.wav', np.tile(sound, 50)[:, None])
    source = st.from_file(path, 190, realtime=True)
    threading.Timer(0.1, source.close).start()
    began = time.monotonic()
    assert list(source) == [] and time.monotonic() - began < 100


# ---- pipes


class Drip(io.RawIOBase):
    "A pipe that gives what it likes: some bytes, or now and then nothing yet."

    def __init__(self, data, sizes):
        self.data = data
        self.sizes = sizes
        self.at = 0
        self.i = 0

    def readable(self):
        return True

    def read(self, n=-1):
        n = min(n, self.sizes[self.i % len(self.sizes)])
        self.i = self.i + 1
        if n == 0:
            return None
        self.at += n
        return self.data[self.at - n : self.at]


def packed(x, dtype):
    "Mono samples, or (n, channels), as little-endian bytes."
    if dtype == 'int24':
        return b''.join(struct.pack('<i', int(v * (2**23 - 1)))[:3] for v in x.ravel())
    scale = {'int16': 2**15 - 1, 'int32': 2**31 - 1, 'uint8': 127}.get(dtype, 1)
    return (
        np.asarray(x.astype('float64') * scale + 128 * (dtype == 'uint8'))
        .astype(np.dtype(dtype).newbyteorder('<'))
        .tobytes()
    )


@pytest.mark.parametrize('rate', [8_000, 16_000, 22_050, 44_100, 48_000, 192_000])
@pytest.mark.parametrize('channels', [1, 2, 7])
def test_raw_samples_are_resampled_without_clicks(rate, channels):
    x = tone(1.7, rate, channels)
    at_once = np.clip(soxr.resample(x.mean(axis=1, dtype='float64').astype('float32'), rate, RATE), -1, 1)
    data = packed(x, 'float32') + b'xyz'
    for f in (io.BytesIO(data), Drip(data, [5, 4_093, 700, 16_384])):
        blocks = check_blocks(list(piping.from_raw(f, rate, channels, 'float32')))
        assert len(joined(blocks)) == len(at_once) and np.abs(joined(blocks) - at_once).max() < 1e-6


@settings(max_examples=60, deadline=None)
@given(
    some.lists(some.integers(1, 999), min_size=1, max_size=8),
    some.binary(max_size=3),
    some.integers(1, 3_000),
)
def test_any_portions_give_the_same(sizes, odd, n):
    x = np.random.default_rng(2).integers(-32_768, 32_767, n).astype('<i2')
    blocks = check_blocks(
        list(piping.from_raw(Drip(x.tobytes() + odd[: len(odd) % 2], sizes), block_s=0.01)), 0.01
    )
    assert np.array_equal(joined(blocks), x / np.float32(32_768))


@pytest.mark.parametrize(
    'dtype, step',
    [
        ('uint8', 2**-6),
        ('int16', 1e-4),
        ('int24', 1e-6),
        ('int32', 1e-7),
        ('float32', 1e-7),
        ('float64', 1e-7),
    ],
)
def test_kinds_of_samples(sound, dtype, step):
    x = sound[:5_000]
    assert np.abs(joined(piping.from_raw(io.BytesIO(packed(x, dtype)), dtype=dtype)) - x).max() < step


def test_full_scale_stays_in_range():
    for dtype, low in (('int16', -(2**15)), ('int32', -(2**31)), ('float32', -40.0), ('float64', -1e300)):
        blocks = list(piping.from_raw(io.BytesIO(np.full(5_000, low, dtype).tobytes()), dtype=dtype))
        check_blocks(blocks)
    huge = np.full(9_000, 3e38, np.float32)
    check_blocks(list(piping.from_raw(io.BytesIO(huge.tobytes()), 44_100, 2, 'float32')))


@pytest.mark.parametrize('rate', [16_000, 44_100])
@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_silence_and_stays_local(rate, bad):
    x = np.full(rate, 0.25, np.float32)
    x[rate // 2 : rate // 2 + 3] = bad
    told = []
    y = joined(
        check_blocks(list(piping.from_raw(io.BytesIO(x.tobytes()), rate, 1, 'float32', report=told.append)))
    )
    assert told == ['the stream: holds non-finite samples (NaN or infinity); they are taken for silence']
    assert (
        np.abs(y[4_000:6_000] - 0.25).max() < 1e-3
        and np.abs(y[10_000:12_000] - 0.25).max() < 1e-3
        and y[8_000] < 0.1
    )


def test_short_pipes():
    for data in (b'', b'R', b'RI', b'x'):
        with pytest.raises(audio.AudioError, match='the stream: '):
            list(piping.from_raw(io.BytesIO(data), dtype='float32'))
    for n in (1, 2, 3):
        (only,) = piping.from_raw(io.BytesIO(b'\0\x40' * n + b'\1'))
        assert np.array_equal(only.samples, [0.5] * n)


@pytest.mark.parametrize(
    'coding, step',
    [
        ('PCM_U8', 2**-6),
        ('PCM_16', 1e-4),
        ('PCM_24', 1e-6),
        ('PCM_32', 1e-7),
        ('FLOAT', 1e-7),
        ('DOUBLE', 1e-7),
    ],
)
@pytest.mark.parametrize('container', ['WAV', 'WAVEX', 'RF64'])
def test_wav_through_a_pipe(coding, step, container):
    x = tone(0.5, channels=2)
    f = io.BytesIO()
    sf.write(f, x, RATE, format=container, subtype=coding)
    data = f.getvalue()
    for portions in ([1_001], [3, 40_000], [10**6]):
        y = joined(piping.from_raw(Drip(data, portions), rate=44_100, channels=7))  # the header knows better
        assert len(y) == len(x) and np.abs(y - x.mean(axis=1)).max() < step


@pytest.mark.parametrize('claim', [0, 0xFFFFFFFF, 0xFFFFFFFF - 36, 0x7FFFFFFF, 0x7FFFF000, 0x80000000])
def test_wav_that_does_not_know_its_length(sound, claim):
    data = packed(sound, 'int16')
    info = b'LIST' + struct.pack('<I', 5) + b'INFO.\0'
    header = wav_header(data=claim, riff=0xFFFFFFFF)
    y = joined(piping.from_raw(io.BytesIO(header[:-8] + info + header[-8:] + data)))
    assert np.abs(y - sound).max() < 1e-4 and len(y) == len(sound)


def test_what_follows_the_samples_is_not_heard(sound):
    data = packed(sound, 'int16')
    y = joined(piping.from_raw(io.BytesIO(wav_header(data=len(data)) + data + b'LIST' + b'\xff\x7f' * 500)))
    assert len(y) == len(sound)


def test_a_pipe_that_breaks_off(sound):
    data = packed(sound, 'int16')
    source = piping.from_raw(io.BytesIO(wav_header(data=2 * len(data)) + data))
    heard = [next(source) for _ in range(16)]
    with pytest.raises(audio.TruncatedAudio, match=r'the stream: breaks off; 4.00 s of 8.00 s came') as told:
        next(source)
    assert (told.value.decoded_s, told.value.promised_s) == (4, 8) and len(joined(heard)) == len(sound)

    class Torn(Drip):
        def read(self, n=-1):
            if self.i == 4:
                raise OSError(5, 'Input/output error')
            return super().read(n)

    source = piping.from_raw(Torn(data, [8_000]))
    heard = []
    with pytest.raises(audio.AudioError, match='breaks off: Input/output error'):
        for block in source:
            heard.append(block)
    assert len(joined(heard)) == 12_008


@pytest.mark.parametrize(
    'data, said',
    [
        (b'OggS' + bytes(99), 'is not audio'),
        (b'fLaC' + bytes(99), 'is not audio'),
        (b'ID3\x03' + bytes(99), 'is not audio'),
        (b'\0\0\0\x1cftypM4A ' + bytes(99), 'is not audio'),
        (b'0&\xb2u' + bytes(99), 'is not audio'),
        (b'RIFX' + bytes(99), 'is not audio'),
        (b'RIFF' + bytes(99), 'is not audio'),
        (b'RIFF\0\0\0\0WAVEfmt ', 'is not audio'),
        (wav_header()[:30], 'is not audio'),
        (wav_header()[:40], 'breaks off'),
        (wav_header()[:36] + b'data' + bytes(90), 'no samples'),
        (wav_header(channels=0) + bytes(99), 'cannot be right'),
        (wav_header(rate=1) + bytes(99), 'cannot be right'),
        (wav_header(channels=65_535) + bytes(99), 'cannot be right'),
        (wav_header(bits=12) + bytes(99), 'holds no samples|is not audio|cut off'),
        (
            wav_header()[:20] + b'\x11\0' + wav_header()[22:] + bytes(99),
            'holds no samples|is not audio|cannot be right',
        ),
        (wav_header(data=0), 'holds no samples'),
        (b'RIFF\0\0\0\0WAVEdata\0\0\0\0' + bytes(99), 'is not audio'),
        (b'RIFF\0\0\0\0WAVEdata\xff\xff\xff\xff' + bytes(99), 'is not audio'),
    ],
)
def test_pipes_that_are_no_samples(data, said):
    if data == wav_header()[:36] + b'data' + bytes(90):  # a length of nothing: until the end
        assert len(joined(piping.from_raw(io.BytesIO(data)))) == 43
        return
    with pytest.raises(audio.AudioError, match=said) as told:
        list(piping.from_raw(io.BytesIO(data)))
    assert '\n' not in str(told.value)


@settings(max_examples=150, deadline=None)
@given(
    some.binary(max_size=400),
    some.sampled_from(
        [b'', b'RIFF', b'RIFF\0\0\0\0WAVE', wav_header()[:20], wav_header()[:36], wav_header()]
    ),
)
def test_any_bytes_give_sound_or_one_line(data, before):
    try:
        check_blocks(list(piping.from_raw(io.BytesIO(before + data), block_s=0.01)), 0.01)
    except ResonanceError as e:
        assert '\n' not in str(e)


def test_a_header_that_never_ends(monkeypatch):
    answer = sandbox._Decoder.answer

    def late(self):
        found = answer(self)
        time.sleep(0.2)  # whoever asked is slow to hear of it
        return found

    monkeypatch.setattr(sandbox._Decoder, 'answer', late)

    class Zeros(io.RawIOBase):
        given = 0

        def read(self, n=-1):
            data = b'RIFF\0\0\0\0WAVE'[self.given : self.given + n].ljust(n, b'\0')
            self.given += n
            return data

    f = Zeros()
    with pytest.raises(audio.AudioError, match='is not audio'):
        list(piping.from_raw(f))
    assert f.given < ffmpeg.OPENED_BYTES + (2 << 20)


@pytest.mark.parametrize(
    'wrong',
    [
        dict(rate=0),
        dict(rate=10**7),
        dict(channels=0),
        dict(channels=-1),
        dict(channels=5_000),
        dict(dtype='int12'),
        dict(dtype='object'),
    ],
)
def test_wrong_settings_of_a_pipe(wrong):
    with pytest.raises(ResonanceError):
        piping.from_raw(io.BytesIO(bytes(99)), **wrong)


def test_text_and_closed_streams():
    with pytest.raises(audio.AudioError, match='gives text'):
        list(piping.from_raw(io.StringIO('hello')))
    f = io.BytesIO(bytes(99))
    f.close()
    with pytest.raises(audio.AudioError, match='closed'):
        piping.from_raw(f)


@pytest.fixture
def pipe():
    r, w = os.pipe()
    with open(r, 'rb') as reading, open(w, 'wb', buffering=0) as writing:
        yield reading, writing


def test_a_real_pipe_gives_what_is_in_it(pipe, sound):
    reading, writing = pipe
    data = packed(sound, 'int16')
    with piping.from_raw(reading) as source:
        for i in range(4):  # nothing more is written before what was written was heard
            writing.write(data[8_000 * i :][:8_000])
            assert next(source).start_s == i / 4
        writing.write(data[32_000:64_000])
        writing.close()
        assert len(joined(source)) == 16_000
    assert not reading.closed


@pytest.mark.parametrize('buffered', [True, False])
def test_closing_while_a_pipe_is_waited_for(buffered):
    r, w = os.pipe()
    with open(r, 'rb', buffering=-1 if buffered else 0) as reading, open(w, 'wb'):
        for wrap in (lambda s: s, st.with_back_pressure):
            source = wrap(piping.from_raw(reading, live=True))
            threading.Timer(0.1, source.close).start()
            assert list(source) == []


def test_a_program_that_ends_while_its_input_waits():
    "Ended by the interpreter with a crash, if the thread sat in a read of standard input."
    code = '''
import sys
from resonance_nb.pipe import from_raw
from resonance_nb.stream import with_back_pressure
source = with_back_pressure(from_raw(sys.stdin.buffer, live=True))
print(next(source).end_s, flush=True)
if sys.argv[1] == 'close': source.close()
'''
    for how in ('close', 'forget'):
        p = subprocess.Popen(
            [sys.executable, '-c', code, how],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        p.stdin.write(bytes(8_000))
        p.stdin.flush()
        assert p.wait() == 0, p.stderr.read()
        assert p.stdout.read() == b'0.25\n' and b'Fatal' not in p.stderr.read()
        for f in (p.stdin, p.stdout, p.stderr):
            f.close()


def test_standard_input_has_its_name():
    code = 'import sys; from resonance_nb.pipe import from_raw; list(from_raw(sys.stdin.buffer))'
    done = subprocess.run([sys.executable, '-c', code], input=b'', capture_output=True)
    assert b'AudioError: standard input: holds no samples' in done.stderr


# ---- a pipe that may bring anything


def framed(x, folder, codec='libmp3lame', container='mp3', rate=RATE):
    "Encoded without a beginning of its own: (n, 2) samples as bytes."
    options = {'write_xing': '0', 'id3v2_version': '0'} if container == 'mp3' else {}
    return write_av(folder / 'framed', x, rate, codec, container, options=options).read_bytes()


@pytest.fixture(scope='module')
def song():
    x = np.tile(tone(5, RATE, 2), (2, 1)) + 0.02 * np.random.default_rng(1).standard_normal(
        (10 * RATE, 2)
    ).astype('float32')
    return x.astype('float32')


def piped(data, step=3_000):
    "What is heard, and the complaint."
    got = [np.zeros(0, np.float32)]
    why = ''
    try:
        for block in piping.from_pipe(Drip(data, [step])):
            got.append(block.samples)
    except ResonanceError as e:
        why = str(e)
        assert '\n' not in why
    return np.concatenate(got), why


@pytest.mark.parametrize(
    'codec, container',
    [
        ('libmp3lame', 'mp3'),
        ('aac', 'adts'),
        ('aac', 'mpegts'),
        ('aac', 'flv'),
        ('aac', 'matroska'),
        ('wmav2', 'asf'),
        ('mp2', 'mpeg'),
    ],
)
def test_a_pipe_is_decoded_whatever_it_brings(song, tmp_path, codec, container):
    y, why = piped(framed(song, tmp_path, codec, container))
    assert (
        not why
        and abs(len(y) / RATE - 10) < 0.3
        and audio.rms_db(y) == pytest.approx(audio.rms_db(song.mean(axis=1)), abs=1.5)
    )


@pytest.mark.parametrize('container', ['FLAC', 'OGG', 'AIFF', 'AU'])
def test_a_file_in_a_pipe_is_the_file(song, tmp_path, container):
    sf.write(tmp_path / 'x', song, RATE, format=container)
    y, why = piped((tmp_path / 'x').read_bytes())
    x = audio.load(tmp_path / 'x')
    assert not why and len(y) == len(x) and np.abs(y - x).max() < 2e-3


def test_mp4_as_it_can_be_sent(song, tmp_path):
    for options in (
        {'movflags': 'faststart'},
        {'movflags': 'empty_moov+default_base_moof', 'frag_duration': '1000000'},
    ):
        y, why = piped(write_av(tmp_path / 'x', song, RATE, options=options).read_bytes())
        assert not why and abs(len(y) / RATE - 10) < 0.2
    y, why = piped(write_av(tmp_path / 'x', song, RATE).read_bytes())
    assert not len(y) and 'save it, and give the file' in why


def test_a_radio_from_the_middle_of_a_frame(song, tmp_path):
    for codec, container in (('libmp3lame', 'mp3'), ('aac', 'adts'), ('aac', 'mpegts')):
        data = framed(song, tmp_path, codec, container)
        y, why = piped(data[len(data) // 2 + 111 :])
        assert not why and 4 < len(y) / RATE < 5.2, container
        y, why = piped(data[: len(data) // 2 + 111])  # the producer was killed in the middle of one
        assert not why and 4 < len(y) / RATE < 5.2, container


def test_a_radio_that_is_called_again_at_another_rate(song, tmp_path):
    again = framed(song[: 5 * RATE], tmp_path, rate=22_050)
    y, why = piped(framed(song, tmp_path)[:-111] + again)
    assert (not why or 'the rest is read' in why) and abs(len(y) / RATE - 10 - 5 * RATE / 22_050) < 0.3


def test_what_is_damaged_on_the_way_is_silence_and_told(song, tmp_path):
    data = bytearray(framed(song, tmp_path, 'aac', 'mpegts'))
    half = len(data) // 2
    data[half : half + len(data) // 8] = np.random.default_rng(3).bytes(len(data) // 8)
    y, why = piped(bytes(data))
    assert 'the stream: is damaged' in why and 'are missing' in why and abs(len(y) / RATE - 10) < 0.3


def test_heads_and_titles_of_a_radio_are_not_heard(song, tmp_path):
    mp3 = framed(song, tmp_path)
    plain, why = piped(mp3)
    titled = b''.join(
        mp3[i : i + 4_096] + (b'\2' + b"StreamTitle='x';".ljust(32, b'\0') if i % 3 else b'\0')
        for i in range(0, len(mp3), 4_096)
    )
    for sent in (b'HTTP/1.0 200 OK\r\n\r\n' + mp3, b'ICY 200 OK\r\nicy-metaint:4096\r\n\r\n' + titled):
        y, why = piped(sent)
        assert not why and np.array_equal(y, plain)


@pytest.mark.parametrize(
    'data, said',
    [
        (b'hello', 'is text'),
        (b'<html>', 'is text'),
        (b'', 'holds no samples'),
        (bytes(range(256)) * 200, '--raw'),
    ],
)
def test_a_pipe_without_sound(data, said):
    y, why = piped(data)
    assert not len(y) and why.startswith('the stream: ') and said in why


def test_raw_samples_need_not_be_announced(sound):
    data = packed(sound, 'int16')
    for silence in (0, 40_000):
        assert np.array_equal(
            piped(bytes(silence) + data)[0], joined(piping.from_raw(io.BytesIO(bytes(silence) + data)))
        )
    noise = np.random.default_rng(0).bytes(40_000)
    assert len(joined(piping.from_raw(io.BytesIO(noise)))) == 20_000, 'said to be samples'


def test_zeros_without_an_end_are_refused(monkeypatch):
    monkeypatch.setattr(piping, 'ZEROS_S', 60)

    class Zeros(io.RawIOBase):
        def read(self, n=-1):
            return bytes(n)

    with pytest.raises(audio.AudioError, match='nothing but zeros'):
        for _ in piping.from_pipe(Zeros()):
            pass
    assert len(piped(bytes(20 * 2 * RATE))[0]) == 20 * RATE, 'silence that ends'


def test_channels_that_cancel_are_heard(sound):
    x = np.stack([sound, -0.999 * sound], 1)
    assert (
        np.abs(
            joined(piping.from_raw(io.BytesIO(packed(x, 'float32')), channels=2, dtype='float32')) - sound
        ).max()
        < 1e-6
    )


def test_a_file_that_comes_where_samples_were_announced_is_told(song, tmp_path):
    sf.write(tmp_path / 'x.flac', song, RATE)
    told = []
    y = joined(piping.from_raw(io.BytesIO((tmp_path / 'x.flac').read_bytes()), 44_100, 1, report=told.append))
    assert len(y) == len(song) and told == ['the stream: is FLAC, which says itself what its samples are']


# ---- a reader that is too slow


def counted(n, wait_s=0.0):
    for i in range(n):
        time.sleep(wait_s)
        yield Block(i / 4, np.full(4_000, i / 1_000, np.float32))


def until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.005)
    assert condition()


def test_the_oldest_go_and_the_loss_is_told():
    done = threading.Event()

    def blocks():
        yield from counted(100)
        yield Block(30.0, np.zeros(4_000, np.float32), 5.0)  # a gap of the source's own
        yield from (Block(30.25 + i / 4, np.zeros(4_000, np.float32)) for i in range(3))
        done.set()

    with st.with_back_pressure(blocks(), 1.0) as source:
        assert done.wait(60)
        until(lambda: source._blocks.gi_frame is None or source._blocks.gi_frame.f_locals['queue'].ended)
        got = list(source)
    check_blocks(got)
    assert (
        [b.start_s for b in got] == [30.0, 30.25, 30.5, 30.75] and got[0].gap_s == 30 and source.lost_s == 30
    )
    assert source.live


def test_nothing_is_lost_where_nobody_is_slow():
    with st.with_back_pressure(counted(20, 0.005)) as source:
        got = check_blocks(list(source))
    assert len(got) == 20 and source.lost_s == 0


def test_losses_in_the_middle():
    go = threading.Event()
    gone = threading.Event()

    def blocks():
        yield Block(0.0, np.zeros(4_000, np.float32))
        go.wait()
        yield from (Block(b.start_s + 0.25, b.samples) for b in counted(40))
        gone.set()
        time.sleep(0.05)

    with st.with_back_pressure(blocks(), 2.0) as source:
        first = next(source)
        go.set()
        gone.wait()
        rest = list(source)
    check_blocks([first, *rest])
    assert len(rest) == 8 and rest[0].gap_s == 8 and source.lost_s == 8


def test_a_file_waits_for_a_slow_reader(tmp_path, sound):
    path = write(tmp_path / 'a.wav', sound[:, None])
    with st.with_back_pressure(st.from_file(path), 0.5) as source:
        time.sleep(0.1)
        assert np.array_equal(joined(source), audio.load(path)) and source.lost_s == 0 and not source.live


def test_a_block_longer_than_the_queue_passes():
    for live in (True, False):
        inner = st.Source(iter([Block(0.0, np.zeros(RATE * 9, np.float32))]), threading.Event(), live=live)
        inner._blocks = (b for b in [Block(0.0, np.zeros(RATE * 9, np.float32))])
        with st.with_back_pressure(inner, 1.0) as source:
            assert len(joined(source)) == RATE * 9


@pytest.mark.parametrize('error', [ResonanceError('a line'), ValueError('x'), KeyboardInterrupt()])
def test_errors_arrive_at_the_reader(error):
    def blocks():
        yield from counted(3)
        raise error

    source = st.with_back_pressure(blocks())
    assert [next(source).start_s for _ in range(3)] == [0, 0.25, 0.5]
    with pytest.raises(type(error)) as told:
        next(source)
    assert told.value is error and list(source) == []


def test_errors_of_a_truncated_file_arrive_too(hostile):
    path = next(p for p, _ in hostile if p.name == 'cut.flac')
    with st.with_back_pressure(st.from_file(path)) as source, pytest.raises(audio.TruncatedAudio):
        list(source)


def test_closing_in_the_middle(tmp_path, sound):
    path = write(tmp_path / 'a.wav', sound[:, None])
    before = open_files()
    for realtime in (True, False):
        source = st.with_back_pressure(st.from_file(path, 0.05, realtime=realtime), 0.5)
        next(source)
        source.close()
        source.close()
        assert list(source) == []
        until(lambda: open_files() <= before and not sandbox._busy)


def test_closing_never_hangs():
    release = threading.Event()

    def stuck():
        yield Block(0.0, np.zeros(4_000, np.float32))
        release.wait()

    source = st.with_back_pressure(stuck())
    next(source)
    threading.Timer(0.1, source.close).start()
    assert list(source) == []  # the reader is let go, although the source is not
    source.close()
    release.set()


# ---- microphones


class PortAudioError(Exception):
    pass


class FakeStream:
    def __init__(self, sd, device, samplerate, channels, dtype, blocksize, callback):
        sd.tried += 1
        if sd.refuse > 0:
            sd.refuse -= 1
            raise PortAudioError('Error opening InputStream: Device unavailable [PaErrorCode -9985]')
        assert dtype == 'float32'
        self.sd = sd
        self.device = device
        self.rate = samplerate
        self.channels = channels
        self.blocksize = blocksize
        self.callback = callback
        self.active = self.closed = False
        sd.streams.append(self)

    def start(self):
        if self.sd.stumble > 0:
            self.sd.stumble -= 1
            raise PortAudioError('Error starting stream')
        self.active = True

    def abort(self):
        if self.sd.rude:
            raise PortAudioError('Stream is stopped')
        self.active = False

    def close(self):
        self.active, self.closed = False, True

    def give(self, x, overflow=False):
        "What a sound card does; its memory is used again at once."
        wide = np.repeat(np.asarray(x, np.float32)[:, None], self.channels, axis=1)
        self.callback(wide, len(wide), None, SimpleNamespace(input_overflow=overflow))
        wide[:] = 7


class FakeSound:
    "As much of sounddevice as is used, with handles for what goes wrong."

    def __init__(self):
        self.streams = []
        self.tried = 0
        self.refuse = 0
        self.stumble = 0
        self.rude = False
        self.again = 0
        self.inputs = [('Built-in', 0, 44_100.0), ('Speaker', 0, 48_000.0, 0), ('USB', 1, 16_000.0, 32)]
        self.PortAudioError = PortAudioError
        self.default_input = 2

    def InputStream(self, **kwargs):
        return FakeStream(self, **kwargs)

    def _all(self):
        return [
            dict(name=n, index=i, hostapi=h, default_samplerate=r, max_input_channels=c[0] if c else 1)
            for i, (n, h, r, *c) in enumerate(self.inputs)
        ]

    def query_devices(self, device=None, kind=None):
        if device is None and kind is None:
            return self._all()
        if device is None:
            if self.default_input < 0:
                raise PortAudioError('Error querying device -1')
            return self._all()[self.default_input]
        found = [
            d
            for d in self._all()
            if device in (d['index'], d['name'], f'{d["name"]}, {self.query_hostapis(d["hostapi"])["name"]}')
        ]
        if not found or not found[0]['max_input_channels']:
            raise ValueError(f'No {kind} device matching {device!r}')
        return found[0]

    def query_hostapis(self, index):
        return dict(name=('ALSA', 'Core Audio')[index])

    def _terminate(self):
        self.again += 1

    def _initialize(self):
        pass


class Clock:
    now = 1_000.0

    def __call__(self):
        return self.now


@pytest.fixture
def sd(monkeypatch):
    fake = FakeSound()
    monkeypatch.setitem(sys.modules, 'sounddevice', fake)
    monkeypatch.setattr(hardware, '_RETRY_S', (0.01, 0.02))
    monkeypatch.setattr(hardware, '_POLL_S', 0.01)
    monkeypatch.setattr(hardware, '_STALL_S', 0.05)
    yield fake
    assert all(s.closed for s in fake.streams), 'a stream was left open'


@pytest.fixture
def clock(monkeypatch):
    c = Clock()
    monkeypatch.setattr(hardware, 'steady_clock_s', c)
    return c


def play(mic, clock, x, piece_s=0.05, **kwargs):
    "The sound card brings samples at its own pace, as the clock tells."
    n = round(piece_s * mic.rate)
    for i in range(0, len(x), n):
        clock.now += len(x[i : i + n]) / mic.rate
        mic.give(x[i : i + n], **kwargs)


def test_no_library_no_microphone(monkeypatch):
    monkeypatch.setitem(sys.modules, 'sounddevice', None)
    for call in (hardware.devices, hardware.from_microphone):
        with pytest.raises(MissingExtra, match=r"pip install 'resonance_nb\[live\]'"):
            call()


def test_a_library_without_portaudio(monkeypatch, tmp_path):
    (tmp_path / 'sounddevice.py').write_text("raise OSError('PortAudio library not found')")
    monkeypatch.delitem(sys.modules, 'sounddevice', raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    for call in (hardware.devices, hardware.from_microphone):
        with pytest.raises(MissingExtra, match='PortAudio library not found.*libportaudio2'):
            call()


def test_devices(sd):
    assert hardware.devices() == [
        hardware.Device(0, 'Built-in, ALSA', 1, 44_100, False),
        hardware.Device(2, 'USB, Core Audio', 32, 16_000, True),
    ]
    sd.default_input = -1
    assert not any(d.default for d in hardware.devices())
    sd.inputs = []
    assert hardware.devices() == []
    sd.query_devices = lambda *_, **__: 1 / 0
    with pytest.raises(ResonanceError, match='cannot be asked'):
        hardware.devices()


@pytest.mark.parametrize(
    'device, rate, channels, index',
    [
        (None, 16_000, 2, 2),
        (0, 44_100, 1, 0),
        ('0', 44_100, 1, 0),
        ('USB', 16_000, 2, 2),
        ('Built-in, ALSA', 44_100, 1, 0),
    ],
)
def test_a_microphone_is_opened_as_it_likes(sd, clock, device, rate, channels, index):
    x = tone(2.0, rate)[:, 0]
    with hardware.from_microphone(device) as source:
        (mic,) = sd.streams
        assert (mic.rate, mic.channels, mic.device, mic.blocksize) == (
            rate,
            channels,
            index,
            round(rate * 0.05),
        ) and source.live
        play(mic, clock, x)
        got = [next(source) for _ in range(7)]
    check_blocks(got)
    assert np.abs(joined(got) - soxr.resample(x, rate, RATE)[:28_000]).max() < 1e-6 and source.lost_s == 0
    assert mic.closed


@pytest.mark.parametrize('spoil', [dict(refuse=9), dict(stumble=9), dict(default_input=-1)])
def test_a_microphone_that_cannot_be_opened(sd, spoil):
    vars(sd).update(spoil)
    with pytest.raises(ResonanceError, match='no microphone can be opened: ') as told:
        hardware.from_microphone()
    assert '\n' not in str(told.value)


def test_a_microphone_that_is_not_there(sd):
    for device in ('Wireless', 99, 1):
        with pytest.raises(ResonanceError, match='no microphone .* can be opened: No input device matching'):
            hardware.from_microphone(device)


def lose(sd, mic, how):
    if how == 'inactive':
        mic.active = False
    elif how == 'error':
        del mic.active
        sd.rude = True


@pytest.mark.parametrize('how', ['inactive', 'error', 'quiet'])
def test_a_microphone_goes_and_comes_back(sd, clock, how):
    lines = []
    with hardware.from_microphone(2, report=lines.append) as source:
        (mic,) = sd.streams
        play(mic, clock, np.full(8_800, 0.5))
        first = [next(source), next(source)]
        sd.refuse = 3
        sd.stumble = 1
        sd.inputs = [('New', 0, 8_000.0), *sd.inputs[:1], ('USB', 1, 48_000.0)]
        sd.inputs[:0] = [('Another', 0, 8_000.0)]  # it has another number now, and another rate

        def returns():
            until(lambda: sd.streams and sd.streams[-1] is not mic and sd.streams[-1].active)
            clock.now += 60 - 0.05
            play(sd.streams[-1], clock, np.full(48_000, 0.25))

        lose(sd, mic, how)
        thread = threading.Thread(target=returns)
        thread.start()
        rest = [next(source) for _ in range(4)]
        thread.join()
    check_blocks([*first, rest[0]], 0.25)
    assert [len(b.samples) for b in (*first, *rest)] == [4_000, 4_000, 800, 4_000, 4_000, 4_000]
    assert rest[1].gap_s == pytest.approx(59.95, abs=1e-3) and rest[1].start_s == pytest.approx(
        0.55 + 59.95, abs=1e-3
    )
    assert np.abs(rest[0].samples - 0.5).max() < 1e-6 and np.abs(rest[2].samples - 0.25).max() < 1e-3
    assert (
        source.lost_s == rest[1].gap_s
        and mic.closed
        and sd.streams[-1].rate == 48_000
        and sd.streams[-1].device == 3
    )
    assert (
        lines == ['USB: the microphone is gone; trying again until it is back', 'USB: the microphone is back']
        and sd.again >= 5
    )


def test_a_microphone_that_opens_and_stays_quiet_is_told_once(sd, clock):
    lines = []
    with hardware.from_microphone(report=lines.append) as source:

        def later():
            until(lambda: len(sd.streams) > 3)
            while not any(s.active for s in sd.streams):
                time.sleep(0.001)
            for _ in range(200):
                live = [s for s in sd.streams if s.active]
                if live and not got.is_set():
                    live[-1].give(np.zeros(800))
                time.sleep(0.001)

        got = threading.Event()
        thread = threading.Thread(target=later)
        thread.start()
        next(source)
        got.set()
        thread.join()
    assert len(lines) == 2 and 'gone' in lines[0] and 'back' in lines[1]


def test_closing_while_the_microphone_is_gone(sd, clock):
    lines = []
    source = hardware.from_microphone(report=lines.append)
    sd.refuse = 10**9
    sd.streams[0].active = False
    threading.Timer(0.15, source.close).start()
    assert list(source) == [] and len(lines) == 1 and sd.tried > 2


def test_closing_a_microphone_that_is_waited_for_and_one_never_read(sd, clock, monkeypatch):
    monkeypatch.setattr(hardware, '_STALL_S', 9)
    source = hardware.from_microphone()
    threading.Timer(0.1, source.close).start()
    assert list(source) == []
    with hardware.from_microphone():
        pass
    hardware.from_microphone().close()
    assert len(sd.streams) == 3


def test_a_slow_reader_of_a_microphone(sd, clock):
    x = np.linspace(0, 0.9, 20 * RATE, dtype=np.float32)
    with hardware.from_microphone(seconds=2) as source:
        (mic,) = sd.streams
        play(mic, clock, x[:RATE])
        early = [next(source) for _ in range(3)]
        play(mic, clock, x[RATE:])
        late = [next(source) for _ in range(8)]
    # of the first second, 5 pieces of 0.05 s were still in the queue; then all but the last 2 s went
    check_blocks([*early, late[0]])
    assert late[0].gap_s == pytest.approx(17.25) and late[0].start_s == 18 and source.lost_s == late[0].gap_s
    assert np.array_equal(joined(late), x[18 * RATE :])


def test_the_device_itself_says_that_it_lost_something(sd, clock):
    with hardware.from_microphone() as source:
        (mic,) = sd.streams
        play(mic, clock, np.zeros(8_000))
        clock.now += 0.2
        play(mic, clock, np.zeros(800), overflow=True)
        play(mic, clock, np.zeros(8_000))
        got = [next(source) for _ in range(4)]
    assert got[2].gap_s == pytest.approx(0.2, abs=2e-3) and source.lost_s == got[2].gap_s


def test_a_machine_that_slept(sd, clock):
    with hardware.from_microphone() as source:
        (mic,) = sd.streams
        play(mic, clock, np.full(16_000, 0.1))
        clock.now += 3_600
        play(mic, clock, np.full(32_000, 0.2))
        got = [next(source) for _ in range(11)]
    gaps = [b for b in got if b.gap_s]
    assert (
        len(gaps) == 1
        and gaps[0].gap_s == pytest.approx(3_600, abs=0.01)
        and 1 <= gaps[0].start_s - 3_600 < 1.2
    )
    assert source.lost_s == gaps[0].gap_s


def test_late_callbacks_are_no_loss(sd, clock):
    "The program was held up for two seconds, and the sound card kept everything."
    with hardware.from_microphone() as source:
        (mic,) = sd.streams
        play(mic, clock, np.zeros(16_000))
        clock.now += 2
        for _ in range(40):
            clock.now += 0.001
            mic.give(np.zeros(800))
        clock.now -= 0.04
        play(mic, clock, np.zeros(32_000))
        got = [next(source) for _ in range(19)]
    assert source.lost_s == 0 and check_blocks(got)


@pytest.mark.parametrize('ppm', [-500, 500])
def test_clocks_that_differ_are_no_loss(sd, clock, ppm):
    "Hours with a sound card that is too fast or too slow, and callbacks that jitter."
    rng = np.random.default_rng(0)
    mic = hardware._Microphone(sd, None, 0.05, 8.0, print, threading.Event())
    at = 1_000.0
    pieces = 3 * 3_600 * 4
    lost = [
        hardware._lost(mic, at + 0.25 * i * (1 + ppm * 1e-6) + late, 0.25, 0.0, False)
        for i, late in enumerate(rng.uniform(0, 0.2, pieces))
    ]
    assert sum(lost) == 0


def test_pieces_of_nonsense_from_a_microphone(sd, clock):
    x = np.full(RATE, 0.1, np.float32)
    x[5_000:5_100], x[9_000], x[9_001] = np.nan, np.inf, -1e38
    with hardware.from_microphone() as source:
        play(sd.streams[0], clock, x)
        check_blocks([next(source) for _ in range(4)])


def test_lines_go_to_standard_error(sd, clock, capsys):
    source = hardware.from_microphone()
    sd.refuse = 10**9
    sd.streams[0].active = False
    sd._initialize = source.close  # called before every try, after the line was printed
    list(source)
    out, err = capsys.readouterr()
    assert out == '' and err == 'USB: the microphone is gone; trying again until it is back\n'


def test_a_microphone_read_in_a_thread(sd, clock):
    with st.with_back_pressure(hardware.from_microphone(seconds=60), 30) as source:
        play(sd.streams[0], clock, np.full(5 * RATE, 0.3))
        assert len(joined(next(source) for _ in range(20))) == 5 * RATE


# ---- all together


def test_the_same_steps_from_a_file_a_pipe_and_a_microphone(tmp_path, sd, clock):
    x = (tone(3.0, 16_000)[:, 0] * 30_000).astype('<i2')
    sf.write(tmp_path / 'a.wav', x, RATE, subtype='PCM_16')
    told = lambda blocks: [(s.start_s, s.gap_s, s.samples.tobytes()) for s in blocks]
    want = told(st.every(st.from_file(tmp_path / 'a.wav', 0.1)))
    assert told(st.every(piping.from_raw(Drip(x.tobytes(), [999, 4_001])))) == want
    assert told(st.every(piping.from_raw(Drip((tmp_path / 'a.wav').read_bytes(), [7_777])))) == want
    with hardware.from_microphone(block_s=0.07) as source:
        play(sd.streams[0], clock, x / np.float32(32_768))
        steps = st.every(source)
        assert told(next(steps) for _ in range(11)) == want[:11]
