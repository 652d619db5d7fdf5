"""Decoders: files that are damaged in the middle, that say too little about themselves, whose channels cancel, with several recordings."""

import io
import os
import struct

import matrix
import numpy as np
import pytest
import soundfile as sf
from hostile import write, write_av

from resonance_nb import bitstreams, chunks, decode, files, sndfile
from resonance_nb.core import rng_for
from resonance_nb.files import AudioError, DamagedAudio, TruncatedAudio

RATE = 16_000


def sweep(seconds, rate=44_100, begin_hz=300.0):
    "A rising tone: every moment has its own pitch, so that a place in it can be found again."
    t = np.arange(round(seconds * rate)) / rate
    return (0.4 * np.sin(2 * np.pi * (begin_hz * t + 20 * t**2))).astype('float32')


def heard(path):
    "The samples at 16 kHz, and what was raised in the end."
    got = [np.zeros(0, np.float32)]
    why = None
    try:
        got += decode.pieces(path, 0.0, None, RATE)
    except TruncatedAudio as e:
        why = e
    return np.concatenate(got), why


def pitch_hz(x, at_s):
    "The strongest frequency around a moment."
    part = x[round(at_s * RATE) - 2048 : round(at_s * RATE) + 2048]
    spectrum = np.abs(np.fft.rfft(part * np.hanning(len(part)), 4 * len(part)))
    return spectrum.argmax() * RATE / (4 * len(part))


def place_s(x, at_s, begin_hz=300.0):
    "The moment of a sweep that is heard at this one."
    return (pitch_hz(x, at_s) - begin_hz) / 40


def made(path, x, rate=44_100, **how):
    "A file of a format that soundfile writes."
    sf.write(path, x, rate, **({'format': 'OGG', 'subtype': 'OPUS'} if path.suffix == '.opus' else how))
    return path.read_bytes()


# ---- damage in the middle


