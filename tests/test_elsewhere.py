"""What imitates other machines: it takes effect, it is told when it does not, and it fails when a test does."""

import json
import subprocess
import sys

import pytest

import elsewhere

LOOK = """
import json, sys, time
import numpy as np, scipy.fft
click = np.eye(1, 64, dtype='f4')[0]  # its spectrum is one everywhere
one, again, two = scipy.fft.rfft(click), scipy.fft.rfft(click), scipy.fft.rfft(np.stack([click, click]))
off = np.abs(one - 1)
exact = np.abs(np.fft.rfft(click.astype('f8')) - 1).max()
ahead = [time.time() - time.monotonic() for _ in range(99)]
print(json.dumps([float(off.max()), float(exact), bool((one == again).all()), bool((two == one).all()), one.real.tolist(), max(ahead) - min(ahead)]))
"""


def look(**env):
    "What a child sees of its spectra and of its clock."
    done = subprocess.run(
        [sys.executable, '-c', LOOK],
        env=elsewhere.environment(elsewhere.Setting(env)),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_nothing_is_changed_unless_asked():
    most, exact, again, two, values, jump = look()
    assert most < 1e-7 and exact < 1e-16 and again and two and jump < 60


def test_last_digits_are_disturbed_and_no_others():
    one = look(ELSEWHERE_DISTURB='8')
    other = look(ELSEWHERE_DISTURB='8')
    for most, exact, again, two, values, jump in (one, other):
        assert 1e-7 < most < 1.1e-6 and 1e-16 < exact < 1e-14
        assert again, 'the same computation in one process'
        assert not two, 'another batch'
    assert one[4] != other[4], 'another process'


def test_the_clock_jumps():
    assert 3_000 < look(ELSEWHERE_CLOCK='3600')[5] < 7_300


def test_a_failing_test_is_told(tmp_path, capfd, monkeypatch):
    (tmp_path / 'test_two.py').write_text('def test_a(): pass\ndef test_b(): assert 0\n')
    monkeypatch.setattr(elsewhere, 'LOGS', tmp_path / 'logs')
    assert elsewhere.main(['--only', 'one-thread', '--', str(tmp_path / 'test_two.py')]) == 1
    said = capfd.readouterr().out
    assert (
        '1 passed, 1 failed' in said
        and 'torch threads: 1' in said
        and 'test_b' in (elsewhere.LOGS / 'one-thread.log').read_text()
    )
    # -k would also look at the folder's name
    assert elsewhere.main(['--only', 'one-thread', '--', f'{tmp_path / "test_two.py"}::test_a']) == 0


@pytest.mark.parametrize(
    'says, well, words',
    [
        ({'computes right': True, 'torch threads': 2}, False, "had no effect: {'torch threads': 2}"),
        ({'computes right': False, 'torch threads': 2}, True, 'skipped: products of integers'),
        (None, False, 'did not start'),
    ],
)
def test_a_setting_without_effect_is_a_failure(tmp_path, monkeypatch, says, well, words):
    "What a child says is made up: how many threads a library takes depends on the machine, and on who else is there."

    def child(command, **how):
        assert command[-1] == '--report', 'no tests are run with it'
        return subprocess.CompletedProcess(command, int(says is None), json.dumps(says), '')

    monkeypatch.setattr(elsewhere, 'LOGS', tmp_path)
    monkeypatch.setattr(elsewhere.subprocess, 'run', child)
    setting = elsewhere.Setting({'OMP_NUM_THREADS': '2'}, {'torch threads': 1})
    answer, line = elsewhere.run('one-thread', setting, True)
    assert answer is well and words in line, line


def test_names_and_turns(capsys):
    names = [*elsewhere.settings()]
    assert elsewhere.turn(names) in names and elsewhere.turn(names) == elsewhere.turn(names)
    with pytest.raises(SystemExit) as end:
        elsewhere.main(['--only', 'busy,nowhere'])
    assert end.value.code == 2 and 'no setting nowhere; choose from: avx2' in capsys.readouterr().err
    with elsewhere.busy(2):
        pass  # and no process is left: each is waited for


def test_what_is_run():
    some = elsewhere.numerical(False)
    assert (
        'tests/test_notebooks.py' in some
        and 'tests/test_fuse.py' in some
        and 'tests/test_house.py' not in some
        and len(some) > 25
    )
    assert elsewhere.numerical(True) == elsewhere.QUICK
