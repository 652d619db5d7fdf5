// The page of a survey. Answers are kept on this device until the server has confirmed them.
'use strict';

const $ = (id) => document.getElementById(id);
const AHEAD = 6; // questions that are fetched before they are needed
const LONGEST_WAIT_MS = 60000;

// ---- what survives a reload; in private windows it may be memory only

const memory = {};
const kept = {
  get(name, other) {
    try {
      const text = localStorage.getItem('survey.' + name);
      return text === null ? other : JSON.parse(text);
    } catch {
      return name in memory ? memory[name] : other;
    }
  },
  set(name, value) {
    memory[name] = value;
    try {
      localStorage.setItem('survey.' + name, JSON.stringify(value));
    } catch {
      /* it stays in memory */
    }
  },
  forget() {
    for (const name of ['token', 'queue', 'questions', 'answered']) {
      delete memory[name];
      try {
        localStorage.removeItem('survey.' + name);
      } catch {
        /* was never there */
      }
    }
  },
};

let about = null; // what the server says of the survey
let questions = []; // fetched and not answered, in order
let isDone = false; // the server has no more
let now = null; // the question on the page
const sounds = new Map(); // clip -> address of its sound, already here

// ---- the server

class Away extends Error {}

async function ask(path, body) {
  const token = kept.get('token', null);
  const headers = token ? { 'X-Person': token } : {};
  const options = { headers, cache: 'no-store' };
  if (body !== undefined) {
    options.method = 'POST';
    options.body = JSON.stringify(body);
    headers['Content-Type'] = 'application/json';
  }
  let answer;
  try {
    answer = await fetch(path, options);
  } catch {
    throw new Away('no network');
  }
  if (answer.status === 410) {
    lost();
    throw new Error('token is not known');
  }
  if (answer.status >= 500 || answer.status === 429) throw new Away('the server is busy');
  const data = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(data.error || `the server says ${answer.status}`);
  return data;
}

// ---- one loop that sends and fetches, and waits longer each time that fails

let waitMs = 0;
let timer = null;
let isBusy = false;
let againSoon = false;

function soon() {
  if (isBusy) {
    againSoon = true;
    return;
  }
  clearTimeout(timer);
  work();
}

async function work() {
  isBusy = true;
  againSoon = false;
  try {
    await send();
    await fetchAhead();
    waitMs = 0;
    tellQueue();
  } catch (error) {
    if (error instanceof Away) {
      waitMs = Math.min(LONGEST_WAIT_MS, waitMs ? 2 * waitMs : 1000);
      timer = setTimeout(soon, waitMs * (0.75 + 0.5 * Math.random()));
      tellQueue();
    } else say(error.message);
  }
  isBusy = false;
  if (againSoon && !waitMs) work();
}

async function send() {
  let queue = kept.get('queue', []);
  while (queue.length && kept.get('token', null)) {
    const result = await ask('api/answers', { answers: queue.slice(0, 50) });
    const settled = new Set([...result.confirmed, ...Object.keys(result.refused)]);
    queue = kept.get('queue', []).filter((a) => !settled.has(a.uuid));
    kept.set('queue', queue);
    if (!settled.size) break;
  }
}

async function fetchAhead() {
  if (!kept.get('token', null)) return;
  if (questions.length < AHEAD && !isDone) {
    const last = questions.length ? questions[questions.length - 1].number : -1;
    const result = await ask(`api/questions?after=${last}&n=${AHEAD - questions.length}`);
    const waiting = new Set(kept.get('queue', []).map((a) => a.number));
    questions.push(...result.questions.filter((q) => !waiting.has(q.number) && q.number > last));
    kept.set('questions', questions);
    kept.set('answered', Math.max(result.answered + waiting.size, kept.get('answered', 0)));
    isDone = result.done;
    if (!$('waiting').hidden) next();
  }
  for (const q of questions.slice(0, AHEAD)) for (const clip of q.clips) await fetchSound(clip);
  showProgress();
}

// The first of the kinds of file that this browser plays: Opus where it can.
function playable(kinds) {
  const tester = document.createElement('audio');
  const types = { opus: 'audio/ogg; codecs=opus', mp3: 'audio/mpeg', wav: 'audio/wav' };
  return kinds.find((k) => tester.canPlayType(types[k])) || kinds[kinds.length - 1];
}

async function fetchSound(clip) {
  if (sounds.has(clip)) return;
  let answer;
  try {
    answer = await fetch(`clips/${clip}.${playable(about.kinds)}`);
  } catch {
    throw new Away('no network');
  }
  if (!answer.ok) throw new Away(`clip ${clip}: ${answer.status}`);
  sounds.set(clip, URL.createObjectURL(await answer.blob()));
  if (now) now.players.forEach((p) => p.load());
}

