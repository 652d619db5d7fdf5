"""The lessons and the numerical tests as other machines would run them: `make elsewhere`, `make elsewhere ONLY=avx2,busy`.

A setting is what the child processes find in their environment. Before its tests run, a child tells what the
libraries made of it; a setting that this machine cannot imitate, or computes wrongly with, is skipped with a line."""

import argparse
import contextlib
import json
import os
import platform
import re
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOGS = ROOT / 'runs' / 'elsewhere'
# pages, networks and rules: the same everywhere
NOT_NUMBERS = 'book browser download elsewhere house runs services sync'.split()
# what most machines disagreed about
QUICK = ['tests/test_notebooks.py', '-k', 'test_lesson and (02_ or 30_ or 41a_ or 50_ or 51_ or 52_)']
CORES = os.cpu_count() or 1


@dataclass
class Setting:
    "Another machine: what its processes find in their environment, and what the libraries must say to it."

    env: dict  # variables of the children
    expect: dict = field(default_factory=dict)  # key of `report()` -> the value it must have
    spinning: int = 0  # processes that keep the cores busy meanwhile


def threads(n):
    env = {f'{library}_NUM_THREADS': str(n) for library in ('OMP', 'OPENBLAS', 'MKL')}
    return Setting(env | {'MKL_DYNAMIC': 'FALSE'}, {'torch threads': n, 'OpenBLAS threads': min(n, CORES)})


def settings():
    "All settings by name."
    from numpy._core._multiarray_umath import __cpu_dispatch__ as known, __cpu_features__ as has

    extras = [name for name in known if has.get(name)]  # what NumPy would use here beyond its baseline
    modern = [name for name in extras if 'AVX512' in name or name == 'X86_V4']
    avx2 = dict(
        ATEN_CPU_CAPABILITY='avx2',
        ONEDNN_MAX_CPU_ISA='AVX2',
        MKL_ENABLE_INSTRUCTIONS='AVX2',
        FAISS_SIMD_LEVEL='AVX2',
        OPENBLAS_CORETYPE='Haswell',
        NPY_DISABLE_CPU_FEATURES=' '.join(modern),
        GLIBC_TUNABLES='glibc.cpu.hwcaps=-AVX512F,-AVX512VL',
    )
    sse = dict(
        ATEN_CPU_CAPABILITY='default',
        ONEDNN_MAX_CPU_ISA='SSE41',
        MKL_ENABLE_INSTRUCTIONS='SSE4_2',
        FAISS_SIMD_LEVEL='NONE',
        OPENBLAS_CORETYPE='Nehalem',
        NPY_DISABLE_CPU_FEATURES=' '.join(extras),
        GLIBC_TUNABLES='glibc.cpu.hwcaps=-AVX2,-FMA,-FMA4,-AVX512F',
    )
    found = {
        'avx2': Setting(
            avx2, {'torch': 'AVX2', 'OpenBLAS': ['Haswell'], 'NumPy': [e for e in extras if e not in modern]}
        ),
        'sse': Setting(sse, {'torch': 'DEFAULT', 'OpenBLAS': ['Nehalem'], 'NumPy': []}),
        'sandybridge': Setting({'OPENBLAS_CORETYPE': 'Sandybridge'}, {'OpenBLAS': ['Sandybridge']}),
        'prescott': Setting({'OPENBLAS_CORETYPE': 'Prescott'}),  # builds without it take the next older one
        'skylakex': Setting({'OPENBLAS_CORETYPE': 'SkylakeX'}, {'OpenBLAS': ['SkylakeX']}),
        'one-thread': threads(1),
        'two-threads': threads(2),
        'four-threads': threads(4),
        'busy': Setting({}, spinning=2 * CORES),
        'clock': Setting({'ELSEWHERE_CLOCK': '3600'}, {'clock jumps': True}),
        'disturbed': Setting({'ELSEWHERE_DISTURB': '8'}, {'disturbed': True}),
    }
    return found


