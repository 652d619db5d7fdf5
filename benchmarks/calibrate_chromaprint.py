"""Fit the confidence of the Chromaprint recogniser on the validation split of the open corpus.

    RESONANCE_CORPUS=<open corpus> .venv/bin/python benchmarks/calibrate_chromaprint.py

Writes resonance_nb/models/chromaprint.json. Test songs, crowds and rooms are not touched: queries come from the
validation split, and a third of their songs are kept out of the catalogue.
"""

from dataclasses import asdict

import numpy as np
from tqdm import tqdm

from resonance_nb import bench, timing
from resonance_nb.queries import make_protocol, make_queries, query_set_hash, render
from resonance_nb.calibration import Calibration, confidences, fit, save, threshold_at
from resonance_nb.chromaprint import Chromaprint, features
from resonance_nb.core import project_root
from resonance_nb.starter import default_corpus

SEED = 0
FALSE_ACCEPTS = 0.01
EXCERPTS = 2

corpus = default_corpus()
plan = make_protocol(corpus, 'validation', seed=SEED)
queries = make_queries(corpus, plan, excerpts=EXCERPTS, seed=SEED)
recognizer = Chromaprint()
bench.index(recognizer, corpus, plan.catalogue_ids, progress=False, measure_disk=False)

cache = {}
errors = []
bits = []
varied = []
right = []
kinds = []
with timing.fixed_threads():
    for query in tqdm(sorted(queries, key=lambda q: (q.kind, q.noise_key)), 'ask', disable=None):
        found = recognizer.rank(render(query, corpus, cache))
        errors.append(found.error[:5] if found.track_ids else np.full(5, np.nan))
        bits.append(found.bits)
        varied.append(found.varied)
        right.append(bool(found.track_ids) and query.kind == 'known' and found.track_ids[0] == query.track_id)
        kinds.append(query.kind)

errors, bits, varied, right, kinds = (np.array(x) for x in (errors, bits, varied, right, kinds))
heard = np.isfinite(errors[:, 0])
known = kinds == 'known'
# what the fifth best song reaches when the right one is not there: 0.5 - exp(a) * bits ** b * varied ** c
fifth = heard & ~known & (errors[:, 4] < 0.5)
law = np.stack([np.ones(fifth.sum()), np.log(bits[fifth]), np.log(np.maximum(varied[fifth], 1e-3))], axis=1)
chance = np.linalg.lstsq(law, np.log(0.5 - errors[fifth, 4]), rcond=None)[0].tolist()
found = np.array(
    [features(e, int(b), v, chance)[0] for e, b, v in zip(errors[heard], bits[heard], varied[heard])]
)
coefficients = fit(found, right[heard])
confidence = np.zeros(len(kinds))  # a clip that is not answered is not accepted
confidence[heard] = confidences(coefficients, found)
# the threshold holds for unknown songs and for crowds, each on its own
accept = threshold_at(FALSE_ACCEPTS, confidence, kinds)

fitted = Calibration(
    {'front_end': recognizer.front.digest(), **asdict(recognizer.front)},
    float(coefficients[0]),
    dict(zip(recognizer.calibration.weights, map(float, coefficients[1:]))),
    accept,
    {'chance': chance},
    {
        'corpus': corpus.name,
        'corpus_checksum': corpus.checksum(),
        'split': 'validation',
        'seed': SEED,
        'queries': {str(k): int(n) for k, n in zip(*np.unique(kinds, return_counts=True))},
        'answered': int(heard.sum()),
        'query_set': query_set_hash(queries),
        'false_accepts_allowed': FALSE_ACCEPTS,
    },
)
save(project_root() / 'resonance_nb' / 'models' / 'chromaprint.json', [fitted])
print(fitted)
