"""The event loops that the tests run on, as parameters for anyio's pytest plugin."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import pytest

__all__ = [
    "ALL_BACKENDS",
    "ASYNCIO",
    "ASYNCIO_BACKENDS",
    "EAGER",
    "TRIO",
    "UVLOOP",
    "eager_loop",
]


def eager_loop() -> asyncio.AbstractEventLoop:
    """Return an asyncio loop whose tasks start at once, inside `create_task` (3.12)."""
    loop = asyncio.new_event_loop()
    if sys.version_info >= (3, 12):
        loop.set_task_factory(asyncio.eager_task_factory)
    return loop


ASYNCIO: tuple[str, dict[str, Any]] = ("asyncio", {"use_uvloop": False})
UVLOOP: tuple[str, dict[str, Any]] = ("asyncio", {"use_uvloop": True})
EAGER: tuple[str, dict[str, Any]] = ("asyncio", {"loop_factory": eager_loop})
TRIO: tuple[str, dict[str, Any]] = ("trio", {"restrict_keyboard_interrupt_to_checkpoints": True})

ASYNCIO_BACKENDS = [
    pytest.param(ASYNCIO, id="asyncio"),
    pytest.param(
        UVLOOP,
        id="uvloop",
        marks=pytest.mark.skipif(sys.platform == "win32", reason="uvloop is for Unix"),
    ),
    pytest.param(
        EAGER,
        id="eager",
        marks=pytest.mark.skipif(
            sys.version_info < (3, 12), reason="eager tasks came with Python 3.12"
        ),
    ),
]
ALL_BACKENDS = [*ASYNCIO_BACKENDS, pytest.param(TRIO, id="trio")]
