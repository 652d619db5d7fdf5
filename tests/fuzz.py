"""Readers of files from elsewhere, fed with millions of bad ones: `make fuzz`, `make fuzz TARGET=raw SECONDS=600`.

A target takes bytes. It may return, or raise a `ResonanceError` of one line; anything else is a finding: another exception,
a death, more than 30 s or 2 GB, a file written outside its folder. Atheris, which steers the bytes by what they reach, is not
needed by anything else: `pip install atheris` into the environment, or into one that sees it. Seeds are made here, findings and
the corpus of each target lie in runs/fuzz; a later run goes on from there."""

import argparse
import contextlib
import importlib
import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RUNS = ROOT / 'runs' / 'fuzz'
TARGETS = {}  # name -> a function that makes (seeds, run) in a folder
# what an input may take, and how long a complaint may be
HANG_S = 30
MEMORY_MB = 2048
LINE = 1_000


def target(make):
    TARGETS[make.__name__.replace('_', '-')] = make
    return make


# ---- how a file is spoiled


def patched(base, data):
    "A file of which pieces are replaced: a short one is given whole (first byte even), of a long one (odd) its changes."
    if not data or not data[0] & 1:
        return data[1:]
    out = bytearray(base)
    at = 1
    while at + 5 <= len(data):
        where = int.from_bytes(data[at : at + 4], 'little') % (len(base) + 1)
        n = data[at + 4]
        piece = data[at + 5 : at + 5 + (n & 63)]
        # cut off there, put in between, or put over
        end = len(out) if n & 128 else where + len(piece) * (not n & 64)
        out[where:end] = piece
        at += 5 + len(piece)
    return bytes(out)


def whole(data):
    return b'\0' + data


CHANGES = [
    b'\1',
    b'\1\0\0\0\0\x04\0\0\0\0',
    b'\1\x10\0\0\0\x01\xff',
    b'\1\x80\0\0\0\x80',
    b'\1\x20\0\0\0\x42AB',
]


# ---- sound


def small_files(folder):
    "Short recordings of several kinds: suffix -> bytes."
    import numpy as np

    import hostile

    x = hostile.tone(0.3, 8_000, 2)
    made = {}
    for suffix, container, coding in (
        ('.wav', 'WAV', 'PCM_16'),
        ('.aiff', 'AIFF', 'PCM_16'),
        ('.flac', 'FLAC', 'PCM_16'),
        ('.ogg', 'OGG', 'VORBIS'),
        ('.mp3', 'MP3', 'MPEG_LAYER_III'),
        ('.caf', 'CAF', 'ALAC_16'),
        ('.w64', 'W64', 'PCM_24'),
    ):
        made[suffix] = hostile.write(folder / f'seed{suffix}', x, 8_000, container, coding).read_bytes()
    wide = np.concatenate([hostile.tone(0.3, 44_100, 2)])
    made['.m4a'] = hostile.write_av(folder / 'seed.m4a', wide).read_bytes()
    made['.mka'] = hostile.write_av(folder / 'seed.mka', wide, container='matroska').read_bytes()
    return made


def tagged(folder):
    "The same with tags of every kind that can be written."
    import mutagen
    from mutagen.apev2 import APEv2
    from mutagen.id3 import APIC, ID3, TIT2, TPE1

    made = small_files(folder)
    for suffix, data in list(made.items()):
        path = folder / f'tagged{suffix}'
        path.write_bytes(data)
        with contextlib.suppress(Exception):
            f = mutagen.File(path, easy=True)
            if f.tags is None:
                f.add_tags()
            f['title'], f['artist'], f['album'], f['genre'] = 'A title', 'Ärtist', 'Album', '17'
            f.save()
            made[f't{suffix}'] = path.read_bytes()
    path = folder / 'ape.mp3'
    path.write_bytes(made['.mp3'])
    ape = APEv2()
    id3 = ID3()
    ape['Title'], ape['Artist'] = 'A title', ['One', 'Two']
    ape.save(path)
    (
        id3.add(TIT2(encoding=1, text=['A title'])),
        id3.add(TPE1(encoding=3, text=['x'])),
        id3.add(APIC(data=b'\x89PNG')),
    )
    id3.save(path, v1=2)
    made['a.mp3'] = path.read_bytes()
    made['.m3u'] = b'#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n'
    return made


