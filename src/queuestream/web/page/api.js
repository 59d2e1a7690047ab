// The server's side of the page: a question goes out, the pieces of an answer come in.

/** Why there is no answer, or no more of it. */
export class Failure extends Error {
  /**
   * @param {string} message what the reader is told
   * @param {{status?: number, code?: string | null, wait?: number, isTransient?: boolean}} more
   *   the HTTP status; a word for programs; seconds to wait; whether asking again may help
   */
  constructor(message, { status = 0, code = null, wait = 0, isTransient = false } = {}) {
    super(message);
    Object.assign(this, { status, code, wait, isTransient });
  }
}

const lost = () => new Failure("The connection was lost.", { isTransient: true });

function headersWith(token) {
  return token ? { Authorization: `Bearer ${token}` } : {};
}

/** Fetch, and throw a Failure for whatever is no success. */
async function request(address, options) {
  let response;
  try {
    response = await fetch(address, { cache: "no-store", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure("The server cannot be reached.", { isTransient: true });
  }
  if (response.ok) return response;
  const told = await response.json().catch(() => null);
  throw new Failure(told?.error?.message ?? `The server answered with ${response.status}.`, {
    status: response.status,
    code: told?.error?.code,
    wait: Number(response.headers.get("Retry-After")) || 0,
    isTransient: response.status === 429 || response.status === 503,
  });
}

/** What is worth another try, though it is told in an answer that had begun. */
const TRANSIENT = new Set(["shutting_down", "interrupted", "relay_unavailable"]);

/** The name of the model that is served, and whether its answers outlive their connection. */
export async function findModel(token) {
  const response = await request("v1/models", { headers: headersWith(token) });
  const { id, keeps_answers: isKept = false } = (await response.json()).data[0];
  return { name: id, isKept };
}

/** An id that nobody can guess: 128 random bits. (`randomUUID` needs HTTPS.) */
export function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Stop an answer that is kept, also while the page is being left. */
export function stopAnswer(id, token) {
  const options = { method: "DELETE", headers: headersWith(token), keepalive: true };
  return request(`v1/answers/${id}`, options).catch(() => {});
}

/**
 * Ask, and yield what comes: {text}, {reasoning}, {restart} or {usage}; first {isNew}, whether
 * the answer begins, and with each event that can be gone on after, {last}, its id.
 *
 * Without an id the connection is the answer: aborting the signal ends the run, and so does
 * leaving the loop. With one the answer is kept under it: asking again goes on after `last`, and
 * `onlyRead` begins nothing.
 */
export async function* answerTo(messages, { model, token, signal, id, last, onlyRead = false }) {
  const question = {
    method: id ? "PUT" : "POST",
    headers: { "Content-Type": "application/json", ...headersWith(token) },
    body: JSON.stringify({
      model,
      messages,
      stream: true,
      stream_options: { include_usage: true },
    }),
    signal,
  };
  if (onlyRead) Object.assign(question, { method: "GET", body: undefined });
  if (last) question.headers["Last-Event-ID"] = last;
  const response = await request(id ? `v1/answers/${id}` : "v1/chat/completions", question);
  yield { isNew: !id || response.status === 201 };
  for await (const { data, id: event } of eventsOf(response.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) {
      const { message, code } = chunk.error;
      throw new Failure(message, { code, isTransient: TRANSIENT.has(code) });
    }
    if (id && event) yield { last: event };
    if (chunk.usage) yield { usage: chunk.usage };
    const choice = chunk.choices?.[0];
    if (chunk.restart) yield { restart: chunk.restart };
    const { content, reasoning_content: reasoning } = choice?.delta ?? {};
    if (reasoning) yield { reasoning };
    if (content) yield { text: content };
  }
  throw lost(); // a whole answer ends with [DONE]
}

/** The data and the id of each server-sent event. */
async function* eventsOf(body) {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  let id = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const lines = (rest + decoder.decode(value, { stream: true })).split("\n");
      rest = lines.pop();
      for (const line of lines) {
        if (line.startsWith("id: ")) id = line.slice(4);
        else if (line.startsWith("data: ")) yield { data: line.slice(6), id };
      }
    }
  } catch (error) {
    if (error.name === "AbortError" || error instanceof Failure) throw error;
    throw lost();
  } finally {
    reader.cancel().catch(() => {});
  }
}
