"""Every container, codec and damage that the FFmpeg in PyAV can make, read: `make hostile`, `make hostile ONLY=mp4,aac,cut-half`.

A few seconds of a known sound are encoded into each container with each codec that it takes, and each file is damaged in many ways.
A process that reads it (`audio.info`, `audio.load`, `stream.from_file`) is watched: it must not die, hang or chatter; what it
complains about is one line; an undamaged file is read whole; of a damaged one nothing is lost in silence, what lies behind the
damage comes at its time, and nothing comes that cannot be. Where a file cannot be judged alone, the `ffmpeg` of the system is asked.

It takes hours; a later run goes on where an earlier one ended (runs/hostile), as long as the package and this file are the same."""

import argparse
import hashlib
import json
import os
import re
import select
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from fractions import Fraction
from functools import cache
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
LOGS = ROOT / 'runs' / 'hostile'
RATE = 16_000
LONG_S = 6.0
HOP = 160
HANG_S = 240  # for a file of seconds, on a machine that is busy
LATE_S = 0.12  # by how much what comes behind damage may be off
# rate, channels; the first that a codec takes is damaged in every way
SHAPES = [(44_100, 2), (48_000, 1), (22_050, 1), (16_000, 1), (8_000, 1), (48_000, 6), (32_000, 2)]
# encoders of nothing, or of what no file holds
NO_SOUND = {'anull', 'comfortnoise', 'dfpwm', 'aptx', 'aptx_hd', 'sbc'}
NO_FILES = set(
    'alsa oss fbdev null crc md5 hash framecrc framemd5 framehash streamhash uncodedframecrc data fifo tee segment rtp rtsp rtp_mpegts sap hls dash hds '
    'smoothstreaming webm_chunk webm_dash_manifest ffmetadata image2 image2pipe stream_segment,ssegment mkvtimestamp_v2 spdif'.split()
)
# samples or frames without a header
RAW = re.compile(
    r'[fsu]\d+[bl]e|[su]8|alaw|mulaw|vidc|codec2raw|g72\d.*|dfpwm|aptx.*|gsm|sbc|sln|daud|mlp|truehd'
)
# their end may come anywhere: no length, or one that is optional
UNSTATED = set(
    'adts latm ac3 eac3 dts amr mp2 mp3 mpegts mpeg vob dvd svcd vcd oma nut asf_stream avi flv rm mxf mxf_d10 mxf_opatom mmf voc matroska webm'.split()
)


# ---- the sound


@cache
def signal(long_s=LONG_S, rate=RATE):
    "A melody of noise and tones that is nowhere like elsewhere: shape (n,)."
    rng = np.random.default_rng(7)
    n = round(long_s * rate)
    t = np.arange(n) / rate
    out = np.zeros(n)
    step = rate // 10
    for i in range(0, n, step):
        for f in rng.choice(np.geomspace(250, 3_000, 14), 3, replace=False):
            out[i : i + step] += rng.uniform(0.05, 0.2) * np.sin(2 * np.pi * f * t[i : i + step])
        out[i : i + step] *= rng.choice([0.15, 0.6, 1.0])
    return (out + 0.003 * rng.standard_normal(n)).astype(np.float32)


EDGES = np.geomspace(200, 3_400, 15)


def picture(x):
    "Level in bands, shape (frames of 10 ms, bands): what survives every codec."
    frames = np.lib.stride_tricks.sliding_window_view(np.pad(x, 256), 512)[::HOP] * np.hanning(512)
    power = np.abs(np.fft.rfft(frames, axis=1)) ** 2
    bins = np.searchsorted(np.fft.rfftfreq(512, 1 / RATE), EDGES)
    bands = np.stack([power[:, a:b].sum(1) for a, b in zip(bins, bins[1:])], 1)
    return np.log10(bands + 1e-4 * bands.max(initial=1e-9))


def likeness(piece, whole):
    "Correlation of a piece with every place of a picture, shape (places,)."
    n = len(piece)
    if len(whole) < n:
        return np.zeros(0)
    p = (piece - piece.mean(0)).ravel()
    views = np.lib.stride_tricks.sliding_window_view(whole, n, axis=0).transpose(0, 2, 1)
    views = views - views.mean(1, keepdims=True)
    flat = views.reshape(len(views), -1)
    return flat @ p / np.maximum(np.linalg.norm(flat, axis=1) * np.linalg.norm(p), 1e-9)


@cache
def original_picture(long_s):
    return picture(signal(long_s))


PIECE = 60  # frames of 10 ms


