"""The consumer's end of a stream: items become values, waits are timed, text is kept.

A piece (`Reader.get_piece`) is gathered in the reader, and leaves it when it is delivered.
So whoever is cancelled or interrupted in between has taken nothing.
"""

from __future__ import annotations

from collections import deque
from math import inf
from threading import get_ident
from time import monotonic
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from queuestream._buffer import BLOCKED
from queuestream._token_queue import Ended, TimedOut
from queuestream._turns import TURN, end_turn, must_yield
from queuestream.events import Joinable, Restart, TokenEvent, events_of, text_of_value

if TYPE_CHECKING:
    from collections.abc import Collection

    from queuestream._meter import Counter
    from queuestream._token_queue import TokenQueue

__all__ = ["EventReader", "Reader"]

T = TypeVar("T")

_NOTHING: deque[Any] = deque()
"""Of all readers that have not made a piece yet, never changed: most never do."""

_HOT = 8
"""Values that a task takes in one go, after which it looks once more before it waits.

One turn of the loop costs half of what a wake-up from another thread does, and lets the
producer have the interpreter meanwhile.  With ``maxsize=64`` that saves three wake-ups of
four in a burst; where tokens come one by one it is never done.
"""


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
        left_of_turn: How many more values a task may take with `get_now`, and so without
            letting others run.
        kept: Items that were taken from the queue and not delivered, by a piece.
    """

    __slots__ = (
        "_buffer",
        "_segments",
        "_texts",
        "_void",
        "_whose",
        "is_first",
        "kept",
        "later_limit",
        "left_of_turn",
        "limit",
        "tokens",
    )

    def __init__(
        self, tokens: TokenQueue[Any], first_limit: float | None, later_limit: float | None
    ) -> None:
        self.tokens = tokens
        self._buffer = tokens.buffer
        self.limit = first_limit
        self.later_limit = later_limit
        self.is_first = True
        self.left_of_turn = TURN
        self.kept = _NOTHING
        # The delivered text: whose it is, and the pieces of it.
        self._segments: list[tuple[Counter, list[str]]] = []
        # The model runs of failed attempts; some may go on, and begin to deliver.
        self._void: list[Collection[Counter]] = []
        # The run that had the last text, and where its next one goes.
        self._whose: Counter | None = None
        self._texts: list[str] = []

    @property
    def text(self) -> str:
        """The text that was delivered, but for that of failed attempts."""
        return "".join("".join(texts) for _, texts in tuple(self._segments))

    # -- item by item ------------------------------------------------------------------------

    def get_now(self) -> T | None:
        """Return the next value if it waits and nothing else is to be done; else None."""
        tokens = self.tokens
        if tokens.consumers or self.kept or self._buffer is None:
            return None
        tokens.consumer_thread = get_ident()
        item = self._buffer.get_now()
        if type(item) is tuple:
            run, value = item
            if run is self._whose and type(value) is str:  # as in `deliver`, but shorter
                self._texts.append(value)
                return cast("T", value)
            return self.deliver(run, value)
        return None if item is BLOCKED else self._value(item)

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
        is_hot = self.left_of_turn <= TURN - _HOT
        self.left_of_turn = TURN
        if is_hot:
            with self.tokens.consuming():
                await end_turn()
            if (value := self.get_now()) is not None:
                return value
        while True:
            item = None
            if self.kept:
                if must_yield():
                    await end_turn()
                item = self._take_kept()
            if item is None:
                item = await self.tokens.get_in_task(self.limit)
            if (value := self._value(item)) is not None:
                return value

    def _take_kept(self) -> Any:
        me = object()
        try:
            self.tokens.enter(me)
            return self.kept.popleft() if self.kept and not self.tokens.closed else None
        finally:
            try:  # see `get_piece`
                self.tokens.consumers.remove(me)
            except ValueError:
                pass

    def _value(self, item: Any) -> T | None:
        """What the consumer gets for an item; None if nothing."""
        if type(item) is tuple:
            return self.deliver(*item)
        if isinstance(item, Joinable):
            return self.deliver(item.run, item.value())
        self.restart(item)
        return cast("T | None", item.event)

    def deliver(self, run: Counter, value: Any) -> T:
        """Take note of a value that the consumer gets."""
        if self.is_first:
            self.is_first = False
            self.limit = self.later_limit
        text = value if type(value) is str else text_of_value(value)
        if text:
            if run is not self._whose:
                texts: list[str] = []
                if not any(run in void for void in self._void):
                    self._segments.append((run, texts))
                self._texts = texts  # last, so that Ctrl-C leaves no text outside of the segments
                self._whose = run
            self._texts.append(text)
        return cast("T", value)

    def restart(self, restart: Restart) -> None:
        """An attempt has failed: what it delivered is void."""
        self._void.append(restart.void)
        self._segments = [each for each in self._segments if each[0] not in restart.void]
        self._whose = None

    # -- piece by piece ----------------------------------------------------------------------

    def get_piece(self, max_tokens: int | None, max_delay: float | None) -> str:
        """Return what waits, joined; wait for the first token, as `get` does.

        Args:
            max_tokens: The most tokens that are joined.
            max_delay: Seconds to wait for more after the first; to the end if None.
        """
        me = object()
        try:
            self.tokens.enter(me)
            piece = _Gathering(self, max_tokens, max_delay)
            try:
                while piece.wants_more():
                    piece.add(self.tokens.get_more(piece.limit, is_extended=piece.is_empty))
            except (Ended, TimedOut):
                if piece.is_empty:
                    raise
            return piece.deliver()
        finally:
            # Not by `TokenQueue.consuming`: Ctrl-C can come where a function begins.
            try:
                self.tokens.consumers.remove(me)
            except ValueError:  # interrupted before it entered
                pass

    async def get_piece_in_task(self, max_tokens: int | None, max_delay: float | None) -> str:
        """Like `get_piece`, from a task.

        **Cancellation**: no token is taken.
        """
        with self.tokens.consuming():
            if must_yield():
                await end_turn()
            piece = _Gathering(self, max_tokens, max_delay)
            try:
                while piece.wants_more():
                    piece.add(
                        await self.tokens.get_more_in_task(piece.limit, is_extended=piece.is_empty)
                    )
            except (Ended, TimedOut):
                if piece.is_empty:
                    raise
            return piece.deliver()


class EventReader(Reader[TokenEvent]):
    """Reads events from a queue, whatever was selected when its items were put.

    Args:
        reader: The reader that it takes the place of; with what that one has delivered.
    """

    __slots__ = ("_attempt",)

    def __init__(self, reader: Reader[Any]) -> None:
        super().__init__(reader.tokens, reader.limit, reader.later_limit)
        self.is_first = reader.is_first
        self.kept = reader.kept
        self._segments, self._void = reader._segments, reader._void  # noqa: SLF001 - a base's
        self._attempt = 1

    def deliver(self, run: Any, value: Any) -> Any:
        """Return the first event that a value stands for, and keep the others."""
        events = events_of(run, value)
        if not events:
            if self._buffer is not None:
                self._buffer.let_go(1)  # nobody else will
            return None
        first, *more = events
        if more:
            if self._buffer is not None:
                self._buffer.hold(len(more))  # each event is let go
            if self.kept is _NOTHING:
                self.kept = deque()
            self.kept.extendleft((run, event) for event in reversed(more))
        self._attempt = first.attempt
        return super().deliver(run, first)

    def _value(self, item: Any) -> TokenEvent | None:
        value = super()._value(item)
        if value is None and isinstance(item, Restart):  # put when nobody wanted events
            self._attempt += 1
            return TokenEvent(
                "restart", "", None, None, None, "", None, (), self._attempt, streamed=True
            )
        return value


class _Gathering:
    """One piece in the making: the first of what the reader keeps.

    The end of the queue, or of the time, only completes a piece that is not empty.  A
    restart completes it, too.

    Attributes:
        limit: How many seconds to wait for the next item.
    """

    __slots__ = ("_count", "_deadline", "_delay", "_is_complete", "_most", "_reader", "limit")

    def __init__(
        self, reader: Reader[Any], max_tokens: int | None, max_delay: float | None
    ) -> None:
        self._reader = reader
        self._most = inf if max_tokens is None else max_tokens
        self._delay = max_delay
        self._deadline: float | None = None
        self.limit = reader.limit
        self._count = 0  # tokens that are kept, up to the first restart
        self._is_complete = False
        while reader.kept and isinstance(reader.kept[0], Restart):
            reader.restart(reader.kept.popleft())
        for item in reader.kept:
            self._note(item)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing in it yet."""
        return not self._count

    def _note(self, item: Any) -> None:
        if isinstance(item, Restart):
            self._is_complete = True
        elif not self._is_complete:
            self._count += 1

    def add(self, item: Any) -> None:
        """Add an item of the queue."""
        reader = self._reader
        if reader.kept is _NOTHING:
            reader.kept = deque()
        kept = reader.kept
        if isinstance(item, Restart) and not kept:
            reader.restart(item)
            return
        tokens = [item]
        if isinstance(item, Joinable):
            tokens = [(item.run, text) for text in item.values]
        kept.extend(tokens)
        for token in tokens:
            self._note(token)

    def wants_more(self) -> bool:
        """Take what waits; whether to wait for more, at most `limit` seconds."""
        if self._has_enough():
            return False
        for item in self._reader.tokens.get_waiting():
            self.add(item)
            if self._has_enough():
                return False
        if self.is_empty:
            return True
        if self._delay == 0:
            return False
        self.limit = self._reader.later_limit  # of one wait, also of one for more
        if self._delay is None:
            return True
        now = monotonic()
        if self._deadline is None:
            self._deadline = now + self._delay
        left = self._deadline - now
        self.limit = left if self.limit is None else min(left, self.limit)
        return left > 0

    def _has_enough(self) -> bool:
        return self._is_complete or self._count >= self._most

    def deliver(self) -> str:
        """Return the piece; what is beyond it is the next one's.

        Raises:
            Ended: If somebody has closed meanwhile.
        """
        reader = self._reader
        if reader.tokens.closed:
            raise Ended
        number = int(min(self._count, self._most))
        return "".join([reader.deliver(*reader.kept.popleft()) for _ in range(number)])
