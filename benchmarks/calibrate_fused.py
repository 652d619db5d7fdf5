"""Fit the weights and the confidence of the fused recogniser on the validation split of the open corpus.

    RESONANCE_CORPUS=<open corpus> python benchmarks/calibrate_fused.py

Writes the weights of cosine and agreement (a conditional logit over each clip's candidates) and, with those weights, the confidence
and the threshold: resonance_nb/models/fused.json. To be run whenever the encoder or its codebook changes. Half as many strangers pass
the threshold here as are allowed, because it is chosen among the clips that it is counted on.
Test songs, crowds and rooms are not touched. Every clip of a song in the catalogue is also judged as if the song and its versions
were not there; songs that share audio (a clean clip of one is found in the other by vectors and by peaks) are no strangers to each
other, and answers that take one for the other are set aside. `--index DIR` keeps the index of the songs for the next time.
"""

import argparse
from collections import Counter
from pathlib import Path

import numpy as np
from scipy.optimize import minimize
from tqdm import tqdm

from resonance_nb import bench, venue
from resonance_nb.bank import Bank
from resonance_nb.queries import (
    in_venue,
    make_protocol,
    make_queries,
    query_set_hash,
    render,
    snr_label,
    song_of,
)
from resonance_nb.calibration import Calibration, confidences, fit, load_all, save, threshold_at
from resonance_nb.core import project_root
from resonance_nb.fuse import Fused
from resonance_nb.starter import default_corpus, make_starter

SEED = 0
FALSE_ACCEPTS = 0.005
STRANGERS = 560
SNRS_DB = (None, 10, 5, 0, -5, -10)
DURATIONS_S = (1.5, 2.5, 5, 10)
FILE = project_root() / 'resonance_nb' / 'models' / 'fused.json'

parser = argparse.ArgumentParser()
parser.add_argument('--index', type=Path, help='folder of the index, made if missing')
options = parser.parse_args()

corpus = default_corpus()
more = make_starter(n_pieces=600)
plan = make_protocol(corpus, 'validation', seed=SEED)
queries = make_queries(corpus, plan, SNRS_DB, DURATIONS_S, seed=SEED, n_noise_only=60)
bank = Bank(corpus, 'validation')
heard_in = {
    'hard-mix': in_venue(bank, ['hard-mix']),
    'six venues': in_venue(bank, list(venue.VENUES)),
    'crowd': None,
}
versions = song_of(corpus.music)
by_song = {}
for track, song in versions.items():
    by_song.setdefault(song, set()).add(track)

if options.index and (options.index / 'index.json').exists():
    recognizer = Fused.load(options.index)
else:
    recognizer = Fused()
    bench.index(
        recognizer,
        corpus,
        sorted({q.track_id for q in queries if q.track_id} | set(plan.catalogue_ids)),
        measure_disk=False,
    )
    bench.index(recognizer, more, list(more.music.index)[:STRANGERS], measure_disk=False)
    if options.index:
        recognizer.save(options.index)

asked = []
for place, degrade in heard_in.items():
    cache = {}
    for query in tqdm(
        sorted(queries, key=lambda q: (q.kind, q.noise_key)), place, disable=None, mininterval=10
    ):
        asked.append((place, query, recognizer.hear(render(query, corpus, cache, degrade))))


def found_now(kinds: tuple[str, ...]) -> list[tuple]:
    "Place, query, kind and evidence of every clip that says something; a known song's clip is an unknown one's, too, when its versions are left out."
    found = []
    for place, query, heard in tqdm(asked, ' and '.join(kinds), disable=None, mininterval=10):
        for kind in [query.kind] + ['unknown'] * (query.kind == 'known'):
            if kind in kinds:
                own = by_song.get(versions.get(query.track_id), set()) if kind == 'unknown' else ()
                found.append((place, query, kind, recognizer.evidence(heard, own)))
    return [f for f in found if f[3].track_ids]


