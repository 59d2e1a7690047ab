"""Programs that leave a mess behind, run by ``test_promise_08`` through `tests.promises.nursery`.

Each is one situation, prints ``leaving`` and the time as its own last statement, and then has
to end: with an asyncio loop that is to be closed, threads that are joined, and finalizers.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import sys
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import anyio
import pytest
import trio
from langchain_core.runnables import Runnable, RunnableConfig, RunnableLambda, RunnableParallel

from queuestream import QueueStreamHandler, stream
from queuestream._buffer import Buffer
from queuestream.errors import RunStopped, StreamClosedError
from tests.support.gates import Gate, eventually, eventually_async, open_all_gates
from tests.support.models import ScriptedChatModel, SyncOnlyChatModel, tokens
from tests.support.streams import getters_of, is_blocked, putters_of

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

kept: list[Any] = []
"""What lives as long as the module does."""


@cache
def leaving() -> None:
    """Say that the program has done its last statement; only the first time counts."""
    print("leaving", time.monotonic(), flush=True)


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a program on an asyncio loop; it leaves where the loop has yet to be closed."""

    async def and_leave() -> None:
        await main()
        leaving()

    asyncio.run(and_leave())


def model() -> ScriptedChatModel:
    """Return a model that never runs out of tokens."""
    return ScriptedChatModel(tokens=tokens(1000))


def silent() -> ScriptedChatModel:
    """Return a model that gives one token and is then blocked."""
    return ScriptedChatModel(tokens=tokens(9), gate=Gate(1))


def in_a_thread(inner: SyncOnlyChatModel | None = None) -> Runnable[str, Any]:
    """Return a step that LangChain moves to the default executor under ``ainvoke``."""
    answering = inner or model()

    def work(text: str, config: RunnableConfig) -> Any:
        return answering.invoke(text, config)

    return RunnableLambda(work)


def branches() -> Runnable[str, Any]:
    """Return four models at once; in an ``invoke`` they wait in LangChain's pool."""
    return RunnableParallel({name: model() for name in "abcd"})


def steps() -> Runnable[str, Any]:
    """Return two steps at once that LangChain moves to the default executor."""
    return RunnableParallel({name: in_a_thread() for name in "ab"})


def wait_in_line(running: Any, number: int) -> bool:
    """Whether so many producers wait for a consumer who does not come."""
    return putters_of(running) == number


def abandoned(run_in: Any, target: Runnable[Any, Any], waiting: int) -> None:
    """A stream that is begun and forgotten, with so many producers that wait."""
    answer = stream(target, "?", run_in=run_in, maxsize=1)
    next(answer)
    eventually(partial(wait_in_line, answer, waiting))
    kept.append(answer)


def handler_in_a_pool(*, is_read: bool) -> None:
    """A handler's producer waits in a thread that the interpreter joins."""
    pool = ThreadPoolExecutor(1)
    handler = QueueStreamHandler(maxsize=1)
    pool.submit(model().invoke, "?", {"callbacks": [handler]})
    eventually(partial(is_blocked, iter(handler)))
    if is_read:
        next(iter(handler))
    kept.extend([pool, handler])


def handler_called_in_a_pool() -> None:
    """The same with code that calls the handler itself."""
    pool = ThreadPoolExecutor(1)
    handler = QueueStreamHandler(maxsize=1)
    pool.submit(lambda: [handler.on_llm_new_token(token) for token in tokens(9)])
    eventually(partial(is_blocked, iter(handler)))
    kept.extend([pool, handler])


def task_under_asyncio_run(target: Runnable[Any, Any], waiting: int) -> None:
    """`asyncio.run` cancels the run, and joins the default executor, where steps of it wait."""

    async def main() -> None:
        answer = stream(target, "?", maxsize=1)
        await answer.__anext__()
        kept.append(answer)
        await eventually_async(partial(wait_in_line, answer, waiting))

    run(main)


def handler_under_asyncio_run(target: Runnable[Any, Any], waiting: int) -> None:
    """The same with a handler alone: nobody has closed it."""

    async def main() -> None:
        handler = QueueStreamHandler(maxsize=1)
        kept.append(asyncio.ensure_future(target.ainvoke("?", {"callbacks": [handler]})))
        await eventually_async(partial(wait_in_line, iter(handler), waiting))
        kept.append(handler)

    run(main)