@target
def tags(folder):
    "Tags as catalogues read them."
    from resonance_nb.tags import TAGS, read_tags

    suffixes = ['.mp3', '.m4a', '.flac', '.ogg', '.wav', '.aiff', '.mka', '.wma', '']
    seeds = [bytes([0]) + data for data in tagged(folder).values()]

    def run(data):
        path = folder / f'x{suffixes[data[0] % len(suffixes)] if data else ""}'
        path.write_bytes(data[1:])
        found = read_tags(path)
        assert set(found) == set(TAGS), found
        for value in found.values():
            assert value is None or 0 < len(value) <= 500 and value.isprintable(), value

    return seeds, run


@target
def headers(folder):
    "What is looked for in files before and beside the decoders: Ogg pages, ID3, Xing, RIFF, FLAC between tags."
    from resonance_nb import bitstreams, chunks, files

    path = folder / 'x'
    looks = [
        files.behind_id3,
        files.flac_part,
        bitstreams.ogg_is_cut,
        bitstreams.ogg_needs_care,
        bitstreams.mp3_goes_on,
        chunks.long_wav_part,
    ]

    def run(data):
        path.write_bytes(data)
        fd = os.open(path, os.O_RDONLY)
        try:
            for look in looks:
                if (
                    look is not bitstreams.ogg_is_cut
                    and look is not bitstreams.ogg_needs_care
                    or data[:4] == b'OggS'
                ):
                    look(fd)
            chunks.promised_chunk(data.decode('latin-1'))
        finally:
            os.close(fd)

    return list(tagged(folder).values()), run


@target
def decoder(folder):
    "Whole recordings, decoded in this process: a death in here is one that the sandbox takes."
    import numpy as np

    from resonance_nb import decode

    path = folder / 'x'

    def run(data):
        path.write_bytes(data)
        decode.info(path)
        n = 0
        for x in decode.pieces(path, 0.0, None, 16_000):
            assert x.dtype == np.float32 and x.ndim == 1 and np.abs(x).max(initial=0) <= 1
            n += len(x)
            if n > 16_000 * 120:
                break

    return [d for d in small_files(folder).values() if len(d) < 20_000], run


class Chunks(io.RawIOBase):
    "Bytes that come in pieces of given sizes."

    name = 'x'

    def __init__(self, data, sizes):
        self.data = data
        self.sizes = sizes or b'\xff'
        self.at = 0
        self.i = 0

    def read(self, n=-1):
        size = 1 + self.sizes[self.i % len(self.sizes)] * 7
        self.i += 1
        piece = self.data[self.at : self.at + (size if n < 0 else min(n, size))]
        self.at += len(piece)
        return piece

    read1 = read


@target
def raw(folder):
    "The raw or WAV stream of standard input: however it is cut into pieces, it says the same."
    import struct

    import numpy as np

    import hostile
    from resonance_nb import pipe
    from resonance_nb.core import ResonanceError

    def heard(data, sizes, rate, channels, kind):
        out = []
        said = []
        try:
            for block in pipe.from_raw(Chunks(data, sizes), rate, channels, kind, report=said.append):
                out.append((block.start_s, block.samples))
        except ResonanceError as e:
            said.append(f'{type(e).__name__}: {e}')
        x = np.concatenate([s for _, s in out]) if out else np.zeros(0, np.float32)
        assert np.isfinite(x).all() and np.abs(x).max(initial=0) <= 1
        return x, said

    def run(data):
        if len(data) < 8:
            return
        kinds = ['int16', 'uint8', 'int24', 'int32', 'float32', 'float64']
        rates = [16_000, 8_000, 44_100, 1_000, 768_000]
        how = rates[data[0] % 5], 1 + data[1] % 3, kinds[data[2] % 6]
        one, said = heard(data[7:], b'\xff', *how)
        other, again = heard(data[7:], data[3:7], *how)
        assert said == again, (said, again)
        assert len(one) == len(other) and (not len(one) or np.abs(one - other).max() < 1e-4)
        for line in said:
            assert line.isprintable() and len(line) < LINE, line

    head = bytes([0, 0, 0, 1, 5, 0, 200])
    fmt = (
        struct.pack('<HHIIHHHHI', 0xFFFE, 2, 8_000, 64_000, 8, 32, 22, 32, 3)
        + struct.pack('<H', 3)
        + b'\0\0\0\0\x10\0\x80\0\0\xaa\0\x38\x9b\x71'
    )
    float_wav = (
        b'RIFF\xff\xff\xff\xffWAVEfmt '
        + struct.pack('<I', len(fmt))
        + fmt
        + b'LIST\x04\0\0\0abcddata'
        + struct.pack('<I', 64)
    )
    seeds = [
        hostile.wav_header(data=64) + bytes(range(64)),
        hostile.wav_header(2, 44_100, 24, 90) + bytes(90),
        float_wav + bytes(64),
        hostile.wav_header(data=0xFFFFFFFF, riff=0xFFFFFFFF) + bytes(50),
        bytes(range(256)),
        b'ID3\x03abcdefgh',
        b'RF64\xff\xff\xff\xffWAVEds64' + bytes(40),
    ]
    return [head + s for s in seeds], run