def fitted_weights(found: list[tuple]) -> dict[str, float]:
    "Weights under which the right song of a clip comes first among its candidates as often as can be."
    cases = [
        (np.stack([e.cosine, e.agreement], 1), e.track_ids.index(q.track_id))
        for _, q, _, e in found
        if q.track_id in e.track_ids
    ]
    scale = np.concatenate([x for x, _ in cases]).std(0)

    def loss(w):
        total = 0.0
        slope = np.zeros(2)
        for x, right in cases:
            score = x / scale @ w
            share = np.exp(score - np.logaddexp.reduce(score))
            total -= np.log(share[right])
            slope += (share @ x - x[right]) / scale
        return total / len(cases) + 5e-4 * w @ w, slope / len(cases) + 1e-3 * w

    w = minimize(loss, np.ones(2), jac=True, method='BFGS').x / scale
    return {'cosine': round(float(w[0]), 2), 'agreement': round(float(w[1]), 3)}


before = load_all(FILE)[0].constants
recognizer._weights = fitted_weights(found_now(('known',)))
print('weights before', before['score_weights'], 'and now', recognizer._weights)
found = found_now(('known', 'unknown', 'noise'))
kin = {
    (q.track_id, e.track_ids[0])
    for place, q, kind, e in found
    if kind == 'unknown'
    and q.snr_db is None
    and q.duration_s >= 5
    and e.cosine[0] > 0.6
    and e.agreement[0] > 6
}
kin |= {(b, a) for a, b in kin}
strangers = [
    (place, q, kind, e)
    for place, q, kind, e in found
    if kind != 'known' and (q.track_id, e.track_ids[0]) not in kin
]
levels = np.array([(e.score[1], *e.features[0, 6:8]) for *_, e in strangers if len(e.score) > 14])
floor = {
    name: round(float(x), 3) for name, x in zip(('rival', 'others', 'agreement'), np.median(levels, axis=0))
}
rows = [
    (e, kind, kind == 'known' and e.track_ids[0] == q.track_id, place, q)
    for place, q, kind, e in found
    if kind == 'known' or (q.track_id, e.track_ids[0]) not in kin
]
features = np.array([e.features[0] for e, *_ in rows])
kinds = np.array([r[1] for r in rows])
right = np.array([r[2] for r in rows])
coefficients = fit(features, right)
confidence = confidences(coefficients, features)
# the threshold holds for unknown songs and for crowds, each on its own
accept = threshold_at(FALSE_ACCEPTS, confidence, kinds)
print(
    f'named right {np.mean(right[kinds == "known"]):.1%}, accepted and right {np.mean((confidence >= accept)[kinds == "known"] & right[kinds == "known"]):.1%}'
)
for place in heard_in:
    for snr_db in SNRS_DB:
        here = [
            np.array([r[3] == place and r[4].snr_db == snr_db and r[4].duration_s == d for r in rows])
            & (kinds == 'known')
            for d in DURATIONS_S
        ]
        print(
            place,
            snr_label(snr_db),
            *(f'{np.mean(right[h]):.0%} {np.mean((right & (confidence >= accept))[h]):.0%}' for h in here),
            sep='  ',
        )
fitted = Calibration(
    {'model': recognizer.model_name},
    float(coefficients[0]),
    dict(zip(recognizer.calibration.weights, map(float, coefficients[1:]))),
    accept,
    before | {'score_weights': recognizer._weights, 'floor': floor},
    {
        'corpus': corpus.name,
        'corpus_checksum': corpus.checksum(),
        'split': 'validation',
        'conditions': list(heard_in),
        'songs': len(recognizer),
        'seed': SEED,
        'pairs_that_share_audio': len(kin) // 2,
        'set_aside': len(found) - len(rows),
        'answers': dict(Counter(kinds.tolist())),
        'query_set': query_set_hash(queries),
        'false_accepts_allowed': FALSE_ACCEPTS,
    },
)
save(FILE, [fitted])
print(fitted)
