"""Small recognisers for the tests of the catalogue; worker processes import this file too.

A song is its loudest frequency in each quarter of a second. What a test wants to go wrong is asked for
through the environment: TOY_DELAY_S (seconds per song), TOY_CRASH_ID (a recording at which the process dies),
TOY_WAIT_ID (a recording that is never done: its process waits until it is ended),
TOY_FULL (saving fails as on a full disk), TOY_BALLAST (bytes added to every segment)."""

import errno
import os
import signal
import time
from pathlib import Path

import numpy as np

from resonance_nb.core import Match, assert_same_answers


class Toy:
    name = 'toy'
    accept_confidence = 0.6

    def __init__(self):
        self.songs = {}

    def __len__(self):
        return len(self.songs)

    def notes(self, samples):
        frames = samples[: len(samples) // 4000 * 4000].reshape(-1, 4000)
        return np.abs(np.fft.rfft(frames)).argmax(1)

    def add(self, track_id, samples):
        time.sleep(float(os.environ.get('TOY_DELAY_S', 0)))
        while track_id == os.environ.get('TOY_WAIT_ID'):
            time.sleep(60)
        if track_id == os.environ.get('TOY_CRASH_ID'):
            os.kill(os.getpid(), signal.SIGSEGV)
        if len(samples) >= 4000 and np.any(samples):
            self.songs[track_id] = self.notes(samples)

    def search(self, samples, k=5):
        clip = self.notes(samples)
        found = []
        for track_id, song in sorted(self.songs.items()):
            agree = [np.mean(song[i : i + len(clip)] == clip) for i in range(len(song) - len(clip) + 1)] or [
                0.0
            ]
            found.append(Match(track_id, float(max(agree)), float(np.argmax(agree)) / 4, float(max(agree))))
        return sorted(found, key=lambda m: -m.score)[:k]

    def merge(self, other):
        assert not self.songs.keys() & other.songs.keys(), 'a song came twice'
        self.songs |= other.songs

    def retain(self, track_ids):
        self.songs = {t: s for t, s in self.songs.items() if t in track_ids}

    def save(self, folder):
        if os.environ.get('TOY_FULL'):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        np.savez(
            Path(folder) / 'songs.npz',
            ballast=np.zeros(int(os.environ.get('TOY_BALLAST', 0)), np.uint8),
            **self.songs,
        )

    @classmethod
    def load(cls, folder):
        self = cls()
        with np.load(Path(folder) / 'songs.npz', allow_pickle=False) as f:
            self.songs = {t: f[t] for t in f.files if t != 'ballast'}
        return self


class StreamToy(Toy):
    "The same, a block at a time."

    name = 'stream-toy'

    def add_stream(self, track_id, blocks):
        notes = []
        rest = np.zeros(0, np.float32)
        for block in blocks:
            rest = np.concatenate([rest, block])
            whole = len(rest) // 4000 * 4000
            notes.append(self.notes(rest[:whole]))
            rest = rest[whole:]
        if notes and np.concatenate(notes).any():
            self.songs[track_id] = np.concatenate(notes)


def melody(seed, seconds=4, rate=16_000):
    "Four notes a second: shape (n,)."
    rng = np.random.default_rng(seed)
    t = np.arange(rate // 4) / rate
    notes = 220 * 2 ** (rng.integers(0, 30, seconds * 4) / 12)
    return np.concatenate([0.4 * np.sin(2 * np.pi * f * t) for f in notes]).astype(np.float32)


def write_songs(folder, n, seconds=4, first=0):
    "`n` melodies as small WAV files; returns their paths."
    import soundfile as sf

    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f'song {i:03}.wav' for i in range(first, first + n)]
    for i, path in enumerate(paths, first):
        sf.write(path, melody(i, seconds), 16_000, subtype='PCM_16')
    return paths


def truth(catalog, songs=40, method='toy'):
    "What a catalogue knows, without what may differ between two runs: songs, what is indexed, answers."
    rows = [{k: v for k, v in song.items() if k != 'added_at'} for song in catalog.songs()]
    indexed = sorted(
        (r['recording_id'], r['method'])
        for r in catalog.store.rows('SELECT recording_id, method FROM indexed')
    )
    answers = []
    for i in range(0, songs, 5):
        a = catalog.identify(melody(i)[16_000:48_000], method=method, top=3)
        answers.append(
            (
                a.decision,
                [
                    {k: getattr(m, k) for k in ('track_id', 'score', 'offset_s', 'confidence', 'title')}
                    for m in a.matches
                ],
            )
        )
    return rows, indexed, answers


def same_truth(one, other):
    "Whether two catalogues know the same and answer alike, when what they know was made by different processes."
    assert one[:2] == other[:2]
    for (decision, matches), (decision_2, matches_2) in zip(one[2], other[2], strict=True):
        assert decision == decision_2
        if decision == 'match':  # pure tones are all ties: a last digit moves a peak by a frame
            assert_same_answers(matches[:1], matches_2[:1], score=0.5, offset_s=0.05, confidence=0.05)
    return True


def age(folder, version):
    "Make a catalogue what a version of the package that knew format 1 or 2 would have left."
    import sqlite3

    db = sqlite3.connect(folder / 'catalogue.sqlite')
    db.execute('DROP TABLE sounds')
    if version == 1:
        db.execute('DROP TABLE unreadable')
    db.execute(f'PRAGMA user_version = {version}')
    db.commit()
    db.close()


def format_of(folder):
    "The format of a catalogue, and how many of the tables it has that the first one did not have."
    import sqlite3

    db = sqlite3.connect(folder / 'catalogue.sqlite')
    tables = db.execute(
        "SELECT count(*) FROM sqlite_master WHERE name IN ('unreadable', 'sounds')"
    ).fetchone()[0]
    version = db.execute('PRAGMA user_version').fetchone()[0]
    db.close()
    return version, tables


def main(argv):
    "python toy.py CATALOGUE MUSIC JOBS BATCH: index as a program would, for tests that kill it."
    import sys

    sys.path.insert(0, str(Path(__file__).parent))
    from resonance_nb import catalog, core

    core.METHODS['toy'] = 'toy:Toy'
    try:
        with catalog.Catalog(argv[0], create=True) as c:
            report = c.index(
                argv[1],
                method=argv[4] if len(argv) > 4 else 'toy',
                jobs=int(argv[2]),
                batch_files=int(argv[3]),
                progress=False,
            )
    except core.ResonanceError as e:
        print(e, file=sys.stderr)
        return 2
    print(report.added, report.unchanged, len(report.failed))
    return 0


if __name__ == '__main__':
    import signal

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job begins with SIGINT ignored
    import sys

    sys.exit(main(sys.argv[1:]))
