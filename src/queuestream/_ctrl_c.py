"""Ctrl-C that is heard for certain while the main thread waits for a token."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

__all__ = ["closed_by_ctrl_c"]


@contextlib.contextmanager
def closed_by_ctrl_c(close: Callable[[], None]) -> Generator[None, None, None]:
    """Have Ctrl-C wake the loop for certain.

    Python raises KeyboardInterrupt between two bytecodes.  A signal that comes when the main
    thread is about to sleep on a lock waits until that thread is woken by something else.  So
    another thread hears of signals, too, and closes the stream, which wakes the loop.

    In another thread than the main one, and where Ctrl-C is handled by somebody else, this
    does nothing.
    """
    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    heard, said = socket.socketpair()
    said.setblocking(False)

    def listen() -> None:
        while number := heard.recv(1):
            if number[0] == signal.SIGINT:
                close()

    listener = threading.Thread(target=listen, name="queuestream signals", daemon=True)
    listener.start()
    before = signal.set_wakeup_fd(said.fileno(), warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        said.close()
        listener.join()
        heard.close()
