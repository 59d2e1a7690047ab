"""The consumer's end of a stream: items become values, waits are timed, text is kept.

A piece (`Reader.get_piece`) is gathered outside of the reader, and what has been gathered
is put back if the gathering is left early, so that a cancelled consumer has taken nothing.
"""

from __future__ import annotations

from collections import deque
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from queuestream._token_queue import Ended, TimedOut
from queuestream._wakeups import end_turn, must_yield
from queuestream.events import Joinable, Restart, text_of_value

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

    from queuestream._meter import Counter
    from queuestream._token_queue import TokenQueue

__all__ = ["Reader"]

T = TypeVar("T")


class Reader(Generic[T]):
    """Reads a `TokenQueue`.

    Args:
        tokens: The queue.
        first_limit: Seconds that one wait for the first item may last; for ever if None.
        later_limit: The same for each item after it.

    Attributes:
        tokens: As given.
        limit: The limit for the next item.
        is_first: Whether nothing was delivered yet.
        kept: Items that were taken from the queue and not delivered, by a piece.
    """

    __slots__ = (
        "_later_limit",
        "_segments",
        "_texts",
        "_whose",
        "is_first",
        "kept",
        "limit",
        "tokens",
    )

    def __init__(
        self, tokens: TokenQueue[Any], first_limit: float | None, later_limit: float | None
    ) -> None:
        self.tokens = tokens
        self.limit = first_limit
        self._later_limit = later_limit
        self.is_first = True
        self.kept: deque[Any] = deque()
        # The delivered text: whose it is, and the pieces of it.
        self._segments: list[tuple[Counter, list[str]]] = []
        # The last of them.
        self._whose: Counter | None = None
        self._texts: list[str] = []

    @property
    def text(self) -> str:
        """The text that was delivered, but for that of failed attempts."""
        return "".join("".join(texts) for _, texts in tuple(self._segments))

    # -- item by item ------------------------------------------------------------------------

    def get(self) -> T:
        """Return the next value; wait for it.

        Raises:
            Ended: If there will be none.
            TimedOut: If there was none within the limit.
            ConcurrentIterationError: If another consumer waits already.
        """
        while True:
            item = self._take_kept() if self.kept else None
            if item is None:
                item = self.tokens.get(self.limit)
            if (value := self._value(item)) is not None:
                return value

    async def get_in_task(self) -> T:
        """Like `get`, from a task.

        **Cancellation**: no item is taken.
        """
        while True:
            item = self._take_kept() if self.kept else None
            if item is None:
                item = await self.tokens.get_in_task(self.limit)
            if (value := self._value(item)) is not None:
                return value

    def _take_kept(self) -> Any:
        return None if self.tokens.closed else self.kept.popleft()

    def _value(self, item: Any) -> T | None:
        """What the consumer gets for an item; None if nothing."""
        if type(item) is tuple:
            run, value = item
            if run is self._whose and type(value) is str:  # as in `deliver`, but shorter
                self._texts.append(value)
                return cast("T", value)
            return self.deliver(run, value)
        if isinstance(item, Joinable):
            return self.deliver(item.run, item.value())
        self.restart(item)
        return cast("T | None", item.event)

    def deliver(self, run: Counter, value: Any) -> T:
        """Take note of a value that the consumer gets."""
        if self.is_first:
            self.is_first = False
            self.limit = self._later_limit
        text = value if type(value) is str else text_of_value(value)
        if text:
            if run is not self._whose:
                self._whose = run
                self._texts = []
                self._segments.append((run, self._texts))
            self._texts.append(text)
        return cast("T", value)

    def restart(self, restart: Restart) -> None:
        """An attempt has failed: what it delivered is void."""
        self._segments = [each for each in self._segments if each[0] not in restart.void]
        self._whose = None

    # -- piece by piece ----------------------------------------------------------------------

    def get_piece(self, max_tokens: int | None, max_delay: float | None) -> str:
        """Return what waits, joined; wait for the first token, as `get` does.

        Args:
            max_tokens: The most tokens that are joined.
            max_delay: Seconds to wait for more after the first; to the end if None.
        """
        with _Gathering(self, max_tokens, max_delay) as piece:
            while piece.wants_more():
                piece.add(self.tokens.get(piece.limit, is_extended=piece.is_empty))
        return piece.deliver()

    async def get_piece_in_task(self, max_tokens: int | None, max_delay: float | None) -> str:
        """Like `get_piece`, from a task.

        **Cancellation**: no token is taken.
        """
        if must_yield():
            await end_turn()
        with _Gathering(self, max_tokens, max_delay) as piece:
            while piece.wants_more():
                piece.add(await self.tokens.get_in_task(piece.limit, is_extended=piece.is_empty))
        return piece.deliver()


class _Gathering:
    """One piece in the making.

    Leaving it early puts back what was gathered; but the end of the queue, or of the time,
    only completes a piece that is not empty.  A restart completes it, too.

    Attributes:
        limit: How many seconds to wait for the next item.
        is_empty: Whether there is nothing in it yet.
    """

    __slots__ = ("_deadline", "_delay", "_is_complete", "_items", "_most", "_reader", "limit")

    def __init__(
        self, reader: Reader[Any], max_tokens: int | None, max_delay: float | None
    ) -> None:
        self._reader = reader
        self._most = max_tokens
        self._delay = max_delay
        self._items: deque[Any] = deque()  # tokens, and at the end perhaps more than the piece
        self._is_complete = False
        self._deadline: float | None = None
        self.limit = reader.limit

    @property
    def is_empty(self) -> bool:
        return not self._items

    def __enter__(self) -> Self:
        kept, self._reader.kept = self._reader.kept, deque()
        for item in () if self._reader.tokens.closed else kept:
            self.add(item)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        if isinstance(error, (Ended, TimedOut)) and not self.is_empty:
            return True
        if error is not None:
            self._put_back()
        return False

    def _put_back(self) -> None:
        self._reader.kept.extendleft(reversed(self._items))

    def add(self, item: Any) -> None:
        """Add an item of the queue."""
        if isinstance(item, Joinable):
            self._items.extend((item.run, text) for text in item.values)
        elif isinstance(item, Restart) and not self._items:
            self._reader.restart(item)
        else:
            self._items.append(item)
            self._is_complete = self._is_complete or isinstance(item, Restart)

    def wants_more(self) -> bool:
        """Take what waits; whether to wait for more, at most `limit` seconds."""
        if not self._room():
            return False
        for item in self._reader.tokens.get_waiting(self._room()):
            self.add(item)
        if self.is_empty:
            return True
        if self._delay == 0 or not self._room():
            return False
        if self._delay is None:
            self.limit = None
            return True
        now = monotonic()
        if self._deadline is None:
            self._deadline = now + self._delay
        self.limit = self._deadline - now
        return self.limit > 0

    def _room(self) -> float:
        """How many tokens may be added."""
        if self._is_complete:
            return 0
        return inf if self._most is None else max(0, self._most - len(self._items))

    def deliver(self) -> str:
        """Return the piece; what is beyond it is the next one's."""
        texts: list[str] = []
        while self._items and not isinstance(self._items[0], Restart):
            if self._most is not None and len(texts) >= self._most:
                break
            texts.append(self._reader.deliver(*self._items.popleft()))
        self._put_back()
        return "".join(texts)
