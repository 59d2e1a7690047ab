"""OpenAI's protocol, as its own clients speak it and as it goes over the wire."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import httpx
import openai
import pytest
from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, ToolMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.graph import START, MessagesState, StateGraph

from queuestream.demo import PASSAGE, DemoChatModel
from tests.serve.conftest import ask, chunks_of, text_of
from tests.support.models import (
    ScriptedChatModel,
    SyncOnlyChatModel,
    WholeAnswerChatModel,
    usage,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.serve.conftest import Served

    Serve = Callable[..., Served]

COMPLETIONS = "/v1/chat/completions"
CALL: Any = {"name": "f", "args": '{"x": 1}', "id": "c1", "index": 0, "type": "tool_call_chunk"}


def client_of(served: Served) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)


def chat_openai(served: Served, **more: Any) -> ChatOpenAI:
    options: dict[str, Any] = {"base_url": f"{served.url}/v1", "api_key": "none", "model": "m"}
    return ChatOpenAI(**options, max_retries=0, **more)


def question(text: str = "why?") -> list[Any]:
    return [{"role": "user", "content": text}]


def counted() -> ScriptedChatModel:
    last = AIMessageChunk(content="", usage_metadata=usage(3, 4))
    return ScriptedChatModel(tokens=["a ", "b\n", "\u2028é", last])


class TestTheOpenAIPackage:
    def test_it_streams_with_usage_if_asked(self, serve: Serve) -> None:
        with client_of(serve(counted(), name="m")) as client:
            chunks = list(
                client.chat.completions.create(
                    model="m",
                    messages=question(),
                    stream=True,
                    stream_options={"include_usage": True},
                )
            )
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert text == "a b\n\u2028é"
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.total_tokens == 7
        assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"

    def test_it_streams_without_usage_if_not_asked(self, serve: Serve) -> None:
        with client_of(serve(counted(), name="m")) as client:
            chunks = list(
                client.chat.completions.create(model="m", messages=question(), stream=True)
            )
        assert not any(chunk.usage for chunk in chunks)

    def test_it_gets_a_whole_answer(self, serve: Serve) -> None:
        with client_of(serve(counted(), name="m")) as client:
            answer = client.chat.completions.create(model="m", messages=question())
        assert answer.choices[0].message.content == "a b\n\u2028é"
        assert answer.usage is not None
        assert answer.usage.prompt_tokens == 3

    def test_it_finds_the_model(self, serve: Serve) -> None:
        with client_of(serve(counted(), name="a/b:c")) as client:
            assert [model.id for model in client.models.list()] == ["a/b:c"]
            assert client.models.retrieve("a/b:c").id == "a/b:c"

    def test_it_raises_what_a_wrong_request_gets(self, serve: Serve) -> None:
        with client_of(serve(counted(), name="m")) as client:
            with pytest.raises(openai.NotFoundError, match="There is no model 'other'"):
                client.chat.completions.create(model="other", messages=question())
            with pytest.raises(openai.BadRequestError, match="'n' must be 1"):
                client.chat.completions.create(model="m", messages=question(), n=2)

    def test_it_raises_what_the_run_raised(self, serve: Serve) -> None:
        """Before the first token a status, after it an event; neither tells a secret."""
        early = ScriptedChatModel(tokens=["a"], failure=ValueError("secret"), fail_at=0)
        with client_of(serve(early, name="m")) as client:
            for is_streamed in (True, False):
                with pytest.raises(openai.InternalServerError, match="The run failed") as raised:
                    client.chat.completions.create(
                        model="m", messages=question(), stream=is_streamed
                    )
                assert "secret" not in str(raised.value)
        late = ScriptedChatModel(tokens=["a", "b"], failure=ValueError("secret"), fail_at=1)
        with client_of(serve(late, name="m")) as client:
            got: list[str] = []
            with pytest.raises(openai.APIError, match="The run failed"):
                for chunk in client.chat.completions.create(
                    model="m", messages=question(), stream=True
                ):
                    got.append(chunk.choices[0].delta.content or "")  # noqa: PERF401 - it raises
        assert "".join(got) == "a"

    def test_its_asynchronous_client_does_as_well(self, serve: Serve) -> None:
        served = serve(DemoChatModel(pace=0), name="demo")

        async def read() -> tuple[str, Any]:
            async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none") as client:
                answer = await client.chat.completions.create(
                    model="demo",
                    messages=question(),
                    stream=True,
                    stream_options={"include_usage": True},
                )
                chunks = [chunk async for chunk in answer]
            text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
            return text, chunks[-1].usage

        text, told = asyncio.run(read())
        assert text == PASSAGE
        assert told.completion_tokens > 100


class TestChatOpenAI:
    def test_it_streams_and_invokes(self, serve: Serve) -> None:
        model = chat_openai(serve(counted(), name="m"), stream_usage=True)
        whole: Any = None
        for chunk in model.stream("?"):
            whole = chunk if whole is None else whole + chunk
        assert whole.content == "a b\n\u2028é"
        assert whole.usage_metadata["total_tokens"] == 7
        assert model.invoke("?").content == "a b\n\u2028é"

    def test_it_calls_tools_of_its_own(self, serve: Serve) -> None:
        """What its model was bound to reaches ours, in our model's own words."""

        class Bindable(ScriptedChatModel):
            given: list[Any] = []  # noqa: RUF012 - pydantic copies it

            def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> Any:
                self.given.append((tools, kwargs))
                return self.bind(tools="in our words")

        ours = Bindable(tokens=[AIMessageChunk(content="", tool_call_chunks=[CALL])])

        @tool
        def f(x: int) -> int:
            """Double it."""
            return 2 * x

        model = chat_openai(serve(ours, name="m")).bind_tools([f], tool_choice="f")
        answer = model.invoke("?")
        assert answer.tool_calls[0]["args"] == {"x": 1}
        assert answer.response_metadata["finish_reason"] == "tool_calls"
        whole: Any = None
        for chunk in model.stream("?"):
            whole = chunk if whole is None else whole + chunk
        assert whole.tool_calls[0]["name"] == "f"
        tools, options = ours.given[0]
        assert tools[0]["function"]["name"] == "f"
        assert options["tool_choice"] == {"type": "function", "function": {"name": "f"}}

    def test_a_whole_conversation_arrives_as_it_was(self, serve: Serve) -> None:
        ours = counted()
        called = AIMessage("", tool_calls=[{"name": "f", "args": {"x": 1}, "id": "c1"}])
        chat_openai(serve(ours, name="m")).invoke(
            [("system", "Be brief."), ("user", "?"), called, ToolMessage("2", tool_call_id="c1")]
        )
        system, human, ai, result = ours.record.prompts[0]
        assert (system.type, human.type, ai.type, result.type) == ("system", "human", "ai", "tool")
        assert ai.tool_calls[0]["args"] == {"x": 1}  # type: ignore[attr-defined]
        assert result.tool_call_id == "c1"  # type: ignore[attr-defined]


