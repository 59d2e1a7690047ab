"""``queue=``: other people's queues, and the pairings that they cannot serve."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import culsans
import janus
import pytest

from queuestream import MixedQueue, QueueStreamHandler, stream
from queuestream.errors import PlacementError, StreamClosedError
from tests.support.gates import Gate, eventually
from tests.support.models import ScriptedChatModel, tokens
from tests.support.streams import DEFAULT_CASES, Case

if TYPE_CHECKING:
    from collections.abc import Callable

MAKERS: list[Any] = [
    pytest.param(MixedQueue, id="MixedQueue"),
    pytest.param(culsans.Queue, id="culsans"),
]
STREAM_DEFAULT_CASES = [case for case in DEFAULT_CASES if case.values[0].is_stream]


def given(case: Case, queue: object, model: Any, **options: Any) -> Any:
    """Make a stream with a queue that was given."""
    return Case.stream(case, model, **options, queue=queue)


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("case", STREAM_DEFAULT_CASES)
def test_a_given_queue_carries_the_stream(case: Case, make: Callable[[int], Any]) -> None:
    """Promises 1 to 3 through it."""
    failure = ValueError("the model's own")
    model = ScriptedChatModel(tokens=tokens(40), failure=failure, fail_at=40)

    async def scenario() -> None:
        answer = given(case, make(2), model)
        received: list[str] = []
        with pytest.raises(ValueError, match="the model's own") as raised:
            async for token in case.consumer.iterate(answer):
                received.append(token)
                assert model.record.produced <= len(received) + 2 + 1
        assert raised.value is failure
        assert received == tokens(40)

    case.consumer.run(scenario)


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("case", STREAM_DEFAULT_CASES)
def test_a_stop_through_a_given_queue(case: Case, make: Callable[[int], Any]) -> None:
    """Hazard: its own lock is taken, which the closer may hold further down."""
    model = ScriptedChatModel(tokens=tokens(500))

    async def scenario() -> None:
        async with case.consumer.entered(given(case, make(2), model)) as running:
            assert await case.consumer.take(running, 3) == tokens(3)
            running.close()
            with pytest.raises(StreamClosedError):
                await case.consumer.next(running)
        await case.consumer.wait(model.record.wait_until_finalized)

    case.consumer.run(scenario)
    assert model.record.produced <= 3 + 2 + 1


@pytest.mark.parametrize("make", [*MAKERS, pytest.param(janus.Queue, id="janus")])
def test_a_consumer_that_waits_in_a_given_queue_is_woken_by_a_close(
    make: Callable[[], Any],
) -> None:
    gate = Gate(1)
    model = ScriptedChatModel(tokens=tokens(3), gate=gate)

    async def main() -> None:
        answer = stream(model, "?", queue=make())
        assert await answer.__anext__() == tokens(1)[0]
        waiting = asyncio.ensure_future(answer.__anext__())
        for _ in range(5):
            await asyncio.sleep(0)
        answer.close()
        with pytest.raises(StreamClosedError):
            await waiting

    asyncio.run(main())


@pytest.mark.parametrize("run_in", ["auto", "thread", "background"])
def test_janus_refuses_trio(run_in: Any) -> None:
    trio = pytest.importorskip("trio")
    model = ScriptedChatModel(tokens=tokens(3))

    async def main() -> None:
        answer = stream(model, "?", run_in=run_in, queue=janus.Queue[str]())
        with pytest.raises(PlacementError, match=r"trio.*MixedQueue"):
            await answer.__anext__()

    trio.run(main)
    assert model.record.calls == 0


def test_janus_refuses_two_loops() -> None:
    """Hazard: it fails in the middle, with an error about a loop that nobody chose."""
    model = ScriptedChatModel(tokens=tokens(3))

    async def main() -> None:
        answer = stream(model, "?", run_in="background", queue=janus.Queue[str]())
        with pytest.raises(PlacementError, match=r'two: use run_in="task" or "thread"'):
            await answer.__anext__()

    asyncio.run(main())
    assert model.record.calls == 0


def test_the_queues_own_maxsize_counts() -> None:
    model = ScriptedChatModel(tokens=tokens(50))
    queue = janus.Queue[str](3)
    with stream(model, "?", queue=queue) as answer:
        model.record.wait_until_produced(4)
        assert next(answer) == tokens(1)[0]
        assert queue.sync_q.qsize() <= 3


@pytest.mark.parametrize("make", [*MAKERS, pytest.param(janus.Queue, id="janus")])
def test_a_given_queue_is_shut_down_at_the_end(make: Callable[[], Any]) -> None:
    """Its end is ``shutdown()``, with the error on the side: nothing but items is in it."""
    model = ScriptedChatModel(tokens=tokens(3), failure=ValueError("the model's"), fail_at=3)
    queue = make()
    answer = stream(model, "?", queue=queue)
    assert next(answer) == tokens(1)[0]
    eventually(lambda: queue.sync_q.closed)
    assert queue.sync_q.qsize() == 2
    with pytest.raises(ValueError, match="the model's"):
        list(answer)


@pytest.mark.parametrize("make", [*MAKERS, pytest.param(janus.Queue, id="janus")])
def test_a_handler_with_a_given_queue_serves_one_run(make: Callable[[], Any]) -> None:
    model = ScriptedChatModel(tokens=tokens(3))
    handler = QueueStreamHandler(queue=make())
    model.invoke("?", {"callbacks": [handler]})
    assert list(handler) == tokens(3)
    with pytest.raises(ValueError, match="serves one run"):
        model.invoke("?", {"callbacks": [handler]})
