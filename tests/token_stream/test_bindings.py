"""A ``RunnableBinding`` as target, or in one: it adds callbacks given to those inherited."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from langchain_core.callbacks import BaseCallbackHandler

from queuestream import stream
from tests.support.consumers import pairings
from tests.support.models import ScriptedChatModel, tokens

if TYPE_CHECKING:
    from langchain_core.runnables import Runnable

    from tests.support.consumers import Consumer, RunIn


class Hears(BaseCallbackHandler):
    """A handler of the caller's, which counts."""

    def __init__(self) -> None:
        self.starts = 0

    def on_chat_model_start(self, *args: Any, **kwargs: Any) -> None:
        self.starts += 1


def bound() -> Runnable[Any, Any]:
    return ScriptedChatModel(tokens=tokens(3)).bind(stop=["never"]).with_config(tags=["bound"])


@pytest.mark.parametrize("run_in, consumer", pairings("for", "asyncio"))
def test_a_bound_model_is_heard_once(run_in: RunIn, consumer: Consumer) -> None:
    """Hazard: our handler is both given and inherited, and every token comes twice (promise 1)."""
    hears = Hears()

    async def scenario() -> None:
        made = stream(bound(), "?", {"callbacks": [hears]}, run_in=run_in)
        async with consumer.entered(made) as answer:
            assert await consumer.collect(answer) == tokens(3)

    consumer.run(scenario)
    assert hears.starts == 1


def test_a_function_that_calls_a_bound_model_is_heard_once() -> None:
    """Hazard: as above, for the handlers in the config."""
    hears = Hears()

    def execute(question: str, callbacks: Any = None) -> str:
        return str(bound().invoke(question, {"callbacks": callbacks}).content)

    assert list(stream(execute, "?", {"callbacks": [hears]})) == tokens(3)
    assert hears.starts == 1
