"""Losses of answers and of teachers against slow loops, in every precision; degenerate batches and slopes."""

import math

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from resonance_nb.core import ResonanceError

torch = pytest.importorskip('torch')

from resonance_nb import feel_losses  # noqa: E402
from resonance_nb.raters import answer_chances, pair_squares  # noqa: E402

F = torch.nn.functional


def triplets(n, seed, dim=6, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    z = F.normalize(torch.randn(n, 3, dim, generator=g, dtype=torch.float64), dim=2)
    return z.to(dtype), torch.randint(3, (n,), generator=g)


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 6), st.integers(0, 99), st.sampled_from([0.1, 0.7, 3.0]), st.sampled_from([0.0, 0.2, 1.0])
)
def test_odd_one_out_is_its_formula_and_numpy_s(n, seed, scale, lapse):
    z, odd = triplets(n, seed)
    weights = torch.rand(n, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.1
    ours = feel_losses.odd_one_out(z, odd, scale=scale, lapse=lapse, weights=weights).item()
    total = 0.0
    for (a, b, c), o, w in zip(z, odd, weights):
        d = [float((w * (p - q) ** 2).sum().sqrt()) for p, q in ((b, c), (a, c), (a, b))]
        p = math.exp(-d[int(o)] / scale) / sum(math.exp(-x / scale) for x in d)
        total -= math.log((1 - lapse) * p + lapse / 3)
    assert ours == pytest.approx(total / n, rel=1e-6)
    squares = pair_squares(z.reshape(-1, 6).numpy(), np.arange(3 * n).reshape(n, 3))
    chances = answer_chances(squares, weights.numpy() / scale**2, lapse)
    assert ours == pytest.approx(-np.log(chances[np.arange(n), odd.numpy()]).mean(), rel=1e-6)


@pytest.mark.parametrize('tail', feel_losses.TAILS)
def test_slopes(tail):
    z, odd = triplets(3, 1)
    loss = lambda x: feel_losses.odd_one_out(x, odd, scale=0.8, tail=tail, lapse=0.1)
    assert torch.autograd.gradcheck(loss, z.requires_grad_())


@pytest.mark.parametrize('tail', feel_losses.TAILS)
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_equal_songs_are_dice_and_have_a_finite_slope(tail, dtype):
    z = torch.ones(4, 3, 8, dtype=dtype, requires_grad=True)
    loss = feel_losses.odd_one_out(z, torch.tensor([0, 1, 2, 0]), tail=tail)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(3), abs=1e-4) and torch.isfinite(z.grad).all()


def test_impossible_answers_cost_a_finite_price():
    far = torch.tensor([[[0.0], [1e4], [1e4]]], requires_grad=True)
    loss = feel_losses.odd_one_out(far, torch.tensor([1]), scale=0.01)
    loss.backward()
    assert loss.item() == pytest.approx(-math.log(0.05 / 3), rel=1e-3) and torch.isfinite(far.grad).all()


def test_every_rater_may_have_a_lapse_of_their_own():
    z, odd = triplets(2, 3)
    each = [
        feel_losses.odd_one_out(z[i : i + 1], odd[i : i + 1], lapse=e).item()
        for i, e in enumerate((0.0, 0.5))
    ]
    both = feel_losses.odd_one_out(z, odd, lapse=torch.tensor([0.0, 0.5]))
    assert both.item() == pytest.approx(np.mean(each))


def test_the_order_of_the_three_does_not_matter():
    z, odd = triplets(5, 4)
    for order in ([1, 2, 0], [2, 1, 0]):
        where = torch.tensor([order.index(int(o)) for o in odd])
        for loss in (feel_losses.odd_one_out, feel_losses.odd_margin):
            assert loss(z[:, order], where).item() == pytest.approx(loss(z, odd).item())


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_relations_are_nought_for_the_same_neighbours_only(dtype):
    z = torch.randn(9, 5, generator=torch.Generator().manual_seed(0), dtype=dtype)
    assert abs(feel_losses.relational_distillation(3 * z, z).item()) < 1e-5
    assert feel_losses.relational_distillation(z.flip(0), z).item() > 0.1
    z.requires_grad_()
    feel_losses.relational_distillation(z, z.detach().flip(0)).backward()
    assert torch.isfinite(z.grad).all()


def test_alarms_of_degenerate_batches():
    assert 'look alike' in feel_losses.collapse_alarm(torch.ones(5, 8))
    line = torch.linspace(-1, 1, 9)[:, None] * torch.ones(9, 8)
    assert 'directions are used' in feel_losses.collapse_alarm(line)
    rank = feel_losses.spread_of(torch.ones(5, 8)).effective_rank
    assert rank == pytest.approx(1.0)
    with pytest.raises(ResonanceError, match='fewer than three'):
        feel_losses.relational_distillation(torch.ones(2, 4), torch.ones(2, 4))
