"""Audio: every container, exact excerpts, hostile files, bounded memory, and the levels against their definitions."""

import math
import os
import pickle
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import soxr

from resonance_nb import audio, ffmpeg

sys.path.insert(0, str(Path(__file__).parent))
from hostile import RATE, make_hostile, tone, wav_header, write, write_av  # noqa: E402


@pytest.fixture(scope='module')
def shelf(tmp_path_factory):
    "The same 16-second stereo sound in every container: {name: path}, and the sound as mono at 16 kHz under 'reference'."
    d = tmp_path_factory.mktemp('shelf')
    rng = np.random.default_rng(0)
    t = np.arange(16 * 44_100) / 44_100
    x = 0.4 * np.sin(2 * np.pi * (300 * t + 20 * t**2)) * (0.6 + 0.4 * np.sin(2 * np.pi * 1.7 * t))
    st = np.stack([x + 0.01 * rng.standard_normal(len(t)), 0.5 * x], 1).astype('float32')
    st48 = np.stack([soxr.resample(np.ascontiguousarray(c), 44_100, 48_000) for c in st.T], 1)
    write(d / 'a.wav', st, 44_100)
    write(d / 'a.aiff', st, 44_100, 'AIFF')
    write(d / 'a.flac', st, 44_100, 'FLAC')
    write(d / 'a.mp3', st, 44_100, 'MP3', 'MPEG_LAYER_III')
    write(d / 'a.ogg', st, 44_100, 'OGG', 'VORBIS')
    write(d / 'a.opus', st48, 48_000, 'OGG', 'OPUS')
    write_av(d / 'a.m4a', st)
    write_av(d / 'alac.m4a', st, codec='alac')
    write_av(d / 'a.aac', st, container='adts')
    write_av(d / 'a.wma', st, codec='wmav2', container='asf')
    write_av(d / 'a.mka', st, container='matroska')
    write_av(d / 'a.webm', st48, 48_000, codec='libopus', container='webm')
    write_av(d / 'film.mp4', st, video=True)
    write_av(d / 'untagged.mp3', st, codec='libmp3lame', container='mp3', options={'write_xing': '0'})
    return {p.name: p for p in d.iterdir()} | {'reference': soxr.resample(st.mean(axis=1), 44_100, 16_000)}


CONTAINERS = [
    'a.wav',
    'a.aiff',
    'a.flac',
    'a.mp3',
    'a.ogg',
    'a.opus',
    'a.m4a',
    'alac.m4a',
    'a.aac',
    'a.wma',
    'a.mka',
    'a.webm',
    'film.mp4',
    'untagged.mp3',
]
# samples at 16 kHz by which a codec without priming information may be late or early, and how alike it must be
SLACK = {'a.aac': 400, 'a.wma': 800, 'untagged.mp3': 420, 'a.mka': 4}


@pytest.mark.parametrize('name', CONTAINERS)
def test_every_container_gives_the_sound(shelf, name):
    y = audio.load(shelf[name])
    ref = shelf['reference']
    assert y.dtype == np.float32 and y.ndim == 1 and np.abs(y).max() <= 1
    slack = SLACK.get(name, 0)
    middle = ref[100_000:200_000]
    alike = {
        lag: float(np.corrcoef(middle, y[100_000 + lag : 200_000 + lag])[0, 1])
        for lag in range(-slack, slack + 1)
    }
    assert max(alike.values()) > 0.99, 'the sound is there, within the slack its container forces'
    if name not in SLACK:
        assert abs(len(y) - len(ref)) <= 16


