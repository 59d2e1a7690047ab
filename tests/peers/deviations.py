"""Where `MixedQueue` does not do what a peer's test asks, by name and with the reason.

A name is ``suite.class.test`` (janus's classes stand in files), or a class for all of
its tests.  A test that is listed has to fail as it is said here, and has to exist.
"""

from __future__ import annotations

import sys
from typing import NamedTuple

import pytest

__all__ = ["DEVIATIONS", "Deviation"]


class Deviation(NamedTuple):
    """Why a test deviates.

    Attributes:
        reason: The reason.
        raises: What the test then fails with; None if it is not run at all.
    """

    reason: str
    raises: type[BaseException] | None = None


_BY_PRIORITY = Deviation("tests a LifoQueue or PriorityQueue; a MixedQueue is FIFO only")
_IN_C = Deviation("the tests of the class `Py...` once more, for the module that is written in C")
_SUBCLASS = "overrides `_put` and `_get`; a MixedQueue is not made for other orders, so has none"
_MAXSIZE = Deviation("maxsize=1.3: ours is a whole number, anything else a TypeError", TypeError)
_JANUS_LOOP = "calls janus's private `_get_loop`; ours serves any number of loops"
_PRIVATE = Deviation("reads asyncio.Queue's private attributes", AttributeError)
_REPR = Deviation("asyncio.Queue's repr; janus's faces have none either", AssertionError)

DEVIATIONS: dict[str, Deviation] = {
    # -- janus
    "janus.test_async.TestLifoQueue": _BY_PRIORITY,
    "janus.test_async.TestLifoQueueJoin": _BY_PRIORITY,
    "janus.test_async.TestPriorityQueue": _BY_PRIORITY,
    "janus.test_async.TestPriorityQueueJoin": _BY_PRIORITY,
    "janus.test_sync.TestLifoQueue": _BY_PRIORITY,
    "janus.test_sync.TestPriorityQueue": _BY_PRIORITY,
    "janus.test_async.TestQueuePut.test_float_maxsize": _MAXSIZE,
    "janus.test_mixed.TestMixedMode.test_ctor_noloop": Deviation(
        "is for Python 3.9; janus skips it, too"
    ),
    "janus.test_mixed.TestMixedMode.test_get_loop_different_loop": Deviation(
        _JANUS_LOOP + " (not run, because it leaves a loop open when it fails)"
    ),
    "janus.test_mixed.TestMixedMode.test_get_loop_ok": Deviation(_JANUS_LOOP, AttributeError),
    "janus.test_sync.TestFailingQueue.test_closed_loop_non_failing": Deviation(
        "counts calls of loop.is_closed(): no protection, so ours asks only where a bell"
        " rings already",
        AssertionError,
    ),
    "janus.test_sync.TestFailingQueue.test_failing_queue": Deviation(
        _SUBCLASS, pytest.fail.Exception
    ),
    # -- queue: the sync face
    "queue.PyLifoQueueTest": _BY_PRIORITY,
    "queue.PyPriorityQueueTest": _BY_PRIORITY,
    "queue.CFailingQueueTest": _IN_C,
    "queue.CLifoQueueTest": _IN_C,
    "queue.CPriorityQueueTest": _IN_C,
    "queue.CQueueTest": _IN_C,
    "queue.CSimpleQueueTest": Deviation(
        _IN_C.reason + ", and a put by a finalizer in the middle of a put, which deadlocks"
        " queue.Queue and janus.Queue, too"
    ),
    "queue.PyFailingQueueTest.test_failing_queue": Deviation(_SUBCLASS, AssertionError),
    "queue.PyQueueTest.test_shrinking_queue": Deviation(
        "sets `maxsize`, which is read-only, as janus's is", AttributeError
    ),
    # -- asyncio: the async face
    "asyncio.LifoQueueTests": _BY_PRIORITY,
    "asyncio.LifoQueueJoinTests": _BY_PRIORITY,
    "asyncio.PriorityQueueTests": _BY_PRIORITY,
    "asyncio.PriorityQueueJoinTests": _BY_PRIORITY,
    "asyncio.QueueBasicTests.test_generic_alias": Deviation(
        "subscripts the class; a face is made by its queue, and its class is not public",
        TypeError,
    ),
    "asyncio.QueueBasicTests.test_repr": _REPR,
    "asyncio.QueueBasicTests.test_str": _REPR,
    "asyncio.QueueGetTests.test_cancelled_getters_not_being_held_in_self_getters": _PRIVATE,
    "asyncio.QueueGetTests.test_get_with_putters": _PRIVATE,
    "asyncio.QueueJoinTests.test_format": _PRIVATE,
    "asyncio.QueuePutTests.test_cancelled_puts_not_being_held_in_self_putters": _PRIVATE,
    "asyncio.QueuePutTests.test_float_maxsize": _MAXSIZE,
}

if sys.version_info < (3, 11):
    DEVIATIONS |= {
        "asyncio.QueueGetTests.test_why_are_getters_waiting": _PRIVATE,
        "asyncio.QueuePutTests.test_why_are_putters_waiting": _PRIVATE,
    }

if sys.version_info >= (3, 13):
    DEVIATIONS |= {
        "asyncio.LifoQueueShutdownTests": _BY_PRIORITY,
        "asyncio.PriorityQueueShutdownTests": _BY_PRIORITY,
        "asyncio.QueueShutdownTests.test_format": _PRIVATE,
        "queue.PyQueueTest.test_shutdown_allowed_transitions": Deviation(
            "reads `is_shutdown`; janus's name is `closed`", AttributeError
        ),
    }
