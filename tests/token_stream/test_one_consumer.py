"""One consumer at a time; and a consumer that gives up loses nothing."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from queuestream.errors import ConcurrentIterationError, StreamClosedError
from tests.support.consumers import in_another_thread
from tests.support.gates import Gate, eventually
from tests.support.models import ScriptedChatModel, tokens
from tests.support.streams import CASES, DEFAULT_CASES, STREAM_CASES, getters_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from langchain_core.outputs import ChatGenerationChunk

    from tests.support.streams import Case

ASYNC_CASES = [case for case in CASES if case.values[0].consumer.is_async]


@pytest.mark.parametrize("case", DEFAULT_CASES)
def test_an_overlapping_next_leaves_the_first_unharmed(case: Case) -> None:
    """Hazard: the second takes the first one's token or its wake-up."""
    gate = Gate()
    model = ScriptedChatModel(tokens=tokens(3), gate=gate)
    complaints: list[BaseException] = []

    async def scenario() -> None:
        async with case.running(model) as running:

            def overlap() -> None:
                try:
                    eventually(lambda: getters_of(running) == 1)
                    with pytest.raises(ConcurrentIterationError, match="one consumer at a time"):
                        next(running)
                    assert getters_of(running) == 1
                except BaseException as error:
                    complaints.append(error)
                finally:
                    gate.open()

            thread = in_another_thread(overlap)
            assert await case.consumer.collect(running) == tokens(3)
            await case.consumer.wait(thread.join)

    case.consumer.run(scenario)
    assert not complaints


@pytest.mark.parametrize("case", ASYNC_CASES)
def test_overlapping_tasks(case: Case) -> None:
    gate = Gate()
    model = ScriptedChatModel(tokens=tokens(3), gate=gate)
    received: list[str] = []

    async def scenario() -> None:
        async with case.running(model) as running:

            async def first() -> None:
                received.append(await case.consumer.next(running))

            async with anyio.create_task_group() as group:
                group.start_soon(first)
                await anyio.wait_all_tasks_blocked() if case.consumer.name == "trio" else (
                    await _turns()
                )
                with pytest.raises(ConcurrentIterationError):
                    await case.consumer.next(running)
                gate.open()
            received.extend(await case.consumer.collect(running))

    case.consumer.run(scenario)
    assert received == tokens(3)


async def _turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


@pytest.mark.parametrize("case", ASYNC_CASES)
def test_a_cancelled_wait_loses_no_token(case: Case) -> None:
    """Hazard: the token goes to a waiter that has been cancelled meanwhile."""
    gate = Gate()
    model = ScriptedChatModel(tokens=tokens(30), gate=gate)
    received: list[str] = []

    async def scenario() -> None:
        async with case.running(model) as running:

            async def consume() -> None:
                received.append(await case.consumer.next(running))

            for turns in range(12):  # cancelled before, with and after the wake-up
                async with anyio.create_task_group() as group:
                    group.start_soon(consume)
                    gate.release()
                    for _ in range(turns):
                        await anyio.lowlevel.checkpoint()
                    group.cancel_scope.cancel()
            gate.open()
            received.extend(await case.consumer.collect(running))

    case.consumer.run(scenario)
    assert received == tokens(30)


@pytest.mark.parametrize(
    "case",
    [
        case
        for case in DEFAULT_CASES
        # A task's loop would be held up by whoever waits in it for the other thread.
        if case.values[0].producer in ("thread", "background")
    ],
)
def test_handed_from_one_thread_to_another(case: Case) -> None:
    """Any thread may consume, as long as they take turns."""
    model = ScriptedChatModel(tokens=tokens(3))
    received: list[str] = []

    async def scenario() -> None:
        async with case.running(model) as running:
            received.extend(await case.consumer.take(running, 1))
            await case.consumer.wait(lambda: received.extend(running))

    case.consumer.run(scenario)
    assert received == tokens(3)


# -- aclose ----------------------------------------------------------------------------------------

TASK_CASES = [
    case
    for case in STREAM_CASES
    if case.values[0].producer in ("task", "background") and case.values[0].consumer.is_async
]


class SlowToEnd(ScriptedChatModel):
    """A model whose clean-up takes its time."""

    is_cleaning: Any = None
    may_end: Any = None

    async def _astream_script(self, messages: Any) -> AsyncIterator[ChatGenerationChunk]:
        try:
            async for chunk in super()._astream_script(messages):
                yield chunk
        finally:
            self.is_cleaning.set()
            await self.may_end.wait_async()


def slow_to_end() -> SlowToEnd:
    """Return one that waits for ``may_end`` to be opened."""
    return SlowToEnd(tokens=tokens(9), gate=Gate(2), is_cleaning=threading.Event(), may_end=Gate())


@pytest.mark.parametrize("case", TASK_CASES)
def test_aclose_waits_for_the_clean_up(case: Case) -> None:
    """Hazard: the program goes on, or ends, while the connection is still open."""
    model = slow_to_end()
    order: list[str] = []

    async def scenario() -> None:
        answer = case.stream(model)
        assert await case.consumer.take(answer, 2) == tokens(2)

        async def close() -> None:
            await answer.aclose()
            order.append("closed")

        async with anyio.create_task_group() as group:
            group.start_soon(close)
            group.start_soon(answer.aclose)  # any number of times
            await case.consumer.wait(model.is_cleaning.wait)
            order.append("cleaned up")
            model.may_end.open()
        assert answer._run is not None
        assert answer._run.gone._set

    case.consumer.run(scenario)
    assert order == ["cleaned up", "closed"]


@pytest.mark.parametrize("case", TASK_CASES)
def test_close_does_not_wait_for_it(case: Case) -> None:
    model = slow_to_end()

    async def scenario() -> None:
        answer = case.stream(model)
        assert await case.consumer.take(answer, 2) == tokens(2)
        answer.close()
        assert answer._run is not None
        assert not answer._run.gone._set
        await case.consumer.wait(model.is_cleaning.wait)
        model.may_end.open()
        await answer.aclose()
        assert answer._run.gone._set

    case.consumer.run(scenario)


@pytest.mark.parametrize("case", TASK_CASES)
def test_a_cancelled_aclose_leaves_the_stop_standing(case: Case) -> None:
    """Hazard: the second cancellation tears through the clean-up, or undoes the stop."""
    model = slow_to_end()

    async def scenario() -> None:
        answer = case.stream(model)
        assert await case.consumer.take(answer, 2) == tokens(2)
        async with anyio.create_task_group() as group:
            group.start_soon(answer.aclose)
            await case.consumer.wait(model.is_cleaning.wait)
            group.cancel_scope.cancel()
        with pytest.raises(StreamClosedError):
            await case.consumer.next(answer)
        assert answer._run is not None
        assert not answer._run.gone._set
        model.may_end.open()
        await answer.aclose()
        assert answer._run.gone._set

    case.consumer.run(scenario)
    assert model.record.produced == 2


@pytest.mark.parametrize(
    "case",
    [case for case in STREAM_CASES if case.values[0].is_sync and case.values[0].consumer.is_async],
)
def test_aclose_does_not_wait_for_a_thread(case: Case) -> None:
    """Hazard: the model is silent, and the thread ends only with its next token."""
    model = ScriptedChatModel(tokens=tokens(9), gate=Gate(2))

    async def scenario() -> None:
        answer = case.stream(model)
        assert await case.consumer.take(answer, 2) == tokens(2)
        await answer.aclose()
        assert model.record.open == 1

    case.consumer.run(scenario)
