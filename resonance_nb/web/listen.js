// The page of `resonance serve`: a microphone, a WebSocket, and what comes back.
// No code here comes from elsewhere.
import { Spectrogram } from './spectrogram.js';

const $ = (id) => document.getElementById(id);
const clock = (s) => `${Math.floor(s / 60)}:${String(Math.floor(s % 60)).padStart(2, '0')}`;
const percent = (x) => `${Math.round(100 * x)} %`;
const SEND_S = 0.25,
  BEHIND_BYTES = 1 << 20,
  SILENT_S = 4, // of the server, and what it said last is past
  GONE_S = 20; // and it is asked anew
const TEXT = {
  listening: 'Listening …',
  silence: 'Nothing to hear',
  perhaps: 'Perhaps …',
  song: 'It is',
  lost: 'Lost it',
  unknown: 'Not a song I know',
};

function make(tag, words = {}, ...inside) {
  const element = Object.assign(document.createElement(tag), words);
  element.append(...inside);
  return element;
}

const named = (song) => [make('b', { textContent: song.title }), song.artist ? ` – ${song.artist}` : ''];

function notice(text) {
  $('notice').textContent = text;
  $('notice').hidden = !text;
}

// ---- the microphone and the stream

const picture = new Spectrogram($('spectrogram'), $('peaks'));
let hearing = null; // {context, stream, socket, pieces, n, unheard_since}

async function begin() {
  notice('');
  if (!navigator.mediaDevices) {
    notice(
      'The browser gives the microphone only to pages of this machine, or that came by HTTPS. ' +
        'Drop a recording instead.',
    );
    return;
  }
  const h = (hearing = { pieces: [], n: 0, tries: 0 });
  show('listening');
  press(true);
  try {
    const plain = { echoCancellation: false, noiseSuppression: false, autoGainControl: false };
    h.stream = await navigator.mediaDevices.getUserMedia({ audio: plain });
    h.context = new AudioContext();
    await h.context.audioWorklet.addModule('/static/recorder.js');
    const recorder = new AudioWorkletNode(h.context, 'recorder', { numberOfOutputs: 0 });
    recorder.port.onmessage = (e) => hear(h, new Int16Array(e.data));
    h.context.createMediaStreamSource(h.stream).connect(recorder);
    await h.context.resume();
  } catch (e) {
    if (h === hearing) end();
    notice(
      e.name === 'NotAllowedError'
        ? 'The microphone was not allowed. The browser asks again when you change that beside the address.'
        : e.name === 'NotFoundError'
          ? 'There is no microphone here. Drop a recording instead.'
          : `The microphone cannot be used: ${e.message}`,
    );
    return;
  }
  if (h !== hearing) return shut(h);
  navigator.wakeLock?.request('screen').then(
    (lock) => {
      h.lock = lock;
      if (h !== hearing) lock.release();
    },
    () => {},
  );
  connect(h);
}

function connect(h) {
  const socket = (h.socket = new WebSocket(
    `${location.protocol === 'https:' ? 'wss' : 'ws'}://${location.host}/api/listen`,
  ));
  let reason = '';
  socket.onopen = () => {
    picture.begin(h.context.sampleRate);
    h.pieces = [];
    h.n = 0;
    h.unheard_since = 0;
    h.started = true;
    socket.send(JSON.stringify({ type: 'start', rate_hz: Math.round(h.context.sampleRate), dtype: 'int16' }));
  };
  socket.onmessage = (e) => {
    const message = JSON.parse(e.data);
    if (message.type === 'ready') {
      h.tries = 0;
      notice('');
      show('listening');
      knows(message.songs);
    }
    if (h.unheard_since) notice('');
    h.unheard_since = 0;
    if (message.type === 'end') reason = message.reason;
    if (message.type === 'event') event(message);
    if (message.type === 'state') state(message);
  };
  socket.onclose = () => {
    if (h !== hearing || socket !== h.socket) return;
    h.started = false;
    past();
    if (reason) {
      end();
      notice(`The listener has ended: ${reason}.`);
      return;
    }
    const wait_s = Math.min(20, 2 ** h.tries++);
    notice(`The connection is lost; trying again in ${wait_s} s.`);
    setTimeout(() => {
      if (h === hearing) connect(h);
    }, 1000 * wait_s);
  };
}

function hear(h, piece) {
  if (h !== hearing || !h.started) return;
  picture.push(Float32Array.from(piece, (x) => x / 32768));
  h.pieces.push(piece);
  h.n += piece.length;
  if (h.n < SEND_S * h.context.sampleRate || h.socket.readyState !== WebSocket.OPEN) return;
  const all = new Int16Array(h.n);
  let at = 0;
  for (const p of h.pieces) {
    all.set(p, at);
    at += p.length;
  }
  h.pieces = [];
  h.n = 0;
  if (h.socket.bufferedAmount > BEHIND_BYTES) {
    notice('The network is too slow; some sound is left out.');
    return;
  }
  h.unheard_since ||= Date.now();
  h.socket.send(all);
}

