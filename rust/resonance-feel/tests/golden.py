"""Golden vectors: what the reference, in NumPy, makes of sounds that both languages make alike.

    python golden.py                   made-up weights to golden_made_up.txt
    python golden.py feel.safetensors  those of a file to golden.txt, which `cargo test` reads when the file is built in

A line is the name of a sound and its 32 numbers; the first line names the weights by their SHA-256.
"""

import argparse
import hashlib
import importlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
SHAPES = {
    'attention.bias': (1,),
    'attention.weight': (80,),
    'bank': (128, 1024),
    'conv1.bias': (128,),
    'conv1.weight': (128, 64, 3),
    'conv2.bias': (128,),
    'conv2.depth': (128, 5),
    'conv2.weight': (128, 128),
    'conv3.bias': (192,),
    'conv3.depth': (128, 5),
    'conv3.weight': (192, 128),
    'gru.hidden.bias': (240,),
    'gru.hidden.weight': (240, 80),
    'gru.input.bias': (240,),
    'gru.input.weight': (240, 129),
    'hidden.bias': (96,),
    'hidden.weight': (96, 416),
    'in.scale': (64,),
    'in.shift': (64,),
    'out.bias': (32,),
    'out.weight': (32, 96),
    'segment.bias': (128,),
    'segment.weight': (128, 512),
}


def noise(
    seed: int,
    n: int,
) -> np.ndarray:
    "Make noise between -0.5 and 0.5 that other languages make alike, float64 of shape (n,)."
    a, c = np.uint32(1_664_525), np.uint32(1_013_904_223)
    powers = np.cumprod(np.full(n, a, np.uint32), dtype=np.uint32)
    sums = np.cumsum(np.concatenate([[np.uint32(1)], powers[:-1]]), dtype=np.uint32)[:n]
    state = powers * np.uint32(seed) + c * sums
    return (state >> np.uint32(8)) / 2**24 - 0.5


def made_up() -> bytes:
    "Make a file of weights that mean nothing: each of the size that training begins with."
    entries, values, at = [], [], 0
    for seed, (name, shape) in enumerate(SHAPES.items(), 1):
        n = int(np.prod(shape))
        x = noise(seed, n)
        if name == 'bank':
            rows, taps = np.indices(shape)
            beyond = np.abs(taps - 512) > 512 - 6 * (rows % 64)  # as of filters that get shorter
            x = np.where(beyond, 0, x.reshape(shape) / 64).ravel()
        elif name == 'in.scale':
            x = x + 1
        elif len(shape) == 1 and name != 'attention.weight':
            x = x / 4
        else:
            x = x * np.sqrt(12 / (n // shape[0] if len(shape) > 1 else n))
        values.append(x.astype('<f4').tobytes())
        numbers = ','.join(map(str, shape))
        entries.append(f'"{name}":{{"dtype":"F32","shape":[{numbers}],"data_offsets":[{at},{at + 4 * n}]}}')
        at += 4 * n
    header = '{' + ','.join(entries) + '}'
    assert json.loads(header)
    return len(header).to_bytes(8, 'little') + header.encode() + b''.join(values)


def triangle(
    n: int,
    period: int,
) -> np.ndarray:
    "Make a triangle wave between -1 and 1, float64 of shape (n,)."
    return np.abs((np.arange(n) % period) * 4 / period - 2) - 1


def chords(
    seconds: int,
) -> np.ndarray:
    "Make a chord of three notes every two seconds, float64 at 22,050 Hz."
    parts = []
    for i in range(seconds // 2):
        root = 60 + 13 * (i * 5 % 7)
        parts.append(sum(triangle(44_100, period) for period in (root, root * 4 // 5, root * 2 // 3)) / 8)
    return np.concatenate(parts)


def pulses(
    n: int,
    period: int,
) -> np.ndarray:
    "Make single samples of 0.9 with silence between them, float64 of shape (n,)."
    return np.where(np.arange(n) % period == 0, 0.9, 0)


def sounds() -> Iterator[tuple[str, np.ndarray]]:
    "Give the names of sounds and their samples, float32 at 22,050 Hz."
    yield 'nothing', np.zeros(0, np.float32)
    yield 'one-sample', np.array([0.5], np.float32)
    yield '2047-samples', noise(101, 2_047).astype(np.float32)
    yield 'silence-3s', np.zeros(66_150, np.float32)
    yield 'silence-100s', np.zeros(2_205_000, np.float32)
    for n in (639, 640, 61_439, 61_440, 122_879):
        yield f'noise-{n}', noise(n, n).astype(np.float32)
    yield 'noise-10s', noise(102, 220_500).astype(np.float32)
    yield 'pulses-20s', pulses(441_000, 5_000).astype(np.float32)
    yield 'chords-30s', chords(30).astype(np.float32)
    yield 'quiet-chords-30s', (chords(30) / 1_024).astype(np.float32)
    gap = chords(20)
    gap[44_100 * 2 : 44_100 * 7] = 0
    yield 'chords-with-a-gap', gap.astype(np.float32)
    swelling = noise(103, 2_866_500) * (triangle(2_866_500, 200_000) + 1) / 2 + np.tile(chords(26), 5) / 4
    yield 'swelling-130s', swelling.astype(np.float32)
    holes = noise(104, 110_250).astype(np.float32)
    holes[[500, 40_000]] = np.nan
    yield 'not-a-number', holes
    holes = noise(105, 110_250).astype(np.float32)
    holes[30_000], holes[90_000] = np.inf, -np.inf
    yield 'infinite', holes


def write(
    weights: Path,  # a file of safetensors
    out: Path,  # what is written
    reference: str = 'resonance_nb.feel_model',  # a module with `band_powers`, `segments` and `head`
) -> None:
    "Write what the reference makes of each sound."
    from safetensors.numpy import load_file

    model, arrays = importlib.import_module(reference), load_file(weights)
    lines = [f'# weights {hashlib.sha256(Path(weights).read_bytes()).hexdigest()}']
    for name, samples in sounds():
        powers = model.band_powers(samples, arrays['bank'])
        vector = np.asarray(model.head(*model.segments(powers, arrays), arrays), np.float32)
        assert np.isfinite(vector).all()
        lines.append(' '.join([name, *(f'{v:.9g}' for v in vector)]))
    out.write_text('\n'.join(lines) + '\n', encoding='utf-8')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        'weights', nargs='?', type=Path, help='a file of weights; without one, made-up weights'
    )
    parser.add_argument('--out', type=Path, help='where to write')
    parser.add_argument(
        '--reference', default='resonance_nb.feel_model', help='the module that is the measure'
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        weights = args.weights
        if weights is None:
            weights = Path(folder) / 'made_up.safetensors'
            weights.write_bytes(made_up())
        write(
            weights,
            args.out or HERE / ('golden.txt' if args.weights else 'golden_made_up.txt'),
            args.reference,
        )


if __name__ == '__main__':
    main()
