"""The command as people and programs use it: in processes of its own."""

import io
import json
import os
import re
import shutil
import struct
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest

from resonance_nb import audio, pipe
from resonance_nb.core import rng_for

RATE = audio.SAMPLE_RATE
MAIN = 'import sys; from resonance_nb.cli import main; main()'


def tune(seed, seconds=20):
    rng = rng_for(seed, 'cli test')
    t = np.arange(RATE // 4) / RATE
    notes_hz = 150 * 2 ** (rng.choice(24, seconds * 4) / 12)
    note = lambda f: sum(np.sin(2 * np.pi * f * k * t) / k for k in range(1, 6)) * np.exp(-6 * t)
    return (0.2 * np.concatenate([note(f) for f in notes_hz])).astype(np.float32)


def resonance(*words, cwd=None, **how):
    "Exit status, standard output, standard error."
    done = subprocess.run(
        [sys.executable, '-c', MAIN, *map(str, words)], cwd=cwd, capture_output=True, text=True, **how
    )
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    "A folder with six songs, a catalogue of five of them, and clips."
    home = tmp_path_factory.mktemp('cli')
    (home / 'music').mkdir()
    for i in range(5):
        audio.save(home / 'music' / f'song {i}.ogg', tune(i))
    (home / 'music' / 'broken.mp3').write_bytes(b'no music here' * 50)
    audio.save(home / 'known.wav', tune(3)[7 * RATE : 14 * RATE])
    audio.save(home / 'stranger.wav', tune(77)[: 7 * RATE])
    audio.save(home / 'silence.wav', np.zeros(5 * RATE, np.float32))
    status, out, err = resonance('index', 'music', '--catalog', 'c', cwd=home)
    assert status == 0, err
    assert '5 added' in out and '1 not readable' in out
    assert [line for line in err.splitlines() if 'broken.mp3' in line and '%|' not in line]
    return home


def test_again_changes_nothing(home):
    status, out, err = resonance('index', 'music', '--catalog', 'c', '--json', cwd=home)
    told = json.loads(out)
    assert status == 0 and told['added'] == 0 and told['unchanged'] == 5 and told['songs'] == 5
    assert [f['path'].endswith('broken.mp3') for f in told['failed']] == [True]


@pytest.mark.skipif(os.name == 'nt', reason='needs a shell with pipes')
@pytest.mark.parametrize(
    'words', [['identify', 'music/song 0.ogg'], ['identify', 'music', '--json'], ['songs'], ['--help']]
)
def test_a_reader_that_has_seen_enough_is_no_error(home, words):
    catalog = [] if words == ['--help'] else ['--catalog', 'c']
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, '-c', MAIN, *words, *catalog],
            cwd=home,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        process.stdout.close()  # as `head` does
        err = process.stderr.read()
        assert process.wait() == 0 and b'Traceback' not in err and b'rror' not in err, err


def test_a_named_path_that_is_not_there_is_told_and_the_others_are_indexed(home):
    words = ['--catalog', home / 'others', '--method', 'landmark']
    status, out, err = resonance('index', 'music/song 0.ogg', 'no such', *words, cwd=home)
    told = [line for line in err.splitlines() if line and '%|' not in line]
    assert (
        status == 2
        and told == [f'{home / "no such"}: no such file']
        and out.startswith('1 added, 0 unchanged, 1 not readable')
    )
    status, out, err = resonance('index', 'music', 'no such', *words, '--json', cwd=home)
    answer = json.loads(out)
    assert status == 2 and (answer['added'], answer['unchanged']) == (4, 1)
    assert set(answer) == {
        'catalog',
        'songs',
        'added',
        'unchanged',
        'moved',
        'retagged',
        'missing',
        'pruned',
        'passed_over',
        'failed',
        'notes',
    }
    assert [f['path'] for f in answer['failed']] == [
        str(home / 'no such'),
        str(home / 'music' / 'broken.mp3'),
    ]
    status, out, err = resonance('index', 'music', 'music/broken.mp3', *words, cwd=home)
    assert status == 0 and '5 unchanged, 1 not readable' in out  # it is there, and cannot be read
    (home / 'leads nowhere.ogg').symlink_to('nowhere.ogg')
    status, out, err = resonance('index', 'music', 'leads nowhere.ogg', *words, cwd=home)
    assert status == 2 and f'{home / "leads nowhere.ogg"}: no such file' in err


def test_identify_json_is_the_contract(home):
    status, out, err = resonance(
        'identify', 'known.wav', 'stranger.wav', 'silence.wav', '--catalog', 'c', '--json', cwd=home
    )
    known, stranger, silence = map(json.loads, out.splitlines())
    assert status == 0 and err == ''
    for answer in (known, stranger, silence):
        assert set(answer) == {'query', 'decision', 'matches', 'calibrated', 'elapsed_ms'}
        for match in answer['matches']:
            assert set(match) == {'track_id', 'title', 'artist', 'path', 'score', 'confidence', 'offset_s'}
    assert known['query'] == 'known.wav' and known['decision'] == 'match'
    assert known['matches'][0]['title'] == 'song 3' and known['matches'][0]['offset_s'] == pytest.approx(
        7, abs=0.1
    )
    assert stranger['decision'] == silence['decision'] == 'no-match' and silence['matches'] == []


