"""langchain-openai over a real connection: tokens come at once, and a stop reaches the server."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from queuestream import TokenStream, stream
from tests.support.clients import openai_client
from tests.support.consumers import PAIRINGS, pairings
from tests.support.models import tokens
from tests.support.server import chat_completion, recorded
from tests.support.stops import stopped_pairings

if TYPE_CHECKING:
    from tests.support.consumers import Consumer, RunIn
    from tests.support.server import Answer, Exchange, ReplayServer
    from tests.support.stops import Stop

FIRST = 1
"""How many events without text come first, in the recorded answer as in the self-made one."""
TAKEN = 3
"""How many tokens the consumer takes before it stops."""
A_FEW = 3
"""How many tokens a paced server may still send before it sees the client leave."""
STOPPED = stopped_pairings(PAIRINGS)
STOPPED_AT_ONCE = [case for case in STOPPED if case.values[0] != "thread"]


@pytest.fixture(params=["self-made", "openai-text"])
def answer(request: pytest.FixtureRequest) -> Answer:
    """Return an answer that is plain text: one that is always there, and a real one."""
    return chat_completion(tokens(20)) if request.param == "self-made" else recorded(request.param)


@pytest.mark.parametrize("run_in, consumer", PAIRINGS)
def test_a_token_is_received_before_the_next_is_sent(
    server: ReplayServer, answer: Answer, run_in: RunIn, consumer: Consumer
) -> None:
    """Promise 1.  Hazard: something on the way gathers tokens, or the whole answer."""
    pace, paced = answer.paced(FIRST)
    scenario = server.scenario(paced, answer)
    model = openai_client(scenario, streaming=True)
    received: list[str] = []

    async def consume() -> None:
        async with consumer.entered(stream(model, "?", run_in=run_in)) as tokens:
            for _ in range(10):
                pace.release()
                received.append(await consumer.next(tokens))
                assert scenario.exchanges[0].sent <= FIRST + len(received)
            pace.open()
            received.extend(await consumer.collect(tokens))

    consumer.run(consume)
    assert "".join(received) == model.invoke("?").content


@pytest.mark.parametrize("run_in, consumer, stop", STOPPED)
def test_a_paced_server_sees_the_client_leave(
    server: ReplayServer, run_in: RunIn, consumer: Consumer, stop: Stop
) -> None:
    """Promise 4.  Hazard: the connection is kept, and the answer paid for, to its end."""
    pace, paced = chat_completion(tokens(20)).paced(FIRST + TAKEN)
    scenario = server.scenario(paced)
    model = openai_client(scenario)

    async def consume() -> None:
        await stop.after(consumer, lambda: stream(model, "?", run_in=run_in), TAKEN)
        pace.release(A_FEW)
        await _left(consumer, scenario.exchanges[0])

    consumer.run(consume)
    assert scenario.exchanges[0].sent <= FIRST + TAKEN + A_FEW
    assert scenario.unexpected == 0


@pytest.mark.parametrize("run_in, consumer, stop", STOPPED_AT_ONCE)
def test_a_silent_server_sees_the_client_leave(
    server: ReplayServer, run_in: RunIn, consumer: Consumer, stop: Stop
) -> None:
    """Promise 4.  Hazard: nobody looks for the stop before the next token."""
    _, silent = chat_completion(tokens(20)).paced(FIRST + TAKEN)
    scenario = server.scenario(silent)
    model = openai_client(scenario)

    async def consume() -> None:
        await stop.after(consumer, lambda: stream(model, "?", run_in=run_in), TAKEN)
        await _left(consumer, scenario.exchanges[0])

    consumer.run(consume)
    assert scenario.exchanges[0].sent == FIRST + TAKEN
    assert scenario.unexpected == 0


@pytest.mark.parametrize(
    "run_in, consumer, stop", stopped_pairings(pairings("for", "asyncio", "trio"))
)
def test_a_fast_server_sees_the_client_leave_a_full_buffer(
    server: ReplayServer, run_in: RunIn, consumer: Consumer, stop: Stop
) -> None:
    """Promises 2 and 4.  Hazard: the run waits for its consumer, with a connection in hand.

    The answer is too long for the socket's buffers, so that the server cannot have ended.
    """
    scenario = server.scenario(chat_completion(["x" * 50_000] * 400))
    model = openai_client(scenario)

    def make() -> TokenStream[str]:
        return stream(model, "?", run_in=run_in, maxsize=1)

    async def consume() -> None:
        await stop.after(consumer, make, TAKEN)
        await _left(consumer, scenario.exchanges[0])

    consumer.run(consume)
    assert scenario.unexpected == 0


async def _left(consumer: Consumer, exchange: Exchange) -> None:
    assert await consumer.wait(lambda: exchange.disconnected.wait(5)), "the connection stayed open"
