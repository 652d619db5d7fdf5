"""Trials of recipes: the interval of a difference covers what it should, and the verdict follows from it."""

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resonance_nb import trials
from resonance_nb.core import ResonanceError
from resonance_nb.runs import Results
from resonance_nb.starter import make_starter
from resonance_nb.compare import (
    difference,
    differences,
    file_differences,
    reported_differences,
    show_differences,
)
from resonance_nb.trials import TRIALS_VERSION, Plan, Pool, as_line, kept_lines


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 4), st.integers(2, 9), st.integers(1, 4), st.integers(0, 99))
def test_the_mean_is_the_mean_and_lies_within(seeds, songs, clips, seed):
    rng = np.random.default_rng(seed)
    a, b = rng.random((2, seeds, songs * clips)) < 0.5
    d, low, high = difference(a, b, np.repeat(np.arange(songs), clips).astype(str).tolist())
    assert d == pytest.approx(a.mean() - b.mean())
    assert -1 <= low <= high <= 1 and low - 1e-9 <= d <= high + 1e-9 or seeds * songs < 8


def test_the_interval_covers_no_difference():
    rng = np.random.default_rng(0)
    missed = 0
    songs = np.repeat(np.arange(40), 3).astype(str).tolist()
    for i in range(120):
        hard = np.repeat(rng.random(40), 3)  # some songs are harder, for both
        a, b = (rng.random((3, 120)) < hard for _ in range(2))
        _, low, high = difference(a, b, songs, n_resamples=400, seed=i)
        missed += not low <= 0 <= high
    assert missed <= 14  # 5 % of 120 are 6


def frame(**changes):
    rows = [
        {'group': 'g' if name != 'base' else '', 'change': name, 'seed': s, 'right': right}
        for name, many in changes.items()
        for s, right in many.items()
    ]
    return pd.DataFrame(rows)


def test_verdicts():
    songs = [str(i) for i in range(50)]
    no = [False] * 50
    yes = [True] * 50
    half = [i % 2 == 0 for i in range(50)]
    table = differences(
        frame(base={0: half, 1: half}, up={0: yes, 1: yes}, down={0: no, 1: no}, same={1: half}), songs
    ).set_index('change')
    assert table.verdict.to_dict() == {
        'base': 'the base',
        'up': 'better',
        'down': 'worse',
        'same': 'no difference seen',
    }
    assert table.seeds.to_dict() == {'base': 2, 'up': 2, 'down': 2, 'same': 1}
    assert table.difference['up'] == 0.5 and table.n['same'] == 50


def test_trials_without_a_common_seed_are_refused():
    with pytest.raises(ResonanceError, match='no seed in common'):
        differences(frame(base={0: [True]}, other={1: [True]}), ['a'])


def test_what_is_filed_is_read_back(tmp_path):
    songs = [str(i) for i in range(30)]
    rng = np.random.default_rng(3)
    made = frame(
        base={0: rng.random(30) < 0.5, 1: rng.random(30) < 0.5},
        up={0: rng.random(30) < 0.9, 1: rng.random(30) < 0.9},
    ).assign(minutes=[1.0, 2.0, 3.0, 4.0], weights=7)
    table = differences(made, songs)
    results = Results('99_made', corpus='c')
    file_differences(results, made, table)
    path = tmp_path / 'data' / 'results' / '99_made.json'
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({'chapter': '99_made', 'run': {'run': '99_made/1'}, 'metrics': results.rows}))
    read = reported_differences('99_made', tmp_path)
    pd.testing.assert_frame_equal(read[sorted(table)], table[sorted(table)], check_dtype=False)
    assert reported_differences('98_nothing', tmp_path) is None
    assert [r['value'] for r in results.rows if r['metric'] == 'minutes'] == [1.5, 3.5]
    assert '+' in show_differences(table, 'made').frame['difference (points)'].iloc[1]


def test_lines_of_another_version_do_not_count(tmp_path, monkeypatch):
    path = tmp_path / 'data' / 'trials' / 'lesson.jsonl'
    path.parent.mkdir(parents=True)
    path.write_text(as_line('trial-0', {'right': [True]}) + '\n')
    assert list(kept_lines.__wrapped__(path)) == ['trial-0']
    monkeypatch.setattr(trials, 'TRIALS_VERSION', TRIALS_VERSION + 1)
    assert not kept_lines.__wrapped__(path)


def test_every_stored_trial_is_of_this_version(root):
    files = sorted((root / 'data' / 'trials').glob('*.jsonl'))
    assert files
    for path in files:
        assert len(kept_lines.__wrapped__(path)) == len(path.read_text().splitlines()), path.name


