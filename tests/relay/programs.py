"""What other processes do in these tests: ``python -m tests.relay.programs WHAT URL PREFIX ...``.

A line on standard output tells that something has happened, one on standard input lets it go on.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from queuestream import stream
from queuestream.errors import ProducerReplacedError
from queuestream.relay import RedisRelay
from tests.support.models import ScriptedChatModel, tokens

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from langchain_core.outputs import ChatGenerationChunk

LEASE = 0.6


def relay_of(url: str, prefix: str, **options: Any) -> RedisRelay:
    return RedisRelay.from_url(url, prefix=prefix, lease=LEASE, **options)


class DyingModel(ScriptedChatModel):
    """Dies between two writes: when Redis has so many of its tokens, before it makes the next."""

    url: str
    prefix: str
    name_of_run: str
    position: int

    def _stream(self, *arguments: Any, **options: Any) -> Iterator[ChatGenerationChunk]:
        for number, chunk in enumerate(super()._stream(*arguments, **options)):
            if number == self.position:
                reader = relay_of(self.url, self.prefix).subscribe_sync(self.name_of_run)
                for _ in range(number):
                    next(reader)
                os.kill(os.getpid(), signal.SIGKILL)
            yield chunk


def fork(work: Callable[[], object]) -> int:
    """Do something in a child, which has no thread of its parent's."""
    pid = os.fork()
    if pid:
        return pid
    try:
        work()
    finally:
        os._exit(0)


def killed(url: str, prefix: str, count: str) -> None:
    """One writer for each position; each is killed there.  Then all of them again, to the end."""
    number = int(count)

    def publish(position: int) -> None:
        name = f"k{position}"
        model = DyingModel(
            tokens=tokens(number), url=url, prefix=prefix, name_of_run=name, position=position
        )
        relay_of(url, prefix).publish_sync(name, stream(model, "?"))

    pids = [fork(partial(publish, position)) for position in range(number)]
    print(*[os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids], flush=True)
    sys.stdin.readline()

    def publish_again(position: int) -> None:
        model = ScriptedChatModel(tokens=tokens(number))
        relay_of(url, prefix).publish_sync(f"k{position}", stream(model, "?"))

    pids = [fork(partial(publish_again, position)) for position in range(number)]
    print(*[os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids], flush=True)


def race(url: str, prefix: str, rounds: str) -> None:
    """Publish under one id after another, as another process does in the same moment."""
    relay = relay_of(url, prefix)
    relay.status_sync("warm")
    who = str(os.getpid())
    print("ready", flush=True)
    for number in range(int(rounds)):
        sys.stdin.readline()
        model = ScriptedChatModel(tokens=[f"{who} "] * 30)
        try:
            relay.publish_sync(f"r{number}", stream(model, "?", maxsize=1))
        except ProducerReplacedError:
            model.record.wait_until_finalized(calls=0)  # replaced before it has asked, perhaps
            print("replaced", model.record.open, flush=True)
        else:
            print("finished", model.record.open, flush=True)


def stop(url: str, prefix: str, name: str, count: str) -> None:
    """Read so many events, then stop the run; tell when."""
    relay = relay_of(url, prefix)
    events = relay.subscribe_sync(name)
    for _ in range(int(count)):
        next(events)
    began = time.monotonic()
    relay.stop_sync(name)
    print(began, flush=True)


def read(url: str, prefix: str, name: str, *after: str) -> None:
    """Print each event's id and text."""
    print("ready", flush=True)
    for event in relay_of(url, prefix).subscribe_sync(name, *after):
        print(event.id, event.text, flush=True)
    print("end", flush=True)


def serve(url: str, prefix: str) -> None:
    """Serve streams as server-sent events, for a browser that reconnects."""
    import uvicorn  # noqa: PLC0415 - not for the other programs
    from starlette.applications import Starlette  # noqa: PLC0415
    from starlette.requests import Request  # noqa: PLC0415, TC002
    from starlette.routing import Route  # noqa: PLC0415

    from queuestream.web import sse_response  # noqa: PLC0415

    relay = relay_of(url, prefix)

    async def events(request: Request) -> Any:
        after = request.headers.get("last-event-id")
        name = request.path_params["name"]
        wire = request.query_params.get("format", "text")
        return sse_response(relay.subscribe(name, after), wire)

    app = Starlette(routes=[Route("/{name}", events)])
    config = uvicorn.Config(app, port=0, log_level="critical", lifespan="off")
    server = uvicorn.Server(config)

    def tell() -> None:
        while not server.started:
            time.sleep(0.005)  # uvicorn has no hook that tells of its sockets
        print(server.servers[0].sockets[0].getsockname()[1], flush=True)

    threading.Thread(target=tell, daemon=True).start()
    server.run()


if __name__ == "__main__":
    what, *arguments = sys.argv[1:]
    globals()[what](*arguments)
