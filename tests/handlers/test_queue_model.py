"""`QueueStreamHandler` held against a list, and over a `janus.Queue` under the same machine.

A Hypothesis state machine starts, feeds, nests and ends runs in any order, as LangChain reports
them, with tokens by hand in between, iterates with ``for`` and ``async for``, and closes; a list
says what must come.  The queue has room for some, and where it is full those who put are seen to
wait, or what they put is joined to what is there.
"""

from __future__ import annotations

import uuid
from collections import deque
from typing import TYPE_CHECKING, Any, get_args

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, LLMResult

from queuestream import MixedQueue, QueueStreamHandler
from queuestream.errors import ConcurrentIterationError, RunStopped, StreamClosedError
from queuestream.events import Joinable
from tests.support.stage import WITHIN, How, SeenJanus, Stage, see_sleepers

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Sequence

    from queuestream.events import Overflow

SETTINGS = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
"""The same examples each time; seconds, not minutes."""
HOW = st.sampled_from(get_args(How))
HOWS = st.lists(HOW, min_size=1, max_size=3)
"""Of some who come one after the other, or the queue would hardly ever be full."""

DONE, ENDED, CLOSED, STOPPED, BUSY, USED = "done", "ended", "closed", "stopped", "busy", "used"
CANCELLED = "cancelled"
ERRORS: dict[type[BaseException], object] = {
    StopIteration: ENDED,
    StopAsyncIteration: ENDED,
    StreamClosedError: CLOSED,
    RunStopped: STOPPED,
    ConcurrentIterationError: BUSY,
    ValueError: USED,
}


@pytest.fixture(autouse=True)
def _sleepers_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    see_sleepers(monkeypatch)


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
        self.has_text = False  # it, or one under it
        self.failed = 0  # of its children, after some text: the next ones are their restarts

    def note_text(self) -> None:
        run: Run | None = self
        while run is not None:
            run.has_text = True
            run = run.parent


class Entry:
    """What stands in the queue, in the model: a text, a restart (no text), or an end."""

    def __init__(self, run: Run | None, text: str = "", error: object = None) -> None:
        self.run = run
        self.text = text
        self.error = error  # what comes of an end


class Waiting:
    """Somebody who waits, in the model, and the task or the thread that stands for it."""

    def __init__(self, how: How, entry: Entry | None = None) -> None:
        self.how: How = how
        self.entry = entry
        self.outcome: object = None
        self.then: Callable[[], object] = lambda: None
        self.future: asyncio.Future[object]