def test_windows_are_found_by_their_own_and_not_held_against_their_song():
    torch = pytest.importorskip('torch')
    pool = Pool(make_starter(n_pieces=24), None, (20.0, 0.0), n=12, max_songs=6)
    assert len(pool.tracks) == 24 and pool.tracks[:12] == pool.tracks[12:], 'the same windows at each level'
    clean, heard, songs = pool.questions[0]
    assert (
        clean.shape == heard.shape == (12, 8_000)
        and not torch.equal(heard, pool.questions[1][1])
        and torch.equal(clean, pool.questions[1][0])
    )
    places = {
        tuple(x[:50].tolist()): i
        for part in (clean, *(a[1] for a in pool.questions))
        for i, x in enumerate(part)
    }

    def knows(answer):
        "An encoder that names the windows by their numbers; what it takes a heard one for is `answer(number)`."
        clean_ones = {tuple(x[:50].tolist()) for x in clean}
        number = lambda x: places[x] if x in clean_ones else answer(places[x])
        return SimpleNamespace(
            encoder=lambda x: np.eye(12, dtype=np.float32)[[number(tuple(row[:50].tolist())) for row in x]]
        )

    assert pool.right(knows(lambda i: i)).all()
    stranger = lambda i: next(j for j in range(12) if songs[j] != songs[i])
    assert not pool.right(knows(stranger)).any()
    twin = lambda i: next(j for j in range(12) if j != i and songs[j] == songs[i])
    other = pool.right(knows(twin))[:12]  # nothing else is like it, so the first that may be named wins
    assert other.tolist() == [
        i == min(k for k in range(12) if k == i or songs[k] != songs[i]) for i in range(12)
    ]


def plan_of(exam, corpus, **options):
    from resonance_nb.encoders import Settings
    from resonance_nb.recipe import Recipe

    base = Recipe(
        encoder=Settings('cnn3', 16),
        n_songs=6,
        steps=2,
        scenes=1,
        venues=('club',),
        warmup=1,
        validate_every=2,
        precision='32-true',
    )
    changes = {'loss': {'triplet': {'loss': 'triplet'}, 'hybrid': {'loss': 'hybrid'}}}
    return Plan(base, changes, [0, 1], exam, corpus, '99_lesson', max_songs=8, **options)


def test_a_plan_lists_the_base_first_and_every_change_from_every_seed():
    corpus = make_starter(n_pieces=24)
    exam = SimpleNamespace(tracks=['a', 'b'])
    listed = [(t.labels['change'], t.labels['seed']) for t in plan_of(exam, corpus).trials()]
    assert listed == [(c, s) for c in ('base', 'triplet', 'hybrid') for s in (0, 1)]
    assert len(plan_of(exam, corpus, only=['hybrid']).trials()) == 4
    with pytest.raises(ResonanceError, match='choose from: triplet, hybrid'):
        plan_of(exam, corpus, only=['trplet']).trials()
    one, other = (plan_of(exam, corpus, settings=s).trials()[0].key for s in ([[0]], [[5]]))
    assert one != other and one[:-3] == other[:-3]


def test_a_plan_is_run_side_by_side_to_the_same_answers(tmp_path, monkeypatch):
    pytest.importorskip('lightning')
    corpus = make_starter(n_pieces=24)
    exam = Pool(corpus, None, (10.0,), n=16, max_songs=6)
    tables = {}
    for jobs in (1, 2):
        monkeypatch.setenv('RESONANCE_RUN', str(tmp_path / f'{jobs}'))
        tables[jobs] = plan_of(exam, corpus, only=['triplet']).run(jobs=jobs, progress=False)
        assert len(list((tmp_path / f'{jobs}' / 'partial').glob('trial-*.json'))) == 4
    same = np.mean(np.stack(tables[1].right) == np.stack(tables[2].right))
    assert same > 0.9 and tables[1].weights.tolist() == tables[2].weights.tolist()

    def fails(*args, **options):
        raise AssertionError('all are kept')

    monkeypatch.setattr(trials, 'trial', fails)
    again = plan_of(exam, corpus, only=['triplet']).run(progress=False)
    assert again.right.tolist() == tables[2].right.tolist()


def test_a_pool_tells_its_levels_apart():
    pytest.importorskip('torch')
    pool = Pool(make_starter(n_pieces=24), None, (20.0, -20.0), n=32, max_songs=6)
    from resonance_nb.network import shipped

    shares = pool.shares(SimpleNamespace(encoder=shipped()))
    assert list(shares) == ['top1', 'top1_20dB', 'top1_-20dB']
    assert shares['top1_20dB'] > shares['top1_-20dB']
    assert shares['top1'] == pytest.approx(np.mean([shares['top1_20dB'], shares['top1_-20dB']]), abs=1e-4)
