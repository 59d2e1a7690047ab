"""Ctrl-C wherever it can come to a synchronous consumer, one point a run.

The consumer goes on after it, and gets all the rest.  What it has *in hand* when it is interrupted
is lost, if that was taken from the queue and is not delivered: pure Python has no way to take
something and to note that at once.  That is one token, or the tokens of one piece.
"""

from __future__ import annotations

import itertools
import sys
import threading
from collections import deque
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from queuestream import _background, stream
from queuestream._background import RUN_THREAD
from queuestream._buffer import Buffer
from queuestream._token_queue import TokenQueue
from queuestream.errors import StreamClosedError
from tests.support import lines
from tests.support.endings import A_MOMENT
from tests.support.gates import eventually
from tests.support.lines import AtLine
from tests.support.models import ScriptedChatModel, tokens

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from types import FrameType

LENGTH = 6
in_finalizers_too = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


class Counted(deque[Any]):
    """A deque that counts what is taken from it."""

    def __init__(self) -> None:
        super().__init__()
        self.taken: list[Any] = []

    def popleft(self) -> Any:
        """Take an item."""
        item = super().popleft()
        self.taken.append(item)
        return item


CONSUMER = "the consumer's"
"""How its thread is called."""


def within(frame: FrameType | None) -> list[str]:
    """Return the names of the functions that go on, the innermost first."""
    names = []
    while frame is not None:
        names.append(frame.f_code.co_name)
        frame = frame.f_back
    return names


def is_survived(frame: FrameType) -> bool:
    """Whether an interruption there is to be survived.

    A known gap: where ``acquire(blocking=False)`` has just returned in `Buffer._settle`, nobody
    knows whether it has the lock, which then stays locked.  And in the finalizer of another
    stream nobody hears of it, and that one goes on.
    """
    return frame.f_code.co_name != "_settle" and "__del__" not in within(frame)


@dataclass(eq=False)
class Interrupted:
    """A consumer that is interrupted, and then goes on.

    Attributes:
        answer: The stream.
        iterable: What it iterates.
        received: What it got, before and after.
        in_hand: The tokens that were taken from the queue by then, and neither received nor kept.
        within: The functions that were interrupted, the innermost first.
        error: What it got at the end.
    """

    answer: Any
    iterable: Iterable[str]
    received: list[str] = field(default_factory=list)
    in_hand: list[str] = field(default_factory=list)
    within: list[str] = field(default_factory=list)
    error: BaseException | None = None

    def __post_init__(self) -> None:
        self._items = self.answer._tokens.buffer.items = Counted()

    def interrupt(self, frame: FrameType) -> None:
        """Raise as Ctrl-C does, wherever the consumer is."""
        if not is_survived(frame):
            return
        self.within = within(frame)
        got, kept = "".join(self.received), self.answer._reader.kept
        self.in_hand = [
            item[1] for item in self._items.taken if item not in kept and item[1] not in got
        ]
        raise KeyboardInterrupt

    def consume(self, at_point: AtLine) -> None:
        """Iterate, be interrupted, look, and iterate to the end."""
        try:
            with calls_counted(at_point):
                self._iterate()
        except KeyboardInterrupt:
            tokens_of_it = self.answer._tokens
            assert not tokens_of_it.consumers, "it is taken for one that still waits"
            assert not tokens_of_it.buffer._getters.waiters, "it still stands in line"
            try:
                self._iterate()
            except BaseException as error:
                self.error = error
        else:
            self.in_hand = []  # it came in a finalizer, if at all, and nobody hears of that

    def _iterate(self) -> None:
        for token in self.iterable:
            self.received.append(token)


@contextmanager
def calls_counted(at_point: AtLine) -> Iterator[None]:
    """Count the points of the block, which the caller comes to."""
    before = sys.getprofile()
    sys.setprofile(at_point.profile)
    at_point.is_counting = True
    try:
        yield
    finally:
        at_point.is_counting = False
        sys.setprofile(before)


def in_a_thread(work: Callable[[], object], seconds: float) -> bool:
    """Do it, and raise what it raises; whether it has ended."""
    failures: list[BaseException] = []

    def do() -> None:
        try:
            work()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=do, name=CONSUMER, daemon=True)
    thread.start()
    thread.join(seconds)
    if failures:
        raise failures[0]
    return not thread.is_alive()


def threads_of_runs() -> list[str]:
    """Return the names of those that go on."""
    names = [thread.name for thread in threading.enumerate()]
    return [name for name in names if name.startswith(RUN_THREAD)]


