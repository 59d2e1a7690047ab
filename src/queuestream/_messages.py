"""Taking apart what LangChain's models report: chunks, whole messages, results.

`parts_of` takes a message apart, once for all that needs it: text, reasoning, pieces of
tool calls, usage.  What providers send is not checked by anybody before it comes here, so
nothing here fails on what it does not know.

Text is taken from the chunk, never from the ``token`` argument: that one may be a list of
content blocks, and is empty where the model reasons or calls a tool.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage

if TYPE_CHECKING:
    from langchain_core.messages.ai import UsageMetadata
    from langchain_core.outputs import LLMResult

__all__ = [
    "Kind",
    "Part",
    "finish_reason_in",
    "finish_reason_of",
    "first_generation",
    "message_of",
    "parts_of",
    "text_of_chunk",
    "text_of_content",
    "text_of_result",
    "text_returned",
    "token_counts_of_result",
    "usage_of",
]

Kind = Literal["text", "reasoning", "tool_call", "usage", "restart"]


def text_of_chunk(token: object, chunk: Any) -> str:
    """The text of one ``on_llm_new_token`` call; empty if it carries none.

    Args:
        token: The first argument, used only where there is no chunk (a direct call).
        chunk: A ``ChatGenerationChunk``, a ``GenerationChunk``, or None.
    """
    if chunk is None:
        return text_of_content(token)
    message = getattr(chunk, "message", None)
    if message is None:
        return str(chunk.text)
    return text_of_content(message.content)


def text_of_content(content: Any) -> str:
    """The text of a message's content: a string, or the text blocks of a list, joined."""
    if isinstance(content, str):
        return content
    return "".join(map(_text_of_block, content or ()))


def _text_of_block(block: Any) -> str:
    if isinstance(block, str):
        return block
    try:
        return str(block["text"] or "") if block["type"] == "text" else ""
    except (KeyError, TypeError):
        return ""


def text_of_result(result: LLMResult) -> str:
    """The text of the first generation of a finished model run."""
    generation = first_generation(result)
    return "" if generation is None else text_of_chunk("", generation)


def text_returned(result: Any) -> str:
    """The text that a run returned, if it is one; of a graph's state, that of its last message."""
    if isinstance(result, dict):
        messages: Any = cast("dict[str, Any]", result).get("messages")
        result = messages[-1] if isinstance(messages, list) and messages else None
    if isinstance(result, BaseMessage):
        return str(result.text)
    return result if isinstance(result, str) else ""


def first_generation(result: LLMResult) -> Any:
    """The first generation of a finished model run, or None."""
    generations = result.generations
    return generations[0][0] if generations and generations[0] else None


_REASONS = ("finish_reason", "stop_reason", "done_reason", "stopReason")
"""What providers call it: OpenAI and most, Anthropic, Ollama, Bedrock."""


def finish_reason_of(generation: Any) -> str | None:
    """Why a model stopped, in its provider's word; None if it does not say."""
    message = getattr(generation, "message", None)
    return finish_reason_in(getattr(message, "response_metadata", None)) or finish_reason_in(
        getattr(generation, "generation_info", None)
    )


def finish_reason_in(said: object) -> str | None:
    """The same from what a provider has said of its answer."""
    if not isinstance(said, dict):
        return None
    for name in _REASONS:
        if isinstance(reason := said.get(name), str) and reason:
            return reason
    cut = said.get("incomplete_details")  # OpenAI's responses
    reason = cut.get("reason") if isinstance(cut, dict) else None
    return reason if isinstance(reason, str) else None


def message_of(token: object, chunk: Any) -> AIMessageChunk:
    """The message of a chunk, or of a whole generation; one made from the text if it has none."""
    message = getattr(chunk, "message", None)
    if message is None:
        return AIMessageChunk(content=text_of_chunk(token, chunk))
    if isinstance(message, AIMessage) and not isinstance(message, AIMessageChunk):
        return _whole(message)
    return cast("AIMessageChunk", message)


def usage_of(message: BaseMessage | None) -> UsageMetadata | None:
    """The token usage that a message reports, if it does.

    A cache hit adds a cost of 0, and where the model reported none, that stands alone.
    """
    usage = getattr(message, "usage_metadata", None)
    return usage if usage and "total_tokens" in usage else None


def token_counts_of_result(result: LLMResult) -> tuple[int | None, int | None]:
    """The tokens of a finished model run's input and output, where it reports them."""
    usage: Any = usage_of(getattr(first_generation(result), "message", None))
    if usage is not None:
        return usage.get("input_tokens"), usage.get("output_tokens")
    old_style: Any = (result.llm_output or {}).get("token_usage") or {}
    return old_style.get("prompt_tokens"), old_style.get("completion_tokens")


