"""What crowds and noise sound like to the shipped encoder: the directions that the fused recogniser does not trust.

    RESONANCE_CORPUS=<open corpus> python benchmarks/fit_noises.py

Vectors of every noise of the train split, and of white, pink and brown noise, are brought to `DIRECTIONS` means by spherical k-means
and written to resonance_nb/models/noises.npy. To be run whenever the encoder changes. What a song loses for sounding like them is
in resonance_nb/models/fused.json (`noise`), chosen on validation clips.
"""

import io

import numpy as np
from scipy.cluster.vq import kmeans2
from tqdm import tqdm

from resonance_nb.core import atomic_write, project_root, rng_for
from resonance_nb.embedding import clip_vectors
from resonance_nb.network import shipped
from resonance_nb.starter import default_corpus

DIRECTIONS = 64
LONGEST_S = 30
EVERY = 4
SEED = 0
FILE = project_root() / 'resonance_nb' / 'models' / 'noises.npy'


def coloured(exponent: float, duration_s: float = 6.0) -> np.ndarray:
    "Noise whose power falls with frequency to this power."
    n = round(duration_s * 16_000)
    spectrum = np.fft.rfft(rng_for(SEED, 'noise', exponent).standard_normal(n)) * np.arange(
        1, n // 2 + 2
    ) ** (-exponent / 2)
    x = np.fft.irfft(spectrum, n)
    return (0.1 * x / x.std()).astype(np.float32)


def main():
    corpus = default_corpus()
    encoder = shipped()
    sounds = [corpus.load('noise', i)[: LONGEST_S * 16_000] for i in corpus.split('noise', 'train').index]
    sounds = [x for x in sounds if len(x) >= 32_000] + [coloured(e) for e in (0, 1, 2)]
    vectors = np.concatenate(
        [clip_vectors(encoder, x)[::EVERY] for x in tqdm(sounds, 'noises', disable=None)]
    )
    means = kmeans2(vectors.astype(np.float64), DIRECTIONS, iter=50, minit='++', rng=rng_for(SEED, 'means'))[
        0
    ]
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    written = io.BytesIO()
    np.save(written, means.astype('<f2'), allow_pickle=False)
    with atomic_write(FILE) as part:
        part.write_bytes(written.getvalue())
    print(f'{len(vectors)} vectors of {len(sounds)} noises in {len(means)} directions')


if __name__ == '__main__':
    main()
