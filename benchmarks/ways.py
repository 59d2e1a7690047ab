"""The ways to iterate a model's tokens: this package's, its peers', LangChain's own.

Each way opens a context manager whose value is iterated, by ``for`` or by ``async for``.
The peers are what people write by hand around each queue: a thread that calls ``invoke``
with a handler that puts, and a generator that gets until it meets a sentinel.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from contextlib import aclosing, closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import janus

from benchmarks.harness import import_quietly
from benchmarks.sources import TapHandler
from queuestream import stream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

__all__ = ["CALL_SOON", "JANUS", "THREAD_ASYNC_FOR", "WAYS", "Way", "ours"]

Place = Literal["thread", "asyncio", "trio"]
UNBOUNDED = 0


@dataclass(frozen=True)
class Way:
    """A way to iterate a model's tokens."""

    name: str
    open: Callable[[Any, int], Any]
    """From a model and a ``maxsize`` to a context manager; an asynchronous one if ``place``
    is not ``"thread"``."""
    place: Place
    """Where the consumer is."""
    sizes: tuple[int, ...] = (UNBOUNDED,)
    """Each ``maxsize`` that it is measured with."""
    needs: str = ""
    """A module that not everybody has."""
    calls: Literal["invoke", "ainvoke"] = "invoke"
    """What the run is, which decides what LangChain alone costs."""
    sets_streaming: bool = False
    """Whether its handler does not make a model stream by itself."""

    def named(self, maxsize: int) -> str:
        """The name, with the size of the queue where it has one."""
        return f"{self.name}, {maxsize}" if maxsize else self.name


# -- this package ------------------------------------------------------------------------------


def ours(run_in: Any) -> Callable[[Any, int], Any]:
    """Open a stream whose run is in this place."""
    return lambda model, maxsize: stream(model, "Go", run_in=run_in, maxsize=maxsize)


# -- a thread that calls invoke, and a queue -----------------------------------------------------

END = object()


class _Putter(TapHandler):
    """Puts each token somewhere."""

    def __init__(self, put: Callable[[Any], object]) -> None:
        self._put = put

    def on_llm_new_token(self, token: Any, **kwargs: Any) -> None:
        if token:
            self._put(token)


def _start_thread(model: Any, put: Callable[[Any], object]) -> None:
    """Let a thread call ``invoke`` and put each token, and a sentinel after them."""

    def run() -> None:
        try:
            model.invoke("Go", {"callbacks": [_Putter(put)]})
        finally:
            put(END)

    threading.Thread(target=run, daemon=True).start()


def _by_queue(model: Any, maxsize: int) -> Iterator[str]:
    tokens: queue.Queue[Any] = queue.Queue(maxsize)
    _start_thread(model, tokens.put)
    while (token := tokens.get()) is not END:
        yield token


async def _by_janus(model: Any, maxsize: int) -> AsyncIterator[str]:
    tokens: janus.Queue[Any] = janus.Queue(maxsize)
    try:
        _start_thread(model, tokens.sync_q.put)
        while (token := await tokens.async_q.get()) is not END:
            yield token
    finally:
        await tokens.aclose()


async def _by_culsans(model: Any, maxsize: int) -> AsyncIterator[str]:
    tokens: Any = import_quietly("culsans").Queue(maxsize)
    try:
        _start_thread(model, tokens.sync_q.put)
        while (token := await tokens.async_q.get()) is not END:
            yield token
    finally:
        await tokens.aclose()


async def _by_call_soon(model: Any, _: int) -> AsyncIterator[str]:
    tokens: asyncio.Queue[Any] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    _start_thread(model, lambda token: loop.call_soon_threadsafe(tokens.put_nowait, token))
    while (token := await tokens.get()) is not END:
        yield token


# -- LangChain's own ----------------------------------------------------------------------------


def _by_stream(model: Any, _: int) -> Iterator[str]:
    for chunk in model.stream("Go"):
        if chunk.content:
            yield chunk.content


async def _by_astream(model: Any, _: int) -> AsyncIterator[str]:
    async for chunk in model.astream("Go"):
        if chunk.content:
            yield chunk.content


async def _by_events(model: Any, _: int) -> AsyncIterator[str]:
    async for event in model.astream_events("Go", version="v2"):
        if event["event"] == "on_chat_model_stream" and (text := event["data"]["chunk"].content):
            yield text


