"""The page of `resonance serve`: heard by a real browser's microphone, and asked by those who mean no good.

Servers are real processes on loopback; the browser is Chromium where it is installed. Times are in seconds.
"""

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
from contextlib import suppress
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

pytest.importorskip('starlette')
testclient = pytest.importorskip('starlette.testclient')
pytest.importorskip('uvicorn')
websockets = pytest.importorskip('websockets')
pytest.importorskip('websockets.asyncio.client')

from chrome import SLOW_S, Chrome, found  # noqa: E402
from click.testing import CliRunner  # noqa: E402
from websockets.sync.client import connect  # noqa: E402

from resonance_nb import audio, cli_serve, core, serve  # noqa: E402
from resonance_nb.catalog import Catalog  # noqa: E402
from resonance_nb.core import rng_for  # noqa: E402
from resonance_nb.pages import NO_SONGS, Settings, Songs  # noqa: E402

RATE = 16_000


def tune(seed, n_notes=120):
    "Seeded broken chords, a quarter of a second a note."
    t = np.arange(RATE // 4) / RATE
    notes_hz = 220 * 2 ** (rng_for(seed, 'tune').choice([0, 3, 5, 7, 10, 12, 15, 17], n_notes) / 12)
    tones = [sum(np.sin(2 * np.pi * f * k * t) / k for k in range(1, 6)) * np.exp(-6 * t) for f in notes_hz]
    return (0.2 * np.concatenate(tones)).astype(np.float32)


def crowd(seconds, seed=0):
    "People who talk: noise whose loudness and colour wander."
    rng = rng_for(seed, 'crowd')
    x = np.cumsum(rng.normal(size=(8, round(seconds * RATE))), axis=1)
    x = np.diff(x - np.mean(x, axis=1, keepdims=True), axis=1, append=0)
    swell = np.repeat(rng.uniform(0.2, 1, (8, int(seconds * 5) + 1)), RATE // 5, axis=1)[:, : x.shape[1]]
    return (0.05 * (x * swell).sum(0) / 2).astype(np.float32)


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    "A catalogue of four tunes."
    home = tmp_path_factory.mktemp('serve')
    (home / 'music').mkdir()
    for i in range(4):
        sf.write(home / 'music' / f'tune {i}.flac', tune(i), RATE)
    with Catalog(home / 'songs', create=True) as catalog:
        catalog.index(home / 'music', progress=False)
    return home


class Server:
    "A server of its own; `url` ends without a slash."

    def __init__(self, catalog, *options):
        words = ['serve', '--catalog', str(catalog), '--port', '0', *options]
        code = 'import sys; from resonance_nb.cli import main; main(sys.argv[1:])'
        env = os.environ | {'PYTHONUNBUFFERED': '1'}
        self.said = tempfile.TemporaryFile('w+')  # no pipe: nobody reads it while it serves
        self.process = subprocess.Popen(
            [sys.executable, '-c', code, *words], stdout=subprocess.PIPE, stderr=self.said, env=env, text=True
        )
        self.shown = self.process.stdout.readline().strip()
        assert self.shown.startswith('http'), self.remarks()
        self.url = self.shown.split('/?')[0].rstrip('/')
        self.port = int(self.url.rpartition(':')[2])
        self.local = f'http://127.0.0.1:{self.port}'
        self.ws = f'ws://127.0.0.1:{self.port}/api/listen'
        end_s = time.monotonic() + SLOW_S
        while True:
            try:
                self.get('/api/health')
                return
            except (OSError, urllib.error.URLError):
                assert time.monotonic() < end_s and self.process.poll() is None
                time.sleep(0.05)

    def ask(self, path, data=None, **headers):
        "Status and body of an answer."
        named = {name.replace('_', '-'): value for name, value in headers.items()}
        request = urllib.request.Request(self.local + path, data=data, headers=named)
        opener = urllib.request.build_opener(NoRedirect)
        try:
            with opener.open(request, timeout=SLOW_S) as answer:
                return answer.status, answer.read(), dict(answer.headers)
        except urllib.error.HTTPError as e:
            return e.code, e.read(), dict(e.headers)

    def get(self, path):
        with urllib.request.urlopen(self.local + path, timeout=SLOW_S) as answer:
            return json.loads(answer.read())

    def stop(self, how=signal.SIGINT):
        "End it; what it said on standard error."
        self.process.send_signal(how)
        self.process.communicate(timeout=SLOW_S)
        return self.remarks()

    def remarks(self):
        self.said.seek(0)
        return self.said.read()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()


class NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_):
        return None


@pytest.fixture(scope='module')
def server(home):
    with Server(home / 'songs', '--listeners', '6') as server:
        yield server
        said = server.stop()
        assert 'Traceback' not in said and 'boundary' not in said


def start(socket, rate_hz=RATE):
    socket.send(json.dumps({'type': 'start', 'rate_hz': rate_hz}))
    return json.loads(socket.recv(timeout=SLOW_S))


def pcm(x):
    return (np.clip(x, -1, 1) * 32767).astype('<i2').tobytes()


def listened(server, sound):
    "Events of a stream that is sent as fast as it is heard."
    events = []
    with connect(server.ws, open_timeout=SLOW_S) as ws:
        assert start(ws)['type'] == 'ready'
        for at in range(0, len(sound), RATE // 2):
            piece = sound[at : at + RATE // 2]
            ws.send(pcm(piece))
            heard_s = -1.0
            while heard_s < (at + len(piece)) / RATE - 1e-6:
                message = json.loads(ws.recv(timeout=SLOW_S))
                heard_s = message['time_s'] if message['type'] == 'state' else heard_s
                events += [message] if message['type'] == 'event' else []
    return events


# ---- what it is for


def test_a_stream_is_named_and_a_crowd_is_not(server):
    events = listened(server, 0.5 * tune(1)[: 10 * RATE] + crowd(10))
    assert [e['title'] for e in events if e['event'] == 'match'] == ['tune 1']
    assert not any(e['event'] == 'match' for e in listened(server, crowd(10, seed=1)))


def test_a_stream_that_is_stopped_ends_well(server):
    with connect(server.ws, open_timeout=SLOW_S) as ws:
        start(ws)
        ws.send(pcm(tune(0)[:RATE]))
        ws.send('{"type": "stop"}')
        said = [json.loads(text) for text in ws]  # raises where it ends otherwise
    assert said[-1] == {'type': 'end', 'reason': 'stopped'} and ws.protocol.close_code == 1000


def fake_microphone(home, name, sound, **look):
    "A browser that hears a sound, again and again."
    path = home / f'{name}.wav'
    sf.write(path, audio.resample(sound, RATE, 48_000), 48_000, subtype='PCM_16')
    return Chrome(
        '--use-fake-device-for-media-stream',
        '--use-fake-ui-for-media-stream',
        f'--use-file-for-fake-audio-capture={path}',
        **look,
    )


browser = pytest.mark.skipif(not found(), reason='Chromium is not installed: apt install chromium')
STATE = 'document.getElementById("answer").className'
PAST_TUNE = 'Not connected. Before, it was\n\ntune 0'


@browser
@pytest.mark.parametrize('look', [{}, {'width': 390, 'height': 844, 'touch': True, 'dark': True}])
def test_the_right_title_appears_in_the_browser(server, home, look, record_property):
    with fake_microphone(home, 'heard', 0.5 * tune(2) + crowd(30), **look) as page:
        page.goto(server.url)
        page.wait('document.getElementById("songs").children.length === 4')
        page.click('#listen')
        begun_s = time.monotonic()
        page.wait(f'{STATE} === "song"')
        record_property('seconds_to_title', round(time.monotonic() - begun_s, 2))
        assert page.eval('document.getElementById("title").textContent') == 'tune 2'
        assert page.eval('document.querySelectorAll("#history li").length') >= 1
        assert page.eval('document.documentElement.scrollWidth <= innerWidth')
        page.click('#listen')
        page.wait('document.getElementById("listen-text").textContent === "Listen"')
        hosts = {u.split('/')[2] for u in page.requests if '://' in u}
        assert hosts == {f'127.0.0.1:{server.port}'}
        assert not page.messages


@browser
def test_a_crowd_is_passed_over_in_the_browser(server, home):
    with fake_microphone(home, 'crowd', crowd(30)) as page:
        page.goto(server.url)
        page.click('#listen')
        page.wait(f'{STATE} === "unknown"')
        assert page.eval('document.getElementById("title").textContent') == ''
        assert page.eval('document.querySelectorAll("#history li").length') == 0
        assert 'Not a song I know' in page.text()


@browser
def test_a_recording_is_dropped_and_songs_are_found(server, home):
    with Chrome(reduced=True) as page:
        page.goto(server.url)
        node = page.call('Runtime.evaluate', expression='document.getElementById("file")')['result']
        sf.write(home / 'clip.wav', 0.5 * tune(3)[5 * RATE : 12 * RATE], RATE)
        page.call('DOM.setFileInputFiles', files=[str(home / 'clip.wav')], objectId=node['objectId'])
        page.wait('document.getElementById("drop-state").textContent.includes("it is tune 3")')
        assert page.eval('document.querySelectorAll("#matches li").length') >= 1
        page.eval('document.getElementById("search").value = "tune 0"')
        page.eval('document.getElementById("search").dispatchEvent(new Event("input"))')
        page.wait('document.getElementById("songs").children.length === 1')
        page.click('#songs button')
        page.wait('document.getElementById("player").currentTime > 0')
        (home / 'notes.txt').write_text('no sound')
        page.call('DOM.setFileInputFiles', files=[str(home / 'notes.txt')], objectId=node['objectId'])
        page.wait('document.getElementById("drop-state").textContent.startsWith("notes.txt: ")')
        assert not [m for m in page.messages if '422' not in m]


@browser
def test_a_stream_that_breaks_is_taken_up_again(home):
    with Server(home / 'songs') as server, fake_microphone(home, 'again', 0.5 * tune(0)) as page:
        page.goto(server.url)
        page.click('#listen')
        page.wait(f'{STATE} === "song"')
        page.eval('WebSocket.prototype.send = function () { this.close(); }')  # the next piece ends it
        page.wait('document.getElementById("notice").textContent.includes("trying again")')
        assert PAST_TUNE in page.text()
        assert 'It is' not in page.text() and 'how sure' not in page.text()


@browser
def test_what_was_named_is_past_when_the_server_says_nothing(home):
    with Server(home / 'songs') as server, fake_microphone(home, 'silent', 0.5 * tune(0)) as page:
        page.goto(server.url)
        page.click('#listen')
        page.wait(f'{STATE} === "song"')
        page.eval('window.send = WebSocket.prototype.send; WebSocket.prototype.send = function () {}')
        page.wait(f'{STATE} === "past"')
        assert PAST_TUNE in page.text() and 'says nothing' in page.text() and 'how sure' not in page.text()
        page.eval('WebSocket.prototype.send = window.send')  # the network is back
        page.wait(f'{STATE} === "song"')
        assert page.eval('document.getElementById("notice").hidden') and not page.messages


@browser
def test_songs_that_feel_alike_and_the_map(tmp_path):
    "The map was made to stand alone; here it runs without a script of its own inside."
    from resonance_nb import feel_library
    from resonance_nb.starter import make_starter

    corpus = make_starter(n_pieces=12)  # the tunes above are too much alike: copies are left out
    pieces = [corpus.path('music', i) for i in corpus.music.index[:4]]
    with Catalog(tmp_path / 'songs', create=True) as catalog:
        catalog.index(pieces, method='landmark', progress=False)
        feel_library.index(catalog, pieces, progress=False)
    with Server(tmp_path / 'songs') as server, Chrome() as page:
        songs = server.get('/api/songs')['songs']
        track_id = songs[0]['track_id']
        near = server.get(f'/api/songs/{track_id}/near')
        others = {s['track_id'] for s in near['songs']}
        assert near['known'] and others and others < {s['track_id'] for s in songs} - {track_id} | {''}
        page.goto(server.url)
        page.wait('!document.getElementById("map-link").hidden')
        page.click('#map-link')
        page.wait('location.pathname === "/map"')
        page.wait('document.body?.innerText.includes("A map of 4 songs")')
        assert not page.messages and not any('favicon' in url for url in page.requests)
        page.click('header a')
        page.wait('location.pathname === "/"')


@browser
@pytest.mark.parametrize('dark', [False, True])
@pytest.mark.parametrize('width', [1200, 390])
def test_everybody_can_use_the_page(server, home, axe, width, dark):
    with fake_microphone(home, 'axe', 0.5 * tune(1), width=width, dark=dark, reduced=True) as page:
        page.goto(server.url)
        page.wait('document.getElementById("songs").children.length')
        page.click('#listen')
        page.wait(f'{STATE} === "song"')
        page.eval(axe + '; 0')
        found = page.eval('axe.run(document).then(r => r.violations.map(v => v.id + ": " + v.nodes[0].html))')
        assert not found


@browser
def test_keys_alone_are_enough(server, home):
    with fake_microphone(home, 'keys', 0.5 * tune(1)) as page:
        page.goto(server.url)
        for _ in range(10):
            page.key('Tab')
            if page.eval('document.activeElement.id') == 'listen':
                break
        page.key('Enter')
        page.wait('document.getElementById("listen").getAttribute("aria-pressed") === "true"')


# ---- those who mean no good


def test_what_comes_from_elsewhere_is_refused(server):
    evil = {'Origin': 'https://evil.example'}
    assert server.ask('/api/identify', b'x', **evil)[0] == 403
    assert server.ask('/api/songs', Host='evil.example')[0] == 421
    for origin in ('http://[', 'http://[::1', '[', 'http://127.0.0.1:²'):
        assert server.ask('/api/songs', Origin=origin)[0] == 403
    for host in ('http://[', '[', '127.0.0.1:²', '[::1'):
        assert server.ask('/api/songs', Host=host)[0] == 421
    assert server.ask('/api/songs', Referer='http://[')[0] == 200  # nobody reads it
    assert server.ask('/api/songs', Origin=server.local)[0] == 200
    with pytest.raises(websockets.exceptions.InvalidStatus) as refused:
        with connect(server.ws, additional_headers=evil, open_timeout=SLOW_S):
            pass
    assert refused.value.response.status_code == 403


@pytest.mark.parametrize(
    'path',
    [
        '/static/../serve.py',
        '/static/%2e%2e/serve.py',
        '/static/..%2f..%2fetc%2fpasswd',
        '/api/songs/..%2f..%2fetc/sound',
        '/api/songs/%00/sound',
        '/api/songs/x/near',
        '/api/songs?limit=-1',
        '/api/songs?offset=1e9',
        '/api/songs?offset=%C2%B2',
        '/api/songs?limit=%D9%A3',
        '/api/songs?offset=' + '9' * 400,
        '/nothing',
        '//evil.example/',
    ],
)
def test_odd_addresses(server, path):
    status, body, headers = server.ask(path)
    assert status in (200, 400, 404) and b'root:' not in body and b'Traceback' not in body
    assert "default-src 'none'" in headers['content-security-policy']
    if status == 200:
        assert path == '/api/songs/x/near'


@pytest.mark.parametrize(
    ('path', 'data', 'headers', 'status'),
    [
        ('/api/nothing', None, {}, 404),
        ('/api/songs', b'x', {}, 405),
        ('/api/songs?offset=-1', None, {}, 400),
        ('/api/songs', None, {'Host': 'evil.example'}, 421),
        ('/api/songs', None, {'Origin': 'null'}, 403),
        ('/api/identify', b'nonsense', {'Content_Type': 'multipart/form-data; boundary=x'}, 400),
        ('/api/identify', b'nonsense', {'Content_Type': 'multipart/form-data'}, 400),
    ],
)
def test_every_trouble_of_the_api_is_told_in_json(server, path, data, headers, status):
    got, body, answered = server.ask(path, data, **headers)
    assert (got, list(json.loads(body))) == (status, ['error'])
    assert answered['content-type'] == 'application/json'


def test_an_upload_that_is_too_large(server):
    "The server does not read what it refuses; one that says nothing of its length is cut off on its way."
    with socket.create_connection(('127.0.0.1', server.port), timeout=SLOW_S) as s:
        s.sendall(b'POST /api/identify HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 99999999999\r\n\r\n')
        assert s.recv(200).startswith(b'HTTP/1.1 413')
    with socket.create_connection(('127.0.0.1', server.port), timeout=SLOW_S) as s:
        s.sendall(b'POST /api/identify HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n')
        piece = b'100000\r\n' + bytes(1 << 20) + b'\r\n'
        try:
            for _ in range(80):
                s.sendall(piece)
        except OSError:
            pass  # closed on us
        try:
            assert s.recv(200).startswith(b'HTTP/1.1 413')
        except ConnectionError:
            pass  # the answer was lost with the connection
    assert server.get('/api/health')['status'] == 'ok'


def test_hours_of_silence_in_a_small_file(server, tmp_path):
    with sf.SoundFile(tmp_path / 'silence.flac', 'w', 8_000, 1) as out:
        for _ in range(300):  # five hours
            out.write(np.zeros(60 * 8_000, np.int16))
    recording = (tmp_path / 'silence.flac').read_bytes()
    status, body, _ = server.ask('/api/identify', recording)
    told = json.loads(body)
    assert status == 200 and told['decision'] == 'no-match' and len(recording) < 10 << 20


def test_many_uploads_that_never_end_leave_room(server):
    "Eight are taken in at the same time; one more is told to come again."
    head = b'POST /api/identify HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 99\r\n\r\n'
    waiting = [socket.create_connection(('127.0.0.1', server.port), timeout=SLOW_S) for _ in range(8)]
    try:
        for s in waiting:
            s.sendall(head)
        end_s = time.monotonic() + SLOW_S
        while server.ask('/api/identify', b'x')[0] != 503:
            assert time.monotonic() < end_s
            time.sleep(0.05)
    finally:
        for s in waiting:
            s.close()
    while server.ask('/api/identify', b'x')[0] == 503:  # they are gone, and noticed
        assert time.monotonic() < end_s
        time.sleep(0.05)


@pytest.mark.parametrize('kind', ['empty', 'text', 'cut', 'zip', 'png'])
def test_uploads_that_are_no_recordings(server, home, kind):
    flac = (home / 'music' / 'tune 0.flac').read_bytes()
    data = {
        'empty': b'',
        'text': b'hello ' * 1000,
        'cut': flac[:60],
        'zip': b'PK\x03\x04' + bytes(4000),
        'png': b'\x89PNG\r\n\x1a\n' + bytes(4000),
    }[kind]
    status, body, _ = server.ask('/api/identify', data)
    assert status in (400, 422) and '/' not in json.loads(body)['error'].replace('and/or', '')


def test_a_form_with_a_hostile_name(server, home):
    flac = (home / 'music' / 'tune 0.flac').read_bytes()
    name = '../../../etc/\x1b[31m<img src=x>.flac'
    head = f'--x\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'.encode()
    kind = 'multipart/form-data; boundary=x'
    status, body, _ = server.ask('/api/identify', head + flac + b'\r\n--x--\r\n', Content_Type=kind)
    told = json.loads(body)
    assert status == 200 and told['matches'][0]['title'] == 'tune 0' and '\x1b' not in told['query']
    assert server.ask('/api/identify', b'--x--\r\n', Content_Type=kind)[0] in (400, 422)
    assert server.ask('/api/identify', b'nonsense', Content_Type='multipart/form-data')[0] in (400, 422)


@pytest.mark.parametrize(
    'first',
    ['', 'null', '[]', '{}', '{"type": "start"}', '{"type": "start", "rate_hz": "16000"}']
    + ['{"type": "start", "rate_hz": 16000, "dtype": "' + 'é' * 500 + '"}', '{"type": "' + 'é' * 9999 + '"}']
    + ['{"type": "start", "rate_hz": true}', '{"type": "start", "rate_hz": 16000, "dtype": []}', '[' * 5000],
)
def test_streams_that_begin_wrongly(server, first):
    with connect(server.ws, open_timeout=SLOW_S) as ws:
        ws.send(first)
        told = json.loads(ws.recv(timeout=SLOW_S))
        assert told['type'] == 'end' and told['reason'] and 'Traceback' not in told['reason']
        assert len(told['reason']) < 100
        with pytest.raises(websockets.exceptions.ConnectionClosedError) as closed:
            ws.recv(timeout=SLOW_S)
        assert closed.value.rcvd.code == 1003 and closed.value.rcvd.reason == told['reason']
    assert server.get('/api/health')['listeners'] <= 1


def test_streams_of_nonsense(server):
    rng = np.random.default_rng(0)
    with connect(server.ws, open_timeout=SLOW_S) as ws:
        assert start(ws)['type'] == 'ready'
        for _ in range(8):
            ws.send(rng.bytes(2 * RATE))
        ws.send('{"type": "stop"}')
        while (message := json.loads(ws.recv(timeout=SLOW_S)))['type'] != 'end':
            assert message['type'] in ('event', 'state')
    with connect(server.ws, open_timeout=SLOW_S) as ws:
        start(ws)
        with pytest.raises(websockets.exceptions.ConnectionClosed):
            ws.send(bytes(2 << 20))  # a message larger than any piece
            while True:
                ws.recv(timeout=SLOW_S)


def test_who_comes_too_late_is_told(server):
    "Six may listen; two hundred come."

    async def come():
        async with websockets.asyncio.client.connect(server.ws, open_timeout=SLOW_S) as ws:
            with suppress(websockets.exceptions.ConnectionClosed):  # told already: what was said can be read
                await ws.send('{"type": "start", "rate_hz": 16000}')
            told = json.loads(await asyncio.wait_for(ws.recv(), SLOW_S))
            if told['type'] == 'ready':
                await asyncio.sleep(1.0)
            return told['type'], told.get('reason', '')

    async def all_of_them():
        return await asyncio.gather(*(come() for _ in range(200)), return_exceptions=True)

    said = asyncio.run(all_of_them())
    ready = [s for s in said if isinstance(s, tuple) and s[0] == 'ready']
    late = [s for s in said if isinstance(s, tuple) and s[0] == 'end']
    assert 1 <= len(ready) and late and all('are taken' in why for _, why in late)
    assert server.get('/api/health')['status'] == 'ok'


def test_half_open_connections_do_not_block_others(server):
    sockets = [socket.create_connection(('127.0.0.1', server.port), timeout=SLOW_S) for _ in range(100)]
    try:
        for i, s in enumerate(sockets):
            s.sendall(
                [
                    b'',
                    b'GET / HT',
                    b'POST /api/identify HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9\r\n\r\n',
                ][i % 3]
            )
        assert server.get('/api/health')['status'] == 'ok'
        assert listened(server, 0.5 * tune(0)[: 2 * RATE])[0]['event'] == 'listening'
    finally:
        for s in sockets:
            s.close()


def test_who_does_not_read_is_dropped_and_others_go_on(server):
    with connect(server.ws, open_timeout=SLOW_S, max_queue=1) as deaf:
        start(deaf)
        for _ in range(4):
            deaf.send(pcm(tune(0)[:RATE]))
        assert [e['event'] for e in listened(server, 0.5 * tune(1)[: 8 * RATE])][-1] == 'match'


def test_the_longest_stream_takes_no_more_memory(server, home):
    "A client that sends faster than time passes loses sound, and the server takes no more memory for it."
    status = Path(f'/proc/{server.process.pid}/status')
    if not status.exists():
        pytest.skip('this system does not tell how much memory a process takes')
    size = lambda: int(status.read_text().split('VmRSS:')[1].split()[0])
    listened(server, tune(0)[: 4 * RATE])
    before = size()
    with connect(server.ws, open_timeout=SLOW_S) as ws:
        start(ws)
        piece = pcm(np.tile(tune(0)[:RATE], 4))
        for _ in range(150):  # ten minutes at once: 19 MB as they come, 38 MB as numbers
            ws.send(piece)
            try:
                while True:
                    ws.recv(timeout=0)
            except TimeoutError:
                pass
    assert size() - before < 60_000


# ---- for others


def test_others_need_the_token(home):
    with Server(home / 'songs', '--host', '0.0.0.0') as server:
        token = server.shown.split('token=')[1]
        assert len(token) == 22
        assert server.ask('/')[0] == 401 and server.ask('/api/songs')[0] == 401
        assert server.ask('/api/health')[0] == 200
        assert server.ask('/api/songs', Authorization=f'Bearer {token}')[0] == 200
        status, _, headers = server.ask(f'/?token={token}')
        assert status == 303 and headers['location'] == '/' and 'HttpOnly' in headers['set-cookie']
        cookie = headers['set-cookie'].split(';')[0]
        assert server.ask('/', Cookie=cookie)[0] == 200
        with pytest.raises(websockets.exceptions.InvalidStatus):
            with connect(server.ws, open_timeout=SLOW_S):
                pass
        with connect(server.ws, additional_headers={'Cookie': cookie}, open_timeout=SLOW_S) as ws:
            assert start(ws)['type'] == 'ready'
        wrong = [server.ask('/', Authorization=f'Bearer {i}')[0] for i in range(12)]
        assert wrong == 10 * [401] + 2 * [429]
        assert server.ask('/', Cookie=cookie)[0] == 200  # others at the same address go on, as behind a proxy
        assert server.ask('/')[0] == 401
        said = server.stop()
        assert token not in said and '127.0.0.1' not in said


def test_nothing_is_kept_unless_somebody_says_so(home, tmp_path):
    clip = (home / 'music' / 'tune 1.flac').read_bytes()
    with Server(home / 'songs', '--keep', str(tmp_path / 'kept')) as server:
        assert server.get('/api/health')['keeps']
        server.ask('/api/identify', clip)
        listened(server, tune(1)[:RATE])
        server.stop()
    kept = sorted((tmp_path / 'kept').iterdir())
    assert [p.suffix for p in kept] == ['.upload', '.raw'] or [p.suffix for p in kept] == ['.raw', '.upload']
    assert {p.stat().st_size for p in kept} == {len(clip), 2 * RATE}
    assert oct((tmp_path / 'kept').stat().st_mode & 0o777) == '0o700'


def test_songs_that_come_while_it_serves(home, tmp_path):
    with Catalog(tmp_path / 'songs', create=True) as catalog:
        catalog.index(home / 'music' / 'tune 0.flac', progress=False)
        with Server(tmp_path / 'songs') as server:
            assert server.get('/api/health')['songs'] == 1
            catalog.index(home / 'music', progress=False)
            end_s = time.monotonic() + SLOW_S
            while server.get('/api/health')['songs'] != 4:
                assert time.monotonic() < end_s
                time.sleep(0.2)
            assert [e.get('title') for e in listened(server, 0.5 * tune(2)[: 8 * RATE])][-1] == 'tune 2'


def test_songs_that_go_while_it_serves(home, tmp_path):
    "They are not offered any more; when a new catalogue lies in the place of the old one, that one is asked."
    said = []
    with Catalog(tmp_path / 'songs', create=True) as catalog:
        catalog.index(home / 'music' / 'tune 0.flac', progress=False)
        app = serve.make_app(Songs(catalog, report=said.append), Settings(fresh_s=-1), host='testserver')
        client = testclient.TestClient(app)
        clip = (home / 'music' / 'tune 1.flac').read_bytes()
        song = client.get('/api/songs').json()['songs'][0]['track_id']
        assert client.get(f'/api/songs/{song}/sound').status_code == 200
        for forget in (lambda: catalog.remove(song), lambda: shutil.rmtree(tmp_path / 'songs')):
            forget()
            assert client.get('/api/health').json() | {'songs': 0, 'method': None, 'feel': False} == (
                client.get('/api/health').json()
            )
            assert client.get('/api/songs').json() == {'total': 0, 'songs': []}
            assert client.get(f'/api/songs/{song}/sound').status_code == 404
            assert client.get(f'/api/songs/{song}/near').json() == {'known': False, 'songs': []}
            refused = client.post('/api/identify', content=clip)
            assert (refused.status_code, refused.json()) == (503, {'error': NO_SONGS})
            with client.websocket_connect('/api/listen') as ws:
                ws.send_json({'type': 'start', 'rate_hz': RATE})
                assert ws.receive_json() == {'type': 'end', 'reason': NO_SONGS}
        with Catalog(tmp_path / 'songs', create=True) as anew:
            anew.index(home / 'music' / 'tune 1.flac', progress=False)
        assert client.post('/api/identify', content=clip).json()['matches'][0]['title'] == 'tune 1'
        assert [s['title'] for s in client.get('/api/songs').json()['songs']] == ['tune 1']
    assert [line.replace(str(tmp_path), '') for line in said] == [
        '/songs has no songs now; new ones will be taken up',
        '1 song again',
    ]


def test_a_catalogue_that_is_damaged_while_it_serves(home, tmp_path, monkeypatch):
    "What was there goes on; whoever serves reads it once, and visitors read no paths."
    said = []
    with Catalog(home / 'songs') as catalog:
        songs = Songs(catalog, report=said.append)
        client = testclient.TestClient(serve.make_app(songs, Settings(fresh_s=-1), host='testserver'))

        def damaged(*words, **options):
            raise core.ResonanceError(f'{home}/songs/catalog.db is damaged: put it back')

        monkeypatch.setattr(songs, '_take_up', damaged)
        monkeypatch.setattr(catalog, 'identify', damaged)
        assert client.get('/api/health').json()['songs'] == 4 == client.get('/api/songs').json()['total']
        refused = client.post('/api/identify', content=b'x')
        assert (refused.status_code, refused.json()) == (422, {'error': 'that did not work'})
    assert len(said) == 1 and said[0].startswith(f'{home}/songs')


def test_one_place_is_told_in_the_right_words(home):
    with Catalog(home / 'songs') as catalog:
        app = serve.make_app(Songs(catalog), Settings(most_listeners=1), host='testserver')
        client = testclient.TestClient(app)
        with client.websocket_connect('/api/listen'), client.websocket_connect('/api/listen') as late:
            assert late.receive_json()['reason'] == 'the only place is taken; try again later'


def test_a_bad_certificate_is_told_before_an_address(home, tmp_path):
    bad = tmp_path / 'bad.pem'
    bad.write_text('no certificate')
    words = ['--catalog', str(home / 'songs'), '--port', '0', '--tls-cert', str(bad), '--tls-key', str(bad)]
    done = CliRunner().invoke(cli_serve.serve, words)
    assert isinstance(done.exception, core.ResonanceError) and 'cannot be used' in str(done.exception)
    assert 'http' not in done.output


def test_what_is_not_installed_is_named_as_it_is_installed():
    with pytest.raises(core.MissingExtra, match='^no_such_library is not installed; .*resonance_nb.serve'):
        core.need('no_such_library.part', 'serve')


def test_a_server_that_is_killed_leaves_the_catalogue_whole(home):
    for _ in range(2):
        with Server(home / 'songs') as server:
            with connect(server.ws, open_timeout=SLOW_S) as ws:
                start(ws)
                ws.send(pcm(tune(0)[:RATE]))
                server.stop(signal.SIGKILL)
        with Catalog(home / 'songs') as catalog:
            assert len(catalog) == 4 and not catalog.problems()


def test_a_server_that_is_stopped_ends_soon_and_says_nothing_of_who_came(home):
    with Server(home / 'songs') as server:
        with connect(server.ws, open_timeout=SLOW_S) as ws:
            start(ws)
            ws.send(pcm(tune(0)[:RATE]))
            server.ask('/api/identify', b'no recording')
            said = server.stop()
        assert server.process.returncode in (0, 130, -signal.SIGINT)
        assert '127.0.0.1' not in said and 'Traceback' not in said
