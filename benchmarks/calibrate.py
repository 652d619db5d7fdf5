"""Fit the confidence of the landmark recogniser on the validation split of the open corpus.

    RESONANCE_CORPUS=<open corpus> make calibrate

Writes resonance_nb/models/landmarks.json. Test songs, crowds and rooms are not touched: queries come from the
validation split, and a third of their songs are kept out of the catalogue.
"""

import json

import numpy as np
from tqdm import tqdm

from resonance_nb import bench
from resonance_nb.core import atomic_write, project_root
from resonance_nb.starter import default_corpus
from resonance_nb.landmarks import Landmarks

SEED, FALSE_ACCEPTS, EXCERPTS = 0, 0.01, 2

corpus = default_corpus()
plan = bench.protocol(corpus, 'validation', seed=SEED)
queries = bench.make_queries(corpus, plan, excerpts=EXCERPTS, seed=SEED)
recognizer = Landmarks()
bench.index(recognizer, corpus, plan.catalogue_ids, progress=False, measure_disk=False)

cache, features, right, spread, kinds = {}, [], [], [], []
for query in tqdm(sorted(queries, key=lambda q: (q.kind, q.noise_key)), 'ask', disable=None):
    found = recognizer.evidence(bench.render(query, corpus, cache))
    heard = bool(found.track_ids)
    features.append(found.features[0] if heard else [0.0, 0.0])
    right.append(heard and query.kind == 'known' and found.track_ids[0] == query.track_id)
    spread.append(heard and found.spread[0] >= found.needed)
    kinds.append(query.kind)

features, right, spread, kinds = np.array(features), np.array(right), np.array(spread), np.array(kinds)
coefficients = bench.fit_calibration(features, right)
confidence = np.where(spread, bench.calibrated(coefficients, features), 0)  # what one moment of the clip says is not accepted
# the threshold holds for unknown songs and for crowds, each on its own
threshold = max(float(np.quantile(confidence[kinds == kind], 1 - FALSE_ACCEPTS, method='higher')) for kind in ('unknown', 'noise'))

fitted = {
    'intercept': float(coefficients[0]),
    'weights': [float(w) for w in coefficients[1:]],
    'accept_confidence': float(np.nextafter(threshold, 1)),
    'front_end': recognizer.front.digest(),
    'fitted_on': {
        'corpus': corpus.name,
        'corpus_checksum': corpus.checksum(),
        'split': 'validation',
        'seed': SEED,
        'queries': {str(k): int(n) for k, n in zip(*np.unique(kinds, return_counts=True))},
        'query_set': bench.query_set_hash(queries),
        'false_accepts_allowed': FALSE_ACCEPTS,
    },
}
with atomic_write(project_root() / 'resonance_nb' / 'models' / 'landmarks.json') as part:
    part.write_text(json.dumps(fitted, indent=2) + '\n')
print(json.dumps(fitted, indent=2))