# ---- folders of indexes


def songs():
    from sounds import sound

    return [sound(i, 6.0) for i in range(3)]


def index_target(name, make, clip_s=3.0):
    "A saved index of which one file is spoiled: it is refused, or answers."

    def made(folder):
        from resonance_nb.audio import SAMPLE_RATE

        x = songs()
        recognizer, load = make(x)
        pristine = folder / 'whole'
        spoiled = folder / 'spoiled'
        recognizer.save(pristine)
        files = sorted(p.name for p in pristine.iterdir())
        contents = {n: (pristine / n).read_bytes() for n in files}
        shutil.copytree(pristine, spoiled)
        clip = x[1][: round(clip_s * SAMPLE_RATE)]

        def run(data):
            if not data:
                return
            which = files[data[0] % len(files)]
            changed = patched(contents[which], data[1:])
            if changed == contents[which]:
                return
            (spoiled / which).unlink()  # never over a file that is mapped
            (spoiled / which).write_bytes(changed)
            try:
                found = load(spoiled)
                for m in found.search(clip, 3):
                    assert m.offset_s == m.offset_s and 0 <= m.confidence <= 1, m
            finally:
                (spoiled / which).unlink()
                (spoiled / which).write_bytes(contents[which])

        run(b'\0\1')
        load(pristine).search(clip, 3)
        seeds = [bytes([i]) + whole(contents[n]) for i, n in enumerate(files) if len(contents[n]) < 4_000]
        seeds += [bytes([i]) + c for i in range(len(files)) for c in CHANGES]
        return seeds, run

    TARGETS[f'index-{name}'] = made


def recogniser(module, name):
    def make(x):
        cls = getattr(importlib.import_module(f'resonance_nb.{module}'), name)
        made = cls()
        for i, samples in enumerate(x):
            made.add(f'song{i}', samples)
        return made, cls.load

    return make


def vectors(x):
    import numpy as np

    from resonance_nb.core import Match, rng_for
    from resonance_nb.index import VectorIndex

    made = VectorIndex(8, 'flat', 'm')
    for i in range(3):
        made.add(f'song{i}', rng_for(i, 'fuzz').normal(size=(5, 8)).astype(np.float32))

    class Asked:
        def __init__(self, folder):
            self.index = VectorIndex.load(folder, mmap=False)

        def search(self, clip, k):
            self.index.search(np.ones((1, self.index.dim), np.float32), k)
            return [Match('song0', 0.0, 0.0, 0.0)]

    return made, Asked


for _name, _module, _class in (
    ('landmark', 'landmarks', 'Landmarks'),
    ('fused', 'fuse', 'Fused'),
    ('embedding', 'embedding', 'Embedding'),
    ('mfcc', 'mfcc', 'Mfcc'),
    ('chromaprint', 'chromaprint', 'Chromaprint'),
):
    index_target(_name, recogniser(_module, _class))
index_target('vectors', vectors)


@target
def codebook(folder):
    "A codebook in a file of arrays."
    import numpy as np

    from resonance_nb.codebook import Codebook

    path = folder / 'x.npz'
    Codebook('int8', {'ranges': np.ones((2, 4), np.float32)}).save(path)
    base = path.read_bytes()

    def run(data):
        path.write_bytes(patched(base, data))
        Codebook.load(path)

    return [whole(base), *CHANGES], run


# ---- catalogues


