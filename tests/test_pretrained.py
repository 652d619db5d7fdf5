"""Networks of other people: converted ones against ready ones, what each says of known sounds, hostile files."""

import csv
import hashlib
import importlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resonance_nb import checkpoints, graphs, packages, pretrained
from resonance_nb.core import MissingExtra, ResonanceError
from resonance_nb.network import open_session
from resonance_nb.packages import CARRIED, carried_tags, carried_weights
from resonance_nb.pretrained import CARDS, PretrainedNetwork, find_weights, have

READY = Path(os.environ.get('RESONANCE_MODELS') or 'none is named')
CORPUS = Path(os.environ.get('RESONANCE_CORPUS') or 'none is named')
CHORDS = {'C:maj': (60, 64, 67), 'A:min': (57, 60, 64), 'E:maj': (52, 56, 59), 'F#:min': (54, 57, 61)}
NAMES = ('C', 'C#', 'D', 'D#', 'E', 'F', 'F#', 'G', 'G#', 'A', 'A#', 'B')

needs_ready = pytest.mark.skipif(not READY.is_dir(), reason='no ready networks: RESONANCE_MODELS')
needs_crowds = pytest.mark.skipif(
    not (CORPUS / 'noise.csv').is_file(), reason='no open corpus is named: RESONANCE_CORPUS'
)


def needs_package(name):
    "Skip where a package that carries a network is not installed, or what converts it."
    for module in ('onnx', 'h5py'):
        pytest.importorskip(module)
    if packages.package_file(CARRIED[name].package, CARRIED[name].files[0]) is None:
        pytest.skip(f'{CARRIED[name].package} is not installed')


def needs_weights(name):
    if not have(name):
        pytest.skip(f'the weights of {name} are not here')
    return PretrainedNetwork(name)


def tones(notes, seconds=3.0):
    "Notes of six partials each, numbered as in MIDI, at 16 kHz."
    t = np.arange(int(seconds * 16_000)) / 16_000
    hz = [440 * 2 ** ((n - 69) / 12) for n in notes]
    sound = sum(np.sin(2 * np.pi * f * k * t) / k**1.5 for f in hz for k in range(1, 7))
    return (0.1 * sound * np.minimum(1, 40 * (seconds - t)) * np.minimum(1, 40 * t)).astype('float32')


def top(network, samples, n):
    sure = network.tags(samples).mean(axis=0)
    return [network.labels[i] for i in np.argsort(-sure)[:n]]


# ---- weights in packages


@pytest.fixture
def without_models(monkeypatch, tmp_path):
    monkeypatch.delenv('RESONANCE_MODELS', raising=False)
    monkeypatch.setenv('RESONANCE_CACHE', str(tmp_path / 'cache'))


@needs_ready
@pytest.mark.parametrize('name, size', [('musicnn', (2, 187, 96)), ('crema', (1, 40, 216, 2))])
def test_what_is_converted_is_what_was_ready(without_models, name, size):
    needs_package(name)
    scale = 4 if name == 'musicnn' else -80
    picture = (scale * np.random.default_rng(0).uniform(size=size)).astype('float32')
    converted, ready = open_session(find_weights(name)), open_session(READY / CARDS[name].file)
    (feed,) = (i.name for i in ready.get_inputs())
    assert [i.name for i in converted.get_inputs()] == [feed]
    outputs = [o.name for o in ready.get_outputs()]
    assert [o.name for o in converted.get_outputs()] == outputs
    for output, ours, theirs in zip(
        outputs, converted.run(outputs, {feed: picture}), ready.run(outputs, {feed: picture})
    ):
        np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=1e-4, err_msg=output)


@pytest.mark.parametrize('name', CARRIED)
def test_packages_are_read_and_never_imported(without_models, name):
    needs_package(name)
    code = (
        'import sys, json; from resonance_nb.pretrained import PretrainedNetwork; import numpy as np\n'
        f'vectors, _ = PretrainedNetwork({name!r}).embed(np.ones(16_000, "float32") * 0.1)\n'
        'print(json.dumps([vectors.shape[1], bool(np.isfinite(vectors).all()), sorted(sys.modules)]))'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env=dict(os.environ))
    assert done.returncode == 0, done.stderr
    dim, finite, modules = json.loads(done.stdout)
    assert dim == CARDS[name].dim and finite
    assert not {'musicnn', 'crema', 'basic_pitch', 'tensorflow', 'keras'} & set(modules)


@needs_ready
@pytest.mark.parametrize('name', CARRIED)
def test_an_index_does_not_mind_where_the_weights_came_from(without_models, monkeypatch, name):
    needs_package(name)
    carried = PretrainedNetwork(name)
    monkeypatch.setenv('RESONANCE_MODELS', str(READY))
    ready = PretrainedNetwork(name)
    assert ready.path.parent == READY != carried.path.parent
    assert carried.digest == ready.digest


