"""From a conversation to the input of whatever is served.

A chat model takes the messages as they are; a chain may want a text, or a dictionary with a
text, with messages, or with both; a graph a state.  What a runnable tells of its input decides,
or else the one who serves it says so, in a few words: ``messages``, ``text``,
``question=text``, ``question=text,history=messages``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, cast

from langchain_core.runnables import Runnable

from queuestream.web.serve.failures import Refused

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from langchain_core.messages import BaseMessage

__all__ = ["ToInput", "input_maker"]

Kind = Literal["messages", "text"]

if TYPE_CHECKING:
    ToInput = Callable[[list[BaseMessage]], Any]

_HOW = (
    "messages, text, KEY=text, KEY=messages, or KEY=text,KEY=messages; in Python a function of "
    "the list of messages will do as well"
)


def input_maker(target: object, to_input: ToInput | str | None) -> ToInput:
    """The function that makes the target's input of a conversation.

    Args:
        target: What is served.
        to_input: The function itself, or its description; None to go by what the target tells.

    Raises:
        TypeError: If ``to_input`` is neither.
        ValueError: If the description cannot be read, or if there is none and the target takes
            something that a conversation does not have.
    """
    if to_input is None:
        return _made_of(_told_by(target))
    if isinstance(to_input, str):
        return _made_of(_read(to_input))
    if callable(to_input):
        return to_input
    raise TypeError(f"the input is described by {_HOW}; not by {to_input!r}")


def _read(described: str) -> Kind | dict[str, Kind]:
    if described in {"messages", "text"}:
        return cast("Kind", described)
    keys: dict[str, Kind] = {}
    for part in described.split(","):
        key, equals, kind = (word.strip() for word in part.partition("="))
        if not (key and equals and kind in {"messages", "text"}) or key in keys:
            raise ValueError(f"the input is described by {_HOW}; not by {described!r}")
        keys[key] = cast("Kind", kind)
    if sorted(keys.values()) not in (["messages"], ["text"], ["messages", "text"]):
        raise ValueError(f"a conversation has one text and one history; not {described!r}")
    return keys


# -- what a runnable tells of its input ------------------------------------------------------


def _told_by(target: object) -> Kind | dict[str, Kind]:
    if not isinstance(target, Runnable):
        return "text"  # a function that takes a query
    try:
        schema: dict[str, Any] = cast("Any", target).get_input_jsonschema()
    except Exception:  # a type that JSON has no word for
        return "text"
    kinds = {_kind_of(part) for part in _alternatives(schema)}
    if "messages" in kinds:
        return "messages"
    if "text" in kinds:
        return "text"
    if schema.get("type") == "object":
        properties: dict[str, Any] = schema.get("properties") or {}
        if list(properties) == ["root"]:  # of steps side by side, of which none tells a type
            return "text"
        if keys := _keys_of(target, properties, schema.get("required") or list(properties)):
            return keys
    name = getattr(target, "name", None) or type(target).__name__
    takes = ", ".join(schema.get("properties") or ()) or schema.get("type", "something else")
    raise ValueError(
        f"{name} takes {takes}, and a conversation does not tell which part of it is what: "
        f"describe the input as {_HOW}"
    )


def _keys_of(
    target: object, properties: Mapping[str, Any], required: Sequence[str]
) -> dict[str, Kind] | None:
    """The keys of a dictionary that a conversation can fill; None if there is no telling."""
    kinds: dict[str, Kind | None] = {key: _kind_of(value) for key, value in properties.items()}
    is_graph = any(base.__module__.startswith("langgraph.") for base in type(target).__mro__)
    if is_graph and kinds.get("messages") == "messages":
        return {"messages": "messages"}  # the rest of its state it fills by itself
    found: dict[str, Kind] = {}
    for key, kind in kinds.items():
        if kind is None:
            if key in required:
                return None
        elif key in required or kind == "messages":
            found[key] = kind
    return found if len(set(found.values())) == len(found) > 0 else None


def _alternatives(schema: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return cast("list[Mapping[str, Any]]", schema.get("anyOf") or schema.get("oneOf") or [schema])


def _kind_of(schema: Mapping[str, Any]) -> Kind | None:
    for part in _alternatives(schema):
        kind = part.get("type")
        if kind == "array":
            items: Mapping[str, Any] = part.get("items") or {}
            if items.get("type") not in {"string", "number", "integer", "boolean", "array"}:
                return "messages"
        elif kind == "string" or not ({"type", "$ref", "properties", "enum"} & set(part)):
            return "text"
    return None


# -- making it -------------------------------------------------------------------------------


def _made_of(described: Kind | dict[str, Kind]) -> ToInput:
    if described == "messages":
        return list
    if described == "text":
        return _question_in

    keys = described
    has_text = "text" in keys.values()

    def make(messages: list[BaseMessage]) -> dict[str, Any]:
        history = messages[: _place_of_question(messages)] if has_text else messages
        return {
            key: _question_in(messages) if kind == "text" else history for key, kind in keys.items()
        }

    return make


def _place_of_question(messages: Sequence[BaseMessage]) -> int:
    for place in range(len(messages) - 1, -1, -1):
        if messages[place].type == "human":
            return place
    raise Refused(400, "There is no message of the role 'user' to answer.", param="messages")


def _question_in(messages: Sequence[BaseMessage]) -> str:
    """The text of the last question."""
    content: Any = messages[_place_of_question(messages)].content
    if isinstance(content, str):
        return content
    if any(not isinstance(part, str) and part.get("type") != "text" for part in content):
        raise Refused(400, "What is served here takes text only.", param="messages")
    return "".join(part if isinstance(part, str) else part["text"] for part in content)
