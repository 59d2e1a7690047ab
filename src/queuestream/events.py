"""From what LangChain reports to what the user iterates.

A model run reports *messages*: chunks while it streams, or one whole message at its end.
A `Selection` makes of them what a consumer asked for.

What stands in a queue is one of three:

- a pair of the `ModelRun` and the text, message or `TokenEvent` itself;
- a `Joinable`, the same where a slow consumer may get several as one;
- a `Restart`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, cast

from langchain_core.messages import AIMessageChunk

from queuestream._messages import (
    Kind,
    Part,
    message_of,
    parts_of,
    text_of_chunk,
    text_of_content,
    usage_of,
)
from queuestream._meter import Counter

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable, Collection, Mapping, Sequence
    from uuid import UUID


__all__ = [
    "About",
    "Joinable",
    "ModelRun",
    "Overflow",
    "Restart",
    "RunFilter",
    "Select",
    "Selection",
    "TokenEvent",
    "events_of",
    "text_of_value",
    "value_of",
]

Select = Literal["text", "message", "event"]
Overflow = Literal["block", "merge"]


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """One thing that a model run told, and whose it is.

    A chunk that tells several things makes several events, in the order of the kinds below.
    One that tells none of them (the empty one at the beginning, say) makes none.

    Attributes:
        kind: ``"reasoning"``, ``"text"``, ``"tool_call"`` (one piece of one call),
            ``"usage"``, or ``"restart"``: what has come from the failed attempt is void.
        text: The text, the reasoning's text, or the piece of the call's arguments (JSON);
            else empty.
        chunk: The message that it was taken from.  ``chunk.tool_call_chunks[0]`` has the
            index, id and name of a call, ``chunk.usage_metadata`` the usage.  The events
            of one chunk share it, but that each of several tool calls has one of its own.
            None for a restart.
        run_id: The model run's id; a restart's is that of the run that starts.  None if the
            handler was called directly, without one.
        parent_run_id: That of the run above it, if any.
        name: The run's name, as in LangChain's ``astream_events``.
        node: The LangGraph node that it is in, the innermost one; else None.
        tags: Its tags, inherited ones included.
        attempt: 1, and 1 more after each restart.
        streamed: False if the model, or a cache, gave its whole answer at once.
    """

    kind: Kind
    text: str
    chunk: AIMessageChunk | None
    run_id: UUID | None
    parent_run_id: UUID | None
    name: str
    node: str | None
    tags: tuple[str, ...]
    attempt: int
    streamed: bool


# -- runs ----------------------------------------------------------------------------------


class About:
    """What LangChain tells of a run at its start.

    Attributes:
        run_id: Its id.
        parent_run_id: That of the run above it.
        name: Its name, as in ``astream_events``.
        tags: Its tags.
        metadata: Its metadata.
        nodes: The LangGraph nodes that it is in, the innermost one last.
    """

    __slots__ = ("metadata", "name", "nodes", "parent_run_id", "run_id", "tags")

    def __init__(
        self,
        run_id: UUID | None,
        parent_run_id: UUID | None,
        serialized: Any = None,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        details = details or {}
        self.run_id: UUID | None = run_id
        self.parent_run_id: UUID | None = parent_run_id
        self.name: str = details.get("name") or _name_of(serialized)
        self.tags: tuple[str, ...] = tuple(details.get("tags") or ())
        self.metadata: Mapping[str, Any] = details.get("metadata") or {}
        self.nodes: tuple[str, ...] = _nodes_of(self.metadata)


def _name_of(serialized: Any) -> str:
    try:
        return str(serialized["name"] if "name" in serialized else serialized["id"][-1])
    except (KeyError, IndexError, TypeError):
        return "Unnamed"


def _nodes_of(metadata: Mapping[str, Any]) -> tuple[str, ...]:
    node = metadata.get("langgraph_node")
    if node is None:
        return ()
    # "outer:<task id>|1|inner:<task id>": the nodes on the way into a subgraph, this one last;
    # a number where a node calls several
    path = str(metadata.get("langgraph_checkpoint_ns") or "").split("|")
    return (*(step.partition(":")[0] for step in path[:-1] if ":" in step), str(node))


class ModelRun(Counter):
    """One run of a model: whose its items are, and what it has produced.

    Attributes:
        about: What LangChain told at its start.
        is_heard: Whether its items are delivered.
        attempt: The attempt that it belongs to.
        streamed: Whether it has reported a chunk.
        has_text: Whether its first text is taken note of.
        is_simple: Whether the texts that follow may take the short way (`FeedHandler`).
    """

    __slots__ = ("about", "attempt", "has_text", "is_heard", "is_simple", "streamed")

    def __init__(self, about: About, attempt: int, *, is_heard: bool) -> None:
        super().__init__()
        self.about: About = about
        self.attempt: int = attempt
        self.is_heard: bool = is_heard
        self.streamed: bool = False
        self.has_text: bool = False
        self.is_simple: bool = False


class RunFilter:
    """Which model runs are heard.

    A run that any of the ``include`` options names is heard, all if there is none; but
    not one that any of the ``exclude`` options names, nor one tagged ``nostream`` or
    ``langsmith:nostream``.

    Raises:
        TypeError: If an option is no collection of strings.
    """

    __slots__ = ("_exclude", "_has_include", "_include")

    def __init__(
        self,
        *,
        include_names: Collection[str] | None = None,
        include_tags: Collection[str] | None = None,
        include_nodes: Collection[str] | None = None,
        exclude_names: Collection[str] | None = None,
        exclude_tags: Collection[str] | None = None,
        exclude_nodes: Collection[str] | None = None,
    ) -> None:
        includes = include_names, include_tags, include_nodes
        self._has_include = any(names is not None for names in includes)
        self._include = (
            _names("include_names", include_names),
            _names("include_tags", include_tags),
            _names("include_nodes", include_nodes),
        )
        self._exclude = (
            _names("exclude_names", exclude_names),
            _NEVER_HEARD
            if exclude_tags is None
            else _NEVER_HEARD | _names("exclude_tags", exclude_tags),
            _names("exclude_nodes", exclude_nodes),
        )

    def hears(self, run: About) -> bool:
        """Whether a run's items are delivered."""
        own = (run.name,), run.tags, run.nodes
        if any(names.intersection(mine) for names, mine in zip(self._exclude, own, strict=True)):
            return False
        return not self._has_include or any(
            names.intersection(mine) for names, mine in zip(self._include, own, strict=True)
        )