@pytest.mark.parametrize('name', CONTAINERS)
def test_stream_is_load_and_excerpts_are_slices(shelf, name):
    p = shelf[name]
    y = audio.load(p)
    for block_s in (0.37, 4.1, 600):
        blocks = list(audio.stream(p, block_s=block_s))
        assert np.array_equal(np.concatenate(blocks), y)
        assert all(len(b) == round(block_s * RATE) for b in blocks[:-1])
    for start, duration in ((0.0, 1.0), (0.1234, 3.0), (7.77, 5.3), (11.00003, 0.01), (12.5, 3)):
        part = audio.load(p, start, duration)
        first = round(start * RATE)
        assert len(part) == round(duration * RATE)
        assert np.abs(part - y[first : first + len(part)]).max() < 2e-5
        streamed = np.concatenate(list(audio.stream(p, 0.9, start, duration)))
        assert np.array_equal(streamed, part)
    assert abs(len(audio.load(p, 14.5, 30)) - (len(y) - round(14.5 * RATE))) <= 1


@pytest.mark.parametrize(
    'name, codec, rate',
    [
        ('a.wav', 'pcm_16', 44_100),
        ('a.mp3', 'mp3', 44_100),
        ('a.ogg', 'vorbis', 44_100),
        ('a.opus', 'opus', 48_000),
        ('a.m4a', 'aac', 44_100),
        ('alac.m4a', 'alac', 44_100),
    ],
)
def test_info(shelf, name, codec, rate):
    i = audio.info(shelf[name])
    assert (i.codec, i.sample_rate_hz, i.channels) == (codec, rate, 2)
    assert abs(i.duration_s - 16) < 0.06


def test_info_does_not_guess(shelf):
    assert audio.info(shelf['untagged.mp3']).duration_s is None


@pytest.mark.parametrize('rate', [8_000, 11_025, 16_000, 22_050, 44_099, 48_000, 96_000])
def test_excerpts_at_any_rate(tmp_path, rate):
    p = write(tmp_path / 'x.wav', tone(3, rate), rate)
    y = audio.load(p)
    assert len(y) == 3 * RATE
    assert np.abs(audio.load(p, 1.2345, 1) - y[19_752:35_752]).max() < 2e-6
    z = audio.load(p, 1.2345, 1, sample_rate_hz=11_025)
    assert len(z) == 11_025 and np.abs(z - audio.load(p, sample_rate_hz=11_025)[13_610:24_635]).max() < 2e-6


def test_matches_soundfile_and_soxr(shelf):
    x, rate = sf.read(shelf['a.flac'], dtype='float32')
    assert np.abs(audio.load(shelf['a.flac']) - soxr.resample(x.mean(axis=1), rate, RATE)).max() < 1e-6


def test_variable_bitrate_without_a_length_is_read_to_its_end(tmp_path):
    "Ten seconds of near-silence cost few bytes, noise many; an estimate from the first frames would stop early."
    rng = np.random.default_rng(0)
    x = np.concatenate([0.3 * rng.standard_normal((3 * 44_100, 2)), np.zeros((10 * 44_100, 2))]).astype(
        'float32'
    )
    with (
        open(tmp_path / 'v.mp3', 'wb+') as f,
        sf.SoundFile(f, 'w', 44_100, 2, 'MPEG_LAYER_III', format='MP3', bitrate_mode='VARIABLE') as out,
    ):
        for i in range(0, len(x), 4096):
            out.write(x[i : i + 4096])
    data = (tmp_path / 'v.mp3').read_bytes()
    at = max(data.find(b'Xing'), data.find(b'Info'))
    assert at > 0
    (tmp_path / 'v.mp3').write_bytes(data[:at] + bytes(len(data[at : at + 120])) + data[at + 120 :])
    assert len(audio.load(tmp_path / 'v.mp3')) / RATE == pytest.approx(13, abs=0.2)


@pytest.mark.parametrize('name, tolerance', [('a.m4a', 0.02), ('alac.m4a', 1e-6), ('film.mp4', 0.02)])
def test_late_excerpt_of_an_mp4_enters_by_seeking(shelf, monkeypatch, name, tolerance):
    "In time to the sample; AAC fills in noise of its own, which depends on where decoding began."
    y = audio.load(shelf[name])
    monkeypatch.setenv('RESONANCE_SANDBOX', '0')
    monkeypatch.setattr(ffmpeg, 'FROM_START_S', 2)
    for start in (3.0, 7.1234, 12.345):
        first = round(start * RATE)
        assert np.abs(audio.load(shelf[name], start, 2) - y[first : first + 2 * RATE]).max() < tolerance
    with pytest.raises(audio.AudioError, match='beyond its end'):
        audio.load(shelf[name], 16.2)


