"""Fit what the fused recogniser takes off its confidence in a small catalogue, on the validation split of the open corpus.

    RESONANCE_CORPUS=<open corpus> python benchmarks/calibrate_small.py --index DIR

Among a handful of songs there is nobody to show how high a stranger's score may be, so a lead means less than among a thousand. Small
catalogues are drawn at random, half of them from the corpus and half from starter pieces, which one synthesiser plays and which are
more alike; each is asked for clips of songs that it does not hold. Adds `few` to resonance_nb/models/fused.json: log odds that are
taken off so that one stranger in two hundred passes, as in a large catalogue. To be run after benchmarks/calibrate_fused.py, whose index it takes.
"""

import argparse
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from resonance_nb import venue
from resonance_nb.bank import Bank
from resonance_nb.queries import song_of
from resonance_nb.audio import rms_db
from resonance_nb.calibration import load_all, save
from resonance_nb.core import project_root, rng_for
from resonance_nb.fuse import Fused
from resonance_nb.starter import default_corpus, make_starter

# catalogues of each size
SEED = 0
FALSE_ACCEPTS = 0.005
SIZES = (3, 8, 20, 50)
DRAWN = 16
FILE = project_root() / 'resonance_nb' / 'models' / 'fused.json'


def clips(corpus, others, whole: Fused) -> list[tuple]:
    "Clips of songs of both kinds, heard once: song, level, length, what was heard."
    known = sorted(set(corpus.split('music', 'validation').index) & set(whole.songs))
    starters = [t for t in list(others.music.index)[:560] if t in whole.songs]
    bank = Bank(corpus, 'validation')
    found = []
    for source, ids in (
        (corpus, known),
        (others, [starters[i] for i in rng_for(SEED, 'starters').permutation(len(starters))[: len(known)]]),
    ):
        for number, t in enumerate(tqdm(ids, 'clips', disable=None)):
            rng = rng_for(SEED, 'clip', t)
            x = source.load('music', t)
            for snr_db, long_s in ((None, 5), (10, 2), (0, 5), (0, 10)):
                n = long_s * 16_000
                at = int(rng.integers(0, max(1, len(x) - n)))
                clip = x[at : at + n]
                before = x[max(0, at - 32_000) : at]
                if rms_db(clip) < -50:
                    continue
                heard = (
                    clip
                    if snr_db is None
                    else venue.degrade(
                        clip, ('hard-mix', 'club')[number % 2], snr_db, rng, bank, before=before
                    )[0]
                )
                found.append((t, snr_db, long_s, whole.hear(heard)))
    return found


def answers(whole: Fused, asked: list[tuple], versions: dict, size: int) -> list[tuple]:
    "The best answer of every small catalogue to every clip of a song that it does not hold."
    pools = [[t for t in whole.songs if (t in versions) == own] for own in (True, False)]
    found = []
    for number in tqdm(range(DRAWN), f'{size} songs', disable=None):
        rng = rng_for(SEED, 'catalogue', size, number)
        pool = pools[number % 2]
        small = Fused()
        small._few = {'songs': [1], 'logit': [0.0]}
        small.songs = {t: whole.songs[t] for t in rng.choice(pool, size, replace=False)}
        own = {versions.get(t, t) for t in small.songs}
        for t, snr_db, long_s, heard in asked:
            if versions.get(t, t) in own or (t in versions) != (number % 2 == 0):
                continue
            e = small.evidence(heard)
            if e.track_ids:
                logit = float(small.calibration.log_odds(e.features)[0])
                found.append(
                    (t, e.track_ids[0], logit, snr_db is None and e.cosine[0] > 0.6 and e.agreement[0] > 6)
                )
    return found


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--index', type=Path, required=True, help='folder of the index that calibrate_fused.py keeps'
    )
    o = parser.parse_args()
    corpus = default_corpus()
    others = make_starter(n_pieces=600)
    whole = Fused.load(o.index)
    versions = song_of(corpus.music)
    asked = clips(corpus, others, whole)
    fitted = load_all(FILE)[0]
    off = []
    accept = math.log(whole.accept_confidence / (1 - whole.accept_confidence))
    for size in SIZES:
        found = answers(whole, asked, versions, size)
        kin = {(t, named) for t, named, _, alike in found if alike}
        logits = np.array([logit for t, named, logit, _ in found if (t, named) not in kin])
        off.append(round(max(0.0, float(np.quantile(logits, 1 - FALSE_ACCEPTS)) - accept), 3))
        print(
            f'{size} songs: {len(logits)} answers, {np.mean(logits > accept):.1%} would pass, {off[-1]} taken off, {len(kin)} pairs set aside',
            flush=True,
        )
    off = np.maximum.accumulate(off[::-1])[::-1].tolist()  # never more in a larger catalogue
    constants = fitted.constants | {'few': {'songs': [*SIZES, 200], 'logit': [*off, 0.0]}}
    save(FILE, [replace(fitted, constants=constants)])


if __name__ == '__main__':
    main()
