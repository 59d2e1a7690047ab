"""`UIFriendlyHandler`: shows that somebody is typing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from queuestream._turns import running_asyncio_loop
from queuestream.handlers._turns import Turns, may_wait
from queuestream.handlers.base import StreamHandler

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from uuid import UUID

    from langchain_core.outputs import LLMResult

    from queuestream.events import About

__all__ = ["INDICATOR", "UIFriendlyHandler"]

INDICATOR = "⋯"
"""What shows that somebody is typing."""

_ERASE = "\b \b" * len(INDICATOR)


class UIFriendlyHandler(StreamHandler):
    r"""Shows an indicator until the first token comes.

    The indicator is delivered as a text of its own when the run starts, and erased before
    the first token, or at the end of a run that has none: each of its characters by
    ``"\b \b"``, as a terminal wants it.  Runs that go on at the same time share the screen:
    there is one indicator, and no text is ever put behind it.  (One exception: synchronous
    code on a loop's own thread does not wait for its turn there, see `StreamHandler`.)

    >>> from langchain_core.language_models import FakeListChatModel
    >>> shown = []
    >>> handler = UIFriendlyHandler(shown.append)
    >>> _ = FakeListChatModel(responses=["Hi"]).invoke("Hello", {"callbacks": [handler]})
    >>> shown
    ['⋯', '\x08 \x08', 'H', 'i']

    Args:
        on_token: See `StreamHandler`.
        typing_indicator: Whether there is one.
        raise_error: As of `StreamHandler`.

    Raises:
        TypeError: If ``on_token`` is not callable.

    **Thread safety**: as of `StreamHandler`; but ``on_token`` is called once at a time.
    """

    holds_back: bool = True

    def __init__(
        self,
        on_token: Callable[[str], object],
        typing_indicator: bool = True,  # noqa: FBT001, FBT002 - the reference document's signature
        *,
        raise_error: bool = False,
    ) -> None:
        super().__init__(on_token, raise_error=raise_error)
        self.typing_indicator = typing_indicator
        self._turns = Turns()
        # In turn: whether the indicator is on the screen, and the runs without a token so far.
        self._is_shown = False
        self._silent: set[object] = set()

    def _new_state(self, about: About) -> object:
        return object()

    # What is said of the screen is said when it is so: these go on after each delivery, and are
    # dropped if that fails.

    def _texts_at_start(self, state: object) -> Iterable[str]:
        if not self.typing_indicator:
            return
        self._silent.add(state)
        if not self._is_shown:
            yield INDICATOR
            self._is_shown = True

    def _texts_of_token(self, state: object, token: str) -> Iterable[str]:
        self._silent.discard(state)
        yield from self._erase()
        yield token

    def _texts_at_end(self, state: object, response: LLMResult | None) -> Iterable[str]:
        self._silent.discard(state)
        if not self._silent:
            yield from self._erase()

    def _erase(self) -> Iterable[str]:
        if self._is_shown:
            yield _ERASE
            self._is_shown = False

    # All in turn, or an indicator and its end could overtake each other.

    def _begin(self, about: About) -> None:
        with self._turns.in_thread(waits=may_wait(self, about.run_id)):
            super()._begin(about)

    async def _begin_in_task(self, about: About, loop: object) -> None:
        async with self._turns.in_task(waits=running_asyncio_loop() is loop):
            await super()._begin_in_task(about, loop)

    def _receive(self, token: str, run_id: UUID | None, details: dict[str, Any]) -> None:
        with self._turns.in_thread(waits=may_wait(self, run_id)):
            super()._receive(token, run_id, details)

    async def _receive_in_task(
        self, token: str, run_id: UUID | None, loop: object, details: dict[str, Any]
    ) -> None:
        async with self._turns.in_task(waits=running_asyncio_loop() is loop):
            await super()._receive_in_task(token, run_id, loop, details)

    def _finish(self, run_id: UUID | None, response: LLMResult | None) -> None:
        with self._turns.in_thread(waits=may_wait(self, run_id)):
            super()._finish(run_id, response)

    async def _finish_in_task(
        self, run_id: UUID | None, loop: object, response: LLMResult | None
    ) -> None:
        async with self._turns.in_task(waits=running_asyncio_loop() is loop):
            await super()._finish_in_task(run_id, loop, response)
