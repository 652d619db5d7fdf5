"""Fit the codebook that keeps four successive vectors of the shipped encoder in 64 bytes, on the train split of the open corpus.

    RESONANCE_CORPUS=<open corpus> python benchmarks/fit_codebook.py

Writes resonance_nb/models/codebook.npz; to be run whenever the encoder changes, before benchmarks/calibrate_fused.py.
Validation and test songs are not touched.
"""

import numpy as np
from tqdm import tqdm

from resonance_nb.core import project_root
from resonance_nb.embedding import Embedding
from resonance_nb.table import BLOCK
from resonance_nb.codebook import Codebook, fit_codebook
from resonance_nb.starter import default_corpus

KIND = 'pq64'
AXES = 256
SEED = 0
MOST = 65_536

corpus = default_corpus()
songs = Embedding()
for track in tqdm(sorted(corpus.split('music', 'train').index), 'embed', disable=None):
    songs.add(track, corpus.load('music', track))
runs = [
    np.lib.stride_tricks.sliding_window_view(v, (BLOCK, v.shape[1]))[:, 0]
    for *_, v in songs.embeddings()
    if len(v) >= BLOCK
]
blocks = np.concatenate(runs).reshape(-1, BLOCK * songs.encoder.settings.dim)
chosen = np.sort(np.random.default_rng(SEED).choice(len(blocks), min(MOST, len(blocks)), replace=False))
book = fit_codebook(blocks[chosen], KIND, seed=SEED, axes=AXES)
# three digits are enough, and half the file
book = Codebook(
    KIND, {name: values.astype(np.float16).astype(np.float32) for name, values in book.arrays.items()}
)
book.save(project_root() / 'resonance_nb' / 'models' / 'codebook.npz')
lost = ((blocks - book.decode(book.encode(blocks)) @ book.arrays['rotation']) ** 2).sum(1).mean() / BLOCK
print(
    f'{book.kind} {book.digest} for encoder {songs.digest}: {len(chosen)} of {len(blocks)} blocks, mean squared error of a vector {lost:.4f}'
)
