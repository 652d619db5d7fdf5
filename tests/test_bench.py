"""The bench against references (SciPy, scikit-learn, slow loops), as properties, and at its limits."""

import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resonance_nb import bench, figures, metrics, openset, timing
from resonance_nb.clips import add_crowd_lufs, crowd_of, excerpt, in_venue, measured_snr_db, render
from resonance_nb.queries import make_protocol, make_queries, Protocol, query_set_hash, QuerySet
from resonance_nb.core import Match, ResonanceError, rng_for

RATE = 16_000
settings.register_profile('bench', max_examples=60, deadline=None, derandomize=True)
settings.load_profile('bench')


class Memory:
    "A corpus in memory: noise-like songs and crowds."

    name = 'memory'

    def __init__(self, lengths, groups=None, crowds=3, edit=None):
        ids = [f's{i:02}' for i in range(len(lengths))]
        draw = lambda *key, s: (0.1 * rng_for(0, *key).standard_normal(round(s * RATE))).astype(np.float32)
        self.samples = {i: draw(i, s=s) for i, s in zip(ids, lengths)} | {
            f'c{j}': draw('c', j, s=15) for j in range(crowds)
        }
        if edit:
            edit(self.samples)
        self.music = pd.DataFrame(
            {'duration_s': [float(s) for s in lengths], 'version_group': groups or [''] * len(ids)},
            pd.Index(ids, name='id'),
        )
        self.noise = pd.DataFrame(
            {'duration_s': 15.0, 'category': 'crowd', 'concert_use': 'core'},
            pd.Index([f'c{j}' for j in range(crowds)], name='id'),
        )

    def split(self, kind, name):
        return getattr(self, kind)

    def load(self, kind, id, start_s=0.0, duration_s=None):
        x = self.samples[id][round(start_s * RATE) :]
        return x if duration_s is None else x[: round(duration_s * RATE)]


class Told:
    "A recogniser that is told through `degrade` what is played, and answers as `reply(query)` says."

    name = 'told'
    accept_confidence = 0.5

    def __init__(self, reply):
        self.reply = reply
        self.query = None

    def degrade(self, music, query, corpus):
        self.query = query
        return music

    def add(self, track_id, samples): ...

    def save(self, folder):
        (folder / 'index.bin').write_bytes(b'12345')

    def search(self, samples, k=5):
        return self.reply(self.query)


@pytest.fixture(scope='module')
def corpus():
    return Memory([12.0] * 9)


@pytest.fixture(scope='module')
def plan(corpus):
    return make_protocol(corpus)


@pytest.fixture(scope='module')
def queries(corpus, plan):
    return make_queries(corpus, plan, durations_s=(1, 3, 10), snr_db=(None, 5, -5))


def frame(kinds, ranks, confidences, system='a', **more):
    "Rows as `run` gives them."
    n = len(kinds)
    df = pd.DataFrame(
        {
            'system': system,
            'k': 5,
            'query_id': [f'q{i}' for i in range(n)],
            'kind': kinds,
            'track_id': [f't{i}' for i in range(n)],
            'noise_key': [f't{i}/0' for i in range(n)],
            'duration_s': 5.0,
            'snr_db': 0.0,
            'rank': ranks,
            'confidence': confidences,
            'top_id': 'x',
            'score': confidences,
            'lead': confidences,
            'offset_error_s': 0.0,
            'elapsed_ms': 1.0,
        }
    )
    df['accepted'] = df.confidence >= 0.5
    return df.assign(**more)


# --- shares and intervals


@given(
    st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))),
    st.sampled_from([0.8, 0.95, 0.99]),
)
def test_wilson_is_scipys(kn, level):
    from scipy.stats import binomtest

    k, n = kn
    ci = binomtest(k, n).proportion_ci(level, method='wilson')
    assert metrics.wilson(k, n, level) == pytest.approx((k / n, ci.low, ci.high), abs=1e-12)


@given(st.integers(1, 300))
def test_wilson_order_and_symmetry(n):
    rows = [metrics.wilson(k, n) for k in range(n + 1)]
    assert all(0 <= low <= p <= high <= 1 for p, low, high in rows)
    assert all(a[1] < b[1] and a[2] < b[2] for a, b in zip(rows, rows[1:]))
    assert rows[0][2] == pytest.approx(1 - rows[-1][1])


def test_wilson_refuses_and_knows_nothing():
    with pytest.raises(ResonanceError, match='k=3, n=2'):
        metrics.wilson(3, 2)
    value, low, high = metrics.wilson(0, 0)
    assert math.isnan(value) and (low, high) == (0, 1)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=200))
