"Batches play the same concerts as the reference: same draws, same formulas, every row by itself."

import random

import numpy as np
import pytest

torch = pytest.importorskip('torch')

from resonance_nb import augment, batched, chain, dynamics, venue, warp  # noqa: E402
from resonance_nb.bank import Bank
from resonance_nb.clips import measured_snr_db  # noqa: E402
from resonance_nb.augment import PARTS, BatchDegrader, spec_augment, waveform_augmentation  # noqa: E402
from resonance_nb.audio import SAMPLE_RATE as RATE  # noqa: E402
from resonance_nb.core import ResonanceError, rng_for  # noqa: E402
from resonance_nb.starter import default_corpus  # noqa: E402
from resonance_nb.bank import ANECHOIC  # noqa: E402

NAMES = list(venue.VENUES)


def tunes(n, seconds=3.1):
    "Notes with overtones, one tune a row, shape (n, seconds)."
    rng = rng_for(0, 'tunes')
    t = np.arange(2_000) / 16_000
    rows = []
    for _ in range(n):
        hz = 150 * 2 ** (rng.integers(0, 36, int(seconds * 8) + 1) / 12)
        rows.append(
            np.concatenate(
                [sum(np.sin(2 * np.pi * f * k * t) / k for k in (1, 2, 3)) * np.exp(-6 * t) for f in hz]
            )[: int(seconds * 16_000)]
        )
    return torch.from_numpy(0.2 * np.stack(rows).astype(np.float32))


@pytest.fixture(scope='module')
def corpus_bank():
    return Bank(default_corpus(), 'train', rooms_per_venue=4)


@pytest.fixture(scope='module')
def many(corpus_bank):
    return BatchDegrader(corpus_bank, duration_s=2.0, before_s=1.0, n_scenes=2, scene_s=8.0)


@pytest.fixture(scope='module')
def played(many):
    clips = tunes(48)
    records = many.draw(48, (-5.0, 15.0), rng_for(1, 'batch'))
    return clips, records, many(clips, records).numpy()


def drifts(r):
    return any(s['stage'] == 'drift' for s in r.source)


def db(x):
    return 10 * np.log10(np.mean(np.asarray(x, float) ** 2))


def test_every_row_is_what_the_reference_plays(many, played):
    clips, records, out = played
    assert out.shape == (48, 32_000) and np.isfinite(out).all() and np.abs(out).max() <= 1
    steady = [i for i, r in enumerate(records) if not drifts(r)]
    assert len(steady) >= 10 and len({r.venue for r in records}) == 6
    for i in steady:
        x = clips[i].numpy()
        r = records[i]
        one = venue.replay(x[16_000:48_000], r, many.bank, x[:16_000], x[48_000:])
        coarse = next((s['bits'] for s in r.phone if s['stage'] == 'quantise'), 16) == 8
        stages = [s['stage'] for s in (*r.source, *r.phone)]
        assert db(out[i] - one) < db(one) - (15 if coarse else 30), (
            r.venue,
            stages,
            db(out[i] - one) - db(one),
        )


def test_rows_that_drift_sound_like_the_reference(many, played):
    "Splices are not vocoder frames, so the comparison is of levels in bands and time, crowd and all."
    from resonance_nb.audio import log_mel

    clips, records, out = played
    moving = [i for i, r in enumerate(records) if drifts(r)]
    assert moving
    for i in moving:
        x = clips[i].numpy()
        one = venue.replay(x[16_000:48_000], records[i], many.bank, x[:16_000], x[48_000:])
        assert np.abs(log_mel(out[i], n_mels=32) - log_mel(one, n_mels=32)).mean() < 3


def test_the_ratio_is_exact_in_every_row(many, played):
    clips, records, _ = played
    music = augment._music(many, clips, records).numpy()[:, 16_000:]
    for i, r in enumerate(records[:20]):
        loud = many(clips[i : i + 1], [r])
        noise = augment._crowd(many, [r]).numpy()[0, 16_000:]
        gain = 10 ** ((db(music[i]) - db(noise) - r.snr_db) / 20)
        mixture = music[i] + gain * noise
        assert abs(measured_snr_db(mixture, music[i], noise) - r.snr_db) < 0.1 and torch.isfinite(loud).all()


