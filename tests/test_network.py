"""The encoder without torch: the same pictures, the same vectors, in a process that cannot import torch; and files that are no encoder."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from resonance_nb import network
from resonance_nb.audio import mel_filters
from resonance_nb.core import ResonanceError, rng_for
from resonance_nb.network import AT_ONCE, HOP_S, MODELS, Front, Network, Settings, embed, mel_maps, shipped
from sounds import sound

RATE = 8_000


def windows(n, seed=0):
    x = sound(seed, 2 + n // 4)[::2][: RATE * (2 + n // 4) // 2 * 2]
    starts = rng_for(seed, 'windows').integers(0, len(x) - RATE, n)
    return np.stack([x[s : s + RATE] for s in starts])


ODD = {
    'silence': np.zeros(RATE),
    'a click': np.eye(1, RATE, 4_000)[0],
    'dc': np.full(RATE, 0.5),
    'loud': np.full(RATE, 1e6),
    'faint': np.full(RATE, 1e-9),
}


# ---- against torch


@pytest.mark.parametrize(
    'front',
    [Front(), Front(n_mels=256), Front(n_mels=100, low_hz=0.0), Front(n_fft=512, hop=100, range_db=40.0)],
    ids=str,
)
def test_pictures_are_those_of_torch(front):
    torch = pytest.importorskip('torch')
    from resonance_nb.encoders import MelFront

    x = np.concatenate([windows(9), np.stack([*ODD.values()]).astype(np.float32)])
    expected = MelFront(front)(torch.from_numpy(x))[:, 0].numpy()
    np.testing.assert_allclose(mel_maps(x, front), expected, atol=1e-4)
    assert np.ptp(expected[:9]) > 1, 'or nothing would be compared'


def test_vectors_are_those_of_torch():
    pytest.importorskip('torch')
    from resonance_nb import encoders

    encoder, card = encoders.shipped()
    x = np.concatenate([windows(2 * AT_ONCE + 3), np.stack([*ODD.values()]).astype(np.float32)])
    expected = encoders.Asked(encoder)(x)
    np.testing.assert_allclose(shipped()(x), expected, atol=1e-4)
    assert shipped().digest == card['digest'], 'resonance export shipped makes it anew'
    assert shipped().settings == encoder.settings
    assert np.abs(expected[0] - expected[1]).max() > 0.01, 'other windows, other vectors'


def test_other_encoders_are_exported_as_they_are(tmp_path):
    torch = pytest.importorskip('torch')
    from resonance_nb import encoders

    torch.manual_seed(0)
    for body in ('cnn3', 'separable'):
        made = encoders.Encoder(Settings(body, 32, 0.5, Front(n_mels=64))).eval()
        encoders.export_onnx(made, tmp_path / f'{body}.onnx')
        again = Network(tmp_path / f'{body}.onnx')
        x = windows(5)[:, : RATE // 2]
        assert (again.digest, again.settings) == (encoders.digest(made), made.settings)
        np.testing.assert_allclose(again(x), encoders.Asked(made)(x), atol=1e-4)


# ---- by itself


def test_vectors_do_not_depend_on_what_else_is_asked():
    x = windows(2 * AT_ONCE + 1)
    together = shipped()(x)
    alone = np.concatenate([shipped()(row[None]) for row in x])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)


def test_odd_windows_have_finite_vectors():
    vectors = shipped()(np.stack([*ODD.values()]).astype(np.float32))
    assert vectors.shape == (len(ODD), 128) and vectors.dtype == np.float32 and np.isfinite(vectors).all()


def seen(x, start, settings):
    "A window's map by its definition, frame by frame; before and after the recording is silence."
    front = settings.front
    x = np.pad(x.astype(float), (settings.front.n_fft // 2, settings.samples + settings.front.n_fft))
    frames = [
        x[start + k * front.hop :][: front.n_fft] * np.hanning(front.n_fft + 1)[:-1]
        for k in range(settings.samples // front.hop + 1)
    ]
    filters = mel_filters(RATE, front.n_fft, front.n_mels, front.low_hz, front.high_hz)
    level_db = 10 * np.log10(np.maximum(filters @ np.abs(np.fft.rfft(frames).T) ** 2, 1e-9))
    return (np.maximum(level_db - level_db.max(), -front.range_db) / (front.range_db / 2) + 1).astype(
        np.float32
    )


@pytest.mark.parametrize('hop', [2_048, 4_000])
@pytest.mark.parametrize('n', [0, 1, 5_951, 5_952, 7_999, 8_000, 8_001, 12_000, 12_001, 100_003])
def test_windows_of_a_recording_hear_what_is_around_them(n, hop):
    x = windows(14).ravel()[:n]
    net = shipped()
    starts_s, vectors = embed(net, x, hop / RATE)
    expected = [s for s in range(0, n, hop) if s == 0 or s < n - RATE + hop]
    assert np.rint(starts_s * RATE).tolist() == expected and vectors.shape == (len(expected), 128)
    for start, vector in zip(expected, vectors):
        np.testing.assert_allclose(net.of_maps(seen(x, start, net.settings)[None])[0], vector, atol=2e-4)
    whole = embed(net, x, hop / RATE, whole=True)[0]
    assert np.rint(whole * RATE).tolist() == ([s for s in expected if s + RATE <= n] or expected[:1])


def test_the_middle_of_a_recording_does_not_hear_its_ends():
    x = windows(14).ravel()
    near = lambda a, b: np.linalg.norm(a - b, axis=1)
    whole = embed(shipped(), x, HOP_S)[1]
    cut_out = embed(shipped(), x[10 * 2_048 :][:30_000], HOP_S, whole=True)[1]
    moved = near(whole[10:][: len(cut_out)], cut_out)
    assert moved[1:-1].max() < 1e-4 and moved[0] > 1e-3, 'the first window of the cut misses what came before'


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
def test_broken_samples_do_not_spread(value):
    x = windows(5).ravel()
    broken = x.copy()
    broken[20_500] = value
    ours = embed(shipped(), broken)[1]
    theirs = embed(shipped(), x)[1]
    assert np.isfinite(ours).all()
    np.testing.assert_allclose(ours[:3], theirs[:3], atol=1e-5)


def test_a_millionth_of_the_sound_moves_the_vectors_by_no_more_than_that():
    x = windows(24)
    disturbed = x * (1 + 1e-6 * rng_for(0, 'disturbed').standard_normal(x.shape)).astype(np.float32)
    moved = np.linalg.norm(shipped()(disturbed) - shipped()(x), axis=1)
    assert 0 < moved.max() < 1e-4, 'a network that rounds within moves by a hundredth'


# ---- files that are something else


def changed_about(tmp_path, **changes):
    "A copy of the shipped network that says something else of itself."
    onnx = pytest.importorskip('onnx')
    model = onnx.load(str(MODELS / 'encoder.onnx'))
    about = json.loads(model.metadata_props[0].value) | changes
    del model.metadata_props[:]
    model.metadata_props.add(key='resonance', value=json.dumps(about))
    onnx.save(model, str(tmp_path / 'changed.onnx'))
    return tmp_path / 'changed.onnx'


@pytest.mark.parametrize(
    'changes, words',
    [
        ({'version': 2}, 'this package reads resonance network version 1'),
        ({'format': 'another'}, 'is another version 1'),
        ({'front_check': [0.5] * 16}, 'computes differently'),
    ],
)
def test_a_network_for_something_else_is_refused(tmp_path, changes, words):
    with pytest.raises(ResonanceError, match=words):
        Network(changed_about(tmp_path, **changes))


def test_an_unchanged_copy_is_not_refused(tmp_path):
    assert Network(changed_about(tmp_path)).digest == shipped().digest


@pytest.mark.parametrize(
    'content',
    [b'', b'no network', (MODELS / 'encoder.onnx').read_bytes()[:1_000_000]],
    ids=['empty', 'text', 'torn'],
)
def test_what_is_no_network_is_told_in_one_line(tmp_path, content):
    (tmp_path / 'x.onnx').write_bytes(content)
    with pytest.raises(ResonanceError, match='x.onnx') as told:
        Network(tmp_path / 'x.onnx')
    assert '\n' not in str(told.value)


def test_a_network_of_somebody_else_is_refused(tmp_path):
    onnx = pytest.importorskip('onnx')
    model = onnx.load(str(MODELS / 'encoder.onnx'))
    del model.metadata_props[:]
    onnx.save(model, str(tmp_path / 'x.onnx'))
    with pytest.raises(ResonanceError, match='somebody else'):
        Network(tmp_path / 'x.onnx')


# ---- a machine without torch

WITHOUT = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in ('torch', 'lightning', 'faiss', 'safetensors', 'onnx', 'matplotlib', 'mutagen', 'sounddevice'):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Missing())
from resonance_nb.cli import main
main(sys.argv[1:])
"""