# ---- hostile files


@pytest.fixture(scope='module')
def hostile(tmp_path_factory):
    return make_hostile(tmp_path_factory.mktemp('hostile'))


def names():
    import tempfile

    with tempfile.TemporaryDirectory() as d:
        return [audio.printable(p.relative_to(d))[:40] for p, _ in make_hostile(d)]


HOSTILE = names()


def test_there_are_enough_hostile_files():
    assert len(HOSTILE) >= 50


@pytest.mark.parametrize('i', range(len(HOSTILE)), ids=HOSTILE)
def test_hostile_file(hostile, i):
    path, expected = hostile[i]
    heard = []
    outcome = 'ok'
    message = None
    try:
        for block in audio.stream(path, block_s=0.5):
            heard.append(block)
    except audio.TruncatedAudio as e:
        outcome = 'partial'
        message = str(e)
        assert sum(map(len, heard)) / RATE == pytest.approx(e.decoded_s, abs=0.001) and heard
    except audio.AudioError as e:
        outcome = 'fail'
        message = str(e)
    assert outcome == expected, message
    for b in heard:
        assert b.dtype == np.float32 and b.ndim == 1 and np.isfinite(b).all() and np.abs(b).max() <= 1
    if message is not None:
        assert len(message.splitlines()) == 1 and message.isprintable()
        assert audio.printable(path) in message
        with pytest.raises(audio.AudioError):
            audio.load(path)
    else:
        assert np.array_equal(audio.load(path), np.concatenate(heard))
    if outcome == 'partial':
        assert np.array_equal(audio.load(path, duration_s=0.9), np.concatenate(heard)[:14_400])


def test_info_of_hostile_files(hostile):
    for path, expected in hostile:
        try:
            audio.info(path)
        except audio.AudioError as e:
            assert expected == 'fail' and len(str(e).splitlines()) == 1


@pytest.mark.parametrize('name', ['a.wav', 'a.flac', 'a.mp3', 'a.ogg', 'a.m4a', 'a.webm'])
def test_bit_rot_gives_sound_or_one_line(shelf, tmp_path, name):
    rng = np.random.default_rng(5)
    whole = shelf[name].read_bytes()
    for turn in range(12):
        data = bytearray(whole[:200_000])
        reach = 300 if turn % 2 else len(data)
        for at in rng.integers(0, reach, 20):
            data[at] = rng.integers(256)
        p = tmp_path / f'{turn}{Path(name).suffix}'
        p.write_bytes(data)
        try:
            y = audio.load(p)
            assert np.isfinite(y).all() and np.abs(y).max() <= 1
        except audio.AudioError as e:
            assert len(str(e).splitlines()) == 1


def test_garbage_in_any_amount(tmp_path):
    rng = np.random.default_rng(6)
    for n in (1, 3, 11, 44, 100, 5_000, 300_000):
        (tmp_path / 'x.mp3').write_bytes(rng.bytes(n))
        with pytest.raises(audio.AudioError):
            audio.load(tmp_path / 'x.mp3')


def test_a_playlist_opens_no_other_file(tmp_path, monkeypatch):
    "FFmpeg would follow it: a file named as music must not make us read, or fetch, another one."
    monkeypatch.chdir(tmp_path)
    write(tmp_path / 'private.mp3', tone(), container='MP3', coding='MPEG_LAYER_III')
    (tmp_path / 'song.mp3').write_text('ffconcat version 1.0\nfile private.mp3\n')
    with pytest.raises(audio.AudioError, match='is not audio'):
        audio.load('song.mp3')


def test_unreadable_file_as_a_user(tmp_path, monkeypatch):
    monkeypatch.setenv('RESONANCE_SANDBOX', '0')
    p = write(tmp_path / 'x.wav', tone())

    def refuse(*a, **k):
        raise PermissionError(13, 'Permission denied')

    monkeypatch.setattr(os, 'open', refuse)
    with pytest.raises(audio.AudioError, match='no permission'):
        audio.load(p)