def test_mcnemar_is_the_binomial_test(pairs):
    from scipy.stats import binomtest

    a = [x for x, _ in pairs]
    b = [y for _, y in pairs]
    n10 = sum(x and not y for x, y in pairs)
    n01 = sum(y and not x for x, y in pairs)
    expected = binomtest(n10, n10 + n01).pvalue if n10 + n01 else 1.0
    assert metrics.mcnemar(a, b) == pytest.approx(expected, rel=1e-9)
    assert metrics.mcnemar(a, b) == metrics.mcnemar(b, a)


def test_mcnemar_large_and_mismatched():
    assert 0 < metrics.mcnemar([True] * 3000 + [False] * 2000, [False] * 3000 + [True] * 2000) < 1e-40
    with pytest.raises(ResonanceError, match='same queries'):
        metrics.mcnemar([1, 0], [1])


@given(st.integers(2, 30), st.integers(1, 4), st.integers(0, 10_000))
def test_bootstrap_is_the_loop(tracks, excerpts, seed):
    rng = np.random.default_rng(seed)
    unit = np.concatenate([np.arange(tracks), rng.integers(0, tracks, tracks * (excerpts - 1))])
    df = pd.DataFrame({'track_id': [f't{u:03}' for u in unit], 'v': rng.random(len(unit))})
    draws = np.random.default_rng(7).multinomial(tracks, np.full(tracks, 1 / tracks), size=50)
    lists = [df.v[unit == t].tolist() for t in range(tracks)]
    means = [np.mean([v for t, c in enumerate(d) for v in lists[t] * c]) for d in draws]
    value, low, high = metrics.bootstrap_by_track(df, 'v', n_resamples=50, rng=np.random.default_rng(7))
    assert (low, high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=1e-9)
    assert value == pytest.approx(df.v.mean()) and low <= high
    assert metrics.bootstrap_by_track(df, lambda d: d.v, n_resamples=50, rng=np.random.default_rng(7)) == (
        value,
        low,
        high,
    )


def test_bootstrap_without_disagreement_stays_honest():
    df = pd.DataFrame({'track_id': ['a', 'a', 'b', 'b', 'c'], 'v': 1.0})
    value, low, high = metrics.bootstrap_by_track(df, 'v')
    assert (value, high) == (1, 1) and low == pytest.approx(metrics.wilson(3, 3)[1])
    assert metrics.bootstrap_by_track(df.assign(v=2.0), 'v', limits=(1, 6))[1:] == pytest.approx(
        (2 - (1 - low), 2 + 4 * (1 - low))
    )
    assert math.isnan(metrics.bootstrap_by_track(df[:0], 'v')[0])


