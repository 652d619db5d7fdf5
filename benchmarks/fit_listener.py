"""Fit the listener's rules and thresholds on evenings of the validation split of the open corpus.

    RESONANCE_CORPUS=<open corpus> python benchmarks/fit_listener.py --index DIR --streams DIR

Evenings with known and unknown songs say how soon a song is named, hours of unknown songs and of crowds alone how often a wrong one
is. The answers to every stretch are kept in the folder of the streams (a run that is stopped goes on from there), so that many rules
can be tried on the same evenings. Of the rules that name no more strangers than asked, those with the shortest wait are written to
resonance_nb/models/listener.json, with the threshold for every rate of false alarms. To be run whenever the fused recogniser changes.
Test songs, crowds and rooms are not touched. `--index` is the folder that benchmarks/calibrate_fused.py keeps.
"""

import argparse
import itertools
import json
import math
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.optimize import minimize

from resonance_nb import concert, venue
from resonance_nb.bank import Bank
from resonance_nb.queries import make_protocol
from resonance_nb import queries
from resonance_nb.core import atomic_write, project_root, rng_for
from resonance_nb.decide import Decider, Listener, Rules, threshold_for
from resonance_nb.fuse import Fused
from resonance_nb.session import Hypothesis, Observation
from resonance_nb.starter import default_corpus

# false alarms an hour for which the rules are chosen
SEED = 0
ASKED = 0.5
# so many times what was counted is told: these hours hold few songs that are mistaken, and other hours hold
# others
MARGIN = 2.0
THRESHOLDS = np.array([2.0, 3, 4, 6, 8, 12, 16, 24, 32, 48])
ALL = Rules()  # its plan is what is recorded, so only plans that ask for no more can be tried
EVENINGS = [(i, 0, 'hard-mix') for i in range(6)]
PLACES = ('hard-mix', *venue.VENUES)
# about a quarter of an hour each
STRANGERS = [(100 + i, PLACES[i % len(PLACES)], (0, 5, 10)[i % 3]) for i in range(12)]
CROWDS = [(200 + i, PLACES[i % len(PLACES)]) for i in range(15)]  # five minutes each


def streams(corpus, plan, bank):
    "Name, evening and recording of every stream, made when it is wanted; where strangers are played, the songs that are otherwise known are left out of the catalogue."
    known = list(plan.known_ids)
    unknown = list(plan.unknown_ids)
    for i, snr_db, place in EVENINGS:
        evening = concert.draw_evening(corpus, known, unknown, rng_for(SEED, 'evening', i), n_songs=15)
        yield (
            f'evening-{i}',
            evening,
            lambda e=evening, i=i, p=place, s=snr_db: concert.heard(e, corpus, p, s, i, bank),
        )
    for i, place, snr_db in STRANGERS:
        evening = concert.draw_evening(corpus, [], known + unknown, rng_for(SEED, 'evening', i), n_songs=14)
        yield (
            f'strangers-{i}',
            evening,
            lambda e=evening, i=i, p=place, s=snr_db: concert.heard(e, corpus, p, s, i, bank),
        )
    for i, place in CROWDS:
        evening = concert.Evening((), 300.0)
        yield (
            f'crowd-{i}',
            evening,
            lambda e=evening, i=i, p=place: concert.heard(e, corpus, p, None, i, bank),
        )


class Kept(Decider):
    "Remembers what it was told."

    def __init__(self, rules):
        super().__init__(4.0, rules)
        self.steps = []

    def step(self, time_s, observations=()):
        observations = list(observations)
        row = lambda h: [h.track_id, round(h.lag_s, 3), round(h.logit, 3)]
        self.steps.append([time_s, [[o.began_s, [row(h) for h in o.hypotheses[:8]]] for o in observations]])
        return super().step(time_s, observations)


