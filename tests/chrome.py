"""A real browser for tests: headless Chromium, driven over its DevTools protocol.

`with Chrome() as page: page.goto(url)`; skip a test where `found()` is None. Times are in seconds.
"""

import base64
import contextlib
import itertools
import json
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from websockets.sync.client import connect

SLOW_S = 120  # a machine ten times slower still gets there


def found():
    "The browser, or None where there is none."
    return shutil.which('chromium') or shutil.which('chromium-browser')


class Gone(AssertionError):
    "The page did not do what was waited for."


class Chrome:
    "One page of a browser with a profile of its own; everything that it asked for, and said, is kept."

    def __init__(self, *options, width=1280, height=900, scale=1.0, dark=False, touch=False, reduced=False):
        self.options = options
        self.look = dict(width=width, height=height, deviceScaleFactor=scale, mobile=touch)
        self.features = [
            {'name': 'prefers-color-scheme', 'value': 'dark' if dark else 'light'},
            {'name': 'prefers-reduced-motion', 'value': 'reduce' if reduced else 'no-preference'},
        ]
        self.touch = touch
        self.requests = []  # addresses
        self.messages = []  # of the console, and exceptions
        self.stack = contextlib.ExitStack()
        self._number = itertools.count(1)

    def __enter__(self):
        self.folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        command = [
            found(),
            '--headless=new',
            '--no-sandbox',
            '--disable-gpu',
            '--disable-dev-shm-usage',
            '--no-first-run',
            '--disable-background-networking',
            '--disable-component-update',
            '--disable-sync',
            '--mute-audio',
            '--autoplay-policy=no-user-gesture-required',
            '--remote-debugging-port=0',
            f'--user-data-dir={self.folder.name}',
            *self.options,
            'about:blank',
        ]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            self._connect()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        "End the browser."
        self.process.kill()
        self.process.wait()
        self.stack.close()
        self.folder.cleanup()

    def _connect(self):
        told = Path(self.folder.name) / 'DevToolsActivePort'
        end_s = time.monotonic() + SLOW_S
        while not told.exists() or len(told.read_text().split()) < 2:
            if time.monotonic() > end_s or self.process.poll() is not None:
                raise Gone('Chromium does not start here')
            time.sleep(0.05)
        port, path = told.read_text().split()
        opened = connect(f'ws://127.0.0.1:{port}{path}', max_size=None, open_timeout=SLOW_S)
        self.socket = self.stack.enter_context(opened)
        self.session = None
        target = next(t for t in self.call('Target.getTargets')['targetInfos'] if t['type'] == 'page')
        attached = self.call('Target.attachToTarget', targetId=target['targetId'], flatten=True)
        self.session = attached['sessionId']
        for domain in ('Page', 'Runtime', 'Network', 'Log'):
            self.call(f'{domain}.enable')
        self.call('Emulation.setDeviceMetricsOverride', **self.look)
        self.call('Emulation.setEmulatedMedia', features=self.features)
        if self.touch:
            self.call('Emulation.setTouchEmulationEnabled', enabled=True)

    def call(self, method, **params):
        "Call the protocol and return its result."
        number = next(self._number)
        message = {'id': number, 'method': method, 'params': params}
        self.socket.send(json.dumps(message | ({'sessionId': self.session} if self.session else {})))
        while True:
            answer = json.loads(self.socket.recv(timeout=SLOW_S))
            self._note(answer)
            if answer.get('id') == number:
                if 'error' in answer:
                    raise Gone(f'{method}: {answer["error"]["message"]}')
                return answer['result']

    def _note(self, event):
        params = event.get('params', {})
        if event.get('method') == 'Network.requestWillBeSent':
            self.requests.append(params['request']['url'])
        elif event.get('method') == 'Network.webSocketCreated':
            self.requests.append(params['url'])
        elif event.get('method') == 'Runtime.exceptionThrown':
            details = params['exceptionDetails']
            self.messages.append(details.get('exception', {}).get('description', details['text']))
        elif event.get('method') == 'Runtime.consoleAPICalled' and params['type'] in ('error', 'warning'):
            self.messages.append(' '.join(str(a.get('value', a.get('description'))) for a in params['args']))
        elif event.get('method') == 'Log.entryAdded' and params['entry']['level'] == 'error':
            self.messages.append(params['entry']['text'] + ' ' + params['entry'].get('url', ''))

    def goto(self, url):
        "Open an address and wait until it is loaded."
        self.call('Page.navigate', url=url)
        self.wait('document.readyState === "complete" && location.href !== "about:blank"')

    def eval(self, expression):
        "Evaluate JavaScript, promises too; its value as Python has it."
        result = self.call(
            'Runtime.evaluate',
            expression=expression,
            awaitPromise=True,
            returnByValue=True,
            userGesture=True,
        )
        if 'exceptionDetails' in result:
            details = result['exceptionDetails']
            raise Gone(details.get('exception', {}).get('description', details['text']))
        return result['result'].get('value')

    def wait(self, expression, timeout_s=SLOW_S):
        "Wait until JavaScript is true; returns its value."
        end_s = time.monotonic() + timeout_s
        while True:
            if value := self.eval(expression):
                return value
            if time.monotonic() > end_s:
                raise Gone(f'{expression} did not become true; the page says: {self.text()[:2000]}')
            time.sleep(0.05)

    def text(self):
        "What can be read on the page."
        return self.eval('document.body ? document.body.innerText : ""')

    def click(self, selector):
        "Press what a selector finds, as a mouse or a finger does."
        place = self.wait(
            f'(() => {{ const e = document.querySelector({json.dumps(selector)}); if (!e || e.disabled) return null;'
            ' e.scrollIntoView({block: "center", behavior: "instant"}); const r = e.getBoundingClientRect();'
            ' return r.width ? {x: r.x + r.width / 2, y: r.y + r.height / 2} : null; })()'
        )
        if self.touch:
            self.call('Input.dispatchTouchEvent', type='touchStart', touchPoints=[place])
            self.call('Input.dispatchTouchEvent', type='touchEnd', touchPoints=[])
            return
        for kind in ('mousePressed', 'mouseReleased'):
            self.call('Input.dispatchMouseEvent', type=kind, button='left', clickCount=1, **place)

    def key(self, name, **more):
        "Press a key, as in `KeyboardEvent.key`."
        text = {'text': name} if len(name) == 1 else {'text': '\r'} if name == 'Enter' else {}
        code = {'Enter': 13, 'Tab': 9, 'Escape': 27}.get(name, ord(name.upper()) if len(name) == 1 else 0)
        self.call(
            'Input.dispatchKeyEvent', type='keyDown', key=name, windowsVirtualKeyCode=code, **text, **more
        )
        self.call('Input.dispatchKeyEvent', type='keyUp', key=name, windowsVirtualKeyCode=code, **more)

    def offline(self, is_off):
        "Cut the network, or mend it."
        self.call(
            'Network.emulateNetworkConditions',
            offline=is_off,
            latency=0,
            downloadThroughput=-1,
            uploadThroughput=-1,
        )

    def shot(self, path, full=True):
        "Keep a picture of the page."
        data = self.call('Page.captureScreenshot', format='png', captureBeyondViewport=full)['data']
        Path(path).write_bytes(base64.b64decode(data))
