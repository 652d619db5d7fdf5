"""One command from songs to a model: whole, stopped, killed, and fed with what is no music."""

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from resonance_nb import audio, feel_teach
from resonance_nb.core import ResonanceError
from sounds import sound

pytest.importorskip('torch')
onnx = pytest.importorskip('onnx')

from resonance_nb import feel_make, feel_model, feel_net
from resonance_nb.cli_feel import feel
from resonance_nb.teachers import KINDS

TINY = {'width': 32, 'channels': 32, 'state': 16, 'hidden': 32}
SMALL = [w for name, n in TINY.items() for w in ('--set', f'settings.{name}', str(n))]
SMALL += ['--set', 'songs', '4', '--set', 'segments', '2', '--steps', '4']


def write_corpus(folder, seeds, artists, **columns):
    "A corpus of a few seconds of sound for each seed."
    (folder / 'music').mkdir(parents=True)
    rows = [
        {'id': f's{seed}', 'file': f'music/{seed}.wav', 'artist': artist, 'duration_s': 30, **columns}
        for seed, artist in zip(seeds, artists)
    ]
    for seed in seeds:
        audio.save(folder / 'music' / f'{seed}.wav', sound(seed, 7), 16_000)
    with (folder / 'music.csv').open('w', newline='', encoding='utf-8') as out:
        writer = csv.DictWriter(out, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder


@pytest.fixture(scope='module')
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp('corpora') / 'corpus', range(6), 'aabbcc')


@pytest.fixture(autouse=True)
def no_teachers(monkeypatch):
    monkeypatch.delenv('RESONANCE_MODELS', raising=False)


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    "Networks of the teachers' form, with numbers from a die."
    folder = tmp_path_factory.mktemp('models')
    make, proto = onnx.helper, onnx.TensorProto.FLOAT
    for name, kind in KINDS.items():
        bands = kind.windows.picture(np.zeros(2_000, 'float32')).shape[1]
        w = np.random.default_rng(0).normal(size=(bands, 6)).astype('float32') / bands
        axes, shape = ([1, 3], ['n', 1, bands, 't']) if kind.windows.upright else ([1], ['n', 't', bands])
        nodes = [
            make.make_node('ReduceMean', ['logmel'], ['mean'], axes=axes, keepdims=0),
            make.make_node('MatMul', ['mean', 'w'], ['embedding']),
            make.make_node('Identity', ['embedding'], ['logits']),
        ]
        value = lambda n, s: make.make_tensor_value_info(n, proto, s)
        outputs = [value('embedding', ['n', 6]), value('logits', ['n', 6])]
        graph = make.make_graph(
            nodes, 'toy', [value('logmel', shape)], outputs, [onnx.numpy_helper.from_array(w, 'w')]
        )
        model = make.make_model(graph, opset_imports=[make.make_opsetid('', 17)], ir_version=8)
        onnx.save(model, folder / kind.file)
    return folder


@pytest.fixture(scope='module')
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp('cache')


def resonance(*words):
    "What the command prints as JSON; its remarks go past click to standard error."
    done = CliRunner().invoke(feel, ['train', *map(str, words), *SMALL, '--json'])
    if done.exception:
        raise done.exception
    return json.loads(done.stdout)


def numbers(out):
    return feel_net.load(Path(out) / 'run' / 'feel.safetensors')[0].state_dict()


