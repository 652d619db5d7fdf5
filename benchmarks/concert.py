"""Speed of the concert simulator on this machine, part of `make bench`: one clip at a time, in batches, and audiomentations doing the same.

Uses the corpus in RESONANCE_CORPUS, else the starter corpus. One thread unless a line says otherwise; ratios within one run.
"""

import os
import tempfile
import time
from collections import defaultdict

import numpy as np
import torch

from resonance_nb import audio, chain, timing, venue
from resonance_nb.bank import Bank
from resonance_nb.augment import BatchDegrader, waveform_augmentation
from resonance_nb.core import rng_for
from resonance_nb.starter import default_corpus

SR = audio.SAMPLE_RATE
NAMES = list(venue.VENUES)


def line(what, value, asked=''):
    print(f'{what:66} {value:>18}   {asked}', flush=True)


def clips_of(corpus, n, before_s, duration_s, after_s):
    "Excerpts of songs, each with what is played before and after it."
    out = []
    ids = list(corpus.music.index)
    for i in rng_for(0, 'clips').choice(ids, 4 * n):
        x = corpus.load('music', i)
        need = round((before_s + duration_s + after_s) * SR)
        at = int(rng_for(0, i).integers(max(1, len(x) - need)))
        if len(x) >= need and audio.rms_db(x[at + round(before_s * SR) :][: round(duration_s * SR)]) > -50:
            out.append(x[at : at + need])
    return np.stack(out[:n])


def one_by_one(clips, records, bank, before_s, duration_s):
    a = round(before_s * SR)
    b = round((before_s + duration_s) * SR)
    for x, r in zip(clips, records):
        venue.replay(x[a:b], r, bank, x[:a], x[b:])


def stages_s(clips, records):
    "Seconds spent in each stage of the chain."
    spent = defaultdict(float)
    for x, r in zip(clips, records):
        for step in r.source + r.phone:
            name, p = chain.stage_from_dict(step)
            start = time.perf_counter()
            chain.STAGES[name][1](x, rng_for(0), p)
            spent[name] += time.perf_counter() - start
    return spent