def cannot(name):
    "Why this machine cannot imitate a setting; None when it can."
    from numpy._core._multiarray_umath import __cpu_features__ as has

    instructions = {
        'avx2': 'AVX2',
        'sse': 'SSE2',
        'sandybridge': 'AVX',
        'prescott': 'SSE2',
        'skylakex': 'AVX512F',
    }.get(name)
    if instructions and platform.machine() not in ('x86_64', 'AMD64'):
        return 'this is not an x86 processor'
    return f'this processor has no {instructions}' if instructions and not has.get(instructions) else None


def report():
    "What the libraries of this process make of the setting they find."
    import faiss
    import numpy as np
    import scipy.fft
    import scipy.linalg.blas
    import torch
    from numpy._core._multiarray_umath import __cpu_dispatch__ as known, __cpu_features__ as has
    from threadpoolctl import threadpool_info

    from resonance_nb.network import Network

    rng = np.random.default_rng(0)
    right = True
    # products of integers are exact
    for n, k, m in ((1, 512, 700), (300, 512, 257), (64, 64, 64), (1_000, 33, 1)):
        a = rng.integers(-9, 10, (n, k))
        b = rng.integers(-9, 10, (k, m))
        for kind, product in (('f4', scipy.linalg.blas.sgemm), ('f8', scipy.linalg.blas.dgemm)):
            x = a.astype(kind)
            y = b.astype(kind)
            right &= bool((x @ y == a @ b).all() and (product(1.0, x, y) == a @ b).all())
        right &= bool(((torch.from_numpy(a).float() @ torch.from_numpy(b).float()).numpy() == a @ b).all())
        index = faiss.IndexFlatIP(k)
        index.add(b.T.astype('f4'))
        right &= bool((index.search(a.astype('f4'), 1)[0][:, 0] == (a @ b).max(1)).all())
    square = rng.normal(size=(200, 200))
    u, s, v = np.linalg.svd(square)
    right &= bool(np.allclose((u * s) @ v, square) and np.allclose(square @ np.linalg.solve(square, u), u))
    blas = [d for d in threadpool_info() if d['internal_api'] == 'openblas']
    click = np.eye(1, 512, dtype='f4')[0]  # its spectrum is one everywhere
    spectra = [np.fft.rfft(click), scipy.fft.rfft(click), torch.fft.rfft(torch.from_numpy(click)).numpy()]
    return {
        'computes right': right,
        'torch': torch.backends.cpu.get_cpu_capability(),
        'NumPy': [name for name in known if has.get(name)],
        'OpenBLAS': sorted({d['architecture'] for d in blas}),
        'torch threads': torch.get_num_threads(),
        'OpenBLAS threads': min(d['num_threads'] for d in blas),
        'clock jumps': np.ptp([time.time() - time.monotonic() for _ in range(50)]) > 3_000,
        'disturbed': bool(
            min(np.abs(s - 1).max() for s in spectra) > 1e-7 and hasattr(Network.of_maps, '__wrapped__')
        ),
    }


def environment(setting):
    "The environment of a setting's children."
    path = [str(ROOT / 'tests' / 'imitate'), str(ROOT), *filter(None, [os.environ.get('PYTHONPATH')])]
    return {
        **os.environ,
        'OMP_NUM_THREADS': '1',
        **setting.env,
        'ELSEWHERE': '1',
        'PYTHONPATH': os.pathsep.join(path),
    }


@contextlib.contextmanager
def busy(n):
    "`n` processes that do nothing, as hard as they can; they also end when this process dies."
    code = 'import os\nparent = os.getppid()\nwhile os.getppid() == parent: sum(range(100_000))'
    spinning = [subprocess.Popen([sys.executable, '-c', code]) for _ in range(n)]
    try:
        yield
    finally:
        for process in spinning:
            process.kill()
            process.wait()