// ---- words on the page

function say(text) {
  if ($('status').textContent !== text) $('status').textContent = text;
}

function tellQueue() {
  const n = kept.get('queue', []).length;
  const many = n === 1 ? '1 answer waits' : `${n} answers wait`;
  say(n ? `${many} on this device for the network.` : '');
  $('saved').textContent = n
    ? `${many} on this device for the network. Leave the page open, or come back with your link.`
    : 'All your answers are saved.';
}

function show(name) {
  for (const section of document.querySelectorAll('main > section')) section.hidden = section.id !== name;
  $('pause').hidden = name !== 'question';
  $('progress').hidden = $('count').hidden =
    !['question', 'rest', 'thanks', 'waiting'].includes(name) || (about.personal && !about.total);
  stopAll();
  window.scrollTo(0, 0);
  const title = document.querySelector(`#${name} h1`);
  if (title) title.focus({ preventScroll: true });
}

function showProgress() {
  const answered = Math.min(kept.get('answered', 0), about.total);
  $('progress').setAttribute('aria-valuemax', about.total);
  $('progress').setAttribute('aria-valuenow', answered);
  $('progress').firstElementChild.style.width = `${(100 * answered) / about.total}%`;
  $('count').textContent = `${answered} of ${about.total}`;
}

function link() {
  return `${location.origin}${location.pathname}#t=${kept.get('token', '')}`;
}

// ---- a player: a button with a ring

const audios = new Set();
function stopAll() {
  for (const audio of audios) audio.pause();
}

class Player {
  constructor(button, source, onChange) {
    this.button = button;
    this.source = source; // a function that gives the address, or nothing yet
    this.onChange = onChange || (() => {});
    this.heardMs = 0;
    this.plays = 0;
    this.last = 0;
    button.replaceChildren($('ring').content.cloneNode(true));
    this.ring = button.querySelector('.heard');
    this.audio = new Audio();
    this.audio.preload = 'auto';
    audios.add(this.audio);
    button.addEventListener('click', () => this.toggle());
    this.audio.addEventListener('play', () => {
      this.last = this.audio.currentTime;
      this.beat = setInterval(() => this.tick(), 50);
      this.look();
    });
    this.audio.addEventListener('pause', () => {
      this.tick();
      clearInterval(this.beat);
      this.look();
    });
    this.audio.addEventListener('ended', () => {
      this.tick();
      this.audio.currentTime = 0;
      this.last = 0;
      this.look();
    });
    this.audio.addEventListener('error', () => {
      this.failed = Boolean(this.audio.getAttribute('src'));
      this.onChange(this);
    });
    this.load();
  }

  load() {
    const address = this.source();
    if (address && this.audio.getAttribute('src') !== address) {
      this.failed = false;
      this.audio.src = address;
      if (this.isWanted) this.toggle();
    }
    this.button.setAttribute('aria-disabled', String(!address));
    this.onChange(this);
  }

  get isReady() {
    return Boolean(this.audio.getAttribute('src'));
  }

  toggle() {
    if (!this.isReady) {
      for (const p of now ? now.players : []) p.isWanted = p === this;
      say('This clip is on its way.');
      soon();
      return;
    }
    if (!this.audio.paused) {
      this.audio.pause();
      return;
    }
    stopAll();
    this.isWanted = false;
    this.plays += 1;
    this.audio.play().catch((error) => {
      if (error.name !== 'AbortError') {
        this.failed = true;
        this.onChange(this);
      }
    });
  }

  tick() {
    const step = this.audio.currentTime - this.last;
    if (step > 0 && step < 2) this.heardMs += 1000 * step;
    this.last = this.audio.currentTime;
    this.look();
  }

  look() {
    this.button.setAttribute('aria-pressed', String(!this.audio.paused));
    const share = this.audio.duration ? this.audio.currentTime / this.audio.duration : 0;
    this.ring.setAttribute('stroke-dasharray', `${100 * share} 100`);
    this.ring.setAttribute('visibility', share ? 'visible' : 'hidden');
    this.onChange(this);
  }

  end() {
    this.audio.pause();
    clearInterval(this.beat);
    audios.delete(this.audio);
    this.audio.removeAttribute('src');
  }
}

// ---- a question

const LETTERS = ['q', 'w', 'e'];

function enough(player) {
  const most = player.audio.duration ? 1000 * player.audio.duration - 200 : Infinity;
  return player.failed || player.heardMs >= Math.min(1000 * about.min_heard_s, most);
}

