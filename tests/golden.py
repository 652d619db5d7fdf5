"""Golden runs: what a small training and a small trial came to when the shipped recipe and the kept trials were made.

    make golden              do both, and say how far they are from data/golden.json
    make golden WRITE=yes    write data/golden.json anew

Both learn from the starter corpus, on the processor, in 32 bits, with one thread. `tests/test_golden.py` compares them with
tolerances: what other instructions change (ATEN_CPU_CAPABILITY=default, avx2) stays within them by a factor of eight; other
labels, another crowd or another learning rate do not.
"""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / 'data' / 'golden.json'
SMALL = {  # the shipped recipe, made small
    'encoder.front.n_mels': 32,
    'crop.windows': 2,
    'n_songs': 6,
    'venues': ['hard-mix', 'club'],
    'rooms': 4,
    'scenes': 4,
    'concert_sets': 2,
    'learning_rate': 2e-5,
    'minutes': 0,
    'steps': 50,
    'warmup': 10,
    'validate_every': 10,
    'precision': '32-true',
}


def corpus():
    from resonance_nb.starter import make_starter

    return make_starter(n_pieces=24, progress=False)


def trained(recipe, folder: Path) -> dict:
    "Train, and describe the run: losses along the way, and the weights by the length of each part."
    from resonance_nb.encoders import load
    from resonance_nb.train import fit

    import torch

    songs = corpus()
    ids = sorted(songs.split('music', 'train').index)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        encoder, _ = load(fit(recipe, songs, ids, folder, device='cpu', workers=0, progress=False))
    finally:
        torch.set_num_threads(threads)
    curve = pd.read_csv(folder / 'curve.csv')
    lengths = {
        name: float(part.detach().norm()) for name, part in encoder.named_parameters() if part.ndim > 1
    }
    return {
        'steps': curve.step.tolist(),
        'losses': curve.loss.round(4).tolist(),
        'weights': {name: round(length, 4) for name, length in lengths.items()},
    }


def training(changes: dict | None = None) -> dict:
    "The first steps of the shipped recipe, small."
    from resonance_nb.recipe import PROFILES, changed

    with tempfile.TemporaryDirectory() as folder:
        return trained(changed(PROFILES['shipped'], SMALL | (changes or {})), Path(folder))


def golden_trial(changes: dict | None = None) -> dict:
    "A trial as the kept ones are made, small; and its version."
    from resonance_nb.encoders import Settings
    from resonance_nb.recipe import Recipe, changed
    from resonance_nb.trials import TRIALS_VERSION, choices
    from resonance_nb.windows import Levels

    recipe = Recipe(
        encoder=Settings('cnn3', 16),
        levels=Levels((5, 15), (0, 10), 6),
        n_songs=8,
        steps=9,
        scenes=1,
        learning_rate=5e-4,
        venues=('hard-mix', 'club'),
        warmup=2,
        validate_every=3,
        precision='32-true',
    )
    with tempfile.TemporaryDirectory() as folder:
        found = trained(changed(recipe, changes or {}), Path(folder))
    return {'version': TRIALS_VERSION, 'choices': choices(recipe)} | found


def questions() -> dict:
    "How many windows of a small exam the shipped encoder finds, at two levels."
    from types import SimpleNamespace

    from resonance_nb.network import shipped
    from resonance_nb.trials import Pool

    pool = Pool(corpus(), None, (-9.0, -12.0), n=64, max_songs=8)
    right = pool.right(SimpleNamespace(encoder=shipped())).reshape(2, -1).sum(1)
    return {'snr_db': [-9.0, -12.0], 'right': right.tolist(), 'of': 64}


def furthest(one: dict, other: dict) -> dict:
    "The largest difference of losses, and the largest relative difference of lengths of weights."
    losses = np.abs(np.subtract(one['losses'], other['losses'])).max()
    lengths = [one['weights'][name] / other['weights'][name] - 1 for name in other['weights']]
    return {'losses': round(float(losses), 5), 'weights': round(float(np.abs(lengths).max()), 6)}


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--write', action='store_true', help='write data/golden.json anew')
    o = p.parse_args()
    found = {'training': training(), 'trial': golden_trial(), 'questions': questions()}
    if o.write:
        FILE.write_text(json.dumps(found, indent=1) + '\n', encoding='utf-8')
    kept = json.loads(FILE.read_text(encoding='utf-8'))
    for name in ('training', 'trial'):
        print(name, found[name]['losses'], 'furthest from the file:', furthest(found[name], kept[name]))
    print('questions', found['questions'], kept['questions'])


if __name__ == '__main__':
    main()
