"""Train the shipped encoder on a graphics card: songs at several speeds, concerts made on the card by many processes.

What `resonance train` does on any machine, arranged for one card and many cores: each process that prepares batches has rooms and
crowds of its own and works on the card, too; the rate falls along half a cosine over the minutes that were given, however many
steps they allow. The last encoder is kept, validation windows only draw the curve.

    RESONANCE_CORPUS=... python benchmarks/train_on_card.py OUT --start ENCODER
"""

import argparse
import copy
import csv
import json
import math
import os
import shlex
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch

from resonance_nb import audio, encoders, losses, runs, trials, windows
from resonance_nb.augment import BatchDegrader
from resonance_nb.core import rng_for
from resonance_nb.corpora import Corpus
from resonance_nb.train import PROFILES, VENUES_HEARD, precision_here
from resonance_nb.bank import Bank


def options() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('out', type=Path, help='folder of the run')
    p.add_argument('--minutes', type=float, default=7.75, help='of training, preparation not counted')
    p.add_argument('--start', default='', help='an encoder.safetensors to begin with; empty: random weights')
    p.add_argument(
        '--speeds',
        type=float,
        nargs='+',
        default=[1, 1, 0.92, 1.09],
        help='copies of every song; one that is named twice is heard twice as often',
    )
    p.add_argument('--songs', type=int, default=288, help='in a batch')
    p.add_argument('--windows', type=int, default=4, help='of each song in a batch')
    p.add_argument('--rate', type=float, default=2e-3, help='of learning, at its highest')
    p.add_argument('--lowest-db', type=float, default=-10.0, help='music over crowd at its lowest')
    p.add_argument('--highest-db', type=float, default=10.0, help='and at its highest')
    p.add_argument('--producers', type=int, default=12, help='processes that prepare batches')
    p.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu', help='that learns')
    p.add_argument('--concert-device', default='', help='where concerts are made; empty: the same')
    p.add_argument('--rooms', type=int, default=24, help='rooms of each venue, for each producer')
    p.add_argument('--scenes', type=int, default=8, help='crowds of each venue, for each producer')
    p.add_argument('--looks', type=int, default=12, help='how often validation windows are asked')
    p.add_argument('--asked', type=int, default=1024, help='validation windows at each of two levels')
    p.add_argument('--max-songs', type=int, default=0, help='learn from at most so many; 0 is all')
    p.add_argument('--seed', type=int, default=0)
    return p.parse_args()


def copies(corpus: Corpus, music: windows.Packed, speeds: list[float]) -> windows.Packed:
    "The packed songs at other speeds, as versions of themselves."
    parts = []
    ids = []
    songs = []
    levels = []
    for speed in speeds:
        for row, (id, song) in enumerate(zip(music.ids, music.songs)):
            if speed == 1:
                x = np.array(music.samples[music.starts[row] : music.starts[row + 1]])
            else:  # from 16 kHz: what moves down from above 4 kHz is heard, too
                import soxr

                x = windows._whole(
                    soxr.resample(corpus.load('music', id), audio.SAMPLE_RATE * speed, windows.RATE)
                )
            (
                parts.append(x),
                ids.append(f'{id} at {speed}'),
                songs.append(song),
                levels.append(windows._quarter_levels(x)),
            )
    starts = np.concatenate([[0], np.cumsum([len(x) for x in parts])])
    return windows.Packed(
        ids, np.array(songs), starts, np.concatenate(parts), np.concatenate(levels), music.skipped
    )


def packed_to(folder: Path, music: windows.Packed) -> None:
    "Where producers find the songs."
    folder.mkdir(parents=True, exist_ok=True)
    for name in ('songs', 'starts', 'samples', 'levels_db'):
        np.save(folder / f'{name}.npy', getattr(music, name), allow_pickle=False)


