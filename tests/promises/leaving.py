"""Programs that leave a mess behind, run by ``test_promise_08`` as ``python -m``.

Each prints ``leaving`` and the time as the last thing that its main thread does, and then
has to end.  ``left`` and the time come when nothing is waited for any more: threads and pools
are joined, and what follows is Python's own, and takes seconds on a busy machine.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import gc
import os
import sys
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from langchain_core.runnables import Runnable, RunnableConfig, RunnableLambda, RunnableParallel

from queuestream import QueueStreamHandler, stream
from queuestream._buffer import Buffer
from queuestream.errors import RunStopped, StreamClosedError
from tests.support.gates import Gate, eventually, eventually_async
from tests.support.models import ScriptedChatModel, SyncOnlyChatModel, tokens
from tests.support.streams import getters_of, is_blocked, putters_of

if TYPE_CHECKING:
    from collections.abc import Callable

kept: list[Any] = []
"""What lives as long as the module does."""


def model() -> ScriptedChatModel:
    """Return a model that never runs out of tokens."""
    return ScriptedChatModel(tokens=tokens(1000))


def in_a_thread(inner: SyncOnlyChatModel) -> Runnable[str, Any]:
    """Return a step that LangChain moves to the default executor under ``ainvoke``."""

    def work(text: str, config: RunnableConfig) -> Any:
        return inner.invoke(text, config)

    return RunnableLambda(work)


def abandoned(run_in: Any) -> None:
    """Streams that are begun and forgotten: a full queue, a silent model, waiting branches."""
    full = stream(model(), "?", run_in=run_in, maxsize=1)
    next(full)
    silent = stream(
        ScriptedChatModel(tokens=tokens(9), gate=Gate(1)), "?", run_in=run_in, maxsize=1
    )
    next(silent)
    parallel = stream(
        RunnableParallel({name: model() for name in "abcd"}), "?", run_in=run_in, maxsize=1
    )
    next(parallel)
    sync_only = stream(
        in_a_thread(SyncOnlyChatModel(tokens=tokens(1000))), "?", run_in=run_in, maxsize=1
    )
    next(sync_only)
    for answer in (full, parallel, sync_only):
        eventually(partial(is_blocked, answer))
    eventually(lambda: putters_of(parallel) == 4)
    kept.extend([full, silent, parallel, sync_only])


def abandoned_in_threads() -> None:
    """``run_in="thread"``; LangChain's own pool threads wait, too."""
    abandoned("thread")


def abandoned_in_background() -> None:
    """``run_in="background"``."""
    abandoned("background")


def handler_in_a_pool() -> None:
    """A handler's producers wait in threads that the interpreter joins."""
    pool = ThreadPoolExecutor(4)
    for with_consumer in (False, True):
        handler = QueueStreamHandler(maxsize=1)
        pool.submit(model().invoke, "?", {"callbacks": [handler]})
        eventually(partial(is_blocked, iter(handler)))
        if with_consumer:
            next(iter(handler))
        kept.append(handler)
    direct = QueueStreamHandler(maxsize=1)
    pool.submit(lambda: [direct.on_llm_new_token(token) for token in tokens(9)])
    eventually(partial(is_blocked, iter(direct)))
    kept.extend([pool, direct])


def task_under_asyncio_run() -> None:
    """`asyncio.run` joins the default executor, where steps of the run wait."""

    async def main() -> None:
        for target in (model(), in_a_thread(model())):
            answer = stream(target, "?", maxsize=1)
            await answer.__anext__()
            kept.append(answer)
            await eventually_async(partial(is_blocked, answer))

    asyncio.run(main())


def handler_under_asyncio_run() -> None:
    """The same with a handler alone: nobody has closed it."""

    async def main() -> None:
        for target in (
            model(),
            in_a_thread(model()),
            RunnableParallel({name: in_a_thread(model()) for name in "ab"}),
        ):
            handler = QueueStreamHandler(maxsize=1)
            kept.append(asyncio.ensure_future(target.ainvoke("?", {"callbacks": [handler]})))
            await eventually_async(partial(is_blocked, iter(handler)))
            kept.append(handler)

    asyncio.run(main())


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

    asyncio.run(main())