class TestTheWire:
    def test_a_stream(self, serve: Serve) -> None:
        answer = httpx.post(serve(counted(), name="m").url + COMPLETIONS, json=ask(stream=True))
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["x-accel-buffering"] == "no"
        chunks = chunks_of(answer.text)
        assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
        assert {chunk["model"] for chunk in chunks} == {"m"}
        assert len({chunk["id"] for chunk in chunks}) == 1
        assert text_of(chunks) == "a b\n\u2028é"

    def test_a_whole_answer(self, serve: Serve) -> None:
        answer = httpx.post(serve(counted(), name="m").url + COMPLETIONS, json=ask()).json()
        assert answer["object"] == "chat.completion"
        assert answer["choices"][0]["finish_reason"] == "stop"

    def test_parts_of_a_message_and_images(self, serve: Serve) -> None:
        ours = counted()
        image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
        parts = [{"type": "text", "text": "what?"}, image]
        content = ask([{"role": "user", "content": parts}])
        assert httpx.post(serve(ours).url + COMPLETIONS, json=content).status_code == 200
        assert ours.record.prompts[0][0].content == parts

    def test_options_that_a_model_knows_reach_it(self, serve: Serve) -> None:
        class Warm(FakeListChatModel):
            temperature: float = 0.0
            seen: list[Any] = []  # noqa: RUF012 - pydantic copies it

            def _stream(
                self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any
            ) -> Any:
                self.seen.append((stop, kwargs))
                return super()._stream(messages, stop, run_manager, **kwargs)

        ours = Warm(responses=["x"])
        asked = ask(temperature=0.5, top_p=0.1, stop="END", user="u", max_completion_tokens=9)
        served = serve(ours, run_in="thread")
        assert httpx.post(served.url + COMPLETIONS, json=asked).status_code == 200
        ((stop, options),) = ours.seen
        assert stop == ["END"]
        assert options["temperature"] == 0.5
        assert not {"top_p", "max_tokens", "user"} & set(options)

    @pytest.mark.parametrize("kind", [SyncOnlyChatModel, WholeAnswerChatModel])
    @pytest.mark.parametrize("run_in", ["auto", "thread", "background"])
    def test_any_kind_of_model_anywhere(self, serve: Serve, kind: Any, run_in: str) -> None:
        served = serve(kind(tokens=["a ", "b"]), run_in=run_in)
        body = httpx.post(served.url + COMPLETIONS, json=ask(stream=True)).text
        assert text_of(chunks_of(body)) == "a b"


