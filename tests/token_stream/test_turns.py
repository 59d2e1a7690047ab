"""Whoever goes on without waiting lets the loop's other tasks run (promise 5)."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import anyio
import anyio.lowlevel
import pytest
from langchain_core.messages import AIMessageChunk
from langchain_core.outputs import ChatGenerationChunk

from queuestream import stream
from queuestream._token_queue import TokenQueue
from queuestream.errors import ConcurrentIterationError
from queuestream.events import Selection
from queuestream.handlers.feed import FeedHandler
from tests.support.backends import ASYNCIO_BACKENDS
from tests.support.models import ScriptedChatModel, tokens

pytestmark = pytest.mark.anyio

TURN = 64
"""So many items are one turn."""
BOUND = 2 * TURN
"""And so many come between two turns of another task, because trio shuffles those who can run."""


class Turns:
    """A task that runs in each turn of the loop, and the most that was done in one."""

    def __init__(self) -> None:
        self._number = 0
        self._last = 0
        self._run = 0
        self.longest = 0

    async def run(self) -> None:
        while True:
            self._number += 1
            await anyio.lowlevel.checkpoint()

    def note(self) -> None:
        if self._number != self._last:
            self._last, self._run = self._number, 0
        self._run += 1
        self.longest = max(self.longest, self._run)


@pytest.mark.parametrize("select", ["text", "message"])
@pytest.mark.parametrize("run_in", ["thread", "background"])
async def test_a_consumer_that_is_always_behind(run_in: Any, select: Any) -> None:
    """Hazard: what need not wait for its items never gives the loop away."""
    model = ScriptedChatModel(tokens=tokens(1_000))
    turns = Turns()
    async with stream(model, "?", select=select, run_in=run_in, maxsize=0) as answer:
        await anyio.to_thread.run_sync(model.record.wait_until_finalized)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(turns.run)
            async for _ in answer:
                turns.note()
            tasks.cancel_scope.cancel()
    assert turns.longest <= BOUND


async def test_who_lets_others_run_is_the_consumer_meanwhile() -> None:
    """Hazard: another takes its token, and neither is told that they overlap."""
    model = ScriptedChatModel(tokens=tokens(200))
    overlapping: list[ConcurrentIterationError] = []
    taken: list[str] = []
    async with stream(model, "?", run_in="thread", maxsize=0) as answer:
        await anyio.to_thread.run_sync(model.record.wait_until_finalized)

        async def take() -> None:
            try:
                taken.append(await answer.__anext__())
            except ConcurrentIterationError as error:
                overlapping.append(error)

        for _ in range(TURN - 1):
            await take()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(take)
            tasks.start_soon(take)
        assert taken == tokens(TURN)
        assert len(overlapping) == 1
        assert [token async for token in answer] == tokens(200 - TURN, start=TURN)


@pytest.mark.parametrize("anyio_backend", ASYNCIO_BACKENDS)
async def test_a_producer_that_is_never_held_up(anyio_backend: Any) -> None:
    """Hazard: where LangChain does not, a run that is a task never gives the loop away."""
    queue: TokenQueue[Any] = TokenQueue("a stream", 0, is_ours=True)
    feed = FeedHandler(queue, Selection())
    run_id, turns = uuid4(), Turns()
    await feed.on_chat_model_start({}, [[]], run_id=run_id)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(turns.run)
        for token in tokens(1_000):
            chunk = ChatGenerationChunk(message=AIMessageChunk(content=token))
            await feed.on_llm_new_token(token, chunk=chunk, run_id=run_id)
            turns.note()
        tasks.cancel_scope.cancel()
    assert [queue.get()[1] for _ in range(1_000)] == tokens(1_000)
    assert turns.longest <= BOUND