def test_top_bounds_the_matches(home):
    for k in (1, 3):
        _, out, _ = resonance('identify', 'known.wav', '--catalog', 'c', '--json', '--top', k, cwd=home)
        assert 1 <= len(json.loads(out)['matches']) <= k


def test_an_unreadable_query_is_told_and_the_rest_goes_on(home):
    status, out, err = resonance(
        'identify', 'music/broken.mp3', 'gone.wav', 'known.wav', '--catalog', 'c', '--json', cwd=home
    )
    answers = [json.loads(line) for line in out.splitlines()]
    assert status == 2 and len(err.splitlines()) == 2
    assert [a['decision'] for a in answers] == ['no-match', 'no-match', 'match']
    assert 'error' in answers[0] and 'error' in answers[1] and 'error' not in answers[2]


def test_words_for_people(home):
    status, out, _ = resonance('identify', 'known.wav', 'stranger.wav', '--catalog', 'c', cwd=home)
    first, second = out.splitlines()
    assert 'song 3' in first and '0:07' in first and 'confidence' in first
    assert second.startswith('stranger.wav: no match')


def test_many_queries_in_one_process(home):
    names = ['known.wav', 'stranger.wav'] * 20
    status, out, err = resonance('identify', *names, '--catalog', 'c', '--json', cwd=home)
    assert status == 0 and [json.loads(line)['query'] for line in out.splitlines()] == names
    assert err == '', 'a bar is for a terminal'


@pytest.mark.skipif(os.name == 'nt', reason='needs a terminal')
def test_bars_are_drawn_on_a_terminal_and_nowhere_else(home, tmp_path):
    import fcntl
    import termios

    words = ['index', home / 'music', '--catalog', tmp_path / 'c', '--method', 'landmark']
    shown = b''
    _, out, err = resonance(*words, cwd=home)
    assert '5 added' in out and len(err.splitlines()) == 1 and 'broken.mp3' in err
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack('4H', 24, 100, 0, 0))
    with subprocess.Popen(
        [sys.executable, '-c', MAIN, *map(str, words), '--again'],
        cwd=home,
        stdout=subprocess.DEVNULL,
        stderr=theirs,
    ):
        os.close(theirs)
        try:
            while more := os.read(ours, 65_536):
                shown += more
        except OSError:  # the other side is closed
            pass
    os.close(ours)
    assert b'file' in shown and b'6/6' in shown


