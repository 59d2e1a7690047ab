"""Ctrl-C between two steps that belong together, where `test_interrupts.py` has no point.

They are within what C does, at a jump back, or in a part of the package that those streams do not
come to.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections import deque
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from queuestream import _background, stream
from queuestream._buffer import Buffer, _Line
from queuestream._reader import Reader
from queuestream._token_queue import TokenQueue
from tests.support.gates import eventually
from tests.support.models import ScriptedChatModel, tokens

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType


@contextmanager
def interrupted(is_there: Callable[[FrameType, str, Any], bool]) -> Iterator[None]:
    """Interrupt this thread once, where a profiler is told so; nobody else hears of it."""
    before = sys.getprofile()
    has_come: list[bool] = []

    def profile(frame: FrameType, event: str, argument: Any) -> None:
        if not has_come and is_there(frame, event, argument):
            has_come.append(True)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sys.setprofile(profile)
        try:
            yield
        finally:
            sys.setprofile(before)


class Producers:
    """Threads that put one item each into a queue that is full.

    Args:
        queue: The queue.
        items: What they put.
    """

    def __init__(self, queue: TokenQueue[str], items: str) -> None:
        buffer: Any = queue.buffer
        self.threads: list[threading.Thread] = []
        for number, item in enumerate(items, 1):
            thread = threading.Thread(target=self._put, args=(queue, item), daemon=True)
            thread.start()
            self.threads.append(thread)
            eventually(partial(self._are_in, buffer._putters, number))

    @staticmethod
    def _are_in(line: _Line, number: int) -> bool:
        return len(line) == number

    @staticmethod
    def _put(queue: TokenQueue[str], item: str) -> None:
        try:
            queue.put(item)
        except BaseException:  # it was closed
            return

    def have_ended(self) -> bool:
        return not any(thread.is_alive() for thread in self.threads)


def full(items: str, **options: Any) -> TokenQueue[str]:
    """Return a queue that has no room beside these."""
    queue = TokenQueue[str]("q", len(items), **options)
    for item in items:
        queue.put(item)
    return queue


def test_a_token_was_just_taken() -> None:
    """Hazard: its slot is free, and nobody says so to the producer that waits for one."""
    queue = full("a")
    producers = Producers(queue, "b")
    with interrupted(
        lambda frame, event, function: (
            event == "c_return"
            and frame.f_code is Buffer.get_now.__code__
            and function.__name__ == "popleft"
        )
    ):
        queue.get()
    eventually(producers.have_ended)
    assert queue.get() == "b"


def take_a_piece(queue: TokenQueue[str]) -> object:
    return list(queue.get_waiting())


def take_within_a_minute(queue: TokenQueue[str]) -> object:
    return queue.get(60)


@pytest.mark.parametrize("take", [take_a_piece, take_within_a_minute])
def test_a_token_was_just_taken_under_the_lock(take: Callable[[TokenQueue[str]], object]) -> None:
    """As above, where items may be joined."""
    queue = full("a", join=lambda _items, _item: False)
    producers = Producers(queue, "b")
    slot = Buffer._putters_for_free_slot.__code__
    with interrupted(lambda frame, event, _: event == "call" and frame.f_code is slot):
        take(queue)
    eventually(producers.have_ended)
    assert queue.get() == "b"


@pytest.mark.skipif(sys.version_info < (3, 12), reason="needs sys.monitoring, for jumps")
@pytest.mark.parametrize("is_closed", [False, True], ids=["get", "close"])
def test_one_of_several_was_just_called(is_closed: bool) -> None:
    """Hazard: the next one stands in no line and is not woken, not even by the end."""
    queue = full("abcd")  # which calls two together
    producers = Producers(queue, "ef")
    main, code = threading.get_ident(), _Line.call.__code__
    monitoring: Any = vars(sys)["monitoring"]
    has_come: list[bool] = []

    def jump(_: object, here: int, there: int) -> None:
        if there < here and threading.get_ident() == main and not has_come:
            has_come.append(True)
            raise KeyboardInterrupt

    tool = 4
    monitoring.use_tool_id(tool, "test")
    monitoring.register_callback(tool, monitoring.events.JUMP, jump)
    monitoring.set_local_events(tool, code, monitoring.events.JUMP)
    got: list[str] = []
    try:
        with pytest.raises(KeyboardInterrupt):
            if is_closed:
                queue.close()
            while not is_closed:
                got.append(queue.get())
    finally:
        monitoring.set_local_events(tool, code, monitoring.events.NO_EVENTS)
        monitoring.free_tool_id(tool)
    if is_closed:
        queue.close()
    eventually(producers.have_ended)
    if not is_closed:
        in_hand = set("abcdef") - {*got, *queue.get_waiting()}
        assert len(in_hand) == 1, "no more than what it had in hand"


def test_a_token_that_was_kept_is_taken() -> None:
    """Hazard: the consumer stays one, and is refused ever after."""
    with stream(ScriptedChatModel(tokens=tokens(3)), "?", run_in="thread") as answer:
        assert next(answer) == tokens(1)[0]
        kept = answer._tokens.get()
        answer._reader.kept = deque([kept])
        take, leave = Reader._take_kept.__code__, TokenQueue._leave.__code__

        def is_there(frame: FrameType, event: str, function: Any) -> bool:
            if event == "call":
                return frame.f_code is leave  # if it is left by a function
            return event == "c_return" and frame.f_code is take and function.__name__ == "remove"

        with interrupted(is_there):
            next(answer)
        assert not answer._tokens.consumers
        assert [*answer][-1] == tokens(3)[-1]


@pytest.mark.parametrize("function", ["call_soon_threadsafe", "accept"])
def test_a_run_was_just_handed_to_the_shared_loop(function: str) -> None:
    """Promise 4.  Hazard: its task has begun, and is never cancelled."""
    began, ended = threading.Event(), threading.Event()

    async def silent(_: object, callbacks: object) -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    answer: Any = stream(silent, "?", run_in="background")

    def is_there(frame: FrameType, event: str, _: object) -> bool:
        return event == "return" and frame.f_code.co_name == function and began.wait(5)

    with interrupted(is_there):
        next(answer)
    answer.close()
    assert ended.wait(5)


def test_the_shared_loop_was_just_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hazard: the interruption is not told, and a thread is left behind."""
    monkeypatch.setattr(_background, "_current", None)

    async def work(_: object, callbacks: object) -> str:
        return "done"

    answer: Any = stream(work, "?", run_in="background")
    before = threading.active_count()
    wait = threading.Event.wait.__code__
    with interrupted(lambda frame, event, _: event == "call" and frame.f_code is wait):
        next(answer)
    eventually(lambda: threading.active_count() == before)
    with stream(work, "?", run_in="background") as another:
        assert list(another) == []
        assert another.result == "done"
    made = _background._current
    assert made is not None
    made.loop.call_soon_threadsafe(made.loop.stop)
