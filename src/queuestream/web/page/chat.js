// The page: a conversation, and one answer at a time.
//
// Where the server keeps answers, each has an id: the page goes on after the last event that it
// has, when its connection broke off and when it was loaded anew. Elsewhere a connection is an
// answer: whoever leaves it stops the run, and where it breaks off, the page asks again until the
// server answers, and what had come until then gives way to the new answer.

import { Failure, answerTo, findModel, newId, stopAnswer } from "./api.js";
import { Rate } from "./rate.js";

const TRIES = 6;
const MEMORY = "queuestream chat";

const at = (id) => document.getElementById(id);
const [log, ask, question, send, stop] = ["log", "ask", "question", "send", "stop"].map(at);

/**
 * What was asked and answered.  end: "", "done", "stopped", …; id: under which the answer is kept,
 * last: the last event of it that is here.
 * @type {{question: string, answer: string, reasoning?: string, end: string, id?: string,
 *   last?: string}[]}
 */
let turns = [];
let model;
let isKept = false;
let token = sessionStorage.getItem(`${MEMORY} token`) ?? "";
/** @type {AbortController | null} of the answer that is being made */
let current = null;

// -- what is shown -----------------------------------------------------------------------------

function show(turn) {
  at("welcome").hidden = true;
  const parts = at("turn").content.cloneNode(true);
  const view = parts.querySelector(".answer");
  parts.querySelector(".question .text").textContent = turn.question;
  view.querySelector(":scope > .text").textContent = turn.answer;
  if (turn.reasoning) say(view.querySelector(".reasoning"), turn.reasoning);
  view.querySelector(".error button").addEventListener("click", () => run(turn, view));
  log.append(parts);
  log.scrollTop = log.scrollHeight;
  return view;
}

/** Do something that makes the log grow; whoever was at its end stays there. */
function growing(change) {
  const isAtEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 64;
  change();
  if (isAtEnd) log.scrollTop = log.scrollHeight;
}

/** Show a text in a part that is hidden otherwise; hide it if there is none. */
function say(part, text) {
  growing(() => {
    (part.querySelector("p") ?? part).textContent = text;
    part.hidden = !text;
  });
}

function tell(state, text) {
  at("connection").dataset.state = state;
  at("connection").textContent = text;
}

function setBusy(isBusy) {
  send.hidden = isBusy;
  stop.hidden = !isBusy;
}

function remember() {
  try {
    sessionStorage.setItem(MEMORY, JSON.stringify(turns));
  } catch {
    // The conversation is longer than the browser keeps, and lives on in this page alone.
  }
}

// -- one answer --------------------------------------------------------------------------------

function messagesFor(turn) {
  const messages = [];
  for (const earlier of turns.slice(0, turns.indexOf(turn))) {
    if (!earlier.answer) continue;
    messages.push({ role: "user", content: earlier.question });
    messages.push({ role: "assistant", content: earlier.answer });
  }
  return [...messages, { role: "user", content: turn.question }];
}

/** Answer a turn, as often as the connection breaks; or go on with an answer that has begun. */
async function run(turn, view, { isResumed = false } = {}) {
  current?.abort();
  const own = (current = new AbortController());
  const note = view.querySelector(".note");
  setBusy(true);
  view.setAttribute("aria-busy", "true");
  say(view.querySelector(".error"), "");
  say(note, "");
  at("news").textContent = "The answer begins.";
  if (!isResumed) Object.assign(turn, { end: "", id: isKept ? newId() : "", last: "" });
  remember();
  try {
    let onlyRead = isResumed;
    let begun = 0; // times that the answer began, each of which has its price
    for (let attempt = 1; ; attempt += 1) {
      const { last } = turn;
      try {
        await stream(turn, view, own.signal, { onlyRead, onNew: () => (begun += 1) });
        turn.end = "done";
        tell("ready", "ready");
        at("news").textContent = "The answer is complete.";
        return;
      } catch (failure) {
        if (turn.last !== last) attempt = 1; // it goes on
        const isEnough = attempt > TRIES || begun > TRIES;
        if (own.signal.aborted || !failure.isTransient || isEnough) throw failure;
        onlyRead = false;
        tell("lost", "reconnecting…");
        say(note, `${failure.message} Asking again (${attempt} of ${TRIES})…`);
        await pause(Math.max(failure.wait, 0.5 * 2 ** Math.min(attempt - 1, 4)), own.signal);
      }
    }
  } catch (failure) {
    fail(turn, view, failure, own.signal);
  } finally {
    view.setAttribute("aria-busy", "false");
    view.classList.remove("outdated");
    if (current === own) {
      current = null;
      setBusy(false);
    }
    remember();
  }
}

