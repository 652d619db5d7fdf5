"Downloads over connections that break, against a server on this machine."

import errno
import hashlib
import json
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from resonance_nb import download
from resonance_nb.audio import info, save
from resonance_nb.core import ResonanceError
from resonance_nb.corpora import KINDS, Corpus, CorpusError, manifest
from resonance_nb.download import (
    DownloadError,
    WrongChecksum,
    fetch,
    fetch_open,
    not_derivable,
    write_manifest,
)

BODY = np.random.default_rng(1).integers(0, 256, 300_000, dtype='uint8').tobytes()
SHA = hashlib.sha256(BODY).hexdigest()
FAST = dict(backoff_s=0.01, timeout_s=2.0, retries=3)


class Server:
    "Serves `files`; `plan` says, request by request, what goes wrong (the last entry stays)."

    def __init__(self):
        self.files = {'/song': BODY}
        self.plan = [{}]
        self.log = []
        self.etag = '"v1"'
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = 'HTTP/1.1'

            def do_GET(self):
                outer.answer(self)

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, kwargs={'poll_interval': 0.02}, daemon=True).start()
        self.url = f'http://127.0.0.1:{self.http.server_port}'

    def answer(self, h):
        how = self.plan.pop(0) if len(self.plan) > 1 else self.plan[0]
        asked = h.headers.get('Range')
        self.log.append((h.path, asked, h.headers.get('If-Range')))
        h.close_connection = True
        if 'status' in how:
            h.send_response(how['status'])
            h.send_header('Connection', 'close')
            for k, v in how.get('headers', {}).items():
                h.send_header(k, v)
            h.send_header('Content-Length', '0')
            return h.end_headers()
        body = how.get('body', self.files.get(h.path))
        if body is None:
            h.send_response(404), h.send_header('Content-Length', '0')
            return h.end_headers()
        start = int(asked[6:-1]) if asked and not how.get('no_range') else 0
        if start and h.headers.get('If-Range') not in (None, self.etag):
            start = 0
        if start >= len(body):
            (
                h.send_response(416),
                h.send_header('Content-Range', f'bytes */{len(body)}'),
                h.send_header('Content-Length', '0'),
            )
            return h.end_headers()
        h.send_response(206 if start else 200)
        if start:
            h.send_header('Content-Range', f'bytes {start}-{len(body) - 1}/{len(body)}')
        if self.etag:
            h.send_header('ETag', self.etag)
        if not how.get('no_length'):
            h.send_header('Content-Length', str(how.get('claim', len(body) - start)))
        h.end_headers()
        try:
            h.wfile.write(body[start:][: how.get('send')])
            h.wfile.flush()
            time.sleep(how.get('sleep', 0))
        except OSError:
            pass


@pytest.fixture
def server():
    s = Server()
    yield s
    s.http.shutdown()
    s.http.server_close()


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv('RESONANCE_CACHE', str(tmp_path_factory.mktemp('cache')))


def left(folder):
    return sorted(p.name for p in folder.iterdir())


def test_good_file(server, tmp_path):
    seen = []
    path = fetch(
        server.url + '/song',
        tmp_path / 'deep/song',
        SHA,
        progress=lambda n, total: seen.append((n, total)),
        **FAST,
    )
    assert path.read_bytes() == BODY and left(tmp_path / 'deep') == ['song']
    assert seen[-1] == (len(BODY), len(BODY)) and seen == sorted(seen)
    fetch(server.url + '/song', path, SHA, **FAST)
    assert len(server.log) == 1


def test_dropped_connection_resumes(server, tmp_path):
    server.plan = [dict(send=100_000), dict(send=50_000), {}]
    assert fetch(server.url + '/song', tmp_path / 'song', SHA, **FAST).read_bytes() == BODY
    assert [r for _, r, _ in server.log] == [None, 'bytes=100000-', 'bytes=150000-'] and server.log[1][
        2
    ] == '"v1"'
    assert left(tmp_path) == ['song']


def test_truncated_without_length_or_hash_cannot_be_told_but_with_hash_can(server, tmp_path):
    server.plan = [dict(send=100_000, no_length=True), {}]
    assert fetch(server.url + '/song', tmp_path / 'song', SHA, **FAST).read_bytes() == BODY


