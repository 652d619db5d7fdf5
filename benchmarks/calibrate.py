"""Fit the confidence of the landmark recognisers on the validation split of the open corpus.

    RESONANCE_CORPUS=<open corpus> make calibrate

Writes resonance_nb/models/landmarks.json. Test songs, crowds and rooms are not touched. Clips are heard behind a crowd,
in the hard mix, and in the six venues. A third of the songs are kept out of the catalogue; every clip of a song that is
in it is also judged as if the song and its versions were not, which makes three times as many strangers. Some songs share
audio with another (a loop, a phrase): where a clean clip shows another song's peaks at least half as well as its own, the
two are no strangers to each other, and answers that take one for the other are set aside, and counted. Songs that are
played too fast or too slow are heard too: they say nothing about the coefficients, but they must be named wrong as rarely.
"""

from collections import namedtuple

import numpy as np
from speeds import clips
from tqdm import tqdm

from resonance_nb import bench, venue
from resonance_nb.bank import Bank
from resonance_nb.queries import in_venue, make_protocol, make_queries, query_set_hash, render, song_of
from resonance_nb.calibration import Calibration, confidences, load_all, save, threshold_at
from resonance_nb.calibration import fit as fit_confidence
from resonance_nb.core import project_root
from resonance_nb.landmarks import (
    AGREEMENT_FEATURES,
    DENSE,
    FIRST,
    DenseLandmarks,
    Landmarks,
    chance_agreement,
)
from resonance_nb.starter import default_corpus, make_starter

SEED = 0
FALSE_ACCEPTS = 0.01
STRANGERS = 560
Query = namedtuple('Query', 'track_id kind')
# the least level of chance in catalogues of so many songs: tried on validation clips so that strangers are accepted as rarely as asked
LEAST_CHANCE = {
    'landmark': [[8, 30, 60], [7.5, 6, 5]],
    'landmark-dense': [[8, 30, 60, 200], [9.5, 8.5, 7, 5]],
}
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
recognizers = [Landmarks(), DenseLandmarks()]
for recognizer in recognizers:
    bench.index(recognizer, corpus, plan.catalogue_ids, progress=False, measure_disk=False)
    bench.index(recognizer, more, list(more.music.index)[:STRANGERS], progress=False, measure_disk=False)


def judged(found, query):
    "Rows of (features, right, doubtful, kind, the two songs) that one answer gives."
    nothing = np.full(6, np.nan), False, True
    first = (
        (found.features[0], found.track_ids[0] == query.track_id, found.doubtful[0])
        if found.track_ids
        else nothing
    )
    yield *first, query.kind, (query.track_id, *found.track_ids[:1])
    if query.kind == 'known':  # as if the song were unknown
        mine = versions[query.track_id]
        others = np.array([versions.get(t) != mine for t in found.track_ids], bool)
        if others.any():
            features = found.features[others][0].copy()
            features[1] = np.log(chance_agreement(found.score[others], 5))
            named = next(t for t, other in zip(found.track_ids, others) if other)
            yield features, False, found.doubtful[others][0], 'unknown', (query.track_id, named)
        else:
            yield *nothing, 'unknown', ()


def share_audio():
    "Pairs of songs of which a clean clip of one shows the other's peaks at least half as well as its own."
    all_songs = DenseLandmarks()
    pairs = set()
    cache = {}
    bench.index(
        all_songs,
        corpus,
        sorted({q.track_id for q in queries if q.track_id} | set(plan.catalogue_ids)),
        progress=False,
        measure_disk=False,
    )
    for query in (q for q in queries if q.kind != 'noise' and q.snr_db is None):
        found = all_songs.rank(render(query, corpus, cache))
        own = found.score[np.array(found.track_ids) == query.track_id]
        pairs |= {
            (query.track_id, t) for t, z in zip(found.track_ids, found.score) if len(own) and z > own[0] / 2
        }
    return {(a, b) for a, b in pairs | {(b, a) for a, b in pairs} if a != b}


rows = {r.name: [] for r in recognizers}
kin = share_audio()
for degrade in heard_in.values():
    cache = {}
    for query in tqdm(sorted(queries, key=lambda q: (q.kind, q.noise_key)), 'ask', disable=None):
        clip = render(query, corpus, cache, degrade)
        for recognizer in recognizers:
            rows[recognizer.name] += judged(recognizer.rank(clip, 1), query)

played = {'known': sorted(set(plan.known_ids)), 'unknown': sorted(set(plan.unknown_ids))}
for _, track, speed, _, clip in clips(corpus, 'validation', played, ('clean', 'hard mix 5 dB')):
    if speed != 1:
        for recognizer in recognizers:
            rows[recognizer.name] += [*judged(recognizer.rank(clip, 1), Query(track, 'speed'))]


def fit(recognizer):
    "Coefficients and threshold of one recogniser."
    strangers = [r for r in rows[recognizer.name] if not (r[3] in ('unknown', 'speed') and r[4] in kin)]
    features, right, doubtful, kinds, _ = (
        np.array(x, dtype=object if i == 4 else None) for i, x in enumerate(zip(*strangers))
    )
    answered = np.isfinite(features[:, 0]) & (kinds != 'speed')
    coefficients = fit_confidence(features[answered], right[answered])
    confidence = np.where(doubtful, 0, confidences(coefficients, np.nan_to_num(features)))
    confidence[(kinds == 'speed') & right] = 0  # a song that is known at another speed is no mistake
    # the threshold holds for unknown songs, for crowds and for other speeds, each on its own
    accept = threshold_at(FALSE_ACCEPTS, confidence, kinds, negatives=('unknown', 'noise', 'speed'))
    return Calibration(
        {'front_end': recognizer.front.digest()},
        float(coefficients[0]),
        dict(zip(AGREEMENT_FEATURES, map(float, coefficients[1:]))),
        accept,
        {'least_chance': LEAST_CHANCE[recognizer.name]},
        {
            'corpus': corpus.name,
            'corpus_checksum': corpus.checksum(),
            'split': 'validation',
            'conditions': list(heard_in),
            'songs': len(recognizer),
            'seed': SEED,
            'pairs_that_share_audio': len(kin) // 2,
            'set_aside': len(rows[recognizer.name]) - len(strangers),
            'answers': {str(k): int(n) for k, n in zip(*np.unique(kinds, return_counts=True))},
            'query_set': query_set_hash(queries),
            'false_accepts_allowed': FALSE_ACCEPTS,
            'candidates': recognizer.asking.candidates,
        },
    )


path = project_root() / 'resonance_nb' / 'models' / 'landmarks.json'
# of the first version, which is not fitted again
votes = next(c for c in load_all(path) if tuple(c.weights) != AGREEMENT_FEATURES)
assert votes.is_for({'front_end': FIRST[0].digest()}) and recognizers[1].front == DENSE[0]
fitted = [fit(r) for r in recognizers] + [votes]
save(path, fitted)
print(*fitted, sep='\n')
