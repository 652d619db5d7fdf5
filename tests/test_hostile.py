"""The matrix of hostile files: a small sample of it, and that it sees what is wrong."""

import json

import numpy as np
import pytest

import matrix


def test_a_sample_of_the_matrix(tmp_path, capsys):
    run = matrix.Run(tmp_path)
    assert run.sample() == 0, capsys.readouterr().out
    verdicts = [r['verdict'] for r in run.results.values()]
    assert len(verdicts) > 100 and verdicts.count('no sound') == 0
    assert min(verdicts.count(v) for v in ('whole', 'partly, said', 'refused')) >= 9
    assert 'mp4         aac' in (tmp_path / 'table.txt').read_text()
    again = matrix.Run(tmp_path)
    assert len(again.results) == len(verdicts), 'a later run goes on where this one ended'


FACTS = {'container': 'wav', 'codec': 'pcm_s16le', 'rate': 44_100, 'channels': 2, 'frame': 0}


def judged(damage, x, said=None, tmp_path=None, **changes):
    path = tmp_path / 'x.wav'
    path.write_bytes(b'no sound for ffmpeg')
    told = said and {'kind': 'DamagedAudio', 'text': said}
    answer = {
        'duration_s': None,
        'wrong': None,
        'loaded': len(x),
        'refused': told,
        'same': True,
        'said': told,
        'n': len(x),
        'took_s': 0,
    } | changes
    return matrix.judge(damage, FACTS, answer, x, path, matrix.pieces(matrix.signal()))


def test_what_is_wrong_is_seen(tmp_path, monkeypatch):
    whole = matrix.signal()
    monkeypatch.setattr(matrix, 'reference', lambda path: whole)
    see = lambda *a, **k: judged(*a, tmp_path=tmp_path, **k)[0]
    assert see('none', whole) == 'whole'
    assert see('none', whole[:80_000]) == 'lost or late'
    assert see('cut-half', whole[:48_000]) == 'silent loss'
    assert see('cut-half', whole[:48_000], 'x.wav: is cut off') == 'partly, said'
    assert see('noise-middle', np.roll(whole, 16_000), 'x.wav: is damaged') == 'lost or late'
    assert (
        see(
            'noise-middle',
            np.append(whole[:48_000], np.random.default_rng(0).normal(0, 0.1, 48_000).astype('f4')),
        )
        == 'lost or late'
    )
    assert see('none', np.tile(whole, 2)) == 'too long'
    assert see('none', whole, 'two\nlines of x.wav') == see('none', whole, 'without a name') == 'bad line'
    assert see('none', whole, same=False) == 'differs'
    monkeypatch.setattr(matrix, 'reference', lambda path: np.tile(whole, 2))
    assert see('twice', whole) == 'silent loss' and see('twice', np.tile(whole, 2)) == 'whole'


def test_a_process_that_dies_or_talks_is_seen(tmp_path, monkeypatch):
    for words, seen in (("import os; os.abort()", 'died'), ("import time; time.sleep(600)", 'hung')):
        worker = matrix.Worker(['-c', words])
        monkeypatch.setattr(matrix, 'HANG_S', 20 if seen == 'died' else 1)
        assert worker.ask(tmp_path / 'x', tmp_path / 'out') == seen
        worker.end()
    worker = matrix.Worker(
        [
            '-c',
            "import sys; sys.stderr.write('[mp3] oh'); sys.stderr.flush(); print('{}', flush=True); input()",
        ]
    )
    monkeypatch.setattr(matrix, 'HANG_S', 60)
    assert worker.ask(tmp_path / 'x', tmp_path / 'out') == {} and worker.chatter() == '[mp3] oh'
    worker.end()


def test_a_choice_of_the_matrix(tmp_path, capsys):
    with pytest.raises(SystemExit):
        matrix.main(['--only', 'no-such-thing'])
    assert 'unknown: no-such-thing' in capsys.readouterr().err
    place = tmp_path / 'runs'
    (place / 'files' / 'wav').mkdir(parents=True)
    m = {'made': 'pcm_s16le-16000-1', 'codec': 'pcm_s16le', 'rate': 16_000, 'channels': 1, 'variant': []}
    m['frame'] = matrix.encode(place / 'files' / 'wav' / m['made'], 'wav', 'pcm_s16le', 16_000, 1)
    (place / 'files' / 'wav' / 'made.jsonl').write_text(json.dumps(m) + '\n')
    assert matrix.main(['--only', 'wav,cut', '--place', str(place)]) == 0
    done = [json.loads(line) for line in (place / 'results.jsonl').read_text().splitlines()]
    assert {r['damage'] for r in done} == {d for d in matrix.DAMAGE if d.startswith('cut')}