def test_from_songs_to_a_model(corpus, weights, cache, tmp_path, capfd):
    told = resonance(corpus, '--out', tmp_path, '--teachers', weights, '--cache', cache)
    assert told['finished'] and (told['songs'], told['artists'], told['step']) == (6, 3, 4)
    assert not capfd.readouterr().err and not told['skipped']
    card = json.loads((tmp_path / 'feel.json').read_text())
    assert set(card['teachers']) == set(KINDS) and card['recipe']['steps'] == 4 and card['versions']['torch']
    model = feel_model.FeelModel(told['model'])
    vector = model(sound(9, 5)[None])[0]
    assert vector.shape == (32,) and np.linalg.norm(vector) == pytest.approx(1, abs=1e-4)
    assert {'feel.onnx', 'feel-int8.onnx', 'feel.safetensors'} == set(card['files'])

    again = resonance(corpus, '--out', tmp_path, '--teachers', weights, '--cache', cache)
    assert again['finished'] and again['minutes'] == pytest.approx(told['minutes'], abs=0.05)

    stops = []  # a stop after each step
    for _ in range(4):
        words = ('--teachers', weights, '--cache', cache, '--stop-after', 1e-6)
        stops.append(resonance(corpus, '--out', tmp_path / 'b', *words))
    assert [s['step'] for s in stops] == [1, 2, 3, 4] and [s['finished'] for s in stops] == [0, 0, 0, 1]
    one, other = numbers(tmp_path), numbers(tmp_path / 'b')
    assert all(np.allclose(one[name], other[name], atol=1e-5) for name in one)

    with pytest.raises(ResonanceError, match='other songs, artists or teachers'):  # the teachers are gone
        resonance(corpus, '--out', tmp_path, '--cache', cache)
    with pytest.raises(ResonanceError, match='another recipe'):
        words = ('--teachers', weights, '--cache', cache, '--seed', 1)
        resonance(corpus, '--out', tmp_path, *words)


def test_killed_at_any_moment(corpus, weights, tmp_path, monkeypatch):
    "Whatever is being made when the process dies, the same command goes on, and comes to the same numbers."

    class Killed(BaseException):
        pass

    words = (corpus, '--teachers', weights, '--cache', tmp_path / 'cache', '--out')

    def dies_at(module, name, call):
        "Let the nth call of a function be the last thing that happens."
        real, calls = getattr(module, name), []

        def mortal(*args, **options):
            calls.append(1)
            if len(calls) == call:
                raise Killed
            return real(*args, **options)

        with monkeypatch.context() as patch:
            patch.setattr(module, name, mortal)
            with pytest.raises(Killed):
                resonance(*words, tmp_path / 'a')

    from resonance_nb import feel_train

    dies_at(feel_make, 'pack_songs', 3)
    assert len(list((tmp_path / 'cache').glob('powers*/*.npy'))) == 2
    dies_at(feel_teach, 'write_views', 4)
    assert len(list((tmp_path / 'cache' / 'taught').glob('*.npz'))) == 3
    dies_at(feel_train, '_step', 3)
    dies_at(feel_make, 'ship', 1)
    assert not (tmp_path / 'a' / 'feel.onnx').exists()
    heard = []
    monkeypatch.setattr(feel_make, 'load_song', heard.append)
    told = resonance(*words, tmp_path / 'a')
    assert told['finished'] and not heard and (tmp_path / 'a' / 'feel.onnx').exists()


def test_without_teachers_and_with_other_folders(corpus, cache, tmp_path, capfd):
    mine = tmp_path / 'mine'
    (mine / 'locked').mkdir(parents=True)
    audio.save(mine / 'good.wav', sound(20, 5), 16_000)
    audio.save(mine / 'same.wav', sound(0, 7), 16_000)
    audio.save(mine / 'silent.wav', np.zeros(40_000), 16_000)
    (mine / 'text.wav').write_text('to do: buy strings')
    (mine / 'locked').chmod(0)
    try:
        words = ('--out', tmp_path / 'a', '--cache', cache, '--without', 'B', '--stop-after', 1e-6)
        told = resonance(corpus, mine, *words)
        while told['stage'] == 'songs':
            told = resonance(corpus, mine, *words)
    finally:
        (mine / 'locked').chmod(0o700)
    assert 'set RESONANCE_MODELS to a folder with musicnn_msd.onnx' in capfd.readouterr().err
    reasons = {Path(s['path']).name: s['reason'] for s in told['skipped']}
    assert reasons['text.wav'] == 'is not audio that can be decoded' and 'silent' in reasons['silent.wav']
    assert ('locked' in reasons) == (os.geteuid() != 0)
    noted = json.loads((tmp_path / 'a' / 'run' / 'songs.json').read_text())
    assert noted['songs'] == 5  # four of the corpus, and one that is new


def test_who_judges_does_not_teach(tmp_path):
    first = feel_make.collect([write_corpus(tmp_path / 'one', range(6), 'aabbcc')]).songs
    both = feel_make.collect([tmp_path / 'one', write_corpus(tmp_path / 'two', (0, 7, 8), 'aad')]).songs
    assert len(both) == 8 and both.index.is_unique  # the first of `two` is one of `one`
    taught = [feel_make.chosen(both, hold_out=(k, 2)) for k in (1, 2)]
    for part in taught:
        assert set(part['artist']) >= {'d'} and len(set(part['artist'])) < 4
    assert set(taught[0]['artist']) | set(taught[1]['artist']) == set('abcd')
    assert set(feel_make.chosen(first, hold_out=(1, 2)).index) == set(taught[0].index) & set(first.index)


