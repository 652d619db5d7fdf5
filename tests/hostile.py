"""Files a music folder may hold and should not: made here, from bytes and encoders, for the tests of several modules.

`make_hostile(folder)` returns `[(path, expectation), ...]` with, for each path, what a decoder must do:
'ok' decode all of it, 'partial' decode some and then say that it breaks off, 'fail' refuse it in one line.
As root, missing permissions do not bite; that entry is then 'ok'."""

import os
import stat
import struct
import zlib
from pathlib import Path

import numpy as np
import soundfile as sf

RATE = 16_000


def tone(duration_s=4.0, rate=RATE, channels=1):
    "A decaying chord with some noise: shape (n, channels)."
    t = np.arange(round(duration_s * rate)) / rate
    x = sum(np.sin(2 * np.pi * f * t) for f in (220, 277, 330)) * 0.2 * np.exp(-t / 3)
    x = x + 0.02 * np.random.default_rng(1).standard_normal(len(t))
    return np.stack([x * (1 - 0.1 * c) for c in range(channels)], 1).astype('float32')


def write(path, samples, rate=RATE, container='WAV', coding='PCM_16'):
    with (
        open(path, 'wb+') as f,
        sf.SoundFile(f, 'w', rate, samples.shape[1], coding, format=container) as out,
    ):
        for i in range(0, len(samples), 4096):
            out.write(samples[i : i + 4096])
    return Path(path)


def write_av(path, samples=None, rate=44_100, codec='aac', container='mp4', video=False, options=None):
    "Encode with FFmpeg: `samples` (n, 2) or no sound at all, with or without a few frames of video."
    import av

    with av.open(str(path), 'w', format=container, options=options or {}) as c:
        v = c.add_stream('mpeg4', rate=10) if video else None
        a = c.add_stream(codec, rate=rate, layout='stereo') if samples is not None else None
        if v is not None:
            v.width = 64
            v.height = 48
            v.pix_fmt = 'yuv420p'
            for _ in range(10):
                c.mux(v.encode(av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), 'uint8'), format='rgb24')))
            c.mux(v.encode(None))
        if a is not None:
            a.bit_rate = 128_000
            planar = a.format.name.endswith('p')
            kind = {'s16': 'int16', 's32': 'int32'}.get(a.format.name.rstrip('p'), 'float32')
            samples = samples if kind == 'float32' else (samples * np.iinfo(kind).max).astype(kind)
            for i in range(0, len(samples), 1024):
                block = samples[i : i + 1024]
                block = np.ascontiguousarray(block.T if planar else block.reshape(1, -1))
                frame = av.AudioFrame.from_ndarray(block, format=a.format.name, layout='stereo')
                frame.sample_rate = rate
                frame.pts = i
                c.mux(a.encode(frame))
            c.mux(a.encode(None))
    return Path(path)


def wav_header(channels=1, rate=RATE, bits=16, data=32_000, riff=None):
    "The 44 bytes of a PCM WAV header, with any claims."
    align = channels * bits // 8 & 0xFFFF
    return (
        b'RIFF'
        + struct.pack('<I', 36 + data if riff is None else riff)
        + b'WAVEfmt '
        + struct.pack('<IHHIIHH', 16, 1, channels, rate, (rate * align) & 0xFFFFFFFF, align, bits)
        + b'data'
        + struct.pack('<I', data)
    )


def png():
    "A grey 8 x 8 picture."

    def chunk(kind, data):
        return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))

    rows = zlib.compress(b''.join(b'\0' + bytes([128] * 8) for _ in range(8)))
    return (
        b'\x89PNG\r\n\x1a\n'
        + chunk(b'IHDR', struct.pack('>IIBBBBB', 8, 8, 8, 0, 0, 0, 0))
        + chunk(b'IDAT', rows)
        + chunk(b'IEND', b'')
    )


def _good(d, add):
    x = tone()
    noise = np.random.default_rng(2).bytes(64_000)
    add(write(d / 'good.wav', x), 'ok')
    add(write(d / 'GOOD.MP3', x, container='MP3', coding='MPEG_LAYER_III'), 'ok')
    add(write(d / 'eight-bit.wav', x, coding='PCM_U8'), 'ok')
    add(write(d / 'twenty-four-bit.wav', x, coding='PCM_24'), 'ok')
    add(write(d / 'high-rate.wav', tone(rate=96_000), 96_000), 'ok')
    add(write(d / 'seven-channels.wav', tone(channels=7)), 'ok')
    add(write(d / 'too-loud-float.wav', 40 * x, coding='FLOAT'), 'ok')
    add(write(d / 'silence.flac', 0 * x, container='FLAC'), 'ok')
    add(write(d / 'one-sample.wav', x[:1]), 'ok')
    add(write(d / 'wrong-suffix.flac', x, container='OGG', coding='VORBIS'), 'ok')
    add(write(d / '-rf.wav', x), 'ok')
    add(write(d / 'two\nlines\x1b[31m.wav', x), 'ok')
    add(write(d / ('long' * 62 + '.wav'), x), 'ok')
    add(write(d / "quote'; $(touch pwned) `x`.wav", x), 'ok')
    try:
        add(write(d / os.fsdecode(b'caf\xe9.wav'), x), 'ok')
    except OSError:
        pass  # a file system that keeps names as Unicode
    pipe = wav_header(data=0xFFFFFFFF, riff=0xFFFFFFFF) + noise
    (d / 'written-to-a-pipe.wav').write_bytes(pipe)
    add(d / 'written-to-a-pipe.wav', 'ok')
    add(write_av(d / 'good.m4a', tone(rate=44_100, channels=2)), 'ok')
    add(write_av(d / 'film.mp4', tone(rate=44_100, channels=2), video=True), 'ok')
    add(write_av(d / 'good.mka', tone(rate=44_100, channels=2), container='matroska'), 'ok')
    add(
        write_av(
            d / 'no-length.mp3',
            tone(rate=44_100, channels=2),
            codec='libmp3lame',
            container='mp3',
            options={'write_xing': '0'},
        ),
        'ok',
    )