def record(job) -> str:
    "Listen to one stream and write down every answer."
    path, index, catalogue, name = job
    fused = Fused.load(index)
    fused.retain(catalogue)
    corpus = default_corpus()
    plan = make_protocol(corpus, 'validation', seed=SEED)
    bank = Bank(corpus, 'validation')
    evening, make = next((e, m) for n, e, m in streams(corpus, plan, bank) if n == name)
    blocks, made = make()
    listener = Listener(fused, rules=ALL)
    listener.decider = Kept(ALL)
    for block in concert.blocks(blocks):
        listener.push(block)
    listener.end()
    recorded = {
        'name': name,
        'tempo': concert.tempo_of(made),
        'model': fused.model_name,
        'told': listener.decider.steps,
    }
    with atomic_write(path) as part:
        part.write_text(json.dumps(recorded))
    return name


def replayed(steps: list, rules: Rules, threshold: float) -> list:
    "The events of a decider with these rules, which asks only for the stretches of its plan."
    decider = Decider(threshold, rules)
    events = []
    for time_s, recorded in steps:
        lengths = rules.plan_s[round(time_s * 4) % len(rules.plan_s)]
        held = max((time_s - began for began, _ in recorded), default=0)
        wanted = {round(min(s, held), 2) for s in lengths}
        observations = [
            Observation(began, tuple(Hypothesis(*h) for h in hypotheses))
            for began, hypotheses in recorded
            if any(abs(time_s - began - w) < 0.13 for w in wanted)
        ]
        if recorded and not observations:
            decider.heard_s = time_s
        events += decider.step(time_s, observations)
    return events


def false_alarms(quiet: list, rules: Rules, threshold: float) -> int:
    "Names that are given although nothing known is played, also those of songs that hold a piece of what is played: nobody who listens can set them aside."
    return sum(e.kind == 'match' for s in quiet for e in replayed(s['told'], rules, threshold))


def waits(evenings: list, rules: Rules, threshold: float, song_of: dict) -> pd.DataFrame:
    "One row for each known song of the evenings."
    tables = [
        concert.judge(s['evening'], replayed(s['told'], rules, threshold), song_of, s['tempo'])
        for s in evenings
    ]
    songs = pd.concat([t[0] for t in tables])
    songs.attrs['wrong'] = int(sum((~t[1].right).sum() for t in tables))
    return songs


def rates(counts: np.ndarray, thresholds: np.ndarray, hours: float) -> list[tuple[float, float]]:
    "False alarms an hour over thresholds, with the margin: the falling stretched exponential under which the counts are likeliest, as if they were independent; half a one is added to each, for none in some hours is not none ever. (A plain exponential falls too fast: what is mistaken for long is mistaken at every threshold.)"
    rate = lambda w: np.exp(w[0] - np.exp(w[1]) * thresholds ** (1 / (1 + np.exp(-w[2]))))
    loss = lambda w: float(np.sum(rate(w) * hours - (counts + 0.5) * np.log(rate(w))))
    fitted = rate(
        minimize(
            loss,
            [np.log(max(counts[0], 1) / hours), -1.0, 0.0],
            method='Nelder-Mead',
            options={'maxiter': 4000},
        ).x
    )
    return [(float(t), MARGIN * float(r)) for t, r in zip(thresholds, fitted)]


def options():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument(
        '--index', type=Path, required=True, help='folder of the index that calibrate_fused.py keeps'
    )
    p.add_argument(
        '--streams', type=Path, required=True, help='folder of the answers, kept for the next time'
    )
    p.add_argument('--workers', type=int, default=2, help='streams that are listened to at a time')
    p.add_argument('--only', type=int, default=0, help='of each kind of stream, so many; 0 is all')
    return p.parse_args()


def candidates():
    "Rules that are tried: other log odds that speak neither for nor against a song, other weights of an answer, and other log odds that are the most an answer can say. (Stretches of a second and a half were tried in the plan as well: they name nothing sooner and cost twice the work.)"
    for middle, gain, most in itertools.product((0.5, 1.0, 1.5, 2.0), (1.0, 1.5, 2.0), (6.0, 9.0)):
        yield replace(Rules(), middle=middle, gain=gain, most=most)


