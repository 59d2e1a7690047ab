"""Every way to have a run and to iterate its tokens, as parameters for one test body.

A `Case` names where the run happens, who consumes and through what queue.  Three
*producers* are `stream()`'s ``run_in``; three more start the run themselves and listen to
it with a `QueueStreamHandler`:

- ``handler-invoke``: ``invoke`` in a thread;
- ``handler-ainvoke``: ``ainvoke`` as a task of the consumer's own asyncio loop;
- ``handler-elsewhere``: ``ainvoke`` on an asyncio loop in another thread.
"""

from __future__ import annotations

import asyncio
import threading
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import janus
import pytest

from queuestream import QueueStreamHandler, TokenStream, stream
from tests.support.consumers import CONSUMERS, RUN_IN, Consumer
from tests.support.consumers import pairings as _pairings
from tests.support.gates import open_all_gates

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from langchain_core.callbacks import BaseCallbackHandler
    from langchain_core.runnables import Runnable

    from tests.support.consumers import RunIn

__all__ = [
    "CASES",
    "DEFAULT_CASES",
    "IMPOSSIBLE",
    "STREAM_CASES",
    "Case",
    "HandlerRun",
    "getters_of",
    "is_blocked",
    "putters_of",
    "queue_of",
]

HANDLER_PRODUCERS = ["handler-invoke", "handler-ainvoke", "handler-elsewhere"]

_ONE_LOOP = "a janus.Queue serves one asyncio loop, and here the run and its consumer are on two"

IMPOSSIBLE: dict[tuple[str, str, str], str] = {
    ("task", "for", "*"): "a task needs the consumer's own asyncio loop; a plain thread has none",
    ("task", "trio", "*"): "LangChain's async side is asyncio only: trio cannot run its tasks",
    ("handler-ainvoke", "for", "*"): "the loop that the run is on has no time to iterate",
    ("handler-ainvoke", "trio", "*"): "LangChain's async side is asyncio only",
    ("*", "trio", "janus"): "a janus.Queue has no face for trio",
    **{
        (producer, consumer, "janus"): _ONE_LOOP
        for producer in ("background", "handler-elsewhere")
        for consumer in ("asyncio", "uvloop", "eager")
    },
}
"""Combinations of producer, consumer and queue that cannot be, and why."""


@dataclass(frozen=True)
class Case:
    """Where the run happens, who consumes it, and the queue between them."""

    producer: str
    consumer: Consumer
    queue: str

    def __str__(self) -> str:
        """Return the name, for test ids."""
        return f"{self.producer}-{self.consumer}" + ("-janus" if self.queue == "janus" else "")

    @property
    def is_stream(self) -> bool:
        """Whether `stream()` starts the run."""
        return self.producer in RUN_IN

    @property
    def is_sync(self) -> bool:
        """Whether the run is an ``invoke``."""
        return self.producer in ("thread", "handler-invoke")

    def make_queue(self, maxsize: int) -> object | None:
        """Return the queue to give; None for the default."""
        return cast("object", janus.Queue[str](maxsize)) if self.queue == "janus" else None

    def _options(self, maxsize: int | None) -> dict[str, Any]:
        if self.queue == "janus":
            return {"queue": self.make_queue(256 if maxsize is None else maxsize)}
        return {} if maxsize is None else {"maxsize": maxsize}

    def stream(
        self,
        target: Runnable[Any, Any] | Callable[..., Any],
        data: Any = "?",
        config: Any = None,
        *,
        maxsize: int | None = None,
        **kwargs: Any,
    ) -> TokenStream[str]:
        """Make the stream of a case whose run `stream()` starts."""
        assert self.is_stream
        run_in = cast("RunIn", self.producer)
        return stream(target, data, config, run_in=run_in, **self._options(maxsize), **kwargs)

    @asynccontextmanager
    async def running(
        self,
        target: Runnable[Any, Any],
        data: Any = "?",
        *,
        callbacks: list[BaseCallbackHandler] | None = None,
        maxsize: int | None = None,
    ) -> AsyncIterator[Any]:
        """Start a run; what it yields is iterated, with ``for`` or ``async for``.

        Leaving the block closes.  Also for the two functions below: the yielded object's
        queue is at `queue_of`.
        """
        if self.is_stream:
            made = self.stream(target, data, {"callbacks": callbacks or []}, maxsize=maxsize)
            async with self.consumer.entered(made) as entered:
                yield entered
            return
        handler = QueueStreamHandler(**self._options(maxsize))
        run = HandlerRun(self.producer, target, data, [*(callbacks or []), handler])
        try:
            yield iter(handler)
        finally:
            handler.close()
            await run.wait(self.consumer)


class HandlerRun:
    """A run that the test starts itself, and its outcome.

    Attributes:
        value: What the target returned.
        error: What it raised instead.
    """

    def __init__(
        self, producer: str, target: Runnable[Any, Any], data: Any, callbacks: list[Any]
    ) -> None:
        self.value: Any = None
        self.error: BaseException | None = None
        self.task: asyncio.Future[None] | None = None
        self.thread: threading.Thread | None = None
        config: Any = {"callbacks": callbacks}

        async def ainvoke() -> None:
            try:
                self.value = await target.ainvoke(data, config)
            except BaseException as error:  # it is what the test looks at
                self.error = error

        def invoke() -> None:
            try:
                self.value = target.invoke(data, config)
            except BaseException as error:  # it is what the test looks at
                self.error = error

        if producer == "handler-ainvoke":
            self.task = asyncio.ensure_future(ainvoke())
            return
        work = invoke if producer == "handler-invoke" else lambda: asyncio.run(ainvoke())
        self.thread = threading.Thread(target=work, name=producer, daemon=True)
        self.thread.start()

    async def wait(self, consumer: Consumer) -> None:
        """Wait for the end of the run; models that a test left silent go on."""
        open_all_gates()
        if self.task is not None:
            await self.task
        elif self.thread is not None:
            thread = self.thread
            await consumer.wait(lambda: thread.join(5))
            assert not thread.is_alive()


def _cases() -> list[Any]:
    marks = {param.values[1].name: param.marks for param in _pairings()}
    return [
        pytest.param(
            case := Case(producer, consumer, queue), id=str(case), marks=marks[consumer.name]
        )
        for producer in [*RUN_IN, *HANDLER_PRODUCERS]
        for consumer in CONSUMERS
        for queue in ("default", "janus")
        if not {
            (producer, consumer.name, "*"),
            ("*", consumer.name, queue),
            (producer, consumer.name, queue),
        }
        & set(IMPOSSIBLE)
    ]


CASES = _cases()
"""For ``@pytest.mark.parametrize("case", CASES)``: all that can be."""
DEFAULT_CASES = [case for case in CASES if case.values[0].queue == "default"]
"""Those with the default queue."""
STREAM_CASES = [case for case in CASES if case.values[0].is_stream]
"""Those whose run `stream()` starts."""


def queue_of(tokens: Any) -> Any:
    """Return the `TokenQueue` of what `Case.running` yields."""
    return tokens._tokens if isinstance(tokens, TokenStream) else tokens._handler.tokens


def putters_of(tokens: Any) -> int:
    """How many producers wait for a free slot of the default queue."""
    return len(queue_of(tokens).buffer._putters)


def getters_of(tokens: Any) -> int:
    """How many consumers wait for an item of the default queue."""
    return len(queue_of(tokens).buffer._getters)


def is_blocked(tokens: Any) -> bool:
    """Whether the run waits for the consumer.  From then on it makes nothing by itself."""
    return putters_of(tokens) > 0
