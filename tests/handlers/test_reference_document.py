"""The reference document's own test cases (its section *Testing*), against every class of it.

Its `StreamHandler` passes on each token; a batch of one does the same, and larger ones are
looked at joined.
"""

from __future__ import annotations

import asyncio
import unittest
from functools import partial
from typing import TYPE_CHECKING, Any
from unittest.mock import AsyncMock, Mock, call

import pytest
from langchain_core.outputs import LLMResult

from queuestream import QueueStreamHandler
from queuestream.handlers import (
    BatchStreamHandler,
    DebugStreamHandler,
    ManagedStreamHandler,
    MemoryEfficientHandler,
    ResilientStreamHandler,
    StatisticsStreamHandler,
    StreamHandler,
    UIFriendlyHandler,
    create_safe_handler,
)
from tests.http.shapes import answer_of, client_of
from tests.support.handlers import WAYS, EchoChatModel, Way, answer

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.server import ReplayServer

CLASSES: list[Any] = [
    StreamHandler,
    StatisticsStreamHandler,
    pytest.param(partial(BatchStreamHandler, batch_size=1), id="BatchStreamHandler of 1"),
    MemoryEfficientHandler,
    create_safe_handler,
    ResilientStreamHandler,
    UIFriendlyHandler,
    ManagedStreamHandler,
    DebugStreamHandler,
]
EVERY_CLASS = pytest.mark.parametrize("make", CLASSES)
WITHOUT_AN_INDICATOR: list[Any] = [
    *(made for made in CLASSES if made is not UIFriendlyHandler),
    pytest.param(partial(UIFriendlyHandler, typing_indicator=False), id="UIFriendlyHandler"),
    pytest.param(BatchStreamHandler, id="BatchStreamHandler of 5"),
    pytest.param(partial(BatchStreamHandler, max_delay=600), id="BatchStreamHandler, max_delay"),
]


@EVERY_CLASS
def test_token_callback_called(make: Callable[..., StreamHandler]) -> None:
    """Test that callback is invoked for each token."""
    tokens_received: list[str] = []

    def callback(token: str) -> None:
        tokens_received.append(token)

    handler = make(on_token=callback)

    handler.on_llm_new_token("Hello")
    handler.on_llm_new_token(" ")
    handler.on_llm_new_token("World")

    unittest.TestCase().assertEqual(tokens_received, ["Hello", " ", "World"])  # noqa: PT009


@EVERY_CLASS
def test_callback_receives_correct_token(make: Callable[..., StreamHandler]) -> None:
    """Test that exact token is passed to callback."""
    received_token = None

    def callback(token: str) -> None:
        nonlocal received_token
        received_token = token

    handler = make(on_token=callback)
    handler.on_llm_new_token("test_token")

    unittest.TestCase().assertEqual(received_token, "test_token")  # noqa: PT009


@EVERY_CLASS
def test_handler_with_mock(make: Callable[..., StreamHandler]) -> None:
    """Test handler behavior with mocked callback."""
    mock_callback = Mock()
    handler = make(on_token=mock_callback)

    test_tokens = ["Hello", " ", "World", "!"]
    for token in test_tokens:
        handler.on_llm_new_token(token)

    assert mock_callback.call_count == len(test_tokens)
    mock_callback.assert_has_calls([call(t) for t in test_tokens])
    assert mock_callback.call_args_list == [call(t) for t in test_tokens]
    assert handler.on_token is mock_callback


@EVERY_CLASS
def test_handler_with_mock_and_what_langchain_adds(make: Callable[..., StreamHandler]) -> None:
    """The document's ``**kwargs``: unused, but there."""
    mock_callback = Mock()
    make(mock_callback).on_llm_new_token("Hi", tags=["a"], metadata={"b": 1}, parent_run_id=None)
    mock_callback.assert_called_once_with("Hi")


@pytest.mark.parametrize("make", WITHOUT_AN_INDICATOR)
@pytest.mark.parametrize("way", WAYS)
def test_joined_tokens_equal_the_response(make: Callable[..., StreamHandler], way: Way) -> None:
    """The document's integration test, with a mock as well, however the model is run."""
    mock_callback = Mock()
    way.run(EchoChatModel(), lambda: make(on_token=mock_callback))
    received = [made.args[0] for made in mock_callback.call_args_list]
    assert len(received) > 0
    for prompt in way.prompts:
        of_this = [text for text in received if text.startswith(prompt)]
        assert "".join(of_this) == "".join(answer(prompt))


@pytest.mark.parametrize("make", WITHOUT_AN_INDICATOR)
@pytest.mark.parametrize("name", ["chat text", "anthropic text"])
def test_streaming_with_llm(
    make: Callable[..., StreamHandler], name: str, server: ReplayServer
) -> None:
    """Test streaming with actual LLM: LangChain's client, without and with ``streaming=True``."""
    for options in ({}, {"streaming": True}):
        tokens: list[str] = []
        handler = make(on_token=tokens.append)
        llm = client_of(name, server.scenario(answer_of(name)), callbacks=[handler], **options)
        response = llm.invoke("Say 'test'")
        assert len(tokens) > 0
        assert "".join(tokens) == response.content == "a b c"


@EVERY_CLASS
def test_a_mock_that_is_awaited(make: Callable[..., StreamHandler]) -> None:
    """``AsyncMock`` is to coroutine functions what ``Mock`` is to the others."""
    mock_callback = AsyncMock()

    async def main() -> None:
        handler = make(on_token=mock_callback)
        for token in ("Hello", " ", "World"):
            await handler.on_llm_new_token(token)

    asyncio.run(main())
    assert mock_callback.await_args_list == [call("Hello"), call(" "), call("World")]


def test_the_document_s_queue() -> None:
    """Its `QueueStreamHandler`, with the sentinel that the document never puts."""
    handler = QueueStreamHandler()
    for token in ("Hello", " ", "World"):
        handler.on_llm_new_token(token)
    handler.end()
    assert list(handler.get_stream()) == ["Hello", " ", "World"]


def test_the_document_s_batches() -> None:
    """Its section *Batch buffering*: five at a time, the rest by ``flush`` and at the end."""
    mock_callback = Mock()
    handler = BatchStreamHandler(mock_callback)
    for token in "Hello World":
        handler.on_llm_new_token(token)
    assert mock_callback.call_args_list == [call("Hello"), call(" Worl")]
    handler.flush()
    assert mock_callback.call_args_list[2:] == [call("d")]


def test_the_document_s_indicator() -> None:
    """Its section *User Experience*: shown at the start; one character, so one is erased."""
    mock_callback = Mock()
    EchoChatModel().invoke("a", {"callbacks": [UIFriendlyHandler(mock_callback)]})
    assert mock_callback.call_args_list[:3] == [call("⋯"), call("\b \b"), call("a0 ")]


@EVERY_CLASS
def test_called_by_hand_from_start_to_end(make: Callable[..., StreamHandler]) -> None:
    """The document's tests call LangChain's methods without run ids; so may its users."""
    texts: list[str] = []
    handler: Any = make(on_token=texts.append)
    for _ in range(2):
        texts.clear()
        handler.on_llm_start({}, ["Say 'test'"])
        for token in ("Hello", " ", "World"):
            handler.on_llm_new_token(token)
        handler.on_llm_end(LLMResult(generations=[]))
        assert [text for text in texts if text not in ("⋯", "\b \b")] == ["Hello", " ", "World"]
    handler.on_llm_start({}, ["Say 'test'"])
    handler.on_llm_new_token("Hello")
    handler.on_llm_error(ValueError("no"))