class HandlerMachine(RuleBasedStateMachine):
    """Each rule does one thing to the handler and to the list."""

    is_given = False  # a queue that is, serves one run
    cancels = True

    def __init__(self) -> None:
        super().__init__()
        self.stage = Stage(ERRORS)
        self.items: deque[Entry] = deque()
        self.putters: deque[Waiting] = deque()
        self.consumer: Waiting | None = None
        self.everybody: list[Waiting] = []
        self.open: list[Run] = []
        self.first_error: object = None
        self.failure: object = None  # of a queue that is given
        self.iteration: Any = None
        self.ended: Any = None  # an iteration
        self.number = 0
        self.is_over = False
        self.is_closed = False
        self.is_wrong = False

    @initialize(
        maxsize=st.sampled_from([1, 2, 3, 4, 0]), overflow=st.sampled_from(["block", "merge"])
    )
    def begin(self, maxsize: int, overflow: Overflow) -> None:
        self.maxsize = maxsize
        self.merges = overflow == "merge"
        self.low: int | None = maxsize // 2
        self.handler = self.make(maxsize, overflow)

    def make(self, maxsize: int, overflow: Overflow) -> QueueStreamHandler[str]:
        return QueueStreamHandler(maxsize, overflow=overflow)

    # The model.

    @property
    def is_full(self) -> bool:
        return 0 < self.maxsize <= len(self.items)

    def same_before(self, entry: Entry) -> Entry | None:
        """What a text is joined to, where there is no room for it."""
        for one in reversed(self.items) if self.merges and entry.text else ():
            if one.error is not None:
                return None
            if one.text and one.run is entry.run:
                return one
        return None

    def put(self, entry: Entry) -> bool:
        if not self.is_full:
            self.items.append(entry)
            self.feed()
        elif (same := self.same_before(entry)) is not None:
            same.text += entry.text
        else:
            return False
        return True

    def take_first(self) -> Entry:
        entry = self.items.popleft()
        if self.low is None:
            count = 0 if self.is_full else 1
        else:
            count = self.maxsize - len(self.items) if len(self.items) <= self.low else 0
        called = [self.putters.popleft() for _ in range(min(len(self.putters), max(0, count)))]
        for one in called:
            assert one.entry is not None
            if self.put(one.entry):
                one.outcome = DONE
                one.then()
            else:
                self.putters.append(one)
                self.putters.rotate()
        return entry

    def feed(self) -> None:
        """Give the one who waits what there is."""
        consumer, self.consumer = self.consumer, None
        while consumer is not None and consumer.outcome is None:
            if self.items:
                entry = self.take_first()
                consumer.outcome = entry.text or entry.error
                is_end = entry.error is not None
            elif self.is_over:
                consumer.outcome, self.failure = self.failure or ENDED, None
                is_end = True
            else:
                self.consumer = consumer
                return
            if is_end:
                self.ended, self.iteration = self.iteration, None

    def end_session(self, error: object) -> None:
        self.first_error = None
        self.is_over = self.is_given
        if self.is_closed:
            return
        if not self.is_given:
            self.items.append(Entry(None, error=error or ENDED))
        else:
            self.failure = self.failure or error
            self.refuse_putters()
        self.feed()

    def refuse_putters(self) -> None:
        refused = list(self.putters)
        self.putters.clear()
        for one in refused:
            one.outcome = self.refusal(one.how)
            one.then()

    def refusal(self, how: How) -> object:
        return STOPPED if how == "thread" else CLOSED

    @property
    def has_just_ended(self) -> bool:
        return bool(self.items) and self.items[-1].error is not None

    def is_busy(self, run: Run) -> bool:
        return any(one.entry is not None and one.entry.run is run for one in self.putters)

    def idle(self, *, is_model: bool) -> list[Run]:
        return [one for one in self.open if one.is_model is is_model and not self.is_busy(one)]

    # Both.

    def begin_to(self, waiting: Waiting, operation: Any) -> None:
        """Have somebody do something, here and in the model; see that it is the same."""
        self.everybody.append(waiting)
        start: Any = self.stage.thread if waiting.how == "thread" else self.stage.task
        waiting.future = start(operation)
        self.is_the_same()

    def expect(self, outcome: object, operation: Any) -> None:
        """Have a thread do something that is not to wait."""
        waiting = Waiting("thread")
        waiting.outcome = outcome
        self.begin_to(waiting, operation)

    def how_to_put(self, entry: Entry, how: How) -> How | None:
        """How somebody puts who may have to wait: the order of those who are woken must be known.

        That of tasks of one loop is.  None if there is no such way.
        """
        if self.is_closed or self.is_over or not self.is_full or self.same_before(entry):
            return how
        if not self.putters:
            return how
        return None if self.putters[0].how == "thread" else "task"

    def produce(
        self, how: How, entry: Entry, operation: Any, then: Callable[[], object] = lambda: None
    ) -> None:
        waiting = Waiting(how, entry)
        waiting.then = then
        if self.is_closed or self.is_over:
            waiting.outcome = self.refusal(how)
            then()
        elif self.put(entry):
            waiting.outcome = DONE
            then()
        else:
            self.putters.append(waiting)
        self.begin_to(waiting, operation)

    # What LangChain reports.

    @precondition(lambda self: len(self.open) < 5)
    @rule(models=st.lists(st.booleans(), min_size=1, max_size=3), data=st.data())
    def start(self, models: list[bool], data: st.DataObject) -> None:
        for is_model in models:
            parents = self.idle(is_model=False)
            is_nested = data.draw(st.booleans()) and bool(parents)
            self.start_one(is_model, data.draw(st.sampled_from(parents)) if is_nested else None)

    def start_one(self, is_model: bool, parent: Run | None) -> Run:
        run = Run(parent, is_model=is_model)
        ids: Any = {"run_id": run.id, "parent_run_id": parent.id if parent else None}

        def start() -> None:
            if is_model:
                self.handler.on_chat_model_start({}, [[HumanMessage("?")]], **ids)
            else:
                self.handler.on_chain_start({}, {}, **ids)

        if self.is_closed or self.is_over:
            self.expect(STOPPED if self.is_closed else USED, start)
            return run
        restart = Entry(run)
        is_restart = parent is not None and parent.failed > 0
        if is_restart and self.how_to_put(restart, "thread") != "thread":
            return run
        self.open.append(run)
        if parent:
            parent.children += 1
            parent.failed -= is_restart
        if is_restart:
            self.produce("thread", restart, start)
        else:
            self.expect(DONE, start)
        return run

    @precondition(lambda self: self.idle(is_model=False))
    @rule(hows=HOWS, data=st.data())
    def retry(self, hows: list[How], data: st.DataObject) -> None:
        parent = data.draw(st.sampled_from(self.idle(is_model=False)))
        failing = self.start_one(True, parent)
        if failing in self.idle(is_model=True):
            self.tell(failing, hows)
        if failing in self.childless():
            self.end_one(failing, fails=True, how=hows[0])
            self.start_one(True, parent)

    @precondition(lambda self: self.idle(is_model=True))
    @rule(hows=HOWS, data=st.data())
    def token(self, hows: list[How], data: st.DataObject) -> None:
        self.tell(data.draw(st.sampled_from(self.idle(is_model=True))), hows)

    def tell(self, run: Run, hows: list[How]) -> None:
        for wish in hows:
            entry = Entry(run, f"t{self.number} ")
            how = self.how_to_put(entry, wish)
            if how is None or self.is_busy(run):
                return
            self.number += 1
            run.has_streamed = True
            run.note_text()
            self.produce(how, entry, self.telling(entry.text, run))

    @rule(hows=HOWS)
    def token_by_hand(self, hows: list[How]) -> None:
        for wish in hows:
            entry = Entry(None, f"h{self.number} ")
            how = self.how_to_put(entry, wish)
            if how is None:
                return
            self.number += 1
            self.produce(how, entry, self.telling(entry.text, None))

    def telling(self, text: str, run: Run | None) -> Any:
        if run is None:
            return lambda: self.handler.on_llm_new_token(text)
        chunk = ChatGenerationChunk(message=AIMessageChunk(content=text))
        return lambda: self.handler.on_llm_new_token(text, chunk=chunk, run_id=run.id)

    def childless(self) -> list[Run]:
        return [run for run in self.open if not run.children and not self.is_busy(run)]

    @precondition(lambda self: self.childless())
    @rule(fails=st.booleans(), how=HOW, data=st.data())
    def end(self, fails: bool, how: How, data: st.DataObject) -> None:
        self.end_one(data.draw(st.sampled_from(self.childless())), fails=fails, how=how)

    def end_one(self, run: Run, *, fails: bool, how: How) -> None:
        error = _RunError(str(run.id)) if fails else None
        if run.is_model and error is None and not run.has_streamed:
            self.end_with_the_whole(run, how)
            return
        generation = ChatGeneration(message=AIMessage("all"))

        def end() -> None:
            if run.is_model and error is None:
                self.handler.on_llm_end(LLMResult(generations=[[generation]]), run_id=run.id)
            elif run.is_model:
                self.handler.on_llm_error(error, run_id=run.id)
            elif error is None:
                self.handler.on_chain_end("", run_id=run.id)
            else:
                self.handler.on_chain_error(error, run_id=run.id)

        self.run_ended(run, error)
        self.expect(DONE, end)

    def end_with_the_whole(self, run: Run, wish: How) -> None:
        entry = Entry(run, f"w{self.number} ")
        how = self.how_to_put(entry, wish)
        if how is None:
            return
        self.number += 1
        run.note_text()
        whole = LLMResult(generations=[[ChatGeneration(message=AIMessage(entry.text))]])
        self.produce(
            how,
            entry,
            lambda: self.handler.on_llm_end(whole, run_id=run.id),
            lambda: self.run_ended(run, None),
        )

    def run_ended(self, run: Run, error: object) -> None:
        self.open.remove(run)
        if run.parent:
            run.parent.children -= 1
            run.parent.failed += error is not None and run.has_text
            return
        self.first_error = self.first_error or error
        if not any(one.parent is None for one in self.open):
            self.end_session(self.first_error)

    @precondition(lambda self: not self.open and not self.is_over and not self.has_just_ended)
    @rule(fails=st.booleans())
    def end_by_hand(self, fails: bool) -> None:
        error = _RunError("by hand") if fails else None
        self.end_session(error)
        self.handler.end(error)

    # What the consumer does.

    @rule(hows=HOWS)
    def take(self, hows: list[How]) -> None:
        for how in hows:
            waiting = Waiting(how)
            iteration = self.iteration
            if self.consumer is not None:
                waiting.outcome = BUSY
                iteration = iter(self.handler)
            else:
                self.iteration = iteration = iteration or iter(self.handler)
                if self.is_closed:
                    waiting.outcome = CLOSED
                else:
                    self.consumer = waiting
                    self.feed()
            is_sync = how == "thread"
            self.begin_to(waiting, self.getting(iteration, is_sync=is_sync))

    def getting(self, iteration: Any, *, is_sync: bool) -> Any:
        def get() -> object:
            try:
                return next(iteration)
            except _RunError as error:
                return error

        async def get_in_task() -> object:
            try:
                return await anext(iteration)
            except _RunError as error:
                return error

        return get if is_sync else get_in_task

    def tasks(self) -> list[Waiting]:
        everybody = [*self.putters, *([self.consumer] if self.consumer else [])]
        return [one for one in everybody if one.how == "task"]

    @precondition(lambda self: self.cancels and self.tasks())
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        waiting = data.draw(st.sampled_from(self.tasks()))
        waiting.future.cancel()
        waiting.outcome = CANCELLED
        if waiting is self.consumer:
            self.consumer = None
        else:
            self.putters.remove(waiting)
        waiting.then()

    @precondition(lambda self: self.number > 12 and not self.is_closed)
    @rule()
    def close(self) -> None:
        self.is_closed = True
        self.items.clear()
        if self.consumer is not None:
            self.consumer.outcome, self.consumer = CLOSED, None
        self.refuse_putters()
        self.close_handler()

    def close_handler(self) -> None:
        self.handler.close()

    # What is to be the same after each.

    @invariant()
    def is_the_same(self) -> None:
        if not hasattr(self, "handler"):
            return
        self.is_wrong = True
        self.stage.settle(*(one.future for one in self.everybody if one.outcome is not None))
        for waiting in self.everybody:
            future = waiting.future
            if waiting.outcome is None:
                assert not future.done(), f"it does not wait: {future}"
            elif waiting.outcome == CANCELLED:
                assert future.cancelled()
            else:
                assert future.done(), f"it still waits, and not for {waiting.outcome}"
                came = future.result()
                assert (DONE if came is None else came) == waiting.outcome
        self.everybody = [one for one in self.everybody if one.outcome is None]
        tokens = self.handler.tokens
        assert tokens._sync_q.qsize() == len(self.items)
        assert (tokens.closed, tokens.ended) == (self.is_closed, self.is_over)
        if self.ended is not None:
            assert self.stage.here(lambda: next(self.ended)) == ENDED, "something came after it"
        self.is_wrong = False

    def teardown(self) -> None:
        try:
            while hasattr(self, "handler") and self.items and not self.is_wrong:
                self.take(["thread"])
            if hasattr(self, "handler"):
                self.close_handler()
                self.stage.settle(*(waiting.future for waiting in self.everybody))
        finally:
            self.stage.close()
            super().teardown()