def test_bootstrap_chunks_do_not_change_the_draws_meaning():
    n = 4000  # several chunks
    df = pd.DataFrame({'track_id': [f't{i}' for i in range(n)], 'v': np.arange(n) % 2})
    _, low, high = metrics.bootstrap_by_track(df, 'v', n_resamples=1500)
    assert (low, high) == pytest.approx(metrics.wilson(n // 2, n)[1:], abs=2e-3)


def test_rate_bound_is_the_exact_poisson_one():
    from scipy.stats import chi2

    for events in (0, 1, 4, 50):
        assert metrics.rate_upper_bound(events, 8) == pytest.approx(chi2.ppf(0.95, 2 * events + 2) / 2 / 8)
    assert metrics.rate_upper_bound(0, 100) == pytest.approx(3 / 100, rel=0.002)
    with pytest.raises(ResonanceError):
        metrics.rate_upper_bound(0, 0)


# --- protocol


@given(
    st.lists(st.sampled_from(['', '', '', 'a', 'b', 'c', None, float('nan')]), min_size=3, max_size=40),
    st.integers(0, 50),
    st.sampled_from([0, 0.2, 1 / 3, 0.5]),
)
def test_protocol_divides_and_does_not_leak(groups, seed, fraction):
    c = Memory.__new__(Memory)
    ids = [f's{i:02}' for i in range(len(groups))]
    c.name = 'hyp'
    c.music = pd.DataFrame({'duration_s': 20.0, 'version_group': groups}, ids)
    c.split = lambda kind, name: c.music[::2]  # the played ones; versions may lie in other splits
    p = make_protocol(c, unknown_fraction=fraction, seed=seed)
    played = set(c.music.index[::2])
    song = dict(zip(ids, [g if isinstance(g, str) and g else i for i, g in zip(ids, groups)]))
    assert set(p.known_ids) | set(p.unknown_ids) == played and not set(p.known_ids) & set(p.unknown_ids)
    assert set(p.known_ids) <= set(p.catalogue_ids)
    assert not {song[t] for t in p.unknown_ids} & {song[t] for t in p.catalogue_ids}
    others = {t for t in ids if song[t] not in {song[u] for u in p.unknown_ids}}
    assert set(p.catalogue_ids) == others
    assert len(p.unknown_ids) <= round(fraction * len(played))
    c.music = c.music[::-1]
    c.split = lambda kind, name: c.music[c.music.index.isin(played)]
    assert make_protocol(c, unknown_fraction=fraction, seed=seed) == p  # the table's order does not matter
    assert Protocol.from_json(p.to_json()) == p


def test_protocol_share_seed_and_errors(corpus):
    assert len(make_protocol(corpus).unknown_ids) == 3
    assert len({make_protocol(corpus, seed=s).unknown_ids for s in range(10)}) > 5
    with pytest.raises(ResonanceError, match='unknown_fraction'):
        make_protocol(corpus, unknown_fraction=1)
    with pytest.raises(ResonanceError, match='no known song'):
        make_protocol(Memory([]))


# --- queries and their sound


def test_queries_are_nested_and_paired(corpus, plan, queries):
    assert len({q.query_id for q in queries}) == len(queries) == 9 * 9 + 3 * 3
    by_song = {}
    for q in queries:
        if q.kind != 'noise':
            by_song.setdefault(q.track_id, set()).add((q.start_s, q.span_s, q.noise_key))
            assert 0 <= q.start_s <= 12 - q.span_s and q.kind == (
                'known' if q.track_id in plan.known_ids else 'unknown'
            )
    assert all(len(places) == 1 for places in by_song.values())
    starts = np.array([next(iter(p))[0] for p in by_song.values()])
    # on no frame
    assert (
        len(set(starts)) == 9 and (np.abs(starts * RATE / 256 - np.round(starts * RATE / 256)) > 1e-6).all()
    )
    assert queries.skipped == {}


def test_queries_are_deterministic_and_named(corpus, plan, queries, tmp_path):
    # another order and type, same set
    again = make_queries(corpus, plan, durations_s=(10.0, 3, 1), snr_db=(-5, 5.0, None))
    assert query_set_hash(again) == query_set_hash(queries) == query_set_hash(queries[::-1])
    other = make_queries(corpus, plan, durations_s=(1, 3, 10), snr_db=(None, 5, -5), seed=1)
    assert query_set_hash(other) != query_set_hash(queries)
    queries.save(tmp_path / 'q.json')
    loaded = QuerySet.load(tmp_path / 'q.json')
    assert loaded == queries and query_set_hash(loaded) == query_set_hash(queries)
    for text in ('{', '[]', '{"queries": [{"a": 1}], "skipped": {}}'):
        (tmp_path / 'bad.json').write_text(text)
        with pytest.raises(ResonanceError, match='not a saved query set'):
            QuerySet.load(tmp_path / 'bad.json')


def test_excerpts_are_different_places(corpus, plan):
    qs = make_queries(corpus, plan, durations_s=(2,), snr_db=(0,), excerpts=3, n_noise_only=0)
    assert (
        len(qs) == 27
        and len({(q.track_id, q.start_s) for q in qs}) == 27
        and len({q.noise_key for q in qs}) == 27
    )


def test_max_tracks_keeps_the_proportion(corpus, plan):
    qs = make_queries(corpus, plan, durations_s=(1,), snr_db=(None,), max_tracks=4)
    assert [sum(q.kind == kind for q in qs) for kind in ('known', 'unknown', 'noise')] == [4, 2, 2]
    whole = make_queries(corpus, plan, durations_s=(1,), snr_db=(None,))
    assert {q for q in qs if q.kind != 'noise'} <= set(whole)


def test_short_songs_serve_short_clips():
    c = Memory([12, 4.5, 0.5, 3.0])
    p = make_protocol(c, unknown_fraction=0)
    qs = make_queries(c, p, durations_s=(1, 3, 5, 10), snr_db=(None,), n_noise_only=0)
    assert {(q.track_id, q.duration_s) for q in qs} == {('s00', d) for d in (1, 3, 5, 10)} | {
        ('s01', 1),
        ('s01', 3),
        ('s03', 1),
        ('s03', 3),
    }
    assert qs.skipped == {'too short for 5 s': 2, 'too short for 10 s': 2, 'no audible excerpt': 1}
    assert all(len(render(q, c)) == q.duration_s * RATE for q in qs)


def test_silence_and_lying_tables_are_met():
    def edit(samples):
        samples['s00'][: 8 * RATE] = 0  # silent but for its end
        samples['s01'] *= np.float32(1e-4)  # far too soft to hear
        samples['s02'] = samples['s02'][: 4 * RATE]  # shorter than its table says

    c = Memory([12, 12, 12], edit=edit)
    qs = make_queries(
        c, make_protocol(c, unknown_fraction=0), durations_s=(1, 2), snr_db=(0,), n_noise_only=0
    )
    starts = {q.track_id: q.start_s for q in qs}
    assert set(starts) == {'s00', 's02'} and starts['s00'] > 7 and starts['s02'] <= 2
    assert qs.skipped == {'no audible excerpt': 1}


@pytest.mark.parametrize(
    'bad',
    [
        dict(durations_s=()),
        dict(durations_s=(0,)),
        dict(snr_db=()),
        dict(excerpts=0),
        dict(snr_db=(math.inf,)),
        dict(snr_db=(math.nan,)),
    ],
)
def test_senseless_query_sets_are_refused(corpus, plan, bad):
    with pytest.raises(ResonanceError):
        make_queries(corpus, plan, **bad)


@given(st.floats(-30, 40), st.floats(0.01, 10), st.integers(0, 100))
def test_snr_is_measured_in_the_mixture(snr, gain, seed):
    m, n = np.random.default_rng(seed).standard_normal((2, 4000))
    n *= 10 ** (-snr / 20) * np.sqrt((m @ m) / (n @ n))
    assert measured_snr_db(gain * (m + n), m, 7 * n) == pytest.approx(snr, abs=1e-6)


def test_the_sound_of_a_query_has_its_snr(corpus, queries):
    checked = 0
    for q in queries:
        x = render(q, corpus)
        assert x.dtype == np.float32 and x.shape == (round(q.duration_s * RATE),) and np.abs(x).max() <= 1
        if q.kind == 'noise':
            assert np.abs(x).max() > 0
        elif q.snr_db is not None:
            music = excerpt(q, corpus, None)
            crowd = crowd_of(q, corpus, None)
            assert measured_snr_db(x, music, crowd) == pytest.approx(q.snr_db, abs=0.1)
            checked += 1
        else:
            assert np.array_equal(x, corpus.load('music', q.track_id, q.start_s, q.duration_s))
    assert checked == 9 * 6


def test_a_missed_snr_stops_the_bench(corpus, queries, monkeypatch):
    from resonance_nb import mix

    real = mix.mix_at_snr
    monkeypatch.setattr(mix, 'mix_at_snr', lambda m, n, snr, *a, **k: real(m, n, snr + 0.2, *a, **k))
    with pytest.raises(ResonanceError, match='asked for'):
        render(next(q for q in queries if q.snr_db == 5), corpus)


def test_loudness_may_take_the_place_of_rms(corpus, queries):
    from resonance_nb.audio import lufs

    for q in [q for q in queries if q.snr_db is not None][::9]:
        x = render(q, corpus, degrade=add_crowd_lufs)
        music = excerpt(q, corpus, None)
        crowd = crowd_of(q, corpus, None)
        assert measured_snr_db(x, music, crowd, lufs) == pytest.approx(q.snr_db, abs=0.1)


def test_rendering_does_not_depend_on_order_or_cache(corpus, queries):
    cache = {}
    picked = [queries[i] for i in (3, 40, 4, 80, 3, 5, 88)]
    one = queries[3]
    picked += [
        one,
        replace(one, track_id=queries[40].track_id),
        replace(one, seed=1),
        replace(one, noise_key='x'),
        replace(one, start_s=0.0),
    ]
    for q in picked:
        assert np.array_equal(render(q, corpus, cache), render(q, corpus))
    assert len(cache) == 2


def test_shorter_clips_lie_inside_longer_ones(corpus, queries):
    long = next(q for q in queries if q.duration_s == 10 and q.snr_db == 5)
    short = next(q for q in queries if q.query_id == long.query_id.replace('/10s', '/3s'))
    for part in (excerpt, crowd_of):
        a = part(short, corpus, None)
        b = part(long, corpus, None)
        assert len(b) > len(a) and np.array_equal(a, b[: len(a)])


# --- asking


def test_run_rows_follow_the_queries(corpus, plan, queries):
    def reply(q):
        if q.kind != 'known':
            return []
        right = Match(q.track_id, 3.0, q.start_s + 0.25, 0.9)
        wrong = Match('other', 5.0, 0.0, 0.4)
        return [right] if q.duration_s == 1 else [wrong, right]

    told = Told(reply)
    df = bench.run(told, queries, corpus, progress=False, degrade=told.degrade)
    assert df.query_id.tolist() == [q.query_id for q in queries]
    known = df[df.kind == 'known']
    other = df[df.kind != 'known']
    assert (
        known['rank'] == np.where(known.duration_s == 1, 1, 2)
    ).all() and known.offset_error_s.to_numpy() == pytest.approx(0.25)
    assert (known.lead == np.where(known.duration_s == 1, 3, 2)).all() and (
        known.accepted == (known.duration_s == 1)
    ).all()
    assert (
        other['rank'].isna().all()
        and other.confidence.isna().all()
        and not other.accepted.any()
        and (other.top_id == '').all()
    )
    assert (df[df.kind == 'noise'].snr_db == -np.inf).all() and set(known.snr_db) == {np.inf, 5, -5}
    assert (df.elapsed_ms >= 0).all() and (df.k == 5).all() and (df.system == 'told').all()


def test_answers_beyond_k_do_not_count(corpus, queries):
    told = Told(
        lambda q: [Match('x', 2.0, 0, 0.1), Match(q.track_id, 1.0, 0, 0.1)] if q.kind == 'known' else []
    )
    df = bench.run(told, queries[:9], corpus, k=1, progress=False, degrade=told.degrade)
    assert df[df.kind == 'known']['rank'].isna().all()


def test_a_leaking_catalogue_is_noticed(corpus, queries):
    told = Told(lambda q: [Match(q.track_id, 1.0, 0.0, 0.9)])
    with pytest.raises(ResonanceError, match='leaks'):
        bench.run(told, queries, corpus, progress=False, degrade=told.degrade)


def test_noise_alone_reaches_degrade_as_silence(corpus, queries):
    seen = {}

    def degrade(music, query, corpus):
        seen.setdefault(query.kind, []).append(float(np.abs(music).max()))
        return music

    bench.run(Told(lambda q: []), queries, corpus, progress=False, degrade=degrade)
    assert set(seen['noise']) == {0.0} and min(seen['known'] + seen['unknown']) > 0


def test_index_counts(corpus, plan):
    cost = bench.index(Told(lambda q: []), corpus, plan.catalogue_ids, progress=False)
    assert (
        (cost['tracks'], cost['bytes'], cost['audio_s']) == (6, 5, 72.0)
        and cost['bytes_per_s'] == 5 / 72
        and cost['x_realtime'] > 0
    )
    assert 'bytes' not in bench.index(
        Told(lambda q: []), corpus, plan.catalogue_ids, progress=False, measure_disk=False
    )


def test_a_corpus_on_disk(tmp_path):
    from resonance_nb.audio import save
    from resonance_nb.corpora import write_corpus

    rows = {'music': [], 'noise': []}
    for kind, count, seconds in (('music', 12, 5), ('noise', 12, 8)):
        (tmp_path / kind).mkdir()
        for i in range(count):
            x = (0.1 * rng_for(3, kind, i).standard_normal(seconds * RATE)).astype(np.float32)
            save(tmp_path / kind / f'{kind}{i}.wav', x)
            rows[kind].append(
                {
                    'id': f'{kind}{i}',
                    'kind': kind,
                    'file': f'{kind}/{kind}{i}.wav',
                    'duration_s': seconds,
                    'licence': 'CC0',
                }
            )
        for row in rows['noise']:
            row |= {'category': 'crowd', 'concert_use': 'core'}
    disk = write_corpus(tmp_path, pd.DataFrame(rows['music']), pd.DataFrame(rows['noise']))
    split = next(s for s in ('train', 'test', 'validation') if len(disk.split('music', s)) >= 3)
    quiet = next(s for s in ('train', 'test', 'validation') if len(disk.split('noise', s)))
    p = make_protocol(disk, split)
    qs = make_queries(disk, p, snr_db=(None, 0), durations_s=(1, 2), noise_split=quiet)
    sounds = [render(q, disk) for q in qs]
    assert len(qs) > 0 and all(len(x) == q.duration_s * RATE for x, q in zip(sounds, qs))


# --- closed set


def test_summarise_is_the_definition():
    ranks = [1, 1, 2, 5, np.nan, 3]
    df = pd.concat([frame(['known'] * 6, ranks, [0.9] * 6), frame(['unknown'] * 2, [np.nan] * 2, [0.9] * 2)])
    s = metrics.summarise(df, []).iloc[0]
    assert (s.n, s.tracks) == (6, 6)
    assert s[['top1', 'top5', 'mrr', 'mean_rank']].tolist() == pytest.approx(
        [2 / 6, 5 / 6, np.mean([1, 1, 1 / 2, 1 / 5, 0, 1 / 3]), 18 / 6]
    )
    assert (s.top1_low, s.top1_high) == metrics.wilson(2, 6)[1:]
    assert s.mrr_low < s.mrr < s.mrr_high and s.mean_rank_low < s.mean_rank < s.mean_rank_high


def test_repeated_tracks_widen_the_interval():
    one = frame(['known'] * 40, [1, np.nan] * 20, [0.9] * 40)
    five = pd.concat([one.assign(query_id=one.query_id + f'/{j}') for j in range(5)])
    a = metrics.summarise(one, []).iloc[0]
    b = metrics.summarise(five, []).iloc[0]
    independent = metrics.wilson(100, 200)
    assert (b.n, b.tracks) == (200, 40) and b.top1_high - b.top1_low > 1.8 * (independent[2] - independent[1])
    assert (b.top1_low, b.top1_high) == pytest.approx((a.top1_low, a.top1_high), abs=0.03)


def test_systems_and_cells_are_kept_apart():
    a, b = (frame(['known'] * 4, r, [0.9] * 4, system=s) for s, r in (('a', [1.0] * 4), ('b', [2.0] * 4)))
    s = metrics.summarise(pd.concat([a, b]))
    assert s.system.tolist() == ['a', 'b'] and s.top1.tolist() == [1, 0] and s.mean_rank.tolist() == [1, 2]
    for one_at_a_time in (openset.open_set, openset.false_accepts_at_default, openset.accepted_correct_at):
        with pytest.raises(ResonanceError, match='one system'):
            one_at_a_time(pd.concat([a, b, a.assign(kind='unknown')]))
    c = metrics.cmc(pd.concat([a, b]), max_rank=2)
    assert c.system.tolist() == ['a', 'a', 'b', 'b'] and c.value.tolist() == [1, 1, 0, 1] and (c.n == 4).all()


def test_cmc_ends_and_bounds():
    df = frame(['known'] * 5, [1, 2, 2, 5, np.nan], [0.9] * 5)
    c = metrics.cmc(df)
    assert (
        c.value.tolist() == pytest.approx([0.2, 0.6, 0.6, 0.6, 0.8])
        and (c.low <= c.value).all()
        and (c.value <= c.high).all()
    )
    assert c.value[0] == metrics.summarise(df, []).top1[0] and c.value[4] == metrics.summarise(df, []).top5[0]
    with pytest.raises(ResonanceError, match='only 5'):
        metrics.cmc(df, max_rank=6)


def test_compare_needs_the_same_questions():
    a = frame(['known'] * 6, [1, 1, 1, 1, 1, np.nan], [0.9] * 6)
    b = frame(['known'] * 6, [2, 1, 2, 2, 2, 1], [0.9] * 6, system='b')
    row = metrics.compare(a, b[::-1]).iloc[0]
    assert (row.only_a, row.only_b, row.n) == (4, 1, 6) and row.p == pytest.approx(
        metrics.mcnemar([1] * 5 + [0], [0, 1, 0, 0, 0, 1])
    )
    assert (
        row.difference == pytest.approx(0.5)
        and row.difference_low < 0.5 < row.difference_high
        and row.p_holm == row.p
    )
    for other in (b[1:], b.assign(query_id='q0'), pd.concat([b, b[:1]])):
        with pytest.raises(ResonanceError, match='same known queries'):
            metrics.compare(a, other)


def test_holm_by_hand():
    assert metrics.holm([0.01, 0.04, 0.03, 0.9]) == pytest.approx([0.04, 0.09, 0.09, 0.9])
    assert metrics.holm([0.5, 0.6]).max() <= 1


# --- open set

scores = st.lists(
    st.tuples(
        st.sampled_from(['known', 'unknown', 'noise']),
        st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.5001, 0.9, 1.0]),
    ),
    min_size=2,
    max_size=60,
)