_NO_NAMES: frozenset[str] = frozenset()  # one for all: an empty one has its size, too
_NEVER_HEARD = frozenset(("nostream", "langsmith:nostream"))


def _names(option: str, given: object) -> frozenset[str]:
    if given is None:
        return _NO_NAMES
    names: list[object] | None
    try:
        names = None if isinstance(given, (str, bytes)) else list(cast("Collection[object]", given))
    except TypeError:
        names = None
    if names is None or not all(isinstance(name, str) for name in names):
        raise TypeError(
            f"{option} must be a list (or set, tuple) of strings, or None; not {given!r}"
        )
    return frozenset(cast("list[str]", names))


# -- from messages to items ------------------------------------------------------------------


class Joinable:
    """An item that may be joined, while it waits, by those of its run that come after it.

    Attributes:
        run: Whose it is.
        key: Kind and content block; items with equal ones may be joined.
        values: The item, and those that have joined it.
    """

    __slots__ = ("key", "run", "values")

    def __init__(self, run: ModelRun, key: object, value: Any) -> None:
        self.run: ModelRun = run
        self.key: object = key
        self.values: list[Any] = [value]

    @staticmethod
    def join(items: deque[Any], item: object) -> bool:
        """Join an item to the last of its run that waits, if they match; whether they do."""
        if not isinstance(item, Joinable):
            return False
        for waiting in reversed(items):
            if not isinstance(waiting, Joinable):
                if isinstance(waiting, Restart):
                    continue  # of another run
                return False  # the sentinel of a handler that is called directly, by one run
            if waiting.run is item.run:
                if waiting.key == item.key:
                    waiting.values += item.values
                    return True
                return False
        return False

    def value(self) -> Any:
        """What the consumer gets: all of them as one."""
        first, *more = self.values
        if not more:
            return first
        if isinstance(first, str):
            return "".join(self.values)
        if isinstance(first, TokenEvent):
            text = "".join(event.text for event in self.values)
            chunks = [event.chunk for event in self.values]
            return replace(first, text=text, chunk=chunks[0] + chunks[1:])
        return first + more


class Restart:
    """A mark: what some model runs have delivered is void.

    Attributes:
        void: The model runs.
        event: What a consumer of events gets; None for others.
    """

    __slots__ = ("event", "void")

    def __init__(self, void: Collection[Counter], event: TokenEvent | None) -> None:
        self.void: Collection[Counter] = void
        self.event: TokenEvent | None = event


_SELECT = ("text", "message", "event")
_OVERFLOW = ("block", "merge")


