"""The pages in a real browser, with the network off: nothing wider than a phone, formulas drawn; and sounds that decode.

Needs the built book and Chromium; skipped with a line where one is missing.
"""

import base64
import io
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
import soundfile as sf

LOOK = """
<!doctype html><html><body><iframe id=f style="width:400px;height:900px;border:0"></iframe><pre id=out>[]</pre><script>
const pages = PAGES, out = [];
const frame = document.getElementById('f');
const wait = ms => new Promise(r => setTimeout(r, ms));
(async () => {
  for (const page of pages) {
    await new Promise(r => { frame.onload = r; frame.src = page; });
    const d = frame.contentDocument, n = s => d.querySelectorAll(s).length;
    for (let i = 0; i < 20 && n('span.math, div.math') > n('mjx-container svg'); i++) await wait(200);
    out.push({page, wide: d.documentElement.scrollWidth, formulas: n('span.math, div.math'), drawn: n('mjx-container svg')});
    document.getElementById('out').textContent = JSON.stringify(out);
  }
  document.title = 'done';
})();
</script></body></html>
"""


@pytest.fixture(scope='module')
def seen(root, tmp_path_factory):
    "What the browser made of every page."
    book = root / '_build' / 'html' / 'nbs'
    chromium = shutil.which('chromium') or shutil.which('chromium-browser')
    if not (book / 'index.html').exists():
        pytest.skip('the book has not been built here: make book')
    if not chromium:
        pytest.skip('Chromium is not installed: apt install chromium')
    here = tmp_path_factory.mktemp('browser')
    pages = [p.as_uri() for p in sorted(book.glob('*.html'))]
    (here / 'look.html').write_text(LOOK.replace('PAGES', json.dumps(pages)), encoding='utf-8')
    options = '--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update'
    options += ' --disable-sync --allow-file-access-from-files --mute-audio --host-resolver-rules=MAP\t*\t~NOTFOUND --virtual-time-budget=240000'
    command = [
        chromium,
        *options.split(' '),
        f'--user-data-dir={here / "profile"}',
        '--dump-dom',
        (here / 'look.html').as_uri(),
    ]
    done = subprocess.run([c.replace('\t', ' ') for c in command], capture_output=True, text=True)
    found = re.search(r'<pre id="out">(.*?)</pre>', done.stdout, re.S)
    told = json.loads(found[1].replace('&quot;', '"').replace('&amp;', '&')) if found else []
    if not told:
        pytest.skip('Chromium does not run here')
    assert len(told) == len(pages), 'the browser did not get through all pages'
    return told


def test_nothing_is_wider_than_a_phone(seen):
    assert not [(p['page'], p['wide']) for p in seen if p['wide'] > 400]


def test_formulas_are_drawn_without_a_network(seen):
    assert sum(p['formulas'] for p in seen) > 10
    assert not [p for p in seen if p['formulas'] > p['drawn']]


def test_players_have_a_sound(root):
    pages = sorted((root / '_build' / 'html' / 'nbs').glob('*.html'))
    if not pages:
        pytest.skip('the book has not been built here: make book')
    heard = {}
    for page in pages:
        sounds = re.findall(
            r'<audio[^>]*src="data:audio/\w+;base64,([A-Za-z0-9+/=]+)"', page.read_text(encoding='utf-8')
        )
        heard[page.name] = [sf.read(io.BytesIO(base64.b64decode(s)))[0] for s in sounds]
    silent = [
        name
        for name, sounds in heard.items()
        if any(len(x) <= 1000 or np.abs(x).max() <= 0.01 for x in sounds)
    ]
    crowded = [name for name, sounds in heard.items() if len(sounds) > 16]  # pages that load slowly
    assert sum(map(len, heard.values())) > 20 and not silent and not crowded