function refresh() {
  if (!now || now.players.length < now.items.length || !now.items.length) return; // still being made
  const missing = now.players.filter((p) => !enough(p)).length;
  now.items.forEach((item, i) => {
    const player = now.players[i];
    item.classList.toggle('playing', !player.audio.paused);
    const state = item.querySelector('.state');
    const left = Math.ceil((1000 * about.min_heard_s - player.heardMs) / 1000);
    const text = player.failed
      ? 'This clip cannot be played'
      : !player.isReady
        ? 'On its way …'
        : enough(player)
          ? 'Heard'
          : player.heardMs
            ? `${left} s more`
            : 'Not heard yet';
    if (state.textContent !== text) state.textContent = text;
    item.querySelector('.choose').disabled = missing > 0;
  });
  $('cannot').disabled = missing > 0;
  if (!missing && !now.unlocked) {
    now.unlocked = true;
    say('You have heard all three. Choose the odd one.');
  }
}

function present(question) {
  if (now) now.players.forEach((p) => p.end());
  now = { question, players: [], items: [], hidden: 0, since: null, unlocked: false };
  $('clips').replaceChildren();
  question.clips.forEach((clip, i) => {
    const item = $('clip').content.firstElementChild.cloneNode(true);
    const play = item.querySelector('.play');
    play.setAttribute('aria-label', `Play clip ${i + 1}`);
    play.setAttribute('aria-keyshortcuts', String(i + 1));
    const choose = item.querySelector('.choose');
    choose.textContent = `${['First', 'Second', 'Third'][i]} is odd`;
    choose.setAttribute('aria-keyshortcuts', `${LETTERS[i]} Shift+${i + 1}`);
    choose.addEventListener('click', () => answer(i));
    $('clips').append(item);
    now.items.push(item);
  });
  question.clips.forEach((clip, i) => {
    const player = new Player(now.items[i].querySelector('.play'), () => sounds.get(clip), refresh);
    player.audio.addEventListener('play', () => {
      now.since = now.since ?? performance.now();
    });
    now.players.push(player);
  });
  refresh();
  const n = about.total
    ? `Question ${Math.min(kept.get('answered', 0) + 1, about.total)} of ${about.total}.`
    : '';
  $('ask').setAttribute('aria-description', n);
  show('question');
  showProgress();
}

function newId() {
  if (crypto.randomUUID) return crypto.randomUUID();
  const bytes = crypto.getRandomValues(new Uint8Array(16)); // without https there is no randomUUID
  return [...bytes].map((b) => b.toString(16).padStart(2, '0')).join('');
}

function answer(place) {
  if (!now || now.isOver || now.players.some((p) => !enough(p))) return;
  now.isOver = true;
  stopAll();
  const { question, players } = now;
  const row = {
    uuid: newId(),
    number: question.number,
    choice: place,
    plays: players.map((p) => p.plays),
    heard_ms: players.map((p) => Math.round(p.heardMs)),
    response_ms: now.since === null ? null : Math.round(performance.now() - now.since),
    hidden: now.hidden,
  };
  kept.set('queue', [...kept.get('queue', []), row]);
  questions = questions.filter((q) => q.number !== question.number);
  kept.set('questions', questions);
  kept.set('answered', kept.get('answered', 0) + 1);
  if (place !== null) now.items[place].classList.add('chosen');
  const still = new Set(questions.flatMap((q) => q.clips));
  for (const [clip, address] of sounds)
    if (!still.has(clip) && !question.clips.includes(clip)) {
      URL.revokeObjectURL(address);
      sounds.delete(clip);
    }
  soon();
  setTimeout(next, matchMedia('(prefers-reduced-motion: reduce)').matches ? 0 : 250);
}

function next() {
  if (questions.length) {
    present(questions[0]);
    return;
  }
  if (now) {
    now.players.forEach((p) => p.end());
    now = null;
  }
  if (isDone) {
    $('thanks-text').textContent = `That was the last question: ${kept.get('answered', 0)} answered.`;
    $('link-end').value = link();
    tellQueue();
    show('thanks');
    showProgress();
  } else {
    show('waiting');
    soon();
  }
}

// ---- the other pages

function rest() {
  const n = kept.get('answered', 0);
  $('so-far').textContent = n
    ? `You have answered ${n} of ${about.total} questions. Nothing is lost when you close this page.`
    : `There are ${about.total} questions; stop and come back whenever you like.`;
  $('link').value = link();
  show('rest');
  showProgress();
}

function lost() {
  kept.forget();
  questions = [];
  if (now) {
    now.players.forEach((p) => p.end());
    now = null;
  }
  $('gone-title').textContent = 'This link is not known any more';
  $('gone-text').textContent = 'Its answers were withdrawn, or its time is over.';
  $('afresh').hidden = false;
  show('gone');
}