@pytest.fixture(scope='module')
def mix(home):
    "A recording of three of the songs, one of them twice, and what the catalogue does not know; another that is damaged, one that breaks off, one that is long."
    parts = [tune(0), tune(77, 24), tune(3)[4 * RATE :], tune(1), tune(1)]
    audio.save(home / 'mix.flac', np.concatenate(parts))
    whole = bytearray(audio.encode(tune(4, 30), codec='ogg'))
    middle = len(whole) // 2
    (home / 'hurt.ogg').write_bytes(whole[:middle] + bytes(600) + whole[middle + 600 :])
    (home / 'cut.flac').write_bytes(audio.encode(tune(3), codec='flac')[:150_000])
    audio.save(home / 'long.flac', np.concatenate([tune(2)] * 16))
    whole = bytearray(audio.encode(np.concatenate([tune(2)] * 16), codec='ogg'))
    whole[len(whole) // 10 : len(whole) // 10 + 600] = bytes(600)
    (home / 'long and hurt.ogg').write_bytes(whole)
    return 'mix.flac'


def test_every_song_of_a_recording(home, mix):
    status, out, err = resonance(
        'identify', '--all', mix, 'stranger.wav', 'gone.wav', 'hurt.ogg', '--catalog', 'c', '--json', cwd=home
    )
    told, stranger, gone, hurt = map(json.loads, out.splitlines())
    assert status == 2 and len(err.splitlines()) == 2
    for answer in (told, stranger, gone, hurt):
        assert set(answer) - {'error'} == {'query', 'duration_s', 'songs', 'problems', 'elapsed_ms'}
    keys = {'track_id', 'title', 'artist', 'path', 'from_s', 'to_s', 'offset_s', 'confidence'}
    assert all(set(song) == keys for song in told['songs'] + hurt['songs'])
    assert [s['title'] for s in told['songs']] == ['song 0', 'song 3', 'song 1', 'song 1']
    for song, (begin_s, end_s, offset_s) in zip(
        told['songs'], [(0, 20, 0), (44, 60, 4), (60, 80, 0), (80, 100, 0)]
    ):
        assert (song['from_s'], song['to_s']) == (pytest.approx(begin_s, abs=2), pytest.approx(end_s, abs=2))
        assert song['offset_s'] - song['from_s'] == pytest.approx(offset_s - begin_s, abs=0.2)
    assert (told['query'], told['duration_s'], told['problems']) == (mix, 100.0, [])
    assert (
        stranger['songs'] == gone['songs'] == stranger['problems'] == []
        and 'gone.wav' in gone['error']
        and gone['error'] in err
    )
    assert 'is damaged at' in hurt['problems'][0] and f'hurt.ogg: {hurt["problems"][0]}' in err


def test_every_song_for_people_and_as_a_cue_sheet(home, mix):
    status, out, err = resonance('identify', '--all', mix, '--cue', 'mix.cue', '--catalog', 'c', cwd=home)
    head, *songs = out.splitlines()
    assert status == 0 and err == '' and head == 'mix.flac: 4 songs in 1:40.0'
    assert (
        re.match(r'  0:\d\d\.\d – 0:\d\d\.\d  song 0  \(confidence \d+\.\d%\)$', songs[0]) and len(songs) == 4
    )
    sheet = (home / 'mix.cue').read_text().splitlines()
    assert sheet[0] == 'FILE "mix.flac" WAVE' and sum('INDEX 01' in line for line in sheet) == 5
    assert [line.split('"')[1] for line in sheet if 'TITLE' in line] == [
        'song 0',
        'Unknown',
        'song 3',
        'song 1',
        'song 1',
    ]


@pytest.mark.skipif(os.name == 'nt', reason='needs links')
def test_a_cue_sheet_is_written_where_its_link_leads(home, mix, tmp_path):
    link = home / 'link.cue'
    link.symlink_to(tmp_path / 'real.cue')
    status, out, err = resonance('identify', '--all', mix, '--cue', link.name, '--catalog', 'c', cwd=home)
    assert (status, err) == (0, '') and link.is_symlink()
    assert (tmp_path / 'real.cue').read_text().startswith('FILE "mix.flac" WAVE')


@pytest.mark.skipif(os.name == 'nt', reason='needs Ctrl-C')
def test_what_a_radio_brought_is_told_after_ctrl_c(home):
    code = 'import signal; signal.signal(signal.SIGINT, signal.default_int_handler); ' + MAIN
    listener = subprocess.Popen(
        [sys.executable, '-c', code, 'identify', '--all', '-', '--catalog', 'c', '--json'],
        cwd=home,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    song = (np.concatenate([tune(3), tune(77)]) * 32_767).astype('<i2').tobytes()
    listener.stdin.write(song)  # more than fits into a pipe: nearly all of it was taken when this returns
    listener.stdin.flush()
    time.sleep(3)
    listener.send_signal(signal.SIGINT)
    assert listener.wait(60) == 130
    answer = json.loads(listener.stdout.read())
    assert [song['title'] for song in answer['songs']] == ['song 3'] and 20 < answer['duration_s'] <= 40
    assert b'interrupted' in listener.stderr.read()
    for end in (listener.stdin, listener.stdout, listener.stderr):
        end.close()


def test_no_catalogue_is_made_inside_another(home):
    status, out, err = resonance('index', 'music', '--catalog', 'c/inner', cwd=home)
    assert status == 2 and 'c/inner lies inside the catalogue' in err and len(err.splitlines()) == 1
    assert not (home / 'c' / 'inner').exists()


@pytest.mark.parametrize(
    'words, says',
    [
        (['known.wav', '--cue', 'a.cue'], '--all'),
        (['--all', 'known.wav', '--top', '2'], '--top'),
        (['--all', 'known.wav', '--cue', 'known.wav'], '.cue'),
        (['--all', 'known.wav', 'mix.flac', '--cue', 'a.cue'], 'one recording'),
        (
            ['--all', 'known.wav', '--cue', 'no/such/a.cue'],
            'cannot write the cue sheet no/such/a.cue: there is no folder no/such',
        ),
        (['--all', 'known.wav', '--cue', 'known.wav/a.cue'], 'cannot write the cue sheet known.wav/a.cue'),
        (['--all', '-', '--cue', 'a.cue'], 'is a pipe'),
    ],
)
def test_questions_about_a_recording_that_make_no_sense(home, mix, words, says):
    before = (home / 'known.wav').read_bytes()
    status, out, err = resonance('identify', *words, '--catalog', 'c', cwd=home)
    assert status == 2 and says in err and len(err.splitlines()) == 1
    assert (home / 'known.wav').read_bytes() == before and not (home / 'a.cue').exists()
    assert out == '' and '.part' not in err and not list(home.glob('.*.part'))


@pytest.mark.skipif(os.name == 'nt', reason='needs a shell with pipes')
@pytest.mark.parametrize(
    'line',
    [
        'cat mix.flac | {} -',
        '{} <(cat mix.flac)',
        'mkfifo fifo; cat mix.flac > fifo & {} fifo',
        '{} - < mix.flac',
    ],
)
def test_every_song_of_what_comes_through_a_pipe(home, mix, line):
    status, out, _ = resonance('identify', '--all', mix, '--catalog', 'c', '--json', cwd=home)
    code = line.format(f'{sys.executable} -c "{MAIN}" identify --catalog c --json --all')
    done = subprocess.run(
        ['bash', '-c', f'rm -f fifo; {code}'],
        cwd=home,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == status == 0 and done.stderr == '', done.stderr
    told = json.loads(done.stdout)
    of_file = json.loads(out)
    assert set(told) == set(of_file) and (told['duration_s'], told['problems']) == (of_file['duration_s'], [])
    assert [s['title'] for s in told['songs']] == [s['title'] for s in of_file['songs']]
    for one, other in zip(told['songs'], of_file['songs']):
        assert (one['from_s'], one['to_s']) == (
            pytest.approx(other['from_s'], abs=0.5),
            pytest.approx(other['to_s'], abs=0.5),
        )


def test_what_is_no_sound_has_no_songs_through_a_pipe_either(home, mix):
    done = subprocess.run(
        [sys.executable, '-c', MAIN, 'identify', '--all', '-', '--catalog', 'c', '--json'],
        cwd=home,
        input=b'<html>no music</html>' * 99,
        capture_output=True,
    )
    told = json.loads(done.stdout)
    assert (
        done.returncode == 2
        and told['error'] in done.stderr.decode()
        and told['songs'] == []
        and len(done.stderr.splitlines()) == 1
    )


def test_of_a_pipe_it_is_told_what_was_not_heard_and_what_is_damaged(home, mix):
    def ask(name, *words):
        done = subprocess.run(
            [sys.executable, '-c', MAIN, 'identify', *words, '-', '--catalog', 'c', '--json'],
            cwd=home,
            input=(home / name).read_bytes(),
            capture_output=True,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout), done.stderr.decode().splitlines()

    long, told = ask('long.flac')
    assert (long['decision'], long['heard_s'], long['duration_s']) == ('match', 300.0, None)
    assert (
        len(told) == 1
        and 'only the first 5:00.0 were heard' in told[0]
        and '`resonance identify --all - --catalog' in told[0]
    )
    for words in ([], ['--all']):
        hurt, told = ask('hurt.ogg', *words)
        assert (
            'is damaged at' in hurt['problems'][0]
            and told == [f'resonance: -: {hurt["problems"][0]}']
            and 'heard_s' not in hurt
        )
        cut, told = ask('cut.flac', *words)
        assert re.fullmatch(r'breaks off: \d+\.\d s could be read', cut['problems'][0]) and len(told) == 1
    assert set(ask('known.wav')[0]) == {'query', 'decision', 'matches', 'calibrated', 'elapsed_ms'}


def test_what_was_not_heard_and_what_is_damaged_is_told(home, mix):
    status, out, err = resonance(
        'identify', 'long.flac', 'hurt.ogg', 'cut.flac', 'known.wav', '--catalog', 'c', '--json', cwd=home
    )
    long, hurt, cut, known = map(json.loads, out.splitlines())
    assert status == 0 and all(a['decision'] == 'match' for a in (long, hurt, cut, known))
    assert (long['heard_s'], long['duration_s']) == (300.0, 320.0) and 'problems' not in long
    assert len(hurt['problems']) == len(cut['problems']) == 1 and not {'heard_s', 'duration_s'} & (
        hurt.keys() | cut.keys()
    )
    assert set(known) == {'query', 'decision', 'matches', 'calibrated', 'elapsed_ms'}
    told = err.splitlines()
    assert len(told) == 3 and all(line.startswith('resonance: ') for line in told)
    assert (
        'the first 5:00.0 of 5:20.0' in told[0] and '`resonance identify --all long.flac --catalog' in told[0]
    )
    assert told[1] == f'resonance: hurt.ogg: {hurt["problems"][0]}' and re.search(
        r'is damaged at .*; the rest is read$', told[1]
    )
    assert re.fullmatch(r'resonance: cut.flac: breaks off: \d+\.\d s could be read', told[2])
    indexed = resonance(
        'index', 'hurt.ogg', 'cut.flac', '--catalog', 'others', '--method', 'landmark', cwd=home
    )[2]
    assert hurt['problems'][0] in indexed and f'{cut["problems"][0]} and are indexed' in indexed


def test_damage_in_the_beginning_of_a_long_file_is_told(home, mix):
    status, out, err = resonance('identify', 'long and hurt.ogg', '--catalog', 'c', '--json', cwd=home)
    told = json.loads(out)
    assert status == 0 and told['decision'] == 'match' and told['heard_s'] == 300.0
    assert 'is damaged at 3' in told['problems'][0] and len(err.splitlines()) == 2


def test_a_name_that_is_no_utf8(home):
    name = os.fsdecode(b'caf\xe9 \n.wav')
    (home / name).write_bytes((home / 'known.wav').read_bytes())
    done = subprocess.run(
        [sys.executable, '-c', MAIN, 'identify', os.fsencode(name), '--catalog', 'c', '--json'],
        cwd=home,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)['decision'] == 'match' and len(done.stdout.splitlines()) == 1


@pytest.mark.parametrize(
    'words, says',
    [
        (['identify', 'known.wav'], '--catalog'),
        (['identify', 'known.wav', '--catalog', 'nowhere'], 'resonance index'),
        (['identify', '--catalog', 'c'], 'FILE'),
        (['identify', 'known.wav', '--catalog', 'c', '--method', 'humming'], 'landmark'),
        (['identify', 'known.wav', '--catalog', 'music'], 'music'),
        (['index', 'no such folder', '--catalog', 'fresh'], 'no such folder'),
        (['index', 'music', '--catalog', 'music'], 'music'),
        (['index', 'music', '--catalog', 'c', '--jobs', '0'], '--jobs'),
        (['corpus', 'fetch', 'spotify'], 'starter'),
        (['corpus', 'check', 'music'], 'music'),
        (['bench', '--corpus', 'music'], 'music'),
        (['bench', '--snr-db', 'loud'], 'loud'),
        (['run', 'no_such_chapter'], 'no_such_chapter'),
        (['run', '34_classical', '-p', 'sed', '1'], 'sed'),
        (['frobnicate'], 'frobnicate'),
    ],
)
def test_a_complaint_is_one_line_and_status_2(home, words, says):
    cwd = home if words[0] != 'run' else None
    status, out, err = resonance(*words, cwd=cwd)
    lines = [line for line in err.splitlines() if '%|' not in line and line.strip()]
    assert status == 2 and out == ''
    assert says in err and lines[-1].startswith('resonance') and 'Traceback' not in err
    assert len([line for line in lines if line.startswith('resonance')]) == 1


def test_a_closed_pipe_is_no_error(home):
    code = f'{sys.executable} -c "{MAIN}" identify known.wav stranger.wav --catalog c --json | true'
    done = subprocess.run(['bash', '-c', code], cwd=home, capture_output=True, text=True)
    assert 'Traceback' not in done.stderr


def test_help_waits_for_nothing():
    code = 'import sys\ntry:\n    from resonance_nb.cli import main; main(["--help"])\nexcept SystemExit: pass\nprint(sorted(sys.modules))'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    loaded = done.stdout.splitlines()[-1]
    for heavy in (
        'numpy',
        'scipy',
        'pandas',
        'torch',
        'lightning',
        'transformers',
        'matplotlib',
        'soundfile',
    ):
        assert f"'{heavy}'" not in loaded


@pytest.mark.parametrize(
    'command', [[], ['index'], ['identify'], ['corpus'], ['corpus', 'fetch'], ['bench'], ['run'], ['book']]
)
def test_every_help_teaches(command):
    status, out, err = resonance(*command, '--help')
    assert status == 0 and 'Usage: resonance' in out and len(out.splitlines()) > 4 and err == ''


def test_one_is_not_many(tmp_path):
    (tmp_path / 'music').mkdir()
    audio.save(tmp_path / 'music' / 'song.ogg', tune(0))
    said = lambda *words: resonance(*words, '--catalog', 'c', cwd=tmp_path)[1].splitlines()[-1]
    assert (
        said('index', 'music', '--method', 'landmark') == f'1 added, 0 unchanged; 1 song in {tmp_path / "c"}'
    )
    assert said('songs').startswith('1 song, ') and said('songs', 'song').startswith('1 of 1 song, ')
    peaks = next((tmp_path / 'c' / 'landmark').glob('*/peaks.npy'))
    peaks.write_bytes(peaks.read_bytes()[:-8])
    assert '(1 song)' in json.loads(said('check', '--json'))['problem'] and said('check') == '1 problem left'
    assert said('check', '--repair') == 'all is well: 1 song in c'
    (tmp_path / 'one.csv').write_text('path,title\nx\n')
    status, out, err = resonance('songs', '--import', 'one.csv', '--catalog', 'c', cwd=tmp_path)
    assert err == 'resonance: one.csv, line 2: 1 cell under 2 column names\n'
    with pytest.raises(audio.AudioError, match='claims 1 channel at 9 Hz'):
        pipe.from_raw(io.BytesIO(bytes(99)), 9)


def test_no_number_stands_before_a_noun_for_many(root):
    "Where the command prints a count, `counted` chooses the noun."
    nouns = 'song|file|folder|question|answer|problem|crowd|room|step|segment|track|cell|column|channel|row|clip|page'
    found = re.findall(
        rf"[^\n]*\}} (?:new )?(?:{nouns})s\b[^\n]*",
        '\n'.join(p.read_text(encoding='utf-8') for p in (root / 'resonance_nb').glob('cli*.py')),
    )
    assert not found


def test_quoted_words_are_a_phrase(home):
    found = lambda *words: resonance('songs', *words, '--catalog', 'c', '--json', cwd=home)[1].splitlines()
    assert len(found('song 3')) == 1 and found('3', 'song') and found('3 song') == []
    assert 'quotes' in resonance('songs', '--help')[1]


def test_corpora_are_listed_and_checked():
    from resonance_nb.starter import default_corpus

    status, out, err = resonance('corpus', 'list')
    assert status == 0 and 'starter' in out and 'open' in out
    status, out, err = resonance('corpus', 'check', default_corpus().folder)
    assert status == 0, err


def test_bench_on_a_small_corpus(tmp_path):
    import pandas as pd

    from resonance_nb.corpora import COLUMNS, write_corpus

    tables = {}
    for kind, n in (('music', 16), ('noise', 12), ('rir', 1)):
        (tmp_path / kind).mkdir()
        rows = []
        for i in range(n):
            sound = (
                tune(i, 8)
                if kind == 'music'
                else 0.1 * rng_for(i, kind).standard_normal(8 * RATE).astype(np.float32)
            )
            audio.save(tmp_path / kind / f'{i}.wav', sound)
            row = {
                'id': f'{kind}{i}',
                'kind': kind,
                'file': f'{kind}/{i}.wav',
                'title': f'{kind} {i}',
                'concert_use': 'core',
                'category': 'applause',
            }
            rows.append({c: row.get(c, '') for c in COLUMNS[kind]} | {'duration_s': 8.0})
        tables[kind] = pd.DataFrame(rows)
    write_corpus(tmp_path, **tables)
    words = [
        'bench',
        '--corpus',
        tmp_path,
        '--snr-db',
        'clean,-5',
        '--durations',
        '3',
        '--split',
        'train',
        '--out',
    ]
    for name, *venue in (('answers.jsonl',), ('festival.csv', '--venue', 'festival')):
        status, out, err = resonance(*words, tmp_path / name, *venue)
        assert status == 0, err
        assert 'clean' in out and '-5 dB' in out and 'false accepts' in out
    rows = [json.loads(line) for line in (tmp_path / 'answers.jsonl').read_text().splitlines()]
    assert len(rows) == len((tmp_path / 'festival.csv').read_text().splitlines()) - 1 > 0
    assert {r['kind'] for r in rows} == {'known', 'unknown', 'noise'} and all(
        r['duration_s'] == 3 for r in rows
    )
    festival, plain = (
        t.set_index(['system', 'query_id'])
        for t in (pd.read_csv(tmp_path / 'festival.csv'), pd.DataFrame(rows))
    )
    clean = festival.snr_db == np.inf
    crowded = festival.snr_db == -5
    apart = lambda rows: (festival[rows].score - plain.loc[festival[rows].index].score).abs()
    # of two processes, each with its own last digits
    assert clean.any() and apart(clean).fillna(0).max() < 0.1 < 1 < apart(crowded).max()


def test_the_landmark_recogniser_needs_no_torch():
    code = 'import sys, resonance_nb.landmarks; print([m for m in ("torch", "lightning", "transformers", "matplotlib", "pandas") if m in sys.modules])'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.stdout.strip() == '[]'


# ---- degrade


def degraded(home, *words):
    status, out, err = resonance(
        'degrade', *words, cwd=home, env={k: v for k, v in os.environ.items() if k != 'RESONANCE_CORPUS'}
    )
    return (
        status,
        [json.loads(line) for line in out.splitlines() if line.startswith('{')] if '--json' in words else out,
        err,
    )


def test_degrade_tells_every_drawn_value_and_repeats_itself(home):
    words = 'degrade', 'known.wav', 'heard.wav', '--venue', 'club', '--snr-db', '3', '--seed', '1', '--json'
    status, told, err = degraded(home, *words[1:])
    first = audio.load(home / 'heard.wav')
    assert status == 0 and err == '' and len(told) == 1
    assert told[0].keys() >= {
        'input',
        'output',
        'venue',
        'snr_db',
        'seed',
        'room',
        'scene',
        'source',
        'phone',
        'measured',
        'device',
        'version',
    }
    assert told[0]['venue'] == 'club' and abs(told[0]['measured']['snr_db'] - 3) <= 0.1
    assert len(audio.load(home / 'heard.wav')) == 7 * RATE
    (_, again, _), second = degraded(home, *words[1:]), audio.load(home / 'heard.wav')
    (_, others, _), third = degraded(home, *words[1:-2], '2', '--json'), audio.load(home / 'heard.wav')
    drawn = lambda told: [{k: v for k, v in t.items() if k != 'measured'} for t in told]
    assert drawn(again) == drawn(told) != drawn(others) and again[0]['measured'] == pytest.approx(
        told[0]['measured'], abs=0.01
    )
    like_the_first = [np.corrcoef(x, first)[0, 1] for x in (second, third)]
    assert like_the_first[0] > 0.9 > like_the_first[1], (
        'of another process: an encoder makes much of a last digit'
    )
    assert degraded(home, 'known.wav', 'quiet.flac', '--snr-db', 'none')[1].count('no crowd') == 1


def test_degrade_a_folder_keeps_its_shape_and_goes_on_after_what_is_broken(home):
    status, told, err = degraded(home, 'music', 'concerts', '--venue', 'any', '--snr-db', '0', '--json')
    assert (
        status == 2
        and 'broken.mp3' in err
        and len([line for line in err.splitlines() if 'broken' in line]) == 1
    )
    assert sorted(p.name for p in (home / 'concerts').iterdir()) == [f'song {i}.flac' for i in range(5)]
    assert len(told) == 5 and len({t['seed'] for t in told}) == 5 and all(t['venue'] for t in told)


def test_degrade_takes_no_file_twice_and_loses_none_of_the_same_name(home):
    (home / 'twins').mkdir()
    for name in ('a.wav', 'a.ogg', 'b.ogg'):
        audio.save(home / 'twins' / name, tune(9, 4))
    for _ in range(2):
        status, told, err = degraded(home, 'twins', 'twins/heard', '--json')
        assert status == 0, err
        assert (
            sorted(p.name for p in (home / 'twins' / 'heard').iterdir())
            == ['a.ogg.flac', 'a.wav.flac', 'b.flac']
            and len(told) == 3
        )
    (home / 'above').mkdir()
    audio.save(home / 'above' / 'c.ogg', tune(9, 4))
    # out may hold the source
    assert degraded(home, 'above', '.', '--json')[0] == 0 and (home / 'c.flac').exists()


@pytest.mark.parametrize(
    'words, why',
    [
        (('gone.wav', 'x.wav'), 'gone.wav'),
        (('known.wav', 'x.xyz'), 'choose a name that ends in'),
        (('known.wav', 'known.wav'), 'overwrite'),
        (('known.wav', 'x.wav', '--snr-db', '99'), '-60 to 60'),
        (('known.wav', 'x.wav', '--snr-db', 'loud'), 'none'),
        (('known.wav', 'x.wav', '--venue', 'opera'), 'phone-on-shoulder'),
        (('silence.wav', 'x.wav'), 'silence.wav: the music is silent'),
        (('music/broken.mp3', 'x.wav'), 'broken.mp3'),
        (('known.wav', 'x.wav', '--corpus', 'music'), 'not a corpus'),
    ],
)
def test_degrade_complains_in_one_line(home, words, why):
    status, _, err = degraded(home, *words)
    assert status == 2 and why in err and len(err.strip().splitlines()) == 1
    assert not (home / 'x.wav').exists()


def test_degrade_takes_what_is_longer_than_memory_should_hold(home):
    audio.save(home / 'long.flac', np.tile(tune(5), 31))
    status, told, err = degraded(
        home, 'long.flac', 'long heard.flac', '--venue', 'living-room', '--snr-db', '10', '--json'
    )
    assert status == 0, err
    assert (
        audio.info(home / 'long heard.flac').duration_s == 620
        and abs(told[0]['measured']['snr_db'] - 10) <= 0.1
    )


def test_the_venues_of_the_command_are_those_of_the_package():
    from resonance_nb.cli_options import VENUE_NAMES
    from resonance_nb.venue import VENUES

    assert list(VENUE_NAMES) == list(VENUES)


def real(*words, **how):
    "The command in a process of its own."
    return subprocess.run([sys.executable, '-c', MAIN, *words], capture_output=True, text=True, **how)


def test_what_the_system_refuses_is_one_line(tmp_path):
    for words in (
        ['songs', '--catalog', str(tmp_path / ('x' * 300))],
        ['index', str(tmp_path), '--catalog', str(tmp_path / ('x' * 300))],
    ):
        done = real(*words)
        assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1, done.stderr


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='no /dev/full')
def test_a_full_disk_behind_standard_output_is_one_line():
    with open('/dev/full', 'w') as full:
        done = subprocess.run(
            [sys.executable, '-c', MAIN, 'corpus', 'list', '--json'],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert (
        done.returncode == 2 and 'No space left' in done.stderr and len(done.stderr.strip().splitlines()) == 1
    )


def test_without_words_the_help_has_its_lines():
    done = real()
    assert done.returncode in (0, 2) and len((done.stdout + done.stderr).splitlines()) > 10


def ordinary_user():
    "The words before a command that is run by somebody who may write nothing of others; skips where there is nobody."
    if os.name == 'nt':
        pytest.skip('needs owners of files')
    if os.geteuid():
        return []
    if not shutil.which('setpriv'):
        pytest.skip('root may write anything, and cannot be somebody else without setpriv')
    user = ['setpriv', '--reuid=65534', '--regid=65534', '--clear-groups']
    # Python itself may lie where only root looks
    reading = [*user, '--inh-caps=+dac_read_search', '--ambient-caps=+dac_read_search']
    probe = 'import subprocess, sys, resonance_nb.cli, numpy; subprocess.run([sys.executable, "-c", "pass"], check=True)'
    for words in (user, reading):
        if not subprocess.run([*words, sys.executable, '-c', probe], capture_output=True).returncode:
            return words
    pytest.skip('Python cannot be run by another user here')


@pytest.fixture(scope='module')
def shelf():
    "A catalogue that anybody may read, and who reads it."
    user = ordinary_user()
    with tempfile.TemporaryDirectory() as folder:
        shelf = Path(folder)
        os.chmod(shelf, 0o755)
        (shelf / 'music').mkdir(), (shelf / 'home').mkdir()
        for i in range(3):
            audio.save(shelf / 'music' / f'song {i}.ogg', tune(i))
        audio.save(shelf / 'known.wav', tune(1)[7 * RATE : 14 * RATE])
        audio.save(shelf / 'new.ogg', tune(9))
        assert resonance('index', 'music', '--catalog', 'mine', '--method', 'landmark', cwd=shelf)[0] == 0
        subprocess.run(['chmod', '-R', 'u=rwX,go=rX', str(shelf)], check=True)
        if user:
            os.chown(shelf / 'home', 65534, 65534)
        env = os.environ | {
            'HOME': str(shelf / 'home'),
            'PYTHONDONTWRITEBYTECODE': '1',
            'PYTHONPATH': str(Path(audio.__file__).parents[1]),
        }

        def ask(*words):
            done = subprocess.run(
                [*user, sys.executable, '-c', MAIN, *map(str, words)],
                cwd=shelf,
                env=env,
                capture_output=True,
                text=True,
            )
            return done.returncode, done.stdout, done.stderr.splitlines()

        yield shelf, ask, bool(user)
        subprocess.run(['chmod', '-R', 'u+w', str(shelf)], check=True)


def owned(place, *names):
    for name in names:
        os.chown(place / name, 65534, 65534)


@pytest.mark.parametrize(
    'case',
    [
        "another's",
        'all read-only',
        'file read-only',
        "file another's",
        "index another's",
        'index read-only',
        'log waits',
    ],
)
def test_a_catalogue_that_may_not_be_written_is_read(shelf, case):
    home, ask, is_nobody = shelf
    place = home / case.replace("'", '')
    shutil.copytree(home / 'mine', place)
    everything = [place, *place.rglob('*')]
    if case == 'log waits':  # of a writer that was killed
        code = 'import os, sys; from resonance_nb.catalog import Catalog; c = Catalog(sys.argv[1]); c.store.rows("UPDATE songs SET artist = \'Zoë\'"); os.kill(os.getpid(), 9)'
        subprocess.run([sys.executable, '-c', code, place])
        assert (place / 'catalogue.sqlite-wal').stat().st_size
        everything = [place, *place.rglob('*')]
    parts = {'file': [place / 'catalogue.sqlite'], 'index': [place / 'landmark']}.get(
        case.split()[0], everything
    )
    if is_nobody and case not in ("another's", 'log waits'):
        owned(place, *everything)
    for path in parts:
        if is_nobody and "another's" in case:
            os.chown(path, 0, 0)
        else:
            path.chmod(path.stat().st_mode & ~0o222)
    before = {
        p: p.read_bytes()
        for p in place.rglob('*')
        if p.is_file() and not p.name.endswith(('-shm', '-wal', '.lock'))
    }
    status, out, err = ask('songs', '--catalog', place)
    assert (status, err, len(out.splitlines())) == (0, [], 4) and ('Zoë' in out) == (case == 'log waits')
    status, out, err = ask('check', '--catalog', place)
    assert (status, err) == (0, []) and out.startswith('all is well: 3 songs')
    status, out, err = ask('identify', 'known.wav', '--catalog', place, '--json')
    assert (status, err) == (0, []) and json.loads(out)['matches'][0]['title'] == 'song 1'
    status, out, err = ask('listen', '--input', 'known.wav', '--catalog', place, '--json')
    assert (status, err) == (0, []) and '"match"' in out and 'song 1' in out
    for words in (['new.ogg'], ['new.ogg', '--json', '--no-wait', '--jobs', '2']):
        status, out, err = ask('index', *words, '--catalog', place, '--method', 'landmark')
        assert (status, out, len(err)) == (2, '', 1) and err[0].startswith('resonance: '), err
        assert 'cannot' in err[0] and 'read-only' in err[0] and 'free some space' not in err[0], err
    assert {p: p.read_bytes() for p in before} == before and '\n3 songs, ' in ask(
        'songs', '--catalog', place
    )[1]


@pytest.mark.parametrize(
    'part, says',
    [('catalogue.sqlite', 'you may not read its catalogue.sqlite'), ('landmark', 'Permission denied')],
)
def test_a_catalogue_that_may_not_be_read_is_told_in_one_line(shelf, part, says):
    home, ask, is_nobody = shelf
    probe = home / 'probe'
    probe.write_text('x'), probe.chmod(0)
    user = ordinary_user()
    if not subprocess.run([*user, 'cat', str(probe)], capture_output=True).returncode:
        pytest.skip('this user may read everything')
    place = home / f'shut {part}'
    shutil.copytree(home / 'mine', place)
    (place / part).chmod(0)
    for words in (['identify', 'known.wav'], ['listen', '--input', 'known.wav']):
        status, out, err = ask(*words, '--catalog', place)
        assert status == 2 and len(err) == 1 and says in err[0] and 'index the music again' not in err[0]
    (place / part).chmod(0o755)


def test_a_place_where_nothing_may_be_written_gets_no_catalogue(shelf):
    home, ask, is_nobody = shelf
    if not is_nobody:
        home.chmod(0o555)
    status, out, err = ask('index', 'music', '--catalog', 'fresh', '--method', 'landmark')
    home.chmod(0o755)
    assert (
        (status, out, len(err)) == (2, '', 1)
        and 'cannot make a catalogue at' in err[0]
        and 'Permission denied' in err[0]
    )


def test_a_folder_that_cannot_be_looked_into_is_told(tmp_path, monkeypatch, capsys):
    from resonance_nb.cli_options import recordings

    inside = [tmp_path / 'a.ogg'], [(tmp_path / 'shut', 'no permission to read it')]
    monkeypatch.setattr(audio, 'find_audio', lambda paths: inside)
    assert recordings(['-', str(tmp_path)]) == ['-', str(tmp_path / 'a.ogg')]
    assert capsys.readouterr().err == f'resonance: {tmp_path}/shut: no permission to read it\n'