class Selection:
    """What a consumer asked for.

    Args:
        select: What is iterated.
        overflow: Whether what is waiting may be joined when the queue is full.
        filters: As of `RunFilter`.

    Attributes:
        join: Joins an item to those that wait, for the queue; None if that is not wanted.
        select: As given.
        filter: Which runs are heard.

    Raises:
        TypeError: If a filter is no collection of strings.
        ValueError: If ``select`` or ``overflow`` are none of the allowed values.
    """

    __slots__ = ("filter", "join", "select")

    def __init__(
        self,
        select: Select = "text",
        overflow: Overflow = "block",
        **filters: Collection[str] | None,
    ) -> None:
        for name, given, allowed in (
            ("select", select, _SELECT),
            ("overflow", overflow, _OVERFLOW),
        ):
            if given not in allowed:
                among = ", ".join(map(repr, allowed))
                raise ValueError(f"{name} must be one of {among}; got {given!r}")
        self.select = select
        self.filter: RunFilter = RunFilter(**filters)
        self.join: Callable[[deque[Any], object], bool] | None = None
        if overflow == "merge":
            self.join = Joinable.join

    def as_events(self) -> Selection:
        """The same for a consumer of events."""
        selection = Selection("event")
        selection.filter, selection.join = self.filter, self.join
        return selection

    def items(self, run: ModelRun, token: object, chunk: Any) -> Sequence[object]:
        """What the queue gets for one ``on_llm_new_token`` call, or for a whole generation.

        The run counts it, and takes note of the usage.
        """
        try:
            message = chunk.message
            usage = message.usage_metadata
        except AttributeError:  # an old-style model, no model's message, or a direct call
            message, usage = getattr(chunk, "message", None), None
        if usage:
            run.note_usage(usage)
        if not run.is_heard:
            return ()
        if self.select != "text":
            return self._messages_or_events(run, message_of(token, chunk))
        if message is None:
            text = text_of_chunk(token, chunk)
        else:
            content = message.content
            text = content if type(content) is str else text_of_content(content)
        if not text:
            return ()
        run.tokens += 1
        run.characters += len(text)
        if self.join is None:
            return ((run, text),)
        key = [part[:2] for part in parts_of(message_of(token, chunk)) if part.kind == "text"]
        return (Joinable(run, key, text),)

    def usage_item(self, run: ModelRun, chunk: Any) -> Sequence[object]:
        """What the queue gets at the end of a run that has streamed: usage that is new."""
        whole: Any = getattr(chunk, "message", None)
        usage = usage_of(whole)
        if run.usage is not None or usage is None:
            return ()
        run.note_usage(usage)
        if self.select != "event" or not run.is_heard:
            return ()
        # Copied, because it would be validated, which LangChain did not do.
        message = AIMessageChunk(content="", id=whole.id).model_copy(
            update={"usage_metadata": usage}
        )
        return self._messages_or_events(run, message)

    def restart(self, void: Collection[Counter], run: About, attempt: int) -> Restart:
        """What the queue gets when a run takes the place of a failed one."""
        if self.select != "event":
            return Restart(void, None)
        return Restart(void, _event("restart", "", None, run, attempt, streamed=True))

    def _messages_or_events(self, run: ModelRun, message: AIMessageChunk) -> Sequence[object]:
        parts: Sequence[Part] = ()
        if self.select == "event" or self.join is not None or not isinstance(message.content, str):
            parts = parts_of(message)
            text = "".join(part.text for part in parts if part.kind == "text")
        else:
            text = message.content
        run.characters += len(text)
        if self.select == "message":
            run.tokens += 1
            if self.join is None:
                return ((run, message),)
            return (Joinable(run, [part[:2] for part in parts], message),)
        run.tokens += len(parts)
        items: list[object] = []
        for part in parts:
            event = _event(
                part.kind, part.text, part.chunk, run.about, run.attempt, streamed=run.streamed
            )
            items.append((run, event) if self.join is None else Joinable(run, part[:2], event))
        return items


def _event(
    kind: Kind,
    text: str,
    chunk: AIMessageChunk | None,
    run: About,
    attempt: int,
    *,
    streamed: bool,
) -> TokenEvent:
    return TokenEvent(
        kind=kind,
        text=text,
        chunk=chunk,
        run_id=run.run_id,
        parent_run_id=run.parent_run_id,
        name=run.name,
        node=run.nodes[-1] if run.nodes else None,
        tags=run.tags,
        attempt=attempt,
        streamed=streamed,
    )


def events_of(run: ModelRun, value: Any) -> list[TokenEvent]:
    """The events that a value of any selection stands for."""
    if isinstance(value, TokenEvent):
        return [value]
    message = AIMessageChunk(content=value) if isinstance(value, str) else value
    return [
        _event(part.kind, part.text, part.chunk, run.about, run.attempt, streamed=run.streamed)
        for part in parts_of(message)
    ]


def value_of(item: Any) -> Any:
    """What a consumer gets for an item of the queue; None if nothing."""
    if type(item) is tuple:
        return item[1]
    if isinstance(item, Joinable):
        return item.value()
    return item.event if isinstance(item, Restart) else None


def text_of_value(value: Any) -> str:
    """The text of what a consumer got."""
    if isinstance(value, str):
        return value
    if isinstance(value, TokenEvent):
        return value.text if value.kind == "text" else ""
    return text_of_content(value.content)