@pytest.mark.parametrize(
    'start, duration',
    [(-1, None), (math.nan, None), (math.inf, 1), (0, 0), (0, -2), (0, math.nan), (1e-9, 1e-9)],
)
def test_senseless_ranges(shelf, start, duration):
    with pytest.raises(audio.AudioError, match='cannot'):
        audio.load(shelf['a.wav'], start, duration)


@pytest.mark.parametrize('name', CONTAINERS)
@pytest.mark.parametrize('start', [16.5, 1e6])
def test_start_beyond_the_end(shelf, name, start):
    with pytest.raises(audio.AudioError, match='beyond its end'):
        audio.load(shelf[name], start)


def test_a_nul_byte_in_a_name():
    with pytest.raises(audio.AudioError):
        audio.load('a\0b.wav')


def test_no_descriptor_is_left_open(hostile):
    before = len(os.listdir('/proc/self/fd'))
    for path, _ in hostile:
        try:
            audio.load(path, duration_s=0.1)
        except audio.AudioError:
            pass
        for _ in audio.stream(path, 0.01) if path.name == 'good.m4a' else []:
            break
    assert len(os.listdir('/proc/self/fd')) <= before


def test_truncated_error_travels_between_processes():
    e = pickle.loads(pickle.dumps(audio.TruncatedAudio('x: cut', 1.5, 3.0)))
    assert (str(e), e.decoded_s, e.promised_s) == ('x: cut', 1.5, 3.0)


def test_quiet_decoders_keeps_python_errors(tmp_path):
    code = (
        "import os, sys, resonance_nb.audio as a\n"
        "with a.quiet_decoders():\n    os.write(2, b'chatter'); print('one line', file=sys.stderr)\nprint('after', file=sys.stderr)"
    )
    r = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert (r.returncode, r.stderr) == (0, 'one line\nafter\n')


# ---- long files


def took_s(work, times=5):
    "Seconds, at its quickest."
    spent = []
    for _ in range(times):
        t = time.perf_counter()
        work()
        spent.append(time.perf_counter() - t)
    return min(spent)