def pieces(x, long_s=LONG_S):
    "For each piece of the original: (likeness at its place, how late it is there, best likeness anywhere, how late), likeness near its place first."
    original = original_picture(long_s)
    here = picture(x)
    found = []
    for at in range(0, len(original) - PIECE, PIECE):
        like = likeness(original[at : at + PIECE], here)
        if not len(like):
            found.append((0.0, 0.0, 0.0, 0.0))
            continue
        near = slice(max(0, at - 25), at + 26)
        place = int(near.start + like[near].argmax()) if len(like[near]) else int(like.argmax())
        best = int(like.argmax())
        found.append((float(like[place]), (place - at) / 100, float(like[best]), (best - at) / 100))
    return found


# ---- the files


def containers():
    "Muxers that make files."
    import av
    from av.format import ContainerFormat

    found = set()
    for name in av.formats_available:
        try:
            found.add(ContainerFormat(name, 'w').name)
        except ValueError:
            pass
    return sorted(n for n in found - NO_FILES if not RAW.fullmatch(n))


def codecs():
    "Audio encoders."
    import av
    from av.codec import Codec

    found = []
    for name in sorted(av.codecs_available - NO_SOUND):
        try:
            if Codec(name, 'w').type == 'audio':
                found.append(name)
        except ValueError:
            pass
    return found


VARIANTS = {  # of a container: (codec, options, picture)
    'mp4': [
        ('aac', {'movflags': 'faststart'}, None),
        ('aac', {'movflags': 'frag_keyframe+empty_moov'}, None),
        ('aac', {}, 'mpeg4'),
    ],
    'mov': [('alac', {'movflags': 'faststart'}, None)],
    'mp3': [('libmp3lame', {'write_xing': '0'}, None)],
    'matroska': [('libopus', {}, 'mpeg4'), ('aac', {'live': '1'}, None)],
    'avi': [('libmp3lame', {}, 'mpeg4')],
    'mpegts': [('mp2', {}, 'mpeg2video')],
    'flv': [('aac', {}, 'flv')],
    'asf': [('wmav2', {}, 'msmpeg4')],
    'mpeg': [('mp2', {}, 'mpeg1video')],
    'wav': [('pcm_s16le', {'rf64': 'always'}, None)],
    'ogg': [('flac', {'page_duration': '100000'}, None)],
}


def encode(path, container, codec, rate, channels, options=None, film=None, long_s=LONG_S):
    "Write the sound; returns the samples in an encoder's frame."
    import av
    from av.codec import Codec

    x = np.interp(
        np.arange(round(long_s * rate)) / rate, np.arange(round(long_s * RATE)) / RATE, signal(long_s)
    ).astype(np.float32)
    layout = {1: 'mono', 2: 'stereo', 6: '5.1'}[channels]
    with av.open(str(path), 'w', format=container, options=options or {}) as c:
        v = c.add_stream(film, rate=25) if film else None
        s = c.add_stream(codec, rate=rate, layout=layout, options={'strict': 'experimental'})
        kind = [f.name for f in Codec(codec, 'w').audio_formats or []]
        s.format = kind[0] if kind else 's16'
        if codec not in ('flac', 'alac', 'tta', 'wavpack') and not codec.startswith('pcm'):
            s.bit_rate = 64_000 * channels
        if v is not None:
            v.width = 64
            v.height = 48
            v.pix_fmt = 'yuv420p'
            for i in range(round(long_s * 25)):
                c.mux(v.encode(av.VideoFrame.from_ndarray(np.full((48, 64, 3), i, 'uint8'), format='rgb24')))
            c.mux(v.encode(None))
        for i in range(0, len(x), 4096):
            block = np.repeat(x[None, i : i + 4096], channels, axis=0)
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(block), format='fltp', layout=layout)
            frame.sample_rate = rate
            frame.pts = i
            frame.time_base = Fraction(1, rate)
            for packet in s.encode(frame):
                c.mux(packet)
        c.mux(s.encode(None))
        return s.codec_context.frame_size or 0


