"""OpenAI's chat completions: chunk by chunk, and as a whole."""

from __future__ import annotations

import time
import uuid
from typing import TYPE_CHECKING, Any

from queuestream.web.formats.base import Frame, to_json
from queuestream.web.formats.items import Calls, Reason, Usage, pieces_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from langchain_core.messages.ai import UsageMetadata

    from queuestream.web.formats.items import Call, FinishReason

__all__ = ["Answer", "OpenAIFormat", "openai_error", "openai_usage"]


def openai_error(message: str, status: int = 500, code: str | None = None) -> dict[str, Any]:
    """An error as an OpenAI server's body tells it."""
    kind = "server_error" if status >= 500 else "invalid_request_error"  # noqa: PLR2004
    return {
        "error": {
            "message": message,
            "type": "rate_limit_error" if status == 429 else kind,  # noqa: PLR2004
            "param": None,
            "code": code,
        }
    }


def openai_usage(usage: UsageMetadata) -> dict[str, Any]:
    """Token usage, named as OpenAI names it."""
    told: dict[str, Any] = {
        "prompt_tokens": usage["input_tokens"],
        "completion_tokens": usage["output_tokens"],
        "total_tokens": usage["total_tokens"],
    }
    if "cache_read" in (details := usage.get("input_token_details") or {}):
        told["prompt_tokens_details"] = {"cached_tokens": details["cache_read"]}
    if "reasoning" in (made := usage.get("output_token_details") or {}):
        told["completion_tokens_details"] = {"reasoning_tokens": made["reasoning"]}
    return told


def _completion_id() -> str:
    return f"chatcmpl-{uuid.uuid4().hex}"


class OpenAIFormat:
    """``chat.completion.chunk`` objects, then ``[DONE]``.

    Reasoning comes as ``delta.reasoning_content``.  A restart is a chunk with an empty delta
    and a member ``restart``, the number of the attempt that begins: OpenAI has no word for it.

    Args:
        model: What the chunks call the model.
        include_usage: Whether a chunk without choices tells the usage before the end.
        id: The answer's id; made up if None.
    """

    headers: Mapping[str, str] = {}

    def __init__(
        self, model: str = "queuestream", *, include_usage: bool = True, id: str | None = None
    ) -> None:
        self._head: dict[str, Any] = {
            "id": id or _completion_id(),
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": model,
        }
        self._include_usage = include_usage
        self._calls = Calls()
        self._usage = Usage()
        self._reason = Reason()
        self._has_failed = False

    def _chunk(
        self, delta: dict[str, Any], reason: FinishReason | None = None, **more: object
    ) -> Frame:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return Frame(to_json({**self._head, "choices": [choice], **more}))

    def start(self) -> list[Frame]:
        """The chunk that names the role."""
        return [self._chunk({"role": "assistant", "content": ""})]

    def item(self, item: object) -> list[Frame]:
        """A chunk for each thing that the item says; usage waits for the end."""
        frames: list[Frame] = []
        for piece in pieces_of(item):
            self._reason.note(piece)
            if piece.kind == "text":
                frames.append(self._chunk({"content": piece.text}))
            elif piece.kind == "reasoning":
                frames.append(self._chunk({"reasoning_content": piece.text}))
            elif piece.kind == "tool_call":
                frames.append(self._chunk({"tool_calls": [_openai_call(self._calls.call(piece))]}))
            elif piece.kind == "restart":
                self._reason = Reason()
                frames.append(self._chunk({}, restart=piece.attempt))
            elif piece.kind == "usage":
                self._usage.add(piece)
        return frames

    def error(self, message: str) -> list[Frame]:
        """An error object, which the ``openai`` package raises as ``APIError``."""
        self._has_failed = True
        return [Frame(to_json(openai_error(message)))]

    def end(
        self, usage: UsageMetadata | None = None, finish_reason: str | None = None
    ) -> list[Frame]:
        """The reason for the end, the usage, and ``[DONE]``; after an error only the last."""
        if self._has_failed:
            return [Frame("[DONE]")]
        frames = [self._chunk({}, self._reason.final(finish_reason))]
        usage = usage or self._usage.total
        if usage and self._include_usage:
            frames.append(
                Frame(to_json({**self._head, "choices": [], "usage": openai_usage(usage)}))
            )
        return [*frames, Frame("[DONE]")]


def _openai_call(call: Call) -> dict[str, Any]:
    function: dict[str, str] = {"arguments": call.arguments}
    if not call.is_new:
        return {"index": call.number, "function": function}
    function["name"] = call.name
    return {"index": call.number, "id": call.id, "type": "function", "function": function}


class Answer:
    """A whole answer, gathered from the items of a stream, for a client that does not stream.

    A restart empties it.
    """

    def __init__(self) -> None:
        self._usage = Usage()
        self._clear()

    def _clear(self) -> None:
        self._texts: list[str] = []
        self._reasoning: list[str] = []
        self._calls = Calls()
        self._made: list[tuple[Call, list[str]]] = []
        self._reason = Reason()

    def add(self, item: object) -> None:
        """Take one item of the stream.

        Raises:
            TypeError: If the item is no ``str``, ``AIMessageChunk`` or event.
        """
        for piece in pieces_of(item):
            self._reason.note(piece)
            if piece.kind == "text":
                self._texts.append(piece.text)
            elif piece.kind == "reasoning":
                self._reasoning.append(piece.text)
            elif piece.kind == "tool_call":
                call = self._calls.call(piece)
                if call.is_new:
                    self._made.append((call, []))
                self._made[call.number][1].append(call.arguments)
            elif piece.kind == "restart":
                self._clear()
            elif piece.kind == "usage":
                self._usage.add(piece)

    def completion(
        self,
        model: str = "queuestream",
        usage: UsageMetadata | None = None,
        id: str | None = None,
        finish_reason: str | None = None,
    ) -> dict[str, Any]:
        """The ``chat.completion`` object.

        Args:
            model: What it calls the model.
            usage: The whole run's, if it is known; else that of the usage events.
            id: The answer's id; made up if None.
            finish_reason: Why the model stopped, in its provider's word, if it is known; else
                what the items have told.
        """
        message: dict[str, Any] = {"role": "assistant", "content": "".join(self._texts)}
        if self._reasoning:
            message["reasoning_content"] = "".join(self._reasoning)
        if self._made:
            message["content"] = message["content"] or None
            message["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": "".join(arguments)},
                }
                for call, arguments in self._made
            ]
        choice = {
            "index": 0,
            "message": message,
            "logprobs": None,
            "finish_reason": self._reason.final(finish_reason),
        }
        whole: dict[str, Any] = {
            "id": id or _completion_id(),
            "object": "chat.completion",
            "created": int(time.time()),
            "model": model,
            "choices": [choice],
        }
        if usage := usage or self._usage.total:
            whole["usage"] = openai_usage(usage)
        return whole
