"""Songs that are played faster or slower than they were indexed, as decks, old tapes and television do.

    RESONANCE_CORPUS=<open corpus> python benchmarks/speeds.py --split validation --methods fused,landmark-dense

One clip of each song, clean and behind crowds, is asked at several speeds; clips of unknown songs are asked too.
Prints one row for each method, speed and condition: answers that are right and accepted, and that are wrong and accepted.
Whatever is tuned is tuned with `--split validation`; `--split test` is for a number to be told.
"""

import argparse
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from resonance_nb import bench, queries
from resonance_nb.core import method_class
from resonance_nb.queries import make_protocol
from resonance_nb.starter import default_corpus
from resonance_nb.survey import clips_at_speeds

SEED = 0
SPEEDS = (1.0, 0.98, 1.02, 0.96, 1.04, 0.94, 1.06, 0.91, 1.09)
CONDITIONS = {'clean': None, 'club 5 dB': ('club', 5), 'hard mix 5 dB': ('hard-mix', 5)}


def indexed(name: str, corpus, track_ids, folder: Path | None):
    "The recogniser of this name with these songs; one of all songs is kept in the folder."
    make = method_class(name)
    if folder and (folder / name / 'index.json').exists():
        recognizer = make.load(folder / name)
    else:
        recognizer = make()
        bench.index(recognizer, corpus, corpus.music.index if folder else track_ids, measure_disk=False)
        if folder:
            recognizer.save(folder / name)
    recognizer.retain(set(track_ids))
    return recognizer


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--split', choices=('validation', 'test'), default='validation')
    parser.add_argument('--methods', default='fused,landmark-dense')
    parser.add_argument(
        '--index', type=Path, help='folder of indexes of all songs, made where they are missing'
    )
    parser.add_argument('--out', help='CSV file of all answers')
    o = parser.parse_args()
    corpus = default_corpus()
    plan = make_protocol(corpus, o.split, seed=SEED)
    song_of = queries.song_of(corpus.music)
    recognizers = {name: indexed(name, corpus, plan.catalogue_ids, o.index) for name in o.methods.split(',')}
    rows = []
    clips = [
        (kind, *clip)
        for kind, ids in (('known', plan.known_ids), ('unknown', plan.unknown_ids))
        for clip in clips_at_speeds(corpus, o.split, ids, speeds=SPEEDS, conditions=CONDITIONS)
    ]
    for kind, track, speed, condition, sound in tqdm(clips, 'ask', disable=None):
        clip = sound()
        for method, r in recognizers.items():
            found = r.search(clip, 1)
            named = found[0].track_id if found else ''
            accepted = bool(found) and found[0].confidence >= r.accept_confidence
            right = kind == 'known' and song_of.get(named) == song_of[track]
            confidence = found[0].confidence if found else 0.0
            rows.append((method, kind, condition, speed, track, named, confidence, accepted, right))
    columns = ['method', 'kind', 'condition', 'speed', 'track', 'named', 'confidence', 'accepted', 'right']
    table = pd.DataFrame(rows, columns=columns)
    if o.out:
        table.to_csv(o.out, index=False)
    table['accepted and right'] = table.accepted & table.right
    table['accepted and wrong'] = table.accepted & ~table.right
    groups = table.groupby(['method', 'kind', 'condition', 'speed'])
    told = groups[['accepted and right', 'accepted and wrong']].sum()
    told.insert(0, 'n', groups.size())
    print(told.to_string())


if __name__ == '__main__':
    main()