def _broken(d, add):
    x = tone()
    wide = tone(rate=44_100, channels=2)
    made = {
        'cut.wav': write(d / 'cut.wav', x),
        'cut.aiff': write(d / 'cut.aiff', x, container='AIFF'),
        'cut.mp3': write(d / 'cut.mp3', wide, 44_100, 'MP3', 'MPEG_LAYER_III'),
        'cut.ogg': write(d / 'cut.ogg', wide, 44_100, 'OGG', 'VORBIS'),
        'cut.flac': write(d / 'cut.flac', wide, 44_100, 'FLAC'),
        'cut.m4a': write_av(d / 'cut.m4a', wide, options={'movflags': 'faststart'}),
    }
    for name, path in made.items():
        data = path.read_bytes()
        path.write_bytes(data[: len(data) * 6 // 10 + 7])
        add(path, 'partial')
    for name, container, coding in (
        ('hole.mp3', 'MP3', 'MPEG_LAYER_III'),
        ('hole.flac', 'FLAC', 'PCM_16'),
        ('hole.ogg', 'OGG', 'VORBIS'),
    ):
        data = bytearray(write(d / name, wide, 44_100, container, coding).read_bytes())
        half = len(data) // 2
        data[half : half + len(data) // 8] = np.random.default_rng(3).bytes(len(data) // 8)
        (d / name).write_bytes(data)
        add(d / name, 'partial')
    whole = write_av(d / 'no-index.m4a', wide)
    whole.write_bytes(whole.read_bytes()[:-2000])
    add(whole, 'fail')


def _impostors(d, add):
    x = tone()
    rng = np.random.default_rng(4)

    def raw(name, data, expectation='fail'):
        (d / name).write_bytes(data)
        add(d / name, expectation)

    bad = x.copy()
    bad[30_000] = np.nan
    add(write(d / 'nan.wav', bad, coding='FLOAT'), 'fail')
    bad[30_000] = np.inf
    add(write(d / 'inf.wav', bad, coding='FLOAT'), 'fail')
    raw('empty.mp3', b'')
    raw('one-byte.wav', b'R')
    raw('no-samples.wav', wav_header(data=0))
    raw('garbage.mp3', rng.bytes(200_000))
    raw('garbage.m4a', b'\0\0\0\x20ftypM4A ' + rng.bytes(20_000))
    raw('text.wav', b'This is a note about a song.\n' * 500)
    raw('picture.flac', png())
    raw('only-tags.mp3', b'ID3\x03\0\0\0\0\x0f\x76' + bytes(2038))
    raw('no-channels.wav', wav_header(channels=0) + bytes(32_000))
    raw('no-rate.wav', wav_header(rate=0) + bytes(32_000))
    raw('one-hertz.wav', wav_header(rate=1) + bytes(32_000))
    raw('four-gigahertz.wav', wav_header(rate=4_000_000_000) + bytes(32_000))
    raw('huge-claim.wav', wav_header(data=0x60000000) + rng.bytes(32_000), 'partial')
    raw('many-channels.wav', wav_header(channels=65_535) + bytes(32_000))
    raw('header-only.flac', write(d / 'tmp.flac', x, container='FLAC').read_bytes()[:60])
    (d / 'tmp.flac').unlink()
    raw('playlist.mp3', b'#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n')
    raw('concat.m4a', b'ffconcat version 1.0\nfile /etc/passwd\n')
    add(write_av(d / 'silent-film.mp4', video=True), 'fail')


def _entries(d, add):
    good = write(d / 'locked.wav', tone())
    good.chmod(0)
    add(good, 'ok' if os.geteuid() == 0 else 'fail')
    (d / 'folder.mp3').mkdir()
    add(d / 'folder.mp3', 'fail')
    os.mkfifo(d / 'pipe.wav')
    add(d / 'pipe.wav', 'fail')
    os.mknod(d / 'socket.mp3', stat.S_IFSOCK | 0o600)
    add(d / 'socket.mp3', 'fail')
    (d / 'linked.wav').symlink_to('good.wav')
    add(d / 'linked.wav', 'ok')
    (d / 'dangling.mp3').symlink_to('gone.mp3')
    add(d / 'dangling.mp3', 'fail')
    (d / 'itself.mp3').symlink_to('itself.mp3')
    add(d / 'itself.mp3', 'fail')
    (d / 'sub').mkdir()
    (d / 'sub' / 'loop').symlink_to(d)
    add(d / 'sub' / 'loop', 'fail')


def make_hostile(folder):
    "Fill a folder (created if missing); returns [(path, 'ok' | 'partial' | 'fail'), ...]."
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for make in (_good, _broken, _impostors, _entries):
        make(folder, lambda path, expectation: made.append((Path(path), expectation)))
    return made