def late_step_under_asyncio_run() -> None:
    """A step of a run that was cancelled begins only now, in the executor that is joined."""
    is_there, go = threading.Event(), threading.Event()

    def begin_late(text: str, config: RunnableConfig) -> Any:
        is_there.set()
        go.wait()
        return model().invoke(text, config)

    async def main() -> None:
        handler = QueueStreamHandler(maxsize=1)
        target = RunnableParallel(late=RunnableLambda(begin_late))
        task = asyncio.ensure_future(target.ainvoke("?", {"callbacks": [handler]}))
        kept.extend([handler, task])
        task.add_done_callback(lambda _: go.set())
        await eventually_async(is_there.is_set)

    run(main)


async def cancel_from_outside(work: Any, is_waiting: Callable[[], object]) -> None:
    """Have another thread cancel a task, once somebody waits."""
    loop = asyncio.get_running_loop()
    task = asyncio.ensure_future(work)
    await eventually_async(is_waiting)
    threading.Thread(target=loop.call_soon_threadsafe, args=(task.cancel,)).start()
    with pytest.raises(asyncio.CancelledError):
        await task


def run_cancelled_from_outside(target: Runnable[Any, Any], waiting: int) -> None:
    """The task of a run is cancelled while synchronous steps of it wait in the executor.

    LangChain goes on without them, and `asyncio.run` joins their threads.
    """

    async def main() -> None:
        handler = QueueStreamHandler(maxsize=1)
        kept.append(handler)
        work = target.ainvoke("?", {"callbacks": [handler]})
        await cancel_from_outside(work, partial(wait_in_line, iter(handler), waiting))

    run(main)


def consumer_cancelled_from_outside(target: Runnable[Any, Any], waiting: int) -> None:
    """The same with the task that consumes a stream."""

    async def main() -> None:
        answer = stream(target, "?", maxsize=1)
        kept.append(answer)

        async def consume() -> None:
            async for _ in answer:
                await asyncio.sleep(600)  # never at its end: it is cancelled

        await cancel_from_outside(consume(), partial(wait_in_line, answer, waiting))

    run(main)


def consumer_in_a_daemon_thread() -> None:
    """A consumer that dies with the interpreter, in the middle of a wait."""
    answer = stream(silent(), "?")

    def consume() -> None:
        with contextlib.suppress(StreamClosedError):  # it may just see it, and then dies
            kept.extend(answer)

    threading.Thread(target=consume, daemon=True).start()
    eventually(partial(getters_of, answer))


def consumers_after_the_end_of_main() -> None:
    """A thread that the interpreter waits for iterates on, and still gets all tokens."""
    # Python 3.12.0 and 3.12.1 start no thread any more once main has ended.
    late = [] if (3, 12) <= sys.version_info < (3, 12, 2) else [False]
    ready = threading.Barrier(4 + 2 * len(late))

    def consume(run_in: Any, *, starts_early: bool) -> None:
        answer = stream(ScriptedChatModel(tokens=tokens(50)), "?", run_in=run_in, maxsize=1)
        received = [next(answer)] if starts_early else []
        ready.wait()
        threading.main_thread().join()
        received.extend(answer)
        assert received == tokens(50), received
        print("all tokens", flush=True)

    def consume_on_a_loop() -> None:
        async def main() -> None:
            answer = stream(ScriptedChatModel(tokens=tokens(50)), "?", maxsize=1)
            received = [await answer.__anext__()]
            ready.wait()
            threading.main_thread().join()
            received.extend([token async for token in answer])
            assert received == tokens(50), received
            print("all tokens", flush=True)

        asyncio.run(main())

    for run_in in ("thread", "background"):
        for starts_early in [*late, True]:
            threading.Thread(
                target=consume, args=(run_in,), kwargs={"starts_early": starts_early}
            ).start()
    threading.Thread(target=consume_on_a_loop).start()
    ready.wait()
    print(f"{3 + 2 * len(late)} consumers", flush=True)


