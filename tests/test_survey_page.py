"""The page of a survey in a real browser: walked through wide and narrow, with the network cut in the middle."""

import json

import httpx
import pytest
import survey_toy
from chrome import Chrome, found

from resonance_nb.survey_store import SurveyStore, answer_rows

pytest.importorskip('uvicorn')
pytestmark = pytest.mark.skipif(not found(), reason='no Chromium here')

LOOKS = {
    'wide': {},
    'wide and dark': {'dark': True},
    'narrow': {'width': 390, 'height': 844, 'touch': True, 'scale': 2},
    'narrow and dark': {
        'width': 390,
        'height': 844,
        'touch': True,
        'scale': 2,
        'dark': True,
        'reduced': True,
    },
}
SHOWN = '!document.getElementById("{}").hidden'
NUMBER = 'now && !now.isOver && now.question.number'


def begin(page, address):
    "Agree, set the volume, and come to the first question."
    page.goto(address + '?simulated')
    page.wait(SHOWN.format('consent'))
    assert page.eval('document.getElementById("accept").disabled')
    page.click('#agree')
    page.click('#age')
    page.click('#accept')
    page.wait(SHOWN.format('volume'))
    page.click('#volume-play')
    page.wait('document.getElementById("volume-play").getAttribute("aria-pressed") === "true"')
    page.click('#begin')
    page.wait(SHOWN.format('question'))


def hear_all(page, touch):
    "Play each clip until it was heard for long enough."
    for i in range(3):
        if touch:
            page.click(f'#clips li:nth-child({i + 1}) .play')
        else:
            page.key(str(i + 1))
        page.wait(f'now.players[{i}].heardMs >= 1000 * about.min_heard_s || enough(now.players[{i}])')


def answer_one(page, choice, touch=False):
    "Answer the question on the page and wait for what comes next; its number."
    number = page.eval('now.question.number')
    assert page.eval('document.getElementById("cannot").disabled')
    hear_all(page, touch)
    page.wait('!document.getElementById("cannot").disabled')
    if choice is None:
        page.click('#cannot')
    elif touch:
        page.click(f'#clips li:nth-child({choice + 1}) .choose')
    else:
        page.key('qwe'[choice])
    page.wait(f'!now || (!now.isOver && now.question.number !== {number})')
    return number


@pytest.mark.parametrize('look', ['wide', 'narrow'])
def test_a_survey_with_the_network_cut_in_the_middle(tmp_path, look):
    touch = look == 'narrow'
    folder = survey_toy.make(tmp_path / 'survey', n_questions=9)
    with survey_toy.served(folder) as server, Chrome(**LOOKS[look]) as page:
        begin(page, server.address)
        numbers = [answer_one(page, i, touch) for i in range(2)]
        page.wait('questions.length >= 6 && questions.every((q) => q.clips.every((c) => sounds.has(c)))')
        page.offline(True)
        numbers += [answer_one(page, choice, touch) for choice in (None, 0, 1)]
        assert page.eval('kept.get("queue", []).length') == 3
        page.wait('document.getElementById("status").textContent.startsWith("3 answers wait")')
        page.offline(False)
        page.wait('kept.get("queue", []).length === 0')
        page.click('#pause')
        page.wait(SHOWN.format('rest'))
        link = page.eval('document.getElementById("link").value')
        page.goto('about:blank#')
        page.goto(link)  # as from another day
        page.wait(SHOWN.format('rest'))
        assert page.eval('location.hash') == ''
        page.click('#resume')
        while page.wait(f'{SHOWN.format("thanks")} || {SHOWN.format("question")}') and page.eval(
            SHOWN.format('question')
        ):
            numbers.append(answer_one(page, 2, touch))
        page.wait('document.getElementById("saved").textContent === "All your answers are saved."')
        with SurveyStore(folder) as store:
            rows = answer_rows(store)
        assert numbers == list(range(9)) == [r['number'] for r in rows]  # nothing lost, nothing double
        assert [r['odd'] is None for r in rows] == [i == 2 for i in range(9)]
        assert [r['shown'].index(r['odd']) for r in rows if r['odd'] is not None] == [0, 1, 0, 1, 2, 2, 2, 2]
        assert all(min(r['heard_ms']) >= 150 and min(r['plays']) >= 1 and r['response_ms'] > 0 for r in rows)
        page.click('#thanks [data-go=withdraw]')
        page.click('#really')
        page.wait(SHOWN.format('gone'))
        with SurveyStore(folder) as store:
            assert not answer_rows(store)
        own = tuple([server.address, 'blob:', 'data:', 'about:'])
        assert not [r for r in page.requests if not r.startswith(own)]
        cut = 'net::ERR_INTERNET_DISCONNECTED'
        assert not [m for m in page.messages if cut not in m]


