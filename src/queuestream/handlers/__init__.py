"""LangChain callback handlers: `StreamHandler` and the ready-made ones over it.

The ready-made ones are imported when they are asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from queuestream.handlers.base import StreamHandler
from queuestream.handlers.queue import QueueStreamHandler

if TYPE_CHECKING:
    from queuestream.handlers.batch import BatchStreamHandler
    from queuestream.handlers.debug import DebugStreamHandler
    from queuestream.handlers.managed import ManagedStreamHandler
    from queuestream.handlers.memory import MemoryEfficientHandler
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

_READY_MADE = {
    "BatchStreamHandler": "batch",
    "DebugStreamHandler": "debug",
    "ManagedStreamHandler": "managed",
    "MemoryEfficientHandler": "memory",
    "ResilientStreamHandler": "resilient",
    "RunStatistics": "statistics",
    "StatisticsStreamHandler": "statistics",
    "UIFriendlyHandler": "ui",
    "create_safe_handler": "safe",
}
"""Each name, and the module that has it."""


def __getattr__(name: str) -> object:
    if name not in _READY_MADE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{_READY_MADE[name]}")
    found: object = getattr(module, name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
