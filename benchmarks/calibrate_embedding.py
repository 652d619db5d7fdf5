"""Fit the confidence of the embedding recogniser on the validation split of the open corpus.

    RESONANCE_CORPUS=<open corpus> python benchmarks/calibrate_embedding.py

Writes resonance_nb/models/embedding.json for the encoder that is shipped; to be run whenever that changes. Test songs,
crowds and rooms are not touched. As for landmarks: clips behind a crowd, in the hard mix and in the six venues; every clip
of a song in the catalogue is also judged as if the song and its versions were not; songs that share audio (a clean clip of
one is nearly as similar to the other) are no strangers to each other, and answers that take one for the other are set aside.
"""

import numpy as np
from tqdm import tqdm

from resonance_nb import bench, venue
from resonance_nb.bank import Bank
from resonance_nb.queries import in_venue, make_protocol, make_queries, query_set_hash, render, song_of
from resonance_nb.calibration import Calibration, confidences, fit, save, threshold_at
from resonance_nb.core import project_root
from resonance_nb.embedding import Embedding, evidence_features
from resonance_nb.starter import default_corpus, make_starter

SEED = 0
FALSE_ACCEPTS = 0.01
STRANGERS = 560
SNRS_DB = (None, 10, 0, -5)
DURATIONS_S = (2, 5, 10)

corpus = default_corpus()
more = make_starter(n_pieces=600)
plan = make_protocol(corpus, 'validation', seed=SEED)
queries = make_queries(corpus, plan, SNRS_DB, DURATIONS_S, seed=SEED, n_noise_only=60)
bank = Bank(corpus, 'validation')
heard_in = {
    'crowd': None,
    'hard-mix': in_venue(bank, ['hard-mix']),
    'six venues': in_venue(bank, list(venue.VENUES)),
}
versions = song_of(corpus.music)
recognizer = Embedding()
bench.index(
    recognizer,
    corpus,
    sorted({q.track_id for q in queries if q.track_id} | set(plan.catalogue_ids)),
    progress=False,
    measure_disk=False,
)
bench.index(recognizer, more, list(more.music.index)[:STRANGERS], progress=False, measure_disk=False)

found = []
for place, degrade in heard_in.items():
    cache = {}
    for query in tqdm(sorted(queries, key=lambda q: (q.kind, q.noise_key)), 'ask', disable=None):
        r = recognizer.rank(render(query, corpus, cache, degrade))
        found.append((place, query, r.track_ids[:60], r.score[:60], r.n_windows))

kin = set()
for place, query, ids, scores, _ in found:
    if place == 'crowd' and query.kind != 'noise' and query.snr_db is None and query.duration_s >= 5:
        kin |= {
            (query.track_id, t)
            for t, s in zip(ids, scores)
            if s > 0.6 and versions.get(t) != versions[query.track_id]
        }
kin |= {(b, a) for a, b in kin}

rows = []
aside = 0
for _, query, ids, scores, n in found:
    mine = versions.get(query.track_id)
    others = (
        np.array([versions.get(t) != mine for t in ids], bool)
        if query.kind != 'noise'
        else np.ones(len(ids), bool)
    )
    judged = [('known', np.ones(len(ids), bool))] if query.kind == 'known' else []
    for kind, kept in [*judged, ('noise' if query.kind == 'noise' else 'unknown', others)]:
        if not kept.any():
            continue
        best = ids[int(np.flatnonzero(kept)[0])]
        if kind == 'unknown' and (query.track_id, best) in kin:
            aside += 1
            continue
        rows.append((evidence_features(scores[kept], n)[0], kind == 'known' and best == query.track_id, kind))

features, right, kinds = (np.array(x) for x in zip(*rows))
coefficients = fit(features, right)
confidence = confidences(coefficients, features)
# the threshold holds for unknown songs and for crowds, each on its own
accept = threshold_at(FALSE_ACCEPTS, confidence, kinds)
print(
    f'accepted and right, all known: {np.mean((confidence >= accept)[kinds == "known"] & right[kinds == "known"]):.1%}; named right: {np.mean(right[kinds == "known"]):.1%}'
)
fitted = Calibration(
    {'encoder': recognizer.digest},
    float(coefficients[0]),
    dict(zip(recognizer.calibration.weights, map(float, coefficients[1:]))),
    accept,
    fitted_on={
        'corpus': corpus.name,
        'corpus_checksum': corpus.checksum(),
        'split': 'validation',
        'conditions': list(heard_in),
        'songs': len(recognizer),
        'seed': SEED,
        'pairs_that_share_audio': len(kin) // 2,
        'set_aside': aside,
        'answers': {str(k): int(n) for k, n in zip(*np.unique(kinds, return_counts=True))},
        'query_set': query_set_hash(queries),
        'false_accepts_allowed': FALSE_ACCEPTS,
    },
)
save(project_root() / 'resonance_nb' / 'models' / 'embedding.json', [fitted])
print(fitted)
