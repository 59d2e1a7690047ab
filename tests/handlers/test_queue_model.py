"""`QueueStreamHandler` held against a list, and over a `janus.Queue` under the same machine.

A Hypothesis state machine starts, feeds, nests and ends runs in any order, as LangChain reports
them, with tokens by hand in between, and iterates; a list says what must come.
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import janus
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    precondition,
    rule,
    run_state_machine_as_test,
)
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, LLMResult

from queuestream import QueueStreamHandler

if TYPE_CHECKING:
    from collections.abc import Sequence

SETTINGS = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
"""The same examples each time; seconds, not minutes."""


class _RunError(Exception):
    """A run's own."""


class Run:
    """A run, in the model."""

    def __init__(self, parent: Run | None, *, is_model: bool) -> None:
        self.id = uuid.uuid4()
        self.parent = parent
        self.is_model = is_model
        self.children = 0
        self.has_streamed = False


class HandlerMachine(RuleBasedStateMachine):
    """Each rule does one thing to the handler and to the list."""

    is_for_one_run = False

    def __init__(self) -> None:
        super().__init__()
        self.handler = self.make()
        self.expected: list[object] = []  # tokens, errors, and None for an end without one
        self.open: list[Run] = []
        self.first_error: BaseException | None = None
        self.iteration: Any = None
        self.number = 0
        self.is_over = False
        self.is_wrong = False  # after which it might wait for ever

    def make(self) -> QueueStreamHandler[str]:
        return QueueStreamHandler(0)

    def end_session(self) -> None:
        self.expected.append(self.first_error)
        self.first_error = None
        self.is_over = self.is_for_one_run

    # What LangChain reports.

    @precondition(lambda self: not self.is_over and len(self.open) < 5)
    @rule(is_model=st.booleans(), is_nested=st.booleans(), data=st.data())
    def start(self, is_model: bool, is_nested: bool, data: st.DataObject) -> None:
        parents = [run for run in self.open if not run.is_model]
        parent = data.draw(st.sampled_from(parents)) if is_nested and parents else None
        run = Run(parent, is_model=is_model)
        ids: Any = {"run_id": run.id, "parent_run_id": parent.id if parent else None}
        if is_model:
            self.handler.on_chat_model_start({}, [[HumanMessage("?")]], **ids)
        else:
            self.handler.on_chain_start({}, {}, **ids)
        if parent:
            parent.children += 1
        self.open.append(run)

    @precondition(lambda self: any(run.is_model for run in self.open))
    @rule(data=st.data())
    def token(self, data: st.DataObject) -> None:
        run = data.draw(st.sampled_from([run for run in self.open if run.is_model]))
        self.number += 1
        text = f"t{self.number} "
        chunk = ChatGenerationChunk(message=AIMessageChunk(content=text))
        self.handler.on_llm_new_token(text, chunk=chunk, run_id=run.id)
        run.has_streamed = True
        self.expected.append(text)

    @precondition(lambda self: not self.is_over)
    @rule()
    def token_by_hand(self) -> None:
        self.number += 1
        self.handler.on_llm_new_token(text := f"h{self.number} ")
        self.expected.append(text)

    @precondition(lambda self: any(not run.children for run in self.open))
    @rule(fails=st.booleans(), data=st.data())
    def end(self, fails: bool, data: st.DataObject) -> None:
        run = data.draw(st.sampled_from([run for run in self.open if not run.children]))
        self.open.remove(run)
        error = _RunError(str(run.id)) if fails else None
        if run.is_model and error is None:
            whole = "" if run.has_streamed else f"w{self.number} "
            generation = ChatGeneration(message=AIMessage(whole or "all"))
            if whole:
                self.expected.append(whole)
            self.handler.on_llm_end(LLMResult(generations=[[generation]]), run_id=run.id)
        elif run.is_model:
            self.handler.on_llm_error(error, run_id=run.id)
        elif error is None:
            self.handler.on_chain_end("", run_id=run.id)
        else:
            self.handler.on_chain_error(error, run_id=run.id)
        if run.parent:
            run.parent.children -= 1
            return
        self.first_error = self.first_error or error
        if not any(one.parent is None for one in self.open):
            self.end_session()

    @precondition(lambda self: not self.open and not self.is_over)
    @rule(fails=st.booleans())
    def end_by_hand(self, fails: bool) -> None:
        self.first_error = _RunError("by hand") if fails else None
        self.handler.end(self.first_error)
        self.end_session()

    # What the consumer does.

    @precondition(lambda self: self.expected)
    @rule()
    def take(self) -> None:
        expected = self.expected.pop(0)
        self.is_wrong = True
        if self.iteration is None:
            self.iteration = iter(self.handler)
        if isinstance(expected, str):
            assert next(self.iteration) == expected
        else:
            try:
                assert next(self.iteration, None) is expected
            except _RunError as error:
                assert error is expected  # noqa: PT017 - StopIteration is as good
            assert next(self.iteration, None) is None, "something came after the end"
            self.iteration = None
        self.is_wrong = False

    @precondition(lambda self: self.is_over and not self.expected)
    @rule()
    def nothing_more(self) -> None:
        assert self.handler.tokens.ended

    def teardown(self) -> None:
        while self.expected and not self.is_wrong:
            self.take()
        self.handler.close()
        super().teardown()


class JanusMachine(HandlerMachine):
    """The same over janus, which serves one run."""

    is_for_one_run = True

    def make(self) -> QueueStreamHandler[str]:
        return QueueStreamHandler(queue=janus.Queue[str](0))


@pytest.mark.parametrize("machine", [HandlerMachine, JanusMachine])
def test_it_does_what_a_list_would(machine: type[HandlerMachine]) -> None:
    run_state_machine_as_test(machine, settings=SETTINGS)


class PlantedMachine(HandlerMachine):
    """Over a handler that delivers the whole answer of a run that has streamed, too."""

    def make(self) -> QueueStreamHandler[str]:
        class Doubles(QueueStreamHandler[str]):
            def _last_items(self, response: LLMResult, run_id: uuid.UUID) -> Sequence[object]:
                self._runs[run_id].streamed = False
                return super()._last_items(response, run_id)

        return Doubles(0)


def test_a_planted_bug_is_found() -> None:
    """The canary."""
    with pytest.raises(AssertionError):
        run_state_machine_as_test(
            PlantedMachine,
            settings=settings(SETTINGS, phases=[Phase.generate], report_multiple_bugs=False),
        )