def test_many_breaks_are_fine_while_bytes_arrive(server, tmp_path):
    server.plan = [dict(send=20_000)]
    assert (
        fetch(server.url + '/song', tmp_path / 'song', SHA, **(FAST | dict(retries=1))).read_bytes() == BODY
    )
    assert len(server.log) == 15


def test_nothing_new_gives_up(server, tmp_path):
    server.plan = [dict(send=20_000), dict(send=0)]
    with pytest.raises(DownloadError, match='failed 4 times') as e:
        fetch(server.url + '/song', tmp_path / 'song', SHA, **FAST)
    assert '\n' not in str(e.value) and (tmp_path / 'song.part').stat().st_size == 20_000
    server.plan = [{}]
    assert fetch(server.url + '/song', tmp_path / 'song', SHA, **FAST).read_bytes() == BODY
    assert server.log[-1][1] == 'bytes=20000-'


def test_ignoring_range_starts_over(server, tmp_path):
    server.plan = [dict(send=100_000), dict(no_range=True)]
    assert fetch(server.url + '/song', tmp_path / 'song', SHA, **FAST).read_bytes() == BODY
    assert server.log[1][1] == 'bytes=100000-'


def test_changed_file_comes_from_its_beginning(server, tmp_path):
    (tmp_path / 'song.part').write_bytes(b'old' * 1000)
    (tmp_path / 'song.part.tag').write_text('"v0"')
    assert fetch(server.url + '/song', tmp_path / 'song', **FAST).read_bytes() == BODY


def test_no_version_and_no_hash_never_resumes(server, tmp_path):
    server.etag = ''
    server.plan = [dict(send=100_000), {}]
    assert fetch(server.url + '/song', tmp_path / 'song', **FAST).read_bytes() == BODY
    assert [r for _, r, _ in server.log] == [None, None]


def test_bad_part_on_disk_is_healed_by_the_hash(server, tmp_path):
    (tmp_path / 'song.part').write_bytes(b'x' * 1000)
    assert fetch(server.url + '/song', tmp_path / 'song', SHA, **FAST).read_bytes() == BODY
    (tmp_path / 'again.part').write_bytes(BODY + b'more')
    assert fetch(server.url + '/song', tmp_path / 'again', SHA, **FAST).read_bytes() == BODY
    (tmp_path / 'whole.part').write_bytes(BODY)
    assert fetch(server.url + '/song', tmp_path / 'whole', SHA, **FAST).read_bytes() == BODY


def test_wrong_checksum_names_both_and_leaves_nothing(server, tmp_path):
    with pytest.raises(WrongChecksum) as e:
        fetch(server.url + '/song', tmp_path / 'song', 'ab' * 32, **FAST)
    assert SHA in str(e.value) and 'ab' * 32 in str(e.value) and '\n' not in str(e.value)
    assert left(tmp_path) == [] and len(server.log) == 2


def test_wrong_then_right(server, tmp_path):
    server.plan = [dict(body=b'captive portal'), {}]
    assert fetch(server.url + '/song', tmp_path / 'song', SHA, **FAST).read_bytes() == BODY


def test_sha1(server, tmp_path):
    fetch(server.url + '/song', tmp_path / 'song', sha1=hashlib.sha1(BODY).hexdigest().upper(), **FAST)
    with pytest.raises(WrongChecksum, match='sha1'):
        fetch(server.url + '/song', tmp_path / 'other', sha1='0' * 40, **FAST)


@pytest.mark.parametrize('status', [400, 401, 403, 404, 410, 451])
def test_final_answers_are_final(server, tmp_path, status):
    server.plan = [dict(status=status)]
    with pytest.raises(DownloadError, match=f'HTTP {status}'):
        fetch(server.url + '/song', tmp_path / 'song', SHA, **FAST)
    assert len(server.log) == 1 and left(tmp_path) == []


@pytest.mark.parametrize('status', [408, 429, 500, 503])
def test_passing_answers_pass(server, tmp_path, status):
    server.plan = [dict(status=status), {}]
    assert fetch(server.url + '/song', tmp_path / 'song', SHA, **FAST).read_bytes() == BODY


def test_retry_after_is_obeyed(server, tmp_path):
    server.plan = [dict(status=429, headers={'Retry-After': '1'}), {}]
    begin = time.monotonic()
    fetch(server.url + '/song', tmp_path / 'song', SHA, **FAST)
    assert time.monotonic() - begin >= 1.0