def test_a_clip_must_be_heard_for_three_seconds(tmp_path):
    folder = survey_toy.make(tmp_path / 'survey', min_heard_s=3.0)
    with survey_toy.served(folder) as server, Chrome() as page:
        begin(page, server.address)
        for _ in range(2):  # a second is all that there is: a clip that is short was heard when it was played
            page.key('1')
            page.wait('now.players[0].heardMs > 200')
        page.key('q')
        page.key('E')
        assert page.eval('now.question.number') == 0 and page.eval('kept.get("queue", []).length') == 0
        assert page.eval('[...document.querySelectorAll(".choose")].every((b) => b.disabled)')
        hear_all(page, False)
        page.wait('!document.getElementById("cannot").disabled')
        page.call(
            'Input.dispatchKeyEvent',
            type='keyDown',
            key='@',
            code='Digit2',
            windowsVirtualKeyCode=50,
            modifiers=8,
        )
        page.wait('now.question.number === 1')
        page.wait('kept.get("queue", []).length === 0')
        with SurveyStore(folder) as store:
            rows = answer_rows(store)
        assert rows[0]['shown'].index(rows[0]['odd']) == 1


def test_a_personal_survey_asks_for_no_consent(tmp_path):
    folder = survey_toy.make(tmp_path / 'survey', personal=True, owner_hash='')
    with survey_toy.served(folder) as server, Chrome() as page:
        page.goto(server.address)
        page.wait(SHOWN.format('consent'))
        assert 'stay in a folder of this computer' in page.text() and 'years old' not in page.text()
        page.click('#accept')
        page.click('#begin')
        page.wait(SHOWN.format('question'))


def test_the_page_is_small(tmp_path, record_property):
    folder = survey_toy.make(tmp_path / 'survey')
    with survey_toy.served(folder) as server, Chrome() as page:
        page.goto(server.address)
        page.wait(SHOWN.format('consent'))
        took_ms = page.eval('performance.getEntriesByType("navigation")[0].loadEventEnd')
        record_property(
            'loaded_ms', took_ms
        )  # how long it takes depends on the machine; how much comes does not
        kinds = ('navigation', 'resource')
        n_bytes = [
            sum(page.eval(f'performance.getEntriesByType("{k}").map((e) => e.transferSize)')) for k in kinds
        ]
        assert all(n_bytes) and sum(n_bytes) < 100_000


RUN_AXE = 'axe.run(document, {resultTypes: ["violations"]}).then((r) => JSON.stringify(r.violations.map((v) => [v.id, v.nodes.map((n) => n.html + " " + n.failureSummary)])))'


