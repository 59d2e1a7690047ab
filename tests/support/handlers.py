"""The ready-made handlers, one of each kind, and all the ways in which a model is run under one."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypedDict

import pytest
from langchain_core.output_parsers import StrOutputParser
from langchain_core.runnables import (
    RunnableConfig,
    RunnableLambda,
    RunnableParallel,
)
from langgraph.graph import START, StateGraph

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
from tests.support.gates import eventually, eventually_async
from tests.support.models import ScriptedChatModel

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence

    from langchain_core.messages import BaseMessage
    from langchain_core.outputs import ChatGenerationChunk

    from tests.support.gates import Gate

__all__ = [
    "BY_NAME",
    "INVOKE_AND_AINVOKE",
    "KINDS",
    "LENGTH",
    "PLAIN_AND_COROUTINE",
    "WAYS",
    "EchoChatModel",
    "Kind",
    "Received",
    "Screen",
    "Way",
    "answer",
    "gate_of",
    "step",
    "step_async",
]

LENGTH = 7
"""Tokens in an answer of `EchoChatModel`."""


def answer(prompt: str, length: int = LENGTH) -> list[str]:
    """Return the tokens with which `EchoChatModel` answers."""
    return [f"{prompt}{number} " for number in range(length)]


class EchoChatModel(ScriptedChatModel):
    """Answers each prompt with tokens that tell which prompt it was."""

    def _of(self, messages: list[BaseMessage]) -> ScriptedChatModel:
        words = answer(str(messages[0].content))
        return ScriptedChatModel(
            tokens=words,
            gate=self.gate,
            failure=self.failure,
            fail_at=self.fail_at,
            record=self.record,
        )

    def _stream_script(self, messages: list[BaseMessage]) -> Iterator[ChatGenerationChunk]:
        return self._of(messages)._stream_script(messages)

    def _astream_script(self, messages: list[BaseMessage]) -> AsyncIterator[ChatGenerationChunk]:
        return self._of(messages)._astream_script(messages)


def gate_of(model: ScriptedChatModel) -> Gate:
    """Return the gate that a model has."""
    assert model.gate is not None
    return model.gate


def step(model: ScriptedChatModel) -> None:
    """Let a model that waits at its gate, or soon will, give one token."""
    gate = gate_of(model)
    eventually(lambda: gate.waiting)
    gate.release()


async def step_async(model: ScriptedChatModel) -> None:
    """Do what `step` does, and let the event loop run meanwhile."""
    gate = gate_of(model)
    await eventually_async(lambda: gate.waiting)
    gate.release()


class Screen:
    """A terminal of one line: what stays on it of what is written.

    It fails as soon as something is written behind an indicator that is still there.
    """

    def __init__(self, before: str = "") -> None:
        self._cells = list(before)
        self._cursor = len(before)

    @property
    def text(self) -> str:
        """What is to be read now: up to the cursor, and beyond it what is no blank."""
        beyond = "".join(self._cells[self._cursor :]).rstrip()
        return "".join(self._cells[: self._cursor]) + beyond

    def write(self, text: str) -> None:
        """Write what an ``on_token`` is given."""
        for character in text:
            if character == "\b":
                assert self._cursor, "moved left of what was written"
                self._cursor -= 1
                continue
            before = self._cells[self._cursor - 1] if self._cursor else ""
            assert before != "⋯", f"{character!r} behind the indicator"
            self._cells[self._cursor : self._cursor + 1] = character
            self._cursor += 1


class Received:
    """What an ``on_token`` was given, and where.

    Args:
        is_async: Whether `on_token` is a coroutine function.

    """

    def __init__(self, *, is_async: bool = False) -> None:
        self.texts: list[str] = []
        self.threads: list[int] = []
        self.on_token: Callable[[str], Any] = self._coroutine if is_async else self._plain

    def _plain(self, text: str) -> None:
        self.texts.append(text)
        self.threads.append(threading.get_ident())

    async def _coroutine(self, text: str) -> None:
        await asyncio.sleep(0)
        self._plain(text)

    @property
    def tokens(self) -> list[str]:
        """The texts without the indicator and what erases it."""
        return [text for text in self.texts if text not in ("⋯", "\b \b")]

    def of(self, prompt: str) -> list[str]:
        """Return the texts that `EchoChatModel` gave in answer to one prompt."""
        return [text for text in self.tokens if text.startswith(prompt)]

    @property
    def shown(self) -> str:
        """What a terminal shows at the end."""
        screen = Screen()
        for text in self.texts:
            screen.write(text)
        return screen.text.rstrip()


@dataclass(frozen=True)
class Kind:
    """A ready-made handler, as `make` makes it of an ``on_token``."""

    name: str
    make: Callable[..., StreamHandler]
    size: int = 1
    """How many tokens it joins."""
    holds_back: bool = False
    """Whether something is left to be delivered at the end of a run."""

    def __str__(self) -> str:
        return self.name

    def texts(self, tokens: Sequence[str]) -> list[str]:
        """Return what ``on_token`` gets of one run with these tokens, but for an indicator."""
        return ["".join(tokens[at : at + self.size]) for at in range(0, len(tokens), self.size)]


def _safe(on_token: Callable[[str], object], **_: object) -> StreamHandler:
    return create_safe_handler(on_token)  # its errors never end a run


_KINDS = [
    Kind("plain", StreamHandler),
    Kind("statistics", StatisticsStreamHandler),
    Kind("batch", partial(BatchStreamHandler, batch_size=3), size=3, holds_back=True),
    Kind(
        "timed batch",  # never so late that its timer fires
        partial(BatchStreamHandler, batch_size=3, max_delay=600),
        size=3,
        holds_back=True,
    ),
    Kind("memory", MemoryEfficientHandler),
    Kind("safe", _safe),
    Kind("resilient", partial(ResilientStreamHandler, backoff=0)),
    Kind("typing", UIFriendlyHandler, holds_back=True),
    Kind("managed", ManagedStreamHandler),
    Kind("debug", DebugStreamHandler),
]
BY_NAME = {kind.name: kind for kind in _KINDS}
KINDS = [pytest.param(kind, id=kind.name) for kind in _KINDS]
PLAIN_AND_COROUTINE = pytest.mark.parametrize("is_async", [False, True], ids=["plain", "coroutine"])


# -- ways to run a model ---------------------------------------------------------------------------


class State(TypedDict):
    """The state of the graphs."""

    text: str


def _graph(model: Any, *, is_async: bool) -> Any:
    def node(state: State, config: RunnableConfig) -> State:
        return {"text": str(model.invoke(state["text"], config).content)}

    async def anode(state: State, config: RunnableConfig) -> State:  # config: fact 10
        return {"text": str((await model.ainvoke(state["text"], config)).content)}

    builder = StateGraph(State)
    builder.add_node("node", anode if is_async else node)
    builder.add_edge(START, "node")
    return builder.compile()


def _parallel(model: Any) -> Any:
    return RunnableParallel(
        a=RunnableLambda(lambda _: "a") | model | StrOutputParser(),
        b=RunnableLambda(lambda _: "b") | model | StrOutputParser(),
    )


async def _drain(iterator: AsyncIterator[Any]) -> None:
    async for _ in iterator:
        pass


@dataclass(frozen=True)
class Way:
    """A way to run a model under handlers: a function of the model and the config."""

    name: str
    body: Callable[[Any, Any], Any]
    is_async: bool = False
    """Whether the body returns what must be awaited."""
    prompts: tuple[str, ...] = ("a",)
    """What the model is asked, all at the same time."""

    def __str__(self) -> str:
        return self.name

    def run(self, model: Any, make: Callable[[], Any]) -> Any:
        """Run a model under a handler, or a list of them, made where the run is started.

        Returns when nothing of the run is left on its loop.
        """

        def start() -> Any:
            made = make()
            return self.body(model, {"callbacks": made if isinstance(made, list) else [made]})

        async def main() -> Any:
            return await start()

        return asyncio.run(main()) if self.is_async else start()


_WAYS = [
    Way("invoke", lambda model, config: model.invoke("a", config)),
    Way("stream", lambda model, config: list(model.stream("a", config))),
    Way("batch", lambda model, config: model.batch(["a", "b"], config), prompts=("a", "b")),
    Way("chain", lambda model, config: (model | StrOutputParser()).invoke("a", config)),
    Way("parallel", lambda model, config: _parallel(model).invoke("?", config), prompts=("a", "b")),
    Way("graph", lambda model, config: _graph(model, is_async=False).invoke({"text": "a"}, config)),
    Way("ainvoke", lambda model, config: model.ainvoke("a", config), is_async=True),
    Way("astream", lambda model, config: _drain(model.astream("a", config)), is_async=True),
    Way(
        "abatch",
        lambda model, config: model.abatch(["a", "b"], config),
        is_async=True,
        prompts=("a", "b"),
    ),
    Way(
        "achain",
        lambda model, config: (model | StrOutputParser()).ainvoke("a", config),
        is_async=True,
    ),
    Way(
        "aparallel",
        lambda model, config: _parallel(model).ainvoke("?", config),
        is_async=True,
        prompts=("a", "b"),
    ),
    Way(
        "agraph, async node",
        lambda model, config: _graph(model, is_async=True).ainvoke({"text": "a"}, config),
        is_async=True,
    ),
    Way(
        "agraph, sync node",
        lambda model, config: _graph(model, is_async=False).ainvoke({"text": "a"}, config),
        is_async=True,
    ),
    Way(
        "agraph, astream",
        lambda model, config: _drain(
            _graph(model, is_async=True).astream({"text": "a"}, config, stream_mode="messages")
        ),
        is_async=True,
    ),
    Way(
        "to_thread",
        lambda model, config: asyncio.to_thread(model.invoke, "a", config),
        is_async=True,
    ),
]
WAYS = [pytest.param(way, id=way.name) for way in _WAYS]
INVOKE_AND_AINVOKE = pytest.mark.parametrize(
    "way", [case for case in WAYS if case.id in ("invoke", "ainvoke")]
)
