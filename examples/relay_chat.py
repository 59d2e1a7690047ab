"""A Celery worker runs the chain, a FastAPI process streams it to browsers; Redis is between.

pip install "queuestream[redis,web]" fastapi uvicorn "celery[redis]", start a Redis server, then:
python examples/relay_chat.py

A page that is reloaded in the middle of an answer goes on where it was, and so it does when the
web process is restarted.  REDIS_URL and PORT say where; Ctrl-C ends both processes.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Annotated

from celery import Celery
from fastapi import FastAPI, Header, Response
from fastapi.responses import HTMLResponse

from queuestream import stream
from queuestream.demo import DemoChatModel
from queuestream.errors import StreamClosedError
from queuestream.relay import RedisRelay
from queuestream.web import sse_response

URL = os.environ.get("REDIS_URL", "redis://localhost:6379")
PORT = os.environ.get("PORT", "8000")
relay = RedisRelay.from_url(URL)

# -- the worker ----------------------------------------------------------------------------

worker = Celery("relay_chat", broker=URL)
worker.conf.update(
    task_acks_late=True,  # a worker that dies: another one begins anew, and readers see a restart
    task_ignore_result=True,
    worker_hijack_root_logger=False,
)


@worker.task(name="answer")
def answer(answer_id: str, question: str) -> None:
    """Run the model; its tokens go to whoever subscribes."""
    try:
        relay.publish_sync(answer_id, stream(DemoChatModel(pace=0.02), question))
    except StreamClosedError:
        pass  # somebody has stopped it


# -- the web process -----------------------------------------------------------------------

web = FastAPI()


@web.post("/answers")
def ask(question: str) -> dict[str, str]:
    """Have a question answered; tell under which id."""
    answer_id = uuid.uuid4().hex
    worker.send_task("answer", (answer_id, question))
    return {"id": answer_id}


@web.get("/answers/{answer_id}")
async def read(answer_id: str, last_event_id: Annotated[str | None, Header()] = None) -> Response:
    """Stream an answer, from the start or from where the browser was."""
    return sse_response(relay.subscribe(answer_id, after=last_event_id), format="text")


@web.delete("/answers/{answer_id}")
async def stop(answer_id: str) -> dict[str, bool]:
    """Stop the model, in whatever process it is."""
    return {"stopped": await relay.stop(answer_id)}


@web.get("/")
async def page() -> HTMLResponse:
    """Show an answer."""
    return HTMLResponse(PAGE)


PAGE = """<!doctype html><title>relay</title><pre id=out></pre><script>
async function begin() {
  if (!location.hash) {
    const made = await fetch("/answers?question=Hello", {method: "POST"})
    location.hash = (await made.json()).id
  }
  const source = new EventSource("/answers/" + location.hash.slice(1))
  source.onmessage = event => { out.textContent += JSON.parse(event.data) }
  source.addEventListener("restart", () => { out.textContent = "" })
  source.addEventListener("end", () => source.close())
}
begin()
</script>"""


# -- one script that starts both -------------------------------------------------------------


def main() -> None:
    """Start both processes; end both when one ends, or with Ctrl-C."""
    commands = [
        ["celery", "-A", "relay_chat:worker", "worker", "--concurrency=2", "--loglevel=warning"],
        ["uvicorn", "relay_chat:web", "--port", PORT, "--log-level=warning"],
    ]
    here = Path(__file__).parent
    processes = [
        subprocess.Popen([sys.executable, "-m", *command], cwd=here)  # noqa: S603 - those above
        for command in commands
    ]
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    print(f"http://127.0.0.1:{PORT}", flush=True)
    try:
        processes[1].wait()
    except KeyboardInterrupt:
        pass
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()


if __name__ == "__main__":
    main()
