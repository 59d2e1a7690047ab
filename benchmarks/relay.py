"""Streams over Redis: one server on loopback, writer and readers in one process.

*Write*: wall time of `publish_sync` for a burst of tokens, divided by the tokens.  ``maxsize`` is
the number of tokens that may be under way to Redis, and so the greatest batch.  *Read*: the same
for one reader of what is there already.

*Latency*: a token every 20 ms; the time from the moment at which the model hands it over until
a reader has it, through Redis and in process; the median, and the 99th percentile, of a round.

*Readers*: a token is written, and so many readers wait for it on one asyncio loop: wall time
until all have it, divided by the readers.  All of one stream, or each of one of its own.

*Memory*: what Redis says that a stream of a thousand tokens of four characters takes
(``MEMORY USAGE``), divided by the tokens; and what a stream of one token takes.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import statistics
import subprocess
import tempfile
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from benchmarks.harness import (
    Case,
    Series,
    Sizes,
    Stopwatch,
    absence_of,
    alternate,
    import_quietly,
    measure,
)
from benchmarks.sources import ReadyModel, texts_of
from queuestream import stream

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["run"]

BATCHES = (1, 16, 256, 1024)
PACE = 0.020
_IN_PROCESS = "in process"
_THROUGH = "through Redis"


def run(sizes: Sizes, rounds: int) -> list[Series]:
    """Measure a relay with a server of its own."""
    program = shutil.which("redis-server") or shutil.which("valkey-server")
    missing = absence_of("redis") or ("" if program else "not installed: redis-server")
    if program is None or missing:
        return [Series("write, maxsize=256", "us a token", missing=missing)]
    with _server(program) as port:
        relay: Any = import_quietly("queuestream.relay").RedisRelay.from_url(
            f"redis://127.0.0.1:{port}", maxlen=None
        )
        with relay:
            return [
                *_throughput(relay, sizes.http_tokens, rounds),
                *_latencies(relay, sizes.latency_tokens, rounds),
                *_many_readers(relay, sizes.opened_and_closed, rounds),
                *_memory(relay, port),
            ]


@contextlib.contextmanager
def _server(program: str) -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", folder]
        server = subprocess.Popen([program, *options], stdout=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + 20
            while _ask(port, "PING") != "+PONG":
                if time.monotonic() > deadline:
                    raise RuntimeError("the server does not answer")
                time.sleep(0.05)
            yield port
        finally:
            server.terminate()
            server.wait()


def _ask(port: int, *words: str) -> str:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            connection.sendall((" ".join(words) + "\r\n").encode())
            return connection.makefile("rb").readline().decode().rstrip()
    except OSError:
        return ""


_names = iter(f"s{number}" for number in range(1 << 40))


# -- tokens a second -------------------------------------------------------------------------


def _throughput(relay: Any, count: int, rounds: int) -> list[Series]:
    texts = texts_of(count)
    whole = "".join(texts)

    def write(maxsize: int, watch: Stopwatch) -> str:
        source = stream(ReadyModel.of(texts), "?", maxsize=maxsize)
        with watch:
            result = relay.publish_sync(next(_names), source)
        return str(result.content)

    there = next(_names)
    relay.publish_sync(there, stream(ReadyModel.of(texts), "?"))

    def read(watch: Stopwatch) -> list[str]:
        with watch:
            return [event.text for event in relay.subscribe_sync(there)]

    cases = [Case(f"write, maxsize={size}", partial(write, size), whole) for size in BATCHES]
    cases.append(Case("read", read, texts))
    return measure(cases, rounds=rounds, units=count, unit="us a token")


# -- latency ---------------------------------------------------------------------------------


def _latencies(relay: Any, count: int, rounds: int) -> list[Series]:
    cases = {
        _IN_PROCESS: partial(_paced, None, count),
        _THROUGH: partial(_paced, relay, count),
    }
    found = alternate(cases, rounds)
    series: list[Series] = []
    for name, rounds_of_one in found.items():
        for part, place in (("p50", 50), ("p99", 99)):
            values = [_percentile(latencies, place) for latencies in rounds_of_one]
            series.append(Series(f"{part} of latency, {name}", "us", values))
    return series


def _percentile(values: list[float], place: int) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[place - 1]


class _NotingModel(ReadyModel):
    """Yields a chunk when it is due, and notes when it was handed over."""

    handed: list[float] = []  # noqa: RUF012 - pydantic copies it

    def _stream(self, *arguments: Any, **options: Any) -> Iterator[Any]:
        due = time.perf_counter()
        for chunk in self.chunks:
            due += PACE
            time.sleep(max(0.0, due - time.perf_counter()))
            self.handed.append(time.perf_counter())
            yield chunk


def _paced(relay: Any, count: int) -> list[float]:
    texts = texts_of(count)
    model = _NotingModel.of(texts, handed=[])
    source = stream(model, "?", run_in="thread")
    came: list[float] = []

    async def take() -> None:
        if relay is None:
            async with source:
                async for _ in source:
                    came.append(time.perf_counter())
            return
        name = next(_names)
        writing = asyncio.create_task(asyncio.to_thread(relay.publish_sync, name, source))
        async for _ in relay.subscribe(name):
            came.append(time.perf_counter())
        await writing

    asyncio.run(take())
    return [(end - begin) * 1e6 for begin, end in zip(model.handed, came, strict=True)]


# -- readers ---------------------------------------------------------------------------------


def _many_readers(relay: Any, readers: int, rounds: int) -> list[Series]:
    cases = {
        f"{readers} readers of one stream": partial(_wait_all, relay, readers, 1),
        f"{readers} readers of {readers} streams": partial(_wait_all, relay, readers, readers),
    }
    found = alternate(cases, rounds)
    return [Series(name, "us a token and reader", values) for name, values in found.items()]


def _wait_all(relay: Any, readers: int, streams: int) -> float:
    names = [next(_names) for _ in range(streams)]
    go = threading.Event()

    class Held(ReadyModel):
        def _stream(self, *arguments: Any, **options: Any) -> Iterator[Any]:
            yield self.chunks[0]
            go.wait()
            yield self.chunks[1]

    async def take() -> float:
        sources = [stream(Held.of(["a", "b"]), "?", run_in="thread") for _ in names]
        writers = [
            asyncio.create_task(relay.publish(name, source))
            for name, source in zip(names, sources, strict=True)
        ]
        subscriptions = [relay.subscribe(names[number % streams]) for number in range(readers)]
        await asyncio.gather(*[anext(each) for each in subscriptions])
        waiting = [asyncio.ensure_future(anext(each)) for each in subscriptions]
        await asyncio.sleep(0)
        began = time.perf_counter()
        go.set()
        await asyncio.gather(*waiting)
        lasted = time.perf_counter() - began
        await asyncio.gather(*writers)
        return lasted / readers * 1e6

    return asyncio.run(take())


# -- memory ----------------------------------------------------------------------------------


def _memory(relay: Any, port: int) -> list[Series]:
    def usage(count: int) -> int:
        name = next(_names)
        relay.publish_sync(name, stream(ReadyModel.of([f"t{n:03}" for n in range(count)]), "?"))
        key = relay._keys(name).entries  # noqa: SLF001 - where to look
        return int(_ask(port, "MEMORY", "USAGE", key, "SAMPLES", "0")[1:])

    one = usage(1)
    return [
        Series("memory of a stream of one token", "bytes", [one]),
        Series("memory of each token more", "bytes", [(usage(1001) - one) / 1000]),
    ]
