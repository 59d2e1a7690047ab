"""What `stream()` takes, and what bad input gets: an error at the call, in plain words."""

from __future__ import annotations

from datetime import timedelta
from math import inf, nan
from typing import TYPE_CHECKING, Any, cast

import janus
import pytest
from langchain_core.language_models import FakeListChatModel
from langchain_core.runnables import Runnable

from queuestream import MixedQueue, QueueStreamHandler, stream
from queuestream.errors import QueueStreamError
from tests.support.models import ScriptedChatModel, tokens

if TYPE_CHECKING:
    from collections.abc import Iterator

    from langchain_core.outputs import ChatGenerationChunk

MODEL = FakeListChatModel(responses=["never"])


def needs_callbacks(query: str) -> str:
    return query


def has_callbacks(query: str, callbacks: object) -> str:
    return query


def generates(query: str, callbacks: object) -> Any:
    yield query


@pytest.mark.parametrize(
    "arguments, kind, message",
    [
        ({"target": type(MODEL)}, TypeError, r"instance of .*, not the class"),
        ({"maxsize": -1}, ValueError, r"maxsize must be 0 .* not -1"),
        ({"maxsize": 1.5}, TypeError, r"maxsize must be an int.*1\.5"),
        ({"maxsize": "8"}, TypeError, r"maxsize must be an int.*'8'"),
        ({"maxsize": True}, TypeError, r"maxsize must be an int.*True"),
        ({"maxsize": None}, TypeError, r"maxsize must be an int.*None"),
        ({"run_in": "process"}, ValueError, r"'thread', 'task', 'background'.*'process'"),
        ({"run_in": None}, ValueError, r"got None"),
        ({"target": "a model"}, TypeError, r"Runnable.*callbacks.*'a model'"),
        ({"target": None}, TypeError, r"Runnable.*callbacks.*None"),
        ({"target": needs_callbacks}, TypeError, r"has no callbacks parameter"),
        ({"target": lambda query: query}, TypeError, r"has no callbacks parameter"),
        ({"target": generates}, TypeError, r"generator function"),
        ({"config": ["callbacks"]}, TypeError, r"RunnableConfig.*\['callbacks'\]"),
        ({"config": {"callbacks": 1}}, TypeError, r"config\['callbacks'\].*1"),
        ({"config": {"callbacks": "me"}}, TypeError, r"config\['callbacks'\].*'me'"),
        ({"queue": object()}, TypeError, r"janus's protocols.*sync_q and async_q"),
        ({"queue": [1]}, TypeError, r"janus's protocols.*\[1\]"),
        ({"max_size": 3}, TypeError, r"'max_size'; did you mean 'maxsize'"),
        ({"maxSize": 3}, TypeError, r"did you mean 'maxsize'"),
        ({"runin": "task"}, TypeError, r"did you mean 'run_in'"),
        ({"run_inn": "task"}, TypeError, r"did you mean 'run_in'"),
        ({"queues": 1}, TypeError, r"did you mean 'queue'"),
        ({"confg": {}}, TypeError, r"did you mean 'config'"),
        ({"callbacks": []}, TypeError, r"\{'callbacks': \[\.\.\.\]\}"),
        ({"target": has_callbacks, "callbacks": []}, TypeError, r"\{'callbacks': \[\.\.\.\]\}"),
        ({"maxsize": 3, "queue": MixedQueue()}, ValueError, r"exclude each other"),
        ({"overflow": "merge", "queue": MixedQueue()}, ValueError, r"exclude each other"),
        *[
            ({"select": given}, ValueError, rf"'text', 'message', 'event'; got {given!r}")
            for given in ("texts", "Text", "", "usage", None, 1, b"text")
        ],
        ({"select": ["text"]}, ValueError, r"'text', 'message', 'event'; got \['text'\]"),
        *[
            ({"overflow": given}, ValueError, rf"'block', 'merge'; got {given!r}")
            for given in ("drop", "Merge", "", None, 0, True)
        ],
        *[
            ({limit: given}, kind, rf"^{limit} must be .* not {given!r}")
            for limit in ("first_token_timeout", "token_timeout")
            for given, kind in (
                (-1, ValueError),
                (-0.001, ValueError),
                (-inf, ValueError),
                (nan, ValueError),
                ("1", TypeError),
                (True, TypeError),
                (1j, TypeError),
                (timedelta, TypeError),
            )
        ],
        ({"include_names": "me"}, TypeError, r"include_names must be a list.*'me'"),
        ({"exclude_tags": 1}, TypeError, r"exclude_tags must be a list.*1"),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, dict) else None,  # no addresses
)
def test_bad_input(arguments: dict[str, Any], kind: type[Exception], message: str) -> None:
    """Hazard: it shows when the run has begun, or not at all."""
    given: dict[str, Any] = {"target": MODEL, "input": "?", **arguments}
    with pytest.raises(kind, match=message) as raised:
        stream(**given)
    assert not isinstance(raised.value, QueueStreamError)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"select": "texts"}, r"'text', 'message', 'event'; got 'texts'"),
        ({"select": None}, r"'text', 'message', 'event'; got None"),
        ({"overflow": "drop"}, r"'block', 'merge'; got 'drop'"),
        ({"overflow": None}, r"'block', 'merge'; got None"),
        ({"overflow": "merge", "queue": MixedQueue()}, r"exclude each other"),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, dict) else None,
)
def test_what_a_handler_refuses(arguments: dict[str, Any], message: str) -> None:
    """Hazard: it shows when the run has begun, or not at all."""
    with pytest.raises(ValueError, match=message):
        QueueStreamHandler(**arguments)


