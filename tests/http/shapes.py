"""What providers send, by name, and the real clients that read it.

A name is that of a recording or of a self-made answer, and may be followed by a variant of
the client: ``anthropic-web-search-tool+tools`` is read by a client to which tools are bound.
"""

from __future__ import annotations

import functools
import json
from typing import TYPE_CHECKING, Any

from langchain_openai import ChatOpenAI

from tests.support.clients import anthropic_client, openai_client
from tests.support.server import Answer, recorded, recordings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from langchain_core.language_models import LanguageModelInput
    from langchain_core.messages import AIMessage
    from langchain_core.outputs import ChatGenerationChunk
    from langchain_core.runnables import Runnable

    from tests.support.server import Scenario

__all__ = [
    "LONG",
    "RAISING",
    "READABLE",
    "SELF_MADE",
    "SMALL",
    "WHOLE",
    "answer_of",
    "client_of",
    "is_long",
]

USAGE = {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}
A_CALL = {"index": 0, "id": "call_a", "type": "function", "function": {"name": "a"}}
B_CALL = {"index": 1, "id": "call_b", "type": "function", "function": {"name": "b"}}
TOOLS: list[dict[str, Any]] = [
    {"type": "web_search_20250305", "name": "web_search"},
    {"name": "json", "description": "Answer.", "input_schema": {"type": "object"}},
]
VARIANTS: dict[str, dict[str, Any]] = {
    "v0": {"output_version": "v0"},
    "v1": {"output_version": "v1"},
    "thinking": {"thinking": {"type": "enabled", "budget_tokens": 1024}, "max_tokens": 2048},
}
"""Variants of a client, and what they are made with.  ``tools`` and ``beside`` are two more."""


class ReasoningBeside(ChatOpenAI):
    """A client that keeps the reasoning beside the content, as DeepSeek's, Groq's and xAI's do."""

    def _convert_chunk_to_generation_chunk(
        self, chunk: dict[str, Any], default_chunk_class: type, base_generation_info: Any
    ) -> ChatGenerationChunk | None:
        generation = super()._convert_chunk_to_generation_chunk(
            chunk, default_chunk_class, base_generation_info
        )
        for choice in chunk.get("choices") or () if generation is not None else ():
            if reasoning := choice["delta"].get("reasoning_content"):
                assert generation is not None
                generation.message.additional_kwargs["reasoning_content"] = reasoning
        return generation


def client_of(
    name: str, scenario: Scenario, **options: Any
) -> Runnable[LanguageModelInput, AIMessage]:
    """Return the client for what has this name."""
    name, _, variant = name.partition("+")
    options |= VARIANTS.get(variant, {})
    if "anthropic" in name:
        model = anthropic_client(scenario, **options)
        return model.bind_tools(TOOLS) if variant == "tools" else model
    in_new_format = (name.startswith("openai-") and name != "openai-text") or "responses" in name
    chat = openai_client(scenario, use_responses_api=in_new_format, **options)
    return ReasoningBeside(**_made_with(chat)) if variant == "beside" else chat


def _made_with(client: ChatOpenAI) -> dict[str, Any]:
    return {
        "model": "m",
        "base_url": client.openai_api_base,
        "api_key": client.openai_api_key,
        "max_retries": 0,
        "http_client": client.http_client,
        "http_async_client": client.http_async_client,
    }


@functools.cache
def answer_of(name: str) -> Answer:
    """Return the answer of this name; skip the test if it is a recording that is not here."""
    name, _, _ = name.partition("+")
    made = SELF_MADE.get(name) or WHOLE.get(name)
    return recorded(name) if made is None else made


# Self-made answers


def _chat(*deltas: dict[str, Any], usage: dict[str, Any] | None = None) -> Answer:
    about = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 0, "model": "m"}

    def event(*choices: dict[str, Any], **more: Any) -> bytes:
        return f"data: {json.dumps({**about, 'choices': choices, **more})}\n\n".encode()

    events = [
        event({"index": 0, "delta": delta, "finish_reason": None})
        for delta in ({"role": "assistant", "content": ""}, *deltas)
    ]
    events.append(event({"index": 0, "delta": {}, "finish_reason": "stop"}))
    if usage is not None:
        events.append(event(usage=usage))
    return Answer([*events, b"data: [DONE]\n\n"])


