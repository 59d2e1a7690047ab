"""A coroutine is handed to the loop where its handler is at home, and the thread waits for it.

Whatever becomes of that loop, the thread is released (promise 3).
"""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
import uvloop

from queuestream import StreamHandler
from queuestream.handlers._hand_over import run_in_background, run_on_loop
from tests.support.backends import eager_loop
from tests.support.gates import Gate, eventually, eventually_async
from tests.support.homes import Heard, LoopThread, loop_thread
from tests.support.models import ScriptedChatModel, seen_by_model, tokens

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from langchain_core.runnables import RunnableConfig

LOOPS: list[Callable[[], asyncio.AbstractEventLoop]] = [
    asyncio.new_event_loop,
    eager_loop,
    uvloop.new_event_loop,
]
WITHIN = 10


@pytest.fixture(params=LOOPS, ids=["asyncio", "eager", "uvloop"])
def loop(request: pytest.FixtureRequest) -> Iterator[asyncio.AbstractEventLoop]:
    """Return a loop that runs only where a test lets it, and that a test may close."""
    made = request.param()
    yield made
    made.close()


@pytest.fixture(params=LOOPS, ids=["asyncio", "eager", "uvloop"])
def home(request: pytest.FixtureRequest) -> Iterator[LoopThread]:
    """Return a loop that runs in another thread."""
    with loop_thread(request.param) as made:
        yield made


@pytest.fixture
def elsewhere() -> Iterator[ThreadPoolExecutor]:
    """Return a thread."""
    with ThreadPoolExecutor(1) as pool:
        yield pool


def with_handler(handler: Any) -> RunnableConfig:
    """Return a config with one callback."""
    return {"callbacks": [handler]}


async def answer() -> str:
    await asyncio.sleep(0)
    return "answer"


class StandsStill:
    """A loop that has been given something to do, and does nothing."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.given = threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)

    def call_soon_threadsafe(self, *args: Any, **kwargs: Any) -> Any:
        handle = self._loop.call_soon_threadsafe(*args, **kwargs)
        self.given.set()
        return handle


# -- a loop that goes ---------------------------------------------------------------------------


def test_closed_before_the_hand_over(loop: asyncio.AbstractEventLoop) -> None:
    """Hazard: the coroutine is never awaited, and its thread waits."""
    loop.close()
    with pytest.raises(RuntimeError, match="handed to an event loop"):
        run_on_loop(loop, answer())


def test_closed_before_the_coroutine_begins(
    loop: asyncio.AbstractEventLoop, elsewhere: ThreadPoolExecutor
) -> None:
    """Hazard: the loop has accepted it, and drops it."""
    still: Any = StandsStill(loop)
    waiting = elsewhere.submit(run_on_loop, still, answer())
    assert still.given.wait(WITHIN)
    loop.close()
    with pytest.raises(RuntimeError, match="handed to an event loop"):
        waiting.result(WITHIN)


def test_closed_during_the_hand_over(
    loop: asyncio.AbstractEventLoop, elsewhere: ThreadPoolExecutor
) -> None:
    """Hazard: it was closed after it was asked, and keeps what it will never do."""
    kept: list[Any] = []

    class Closes(StandsStill):
        def call_soon_threadsafe(self, *args: Any, **kwargs: Any) -> Any:
            self._loop.close()
            kept.append(args)

    closes: Any = Closes(loop)
    waiting = elsewhere.submit(run_on_loop, closes, answer())
    with pytest.raises(RuntimeError, match="handed to an event loop"):
        waiting.result(WITHIN)
    assert kept


# Neither comes to its end: one is known to the loop by a timer, the other by nothing.
@pytest.mark.parametrize("wait", [lambda: asyncio.sleep(1000), lambda: asyncio.Event().wait()])
def test_closed_after_the_coroutine_has_begun(
    loop: asyncio.AbstractEventLoop, elsewhere: ThreadPoolExecutor, wait: Callable[[], Any]
) -> None:
    """Hazard: it waits for the collector, which may never come."""
    begun = asyncio.Event()

    async def work() -> None:
        begun.set()
        await wait()

    gc.disable()
    try:
        waiting = elsewhere.submit(run_on_loop, loop, work())
        loop.run_until_complete(begun.wait())
        loop.close()
        with pytest.raises(RuntimeError, match="handed to an event loop"):
            waiting.result(WITHIN)
    finally:
        gc.enable()


def test_stopped_and_run_again(
    loop: asyncio.AbstractEventLoop, elsewhere: ThreadPoolExecutor
) -> None:
    """It goes on where it was."""
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def work() -> str:
        begun.set()
        await go_on.wait()
        return "answer"

    waiting = elsewhere.submit(run_on_loop, loop, work())
    loop.run_until_complete(begun.wait())
    assert not waiting.done()
    go_on.set()
    while not waiting.done():
        loop.run_until_complete(asyncio.sleep(0))
    assert waiting.result() == "answer"


def test_nobody_but_the_loop_refers_to_the_task(home: LoopThread) -> None:
    """Hazard: a loop refers to its tasks weakly, and the collector takes one that waits."""
    futures: list[weakref.ref[asyncio.Future[str]]] = []

    async def work() -> str:
        future = asyncio.get_running_loop().create_future()
        futures.append(weakref.ref(future))
        return await future  # type: ignore[no-any-return]

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(run_on_loop, home.loop, work())
        eventually(lambda: futures)
        home.run(asyncio.sleep(0))
        gc.collect()
        future = futures[0]()
        assert future is not None
        home.loop.call_soon_threadsafe(future.set_result, "answer")
        del future
        assert waiting.result(WITHIN) == "answer"


def test_the_end_of_asyncio_run() -> None:
    """Hazard: a CancelledError of the loop's in a thread, where nothing was cancelled."""
    gate = Gate()
    outcome: list[Any] = []

    async def on_token(token: str) -> None:
        await gate.wait_async()

    def invoke(handler: Any) -> None:
        try:
            ScriptedChatModel(tokens=tokens(1)).invoke("?", with_handler(handler))
        except BaseException as error:
            outcome.append(error)

    threads: list[threading.Thread] = []

    async def main() -> None:
        handler = StreamHandler(on_token, raise_error=True)
        threads.append(threading.Thread(target=invoke, args=(handler,), daemon=True))
        threads[0].start()
        await eventually_async(lambda: gate.waiting)

    asyncio.run(main())
    threads[0].join(WITHIN)
    assert [type(error) for error in outcome] == [RuntimeError]
    assert isinstance(outcome[0].__cause__, asyncio.CancelledError)