@target
def catalogue(folder):
    "A catalogue of which the database is spoiled, a cell of it, or a list of checksums."
    import sqlite3

    import hostile
    from resonance_nb import catalog, segments, songlist, store
    from resonance_nb.audio import SAMPLE_RATE

    music = folder / 'music'
    place = folder / 'catalogue'
    music.mkdir()
    x = songs()[:2]
    for i, s in enumerate(x):
        hostile.write(music / f'{i}.wav', s[:, None], SAMPLE_RATE)
    with catalog.Catalog(place, create=True) as c:
        c.index(music, method='landmark', progress=False)
    db = sqlite3.connect(place / store.DATABASE)
    db.execute('PRAGMA journal_mode = DELETE')
    db.execute('VACUUM')
    columns = [
        (t, r[1])
        for (t,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        for r in db.execute(f'PRAGMA table_info({t})')
    ]
    db.close()
    base = (place / store.DATABASE).read_bytes()
    sums = next(place.glob(f'landmark/*/{segments.CHECKSUMS}'))
    listed = sums.read_bytes()

    def ask():
        with catalog.Catalog(place) as c:
            (
                len(c),
                songlist.list_songs(c),
                songlist.overview(c),
                songlist.list_unreadable(c),
                c.problems(),
                c.check(),
            )
            c.embeddings('m'), c.export_csv(folder / 'out.csv')
            c.identify(x[1][: 3 * SAMPLE_RATE])

    def run(data):
        if not data:
            return
        for left in (f'{store.DATABASE}-wal', f'{store.DATABASE}-shm'):
            (place / left).unlink(missing_ok=True)
        (place / store.DATABASE).write_bytes(patched(base, b'\1' + data[1:]) if data[0] % 3 == 0 else base)
        sums.write_bytes(data[1:] if data[0] % 3 == 1 else listed)
        if data[0] % 3 == 2 and len(data) > 3:
            table, column = columns[data[1] % len(columns)]
            text = data[3:].decode('utf-8', 'replace')
            value = {
                0: text,
                1: data[3:],
                2: int.from_bytes(data[3:11], 'little', signed=True),
                3: float('inf'),
                4: None,
            }[data[2] % 5]
            with contextlib.suppress(sqlite3.Error):
                with sqlite3.connect(place / store.DATABASE) as db:
                    db.execute('PRAGMA foreign_keys = OFF')
                    db.execute(
                        f'UPDATE {table} SET {column} = ? WHERE rowid = (SELECT max(rowid) FROM {table})',
                        (value,),
                    )
                db.close()
        ask()

    ask()
    cells = [bytes([2, i, kind]) + b'12345678' for i in range(len(columns)) for kind in range(5)]
    return [b'\0' + c[1:] for c in CHANGES] + [b'\1' + listed] + cells, run


@target
def song_table(folder):
    "A CSV that a catalogue imports."
    import hostile
    from resonance_nb import catalog
    from resonance_nb.audio import SAMPLE_RATE

    (folder / 'music').mkdir()
    hostile.write(folder / 'music' / 'a.wav', songs()[0][:, None], SAMPLE_RATE)
    c = catalog.Catalog(folder / 'catalogue', create=True)
    c.index(folder / 'music', method='landmark', progress=False)
    path = folder / 'x.csv'
    row = c.songs()[0]
    c.export_csv(path)
    seed = path.read_bytes()

    def run(data):
        path.write_bytes(data)
        c.import_csv(path)
        for value in c.songs()[0].values():
            assert not isinstance(value, str) or value.isprintable(), value

    short = 'path;title\nmusic/a.wav;"New"\n'.encode()
    return [seed, short, b'recording_id\ttitle\n' + row['recording_id'].encode() + b"\t'=1\n"], run


# ---- tables and archives of corpora


def tables(name, seeds, read):
    "A text that a function reads from a file."

    def made(folder):
        path = folder / 'x'

        def run(data):
            path.write_bytes(data)
            read(path)

        return seeds, run

    TARGETS[name] = made


def corpus(path):
    from resonance_nb import corpora

    for kind in corpora.KINDS:
        with contextlib.suppress(corpora.CorpusError):
            table = corpora.read_table(path, kind)
            c = corpora.Corpus(path.parent, 'x', {kind: table})
            corpora.table_text(table), c.checksum(), repr(c)
            for row in table.index:
                assert c.path(kind, row).resolve().is_relative_to(path.parent.resolve()), row
            if kind == 'music' and len(table):
                corpora.splits_table(c, 0)


tables(
    'corpus-table',
    [
        b'id,file,title,duration_s,version_group,source_url\na,music/a.flac,A,64.0,,http://x/y\nb,b.flac,B,,v1,\n',
        b'id,file,room_id,rt60_s\nr,rir/r.flac,room,0.4\n',
    ],
    corpus,
)


def others(path):
    from resonance_nb import datasets
    from resonance_nb.core import ResonanceError

    for read in (
        datasets.read_fma,
        datasets.read_mtg,
        datasets.read_mtg_names,
        datasets.read_mtg_licences,
        datasets.read_checksums,
    ):
        with contextlib.suppress(ResonanceError):
            read(path)


tables(
    'other-tables',
    [
        b',track,artist,set,track\n,title,name,subset,license\ntrack_id,,,,\n2,Food,AWOL,small,by\n',
        b'TRACK_ID\tARTIST_ID\tALBUM_ID\tPATH\tDURATION\tTAGS\ntrack_1\ta\tb\t14/214.mp3\t124.6\tgenre---punk\n',
        b'0' * 64 + b' *raw_30s/audio/00.tar\n',
        b'14/214.mp3\n x http://a/b\n y http://c/d\n',
    ],
    others,
)


def answers(path):
    from resonance_nb.answers import read_answers

    read_answers(path)


tables(
    'answers',
    [
        b'file,track_id,score,offset_s\nq1.wav,a,0.9,1.5\nq2.wav,,,\n',
        b'sep=;\nfile;title;status\nq1.wav;"x";match\n',
        b'{"file": "q1.wav", "matches": [{"track_id": "a", "score": 1}]}\n',
        b'[{"file": "q.wav", "status": false}]',
    ],
    answers,
)


def records(path):
    from resonance_nb import services

    services.read_record(path)


tables(
    'record',
    [
        p.read_bytes()
        for p in sorted((ROOT / 'data' / 'services').glob('*.json'))[:3]
        if p.stat().st_size < 20_000
    ]
    + [
        b'{"format": "resonance service answers", "version": 1, "service": "x", "questions": [], "query_set": "", "venue": "", "date": "",'
        b' "notes": {}, "corpus": {"name": "c"}, "own_catalogue": true}'
    ],
    records,
)


def pack(path):
    from resonance_nb import packs

    (path.parent / 'pack').mkdir(exist_ok=True)
    (path.parent / 'pack' / packs._KEY).write_bytes(path.read_bytes())
    packs.Pack.load(path.parent / 'pack')


tables(
    'pack',
    [
        b'{"format": "resonance pack", "version": 1, "query_set": "x", "venue": "v", "rate_hz": 16000, "seed": 0, "catalogue": "c",'
        b' "corpus": {}, "files": [["q1.wav", "q1", "aa"]], "songs": [["t", "T", "A"]], "protocol": {}, "queries": []}'
    ],
    pack,
)


def values(path):
    from resonance_nb import runs

    runs.parse_value(path.read_bytes().decode('utf-8', 'replace'))


tables('parameter', [b'5', b'[0, -5]', b'{a: 1}', b'true', b'2001-01-01', b'&a [*a]', b'!!set {a}'], values)


@target
def archives(folder):
    "Zips and tars that are unpacked: nothing is written outside."
    import tarfile
    import zipfile

    from resonance_nb import archives
    from resonance_nb.core import ResonanceError

    def zipped(*members):
        out = io.BytesIO()
        with zipfile.ZipFile(out, 'w') as z:
            for name, data in members:
                z.writestr(name, data)
        return out.getvalue()

    def tarred(mode, *members):
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode=mode) as t:
            for name, kind, link in members:
                m = tarfile.TarInfo(name)
                m.type = kind
                m.linkname = link
                m.size = 3 if kind == tarfile.REGTYPE else 0
                t.addfile(m, io.BytesIO(b'abc'))
        return out.getvalue()

    members = [
        ('a/b.mp3', tarfile.REGTYPE, ''),
        ('l', tarfile.SYMTYPE, '../../x'),
        ('../up', tarfile.REGTYPE, ''),
    ]
    seeds = [
        b'\0' + zipped(('a/b.mp3', b'abc'), ('c', b'')),
        b'\0' + zipped(('../up', b'abc')),
        b'\1' + tarred('w', *members[:1]),
        b'\1' + tarred('w:gz', *members[:1]),
        b'\1' + tarred('w', *members),
        b'\1' + tarred('w:xz', members[0], members[2]),
    ]
    inner = folder / 'a' / 'b' / 'inner'
    inner.parent.mkdir(parents=True)

    def run(data):
        if not data:
            return
        path = folder / 'x'
        path.write_bytes(data[1:])
        shutil.rmtree(inner, ignore_errors=True)
        with contextlib.suppress(ResonanceError):
            (archives.extract_tar if data[0] & 1 else archives.extract_zip)(path, inner)
        left = [
            p
            for p in folder.rglob('*')
            if not p.is_relative_to(inner) and p not in (path, folder / 'a', folder / 'a' / 'b')
        ]
        assert not left, left
        assert not [p for p in inner.rglob('*') if p.is_symlink()]

    return seeds, run


