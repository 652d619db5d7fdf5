"""The index of vectors: every kind against brute force, forgetting, merging, storing, and what happens to damaged files."""

import gc
import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from resonance_nb import codebook, core, index as module
from resonance_nb.codebook import QUANTISED, Codebook, fit_codebook
from resonance_nb.core import MissingExtra, ResonanceError
from resonance_nb.index import VectorIndex
from resonance_nb.neighbours import KINDS, choose_kind, code_bytes, recall_at

faiss = pytest.importorskip('faiss')

DIM = 64


def unit(x):
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope='module')
def songs():
    "Forty songs whose windows resemble the ones before, along few directions."
    rng = np.random.default_rng(0)
    axes = rng.standard_normal((DIM, DIM)) * np.linspace(2, 0.05, DIM)[:, None]
    walk = lambda n: np.cumsum(0.4 * rng.standard_normal((n, DIM)), axis=0) + rng.standard_normal(DIM)
    return {f's{i:02d}': unit(walk(20 + 3 * i % 50) @ axes) for i in range(40)}


@pytest.fixture(scope='module')
def queries(songs):
    x = np.concatenate([*songs.values()])
    rng = np.random.default_rng(1)
    return unit(x[rng.choice(len(x), 40, replace=False)] + 0.03 * rng.standard_normal((40, DIM)))


@pytest.fixture(scope='module')
def books(songs):
    x = np.concatenate([*songs.values()])
    return {kind: fit_codebook(x, kind) for kind in QUANTISED}


@pytest.fixture(scope='module')
def made(songs, books):
    "Makes an index of a kind that is ready at once."

    def make(kind, names=None, **options):
        found = VectorIndex(DIM, kind, 'm', codebook=books.get(kind), **options)
        found.probes = 64
        for t in songs if names is None else names:
            found.add(t, songs[t])
        return found

    return make


def brute(queries, vectors, k):
    scores = queries.astype(float) @ vectors.T.astype(float)
    rows = np.argsort(-scores, axis=1, kind='stable')[:, :k]
    return np.take_along_axis(scores, rows, axis=1), rows


def same(a, b, queries, k=10):
    "Two indexes answer alike, and with the same songs."
    assert a.track_ids == b.track_ids and np.array_equal(a.first, b.first) and len(a) == len(b)
    (sa, ra), (sb, rb) = a.search(queries, k), b.search(queries, k)
    np.testing.assert_allclose(sa, sb, atol=1e-5)
    assert (ra == rb).mean() > 0.98, 'only rows of equal scores may differ'
    if len(a):
        rows = np.arange(a.n_vectors)
        np.testing.assert_allclose(a.vectors(rows), b.vectors(rows), atol=1e-5)


@pytest.mark.parametrize('kind', KINDS)
def test_kinds_find_neighbours(made, songs, queries, kind):
    x = np.concatenate([*songs.values()])
    index = made(kind)
    exact_scores, exact_rows = brute(queries, x, 10)
    scores, rows = index.search(queries, 10)
    assert scores.dtype == np.float32 and rows.dtype == np.int64 and scores.shape == rows.shape == (40, 10)
    assert (np.diff(scores) <= 0).all() and index.trained and index.kind == kind and len(index) == 40
    assert recall_at(rows, exact_rows, exact_scores) >= {'flat': 1, 'int8': 0.97, 'hnsw': 0.97}.get(
        kind, 0.85
    )
    np.testing.assert_allclose(np.einsum('md,mkd->mk', queries, index.vectors(rows)), scores, atol=1e-4)
    song, window = index.songs_of(rows)
    lengths = [len(v) for v in songs.values()]
    numbers = np.repeat(np.arange(40), lengths)
    windows = np.concatenate([np.arange(n) for n in lengths])
    assert np.array_equal(song, numbers[rows]) and np.array_equal(window, windows[rows])
    assert index.codes == code_bytes(kind, DIM) and index.nbytes >= index.codes * len(x)


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=6),
    st.integers(0, 25),
    st.integers(1, 30),
    st.integers(0, 999),
    st.sets(st.integers(0, 5)),
)
def test_flat_is_brute_force(lengths, m, k, seed, gone):
    "With few distinct values, so that there are ties; with songs of no windows; with songs removed."
    rng = np.random.default_rng(seed)
    index = VectorIndex(4, 'flat', 'm')
    kept = {}
    for i, n in enumerate(lengths):
        kept[f's{i}'] = rng.integers(-1, 2, (n, 4)).astype(np.float32)
        index.add(f's{i}', kept[f's{i}'])
    kept = {t: x for t, x in kept.items() if len(x)}
    index.remove(out := [t for t in kept if int(t[1:]) in gone])
    kept = {t: x for t, x in kept.items() if t not in out}
    assert index.track_ids == [*kept] and len(index) == len(kept)
    x = np.concatenate([*kept.values(), np.zeros((0, 4))])
    q = rng.integers(-2, 3, (m, 4)).astype(np.float32)
    scores, rows = index.search(q, k)
    expected = brute(q, x, k)[0]
    n = min(k, len(x))
    assert (
        scores.shape == rows.shape == (m, k)
        and (rows[:, n:] == -1).all()
        and (scores[:, n:] == -np.inf).all()
    )
    np.testing.assert_array_equal(scores[:, :n], expected)
    np.testing.assert_array_equal(
        np.take_along_axis(q @ x.T.astype(np.float32), rows[:, :n], axis=1), expected
    )
    assert all(len(set(r)) == n for r in rows[:, :n].tolist())
    song, window = index.songs_of(rows)
    assert (song[:, n:] == -1).all() and (window[:, n:] == -1).all()