def test_a_row_does_not_depend_on_its_batch(many, played):
    "Dither apart, which is drawn for the batch."
    clips, records, _ = played
    fine = [venue.replace(r, phone=tuple(s for s in r.phone if s['stage'] != 'quantise')) for r in records]
    few = many(clips[:9], fine[:9])
    for i in range(9):
        assert (few[i] - many(clips[i : i + 1], fine[i : i + 1])[0]).abs().max() < 2e-3


def test_the_same_seed_gives_the_same_batch(many):
    clips = tunes(6)
    a, ra = many.degrade(clips, (0.0, 10.0), rng_for(7))
    b, rb = many.degrade(clips, (0.0, 10.0), rng_for(7))
    assert torch.allclose(a, b, atol=1e-5) and ra == rb
    assert not torch.allclose(a, many.degrade(clips, (0.0, 10.0), rng_for(8))[0], atol=1e-2)


def test_draws_have_the_distributions_of_single_concerts(many, corpus_bank):
    "Two-sample Kolmogorov-Smirnov tests on what both ways draw for the same venue."
    from scipy.stats import ks_2samp

    def value(r, part, stage, key):
        return next((s[key] for s in getattr(r, part) if s['stage'] == stage), np.nan)

    batch = [r for r in many.draw(1_500, 0.0, rng_for(3)) if r.venue == 'club']
    rng = rng_for(4)
    single = [venue.VENUES['club'].draw(rng, corpus_bank, 0.0, 2.0, 1.0) for _ in range(300)]
    for part, stage, key in (
        ('source', 'equalise', 'high_pass_hz'),
        ('source', 'compress', 'ratio'),
        ('source', 'limit', 'ceiling_db'),
        ('phone', 'auto_gain', 'target_db'),
        ('phone', 'equalise', 'low_pass_hz'),
        ('source', 'drift', 'stretch'),
    ):
        a, b = ([value(r, part, stage, key) for r in rows] for rows in (batch, single))
        a = np.array(a)
        b = np.array(b)
        assert abs(np.isnan(a).mean() - np.isnan(b).mean()) < 0.12
        assert ks_2samp(a[~np.isnan(a)], b[~np.isnan(b)]).pvalue > 1e-3, key
    assert {s['stage'] for r in batch for s in r.phone}.isdisjoint({'code_and_decode', 'skew'})


@pytest.mark.parametrize(
    'name, p',
    [
        ('compress', dynamics.Compressor(-30, 6, 0.01, 0.1, 6.0)),
        ('compress', dynamics.Compressor(-20, 2, 0.0, 0.5, 0.0, 0.0)),
        ('limit', dynamics.Limiter(-9, 0.2)),
        ('limit', dynamics.Limiter(-3, 0.05, 0.0)),
        ('auto_gain', dynamics.AutoGain(-20, 20, 0.3)),
        ('auto_gain', dynamics.AutoGain(-14, 6, 1.0, 0.5)),
    ],
)
def test_stages_are_the_chains(name, p):
    x = tunes(3) * torch.tensor([[0.1], [1.0], [4.0]])
    one = np.stack([chain.STAGES[name][1](row, None, p) for row in x.numpy()])
    assert np.abs(getattr(batched, name)(x, [p] * 3).numpy() - one).max() < 2e-4 * max(1, np.abs(one).max())


def test_the_limiter_is_a_wall():
    x = 3 * torch.randn(4, 20_000, generator=torch.Generator().manual_seed(0))
    assert batched.limit(x, [dynamics.Limiter(c, 0.1) for c in (-1, -6, -12, -20)]).abs().amax(
        1
    ).tolist() <= [10 ** (c / 20) for c in (-1, -6, -12, -20)]


def test_nothing_wraps_around():
    x = torch.zeros(1, 30_000)
    x[0, -1] = 1
    response = torch.ones(1, 5_000)
    assert batched.filtered(x, response)[0, :-1].abs().max() < 1e-5
    y = torch.randn(2, 30_000, generator=torch.Generator().manual_seed(1))
    h = torch.randn(2, 700, generator=torch.Generator().manual_seed(2))
    by_hand = np.stack([np.convolve(a, b)[:30_000] for a, b in zip(y.numpy(), h.numpy())])
    assert np.abs(batched.filtered(y, h).numpy() - by_hand).max() < 1e-3