def numerical(quick):
    "What pytest is told to run."
    if quick:
        return QUICK
    return sorted(
        str(p.relative_to(ROOT)) for p in (ROOT / 'tests').glob('test_*.py') if p.stem[5:] not in NOT_NUMBERS
    )


def run(name, setting, quick, more=()):
    "Run the tests under one setting; True when all passed or the setting is not for this machine, and its line."
    if cannot(name):
        return True, f'{name:<13} skipped: {cannot(name)}'
    env = environment(setting)
    log = LOGS / f'{name}.log'
    told = subprocess.run(
        [sys.executable, __file__, '--report'], env=env, cwd=ROOT, capture_output=True, text=True
    )
    log.write_text(f'{name}: {setting.env}\n{told.stdout}{told.stderr}', encoding='utf-8')
    if told.returncode:
        return False, f'{name:<13} did not start: see {os.path.relpath(log, ROOT)}'
    says = json.loads(told.stdout)
    if not says['computes right']:
        return True, f'{name:<13} skipped: products of integers come out wrong here'
    if wrong := {key: says[key] for key, value in setting.expect.items() if says[key] != value}:
        return (
            False,
            f'{name:<13} had no effect: {wrong} instead of { {key: setting.expect[key] for key in wrong} }',
        )
    # files share what is slow to make, lessons share nothing
    begun = time.monotonic()
    deal = 'load' if quick else 'loadfile'
    with busy(setting.spinning), open(log, 'a', encoding='utf-8') as out:
        out.flush()
        command = [
            sys.executable,
            '-m',
            'pytest',
            '-n',
            'auto',
            '--maxprocesses',
            '4',
            '--dist',
            deal,
            '-p',
            'no:cacheprovider',
        ]
        status = subprocess.run(
            [*command, *(more or numerical(quick))], env=env, cwd=ROOT, stdout=out, stderr=out
        ).returncode
    last = re.findall(
        r'(\d+) (passed|failed|errors?)\b', log.read_text(encoding='utf-8').rstrip().split('\n')[-1]
    )
    count = {'passed': 0, 'failed': 0} | {kind: int(n) for n, kind in last}
    line = f'{count["passed"]} passed, {sum(count.values()) - count["passed"]} failed, {time.monotonic() - begun:.0f} s'
    heard = '; '.join(f'{key}: {says[key]}' for key in setting.expect) or ', '.join(
        f'{k}={v}' for k, v in setting.env.items()
    )
    return (
        status == 0,
        f'{name:<13} {line}  ({heard or f"{setting.spinning} processes spinning"})'
        + f': see {os.path.relpath(log, ROOT)}' * bool(status),
    )


def turn(names):
    "The setting whose turn it is: a revision always has the same one."
    done = subprocess.run(['git', 'rev-parse', 'HEAD'], cwd=ROOT, capture_output=True, text=True)
    return names[int(done.stdout.strip() or '0', 16) % len(names)]


def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('--only', help='settings, separated by commas')
    p.add_argument(
        '--rotate', action='store_true', help='`disturbed`, and one other that the revision chooses'
    )
    p.add_argument('--quick', action='store_true', help='a few lessons only')
    p.add_argument('--report', action='store_true', help='print what the libraries here say, as JSON')
    p.add_argument('pytest', nargs='*', help='instead of all tests: arguments of pytest, after --')
    args = p.parse_args(argv)
    if args.report:
        print(json.dumps(report(), default=bool))
        return 0
    known = settings()
    names = args.only.split(',') if args.only else list(known)
    if unknown := [name for name in names if name not in known]:
        p.error(f'no setting {", ".join(unknown)}; choose from: {", ".join(known)}')
    if args.rotate:
        names = ['disturbed', turn([name for name in known if name != 'disturbed' and not cannot(name)])]
    LOGS.mkdir(parents=True, exist_ok=True)
    failed = 0
    for name in names:
        well, line = run(name, known[name], args.quick, args.pytest)
        print(line, flush=True)
        failed += not well
    return int(failed > 0)


if __name__ == '__main__':
    sys.exit(main())