@pytest.mark.parametrize('look', LOOKS)
def test_nothing_bars_anybody(tmp_path, axe, look):
    folder = survey_toy.make(tmp_path / 'survey')
    wrong = {}
    with survey_toy.served(folder) as server, Chrome(**LOOKS[look]) as page:

        def check(name):
            page.eval(axe + '; null')
            page.wait('document.getAnimations().length === 0')
            if violations := json.loads(page.eval(RUN_AXE)):
                wrong[name] = violations

        def fits(name):
            if page.eval('document.documentElement.scrollWidth > innerWidth'):
                wrong[f'{name} is too wide'] = True
            small = """[...document.querySelectorAll('button, label.tick')].filter((e) => e.offsetParent &&
                (e.offsetHeight < 44 || e.offsetWidth < 44)).map((e) => e.outerHTML.slice(0, 80))"""
            if targets := page.eval(small):
                wrong[f'{name} has small targets'] = targets

        begin(page, server.address)
        page.eval('document.body.append(document.createElement("img")); null')
        check('a picture without words')
        assert wrong.pop('a picture without words')[0][0] == 'image-alt'  # it does look
        page.eval('document.querySelector("img").remove()')
        check('question')
        fits('question')
        hear_all(page, look.startswith('narrow'))
        page.wait('!document.getElementById("cannot").disabled && now.players.every((p) => p.audio.paused)')
        check('question, heard')
        for name in ('consent', 'volume', 'rest', 'waiting', 'thanks', 'withdraw', 'gone'):
            page.eval(f'show("{name}")')
            check(name)
            fits(name)
        page.goto(server.address + 'report')
        check('password')
        page.eval(
            f'document.getElementById("password").value = {json.dumps(survey_toy.OWNER)}; document.querySelector("button").click()'
        )
        page.wait('Boolean(document.querySelector(".facts"))')
        check('report')
        fits('report')
    assert not wrong, json.dumps(wrong, indent=1)


def test_a_withdrawn_link_is_told(tmp_path):
    folder = survey_toy.make(tmp_path / 'survey')
    with survey_toy.served(folder) as server, Chrome() as page:
        begin(page, server.address)
        token = page.eval('kept.get("token")')
        httpx.post(server.address + 'api/withdraw', headers={'X-Person': token}, verify=False)
        hear_all(page, False)
        page.wait('!document.getElementById("cannot").disabled')
        page.key('q')
        page.wait(SHOWN.format('gone'))
        assert 'not known any more' in page.text()
        page.click('#afresh')
        page.wait(SHOWN.format('consent'))


def words_of(page):
    return page.eval('document.getElementById("status").textContent')


def test_afresh_after_the_last_questions_asks_again(tmp_path):
    folder = survey_toy.make(tmp_path / 'survey', n_questions=4)
    with survey_toy.served(folder) as server, Chrome() as page:
        begin(page, server.address)
        page.wait('isDone')
        headers = {'X-Person': page.eval('kept.get("token")')}
        httpx.post(server.address + 'api/withdraw', headers=headers, verify=False)
        hear_all(page, False)
        page.wait('!document.getElementById("cannot").disabled')
        page.key('q')
        page.wait(SHOWN.format('gone'))
        assert words_of(page) == ''
        for button in ('#afresh', '#accept', '#begin'):
            page.click(button)
        page.wait(f'{SHOWN.format("thanks")} || {SHOWN.format("question")}')
        assert page.eval(SHOWN.format('question'))


def test_a_link_opens_the_survey_elsewhere_and_after_a_restart(tmp_path):
    folder = survey_toy.make(tmp_path / 'survey')
    with survey_toy.served(folder, '--token') as server, Chrome() as page:
        begin_at = server.address.replace('?', '?simulated=&')
        page.goto(begin_at)
        page.wait(SHOWN.format('consent'))
        for button in ('#agree', '#age', '#accept', '#begin'):
            page.click(button)
        page.wait(SHOWN.format('question'))
        answer_one(page, 1)
        page.wait('kept.get("queue", []).length === 0')
        page.click('#pause')
        page.wait(SHOWN.format('rest'))
        link = page.eval('document.getElementById("link").value')
        port = int(server.address.split(':')[2].split('/')[0])
    with survey_toy.served(folder, '--token', port=port) as server, Chrome() as page:
        mail = f'data:text/html,<a id=link href="{link.replace("#", "%23")}">the link, in a mail</a>'
        page.goto(mail)
        page.click('#link')
        page.wait('typeof about !== "undefined"')
        page.wait(SHOWN.format('rest'))
        assert page.eval('location.href') == f'http://127.0.0.1:{port}/'
        page.wait('document.getElementById("count").textContent === "1 of 12"')
        page.click('#resume')
        page.wait(SHOWN.format('question'))
        page.click('#pause')
        for button in ('#rest [data-go=withdraw]', '#really'):
            page.click(button)
        page.wait(SHOWN.format('gone'))
    with SurveyStore(folder) as store:
        assert not answer_rows(store)


