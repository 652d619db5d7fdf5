"""What a stream is, by its beginning: music is never taken for something else, and nothing else for music."""

import io

import numpy as np
import pytest
import soundfile as sf
from hostile import png, tone, wav_header, write_av
from hypothesis import given, settings
from hypothesis import strategies as some
from sounds import sound

from resonance_nb import kinds
from resonance_nb.kinds import LOOK_BYTES, RAW, recognise


def seen(data, **how):
    "As a stream is looked at: twice as much each time."
    n = 16
    while True:
        head = data[:n]
        if (kind := recognise(head, len(head) < n or n >= LOOK_BYTES, **how)) is not None:
            return kind
        n *= 2


def packed(x, kind):
    x = np.clip(x, -1, 1)
    return {
        's16': lambda: (x * 32_767).round().astype('<i2'),
        'f32': lambda: x.astype('<f4'),
        'u8': lambda: (x * 127 + 128).astype('u1'),
        'f32 of s16': lambda: ((x * 32_767).round() / 32_768).astype('<f4'),
        's32': lambda: (x * 2**31 * 0.999).astype('<i4'),
    }[kind]().tobytes()


@pytest.mark.parametrize('kind', ['s16', 'f32', 'u8', 'f32 of s16', 's32'])
@pytest.mark.parametrize('loudness', [0.003, 0.3, 1.0, 8.0])
@pytest.mark.parametrize('channels', [1, 2])
def test_music_is_raw_samples_wherever_it_is_cut(kind, loudness, channels):
    rng = np.random.default_rng(5)
    for seed in (int(10 * loudness),):
        x = sound(seed, 5)
        x = loudness * x / np.abs(x).max()
        data = packed(np.stack([x, 0.8 * np.roll(x, 7)][:channels], 1).astype('float64'), kind)
        for at in (0, *rng.integers(1, len(data) - 2000, 2)):
            for silence in (0, 4_001):
                found = seen(bytes(silence) + data[at:])
                assert found.name == RAW, (found, seed, at, silence)


@pytest.mark.parametrize('value', [0, 1, -1, -2, 0x7FFF, -0x8000, 0x2020, -1025, -70, 0x4747])
def test_constants_are_raw_samples(value):
    assert seen(np.full(8_000, value, '<i2').tobytes()).name == RAW


def test_steady_tones_are_raw_samples():
    "A tone whose period fits into a frame repeats whatever looks like the head of one."
    for period in (4, 16, 24, 47, 48, 94, 96, 144, 192, 208, 313):
        for k, amplitude in enumerate((40, 1_100, 32_000)):
            t = np.arange(8_000) * 2 * np.pi / period
            assert seen((amplitude * np.sin(t + k)).round().astype('<i2').tobytes()).name == RAW, (
                period,
                amplitude,
            )


@settings(max_examples=100, deadline=None)
@given(
    some.binary(max_size=3000),
    some.booleans(),
    some.sampled_from(
        [
            b'',
            b'HTTP/1.1 200 OK\r\n',
            b'ICY 200 OK\r\nicy-metaint:9\r\n\r\n',
            b'\0\0\0\x18ftyp',
            b'ID3\3',
            b'\xff\xfb\x90\x64',
        ]
    ),
)
def test_any_bytes_are_something(data, samples, before):
    kind = recognise(before + data, True, samples)
    assert (
        kind is not None
        and '\n' not in kind.refusal
        and kind.refusal.isprintable()
        and 0 <= kind.at <= len(before + data)
    )
    recognise(before + data, False, samples)


@pytest.fixture(scope='module')
def encoded(tmp_path_factory):
    "Ten seconds in many containers: name -> bytes."
    d = tmp_path_factory.mktemp('encoded')
    x = tone(10, 44_100, 2)
    made = {}
    for name, codec, container, options in (
        ('MP3', 'libmp3lame', 'mp3', {'id3v2_version': '0', 'write_xing': '0'}),
        ('AAC', 'aac', 'adts', {}),
        ('MPEG-TS', 'aac', 'mpegts', {}),
        ('LATM', 'aac', 'latm', {}),
        ('AC-3', 'ac3', 'ac3', {}),
        ('FLV', 'aac', 'flv', {}),
        ('Matroska', 'aac', 'matroska', {}),
        ('MP4', 'aac', 'mp4', {'movflags': 'empty_moov+default_base_moof', 'frag_duration': '1000000'}),
        ('WMA', 'wmav2', 'asf', {}),
        ('AVI', 'mp2', 'avi', {}),
        ('MPEG', 'mp2', 'mpeg', {}),
        ('Ogg', 'libvorbis', 'ogg', {}),
    ):
        made[name] = write_av(d / 'x', x, codec=codec, container=container, options=options).read_bytes()
    for name in ('WAV', 'FLAC', 'AIFF', 'AU', 'CAF', 'W64'):
        f = io.BytesIO()
        sf.write(f, x, 44_100, format=name)
        made[name] = f.getvalue()
    return made