def test_links_in_a_folder_of_music_are_songs(corpus, tmp_path):
    "As `feel index` takes them; only a table must not lead out of its folder."
    (tmp_path / 'here').mkdir()
    for n in (0, 1):
        (tmp_path / 'here' / f'{n}.wav').symlink_to(corpus / 'music' / f'{n}.wav')
    found = feel_make.collect([tmp_path / 'here'])
    assert len(found.songs) == 2 and found.skipped == []
    write_corpus(tmp_path / 'listed', (30, 31), 'xy')
    (tmp_path / 'listed' / 'music' / '30.wav').unlink()
    (tmp_path / 'listed' / 'music' / '30.wav').symlink_to(corpus / 'music' / '0.wav')
    found = feel_make.collect([tmp_path / 'listed'])
    assert len(found.songs) == 1
    where = str(tmp_path / 'listed' / 'music' / '30.wav')
    assert found.skipped == [(where, f'its file leads out of {tmp_path / "listed"}')]


def test_the_help_tells_the_recipes_steps():
    from resonance_nb.cli_feel_train import STEPS
    from resonance_nb.feel_train import FeelRecipe

    assert FeelRecipe().steps == STEPS
    out = CliRunner().invoke(feel, ['train', '--help']).output
    assert '[default: 4,000' in ' '.join(out.split()) and 'feel-\n' not in out
    assert out.index('resonance feel train ~/Music --out my-model\n') < out.index('Options:')


@pytest.mark.parametrize('name', ['../out.wav', '/etc/passwd', 'music/../../out.wav'])
def test_a_table_that_leaves_its_folder(name, tmp_path):
    (tmp_path / 'music.csv').write_text(f'id,file,artist\nx,{name},a\n')
    with pytest.raises(ResonanceError, match='could leave its folder'):
        resonance(tmp_path, '--out', tmp_path / 'out')


def test_what_is_no_song_costs_a_line(corpus, tmp_path):
    target = tmp_path / 'c'
    write_corpus(target, (30, 31, 32), 'xxy')
    os.mkfifo(target / 'music' / 'pipe.wav')
    (target / 'music' / 'link.wav').symlink_to(corpus / 'music' / '0.wav')
    with (target / 'music.csv').open('a', encoding='utf-8') as out:
        out.write('p,music/pipe.wav,x,9\nl,music/link.wav,x,9\ng,music/gone.wav,x,9\nm,music,x,9\n')
    found = feel_make.collect([target])
    assert len(found.songs) == 3
    reasons = {Path(path).name: why for path, why in found.skipped}
    assert set(reasons) == {'pipe.wav', 'link.wav', 'gone.wav', 'music'}
    assert 'leads out of' in reasons['link.wav'] and reasons['pipe.wav'] == 'no such file'


def test_complaints(corpus, cache, tmp_path):
    (tmp_path / 'empty').mkdir()
    out = ('--out', tmp_path / 'out', '--cache', cache)
    for words, complaint in (
        ([tmp_path / 'empty'], 'two songs are needed'),
        ([tmp_path / 'none'], 'there is no folder'),
        ([corpus, '--without', 'Nobody'], "no song here is by 'Nobody'"),
        ([corpus, '--without', 'a', '--without', 'b', '--without', 'c'], 'two songs are needed'),
        (
            [corpus, '--hold-out', '1/9'],
            '^part 1/9 cannot be held out of the first folder: 9 parts need at least 9 artists',
        ),
        ([corpus, '--teachers', tmp_path], 'musicnn_msd.onnx and efficientat_mn04_as.onnx'),
        ([corpus, '--set', 'colour', 'red'], 'a recipe has no colour'),
        ([corpus, '--set', 'settings.head', 'attention'], 'nothing but the plain recurrent head'),
        ([corpus, '--set', 'contrast', 0], 'nothing to learn'),
    ):
        with pytest.raises(ResonanceError, match=complaint):
            resonance(*words, *out)
        assert not (tmp_path / 'out').exists()  # what was refused claims no folder


