"""`resonance listen` as people and programs use it: files, pipes, a missing microphone, words that make no sense."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import soundfile as sf

from resonance_nb import audio
from resonance_nb.core import rng_for
from resonance_nb.starter import make_starter

pytest.importorskip('torch')
RATE = audio.SAMPLE_RATE
MAIN = 'import sys; from resonance_nb.cli import main; main()'


def resonance(*words, cwd, given=None):
    "Exit status, standard output, standard error."
    done = subprocess.run(
        [sys.executable, '-c', MAIN, *map(str, words)], cwd=cwd, capture_output=True, input=given
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def events(out):
    return [json.loads(line) for line in out.splitlines()]


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    "Three pieces in a catalogue; a recording of noise, one of them, noise, and a stranger."
    home = tmp_path_factory.mktemp('listen')
    corpus = make_starter(n_pieces=12)
    ids = list(corpus.music.index)
    pieces = [corpus.load('music', i)[: 25 * RATE] for i in ids[:4]]
    (home / 'music').mkdir()
    for i, x in enumerate(pieces[:3]):
        audio.save(home / 'music' / f'piece {i}.flac', x)
    noise = lambda seconds: (
        0.01 * rng_for(0, 'listen', seconds).standard_normal(seconds * RATE).astype(np.float32)
    )
    show = np.concatenate(
        [noise(6), pieces[1][2 * RATE : 22 * RATE], noise(12), pieces[3][: 15 * RATE], noise(3)]
    )
    audio.save(home / 'show.flac', show)
    assert resonance('index', 'music', '--catalog', 'c', cwd=home)[0] == 0
    return home


@pytest.fixture(scope='module')
def heard(home):
    return resonance('listen', '--catalog', 'c', '--input', 'show.flac', '--json', cwd=home)


def test_one_song_is_named_and_lost_and_nothing_else(heard):
    status, out, err = heard
    told = events(out)
    assert status == 0 and not err, err
    assert [e['event'] for e in told if e['event'] in ('match', 'lost')] == ['match', 'lost']
    match, lost = (next(e for e in told if e['event'] == kind) for kind in ('match', 'lost'))
    assert match['title'] == 'piece 1' and match['path'].endswith('piece 1.flac')
    assert 6 < match['time_s'] < 12 and match['offset_s'] == pytest.approx(match['time_s'] - 4, abs=0.15)
    assert 0.5 < match['confidence'] <= 1 and 26 < lost['time_s'] < 38
    assert match['offset_s'] < lost['offset_s'] <= 25, 'a place in the song, not behind its end'
    assert set(match) == {'event', 'time_s', 'track_id', 'title', 'artist', 'path', 'offset_s', 'confidence'}
    assert [e['time_s'] for e in told] == sorted(e['time_s'] for e in told)


def test_a_pipe_tells_the_same_as_a_file(home, heard):
    samples = audio.load(home / 'show.flac')
    raw = (np.clip(samples, -1, 1) * 32767).round().astype('<i2').tobytes()
    status, out, _ = resonance('listen', '--catalog', 'c', '--input', '-', '--json', cwd=home, given=raw)
    kinds = lambda told: [(e['event'], e['title']) for e in told if e['event'] in ('match', 'lost')]
    assert status == 0 and kinds(events(out)) == kinds(events(heard[1]))


def test_people_read_a_line_for_each_change(home):
    status, out, err = resonance(
        'listen', '--catalog', 'c', '--input', 'show.flac', '--method', 'fused', cwd=home
    )
    lines = out.splitlines()
    assert (
        status == 0
        and 'listening' in lines[0]
        and any('match' in line and 'piece 1' in line for line in lines)
    )
    assert '\x1b' not in out + err, 'what moves is for terminals'


@pytest.mark.parametrize(
    'words, told',
    [
        (['--input', 'nothing.flac'], 'nothing.flac'),
        (['--input', 'c'], 'c'),
        (['--false-per-hour', '0'], '--false-per-hour'),
        (['--catalog', 'nowhere', '--input', 'show.flac'], 'resonance index'),
        (['--method', 'embedding', '--input', 'show.flac'], 'embedding'),
    ],
)
def test_what_cannot_be_is_told_in_one_line(home, words, told):
    catalog = [] if '--catalog' in words else ['--catalog', 'c']
    status, out, err = resonance('listen', *catalog, *words, cwd=home)
    assert status == 2 and told in err and len(err.strip().splitlines()) == 1 and not out.strip()


def test_samples_that_are_no_numbers_are_told_once_and_the_rest_is_heard(home, heard):
    x = audio.load(home / 'show.flac')
    x[2 * RATE : 4 * RATE], x[40 * RATE] = np.nan, np.inf  # two pieces, not one
    sf.write(home / 'bad.wav', x, RATE, subtype='FLOAT')
    told = [(e['event'], e['title']) for e in events(heard[1]) if e['event'] in ('match', 'lost')]
    for source, given, name in (
        ('bad.wav', None, 'bad.wav'),
        ('-', x.astype('<f4').tobytes(), 'standard input'),
    ):
        words = [
            'listen',
            '--catalog',
            'c',
            '--input',
            source,
            '--json',
            *(['--dtype', 'float32'] if given else []),
        ]
        status, out, err = resonance(*words, cwd=home, given=given)
        assert (
            status == 0
            and [(e['event'], e['title']) for e in events(out) if e['event'] in ('match', 'lost')] == told
        )
        assert (
            err
            == f'resonance: {name}: holds non-finite samples (NaN or infinity); they are taken for silence\n'
        )
    sf.write(home / 'nothing else.wav', np.full(3 * RATE, np.nan, np.float32), RATE, subtype='FLOAT')
    status, out, err = resonance(
        'listen', '--catalog', 'c', '--input', 'nothing else.wav', '--json', cwd=home
    )
    assert status == 0 and [e['event'] for e in events(out)] == ['listening'] and len(err.splitlines()) == 1


@pytest.mark.parametrize('words', [['--rate', '8000'], ['--channels', '2'], ['--dtype', 'float32']])
def test_what_is_said_of_raw_samples_means_nothing_for_a_file(home, heard, words):
    status, out, err = resonance(
        'listen', '--catalog', 'c', '--input', 'show.flac', '--json', *words, cwd=home
    )
    assert (
        (status, out) == heard[:2]
        and err
        == f'resonance: {words[0]} is for raw samples (--input -); files and microphones say it themselves\n'
    )


def test_an_empty_pipe_is_told(home):
    status, out, err = resonance('listen', '--catalog', 'c', '--input', '-', '--json', cwd=home, given=b'')
    assert status == 2 and 'no samples' in err


# ---- what people pipe in


@pytest.fixture(scope='module')
def sent(home):
    "The same show as MP3 without a beginning of its own, as a radio sends it; how a pipe hears it."
    sf.write(home / 'show.mp3', audio.load(home / 'show.flac'), RATE, format='MP3')
    return (home / 'show.mp3').read_bytes()[2_001:]


def changes(out):
    return [(e['event'], e['title']) for e in events(out) if e['event'] in ('match', 'lost')]


def test_a_radio_is_heard_as_a_file_is(home, heard, sent):
    for data in (
        sent,
        b'HTTP/1.1 200 OK\r\nContent-Type: audio/mpeg\r\n\r\n' + sent,
        (home / 'show.flac').read_bytes(),
    ):
        status, out, err = resonance(
            'listen', '--catalog', 'c', '--input', '-', '--json', cwd=home, given=data
        )
        assert status == 0 and not err and changes(out) == changes(heard[1])


@pytest.mark.parametrize(
    'data, said',
    [
        (b'<!DOCTYPE html><html><title>404</title>', 'is text'),
        (b'{"a": 1}', 'is text'),
        (b'\x89PNG\r\n\x1a\n' + bytes(99), 'is a PNG picture'),
        (np.random.default_rng(0).bytes(50_000), '--raw'),
        (b'HTTP/1.1 404 Not Found\r\n\r\n', '404 Not Found'),
    ],
)
def test_a_pipe_that_brings_no_sound_is_told_in_one_line(home, data, said):
    for words in (['listen', '--input', '-'], ['identify', '-']):
        status, out, err = resonance(*words, '--catalog', 'c', cwd=home, given=data)
        assert (
            status == 2 and said in err and len(err.splitlines()) == 1 and 'standard input' in err and not out
        )


def test_raw_samples_say_so_or_need_not(home, heard):
    samples = (np.clip(audio.load(home / 'show.flac'), -1, 1) * 32767).round().astype('<i2')
    turned = np.stack([samples, -samples], 1)
    for data, words in (
        (samples, ['--raw']),
        (samples, ['--rate', '16000']),
        (turned, ['--channels', '2']),
        (turned, ['--channels', '2', '--raw']),
    ):
        status, out, err = resonance(
            'listen', '--catalog', 'c', '--input', '-', '--json', *words, cwd=home, given=data.tobytes()
        )
        assert status == 0 and not err and changes(out) == changes(heard[1]), words
    status, out, err = resonance(
        'listen',
        '--catalog',
        'c',
        '--input',
        '-',
        '--json',
        '--raw',
        cwd=home,
        given=np.random.default_rng(0).bytes(50_000),
    )
    assert status == 0 and not err


@pytest.mark.parametrize('words', [['listen', '--input', '-'], ['identify', '-'], ['identify', '--all', '-']])
def test_what_is_taken_for_raw_samples_is_told(home, words):
    "Sixteen bits, mono and 16 kHz are a guess; where it is wrong, nobody would know why nothing is found."
    samples = (np.clip(audio.load(home / 'show.flac')[: 5 * RATE], -1, 1) * 32767).round().astype('<i2')
    status, out, err = resonance(*words, '--catalog', 'c', '--json', cwd=home, given=samples.tobytes())
    assert status == 0 and [json.loads(line) for line in out.splitlines()]
    assert len(err.splitlines()) == 1 and 'raw samples: 16 bits, mono, 16 kHz' in err, err


def test_a_named_pipe_and_standard_input_by_its_name(home, heard, sent):
    os.mkfifo(home / 'fifo')
    with subprocess.Popen(['cp', 'show.mp3', 'fifo'], cwd=home):
        status, out, err = resonance('listen', '--catalog', 'c', '--input', 'fifo', '--json', cwd=home)
    assert status == 0 and not err and changes(out) == changes(heard[1])
    status, out, err = resonance(
        'listen', '--catalog', 'c', '--input', '/dev/stdin', '--json', cwd=home, given=sent
    )
    assert status == 0 and not err and changes(out) == changes(heard[1])


def test_identify_asks_what_comes_through_a_pipe(home):
    clip = audio.encode(audio.load(home / 'music' / 'piece 1.flac', 5, 8), codec='mp3')
    for words in (['-'], ['/dev/stdin']):
        status, out, err = resonance('identify', *words, '--catalog', 'c', '--json', cwd=home, given=clip)
        found = json.loads(out)
        assert (
            status == 0
            and not err
            and found['query'] == words[0]
            and found['matches'][0]['title'] == 'piece 1'
        )
        assert found['matches'][0]['offset_s'] == pytest.approx(5, abs=0.2)


def test_standard_input_that_is_closed_is_told(home):
    program = f'import os, sys; os.close(0); os.execv(sys.executable, [sys.executable, "-c", {MAIN!r}, "listen", "--catalog", "c", "--input", "-"])'
    done = subprocess.run([sys.executable, '-c', program], cwd=home, capture_output=True)
    assert (
        done.returncode == 2
        and done.stderr == b'resonance: standard input is closed; send sound into it, or name a file\n'
    )