@pytest.mark.parametrize(
    "given, meant",
    [
        ("Select", "select"),
        ("selct", "select"),
        ("maxsise", "maxsize"),
        ("maxszie", "maxsize"),
        ("overflows", "overflow"),
        ("over_flow", "overflow"),
        ("token_timeouts", "token_timeout"),
        ("tokentimeout", "token_timeout"),
        ("tokenTimeout", "token_timeout"),
        ("first_tokens_timeout", "first_token_timeout"),
        ("include_name", "include_names"),
        ("include_tag", "include_tags"),
        ("includes_nodes", "include_nodes"),
        ("exclude_name", "exclude_names"),
        ("exlude_tags", "exclude_tags"),
        ("excludeNodes", "exclude_nodes"),
        ("run_In", "run_in"),
        ("inputs", "input"),
    ],
)
def test_a_keyword_that_is_nearly_ours(given: str, meant: str) -> None:
    """Hazard: it goes to the target, which ignores it, or a wrong one is proposed."""
    expected = rf"^stream\(\) has no parameter '{given}'; did you mean '{meant}'\?$"
    with pytest.raises(TypeError, match=expected):
        stream(MODEL, "?", **cast("Any", {given: "x"}))


THEIRS = """
    stop tools tool_choice timeout tags metadata max_tokens temperature top_p n seed user stream
    stream_options stream_mode subgraphs run_id run_name include_types include_raw include thinking
    reasoning response_format parallel_tool_calls max_concurrency max_retries request_timeout
    output_keys input_keys context control query prompt messages selected_tools tokens token_limit
"""


def test_a_keyword_of_the_targets() -> None:
    """Hazard: what LangChain, LangGraph or a provider calls so is taken for a misspelling."""
    seen: dict[str, Any] = {}

    class Target(Runnable[Any, Any]):
        def invoke(self, input: Any, config: Any = None, **kwargs: Any) -> Any:
            seen.update(kwargs)
            return input

    theirs = dict.fromkeys(THEIRS.split(), "x")
    made = stream(Target(), "?", **cast("Any", theirs))
    assert list(made) == []
    assert made.result == "?"
    assert seen == theirs


