"""`gradio_chat` in a real Gradio app: by its client, and in a browser."""

from __future__ import annotations

import asyncio
import sys
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from gradio_client import Client

from queuestream import MixedQueue
from queuestream.ui import gradio_chat
from tests.support.gates import eventually
from tests.support.models import ScriptedChatModel

if TYPE_CHECKING:
    from tests.ui.conftest import App


@pytest.fixture(scope="module")
def client(gradio_app: App) -> Client:
    return Client(gradio_app.url, verbose=False, analytics_enabled=False)


def test_the_client_gets_the_text_so_far(client: Client) -> None:
    job = client.submit("hello", api_name="/chat")
    assert job.result(timeout=20) == "You said **hello**."
    heard = [str(text) for text in job.outputs()]
    assert all(after.startswith(before) for before, after in pairwise(heard))
    assert len(heard) > 1


@pytest.mark.parametrize("question, before", [("silent", "made 2"), ("mute", "asked mute")])
def test_a_cancelled_job_stops_the_model(
    gradio_app: App, client: Client, question: str, before: str
) -> None:
    """The model is silent: no token comes at which a stop could be noticed."""
    job: Any = client.submit(question, api_name="/chat")
    gradio_app.wait_for(before)
    eventually(lambda: job.communicator.event_id)  # before that the client cancels nothing
    job.cancel()
    gradio_app.wait_for(f"left {question}")


def test_a_restart_clears_the_text(client: Client) -> None:
    job = client.submit("flaky", api_name="/chat")
    assert job.result(timeout=20) == "good answer"
    heard = [str(text) for text in job.outputs()]
    assert any(text.startswith("one") for text in heard)
    assert not any("one" in text and "good" in text for text in heard)


# ------------------------------------------------------------- without a server


def ask(chat: Any, *arguments: Any) -> list[str]:
    async def listen() -> list[str]:
        return [text async for text in chat(*arguments)]

    return asyncio.run(listen())


HISTORIES = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "thinking", "metadata": {"title": "Thought"}},
        {"role": "assistant", "content": "Hello", "metadata": {"title": None}},
    ],
    "parts": [
        {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
        {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
        {"role": "user", "content": [{"type": "file", "file": {"path": "a.png"}}]},
        {"role": "assistant", "content": [{"type": "text", "text": "Hello"}]},
    ],
    "pairs": [["Hi", "Hello"], [("a.png",), None]],
}


@pytest.mark.parametrize("form", HISTORIES)
@pytest.mark.parametrize("message", ["And now?", {"text": "And now?", "files": ["b.png"]}])
def test_history_becomes_messages(form: str, message: Any) -> None:
    model = ScriptedChatModel(tokens=["a", "b"])
    assert ask(gradio_chat(model), message, HISTORIES[form])[-1] == "ab"
    (messages,) = model.record.prompts
    said = [(message.type, message.content) for message in messages]
    system = [] if form == "pairs" else [("system", "Be brief.")]
    assert said == [*system, ("human", "Hi"), ("ai", "Hello"), ("human", "And now?")]


def test_an_input_is_made_of_messages_and_additional_inputs() -> None:
    model = ScriptedChatModel(tokens=["a"])
    chat = gradio_chat(model, to_input=lambda messages, tone: f"{messages[-1].content}, {tone}")
    assert ask(chat, "Hi", [], "softly") == ["a"]
    assert model.record.prompts[0][0].content == "Hi, softly"


def test_additional_inputs_need_somebody_who_uses_them() -> None:
    with pytest.raises(TypeError, match=r"1 additional inputs .* to_input\(messages, \.\.\.\)"):
        ask(gradio_chat(ScriptedChatModel(tokens=["a"])), "Hi", [], "softly")


def test_bad_arguments_are_refused_before_there_is_a_question() -> None:
    model = ScriptedChatModel(tokens=["a"])
    with pytest.raises(TypeError, match="leave select= out"):
        gradio_chat(model, select="text")
    with pytest.raises(TypeError, match="leave queue= out"):
        gradio_chat(model, queue=MixedQueue(3))
    with pytest.raises(TypeError, match="to_input must be a function"):
        gradio_chat(model, to_input="question")  # type: ignore[arg-type] # that is the test
    with pytest.raises(ValueError, match="maxsize"):
        gradio_chat(model, maxsize=-1)
    with pytest.raises(TypeError):
        gradio_chat("model")  # type: ignore[arg-type] # that is the test


def test_without_gradio_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(ImportError, match=r'pip install "queuestream\[gradio\]"'):
        gradio_chat(ScriptedChatModel(tokens=["a"]))