async def _by_aiter(model: Any, _: int) -> AsyncIterator[str]:
    handler = import_quietly("langchain_classic.callbacks").AsyncIteratorCallbackHandler()
    run = asyncio.create_task(model.ainvoke("Go", {"callbacks": [handler]}))
    async for token in handler.aiter():
        yield token
    await run


# -- other libraries' streamers, fed by the same model ---------------------------------------------


def _feed_streamer(model: Any, streamer: Any) -> None:
    """Put texts where its ``put`` would, once it had made them of numbers."""

    def put(token: Any) -> None:
        if token is END:
            streamer.on_finalized_text("", stream_end=True)
        else:
            streamer.on_finalized_text(token)

    _start_thread(model, put)


def _by_streamer(model: Any, _: int) -> Iterator[str]:
    streamer = import_quietly("transformers.generation.streamers").TextIteratorStreamer(None)
    _feed_streamer(model, streamer)
    for text in streamer:
        if text:
            yield text


async def _by_async_streamer(model: Any, _: int) -> AsyncIterator[str]:
    streamer = import_quietly("transformers.generation.streamers").AsyncTextIteratorStreamer(None)
    _feed_streamer(model, streamer)
    async for text in streamer:
        if text:
            yield text


_LLAMA_INDEX = "llama_index.core.langchain_helpers.streaming"


def _by_llama_index(model: Any, _: int) -> Iterator[str]:
    handler = import_quietly(_LLAMA_INDEX).StreamingGeneratorCallbackHandler()
    config = {"callbacks": [handler]}
    threading.Thread(target=model.invoke, args=("Go", config), daemon=True).start()
    for token in handler.get_response_gen():
        if token:
            yield token


# -- all of them ---------------------------------------------------------------------------------


def _plain(iterate: Callable[[Any, int], Any]) -> Callable[[Any, int], Any]:
    return lambda model, maxsize: closing(iterate(model, maxsize))


def _async(iterate: Callable[[Any, int], Any]) -> Callable[[Any, int], Any]:
    return lambda model, maxsize: aclosing(iterate(model, maxsize))


BOTH = (64, 1024)
DEFAULT = (256,)

THREAD_ASYNC_FOR = Way("queuestream: thread -> async for", ours("thread"), "asyncio", BOTH)
JANUS = Way("thread -> janus -> async for", _async(_by_janus), "asyncio", BOTH)
CALL_SOON = Way("thread -> call_soon_threadsafe -> async for", _async(_by_call_soon), "asyncio")

WAYS = [
    Way("queuestream: thread -> for", ours("thread"), "thread", BOTH),
    THREAD_ASYNC_FOR,
    Way("queuestream: task -> async for", ours("task"), "asyncio", BOTH, calls="ainvoke"),
    Way("queuestream: background -> for", ours("background"), "thread", DEFAULT, calls="ainvoke"),
    Way(
        "queuestream: background -> async for",
        ours("background"),
        "asyncio",
        DEFAULT,
        calls="ainvoke",
    ),
    Way(
        "queuestream: background -> async for on trio",
        ours("background"),
        "trio",
        DEFAULT,
        calls="ainvoke",
    ),
    Way("model.stream", _plain(_by_stream), "thread"),
    Way("model.astream", _async(_by_astream), "asyncio", calls="ainvoke"),
    Way("thread -> queue.Queue -> for", _plain(_by_queue), "thread", BOTH),
    JANUS,
    Way("thread -> culsans -> async for", _async(_by_culsans), "asyncio", BOTH, "culsans"),
    CALL_SOON,
    Way(
        "AsyncIteratorCallbackHandler",
        _async(_by_aiter),
        "asyncio",
        needs="langchain_classic.callbacks",
        calls="ainvoke",
        sets_streaming=True,
    ),
    Way("astream_events v2", _async(_by_events), "asyncio", calls="ainvoke"),
    Way(
        "transformers TextIteratorStreamer",
        _plain(_by_streamer),
        "thread",
        needs="transformers.generation.streamers",
    ),
    Way(
        "transformers AsyncTextIteratorStreamer",
        _async(_by_async_streamer),
        "asyncio",
        needs="transformers.generation.streamers",
    ),
    Way(
        "llama-index StreamingGeneratorCallbackHandler",
        _plain(_by_llama_index),
        "thread",
        needs=_LLAMA_INDEX,
        sets_streaming=True,
    ),
]
