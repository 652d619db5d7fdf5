"""The targets of the fuzzer on a few inputs each, without the fuzzer: seeds, and seeds with changes."""

import os

import numpy as np
import pytest

import fuzz
from resonance_nb.core import ResonanceError


def changed(data, rng):
    "Bytes with a few of them changed, cut out, or put in."
    out = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        at = int(rng.integers(0, len(out) + 1))
        n = int(rng.integers(1, 9))
        out[at : at + int(rng.integers(0, 2)) * n] = rng.bytes(n) if rng.integers(0, 3) else b''
    return bytes(out)


@pytest.mark.parametrize('name', [n for n in fuzz.TARGETS if n != 'decoder'])
def test_target(tmp_path, name):
    seeds, run = fuzz.TARGETS[name](tmp_path)
    assert seeds
    rng = np.random.default_rng(1)
    inputs = [
        *seeds[:40],
        b'',
        b'\0',
        *(changed(seeds[int(rng.integers(len(seeds)))], rng) for _ in range(40)),
    ]
    for data in inputs:
        error = fuzz.judged(run, data)
        assert error is None, (name, data[:200], error)


HEAD = b"\x93NUMPY\x01\0\x76\0{'descr': '<u2', 'fortran_order': False, 'shape': "
BAD_ARRAYS = [
    b'',
    b'\x93NUMPY',
    HEAD + b'(3,',
    HEAD.ljust(128) + b'\n',
    HEAD + b'(1,' * 20 + b'\n',
    HEAD.replace(b'<u2', b'O') + b'(1,), }\n'.rjust(60),
    b'PK\3\4' + bytes(60),
]
BAD_TEXTS = [
    b'',
    b'{',
    b'[' * 100_000,
    b'{"format": "a\\nb", "version": 1, "front_end": "x", "tracks": []}',
    b'{"format": 1e999, "version": Infinity, "tracks": [["a", Infinity]]}',
    b'\xff\xfe',
    b'null',
]


@pytest.mark.parametrize('name', [n for n in fuzz.TARGETS if n.startswith('index-')])
def test_an_index_of_which_a_file_is_bad_is_refused_in_one_line(tmp_path, name):
    fuzz.TARGETS[name](tmp_path)
    load = {
        'landmark': 'landmarks:Landmarks',
        'fused': 'fuse:Fused',
        'embedding': 'embedding:Embedding',
        'mfcc': 'mfcc:Mfcc',
        'chromaprint': 'chromaprint:Chromaprint',
        'vectors': 'index:VectorIndex',
    }[name.removeprefix('index-')]
    module, _, cls = load.partition(':')
    cls = getattr(__import__(f'resonance_nb.{module}', fromlist=[cls]), cls)
    folder = tmp_path / 'whole'
    for path in sorted(folder.iterdir()):
        kept = path.read_bytes()
        for bad in BAD_TEXTS if path.suffix == '.json' else BAD_ARRAYS:
            path.unlink()  # never over a file that is mapped
            path.write_bytes(bad)
            with pytest.raises(ResonanceError) as e:
                cls.load(folder)
            assert str(e.value).isprintable() and len(str(e.value)) < 1_000, (path.name, bad[:60])
        path.unlink()
        path.write_bytes(kept)
    cls.load(folder)


def test_what_is_no_complaint_of_one_line_is_a_finding():
    def run(data):
        raise {
            b'': ResonanceError('two\nlines'),
            b'1': ValueError('x'),
            b'2': ResonanceError(''),
            b'3': ResonanceError('x' * 2_000),
        }.get(data, ResonanceError('one line'))

    assert all(fuzz.judged(run, data) for data in (b'', b'1', b'2', b'3'))
    assert fuzz.judged(run, b'4') is None and fuzz.judged(len, b'') is None


def test_it_says_what_it_needs(capsys, monkeypatch):
    monkeypatch.setitem(__import__('sys').modules, 'atheris', None)
    assert fuzz.main(['--target', 'raw', '--seconds', '1']) == 2
    assert capsys.readouterr().err == 'atheris is needed for this and for nothing else: pip install atheris\n'
    with pytest.raises(SystemExit):
        fuzz.main(['--target', 'nothing'])


def test_patches():
    assert fuzz.patched(b'0123456789', b'\0abc') == b'abc' and fuzz.patched(b'0123', b'\1') == b'0123'
    assert fuzz.patched(b'0123456789', b'\1\2\0\0\0\2ab') == b'01ab456789'
    assert fuzz.patched(b'0123456789', b'\1\2\0\0\0\x42ab') == b'01ab23456789'
    assert fuzz.patched(b'0123456789', b'\1\2\0\0\0\x80') == b'01'
    assert os.path.basename(fuzz.__file__) == 'fuzz.py'