def _whole(message: AIMessage) -> AIMessageChunk:
    """A chunk of a whole message.  What the message holds is neither serialized nor validated."""
    calls = [
        {
            "type": "tool_call_chunk",
            "name": call.get("name"),
            "args": args if isinstance(args := call.get("args"), str) else _json_of(args),
            "id": call.get("id"),
            "index": None,
        }
        for call in (*message.tool_calls, *message.invalid_tool_calls)
    ]
    fields: dict[str, Any] = {**dict(message), "type": "AIMessageChunk", "chunk_position": "last"}
    fields["usage_metadata"] = usage_of(message)
    return AIMessageChunk.model_construct(**fields, tool_call_chunks=calls)


def _json_of(args: object) -> str | None:
    return None if args is None else json.dumps(args, default=str)


class Part(NamedTuple):
    """One thing that a message tells.

    Attributes:
        kind: As of `TokenEvent`.
        block: Where in the message's content it stands: parts with equal ones, one after
            the other, are pieces of one thing.
        text: As of `TokenEvent`.
        chunk: As of `TokenEvent`.
    """

    kind: Kind
    block: object
    text: str
    chunk: AIMessageChunk


def parts_of(message: AIMessageChunk) -> list[Part]:
    """Take a message apart: at most one part of each kind, but one for each tool call."""
    content: Any = message.content
    blocks: list[Any] = [content] if isinstance(content, str) else list(content or ())
    parts: list[Part] = []
    reasoning = [(_index_of(block), text) for block in blocks if (text := _reasoning_of(block))]
    if not reasoning and (beside := _reasoning_beside(message.additional_kwargs)):
        reasoning = [(None, beside)]
    texts = [(_index_of(block), text) for block in blocks if (text := _text_of_block(block))]
    kinds: tuple[tuple[Kind, list[Any]], ...] = ("reasoning", reasoning), ("text", texts)
    for kind, found in kinds:
        if found:
            where, what = zip(*found, strict=True)
            parts.append(Part(kind, where, "".join(what), message))
    parts += _tool_call_parts(message)
    if usage_of(message):
        parts.append(Part("usage", None, "", message))
    return parts


def _index_of(block: Any) -> object:
    return block.get("index") if isinstance(block, dict) else None


def _reasoning_of(block: Any) -> str:
    """The reasoning in a content block, in the forms that the integrations give it."""
    try:
        kind = block["type"]
        if kind == "thinking":  # Anthropic, Mistral, Google
            return str(block.get("thinking") or "")
        if kind == "reasoning_content":  # Bedrock
            return str(block["reasoning_content"]["text"] or "")
        if kind == "reasoning":
            if "summary" in block:  # OpenAI
                return "".join(str(step["text"] or "") for step in block["summary"])
            return str(block.get("reasoning") or "")  # LangChain's standard
    except (KeyError, TypeError, AttributeError):
        pass  # not in a form that is known
    return ""


def _reasoning_beside(kwargs: dict[str, Any]) -> str:
    """The reasoning that an integration keeps beside the content."""
    text = kwargs.get("reasoning_content")  # DeepSeek, Groq, Ollama, xAI
    if isinstance(text, str):
        return text
    block = kwargs.get("reasoning")  # OpenAI, with output_version="v0"
    return _reasoning_of({**block, "type": "reasoning"}) if isinstance(block, dict) else ""


class _Call:
    """Which call a piece is of.  One that has an id begins a call, or goes on with its own.

    Some providers give all calls the same index.
    """

    __slots__ = ("id", "index")

    __hash__ = None  # type: ignore[assignment]  # equal to what goes on with it, not always back

    def __init__(self, index: object, id_: object) -> None:
        self.index = index
        self.id = id_

    def __eq__(self, later: object) -> bool:
        if not isinstance(later, _Call) or self.index != later.index:
            return False
        return not later.id or later.id == self.id


def _tool_call_parts(message: AIMessageChunk) -> list[Part]:
    calls = getattr(message, "tool_call_chunks", None) or []
    parts: list[Part] = []
    for call in calls:
        chunk = message
        if len(calls) > 1:
            chunk = AIMessageChunk(content="", id=message.id, tool_call_chunks=[call])
        index = call.get("index")
        # Complete calls have no index; two of them are never pieces of one.
        block: object = _Call(index, call.get("id")) if index is not None else object()
        parts.append(Part("tool_call", block, call.get("args") or "", chunk))
    return parts