/** Show one attempt at an answer. */
async function stream(turn, view, signal, { onlyRead, onNew }) {
  const text = view.querySelector(":scope > .text");
  const reasoning = view.querySelector(".reasoning");
  const rate = new Rate(view.querySelector(".numbers"));
  let isFresh = false; // whether what is shown belongs to this attempt
  view.classList.add("outdated");
  const accept = () => {
    isFresh = true;
    view.classList.remove("outdated");
    say(view.querySelector(".note"), "");
  };
  const begin = () => {
    turn.answer = "";
    turn.reasoning = "";
    text.textContent = "";
    say(reasoning, "");
    accept();
  };
  const { id, last } = turn;
  const options = { model, token, signal, id, last, onlyRead };
  try {
    for await (const piece of answerTo(messagesFor(turn), options)) {
      if (piece.isNew !== undefined) {
        if (piece.isNew) {
          onNew();
          turn.last = "";
        } else accept();
        continue;
      }
      if (piece.last) turn.last = piece.last;
      if (!isFresh || piece.restart) begin();
      if (piece.text) {
        rate.add();
        turn.answer += piece.text;
        growing(() => text.append(piece.text)); // a text node, whatever it says
      }
      if (piece.reasoning) {
        turn.reasoning = (turn.reasoning ?? "") + piece.reasoning;
        reasoning.hidden = false;
        growing(() => reasoning.querySelector("p").append(piece.reasoning));
      }
    }
    if (!isFresh) begin();
    text.normalize();
  } finally {
    rate.stop();
  }
}

function fail(turn, view, failure, signal) {
  if (signal.aborted || failure.code === "stopped") {
    turn.end = "stopped";
    if (signal.aborted && turn.id) stopAnswer(turn.id, token);
    say(view.querySelector(".note"), "Stopped.");
    at("news").textContent = "The answer was stopped.";
    tell("ready", "ready");
    return;
  }
  turn.end = "failed";
  if (!(failure instanceof Failure)) console.error(failure);
  say(view.querySelector(".note"), "");
  say(view.querySelector(".error"), failure.message);
  if (failure.status === 401) askForToken();
  else if (failure.isTransient) connect();
}

/** Wait so many seconds, with some scatter; less if the network comes back meanwhile. */
function pause(seconds, signal) {
  return new Promise((resolve, reject) => {
    const end = () => {
      clearTimeout(timer);
      removeEventListener("online", end);
      signal?.removeEventListener("abort", end);
      if (signal?.aborted) reject(signal.reason);
      else resolve();
    };
    const timer = setTimeout(end, seconds * (1 + Math.random() / 4) * 1000);
    addEventListener("online", end);
    signal?.addEventListener("abort", end);
  });
}

// -- the server --------------------------------------------------------------------------------

let isConnecting = false;

/** Ask the server for its model until it answers. */
async function connect() {
  if (isConnecting) return;
  isConnecting = true;
  try {
    for (let attempt = 1; ; attempt += 1) {
      try {
        ({ name: model, isKept } = await findModel(token));
        at("model").textContent = model;
        document.title = `${model} · queuestream`;
        at("access").hidden = true;
        tell("ready", "ready");
        return;
      } catch (failure) {
        if (failure.status === 401) return askForToken();
        tell("lost", "reconnecting…");
        await pause(0.5 * 2 ** Math.min(attempt - 1, 4));
      }
    }
  } finally {
    isConnecting = false;
  }
}

function askForToken() {
  tell("lost", token ? "wrong token" : "token needed");
  at("access").hidden = false;
  at("token").focus();
}

// -- what the reader does ----------------------------------------------------------------------

ask.addEventListener("submit", (event) => {
  event.preventDefault();
  const asked = question.value.trim();
  if (!asked || current) return;
  question.value = "";
  question.style.height = "";
  const turn = { question: asked, answer: "", end: "" };
  turns.push(turn);
  run(turn, show(turn));
});

question.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    ask.requestSubmit();
  }
});

question.addEventListener("input", () => {
  if (CSS.supports("field-sizing", "content")) return;
  question.style.height = "";
  question.style.height = `${question.scrollHeight + 2}px`;
});

stop.addEventListener("click", () => {
  current?.abort();
  question.focus();
});

addEventListener("keydown", (event) => {
  if (event.key === "Escape" && current) current.abort();
});

at("new").addEventListener("click", () => {
  current?.abort();
  turns = [];
  remember();
  log.querySelectorAll("article").forEach((article) => article.remove());
  at("welcome").hidden = false;
  question.focus();
});

at("access").addEventListener("submit", (event) => {
  event.preventDefault();
  token = at("token").value.trim();
  sessionStorage.setItem(`${MEMORY} token`, token);
  at("token").value = "";
  connect();
  question.focus();
});

addEventListener("pagehide", remember);

// -- the start ---------------------------------------------------------------------------------

try {
  turns = JSON.parse(sessionStorage.getItem(MEMORY)) ?? [];
} catch {
  turns = [];
}
const latest = turns.at(-1);
for (const turn of turns) {
  const view = show(turn);
  if (turn === latest && turn.id && !turn.end) run(turn, view, { isResumed: true });
  else if (turn.end === "stopped") say(view.querySelector(".note"), "Stopped.");
  else if (turn.end !== "done") {
    say(view.querySelector(".error"), "This answer was broken off when the page was left.");
  }
}
connect();
question.focus();
