"""Promise 5: the loop is never blocked, and no shared thread pool is held."""

from __future__ import annotations

import asyncio
import socket
import statistics
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
from langchain_core.output_parsers import StrOutputParser

from queuestream import _background
from tests.support.models import ScriptedChatModel, SyncOnlyChatModel, tokens
from tests.support.streams import DEFAULT_CASES, is_blocked

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.streams import Case

ON_ASYNCIO = [
    case
    for case in DEFAULT_CASES  # janus waits for locks of its own on the loop
    if case.values[0].is_stream and case.values[0].consumer.name in ("asyncio", "uvloop", "eager")
]
ON_A_LOOP = [case for case in DEFAULT_CASES if case.values[0].consumer.is_async]
STREAMS = 200
"""That stall."""
LAG = 0.05
"""Seconds that the loop may be late."""


@contextmanager
def no_blocking_calls() -> Iterator[None]:
    """Fail where a blocking call is made in a thread in which an asyncio loop runs."""
    blockbuster = pytest.importorskip("blockbuster")
    with blockbuster.blockbuster_ctx(excluded_modules=["pytest"]):
        yield


@pytest.mark.parametrize("case", ON_ASYNCIO)
def test_no_blocking_call_on_the_loop(case: Case) -> None:
    """Hazard: the consumer's own loop waits for a thread or for another loop.

    Blockbuster looks at each call that could block.  It does not see ``with lock``, which
    we use for spans in which nobody waits.
    """
    model = ScriptedChatModel(tokens=tokens(200))
    chain = model | StrOutputParser()

    async def scenario() -> None:
        async with case.running(chain, maxsize=2) as running:
            assert await case.consumer.collect(running) == tokens(200)
        async with case.running(chain, maxsize=2) as running:  # and stopped in the middle
            assert await case.consumer.take(running, 10) == tokens(10)

    with no_blocking_calls():
        case.consumer.run(scenario)


@pytest.mark.parametrize(
    "case", [case for case in ON_ASYNCIO if case.values[0].producer == "background"]
)
def test_the_first_background_run_does_not_wait_for_its_loop(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hazard: whoever comes first waits until the shared loop runs."""
    model = ScriptedChatModel(tokens=tokens(5))
    monkeypatch.setattr(_background, "_current", None)

    async def scenario() -> None:
        async with case.running(model) as running:
            assert await case.consumer.collect(running) == tokens(5)

    with no_blocking_calls():
        case.consumer.run(scenario)
    assert _background._current is not None
    _background._current.loop.call_soon_threadsafe(_background._current.loop.stop)


async def lag() -> float:
    """How many seconds the loop is late, usually: the median of some looks."""
    late: list[float] = []
    for _ in range(9):
        due = anyio.current_time() + 0.002
        await anyio.sleep_until(due)
        late.append(anyio.current_time() - due)
    return statistics.median(late)


async def many_stalled(case: Case, stack: AsyncExitStack, model: Any) -> list[Any]:
    """Start many runs that nobody iterates; each waits for its consumer."""
    stalled = [
        await stack.enter_async_context(case.running(model, maxsize=1)) for _ in range(STREAMS)
    ]
    for running in stalled:
        await case.consumer.eventually(partial(is_blocked, running), 20)
    return stalled


@pytest.mark.parametrize(
    "case",
    [case for case in ON_A_LOOP if case.values[0].consumer.name != "uvloop"],
)
def test_many_stalled_streams_leave_the_loop_and_its_threads_free(case: Case) -> None:
    """Hazard: each stalled stream holds a thread of the pool, or the loop itself.

    A loop that is held up is not slow here: it never gets to the end.
    """
    model = ScriptedChatModel(tokens=tokens(10))

    async def scenario() -> None:
        async with AsyncExitStack() as stack:
            if case.consumer.name != "trio":
                pool = stack.enter_context(ThreadPoolExecutor(1))
                asyncio.get_running_loop().set_default_executor(pool)
            stalled = await many_stalled(case, stack, model)
            for _ in range(100):
                await anyio.lowlevel.checkpoint()
            if case.consumer.name != "trio":
                assert await asyncio.to_thread(threading.get_ident) != threading.get_ident()
            assert await anyio.to_thread.run_sync(lambda: 1) == 1
            assert await anyio.getaddrinfo("127.0.0.1", 80, type=socket.SOCK_STREAM)
            assert await lag() < LAG
            async with case.running(model, maxsize=1) as running:  # others' streams go on
                assert await case.consumer.collect(running) == tokens(10)
            for running in stalled[:3]:  # and so do these
                assert await case.consumer.collect(running) == tokens(10)

    case.consumer.run(scenario)


@pytest.mark.parametrize(
    "case",
    [case for case in DEFAULT_CASES if case.values[0].producer in ("thread", "background")],
)
def test_a_model_without_async_side_holds_no_shared_thread(case: Case) -> None:
    """Hazard: under ``ainvoke`` LangChain moves its steps into the loop's default executor.

    The background loop's is ours, with a thread for each call.
    """
    model = SyncOnlyChatModel(tokens=tokens(4))

    async def scenario() -> None:
        async with AsyncExitStack() as stack:
            if case.consumer.name in ("asyncio", "uvloop", "eager"):
                pool = stack.enter_context(ThreadPoolExecutor(1))
                asyncio.get_running_loop().set_default_executor(pool)
            stalled = [
                await stack.enter_async_context(case.running(model, maxsize=1)) for _ in range(50)
            ]
            for running in stalled:
                await case.consumer.eventually(partial(is_blocked, running), 20)
            async with case.running(model, maxsize=1) as running:
                assert await case.consumer.collect(running) == tokens(4)

    case.consumer.run(scenario)


@pytest.mark.parametrize(
    "case", [case for case in DEFAULT_CASES if case.values[0].producer == "thread"]
)
def test_a_thread_run_has_a_daemon_thread_of_its_own(case: Case) -> None:
    """Hazard: a thread of somebody's pool waits for our consumer."""
    model = ScriptedChatModel(tokens=tokens(4))

    async def scenario() -> None:
        async with case.running(model, maxsize=1) as running:
            await case.consumer.eventually(lambda: is_blocked(running))
            names = model.record.threads
            threads = [thread for thread in threading.enumerate() if thread.name in names]
            assert [thread.daemon for thread in threads] == [True]

    case.consumer.run(scenario)


@pytest.mark.skipif(sys.platform == "win32", reason="looks at the loop's selector")
@pytest.mark.parametrize(
    "case",
    [
        case
        for case in DEFAULT_CASES
        if case.values[0].producer == "task" and case.values[0].consumer.name == "asyncio"
    ],
)
def test_the_documented_exception(case: Case) -> None:
    """Sync steps of a ``task`` run wait in the caller's own default executor.

    Documented in docs/limitations.md.  If this fails, LangChain has changed: say so there.
    """
    model = SyncOnlyChatModel(tokens=tokens(4))

    async def scenario() -> None:
        with ThreadPoolExecutor(1, thread_name_prefix="the caller's") as pool:
            asyncio.get_running_loop().set_default_executor(pool)
            async with case.running(model, maxsize=1) as running:
                assert await case.consumer.collect(running) == tokens(4)

    case.consumer.run(scenario)
    assert all(name.startswith("the caller's") for name in model.record.threads)