@pytest.mark.parametrize(
    'value', ['Wed, 21 Oct 99999999999999999999 07:28:00 GMT', 'soon', 'nan', '-5', '1e999']
)
def test_a_server_may_say_nonsense_about_waiting(server, tmp_path, value):
    server.plan = [dict(status=503, headers={'Retry-After': value}), {}]
    if value != '1e999':  # a long wait is cut, but not to nothing
        assert fetch(server.url + '/song', tmp_path / 'song', SHA, **FAST).read_bytes() == BODY
    assert (download.retry_after_s(value) or 0) <= download._PATIENCE_S


def test_lengths_that_are_no_numbers_of_bytes():
    bad = ['333\u00b3', '9' * 5_000, '-1', '', '1.5']
    assert [download._is_size(x) for x in ('0', '123456789012345678', *bad)] == [
        True,
        True,
        *[False] * len(bad),
    ]


def test_slow_connection_breaks_and_goes_on(server, tmp_path):
    server.plan = [dict(send=100_000, sleep=3.0), {}]
    assert (
        fetch(server.url + '/song', tmp_path / 'song', SHA, **(FAST | dict(timeout_s=0.3))).read_bytes()
        == BODY
    )
    assert server.log[1][1] == 'bytes=100000-', 'it did not wait for the rest'


def test_redirects(server, tmp_path):
    server.plan = [dict(status=302, headers={'Location': '/song'}), {}]
    assert fetch(server.url + '/elsewhere', tmp_path / 'song', SHA, **FAST).read_bytes() == BODY
    server.plan = [dict(status=302, headers={'Location': '/loop'})]
    with pytest.raises(DownloadError, match='redirect'):
        fetch(server.url + '/loop', tmp_path / 'loop', SHA, **FAST)
    server.plan = [dict(status=302, headers={'Location': 'file:///etc/passwd'})]
    with pytest.raises(DownloadError):
        fetch(server.url + '/file', tmp_path / 'file', SHA, **FAST)


def test_too_big(server, tmp_path):
    for plan in ({}, dict(no_length=True)):
        server.plan = [plan]
        with pytest.raises(DownloadError, match='more than the allowed 1,000'):
            fetch(server.url + '/song', tmp_path / 'song', max_bytes=1000, **FAST)
        assert not (tmp_path / 'song').exists()


@pytest.mark.parametrize('url', ['ftp://x/y', 'file:///etc/passwd', 'song.ogg', ''])
def test_only_the_web(tmp_path, url):
    with pytest.raises(DownloadError, match='only http'):
        fetch(url, tmp_path / 'x')


def test_nobody_there(tmp_path):
    with pytest.raises(DownloadError, match='no connection'):
        fetch('http://127.0.0.1:9/x', tmp_path / 'x', **(FAST | dict(retries=1)))


def test_disk_full_is_one_line_and_resumes(server, tmp_path, monkeypatch):
    true_open = open

    class Full:
        def __init__(self, f):
            self.f = f

        def __getattr__(self, name):
            return getattr(self.f, name)

        def __enter__(self):
            return self

        def __exit__(self, *a):
            self.f.close()

        def write(self, block):
            if self.f.tell() > 60_000:
                raise OSError(errno.ENOSPC, 'No space left on device')
            return self.f.write(block)

    with monkeypatch.context() as m:
        m.setattr(
            download,
            'open',
            lambda p, mode='r', **k: (
                Full(true_open(p, mode, **k)) if mode in ('wb', 'r+b') else true_open(p, mode, **k)
            ),
            raising=False,
        )
        with pytest.raises(DownloadError, match='the disk is full') as e:
            fetch(server.url + '/song', tmp_path / 'song', SHA, **FAST)
    assert '\n' not in str(e.value) and not (tmp_path / 'song').exists()
    assert fetch(server.url + '/song', tmp_path / 'song', SHA, **FAST).read_bytes() == BODY
    assert server.log[-1][1] is not None


def test_unwritable_place(server, tmp_path):
    (tmp_path / 'file').write_text('x')
    with pytest.raises(DownloadError, match='cannot write'):
        fetch(server.url + '/song', tmp_path / 'file/song', SHA, **FAST)


# the open corpus