def test_tags_are_read_in_the_package(without_models):
    needs_package('musicnn')
    words = PretrainedNetwork('musicnn').labels
    assert words == carried_tags(CARRIED['musicnn']) and len(words) == 50
    if (READY / 'labels' / 'msd_50.txt').is_file():
        assert words == (READY / 'labels' / 'msd_50.txt').read_text(encoding='utf-8').splitlines()


def test_a_network_is_converted_once(without_models, monkeypatch):
    needs_package('crema')
    path = carried_weights(CARRIED['crema'])
    never = replace(CARRIED['crema'], convert=lambda _: pytest.fail('it was there'))
    assert carried_weights(never) == path
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize('module', ['onnx', 'h5py'])
def test_what_converts_is_asked_for_in_one_line(without_models, monkeypatch, module):
    needs_package('crema')
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtra, match=r"pip install 'resonance_nb\[pretrained\]'") as told:
        find_weights('crema')
    assert '\n' not in str(told.value) and not have('crema')


def install(folder, files, record=None):
    "A package without a wheel: its files, and a list of them."
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    info = folder / 'wts-1.0.dist-info'
    info.mkdir(parents=True)
    (info / 'METADATA').write_text('Metadata-Version: 2.1\nName: wts\nVersion: 1.0\n')
    (info / 'RECORD').write_text(''.join(f'{name},,\n' for name in record or files))
    importlib.invalidate_caches()


def listed(file, content, convert=None):
    return packages.Carried('wts==1.0', (file,), (hashlib.sha256(content).hexdigest(),), convert)


def test_packages_that_are_not_as_listed(tmp_path, monkeypatch, without_models):
    monkeypatch.syspath_prepend(str(tmp_path / 'site'))
    assert carried_weights(listed('wts/net.onnx', b'1')) is None
    (tmp_path / 'outside.onnx').write_bytes(b'1')
    install(tmp_path / 'site', {'wts/net.onnx': b'1'}, ['wts/net.onnx', '../outside.onnx', 'wts/gone.onnx'])
    assert carried_weights(listed('wts/net.onnx', b'1')).read_bytes() == b'1'
    how = 'pip install --no-deps --force-reinstall wts==1.0'
    for file, content, why in (
        ('wts/net.onnx', b'2', f'its SHA-256 is another: {how}'),
        ('wts/gone.onnx', b'1', f'has no wts/gone.onnx: {how}'),
        ('../outside.onnx', b'1', 'does not lie in the package wts'),
        ('wts/../../outside.onnx', b'1', 'does not lie in the package wts'),
        (str(tmp_path / 'outside.onnx'), b'1', 'does not lie in the package wts'),
    ):
        with pytest.raises(ResonanceError) as told:
            carried_weights(listed(file, content))
        assert why in str(told.value) and '\n' not in str(told.value)


def test_a_conversion_that_fails_leaves_nothing(tmp_path, monkeypatch, without_models):
    monkeypatch.syspath_prepend(str(tmp_path / 'site'))
    install(tmp_path / 'site', {'wts/net.index': b'1'})
    for convert, why in (
        (lambda path: graphs.musicnn_network({}), "has no tensor 'batch_normalization/gamma'"),
        (lambda path: checkpoints.read_checkpoint(path.read_bytes(), b''), 'its end is not that of an index'),
    ):
        pytest.importorskip('onnx')
        with pytest.raises(ResonanceError, match=why):
            carried_weights(listed('wts/net.index', b'1', convert))
    assert not [*packages.converted_folder().iterdir()]


def test_find_weights_tells_both_ways(monkeypatch, without_models):
    missing = {name: replace(c, package='no-such-package==1.0') for name, c in CARRIED.items()}
    monkeypatch.setattr(pretrained, 'CARRIED', missing)
    with pytest.raises(
        ResonanceError, match='pip install --no-deps no-such-package==1.0, or set RESONANCE_MODELS'
    ):
        find_weights('musicnn')
    assert not any(map(have, CARDS))


# ---- files of other people, damaged


def real_index():
    path = packages.package_file(CARRIED['musicnn'].package, CARRIED['musicnn'].files[0])
    return path.read_bytes() if path else pytest.skip('musicnn is not installed')


def test_an_index_cut_anywhere_is_told():
    index = real_index()
    for end in range(0, len(index) - 100, 97):  # what is behind is no block
        with pytest.raises(ResonanceError):
            checkpoints.read_sstable(index[:end])
        with pytest.raises(ResonanceError):
            checkpoints.read_sstable(index[:end] + index[-48:])


