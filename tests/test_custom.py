"""Small networks: losses against loops, what is learned, broken runs, and short, silent and broken sounds."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

from resonance_nb.core import ResonanceError, rng_for
from resonance_nb.starter import make_starter

torch = pytest.importorskip('torch')
pytest.importorskip('lightning')

from resonance_nb import custom, transfer  # noqa: E402
from resonance_nb.custom import KINDS, Choices, Custom, SmallNet, listener, maps_of, teach  # noqa: E402

SONG = 0.1 * rng_for(0, 'a song').normal(size=4 * 16_000).astype('float32')
SMALL = {'dim': 8, 'channels': (4, 8)}


@pytest.fixture(autouse=True)
def one_thread():
    with transfer.threads(1):
        yield


@pytest.fixture(scope='module')
def corpus():
    return make_starter(n_pieces=12)


def loss_of(kind):
    return custom.drawing_loss if Choices(kind).draws else custom.pair_loss


def batch(n=4):
    rng = torch.Generator().manual_seed(0)
    clean = torch.rand(n, 1, 64, 63, generator=rng)
    return clean, clean + 0.1 * torch.rand(clean.shape, generator=rng), torch.arange(n) // 2


@pytest.mark.parametrize('kind', KINDS)
def test_gradients_reach_every_weight(kind):
    torch.manual_seed(0)
    net = SmallNet(Choices(kind, **SMALL)).train()
    loss, said = loss_of(kind)(SimpleNamespace(encoder=net), *batch())
    loss.backward()
    assert torch.isfinite(loss) and said
    silent = [name for name, p in net.named_parameters() if p.grad is None]
    assert not silent
    assert all(torch.isfinite(p.grad).all() for p in net.parameters())


def test_two_views_that_are_the_same_have_a_gradient():
    a = torch.nn.functional.normalize(torch.ones(3, 4), dim=1).requires_grad_()
    custom.contrastive(a, a.detach(), torch.arange(3)).backward()
    assert torch.isfinite(a.grad).all()


def test_others_that_are_far_enough_are_left_alone():
    a = torch.eye(4)
    assert float(custom.contrastive(a, a, torch.arange(4), margin=1.0)) == pytest.approx(0, abs=1e-6)
    assert float(custom.contrastive(a, a, torch.arange(4), margin=1.6)) > 0
    with pytest.raises(ResonanceError, match='two songs'):
        custom.contrastive(a, a, torch.zeros(4))


def test_the_denoising_one_is_asked_for_the_clean_picture():
    torch.manual_seed(0)
    clean, heard, songs = batch()
    for kind in ('autoencoder', 'denoising'):
        net = SmallNet(Choices(kind, **SMALL)).eval()
        loss = custom.drawing_loss(SimpleNamespace(encoder=net), clean, heard, songs)[0].item()
        seen, wanted = (heard, clean) if kind == 'denoising' else (torch.cat([clean, heard]),) * 2
        with torch.no_grad():
            expected = float(((net.drawn(seen) - wanted) ** 2).mean())
        assert loss == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize('kind', KINDS)
def test_saved_and_loaded_it_says_the_same(tmp_path, kind):
    torch.manual_seed(0)
    net = SmallNet(Choices(kind, **SMALL)).eval()
    transfer.write_network(net, tmp_path / 'n.safetensors', custom.KIND)
    ear = listener(tmp_path / 'n.safetensors')
    with torch.inference_mode():
        expected = net.of_maps(torch.from_numpy(maps_of(SONG))).numpy()
    vectors, times_s = ear.embed(SONG)
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    np.testing.assert_allclose(np.diff(times_s), 0.5)
    assert ear.embed(SONG[:16_000])[0].shape == (1, 8)
    for short in (np.ones(1), np.zeros(1), np.zeros(40_000), np.full(5_000, np.nan)):
        assert np.isfinite(ear.embed(short.astype('float32'))[0]).all()
    index = Custom(ear)
    index.add('song', SONG)
    index.add('silence', np.zeros(40_000, 'float32'))
    assert [m.track_id for m in index.search(SONG[8_000:])] == ['song']
    with pytest.raises(ResonanceError, match='no resonance taught network'):
        transfer.listener(tmp_path / 'n.safetensors')


@pytest.mark.parametrize('kind', ['contrastive', 'denoising'])
def test_a_run_that_is_broken_off_ends_where_it_would_have_ended(tmp_path, corpus, kind):
    changes = {'steps': 4, 'n_songs': 3, 'venues': [], 'validate_every': 2, 'warmup': 1}
    options = {'minutes': 0, 'changes': changes, 'validated': False, 'workers': 0, 'progress': False}
    run = partial(teach, Choices(kind, **SMALL), corpus, n_songs=4, **options)
    weights = lambda path: listener(path).net.state_dict()
    whole = weights(run(tmp_path / 'whole'))
    calls = []

    def breaks(net):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return {'top1': 0.0}

    with pytest.raises((KeyboardInterrupt, SystemExit)):
        run(tmp_path / 'broken', validate=breaks)
    again = weights(run(tmp_path / 'broken'))
    for name, value in whole.items():
        np.testing.assert_allclose(again[name], value, atol=1e-5, err_msg=name)
    with pytest.raises(ResonanceError, match='another recipe'):
        teach(Choices('triplet', **SMALL), corpus, tmp_path / 'broken', n_songs=4, **options)
