"""A server on this machine that speaks as ACRCloud's identification interface does, and checks what it is sent.

It knows the documented protocol and nothing of `resonance_nb`: multipart fields, an HMAC-SHA1 over six lines (written out here
after RFC 2104), status codes in the JSON. A test says how it behaves: `behaviours` is used up request by request, then
`answer(sample)` decides. Everything asked is kept in `asked`."""

import base64
import hashlib
import json
import threading
import time
from email.parser import BytesParser
from email.policy import HTTP
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KEY, SECRET = 'key-of-the-project', 'sEcReT/of+the=project'
FIELDS = {'access_key', 'data_type', 'signature_version', 'timestamp', 'signature', 'sample_bytes', 'sample'}


def hmac_sha1(key: bytes, text: bytes) -> bytes:
    "RFC 2104, written out."
    key = (hashlib.sha1(key).digest() if len(key) > 64 else key).ljust(64, b'\0')
    inner = hashlib.sha1(bytes(k ^ 0x36 for k in key) + text).digest()
    return hashlib.sha1(bytes(k ^ 0x5C for k in key) + inner).digest()


def status(code, msg='', **more):
    return {'status': {'code': code, 'msg': msg, 'version': '1.0'}, **more}


def found(*titles, part='custom_files', **facts):
    "A result with these songs, best first."
    items = [
        {'title': t, 'score': 90 - i, 'play_offset_ms': 7000, 'acrid': f'{i:032x}', **facts}
        for i, t in enumerate(titles)
    ]
    return status(0, 'Success', metadata={part: items, 'timestamp_utc': '2026-01-01 00:00:00'}, result_type=0)


class Stub:
    "Use as a context manager; `url` is its address."

    def __init__(self, answer=lambda sample: status(1001, 'No result'), behaviours=()):
        self.answer = answer
        self.behaviours = list(behaviours)
        self.asked = []
        self.wrong = []
        self.times = []
        stub = self

        class Handler(BaseHTTPRequestHandler):
            # one write a reply: two wait for each other
            protocol_version = 'HTTP/1.1'
            wbufsize = 65_536

            def do_POST(self):
                stub.times.append(time.monotonic())
                body = self.rfile.read(int(self.headers['Content-Length']))
                fields = stub.fields(self.headers['Content-Type'], body)
                behaviour = stub.behaviours.pop(0) if stub.behaviours else None
                problem = stub.check(self.path, fields)
                stub.asked.append(fields)
                if callable(behaviour):
                    behaviour(self)
                elif isinstance(behaviour, tuple):
                    self.reply(*behaviour)
                elif isinstance(behaviour, (dict, bytes)):
                    self.reply(200, behaviour)
                elif problem:
                    stub.wrong.append(problem)
                    self.reply(200, status(3014, problem))
                else:
                    self.reply(200, stub.answer(fields['sample']))

            def reply(self, code, value, headers=()):
                data = value if isinstance(value, bytes) else json.dumps(value).encode()
                self.send_response(code)
                for name, text in dict(headers).items():
                    self.send_header(name, text)
                self.send_header('Content-Length', str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
        self.http.daemon_threads = True
        self.url = f'http://127.0.0.1:{self.http.server_port}'

    @staticmethod
    def fields(content_type, body):
        "The parts of a multipart form, text as str, the sample as bytes; read by the standard library's mail parser."
        message = BytesParser(policy=HTTP).parsebytes(
            b'Content-Type: ' + content_type.encode() + b'\r\n\r\n' + body
        )
        out = {}
        for part in message.iter_parts():
            name = part.get_param('name', header='content-disposition')
            out[name] = (
                part.get_payload(decode=True)
                if part.get_filename()
                else part.get_payload(decode=True).decode()
            )
        return out

    @staticmethod
    def check(path, f):
        "What is wrong with a request, or ''."
        if path != '/v1/identify':
            return f'wrong path {path}'
        if set(f) != FIELDS:
            return f'fields {sorted(set(f) ^ FIELDS)}'
        if (f['access_key'], f['data_type'], f['signature_version']) != (KEY, 'audio', '1'):
            return 'wrong key, data type or version'
        if int(f['sample_bytes']) != len(f['sample']) or not f['sample']:
            return 'sample_bytes is not the size of the sample'
        if abs(time.time() - int(f['timestamp'])) > 3600:
            return 'the timestamp is not now'
        text = f'POST\n/v1/identify\n{KEY}\naudio\n1\n{f["timestamp"]}'
        if base64.b64decode(f['signature'], validate=True) != hmac_sha1(SECRET.encode(), text.encode()):
            return 'Invalid Signature'
        return ''

    def __enter__(self):
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.http.shutdown()
        self.http.server_close()
