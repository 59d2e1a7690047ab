"""`custom_handler.py`: a handler on langchain-core alone."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest
from langchain_core.callbacks import BaseCallbackHandler

from queuestream import StreamHandler
from queuestream.demo import DemoChatModel
from tests.examples.programs import EXAMPLES, load, play, run, tokens_of

SENTENCE = "A stream is water that knows where it is going."


@pytest.fixture
def custom() -> Any:
    return load("custom_handler.py")


def test_a_token_is_printed_before_the_next_one_is_made(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An `invoke` that does not stream makes all of them first."""
    play("custom_handler.py", monkeypatch, pause="|")
    as_it_comes = "".join(f"|{token}" for token in tokens_of(SENTENCE))
    assert as_it_comes in capsys.readouterr().out


def test_it_hears_no_token_without_the_two_methods(custom: Any) -> None:
    """The program says that they have to be there."""
    methods = vars(custom.CustomStreamHandler).items()
    names = {name: what for name, what in methods if not name.startswith("tap_output")}
    handler: Any = type("Tapless", (BaseCallbackHandler,), names)()
    DemoChatModel(passage=SENTENCE, pace=0).invoke("A stream?", {"callbacks": [handler]})
    assert handler.tokens == []


def test_it_tells_of_start_end_and_error() -> None:
    out = run(EXAMPLES / "custom_handler.py")
    assert re.sub(r"\d+\.\d\d s", "T s", out) == (
        "Starting with 'And a stream?'\n"
        "A stream is water that knows where it is going.\n"
        "Completed in T s: 47 characters\n"
        "Starting with 'Again?'\n"
        "A stream is water that knows where it\n"
        "Failed after T s: the line went dead\n"
        "The caller got it, too: ConnectionError('the line went dead')\n"
        "18 tokens in all\n"
    )


def test_it_hears_runs_that_overlap(custom: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """A single start, not one for each run, would be that of the run which started last."""
    handler = custom.CustomStreamHandler()
    model = DemoChatModel(passage=SENTENCE, pace=0.005)
    tokens = tokens_of(SENTENCE)

    async def ask_twice() -> None:
        heard: list[str] = []
        halfway = asyncio.Event()

        def hear(token: str) -> None:
            heard.append(token)
            if len(heard) == len(tokens) // 2:
                halfway.set()

        first = asyncio.create_task(
            model.ainvoke("First?", {"callbacks": [handler, StreamHandler(hear)]})
        )
        await halfway.wait()
        await model.ainvoke("Second?", {"callbacks": [handler]})
        await first

    asyncio.run(ask_twice())
    assert sorted(handler.tokens) == sorted(tokens * 2)
    times = re.findall(r"Completed in (.*) s", capsys.readouterr().out)
    assert [float(seconds) >= len(tokens) * model.pace for seconds in times] == [True, True]
    assert not handler._started