@pytest.mark.parametrize(
    'suffix, changed, lost_s',
    [('.flac', 1, 0.6), ('.mp3', 2_000, 1.5), ('.ogg', 500, 3.5), ('.opus', 500, 2.5)],
)
@pytest.mark.parametrize('where', [0.3, 0.55, 0.8])
def test_what_is_behind_damage_is_read_and_is_where_it_was(tmp_path, suffix, changed, lost_s, where):
    path = tmp_path / f'x{suffix}'
    rate = 48_000 if suffix == '.opus' else 44_100
    data = bytearray(made(path, np.stack([sweep(20, rate)] * 2, 1), rate))
    at = int(len(data) * where)
    data[at : at + changed] = bytes(b ^ 0xFF for b in data[at : at + changed])
    path.write_bytes(data)
    x, why = heard(path)
    assert len(x) / RATE == pytest.approx(20, abs=0.15)
    loud = lambda m: (
        np.abs(x[round(m * RATE) - 2048 : round(m * RATE) + 2048]).reshape(-1, 64).max(1).min() > 0.05
    )
    moments = [m for m in np.arange(1, 19.5, 0.25) if loud(m)]
    assert len(moments) > 60 - 8 * lost_s and all(abs(place_s(x, m) - m) < 0.12 for m in moments)
    assert (
        isinstance(why, DamagedAudio) and 'the rest is read' in str(why) and len(str(why).splitlines()) == 1
    )
    silent = np.abs(x[: len(x) // 160 * 160]).reshape(-1, 160).max(1) < 1e-4
    assert silent.sum() * 0.01 < lost_s


def test_a_file_that_ends_early_is_still_cut_off(tmp_path):
    data = made(tmp_path / 'x.flac', sweep(10))
    (tmp_path / 'x.flac').write_bytes(data[: len(data) // 2])
    x, why = heard(tmp_path / 'x.flac')
    assert (
        4 < len(x) / RATE < 6
        and type(why) is TruncatedAudio
        and 'cut off' in str(why)
        and why.promised_s == pytest.approx(10)
    )


# ---- lengths that lie, and rates that change


@pytest.mark.parametrize('n, tags', [(2, False), (3, False), (3, True)])
def test_recordings_behind_each_other_are_one(tmp_path, n, tags):
    one = made(tmp_path / 'x.mp3', sweep(8))
    tag = b'ID3\x03\0\0\0\0\x02\0' + bytes(256) if tags else b''
    (tmp_path / 'x.mp3').write_bytes((tag + one) * n)
    x, why = heard(tmp_path / 'x.mp3')
    assert why is None and len(x) / RATE == pytest.approx(8 * n, abs=0.1 * n)
    for k in range(n):
        assert place_s(x, 8 * k + 4) == pytest.approx(4, abs=0.1 * (k + 1))


def test_a_word_in_a_tag_is_no_length(tmp_path):
    "Two tags, and in the second the word that a length begins with; libsndfile would guess a length from the first frames."
    x = np.concatenate([0.5 * rng_for(0, 'noise').standard_normal(44_100 * 2), np.zeros(44_100 * 20)]).astype(
        'float32'
    )
    write_av(
        tmp_path / 'x.mp3',
        np.stack([x, x], 1),
        codec='libmp3lame',
        container='mp3',
        options={'write_xing': '0', 'id3v2_version': '0'},
    )
    data = (tmp_path / 'x.mp3').read_bytes()
    first = b'ID3\x03\0\0\0\0\0\x0a' + bytes(10)
    second = b'ID3\x03\0\0\0\0\x01\0' + b'TXXXInformation'.ljust(128, b'\0')
    (tmp_path / 'x.mp3').write_bytes(first + second + data[data.index(b'\xff\xfb') :])
    assert len(heard(tmp_path / 'x.mp3')[0]) / RATE == pytest.approx(22, abs=0.2)


@pytest.mark.parametrize('suffix', ['.mp3', '.aac', '.ogg'])
def test_a_rate_that_changes_on_the_way(tmp_path, suffix):
    whole = b''
    for rate in (44_100, 22_050, 48_000):
        path = tmp_path / f'{rate}{suffix}'
        x = sweep(6, rate)
        whole += (
            write_av(path, np.stack([x, x], 1), rate, container='adts').read_bytes()
            if suffix == '.aac'
            else made(path, x, rate)
        )
    (tmp_path / f'all{suffix}').write_bytes(whole)
    x, why = heard(tmp_path / f'all{suffix}')
    assert why is None and len(x) / RATE == pytest.approx(18, abs=0.3)
    for k in range(3):
        assert place_s(x, 6 * k + 3) == pytest.approx(3, abs=0.2), k


def test_a_wav_whose_length_does_not_fit_into_its_header(tmp_path):
    "4 GiB and a little, nearly all of it a hole in the file: the 32 bits say only the little."
    path = tmp_path / 'night.wav'
    rate = 192_000
    extra = 3_000_000
    n = 2**32 + extra
    with open(path, 'wb') as f:
        f.write(
            b'RIFF'
            + struct.pack('<I', (n + 36) % 2**32)
            + b'WAVEfmt '
            + struct.pack('<IHHIIHH', 16, 1, 8, rate, rate * 16, 16, 16)
        )
        f.write(b'data' + struct.pack('<I', n % 2**32))
        f.truncate(44 + n)
    whole_s = n / (rate * 16)
    got = decode.pieces(path, 0.0, None, RATE)
    total = sum(len(next(got, ())) for _ in range(40)) / RATE
    assert extra / (rate * 16) * 1.5 < total, 'read beyond what the header says'
    assert decode.info(path).duration_s == pytest.approx(whole_s)


# ---- tags around FLAC, sound that begins late, several recordings


@pytest.mark.parametrize('front, back', [(0, True), (300, False), (300, True), (70_000, False)])
def test_foreign_tags_around_flac_are_no_damage(tmp_path, front, back):
    plain = made(tmp_path / 'x.flac', sweep(6))
    size = bytes((front >> s) & 127 for s in (21, 14, 7, 0))
    tag = b'ID3\x04\0\0' + size + bytes(front) if front else b''
    expected = heard(tmp_path / 'x.flac')[0]
    (tmp_path / 'x.flac').write_bytes(tag + plain + b'TAG'.ljust(128, b'\0') * back)
    x, why = heard(tmp_path / 'x.flac')
    assert why is None and np.array_equal(x, expected)
    np.testing.assert_allclose(
        np.concatenate([*decode.pieces(tmp_path / 'x.flac', 3.1, 1.0, RATE)]),
        expected[49_600:65_600],
        atol=2e-5,
    )


@pytest.mark.parametrize(
    'name, container, codec',
    [('x.mka', 'matroska', 'libvorbis'), ('x.mp4', 'mp4', 'aac'), ('x.flv', 'flv', 'aac')],
)
def test_sound_that_begins_late_is_whole(tmp_path, name, container, codec):
    import av

    x = sweep(6)
    with av.open(str(tmp_path / name), 'w', format=container) as c:
        s = c.add_stream(codec, rate=44_100, layout='mono')
        for i in range(0, len(x), 1024):
            frame = av.AudioFrame.from_ndarray(x[None, i : i + 1024].copy(), format='fltp', layout='mono')
            frame.sample_rate = 44_100
            frame.pts = i + 5 * 44_100
            c.mux(s.encode(frame))
        c.mux(s.encode(None))
    y, why = heard(tmp_path / name)
    assert why is None and 5.9 < len(y) / RATE < 11.2


def several(path, sounds, default):
    "A Matroska file with several recordings of which one is marked as the default."
    import av
    from av.stream import Disposition

    with av.open(str(path), 'w', format='matroska') as c:
        streams = [c.add_stream('flac', rate=44_100, layout='mono') for _ in sounds]
        for i, s in enumerate(streams):
            s.disposition = Disposition.default.value if i == default else 0
        for s, x in zip(streams, sounds):
            frame = av.AudioFrame.from_ndarray((x * 32767).astype('int16')[None], format='s16', layout='mono')
            frame.sample_rate, frame.pts = 44_100, 0
            for begin in range(0, len(x), 4096):
                part = av.AudioFrame.from_ndarray(
                    (x[begin : begin + 4096] * 32767).astype('int16')[None], format='s16', layout='mono'
                )
                part.sample_rate = 44_100
                part.pts = begin
                c.mux(s.encode(part))
            c.mux(s.encode(None))
    return path


@pytest.mark.parametrize(
    'sounds, default, chosen',
    [('ab', 0, 0), ('ab', 1, 1), ('-b', 0, 1), ('--b', 0, 2), ('a-', 1, 0), ('--', 0, None), ('ab', None, 0)],
)
def test_of_several_recordings_the_default_or_the_first_that_sounds(tmp_path, sounds, default, chosen):
    kinds = {'a': sweep(5), 'b': sweep(5, begin_hz=2000.0), '-': np.zeros(5 * 44_100, np.float32)}
    x, why = heard(several(tmp_path / 'x.mkv', [kinds[k] for k in sounds], default))
    assert why is None and len(x) == 5 * RATE
    if chosen is None:
        assert not x.any()
    else:
        assert pitch_hz(x, 2.5) == pytest.approx({'a': 400, 'b': 2100}[sounds[chosen]], abs=20)


# ---- channels


@pytest.mark.parametrize(
    'channels, expected',
    [
        ([1, -1], 1),
        ([0.5, -0.5, 0], 0.5),
        ([1, -0.98], 1),
        ([1, 0], 0.5),
        ([1, 1], 1),
        ([0.6, 0.2], 0.4),
        ([0, 0], 0),
        ([-1], -1),
    ],
)
def test_channels_that_cancel_are_heard(tmp_path, channels, expected):
    x = sweep(2, RATE)
    write(tmp_path / 'x.wav', np.stack([c * x for c in channels], 1), RATE, coding='FLOAT')
    y, _ = heard(tmp_path / 'x.wav')
    np.testing.assert_allclose(y, np.clip(expected * x, -1, 1), atol=1e-6)


# ---- files that are shown in part


def test_a_part_of_a_file_is_a_file(tmp_path):
    data = rng_for(0, 'part').bytes(10_000)
    (tmp_path / 'x').write_bytes(data)
    fd = os.open(tmp_path / 'x', os.O_RDONLY)
    try:
        for begin, end in ((0, None), (100, None), (100, 9_000), (0, 10)):
            part = files.FilePart(fd, begin, end)
            known = io.BytesIO(data[begin:end])
            rng = rng_for(1, str(begin), str(end))
            for _ in range(200):
                n = int(rng.integers(0, 3_000))
                to = int(rng.integers(-200, 9_999))
                whence = int(rng.integers(0, 3))
                assert part.read(n) == known.read(n) and part.tell() == known.tell()
                legal = to + (0, known.tell(), len(known.getvalue()))[whence] >= 0
                assert (
                    part.seek(to, whence) == (known.seek(to, whence) if legal else -1)
                    and part.tell() == known.tell()
                )
    finally:
        os.close(fd)


@pytest.mark.parametrize('name', ['x.flv', 'y.flv'])
def test_flv_is_decoded(tmp_path, name):
    x = sweep(5)
    write_av(
        tmp_path / name,
        np.stack([x, x], 1),
        codec='libmp3lame' if name == 'x.flv' else 'aac',
        container='flv',
    )
    y, why = heard(tmp_path / name)
    assert (
        why is None
        and len(y) / RATE == pytest.approx(5, abs=0.1)
        and place_s(y, 2.5) == pytest.approx(2.5, abs=0.1)
    )


def test_samples_that_are_no_numbers_are_refused_or_told(tmp_path):
    x = sweep(2, RATE)
    x[5_000] = np.nan
    write(tmp_path / 'x.wav', x[:, None], RATE, coding='FLOAT')
    with pytest.raises(AudioError, match='non-finite'):
        heard(tmp_path / 'x.wav')
    told = []
    y = np.concatenate([*decode.pieces(tmp_path / 'x.wav', 0.0, None, RATE, told.append)])
    assert (
        len(told) == 1
        and 'taken for silence' in told[0]
        and y[5_000] == 0
        and np.allclose(np.delete(y, 5_000), np.delete(x, 5_000), atol=1e-6)
    )


# ---- headers that say too little, and bytes that do not belong to the recording


def ape(n=300):
    "An APEv2 tag with head and foot."
    item = struct.pack('<II', n, 0) + b'Title\0' + b'x' * n
    about = struct.pack('<III', 2000, len(item) + 32, 1)
    return (
        b'APETAGEX'
        + about
        + struct.pack('<I', 0xA0000000)
        + bytes(8)
        + item
        + b'APETAGEX'
        + about
        + struct.pack('<I', 0x80000000)
        + bytes(8)
    )


@pytest.mark.parametrize('back', [ape(), ape() + b'TAG'.ljust(128, b'\0'), ape(20_000)])
@pytest.mark.parametrize('suffix', ['.flac', '.ogg', '.mp3', '.wav'])
def test_foreign_tags_behind_a_recording_are_no_damage(tmp_path, suffix, back):
    path = tmp_path / f'x{suffix}'
    path.write_bytes(made(path, sweep(4)) + back)
    x, why = heard(path)
    assert why is None and len(x) / RATE == pytest.approx(4, abs=0.1) and abs(place_s(x, 3.5) - 3.5) < 0.1


@pytest.mark.parametrize(
    'front',
    [bytes(4_096), rng_for(5, 'garbage').bytes(777), b'ID3\x04\0\0\0\0\0\x07' + bytes(7) + bytes(100)],
)
@pytest.mark.parametrize('suffix', ['.flac', '.ogg', '.opus', '.wav', '.aiff'])
def test_a_recording_behind_other_bytes_is_found(tmp_path, suffix, front):
    path = tmp_path / f'x{suffix}'
    rate = 48_000 if suffix == '.opus' else 44_100
    path.write_bytes(front + made(path, sweep(4, rate), rate))
    x, why = heard(path)
    assert why is None and len(x) / RATE == pytest.approx(4, abs=0.05) and abs(place_s(x, 3.5) - 3.5) < 0.1
    assert decode.info(path).sample_rate_hz == rate


def test_garbage_with_the_first_bytes_of_a_format_is_refused(tmp_path):
    for first in (b'fLaC\0\0\0"', b'OggS\0\2', b'RIFF\0\0\0\0WAVE', b'FORM\0\0\0\0AIFF', b'\x1aE\xdf\xa3'):
        (tmp_path / 'x.mp3').write_bytes(bytes(50) + first + rng_for(6, first).bytes(40_000))
        with pytest.raises(AudioError, match=r'x\.mp3: '):
            list(decode.pieces(tmp_path / 'x.mp3', 0.0, None, RATE))


@pytest.mark.parametrize('stated', [0.25, 0.6, 0.9, 0.97])
def test_a_flac_that_is_longer_than_it_says_is_read_to_its_end(tmp_path, stated):
    path = tmp_path / 'x.flac'
    data = bytearray(made(path, sweep(4)))
    samples = int.from_bytes(data[21:26], 'big')  # STREAMINFO: the low 36 bits are the total
    assert samples & (1 << 36) - 1 == 4 * 44_100
    data[21:26] = (samples >> 36 << 36 | round(4 * 44_100 * stated)).to_bytes(5, 'big')
    path.write_bytes(data)
    x, why = heard(path)
    assert why is None and len(x) == 4 * RATE and abs(place_s(x, 3.5) - 3.5) < 0.05


@pytest.mark.parametrize('cut', [1, 500, 0.4])
def test_a_cut_ogg_is_told_whatever_is_in_it(tmp_path, cut):
    path = write_av(tmp_path / 'x.ogg', np.stack([sweep(4)] * 2, 1), codec='flac', container='ogg')
    data = path.read_bytes()
    x, why = heard(path)
    assert why is None and len(x) == 4 * RATE
    path.write_bytes(data[: -round(cut if cut >= 1 else cut * len(data))])
    x, why = heard(path)
    assert isinstance(why, TruncatedAudio) and 'cut off' in str(why) and 0.5 < len(x) / RATE < 4


@pytest.mark.parametrize('container, codec', [('wav', 'ac3'), ('ac3', 'ac3'), ('eac3', 'eac3')])
def test_frames_without_times_are_counted_by_their_bytes(tmp_path, container, codec):
    path = write_av(
        tmp_path / f'x.{container}', np.stack([sweep(8)] * 2, 1), codec=codec, container=container
    )
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 8_000] = rng_for(7, 'damage').bytes(8_000)  # half a second
    path.write_bytes(data)
    x, why = heard(path)
    assert isinstance(why, DamagedAudio) and len(x) / RATE == pytest.approx(8, abs=0.1)
    assert all(abs(place_s(x, m) - m) < 0.12 for m in (1, 2, 3, 5.5, 6.5, 7.5))


@pytest.mark.parametrize(
    'container, codec', [('mp4', 'aac'), ('mp4', 'alac'), ('asf', 'wmav2'), ('matroska', 'flac')]
)
def test_tags_before_a_container_are_no_sound(tmp_path, container, codec):
    path = write_av(tmp_path / 'x', np.stack([sweep(4)] * 2, 1), codec=codec, container=container)
    alone, why = heard(path)
    tag = b'ID3\x03\0\0' + bytes([0, 1, 0, 0]) + rng_for(8, 'picture').bytes(1 << 14)
    path.write_bytes(tag + path.read_bytes() + ape())
    x, again = heard(path)
    assert why is None and again is None and len(x) == len(alone) and np.abs(x - alone).max() < 1e-3


@pytest.mark.parametrize(
    'suffix, container', [('.wav', 'WAV'), ('.aiff', 'AIFF'), ('.au', 'AU'), ('.caf', 'CAF')]
)
def test_a_header_that_states_half_is_told(tmp_path, suffix, container):
    path = tmp_path / f'x{suffix}'
    data = bytearray(made(path, np.stack([sweep(4)] * 2, 1), format=container, subtype='PCM_16'))
    order = 'little' if suffix == '.wav' else 'big'
    n = 4 * 44_100 * 4
    places = [
        at
        for at in range(4, 5_000)
        if n <= int.from_bytes(data[at : at + 4], order) <= n + 8
        and bytes(data[at - 4 : at]) != b'FORM'
        and bytes(data[:4]) != data[at - 4 : at]
    ]
    at = places[0]
    data[at : at + 4] = (int.from_bytes(data[at : at + 4], order) - n // 2).to_bytes(4, order)
    path.write_bytes(data)
    x, why = heard(path)
    assert isinstance(why, TruncatedAudio) and len(x) / RATE == pytest.approx(2, abs=0.05)


@pytest.mark.parametrize('container', ['wav', 'aiff', 'au', 'caf', 'w64', 'rf64', 'voc'])
def test_a_second_recording_that_is_not_read_is_told(tmp_path, container):
    path = tmp_path / f'x.{container}'
    one = made(path, sweep(4), format=container.upper(), subtype='PCM_16')
    assert heard(path)[1] is None
    path.write_bytes(2 * one)
    x, why = heard(path)
    assert isinstance(why, TruncatedAudio) and abs(len(x) - 4 * RATE) < 0.01 * RATE
    assert (
        f'from byte {len(one)} on it holds another recording' in str(why) and len(str(why).splitlines()) == 1
    )


@pytest.mark.parametrize('container, codec', [('caf', 'alac'), ('w64', 'adpcm_ima_wav'), ('tta', 'tta')])
def test_a_second_recording_is_told_of_what_ffmpeg_reads(tmp_path, container, codec):
    path = tmp_path / f'x.{container}'
    matrix.encode(path, container, codec, 44_100, 2, long_s=4.0)
    assert heard(path)[1] is None
    one = path.read_bytes()
    path.write_bytes(2 * one)
    x, why = heard(path)
    assert f'from byte {len(one)} on it holds another recording' in str(why) and len(
        x
    ) / RATE == pytest.approx(4, abs=0.1)


def test_what_an_avi_goes_on_with_is_no_other_recording(tmp_path):
    path = tmp_path / 'x.avi'
    path.write_bytes(
        b'RIFF' + struct.pack('<I', 12) + b'AVI ' + bytes(8) + b'RIFF' + struct.pack('<I', 4) + b'AVIX'
    )
    fd = os.open(path, os.O_RDONLY)
    assert chunks.next_recording(fd, 0, 32) is None
    os.close(fd)


@pytest.mark.parametrize('length', [0, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF])
@pytest.mark.parametrize('subtype', ['PCM_16', 'ULAW', 'FLOAT'])
def test_an_au_that_does_not_state_its_length_is_read_to_its_end(tmp_path, length, subtype):
    path = tmp_path / 'x.au'
    data = bytearray(made(path, np.stack([sweep(4)] * 2, 1), format='AU', subtype=subtype))
    whole = heard(path)[0]
    data[8:12] = length.to_bytes(4, 'big')
    path.write_bytes(data)
    x, why = heard(path)
    assert why is None and np.array_equal(x, whole)
    with open(path, 'rb') as f:
        x = np.concatenate([*decode.stream_pieces(lambda n: f.read(min(n, 7)), 'a pipe', RATE)])
    assert abs(len(x) - len(whole)) < 0.01 * RATE and np.abs(x[:RATE] - whole[:RATE]).max() < 1e-3


@pytest.mark.parametrize('rate', [44_100, 22_050])
def test_flac_in_asf_is_whole(tmp_path, rate):
    path = write_av(
        tmp_path / 'x.wma', np.stack([sweep(6, rate)] * 2, 1), rate, codec='flac', container='asf'
    )
    x, why = heard(path)
    assert (
        why is None
        and len(x) / RATE == pytest.approx(6, abs=0.02)
        and all(abs(place_s(x, m) - m) < 0.05 for m in (0.5, 1, 3, 5.5))
    )


@pytest.mark.parametrize('back', range(300, 12_000, 900))
def test_a_flac_damaged_near_its_end_lacks_nothing_in_silence(tmp_path, back):
    path = tmp_path / 'x.flac'
    data = bytearray(
        made(
            path,
            0.5
            * rng_for(8, 'noise').standard_normal(100 * 8_000).astype('float32')
            * np.exp(-np.arange(100 * 8_000) / 1e5).astype('float32'),
            8_000,
        )
    )
    data[-back] ^= 0x55
    path.write_bytes(data)
    x, why = heard(path)
    assert why is not None and ('cut off' in str(why) or abs(len(x) - 100 * RATE) <= 16), (len(x) / RATE, why)


def test_the_last_frames_of_a_flac_are_asked_of_ffmpeg(tmp_path, monkeypatch):
    "libsndfile may end early without a word."
    path = tmp_path / 'x.flac'
    made(path, sweep(200, 8_000), 8_000)
    real = sndfile._own_blocks

    def ends_early(self):
        blocks = [*real(self)]
        yield from blocks[:-1]
        yield blocks[-1][:-3_200]

    monkeypatch.setattr(sndfile.Sndfile, 'own_blocks', ends_early)
    x, why = heard(path)
    assert why is None and len(x) == 200 * RATE


def test_a_long_hole_of_zeros_in_frames_without_times(tmp_path):
    path = write_av(tmp_path / 'x.aac', np.stack([sweep(20)] * 2, 1), codec='aac', container='adts')
    # several seconds; decoders pass over it without a word
    data = bytearray(path.read_bytes())
    hole = 60_000
    at = len(data) // 3
    data[at : at + hole] = bytes(hole)
    path.write_bytes(data)
    x, why = heard(path)
    lost_s = hole / len(data) * 20
    assert isinstance(why, DamagedAudio) and abs(len(x) / RATE - 20) < 0.15 * lost_s
    assert all(abs(place_s(x, m) - m) < 0.15 * lost_s for m in (2, 5, 12, 15, 18))
    data[-len(data) // 4 :] = bytes(len(data) - len(data) * 3 // 4)
    path.write_bytes(data)
    assert isinstance(heard(path)[1], TruncatedAudio) and not isinstance(heard(path)[1], DamagedAudio)


def opus_in_matroska(path):
    sound = np.stack([sweep(8, 48_000)] * 2, 1)
    return write_av(path, sound, rate=48_000, codec='libopus', container='matroska')


def test_short_jumps_of_times_add_up(tmp_path):
    path = opus_in_matroska(tmp_path / 'x.mka')
    import av

    thin = tmp_path / 'thin.mka'
    with av.open(str(path)) as source, av.open(str(thin), 'w', format='matroska') as to:
        stream = to.add_stream_from_template(source.streams.audio[0])
        for i, packet in enumerate(source.demux(source.streams.audio[0])):
            if packet.pts is not None and not (100 < i < 300 and i % 4 == 0):  # 50 gaps of 20 ms
                packet.stream = stream
                to.mux(packet)
    x, why = heard(thin)
    assert isinstance(why, DamagedAudio) and len(x) / RATE == pytest.approx(8, abs=0.12)
    assert all(abs(place_s(x, m) - m) < 0.15 for m in (1, 6.5, 7.5))


@pytest.mark.parametrize('off_ms', [700, 2_000, 30_000])
def test_a_time_that_the_next_frame_takes_back_is_no_gap(tmp_path, off_ms):
    import av

    path = opus_in_matroska(tmp_path / 'x.mka')
    late = tmp_path / 'late.mka'
    with av.open(str(path)) as source, av.open(str(late), 'w', format='nut') as to:
        stream = to.add_stream_from_template(source.streams.audio[0])
        for i, packet in enumerate(source.demux(source.streams.audio[0])):
            if packet.pts is not None:
                packet.stream, more = stream, round(off_ms / 1000 / packet.time_base) * (i == 100)
                packet.pts = packet.pts + more
                packet.dts = packet.dts
                to.mux(packet)
    x, why = heard(late)
    assert len(x) / RATE == pytest.approx(8, abs=0.12) and all(
        abs(place_s(x, m) - m) < 0.12 for m in (1, 4, 7.5)
    )


@pytest.mark.parametrize('share', [0.1, 0.34, 0.5, 0.9])
def test_a_cut_asf_is_told(tmp_path, share):
    path = write_av(tmp_path / 'x.wma', np.stack([sweep(6)] * 2, 1), codec='wmav2', container='asf')
    assert heard(path)[1] is None
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    x, why = heard(path)
    assert isinstance(why, TruncatedAudio) and 'cut off' in str(why) and len(x) / RATE < 6


def test_an_opus_whose_rate_is_not_its_decoders_is_read_on_at_its_place(tmp_path, monkeypatch):
    from hostile import tone

    from resonance_nb import audio

    x = np.concatenate(
        [tone(12.0, 16_000)[:, 0], 0.3 * np.random.default_rng(4).standard_normal(32_000).astype('float32')]
    )
    path = tmp_path / 'x.opus'
    path.write_bytes(audio.encode(x, codec='opus'))
    whole = audio.load(path)
    assert sndfile.Sndfile(os.open(path, os.O_RDONLY)).rate == 16_000
    real = sndfile._own_blocks

    def ends_early(self):
        for n, block in enumerate(real(self)):
            if n:
                break
            yield block[: 5 * 16_000]
        self.broken = True

    monkeypatch.setattr(sndfile.Sndfile, 'own_blocks', ends_early)
    notes = []
    heard = np.concatenate(list(decode.pieces(path, 0.0, None, 16_000, notes.append)))
    assert abs(len(heard) - len(whole)) < 800
    assert not notes, 'FFmpeg finds no damage in it'
    late = heard[len(heard) - 32_000 :], whole[len(whole) - 32_000 :]
    assert abs(audio.rms_db(late[0]) - audio.rms_db(late[1])) < 0.5


@pytest.mark.parametrize(
    'container, codec',
    [
        ('au', 'pcm_alaw'),
        ('au', 'g722'),
        ('aiff', 'adpcm_ima_ws'),
        ('w64', 'adpcm_ms'),
        ('tta', 'tta'),
        ('voc', 'pcm_s16le'),
    ],
)
def test_what_states_its_length_is_told_when_it_is_cut(tmp_path, container, codec):
    path = tmp_path / f'x.{container}'
    matrix.encode(path, container, codec, 48_000, 1, long_s=4.0)
    assert heard(path)[1] is None
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    x, why = heard(path)
    assert isinstance(why, TruncatedAudio) and 'cut off' in str(why) and len(x) / RATE < 2.5


@pytest.mark.parametrize(
    'container, codec, rate',
    [
        ('avi', 'ac3', 48_000),
        ('avi', 'libmp3lame', 22_050),
        ('avi', 'adpcm_ms', 8_000),
        ('avi', 'aac', 44_100),
        ('w64', 'mp2', 48_000),
        ('rm', 'aac', 22_050),
    ],
)
def test_what_lacks_packets_keeps_its_time(tmp_path, container, codec, rate):
    path = tmp_path / f'x.{container}'
    matrix.encode(path, container, codec, rate, 1)
    whole, why = heard(path)
    assert why is None
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 4_000] = rng_for(9, codec).bytes(4_000)
    path.write_bytes(data)
    x, why = heard(path)
    late = [like[1] for like in matrix.pieces(x)[6:]]
    assert (
        isinstance(why, DamagedAudio)
        and abs(len(x) - len(whole)) < 0.12 * RATE
        and max(map(abs, late)) < 0.15
    )


def test_what_ffmpeg_counts_wrongly_in_an_avi_is_no_gap(tmp_path):
    path = tmp_path / 'x.avi'
    matrix.encode(path, 'avi', 'aac', 8_000, 1)
    x, why = heard(path)
    assert why is None and len(x) / RATE == pytest.approx(6, abs=0.3)


def test_an_au_whose_coding_libsndfile_cannot_seek_in_is_read(tmp_path):
    path = tmp_path / 'x.au'
    matrix.encode(path, 'au', 'g726le', 16_000, 1)
    x, why = heard(path)
    assert why is None and len(x) == 6 * RATE


def test_a_law_in_w64_is_music(tmp_path):
    "libsndfile takes it for bytes without a law."
    path = tmp_path / 'x.w64'
    matrix.encode(path, 'w64', 'pcm_alaw', 16_000, 1)
    x, why = heard(path)
    assert why is None and np.abs(x - matrix.signal()).max() < 0.05


def test_samples_too_large_for_a_resampler_stay_numbers(tmp_path):
    path = tmp_path / 'x.wav'
    x = sweep(2)
    x[10_000:10_010] = 3e38
    made(path, x, subtype='FLOAT')
    got, why = heard(path)
    assert (
        why is None
        and len(got) == 2 * RATE
        and np.isfinite(got).all()
        and abs(place_s(got, 1.5) - 1.5) < 0.05
    )


def test_a_decoder_that_falls_silent_is_told(tmp_path):
    "FFmpeg cannot decode packets that end within a frame of six channels."
    path = tmp_path / 'x.voc'
    matrix.encode(path, 'voc', 'pcm_u8', 48_000, 6)
    x, why = heard(path)
    assert why is not None and 'cut off' in str(why) or len(x) / RATE == pytest.approx(6, abs=0.1)


def test_samples_of_64_bits_are_read(tmp_path):
    path = tmp_path / 'x.w64'
    matrix.encode(path, 'w64', 'pcm_s64le', 16_000, 1)
    x, why = heard(path)
    assert why is None and np.abs(x - matrix.signal()).max() < 0.01


def damaged(path, spoil, container, codec, rate, channels=1):
    "The sound of the matrix with damage of the matrix, read."
    facts = {'frame': matrix.encode(path, container, codec, rate, channels), 'rate': rate}
    path.write_bytes(matrix.DAMAGE[spoil](path.read_bytes(), facts))
    return heard(path)


@pytest.mark.parametrize('container', ['mov', 'flv'])
def test_zeros_are_no_speech(tmp_path, container):
    "A decoder of Speex would make two seconds of each packet of zeros."
    x, why = damaged(tmp_path / 'x', 'zeros-middle', container, 'speex', 16_000)
    assert isinstance(why, DamagedAudio) and len(x) / RATE == pytest.approx(6, abs=0.15)


def test_a_frame_of_amr_says_whether_it_is_good(tmp_path):
    x, why = damaged(tmp_path / 'x', 'zeros-middle', 'w64', 'libopencore_amrnb', 8_000)
    assert isinstance(why, DamagedAudio) and len(x) / RATE == pytest.approx(6, abs=0.15)


def test_a_wavpack_that_ends_between_two_blocks_is_told(tmp_path):
    x, why = damaged(tmp_path / 'x', 'none', 'wv', 'wavpack', 44_100, 2)
    assert why is None
    with decode.open_recording(tmp_path / 'x') as d:
        end = [p.pos for p in d.container.demux(d.stream) if p.size][6]
    (tmp_path / 'x').write_bytes((tmp_path / 'x').read_bytes()[:end])
    x, why = heard(tmp_path / 'x')
    assert isinstance(why, TruncatedAudio) and why.promised_s == 6 and len(x) == 3 * RATE


def test_bytes_that_are_lost_count_once(tmp_path):
    "In RealMedia, FFmpeg does not say where the packets behind the damage are."
    x, why = damaged(tmp_path / 'x', 'noise-middle', 'rm', 'ac3', 48_000, 6)
    assert why is not None and len(x) / RATE < 6.3


@pytest.mark.parametrize(
    'container, codec, rate',
    [('mp3', 'libmp3lame', 8_000), ('w64', 'mp2', 16_000), ('rm', 'real_144', 8_000)],
)
def test_damage_lasts_as_long_as_its_bytes(tmp_path, container, codec, rate):
    x, why = damaged(tmp_path / 'x', 'noise-middle', container, codec, rate)
    assert isinstance(why, DamagedAudio) and len(x) / RATE == pytest.approx(6, abs=0.15)


@pytest.mark.parametrize('codec, rate', [('adpcm_ima_qt', 8_000), ('libopus', 48_000), ('aac', 44_100)])
def test_what_was_lost_in_an_mp4_is_counted_once(tmp_path, codec, rate):
    path = tmp_path / 'x'
    x, why = damaged(path, 'noise-middle', 'mov' if 'qt' in codec else 'mp4', codec, rate)
    assert isinstance(why, DamagedAudio)
    late = [abs(late) for like, late, *_ in matrix.pieces(x)[-3:]]
    assert max(late) <= 0.05


def test_a_file_that_ends_within_the_header_of_an_mp3(tmp_path):
    for word in (b'Xing', b'Info', b'VBRI'):
        path = tmp_path / 'cut.mp3'
        path.write_bytes(b'\xff' * 72 + word)
        with open(path, 'rb') as f:
            assert bitstreams.mp3_goes_on(f.fileno()) is False
        with pytest.raises(AudioError):
            decode.info(path)
