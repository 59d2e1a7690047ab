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

/** The name of the model that is served. */
export async function findModel(token) {
  const response = await request("v1/models", { headers: headersWith(token) });
  return (await response.json()).data[0].id;
}

/**
 * Ask, and yield what comes: {text}, {reasoning}, {restart} or {usage}.
 *
 * Aborting the signal ends the connection, and with it the run; so does leaving the loop.
 */
export async function* answerTo(messages, { model, token, signal }) {
  const response = await request("v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json", ...headersWith(token) },
    body: JSON.stringify({
      model,
      messages,
      stream: true,
      stream_options: { include_usage: true },
    }),
    signal,
  });
  for await (const data of eventsOf(response.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) {
      const { message, code } = chunk.error;
      throw new Failure(message, { code, isTransient: code === "shutting_down" });
    }
    if (chunk.usage) yield { usage: chunk.usage };
    const choice = chunk.choices?.[0];
    if (chunk.restart) yield { restart: chunk.restart };
    const { content, reasoning_content: reasoning } = choice?.delta ?? {};
    if (reasoning) yield { reasoning };
    if (content) yield { text: content };
  }
  throw lost(); // a whole answer ends with [DONE]
}

/** The data of each server-sent event. */
async function* eventsOf(body) {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const lines = (rest + decoder.decode(value, { stream: true })).split("\n");
      rest = lines.pop();
      for (const line of lines) {
        if (line.startsWith("data: ")) yield line.slice(6);
      }
    }
  } catch (error) {
    if (error.name === "AbortError" || error instanceof Failure) throw error;
    throw lost();
  } finally {
    reader.cancel().catch(() => {});
  }
}