def test_two_hours_in_bounded_memory(tmp_path):
    p = tmp_path / 'long.wav'
    seconds = 7200
    with open(p, 'wb') as f:
        f.write(wav_header(1, 8_000, 8, seconds * 8_000))
        second = (128 + 60 * np.sin(2 * np.pi * 440 * np.arange(8_000) / 8_000)).astype('u1').tobytes()
        for _ in range(seconds // 100):
            f.write(second * 100)
    next(audio.stream(p))  # imports
    assert audio.info(p).duration_s == seconds
    told_s = took_s(lambda: audio.info(p))
    tracemalloc.start()
    t = time.perf_counter()
    n = sum(map(len, audio.stream(p, block_s=30)))
    assert told_s < (time.perf_counter() - t) / 5, 'the header says how long it is'
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert n == seconds * RATE
    assert peak < 16e6, f'{peak / 1e6:.1f} MB'
    assert len(audio.load(p, 7100, 10)) == 160_000


def test_twenty_hours_open_at_once_and_in_the_middle(tmp_path):
    p = tmp_path / 'day.wav'
    seconds = 72_000
    with open(p, 'wb') as f:
        f.write(wav_header(1, 8_000, 8, seconds * 8_000))
        f.truncate(44 + seconds * 8_000)  # sparse
    assert audio.info(p).duration_s == seconds
    assert len(audio.load(p, 70_000, 5)) == 80_000
    assert len(next(audio.stream(p, 30))) == 30 * RATE
    assert took_s(lambda: audio.load(p, 70_000, 5)) < 50 * took_s(lambda: audio.load(p, 10, 5)), (
        'nothing before it is read'
    )


# ---- writing


@pytest.mark.parametrize(
    'suffix, tolerance', [('.wav', 1e-4), ('.flac', 1e-4), ('.ogg', 0.1), ('.opus', 0.1), ('.mp3', 0.1)]
)
def test_save_and_encode(tmp_path, suffix, tolerance):
    x = tone(12)[:, 0]
    audio.save(tmp_path / f'x{suffix}', x)
    y = audio.load(tmp_path / f'x{suffix}')
    assert len(y) == len(x) and np.abs(y - x)[800:-800].max() < tolerance
    (tmp_path / f'e{suffix}').write_bytes(audio.encode(x, codec=suffix[1:]))
    assert len(audio.load(tmp_path / f'e{suffix}')) == len(x)
    assert sorted(p.name for p in tmp_path.iterdir()) == [f'e{suffix}', f'x{suffix}']


def test_players_are_small():
    assert len(audio.encode(tone(5)[:, 0])) < 35_000


def test_save_clips_and_takes_any_name(tmp_path):
    p = Path(os.fsdecode(os.fsencode(tmp_path) + b'/caf\xe9\n.wav'))
    audio.save(p, 3 * tone()[:, 0])
    assert np.abs(audio.load(p)).max() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize('name', ['x.xyz', 'x', 'nowhere/x.wav'])
def test_save_refuses_in_one_line(tmp_path, name):
    with pytest.raises(audio.AudioError) as e:
        audio.save(tmp_path / name, tone()[:, 0])
    assert len(str(e.value).splitlines()) == 1


def test_impossible_encodings(tmp_path):
    with pytest.raises(audio.AudioError):
        audio.save(tmp_path / 'x.mp3', tone()[:, 0], 96_000)
    with pytest.raises(audio.AudioError):
        audio.encode(tone()[:, 0], codec='tape')
    assert not list(tmp_path.iterdir())


# ---- folders


def test_find_audio(hostile):
    root = hostile[0][0].parent
    found, problems = audio.find_audio([root])
    assert found == sorted(found, key=os.fsencode) and len(found) == len(set(found))
    assert {p.name for p, _ in problems} == {'pipe.wav', 'socket.mp3', 'dangling.mp3', 'itself.mp3', 'loop'}
    regular = {p for p, _ in hostile if p.is_file()}
    assert set(found) == regular


def test_find_audio_named_things(tmp_path):
    (tmp_path / '.hidden').mkdir()
    for name in ('b.mp3', 'a.wav', 'note.txt', '.c.mp3', '.hidden/d.mp3'):
        (tmp_path / name).write_bytes(b'x')
    assert [p.name for p in audio.find_audio([tmp_path])[0]] == ['a.wav', 'b.mp3']
    found, problems = audio.find_audio(
        [tmp_path / 'note.txt', tmp_path, tmp_path / 'a.wav', tmp_path / 'gone.mp3']
    )
    assert [p.name for p in found] == ['a.wav', 'b.mp3', 'note.txt']
    assert problems == [(tmp_path / 'gone.mp3', 'no such file')]
    assert audio.find_audio(str(tmp_path))[0] == audio.find_audio([tmp_path, tmp_path])[0]
    assert audio.find_audio([]) == ([], [])


def test_what_is_passed_over_is_counted_and_titles_with_dots_are_not(tmp_path):
    from collections import Counter

    for folder in ('...And Justice for All', '..odd', '.cache', 'scans'):
        (tmp_path / folder).mkdir()
    taken = [
        '...And Justice for All/Blackened.mp3',
        '...Baby.ogg',
        '..odd/a.flac',
        'film.WMV',
        'tape.dts',
        'b.MPC',
    ]
    for name in [
        *taken,
        '.hidden.mp3',
        '._resource.mp3',
        '.cache/x.ogg',
        'cover.jpg',
        'scans/1.JPG',
        'notes',
        'list.txt',
    ]:
        (tmp_path / name).write_bytes(b'x')
    found, problems = audio.find_audio([tmp_path], passed_over := Counter())
    assert [str(p.relative_to(tmp_path)) for p in found] == sorted(taken, key=os.fsencode) and not problems
    assert passed_over == {'hidden': 3, '.jpg': 2, '.txt': 1, 'without suffix': 1}


WRITTEN = {  # suffix -> FFmpeg's container, coding and rate, where its encoder is here
    '.wmv': ('asf', 'wmav2', 44_100),
    '.asf': ('asf', 'wmav1', 44_100),
    '.m2ts': ('mpegts', 'ac3', 48_000),
    '.mts': ('mpegts', 'mp2', 48_000),
    '.ts': ('mpegts', 'aac', 48_000),
    '.mpg': ('mpeg', 'mp2', 44_100),
    '.vob': ('vob', 'ac3', 48_000),
    '.3g2': ('3g2', 'aac', 44_100),
    '.eac3': ('eac3', 'eac3', 48_000),
    '.ac3': ('ac3', 'ac3', 48_000),
    '.dts': ('dts', 'dca', 48_000),
    '.ogv': ('ogg', 'libvorbis', 44_100),
    '.spx': ('ogg', 'libspeex', 16_000),
    '.f4v': ('f4v', 'aac', 44_100),
    '.flv': ('flv', 'libmp3lame', 44_100),
    '.mp2': ('mp2', 'mp2', 44_100),
    '.wv': ('wv', 'wavpack', 44_100),
    '.tta': ('tta', 'tta', 44_100),
    '.nut': ('nut', 'pcm_s16le', 44_100),
    '.voc': ('voc', 'pcm_u8', 44_100),
    '.rm': ('rm', 'ac3', 44_100),
    '.au': ('au', 'pcm_s16be', 44_100),
    '.caf': ('caf', 'pcm_s16be', 44_100),
    '.avi': ('avi', 'libmp3lame', 44_100),
    '.mxf': ('mxf_opatom', 'pcm_s16le', 48_000),
    '.w64': ('w64', 'pcm_s16le', 44_100),
    '.mkv': ('matroska', 'opus', 48_000),
}


@pytest.mark.parametrize('suffix', WRITTEN)
def test_what_a_folder_is_searched_for_is_decoded(tmp_path, suffix):
    import av

    container, coding, rate = WRITTEN[suffix]
    assert suffix in audio.SUFFIXES
    x = tone(4, rate, 2)
    try:
        with av.open(str(tmp_path / f'x{suffix}'), 'w', format=container) as c:
            s = c.add_stream(coding, rate=rate, layout='stereo', options={'strict': '-2'})
            s.bit_rate = 128_000
            s.open()
            kind = s.format.name
            size = s.codec_context.frame_size or 1152
            resampler = av.AudioResampler(format=kind, layout='stereo', rate=rate, frame_size=size)
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(x.T), format='fltp', layout='stereo')
            frame.sample_rate = rate
            frame.pts = 0
            for part in [*resampler.resample(frame), *resampler.resample(None)]:
                c.mux(s.encode(part))
            c.mux(s.encode(None))
    except (ValueError, av.FFmpegError) as e:
        pytest.skip(f'FFmpeg cannot write it here: {e}')
    y = audio.load(tmp_path / f'x{suffix}')
    known = soxr.resample(x.mean(axis=1), rate, RATE)
    assert len(y) / RATE == pytest.approx(4, abs=0.2)
    heard, there = (
        np.abs(np.fft.rfft(v[RATE : 3 * RATE]))[: 20 * 350].reshape(350, 20).max(1) for v in (y, known)
    )
    assert np.corrcoef(heard, there)[0, 1] > 0.95, 'the same chord'