def in_a_fork(check: Callable[[], None]) -> None:
    """Do something in a child; fail if it fails or does not end."""
    child = os.fork()
    if child == 0:
        signal.alarm(10)  # the one that the nursery has set is for the parent alone
        try:
            check()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def new_ones_stream(*run_in: Any) -> None:
    """Iterate streams that begin only now, with ``for``."""
    for place in run_in:
        mine = ScriptedChatModel(tokens=tokens(50))
        assert list(stream(mine, "?", run_in=place, maxsize=2)) == tokens(50)


async def new_ones_stream_on_a_loop(*run_in: Any) -> None:
    """The same with ``async for``."""
    for place in run_in:
        mine = ScriptedChatModel(tokens=tokens(50))
        answer = stream(mine, "?", run_in=place, maxsize=2)
        assert [token async for token in answer] == tokens(50)


def are_closed(theirs: list[Any]) -> None:
    """See that the streams of the parent are no more."""
    for one in theirs:
        with pytest.raises(StreamClosedError):
            next(one)


async def are_closed_on_a_loop(theirs: list[Any]) -> None:
    """The same with ``async for``."""
    for one in theirs:
        with pytest.raises(StreamClosedError):
            await one.__anext__()


def fork() -> None:
    """A child gets StreamClosedError on the parent's streams, and can stream anew."""
    handler = QueueStreamHandler(maxsize=2)

    def invoke() -> None:
        with contextlib.suppress(RunStopped):
            model().invoke("?", {"callbacks": [handler]})

    threading.Thread(target=invoke, daemon=True).start()
    iteration = iter(handler)
    busy = [
        stream(ScriptedChatModel(tokens=tokens(5000)), "?", run_in=run_in, maxsize=2)
        for run_in in ("thread", "background")
    ]
    taken: dict[Any, list[str]] = {one: [] for one in busy}
    new = stream(ScriptedChatModel(tokens=tokens(5)), "?")
    finished = stream(ScriptedChatModel(tokens=tokens(5)), "?")
    list(finished)

    def in_child() -> None:
        are_closed([*busy, iteration])
        for one in busy:
            one.close()
        assert list(new) == tokens(5)  # it had not begun
        assert finished.result.content == "".join(tokens(5))
        new_ones_stream("thread", "background")
        busy.clear()
        gc.collect()

    for _ in range(10):
        for one in busy:  # so that they are at work when the fork comes
            taken[one] += [next(one) for _ in range(20)]
        next(iteration)
        in_a_fork(in_child)
    for one in busy:  # the parent goes on
        taken[one] += list(one)
        assert taken[one] == tokens(5000)
    assert list(new) == tokens(5)
    handler.close()
    print("the parent goes on", flush=True)


def fork_on_a_loop() -> None:
    """The fork is made by a task of the loop that runs are on: the child has no such loop."""

    async def main() -> None:
        handler = QueueStreamHandler(maxsize=2)
        target = ScriptedChatModel(tokens=tokens(500))
        task = asyncio.ensure_future(target.ainvoke("?", {"callbacks": [handler]}))
        ways: list[Any] = ["task", "background", "thread"]
        busy: list[Any] = [stream(target, "?", run_in=run_in, maxsize=2) for run_in in ways]
        everything = [*busy, iter(handler)]
        taken: dict[Any, list[str]] = {one: [] for one in everything}

        def in_child() -> None:
            are_closed(everything)
            asyncio.run(are_closed_on_a_loop(everything))
            asyncio.run(new_ones_stream_on_a_loop(*ways))
            new_ones_stream("thread", "background")
            for one in busy:
                one.close()
            everything.clear()
            busy.clear()
            gc.collect()

        for _ in range(3):
            for one in everything:
                taken[one] += [await one.__anext__() for _ in range(20)]
            in_a_fork(in_child)
        for one in everything:  # the parent goes on
            taken[one] += [token async for token in one]
            assert taken[one] == tokens(500)
        await task
        print("the parent goes on", flush=True)

    run(main)


