"""Fit the confidence of the landmark recognisers on the validation split of the open corpus.

    RESONANCE_CORPUS=<open corpus> make calibrate

Writes resonance_nb/models/landmarks.json. Test songs, crowds and rooms are not touched. Clips are heard behind a crowd,
in the hard mix, and in the six venues. A third of the songs are kept out of the catalogue; every clip of a song that is
in it is also judged as if the song and its versions were not, which makes three times as many strangers.
"""

import json

import numpy as np
from tqdm import tqdm

from resonance_nb import bench, venue
from resonance_nb.core import atomic_write, project_root
from resonance_nb.landmarks import DENSE, FIRST, DenseLandmarks, Landmarks, chance_agreement
from resonance_nb.starter import default_corpus, make_starter

SEED, FALSE_ACCEPTS, STRANGERS = 0, 0.007, 560
SNRS_DB, DURATIONS_S = (None, 10, 0, -5), (2, 5, 10)

corpus, more = default_corpus(), make_starter(n_pieces=600)
plan = bench.protocol(corpus, 'validation', seed=SEED)
queries = bench.make_queries(corpus, plan, SNRS_DB, DURATIONS_S, seed=SEED, n_noise_only=60)
bank = venue.Bank(corpus, 'validation')
heard_in = {'crowd': None, 'hard-mix': bench.in_venue(bank, ['hard-mix']), 'six venues': bench.in_venue(bank, list(venue.VENUES))}
versions = bench.song_of(corpus.music)
recognizers = [Landmarks(), DenseLandmarks()]
for recognizer in recognizers:
    bench.index(recognizer, corpus, plan.catalogue_ids, progress=False, measure_disk=False)
    bench.index(recognizer, more, list(more.music.index)[:STRANGERS], progress=False, measure_disk=False)


def judged(found, query):
    "Rows of (features, right, doubtful, kind) that one answer gives."
    nothing = np.full(6, np.nan), False, True
    first = (found.features[0], found.track_ids[0] == query.track_id, found.doubtful[0]) if found.track_ids else nothing
    yield *((first[0], first[1] and query.kind == 'known', first[2])), query.kind
    if query.kind == 'known':  # as if the song were unknown
        mine = versions[query.track_id]
        others = np.array([versions.get(t) != mine for t in found.track_ids], bool)
        if others.any():
            features = found.features[others][0].copy()
            features[1] = np.log(chance_agreement(found.score[others], len(recognizers[0])))
            yield features, False, found.doubtful[others][0], 'unknown'
        else:
            yield *nothing, 'unknown'


rows = {r.name: [] for r in recognizers}
for degrade in heard_in.values():
    cache = {}
    for query in tqdm(sorted(queries, key=lambda q: (q.kind, q.noise_key)), 'ask', disable=None):
        clip = bench.render(query, corpus, cache, degrade)
        for recognizer in recognizers:
            rows[recognizer.name] += judged(recognizer.evidence(clip), query)


def fit(recognizer):
    "Coefficients and threshold of one recogniser."
    features, right, doubtful, kinds = (np.array(x) for x in zip(*rows[recognizer.name]))
    answered = np.isfinite(features[:, 0])
    coefficients = bench.fit_calibration(features[answered], right[answered])
    confidence = np.where(doubtful, 0, bench.calibrated(coefficients, np.nan_to_num(features)))
    # the threshold holds for unknown songs and for crowds, each on its own
    threshold = max(float(np.quantile(confidence[kinds == kind], 1 - FALSE_ACCEPTS, method='higher')) for kind in ('unknown', 'noise'))
    return {
        'intercept': float(coefficients[0]),
        'weights': [float(w) for w in coefficients[1:]],
        'accept_confidence': float(np.nextafter(threshold, 1)),
        'front_end': recognizer.front.digest(),
        'candidates': recognizer.asking.candidates,
        'fitted_on': {
            'corpus': corpus.name,
            'corpus_checksum': corpus.checksum(),
            'split': 'validation',
            'conditions': list(heard_in),
            'songs': len(recognizer),
            'seed': SEED,
            'answers': {str(k): int(n) for k, n in zip(*np.unique(kinds, return_counts=True))},
            'query_set': bench.query_set_hash(queries),
            'false_accepts_allowed': FALSE_ACCEPTS,
        },
    }


path = project_root() / 'resonance_nb' / 'models' / 'landmarks.json'
votes = next(f for f in json.loads(path.read_text()) if not f['candidates'])  # of the first version, which is not fitted again
assert votes['front_end'] == FIRST[0].digest() and recognizers[1].front == DENSE[0]
fitted = [fit(r) for r in recognizers] + [votes]
with atomic_write(path) as part:
    part.write_text(json.dumps(fitted, indent=2) + '\n')
print(json.dumps(fitted, indent=2))