def interrupted_at(
    point: int, how: str, run_in: Any, seconds: float = 10.0, **options: Any
) -> bool:
    """Iterate, and be interrupted there; whether there was such a point."""
    model = ScriptedChatModel(tokens=tokens(LENGTH))
    answer = stream(model, "?", run_in=run_in, **options)
    it = Interrupted(answer, answer.pieces(3) if how == "pieces" else answer)
    at_point = AtLine(point, it.interrupt)
    try:
        assert in_a_thread(lambda: it.consume(at_point), seconds), f"no end within {seconds} s"
        if "_start" in it.within and it.error is not None:  # and else there was none
            assert isinstance(it.error, StreamClosedError)
            assert not it.received
        else:
            assert it.error is None, f"{it.error!r} at the end"
            got = "".join(it.received)
            assert got == "".join(token for token in tokens(LENGTH) if token not in it.in_hand)
            assert len(it.in_hand) <= (
                3 if "deliver" in it.within or "get_piece" in it.within else 1
            )
            assert all(token in answer.text for token in tokens(LENGTH) if token in got)
            assert model.record.produced == LENGTH
    except AssertionError as error:
        answer.close()
        raise AssertionError(f"{error}, interrupted in {it.within[:5]}") from error
    eventually(lambda: model.record.open == 0 and not threads_of_runs())
    return at_point.has_happened


WAYS = [
    pytest.param("for", "thread", {"maxsize": 1}, id="for-thread"),
    pytest.param("for", "thread", {"maxsize": 1, "token_timeout": 60}, id="for-thread-timed"),
    pytest.param("for", "background", {"maxsize": 4}, id="for-background"),
    pytest.param("pieces", "thread", {"maxsize": 4}, id="pieces-thread"),
    pytest.param("pieces", "background", {"maxsize": 2}, id="pieces-background"),
]


@in_finalizers_too
@pytest.mark.parametrize("how, run_in, options", WAYS)
def test_ctrl_c_anywhere_in_the_iteration(how: str, run_in: str, options: dict[str, Any]) -> None:
    """Promises 1 and 3.  Hazard: a token, a wake-up or the consumer's own place is lost with it.

    Where it comes to the start of the run, the stream is closed, or starts again.  Here at
    every 4th point.
    """
    interrupt_at_every_point(how, run_in, options, step=4)


@pytest.mark.stress
@in_finalizers_too
@pytest.mark.parametrize("how, run_in, options", WAYS)
def test_ctrl_c_everywhere_in_the_iteration(how: str, run_in: str, options: dict[str, Any]) -> None:
    """As above, at every point."""
    interrupt_at_every_point(how, run_in, options, step=1)


def interrupt_at_every_point(how: str, run_in: str, options: dict[str, Any], step: int) -> None:
    point = 0
    for point in itertools.count(0, step):
        if not interrupted_at(point, how, run_in, **options):
            break
    assert point > 100, "where are the points?"


def interrupted_in_block(point: int, run_in: Any) -> bool:
    """Enter, take two, leave, and be interrupted there; whether there was such a point."""
    model = ScriptedChatModel(tokens=tokens(LENGTH))

    def interrupt(frame: FrameType) -> None:
        if is_survived(frame):
            raise KeyboardInterrupt

    at_point = AtLine(point, interrupt)

    def consume() -> None:
        answer = stream(model, "?", run_in=run_in, maxsize=1)
        with suppress(KeyboardInterrupt), calls_counted(at_point), answer:
            next(answer)
            next(answer)

    assert in_a_thread(consume, 10)
    eventually(lambda: model.record.open == 0 and not threads_of_runs())
    assert model.record.produced < LENGTH
    if (shared := _background._current) is not None:
        eventually(lambda: not shared.lost)  # nobody is waited for any more
    return at_point.has_happened


@in_finalizers_too
@pytest.mark.parametrize("run_in", ["thread", "background"])
def test_ctrl_c_anywhere_in_a_block(run_in: str) -> None:
    """Promise 4.  Hazard: it comes when the block is entered or left, and the run goes on.

    The rest is done when the stream is dropped.
    """
    point = 0
    for point in itertools.count():
        if not interrupted_in_block(point, run_in):
            break
    assert point > 50, "where are the points?"


# -- the canaries: what an interruption takes away is seen by the tests above ----------------------


def wakes_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Buffer, "wake_putters_anyway", lambda _: None)


def leaves_by_a_function(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have somebody stay the consumer where the function that is to change that is interrupted."""

    class Consumers(list[object]):
        def remove(self, me: object) -> None:
            super().remove(me)

    make = TokenQueue.__init__

    def make_with_consumers(queue: TokenQueue[Any], *args: Any, **kwargs: Any) -> None:
        make(queue, *args, **kwargs)
        queue.consumers = Consumers()

    monkeypatch.setattr(lines, "_TESTS", "nowhere")  # so that this one is interrupted, too
    monkeypatch.setattr(TokenQueue, "__init__", make_with_consumers)


@in_finalizers_too
@pytest.mark.parametrize(
    "planted, says",
    [(wakes_nobody, "no end within"), (leaves_by_a_function, "one that still waits")],
)
def test_what_an_interruption_leaves_undone_is_noticed(
    planted: Callable[[pytest.MonkeyPatch], None], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The canary: a producer that nobody wakes, a consumer that is not there any more."""
    planted(monkeypatch)
    with pytest.raises(AssertionError, match=says):
        for point in range(400):
            interrupted_at(point, "for", "thread", A_MOMENT, maxsize=1)
