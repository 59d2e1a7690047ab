"""Promise 5: the loop is never blocked, and no shared thread pool is held."""

from __future__ import annotations

import asyncio
import math
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
from langchain_core.output_parsers import StrOutputParser
from langchain_core.runnables import RunnableConfig, RunnableLambda

from queuestream import _background, producers
from queuestream._token_queue import TokenQueue
from tests.support.models import ScriptedChatModel, SyncOnlyChatModel, tokens
from tests.support.shared_loop import a_background_loop_of_its_own
from tests.support.streams import DEFAULT_CASES, is_blocked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.streams import Case

ON_ASYNCIO = [
    case
    for case in DEFAULT_CASES  # janus waits for locks of its own on the loop
    if case.values[0].is_stream and case.values[0].consumer.name in ("asyncio", "uvloop", "eager")
]
ON_A_LOOP = [case for case in DEFAULT_CASES if case.values[0].consumer.is_async]
AS_A_TASK, IN_BACKGROUND = (
    next(case.values[0] for case in DEFAULT_CASES if case.id == name)
    for name in ("task-asyncio", "background-asyncio")
)
STREAMS = 200
"""That stall."""
LAG = 0.05
"""Seconds that the loop may be late."""
QUICK = 20
"""Tokens of the stream that must be as quick as ever."""
WINDOWS = 10
"""In which the loop is looked at, at most; one in which it is always in time is enough."""
SLOWER = 3
"""How many times as long as alone a stream may take.  It takes a few milliseconds, of which
the kernel adds some or none; 200 streams that each cost it a little make it ten times."""


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
    streams_without_a_blocking_call(case)


def streams_without_a_blocking_call(case: Case) -> None:
    chain = ScriptedChatModel(tokens=tokens(200)) | StrOutputParser()

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
    with a_background_loop_of_its_own(monkeypatch):
        streams_without_a_blocking_call(case)
        assert _background._current is not None


def whole_model(count: int) -> Any:
    """Return a model that streams both ways."""
    return ScriptedChatModel(tokens=tokens(count))


def plain_model(count: int) -> Any:
    """Return a model that makes each token in a thread, and delivers it on the loop."""
    return SyncOnlyChatModel(tokens=tokens(count))


def plain_step(count: int) -> Any:
    """Return a step that is in a thread while its model's tokens are delivered."""
    model = ScriptedChatModel(tokens=tokens(count))

    def answer(question: str, config: RunnableConfig) -> Any:
        return model.invoke(question, config)

    return RunnableLambda(answer)


@dataclass
class Window:
    """What one look at the loop has shown, while a stream was iterated on it.

    Attributes:
        lag: How many seconds the loop was late at most.
        took: How many seconds the stream took, from its start to its end.
    """

    lag: float
    took: float


async def look(case: Case, target: Any, at_least: float = 0.0) -> Window:
    """Iterate a stream, and see so many seconds or longer how late the loop is."""
    late: list[float] = []
    took: list[float] = []

    async def iterate() -> None:
        begun = time.perf_counter()
        async with case.running(target, maxsize=1) as running:
            assert await case.consumer.collect(running) == tokens(QUICK)
        took.append(time.perf_counter() - begun)

    async with anyio.create_task_group() as group:
        group.start_soon(iterate)
        begin = time.monotonic()  # uvloop's own clock stands still while a callback runs
        while not took or time.monotonic() < begin + at_least:
            due = time.monotonic() + 0.002
            await anyio.sleep(0.002)  # how late this ends is what is measured
            late.append(time.monotonic() - due)
    return Window(max(late), took[0])


async def windows(case: Case, target: Any) -> list[Window]:
    """Look until the loop is seen to be in time, and often enough to find a stream quick."""
    seen: list[Window] = []
    while len(seen) < 3 or (len(seen) < WINDOWS and min(one.lag for one in seen) >= LAG):
        seen.append(await look(case, target, at_least=1.5 * LAG))
    return seen


async def stall(
    case: Case, stack: AsyncExitStack, model: Any, streams: int, within: float
) -> list[Any]:
    """Start many runs that nobody iterates; each waits for its consumer.

    The loop's own executor is one thread, so that whoever holds a thread of it holds all.
    """
    if case.consumer.name in ("asyncio", "uvloop", "eager"):
        pool = stack.enter_context(ThreadPoolExecutor(1))
        asyncio.get_running_loop().set_default_executor(pool)
    stalled = [
        await stack.enter_async_context(case.running(model, maxsize=1)) for _ in range(streams)
    ]
    for running in stalled:
        await case.consumer.eventually(partial(is_blocked, running), within)
    return stalled


