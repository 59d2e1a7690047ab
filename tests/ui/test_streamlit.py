"""`streamlit_stream` under `st.write_stream`, in Streamlit's own script runner."""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest
import streamlit as st
from streamlit.runtime import scriptrunner
from streamlit.runtime.scriptrunner import RerunData, RerunException, StopException
from streamlit.runtime.scriptrunner_utils import script_run_context
from streamlit.runtime.scriptrunner_utils.script_requests import ScriptRequests
from streamlit.testing.v1 import AppTest

from queuestream.errors import StreamClosedError
from queuestream.ui import streamlit_stream
from tests.support.gates import Gate, eventually
from tests.support.models import ScriptedChatModel, silent_model
from tests.ui.conftest import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable

APP = str(ROOT / "tests/ui/apps/streamlit_app.py")


@pytest.fixture(autouse=True)
def _no_complaints(monkeypatch: pytest.MonkeyPatch) -> None:
    """Streamlit warns, on a stream that pytest has closed, that a test is no script."""
    monkeypatch.setattr(script_run_context._LOGGER, "disabled", True)


def test_an_app_writes_the_answer(capsys: pytest.CaptureFixture[str]) -> None:
    app = AppTest.from_file(APP, default_timeout=30)
    app.run()
    app.text_input[0].set_value("hello").run()
    assert not app.exception
    assert app.chat_message[0].markdown[0].value == "You said **hello**."
    assert app.caption[0].value == "complete: You said **hello**."
    assert "MODEL written You said **hello**." in capsys.readouterr().out


def test_an_error_of_the_model_is_the_script_s() -> None:
    app = AppTest.from_file(APP, default_timeout=30)
    app.run()
    app.text_input[0].set_value("fail").run()
    assert app.exception[0].message == "the line went dead"
    assert app.chat_message[0].markdown[0].value.strip() == "one two"
    assert not app.caption


# ------------------------------------------------------- a script that is to stop, step by step


class Script:
    """A script's thread with a stream in it, and the object that Streamlit asks to stop it."""

    def __init__(self, body: Callable[[], object]) -> None:
        self.requests = ScriptRequests()
        self.outcome: list[object] = []
        self._body = body
        self.thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> Script:
        self.thread.start()
        return self

    def _run(self) -> None:
        _here.context = ScriptContext(self.requests)
        try:
            self.outcome.append(self._body())
        except BaseException as error:
            self.outcome.append(error)

    def ended(self) -> object:
        self.thread.join(5)
        assert not self.thread.is_alive()
        return self.outcome[0]


_here = threading.local()


class ScriptContext:
    """What our code asks of a `ScriptRunContext`."""

    def __init__(self, requests: ScriptRequests) -> None:
        self.script_requests = requests


@pytest.fixture(autouse=True)
def _st_calls_are_yield_points(monkeypatch: pytest.MonkeyPatch) -> None:
    """`st.empty` raises what a `ScriptRunner` raises; tests with real apps have the real one."""
    real = scriptrunner.get_script_run_ctx

    def context_here(suppress_warning: bool = False) -> Any:
        return getattr(_here, "context", None) or real(suppress_warning)

    def empty() -> None:
        context = getattr(_here, "context", None)
        if context is not None:
            request = context.script_requests.on_scriptrunner_yield()
            if request is not None:
                if request.type.name == "STOP":
                    raise StopException
                raise RerunException(request.rerun_data)

    monkeypatch.setattr(scriptrunner, "get_script_run_ctx", context_here)
    monkeypatch.setattr(st, "empty", empty)


FRAGMENT = RerunData(fragment_id_queue=["f"])
STOPS: dict[str, tuple[Callable[[ScriptRequests], object], type[BaseException]]] = {
    "stop": (lambda requests: requests.request_stop(), StopException),
    "rerun": (lambda requests: requests.request_rerun(RerunData()), RerunException),
    "scoped": (
        lambda requests: requests.request_rerun(
            RerunData(fragment_id_queue=["f"], is_fragment_scoped_rerun=True)
        ),
        RerunException,
    ),
}


@pytest.mark.parametrize("how", STOPS)
@pytest.mark.parametrize("before", [0, 2])
def test_a_silent_model_stops_when_the_script_is_asked_to(how: str, before: int) -> None:
    """No token comes, so no `st` call is made at which Streamlit could raise."""
    model = silent_model(*["a", "b"][:before])
    script = Script(lambda: list(streamlit_stream(model, "?"))).start()
    assert model.gate is not None
    wait_until_waiting(model.gate)
    ask, error = STOPS[how]
    ask(script.requests)
    assert isinstance(script.ended(), error)
    model.record.wait_until_finalized()