@pytest.mark.parametrize(
    "limit", [None, 0, 0.0, 5, 0.5, inf, 1e300, pytest.param(10**400, id="huge")]
)
def test_limits_that_are_accepted(limit: float | None) -> None:
    """Hazard: a number of seconds that no clock can count."""
    if limit in (0, 0.0):  # nothing comes in no time
        stream(MODEL, "?", first_token_timeout=limit, token_timeout=limit).close()
        return
    assert list(stream(MODEL, "?", first_token_timeout=limit, token_timeout=limit)) == list("never")


def test_a_queue_that_is_not_empty() -> None:
    queue: MixedQueue[Any] = MixedQueue()
    queue.sync_q.put("an item")
    with pytest.raises(ValueError, match=r"must be empty.*holds 1 items"):
        stream(MODEL, "?", queue=queue)


def test_a_queue_that_is_closed() -> None:
    queue: MixedQueue[Any] = MixedQueue()
    queue.close()
    with pytest.raises(ValueError, match="closed"):
        stream(MODEL, "?", queue=queue)


@pytest.mark.parametrize("make", [MixedQueue, janus.Queue])
@pytest.mark.parametrize("second", ["stream", "handler"])
def test_a_queue_that_another_has_already(make: Any, second: str) -> None:
    queue = make()
    answer = stream(MODEL, "?", queue=queue)
    with pytest.raises(ValueError, match="has a stream already"):
        if second == "stream":
            stream(MODEL, "?", queue=queue)
        else:
            QueueStreamHandler(queue=queue)
    answer.close()


def test_a_queue_is_for_one_stream_also_one_after_the_other() -> None:
    queue: MixedQueue[Any] = MixedQueue()
    assert list(stream(MODEL, "?", queue=queue)) == list("never")
    with pytest.raises(ValueError, match="closed"):
        stream(MODEL, "?", queue=queue)


def test_a_refused_call_leaves_the_queue_free() -> None:
    """Hazard: the queue counts as taken by a stream that was never made."""
    queue: MixedQueue[Any] = MixedQueue()
    with pytest.raises(TypeError):
        stream(MODEL, "?", queue=queue, max_size=3)
    with pytest.raises(TypeError):
        stream(needs_callbacks, "?", queue=queue)
    assert list(stream(MODEL, "?", queue=queue)) == list("never")


def test_arguments_reach_a_runnable() -> None:
    seen: dict[str, Any] = {}

    class Model(ScriptedChatModel):
        def _stream(
            self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any
        ) -> Iterator[ChatGenerationChunk]:
            seen.update(kwargs, stop=stop)
            return super()._stream(messages)

    model = Model(tokens=tokens(2))
    assert list(stream(model, "?", stop=["\n"], temperature=0.5, max_tokens=3)) == tokens(2)
    assert seen["stop"] == ["\n"]
    assert (seen["temperature"], seen["max_tokens"]) == (0.5, 3)


def test_arguments_reach_a_function() -> None:
    """Hazard: a parameter of the function's own is taken for a misspelling of ours."""
    seen: dict[str, Any] = {}

    def execute(query: str, *, callbacks: Any, max_size: int, **more: Any) -> str:
        seen.update(more, query=query, max_size=max_size)
        return query

    assert list(stream(execute, "?", max_size=3, limit=1)) == []
    assert seen == {"query": "?", "max_size": 3, "limit": 1}


@pytest.mark.parametrize("given", [None, {}, {"callbacks": None}, {"callbacks": []}])
def test_an_empty_config(given: Any) -> None:
    assert list(stream(MODEL, "?", given)) == list("never")


def test_the_message_and_prompt_inputs_of_a_model() -> None:
    model = ScriptedChatModel(tokens=tokens(2))
    for data in ("?", [("user", "?")]):
        assert list(stream(model, data)) == tokens(2)
    assert len({str(prompt) for prompt in model.record.prompts}) <= 2
