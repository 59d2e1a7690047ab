"""What stands in the Redis stream of a run: entries, their ids, and events as JSON.

::

    id            fields                   what
    E-0           d, previous, base, by    a writer begins epoch E
    E-1, E-2 ...  d                        its events, numbered without a gap
    E-LAST        d, last                  the end, the error or the stop of the run;
                  d, last, early, by       a stop from elsewhere

LAST is the greatest number that Redis knows, so nothing can follow in that epoch: a final entry
*seals* it, and of two that come at once (the writer's end, somebody's stop) one is refused.
Numbers have no gap, a first entry says which id came before it, a final one how many events
there were: so each entry proves that a reader who has the id before it has missed nothing.

``d`` is one JSON object with short keys; what is not there has its usual value.
"""

from __future__ import annotations

import contextlib
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from uuid import UUID

from langchain_core.messages import AIMessageChunk

from queuestream._failures import retry_after, status_of
from queuestream._messages import text_of_content
from queuestream.errors import EntryTooLargeError, RelayError, RemoteRunError
from queuestream.events import TokenEvent

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "LAST",
    "OPENING",
    "START",
    "STOP",
    "Entry",
    "EntryId",
    "Final",
    "RelayEvent",
    "cursor_of",
    "encode",
    "encode_end",
    "encode_error",
    "entry_of",
    "error_of",
    "kind_of",
]

LAST = (1 << 64) - 1


class EntryId(NamedTuple):
    """The id of an entry; they are ordered as Redis orders them.

    Attributes:
        epoch: Which attempt to write.
        number: Which of its entries.
    """

    epoch: int
    number: int

    def __str__(self) -> str:
        """As Redis writes it."""
        return f"{self.epoch}-{self.number}"

    @classmethod
    def parse(cls, text: str | bytes) -> EntryId:
        """The other way round."""
        epoch, _, number = (text if isinstance(text, str) else text.decode()).partition("-")
        return cls(int(epoch), int(number or 0))


START: Final = EntryId(0, 0)
"""The cursor of a reader who has nothing."""

_ID = re.compile(r"[0-9]{1,20}(-[0-9]{1,20})?", re.ASCII)


def cursor_of(after: object) -> EntryId:
    """The id that a reader gives, checked.

    A number without a dash is none of ours: `queuestream.web.sse` numbers so what it sends
    before the first event.  Whoever has only that has nothing.

    Raises:
        TypeError: If it is neither a string nor None.
        ValueError: If it is no id.
    """
    if after is None or after == "":
        return START
    if not isinstance(after, str):
        raise TypeError(f"after must be the id of an event, a str, or None; not {after!r}")
    if not _ID.fullmatch(after) or max(map(int, after.split("-"))) >= 1 << 64:
        raise ValueError(
            f"after must be the id of an event, as in {'1795970000000-7'!r}, or None for the whole "
            f"stream; not {after!r}"
        )
    return EntryId.parse(after) if "-" in after else START


@dataclass(frozen=True, slots=True)
class RelayEvent(TokenEvent):
    """A `TokenEvent` that has come through a relay.

    Its ``chunk`` is made anew from JSON: each event of a chunk has an equal one of its own, and
    what JSON does not know has become a string.  A writer that was restarted begins with an
    event of kind ``"restart"``.

    Attributes:
        id: Where it stands: what ``after`` and the browser's ``Last-Event-ID`` take.
    """

    id: str


# -- writing ---------------------------------------------------------------------------------

OPENING = b'{"k":"open"}'
STOP = b'{"k":"stop"}'

_KEPT = 2_000  # characters of an error's message


def _dump(found: dict[str, Any]) -> bytes:
    try:
        return json.dumps(
            found, separators=(",", ":"), default=str, ensure_ascii=False, skipkeys=True
        ).encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return json.dumps(found, separators=(",", ":"), default=str, skipkeys=True).encode()


def encode(event: TokenEvent, earlier_attempts: int, limit: int) -> bytes:
    """An event as JSON.

    Args:
        event: The event.
        earlier_attempts: Those of writers before this one.
        limit: The bytes that it may have.

    Raises:
        EntryTooLargeError: If it has more.
    """
    run_id = None if event.run_id is None else str(event.run_id)
    found: dict[str, Any] = {"k": event.kind}
    if event.text:
        found["t"] = event.text
    if run_id:
        found["r"] = run_id
    if event.parent_run_id is not None:
        found["p"] = str(event.parent_run_id)
    if event.name:
        found["n"] = event.name
    if event.node is not None:
        found["o"] = event.node
    if event.tags:
        found["g"] = event.tags
    if (attempt := event.attempt + earlier_attempts) != 1:
        found["a"] = attempt
    if not event.streamed:
        found["s"] = False
    if event.chunk is not None:
        found["c"] = _dump_chunk(event, event.chunk, run_id)
    data = _dump(found)
    if len(data) > limit:
        raise EntryTooLargeError(
            f"an event of kind {event.kind!r} has {len(data)} bytes as JSON, and max_entry allows "
            f"{limit}"
        )
    return data


