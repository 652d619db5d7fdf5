"Players and figures: what a page gets is small, labelled, valid, and readable in both themes."

import base64
import io
import re
from html.parser import HTMLParser

import matplotlib
import numpy as np
import pandas as pd
import pytest
import soundfile as sf

matplotlib.use('Agg')

import matplotlib.pyplot as plt

from resonance_nb import show
from resonance_nb.core import ResonanceError

TONE = (0.5 * np.sin(2 * np.pi * 440 * np.arange(32_000) / 16_000)).astype(np.float32)


class Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.found = []
        self.text = ''
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def sound_of(attrs):
    kind, _, data = attrs['src'].partition(',')
    assert kind == 'data:audio/mpeg;base64'
    return sf.read(io.BytesIO(base64.b64decode(data, validate=True)))


def test_a_player_is_labelled_and_decodes():
    tags = Tags(show.player(TONE, 'a tone').data)
    audio = [a for t, a in tags.found if t == 'audio']
    assert len(audio) == 1 and audio[0]['aria-label'] == 'a tone' and audio[0]['preload'] == 'none'
    assert 'controls' in audio[0] and 'autoplay' not in audio[0] and tags.text == 'a tone'
    x, rate = sound_of(audio[0])
    assert rate == 16_000 and abs(len(x) - 32_000) < 4_000
    peak_hz = np.fft.rfftfreq(16_000, 1 / rate)[np.abs(np.fft.rfft(x[4_000:20_000])).argmax()]
    assert abs(peak_hz - 440) < 2 and abs(np.abs(x[4_000:20_000]).max() - 0.9) < 0.1


@pytest.mark.parametrize(
    'label', ['"><script>alert(1)</script>', "it's <b>bold</b> & 'quoted'", '\u266b \u2212 5 dB']
)
def test_labels_cannot_leave_their_place(label):
    tags = Tags(show.player(TONE, label).data)
    assert [t for t, _ in tags.found] == ['figure', 'figcaption', 'audio']
    assert tags.found[2][1]['aria-label'] == label and tags.text == label


def test_levels_are_kept_when_asked_and_never_clip():
    quiet = sound_of(Tags(show.player(0.2 * TONE, 'quiet', normalise=False).data).found[2][1])[0]
    loud = sound_of(Tags(show.player(9 * TONE, 'loud', normalise=False).data).found[2][1])[0]
    assert abs(np.abs(quiet[4_000:20_000]).max() - 0.1) < 0.02
    assert np.abs(loud).max() <= 1.0 and np.abs(loud[4_000:20_000]).max() > 0.8


def test_a_pair_is_two_players_that_wrap():
    page = show.before_after(TONE, TONE[:16_000], ('clean', 'noisy')).data
    tags = Tags(page)
    assert [a['aria-label'] for t, a in tags.found if t == 'audio'] == ['clean', 'noisy']
    assert (
        'flex-wrap:wrap' in page and 'color:inherit' in page and not re.search(r'color:\s*#|background', page)
    )


@pytest.mark.parametrize('bad', [np.zeros(0), np.zeros((2, 50)), np.array([0.0, np.nan, 0.1])])
def test_what_is_no_sound_is_refused(bad):
    for draw in (lambda: show.player(bad, 'x'), lambda: show.spectrogram(bad), lambda: show.waveform(bad)):
        with pytest.raises(ResonanceError):
            draw()


def test_silence_can_be_shown():
    assert 'audio' in show.player(np.zeros(8_000), 'silence').data
    ax = show.spectrogram(np.zeros(8_000))
    assert np.isfinite(ax.images[0].get_array()).all()
    plt.close('all')


def test_style_reads_in_both_themes(tmp_path):
    settings = show.style()
    assert settings['figure.facecolor'] == 'white' and settings['savefig.transparent'] is False
    assert settings['font.size'] >= 10 and settings['figure.figsize'][0] <= 7.5
    ax = show.waveform(TONE, title='tone')
    ax.figure.savefig(tmp_path / 'x.png')
    pixels = plt.imread(tmp_path / 'x.png')
    assert (pixels[0, 0, :3] == 1).all() and (pixels.shape[2] == 3 or pixels[..., 3].min() == 1)
    plt.close('all')
    assert show.style(axes__grid=False)['axes.grid'] is False
    show.style()


def test_colours_differ_in_lightness():
    rgb = np.array([[int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)] for c in show.COLOURS])
    luminance = np.sort(rgb @ (0.2126, 0.7152, 0.0722))
    assert len(set(show.COLOURS)) == len(show.COLOURS) and luminance[-1] < 0.75  # all stand out from white


def test_spectrogram_axes_and_the_tone_in_it():
    ax = show.spectrogram(TONE, title='tone')
    level = np.asarray(ax.images[0].get_array())
    assert (
        ax.get_xlabel() == 'time (s)'
        and ax.get_ylabel() == 'frequency (kHz)'
        and ax.get_title(loc='left') == 'tone'
    )
    assert level.max() == pytest.approx(0, abs=1e-3)
    left, right, bottom, top = ax.images[0].get_extent()
    row_hz = level[:, level.shape[1] // 2].argmax() / (level.shape[0] - 1) * (top - bottom) * 1_000
    assert (left, right, bottom, top) == (0, 2, 0, 8) and abs(row_hz - 440) < 20
    plt.close('all')


def test_constellation_places_peaks_and_refuses_unequal():
    ax = show.constellation(TONE, [0.5, 1.0], [440, 880])
    assert np.allclose(ax.collections[-1].get_offsets(), [[0.5, 0.44], [1.0, 0.88]])
    with pytest.raises(ResonanceError, match='2 peak times but 1'):
        show.constellation(TONE, [0.5, 1.0], [440])
    plt.close('all')


def test_bands_are_where_the_intervals_are():
    rows = pd.DataFrame(dict(snr_db=[10, 0], value=[0.9, 0.5], low=[0.8, 0.4], high=[0.95, 0.6], system='a'))
    ax = show.lines_with_band(rows, 'snr_db', 'system', ylabel='top-1')
    assert list(ax.lines[0].get_xdata()) == [0, 10] and list(ax.lines[0].get_ydata()) == [0.5, 0.9]
    spread = ax.collections[0].get_paths()[0].vertices
    assert spread[:, 1].min() == 0.4 and spread[:, 1].max() == 0.95
    with pytest.raises(ResonanceError, match="no column 'high'"):
        show.lines_with_band(rows.drop(columns='high'), 'snr_db')
    plt.close('all')


def test_importing_show_does_not_import_matplotlib():
    import subprocess
    import sys

    code = "import resonance_nb.show, sys; print([m for m in ('matplotlib', 'seaborn', 'pandas', 'IPython') if m in sys.modules])"
    assert (
        subprocess.run(
            [sys.executable, '-c', code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == '[]'
    )