@target
def download_answers(folder):
    "What a server says of a download: `Retry-After`, lengths, ranges, a body of another length."
    from resonance_nb import download

    class Answer:
        def __init__(self, status, headers, body):
            self.status_code = status
            self.headers = headers
            self.raw = io.BytesIO(body)
            self.raw.read1 = self.raw.read = lambda n=-1, decode_content=True, read=self.raw.read: read(n)

        __enter__ = lambda self: self
        __exit__ = lambda self, *_: None

    class Session:
        def __init__(self, answer):
            self.get = lambda *_, **__: answer

    part = folder / 'x.part'

    def run(data):
        parts = data.decode('latin-1').split('\n', 5)
        if len(parts) < 6:
            return
        status = (200, 206, 416, 429, 503, 404)[len(parts[0]) % 6]
        names = ('Content-Length', 'Content-Range', 'Retry-After', 'ETag')
        part.write_bytes(b'12345' * (len(parts[0]) % 2))
        answer = Answer(status, {n: v for n, v in zip(names, parts[1:]) if v}, parts[5].encode('latin-1'))
        with contextlib.suppress(download._Passing):
            download._request(
                Session(answer), 'https://x/y', part, trust=True, timeout_s=1, max_bytes=1_000, progress=None
            )
        wait = download.retry_after_s(parts[3])
        assert wait is None or 0 <= wait <= download._PATIENCE_S

    return [
        b'\n5\n\n\n"a"\nabcde',
        b'a\n5\nbytes 5-9/10\n\n\nabcde',
        b'aaa\n\n\nWed, 21 Oct 2015 07:28:00 GMT\n\n',
        b'aa\n\nbytes */5\n7\n\n',
    ], run