def test_surveys_at_one_address_leave_each_other_alone(tmp_path):
    one, other = (survey_toy.make(tmp_path / name) for name in ('one', 'other'))
    with Chrome() as page:
        with survey_toy.served(one) as server:
            address, port = server.address, int(server.address.split(':')[2].strip('/'))
            begin(page, address)
            page.wait('questions.length >= 6 && questions.every((q) => q.clips.every((c) => sounds.has(c)))')
        first = page.eval('kept.get("token")')
        answer_one(page, 0)  # to nobody
        with survey_toy.served(other, port=port):
            page.eval('waitMs = 0; soon(); null')  # the page of the first is still open
            page.wait('document.getElementById("status").textContent.startsWith("Another survey")')
            assert page.eval('kept.get("queue").length') == 1 and page.eval('kept.get("token")') == first
            begin(page, address)
            second = page.eval('kept.get("token")')
        with survey_toy.served(one, port=port):
            page.goto('about:blank#')
            page.goto(address)
            page.wait(SHOWN.format('rest'))
            page.wait('kept.get("queue").length === 0')
            assert page.eval('kept.get("token")') == first != second
    with SurveyStore(one) as store:
        assert len(answer_rows(store)) == 1


def test_the_server_says_why_nobody_can_begin_now(tmp_path):
    folder = survey_toy.make(tmp_path / 'survey')
    with survey_toy.served(folder) as server, Chrome() as page:
        for _ in range(60):
            httpx.post(server.address + 'api/join', json={}, verify=False)
        page.goto(server.address)
        page.wait(SHOWN.format('consent'))
        for button in ('#agree', '#age', '#accept', '#begin'):
            page.click(button)
        page.wait('document.getElementById("status").textContent')
        assert words_of(page) == 'So many people began just now: wait a minute.'
        page.offline(True)
        page.click('#begin')
        page.wait('document.getElementById("status").textContent.startsWith("There is no network")')


def test_what_was_heard_outlives_a_lock_and_a_reload(tmp_path):
    folder = survey_toy.make(tmp_path / 'survey')
    with survey_toy.served(folder) as server, Chrome(**LOOKS['narrow']) as page:
        begin(page, server.address)
        clips = page.eval('now.question.clips')
        hear_all(page, True)
        page.wait('now.players.every((p) => p.audio.paused)')
        page.goto(server.address)  # a telephone that was locked drops the page, and loads it again
        page.wait(SHOWN.format('rest'))
        page.click('#resume')
        page.wait(SHOWN.format('question'))
        assert page.eval('now.question.clips') == clips
        page.wait('!document.getElementById("cannot").disabled')
        page.offline(True)
        page.click('#clips li:nth-child(1) .choose')
        page.wait('waitMs > 0')
        page.offline(False)
        page.eval(
            'waitMs = 60000; clearTimeout(timer); document.dispatchEvent(new Event("visibilitychange")); null'
        )
        page.wait('kept.get("queue", []).length === 0')  # at once, not in a minute
    with SurveyStore(folder) as store:
        row = answer_rows(store)[0]
    assert min(row['heard_ms']) >= 150 and min(row['plays']) == 1 and row['response_ms'] > 300
