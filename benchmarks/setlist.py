"""How good is the list of the songs of a recording? Mixes with crossfades, pauses, talk, songs of twenty seconds, songs that are played twice, unknown songs; and recordings without any known song.

    RESONANCE_CORPUS=<open corpus> python benchmarks/setlist.py --split validation --out lists.jsonl

Prints, one line a recording as it is done and then for all: songs found, names that are right, wrong names an hour, errors of begins and
ends. Whatever is tuned is tuned with `--split validation`; `--split test` is for a number to be told. A run that is stopped goes on from
its file.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np

from resonance_nb import concert, setlist
from resonance_nb.bank import Bank
from resonance_nb import queries
from resonance_nb.queries import make_protocol
from resonance_nb.concert import Evening, Part
from resonance_nb.core import rng_for
from resonance_nb.fuse import Fused
from resonance_nb.starter import default_corpus

SEED = 0
PLACES = (
    (None, None),
    (10, 'hard-mix'),
    (5, 'hard-mix'),
    (0, 'hard-mix'),
    (5, 'club'),
    (0, 'arena'),
    (10, 'festival'),
    (0, 'living-room'),
)
STRANGERS = ((None, None), (10, 'hard-mix'), (5, 'club'), (0, 'hard-mix'), (5, 'arena'), (0, 'festival'))
CROWDS = ('hard-mix', 'club', 'arena', 'festival')  # five minutes each


def excerpt(corpus, track: str, rng) -> tuple[float, float] | None:
    "Where in the song it begins and how long it is played: all of it, its first twenty seconds, or some of it; None if there is too little."
    x = corpus.load('music', track)
    first_s = concert._begins_s(x)
    left_s = len(x) / 16_000 - first_s
    how = rng.random()
    if how < 0.5:
        return (first_s, left_s) if left_s >= 8 else None
    long_s = min(20.0 if how < 0.75 else float(rng.uniform(20, 45)), left_s)
    begin_s = first_s if how < 0.75 else float(rng.uniform(first_s, first_s + left_s - long_s))
    heard = x[round(begin_s * 16_000) : round((begin_s + long_s) * 16_000)]
    # some files hold minutes of nothing
    audible = long_s >= 8 and np.mean(np.square(heard)) > 1e-4 * np.mean(np.square(x))
    return (begin_s, long_s) if audible else None


def draw_mix(corpus, known: list[str], unknown: list[str], rng, n: int) -> Evening:
    "A programme of `n` songs; each comes in over the last one, at once, after a pause, or after an announcement."
    parts = []
    now = float(rng.uniform(0, 5))
    waiting = {'song': [], 'unknown': []}
    before = []
    for _ in range(n):
        kind = 'unknown' if unknown and rng.random() < 0.25 or not known else 'song'
        waiting[kind] = waiting[kind] or [
            str(t) for t in rng.permutation(known if kind == 'song' else unknown)
        ]
        track = (
            str(rng.choice(before))
            if kind == 'song' and before and rng.random() < 0.12
            else waiting[kind].pop()
        )
        there = excerpt(corpus, track, rng)
        how = rng.random()
        fade_s = 0.05
        if there is None:
            continue
        if parts and how < 0.35 and parts[-1].kind != 'talk':
            fade_s = float(min(rng.uniform(2, 8), there[1] / 4, parts[-1].duration_s / 4))
            now = parts[-1].end_s - fade_s
        elif 0.5 <= how < 0.75:
            now += float(rng.uniform(1, 10))
        elif how >= 0.75:
            parts.append(Part('talk', now, float(rng.uniform(4, 12)), fade_s=0.05))
            now = parts[-1].end_s + 0.5
        parts.append(Part(kind, now, there[1], track, there[0], fade_s))
        now = now + there[1]
        before = [*before, track] if kind == 'song' else before
    return Evening(tuple(parts), now + float(rng.uniform(0, 8)))


def recordings(corpus, split: str):
    "Name, programme and what makes the recording, with its tempo."
    plan = make_protocol(corpus, split, seed=SEED)
    bank = Bank(corpus, split)
    known = list(plan.known_ids)
    unknown = list(plan.unknown_ids)
    jobs = [(f'mix-{i}', *where, i, known, unknown) for i, where in enumerate(PLACES)]
    jobs += [(f'strangers-{i}', *where, 50 + i, [], unknown) for i, where in enumerate(STRANGERS)]
    jobs += [(f'crowd-{i}', None, place, 80 + i, None, None) for i, place in enumerate(CROWDS)]
    for name, snr_db, place, i, knows, strange in jobs:
        rng = rng_for(SEED, 'setlist', i)
        evening = Evening((), 300.0) if knows is None else draw_mix(corpus, knows, strange, rng, 14)

        def make(evening=evening, place=place, snr_db=snr_db, i=i):
            if place is None:  # from the mixing desk
                return concert.played(evening, corpus, i), 1.0
            blocks, record = concert.heard(evening, corpus, place, snr_db, i, bank)
            return blocks, concert.tempo_of(record)

        yield name, evening, make


def measured(name, evening, make, fused, song_of) -> dict:
    "What the list of one recording is worth."
    blocks, tempo = make()
    recording = np.concatenate(list(blocks))
    begun = time.process_time()
    found = setlist.find_songs([recording], fused)
    cpu_s = time.process_time() - begun
    songs, names = setlist.compare(evening, found, song_of, tempo)
    right = songs[songs.found]
    return {
        'name': name,
        'seconds': len(recording) / 16_000,
        'cpu_s': round(cpu_s, 1),
        'played': len(songs),
        'found': len(right),
        'named': len(names),
        'right': int(names.right.sum()),
        'from_error_s': right.from_error_s.round(3).tolist(),
        'to_error_s': right.to_error_s.round(3).tolist(),
        'wrong': [
            [t, round(a, 1), round(b, 1)]
            for t, a, b in names[~names.right][['track_id', 'from_s', 'to_s']].values.tolist()
        ],
    }


def summary(rows: list[dict]) -> dict:
    "Of all recordings together."
    total = {k: sum(r[k] for r in rows) for k in ('seconds', 'cpu_s', 'played', 'found', 'named', 'right')}
    errors = {k: np.abs(sum((r[f'{k}_error_s'] for r in rows), [])) for k in ('from', 'to')}
    times = {
        f'{k}_error_s': [round(float(np.percentile(e, q)), 2) for q in (50, 95)] if len(e) else None
        for k, e in errors.items()
    }
    return (
        total
        | {'wrong_per_hour': round((total['named'] - total['right']) / total['seconds'] * 3600, 2)}
        | times
    )


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--split', default='validation', choices=['validation', 'test'])
    p.add_argument('--index', type=Path, help='folder of an index of all songs, made when it is not there')
    p.add_argument('--out', type=Path, required=True, help='file of JSON lines, one a recording')
    o = p.parse_args()
    corpus = default_corpus()
    fused = Fused()
    song_of = queries.song_of(corpus.music)
    catalogue = make_protocol(corpus, o.split, seed=SEED).catalogue_ids
    if o.index and (o.index / 'index.json').exists():
        fused = Fused.load(o.index)
    for track in corpus.music.index if o.index else catalogue:
        if track not in fused.songs:
            fused.add(track, corpus.load('music', track))
    if o.index:
        fused.save(o.index)
    fused.retain(set(catalogue))
    rows = [json.loads(line) for line in o.out.read_text().splitlines()] if o.out.exists() else []
    for name, evening, make in recordings(corpus, o.split):
        if name not in {r['name'] for r in rows}:
            rows.append(measured(name, evening, make, fused, song_of))
            print(json.dumps(rows[-1]), flush=True)
            with open(o.out, 'a') as f:
                f.write(json.dumps(rows[-1]) + '\n')
    for kind in ('mix', 'strangers', 'crowd'):
        print(kind, json.dumps(summary([r for r in rows if r['name'].startswith(kind)])))


if __name__ == '__main__':
    main()