@given(st.binary(max_size=80), st.integers(0, 80))
def test_any_bytes_as_an_index(noise, at):
    "Anything is read, or refused in one line; it never ends otherwise."
    footer = bytes([0, 0, 0, min(at, 127)]).ljust(40, b'\0') + bytes.fromhex('57fb808b247547db')
    for data in (noise, noise + footer, noise + bytes(5) + footer):
        try:
            tensors = checkpoints.read_checkpoint(data, bytes(64))
        except ResonanceError as e:
            assert '\n' not in str(e)
        else:
            assert all(t.dtype == np.float32 for t in tensors.values())


@given(st.data())
def test_a_real_index_with_other_bytes(data):
    index = bytearray(real_index())
    for _ in range(data.draw(st.integers(1, 4))):
        index[data.draw(st.integers(0, len(index) - 1))] = data.draw(st.integers(0, 255))
    try:
        checkpoints.read_checkpoint(bytes(index), bytes(1 << 20))
    except ResonanceError as e:
        assert '\n' not in str(e)


def test_blocks_that_name_each_other_again_are_refused():
    index = real_index()
    footer = index[-48:]
    numbers, here = [], 0
    for _ in range(4):
        number, here = checkpoints.read_varint(footer, here)
        numbers.append(number)
    (_, place), *_ = checkpoints.read_block(index, *numbers[2:])
    entry = bytes([0, 1, len(place)]) + b'a' + place
    again = bytes([0, 1, len(place)]) + b'b' + place
    top_block = entry + again + bytes(4) + bytes([1, 0, 0, 0])
    begin, size = numbers[2], len(top_block)
    varint = lambda n: bytes([n & 127 | 128, n >> 7]) if n > 127 else bytes([n])
    end = (bytes(2) + varint(begin) + varint(size)).ljust(40, b'\0') + footer[-8:]
    with pytest.raises(ResonanceError, match='its blocks overlap'):
        checkpoints.read_sstable(index[:begin] + top_block + bytes(5) + end)


# ---- what they say of sounds that are known


def test_crema_names_synthesised_chords():
    "The names are right, but for one seventh too many: F sharp minor alone is F#:min7, then F#:min."
    network = needs_weights('crema')
    words = READY / 'labels' / 'crema_chord_170.txt'
    names = words.read_text(encoding='utf-8').splitlines() if words.is_file() else None
    session = open_session(network.path)
    first = []
    for chord, notes in CHORDS.items():
        heard = pretrained.crema_frames(session, tones(notes))
        mean = {name: heard[name].mean(axis=0) for name in ('root', 'bass', 'tag', 'pitch')}
        root = chord.partition(':')[0]
        assert NAMES[mean['root'].argmax()] == root and NAMES[mean['bass'].argmax()] == root
        assert {*np.argsort(-mean['pitch'])[:3]} == {n % 12 for n in notes}
        if names:
            said = [names[i] for i in np.argsort(-mean['tag'])[:2]]
            assert chord in said
            first.append(said[0] == chord)
    assert not names or sum(first) >= 3


def test_basic_pitch_hears_the_notes_of_a_triad():
    network = needs_weights('basicpitch')
    for notes in CHORDS.values():
        sure = network.embed(tones(notes))[0].mean(axis=0)
        assert {*np.argsort(-sure)[:3]} == {n - 21 for n in notes}


@pytest.mark.parametrize('name', ['efficientat', 'yamnet'])
def test_a_rag_is_music(name):
    network = needs_weights(name)
    pytest.importorskip('music21')
    from resonance_nb.starter import render_piece

    rag = render_piece('joplin/maple_leaf_rag.mxl')[0][: 12 * 16_000]
    assert top(network, rag, 1) == ['Music']


@needs_crowds
@pytest.mark.parametrize('name', ['efficientat', 'yamnet'])
def test_applause_is_applause(name):
    network = needs_weights(name)
    from resonance_nb.audio import load

    with (CORPUS / 'noise.csv').open(encoding='utf-8') as table:
        rows = [r for r in csv.DictReader(table) if r['category'] == 'applause'][:3]
    if not rows:
        pytest.skip('the corpus has no applause')
    words = {'Applause', 'Clapping', 'Cheering', 'Crowd'}
    said = [words & {*top(network, load(CORPUS / r['file'])[: 16_000 * 10], 4)} for r in rows]
    assert all(said), said


@needs_crowds
def test_musicnn_calls_a_chiptune_electronic():
    network = needs_weights('musicnn')
    from resonance_nb.audio import load

    with (CORPUS / 'music.csv').open(encoding='utf-8') as table:
        rows = [r for r in csv.DictReader(table) if r['genre'] == 'chiptune'][:2]
    if not rows:
        pytest.skip('the corpus has no chiptunes')
    for row in rows:
        assert 'electronic' in top(network, load(CORPUS / row['file'])[: 16_000 * 20], 4)