def test_find_audio_through_links_once(tmp_path):
    (tmp_path / 'music/deep').mkdir(parents=True)
    (tmp_path / 'music/deep/x.ogg').write_bytes(b'x')
    (tmp_path / 'a-link').symlink_to(tmp_path / 'music')
    (tmp_path / 'music/deep/up').symlink_to(tmp_path)
    found, problems = audio.find_audio([tmp_path])
    assert found == [tmp_path / 'music/deep/x.ogg'] and len(problems) == 2


def test_find_audio_reports_a_locked_folder(tmp_path, monkeypatch):
    (tmp_path / 'locked').mkdir()
    (tmp_path / 'x.wav').write_bytes(b'x')
    real = os.scandir

    def scandir(p):
        if str(p).endswith('locked'):
            raise PermissionError(13, 'Permission denied')
        return real(p)

    monkeypatch.setattr(os, 'scandir', scandir)
    found, problems = audio.find_audio([tmp_path])
    assert found == [tmp_path / 'x.wav'] and problems == [(tmp_path / 'locked', 'no permission to read it')]


# ---- analysis


@pytest.mark.filterwarnings('ignore:n_fft')
@pytest.mark.parametrize('n', [0, 1, 700, 1024, 16_000])
@pytest.mark.parametrize('n_fft, hop, center', [(1024, 256, True), (512, 160, True), (1024, 256, False)])
def test_stft_against_librosa(n, n_fft, hop, center):
    import librosa

    x = np.random.default_rng(n).uniform(-1, 1, n).astype('float32')
    ours = audio.stft(x, n_fft, hop, center)
    assert ours.dtype == np.complex64 and ours.shape[0] == n_fft // 2 + 1
    if n >= n_fft or (n and center):
        theirs = librosa.stft(x, n_fft=n_fft, hop_length=hop, center=center)
        assert ours.shape == theirs.shape and np.abs(ours - theirs).max() < 2e-4