def main():
    corpus = default_corpus()
    bank = Bank(corpus, 'train', rooms_per_venue=16)
    print(f'{timing.machine()}\n{corpus}, torch {torch.__version__}\n')

    # one at a time: 5-s clips that know 3 s of past, as the studies do
    clips = clips_of(corpus, 36, 3.0, 5.0, 0.5)
    records = [
        venue.VENUES[NAMES[i % 6]].draw(rng_for(0, 'speed', i), bank, 0.0, 5.0, 3.0)
        for i in range(len(clips))
    ]
    one_by_one(clips, records, bank, 3.0, 5.0)  # warm: rooms prepared, crowds decoded, codecs calibrated
    took_s, _ = timing.time_it(lambda: one_by_one(clips, records, bank, 3.0, 5.0), repeats=3, warmup=0)
    line(
        'one at a time, 5-s clips with 3 s of past, x real time per core',
        f'{5 * len(clips) / took_s:.0f}',
        'asked: at least 60',
    )
    for name in NAMES:
        mine = [(x, r) for x, r in zip(clips, records) if r.venue == name]
        took_s, _ = timing.time_it(lambda: one_by_one(*zip(*mine), bank, 3.0, 5.0), repeats=3, warmup=0)
        line(f'   {name}', f'{5 * len(mine) / took_s:.0f}')
    with timing.fixed_threads():
        spent = stages_s(clips, records)
    for name, s in sorted(spent.items(), key=lambda x: -x[1]):
        used = sum(name in {q['stage'] for q in r.source + r.phone} for r in records)
        line(
            f'   stage {name}, ms for 8.5 s of sound',
            f'{1000 * s / used:.1f}',
            f'in {used} of {len(records)} concerts',
        )

    # batches: 2-s clips that know 1 s of past, as in training; the same records, one by one
    degrader = BatchDegrader(bank, NAMES, duration_s=2.0, before_s=1.0, n_scenes=8)
    clips = clips_of(corpus, 64, 1.0, 2.0, 0.1)
    records = degrader.draw(len(clips), (-5.0, 15.0), rng_for(0, 'batch'))
    whole = torch.from_numpy(clips)
    few = slice(0, 24)
    one_by_one(clips[few], records[few], bank, 1.0, 2.0)

    def alone_s():
        return (
            timing.time_it(lambda: one_by_one(clips[few], records[few], bank, 1.0, 2.0), repeats=1, warmup=0)[
                0
            ]
            / 24
        )

    def drawn(degrader, clips):
        degrader(clips, degrader.draw(len(clips), (-5.0, 15.0), rng_for(0, 'batch')))

    for threads in (1, os.cpu_count() or 1):
        torch.set_num_threads(threads)
        drawn(degrader, whole)
        ratios = []
        speeds = []
        alone = []
        for _ in range(5):
            one_s = alone_s()
            start = time.perf_counter()
            drawn(degrader, whole)
            batch_s = (time.perf_counter() - start) / len(clips)
            ratios = ratios + [one_s / batch_s]
            speeds = speeds + [2 / batch_s]
            alone = alone + [2 / one_s]
        line(
            f'batches of {len(clips)}, 2-s clips with 1 s of past, x real time, {threads} thread(s)',
            f'{np.median(speeds):.0f}',
        )
        line(
            '   against the same concerts one at a time on one core',
            f'{np.median(ratios):.1f} x',
            f'asked: at least 5; one at a time: {np.median(alone):.0f} x real time',
        )
    torch.set_num_threads(1)
    if torch.cuda.is_available():
        there = BatchDegrader(bank, NAMES, duration_s=2.0, before_s=1.0, n_scenes=8, device='cuda')
        many = whole.repeat(8, 1).cuda()
        drawn(there, many)
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(5):
            drawn(there, many)
        torch.cuda.synchronize()
        line(
            f'batches of {len(many)} on {torch.cuda.get_device_name()}, x real time',
            f'{5 * 2 * len(many) / (time.perf_counter() - start):.0f}',
        )

    # audiomentations: room, crowd, equaliser, overload, drift, on the same 2-s clips with their past
    with tempfile.TemporaryDirectory() as folder:
        theirs = waveform_augmentation('heavy', *files_for(folder, bank))
        inside = [x[: 3 * SR] for x in clips[few]]
        for i, x in enumerate(inside):
            theirs(x, rng_for(0, i))
        ratios = []
        speeds = []
        for _ in range(3):
            one_s = alone_s()
            took_s = (
                timing.time_it(
                    lambda: [theirs(x, rng_for(0, i)) for i, x in enumerate(inside)], repeats=1, warmup=0
                )[0]
                / 24
            )
            ratios = ratios + [took_s / one_s]
            speeds = speeds + [2 / took_s]
    line('audiomentations, a chain of the same kind, x real time per core', f'{np.median(speeds):.0f}')
    line(
        '   time of audiomentations over ours, one at a time', f'{np.median(ratios):.2f} x', 'asked: above 1'
    )


def files_for(folder, bank):
    "Room responses and crowds as files, which is what audiomentations reads."
    made = [], []
    for i, name in enumerate(NAMES):
        for j in range(4):
            response = bank.response(bank.room(venue.VENUES[name], j))
            audio.save(f'{folder}/room{i}{j}.wav', response / np.abs(response).max())
            made[0].append(f'{folder}/room{i}{j}.wav')
    for i, source in enumerate(bank.crowds.sources('bed')[:8]):
        sound = bank.crowds.sound(source)[: 20 * SR]
        audio.save(f'{folder}/crowd{i}.wav', 0.9 * sound / np.abs(sound).max())
        made[1].append(f'{folder}/crowd{i}.wav')
    return made


if __name__ == '__main__':
    main()