def test_every_container_is_known(encoded):
    assert {name: seen(data).name for name, data in encoded.items()} == {name: name for name in encoded}
    assert not any(seen(data).refusal for data in encoded.values())


@pytest.mark.parametrize('name', ['MP3', 'AAC', 'MPEG-TS', 'LATM', 'AC-3'])
def test_frames_are_known_from_any_place(encoded, name):
    data = encoded[name]
    for at in np.random.default_rng(1).integers(1, len(data) - 40_000, 6):
        assert seen(data[at:]).name == name
        assert seen(np.random.default_rng(at).bytes(2_000) + data[at:]).name == name, 'behind something else'


@pytest.mark.parametrize('name', ['Ogg', 'MP4'])
def test_the_middle_of_a_container_is_refused(encoded, name):
    assert 'start the stream anew' in seen(encoded[name][9_999:]).refusal


def test_frames_of_silence_are_frames(tmp_path):
    data = write_av(
        tmp_path / 'x',
        np.zeros((90_000, 2), 'float32'),
        codec='libmp3lame',
        container='mp3',
        options={'id3v2_version': '0', 'write_xing': '0'},
    ).read_bytes()
    assert seen(data).name == 'MP3' and seen(data[5_001:]).name == 'MP3'


@pytest.mark.parametrize(
    'data, said',
    [
        (b'hello\n', 'is text, not sound: "hello"'),
        (b'<!DOCTYPE html>\n<html>' + b' ' * 9_999, '<!DOCTYPE html>'),
        (b'{"error": "no such stream"}', 'is text'),
        ('Größe\n'.encode() * 99, 'is text'),
        ('Größe und viele Worte'.encode('latin-1'), 'is text'),
        ('hello there'.encode('utf-16'), 'is text, not sound: "hello there"'),
        (b'#EXTM3U\nhttp://localhost/radio\n', 'is a playlist'),
        (b'[playlist]\nFile1=http://localhost/radio\n', 'is a playlist'),
        (png(), 'is a PNG picture'),
        (b'\xff\xd8\xff\xe0\0\x10JFIF\0' + bytes(99), 'is a JPEG picture'),
        (b'GIF89a' + bytes(99), 'is a GIF picture'),
        (b'PK\3\4' + bytes(99), 'is a ZIP archive'),
        (b'\x1f\x8b\x08\0' + bytes(99), 'is a gzip file'),
        (b'%PDF-1.4\n', 'is a PDF document'),
        (b'\x7fELF\2\1\1' + bytes(99), 'is a program'),
        (b'HTTP/1.1 404 Not Found\r\nServer: x\r\n\r\n<html>', '"404 Not Found"'),
        (b'HTTP/1.1 302 Found\r\n\r\nHTTP/1.1 503 Busy\r\n\r\n', '"503 Busy"'),
        (b'ICY 401 Unauthorized\r\n\r\n', '"401 Unauthorized"'),
        (b'HTTP/1.1 200 OK\r\n\r\n<html>', 'is text'),
        (np.random.default_rng(0).bytes(40_000), '--raw'),
        (
            b'\0\0\0\x18ftypM4A \0\0\0\0M4A mp42' + b'\0\0\0\x08free' + b'\0\1\0\0mdat' + bytes(99),
            'save it, and give the file',
        ),
    ],
)
def test_what_is_no_sound_is_refused(data, said):
    assert said in seen(data).refusal
    assert '\n' not in seen(data).refusal


def test_what_was_said_to_be_samples_is_taken_at_its_word():
    for data in (b'hello\n' * 99, np.random.default_rng(0).bytes(40_000), bytes(99), b''):
        assert seen(data, samples=True).name == RAW
    assert (
        seen(wav_header() + bytes(99), samples=True).name == 'WAV'
        and recognise(bytes(16), False, True).name == RAW
    )


def test_what_a_web_server_says_in_front_is_passed_over(encoded):
    head = b'HTTP/1.1 302 Found\r\nLocation: x\r\n\r\nHTTP/1.0 200 OK\r\nContent-Type: audio/mpeg\r\n\r\n'
    assert seen(head + encoded['MP3']) == kinds.Kind('MP3', '', 'mp3', len(head))
    radio = b'ICY 200 OK\r\nicy-metaint: 8192\r\n\r\n'
    assert seen(radio + encoded['AAC']) == kinds.Kind('AAC', '', 'aac', len(radio), 8192)
    assert recognise(head[:50], False) is None and seen(head + packed(sound(1), 's16')).at == len(head)