def test_index_identify_listen_and_degrade_without_torch(tmp_path):
    import soundfile as sf

    (tmp_path / 'music').mkdir()
    (tmp_path / 'home').mkdir()
    for seed in range(4):
        sf.write(tmp_path / 'music' / f'song {seed}.wav', sound(seed, 12), 16_000)
    sf.write(tmp_path / 'clip.wav', sound(2, 12)[3 * 16_000 : 9 * 16_000], 16_000)

    def resonance(*words):
        env = {
            k: v for k, v in os.environ.items() if k not in ('XDG_CACHE_HOME', 'ORT_DISABLE_TELEMETRY')
        } | {'HOME': str(tmp_path / 'home')}
        done = subprocess.run(
            [sys.executable, '-c', WITHOUT, *words], cwd=tmp_path, env=env, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    resonance('index', 'music', '--catalog', 'c')
    assert [p.name for p in (tmp_path / 'c').iterdir() if p.is_dir()] == ['fused']
    resonance('degrade', 'clip.wav', 'heard.wav', '--venue', 'club', '--snr-db', '10', '--seed', '1')
    for clip in ('clip.wav', 'heard.wav'):
        found = json.loads(resonance('identify', clip, '--catalog', 'c', '--json'))
        assert found['decision'] == 'match' and found['matches'][0]['title'] == 'song 2'
        assert found['matches'][0]['offset_s'] == pytest.approx(3, abs=0.1)
    events = [
        json.loads(line)
        for line in resonance('listen', '--input', 'clip.wav', '--catalog', 'c', '--json').splitlines()
    ]
    assert [e['title'] for e in events if e['event'] == 'match'] == ['song 2']
    assert not [*(tmp_path / 'home').rglob('*onnxruntime*')], (
        'the runtime keeps what it would tell its makers'
    )


def test_a_missing_runtime_is_told_in_one_line(monkeypatch):
    shipped()
    monkeypatch.setitem(sys.modules, 'onnxruntime', None)
    with pytest.raises(ResonanceError, match='pip install onnxruntime'):
        Network(MODELS / 'encoder.onnx')
    assert network.shipped().digest, 'what is loaded already goes on'
