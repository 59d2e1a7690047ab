"""What must be left of a run that has ended: nothing."""

from __future__ import annotations

import asyncio
import threading
from functools import partial
from typing import TYPE_CHECKING

from tests.support.gates import eventually

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.support.callbacks import RunLog
    from tests.support.consumers import Consumer
    from tests.support.models import Record

__all__ = ["nothing_is_left", "our_threads"]


def our_threads() -> set[threading.Thread]:
    """Return the threads of ours that serve one stream: not the loop that all streams share."""
    return {
        thread
        for thread in threading.enumerate()
        if thread.name.startswith("queuestream") and thread.name != "queuestream background loop"
    }


async def nothing_is_left(consumer: Consumer, records: Iterable[Record], log: RunLog) -> None:
    """Wait until the run has ended; fail if a thread, task or generator of it stays.

    Call it on the consumer's own loop, so that this can be looked at, too.
    """
    await consumer.wait(log.wait_until_outermost_ended)
    for record in records:
        await consumer.wait(partial(record.wait_until_finalized, calls=0))
        for loop in record.loops:
            await _no_task_is_left(consumer, loop)
    await consumer.eventually(lambda: not our_threads())


async def _no_task_is_left(consumer: Consumer, loop: asyncio.AbstractEventLoop) -> None:
    try:
        here = loop is asyncio.get_running_loop()
    except RuntimeError:
        here = False
    if here:
        ours = asyncio.current_task()
        await consumer.eventually(lambda: not asyncio.all_tasks() - {ours})
    else:

        async def other_tasks() -> int:
            return len(asyncio.all_tasks() - {asyncio.current_task()})

        def count() -> int:
            return asyncio.run_coroutine_threadsafe(other_tasks(), loop).result(5)

        await consumer.wait(lambda: eventually(lambda: count() == 0))
