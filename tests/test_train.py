"""Training: killed at any moment it goes on as if nothing had happened; broken losses and broken songs; two processes."""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest

from resonance_nb.core import MissingExtra, ResonanceError
from resonance_nb.corpora import Corpus
from resonance_nb.starter import make_starter

torch = pytest.importorskip('torch')
pytest.importorskip('lightning')

from resonance_nb import batches, train  # noqa: E402
from resonance_nb.encoders import Settings, load  # noqa: E402
from resonance_nb.recipe import Recipe, changed  # noqa: E402
from resonance_nb.learning import Lamb, precision_here  # noqa: E402
from resonance_nb.train import fit, loggers_for  # noqa: E402

TINY = Recipe(
    encoder=Settings('cnn3', 16),
    n_songs=6,
    steps=30,
    scenes=1,
    venues=('hard-mix',),
    warmup=2,
    validate_every=10,
    precision='32-true',
)


@pytest.fixture(scope='module')
def corpus():
    return make_starter(n_pieces=12)


@pytest.fixture(scope='module')
def ids(corpus):
    return list(corpus.music.index)


@pytest.fixture
def one_thread():
    "As the process that is killed, and those that make its batches: other numbers of threads give other digits, and training makes them large."
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def weight(encoder):
    return {'top1': float(encoder.head.weight.detach().abs().sum())}


def quick_fit(recipe, corpus, ids, folder, **options):
    "Train in this process, without a bar, judged by `weight`."
    return fit(recipe, corpus, ids, folder, validate=weight, workers=0, progress=False, **options)


def difference(one, other):
    pairs = zip(load(one)[0].state_dict().values(), load(other)[0].state_dict().values())
    return max(float((a - b).abs().max()) for a, b in pairs)


SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
from test_train import TINY, weight
from resonance_nb.starter import make_starter
from resonance_nb.recipe import changed
from resonance_nb.train import fit
corpus = make_starter(n_pieces=12)
recipe = changed(TINY, {changes!r})
fit(recipe, corpus, list(corpus.music.index), Path(sys.argv[1]), validate=weight, progress=False, checkpoint_s=0, **{more!r})
"""


def run(folder, changes, more=None, kill_at=None):
    "Train in a process of its own; `kill_at` is the step after which it is killed."
    code = SCRIPT.format(tests=os.path.dirname(__file__), changes=changes, more=more or {})
    # goes on as this process would: they are on one machine
    env = {'ELSEWHERE_PROCESS': str(os.getpid()), **os.environ}
    process = subprocess.Popen(
        [sys.executable, '-c', code, str(folder)],
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
        env=env,
    )
    if kill_at is None:
        _, err = process.communicate()
        assert process.returncode == 0, err[-2000:]
        return
    while process.poll() is None:
        try:
            if int(torch.load(folder / 'checkpoint.ckpt', weights_only=True)['global_step']) >= kill_at:
                break
        except (OSError, RuntimeError, EOFError):
            pass
        time.sleep(0.05)
    assert process.poll() is None, process.stderr.read()[-2000:]
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


@pytest.mark.parametrize(
    'changes, kills',
    [
        ({}, (3, 14)),
        (
            {
                'loss': 'hybrid',
                'memory_bank': 40,
                'learned_temperature': True,
                'schedule': 'plateau',
                'hard_negatives': 0.5,
            },
            (14,),
        ),
        ({'loss': 'triplet', 'optimiser': 'lamb', 'spec_augment': 0.5}, (14,)),
    ],
    ids=['plain', 'hybrid', 'triplet'],
)
def test_a_killed_run_goes_on_to_the_same_model(one_thread, corpus, ids, tmp_path, changes, kills):
    for kill_at in kills:
        run(tmp_path / 'killed', changes, kill_at=kill_at)
    for name in ('whole', 'killed'):
        quick_fit(changed(TINY, changes), corpus, ids, tmp_path / name)
    assert (
        difference(tmp_path / 'whole' / 'encoder.safetensors', tmp_path / 'killed' / 'encoder.safetensors')
        < 1e-5
    )
    curves = [
        pd.read_csv(tmp_path / name / 'curve.csv').drop(columns='minutes') for name in ('whole', 'killed')
    ]
    pd.testing.assert_frame_equal(*curves, rtol=1e-4)


def test_two_processes_learn_together(tmp_path):
    run(tmp_path, {'steps': 4, 'validate_every': 4}, {'devices': 2, 'device': 'cpu', 'workers': 0})
    encoder, card = load(tmp_path / 'encoder.safetensors')
    assert card['steps'] == 4 and all(torch.isfinite(v).all() for v in encoder.state_dict().values())


def test_a_loss_that_is_not_a_number(corpus, ids, tmp_path, monkeypatch):
    real = train.contrast_loss
    steps = []

    def sometimes(*args, **options):
        steps.append(1)
        return real(*args, **options) * (float('nan') if len(steps) in (3, 7) else 1)

    monkeypatch.setattr(train, 'contrast_loss', sometimes)
    found = quick_fit(changed(TINY, {'steps': 10}), corpus, ids, tmp_path / 'some')
    encoder, card = load(found)
    assert card['broken_steps'] == 2 and all(torch.isfinite(v).all() for v in encoder.state_dict().values())
    monkeypatch.setattr(train, 'contrast_loss', lambda *a, **o: real(*a, **o) * float('nan'))
    with pytest.raises(ResonanceError, match='not a number in 21 steps'):
        fit(TINY, corpus, ids, tmp_path / 'all', workers=0, progress=False)


@pytest.mark.parametrize('optimiser', ['adamw', 'lamb'])
def test_a_broken_gradient_of_a_finite_loss_is_skipped(corpus, ids, tmp_path, monkeypatch, optimiser):
    real = train.contrast_loss
    steps = []

    def sometimes(recipe, a, *args, **options):
        steps.append(1)
        zero = (a - a.detach()).abs().sum()
        # the root's slope at zero is infinite
        return real(recipe, a, *args, **options) + (torch.sqrt(zero) if len(steps) in (4, 8) else 0)

    monkeypatch.setattr(train, 'contrast_loss', sometimes)
    recipe = changed(TINY, {'steps': 10, 'optimiser': optimiser, 'learning_rate': 1e-3})
    encoder, card = load(quick_fit(recipe, corpus, ids, tmp_path))
    assert all(torch.isfinite(v).all() for v in encoder.state_dict().values()) and card['broken_steps'] >= 2


def test_a_broken_song_is_left_out_and_counted(corpus, ids, tmp_path):
    shutil.copytree(corpus.folder, tmp_path / 'c')
    broken = Corpus(tmp_path / 'c')
    broken.path('music', ids[4]).write_bytes(b'noise')
    card = load(quick_fit(changed(TINY, {'steps': 2, 'validate_every': 2}), broken, ids, tmp_path / 'run'))[1]
    assert list(card['skipped']) == [ids[4]] and card['songs'] == len(ids) - 1


def test_it_stops_when_it_gets_no_better(corpus, ids, tmp_path):
    found = fit(
        changed(TINY, {'validate_every': 2, 'patience': 3}),
        corpus,
        ids,
        tmp_path,
        validate=lambda e: {'top1': 0.5},
        workers=0,
        progress=False,
    )
    assert load(found)[1]['steps'] == 2 and pd.read_csv(tmp_path / 'curve.csv').step.tolist() == [2, 4, 6, 8]


def test_another_recipe_is_refused(corpus, ids, tmp_path):
    fit(changed(TINY, {'steps': 2, 'validate_every': 2}), corpus, ids, tmp_path, workers=0, progress=False)
    for other in ({'learning_rate': 0.5}, {'seed': 3}):
        with pytest.raises(ResonanceError, match='another recipe'):
            fit(
                changed(TINY, {'steps': 2, 'validate_every': 2} | other),
                corpus,
                ids,
                tmp_path,
                progress=False,
            )
    with pytest.raises(ResonanceError, match='other songs'):
        fit(changed(TINY, {'steps': 2, 'validate_every': 2}), corpus, ids[:-1], tmp_path, progress=False)


def test_a_run_keeps_the_precision_it_began_with(corpus, ids, tmp_path, monkeypatch):
    recipe = changed(TINY, {'steps': 4, 'validate_every': 2, 'precision': 'auto'})
    monkeypatch.setattr(train, 'precision_here', lambda device: 'bf16-mixed')

    def stops(encoder, calls=[]):
        calls.append(encoder.head.weight)
        if len(calls) == 2:
            raise ZeroDivisionError
        return {'top1': 0.5}

    with pytest.raises(ZeroDivisionError):
        fit(recipe, corpus, ids, tmp_path, validate=stops, workers=0, progress=False)
    monkeypatch.setattr(train, 'precision_here', lambda device: '32-true')  # it is taken to another machine
    used = []
    real = train._trainer
    monkeypatch.setattr(
        train, '_trainer', lambda recipe, *a: used.append(recipe.precision) or real(recipe, *a)
    )
    card = load(quick_fit(recipe, corpus, ids, tmp_path))[1]
    assert (
        used == ['bf16-mixed']
        and card['precision'] == 'bf16-mixed'
        and card['recipe']['precision'] == 'auto'
        and card['steps'] == 4
    )
    with pytest.raises(ResonanceError, match='another recipe'):
        fit(changed(recipe, {'precision': '32-true'}), corpus, ids, tmp_path, progress=False)
    fresh = load(quick_fit(recipe, corpus, ids, tmp_path / 'fresh'))[1]
    assert used[1:] == ['32-true'] == [fresh['precision']]


def test_a_run_begun_before_cards_told_the_precision_goes_on(corpus, ids, tmp_path):
    recipe = changed(TINY, {'steps': 2, 'validate_every': 2})
    quick_fit(recipe, corpus, ids, tmp_path)
    path = tmp_path / 'recipe.json'
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != 'precision'}))
    assert fit(recipe, corpus, ids, tmp_path, progress=False) == tmp_path / 'encoder.safetensors'


@pytest.mark.parametrize(
    'told, has, want',
    [
        ({}, {'avx512_bf16': True}, 'bf16-mixed'),
        ({}, {'amx_bf16': True}, 'bf16-mixed'),
        ({}, {'avx512_f': True}, '32-true'),
        ({}, {}, '32-true'),
        ({'ONEDNN_MAX_CPU_ISA': 'AVX2'}, {'avx512_bf16': True}, '32-true'),
        ({'ONEDNN_MAX_CPU_ISA': 'avx512_core_amx'}, {'amx_bf16': True}, 'bf16-mixed'),
    ],
)
def test_half_precision_where_the_processor_multiplies_it(monkeypatch, told, has, want):
    monkeypatch.delenv('ONEDNN_MAX_CPU_ISA', raising=False)
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cpu, 'get_capabilities', lambda: has, raising=False)
    monkeypatch.setattr(torch.backends.cpu, 'get_cpu_capability', lambda: 'AVX512')
    assert precision_here() == want
    monkeypatch.setattr(torch.backends.cpu, 'get_cpu_capability', lambda: 'AVX2')
    assert precision_here() == '32-true'


def test_loggers_are_asked_for_by_name(tmp_path):
    with pytest.raises(ResonanceError, match='mlflow, wandb'):
        loggers_for('paper', tmp_path)
    for name in ('mlflow', 'wandb'):
        try:
            __import__(name)
        except ImportError:
            with pytest.raises(MissingExtra, match=f'pip install {name}'):
                loggers_for(name, tmp_path)


def test_csv_logs_are_always_there(corpus, ids, tmp_path):
    quick_fit(changed(TINY, {'steps': 10, 'validate_every': 5}), corpus, ids, tmp_path)
    log = pd.read_csv(tmp_path / 'log' / 'from-0' / 'metrics.csv')
    assert {'loss', 'picked_right', 'step'} <= set(log) and pd.read_csv(
        tmp_path / 'curve.csv'
    ).step.tolist() == [5, 10]
    assert json.loads((tmp_path / 'recipe.json').read_text())['songs'] == len(ids)


def test_lamb_moves_layers_by_their_own_size():
    small, large = (torch.nn.Parameter(torch.full((4,), x)) for x in (0.01, 100.0))
    optimiser = Lamb([small, large], lr=0.1, weight_decay=0.0)
    before = [p.detach().clone() for p in (small, large)]
    small.grad = torch.ones(4)
    large.grad = torch.ones(4)
    optimiser.step()
    for old, new in zip(before, (small, large)):
        assert ((new - old).norm() / old.norm()).item() == pytest.approx(0.1, rel=1e-4)


def test_a_run_that_was_stopped_goes_on_for_as_long_again(corpus, ids, tmp_path):
    recipe = changed(TINY, {'steps': 2_000, 'validate_every': 1_000})
    steps = []
    for _ in range(2):
        quick_fit(recipe, corpus, ids, tmp_path, stop_after_s=0.5)
        steps.append(int(torch.load(tmp_path / 'checkpoint.ckpt', weights_only=True)['global_step']))
    assert 0 < steps[0] < steps[1] < 1_000


@pytest.mark.parametrize('name', ['checkpoint.ckpt', 'recipe.json'])
def test_a_damaged_run_is_told_in_one_line(corpus, ids, tmp_path, name):
    quick_fit(changed(TINY, {'steps': 2, 'validate_every': 2}), corpus, ids, tmp_path)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:40])
    with pytest.raises(ResonanceError, match='cannot be read') as error:
        fit(changed(TINY, {'steps': 2, 'validate_every': 2}), corpus, ids, tmp_path, progress=False)
    assert '\n' not in str(error.value)


def test_sup_con_takes_other_windows_of_a_song_as_right(corpus, ids, tmp_path):
    assert (
        load(
            quick_fit(
                changed(TINY, {'steps': 2, 'validate_every': 2, 'loss': 'sup-con'}), corpus, ids, tmp_path
            )
        )[1]['steps']
        == 2
    )


def test_a_run_may_begin_with_another_ones_weights(corpus, ids, tmp_path):
    few = changed(TINY, {'steps': 2, 'validate_every': 2, 'learning_rate': 0.0, 'weight_decay': 0.0})
    first = quick_fit(few, corpus, ids, tmp_path / 'first')
    still = quick_fit(
        changed(few, {'seed': 1}), corpus, ids, tmp_path / 'second', start=first, facts={'revision': 'abc'}
    )
    card = load(still)[1]
    assert {k: v for k, v in load(first)[0].named_parameters()}.keys() == {
        k: v for k, v in load(still)[0].named_parameters()
    }.keys()
    weights = [[p.detach() for p in load(path)[0].parameters()] for path in (first, still)]
    assert all(torch.equal(a, b) for a, b in zip(*weights)), 'at a rate of zero it stays what it began with'
    assert card['started_from']['digest'] == load(first)[1]['digest'] and card['revision'] == 'abc'
    with pytest.raises(ResonanceError, match='another recipe'):  # a run that began elsewhere is another run
        quick_fit(changed(few, {'seed': 1}), corpus, ids, tmp_path / 'second')
    with pytest.raises(ResonanceError, match='has the settings'):
        fit(
            changed(few, {'encoder.dim': 32}),
            corpus,
            ids,
            tmp_path / 'third',
            start=first,
            workers=0,
            progress=False,
        )


def test_the_command_trains_and_says_how_it_was_called(corpus, tmp_path):
    from click.testing import CliRunner

    from resonance_nb.cli import cli

    few = {
        'steps': '4',
        'n_songs': '6',
        'validate_every': '2',
        'warmup': '1',
        'scenes': '1',
        'encoder.body': 'cnn3',
        'precision': '32-true',
    }
    words = [
        'train',
        '--corpus',
        str(corpus.folder),
        '--out',
        str(tmp_path / 'run'),
        '--workers',
        '0',
        '--json',
        *(w for pair in few.items() for w in ('--set', *pair)),
    ]
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == 0, done.output + str(done.exception)
    told = json.loads(done.stdout.strip().splitlines()[-1])
    card = load(tmp_path / 'run' / 'encoder.safetensors')[1]
    assert told['steps'] == card['steps'] and set(card['validation']) == {'top1', '5 dB, 2 s'}
    assert (
        card['command'].startswith('resonance train --profile quick')
        and '--set encoder.body cnn3' in card['command']
    )
    assert {'revision', 'package_hash', 'versions', 'recipe', 'seed', 'front_check'} <= set(card)
    wrong = CliRunner().invoke(cli, [*words, '--set', 'speed', '9'])
    assert wrong.exit_code != 0 and 'a recipe has no speed' in str(wrong.output) + str(wrong.exception)


CLOCK = {
    'minutes': 0.1,
    'steps': 0,
    'validate_every': 3,
    'keep': 'last',
    'speeds': [1.0, 1.1],
    'concert_sets': 2,
}


def test_a_run_by_the_clock_ends_when_its_minutes_are_over(corpus, ids, tmp_path):
    recipe = changed(TINY, CLOCK | {'minutes': 0.05})
    down = lambda encoder, calls=[]: calls.append(1) or {'top1': 1 / len(calls)}
    path = fit(recipe, corpus, ids, tmp_path, validate=down, workers=0, progress=False)
    curve = pd.read_csv(tmp_path / 'curve.csv')
    card = load(path)[1]
    assert curve.minutes.iloc[-1] >= 0.05 and card['steps'] == curve.step.iloc[-1], 'the last one is kept'
    assert card['songs'] == len(ids) and card['validation']['top1'] == pytest.approx(curve.top1.iloc[-1])
    assert fit(recipe, corpus, ids, tmp_path, progress=False) == path, 'finished'


def test_a_run_by_the_clock_goes_on_where_its_minutes_were(corpus, ids, tmp_path):
    recipe = changed(TINY, CLOCK)
    for stop_after_s in (2.0, None):
        quick_fit(recipe, corpus, ids, tmp_path, stop_after_s=stop_after_s)
        state = torch.load(tmp_path / 'checkpoint.ckpt', weights_only=True)
        spent_s = state['callbacks']['Keeper']['spent_s']
        assert (2 < spent_s < 6) if stop_after_s else (6 <= spent_s < 9)


def test_concerts_do_not_depend_on_the_processes(corpus, ids, tmp_path):
    from resonance_nb.bank import Bank
    from resonance_nb.windows import pack

    recipe = changed(TINY, {'concert_sets': 2, 'scenes': 2, 'rooms': 2, 'steps': 5})
    music = pack(corpus, ids, tmp_path)
    made = batches.batches_of(recipe, corpus, music, bank=Bank(corpus, 'train'))
    one, two = ([b[1] for b in batches.loader_of(made, 0, workers)] for workers in (0, 2))
    assert len(one) == 5
    for a, b in zip(one, two):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=0)
    again = pickle.loads(pickle.dumps(made))
    torch.testing.assert_close(again.batch(3)[1], one[3], atol=1e-4, rtol=0)
    first, second = (made.views(n).degrader.bank for n in (0, 1))
    assert first.rooms_per_venue == second.rooms_per_venue == 2 and first.seed != second.seed


def test_a_card_that_is_not_there_is_told(corpus, ids, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    assert train.device_here('auto') in ('cpu', 'mps')
    for device, says in (('cuda', 'no graphics card'), ('gpu', 'choose from: auto, cpu, cuda, mps')):
        with pytest.raises(ResonanceError, match=says):
            fit(TINY, corpus, ids, tmp_path, device=device, progress=False)


@pytest.mark.parametrize('devices, wanted', [(1, 'cuda'), (2, 'cpu')])
def test_a_card_that_is_there_learns_and_makes_the_concerts(
    corpus, ids, tmp_path, monkeypatch, devices, wanted
):
    made = {}
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'is_bf16_supported', lambda including_emulation: True)
    monkeypatch.setattr(torch.cuda, 'get_device_name', lambda: 'a card')
    monkeypatch.setattr(
        train, '_learn', lambda recipe, task, folder, loader, trainer, **o: made.update(locals())
    )
    fit(changed(TINY, {'precision': 'auto'}), corpus, ids, tmp_path, devices=devices, progress=False)
    assert made['recipe'].precision == 'bf16-mixed' and made['loader'].args[0].device == wanted
    assert made['o']['keep']['card']['device'] == 'a card'


@pytest.mark.skipif(not torch.cuda.is_available(), reason='no graphics card')
def test_a_card_trains(corpus, ids, tmp_path):
    recipe = changed(TINY, {'steps': 6, 'validate_every': 3, 'concert_sets': 2, 'scenes': 2})
    encoder, card = load(fit(recipe, corpus, ids, tmp_path, device='cuda', workers=2, progress=False))
    assert card['steps'] == 6 and all(torch.isfinite(v).all() for v in encoder.state_dict().values())


def test_a_run_that_an_earlier_version_began_goes_on(corpus, ids, tmp_path):
    from resonance_nb.recipe import OLD_NAMES

    recipe = changed(TINY, {'steps': 4, 'validate_every': 2})
    path = quick_fit(recipe, corpus, ids, tmp_path)
    card = json.loads((tmp_path / 'recipe.json').read_text())
    for old, today in OLD_NAMES.items():
        card['recipe'][old] = card['recipe'].pop(today)
    for later in ('speeds', 'rooms', 'concert_sets', 'minutes', 'keep'):
        del card['recipe'][later]
    (tmp_path / 'recipe.json').write_text(json.dumps(card))
    assert fit(recipe, corpus, ids, tmp_path, progress=False) == path
    with pytest.raises(ResonanceError, match='another recipe'):
        fit(changed(recipe, {'keep': 'last'}), corpus, ids, tmp_path, progress=False)
