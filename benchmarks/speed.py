"""Speed and size of the recognisers on this machine: `make bench`.

Uses the corpus in RESONANCE_CORPUS, filled up to a thousand songs with pieces of the starter corpus (made on the first call, in some minutes). One thread; medians; ratios within one run.
"""

import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from resonance_nb import audio, timing
from resonance_nb.catalog import Catalog
from resonance_nb.core import rng_for
from resonance_nb.embedding import Embedding
from resonance_nb.encoders import Asked, shipped
from resonance_nb.fuse import Fused
from resonance_nb.table import BLOCK
from resonance_nb.landmarks import DenseLandmarks, Landmarks
from resonance_nb.network import HOP_S, embed, shipped as shipped_network
from resonance_nb.starter import default_corpus, make_starter


def line(what, value, asked=''):
    print(f'{what:58} {value:>16}   {asked}', flush=True)


corpus = default_corpus()
if len(corpus.music) < 250:  # the figures are asked for in a catalogue of at least 250 songs
    corpus = make_starter(n_pieces=260)
ids = list(corpus.music.index)
print(f'{timing.machine()}\n{corpus}\n')

# decoding alone and decoding with indexing, on the same files in one run
few = ids[:: max(1, len(ids) // 40)][:40]
seconds = sum(len(corpus.load('music', i)) for i in few) / audio.SAMPLE_RATE


def decode():
    for i in few:
        corpus.load('music', i)


def decode_and_index():
    recognizer = Landmarks()
    for i in few:
        recognizer.add(i, corpus.load('music', i))
    recognizer.prepare()


decoding_s, _ = timing.time_it(decode, repeats=3, warmup=1)
indexing_s, _ = timing.time_it(decode_and_index, repeats=3, warmup=1)
line('decoding, x real time', f'{seconds / decoding_s:.0f}')
line('decoding and indexing, x real time per core', f'{seconds / indexing_s:.0f}', 'asked: at least 500')

with tempfile.TemporaryDirectory() as folder:
    with Catalog(Path(folder) / 'catalogue', create=True) as songs:
        start = time.perf_counter()
        with timing.fixed_threads():
            report = songs.index(corpus.folder / 'music', method='landmark', progress=False)
        took_s = time.perf_counter() - start
        line(
            'the same through the catalogue, x real time',
            f'{report.seconds / took_s:.0f}',
            f'{report.added} songs in {took_s:.0f} s',
        )
        recognizer = songs.recognizer('landmark')
        size = sum(
            p.stat().st_size for p in (Path(folder) / 'catalogue' / 'landmark').rglob('*') if p.is_file()
        )
        line('index, bytes per second of audio', f'{size / report.seconds:.0f}', 'asked: at most 200')

        rng = rng_for(0, 'speed')
        clips = []
        for i in rng.choice(ids, 60):
            x = corpus.load('music', i)
            at = int(rng.integers(0, max(1, len(x) - 5 * audio.SAMPLE_RATE)))
            x = x[at : at + 5 * audio.SAMPLE_RATE]
            clips.append(x + 0.02 * rng.standard_normal(len(x)).astype(np.float32))

        def ask(recognizer, asked):
            with timing.fixed_threads():
                for clip in clips[:3]:
                    recognizer.search(clip)
                times_ms = [1000 * timing.timed(lambda: recognizer.search(clip))[0] for clip in clips]
            what = f'{recognizer.name}: 5-s query among {len(recognizer)} songs, ms: median, p95'
            line(what, f'{np.median(times_ms):.1f}, {np.quantile(times_ms, 0.95):.1f}', asked)

        ask(recognizer, '')
        more = make_starter(n_pieces=600)
        thousand = list(more.music.index)[: max(0, 1000 - len(ids))]
        for cls, asked in (
            (Landmarks, 'asked: at most 20'),
            (DenseLandmarks, 'asked: at most 100'),
            (Embedding, ''),
            (Fused, ''),
        ):
            grown = cls()
            for source, names in ((corpus, ids), (more, thousand)):
                for i in names:
                    grown.add(i, source.load('music', i))
            ask(grown, asked)

        for i, clip in enumerate(clips):
            audio.save(Path(folder) / f'{i}.flac', clip)
        real = [*grown.songs.values()]
        for copies, longer, asked in ((0, 1, 'asked: at most 60'), (9, 1, 'asked: at most 150'), (9, 8, '')):
            # the same bytes in another order: no song, but as much work
            for i, song in enumerate(real * copies):
                grown.songs[f'copy {i}'] = replace(
                    song,
                    codes=rng.permutation(np.tile(song.codes, (longer, 1))),
                    n_frames=longer * song.n_frames,
                )
            grown._table = None
            with timing.fixed_threads():
                grown.search(clips[0])
                times_ms = [
                    1000 * timing.timed(lambda: grown.search(audio.load(Path(folder) / f'{i}.flac')))[0]
                    for i in range(len(clips))
                ]
            hours = sum(len(s.codes) for s in grown.songs.values()) * BLOCK * HOP_S / 3600
            line(
                f'{grown.name}: from a 5-s file, {len(grown)} songs, {hours:.0f} h, ms',
                f'{np.median(times_ms):.1f}, {np.quantile(times_ms, 0.95):.1f}',
                asked,
            )

# the encoder in torch and in onnxruntime, by turns
music = [corpus.load('music', i) for i in few[:20]]
heard = np.concatenate([corpus.load('music', i)[::2] for i in few[:10]])
hours = sum(map(len, music)) / audio.SAMPLE_RATE / 3600
in_torch = Asked(shipped()[0])
encoders = {'torch': in_torch, 'onnxruntime': shipped_network()}


def cpu_s(work):
    start = time.process_time()
    work()
    return time.process_time() - start


def index_with(encoder):
    recognizer = Fused()
    recognizer.encoder = encoder
    for number, x in enumerate(music):
        recognizer.add(str(number), x)


with timing.fixed_threads():
    vectors_s = {name: [] for name in encoders}
    index_s = {name: [] for name in encoders}
    for _ in range(5):
        for name, encoder in encoders.items():
            vectors_s[name].append(cpu_s(lambda: embed(encoder, heard, HOP_S)))  # 8 kHz, as it hears them
            index_s[name].append(cpu_s(lambda: index_with(encoder)))
windows = len(heard) / 8_000 / HOP_S
for name in encoders:
    line(
        f'{name}: ms of CPU a window, front end included',
        f'{1000 * np.median(vectors_s[name]) / windows:.2f}',
    )
for name in encoders:
    took_s = np.median(index_s[name])
    line(
        f'{name}: indexing, s of CPU for an hour of music',
        f'{took_s / hours:.1f}',
        f'{took_s / np.median(index_s["torch"]):.2f} of torch',
    )

starts = []
for _ in range(7):
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, '-c', 'from resonance_nb.cli import main; main(["--help"])'],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    starts.append(time.perf_counter() - start)
line('resonance --help, s: median', f'{np.median(starts):.2f}', 'asked: below 0.5')