@pytest.fixture
def offer(server, tmp_path):
    "A manifest of a long song, a noise and a room, and their originals on the server."
    rng = np.random.default_rng(2)
    make = {
        'music': ('song.ogg', 70.0, 44_100),
        'noise': ('crowd.flac', 2.0, 48_000),
        'rir': ('hall.wav', 9.0, 22_050),
    }
    books = tmp_path / 'books'
    books.mkdir()
    for kind, (name, seconds, rate) in make.items():
        save(tmp_path / name, (0.1 * rng.standard_normal(int(seconds * rate))).astype('float32'), rate)
        body = (tmp_path / name).read_bytes()
        server.files['/' + name] = body
        sha = hashlib.sha256(body).hexdigest()
        suffix = 'flac' if kind == 'rir' else 'ogg'
        head, row = manifest_row(
            kind, sha, f'{kind}/{sha[:12]}.{suffix}', f'https://originals.example/{name}', seconds
        )
        (books / f'open-{kind}.csv').write_text(head + row)
    return dict(
        manifest=books,
        base_url_rewrite=lambda u: u.replace('https://originals.example', server.url),
        progress=False,
        **FAST,
    )


def manifest_row(kind, sha, file, url, seconds):
    extra = {
        'music': ('title,', 'A song,'),
        'noise': ('concert_use,', 'core,'),
        'rir': ('room_id,', 'hall,'),
    }[kind]
    return (
        f'id,kind,file,{extra[0]}duration_s,source_url,source_sha256,licence\n',
        f'{sha[:12]},{kind},{file},{extra[1]}{seconds},{url},{sha},CC0\n',
    )


def test_fetch_open_end_to_end(server, offer, tmp_path):
    server.plan = [dict(send=5000), {}]
    report = fetch_open(tmp_path / 'corpus', **offer)
    assert (report.made, report.present, report.failed) == (3, 0, [])
    corpus = Corpus(tmp_path / 'corpus')
    assert corpus.check(full=True) == [] and corpus.checksum() == manifest(offer['manifest']).checksum()
    for kind, seconds in (('music', 64.0), ('noise', 2.0), ('rir', 8.0)):
        about = info(corpus.path(kind, corpus.table(kind).index[0]))
        assert about.duration_s == pytest.approx(seconds, abs=0.05) and (
            about.sample_rate_hz,
            about.channels,
        ) == (16_000, 1)
    asked = len(server.log)
    again = fetch_open(tmp_path / 'corpus', **offer)
    assert (again.made, again.present) == (0, 3) and len(server.log) == asked
    assert left(download.cache_folder('originals')) in (['lock'], [])


def test_fetch_open_keeps_what_arrived(server, offer, tmp_path):
    del server.files['/crowd.flac']
    server.files['/hall.wav'] += b'tampered'
    report = fetch_open(tmp_path / 'corpus', **offer)
    assert report.made == 1 and len(report.failed) == 2
    assert 'HTTP 404' in report.failed[0][1] and 'sha256' in report.failed[1][1]
    assert [len(report.corpus.table(k)) for k in KINDS] == [1, 0, 0] and report.corpus.check() == []


def test_fetch_open_undecodable_and_underivable(server, offer, tmp_path):
    server.files['/x.ogg'] = b'this is no sound'
    sha = hashlib.sha256(b'this is no sound').hexdigest()
    path = offer['manifest'] / 'open-music.csv'
    bad = manifest_row('music', sha, 'music/x.ogg', 'https://originals.example/x.ogg', 3.0)[1]
    sofa = manifest_row('music', 'cd' * 32, 'music/y.ogg', 'https://originals.example/y.sofa', 3.0)[1]
    path.write_text(path.read_text() + bad + sofa)
    report = fetch_open(tmp_path / 'corpus', ('music',), **offer)
    assert report.made == 1 and len(report.failed) == 2 and len(report.corpus.music) == 1
    assert any('SOFA' in why for _, why in report.failed) and all('\n' not in why for _, why in report.failed)


def test_fetch_open_parts_add_up(server, offer, tmp_path):
    fetch_open(tmp_path / 'corpus', ('noise',), **offer)
    report = fetch_open(tmp_path / 'corpus', ('rir',), **offer)
    assert [len(report.corpus.table(k)) for k in KINDS] == [0, 1, 1]
    assert fetch_open(tmp_path / 'corpus', limit=0, **offer).corpus.checksum() == report.corpus.checksum()