def encode_all(container, folder, skip):
    "In a process of its own: everything that fits into a container, a line of JSON for each."
    import av

    av.logging.set_level(av.logging.PANIC)
    jobs = [(codec, shape, {}, None) for codec in codecs() for shape in SHAPES]
    jobs += [(codec, SHAPES[0], options, film) for codec, options, film in VARIANTS.get(container, [])]
    hopeless = set()
    for codec, (rate, channels), options, film in jobs:
        name = '-'.join(
            [codec, str(rate), str(channels), *map(str, options.values()), *([film] if film else [])]
        ).replace('+', '-')
        if name in skip or codec in hopeless:
            continue
        print(json.dumps({'try': name}), flush=True)
        path = folder / name
        try:
            frame = encode(path, container, codec, rate, channels, options, film)
            print(
                json.dumps(
                    {
                        'made': name,
                        'codec': codec,
                        'rate': rate,
                        'channels': channels,
                        'frame': frame,
                        'variant': [*options.values()] + [film] * bool(film),
                        'bytes': path.stat().st_size,
                    }
                ),
                flush=True,
            )
        except Exception as e:
            path.unlink(missing_ok=True)
            if (
                'could not write header' in str(e).lower()
                or 'not supported in' in str(e)
                or 'codec not' in str(e).lower()
            ):
                hopeless.add(codec)