@given(scores.filter(lambda rows: {'known'} < {k for k, _ in rows}))
def test_open_set_is_sklearns_roc(rows):
    from sklearn.metrics import roc_curve

    kinds, conf = zip(*rows)
    df = frame(kinds, np.where(np.array(kinds) == 'known', 1.0, np.nan), conf)
    far, tpr, thresholds = roc_curve(np.array(kinds) == 'known', conf, drop_intermediate=False)
    roc = openset.open_set(df)
    assert np.allclose(
        roc[['threshold', 'false_accept_rate', 'correct_accept_rate']],
        np.column_stack([thresholds, far, tpr]),
    )
    assert (roc.misidentified_rate == 0).all()


@given(scores.filter(lambda rows: {k for k, _ in rows} - {'known'}), st.sampled_from([0, 0.01, 0.1, 0.5, 1]))
def test_threshold_keeps_the_rate_and_is_the_lowest(rows, far):
    kinds, conf = zip(*rows)
    df = frame(kinds, 1.0, conf)
    t = openset.tune_threshold(df, far=far)
    others = df.confidence[df.kind != 'known'].to_numpy()
    assert (others >= t).mean() <= far
    lower = others[others < t]
    assert not len(lower) or (others >= lower.max()).mean() > far
    at = openset.accepted_correct_at(df, far=far)
    assert at['false_accepts'] == (others >= t).mean() and at['n_negative'] == len(others)
    fixed = openset.accepted_correct_at(df, threshold=0.5)
    assert fixed['false_accepts'] == (others >= 0.5).mean()