def test_fetch_open_refuses_a_hostile_manifest(server, offer, tmp_path):
    head, row = manifest_row('music', SHA, '../../outside.ogg', 'https://originals.example/song.ogg', 3.0)
    (offer['manifest'] / 'open-music.csv').write_text(head + row)
    with pytest.raises(CorpusError, match='could leave'):
        fetch_open(tmp_path / 'corpus', **offer)
    assert server.log == []


def test_fetch_open_without_manifest(tmp_path):
    with pytest.raises(CorpusError, match='no manifest'):
        fetch_open(tmp_path / 'corpus', manifest=tmp_path, progress=False)


def test_no_network_ends_soon(offer, tmp_path, monkeypatch):
    head, rows = '', ''
    for n in range(40):
        head, row = manifest_row('music', f'{n:064x}', f'music/{n}.ogg', f'http://127.0.0.1:9/{n}.ogg', 3.0)
        rows += row.replace('0' * 12, f'{n:012d}', 1)
    (offer['manifest'] / 'open-music.csv').write_text(head + rows)
    asked = []
    real = download._make
    monkeypatch.setattr(download, '_make', lambda row, *a, **how: asked.append(row) or real(row, *a, **how))
    with pytest.raises(DownloadError, match='no connection to the originals'):
        fetch_open(tmp_path / 'corpus', ('music',), **(offer | dict(retries=1)))
    assert len(asked) < 40, 'the rest was not tried'


def test_one_download_at_a_time(offer, tmp_path):
    from filelock import FileLock

    with FileLock(download.cache_folder('originals') / 'lock'):
        with pytest.raises(DownloadError, match='another download'):
            fetch_open(tmp_path / 'corpus', **offer)


def test_killed_at_any_moment_then_resumed(server, offer, tmp_path):
    "kill -9 while downloading and decoding; the next call makes the same corpus as an undisturbed one."
    code = (
        'import sys, json; from resonance_nb.download import fetch_open; a = json.loads(sys.argv[1]);'
        'fetch_open(a["folder"], manifest=a["books"], progress=False, jobs=2, base_url_rewrite='
        'lambda u: u.replace("https://originals.example", a["url"]), backoff_s=0.01)'
    )
    arg = json.dumps(dict(folder=str(tmp_path / 'corpus'), books=str(offer['manifest']), url=server.url))
    server.plan = [dict(send=3000, sleep=0.2), dict(send=3000, sleep=0.2), dict(send=200_000, sleep=0.1), {}]
    for delay_s in (0.7, 1.0, 1.3):
        p = subprocess.Popen([sys.executable, '-c', code, arg], stderr=subprocess.DEVNULL)
        time.sleep(delay_s)
        p.send_signal(signal.SIGKILL)
        p.wait()
        if any((tmp_path / 'corpus').glob('*.csv')):
            assert Corpus(tmp_path / 'corpus').check() == []
    server.plan = [{}]
    report = fetch_open(tmp_path / 'corpus', **offer)
    assert report.failed == [] and report.corpus.check(full=True) == []
    assert fetch_open(tmp_path / 'other', **offer).corpus.checksum() == report.corpus.checksum()


def test_manifest_forms():
    "Every row of the committed manifest has a form that is handled, or is known not to be derivable."
    facts = manifest()
    lost = [(k, u) for k in KINDS for u in facts.table(k)['source_url'] if not_derivable(u)]
    assert len(lost) == 15 and all(k == 'rir' and u.endswith('.sofa') for k, u in lost)
    for form in ('https://x/a.zip', 'https://x/a.zip#b.wav', 'ftp://x/a.wav', 'https://x/a', ''):
        assert not_derivable(form)
    assert not not_derivable('https://x/a%20b.Wav')


def test_write_manifest(tmp_path):
    write_manifest(manifest(), tmp_path / 'm')
    assert manifest(tmp_path / 'm').checksum() == manifest().checksum()
    for kind in KINDS:
        ours = (tmp_path / f'm/open-{kind}.csv').read_bytes()
        committed = manifest().folder / f'open-{kind}.csv'
        assert ours == committed.read_bytes()


def test_errors_are_for_people():
    assert issubclass(WrongChecksum, DownloadError) and issubclass(DownloadError, ResonanceError)