def produce(rank: int, o: argparse.Namespace, cut: windows.Cut, queue) -> None:
    "Batches rank, rank + producers, …, as spectrograms in half precision."
    torch.set_num_threads(1)
    folder = o.out / 'copies'
    device = o.concert_device or o.device
    arrays = {
        name: np.load(folder / f'{name}.npy', mmap_mode='r', allow_pickle=False)
        for name in ('songs', 'starts', 'samples', 'levels_db')
    }
    music = windows.Packed([''] * len(arrays['songs']), skipped={}, **arrays)
    began = time.monotonic()
    bank = Bank(Corpus(os.environ['RESONANCE_CORPUS']), 'train', rooms_per_venue=o.rooms, seed=rank)
    concert = BatchDegrader(
        bank,
        VENUES_HEARD,
        **windows.degrader_times(cut),
        n_scenes=o.scenes,
        seed=rank,
        varied=True,
        device=device,
    )
    sampler = windows.Sampler(music, o.songs, cut, o.seed)
    front = encoders.MelFront(PROFILES['study'].encoder.front).to(device)
    print(f'producer {rank}: ready after {time.monotonic() - began:.0f} s', flush=True)
    before = round(cut.before_s * windows.RATE)
    n = round(cut.window_s * windows.RATE)
    step = rank
    told = 0
    while True:
        began = time.monotonic()
        drawn = sampler.draw(step)
        excerpts = torch.from_numpy(sampler.excerpts(drawn)).to(device)
        heard = windows._halved(
            concert.degrade(
                windows._doubled(excerpts), (o.lowest_db, o.highest_db), rng_for(o.seed, 'concert', step)
            )[0]
        )
        clean = windows._windows(excerpts[:, before:], drawn.clean_at, n)
        maps = torch.cat([front(clean), front(windows._windows(heard, drawn.heard_at, n))]).half()
        songs = torch.from_numpy(np.repeat(music.songs[drawn.rows], cut.windows)).to(device)
        if device != 'cpu':
            torch.cuda.synchronize()
        told += 1
        if rank == 0 and told in (3, 30, 100):
            print(f'producer 0: batch {told} took {time.monotonic() - began:.3f} s', flush=True)
        queue.put((maps, songs))
        step += o.producers


def asked_on(pool: trials.Pool, device: str) -> list[tuple]:
    return [tuple(x.to(device) for x in part) for part in pool._asked]


@torch.inference_mode()
def right(encoder: encoders.Encoder, asked: tuple) -> float:
    "Share of heard windows that are most like their own clean one among those of other songs."
    clean, heard, songs = asked
    a, b = (torch.cat([encoder(part) for part in x.split(256)]) for x in (clean, heard))
    similar = b @ a.T
    own = torch.arange(len(a), device=a.device)
    similar[(songs[:, None] == songs) & (own[:, None] != own)] = -2.0
    return float((similar.argmax(1) == own).float().mean())


def main() -> None:
    o = options()
    o.out.mkdir(parents=True, exist_ok=True)
    corpus = Corpus(os.environ['RESONANCE_CORPUS'])
    recipe = replace(
        PROFILES['study'],
        n_songs=o.songs,
        rate=o.rate,
        steps=0,
        venues=VENUES_HEARD,
        scenes=o.scenes * o.producers,
        seed=o.seed,
        cut=windows.Cut(windows=o.windows),
        levels=windows.Levels(*[(o.lowest_db, o.highest_db)] * 2, 0),
        warmup=200,
    )
    ids = sorted(corpus.split('music', 'train').index)[: o.max_songs or None]
    ids = [i for i in ids if corpus.path('music', i).exists()]
    began = time.monotonic()
    music = windows.pack(corpus, ids, o.out / 'music')
    packed_to(o.out / 'copies', copies(corpus, music, o.speeds))
    print(f'{len(music)} songs packed after {time.monotonic() - began:.0f} s', flush=True)
    mp = torch.multiprocessing.get_context('spawn')
    queues = [mp.Queue(2) for _ in range(o.producers)]
    producers = [
        mp.Process(target=produce, args=(rank, o, recipe.cut, queue), daemon=True)
        for rank, queue in enumerate(queues)
    ]
    for p in producers:
        p.start()
    torch.manual_seed(o.seed)
    torch.backends.cudnn.benchmark = True
    encoder, begun = (
        encoders.taken_over(Path(o.start), recipe.encoder)
        if o.start
        else (encoders.Encoder(recipe.encoder), {})
    )
    encoder.to(o.device)
    asked = asked_on(trials.Pool(corpus, Bank(corpus, 'validation'), n=o.asked, seed=o.seed), o.device)
    print(f'validation ready after {time.monotonic() - began:.0f} s', flush=True)
    optimiser = torch.optim.AdamW(encoder.parameters(), lr=o.rate, weight_decay=recipe.decay)
    facts = {
        'corpus': corpus.name,
        'corpus_checksum': corpus.checksum(),
        'songs': len(music),
        'hours': round(music.seconds() / 3600, 2),
        'skipped': music.skipped,
        'precision': precision_here(o.device),
        'speeds': o.speeds,
        'seed': o.seed,
        'command': shlex.join(['python', 'benchmarks/train_on_card.py', *sys.argv[1:]]),
        'device': torch.cuda.get_device_name() if o.device == 'cuda' else 'cpu',
        **runs.git_state(Path(runs.__file__).parent),
        'package_hash': runs.package_hash(),
        'versions': runs.versions(),
    }
    if begun:
        facts['started_from'] = {
            k: begun[k]
            for k in ('digest', 'steps', 'minutes', 'recipe', 'command', 'revision', 'started_from')
            if k in begun
        }
    first = [q.get() for q in queues[:1]]  # all preparation is over when the clock starts
    print(
        f'the first batch came after {time.monotonic() - began:.0f} s: {tuple(first[0][0].shape)}', flush=True
    )
    learn(o, recipe, encoder, optimiser, asked, facts, queues, first)
    for p in producers:
        p.kill()


