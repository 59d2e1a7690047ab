"""What the package does to hand a stream's events on: any selection, and slots that are held."""

from __future__ import annotations

import random
import threading
from typing import Any

import anyio
import janus
import pytest
from langchain_core.messages import AIMessageChunk

from queuestream import MixedQueue, TokenEvent, stream
from tests.support.gates import Gate, eventually, eventually_async
from tests.support.models import ScriptedChatModel, tokens, usage


@pytest.mark.parametrize("select", ["text", "message", "event"])
@pytest.mark.parametrize("has_begun", [False, True])
def test_any_stream_gives_events(select: Any, has_begun: bool) -> None:
    """Hazard: texts that were put before anybody wanted events."""
    model = ScriptedChatModel(tokens=tokens(6), gate=Gate(3 if has_begun else 6))
    given = stream(model, "?", select=select)
    if has_begun:
        given.__enter__()
        model.record.wait_until_produced(3)
        eventually(lambda: given.statistics.tokens == 3)
    let_go = given._forward()
    assert let_go is not None
    model.gate.open()  # type: ignore[union-attr]
    events: list[Any] = list(given)
    assert [event.text for event in events] == tokens(6)
    assert {(type(event), event.kind, event.attempt) for event in events} == {
        (TokenEvent, "text", 1)
    }
    assert len({event.run_id for event in events}) == 1
    assert given.text == "".join(tokens(6))


def test_a_message_that_waits_makes_several_events() -> None:
    told = AIMessageChunk(content="a", usage_metadata=usage(1, 2))
    model = ScriptedChatModel(tokens=[told, "", "b"], gate=Gate())
    with stream(model, "?", select="message") as given:
        model.gate.release(2)  # type: ignore[union-attr]
        eventually(lambda: given.statistics.tokens == 2)
        let_go = given._forward()
        model.gate.open()  # type: ignore[union-attr]
        kinds = [event.kind for event in given]  # type: ignore[attr-defined]
    assert let_go is not None
    assert kinds == ["text", "usage", "text"]


@pytest.mark.parametrize("maxsize", [1, 2, 7])
@pytest.mark.parametrize("given", [False, True])
def test_a_slot_is_occupied_until_it_is_let_go(maxsize: int, given: bool) -> None:
    """Promise 2, where consumed is what a third party has: seeded, one step after the other."""
    model = ScriptedChatModel(tokens=tokens(60))
    options: dict[str, Any] = {"queue": MixedQueue(maxsize)} if given else {"maxsize": maxsize}
    source = stream(model, "?", **options)
    let_go = source._forward()
    assert let_go is not None
    seed = random.randrange(1 << 32)
    print("seed", seed)
    chance = random.Random(seed)
    taken = free = 0
    with source:
        for _ in source:
            taken += 1
            assert model.record.produced <= free + maxsize + 1
            if taken - free == maxsize or chance.random() < 0.3:
                number = chance.randint(1, taken - free)
                free += number
                let_go(number)
    assert taken == 60


def test_a_producer_waits_while_all_slots_are_held() -> None:
    model = ScriptedChatModel(tokens=tokens(9))
    with stream(model, "?", maxsize=2) as source:
        let_go = source._forward()
        assert let_go is not None
        next(source)
        next(source)
        waiting = threading.Event()

        def take() -> None:
            next(source)
            waiting.set()

        threading.Thread(target=take).start()
        model.record.wait_until_produced(3)
        assert not waiting.is_set()
        let_go(5)  # no more than are held
        assert waiting.wait(5)
        assert model.record.produced <= 5


def test_what_makes_no_event_holds_no_slot() -> None:
    """Hazard: nobody lets it go, and the run waits for ever."""
    model = ScriptedChatModel(tokens=["a", "", "", "b"], gate=Gate(3))
    with stream(model, "?", select="message", maxsize=2, timeout=5) as source:
        next(source)
        model.record.wait_until_produced(3)
        let_go = source._forward()
        assert let_go is not None
        model.gate.open()  # type: ignore[union-attr]
        texts = []
        for event in source:
            texts.append(event.text)
            let_go(1)
    assert texts == ["b"]


def test_what_makes_several_events_is_let_go_with_the_last() -> None:
    """Promise 2.  Hazard: each event frees a slot, and together they had one."""
    two: list[Any] = [
        {"type": "reasoning", "reasoning": "r", "index": 0},
        {"type": "text", "text": "t", "index": 1},
    ]
    model = ScriptedChatModel(tokens=[AIMessageChunk(content=two)] * 5, gate=Gate(2))
    with stream(model, "?", select="message", maxsize=2) as source:
        model.record.wait_until_produced(2)
        buffer = source._tokens.buffer
        assert buffer is not None
        eventually(lambda: len(buffer.items) == 2)
        let_go = source._forward()
        assert let_go is not None
        slots = []
        for _ in range(2):
            next(source)
            let_go(1)
            slots.append(buffer.held)
    assert slots == [1, 0]


@pytest.mark.anyio
async def test_what_was_gathered_for_a_piece_has_its_slot_again() -> None:
    """Promise 2.  Hazard: it is let go as well, in the place of another."""
    model = ScriptedChatModel(tokens=tokens(9), gate=Gate(2))
    async with stream(model, "?", run_in="thread", maxsize=4) as source:
        gathering = source.pieces(max_tokens=3, max_delay=60)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(gathering.__anext__)
            await eventually_async(lambda: len(source._reader.kept) == 2)
            tasks.cancel_scope.cancel()
        buffer = source._tokens.buffer
        assert buffer is not None
        let_go = source._forward()
        assert let_go is not None
        assert buffer.held == 2
        assert (await source.__anext__()).text == tokens(1)[0]  # type: ignore[attr-defined]
        let_go(1)
        assert buffer.held == 1


def test_a_queue_of_janus_holds_no_slots() -> None:
    async def main() -> None:
        source = stream(
            ScriptedChatModel(tokens=["a"]), "?", queue=janus.Queue[Any](4), run_in="thread"
        )
        assert source._forward() is None
        assert [event.text async for event in source] == ["a"]  # type: ignore[attr-defined]

    import asyncio  # noqa: PLC0415

    asyncio.run(main())
