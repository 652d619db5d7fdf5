"""Encoders: every body, on any batch, saved and loaded; damaged files."""

import json
import os

import numpy as np
import pytest

from resonance_nb.core import ResonanceError

torch = pytest.importorskip('torch')

from resonance_nb.encoders import BODIES, Asked, Encoder, MelFront, digest, load, save, taken_over  # noqa: E402
from resonance_nb.network import Front, Settings, embed  # noqa: E402


def noise(n, seed=0, samples=8_000):
    return torch.randn(n, samples, generator=torch.Generator().manual_seed(seed)) * 0.1


@pytest.mark.parametrize('body', BODIES)
def test_every_body(body, tmp_path):
    torch.manual_seed(0)
    encoder = Encoder(Settings(body, dim=64))
    vectors = encoder(noise(6))
    assert vectors.shape == (6, 64)
    vectors.square().sum().sub(vectors[0, 0]).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in encoder.parameters())
    encoder.eval()
    with torch.inference_mode():
        together = encoder(noise(7))
        torch.testing.assert_close(together.norm(dim=1), torch.ones(7))
        torch.testing.assert_close(
            torch.cat([encoder(x[None]) for x in noise(7)]), together, atol=2e-5, rtol=0
        )
        torch.testing.assert_close(encoder(noise(7).flip(0)).flip(0), together, atol=2e-5, rtol=0)
        save(encoder, tmp_path / 'm.safetensors')
        assert torch.equal(load(tmp_path / 'm.safetensors')[0](noise(7)), together)
        assert torch.isfinite(encoder(torch.zeros(2, 8_000))).all()


def test_ours_is_small():
    assert sum(p.numel() for p in Encoder().parameters()) <= 2_000_000


def test_more_bands_begin_where_fewer_ended(tmp_path):
    torch.manual_seed(1)
    coarse = Encoder()
    path = tmp_path / 'm.safetensors'
    coarse(noise(8))  # batch statistics of its own
    save(coarse, path, note='coarse')
    fine, card = taken_over(path, Settings(front=Front(n_mels=192)))
    maps = torch.rand(4, 1, 64, 63) * 2 - 1
    with torch.inference_mode():
        torch.testing.assert_close(
            fine.eval().features(maps.repeat_interleave(3, dim=2)),
            coarse.eval().features(maps),
            atol=1e-4,
            rtol=1e-4,
        )
        assert not torch.allclose(fine.features(torch.rand(4, 1, 192, 63)), coarse.features(maps))
    assert card['note'] == 'coarse'
    for other in (
        Settings(front=Front(n_mels=100)),
        Settings(front=Front(n_mels=32)),
        Settings('cnn4', front=Front(n_mels=128)),
        Settings(dim=64),
        Settings(front=Front(n_mels=128, hop=256)),
    ):
        with pytest.raises(ResonanceError, match='has the settings'):
            taken_over(path, other)


def test_a_louder_window_has_the_same_picture():
    x = noise(3)
    torch.testing.assert_close(MelFront()(x), MelFront()(8 * x), atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    'settings',
    [Settings(window_s=2.0), Settings(front=Front(n_mels=96, hop=256)), Settings('patches', window_s=1.5)],
)
def test_other_settings(settings):
    assert Encoder(settings).eval()(noise(2, samples=settings.samples)).shape == (2, 128)


@pytest.mark.parametrize(
    'harm',
    [
        'cut',
        'garbage',
        'empty',
        'missing',
        'other weights',
        'no card',
        'card',
        'version',
        'settings',
        'front',
        'no check',
        'odd check',
    ],
)
def test_a_damaged_model_is_refused_in_one_line(tmp_path, harm):
    path = tmp_path / 'm.safetensors'
    card = tmp_path / 'm.json'
    save(Encoder(Settings('cnn3')), path)
    told = json.loads(card.read_text())
    if harm == 'cut':
        path.write_bytes(path.read_bytes()[:-100])
    elif harm == 'garbage':
        path.write_bytes(os.urandom(300))
    elif harm == 'empty':
        path.write_bytes(b'')
    elif harm == 'missing':
        path.unlink()
    elif harm == 'other weights':
        save(Encoder(Settings('cnn3')), path)
        card.write_text(json.dumps(told))
    elif harm == 'no card':
        card.unlink()
    elif harm == 'card':
        card.write_text('{')
    elif harm == 'version':
        card.write_text(json.dumps(told | {'version': 99}))
    elif harm == 'settings':
        card.write_text(json.dumps(told | {'settings': told['settings'] | {'body': 'cnn9'}}))
    elif harm == 'no check':
        card.write_text(json.dumps({k: v for k, v in told.items() if k != 'front_check'}))
    elif harm == 'odd check':
        card.write_text(json.dumps(told | {'front_check': [0.5]}))
    elif harm == 'front':
        card.write_text(json.dumps(told | {'front_check': [v + 0.1 for v in told['front_check']]}))
    with pytest.raises(ResonanceError) as error:
        load(path)
    assert '\n' not in str(error.value)


def test_the_digest_is_of_settings_and_weights():
    torch.manual_seed(0)
    one = Encoder(Settings('cnn3'))
    before = digest(one)
    with torch.no_grad():
        one.head.bias[3] += 1e-3
    assert digest(one) != before


@pytest.mark.parametrize('settings', [Settings('cnn3'), Settings('cnn3', window_s=0.5, front=Front(hop=100))])
def test_a_window_between_silence_is_the_same_alone_and_in_a_recording(settings):
    encoder = Encoder(settings).eval()
    n = settings.samples
    x = noise(1, samples=n)[0].numpy()
    starts_s, vectors = embed(Asked(encoder, batch=7), np.pad(x, (4_096, 8_192)), 0.256)
    with torch.inference_mode():
        np.testing.assert_allclose(encoder(torch.from_numpy(x)[None])[0], vectors[2], atol=1e-4)
    assert starts_s[2] * 8_000 == 4_096 and np.abs(vectors[2] - vectors[3]).max() > 1e-3


def test_broken_samples_do_not_spread():
    encoder = Encoder(Settings('cnn3')).eval()
    x = noise(1, samples=40_000)[0].numpy()
    x[20_500] = np.nan
    assert np.isfinite(embed(Asked(encoder), x)[1]).all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason='no graphics card with CUDA')
def test_the_same_on_a_graphics_card(tmp_path):
    encoder = Encoder().eval()
    save(encoder.to('cuda'), tmp_path / 'e.safetensors')  # as it is while it learns there
    assert load(tmp_path / 'e.safetensors')[1]['digest'] == digest(encoder)
    with torch.inference_mode():
        torch.testing.assert_close(
            encoder.to('cuda')(noise(8).to('cuda')).cpu(), encoder.to('cpu')(noise(8)), atol=1e-3, rtol=0
        )
