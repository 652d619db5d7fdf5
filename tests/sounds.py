"""A sound with peaks to find, for the tests of recognisers."""

import numpy as np

from resonance_nb import audio
from resonance_nb.core import rng_for

RATE = audio.SAMPLE_RATE


def sound(seed, seconds=8.0):
    "Decaying partials at random times and pitches, over a little noise."
    rng = rng_for(seed, 'test sound')
    n = int(seconds * RATE)
    t = np.arange(RATE // 2) / RATE
    out = 0.001 * rng.standard_normal(n + len(t))
    for start in rng.integers(0, n, int(6 * seconds)):
        f0_hz = rng.uniform(100, 900)
        out[start : start + len(t)] += (
            0.1 * sum(np.sin(2 * np.pi * f0_hz * k * t) / k for k in range(1, 6)) * np.exp(-5 * t)
        )
    return out[:n].astype(np.float32)