def leaves_all_else_free(
    case: Case,
    streams: int,
    make: Callable[[int], Any] = whole_model,
    *,
    doubtful: str = "",
    rounds: int = 3,
) -> None:
    """Stall so many streams, and look at all that others do meanwhile.

    A machine that has other work is late by itself, now and then and for longer than `LAG`.
    What stalled streams do to a loop they do all the time.  So the lag of a window is its
    maximum, and the loop is late if it is so in each of ten windows.  A stream's time is the
    best of some for the same reason.  Streams beside stalled ones and streams alone take turns,
    so that both find a quiet moment.

    Args:
        case: Where they stall, and where others are at work.
        streams: How many.
        make: Returns what each runs, with so many tokens.
        doubtful: What is not waited for long, because it is planted that it waits.
        rounds: How often to stall them at most.
    """
    target = make(QUICK)

    @contextmanager
    def goes_on(what: str) -> Iterator[None]:
        try:
            with anyio.fail_after(0.2 if what == doubtful else 20):
                yield
        except TimeoutError:
            pytest.fail(f"{what} waits for streams that are stalled")

    async def beside() -> list[Window]:
        async with AsyncExitStack() as stack:
            stalled = await stall(case, stack, make(4), streams, within=20)
            for _ in range(100):
                await anyio.lowlevel.checkpoint()
            if case.consumer.name != "trio":
                with goes_on("asyncio.to_thread"):
                    assert await asyncio.to_thread(threading.get_ident) != threading.get_ident()
            with goes_on("anyio.to_thread"):
                assert await anyio.to_thread.run_sync(lambda: 1) == 1
            with goes_on("getaddrinfo"):
                assert await anyio.getaddrinfo("127.0.0.1", 80, type=socket.SOCK_STREAM)
            with goes_on("another stream"):
                seen = await windows(case, target)
            for running in stalled[:3]:  # and so do these
                assert await case.consumer.collect(running) == tokens(4)
        return seen

    async def scenario() -> None:
        slow, alone = math.inf, math.inf
        for _ in range(rounds):
            seen = await beside()
            late = min(one.lag for one in seen)
            assert late < LAG, f"the loop is {late:.3f} s late"
            slow = min(slow, *(one.took for one in seen))
            alone = min(alone, *[(await look(case, target)).took for _ in seen])
            if slow < SLOWER * alone:
                return
        pytest.fail(f"beside stalled streams one takes {slow:.4f} s, alone {alone:.4f} s")

    case.consumer.run(scenario)


@pytest.mark.parametrize("case", ON_A_LOOP)
def test_many_stalled_streams_leave_the_loop_and_its_threads_free(case: Case) -> None:
    """Hazard: each stalled stream holds a thread of the pool, or the loop itself.

    A loop that is held up for good is not slow here: it never gets to the end.
    """
    leaves_all_else_free(case, STREAMS)


def leaves_shared_threads_free(case: Case, target: Any, streams: int, within: float = 20.0) -> None:
    """Stall so many runs that need a thread on an asyncio loop; see that one more goes on."""

    async def scenario() -> None:
        async with AsyncExitStack() as stack:
            await stall(case, stack, target, streams, within)
            async with case.running(target, maxsize=1) as running:
                assert await case.consumer.collect(running) == tokens(4)

    case.consumer.run(scenario)


@pytest.mark.parametrize("make", [plain_model, plain_step])
@pytest.mark.parametrize(
    "case",
    [case for case in DEFAULT_CASES if case.values[0].producer in ("thread", "background")],
)
def test_what_has_no_async_side_holds_no_shared_thread(
    case: Case, make: Callable[[int], Any]
) -> None:
    """Hazard: under ``ainvoke`` LangChain moves its steps into the loop's default executor.

    The background loop's is ours, with a thread for each call.
    """
    if case.consumer.is_async:
        leaves_all_else_free(case, STREAMS, make)
    else:
        leaves_shared_threads_free(case, make(4), STREAMS)


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


def test_the_documented_exception() -> None:
    """Sync steps of a ``task`` run wait in the caller's own default executor.

    Documented in docs/limitations.md.  If this fails, LangChain has changed: say so there.
    """
    with pytest.raises(AssertionError, match="not within"):
        leaves_shared_threads_free(AS_A_TASK, plain_step(4), 2, within=0.3)


# -- the canaries: who does wait is seen by the tests above ----------------------------------------

put_in_task = TokenQueue.put_in_task