def test_accepted_wrong_is_no_success_and_silence_no_acceptance():
    kinds = ['known'] * 4 + ['unknown'] * 2
    df = frame(kinds, [1, 2, np.nan, 1, np.nan, np.nan], [0.9, 0.9, np.nan, 0.2, 0.6, np.nan])
    at = openset.accepted_correct_at(df, far=0)
    assert (at['accepted_correct'], at['misidentified'], at['false_accepts'], at['n']) == (0.25, 0.25, 0, 4)
    assert (at['accepted_correct_low'], at['accepted_correct_high']) == metrics.wilson(1, 4)[1:]
    roc = openset.open_set(df)
    assert roc.iloc[-1][1:].tolist() == [0.5, 0.5, 0.25]  # unanswered ones are never accepted
    everything = openset.accepted_correct_at(df, far=1)
    assert everything['accepted_correct'] == 0.5 and everything['false_accepts'] == 0.5
    with pytest.raises(ResonanceError, match='unknown songs'):
        openset.tune_threshold(df[:4])


def test_false_accepts_at_the_systems_own_threshold():
    df = frame(['known'] + ['unknown'] * 4 + ['noise'] * 3, np.nan, [0.9, 0.9, 0.5, 0.1, 0.1, 0.2, 0.7, 0.2])
    f = openset.false_accepts_at_default(df).set_index('kind')
    assert f.value.tolist() == pytest.approx([2 / 4, 1 / 3, 3 / 7]) and f.n.tolist() == [4, 3, 7]
    assert (f.low['all'], f.high['all']) == pytest.approx(metrics.wilson(3, 7)[1:])