def _dump_chunk(event: TokenEvent, chunk: AIMessageChunk, run_id: str | None) -> dict[str, Any]:
    found: dict[str, Any] = {}
    content = chunk.content
    if event.kind != "text" or content != event.text:
        found["content"] = content
    if chunk.id is not None:
        # what LangChain makes up, most often
        found["id"] = 1 if run_id and chunk.id == f"lc_run--{run_id}" else chunk.id
    for name in ("name", "additional_kwargs", "response_metadata", "tool_call_chunks"):
        if value := getattr(chunk, name, None):
            found[name] = value
    if chunk.usage_metadata:
        found["usage_metadata"] = chunk.usage_metadata
    if position := getattr(chunk, "chunk_position", None):
        found["chunk_position"] = position
    return found


def encode_end(returned: str, finish_reason: str | None, limit: int) -> bytes:
    """The entry that tells that a run has ended.

    Args:
        returned: The text that it returned, if no event has told it.
        finish_reason: Why its model stopped, in its provider's word.
        limit: The bytes that it may have.

    Raises:
        EntryTooLargeError: If it has more.
    """
    found: dict[str, Any] = {"k": "end"}
    if returned:
        found["t"] = returned
    if finish_reason:
        found["f"] = finish_reason
    data = _dump(found)
    if len(data) > limit:
        raise EntryTooLargeError(
            f"what the run returned has {len(data)} bytes as JSON, and max_entry allows {limit}"
        )
    return data


def encode_error(error: BaseException) -> bytes:
    """The entry that tells how a run failed; a long message is cut."""
    found: dict[str, Any] = {"k": "error", "type": type(error).__name__, "message": ""}
    # Whatever an error does that is not ours; and what it does when it is printed hides no status.
    with contextlib.suppress(Exception):
        found["message"] = str(error)[:_KEPT]
    with contextlib.suppress(Exception):
        found["status"] = status_of(error)
        if (wait := retry_after(error)) is not None:
            found["retry_after"] = wait
    return _dump(found)


# -- reading ---------------------------------------------------------------------------------


def kind_of(data: bytes) -> str:
    """What an entry is, an event or one of the three ends."""
    try:
        return str(json.loads(data)["k"])
    except (ValueError, TypeError, KeyError) as error:
        raise RelayError(f"an entry was not written by a relay: {data[:100]!r}") from error


def error_of(final: Mapping[str, Any]) -> RemoteRunError:
    """How a run failed, of its final entry; one that was not written here may tell no status."""
    status, wait = final.get("status"), final.get("retry_after")
    return RemoteRunError(
        str(final.get("type")),
        str(final.get("message")),
        status=status if isinstance(status, int) else None,
        retry_after=wait if isinstance(wait, int) else None,
    )


class Entry(NamedTuple):
    """An entry as it was read.

    Attributes:
        id: Its id.
        previous: The id before it; None if nobody knows.
        event: The event that a reader gets, if any.
        final: What the run ended with, if this is a final entry.
    """

    id: EntryId
    previous: EntryId | None
    event: RelayEvent | None
    final: Mapping[str, Any] | None


def entry_of(raw_id: bytes, fields: Mapping[bytes, bytes]) -> Entry:
    """Read an entry.

    Raises:
        RelayError: If nobody of ours has written it.
    """
    try:
        entry_id = EntryId.parse(raw_id)
        found: dict[str, Any] = json.loads(fields[b"d"])
        if entry_id.number == 0:
            previous = EntryId.parse(fields[b"previous"])
            event = None
            if previous != START:
                attempt = entry_id.epoch - int(fields[b"base"]) + 1
                event = _restart(str(entry_id), attempt)
            return Entry(entry_id, previous, event, None)
        if entry_id.number == LAST:
            previous = EntryId(entry_id.epoch, int(fields[b"last"]))
            return Entry(entry_id, previous, None, found)
        previous = EntryId(entry_id.epoch, entry_id.number - 1)
        return Entry(entry_id, previous, _event(str(entry_id), found), None)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RelayError(f"the entry {raw_id!r} was not written by a relay: {error!r}") from error


def _restart(event_id: str, attempt: int) -> RelayEvent:
    return RelayEvent(
        kind="restart",
        text="",
        chunk=None,
        run_id=None,
        parent_run_id=None,
        name="",
        node=None,
        tags=(),
        attempt=attempt,
        streamed=True,
        id=event_id,
    )


def _event(event_id: str, found: dict[str, Any]) -> RelayEvent:
    run_id, parent, chunk = found.get("r"), found.get("p"), found.get("c")
    text = found.get("t", "")
    return RelayEvent(
        kind=found["k"],
        text=text,
        chunk=None if chunk is None else _chunk(chunk, text, run_id),
        run_id=None if run_id is None else UUID(run_id),
        parent_run_id=None if parent is None else UUID(parent),
        name=found.get("n", ""),
        node=found.get("o"),
        tags=tuple(found.get("g", ())),
        attempt=found.get("a", 1),
        streamed=found.get("s", True),
        id=event_id,
    )


def _chunk(found: dict[str, Any], text: str, run_id: str | None) -> AIMessageChunk:
    fields: dict[str, Any] = {"content": text, **found}
    if fields.get("id") == 1:
        fields["id"] = f"lc_run--{run_id}"
    usage = fields.pop("usage_metadata", None)  # would be validated, which its maker did not do
    try:
        chunk = AIMessageChunk(**fields)
    except ValueError:  # a provider's own idea of a message
        chunk = AIMessageChunk(content=text_of_content(fields["content"]), id=fields.get("id"))
    if usage is not None:
        chunk.usage_metadata = usage
    return chunk
