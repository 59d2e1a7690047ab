"""Fact 22, about langchain-openai's HTTP clients: it needs a server that keeps connections."""

from __future__ import annotations

import asyncio
from importlib.metadata import version
from typing import TYPE_CHECKING

import anyio.from_thread
import pytest
from langchain_openai import ChatOpenAI

from tests.support.server import chat_completion

if TYPE_CHECKING:
    from tests.support.server import ReplayServer, Scenario


_TRIES = 20


def client(scenario: Scenario) -> ChatOpenAI:
    """Return a client of the scenario that does not try again."""
    return ChatOpenAI(
        model="m",
        base_url=scenario.openai_url,
        api_key="none",  # type: ignore[arg-type] # a str is converted
        max_retries=0,
        streaming=True,
    )


def test_fact_22_two_models_of_one_base_url_share_the_async_http_client(
    server: ReplayServer,
) -> None:
    """So what one loop has opened, a model made elsewhere finds."""
    here, there = server.scenario(), server.scenario()
    first, second, other = (client(scenario) for scenario in (here, here, there))
    assert first.root_async_client._client is second.root_async_client._client
    assert first.root_async_client._client is not other.root_async_client._client


def test_fact_22_a_kept_connection_belongs_to_the_loop_that_opened_it(
    server: ReplayServer,
) -> None:
    """A run on a second loop fails on it, or, with openai before 3, gets away with it by luck."""
    if int(version("openai").split(".")[0]) < 3:
        pytest.skip("with this openai a second loop may get away with it")
    scenario = server.scenario(*[chat_completion(["a"])] * (1 + _TRIES), keep_alive=True)
    model = client(scenario)
    pool = model.root_async_client._client._transport._pool
    with anyio.from_thread.start_blocking_portal() as first_loop:
        for _ in range(_TRIES):  # it keeps none if the answer's last chunk comes after its text
            assert first_loop.call(model.ainvoke, "?").content == "a"
            if any(connection.is_idle() for connection in pool.connections):
                break
        else:
            pytest.fail("no connection was kept")
        with pytest.raises(Exception, match=r".") as failure:
            asyncio.run(model.ainvoke("?"))
        first_loop.call(model.root_async_client.close)
    causes: list[str] = []
    error: BaseException | None = failure.value
    while error is not None:
        causes.append(str(error))
        error = error.__cause__ or error.__context__
    assert any("event loop" in cause for cause in causes), causes
