"""Promise 9: what is held is ``maxsize`` items and the delivered text, and nothing of the past.

After any number of streams, however they ended, threads, tasks, file descriptors, generators
and objects of this package are back at their start.
"""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import threading
import time
import tracemalloc
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import pytest

from queuestream import QueueStreamHandler, stream
from queuestream._buffer import Buffer
from tests.support.consumers import PAIRINGS, pairings
from tests.support.models import ScriptedChatModel, tokens

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.consumers import Consumer, RunIn

LENGTH = 6
STREAMS = 60
"""On each pairing, in each run of the tests."""
TEN_MILLION = 10_000_000
SOAK = int(os.environ.get("QUEUESTREAM_SOAK", TEN_MILLION))
"""Tokens of the long soak, which takes a minute; CI takes fewer."""


class _ModelError(Exception):
    """The model's own."""


def descriptors() -> int:
    """How many file descriptors are open, where that can be seen."""
    folder = Path("/proc/self/fd")
    return len(list(folder.iterdir())) if folder.exists() else 0


class Inventory:
    """What there is in this process."""

    def __init__(self) -> None:
        gc.collect()
        self.threads = threading.active_count()
        self.descriptors = descriptors()
        held = gc.get_objects()
        self.generators = sum(type(one).__name__.endswith("generator") for one in held)
        self.ours = sum(str(type(one).__module__).startswith("queuestream") for one in held)
        self.tasks = sum(isinstance(one, asyncio.Task) and not one.done() for one in held)
        del held

    def exceeds(self, other: Inventory) -> dict[str, int]:
        """What there is more than there was."""
        now, before = vars(self), vars(other)
        return {name: now[name] - before[name] for name in now if now[name] > before[name]}


