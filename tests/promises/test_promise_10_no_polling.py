"""Promise 10: nothing wakes up to look, and no stream has a timer thread."""

from __future__ import annotations

import asyncio
import selectors
import threading
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from queuestream import _background
from queuestream._wakeups import ThreadWaiter
from tests.support.consumers import in_another_thread
from tests.support.gates import Gate, eventually
from tests.support.models import ScriptedChatModel, tokens
from tests.support.streams import DEFAULT_CASES, STREAM_CASES, getters_of, is_blocked

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from tests.support.streams import Case


class Waits:
    """The waits of threads, as they are asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.timeouts: list[float | None] = []
        original = ThreadWaiter.wait

        def wait(waiter: ThreadWaiter, timeout: float | None) -> bool:
            self.timeouts.append(timeout)
            return original(waiter, timeout)

        monkeypatch.setattr(ThreadWaiter, "wait", wait)


@pytest.mark.parametrize("case", DEFAULT_CASES)
def test_threads_wait_without_a_timeout(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hazard: a wait of many short ones."""
    waits = Waits(monkeypatch)
    gate = Gate()
    model = ScriptedChatModel(tokens=tokens(6), gate=gate)

    async def scenario() -> None:
        async with case.running(model, maxsize=1) as running:

            def let_go_when_it_waits() -> None:
                eventually(lambda: getters_of(running))
                gate.open()

            thread = in_another_thread(let_go_when_it_waits)
            await case.consumer.next(running)  # the consumer waited
            await case.consumer.eventually(lambda: is_blocked(running))  # the producer waits
            assert len(await case.consumer.collect(running)) == 5
            await case.consumer.wait(thread.join)

    case.consumer.run(scenario)
    assert set(waits.timeouts) <= {None}
    if case.consumer.name == "for" or case.is_sync:
        assert waits.timeouts


class CountingSelector(selectors.DefaultSelector):
    """Notes how long the loop means to sleep."""

    def __init__(self) -> None:
        super().__init__()
        self.timeouts: list[float | None] = []

    def select(self, timeout: float | None = None) -> Any:
        """Sleep until something happens."""
        self.timeouts.append(timeout)
        return super().select(timeout)


def run_and_count(scenario: Coroutine[Any, Any, None], selector: CountingSelector) -> None:
    """Run on a loop that sleeps with the given selector."""
    loop = asyncio.SelectorEventLoop(selector)
    try:
        loop.run_until_complete(scenario)
        loop.run_until_complete(loop.shutdown_default_executor())
    finally:
        loop.close()


@pytest.mark.parametrize(
    "case", [case for case in DEFAULT_CASES if case.values[0].consumer.name == "asyncio"]
)
def test_a_loop_sleeps_while_its_streams_are_stalled(case: Case) -> None:
    """Hazard: a turn of the loop now and then, for each stream."""
    selector = CountingSelector()
    gate = Gate()
    model = ScriptedChatModel(tokens=tokens(6), gate=gate)

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        running_context = case.running(model, maxsize=1)
        running = await running_context.__aenter__()
        waiting = asyncio.ensure_future(case.consumer.next(running))
        asleep = loop.create_future()

        def let_go_when_asleep() -> None:
            # The consumer waits for the model, the model for the gate.
            eventually(lambda: gate.waiting and getters_of(running))
            eventually(lambda: selector.timeouts[-1] is None)
            turns = len(selector.timeouts)
            loop.call_soon_threadsafe(asleep.set_result, turns)

        in_another_thread(let_go_when_asleep)
        turns = await asleep
        # It slept until that very call; the turn after that resumes this task.
        assert selector.timeouts[turns:] == [0]
        assert not loop._scheduled  # type: ignore[attr-defined] # no timer
        gate.open()
        await waiting
        await running_context.__aexit__(None, None, None)

    run_and_count(scenario(), selector)


@pytest.mark.parametrize(
    "case", [case for case in STREAM_CASES if case.values[0].consumer.name == "trio"]
)
def test_trio_sleeps_while_its_streams_are_stalled(case: Case) -> None:
    """Hazard: as above.  Trio sleeps a day at a time when it has no deadline."""
    trio = pytest.importorskip("trio")
    gate = Gate(1)
    model = ScriptedChatModel(tokens=tokens(6), gate=gate)

    class Sleeps(trio.abc.Instrument):  # type: ignore[name-defined, misc]
        timeouts: list[float]

        def __init__(self) -> None:
            self.timeouts = []

        def before_io_wait(self, timeout: float) -> None:
            self.timeouts.append(timeout)

    sleeps = Sleeps()

    async def main() -> None:
        async with case.stream(model) as running:
            await running.__anext__()
            async with anyio.create_task_group() as group:

                def let_go_when_asleep() -> None:
                    eventually(lambda: getters_of(running) and sleeps.timeouts[-1] > 1000)
                    gate.open()

                in_another_thread(let_go_when_asleep)
                group.start_soon(running.__anext__)

    trio.run(main, instruments=[sleeps])
    assert all(timeout == 0 or timeout > 1000 for timeout in sleeps.timeouts)


@pytest.mark.parametrize("case", STREAM_CASES)
def test_no_threads_but_the_runs_own(case: Case) -> None:
    """Hazard: a timer or a watchdog for each stream."""
    warm_up = case.stream(ScriptedChatModel(tokens=tokens(1)))
    gate = Gate()
    model = ScriptedChatModel(tokens=tokens(3), gate=gate)

    async def scenario() -> None:
        async with case.consumer.entered(warm_up):  # the shared loop's thread
            pass
        await case.consumer.eventually(lambda: not _our_threads())
        async with case.running(model):
            await case.consumer.eventually(lambda: gate.waiting)
            assert len(_our_threads()) == case.is_sync

    case.consumer.run(scenario)


def _our_threads() -> list[threading.Thread]:
    return [
        thread
        for thread in threading.enumerate()
        if thread.name.startswith("queuestream") and "background loop" not in thread.name
    ]


def test_the_background_loop_sleeps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hazard: the loop that all streams share has a tick of its own."""
    selector = CountingSelector()
    monkeypatch.setattr(_background, "_current", None)
    monkeypatch.setattr(asyncio, "new_event_loop", lambda: asyncio.SelectorEventLoop(selector))
    gate = Gate(1)
    case: Case = next(
        case.values[0] for case in STREAM_CASES if case.values[0].producer == "background"
    )
    answer = case.stream(ScriptedChatModel(tokens=tokens(3), gate=gate))
    assert next(answer) == tokens(1)[0]
    eventually(lambda: gate.waiting and selector.timeouts[-1] is None)
    assert set(selector.timeouts) <= {0, None}
    current = _background._current
    assert current is not None
    assert not current.loop._scheduled  # type: ignore[attr-defined] # no timer
    gate.open()
    assert list(answer) == tokens(2, start=1)
    current.loop.call_soon_threadsafe(current.loop.stop)
    eventually(current.loop.is_closed)
