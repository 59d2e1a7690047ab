"""The runs that answer: how many there may be, and how each is heard, stopped and told of.

Each answer is a `Run`, an asynchronous iterator over a `TokenStream` that `sse_response` can
send.  `Runs` counts them, and stops them all when the server goes.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Protocol

from queuestream._messages import text_returned
from queuestream.errors import StreamClosedError
from queuestream.web.serve.failures import Refused, logger

if TYPE_CHECKING:
    from collections.abc import Iterator

    from langchain_core.messages.ai import UsageMetadata
    from typing_extensions import Self

    from queuestream.events import TokenEvent
    from queuestream.token_stream import TokenStream

__all__ = ["Run", "Runs", "shown_reason"]

_CALLS = {"tool_calls", "tool_use", "function_call"}


def shown_reason(reason: str | None, *, with_tool_calls: bool) -> str | None:
    """Why a model stopped, for a client: a call that is left out is no reason."""
    return None if reason in _CALLS and not with_tool_calls else reason


class Run:
    """One answer: the events of a stream, fit for somebody who sees nothing of the run.

    A chain or a graph calls its tools itself, so that its client must not: such events are
    left out.  Where no model was heard, what the run returned is the answer, if it is text.

    Attributes:
        tokens: That stream.

    **Thread safety**: as of `TokenStream`; `close` from anywhere.
    """

    def __init__(self, tokens: TokenStream[TokenEvent], *, with_tool_calls: bool) -> None:
        self.tokens = tokens
        self._with_tool_calls = with_tool_calls
        self._has_said = False  # anything that a client sees
        self._is_over = False

    def __aiter__(self) -> Self:
        """Return the iterator."""
        return self

    async def __anext__(self) -> TokenEvent | str:
        """Return the next event, or what the run returned if that is all there is.

        Raises:
            StopAsyncIteration: If the run has ended.
            Exception: As of `TokenStream`; a ``SystemExit`` of the run is a RuntimeError here.

        **Cancellation**: no event is taken; the run goes on.
        """
        if self._is_over:
            raise StopAsyncIteration
        try:
            while True:
                event = await anext(self.tokens)
                if event.kind == "tool_call" and not self._with_tool_calls:
                    continue
                if event.kind != "usage":
                    self._has_said = True
                return event
        except StopAsyncIteration:
            self._is_over = True
            if not self._has_said and (said := text_returned(self.tokens.result)):
                return said
            raise
        except (KeyboardInterrupt, SystemExit) as error:  # a tool that thinks it is alone
            raise RuntimeError(f"the run raised {type(error).__name__}") from error

    @property
    def usage(self) -> UsageMetadata | None:
        """As of the stream."""
        return self.tokens.usage

    @property
    def finish_reason(self) -> str | None:
        """As of the stream; a call that is left out is no reason."""
        return shown_reason(self.tokens.finish_reason, with_tool_calls=self._with_tool_calls)

    def close(self) -> None:
        """Stop the run, as `TokenStream.close` does."""
        self.tokens.close()

    async def aclose(self) -> None:
        """Stop the run, as `TokenStream.aclose` does."""
        await self.tokens.aclose()

    def outcome(self) -> str:
        """How it went, for a line of the log."""
        told = self.tokens.statistics
        first = told.time_to_first_token
        how = (
            "no token" if first is None else f"{told.tokens} tokens, the first after {first:.3f} s"
        )
        return f"{how}, {told.duration:.3f} s in all{self._end()}"

    def _end(self) -> str:
        try:
            _ = self.tokens.result
        except StreamClosedError:
            return ", stopped"
        except BaseException as error:
            return f", failed with {type(error).__name__}"
        return ""


class Counted(Protocol):
    """What `Runs` counts: a run, or a reader of one."""

    def close(self) -> object:
        """Stop it."""

    def outcome(self) -> str:
        """How it went."""
        ...


class Runs:
    """All answers of one application that are being made now.

    Attributes:
        limit: How many there may be.
        followers: Others that end with it, before its own runs do.
        is_closing: Whether the server is about to end.

    **Thread safety**: one loop; `close_all` from a signal handler of its thread, too.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.followers: list[Runs] = []
        self._open: set[Counted] = set()
        self.is_closing: bool = False

    def __len__(self) -> int:
        """How many there are."""
        return len(self._open)

    @contextlib.contextmanager
    def opened(self, run: Counted, name: str) -> Iterator[None]:
        """Count a run while it lasts; stop it at the end, whatever happens.

        Raises:
            Refused: With 429 if there are as many as there may be, with 503 if the server
                is about to end.
        """
        if self.is_closing:
            raise Refused(503, "The server is shutting down.", code="shutting_down")
        if len(self._open) >= self.limit:
            raise Refused(
                429,
                f"{self.limit} answers are being streamed, and there can be no more. "
                "Try again in a moment.",
                code="too_many_streams",
                headers={"Retry-After": "1"},
            )
        self._open.add(run)
        try:
            yield
        finally:
            run.close()
            self._open.discard(run)
            logger.info("%s: %s", name, run.outcome())

    def close_all(self) -> None:
        """Stop every run, and begin no other: each client is told, in band."""
        self.is_closing = True
        for follower in self.followers:
            follower.close_all()
        for run in list(self._open):
            run.close()
