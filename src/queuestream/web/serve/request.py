"""From the bytes of a request to what it asks for; whatever is wrong with it is said here.

A body is never held beyond its limit, whatever its ``Content-Length`` says, and never waited
for without an end.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn, cast

import anyio
import anyio.to_thread
from langchain_core.messages import convert_to_messages

from queuestream.web.serve.failures import Refused

if TYPE_CHECKING:
    from collections.abc import Mapping

    from langchain_core.messages import BaseMessage
    from starlette.requests import Request

__all__ = ["ChatRequest", "read_body", "read_chat_request"]

_BODY_TIMEOUT = 30.0  # seconds that a whole body may take
_LARGE = 100_000  # bytes, from which on reading takes too long for an event loop
_ROLES = ("system", "developer", "user", "assistant", "tool", "function")
_MEMBERS = ("role", "name", "tool_calls", "tool_call_id")
_NUMBERS = ("temperature", "top_p", "max_tokens", "max_completion_tokens", "seed")


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """What ``POST /v1/chat/completions`` asks for.

    Attributes:
        messages: The conversation, its last message last; never empty.
        model: The name that is asked for, if one is.
        is_streamed: Whether the answer is streamed.
        include_usage: Whether a stream ends with the usage.
        options: What else was asked for that a chat model knows, by OpenAI's names.
    """

    messages: list[BaseMessage]
    model: str | None = None
    is_streamed: bool = False
    include_usage: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)


async def read_body(request: Request, limit: int) -> bytes:
    """The body of a request.

    Raises:
        Refused: With 413 if it is larger than ``limit`` bytes or says that it is, with 408 if
            it takes longer than half a minute.
        ClientDisconnect: If the client has left.
    """
    said = request.headers.get("content-length", "0")
    if not said.isdecimal() or len(said) > 15 or int(said) > limit:  # noqa: PLR2004 - digits
        raise _too_large(limit)
    body = bytearray()
    try:
        with anyio.fail_after(_BODY_TIMEOUT):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limit:
                    raise _too_large(limit)
    except TimeoutError:
        raise Refused(
            408,
            f"The request was not there after {_BODY_TIMEOUT:g} seconds.",
            leaves_a_body=True,
        ) from None
    return bytes(body)


def _too_large(limit: int) -> Refused:
    return Refused(
        413,
        f"The request is larger than {limit} bytes.",
        code="request_too_large",
        leaves_a_body=True,
    )


async def read_chat_request(request: Request, limit: int) -> ChatRequest:
    """What a request asks for.

    Raises:
        Refused: If its body is too large, too slow, no JSON, or no request for a completion.
        ClientDisconnect: If the client has left.
    """
    body = await read_body(request, limit)
    if len(body) > _LARGE:
        return await anyio.to_thread.run_sync(_read, body)
    return _read(body)


def _read(body: bytes) -> ChatRequest:
    return _checked(_parsed(body))


def _parsed(body: bytes) -> dict[str, Any]:
    def no_number(word: str) -> NoReturn:
        raise ValueError(f"{word} is no number of JSON")

    try:
        asked = json.loads(body.decode(), parse_constant=no_number)
    except RecursionError:
        raise Refused(400, "The body is nested too deeply.") from None
    except UnicodeDecodeError:
        raise Refused(400, "The body is no UTF-8.") from None
    except ValueError as error:
        raise Refused(400, f"The body is no JSON: {error}.") from None
    if not isinstance(asked, dict):
        raise Refused(400, "The body must be a JSON object.")
    return cast("dict[str, Any]", asked)


def _checked(asked: dict[str, Any]) -> ChatRequest:
    model = asked.get("model")
    if model is not None and not isinstance(model, str):
        raise Refused(400, "'model' must be a string.", param="model")
    is_streamed = _flag(asked, "stream", "stream")
    stream_options = asked.get("stream_options") or {}
    if not isinstance(stream_options, dict):
        raise Refused(400, "'stream_options' must be an object.", param="stream_options")
    if asked.get("n") not in (None, 1):
        raise Refused(400, "'n' must be 1: one answer is given.", param="n")
    return ChatRequest(
        messages=_messages(asked.get("messages")),
        model=model,
        is_streamed=is_streamed,
        include_usage=_flag(
            cast("dict[str, Any]", stream_options), "include_usage", "stream_options"
        ),
        options=_options(asked),
    )


def _flag(asked: Mapping[str, Any], name: str, param: str) -> bool:
    value = asked.get(name)
    if value is not None and not isinstance(value, bool):
        raise Refused(400, f"'{name}' must be true or false.", param=param)
    return bool(value)


def _options(asked: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in _NUMBERS:
        value = asked.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise Refused(400, f"'{name}' must be a number.", param=name)
        found["max_tokens" if name == "max_completion_tokens" else name] = value
    stop = asked.get("stop")
    if isinstance(stop, str):
        stop = [stop]
    if stop:
        if not isinstance(stop, list) or not all(isinstance(text, str) for text in stop):
            raise Refused(400, "'stop' must be a string or an array of strings.", param="stop")
        found["stop"] = stop
    if tools := asked.get("tools"):
        if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
            raise Refused(400, "'tools' must be an array of objects.", param="tools")
        found["tools"] = tools
        if asked.get("tool_choice") is not None:
            found["tool_choice"] = asked["tool_choice"]
    return found


def _messages(given: object) -> list[BaseMessage]:
    if not given or not isinstance(given, list):
        what = "is missing" if given is None else "must be an array with at least one message"
        raise Refused(400, f"'messages' {what}.", param="messages")
    return [_message(message, f"messages[{place}]") for place, message in enumerate(given)]


def _message(given: Any, place: str) -> BaseMessage:
    if not isinstance(given, dict):
        raise Refused(400, f"'{place}' must be an object.", param=place)
    said = cast("dict[str, Any]", given)
    if said.get("role") not in _ROLES:
        allowed = ", ".join(_ROLES)
        raise Refused(400, f"'{place}.role' must be one of {allowed}.", param=f"{place}.role")
    content = said.get("content")
    if isinstance(content, list):
        if not all(_is_part(part) for part in content):
            raise Refused(
                400,
                f"Each part of '{place}.content' must be an object with a 'type', and with a "
                "'text' if that is 'text'.",
                param=f"{place}.content",
            )
    elif not isinstance(content, str):
        if content is not None or said["role"] != "assistant":
            raise Refused(
                400, f"'{place}.content' must be a string or an array.", param=f"{place}.content"
            )
        content = ""
    known = {name: said[name] for name in _MEMBERS if said.get(name) is not None}
    try:
        return convert_to_messages([{**known, "content": content}])[0]
    except Exception as error:
        raise Refused(
            400, f"'{place}' is no message as OpenAI describes it.", param=place
        ) from error


def _is_part(part: Any) -> bool:
    if not isinstance(part, dict) or not isinstance(part.get("type"), str):
        return False
    return part["type"] != "text" or isinstance(part.get("text"), str)
