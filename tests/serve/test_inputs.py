"""From a conversation to the input of whatever is served."""

from __future__ import annotations

from typing import Any, TypedDict

import pytest
from langchain_core.language_models import FakeListChatModel, FakeListLLM
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder
from langchain_core.runnables import RunnableLambda, RunnablePassthrough
from langgraph.graph import MessagesState, StateGraph

from queuestream.web.serve import create_app
from queuestream.web.serve.failures import Refused
from queuestream.web.serve.inputs import input_maker

MODEL = FakeListChatModel(responses=["x"])
TALK: list[Any] = [SystemMessage("s"), HumanMessage("one"), AIMessage("two"), HumanMessage("three")]


class State(TypedDict):
    question: str
    answer: str


def graph(state: Any) -> Any:
    built: Any = StateGraph(state)
    built.add_node("node", lambda given: given)
    built.set_entry_point("node")
    return built.compile()


def typed(query: str) -> str:
    return query


def with_history(name: str = "history", *, optional: bool = False) -> Any:
    return (
        ChatPromptTemplate.from_messages(
            [MessagesPlaceholder(name, optional=optional), ("human", "{question}")]
        )
        | MODEL
    )


@pytest.mark.parametrize(
    "target, made",
    [
        (MODEL, TALK),
        (MODEL.bind(stop=["x"]), TALK),
        (MODEL.with_fallbacks([MODEL]), TALK),
        (FakeListLLM(responses=["x"]), TALK),
        (ChatPromptTemplate.from_template("{topic}") | MODEL, {"topic": "three"}),
        (with_history(), {"history": TALK[:3], "question": "three"}),
        (with_history(optional=True), {"history": TALK[:3], "question": "three"}),
        (with_history("messages"), {"messages": TALK[:3], "question": "three"}),
        ({"q": RunnablePassthrough()} | ChatPromptTemplate.from_template("{q}") | MODEL, "three"),
        (RunnableLambda(typed), "three"),
        (RunnableLambda(lambda given: given), "three"),
        (lambda query, callbacks: query, "three"),
        (graph(MessagesState), {"messages": TALK}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_a_target_tells_decides(target: Any, made: Any) -> None:
    assert input_maker(target, None)(list(TALK)) == made


@pytest.mark.parametrize(
    "described, made",
    [
        ("messages", TALK),
        ("text", "three"),
        ("question=text", {"question": "three"}),
        ("messages=messages", {"messages": TALK}),
        ("q=text, h=messages", {"q": "three", "h": TALK[:3]}),
    ],
)
def test_who_serves_may_say_it(described: str, made: Any) -> None:
    assert input_maker(graph(State), described)(list(TALK)) == made


def test_or_give_a_function() -> None:
    assert input_maker(MODEL, len)(list(TALK)) == 4


def test_what_cannot_be_told_is_refused_with_what_to_write() -> None:
    with pytest.raises(ValueError, match=r"takes question, answer, .* describe the input"):
        create_app(graph(State))


@pytest.mark.parametrize(
    "described", ["", "words", "=text", "a=", "a=image", "a=text,a=text", "a=text,b=text"]
)
def test_a_description_that_is_none(described: str) -> None:
    with pytest.raises(ValueError, match=r"text"):
        input_maker(MODEL, described)


def test_neither_a_function_nor_a_description() -> None:
    wrong: Any = 3
    with pytest.raises(TypeError, match="not by 3"):
        input_maker(MODEL, wrong)


def test_a_question_with_an_image_for_a_target_that_takes_text() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:,"}}
    make = input_maker(MODEL, "text")
    parts: list[Any] = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert make([HumanMessage(parts)]) == "ab"
    with pytest.raises(Refused, match="takes text only"):
        make([HumanMessage([*parts, image])])


def test_a_conversation_without_a_question() -> None:
    with pytest.raises(Refused, match="'user'"):
        input_maker(MODEL, "text")([SystemMessage("s")])