@pytest.mark.parametrize("is_closed", [False, True])
def test_a_home_that_does_not_run(loop: asyncio.AbstractEventLoop, is_closed: bool) -> None:
    """The background loop takes its place."""
    heard = Heard()

    async def make() -> StreamHandler:
        return StreamHandler(heard.on_token_async, raise_error=True)

    handler = loop.run_until_complete(make())
    if is_closed:
        loop.close()
    ScriptedChatModel(tokens=tokens(2)).invoke("?", with_handler(handler))
    assert heard.tokens == tokens(2)
    assert loop not in heard.loops


# -- what the coroutine raises ------------------------------------------------------------------


@pytest.mark.parametrize(
    "raised, received",
    [
        (ValueError, ValueError),
        (asyncio.CancelledError, RuntimeError),
        (GeneratorExit, RuntimeError),
        (StopIteration, RuntimeError),
        (StopAsyncIteration, StopAsyncIteration),
        (SystemExit, SystemExit),
        (KeyboardInterrupt, KeyboardInterrupt),
    ],
)
@pytest.mark.parametrize("where", ["home", "background"])
def test_what_the_coroutine_raises(
    raised: type[BaseException], received: type[BaseException], where: str, home: LoopThread
) -> None:
    """Hazard: the loop dies of it, or the thread is told of a cancellation that is not its own."""

    async def fail() -> None:
        await asyncio.sleep(0)
        raise raised

    with pytest.raises(received) as caught:
        if where == "home":
            run_on_loop(home.loop, fail())
        else:
            run_in_background(fail())
    assert type(caught.value) is received
    assert run_on_loop(home.loop, answer()) == "answer"
    assert run_in_background(answer()) == "answer"


def test_the_callers_context(home: LoopThread) -> None:
    """Promise 6."""

    async def look() -> str:
        await asyncio.sleep(0)
        return seen_by_model.get()

    token = seen_by_model.set("the caller's")
    try:
        assert run_on_loop(home.loop, look()) == "the caller's"
        assert run_in_background(look()) == "the caller's"
    finally:
        seen_by_model.reset(token)


# -- a fork ---------------------------------------------------------------------------------------

_FORK = """
import asyncio, os, sys, threading, warnings
from langchain_core.language_models import FakeListChatModel
from queuestream import StreamHandler

warnings.simplefilter("ignore")  # a fork while threads run, which is what this is about
loop = asyncio.new_event_loop()
threading.Thread(target=loop.run_forever, daemon=True).start()
heard = []

async def on_token(token):
    heard.append(token)

async def make():
    return StreamHandler(on_token)

handler = asyncio.run_coroutine_threadsafe(make(), loop).result()
pid = os.fork()
if pid:
    _, status = os.waitpid(pid, 0)
    sys.exit(os.waitstatus_to_exitcode(status))
FakeListChatModel(responses=["Hi"]).invoke("?", {"callbacks": [handler]})
os._exit(0 if heard == ["H", "i"] else 1)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fork")
def test_a_home_that_runs_in_the_parent_of_a_fork() -> None:
    """Promise 8.  Hazard: the child's copy of the loop says that it runs, and nobody runs it."""
    done = subprocess.run([sys.executable, "-c", _FORK], timeout=40, check=False)
    assert done.returncode == 0
