"""LangChain callback handlers: `StreamHandler` and the ready-made ones over it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from queuestream._lazy import lazy

if TYPE_CHECKING:
    from collections.abc import Callable

    from queuestream.handlers.base import StreamHandler
    from queuestream.handlers.batch import BatchStreamHandler
    from queuestream.handlers.debug import DebugStreamHandler
    from queuestream.handlers.managed import ManagedStreamHandler
    from queuestream.handlers.memory import MemoryEfficientHandler
    from queuestream.handlers.queue import QueueStreamHandler
    from queuestream.handlers.resilient import ResilientStreamHandler
    from queuestream.handlers.safe import create_safe_handler
    from queuestream.handlers.statistics import RunStatistics, StatisticsStreamHandler
    from queuestream.handlers.ui import UIFriendlyHandler

__all__ = [
    "BatchStreamHandler",
    "DebugStreamHandler",
    "ManagedStreamHandler",
    "MemoryEfficientHandler",
    "QueueStreamHandler",
    "ResilientStreamHandler",
    "RunStatistics",
    "StatisticsStreamHandler",
    "StreamHandler",
    "UIFriendlyHandler",
    "create_safe_handler",
]

__getattr__: Callable[[str], object]
__dir__: Callable[[], list[str]]
__getattr__, __dir__ = lazy(
    __name__,
    {
        "BatchStreamHandler": "batch",
        "DebugStreamHandler": "debug",
        "ManagedStreamHandler": "managed",
        "MemoryEfficientHandler": "memory",
        "QueueStreamHandler": "queue",
        "ResilientStreamHandler": "resilient",
        "RunStatistics": "statistics",
        "StatisticsStreamHandler": "statistics",
        "StreamHandler": "base",
        "UIFriendlyHandler": "ui",
        "create_safe_handler": "safe",
    },
)
