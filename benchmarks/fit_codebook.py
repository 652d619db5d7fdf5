"""Fit the codebook that cuts the shipped encoder's vectors down to 16 bytes, on the train split of the open corpus.

    RESONANCE_CORPUS=<open corpus> python benchmarks/fit_codebook.py

Writes resonance_nb/models/codebook.npz; to be run whenever the encoder changes, before benchmarks/calibrate_fused.py.
Validation and test songs are not touched.
"""

import numpy as np
from tqdm import tqdm

from resonance_nb.core import project_root
from resonance_nb.embedding import Embedding
from resonance_nb.index import fit_codebook
from resonance_nb.starter import default_corpus

KIND, SEED, MOST = 'pq16', 0, 65_536

corpus, songs = default_corpus(), Embedding()
for track in tqdm(sorted(corpus.split('music', 'train').index), 'embed', disable=None):
    songs.add(track, corpus.load('music', track))
vectors = np.concatenate([v for *_, v in songs.embeddings()])
chosen = np.sort(np.random.default_rng(SEED).choice(len(vectors), min(MOST, len(vectors)), replace=False))
book = fit_codebook(vectors[chosen], KIND, SEED)
book.save(project_root() / 'resonance_nb' / 'models' / 'codebook.npz')
lost = ((book.turn(vectors) - book.decode(book.encode(vectors))) ** 2).sum(1).mean()
print(f'{book.kind} {book.digest} for encoder {songs.digest}: {len(chosen)} of {len(vectors)} vectors, mean squared error {lost:.4f}')