@pytest.mark.parametrize('kind', KINDS)
def test_empty_and_small(made, queries, songs, kind):
    index = made(kind, [])
    scores, rows = index.search(queries, 3)
    assert len(index) == 0 and (rows == -1).all() and (scores == -np.inf).all() and index.n_vectors == 0
    assert (
        index.vectors(np.zeros((0, 2), int)).shape == (0, 2, DIM)
        and index.track_ids == []
        and index.first.tolist() == [0]
    )
    index.add('silence', np.zeros((0, DIM)))
    assert len(index) == 0
    index.add('one', songs['s00'][:2])
    scores, rows = index.search(queries, 5)
    assert (np.sort(rows[:, :2], axis=1) == [0, 1]).all() and (rows[:, 2:] == -1).all()
    assert index.search(queries[:0], 5)[1].shape == (0, 5)
    index.remove('one')
    assert (index.search(queries, 5)[1] == -1).all()


@pytest.mark.parametrize('kind', KINDS)
def test_duplicates(made, songs, kind):
    index = made(kind, [])
    for i in range(5):
        index.add(f'copy {i}', songs['s05'])
    q = songs['s05'][3:4]
    n = len(songs['s05'])
    scores, rows = index.search(q, 5)
    assert np.ptp(scores) < 1e-6 and (index.songs_of(rows)[1] == index.songs_of(rows)[1][0, 0]).mean() >= (
        0.6 if kind == 'hnsw' else 1
    )
    assert (np.diff(rows[0]) > 0).all() or kind == 'hnsw', 'equal scores are listed in the order of the songs'
    assert index.n_vectors == 5 * n


@pytest.mark.parametrize('kind', KINDS)
def test_removed_is_never_added(made, songs, queries, kind):
    names = [*songs]
    gone = names[::3]
    stay = [t for t in names if t not in names[::3]]
    index = made(kind)
    never = made(kind, stay)
    index.remove(gone)
    if kind == 'hnsw':
        scores, rows = index.search(queries, 10)
        exact_scores, exact_rows = brute(queries, np.concatenate([songs[t] for t in stay]), 10)
        assert index.track_ids == stay and recall_at(rows, exact_rows, exact_scores) > 0.95
    else:
        same(index, never, queries)
    index.remove(stay[:-3])  # more than half are dead: closed up
    assert sum(index._lengths) == index.n_vectors and index.track_ids == stay[-3:]
    same(index, made(kind, stay[-3:]), queries, k=5)
    index.add(gone[0], songs[gone[0]])
    same(index, made(kind, [*stay[-3:], gone[0]]), queries, k=5)


@pytest.mark.parametrize('kind', KINDS)
def test_masks_survive(made, songs, queries, kind):
    index = made(kind)
    index.remove(['s03', 's30'])
    index.search(queries, 3)
    gc.collect()
    rows = index.search(queries, 20)[1]
    assert rows.max() < index.n_vectors and {'s03', 's30'}.isdisjoint(
        index.track_ids[s] for s in np.unique(index.songs_of(rows)[0])
    )