def test_splicing_keeps_tempo_and_place():
    rng = np.random.default_rng(0)
    x = np.zeros(49_600, np.float32)
    starts = range(800, 49_000, 4_000)
    for s in starts:
        x[s : s + 200] = rng.normal(size=200)
    for p in (
        warp.Drift(1.02, 0.0),
        warp.Drift(0.98, 0.0),
        warp.Drift(1.0, 20.0),
        warp.Drift(1.02, -20.0),
    ):
        y = batched.drift(torch.from_numpy(x)[None], [p], 16_000)[0].numpy()
        loud = np.convolve(np.abs(y), np.ones(200), 'same')
        for s in starts:
            want = 16_000 + (s + 100 - 16_000) / p.stretch
            if 900 < want < 48_700:
                near = loud[int(want) - 900 : int(want) + 900]
                assert abs(near.argmax() - 900) <= 48, p


def test_clips_of_the_wrong_shape_are_refused(many):
    records = many.draw(2, 0.0, rng_for(0))
    for clips in (torch.zeros(2, 100), torch.zeros(3, 50_000), torch.zeros(50_000)):
        with pytest.raises(ResonanceError, match='needs 2 rows'):
            many(clips, records)
    with pytest.raises(ResonanceError, match='longer than a clip'):
        BatchDegrader(many.bank, duration_s=20.0, before_s=10.0, scene_s=30.0)


def test_silence_stays_finite(many):
    out, _ = many.degrade(torch.zeros(3, 49_600), 0.0, rng_for(0))
    assert torch.isfinite(out).all()


def test_masks_cover_what_they_say():
    x = torch.randn(64, 40, 100, generator=torch.Generator().manual_seed(0))
    y = spec_augment(x, rng_for(0), time_masks=1, max_time=0.2, freq_masks=0)
    changed = (x != y).any(1)
    assert (
        (changed.sum(1) <= 21).all()
        and changed.any()
        and torch.equal(y, spec_augment(x, rng_for(0), time_masks=1, max_time=0.2, freq_masks=0))
    )
    assert torch.equal(spec_augment(x, rng_for(0), time_masks=0, freq_masks=0), x)
    with pytest.raises(ResonanceError, match='shape'):
        spec_augment(x[0], rng_for(0))


@pytest.mark.parametrize('strength', ['light', 'heavy'])
def test_audiomentations_leaves_the_global_generators_alone(strength, tmp_path):
    pytest.importorskip('audiomentations')
    from resonance_nb.audio import save

    save(
        tmp_path / 'room.wav',
        np.exp(-np.arange(4_000) / 800) * np.random.default_rng(0).normal(size=4_000) * 0.1,
    )
    save(tmp_path / 'crowd.wav', 0.1 * np.random.default_rng(1).normal(size=64_000))
    augmenter = waveform_augmentation(strength, [tmp_path / 'room.wav'], [tmp_path / 'crowd.wav'])
    x = tunes(1)[0].numpy()
    random.seed(5)
    np.random.seed(5)
    before = random.getstate(), np.random.get_state()[1].copy()
    a = augmenter(x, rng_for(1))
    b = augmenter(x, rng_for(1))
    assert (
        np.allclose(a, b, atol=1e-5) and a.shape == x.shape and np.isfinite(a).all() and np.abs(a).max() <= 1
    )
    assert random.getstate() == before[0] and np.array_equal(np.random.get_state()[1], before[1])
    assert not np.allclose(a, augmenter(x, rng_for(2)), atol=1e-2)


def test_without_torch_the_package_says_what_to_install(root):
    import subprocess
    import sys

    code = (
        "import sys; sys.modules['torch'] = None\n"
        'import resonance_nb.venue, resonance_nb.landmarks, resonance_nb.cli\n'
        'from resonance_nb.augment import BatchDegrader\n'
        'try: BatchDegrader()\nexcept Exception as e: print(type(e).__name__, e)'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=root)
    assert 'MissingExtra' in done.stdout and 'resonance_nb[learn]' in done.stdout
    light = subprocess.run(
        [sys.executable, '-X', 'importtime', '-c', 'import resonance_nb.venue'],
        capture_output=True,
        text=True,
        cwd=root,
    )
    assert not any(m in light.stderr for m in (' torch\n', ' scipy.signal\n', ' pandas\n'))