setInterval(() => {
  const h = hearing;
  if (!h?.started || !h.unheard_since) return;
  const silent_s = (Date.now() - h.unheard_since) / 1000;
  if (silent_s < SILENT_S) return;
  past();
  notice('The connection is lost: the server says nothing.');
  if (silent_s > GONE_S) h.socket.close();
}, 1000);

function shut(h) {
  h.stream?.getTracks().forEach((track) => track.stop());
  h.context?.close();
  h.lock?.release();
  if (h.socket?.readyState === WebSocket.OPEN) h.socket.send(JSON.stringify({ type: 'stop' }));
  setTimeout(() => h.socket?.close(), 300);
}

function end() {
  const h = hearing;
  hearing = null;
  if (h) shut(h);
  press(false);
  show('idle');
}

function press(on) {
  $('listen').setAttribute('aria-pressed', on);
  $('listen-text').textContent = on ? 'Stop' : 'Listen';
}

$('listen').onclick = () => (hearing ? end() : begin());
addEventListener('pagehide', () => hearing && end());

// ---- what is told

let shown = ''; // state and song that stand there

function show(kind, song = null) {
  const key = kind + (song ? song.track_id : '');
  if (key === shown) return;
  shown = key;
  $('state').textContent = TEXT[kind] ?? 'Press the button, and hold the device where the music is.';
  $('answer').className = kind;
  $('title').textContent = song ? song.title : '';
  $('artist').textContent = song?.artist ?? '';
  $('facts').hidden = !song;
  if (kind !== 'song') $('alike').hidden = true;
}

// what was said last is not the case any more
function past() {
  if (shown === 'past') return;
  const was = $('answer').className === 'song';
  shown = 'past';
  $('answer').className = 'past';
  $('state').textContent = was ? 'Not connected. Before, it was' : 'Not connected';
  if (!was) $('title').textContent = $('artist').textContent = '';
  $('facts').hidden = true;
  $('alike').hidden = true;
  $('level').value = -70;
  $('level-text').textContent = 'level';
}

function state(message) {
  const song = ['song', 'perhaps'].includes(message.state) ? message.songs[0] : null;
  show(message.state, song);
  if (song) {
    $('sure').value = song.confidence;
    $('sure-text').textContent = percent(song.confidence);
    $('place').value = song.duration_s ? Math.min(1, song.offset_s / song.duration_s) : 0;
    $('place-text').textContent =
      clock(Math.max(0, song.offset_s)) + (song.duration_s ? ` of ${clock(song.duration_s)}` : '');
  }
  $('level').value = message.level_db;
  $('level-text').textContent = `level ${Math.round(message.level_db)} dB`;
  picture.add(message.peaks);
}

function event(message) {
  if (message.event !== 'match') return;
  show('song', message);
  remember(message);
  alike(message.track_id);
}

async function alike(track_id) {
  const { songs } = await get(`/api/songs/${track_id}/near`).catch(() => ({ songs: [] }));
  if (!shown.endsWith(track_id) || !songs.length) return;
  $('alike').hidden = false;
  $('alike')
    .querySelector('ul')
    .replaceChildren(...songs.map(row));
}

// ---- history

const HISTORY = 'resonance.history';
const stored = () => {
  try {
    return JSON.parse(localStorage.getItem(HISTORY)) ?? [];
  } catch {
    return [];
  }
};
let history_rows = stored();

function keep() {
  try {
    localStorage.setItem(HISTORY, JSON.stringify(history_rows));
  } catch {
    /* it lasts as long as the page */
  }
  write_history();
}

function remember(song) {
  const entry = {
    at: new Date().toISOString(),
    title: song.title,
    artist: song.artist ?? '',
    offset_s: song.offset_s,
    confidence: song.confidence,
  };
  history_rows = [entry, ...history_rows].slice(0, 500);
  keep();
}

function write_history() {
  $('no-history').hidden = history_rows.length > 0;
  for (const id of ['copy', 'csv', 'clear']) $(id).hidden = !history_rows.length;
  $('history').replaceChildren(
    ...history_rows.map((entry) =>
      make(
        'li',
        {},
        make('time', {
          dateTime: entry.at,
          title: entry.at,
          textContent: new Date(entry.at).toLocaleTimeString(),
        }),
        make('span', { className: 'what' }, ...named(entry)),
        make('span', {
          className: 'soft',
          textContent: `from ${clock(entry.offset_s ?? 0)}, ${percent(entry.confidence)}`,
        }),
      ),
    ),
  );
}

// a cell that a spreadsheet would take for a formula is not let through as one
const cell = (x) =>
  `"${String(x)
    .replace(/^[=+\-@\t\r]/, "'$&")
    .replaceAll('"', '""')}"`;
const table = () =>
  [
    'time,title,artist,offset_s,confidence',
    ...history_rows.map((e) => [e.at, e.title, e.artist, e.offset_s, e.confidence].map(cell).join(',')),
  ].join('\r\n') + '\r\n';