class GivenMachine(HandlerMachine):
    """The same over a queue that is given, which serves one run and wakes one for each slot."""

    is_given = True

    def make(self, maxsize: int, overflow: Overflow) -> QueueStreamHandler[str]:
        self.merges, self.low = False, None
        self.queue = self.made(maxsize)
        return QueueStreamHandler(queue=self.queue)

    def made(self, maxsize: int) -> Any:
        return MixedQueue[str](maxsize)


class JanusMachine(GivenMachine):
    """The same over janus.

    Without cancellations, as in ``tests/mixed_queue/test_model.py``.
    """

    cancels = False

    def made(self, maxsize: int) -> Any:
        return SeenJanus(maxsize)

    def close_handler(self) -> None:
        if not self.handler.tokens.closed:
            self.queue.is_down.clear()
            self.handler.close()
            assert self.queue.is_down.wait(WITHIN)  # in a thread of its own
            self.stage.run(self.queue.wait_closed())


MACHINES = [HandlerMachine, GivenMachine, JanusMachine]


@pytest.mark.parametrize("machine", MACHINES)
def test_it_does_what_a_list_would(machine: type[HandlerMachine]) -> None:
    run_state_machine_as_test(machine, settings=SETTINGS)


@pytest.mark.stress
@pytest.mark.parametrize("machine", MACHINES)
def test_it_does_for_long_what_a_list_would(machine: type[HandlerMachine]) -> None:
    """As above: others, and longer ones."""
    run_state_machine_as_test(
        machine, settings=settings(SETTINGS, max_examples=20, stateful_step_count=80)
    )