def test_crowds_alone_count_in_every_cell_of_their_length(corpus, queries):
    told = Told(
        lambda q: (
            [Match('x', 1.0, 0.0, 0.8)]
            if q.kind == 'noise'
            else [Match(q.track_id if q.kind == 'known' else 'y', 1.0, 0.0, 0.7)]
        )
    )
    df = bench.run(told, queries, corpus, progress=False, degrade=told.degrade)
    s = openset.summarise_open(df)
    assert len(s) == 9 and (s.n_negative == 3 + 3).all() and (s.accepted_correct == 0).all()
    assert (openset.summarise_open(df, threshold=0.6).accepted_correct == 1).all()


# --- what is shown


def test_table_scrolls_and_escapes():
    df = pd.concat(
        [
            frame(['known'] * 4, [1, 1, np.nan, np.nan], [0.9] * 4, system=s, snr_db=snr)
            for s in ('<a>', 'b')
            for snr in (np.inf, -5.0)
        ]
    )
    shown = figures.table(metrics.summarise(df), caption='5 < 6')
    assert shown.frame.index.tolist() == [('<a>', 'clean'), ('<a>', '-5 dB'), ('b', 'clean'), ('b', '-5 dB')]
    assert (
        shown.frame.iloc[0, 0] == '50.0 [15.0, 85.0]'
        and '50.0 [15.0,&nbsp;85.0]' in shown.html
        and '<a>' not in shown.html
        and '5 &lt; 6' in shown.html
    )
    assert shown.html.startswith('<div style="overflow-x:auto"')
    assert figures.table(metrics.summarise(df), 'mean_rank').frame.iloc[0, 0].startswith('3.50 [')
    with pytest.raises(ResonanceError, match='no_such'):
        figures.table(metrics.summarise(df), 'no_such')


