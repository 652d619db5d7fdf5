"""Networks of other people in torch: parity, what is taught and what is not, runs that are broken off."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

from resonance_nb.core import ResonanceError, rng_for
from resonance_nb.starter import make_starter

torch = pytest.importorskip('torch')
pytest.importorskip('lightning')

from resonance_nb import losses, transfer  # noqa: E402
from resonance_nb.transfer import (  # noqa: E402
    TAUGHT,
    TRUNKS,
    Choices,
    TaughtNet,
    Transfer,
    listener,
    load_trunk,
    pictures,
    recipe_for,
    teach,
    write_network,
)

SHAPES = {'efficientat': (128, 200), 'musicnn': (96, 128)}
SONG = 0.1 * rng_for(0, 'a song').normal(size=4 * 16_000).astype('float32')


@pytest.fixture(autouse=True)
def one_thread():
    with transfer.threads(1):
        yield


@pytest.fixture(scope='module')
def corpus():
    return make_starter(n_pieces=12)


def module_of(net, recipe, step=0):
    "As much of a Lightning module as a loss asks for."
    return SimpleNamespace(
        encoder=net,
        recipe=recipe,
        global_step=step,
        temperature=losses.Temperature(0.05, True),
        hybrid=None,
    )


def batch_for(name, n=3):
    rng = torch.Generator().manual_seed(0)
    clean = torch.rand(n, 1, *SHAPES[name], generator=rng)
    return clean, clean + 0.1 * torch.rand(clean.shape, generator=rng), torch.arange(n)


@pytest.mark.parametrize('name', TRUNKS)
def test_the_same_as_the_published_network(name):
    "Where RESONANCE_MODELS has the weights: places in torch are what onnxruntime makes."
    from resonance_nb.network import open_session
    from resonance_nb.pretrained import CARDS

    try:
        folder = transfer.trunk_weights(name).parent
    except ResonanceError:
        pytest.skip('no published weights')
    maps = pictures(name, SONG)
    with torch.inference_mode():
        places = load_trunk(name)(torch.from_numpy(maps)).numpy()
    session = open_session(folder / CARDS[name].file)
    if name == 'efficientat':
        expected = session.run(['embedding'], {'logmel': maps})[0]
    else:
        upright = np.ascontiguousarray(maps[:, 0].transpose(0, 2, 1))
        expected, loudest = session.run(['mean_pool', 'max_pool'], {'logmel': upright})
        np.testing.assert_allclose(places.max(axis=1), loudest, atol=1e-3, rtol=1e-4)
    np.testing.assert_allclose(places.mean(axis=1), expected, atol=1e-3)


@pytest.mark.parametrize('name', TRUNKS)
@pytest.mark.parametrize('taught', TAUGHT)
def test_gradients_reach_what_is_taught_and_nothing_else(name, taught):
    torch.manual_seed(0)
    choices = Choices(name, taught, last_blocks=2, dim=8, dropouts=2)
    net = TaughtNet(choices).train()
    n_taught = {'frozen': 0, 'partly': 2, 'whole': len(net.trunk.blocks())}[taught]
    before = {k: v.clone() for k, v in net.state_dict().items()}
    optimiser = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], 1.0)
    loss, said = transfer.several_dropouts(module_of(net, recipe_for(choices)), *batch_for(name))
    loss.backward()
    assert 0 <= said['picked_right'] <= 1
    assert all(p.grad is not None for p in net.parameters() if p.requires_grad)
    assert all(p.grad is None for p in net.parameters() if not p.requires_grad)
    optimiser.step()
    still = [part for block in net.trunk.blocks()[: -n_taught or None] for part in block]
    if taught == 'whole':
        still = []
    frozen = {id(p) for part in still for p in part.parameters()}
    assert len(frozen) == sum(not p.requires_grad for p in net.parameters())
    now = net.state_dict()
    statistics = [k for k in before if k.startswith('trunk') and 'running' in k]
    assert statistics and all(torch.equal(before[k], now[k]) for k in statistics)
    same = {k for k in before if torch.equal(before[k], now[k])}
    assert {k for k, p in net.named_parameters() if not p.requires_grad} <= same
    assert 'head.weight' not in same


def test_masks_hang_on_the_step_alone():
    torch.manual_seed(0)
    choices = Choices('efficientat', dim=8)
    net = TaughtNet(choices).eval()
    loss = lambda step: float(
        transfer.several_dropouts(module_of(net, recipe_for(choices), step), *batch_for('efficientat'))[
            0
        ].detach()
    )
    first = loss(0)
    torch.rand(3)  # who draws otherwise makes no difference
    assert loss(0) == pytest.approx(first, abs=1e-6)
    assert abs(loss(1) - first) > 1e-5


@pytest.mark.parametrize('name', TRUNKS)
@pytest.mark.parametrize('pooling', ['attention', 'mean'])
def test_saved_and_loaded_it_says_the_same(tmp_path, name, pooling):
    torch.manual_seed(0)
    net = TaughtNet(Choices(name, dim=16, pooling=pooling)).eval()
    write_network(net, tmp_path / 'n.safetensors', transfer.KIND, steps=0)
    ear = listener(tmp_path / 'n.safetensors')
    with torch.inference_mode():
        expected = net.of_maps(torch.from_numpy(pictures(name, SONG))).numpy()
    vectors, times_s = ear.embed(SONG)
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    np.testing.assert_allclose(np.diff(times_s), ear.card.hop_s)
    alone = ear.embed(SONG[: round(ear.card.window_s * 16_000)])[0]
    assert alone.shape == (1, 16)
    for short in (np.ones(1), np.zeros(1), np.zeros(40_000), np.full(5_000, np.nan)):
        assert np.isfinite(ear.embed(short.astype('float32'))[0]).all()
    with pytest.raises(ResonanceError, match='without samples'):
        ear.embed(np.zeros(0, 'float32'))
    index = Transfer(ear)
    index.add('song', SONG)
    index.add('silence', np.zeros(40_000, 'float32'))
    assert [m.track_id for m in index.search(SONG[8_000:])] == ['song']
    assert index.search(np.zeros(16_000, 'float32')) == []


def test_damaged_and_missing_files_are_told_in_one_line(tmp_path, monkeypatch):
    path = tmp_path / 'n.safetensors'
    write_network(TaughtNet(Choices(dim=4)), path, transfer.KIND)
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ResonanceError, match='not those of its card'):
        listener(path)
    path.with_suffix('.json').write_text('{}')
    with pytest.raises(ResonanceError, match='not a readable network'):
        listener(path)
    monkeypatch.delenv('RESONANCE_MODELS', raising=False)
    with pytest.raises(ResonanceError, match='put musicnn_msd.safetensors into') as told:
        load_trunk('musicnn')
    assert '\n' not in str(told.value)
    (tmp_path / 'musicnn_msd.safetensors').write_bytes(b'other')
    with pytest.raises(ResonanceError, match='SHA-256'):
        load_trunk('musicnn', tmp_path)


def test_a_run_that_is_broken_off_ends_where_it_would_have_ended(tmp_path, corpus):
    choices = Choices('efficientat', 'partly', last_blocks=1, begin='random', dim=8, dropouts=2)
    changes = {'steps': 4, 'n_songs': 3, 'venues': [], 'validate_every': 2, 'warmup': 1}
    options = {'minutes': 0, 'changes': changes, 'validated': False, 'workers': 0, 'progress': False}
    run = partial(teach, choices, corpus, n_songs=4, **options)
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
    assert whole.keys() == again.keys()
    for name, value in whole.items():
        np.testing.assert_allclose(again[name], value, atol=1e-5, err_msg=name)
    with pytest.raises(ResonanceError, match='another recipe'):
        teach(
            Choices('efficientat', begin='random', dim=8), corpus, tmp_path / 'broken', n_songs=4, **options
        )