def fork_beside_readers() -> None:
    """The fork comes while consumers wait on loops of other threads, asyncio's and trio's."""
    pairs: list[tuple[Any, Any]] = [
        ("task", "asyncio"),
        ("background", "asyncio"),
        ("background", "trio"),
        ("thread", "trio"),
    ]
    readers = [
        (
            stream(
                ScriptedChatModel(tokens=tokens(50), gate=Gate(10)),
                "?",
                run_in=run_in,
                maxsize=2,
            ),
            backend,
        )
        for run_in, backend in pairs
    ]
    answers = [answer for answer, _ in readers]
    taken: dict[Any, list[str]] = {answer: [] for answer in answers}

    async def read(answer: Any) -> None:
        async for token in answer:
            taken[answer].append(token)

    def waits_after(answer: Any, number: int) -> bool:
        return len(taken[answer]) == number and getters_of(answer) == 1

    def in_child() -> None:
        asyncio.run(are_closed_on_a_loop(answers))
        trio.run(are_closed_on_a_loop, answers)
        are_closed(answers)
        asyncio.run(new_ones_stream_on_a_loop("task", "background", "thread"))
        trio.run(new_ones_stream_on_a_loop, "background", "thread")

    threads = [
        threading.Thread(target=anyio.run, args=(read, answer), kwargs={"backend": backend})
        for answer, backend in readers
    ]
    for thread in threads:
        thread.start()
    for answer in answers:
        eventually(partial(waits_after, answer, 10))
    in_a_fork(in_child)
    open_all_gates()
    for thread in threads:
        thread.join()
    assert list(taken.values()) == [tokens(50)] * len(answers)
    print("the parent goes on", flush=True)


def fork_and_exit_in_child() -> None:
    """The child ends as programs do, with the parent's streams in its hands."""
    answer = stream(model(), "?", maxsize=1)
    parallel = stream(RunnableParallel({name: model() for name in "abc"}), "?", maxsize=1)
    for one in (answer, parallel):
        next(one)
    kept.extend([answer, parallel])
    child = os.fork()
    if child == 0:
        signal.alarm(10)
        sys.exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert [next(answer) for _ in range(9)] == tokens(9, start=1)


ENDING: dict[str, Callable[[], None]] = {
    **{
        f"{run_in}-{name}": partial(abandoned, run_in, target, waiting)
        for run_in in ("thread", "background")
        for name, target, waiting in (
            ("full", model(), 1),
            ("silent", silent(), 0),
            ("branches", branches(), 4),
            ("step", in_a_thread(SyncOnlyChatModel(tokens=tokens(1000))), 1),
        )
    },
    "pool-unread": partial(handler_in_a_pool, is_read=False),
    "pool-read": partial(handler_in_a_pool, is_read=True),
    "pool-called": handler_called_in_a_pool,
    **{
        f"{name}-{what}": partial(program, target, waiting)
        for name, program in (
            ("task", task_under_asyncio_run),
            ("handler", handler_under_asyncio_run),
        )
        for what, target, waiting in (
            ("full", model(), 1),
            ("step", in_a_thread(), 1),
            ("steps", steps(), 2),
        )
    },
    "handler-late": late_step_under_asyncio_run,
    **{
        f"{name}-cancelled-{what}": partial(program, target, waiting)
        for name, program in (
            ("handler", run_cancelled_from_outside),
            ("task", consumer_cancelled_from_outside),
        )
        for what, target, waiting in (("step", in_a_thread(), 1), ("steps", steps(), 2))
    },
    "consumer": consumer_in_a_daemon_thread,
}
"""The situations in which the interpreter has to end, each a process."""


class _Late:
    """What is finalized last, and takes its time."""

    def __del__(self, sleep: Callable[[float], None] = time.sleep) -> None:
        sleep(2)


def end_late() -> None:
    """A planted bug: the interpreter lets go of everybody, and its end takes two seconds more."""
    kept.append(_Late())


def wake_nobody_at_the_end() -> None:
    """A planted bug: closing a queue, and the end of the interpreter, let go of nobody."""
    Buffer.shutdown = lambda *_, **__: None  # type: ignore[method-assign]


OTHERS: list[Callable[[], None]] = [
    consumers_after_the_end_of_main,
    fork,
    fork_on_a_loop,
    fork_beside_readers,
    fork_and_exit_in_child,
    end_late,
]


def execute(name: str, *more: str) -> None:
    """Run a program to its last statement."""
    if more:
        wake_nobody_at_the_end()
    ({**ENDING, **{program.__name__: program for program in OTHERS}})[name]()
    leaving()
