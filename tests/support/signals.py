"""A signal that interrupts the main thread while it waits."""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

__all__ = ["needs_signals", "signals_when"]

WITHIN = 5.0
"""Seconds for the sender to end."""

needs_signals = pytest.mark.skipif(
    not hasattr(signal, "pthread_kill"), reason="signals between threads are for Unix"
)


@contextmanager
def signals_when(
    ready: Callable[[], object], handle: Callable[[int, FrameType | None], object]
) -> Iterator[None]:
    """Send the main thread a signal from another one, when it is ready, until it heard it.

    More than once, because a signal that comes just before the main thread goes to sleep in
    a lock does not wake it: CPython looks before it sleeps, and the two are no one step.  It
    lets go of the interpreter between them, so the sender often comes right there.

    Args:
        ready: Called in the other thread; returns once the signal is to be sent.
        handle: The handler; called once, however often the signal was sent.
    """
    heard = threading.Event()

    def hear(number: int, frame: FrameType | None) -> None:
        if not heard.is_set():
            heard.set()
            handle(number, frame)

    def send() -> None:
        ready()
        while not heard.is_set():
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
            heard.wait(0.05)

    old = signal.signal(signal.SIGUSR1, hear)
    sender = threading.Thread(target=send)
    sender.start()
    try:
        yield
    finally:
        heard.set()
        sender.join(WITHIN)
        signal.signal(signal.SIGUSR1, old)