def _piece(index: int, arguments: str) -> dict[str, Any]:
    return {"index": index, "function": {"arguments": arguments}}


def _typed(*events: dict[str, Any]) -> Answer:
    return Answer(
        [f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode() for event in events]
    )


def _anthropic(
    *blocks: tuple[dict[str, Any], Sequence[dict[str, Any]]], stop: str = "end_turn"
) -> Answer:
    """An answer of blocks: each what it starts with, and its deltas."""
    usage = {"input_tokens": 3, "output_tokens": 1}
    message: dict[str, Any] = {"id": "msg_1", "type": "message", "role": "assistant", "model": "m"}
    message |= {"content": [], "stop_reason": None, "stop_sequence": None, "usage": usage}
    events: list[dict[str, Any]] = [{"type": "message_start", "message": message}]
    for index, (start, deltas) in enumerate(blocks):
        events += [
            {"type": "content_block_start", "index": index, "content_block": start},
            *({"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas),
            {"type": "content_block_stop", "index": index},
        ]
    end = {"stop_reason": stop, "stop_sequence": None}
    usage = {"input_tokens": 3, "output_tokens": 5}
    return _typed(
        *events,
        {"type": "message_delta", "delta": end, "usage": usage},
        {"type": "message_stop"},
    )


def _response(*events: dict[str, Any], usage: bool = True) -> Answer:
    about: dict[str, Any] = {"id": "resp_1", "object": "response", "created_at": 0, "model": "m"}
    about |= {"parallel_tool_calls": True, "tool_choice": "auto", "tools": [], "output": []}
    end: dict[str, Any] = {**about, "status": "completed"}
    if usage:
        end["usage"] = {
            "input_tokens": 3,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": 5,
            "output_tokens_details": {"reasoning_tokens": 2},
            "total_tokens": 8,
        }
    every = [
        {"type": "response.created", "response": {**about, "status": "in_progress"}},
        *events,
        {"type": "response.completed", "response": end},
    ]
    return _typed(*({**event, "sequence_number": number} for number, event in enumerate(every)))


def _item(kind: str, index: int, item: dict[str, Any], **deltas: Sequence[str]) -> list[Any]:
    """The events of one output item: it begins, and has deltas of a kind."""
    where = {"item_id": item["id"], "output_index": index, "content_index": 0, "summary_index": 0}
    events = [{"type": "response.output_item.added", "output_index": index, "item": item}]
    if kind == "reasoning_summary_text":
        part = {"type": "summary_text", "text": ""}
        events.append({"type": "response.reasoning_summary_part.added", **where, "part": part})
    for texts in deltas.values():
        events += [
            {"type": f"response.{kind}.delta", **where, "delta": text, "logprobs": []}
            for text in texts
        ]
    return events


_THOUGHT = {"id": "rs_1", "type": "reasoning", "summary": []}
_SAID = {"id": "msg_1", "type": "message", "role": "assistant", "status": "in_progress"}
_CALLED = {"id": "fc_1", "type": "function_call", "call_id": "call_a", "name": "a"}
_QUERY = {"type": "search", "query": "q"}
_SEARCH = {"id": "ws_1", "type": "web_search_call", "status": "completed", "action": _QUERY}
_ERROR = {"type": "error", "code": "server_error", "message": "out of luck", "param": None}
_OVERLOADED = {"type": "overloaded_error", "message": "out of luck"}
_REFUSED = {"type": "response.refusal.done", "item_id": "msg_1", "output_index": 0}

SELF_MADE: dict[str, Answer] = {
    "chat text": _chat({"content": "a "}, {"content": "b "}, {"content": "c"}, usage=USAGE),
    "chat reasoning": _chat({"reasoning_content": "hm "}, {"content": "a"}, usage=USAGE),
    "chat tool calls": _chat(
        {"content": "a"},
        {"tool_calls": [A_CALL]},
        {"tool_calls": [_piece(0, '{"x":')]},
        {"tool_calls": [_piece(0, "1}"), {**B_CALL, "function": {"name": "b", "arguments": "{"}}]},
        {"tool_calls": [_piece(1, '"y":2}')]},
        usage=USAGE,
    ),
    "chat refusal": _chat({"refusal": "I can"}, {"refusal": "not."}, usage=USAGE),
    "chat empty first": Answer(
        [
            b'data: {"choices": [], "created": 0, "id": "", "model": "", "object": ""}\n\n',
            *_chat({"content": "a "}, {"content": "b"}, usage=USAGE).events,
        ]
    ),
    "chat without usage": _chat({"content": "a "}, {"content": "b"}),
    "responses text": _response(
        *_item("output_text", 0, {**_SAID, "content": []}, text=["a ", "b ", "c"])
    ),
    "responses reasoning": _response(
        *_item("reasoning_summary_text", 0, _THOUGHT, summary=["hm ", "so"]),
        *_item("output_text", 1, {**_SAID, "content": []}, text=["a ", "b"]),
    ),
    "responses tool call": _response(
        *_item("function_call_arguments", 0, {**_CALLED, "arguments": ""}, args=['{"x":', "1}"])
    ),
    "responses server tool": _response(
        *_item("", 0, _THOUGHT),
        {"type": "response.output_item.done", "output_index": 0, "item": _THOUGHT},
        *_item("", 1, {**_SEARCH, "status": "in_progress"}),
        {"type": "response.output_item.done", "output_index": 1, "item": _SEARCH},
        *_item("output_text", 2, {**_SAID, "content": []}, text=["a ", "b"]),
    ),
    "responses refusal": _response(
        *_item("refusal", 0, {**_SAID, "content": []}, refusal=["I can", "not."]),
        {**_REFUSED, "content_index": 0, "refusal": "I cannot."},
    ),
    "anthropic text": _anthropic(
        (
            {"type": "text", "text": ""},
            [{"type": "text_delta", "text": text} for text in ("a ", "b ", "c")],
        )
    ),
    "anthropic thinking": _anthropic(
        (
            {"type": "thinking", "thinking": "", "signature": ""},
            [
                {"type": "thinking_delta", "thinking": "hm "},
                {"type": "thinking_delta", "thinking": "so"},
                {"type": "signature_delta", "signature": "s"},
            ],
        ),
        ({"type": "text", "text": ""}, [{"type": "text_delta", "text": "a"}]),
    ),
    "anthropic tool calls": _anthropic(
        ({"type": "text", "text": ""}, [{"type": "text_delta", "text": "a"}]),
        (
            {"type": "tool_use", "id": "toolu_a", "name": "a", "input": {}},
            [{"type": "input_json_delta", "partial_json": text} for text in ("", '{"x":', "1}")],
        ),
        (
            {"type": "tool_use", "id": "toolu_b", "name": "b", "input": {}},
            [{"type": "input_json_delta", "partial_json": '{"y":2}'}],
        ),
        stop="tool_use",
    ),
    "anthropic citations": _anthropic(
        (
            {"type": "server_tool_use", "id": "srv_1", "name": "web_search", "input": {}},
            [{"type": "input_json_delta", "partial_json": '{"query":"q"}'}],
        ),
        ({"type": "web_search_tool_result", "tool_use_id": "srv_1", "content": []}, []),
        (
            {"type": "text", "text": "", "citations": []},
            [
                {"type": "text_delta", "text": "a "},
                {
                    "type": "citations_delta",
                    "citation": {
                        "type": "web_search_result_location",
                        "cited_text": "c",
                        "encrypted_index": "e",
                        "title": "t",
                        "url": "http://localhost/",
                    },
                },
                {"type": "text_delta", "text": "b"},
            ],
        ),
    ),
    "anthropic refusal": _anthropic(stop="refusal"),
    "chat error": Answer(
        [
            *_chat({"content": "a "}, {"content": "b "}).events[:3],
            b'data: {"error": {"message": "out of luck", "type": "server_error"}}\n\n',
        ]
    ),
    "responses error": Answer(
        [
            *_response(
                *_item("output_text", 0, {**_SAID, "content": []}, text=["a ", "b "])
            ).events[:-1],
            *_typed({**_ERROR, "sequence_number": 4}).events,
        ]
    ),
    "anthropic error": Answer(
        [
            *_anthropic(
                ({"type": "text", "text": ""}, [{"type": "text_delta", "text": "a "}])
            ).events[:3],
            *_typed({"type": "error", "error": _OVERLOADED}).events,
        ]
    ),
}
"""Streamed answers that are always there, one for each shape."""


def _at_once(body: dict[str, Any]) -> Answer:
    return Answer([json.dumps(body).encode()], media_type="application/json")


WHOLE: dict[str, Answer] = {
    "chat whole": _at_once(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 0,
            "model": "m",
            "choices": [
                {
                    "index": 0,
                    "finish_reason": "tool_calls",
                    "message": {
                        "role": "assistant",
                        "content": "a b",
                        "tool_calls": [
                            {**A_CALL, "function": {"name": "a", "arguments": '{"x": 1}'}},
                            {**B_CALL, "function": {"name": "b", "arguments": "{}"}},
                        ],
                    },
                }
            ],
            "usage": USAGE,
        }
    ),
    "responses whole": _at_once(
        {
            "id": "resp_1",
            "object": "response",
            "created_at": 0,
            "model": "m",
            "status": "completed",
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": [],
            "output": [
                {**_THOUGHT, "summary": [{"type": "summary_text", "text": "hm "}]},
                {
                    **_SAID,
                    "status": "completed",
                    "content": [{"type": "output_text", "text": "a b", "annotations": []}],
                },
                {**_CALLED, "status": "completed", "arguments": '{"x": 1}'},
                {**_CALLED, "id": "fc_2", "call_id": "call_b", "name": "b", "arguments": "{}"},
            ],
            "usage": {
                "input_tokens": 3,
                "input_tokens_details": {"cached_tokens": 0},
                "output_tokens": 5,
                "output_tokens_details": {"reasoning_tokens": 2},
                "total_tokens": 8,
            },
        }
    ),
    "anthropic whole": _at_once(
        {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "model": "m",
            "content": [
                {"type": "thinking", "thinking": "hm ", "signature": "s"},
                {"type": "text", "text": "a b"},
                {"type": "tool_use", "id": "toolu_a", "name": "a", "input": {"x": 1}},
                {"type": "tool_use", "id": "toolu_b", "name": "b", "input": {}},
            ],
            "stop_reason": "tool_use",
            "stop_sequence": None,
            "usage": {"input_tokens": 3, "output_tokens": 5},
        }
    ),
}
"""Answers that come at once, from a provider that was not asked to stream."""

_RAISING = ["anthropic-clear-thinking", "openai-error", "openai-reasoning-encrypted-content"]
RAISING = [
    *(name for name in SELF_MADE if "error" in name),
    *(name for name in _RAISING if name in recordings()),
    *(f"openai-reasoning-encrypted-content+{v}" for v in ("v0", "v1") if recordings()),
    *("anthropic-clear-thinking+thinking" for _ in range(bool(recordings()))),
]
"""Those at which today's clients raise."""
READABLE = [
    *(name for name in SELF_MADE if name not in RAISING),
    "chat tool calls+v1",
    "responses reasoning+v0",
    "responses reasoning+v1",
    "responses tool call+v1",
    "anthropic thinking+thinking",
    "anthropic thinking+v1",
    "anthropic tool calls+tools",
    "anthropic tool calls+v1",
    "anthropic citations+tools",
    *(name for name in recordings() if name not in RAISING),
    *("anthropic-web-search-tool+tools" for _ in range(bool(recordings()))),
]
"""Those that today's clients read to their end."""


def is_long(name: str) -> bool:
    """Whether an answer is too long to be taken event by event."""
    return len(answer_of(name).events) > 40


LONG = [name for name in recordings() if is_long(name)]
"""Long recordings."""
SMALL = [*SELF_MADE, *(name for name in recordings() if name not in LONG)]
"""Those that a test can take event by event."""