def test_figures_show_the_numbers():
    import matplotlib

    matplotlib.use('agg')
    import matplotlib.pyplot as plt

    df = pd.concat(
        [
            frame(
                ['known'] * 4 + ['unknown'] * 4,
                [1, 1, 2, np.nan] + [np.nan] * 4,
                np.linspace(0.9, 0.1, 8),
                snr_db=s,
            )
            for s in (np.inf, 0.0)
        ]
    )
    ax = figures.plot_accuracy(metrics.summarise(df))
    assert ax.lines[0].get_ydata().tolist() == [0.5, 0.5] and [
        t.get_text() for t in ax.get_xticklabels()
    ] == ['clean', '0']
    assert figures.plot_cmc(metrics.cmc(df)).lines[0].get_ydata().tolist() == [0.5, 0.75, 0.75, 0.75, 0.75]
    both = metrics.cmc(pd.concat([df, df.assign(system='b', rank=1.0)]))
    assert [line.get_ydata()[0] for line in figures.plot_cmc(both).lines] == [0.5, 1]
    roc = openset.open_set(df)
    assert figures.plot_roc({'a': roc}).lines[0].get_ydata().tolist() == roc.correct_accept_rate.tolist()
    axes = figures.plot_accuracy(metrics.summarise(pd.concat([df, df.assign(system='b')])))
    assert len(axes) == 2
    plt.close('all')