def test_unknown_songs_and_bad_input(made, songs, queries):
    index = made('flat')
    with pytest.raises(ResonanceError, match='already in this index'):
        index.add('s00', songs['s00'])
    with pytest.raises(ResonanceError, match='nobody is not in this index'):
        index.remove(['s01', 'nobody'])
    assert len(index) == 40, 'nothing was removed'
    bad = [
        np.full((3, DIM), np.nan),
        np.full((3, DIM), np.inf),
        np.zeros((3, DIM - 1)),
        np.zeros(DIM),
        np.full((1, DIM), 1e300),
        'x',
        [[1, 2], [3]],
    ]
    for x in bad:
        with pytest.raises(ResonanceError, match='vectors of new'):
            index.add('new', x)
        with pytest.raises(ResonanceError, match='queries'):
            index.search(x, 3)
    for k in (0, -1):
        with pytest.raises(ResonanceError, match='at least one neighbour'):
            index.search(queries, k)
    for call, rows in [(index.songs_of, [-2]), (index.songs_of, [index.n_vectors]), (index.vectors, [-1])]:
        with pytest.raises(ResonanceError, match='not all in an index'):
            call(rows)
    with pytest.raises(ResonanceError, match='a text'):
        index.add(None, songs['s00'])
    assert len(index) == 40


@pytest.mark.parametrize('kind', QUANTISED)
def test_gathered_then_trained(songs, queries, kind):
    "Flat until there are enough; adding and removing work before and after; the same songs give the same index."
    one, two = (VectorIndex(DIM, kind, 'm', train_at=700) for _ in range(2))
    for index in (one, two):
        for t in songs:
            index.add(t, songs[t])
            if t == 's05':
                index.remove(['s02'])
                assert not index.trained and index.codes == 4 * DIM
        index.remove(['s30'])
    assert one.trained and one.codes == code_bytes(kind, DIM) and one.codebook.digest == two.codebook.digest
    same(one, two, queries)
    assert len(one) == 38 and 's02' not in one.track_ids
    exact_scores, exact_rows = brute(queries, np.concatenate([songs[t] for t in one.track_ids]), 10)
    assert recall_at(one.search(queries, 10)[1], exact_rows, exact_scores) > 0.8
    with pytest.raises(ResonanceError, match='has its codebook'):
        one.train()


def test_trained_on_demand(songs):
    index = VectorIndex(DIM, 'int8', 'm')
    with pytest.raises(ResonanceError, match='at least 256'):
        index.train()
    for t in songs:
        index.add(t, songs[t])
    assert not index.trained
    index.train()
    assert index.trained
    with pytest.raises(ResonanceError, match='nothing to fit'):
        VectorIndex(DIM, 'flat', 'm').train()


@pytest.mark.parametrize('kind', KINDS)
def test_merge(made, songs, queries, kind):
    names = [*songs]
    left = made(kind, names[:25])
    right = made(kind, names[20:])
    right.remove(['s39'])
    before = right.search(queries, 5)
    left.merge(right)
    same(left, made(kind, names[:-1]), queries)
    assert np.array_equal(right.search(queries, 5)[1], before[1])
    left.merge(left)
    assert len(left) == 39
    left.retain({'s00', 's38', 'nobody'})
    same(left, made(kind, ['s00', 's38']), queries, k=5)


@pytest.mark.parametrize('into', KINDS)
def test_merge_across_kinds(made, songs, queries, into):
    for kind in KINDS:
        left = made(into, ['s00', 's01'])
        right = made(kind, ['s01', 's02'])
        left.merge(right)
        assert left.track_ids == ['s00', 's01', 's02'] and left.kind == into
        rows = np.arange(left.n_vectors - len(songs['s02']), left.n_vectors)
        assert (left.vectors(rows) * songs['s02']).sum(1).mean() > 0.9


def test_untrained_takes_the_codebook_of_the_other(made, songs, books):
    index = VectorIndex(DIM, 'pq32', 'm')
    index.add('s00', songs['s00'])
    index.merge(made('pq32', ['s01']))
    assert index.codebook.digest == books['pq32'].digest and index.trained and len(index) == 2