$('copy').onclick = async () => {
  const text = history_rows
    .map((e) => `${new Date(e.at).toLocaleString()}\t${e.artist ? e.artist + ' – ' : ''}${e.title}`)
    .join('\n');
  await navigator.clipboard.writeText(text).then(
    () => ($('history-state').textContent = 'copied'),
    () => ($('history-state').textContent = 'the browser does not let this page copy'),
  );
};
$('csv').onclick = () => {
  const link = make('a', {
    href: URL.createObjectURL(new Blob(['\ufeff' + table()], { type: 'text/csv' })),
    download: 'songs.csv',
  });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
};
$('clear').onclick = () => {
  history_rows = [];
  keep();
};

// ---- a recording

async function identify(file) {
  $('matches').replaceChildren();
  $('drop-state').textContent = `${file.name}: listening …`;
  const form = new FormData();
  form.append('file', file);
  try {
    const response = await fetch('/api/identify', { method: 'POST', body: form });
    const told = response.headers.get('content-type')?.includes('json')
      ? await response.json()
      : { error: (await response.text()).trim() };
    if (told.error) {
      $('drop-state').textContent = `${file.name}: ${told.error}`;
      return;
    }
    answer(file.name, told);
  } catch {
    $('drop-state').textContent = `${file.name}: the server did not answer, or the file is too large`;
  }
}

function answer(name, told) {
  const match = told.decision === 'match',
    best = told.matches[0];
  $('drop-state').textContent = match
    ? `${name}: it is ${best.title}${best.artist ? ` by ${best.artist}` : ''}.`
    : `${name}: not a song I know.${best ? ' The nearest are:' : ''}`;
  $('matches').replaceChildren(
    ...told.matches.map((m) =>
      make(
        'li',
        {},
        make('span', {
          className: 'when',
          textContent: m.offset_s >= 0 ? `from ${clock(m.offset_s)}` : 'from 0:00',
        }),
        make('span', { className: 'what' }, ...named(m), m.another_version ? ' (another version)' : ''),
        make('meter', {
          min: 0,
          max: 1,
          low: 0.5,
          high: 0.9,
          optimum: 1,
          value: m.confidence,
          ariaLabel: `how sure: ${percent(m.confidence)}`,
        }),
        make('span', { className: 'soft', textContent: percent(m.confidence) }),
        play_button(m, Math.max(0, m.offset_s)),
      ),
    ),
  );
}

$('file').onchange = () => $('file').files.length && identify($('file').files[0]);
addEventListener('dragover', (e) => {
  e.preventDefault();
  document.body.classList.add('over');
});
addEventListener('dragleave', (e) => {
  if (!e.relatedTarget) document.body.classList.remove('over');
});
addEventListener('drop', (e) => {
  e.preventDefault();
  document.body.classList.remove('over');
  if (e.dataTransfer.files.length) identify(e.dataTransfer.files[0]);
});

// ---- songs

const get = async (url) => {
  const r = await fetch(url);
  if (!r.ok) throw new Error(r.status);
  return r.json();
};

function play_button(song, at_s = 0) {
  const button = make('button', { type: 'button', textContent: 'Play', ariaLabel: `Play ${song.title}` });
  button.onclick = () => {
    const player = $('player');
    player.hidden = false;
    player.src = `/api/songs/${song.track_id}/sound#t=${at_s.toFixed(1)}`;
    player.ariaLabel = `${song.title}`;
    player.play().catch(() => notice(`The browser cannot play ${song.title}.`));
  };
  return button;
}

const row = (song) =>
  make(
    'li',
    {},
    make('span', { className: 'what' }, ...named(song)),
    make('span', { className: 'soft', textContent: song.duration_s ? clock(song.duration_s) : '' }),
    play_button(song),
  );

let asked = 0;
async function list(more = false) {
  const number = ++asked,
    offset = more ? $('songs').children.length : 0;
  const found = await get(
    `/api/songs?limit=50&offset=${offset}&q=${encodeURIComponent($('search').value)}`,
  ).catch(() => null);
  if (number !== asked) return;
  if (!found) {
    $('songs-state').textContent = 'the server does not answer';
    return;
  }
  if (!more) $('songs').replaceChildren();
  $('songs').append(...found.songs.map(row));
  $('songs-state').textContent = `${found.total} ${found.total === 1 ? 'song' : 'songs'}`;
  $('more').hidden = $('songs').children.length >= found.total;
}

let typing = 0;
$('search').oninput = () => {
  clearTimeout(typing);
  typing = setTimeout(list, 150);
};
$('more').onclick = () => list(true);

const knows = (n) => ($('about').textContent = `knows ${n} ${n === 1 ? 'song' : 'songs'}`);

async function about() {
  const health = await get('/api/health').catch(() => null);
  if (!health) {
    $('about').textContent = 'the server does not answer';
    return;
  }
  knows(health.songs);
  $('keeps').textContent = health.keeps
    ? 'What is heard here is kept by whoever runs this server.'
    : 'Nothing that is heard here is kept.';
  $('map-link').hidden = !health.feel;
}

write_history();
about();
list();
