"""Iterate the tokens of any LangChain runnable with a plain ``for`` or ``async for``.

The run goes on in a background thread or task; between it and the loop stands a bounded
queue that lives on both sides of that border::

    from queuestream import stream

    with stream(chain, {"topic": "rivers"}) as tokens:
        for token in tokens:
            print(token, end="", flush=True)

Everything is imported when it is first asked for.  The layers, each importing only from
those before it: ``_lazy``; `errors`; ``_messages`` (takes apart what models report);
``_checks`` (of arguments); ``_ctrl_c`` (wakes a loop); ``_wakeups`` (wakes a waiter);
``_buffer`` (guards the items);
`mixed_queue` (its two faces); ``_meter`` (what is measured); ``_token_queue`` (a run and its
consumer at the two ends of a queue); `events` (from LangChain's reports to what is
iterated); ``_reader`` (the consumer's end); ``_attempts`` (what is a restart of what);
``_background`` (the shared loop); ``_containment`` (what a run makes on a loop); `handlers`
(LangChain's callbacks); ``_calls`` (a target with its arguments); `producers` (where a run
happens); `token_stream` (all joined); ``ui`` (screens), ``relay`` (over Redis).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from queuestream._lazy import lazy

if TYPE_CHECKING:
    from collections.abc import Callable

    from queuestream._meter import StreamStatistics
    from queuestream.events import TokenEvent
    from queuestream.handlers import QueueStreamHandler, StreamHandler
    from queuestream.mixed_queue import MixedQueue
    from queuestream.token_stream import TokenStream, stream

__all__ = [
    "MixedQueue",
    "QueueStreamHandler",
    "StreamHandler",
    "StreamStatistics",
    "TokenEvent",
    "TokenStream",
    "stream",
]

__getattr__: Callable[[str], object]
__dir__: Callable[[], list[str]]
__getattr__, __dir__ = lazy(
    __name__,
    {
        "MixedQueue": "mixed_queue",
        "QueueStreamHandler": "handlers",
        "StreamHandler": "handlers",
        "StreamStatistics": "_meter",
        "TokenEvent": "events",
        "TokenStream": "token_stream",
        "stream": "token_stream",
        "demo": None,
        "errors": None,
        "events": None,
        "handlers": None,
        "mixed_queue": None,
        "relay": None,
        "token_stream": None,
        "ui": None,
    },
)
