"""A small survey for tests: short sounds, answers after a moment, a server in a process of its own."""

import hashlib
import json
import os
import subprocess
import sys
from contextlib import contextmanager
from functools import cache

import numpy as np

from resonance_nb import audio
from resonance_nb.core import rng_for
from resonance_nb.survey_plan import shared_block
from resonance_nb.survey_store import (
    Settings,
    Song,
    SurveyStore,
    add_block,
    add_songs,
    consent_words,
    write_consent,
    write_settings,
)

OWNER = 'the password of the owner'


@cache
def sound(i, kind):
    "A tone of a second, encoded."
    t = np.arange(48_000) / 48_000
    return audio.encode(0.1 * np.sin(2 * np.pi * 110 * 2 ** (i / 4) * t) * np.hanning(48_000), 48_000, kind)


def make(folder, n_songs=10, **settings):
    "A survey of sounds of a second."
    wanted = {'n_questions': 12, 'min_heard_s': 0.2, 'owner_hash': hashlib.sha256(OWNER.encode()).hexdigest()}
    settings = Settings(**(wanted | settings))
    (folder / 'clips').mkdir(parents=True)
    rng = rng_for(0, 'toy survey')
    songs = []
    for i in range(n_songs):
        names = f'{i:016x}', f'{i + 100:016x}'
        for name in names:
            for kind in ('opus', 'mp3'):
                (folder / 'clips' / f'{name}.{kind}').write_bytes(sound(i % 10, kind))
        songs.append(
            Song(
                f'secret/song {i}.mp3',
                title=f'Secret {i}',
                clip=names[0],
                second=names[1],
                vector=rng.normal(size=6),
            )
        )
    write_settings(folder, settings)
    write_consent(folder, consent_words(settings))
    with SurveyStore(folder, create=True) as store:
        add_songs(store, songs)
        add_block(store, [[place + 1 for place in t] for t in shared_block(n_songs, settings.n_questions)])
    return folder


@contextmanager
def served(folder, *words, port=0):
    "The process that serves a survey, with its `address`; it is killed at the end."
    code = 'import sys; from resonance_nb.cli import main; main(sys.argv[1:])'
    command = [
        sys.executable,
        '-c',
        code,
        'survey',
        'serve',
        str(folder),
        '--port',
        str(port),
        '--json',
        *words,
    ]
    with open(folder / 'log.txt', 'ab') as log:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, text=True, env=dict(os.environ)
        )
    try:
        line = process.stdout.readline()
        assert line, (folder / 'log.txt').read_text()
        process.address = json.loads(line)['address']
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
