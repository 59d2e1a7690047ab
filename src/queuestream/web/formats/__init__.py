"""What goes over the wire: from what a stream yields to the events that a client understands.

A format is a small state machine, made anew for each answer.  It does no input or output and
needs no extra: `start`, `item`, `end` and `error` return lists of `Frame`, each one
server-sent event.  `start` comes first, `end` last, also after `error`::

    wire = OpenAIFormat(model="demo")
    frames = wire.start()
    async for item in tokens:  # str, AIMessageChunk or TokenEvent, as the stream selects
        frames += wire.item(item)
    frames += wire.end(tokens.usage, tokens.finish_reason)
    body = "".join(frame.encode() for frame in frames)

An answer that is not streamed is gathered with `Answer` instead, from the same items;
`Answer.completion` makes the ``chat.completion`` object.  `status_of`, `safe_message` and
`retry_after` say what a client may know of a failure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from queuestream._failures import retry_after, safe_message, status_of
from queuestream.web.formats.agui import AGUIFormat
from queuestream.web.formats.base import Format, Frame, to_json
from queuestream.web.formats.openai import Answer, OpenAIFormat, openai_error, openai_usage
from queuestream.web.formats.text import TextFormat
from queuestream.web.formats.vercel import VercelFormat

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "FORMATS",
    "AGUIFormat",
    "Answer",
    "Format",
    "Frame",
    "OpenAIFormat",
    "TextFormat",
    "VercelFormat",
    "make_format",
    "openai_error",
    "openai_usage",
    "retry_after",
    "safe_message",
    "status_of",
    "to_json",
]

FORMATS: Mapping[str, type[OpenAIFormat | VercelFormat | AGUIFormat | TextFormat]] = {
    "openai": OpenAIFormat,
    "vercel": VercelFormat,
    "agui": AGUIFormat,
    "text": TextFormat,
}


def make_format(given: str | Format) -> Format:
    """The format of that name, made anew; or the one that is given.

    Raises:
        ValueError: If no format has that name.
        TypeError: If it is neither a name nor a format.
    """
    if isinstance(given, str):
        if given not in FORMATS:
            allowed = ", ".join(map(repr, FORMATS))
            raise ValueError(f"format must be one of {allowed}, or a Format; got {given!r}")
        return cast("Format", FORMATS[given]())
    if not all(callable(getattr(given, name, None)) for name in ("start", "item", "error", "end")):
        raise TypeError(f"format must be a name or a Format, not {given!r}")
    return given