def wait_until_waiting(gate: Gate) -> None:
    eventually(lambda: gate.waiting)


def test_a_script_that_was_asked_before_it_began_does_not_ask_the_model() -> None:
    model = silent_model()
    script = Script(lambda: list(streamlit_stream(model, "?")))
    script.requests.request_stop()
    assert isinstance(script.start().ended(), StopException)
    assert model.record.calls == 0


def test_a_rerun_of_a_fragment_leaves_the_script_alone() -> None:
    """Streamlit lets the script come to its end first."""
    model = silent_model("a")
    script = Script(lambda: list(streamlit_stream(model, "?"))).start()
    assert model.gate is not None
    wait_until_waiting(model.gate)
    script.requests.request_rerun(FRAGMENT)
    model.gate.open()
    assert script.ended() == ["a", "never"]


def test_no_stream_outlives_its_script() -> None:
    """The generator is kept, by the session's state or by a traceback."""
    model = silent_model("a")
    kept = streamlit_stream(model, "?")
    script = Script(lambda: next(kept)).start()
    assert script.ended() == "a"
    assert model.record.open == 1
    script.requests.on_scriptrunner_ready()
    model.record.wait_until_finalized()
    with pytest.raises(StreamClosedError):
        next(kept)


def test_a_generator_that_is_dropped_stops_the_model() -> None:
    """Also while the script goes on: what Streamlit keeps holds no stream."""
    model = silent_model("a")
    script = Script(lambda: next(streamlit_stream(model, "?"))).start()
    assert script.ended() == "a"
    model.record.wait_until_finalized()
    script.requests.request_stop()


def test_two_streams_of_one_script_are_both_stopped() -> None:
    models = [silent_model("a"), silent_model("b")]

    def body() -> object:
        first, second = (streamlit_stream(model, "?") for model in models)
        next(first)
        return list(second)

    script = Script(body).start()
    assert models[1].gate is not None
    wait_until_waiting(models[1].gate)
    script.requests.request_stop()
    assert isinstance(script.ended(), StopException)
    for model in models:
        model.record.wait_until_finalized()


# ------------------------------------------------------------------ as a generator


def test_it_is_a_generator_of_text_outside_of_streamlit() -> None:
    model = ScriptedChatModel(tokens=["a", "b"])
    answer = streamlit_stream(model, "?", maxsize=5, overflow="block")
    assert model.record.calls == 0
    assert (next(answer), answer.send(None), list(answer)) == ("a", "b", [])
    assert (answer.text, answer.stream.result.content) == ("ab", "ab")


def test_a_closed_generator_is_at_its_end() -> None:
    model = silent_model("a")
    answer = streamlit_stream(model, "?")
    assert next(answer) == "a"
    answer.close()
    assert list(answer) == []
    model.record.wait_until_finalized()


def test_what_is_thrown_in_stops_the_run() -> None:
    model = silent_model("a")
    answer = streamlit_stream(model, "?")
    next(answer)
    with pytest.raises(KeyError):
        answer.throw(KeyError("k"))
    model.record.wait_until_finalized()


def test_a_restart_is_marked_and_the_text_is_the_last_attempts() -> None:
    model = ScriptedChatModel(
        tokens=["a", "b"], failure=ConnectionError("dead"), fail_at=1, fail_calls=1
    )
    chain = model.with_retry(stop_after_attempt=2, wait_exponential_jitter=False)
    answer = streamlit_stream(chain, "?", restart="|", overflow="block")
    assert list(answer) == ["a", "|", "a", "b"]
    assert answer.text == "ab"


def test_a_callable_runs_in_a_thread_of_its_own() -> None:
    def ask(question: str, callbacks: Any = None) -> Any:
        return ScriptedChatModel(tokens=["a"]).invoke(question, {"callbacks": callbacks})

    assert list(streamlit_stream(ask, "?")) == ["a"]


def test_bad_arguments_are_refused() -> None:
    model = ScriptedChatModel(tokens=["a"])
    with pytest.raises(TypeError, match="leave select= out"):
        streamlit_stream(model, "?", select="text")
    with pytest.raises(TypeError, match="restart must be a text"):
        streamlit_stream(model, "?", restart=None)  # type: ignore[arg-type] # that is the test


def test_without_streamlit_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "streamlit", None)
    with pytest.raises(ImportError, match=r'pip install "queuestream\[streamlit\]"'):
        streamlit_stream(ScriptedChatModel(tokens=["a"]), "?")