def cancelled_from_outside() -> None:
    """The task of a run is cancelled while synchronous steps of it wait in the executor.

    LangChain goes on without them, and `asyncio.run` joins their threads.
    """

    def wait_in_line(running: Any, number: int) -> bool:
        return putters_of(running) == number

    async def cancel(work: Any, is_waiting: Callable[[], object]) -> None:
        loop = asyncio.get_running_loop()
        task = asyncio.ensure_future(work)
        await eventually_async(is_waiting)
        threading.Thread(target=loop.call_soon_threadsafe, args=(task.cancel,)).start()
        with pytest.raises(asyncio.CancelledError):
            await task

    async def main() -> None:
        parallel = RunnableParallel({name: in_a_thread(model()) for name in "ab"})
        for target, number in ((in_a_thread(model()), 1), (parallel, 2)):
            handler = QueueStreamHandler(maxsize=1)
            kept.append(handler)
            run = target.ainvoke("?", {"callbacks": [handler]})
            await cancel(run, partial(wait_in_line, iter(handler), number))
            answer = stream(target, "?", maxsize=1)
            kept.append(answer)

            async def consume(answer: Any = answer) -> None:
                async for _ in answer:
                    await asyncio.sleep(600)  # never at its end: it is cancelled

            await cancel(consume(), partial(wait_in_line, answer, number))

    asyncio.run(main())


def consumer_in_a_daemon_thread() -> None:
    """A consumer that dies with the interpreter, in the middle of a wait."""
    answer = stream(ScriptedChatModel(tokens=tokens(9), gate=Gate(1)), "?")

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
    for _ in range(10):
        for one in busy:  # so that they are at work when the fork comes
            taken[one] += [next(one) for _ in range(20)]
        next(iteration)
        child = os.fork()
        if child == 0:
            os._exit(_in_child(busy, new, finished, iteration))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    for one in busy:  # the parent goes on
        taken[one] += list(one)
        assert taken[one] == tokens(5000)
    assert list(new) == tokens(5)
    handler.close()
    print("the parent goes on", flush=True)


def _in_child(busy: list[Any], new: Any, finished: Any, iteration: Any) -> int:
    try:
        for one in [*busy, iteration]:
            with pytest.raises(StreamClosedError):
                next(one)
        for one in busy:
            one.close()
        assert list(new) == tokens(5)  # it had not begun
        assert finished.result.content == "".join(tokens(5))
        for run_in in ("thread", "background"):
            mine = ScriptedChatModel(tokens=tokens(50))
            assert list(stream(mine, "?", run_in=run_in, maxsize=2)) == tokens(50)
        busy.clear()
        gc.collect()
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def fork_and_exit_in_child() -> None:
    """The child ends as programs do, with the parent's streams in its hands."""
    answer = stream(model(), "?", maxsize=1)
    parallel = stream(RunnableParallel({name: model() for name in "abc"}), "?", maxsize=1)
    for one in (answer, parallel):
        next(one)
    kept.extend([answer, parallel])
    child = os.fork()
    if child == 0:
        sys.exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert [next(answer) for _ in range(9)] == tokens(9, start=1)


PROGRAMS: list[Callable[[], None]] = [
    abandoned_in_threads,
    abandoned_in_background,
    handler_in_a_pool,
    task_under_asyncio_run,
    handler_under_asyncio_run,
    late_step_under_asyncio_run,
    cancelled_from_outside,
    consumer_in_a_daemon_thread,
    consumers_after_the_end_of_main,
    fork,
    fork_and_exit_in_child,
]


def wake_nobody_at_the_end() -> None:
    """A planted bug: closing a queue, and the end of the interpreter, let go of nobody."""
    Buffer.shutdown = lambda *_, **__: None  # type: ignore[method-assign]


if __name__ == "__main__":
    if "planted" in sys.argv:
        wake_nobody_at_the_end()
    atexit.register(lambda: print("left", time.monotonic(), flush=True))  # first in, last out
    next(program for program in PROGRAMS if program.__name__ == sys.argv[1])()
    print("leaving", time.monotonic(), flush=True)