# ---- running them


class Findings:
    "What went wrong, once for each place in the package, with the bytes that show it."

    def __init__(self, name):
        self.folder = RUNS / name / 'findings'
        self.seen = set()
        self.folder.mkdir(parents=True, exist_ok=True)

    def keep(self, data, error):
        frames = [
            f
            for f in traceback.extract_tb(error.__traceback__)
            if f'{os.sep}resonance_nb{os.sep}' in f.filename
        ]
        at = f'{Path(frames[-1].filename).stem}-{frames[-1].lineno}' if frames else 'target'
        key = re.sub(r'\W+', '-', f'{type(error).__name__}-{at}')
        if key not in self.seen:
            self.seen.add(key)
            (self.folder / f'{key}.bin').write_bytes(data)
            text = ''.join(traceback.format_exception(error))
            (self.folder / f'{key}.txt').write_text(
                text[-8_000:], encoding='utf-8', errors='backslashreplace'
            )
            print(f'FINDING {key}: {str(error)[:300]!r}', flush=True)


def judged(run, data):
    "What is wrong with how a target took these bytes; None when nothing is."
    from resonance_nb.core import ResonanceError

    try:
        run(data)
    except ResonanceError as e:
        if not str(e).isprintable() or not 0 < len(str(e)) < LINE:
            return e
    except Exception as e:
        return e


def guarded(folder):
    "From now on, a file opened for writing outside of a folder is an error."
    allowed = tuple(str(p) + os.sep for p in (folder, RUNS, Path(sys.prefix))) + ('/dev/',)

    def watch(event, args):
        if (
            event == 'open'
            and isinstance(args[0], (str, bytes))
            and args[2] is not None
            and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        ):
            path = os.path.realpath(os.fsdecode(args[0]))
            if not path.startswith(allowed):
                raise AssertionError(f'{path} would be written')

    sys.addaudithook(watch)