class TestOtherRunnables:
    def served_text(self, served: Served, question: Any = "rivers") -> str:
        body = httpx.post(served.url + COMPLETIONS, json=ask(question, stream=True)).text
        whole = httpx.post(served.url + COMPLETIONS, json=ask(question)).json()
        text = text_of(chunks_of(body))
        assert whole["choices"][0]["message"]["content"] == text
        assert whole["choices"][0]["finish_reason"] == "stop"
        return text

    def test_a_chain_with_variables(self, serve: Serve) -> None:
        ours = ScriptedChatModel(tokens=["a ", "b"])
        chain = ChatPromptTemplate.from_template("On {topic}:") | ours | StrOutputParser()
        assert self.served_text(serve(chain)) == "a b"
        assert ours.record.prompts[0][0].content == "On rivers:"

    def test_a_function_with_callbacks(self, serve: Serve) -> None:
        def answer(query: str, callbacks: Any = None) -> str:
            said = ScriptedChatModel(tokens=[query, "!"]).invoke("?", {"callbacks": callbacks})
            return str(said.text)

        served = serve(answer)
        assert self.served_text(served) == "rivers!"
        assert httpx.get(f"{served.url}/v1/models").json()["data"][0]["id"] == "answer"

    def test_what_no_model_said_is_the_answer_nevertheless(self, serve: Serve) -> None:
        assert self.served_text(serve(RunnableLambda(lambda text: f"<{text}>"))) == "<rivers>"

    def test_a_graph(self, serve: Serve) -> None:
        ours = ScriptedChatModel(tokens=["a ", "b"])

        def node(state: MessagesState) -> Any:
            return {"messages": [ours.invoke(state["messages"])]}

        graph = StateGraph(MessagesState)
        graph.add_node("node", node)
        graph.add_edge(START, "node")
        served = serve(graph.compile())
        history = [
            {"role": "user", "content": "one"},
            {"role": "assistant", "content": "two"},
            {"role": "user", "content": "three"},
        ]
        assert self.served_text(served, history) == "a b"
        assert [message.content for message in ours.record.prompts[0]] == ["one", "two", "three"]

    def test_a_graph_without_a_model_answers_with_its_last_message(self, serve: Serve) -> None:
        def node(state: MessagesState) -> Any:
            return {"messages": [AIMessage(f"You said {state['messages'][-1].text}.")]}

        graph = StateGraph(MessagesState)
        graph.add_node("node", node)
        graph.add_edge(START, "node")
        assert self.served_text(serve(graph.compile())) == "You said rivers."

    def test_calls_that_a_chain_makes_itself_are_not_its_clients(self, serve: Serve) -> None:
        first = ScriptedChatModel(tokens=[AIMessageChunk(content="", tool_call_chunks=[CALL])])
        second = ScriptedChatModel(tokens=["done"])

        async def agent(text: str, callbacks: Any = None) -> Any:
            config: Any = {"callbacks": callbacks}
            await first.ainvoke([HumanMessage(text)], config)
            return await second.ainvoke("?", config)

        served = serve(agent)
        assert self.served_text(served) == "done"
        assert "tool_calls" not in json.dumps(
            httpx.post(served.url + COMPLETIONS, json=ask()).json()
        )

    def test_a_run_that_exits_does_not_end_the_server(self, serve: Serve) -> None:
        def answer(query: str) -> str:
            raise SystemExit(query)

        served = serve(RunnableLambda(answer))
        for is_streamed in (True, False):
            answered = httpx.post(served.url + COMPLETIONS, json=ask(stream=is_streamed))
            assert answered.status_code == 500
            assert answered.json()["error"]["message"] == "The run failed."
        assert httpx.get(f"{served.url}/v1/models").status_code == 200
