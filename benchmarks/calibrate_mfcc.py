"""Fit the confidence of the averages (MFCC and chroma) on the validation split of the open corpus.

    RESONANCE_CORPUS=<open corpus> python benchmarks/calibrate_mfcc.py

Writes resonance_nb/models/mfcc.json and chroma.json, and prints the lab's measures on the same queries. Test songs,
crowds and rooms are not touched: queries come from the validation split, and a third of their songs are kept out of
the catalogue.
"""

import numpy as np
from tqdm import tqdm

from resonance_nb import bench
from resonance_nb.queries import make_protocol, make_queries, query_set_hash, render, snr_label
from resonance_nb.calibration import Calibration, confidences, save, threshold_at
from resonance_nb.calibration import fit as fit_confidence
from resonance_nb.core import Match, project_root, rng_for
from resonance_nb.mfcc import Chroma, Mfcc, features, lab_measures
from resonance_nb.starter import default_corpus

SEED = 0
FALSE_ACCEPTS = 0.01
EXCERPTS = 2
MODELS = project_root() / 'resonance_nb' / 'models'

corpus = default_corpus()
plan = make_protocol(corpus, 'validation', seed=SEED)
queries = make_queries(corpus, plan, excerpts=EXCERPTS, seed=SEED)
systems = [
    Mfcc(),
    Chroma(),
    Mfcc(scope='song'),
    Chroma(scope='song'),
    Mfcc(spread=False, loudness=True, top_db=200, scaling='none'),
]
for system in systems:
    bench.index(system, corpus, plan.catalogue_ids, progress=False, measure_disk=False)

asked = [[] for _ in systems]
cache = {}
for query in tqdm(sorted(queries, key=lambda q: (q.kind, q.noise_key, q.span_s)), 'ask', disable=None):
    samples = render(query, corpus, cache)
    for system, found in zip(systems, asked):
        ranking = system.rank(samples, 1)
        found.append((query, ranking.track_ids, ranking.score))


def fit(system, found):
    "The calibration of one system from its answers (query, track ids, scores)."
    usual = float(np.median([scores[4] for _, ids, scores in found if ids]))
    rows = [
        features(scores, usual)[0] if ids else features(np.zeros(1), usual)[0] for _, ids, scores in found
    ]
    right = np.array([bool(ids) and q.kind == 'known' and ids[0] == q.track_id for q, ids, _ in found])
    kinds = np.array([q.kind for q, _, _ in found])
    coefficients = fit_confidence(np.array(rows), right)
    confidence = np.where([bool(ids) for _, ids, _ in found], confidences(coefficients, np.array(rows)), 0)
    # the threshold holds for unknown songs and for crowds, each on its own
    accept = threshold_at(FALSE_ACCEPTS, confidence, kinds)
    accepted = confidence >= accept
    for kind in ('unknown', 'noise'):
        print(
            f'{system.name}: false accepts of {kind}: {accepted[kinds == kind].mean():.2%}, n = {(kinds == kind).sum()}'
        )
    print(f'{system.name}: accepted and right, all known: {(accepted & right)[kinds == "known"].mean():.1%}')
    return Calibration(
        {'front_end': system.front.digest(), 'scope': system.scope, 'scaling': system.scaling},
        float(coefficients[0]),
        dict(zip(system.calibration.weights, map(float, coefficients[1:]))),
        accept,
        {'usual_fifth': usual},
        {
            'corpus': corpus.name,
            'corpus_checksum': corpus.checksum(),
            'split': 'validation',
            'seed': SEED,
            'queries': {str(k): int(n) for k, n in zip(*np.unique(kinds, return_counts=True))},
            'query_set': query_set_hash(queries),
            'false_accepts_allowed': FALSE_ACCEPTS,
        },
    )


for system, found in zip(systems[:2], asked):
    save(MODELS / f'{system.name}.json', [fit(system, found)])

names = ['mfcc', 'chroma', 'mfcc, whole songs', 'chroma, whole songs', 'mfcc, as the lab had it']
for name, system, found in zip(names, systems, asked):
    for duration_s in (5, 10):
        for snr_db in (None, 10, 0):
            part = [
                (q.track_id, [Match(t, float(s), 0.0, 0.0) for t, s in zip(ids, scores)])
                for q, ids, scores in found
                if q.kind == 'known' and (q.duration_s, q.snr_db) == (duration_s, snr_db)
            ]
            table = lab_measures(part, len(system), rng_for(SEED, 'intervals'))
            figures = ', '.join(f'{m} {r.value:.3f} [{r.low:.3f}, {r.high:.3f}]' for m, r in table.iterrows())
            print(f'{name}, {duration_s} s, {snr_label(snr_db)}: {figures}, n = {len(part)}')