def make_files(container, folder):
    "The files of a container; an encoder that dies loses its own."
    folder.mkdir(parents=True, exist_ok=True)
    listed = folder / 'made.jsonl'
    if listed.exists():
        return [json.loads(line) for line in listed.read_text().splitlines()]
    made = []
    tried = []
    while True:
        done = ask_alone('--encode', container, '--folder', str(folder), '--skip', json.dumps(tried))
        lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{')]
        made += [d for d in lines if 'made' in d]
        tried += [d['try'] for d in lines if 'try' in d]
        if done.returncode == 0 or not lines:
            break
    listed.write_text(''.join(json.dumps(m) + '\n' for m in made))
    return made


def ask_alone(*words):
    return subprocess.run(
        [sys.executable, __file__, *words], env=environment(), capture_output=True, text=True, timeout=1_200
    )


def environment():
    return os.environ | {'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'}


# ---- the damage


def stated(data, facts):
    "Where a header states sizes and lengths: [(offset, format, value)]."
    n = len(data)
    rate = facts['rate']
    numbers = {round(LONG_S * rate) + k for k in range(-4, 5)} | {round(LONG_S * f) for f in (1, 600, 1000)}
    frame = facts['frame'] or 1152
    found = []
    seen = set()
    for begin in sorted({0, max(0, n - 3_000)}):
        part = data[begin : begin + 3_000]
        for at in range(len(part) - 8):
            for form in ('<I', '>I', '>d', '<Q', '>Q'):
                value = struct.unpack_from(form, part, at)[0]
                sizes = form not in ('>d',) and n - 1_024 <= value <= n and value > n / 2
                lengths = (
                    any(abs(value - v) <= (2 * frame if v > 20_000 else 0.02 * v) for v in numbers if v > 100)
                    or form == '>d'
                    and 5.5 < value < 6.6
                )
                spot = range(begin + at, begin + at + struct.calcsize(form))
                if (sizes or lengths) and value == value and not seen & set(spot):
                    seen |= set(spot)
                    found.append((begin + at, form, value))
    return found


def restated(data, facts, factor):
    out = bytearray(data)
    for at, form, value in stated(data, facts):
        new = value * factor
        if form != '>d':
            new = min(int(new), 2 ** (8 * struct.calcsize(form)) - 1)
        struct.pack_into(form, out, at, new)
    return bytes(out)


def over(data, at, piece):
    return data[:at] + piece + data[at + len(piece) :]


def flipped(data, at):
    return over(data, at, bytes([data[at] ^ 0x55]))


def noise(n, seed=3):
    return np.random.default_rng(seed).bytes(n)


def id3v2():
    frame = b'TIT2' + struct.pack('>IH', 7, 0) + b'\3Title\0'
    picture_ = b'APIC' + struct.pack('>IH', 40_016, 0) + b'\0image/png\0\3\0\0\0' + noise(40_001)
    body = frame + picture_ + bytes(1_000)
    return b'ID3\3\0\0' + bytes(len(body) >> s & 127 for s in (21, 14, 7, 0)) + body


def id3v1():
    return b'TAG' + b'Title'.ljust(30, b'\0') + b'Artist'.ljust(30, b'\0') + bytes(64) + b'\xff'


def ape():
    item = struct.pack('<II', 5, 0) + b'Title\0' + b'Title'
    head = struct.pack('<II', 2000, len(item) + 32) + struct.pack('<I', 1)
    return (
        b'APETAGEX'
        + head
        + struct.pack('<I', 0xA0000000)
        + bytes(8)
        + item
        + b'APETAGEX'
        + head
        + struct.pack('<I', 0x80000000)
        + bytes(8)
    )


def hole(data):
    return min(2_000, len(data) // 8)


HEADER = (4, 9, 14, 20, 24, 34, 41, 60)
DAMAGE = {  # name -> f(data, facts) -> data
    'none': lambda d, f: d,
    **{
        f'cut-{name}': lambda d, f, share=share: d[: int(len(d) * share)]
        for name, share in (('tenth', 0.1), ('third', 1 / 3), ('half', 0.5), ('most', 0.9), ('last', 0.99))
    },
    'cut-byte': lambda d, f: d[:-1],
    **{f'flip-{at}': lambda d, f, at=at: flipped(d, at) for at in HEADER},
    'flip-middle': lambda d, f: flipped(d, len(d) // 2),
    'flip-late': lambda d, f: flipped(d, len(d) * 9 // 10),
    'flip-last': lambda d, f: flipped(d, len(d) - 3),
    'noise-middle': lambda d, f: over(d, len(d) // 2, noise(hole(d))),
    'zeros-middle': lambda d, f: over(d, len(d) // 2, bytes(hole(d))),
    'ones-middle': lambda d, f: over(d, len(d) // 2, b'\xff' * hole(d)),
    'hole-middle': lambda d, f: d[: len(d) // 2] + d[len(d) // 2 + hole(d) :],
    'zeros-end': lambda d, f: over(d, len(d) * 3 // 4, bytes(len(d) - len(d) * 3 // 4)),
    'twice': lambda d, f: d + d,
    'front-noise': lambda d, f: noise(777) + d,
    'front-zeros': lambda d, f: bytes(4_096) + d,
    'behind-noise': lambda d, f: d + noise(5_000),
    'behind-zeros': lambda d, f: d + bytes(5_000),
    'id3v2': lambda d, f: id3v2() + d,
    'id3v1': lambda d, f: d + id3v1(),
    'ape': lambda d, f: d + ape(),
    'tags-all': lambda d, f: id3v2() + d + ape() + id3v1(),
    'length-low': lambda d, f: restated(d, f, 0.5),
    'length-high': lambda d, f: restated(d, f, 2),
    'length-zero': lambda d, f: restated(d, f, 0),
    'suffix-none': lambda d, f: d,
    'suffix-wrong': lambda d, f: d,
    'empty': lambda d, f: b'',
    'byte': lambda d, f: d[:1],
}
# all of the sound is there
WHOLE = {
    'none',
    'front-noise',
    'front-zeros',
    'behind-noise',
    'behind-zeros',
    'id3v2',
    'id3v1',
    'ape',
    'tags-all',
    'suffix-none',
    'suffix-wrong',
    'twice',
}
# and the rest is where it was
INSIDE = {'flip-middle', 'flip-late', 'flip-last', 'noise-middle', 'zeros-middle', 'ones-middle'}
# of containers that are damaged in every way
RELATIVES = set(
    '3g2 3gp ipod ismv psp f4v oga ogv spx vob dvd svcd vcd asf_stream mxf_d10 mxf_opatom'.split()
)
# and of codecs
ALIKE = re.compile('pcm_(?!s16le$|s16be$|s24le$|f32le$|u8$|alaw$).*|ac3_fixed|mp2fixed|libvorbis_.*')
FEW = ('none', 'cut-half', 'noise-middle')  # of these, and of other rates and channels
SAMPLE = [
    ('wav', 'pcm_s16le', 44_100),
    ('wav', 'ac3', 44_100),
    ('matroska', 'libopus', 48_000),
    ('mp3', 'libmp3lame', 44_100),
    ('mp4', 'aac', 44_100),
    # what every run of the tests looks at
    ('ogg', 'flac', 44_100),
    ('flac', 'flac', 44_100),
    ('adts', 'aac', 44_100),
    ('asf', 'wmav2', 44_100),
]
SAMPLE_DAMAGE = 'none cut-half cut-byte flip-middle noise-middle zeros-middle twice front-noise tags-all length-low length-zero suffix-wrong empty byte'.split()


# ---- who reads them


def worker():
    "Read files for as long as there are lines; the answer is a line each, the samples are a file."
    from resonance_nb import audio, stream
    from resonance_nb.audio import AudioError

    def attempt(read):
        try:
            return read(), None
        except AudioError as e:
            return None, {'kind': type(e).__name__, 'text': str(e)}

    for line in sys.stdin:
        asked = json.loads(line)
        path = asked['path']
        blocks = []
        notes = []
        about, wrong = attempt(lambda: audio.info(path))
        loaded, refused = attempt(lambda: audio.load(path))

        def listen():
            for b in stream.from_file(path, report=notes.append):
                blocks.append(b.samples)

        begun = time.monotonic()
        _, said = attempt(listen)
        said = said or (notes and {'kind': 'Note', 'text': notes[0]} or None)
        x = np.concatenate(blocks) if blocks else np.zeros(0, np.float32)
        np.save(asked['out'], x)
        print(
            json.dumps(
                {
                    'duration_s': about and about.duration_s,
                    'wrong': wrong,
                    'loaded': None if loaded is None else len(loaded),
                    'refused': refused,
                    'same': loaded is None or len(loaded) == len(x) and bool((loaded == x).all()),
                    'said': said,
                    'n': len(x),
                    'took_s': time.monotonic() - begun,
                }
            ),
            flush=True,
        )


class Worker:
    "A process that reads, and is seen when it dies or hangs."

    def __init__(self, words=(__file__, '--worker')):
        self.err = tempfile.TemporaryFile()
        self.p = subprocess.Popen(
            [sys.executable, *words],
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.err,
        )

    def ask(self, path, out):
        "Its answer; or a word for what became of it."
        try:
            self.p.stdin.write(json.dumps({'path': str(path), 'out': str(out)}).encode() + b'\n')
            self.p.stdin.flush()
        except OSError:
            return 'died'
        ready, _, _ = select.select([self.p.stdout], [], [], HANG_S)
        line = self.p.stdout.readline() if ready else b''
        if not ready:
            self.end()
            return 'hung'
        return json.loads(line) if line else 'died'

    def chatter(self):
        "What was written on standard error since."
        self.err.seek(0)
        text = self.err.read().decode(errors='replace')
        self.err.seek(0), self.err.truncate()
        return text.strip()

    def end(self):
        self.p.kill()
        self.p.wait()


def reference(path):
    "What the system's `ffmpeg` hears: mono at 16 kHz; None where there is none."
    if not shutil.which('ffmpeg'):
        return None
    words = [
        'ffmpeg',
        '-v',
        'quiet',
        '-nostdin',
        '-threads',
        '1',
        '-i',
        str(path),
        '-map',
        '0:a:0',
        '-f',
        'f32le',
        '-ac',
        '1',
        '-ar',
        str(RATE),
        '-t',
        '100',
        '-',
    ]
    try:
        done = subprocess.run(words, capture_output=True, timeout=HANG_S)
    except subprocess.TimeoutExpired:
        return None
    return np.frombuffer(done.stdout[: len(done.stdout) // 4 * 4], '<f4').copy()


# ---- the judgement


def tolerance(facts):
    "By how much a codec's own delay may move or lengthen the sound, seconds."
    return max(0.06, 3.2 * facts['frame'] / facts['rate'] if facts['frame'] else 0.06)


CLEAR = 0.7  # likeness at which a piece is there
KNOWN = [  # (files, verdict, why nothing better is to be had)
    # the header tells of another codec, which takes every byte for sound; its own length is a guess
    (r'wav/adpcm_ima_wav-.*/flip-20', 'too long'),
    # the FFmpeg in PyAV cannot decode it, and libsndfile mixes up its channels: one line says so
    (r'voc/pcm_(u8|s16le)-48000-6/.*', 'lost or late'),
    # one in sixteen bytes begins a good frame, and each tells its own size; ffmpeg is as late
    (r'(amr|w64)/libopencore_amrnb-.*/noise-middle', 'lost or late'),
    # noise may be a packet that lasts longer than the one in its place; hardly anybody keeps these in MP4
    (r'(mov|mp4)/.*(speex|vorbis|opus)-.*/noise-middle', 'lost or late'),
    # WMA hides how many frames are in a packet: of 0.12 s that are missing, 0.06 s are heard, and told
    (r'w64/wmav1-8000-1/noise-middle', 'lost or late'),
    # FFmpeg loses the place of a cluster among these packets of 20 bytes; told, and the same in ffmpeg
    (r'matroska/real_144-8000-1/zeros-middle', 'lost or late'),
]


def judge(damage, facts, answer, x, path, known):
    "(verdict, what is wrong or None). `known`: how this codec's undamaged file sounds, piece by piece."
    said = answer['said']
    refused = answer['refused']
    for told in (said, refused, answer['wrong']):
        if told and (
            not told['text'].isprintable() or len(told['text']) > 600 or path.name not in told['text']
        ):
            return 'bad line', repr(told['text'][:200])
    if (said and said['text']) != (refused and refused['text']) and not (
        refused and 'non-finite' in refused['text']
    ):
        return 'differs', f'load says {refused}, the stream {said}'
    if not answer['same']:
        return 'differs', 'load and the stream hear other samples'
    heard_s = len(x) / RATE
    slack = tolerance(facts)
    crashed = said and ('crashed' in said['text'] or 'stalled' in said['text'])
    most = LONG_S * (2 if damage == 'twice' else 1)
    wants = np.array([k[0] >= CLEAR for k in known])
    found = pieces(x) if len(x) else [(0, 0, 0, 0)] * len(known)
    ref = None

    def asked():
        nonlocal ref
        if ref is None:
            ref = reference(path)
            ref = np.zeros(0, np.float32) if ref is None else ref
        return ref

    # a header that tells of another codec or rate is believed
    lies = damage.startswith('flip-') and damage[5:].isdigit()
    if damage.startswith('length') and said:
        most *= 2
    if lies and (said or answer['duration_s'] and abs(heard_s - answer['duration_s']) < 0.1 * heard_s):
        most = max(most, 12 * LONG_S)
    if heard_s > most + slack + 0.25 and heard_s > len(asked()) / RATE + slack + 0.25:
        return 'too long', f'{heard_s:.2f} s, ffmpeg {len(asked()) / RATE:.2f} s; {said}'
    if crashed:
        return 'crash told', None
    there = np.array(
        [f[0] >= CLEAR and min(abs(f[1] - k[1]), abs(f[1])) <= LATE_S for f, k in zip(found, known)]
    )
    there |= ~wants  # each where ffmpeg hears it in the whole file, or where it was encoded
    if damage in WHOLE and there.all() and heard_s >= LONG_S - slack:
        if (
            damage == 'twice'
            and not said
            and heard_s < 2 * LONG_S - 2 * slack
            and len(asked()) / RATE > 2 * LONG_S - 3 * slack
        ):
            return (
                'silent loss',
                f'the second recording; ffmpeg hears {len(asked()) / RATE:.2f} s, we {heard_s:.2f} s',
            )
        return ('whole, said' if said else 'whole'), (
            f'complains of nothing: {said["text"]}'
            if said and damage in ('none', 'suffix-none', 'suffix-wrong', 'id3v1', 'ape', 'id3v2', 'tags-all')
            else None
        )
    late = None
    # the rest is where it was: it must be there where ffmpeg hears it
    if damage in INSIDE | {'none'} | WHOLE:
        theirs = pieces(asked()) if len(asked()) else [(0, 0, 0, 0)] * len(known)
        for i, (f, t) in enumerate(zip(found, theirs)):
            here = x[i * PIECE * HOP : (i + 1) * PIECE * HOP]
            if said and len(here) and (here == 0).mean() > 0.05:
                continue  # the hole itself reaches into it
            if wants[i] and not there[i] and t[2] >= CLEAR + 0.1:
                if (
                    damage in WHOLE
                    and not said
                    and len(asked()) / RATE <= heard_s + slack
                    and abs(t[3] - f[3]) < LATE_S
                ):
                    continue  # as ffmpeg
                late = f'piece at {i * PIECE / 100:.1f} s: ours {f[2]:.2f} {f[3]:+.2f} s, ffmpeg {t[2]:.2f} {t[3]:+.2f} s; heard {heard_s:.2f}, ffmpeg {len(asked()) / RATE:.2f}; {said}'
                break
    if late:
        return 'lost or late', late
    if said:
        return ('partly, said' if len(x) else 'refused'), None
    if abs(heard_s - LONG_S) <= slack + 0.05 and there.mean() > 0.75:
        return 'whole', None
    if not len(asked()) and not shutil.which('ffmpeg'):
        return 'cannot tell', None
    same = abs(len(asked()) / RATE - heard_s) <= slack + 0.1
    if damage.startswith('cut') and facts['container'] in UNSTATED and same:
        return 'as ffmpeg', None
    if damage.startswith(('flip', 'length', 'noise', 'ones', 'zeros', 'hole', 'front')) and same:
        return 'as ffmpeg', None
    if damage == 'hole-middle' and facts['codec'].startswith(
        ('pcm', 'adpcm', 'dfpwm', 'g72', 'real', 'nelly')
    ):
        return 'as made', None  # blocks without a mark: what follows a hole is noise, and nobody can know
    if len(asked()) / RATE < heard_s and there.sum() >= len(known) - 2:
        return 'whole', None
    return (
        'silent loss',
        f'heard {heard_s:.2f} s, ffmpeg {len(asked()) / RATE:.2f} s, header {answer["duration_s"]}; {int(there.sum())} of {len(known)} pieces',
    )


SUFFIX = {
    'adts': '.aac',
    'matroska': '.mkv',
    'mpegts': '.ts',
    'mpeg': '.mpg',
    'ipod': '.m4a',
    'asf': '.wma',
    'asf_stream': '.wma',
    'aiff': '.aiff',
}


def named(folder, container, damage):
    suffix = {'suffix-none': '', 'suffix-wrong': '.mp3' if container != 'mp3' else '.flac'}.get(
        damage, SUFFIX.get(container, f'.{container.split(",")[0]}')
    )
    return folder / f'x{suffix}'


def read_here(container):
    "Is this container one that the package says it reads?"
    from resonance_nb import ffmpeg

    alias = {
        '3gp': '3gp',
        'ipod': 'mov',
        'psp': 'mov',
        'ismv': 'mov',
        'f4v': 'mov',
        'adts': 'aac',
        'webm': 'matroska',
        'oga': 'ogg',
        'ogv': 'ogg',
        'spx': 'ogg',
        'vob': 'mpeg',
        'svcd': 'mpeg',
        'dvd': 'mpeg',
        'vcd': 'mpeg',
        'mp2': 'mp3',
        'mxf_opatom': 'mxf',
        'asf_stream': 'asf',
    }
    return alias.get(container, container) in ffmpeg.CONTAINERS.split(',')


def jobs(container, made):
    "(file, damage) in the order in which they are looked at."
    first = set()
    for m in made:
        full = m['codec'] not in first or bool(m['variant'])
        first.add(m['codec'])
        full &= container not in RELATIVES and not ALIKE.fullmatch(m['codec'])
        if not read_here(container):
            kinds = ('none', 'cut-half') if full else ()
        else:
            kinds = DAMAGE if full else FEW
        for damage in kinds:
            yield m, damage


class Run:
    "A run over the matrix."

    def __init__(self, place, only=(), damages=None):
        self.place = place
        self.only = only
        self.damages = damages
        self.worker = None
        place.mkdir(parents=True, exist_ok=True)
        code = [
            Path(__file__),
            *(ROOT / 'resonance_nb' / f'{m}.py' for m in ('decode', 'sandbox', 'audio', 'stream')),
        ]
        self.code = hashlib.sha256(b''.join(p.read_bytes() for p in code)).hexdigest()[:12]
        self.file = place / 'results.jsonl'
        old = [json.loads(line) for line in self.file.read_text().splitlines()] if self.file.exists() else []
        self.results = {r['key']: r for r in old if r['code'] == self.code}

    def wanted(self, container, codec, damage):
        words = {container, codec, damage}
        return all(
            any(o in words or any(w.startswith(f'{o}-') for w in words) for o in group) for group in self.only
        )

    def one(self, container, m, damage, path, data, known):
        path.write_bytes(data)
        out = self.place / 'heard.npy'
        if self.worker is None:
            self.worker = Worker()
        answer = self.worker.ask(path, out)
        chatter = self.worker.chatter()
        if isinstance(answer, str):
            self.worker.end()
            self.worker = None
            return (answer, chatter[-300:]), None, None
        x = np.load(out)
        if chatter:
            return ('chatter', chatter[-300:]), x, answer
        return judge(damage, m | {'container': container}, answer, x, path, known), x, answer

    def known(self, container, m, path):
        "How the undamaged file sounds; None when no one can read it."
        if 'known' not in m:
            ref = reference(path)
            if ref is None:
                out = self.place / 'heard.npy'
                self.worker = self.worker or Worker()
                answer = self.worker.ask(path, out)
                ref = None if isinstance(answer, str) else np.load(out)
            m['known'] = pieces(ref) if ref is not None and len(ref) else None
        return m['known']

    def add(self, container, m, damage):
        key = '/'.join([container, m['made'], damage])
        if key in self.results:
            return
        source = self.place / 'files' / container / m['made']
        data = source.read_bytes()
        folder = self.place / 'work'
        folder.mkdir(exist_ok=True)
        path = named(folder, container, damage)
        if len(data) > 100:
            path.write_bytes(data)
            known = self.known(container, m, path)
        else:
            known = None
        if known is None or np.mean([k[0] >= CLEAR and abs(k[1]) < 0.5 for k in known]) < 0.5:
            # what was encoded is none, for ffmpeg itself
            verdict = 'no sound'
            wrong = None
            answer = None
        else:
            spoiled = DAMAGE[damage](data, m)
            if damage.startswith('length') and spoiled == data:
                return
            (verdict, wrong), x, answer = self.one(container, m, damage, path, spoiled, known)
            if wrong and any(re.fullmatch(files, key) and verdict == kind for files, kind in KNOWN):
                verdict = 'known'
                wrong = None
            if not read_here(container) and verdict == 'lost or late' and answer and answer['said']:
                verdict = 'refused'
                wrong = None
        path.unlink(missing_ok=True)
        told = answer['said']['text'][:200] if answer and answer['said'] else None
        result = {
            'key': key,
            'code': self.code,
            'container': container,
            'codec': m['codec'],
            'rate': m['rate'],
            'channels': m['channels'],
            'damage': damage,
            'verdict': verdict,
            'wrong': wrong,
            'said': told,
        }
        self.results[key] = result
        with open(self.file, 'a') as f:
            f.write(json.dumps(result) + '\n')
        if wrong:
            print(f'  {key}: {verdict}: {wrong}', flush=True)

    def sample(self):
        "A few files of the matrix, the same in every run; how many of them are wrong."
        for container, codec, rate in SAMPLE:
            folder = self.place / 'files' / container
            folder.mkdir(parents=True, exist_ok=True)
            m = {'made': f'{codec}-{rate}-2', 'codec': codec, 'rate': rate, 'channels': 2, 'variant': []}
            m['frame'] = encode(folder / m['made'], container, codec, rate, 2)
            for damage in SAMPLE_DAMAGE:
                self.add(container, m, damage)
        if self.worker:
            self.worker.end()
        return self.report()

    def go(self, names):
        for container in names:
            begun = time.monotonic()
            before = len(self.results)
            made = make_files(container, self.place / 'files' / container)
            for m, damage in jobs(container, made):
                if self.wanted(container, m['codec'], damage):
                    self.add(container, m, damage)
            if len(self.results) > before:
                print(
                    f'{container}: {len(self.results) - before} files in {time.monotonic() - begun:.0f} s',
                    flush=True,
                )
        if self.worker:
            self.worker.end()
        return self.report()

    def report(self):
        "The table; how many failures there are."
        rows = defaultdict(lambda: defaultdict(Counter))
        bad = []
        for r in self.results.values():
            kind = r['damage'].split('-')[0]
            rows[r['container'], r['codec']][kind]['WRONG' if r['wrong'] else r['verdict']] += 1
            bad += [r] if r['wrong'] else []
        lines = []
        for (container, codec), kinds in sorted(rows.items()):
            told = [
                f'{kind}: ' + ', '.join(f'{v} {n}' for v, n in sorted(c.items())) for kind, c in kinds.items()
            ]
            lines.append(f'{container:<12}{codec:<18}' + '; '.join(told))
        total = Counter(r['verdict'] for r in self.results.values())
        lines += [
            '',
            f'{len(self.results)} files: ' + ', '.join(f'{v} {n}' for v, n in total.most_common()),
            f'{len(bad)} failures',
        ]
        lines += [f'  {r["key"]}: {r["verdict"]}: {r["wrong"]}' for r in bad]
        (self.place / 'table.txt').write_text('\n'.join(lines) + '\n')
        print('\n'.join(lines))
        return len(bad)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        '--only',
        default='',
        help='containers, codecs and damages, comma-separated; of each kind that is named, one must fit',
    )
    parser.add_argument('--place', type=Path, default=LOGS)
    for hidden in ('--worker', '--report'):
        parser.add_argument(hidden, action='store_true', help=argparse.SUPPRESS)
    for hidden in ('--encode', '--folder', '--skip'):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.worker:
        return worker()
    if args.encode:
        return encode_all(args.encode, Path(args.folder), set(json.loads(args.skip)))
    known = {
        'container': containers(),
        'codec': codecs(),
        'damage': [*DAMAGE, *{d.split('-')[0] for d in DAMAGE}],
    }
    words = [w for w in args.only.split(',') if w]
    if unknown := [w for w in words if not any(w in names for names in known.values())]:
        parser.error(
            f'unknown: {unknown[0]}; containers: {", ".join(known["container"])}; codecs: {", ".join(known["codec"])}; damage: {", ".join(DAMAGE)}'
        )
    only = [
        group
        for kind in ('damage', 'container', 'codec')
        if (group := [w for w in words if w in known[kind]])
    ]
    named_ = [c for c in known['container'] if c in words] or known['container']
    return 1 if Run(args.place, only).go(named_) else 0


if __name__ == '__main__':
    raise SystemExit(main())