def test_names_must_agree(made, tmp_path):
    index = made('flat', ['s00'])
    other = VectorIndex(DIM, 'flat', 'another/model')
    with pytest.raises(ResonanceError, match='vectors of m .*an index of another/model'):
        other.merge(index)
    with pytest.raises(ResonanceError, match='cannot merge'):
        VectorIndex(DIM // 2, 'flat', 'm').merge(index)
    index.save(tmp_path)
    with pytest.raises(ResonanceError, match='vectors of m, and those of another/model'):
        VectorIndex.load(tmp_path, model_name='another/model')
    assert len(VectorIndex.load(tmp_path, model_name='m')) == 1


# ---- on disk


@pytest.mark.parametrize('mmap', [True, False], ids=['mapped', 'read'])
@pytest.mark.parametrize('kind', KINDS)
def test_round_trip(made, songs, queries, tmp_path, kind, mmap):
    index = made(kind)
    index.remove(['s07'])
    index.save(tmp_path)
    again = VectorIndex.load(tmp_path, mmap=mmap)
    same(again, index, queries)
    assert (again.kind, again.reason, again.model_name, again.probes, again.codes) == (
        kind,
        index.reason,
        'm',
        64,
        index.codes,
    )
    assert again.codebook is None and index.codebook is None or again.codebook.digest == index.codebook.digest
    again.remove(['s09'])
    index.remove(['s09'])
    same(again, index, queries)
    again.add('s07', songs['s07'])
    index.add('s07', songs['s07'])
    same(again, index, queries)
    again.save(tmp_path)
    same(VectorIndex.load(tmp_path, mmap=mmap, check=False), index, queries)
    assert sorted(p.name for p in tmp_path.iterdir()) == ['index.json', 'vectors-1.faiss']


@pytest.mark.parametrize('kind', KINDS)
def test_mapped_indexes_are_taken_over(made, songs, queries, tmp_path, kind):
    "A mapped index can be saved elsewhere, merged from and into, and outlives its file."
    made(kind, ['s00', 's01', 's02']).save(tmp_path / 'a')
    mapped = VectorIndex.load(tmp_path / 'a')
    mapped.save(tmp_path / 'b')
    made(kind, ['s05']).save(tmp_path / 'a')
    expected = made(kind, ['s00', 's01', 's02'])
    same(mapped, expected, queries)
    same(VectorIndex.load(tmp_path / 'b'), expected, queries)
    for a, b in [
        (VectorIndex.load(tmp_path / 'b'), made(kind, ['s03'])),
        (made(kind, ['s00', 's01', 's02']), made(kind, ['s03'])),
    ]:
        a.merge(b)
        same(a, made(kind, ['s00', 's01', 's02', 's03']), queries)
    into = made(kind, ['s04'])
    into.merge(VectorIndex.load(tmp_path / 'b'))
    same(into, made(kind, ['s04', 's00', 's01', 's02']), queries)


@pytest.mark.parametrize('kind', KINDS)
def test_untrained_and_empty_round_trips(songs, queries, tmp_path, kind):
    index = VectorIndex(DIM, kind, 'm', train_at=500)
    index.save(tmp_path)
    again = VectorIndex.load(tmp_path)
    assert len(again) == 0
    for t in ['s00', 's01']:
        again.add(t, songs[t])
    again.save(tmp_path)
    again = VectorIndex.load(tmp_path)
    assert again.track_ids == ['s00', 's01'] and again.train_at == 500
    for t in [*songs][2:]:
        again.add(t, songs[t])
    assert again.trained and again.kind == kind and len(again) == 40
    assert (
        recall_at(
            again.search(queries, 1)[1],
            brute(queries, again.vectors(np.arange(again.n_vectors)), 1)[1],
            brute(queries, again.vectors(np.arange(again.n_vectors)), 1)[0],
        )
        > 0.8
    )


@pytest.mark.parametrize('step', [0, 1])
@pytest.mark.parametrize('kind', ['flat', 'ivf-pq32'])
def test_a_killed_save_leaves_the_old_index(made, songs, queries, tmp_path, monkeypatch, kind, step):
    "The power fails when the first or the second file is moved into place."
    old = made(kind, ['s00', 's01'])
    old.save(tmp_path)
    moves = []
    replace = core.os.replace

    def killed(a, b):
        if len(moves) == step:
            raise KeyboardInterrupt
        moves.append(b)
        replace(a, b)

    mapped = VectorIndex.load(tmp_path)
    mapped.add('s02', songs['s02'])
    with monkeypatch.context() as m:
        m.setattr(core.os, 'replace', killed)
        with pytest.raises(KeyboardInterrupt):
            mapped.save(tmp_path)
    same(VectorIndex.load(tmp_path), old, queries)
    (tmp_path / '.vectors-0.faiss.1.part').write_bytes(b'left by kill -9')
    mapped.save(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ['index.json', 'vectors-1.faiss']
    same(VectorIndex.load(tmp_path), mapped, queries)


def resealed(folder, **changes):
    "Change the description as somebody would who knows how it is made."
    about = json.loads((folder / 'index.json').read_text()) | changes
    (folder / 'index.json').write_text(json.dumps(about | {'seal': module._seal(about)}))


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('name', ['index.json', 'vectors-0.faiss'])
def test_damage_is_noticed(made, tmp_path, kind, name):
    made(kind, ['s00', 's01', 's02']).save(tmp_path)
    whole = (tmp_path / name).read_bytes()
    rng = np.random.default_rng(3)
    broken = [
        b'',
        whole[:10],
        whole[: len(whole) // 2],
        whole[:-1],
        whole + b' x',
        b'\x00' * len(whole),
        b'{"format": "something else", "version": 1}',
        b'[]',
        b'\xff\xfe',
    ]
    for at in rng.integers(0, len(whole), 25):
        broken.append(whole[:at] + bytes([whole[at] ^ 1 << int(rng.integers(8))]) + whole[at + 1 :])
    for data in broken:
        (tmp_path / name).write_bytes(data)
        for mmap in (True, False):
            with pytest.raises(ResonanceError) as e:
                VectorIndex.load(tmp_path, mmap=mmap)
            assert '\n' not in str(e.value)
    (tmp_path / name).unlink()
    with pytest.raises(ResonanceError, match='not a readable index'):
        VectorIndex.load(tmp_path)
    (tmp_path / name).write_bytes(whole)
    assert len(VectorIndex.load(tmp_path)) == 3


def test_foreign_and_newer_descriptions(made, tmp_path):
    made('flat', ['s00', 's01']).save(tmp_path)
    whole = (tmp_path / 'index.json').read_text()
    tracks = json.loads(whole)['tracks']
    for changes, says in [
        ({'version': 2}, 'version 2; this package reads resonance vector index up to version 1'),
        ({'format': 'resonance embeddings'}, 'holds resonance embeddings'),
        ({'file': '../vectors-0.faiss'}, 'makes no sense'),
        ({'tracks': tracks[:1]}, 'do not fit its songs'),
        ({'tracks': [tracks[0], [tracks[0][0], tracks[1][1]]]}, 'makes no sense'),
        ({'tracks': [['s00', 0], tracks[1]]}, 'makes no sense'),
        ({'coded': 'int8'}, 'not a readable index'),
        ({'kind': 'hnsw'}, 'do not fit its songs'),
        ({'dim': 3}, 'do not fit its songs'),
    ]:
        (tmp_path / 'index.json').write_text(whole)
        resealed(tmp_path, **changes)
        with pytest.raises(ResonanceError, match=says):
            VectorIndex.load(tmp_path)
    with pytest.raises(ResonanceError, match='not a readable index'):
        VectorIndex.load(tmp_path / 'nowhere')


def test_no_faiss_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, 'faiss', None)
    with pytest.raises(MissingExtra, match='faiss is not installed'):
        VectorIndex(DIM, 'flat', 'm')


def test_importing_needs_no_faiss():
    code = "import sys, resonance_nb.index; sys.exit('faiss' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, '-c', code]).returncode == 0


# ---- codebooks


@pytest.mark.parametrize('kind', QUANTISED)
def test_codebooks_are_stored(songs, books, tmp_path, kind):
    path = tmp_path / 'book.npz'
    books[kind].save(path)
    again = Codebook.load(path)
    assert again.digest == books[kind].digest and (again.kind, again.dim) == (kind, DIM)
    whole = path.read_bytes()
    books[kind].save(path)
    assert path.read_bytes() == whole, 'the same codebook is the same file'
    assert fit_codebook(np.concatenate([*songs.values()]), kind).digest == books[kind].digest
    if kind != 'int8':
        assert fit_codebook(np.concatenate([*songs.values()]), kind, seed=1).digest != books[kind].digest
    for data in (
        b'',
        whole[:50],
        whole[: len(whole) // 2],
        whole[:-5],
        b'PK\x03\x04' + b'x' * 99,
        b'\x93NUMPY',
    ):
        path.write_bytes(data)
        with pytest.raises(ResonanceError, match='not a readable codebook'):
            Codebook.load(path)
    with pytest.raises(ResonanceError, match='not a readable codebook'):
        Codebook.load(tmp_path / 'nothing.npz')


def test_strange_codebooks(books, tmp_path):
    path = tmp_path / 'book.npz'
    book = books['pq32']
    about = lambda **changes: np.array(
        json.dumps(
            {'format': codebook.CODEBOOK, 'version': 1, 'kind': 'pq32', 'digest': book.digest} | changes
        )
    )
    for arrays, says in [
        ({'about': about(digest='0'), **book.arrays}, 'is damaged'),
        ({'about': about(version=2), **book.arrays}, 'version 2'),
        ({'about': about(format='x'), **book.arrays}, 'is x'),
        ({'about': about(), 'rotation': book.arrays['rotation']}, 'is damaged'),
        ({'about': about(), **book.arrays, 'centroids': book.arrays['centroids'][:5]}, 'is damaged'),
        ({'about': about(), **book.arrays, 'rotation': book.arrays['rotation'] * np.nan}, 'is damaged'),
        ({**book.arrays}, 'not a readable'),
    ]:
        np.savez(path, **arrays)
        with pytest.raises(ResonanceError, match=says):
            Codebook.load(path)
    np.savez(path, about=np.array([{}], dtype=object))
    with pytest.raises(ResonanceError, match='not a readable'):
        Codebook.load(path)


@pytest.mark.parametrize('kind', ['pq16', 'ivf-pq32'])
def test_axes_that_hold_little_may_be_left_out(songs, queries, kind, tmp_path):
    x = np.concatenate([*songs.values()])
    kept = DIM // 2
    few = fit_codebook(x, kind, axes=kept)
    all_of_them = fit_codebook(x, kind)
    turn = few.arrays['rotation']
    assert turn.shape == (kept, DIM) and few.dim == DIM and few.turn(x).shape == (len(x), kept)
    np.testing.assert_allclose(turn @ turn.T, np.eye(kept), atol=1e-5)
    seen = x - x.mean(0)
    assert (few.turn(seen) ** 2).sum() > 0.9 * (seen**2).sum()
    few.save(tmp_path / 'few.npz')
    assert Codebook.load(tmp_path / 'few.npz').digest == few.digest != all_of_them.digest
    if kind == 'pq16':
        assert few.decode(few.encode(x)).shape == (len(x), kept) and few.encode(x).shape == (len(x), 16)
    index = VectorIndex(DIM, kind, 'm', codebook=few)
    for name, vectors in songs.items():
        index.add(name, vectors)
    index.save(tmp_path / 'index')
    again = VectorIndex.load(tmp_path / 'index')
    assert again.codebook.digest == few.digest
    same(again, index, queries, k=5)
    np.testing.assert_allclose((index.vectors(np.arange(50)) * x[:50]).sum(1), 1, atol=0.25)
    with pytest.raises(ResonanceError, match='equal parts'):
        fit_codebook(x, kind, axes=kept - 1)
    for axes in (DIM + 32, -32):
        with pytest.raises(ResonanceError, match='axes|numbers'):
            fit_codebook(x, kind, axes=axes)


def test_codebooks_must_fit(books, songs):
    for dim, kind in [(DIM, 'flat'), (DIM, 'pq64'), (2 * DIM, 'pq32')]:
        with pytest.raises(ResonanceError, match='does not fit'):
            VectorIndex(dim, kind, 'm', codebook=books['pq32'])
    index = VectorIndex(DIM, 'auto', 'm', codebook=books['pq32'])
    assert index.kind == 'pq32' and 'codebook' in index.reason and index.trained
    for wrong in ('flat', 'hnsw', 'auto', 'x'):
        with pytest.raises(ResonanceError, match='has no codebook'):
            fit_codebook(songs['s00'], wrong)
    with pytest.raises(ResonanceError, match='at least 256'):
        fit_codebook(songs['s00'], 'pq32')
    with pytest.raises(ResonanceError, match='32 equal parts'):
        fit_codebook(np.ones((300, 40)), 'pq32')
    with pytest.raises(ResonanceError, match='unknown kind'):
        VectorIndex(DIM, 'tree', 'm')
    with pytest.raises(ResonanceError, match='64 equal parts'):
        VectorIndex(100, 'pq64', 'm')


@pytest.mark.parametrize('kind', QUANTISED)
def test_silence_alone_can_be_fitted(kind, capfd):
    "Vectors that are all the same, and then others."
    x = np.repeat(unit(np.ones((1, DIM))), 300, axis=0)
    index = VectorIndex(DIM, kind, 'm', train_at=300)
    index.add('silence', x)
    assert index.trained and index.search(x[:2], 5)[0].min() > 0.99
    index.add('music', unit(np.random.default_rng(0).standard_normal((9, DIM))))
    assert np.isfinite(index.vectors(np.arange(index.n_vectors))).all()
    assert 'please provide at least' not in ''.join(capfd.readouterr())


def test_the_kind_that_is_chosen(songs, queries, tmp_path):
    assert (
        choose_kind(0)[0] == 'flat'
        and choose_kind(2**21)[0] == 'flat'
        and choose_kind(2**21 + 1)[0] == 'int8'
    )
    assert choose_kind(10**7)[0] == 'ivf-pq32' and 'still too much' in choose_kind(10**9)[1]
    sizes = [KINDS.index(choose_kind(n, 2**24)[0]) for n in np.geomspace(1, 10**8, 60).astype(int)]
    assert sizes == sorted(sizes) and set(sizes) == {0, 1, 2, 3, 5}  # pq16 is never chosen: it loses much
    index = VectorIndex(DIM, 'auto', 'm', memory_bytes=50_000, train_at=300)
    seen = []
    for i, t in enumerate(songs):
        index.add(t, songs[t])
        if index.kind not in seen:
            seen.append(index.kind)
        if i == 20:
            index.save(tmp_path)
            index = VectorIndex.load(tmp_path)
    assert (
        seen == ['flat', 'int8', 'pq32']
        and index.trained
        and 'as pq32' in index.reason
        or seen == ['flat', 'int8', 'pq64', 'pq32']
    )
    x = np.concatenate([*songs.values()])
    exact_scores, exact_rows = brute(queries, x, 10)
    assert recall_at(index.search(queries, 10)[1], exact_rows, exact_scores) > 0.75
    index.retain(['s00'])
    kind = index.kind
    index.add('more', songs['s01'])
    assert index.kind == kind, 'what was coded stays coarse'


def test_recall():
    exact = np.array([[3, 1, 2], [5, -1, -1]])
    scores = np.array([[0.9, 0.5, 0.5], [0.3, -np.inf, -np.inf]])
    assert recall_at([[3, 1, 2], [5, -1, -1]], exact, scores) == 1
    assert recall_at([[3, 2], [5, 6]], exact, scores, k=2) == 1
    assert recall_at([[3, 3], [6, -1]], exact, scores, k=2) == pytest.approx(1 / 3)
    assert recall_at([[9, 3], [5, 6]], exact, scores, k=2, found_scores=[[0.5, 0.9], [0.3, 0.1]]) == 1
    assert recall_at(
        [[9, 3], [5, 6]], exact, scores, k=2, found_scores=[[0.4, 0.9], [0.3, 0.1]]
    ) == pytest.approx(2 / 3)
    assert recall_at(np.zeros((0, 3), int), np.zeros((0, 3), int), np.zeros((0, 3))) == 1
    with pytest.raises(ResonanceError, match='do not fit'):
        recall_at([[1]], exact, scores)


def test_sizes_are_those_on_disk(made, tmp_path):
    for kind in KINDS:
        index = made(kind)
        index.save(tmp_path / kind)
        size = (tmp_path / kind / 'vectors-0.faiss').stat().st_size
        assert index.nbytes == pytest.approx(size, rel=0.04, abs=1500), kind
