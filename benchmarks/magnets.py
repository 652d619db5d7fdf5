"""What recordings that are no songs do to a library: how often the fused recogniser names them, and for whom.

    RESONANCE_CORPUS=<open corpus> python benchmarks/magnets.py --split validation

A catalogue of songs is asked with and without tones, metronomes, noise and recordings of crowds in it: for clips of its songs and of
others behind crowds, for crowds alone, and for noises of every kind. The crowds in the clips, the noises that are asked and those
that are in the catalogue are different recordings (on validation clips the latter are those that `resonance calibrate noises` heard). Prints one row for each kind of question.
"""

import argparse
from collections import Counter

import numpy as np
import pandas as pd
from tqdm import tqdm

from resonance_nb import bench, venue
from resonance_nb.bank import Bank
from resonance_nb.clips import in_venue, render
from resonance_nb.queries import make_protocol, make_queries
from resonance_nb.core import rng_for
from resonance_nb.fuse import Fused
from resonance_nb.starter import default_corpus
from resonance_nb.vectors import coloured_noise

SEED = 0
RATE = 16_000
SNRS_DB = (None, 5, 0, -5)
DURATIONS_S = (2.5, 5, 10)


def tones(frequencies_hz, duration_s):
    "A chord of sines."
    at = np.arange(round(duration_s * RATE)) / RATE
    return 0.3 * sum(np.sin(2 * np.pi * f * at) for f in frequencies_hz) / len(frequencies_hz)


def clicks(per_minute, duration_s, pitch_hz=1_000):
    "A metronome."
    x = np.zeros(round(duration_s * RATE))
    click = np.sin(2 * np.pi * pitch_hz * np.arange(400) / RATE)
    for at in range(0, len(x) - 400, round(60 * RATE / per_minute)):
        x[at : at + 400] += 0.8 * click * np.exp(-np.arange(400) / 80)
    return x


def made(duration_s, seed):
    "What a synthesiser gives: name -> samples."
    sounds = {
        '440 Hz': tones([440], duration_s),
        '1 kHz': tones([1_000], duration_s),
        'dial tone': tones([350, 440], duration_s),
    }
    sounds |= {
        'hum': tones([50, 100, 150, 200, 300], duration_s),
        'metronome': clicks(120 - 20 * seed, duration_s),
    }
    sounds |= {f'noise 1/f^{e}': coloured_noise(e, duration_s=duration_s, seed=seed) for e in (0, 1, 2)}
    return {name: x.astype(np.float32) for name, x in sounds.items()}


def asked(corpus, plan, ear):
    "Kind of question, song or noise, and what was heard."
    bank = Bank(corpus, plan.split)
    queries = make_queries(corpus, plan, SNRS_DB, DURATIONS_S, seed=SEED, n_noise_only=60)
    for places in (['hard-mix'], list(venue.VENUES)):
        cache = {}
        degrade = in_venue(bank, places)
        for q in tqdm(sorted(queries, key=lambda q: (q.kind, q.noise_key)), 'clips', disable=None):
            yield (
                {'noise': 'crowd alone'}.get(q.kind, f'{q.kind} song'),
                q.track_id,
                ear.hear(render(q, corpus, cache, degrade)),
            )
    for name, x in ((i, corpus.load('noise', i)) for i in corpus.split('noise', plan.split).index):
        for j, n in enumerate((5 * RATE, 10 * RATE)):
            if len(x) > n:
                at = int(rng_for(SEED, 'noise', name, j).integers(0, len(x) - n))
                yield 'noises', name, ear.hear(x[at : at + n])
    for name, x in made(6, 1).items():
        yield 'noises', name, ear.hear(x)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--split', choices=('validation', 'test'), default='validation')
    split = parser.parse_args().split
    corpus = default_corpus()
    plan = make_protocol(corpus, split, seed=SEED)
    songs = Fused()
    magnets = Fused()
    bench.index(songs, corpus, plan.catalogue_ids, measure_disk=False)
    other = {'validation': 'train', 'test': 'validation'}[split]
    for i in corpus.split('noise', other).index:
        if len(x := corpus.load('noise', i)) >= 12 * RATE:
            magnets.add(f'magnet {i}', x[: 40 * RATE])
    for name, x in made(30, 0).items():
        magnets.add(f'magnet {name}', x)
    both = Fused()
    both.merge(songs), both.merge(magnets)
    rows = []
    for kind, name, heard in asked(corpus, plan, songs):
        for library, index in (('songs', songs), ('songs and magnets', both)):
            e = index.evidence(heard)
            first = e.track_ids[0] if e.track_ids else ''
            sure = bool(e.track_ids) and 1 / (1 + np.exp(-index.logit(e)[0])) >= index.accept_confidence
            rows.append(
                (kind, library, first == name, sure and first != name, first.startswith('magnet'), first)
            )
    table = pd.DataFrame(
        rows, columns=['asked', 'library', 'right', 'accepted and wrong', 'a magnet is first', 'first']
    )
    told = table.groupby(['asked', 'library'])[['right', 'accepted and wrong', 'a magnet is first']].sum()
    told.insert(0, 'n', table.groupby(['asked', 'library']).size())
    told['most named'] = table.groupby(['asked', 'library'])['first'].agg(
        lambda x: Counter(x).most_common(1)[0][1]
    )
    print(f'{split}: {len(songs)} songs, {len(magnets)} magnets')
    print(told.to_string())


if __name__ == '__main__':
    main()