async def some_streams(run_in: RunIn, consumer: Consumer, count: int) -> None:
    """Half of the streams are stopped early and half fail, each at every position in turn.

    A tenth more end well.
    """
    failed = 0
    for number in range(count + count // 10):
        is_stopped = number % 2 == 1 and number < count
        fails = number % 2 == 0 and number < count
        position = number // 2 % (LENGTH + (1 if fails else 0))
        model = ScriptedChatModel(
            tokens=tokens(LENGTH),
            failure=_ModelError() if fails else None,
            fail_at=position,
        )
        answer = stream(model, "?", run_in=run_in, maxsize=2)
        try:
            async with consumer.entered(answer) as entered:
                if is_stopped:
                    await consumer.take(entered, position)
                else:
                    await consumer.collect(entered)
        except _ModelError:
            failed += 1
    assert failed == count // 2


def nothing_stays(run_in: RunIn, consumer: Consumer, count: int, looks: int = 20) -> None:
    """Look at what there is before and after."""

    async def scenario() -> None:
        await some_streams(run_in, consumer, 20)  # the shared loop, and caches
        await settled()
        before = Inventory()
        await some_streams(run_in, consumer, count)
        more: dict[str, int] = {}
        # A thread that is about to end has no hook after its last line: nothing but time tells.
        for _ in range(looks):
            await settled()
            if not (more := Inventory().exceeds(before)):
                break
            if consumer.is_async:
                await anyio.sleep(0.02)
            else:
                time.sleep(0.02)  # noqa: ASYNC251 - no loop runs here
        assert more == {}

    async def settled() -> None:
        def runs() -> list[str]:
            return [one.name for one in threading.enumerate() if "queuestream run" in one.name]

        await consumer.eventually(lambda: not [name for name in runs() if "worker" not in name])
        if consumer.is_async:
            for _ in range(20):
                await anyio.lowlevel.checkpoint()

    consumer.run(scenario)


@pytest.mark.parametrize("run_in, consumer", PAIRINGS)
def test_after_many_streams_nothing_of_them_is_left(run_in: RunIn, consumer: Consumer) -> None:
    """Hazard: a registry, a cycle or a thread keeps one thing of each stream."""
    nothing_stays(run_in, consumer, STREAMS)


@pytest.mark.stress
@pytest.mark.timeout(300)
@pytest.mark.parametrize("run_in, consumer", PAIRINGS)
def test_after_ten_thousand_streams_nothing_of_them_is_left(
    run_in: RunIn, consumer: Consumer
) -> None:
    """As above: ten thousand over all placements and consumers."""
    nothing_stays(run_in, consumer, -(-10_000 // len(PAIRINGS)))


class Leak:
    """What a planted bug keeps of each stream."""

    def __init__(self) -> None:
        self.kept: list[Any] = []
        self.threads_end = threading.Event()
        self.undone = ExitStack()

    def ours(self, answer: Any) -> None:
        self.kept.append(answer._tokens)

    def threads(self, _: Any) -> None:
        thread = threading.Thread(target=self.threads_end.wait, daemon=True)
        self.undone.callback(thread.join, 10)
        thread.start()

    def tasks(self, _: Any) -> None:
        self.kept.append(asyncio.ensure_future(asyncio.Event().wait()))  # ends with its loop

    def descriptors(self, _: Any) -> None:
        self.undone.callback(os.close, os.open(os.devnull, os.O_RDONLY))

    def generators(self, _: Any) -> None:
        self.kept.append(one for one in "never begun")

    def undo(self) -> None:
        """Free it all."""
        self.threads_end.set()
        self.undone.close()


@pytest.mark.parametrize("kind", ["threads", "tasks", "descriptors", "generators", "ours"])
def test_a_leak_is_noticed(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The canary: one thing of each stream is kept, and the inventory sees so many of them."""
    if kind == "descriptors" and not descriptors():
        pytest.skip("how many are open cannot be seen here")
    (pairing,) = (one for one in pairings("asyncio") if one.values[0] == "task")
    run_in, consumer = pairing.values
    leak = Leak()
    make = stream

    def leaky(*args: Any, **kwargs: Any) -> Any:
        answer = make(*args, **kwargs)
        getattr(leak, kind)(answer)
        return answer

    monkeypatch.setitem(globals(), "stream", leaky)
    try:
        with pytest.raises(AssertionError, match=rf"'{kind}': \d\d"):
            nothing_stays(run_in, consumer, 20, looks=2)
    finally:
        leak.undo()


# -- the soak ----------------------------------------------------------------------


def traced() -> int:
    """Bytes that Python's allocator has given out."""
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


def resident() -> int:
    """Bytes of the process: coarse, and costs nothing for each token."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * 4096


class Growth:
    """By how much memory grows while so many tokens are taken, looked at five times."""

    def __init__(self, count: int, measure: Callable[[], int]) -> None:
        self.count = count
        self.measure = measure
        self.received = 0
        self.most = 0
        self._first: int | None = None

    def note(self, text: Callable[[], int] = int) -> None:
        """Note that a token has come; `text` says what the delivered text takes by now."""
        self.received += 1
        if self.received % (self.count // 5) == 0:
            now = self.measure() - text()
            self._first = now if self._first is None else self._first
            self.most = max(self.most, now - self._first)


def soaked(count: int, measure: Callable[[], int]) -> int:
    """Take so many tokens of one handler; return by how many bytes memory grew at most.

    Called by hand, because LangChain keeps all chunks of a run until its end.
    """
    handler = QueueStreamHandler(64)
    growth = Growth(count, measure)

    def produce() -> None:
        for _ in range(count):
            handler.on_llm_new_token("token ")
        handler.end()

    producer = threading.Thread(target=produce)
    producer.start()
    for _ in handler:
        growth.note()
    producer.join()
    assert growth.received == count
    return growth.most


def soaked_stream(run_in: RunIn, count: int) -> int:
    """Take so many tokens of one stream, on asyncio; return by how many bytes memory grew at most.

    The delivered text is taken off: a place in a list for each token, as all are the same object.
    """
    growth = Growth(count, traced)

    def target(question: str, callbacks: Any) -> None:
        for _ in range(count):
            callbacks[-1].on_llm_new_token("token ")

    async def atarget(question: str, callbacks: Any) -> None:
        for _ in range(count):
            await callbacks[-1].on_llm_new_token("token ")

    async def scenario() -> None:
        made: Any = target if run_in == "thread" else atarget
        async with stream(made, "?", run_in=run_in, maxsize=64) as answer:
            async for _ in answer:
                growth.note(lambda: sum(sys.getsizeof(of) for _, of in answer._reader._segments))

    tracemalloc.start()
    try:
        asyncio.run(scenario())
    finally:
        tracemalloc.stop()
    assert growth.received == count
    return growth.most


def check_flat(grown: int, count: int, most: int) -> None:
    """Less than a pointer for each token, and than `most` in all."""
    print(f"{count:,} tokens: {grown:,} bytes")
    assert grown < min(6 * (count - count // 5), most), f"{grown:,} bytes in {count:,} tokens"


def test_memory_is_flat() -> None:
    """Hazard: something is kept for each token."""
    tracemalloc.start()
    try:
        grown = soaked(20_000, traced)
    finally:
        tracemalloc.stop()
    check_flat(grown, 20_000, 4_000_000)


EACH_RUN_IN: list[RunIn] = ["thread", "task", "background"]


@pytest.mark.parametrize("run_in", EACH_RUN_IN)
def test_memory_of_a_stream_is_flat_but_for_its_text(run_in: RunIn) -> None:
    """As above, of a whole stream that a task reads."""
    check_flat(soaked_stream(run_in, 20_000), 20_000, 4_000_000)


@pytest.mark.parametrize("run_in", [None, "task"])
def test_a_pointer_kept_for_each_token_is_noticed(
    run_in: RunIn | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The canary: the least that can be kept of a token, by a handler's queue and a stream's."""
    kept: list[None] = []
    get_now = Buffer.get_now

    def leaky(self: Any) -> Any:
        kept.append(None)
        return get_now(self)

    monkeypatch.setattr(Buffer, "get_now", leaky)
    with pytest.raises(AssertionError, match="bytes in 20,000 tokens"):
        if run_in is None:
            test_memory_is_flat()
        else:
            test_memory_of_a_stream_is_flat_but_for_its_text(run_in)


@pytest.mark.stress
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's statm")
def test_memory_is_flat_for_long() -> None:
    """As above, with more: ``tox -e stress -- -k flat_for_long -s`` tells the bytes."""
    check_flat(soaked(SOAK, resident), SOAK, 4_000_000)


@pytest.mark.stress
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("run_in", EACH_RUN_IN)
def test_memory_of_a_stream_is_flat_for_long_but_for_its_text(run_in: RunIn) -> None:
    """As above, with a twentieth of that for each place of the run."""
    check_flat(soaked_stream(run_in, SOAK // 20), SOAK // 20, 4_000_000)