def tried(job) -> tuple:
    "False alarms of some rules at every threshold."
    rules, quiet = job
    return rules, np.array([false_alarms(quiet, rules, t) for t in THRESHOLDS])


def main():
    o = options()
    o.streams.mkdir(parents=True, exist_ok=True)
    corpus = default_corpus()
    plan = make_protocol(corpus, 'validation', seed=SEED)
    bank = Bank(corpus, 'validation')
    song_of = queries.song_of(corpus.music)
    played = {song_of[t] for t in plan.known_ids}
    catalogue = set(Fused.load(o.index).songs) - set(plan.unknown_ids)
    without = {t for t in catalogue if song_of.get(t) not in played}
    evenings = {name: evening for name, evening, _ in streams(corpus, plan, bank)}
    if o.only:
        evenings = {n: e for n, e in evenings.items() if int(n.split('-')[1]) % 100 < o.only}
    jobs = [
        (o.streams / f'{name}.json', o.index, without if name.startswith('strangers') else catalogue, name)
        for name in evenings
    ]
    missing = [j for j in jobs if not j[0].exists()]
    with ProcessPoolExecutor(o.workers) as pool:
        for done, name in enumerate(pool.map(record, missing), 1):
            print(f'{done} of {len(missing)}: {name}', flush=True)
    found = [json.loads(j[0].read_text()) | {'evening': evenings[j[3]]} for j in jobs]
    fit(o, corpus, found)


def fit(o, corpus, found):
    "Try all rules, keep the best, write it down."
    song_of = queries.song_of(corpus.music)
    lively, quiet = (
        [s for s in found if s['name'].startswith('evening') == which] for which in (True, False)
    )
    hours = sum(s['evening'].duration_s for s in quiet) / 3600
    print(f'{len(lively)} evenings at 0 dB, {hours:.2f} hours without known songs', flush=True)
    rows = []
    best = None
    with ProcessPoolExecutor(o.workers) as pool:
        for rules, counts in pool.map(tried, [(rules, quiet) for rules in candidates()]):
            table = rates(counts, THRESHOLDS, hours)
            threshold = threshold_for(ASKED, table)
            songs = waits(lively, rules, threshold, song_of)
            named = songs.named_s.fillna(math.inf)
            flips = float(songs.flips.sum() / (songs.duration_s.sum() / 60))
            row = {
                'plan': rules.plan_s,
                'middle': rules.middle,
                'gain': rules.gain,
                'most': rules.most,
                'threshold': round(threshold, 2),
                'counts': counts.tolist(),
                'median_s': float(np.median(named)),
                'in_5_s': float(np.mean(named <= 5)),
                'median_loud_s': float(np.median(named[songs.begins_db > -3])),
                'flips': flips,
                'wrong': songs.attrs['wrong'],
            }
            rows.append(row)
            score = np.mean(np.minimum(named, 15.0)) + 10 * max(0.0, flips - 0.15)
            print(json.dumps(row), round(float(score), 3), flush=True)
            if best is None or score < best[0]:
                best = score, rules, table, row
    _, rules, table, row = best
    told = asdict(rules)
    changed = {k: v for k, v in told.items() if v != asdict(Rules())[k]}
    written = {
        'calibrated': True,
        'model': found[0]['model'],
        'rules': changed,
        'false_alarms': [[t, round(r, 4)] for t, r in table],
        'fitted_on': {
            'corpus': corpus.name,
            'split': 'validation',
            'evenings': len(lively),
            'hours_without_known_songs': round(hours, 2),
            'margin': MARGIN,
            'asked_per_hour': ASKED,
            'seed': SEED,
            **{k: row[k] for k in ('threshold', 'median_s', 'in_5_s', 'flips')},
        },
    }
    with atomic_write(project_root() / 'resonance_nb' / 'models' / 'listener.json') as part:
        part.write_text(json.dumps(written, indent=1) + '\n')
    print(json.dumps(written['fitted_on']))


if __name__ == '__main__':
    main()