@pytest.mark.parametrize(
    'name, value, allowed',
    [
        ('songs', 0, '2 to 4,096'),
        ('segments', -4, '1 to 1,000'),
        ('settings.width', 0, '1 to 4,096'),
        ('learning_rate', 0.0, '1e-08 to 1'),
        ('mix', 1.5, '0 to 1'),
        ('settings.dropout', 1.0, '0 to 0.95'),
    ],
)
def test_choices_out_of_range(corpus, tmp_path, name, value, allowed):
    words = ['train', corpus, '--out', tmp_path / 'out', '--set', name, value]
    done = CliRunner().invoke(feel, [*map(str, words)])
    assert isinstance(done.exception, ResonanceError)
    assert str(done.exception).startswith(f'{name} is a number from {allowed}, not ')
    assert not (tmp_path / 'out').exists()


def test_a_refused_training_leaves_the_folder_to_the_next(corpus, cache, tmp_path, monkeypatch):
    from resonance_nb import feel_train

    words = (corpus, '--out', tmp_path / 'out', '--cache', cache)
    (tmp_path / 'out').mkdir()
    with monkeypatch.context() as patch:

        def refuse(*args):
            raise ResonanceError('the loss of step 0 is not a number')

        patch.setattr(feel_train, '_step', refuse)
        with pytest.raises(ResonanceError, match='is not a number'):
            resonance(*words)
    assert list((tmp_path / 'out').iterdir()) == []
    assert resonance(*words, '--seed', 5, '--without', 'a')['finished']


def test_damaged_notes_of_a_run_are_told(corpus, cache, tmp_path):
    words = (corpus, '--out', tmp_path, '--cache', cache)
    resonance(*words)
    for name in ('songs.json', 'minutes.json'):
        kept = (tmp_path / 'run' / name).read_bytes()
        for damage in (b'', b'{"songs": 4', b'\xff\xfe', b'"x"'):
            (tmp_path / 'run' / name).write_bytes(damage)
            with pytest.raises(ResonanceError, match=rf'^\S*{name} is damaged: delete \S*run, or name'):
                resonance(*words)
        (tmp_path / 'run' / name).write_bytes(kept)
    (tmp_path / 'run' / 'curve.jsonl').write_text('{"step"')
    assert resonance(*words)['finished']


def test_everybody_may_read_a_model(corpus, cache, tmp_path):
    before = os.umask(0o022)
    try:
        resonance(corpus, '--out', tmp_path / 'out', '--cache', cache)
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / 'out').glob('**/*.*')}
    assert set(modes.values()) == {0o644} and 'feel.safetensors' in modes


def test_checkpoints_come_early(corpus, cache, tmp_path, monkeypatch):
    "Whoever kills a training after half a minute has not lost it."
    from resonance_nb import feel_train

    now = [0.0]
    monkeypatch.setattr(feel_train.time, 'monotonic', lambda: now[0])
    kept, real = [], feel_train._step

    def slow(*args):
        now[0] += 4
        return real(*args)

    songs, _ = feel_make._prepare(feel_make.Sources([corpus], cache=cache), [], np.inf, print, False)
    tiny = feel_train.FeelRecipe(feel_net.Settings(**TINY), steps=20, songs=4, segments=2)
    monkeypatch.setattr(feel_train, '_step', slow)
    monkeypatch.setattr(feel_train, '_keep', lambda folder, student, optimiser, step: kept.append(4 * step))
    feel_train.fit(songs, tiny, tmp_path, progress=False)
    assert kept[0] <= 12 and max(np.diff(kept)) <= 36


def test_damaged_cache_is_made_again(corpus, weights, tmp_path):
    sources = feel_make.Sources([corpus], models=weights, cache=tmp_path)
    songs, panel = feel_make._prepare(sources, [], np.inf, print, False)
    powers = next(tmp_path.glob('powers*/*.npy'))
    taught = next((tmp_path / 'taught').glob('*.npz'))
    for path in (powers, taught):
        path.write_bytes(path.read_bytes()[:-100])
    again, _ = feel_make._prepare(sources, [], np.inf, print, False)
    assert list(again.powers) == list(songs.powers)
    for key, target in songs.targets.items():
        np.testing.assert_allclose(again.targets[key], target, atol=1e-4)
