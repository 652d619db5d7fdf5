// The page of a survey. Answers are kept on this device until the server has confirmed them.
'use strict';

const $ = (id) => document.getElementById(id);
const AHEAD = 6; // questions that are fetched before they are needed
const LONGEST_WAIT_MS = 60000;

// ---- what survives a reload; in private windows it may be memory only

// Other surveys may have had this address, and other people this device: each person's things have their own
// place. Only whose turn it is (the token) is kept for the survey.
const memory = {};
const kept = {
  place(name) {
    const survey = `survey.${about.survey}`;
    return name === 'token' ? `${survey}.token` : `${survey}.${kept.get('token', '')}.${name}`;
  },
  get(name, other) {
    const place = kept.place(name);
    try {
      const text = localStorage.getItem(place);
      return text === null ? other : JSON.parse(text);
    } catch {
      return place in memory ? memory[place] : other;
    }
  },
  set(name, value) {
    const place = kept.place(name);
    memory[place] = value;
    try {
      localStorage.setItem(place, JSON.stringify(value));
    } catch {
      /* it stays in memory */
    }
  },
  forget() {
    for (const name of ['queue', 'questions', 'answered', 'hearing', 'token']) {
      const place = kept.place(name);
      delete memory[place];
      try {
        localStorage.removeItem(place);
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

// Nothing was refused for good: try again later. What the server says; nothing: there is no network.
class Away extends Error {}
const LATER = new Set([408, 409, 429]); // and 500 and more
const PATIENCE_MS = 60000; // a telephone that slept may wait for ever for what it asked before

async function fetched(path, options) {
  const signal = AbortSignal.timeout ? AbortSignal.timeout(PATIENCE_MS) : undefined;
  try {
    return await fetch(path, { signal, ...options });
  } catch {
    throw new Away();
  }
}

function sentence(words) {
  const text = words.trim();
  return text && text[0].toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? '' : '.');
}

function spoken(answer, text, data) {
  if (answer.status === 401) return 'This browser is not known here any more. Open your link again.';
  if (answer.status >= 500) return 'The server is in trouble. Try again later.';
  return sentence(data && data.error ? data.error : text) || `The server says ${answer.status}.`;
}

async function ask(path, body) {
  const headers = {};
  const token = about && kept.get('token', null);
  if (about) headers['X-Survey'] = about.survey;
  if (token) headers['X-Person'] = token;
  const options = { headers, cache: 'no-store' };
  if (body !== undefined) {
    options.method = 'POST';
    options.body = JSON.stringify(body);
    headers['Content-Type'] = 'application/json';
  }
  const answer = await fetched(path, options);
  const text = await answer.text().catch(() => {
    throw new Away();
  });
  let data = null;
  try {
    data = JSON.parse(text);
  } catch {
    if (answer.ok) throw new Away(); // cut, or the page of a network that wants a password first
  }
  if (answer.ok) return data;
  if (answer.status === 410) {
    if (token === kept.get('token', null)) lost();
    throw new Error('');
  }
  const words = spoken(answer, text, data);
  if (answer.status >= 500 || LATER.has(answer.status)) throw new Away(words);
  throw new Error(words);
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
      tellQueue(error.message);
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
  const answer = await fetched(`clips/${clip}.${playable(about.kinds)}`);
  if (!answer.ok) throw new Away(spoken(answer, await answer.text().catch(() => ''), null));
  const sound = await answer.blob().catch(() => {
    throw new Away();
  });
  sounds.set(clip, URL.createObjectURL(sound));
  if (now) now.players.forEach((p) => p.load());
}

// ---- words on the page

function say(text) {
  if ($('status').textContent !== text) $('status').textContent = text;
}

function tellQueue(words = '') {
  const n = kept.get('queue', []).length;
  const many = n === 1 ? '1 answer waits' : `${n} answers wait`;
  if (words) say(n ? `${words} ${many} on this device.` : words);
  else say(n ? `${many} on this device for the network.` : '');
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
  const opens = about.token ? `?token=${about.token}` : '';
  return `${location.origin}${location.pathname}${opens}#t=${kept.get('token', '')}`;
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

// What was heard outlives a pause, a reload, and a telephone that drops the page when it is locked.
function keepHearing() {
  if (!now || now.isOver || !now.players.length || $('question').hidden) return;
  now.players.forEach((p) => p.tick());
  kept.set('hearing', {
    number: now.question.number,
    plays: now.players.map((p) => p.plays),
    heard_ms: now.players.map((p) => p.heardMs),
    hidden: now.hidden,
    took_ms: now.since === null ? null : performance.now() - now.since,
  });
}

function takeUpHearing() {
  const before = kept.get('hearing', null);
  if (!before || before.number !== now.question.number) return;
  now.players.forEach((p, i) => {
    p.plays = before.plays[i];
    p.heardMs = before.heard_ms[i];
  });
  now.hidden = before.hidden;
  now.since = before.took_ms === null ? null : performance.now() - before.took_ms;
}

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
  takeUpHearing();
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
  keepHearing();
  const n = kept.get('answered', 0);
  $('so-far').textContent = n
    ? `You have answered ${n} of ${about.total} questions. Nothing is lost when you close this page.`
    : `There are ${about.total} questions; stop and come back whenever you like.`;
  $('link').value = link();
  show('rest');
  showProgress();
}

function leave(title, text, canBeginAfresh) {
  kept.forget();
  questions = [];
  isDone = false;
  if (now) {
    now.players.forEach((p) => p.end());
    now = null;
  }
  $('gone-title').textContent = title;
  $('gone-text').textContent = text;
  $('afresh').hidden = !canBeginAfresh;
  show('gone');
}

function lost() {
  leave('This link is not known any more', 'Its answers were withdrawn, or its time is over.', true);
}

async function reallyWithdraw() {
  $('really').disabled = true;
  try {
    await ask('api/withdraw', {});
    leave('Your answers are deleted', 'Nothing of them is kept. Thank you all the same.', false);
    say('');
  } catch (error) {
    if (error instanceof Away)
      say(`Nothing was deleted. ${error.message || 'There is no network just now.'}`);
    else say(error.message);
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
    say(error.message || 'There is no network just now. Try again.');
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
    if (document.hidden) {
      if (now) now.hidden += 1;
      keepHearing();
    } else {
      waitMs = 0;
      soon();
    }
  });
  window.addEventListener('pagehide', keepHearing);
  window.addEventListener('online', () => {
    waitMs = 0;
    soon();
  });
  ready();
}

// A link names the person; who was here before on this device is not forgotten, but it is not their turn.
function takeLink() {
  const given = /^#t=([\w-]{10,64})$/.exec(location.hash);
  if (!given) return;
  kept.set('token', given[1]);
  const query = new URLSearchParams(location.search);
  query.delete('token'); // where the server asks for none, it is left in the address
  const rest = String(query);
  history.replaceState(null, '', location.pathname + (rest ? `?${rest}` : ''));
}

async function start() {
  try {
    about = await ask('api/survey');
  } catch (error) {
    say(error.message || 'There is no network; trying again …');
    setTimeout(start, 3000);
    return;
  }
  takeLink();
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