async function reallyWithdraw() {
  $('really').disabled = true;
  try {
    await ask('api/withdraw', {});
    kept.forget();
    questions = [];
    if (now) {
      now.players.forEach((p) => p.end());
      now = null;
    }
    show('gone');
    say('');
  } catch (error) {
    say(
      error instanceof Away
        ? 'There is no network just now; nothing was deleted. Try again later.'
        : error.message,
    );
  }
  $('really').disabled = false;
}

async function copy(id) {
  $(id).select();
  try {
    await navigator.clipboard.writeText($(id).value);
  } catch {
    document.execCommand('copy');
  }
  say('The link is copied.');
}

async function begin() {
  $('begin').disabled = true;
  try {
    const listening = document.querySelector('input[name="listening"]:checked').value;
    const simulated = new URLSearchParams(location.search).has('simulated');
    const { token } = await ask('api/join', {
      consent: about.version,
      old_enough: about.personal || $('age').checked,
      listening,
      simulated,
    });
    kept.set('token', token);
    show('waiting');
    await work();
    if (!$('waiting').hidden) next();
  } catch (error) {
    say(error instanceof Away ? 'There is no network just now. Try again.' : error.message);
  }
  $('begin').disabled = false;
}

function pressed(event) {
  if (!now || $('question').hidden || event.ctrlKey || event.metaKey || event.altKey) return;
  const digit = /^Digit[123]$/.test(event.code) ? Number(event.code[5]) - 1 : '123'.indexOf(event.key);
  const letter = LETTERS.indexOf(event.key.toLowerCase());
  if (event.key.length === 1 && digit >= 0) {
    if (event.shiftKey) answer(digit);
    else now.players[digit].toggle();
    event.preventDefault();
  } else if (letter >= 0 && event.key.length === 1) {
    answer(letter);
    event.preventDefault();
  } else if (event.key === '0') answer(null);
  else if (event.key === ' ' && !event.target.closest('button, a, input')) {
    stopAll();
    event.preventDefault();
  }
}

function wire() {
  const ready = () => {
    $('accept').disabled = !($('agree').checked && $('age').checked) && !about.personal;
  };
  $('agree').addEventListener('change', ready);
  $('age').addEventListener('change', ready);
  $('accept').addEventListener('click', () => {
    show('volume');
    soon();
  });
  new Player($('volume-play'), () => `clips/${about.trial}.${playable(about.kinds)}`);
  $('begin').addEventListener('click', begin);
  $('cannot').addEventListener('click', () => answer(null));
  $('pause').addEventListener('click', rest);
  $('resume').addEventListener('click', next);
  $('copy').addEventListener('click', () => copy('link'));
  $('copy-end').addEventListener('click', () => copy('link-end'));
  for (const button of document.querySelectorAll('[data-go]'))
    button.addEventListener('click', () => show(button.dataset.go));
  $('really').addEventListener('click', reallyWithdraw);
  $('keep').addEventListener('click', rest);
  $('afresh').addEventListener('click', () => {
    show('consent');
    say('');
  });
  document.addEventListener('keydown', pressed);
  document.addEventListener('visibilitychange', () => {
    if (document.hidden && now) now.hidden += 1;
  });
  window.addEventListener('online', () => {
    waitMs = 0;
    soon();
  });
  ready();
}

async function start() {
  const given = /^#t=([\w-]{10,64})$/.exec(location.hash);
  if (given) {
    if (given[1] !== kept.get('token', null)) {
      kept.forget();
      kept.set('token', given[1]);
    }
    history.replaceState(null, '', location.pathname + location.search);
  }
  try {
    about = await ask('api/survey');
  } catch (error) {
    say(error instanceof Away ? 'There is no network; trying again …' : error.message);
    setTimeout(start, 3000);
    return;
  }
  say('');
  document.title = $('name').textContent = about.title;
  $('words').replaceChildren(
    ...about.consent
      .split('\n')
      .map((line) => Object.assign(document.createElement('p'), { textContent: line })),
  );
  $('version').textContent = about.personal ? '' : `Version ${about.version} of these words.`;
  $('least-age').textContent = about.least_age;
  $('agree-row').hidden = $('age-row').hidden = $('have-link').hidden = about.personal;
  if (about.personal) {
    $('accept').textContent = 'Begin';
    document.querySelector('#consent h1').textContent = 'Your own ears';
  }
  wire();
  if (!kept.get('token', null)) {
    show('consent');
    return;
  }
  questions = kept.get('questions', []);
  rest();
  soon();
}

start();
