"""Makes a Python behave as another machine might; tests/elsewhere.py puts this folder on the PYTHONPATH of its children.

ELSEWHERE_DISTURB=8: the last digits of every spectrum and of every vector of a network change, by up to 8 units of
their precision: 1e-6 in single precision, 2e-15 in double. How they change depends on the process and on the shape:
the same computation twice in one process gives the same bits, another cut into batches does not. That is what
other processors, libraries and numbers of threads do, only all of it at once, and more. ELSEWHERE_PROCESS=N: how they
change in process N, for a test of what two processes of one machine promise each other.
ELSEWHERE_CLOCK=3600: `time.time` jumps back and forth by so many seconds."""

import functools
import importlib.abc
import importlib.machinery
import os
import sys

SPECTRA = {'rfft', 'irfft', 'dct'}
WATCHED = {
    'numpy.fft': SPECTRA,
    'scipy.fft': SPECTRA,
    'torch.fft': SPECTRA,
    'resonance_nb.encoders': {'Encoder.of_maps'},
    'resonance_nb.network': {'Network.of_maps'},
}


@functools.lru_cache(maxsize=1)
def noise(process):
    "Numbers in [-1, 1], the same as long as the process lives; their count is a prime, so that rows do not repeat."
    import numpy as np

    seed = int(os.environ.get('ELSEWHERE_SEED', 0))
    return np.random.default_rng((seed, process)).uniform(-1, 1, 65_537)


def disturbed(x):
    "An array or a tensor with other last digits."
    import numpy as np

    torch = sys.modules.get('torch')
    tensor = torch is not None and type(x) is torch.Tensor
    if not tensor and type(x) is not np.ndarray:
        return x  # of a compiler that only looks at the shapes
    eps = float((torch if tensor else np).finfo(x.dtype).eps)
    shape, begin = tuple(x.shape), hash(tuple(x.shape)) % 65_537
    process = int(os.environ.get('ELSEWHERE_PROCESS', os.getpid()))
    changes = np.resize(np.roll(noise(process), -begin), shape)
    factor = 1 + float(os.environ['ELSEWHERE_DISTURB']) * eps * changes
    if tensor:
        return x * torch.from_numpy(factor).to(x.device, x.real.dtype)
    return x * factor.astype(x.real.dtype)


def watch(module, names):
    "Let these functions of a module give disturbed numbers; a name that is not there is passed over."
    for name in names:
        *owner, last = name.split('.')
        place = functools.reduce(lambda at, part: getattr(at, part, None), owner, module)
        plain = getattr(place, last, None)
        if plain is not None:
            told = functools.wraps(plain)(
                lambda *args, _plain=plain, **kwargs: disturbed(_plain(*args, **kwargs))
            )
            setattr(place, last, told)


class Finder(importlib.abc.MetaPathFinder):
    "Waits for the modules to be imported; nothing is imported that would not have been."

    def find_spec(self, name, path=None, target=None):
        spec = importlib.machinery.PathFinder.find_spec(name, path) if name in WATCHED else None
        if spec is not None:
            run = spec.loader.exec_module
            spec.loader.exec_module = lambda module: (run(module), watch(module, WATCHED[name]))
        return spec


def jumping(clock, at_most_s):
    "A clock that is right, or wrong by a jump in either direction, as chance has it."
    import random

    draw = random.Random(os.getpid())
    return lambda: clock() + draw.choice((-at_most_s, 0.0, at_most_s))


if 'ELSEWHERE_DISTURB' in os.environ:
    sys.meta_path.insert(0, Finder())
if 'ELSEWHERE_CLOCK' in os.environ:
    import time

    time.time = jumping(time.time, float(os.environ['ELSEWHERE_CLOCK']))
