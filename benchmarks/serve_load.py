"""``python -m benchmarks.serve_load``: a thousand readers of one server, and nothing lost.

It starts ``queuestream serve`` with the demo model in a process of its own, lets every client ask
at the same moment, and reads every answer to its end.  A client is a plain socket: what is timed
is the server.  The text of each answer is compared with what the model says, and the events are
counted.  It prints errors, the time to the first token, how long answers took, and the server's
memory, and exits with 1 if anything was lost.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from queuestream.demo import PASSAGE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["Figures", "main", "measure"]

PATIENCE = 300.0  # seconds after which an answer counts as lost
_BODY = b'{"messages":[{"role":"user","content":"What is a stream?"}],"stream":true}'
_REQUEST = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(_BODY)
) + _BODY


@dataclass(frozen=True)
class Figures:
    """What came out.  Times are seconds, memory is MiB of the server process.

    Attributes:
        clients: How many readers there were.
        errors: How many got no whole answer: no connection, another status, an error in the
            middle, no end in time.
        lost: How many got an answer with a text that is not the model's.
        tokens: Tokens that all readers got together.
        tokens_per_second: Those, by the time from the first request to the last end.
        first_p50: Time to the first token, half of the readers.
        first_p99: The same, all but one in a hundred.
        answer_p50: Time to the end of the answer, half of the readers.
        answer_p99: The same, all but one in a hundred.
        memory_idle: Before the readers came.
        memory_peak: The most there was.
        cpu: CPU seconds of the server.
    """

    clients: int
    errors: int
    lost: int
    tokens: int
    tokens_per_second: float
    first_p50: float
    first_p99: float
    answer_p50: float
    answer_p99: float
    memory_idle: float
    memory_peak: float
    cpu: float


@dataclass
class _Reading:
    first: float = 0.0
    whole: float = 0.0
    tokens: int = 0
    error: str | None = None
    is_lost: bool = False


async def _read_answer(port: int, start: asyncio.Event) -> _Reading:
    await start.wait()
    reading, began = _Reading(), time.perf_counter()
    try:
        await asyncio.wait_for(_read(port, reading, began), PATIENCE)
    except (OSError, ValueError, asyncio.TimeoutError, asyncio.IncompleteReadError) as error:
        reading.error = f"{type(error).__name__}: {error}"
    return reading


async def _read(port: int, reading: _Reading, began: float) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    text: list[str] = []
    is_whole = False
    try:
        writer.write(_REQUEST)
        status = await reader.readline()
        if b" 200 " not in status:
            raise ValueError(status.decode().strip())
        async for line in reader:
            if line.startswith(b"data: [DONE]"):
                is_whole = True
            elif line.startswith(b"data: "):
                chunk = json.loads(line[6:])
                if "error" in chunk:
                    raise ValueError(chunk["error"]["message"])
                for choice in chunk["choices"]:
                    if content := choice["delta"].get("content"):
                        reading.first = reading.first or time.perf_counter() - began
                        text.append(content)
    finally:
        writer.close()
    reading.whole = time.perf_counter() - began
    reading.tokens = len(text)
    reading.is_lost = not is_whole or "".join(text) != PASSAGE


@contextlib.contextmanager
def _server() -> Iterator[tuple[int, int]]:
    """A server in a process of its own: its port and process id."""
    process = subprocess.Popen(
        [sys.executable, "-m", "queuestream", "serve", "--port", "0"],
        cwd=Path(__file__).parents[1],
        stdout=subprocess.PIPE,
        encoding="utf-8",
    )
    assert process.stdout is not None
    try:
        line = next(line for line in process.stdout if "chat page" in line)
        yield int(line.rstrip().rstrip("/").rpartition(":")[2]), process.pid
    finally:
        process.terminate()
        process.wait(30)
        process.stdout.close()


def _memory(pid: int, what: str) -> float:
    """MiB of a process: ``VmRSS`` now, ``VmHWM`` at most; 0 where there is no ``/proc``."""
    try:
        told = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    except OSError:
        return 0.0
    found = [int(line.split()[1]) for line in told.splitlines() if line.startswith(f"{what}:")]
    return found[0] / 1024 if found else 0.0


def _cpu(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _quantile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0.0


async def _all(port: int, clients: int) -> tuple[list[_Reading], float]:
    start = asyncio.Event()
    tasks = [asyncio.create_task(_read_answer(port, start)) for _ in range(clients)]
    await asyncio.sleep(0)
    began = time.perf_counter()
    start.set()
    return await asyncio.gather(*tasks), time.perf_counter() - began


def measure(clients: int) -> Figures:
    """Serve, ask, and read it all."""
    with _server() as (port, pid):
        warm, _ = asyncio.run(_all(port, 1))
        assert warm[0].error is None, warm[0].error
        idle, cpu = _memory(pid, "VmRSS"), _cpu(pid)
        readings, took = asyncio.run(_all(port, clients))
        peak, cpu = _memory(pid, "VmHWM"), _cpu(pid) - cpu
    for error in sorted({reading.error for reading in readings if reading.error}):
        print(error, file=sys.stderr)
    good = [reading for reading in readings if reading.error is None]
    tokens = sum(reading.tokens for reading in good)
    return Figures(
        clients=clients,
        errors=len(readings) - len(good),
        lost=sum(reading.is_lost for reading in good),
        tokens=tokens,
        tokens_per_second=tokens / took,
        first_p50=_quantile([reading.first for reading in good], 0.5),
        first_p99=_quantile([reading.first for reading in good], 0.99),
        answer_p50=_quantile([reading.whole for reading in good], 0.5),
        answer_p99=_quantile([reading.whole for reading in good], 0.99),
        memory_idle=idle,
        memory_peak=peak,
        cpu=cpu,
    )


def _allow_many_files(clients: int) -> None:
    import resource  # noqa: PLC0415 - POSIX

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = clients + 100
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard), hard))


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serve_load", description=__doc__)
    parser.add_argument("--clients", type=int, default=1000, help="default: %(default)s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    options = parser.parse_args(arguments)
    if options.clients < 1:
        parser.error("--clients must be 1 or more")
    _allow_many_files(options.clients)
    figures = measure(options.clients)
    for name, value in asdict(figures).items():
        shown = f"{value:,}" if isinstance(value, int) else f"{value:,.2f}"
        print(f"{name.replace('_', ' '):20} {shown:>12}")
    if options.json:
        options.json.write_text(json.dumps(asdict(figures), indent=2) + "\n", encoding="utf-8")
    return 1 if figures.errors or figures.lost else 0


if __name__ == "__main__":
    sys.exit(main())