@pytest.mark.parametrize(
    'options',
    [{}, {'n_mels': 128, 'f_min_hz': 30, 'f_max_hz': 7_600, 'n_fft': 2048, 'hop': 320}, {'top_db': None}],
)
def test_log_mel_against_librosa(options):
    import librosa

    o = {'n_fft': 1024, 'hop': 256, 'n_mels': 64, 'f_min_hz': 0.0, 'f_max_hz': None, 'top_db': 80.0} | options
    x = tone(2)[:, 0]
    s = librosa.feature.melspectrogram(
        y=x,
        sr=RATE,
        n_fft=o['n_fft'],
        hop_length=o['hop'],
        n_mels=o['n_mels'],
        fmin=o['f_min_hz'],
        fmax=o['f_max_hz'],
    )
    ours = audio.log_mel(x, **options)
    assert ours.dtype == np.float32 and np.abs(ours - librosa.power_to_db(s, top_db=o['top_db'])).max() < 0.02


def test_mel_filters_cannot_be_spoiled():
    with pytest.raises(ValueError):
        audio.mel_filters()[0, 0] = 1


def test_levels():
    t = np.arange(10 * 48_000) / 48_000
    sine = np.sin(2 * np.pi * 997 * t).astype('float32')
    # BS.1770-4: 0 dBFS at 997 Hz in one channel
    assert audio.lufs(sine, 48_000) == pytest.approx(-3.01, abs=0.05)
    assert audio.rms_db(sine) == pytest.approx(-3.0103, abs=1e-3)
    assert audio.peak_db(-sine / 2) == pytest.approx(-6.0206, abs=1e-2)
    assert audio.rms_db([]) == audio.peak_db([]) == -math.inf
    assert audio.lufs(np.zeros(RATE)) == -math.inf
    assert audio.lufs(1e-6 * sine, 48_000) == -math.inf  # below the absolute gate
    with pytest.raises(audio.AudioError, match='0.4 s'):
        audio.lufs(sine[:1000], 48_000)


def test_resample_edges():
    assert len(audio.resample(np.zeros(0), 44_100, 16_000)) == 0
    x = tone(1)[:, 0]
    assert np.array_equal(audio.resample(x, RATE, RATE), x)
    assert len(audio.resample(x[::2], 8_000, RATE)) == RATE


def test_import_is_light():
    code = (
        "import sys, resonance_nb.audio\n"
        "print([m for m in ('scipy', 'soundfile', 'soxr', 'av', 'pyloudnorm', 'librosa', 'pandas') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stdout.strip() == '[]'