def test_timing():
    calls = []
    middle, every = timing.time_it(lambda: calls.append(1), repeats=5, warmup=3)
    assert len(calls) == 8 and len(every) == 5 and middle == sorted(every)[2]
    work = lambda n: lambda: sum(range(n))
    ratio, least, greatest = timing.ratio_in_one_run(work(200_000), work(10_000), repeats=5)
    assert least <= ratio <= greatest and ratio > 3
    facts = timing.machine()
    assert facts['cpu'] and facts['cores'] >= 1 and facts['numpy'] == np.__version__


def test_bench_is_light_to_import():
    code = 'import sys, resonance_nb.bench; print([m for m in ("pandas", "scipy", "matplotlib", "torch") if m in sys.modules])'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.stdout.strip() == '[]', done.stderr


# ---- venues


@pytest.fixture(scope='module')
def venue_bank():
    from resonance_nb.bank import Bank

    return Bank(rooms_per_venue=4)


@pytest.fixture
def place(venue_bank):
    return in_venue(venue_bank, ['club', 'festival'], seed=3)


def test_a_venue_leaves_clean_clips_alone_and_changes_the_others(corpus, queries, place):
    for q in queries[:40]:
        x = render(q, corpus, degrade=place)
        assert len(x) == round(q.duration_s * RATE) and np.isfinite(x).all() and np.abs(x).max() <= 1
        same = q.kind != 'noise' and np.array_equal(
            x, corpus.load('music', q.track_id, q.start_s, q.duration_s)
        )
        assert same == (q.snr_db is None and q.kind != 'noise')


def test_the_draw_hangs_on_the_excerpt_alone(corpus, queries, venue_bank, monkeypatch):
    "One concert behind all levels and lengths of an excerpt; another seed, another concert."
    from resonance_nb import venue

    seen = {}
    first = None
    real = venue.replay
    monkeypatch.setattr(
        venue, 'replay', lambda music, r, *a: seen.setdefault(now.query_id, r) and real(music, r, *a)
    )
    for seed in (3, 4):
        seen.clear()
        place = in_venue(venue_bank, ['club', 'festival'], seed=seed)
        some = [q for q in queries if q.kind == 'known' and q.snr_db is not None][:24]
        for now in some:
            render(now, corpus, degrade=place)
        for q in some:
            for p in some:
                alike = replace(seen[q.query_id], snr_db=0) == replace(seen[p.query_id], snr_db=0)
                assert alike == (q.noise_key == p.noise_key)
        first = first or seen[some[0].query_id].seed
    assert seen[some[0].query_id].seed != first


def test_a_venue_renders_the_same_in_any_order(corpus, queries, venue_bank):
    some = [q for q in queries if q.snr_db is not None or q.kind == 'noise'][::7][:12]
    one, two = (in_venue(venue_bank, ['theatre'], seed=0) for _ in range(2))
    forward = {q.query_id: render(q, corpus, degrade=one) for q in some}
    for q in reversed(some):
        assert np.array_equal(render(q, corpus, degrade=two), forward[q.query_id])