class _Doubles(QueueStreamHandler[str]):
    """Delivers the whole answer of a run that has streamed, too."""

    def _last_items(self, response: LLMResult, run_id: uuid.UUID) -> Sequence[object]:
        self._runs[run_id].streamed = False
        return super()._last_items(response, run_id)


class _JoinsAll(QueueStreamHandler[str]):
    """Joins what is of two runs."""

    def __init__(self, maxsize: int, *, overflow: Overflow) -> None:
        super().__init__(maxsize, overflow=overflow)
        if self.tokens._join is not None:
            self.tokens._join = self._join

    def _join(self, items: deque[Any], item: Any) -> bool:
        if isinstance(items[-1], Joinable) and isinstance(item, Joinable):
            items[-1].values += item.values
            return True
        return False


class _EndsInLine(QueueStreamHandler[str]):
    """Has no room for the end where there is none for a token."""

    def _put_sentinel(self, error: BaseException | None) -> None:
        buffer = self.tokens.buffer
        if buffer is None or not buffer._is_full():
            super()._put_sentinel(error)


class _WakesNoPutter(QueueStreamHandler[str]):
    """Forgets those who wait for room when it is closed."""

    def close(self) -> None:
        buffer = self.tokens.buffer
        assert buffer is not None
        waiters, buffer._putters.waiters = buffer._putters.waiters, []
        super().close()
        buffer._putters.waiters = waiters


@pytest.mark.parametrize("planted", [_Doubles, _JoinsAll, _EndsInLine, _WakesNoPutter])
def test_a_planted_bug_is_found(planted: Any) -> None:
    """The canary."""

    class PlantedMachine(HandlerMachine):
        def __init__(self) -> None:
            super().__init__()
            self.stage.within = 0.1  # who waits in vain

        def make(self, maxsize: int, overflow: Overflow) -> QueueStreamHandler[str]:
            handler: QueueStreamHandler[str] = planted(maxsize, overflow=overflow)
            return handler

    with pytest.raises(AssertionError):
        run_state_machine_as_test(
            PlantedMachine,
            settings=settings(SETTINGS, phases=[Phase.generate], report_multiple_bugs=False),
        )
