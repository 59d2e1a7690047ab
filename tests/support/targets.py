"""What is run in the tests of stopping: a model alone, and wrapped in all that users wrap it in."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypedDict

from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableConfig  # noqa: TC002 - read at run time
from langgraph.graph import START, StateGraph

if TYPE_CHECKING:
    from collections.abc import Callable

    from langchain_core.language_models import BaseChatModel
    from langchain_core.runnables import Runnable

    from tests.support.consumers import RunIn

__all__ = ["TARGETS", "Target"]


class State(TypedDict):
    """The state of the graphs; it is their input as well as the prompt's."""

    topic: str


@dataclass(frozen=True)
class Target:
    """A way to wrap a model.

    `build` takes the model and a spare one, which must never be called.
    """

    name: str
    build: Callable[[BaseChatModel, BaseChatModel], Runnable[Any, Any]]
    needs_loop: bool = False
    """Whether it can be run with `ainvoke` only."""
    input: Any = field(default_factory=lambda: {"topic": "rivers"})
    always_sync: bool = False
    """Whether it calls the model with `invoke` even when it is run with `ainvoke` itself."""

    def __str__(self) -> str:
        return self.name

    def is_sync(self, run_in: RunIn) -> bool:
        """Return whether the model runs synchronously: a stop then waits for its next token."""
        return run_in == "thread" or self.always_sync


def _graph_with_sync_node(model: BaseChatModel, _: BaseChatModel) -> Runnable[Any, Any]:
    def node(state: State, config: RunnableConfig) -> State:  # config: fact 10
        return {"topic": str(model.invoke(state["topic"], config).content)}

    return _graph(node)


def _graph_with_async_node(model: BaseChatModel, _: BaseChatModel) -> Runnable[Any, Any]:
    async def node(state: State, config: RunnableConfig) -> State:
        return {"topic": str((await model.ainvoke(state["topic"], config)).content)}

    return _graph(node)


def _graph(node: Any) -> Runnable[Any, Any]:
    builder = StateGraph(State)
    builder.add_node("node", node)
    builder.add_edge(START, "node")
    graph: Runnable[Any, Any] = builder.compile()
    return graph


def _prompt() -> Runnable[Any, Any]:
    return ChatPromptTemplate.from_template("Tell me about {topic}.")


def _retried(model: BaseChatModel) -> Runnable[Any, Any]:
    return model.with_retry(stop_after_attempt=3, wait_exponential_jitter=False)


TARGETS = [
    Target("model", lambda model, _: model, input="rivers"),
    Target("chain", lambda model, _: _prompt() | model | StrOutputParser()),
    Target("fallbacks", lambda model, spare: _prompt() | model.with_fallbacks([spare])),
    Target("retry", lambda model, _: _prompt() | _retried(model)),
    Target(
        "everything",
        lambda model, spare: (_prompt() | _retried(model) | StrOutputParser()).with_fallbacks(
            [_prompt() | spare | StrOutputParser()]
        ),
    ),
    Target("graph, sync node", _graph_with_sync_node, always_sync=True),
    Target("graph, async node", _graph_with_async_node, needs_loop=True),
]
