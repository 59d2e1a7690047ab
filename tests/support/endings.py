"""The end of a stream, which may not come: a test that waits for it fails, and does not hang."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from queuestream import QueueStreamHandler, TokenStream
from queuestream._token_queue import TokenQueue

if TYPE_CHECKING:
    import pytest

    from tests.support.consumers import Consumer

__all__ = ["A_MOMENT", "ending", "put_no_end"]

A_MOMENT = 0.2
"""Seconds that a canary waits for an end that is sure not to come."""


async def ending(
    consumer: Consumer, running: Any, within: float = 10.0
) -> tuple[list[str], BaseException | None]:
    """Iterate to the end: what came, and what was raised there.

    Fails after `within` seconds without an end.  Then the consumer is made to go, in its own
    thread or task, so that it is the one that has waited.
    """
    too_late = threading.Event()

    def let_go() -> None:
        too_late.set()
        (running if isinstance(running, TokenStream) else running._handler).close()

    alarm = threading.Timer(within, let_go)
    alarm.start()
    received: list[str] = []
    raised: BaseException | None = None
    try:
        async for token in consumer.iterate(running):
            received.append(token)  # noqa: PERF401 - what came before the error is kept
    except BaseException as error:
        raised = error
    finally:
        alarm.cancel()
    assert not too_late.is_set(), f"no end within {within} s, after {received}"
    return received, raised


def put_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plant a bug, for canaries: no end, of whatever kind, comes to anybody."""
    monkeypatch.setattr(TokenQueue, "end", lambda _: None)
    monkeypatch.setattr(QueueStreamHandler, "_put_sentinel", lambda *_: None)