async def waits_in_the_loops_executor(queue: TokenQueue[Any], *args: Any) -> None:
    await asyncio.get_running_loop().run_in_executor(None, queue.put, *args)


async def waits_in_anyios_threads(queue: TokenQueue[Any], *args: Any) -> None:
    await anyio.to_thread.run_sync(queue.put, *args)


async def waits_in_one_line_with_all_others(queue: TokenQueue[Any], *args: Any) -> None:
    async with vars(asyncio.get_running_loop()).setdefault("line of this test", asyncio.Lock()):
        await put_in_task(queue, *args)


@pytest.mark.parametrize(
    "planted, streams, waits",
    [
        (waits_in_the_loops_executor, 1, "asyncio.to_thread"),
        (waits_in_anyios_threads, 40, "anyio.to_thread"),  # so many they are
        (waits_in_one_line_with_all_others, 1, "another stream"),
    ],
)
def test_who_waits_for_a_stalled_stream_is_noticed(
    planted: Callable[..., Any], streams: int, waits: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The canary: producers that hold what others need."""
    monkeypatch.setattr(TokenQueue, "put_in_task", planted)
    with pytest.raises(pytest.fail.Exception, match=f"^{waits} waits"):
        leaves_all_else_free(AS_A_TASK, streams, doubtful=waits)


def test_a_loop_that_is_late_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The canary: a producer that holds up the loop, and lets it go on, again and again."""

    async def look_again_and_again(queue: TokenQueue[Any], *args: Any) -> None:
        waiting = asyncio.ensure_future(put_in_task(queue, *args))
        try:
            while not waiting.done():
                time.sleep(1.5 * LAG)  # noqa: ASYNC251 - that is the bug
                await asyncio.sleep(0.001)  # sooner than `lag` looks, so that it looks after it
        finally:
            waiting.cancel()

    monkeypatch.setattr(TokenQueue, "put_in_task", look_again_and_again)
    monkeypatch.setattr(sys.modules[__name__], "WINDOWS", 3)
    monkeypatch.setattr(sys.modules[__name__], "QUICK", 4)
    with pytest.raises(AssertionError, match=r"the loop is \d+\.\d+ s late"):
        leaves_all_else_free(AS_A_TASK, 1)


def test_a_stream_that_is_slower_beside_others_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The canary: what a token costs grows with the number of streams that wait."""
    waiting: list[object] = []

    async def look_at_all_who_wait(queue: TokenQueue[Any], *args: Any) -> None:
        waiting.append(queue)
        try:
            await asyncio.sleep(0.001 * (len(waiting) - 1))  # that is the bug
            await put_in_task(queue, *args)
        finally:
            waiting.remove(queue)

    monkeypatch.setattr(TokenQueue, "put_in_task", look_at_all_who_wait)
    with pytest.raises(pytest.fail.Exception, match=r"takes \d\.\d+ s, alone \d\.\d+ s"):
        leaves_all_else_free(AS_A_TASK, 10, rounds=1)


def test_a_shared_thread_that_is_held_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The canary: the background loop's executor is one with a few threads, as others are."""
    with (
        ThreadPoolExecutor(2) as few,
        a_background_loop_of_its_own(monkeypatch),
        monkeypatch.context() as patched,
    ):
        patched.setattr(_background, "_executor", few)
        with pytest.raises(AssertionError, match="not within"):
            leaves_shared_threads_free(IN_BACKGROUND, plain_step(4), 3, within=0.3)


def test_a_call_that_blocks_the_loop_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The canary: a producer sleeps on the consumer's loop."""

    async def sleep_and_put(queue: TokenQueue[Any], *args: Any) -> None:
        time.sleep(0)  # noqa: ASYNC251 - that is the bug
        await put_in_task(queue, *args)

    monkeypatch.setattr(TokenQueue, "put_in_task", sleep_and_put)
    blockbuster = pytest.importorskip("blockbuster")
    with pytest.raises(blockbuster.BlockingError):
        streams_without_a_blocking_call(AS_A_TASK)


def test_a_wait_for_the_shared_loop_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The canary: whoever hands a run to the shared loop waits for it there."""
    hand_over = _background.on_background_loop

    def hand_over_and_wait(*args: Any) -> None:
        hand_over(*args)
        threading.Event().wait(1)  # as if for the loop

    monkeypatch.setattr(producers, "on_background_loop", hand_over_and_wait)
    blockbuster = pytest.importorskip("blockbuster")
    with (
        a_background_loop_of_its_own(monkeypatch),
        pytest.raises(blockbuster.BlockingError),
    ):
        streams_without_a_blocking_call(IN_BACKGROUND)