def test_varied_crowds_never_sound_twice_the_same():
    plain, other = (
        BatchDegrader(None, ['club'], n_scenes=2, scene_s=6, vary_crowds=v) for v in (False, True)
    )
    assert torch.allclose(other._crowds, plain._crowds, atol=1e-5), 'the recordings are the same'
    x = torch.zeros(8, 3 * RATE)
    records = other.draw(8, 0.0, rng_for(2))
    x[:, ::80] = 0.5
    heard = other(x, records)
    assert (
        heard.shape == plain(x, plain.draw(8, 0.0, rng_for(2))).shape == (8, RATE)
        and torch.isfinite(heard).all()
    )
    assert torch.allclose(heard, other(x, records), atol=1e-5), 'the same records, the same draw'
    with pytest.raises(ResonanceError, match='longer than a clip'):
        BatchDegrader(None, ['club'], n_scenes=2, scene_s=2.3, vary_crowds=True)


def test_varied_crowds_are_faster_slower_backwards_and_two_at_a_time():
    from resonance_nb.augment import _moments, _varied

    t = np.arange(RATE * 4) / RATE
    crowds = torch.from_numpy(
        np.stack([np.sin(2 * np.pi * hz * t) for hz in (1_000, 1_000, 3_000)]).astype(np.float32)
    )
    rows = torch.zeros(40, dtype=torch.long)
    starts = torch.arange(40) * 1_600
    both = _varied(crowds, rows, starts, 2 * RATE, rng_for(1, 'varied'))
    assert both.shape == (40, 2 * RATE) and torch.isfinite(both).all()
    tops = torch.fft.rfft(both).abs()[:, : 2 * 1_500].argmax(1) / 2
    assert 793 <= tops.min() < 900 and 1_100 < tops.max() <= 1_260
    behind = torch.fft.rfft(both).abs()[:, 2 * 2_300 :].amax(1) > 100
    assert 3 < behind.sum() < 30, 'a third of the crowds behind is the high tone'
    ramp = torch.arange(2 * 9_000).float().reshape(2, 9_000)
    got = _moments(
        ramp,
        torch.tensor([0, 1]),
        torch.tensor([50, 8_900]),
        torch.tensor([1.25, 0.8]),
        torch.tensor([False, True]),
        1_000,
    )
    torch.testing.assert_close(got[0], 50 + 1.25 * torch.arange(1_000))
    last = 8_998 - int(999 * 0.8) - 1  # begins earlier than asked, so that it ends in time
    torch.testing.assert_close(got[1], 9_000 + last + 0.8 * torch.arange(1_000).flip(0), atol=1.01, rtol=0)


def test_parts_are_left_out_and_nothing_else_changes(corpus_bank):
    times = dict(duration_s=1.0, before_s=0.5, n_scenes=2)
    whole = BatchDegrader(corpus_bank, ['hard-mix'], **times)
    part_of = {'room': lambda r: r.room, 'crowd': lambda r: r.snr_db, 'device': lambda r: r.device}
    for left_out in PARTS:
        less = BatchDegrader(corpus_bank, ['hard-mix'], **times, dropped_stages=(left_out,))
        for a, b in zip(whole.draw(12, 0.0, rng_for(3)), less.draw(12, 0.0, rng_for(3))):
            where, stages = PARTS[left_out]
            assert (
                {s['stage'] for s in getattr(b, where)}.isdisjoint(stages)
                if stages
                else part_of[left_out](b) in (ANECHOIC, None, '')
            )
            for other, (place, names) in PARTS.items():
                if other != left_out:
                    kept = [
                        [s for s in getattr(r, place) if s['stage'] in names] if names else part_of[other](r)
                        for r in (a, b)
                    ]
                    assert kept[0] == kept[1], f'{other} changed without {left_out}'


def test_a_venue_named_twice_has_twice_the_crowds(corpus_bank):
    once, twice = (BatchDegrader(corpus_bank, v, n_scenes=2) for v in (['club'], ['club', 'club', 'arena']))
    assert (
        len(once.scenes['club']) == 2 and len(twice.scenes['club']) == 4 and len(twice.scenes['arena']) == 2
    )
    assert len({str(s) for s in twice.scenes['club']}) == 4
    assert torch.allclose(
        twice._crowds[[twice._scene_row[id(s)] for s in twice.scenes['club'][:2]]], once._crowds, atol=1e-5
    )