def learn(o, recipe, encoder, optimiser, asked, facts, queues, ready) -> None:
    "Steps until the time is over."
    clock = time.monotonic()
    waited = 0.0
    step = 0
    looked = 0
    rows = []
    broken = 0
    half = facts['precision'] != '32-true'
    while (spent := (time.monotonic() - clock) / 60) < o.minutes:
        t = time.monotonic()
        maps, songs = ready.pop() if ready else queues[step % o.producers].get()
        waited += time.monotonic() - t
        maps = maps.to(o.device, torch.float32)
        songs = songs.to(o.device)
        for group in optimiser.param_groups:
            group['lr'] = (
                o.rate
                * min(1, (step + 1) / recipe.warmup)
                * max(1e-3, 0.5 * (1 + math.cos(math.pi * spent / o.minutes)))
            )
        with torch.autocast(o.device, torch.bfloat16, enabled=half):
            vectors = encoder.features(maps)
        vectors = torch.nn.functional.normalize(vectors.float(), dim=1)
        n = len(songs)
        loss = losses.nt_xent(vectors[:n], vectors[n:], recipe.temperature, songs)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(encoder.parameters(), recipe.clip)
        if bool(torch.isfinite(norm)):
            optimiser.step()
        else:
            broken += 1
        step += 1
        del maps
        if spent >= looked * o.minutes / o.looks:
            looked += 1
            rows.append(look(encoder, asked, step, spent, float(loss.detach()), waited))
            keep(o.out, encoder, rows, recipe, facts | {'broken_steps': broken})
    rows.append(look(encoder, asked, step, o.minutes, float(loss.detach()), waited))
    keep(o.out, encoder, rows, recipe, facts | {'broken_steps': broken})


def look(encoder, asked, step, spent, loss, waited) -> dict:
    "One line of the curve."
    encoder.eval()
    shares = [right(encoder, part) for part in asked]
    encoder.train()
    row = {
        'step': step,
        'minutes': round(spent, 2),
        'loss': round(loss, 4),
        'top1': round(float(np.mean(shares)), 4),
        'top1_0dB': round(shares[0], 4),
        'top1_-5dB': round(shares[1], 4),
        'waited_s': round(waited, 1),
    }
    print(json.dumps(row), flush=True)
    return row


def keep(folder: Path, encoder, rows: list[dict], recipe, facts: dict) -> None:
    "The encoder as it is now, and the curve."
    with open(folder / 'curve.csv', 'w', newline='') as f:
        writer = csv.DictWriter(f, list(rows[0]))
        writer.writeheader(), writer.writerows(rows)
    last = rows[-1]
    encoders.save(
        copy.deepcopy(encoder).cpu().eval(),
        folder / 'encoder.safetensors',
        recipe=json.loads(json.dumps(asdict(replace(recipe, steps=last['step'])))),
        **facts,
        steps=last['step'],
        minutes=last['minutes'],
        validation={k: v for k, v in last.items() if k.startswith('top1')},
    )


if __name__ == '__main__':
    main()