def child(name, seconds):
    "Fuzz one target in this process."
    import atheris

    os.nice(19)
    os.environ['RESONANCE_SANDBOX'] = '0' if name == 'decoder' else '1'
    with atheris.instrument_imports(include=['resonance_nb', 'mutagen']):
        for module in (
            'answers bitstreams catalog checkup chromaprint chunks corpora decode download embedding ffmpeg files fuse identity index indexing '
            'landmarks mfcc packets packs pipe rows runs segments services sndfile songlist sources store stream tags workers'
        ).split():
            importlib.import_module(f'resonance_nb.{module}')
        with contextlib.suppress(Exception):
            import mutagen

            mutagen.File(__file__)  # brings the parts of it
    place = RUNS / name
    findings = Findings(name)
    with tempfile.TemporaryDirectory() as folder:
        seeds, run = TARGETS[name](Path(folder))
        (place / 'corpus').mkdir(exist_ok=True)
        for i, seed in enumerate(seeds):
            (place / 'corpus' / f'seed-{i:03d}').write_bytes(seed)
        guarded(Path(folder).resolve())

        def one(data):
            if error := judged(run, data):
                findings.keep(data, error)

        longest = max(4_096, *(len(s) for s in seeds))
        options = [
            f'-max_total_time={seconds}',
            f'-timeout={HANG_S}',
            f'-rss_limit_mb={MEMORY_MB}',
            f'-max_len={longest}',
            f'-artifact_prefix={place}/findings/',
            '-print_final_stats=1',
            '-close_fd_mask=0',
            str(place / 'corpus'),
        ]
        atheris.Setup([sys.argv[0], *options], one)
        atheris.Fuzz()


def counted(log):
    "Inputs and coverage, from what libFuzzer printed, a process after the other."
    inputs = cover = 0
    for part in log.split('INFO: Seed')[1:]:
        steps = re.findall(r'^#(\d+)\s.*?cov: (\d+)', part, re.M)
        if steps:
            inputs = inputs + int(steps[-1][0])
            cover = max(cover, int(steps[-1][1]))
    return inputs, cover


def fuzz(name, seconds):
    "Fuzz a target in processes of its own, a new one when one dies; (inputs, coverage, findings)."
    place = RUNS / name
    end = time.monotonic() + seconds
    place.mkdir(parents=True, exist_ok=True)
    log = place / 'log.txt'
    with open(log, 'w') as out:
        while (left := round(end - time.monotonic())) > 0:
            words = [sys.executable, __file__, '--child', name, '--seconds', str(left)]
            env = os.environ | {'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'}
            done = subprocess.run(
                words, env=env, stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
            )
            if done.returncode == 0 or 'INFO: Seed' not in log.read_text(errors='replace'):
                break
    inputs, cover = counted(log.read_text(errors='replace'))
    found = (
        sorted(p.name for p in (place / 'findings').glob('*') if p.suffix != '.txt')
        if (place / 'findings').exists()
        else []
    )
    return inputs, cover, found, done.returncode if not inputs else 0


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--target', default='', help='comma-separated; default all of: ' + ', '.join(TARGETS))
    parser.add_argument('--seconds', type=int, default=60, help='for each target')
    parser.add_argument('--child', help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    names = [n for n in args.target.split(',') if n] or list(TARGETS)
    if unknown := [n for n in names if n not in TARGETS]:
        parser.error(f'unknown target {unknown[0]}; choose from: {", ".join(TARGETS)}')
    try:
        import atheris  # noqa: F401
    except ImportError:
        print('atheris is needed for this and for nothing else: pip install atheris', file=sys.stderr)
        return 2
    if args.child:
        child(args.child, args.seconds)
        return 0
    bad, total = 0, 0
    for name in names:
        inputs, cover, found, died = fuzz(name, args.seconds)
        total = total + inputs
        bad = bad + len(found) + bool(died)
        print(
            f'{name:<18} {inputs:>10} inputs  coverage {cover:>6}  findings {len(found)}'
            + (f'  DID NOT RUN, see {RUNS / name / "log.txt"}' if died else ''),
            flush=True,
        )
        for f in found:
            print(f'  {RUNS / name / "findings" / f}')
    print(f'{total} inputs, {bad} findings')
    return 1 if bad else 0


if __name__ == '__main__':
    raise SystemExit(main())
