"""What many open streams take that wait for their first token, and what opening one costs.

Memory: a child process opens streams with ``run_in="task"``, each with a consumer that waits
for its first token, and looks at its resident memory on the way to ten thousand.  Another
does the same with bare tasks: ``ainvoke`` with an idle handler in one, and one more that
waits for a future, where a stream's consumer waits.  The difference is the package's.  A
process of its own each time, because memory that was used once is not given back.

Opening and closing: so many runs are started, wait for their first token all together, and
are stopped and waited for one after the other.  The bare task puts what comes into an
``asyncio.Queue``.  Each number is the wall time of both, divided by the runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import resource
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.harness import Case, Series, Sizes, Stopwatch, alternate, measure
from benchmarks.sources import AsyncIdleHandler, SilentModel, TapHandler
from queuestream import stream

if TYPE_CHECKING:
    from queuestream import TokenStream

__all__ = ["run"]

OURS = "queuestream, run_in=task"
BARE = "bare tasks"
MAXSIZE = 256


def run(sizes: Sizes, rounds: int) -> list[Series]:
    """Measure the memory, then the time."""
    return memory(sizes.open_streams, rounds) + measure(
        cases(sizes.opened_and_closed),
        rounds=rounds,
        units=sizes.opened_and_closed,
        unit="us to open and close",
    )


# -- memory ----------------------------------------------------------------------------------------


def memory(steps: tuple[int, ...], rounds: int) -> list[Series]:
    """Return the KiB each, with ours and without.

    They differ by less than one in a hundred from round to round, so that three are enough.
    """
    rounds = min(rounds, 3)
    kinds = (OURS, BARE)
    taken = alternate({kind: partial(_in_child, kind, steps) for kind in kinds}, rounds)
    found: list[Series] = []
    for kind in kinds:
        series = Series(f"memory: {kind}", "KiB each", [curve[-1] for curve in taken[kind]])
        middle = sorted(taken[kind], key=lambda curve: curve[-1])[rounds // 2]
        series.curve = [
            (float(step), kib * step / 1024) for step, kib in zip(steps, middle, strict=True)
        ]
        found.append(series)
    return found


def _in_child(kind: str, steps: tuple[int, ...]) -> list[float]:
    """Return the KiB each at each number of streams."""
    command = [sys.executable, "-m", "benchmarks.memory", kind, *map(str, steps)]
    # A path of our own, or the child would not find this package from elsewhere.
    root = str(Path(__file__).parents[1])
    output = subprocess.check_output(command, cwd=root, encoding="utf-8")
    return [float(kib) for kib in json.loads(output)]


def _resident() -> float:
    """KiB of this process that are in memory; where the system does not tell, the most so far."""
    with contextlib.suppress(OSError):
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / 1024 if sys.platform == "darwin" else most


async def _open_many(kind: str, steps: list[int]) -> list[float]:
    reached: list[object] = []
    model = SilentModel.of(["never"], reached=reached)
    begin = _start_stream if kind == OURS else _start_bare
    warm = begin(model)
    while not reached:
        await asyncio.sleep(0)
    gc.collect()
    base = _resident()
    open_now: list[object] = [warm]
    kib: list[float] = []
    for step in steps:
        while len(open_now) <= step:
            open_now.append(begin(model))
            if len(open_now) % 100 == 0:
                await asyncio.sleep(0)
        while len(reached) < len(open_now):
            await asyncio.sleep(0)
        gc.collect()
        kib.append((_resident() - base) / step)
    return kib


def _start_stream(model: Any) -> object:
    tokens: TokenStream[str] = stream(model, "Go", run_in="task")

    async def consume() -> None:
        async with tokens:
            async for _ in tokens:
                pass

    return asyncio.create_task(consume())


def _start_bare(model: Any) -> object:
    async def wait() -> None:
        await asyncio.get_running_loop().create_future()

    run = asyncio.create_task(model.ainvoke("Go", {"callbacks": [AsyncIdleHandler()]}))
    return run, asyncio.create_task(wait())


# -- time ------------------------------------------------------------------------------------------


def cases(count: int) -> list[Case]:
    """Return both cases, for so many runs."""
    return [
        Case(f"open and close: {OURS}", partial(_streams, count), count, "asyncio"),
        Case(
            "open and close: bare task with asyncio.Queue",
            partial(_bare_tasks, count),
            count,
            "asyncio",
        ),
    ]


async def _streams(count: int, watch: Stopwatch) -> int:
    reached: list[object] = []
    model = SilentModel.of(["never"], reached=reached)
    with watch:
        streams = [stream(model, "Go", run_in="task", maxsize=MAXSIZE) for _ in range(count)]
        for tokens in streams:
            await tokens.__aenter__()
        while len(reached) < count:
            await asyncio.sleep(0)
        for tokens in streams:
            await tokens.aclose()
    return len(reached)


class _AsyncPutter(TapHandler):
    """Puts each token into a queue, and waits where it is full."""

    def __init__(self, tokens: asyncio.Queue[str]) -> None:
        self._tokens = tokens

    async def on_llm_new_token(self, token: Any, **kwargs: Any) -> None:
        if token:
            await self._tokens.put(token)


async def _bare_tasks(count: int, watch: Stopwatch) -> int:
    reached: list[object] = []
    model = SilentModel.of(["never"], reached=reached)
    with watch:
        runs: list[asyncio.Task[Any]] = []
        for _ in range(count):
            tokens: asyncio.Queue[str] = asyncio.Queue(MAXSIZE)
            config = {"callbacks": [_AsyncPutter(tokens)]}
            runs.append(asyncio.create_task(model.ainvoke("Go", config)))
        while len(reached) < count:
            await asyncio.sleep(0)
        for task in runs:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
    return len(reached)


if __name__ == "__main__":
    print(
        json.dumps(asyncio.run(_open_many(sys.argv[1], [int(step) for step in sys.argv[2:]]))),
        flush=True,
    )
    os._exit(0)  # to take down ten thousand tasks is none of our business
