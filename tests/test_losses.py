"""Losses against slow loops written from the formula and against pytorch-metric-learning, in every precision; degenerate batches."""

import pytest
from hypothesis import given, settings, strategies as st

from resonance_nb.core import ResonanceError

torch = pytest.importorskip('torch')

from resonance_nb.losses import Hybrid, Temperature, nt_xent, sup_con, triplet  # noqa: E402
from resonance_nb.mining import MemoryBank  # noqa: E402

F = torch.nn.functional


def pairs(n, seed, dim=8, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    a = torch.randn(n, dim, generator=g, dtype=torch.float64)
    b = a + torch.randn(n, dim, generator=g, dtype=torch.float64)
    return F.normalize(a, dim=1).to(dtype), F.normalize(b, dim=1).to(dtype)


def slow_nt_xent(a, b, t, songs, memory=None, memory_songs=None, smoothing=0.0):
    z = torch.cat([a, b])
    n = len(a)
    total = 0.0
    for i in range(2 * n):
        j = (i + n) % (2 * n)
        others = [k for k in range(2 * n) if k != i and (k == j or songs[k % n] != songs[i % n])]
        logits = [z[i] @ z[k] / t for k in others]
        if memory is not None:
            logits += [z[i] @ m / t for m, s in zip(memory, memory_songs) if s != songs[i % n]]
        log_p = torch.stack(logits) - torch.logsumexp(torch.stack(logits), 0)
        total -= (1 - smoothing) * log_p[others.index(j)] + smoothing * log_p.mean()
    return total / (2 * n)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(0, 3), min_size=2, max_size=7),
    st.integers(0, 99),
    st.sampled_from([0.05, 0.2, 1.0]),
    st.sampled_from([0.0, 0.1]),
    st.booleans(),
)
def test_nt_xent_is_its_formula(songs, seed, t, smoothing, remembers):
    a, b = pairs(len(songs), seed)
    songs = torch.tensor(songs)
    more = {}
    if remembers:
        more = {'memory': torch.cat(pairs(3, seed + 1)), 'memory_songs': torch.tensor([0, 1, 9, 9, 2, 0])}
    expected = slow_nt_xent(a, b, t, songs, **more, smoothing=smoothing)
    assert nt_xent(a, b, t, songs, **more, smoothing=smoothing).item() == pytest.approx(
        expected.item(), rel=1e-9, abs=1e-9
    )


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16, torch.float32])
def test_other_precisions(dtype):
    a, b = pairs(16, 0)
    songs = torch.arange(16) // 2
    for loss in (
        lambda a, b: nt_xent(a, b, 0.05, songs),
        lambda a, b: sup_con(torch.cat([a, b]), torch.arange(16).repeat(2), 0.05),
        lambda a, b: triplet(a, b, songs=songs),
    ):
        got = loss(a.to(dtype), b.to(dtype))
        assert got.dtype == torch.float32
        assert got.item() == pytest.approx(loss(a.to(dtype).double(), b.to(dtype).double()).item(), rel=1e-4)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=2, max_size=9), st.integers(0, 99))
def test_sup_con_is_its_formula(labels, seed):
    z = pairs(len(labels), seed)[0]
    labels = torch.tensor(labels)
    if len(labels.unique()) == len(labels):
        with pytest.raises(ResonanceError, match='partner'):
            sup_con(z, labels)
    else:
        rows = []
        for i in range(len(z)):
            right = [k for k in range(len(z)) if k != i and labels[k] == labels[i]]
            among = torch.logsumexp(torch.stack([z[i] @ z[k] / 0.1 for k in range(len(z)) if k != i]), 0)
            rows += [sum(among - z[i] @ z[k] / 0.1 for k in right) / len(right)] if right else []
        assert sup_con(z, labels, 0.1).item() == pytest.approx(
            float(sum(rows)) / len(rows), rel=1e-9, abs=1e-9
        )


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(0, 3), min_size=2, max_size=8),
    st.integers(0, 99),
    st.sampled_from(['hard', 'semi-hard']),
)
def test_triplets_are_their_formula(songs, seed, mining):
    a, b = pairs(len(songs), seed)
    terms = []
    for i in range(len(songs)):
        right = ((a[i] - b[i]) ** 2).sum()
        wrong = sorted(((a[i] - b[k]) ** 2).sum() for k in range(len(songs)) if songs[k] != songs[i])
        beyond = [w for w in wrong if w > right]
        if wrong:
            terms.append(
                max(0.0, float(right - (beyond[0] if mining == 'semi-hard' and beyond else wrong[0]) + 0.3))
            )
    if terms:
        assert triplet(a, b, margin=0.3, mining=mining, songs=torch.tensor(songs)).item() == pytest.approx(
            sum(terms) / len(terms), abs=1e-9
        )
    else:
        with pytest.raises(ResonanceError, match='two songs'):
            triplet(a, b, margin=0.3, mining=mining, songs=torch.tensor(songs))


def test_a_batch_with_nothing_to_be_wrong_about():
    a, b = pairs(1, 0)
    with pytest.raises(ResonanceError, match='at least two pairs'):
        nt_xent(a, b)
    a, b = pairs(3, 0)
    assert nt_xent(a, b, 0.1, torch.zeros(3, dtype=torch.long)).item() == pytest.approx(0)
    with pytest.raises(ResonanceError, match='unknown mining'):
        triplet(a, b, mining='soft')


def test_the_right_ones_come_nearer():
    a, b = pairs(8, 1)
    before = (a * b).sum(1).mean()
    for loss in (
        lambda a, b: nt_xent(a, b),
        lambda a, b: triplet(a, b),
        lambda a, b: sup_con(torch.cat([a, b]), torch.arange(8).repeat(2)),
    ):
        x = a.clone().requires_grad_()
        loss(F.normalize(x, dim=1), b).backward()
        assert ((F.normalize(a - 0.05 * x.grad / x.grad.norm(), dim=1) * b).sum(1).mean() > before).item()


def test_temperature_keeps_its_limits():
    t = Temperature(0.05, learned=True, limits=(0.02, 0.5))
    with torch.no_grad():
        t.log_inverse.fill_(50)
    assert t().item() == pytest.approx(0.02)
    assert not list(p for p in Temperature().parameters() if p.requires_grad)
    with pytest.raises(ResonanceError):
        Temperature(5.0)


def test_hybrid_learns_songs():
    torch.manual_seed(0)
    hybrid = Hybrid(8, 4, alpha=1.0)
    songs = torch.arange(8) % 4
    a, b = pairs(8, 2, dtype=torch.float32)
    first = hybrid(a, b, songs).item()
    optimiser = torch.optim.SGD(hybrid.parameters(), 5.0)
    for _ in range(50):
        optimiser.zero_grad()
        hybrid(a, b, songs).backward()
        optimiser.step()
    assert hybrid(a, b, songs).item() < first - 0.5


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=6), st.integers(1, 12))
def test_memory_keeps_the_newest(batches, size):
    memory = MemoryBank(size)
    seen = []
    for i, n in enumerate(batches):
        memory.add(torch.full((n, 2), float(i)), torch.full((n,), i))
        seen += [i] * n
    assert memory.songs.tolist() == seen[-size:] and memory.vectors[:, 0].tolist() == [
        float(x) for x in seen[-size:]
    ]
