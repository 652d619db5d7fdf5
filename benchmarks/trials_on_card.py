"""Make the trials of chapters on a machine with a graphics card and many cores: one process a trial, many at once.

What `resonance run CHAPTER --profile study` does trial after trial, side by side. The chapter's own cells say what is tried, and a
trial is the same function with the same recipe; concerts, network and answers are computed on the card, whose random numbers are
others: a chapter's trials must all come from such a machine, or none. A trial that is finished is at once a line of OUT/CHAPTER.jsonl,
in the form of `data/trials/`, with the name of the card; a second call with the same OUT makes what is missing.

    RESONANCE_CORPUS=... python benchmarks/trials_on_card.py OUT 46b_encoders 45a_published --minutes 9
"""

import argparse
import fcntl
import json
import multiprocessing as mp
import os
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
import yaml
import lightning.pytorch  # noqa: F401  once, before the processes part

from resonance_nb import augment, corpora, encoders, runs, train, trials, windows

PROJECT = Path(__file__).resolve().parents[1]


def options() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('out', type=Path, help='folder of the results')
    p.add_argument('chapters', nargs='+', help='chapters with trials, e.g. 46b_encoders')
    p.add_argument('--at-once', type=int, default=os.cpu_count(), help='trials at the same time')
    p.add_argument('--minutes', type=float, default=0, help='no trial is begun later; 0: all are made')
    p.add_argument('--profile', default='study', help='of the chapters')
    p.add_argument('--device', default='cuda', help='cuda or cpu')
    return p.parse_args()


def listed(chapter: str, profile: str) -> list[tuple[str, tuple]]:
    "Name and arguments of every trial that a chapter asks for: its cells are run with a function that only writes down what it is called with."
    found = []

    def kept(_, key, work):
        args = work()
        found.append((runs.checkpoint('trial', key).name, args))
        return {'right': np.zeros(len(args[2].tracks), bool), 'minutes': 0.0, 'weights': 0}

    trials.kept = kept
    trials.trial = lambda *args: args
    runs.Results = lambda *a, **k: None
    book = json.loads((PROJECT / 'nbs' / f'{chapter}.ipynb').read_text(encoding='utf-8'))
    code = [''.join(c['source']) for c in book['cells'] if c['cell_type'] == 'code']
    settings = PROJECT / 'experiments' / f'{chapter}-{profile}.yaml'
    space = {'__name__': chapter}
    for i, cell in enumerate(code):
        if '#| code-fold: true' not in cell:  # those draw
            exec(compile(cell, f'{chapter}, cell {i}', 'exec'), space)
        if i == 0:
            space |= {'profile': profile} | (
                yaml.safe_load(settings.read_text(encoding='utf-8')) if profile != 'quick' else {}
            )
        if 'packed.cleanup()' in cell:  # the rest is the page
            return found
    raise SystemExit(f'{chapter} makes no trials')


def to_card(device: str) -> None:
    "Concerts, spectrograms, training and answers of this process are computed there."
    load = encoders.load
    views = train._views
    doubled = windows._doubled

    def views_there(*args):
        made = views(*args)
        front = made.front.to(device)
        made.front = lambda x: front(x.to(device))
        return made

    train.BatchDegrader = partial(augment.BatchDegrader, device=device)
    train._views = views_there
    windows._doubled = lambda x: doubled(x.to(device))
    encoders.load = partial(load, device=device)


def make(o: argparse.Namespace, chapter: str, name: str, trial, args: tuple) -> None:
    "One trial, in a process of its own."
    to_card(o.device)
    began = time.monotonic()
    try:
        made = trial(*args, workers=0) | {
            'device': torch.cuda.get_device_name() if o.device == 'cuda' else 'cpu'
        }
    except Exception:
        print(f'{chapter} {name} failed\n{traceback.format_exc()}', flush=True)
        return
    with open(o.out / f'{chapter}.jsonl', 'a', encoding='utf-8') as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        f.write(trials.as_line(name, made) + '\n')
    print(
        f'{chapter} {name}: {np.mean(made["right"]):.3f}, trained {made["minutes"]} min, all {time.monotonic() - began:.0f} s',
        flush=True,
    )


def serve(o: argparse.Namespace, chapter: str, slots, began: float) -> None:
    "The trials of one chapter, the longest first."
    plain = trials.trial
    todo = listed(chapter, o.profile)
    done = trials._lines(o.out / f'{chapter}.jsonl')
    todo = {name: args for name, args in todo if name not in done}
    print(f'{chapter}: {len(todo)} trials after {time.monotonic() - began:.0f} s', flush=True)
    # a bank keeps the rooms and crowds it has prepared
    for recipe, bank in {id(args[3]): (args[0], args[3]) for args in todo.values()}.values():
        augment.BatchDegrader(
            bank,
            recipe.venues,
            **windows.degrader_times(recipe.cut),
            n_scenes=recipe.scenes,
            seed=recipe.seed,
            varied=recipe.varied,
        )
    windows_of = lambda args: args[0].steps * args[0].n_songs * args[0].cut.windows
    children = []
    left = 0
    for name, args in sorted(todo.items(), key=lambda x: -windows_of(x[1])):
        slots.acquire()
        if o.minutes and time.monotonic() - began > 60 * o.minutes:
            slots.release()
            left += 1
            continue
        recipe, songs, exam, bank, _, most = args

        def work(name=name, args=(recipe, songs, exam, bank, o.out / f'music-{most}', most)):
            try:
                make(o, chapter, name, plain, args)
            finally:
                slots.release()

        child = mp.get_context('fork').Process(target=work)
        child.start()
        children.append(child)
    for child in children:
        child.join()
    print(
        f'{chapter}: {len(children)} trials, {left} left to do, {time.monotonic() - began:.0f} s', flush=True
    )


def main() -> None:
    o = options()
    o.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    began = time.monotonic()
    corpus = corpora.Corpus(os.environ['RESONANCE_CORPUS'])
    heard = {}
    plain = corpora.Corpus.load
    corpora.Corpus.load = lambda self, kind, id, *part, **more: (
        heard[kind, id]
        if (kind, id) in heard and not part and not more
        else plain(self, kind, id, *part, **more)
    )
    songs = [i for split in ('train', 'validation', 'test') for i in corpus.split('music', split).index]
    with ThreadPoolExecutor(o.at_once) as pool:  # decoded once, and shared by all trials
        heard |= {
            ('music', i): x for i, x in zip(songs, pool.map(lambda i: plain(corpus, 'music', i), songs))
        }
    print(f'{len(heard)} songs read after {time.monotonic() - began:.0f} s', flush=True)
    for most in {0} if o.profile == 'study' else {40}:  # learn_from of the chapters
        windows.pack(
            corpus, sorted(corpus.split('music', 'train').index)[: most or None], o.out / f'music-{most}'
        )
    print(f'packed after {time.monotonic() - began:.0f} s', flush=True)
    slots = mp.get_context('fork').Semaphore(o.at_once)
    chapters = [mp.get_context('fork').Process(target=serve, args=(o, c, slots, began)) for c in o.chapters]
    for c in chapters:
        c.start()
    for c in chapters:
        c.join()


if __name__ == '__main__':
    main()
