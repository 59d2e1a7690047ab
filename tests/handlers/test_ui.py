"""`UIFriendlyHandler`: what is left on the screen is the answer, and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from langchain_core.messages import AIMessageChunk
from langchain_core.runnables import RunnableParallel

from queuestream.handlers import UIFriendlyHandler, ui
from queuestream.handlers._turns import Turns
from tests.support.gates import Gate, eventually, eventually_async
from tests.support.handlers import (
    INVOKE_AND_AINVOKE,
    LENGTH,
    PLAIN_AND_COROUTINE,
    EchoChatModel,
    Received,
    Screen,
    Way,
    answer,
    gate_of,
    step,
    step_async,
)
from tests.support.models import ScriptedChatModel, WholeAnswerChatModel, silent_model

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

INDICATOR = "⋯"
ERASE = "\b \b"
TOOL_CALL = AIMessageChunk(
    content="",
    tool_call_chunks=[
        {"name": "f", "args": "{}", "id": "1", "index": 0, "type": "tool_call_chunk"}
    ],
)


def with_handler(handler: Any) -> Any:
    """Return a config with one callback."""
    return {"callbacks": [handler]}


def test_the_screen_of_these_tests() -> None:
    """Hazard: a terminal on which everything looks right."""
    screen = Screen("> ")
    for text, shown in (("ab", "> ab"), ("\b", "> ab"), ("c", "> ac"), ("\b \b", "> a")):
        screen.write(text)
        assert screen.text == shown
    screen.write("⋯")
    with pytest.raises(AssertionError, match="behind the indicator"):
        screen.write("a")
    with pytest.raises(AssertionError, match="moved left"):
        Screen().write("\b")


@INVOKE_AND_AINVOKE
@PLAIN_AND_COROUTINE
def test_the_indicator_is_erased_before_the_first_token(way: Way, *, is_async: bool) -> None:
    """Hazard: the document erases three characters of one, and once in a handler's life."""
    received = Received(is_async=is_async)
    handler: list[Any] = []

    def make() -> Any:
        handler[:] = handler or [UIFriendlyHandler(received.on_token)]
        return handler[0]

    for _ in range(2):
        received.texts.clear()
        way.run(ScriptedChatModel(tokens=["Hi", "!"]), make)
        assert received.texts == [INDICATOR, ERASE, "Hi", "!"]


@INVOKE_AND_AINVOKE
def test_no_indicator(way: Way) -> None:
    received = Received()
    way.run(
        ScriptedChatModel(tokens=["Hi", "!"]),
        lambda: UIFriendlyHandler(received.on_token, typing_indicator=False),
    )
    assert received.texts == ["Hi", "!"]


def test_it_is_shown_from_the_start_of_the_run() -> None:
    """Hazard: with the first token; or it is erased before there is one."""
    received = Received()
    model = silent_model()
    thread = threading.Thread(
        target=model.invoke, args=("?", with_handler(UIFriendlyHandler(received.on_token)))
    )
    thread.start()
    eventually(lambda: gate_of(model).waiting)
    assert received.texts == [INDICATOR]
    step(model)
    thread.join(10)
    assert received.texts == [INDICATOR, ERASE, "never"]


@INVOKE_AND_AINVOKE
@PLAIN_AND_COROUTINE
@pytest.mark.parametrize(
    "model",
    [
        ScriptedChatModel(tokens=["", TOOL_CALL, ""]),
        WholeAnswerChatModel(tokens=[TOOL_CALL]),
        ScriptedChatModel(tokens=["a"], failure=ValueError("no"), fail_at=0),
        ScriptedChatModel(tokens=[TOOL_CALL, "a"], failure=ValueError("no"), fail_at=1),
    ],
    ids=["tool call", "whole tool call", "failure", "failure after a tool call"],
)
def test_a_run_without_a_token(way: Way, model: Any, *, is_async: bool) -> None:
    """Hazard: it types for ever."""
    received = Received(is_async=is_async)
    try:
        way.run(model, lambda: UIFriendlyHandler(received.on_token))
    except ValueError:
        assert model.failure is not None
    assert received.texts == [INDICATOR, ERASE]


@PLAIN_AND_COROUTINE
def test_a_run_that_is_cancelled_before_its_first_token(*, is_async: bool) -> None:
    """Hazard: as above; LangChain reports no end."""
    received = Received(is_async=is_async)
    model = silent_model()

    async def main() -> None:
        run = asyncio.create_task(
            model.ainvoke("?", with_handler(UIFriendlyHandler(received.on_token)))
        )
        await eventually_async(lambda: gate_of(model).waiting)
        assert received.texts == [INDICATOR]
        run.cancel()
        await asyncio.wait([run])
        await eventually_async(lambda: len(received.texts) == 2)

    asyncio.run(main())
    assert received.texts == [INDICATOR, ERASE]


@INVOKE_AND_AINVOKE
def test_a_fallback_that_answers(way: Way) -> None:
    """Hazard: the first model's indicator is left, or the second one has none."""
    received = Received()
    model = EchoChatModel(failure=ValueError("no"), fail_at=0).with_fallbacks([EchoChatModel()])
    way.run(model, lambda: UIFriendlyHandler(received.on_token))
    assert received.texts == [INDICATOR, ERASE, INDICATOR, ERASE, *answer("a")]


def test_what_is_before_and_in_the_answer_is_left_alone() -> None:
    """Hazard: more is erased than was shown."""
    screen = Screen("You: hi\n")
    handler = UIFriendlyHandler(screen.write)
    ScriptedChatModel(tokens=["wait", " ..."]).invoke("?", with_handler(handler))
    assert screen.text == "You: hi\nwait ..."


@INVOKE_AND_AINVOKE
@PLAIN_AND_COROUTINE
@pytest.mark.parametrize("ends", ["with a token", "without one"])
def test_an_indicator_that_was_not_shown_is_not_erased(
    way: Way, ends: str, *, is_async: bool
) -> None:
    """Hazard: the screen could not be written to, and what is erased is the user's own line."""
    screen = Screen("> ")
    is_broken = True

    def on_token(text: str) -> None:
        nonlocal is_broken
        if is_broken:
            is_broken = False
            raise OSError("no screen")
        screen.write(text)

    async def on_token_async(text: str) -> None:
        on_token(text)

    model = ScriptedChatModel(tokens=["Hi"] if ends == "with a token" else [TOOL_CALL])
    way.run(model, lambda: UIFriendlyHandler(on_token_async if is_async else on_token))
    assert not is_broken
    assert screen.text == ("> Hi" if ends == "with a token" else "> ")


@INVOKE_AND_AINVOKE
@PLAIN_AND_COROUTINE
def test_an_indicator_that_could_not_be_erased_is_erased_with_the_next_token(
    way: Way, *, is_async: bool
) -> None:
    """Hazard: a text is put behind it, and it stays for ever."""
    screen = Screen()
    seen: list[str] = []

    def on_token(text: str) -> None:
        seen.append(text)
        if seen.count(ERASE) == 1 and text == ERASE:
            raise OSError("no screen")
        screen.write(text)

    async def on_token_async(text: str) -> None:
        on_token(text)

    way.run(
        ScriptedChatModel(tokens=["a", "b", "c"]),
        lambda: UIFriendlyHandler(on_token_async if is_async else on_token),
    )
    assert screen.text == "bc"
    assert seen == [INDICATOR, ERASE, ERASE, "b", "c"]


# -- runs that share the screen --------------------------------------------------------------------


@PLAIN_AND_COROUTINE
def test_two_runs_have_one_indicator(*, is_async: bool) -> None:
    """Hazard: two are shown and one erased, or the one of a run that goes on is taken away.

    1. a and b start: one indicator;
    2. b fails: a is still silent, so it stays;
    3. c starts: no second one;
    4. a's first token: it is erased, once; c starts no other by its silence;
    5. c ends without a token: nothing to erase.
    """
    received = Received(is_async=is_async)
    a, b, c = (EchoChatModel(gate=Gate()) for _ in range(3))
    b.failure, b.fail_at = ValueError("no"), 0
    c.failure, c.fail_at = ValueError("no"), 0

    async def main() -> None:
        handler = UIFriendlyHandler(received.on_token)

        async def begin(model: EchoChatModel, prompt: str) -> asyncio.Task[Any]:
            run = asyncio.create_task(model.ainvoke(prompt, with_handler(handler)))
            await eventually_async(lambda: gate_of(model).waiting)
            return run

        runs = [await begin(a, "a"), await begin(b, "b")]
        assert received.texts == [INDICATOR]
        await step_async(b)
        await asyncio.wait(runs[1:])
        assert received.texts == [INDICATOR]
        runs.append(await begin(c, "c"))
        assert received.texts == [INDICATOR]
        await step_async(a)
        await eventually_async(lambda: gate_of(a).waiting)
        assert received.texts == [INDICATOR, ERASE, "a0 "]
        await step_async(c)
        await asyncio.wait(runs[2:])
        gate_of(a).open()
        await asyncio.wait(runs)

    asyncio.run(main())
    assert received.texts == [INDICATOR, ERASE, *answer("a")]


def test_a_run_that_starts_in_the_middle_of_another_ones_answer() -> None:
    """Hazard: the answer goes on behind the indicator."""
    received = Received()
    model = EchoChatModel(gate=Gate())
    other = EchoChatModel(gate=Gate())
    handler = UIFriendlyHandler(received.on_token)
    threads: list[threading.Thread] = []
    for prompt, each in (("a", model), ("b", other)):
        thread = threading.Thread(target=each.invoke, args=(prompt, with_handler(handler)))
        thread.start()
        threads.append(thread)
        eventually(partial(getattr, gate_of(each), "waiting"))
        if each is model:
            step(model)
            eventually(lambda: gate_of(model).waiting)
    assert received.texts == [INDICATOR, ERASE, "a0 ", INDICATOR]
    step(model)
    eventually(lambda: gate_of(model).waiting)
    assert received.texts[4:] == [ERASE, "a1 "]
    step(other)
    eventually(lambda: gate_of(other).waiting)
    assert received.texts[6:] == ["b0 "]
    for each in (model, other):
        gate_of(each).open()
    for thread in threads:
        thread.join(10)
    assert received.shown.count(" ") == 2 * LENGTH - 1


def test_a_run_that_fails_in_the_middle_of_another_ones_answer() -> None:
    """Hazard: the other one, which has had its first token, counts as one that is waited for."""
    received = Received()
    model = EchoChatModel(gate=Gate(1))
    handler = UIFriendlyHandler(received.on_token)
    thread = threading.Thread(target=model.invoke, args=("a", with_handler(handler)))
    thread.start()
    eventually(lambda: gate_of(model).waiting)
    with pytest.raises(ValueError, match="no"):
        EchoChatModel(failure=ValueError("no"), fail_at=0).invoke("b", with_handler(handler))
    assert received.texts == [INDICATOR, ERASE, "a0 ", INDICATOR, ERASE]
    gate_of(model).open()
    thread.join(10)


@pytest.mark.parametrize("event", ["start", "token", "end"])
@pytest.mark.parametrize("is_in_task", [False, True], ids=["thread", "task"])
def test_each_event_waits_for_its_turn(
    event: str, monkeypatch: pytest.MonkeyPatch, *, is_in_task: bool
) -> None:
    """Hazard: one run's indicator or token comes between another one's.  The schedule is forced:

    1. run a stands still in ``on_token``: with the indicator, or with its first token;
    2. run b starts, has a token, or fails: it is seen to ask for its turn, and not to get it;
    3. a goes on, then b.

    A plain ``on_token`` needs no loop to come to its end, so that a loop waits for it as well.
    """
    gate = Gate()
    asked = threading.Event()
    inside: list[str] = []
    most: list[int] = []
    told: list[bool] = []
    stops_at = INDICATOR if event == "start" else "a0 "

    def on_token(text: str) -> None:
        inside.append(text)
        most.append(len(inside))
        if text == stops_at:
            gate.wait()
        inside.remove(text)

    class Telling(Turns):
        def in_thread(self, *, waits: bool = True) -> AbstractContextManager[None]:
            told.append(waits)
            if stops_at in inside:
                asked.set()
            return super().in_thread(waits=waits)

    monkeypatch.setattr(ui, "Turns", Telling)
    handler = UIFriendlyHandler(on_token)
    a, b = EchoChatModel(gate=Gate()), EchoChatModel(gate=Gate())
    if event == "end":
        b.failure, b.fail_at = ValueError("no"), 0

    def run(model: EchoChatModel, prompt: str) -> None:
        with contextlib.suppress(ValueError):
            if is_in_task and model is b:
                asyncio.run(model.ainvoke(prompt, with_handler(handler)))
            else:
                model.invoke(prompt, with_handler(handler))

    threads = [threading.Thread(target=run, args=each) for each in ((a, "a"), (b, "b"))]
    threads[0].start()
    if event != "start":
        eventually(lambda: gate_of(a).waiting)
        threads[1].start()
        eventually(lambda: gate_of(b).waiting)
        step(a)
    eventually(lambda: gate.waiting)
    if event == "start":
        threads[1].start()
    else:
        step(b)
    assert asked.wait(5), "nobody asked for a turn"
    gate.open()
    for model in (a, b):
        gate_of(model).open()
    for thread in threads:
        thread.join(10)
    assert max(most) == 1
    assert all(told)


class Once(Received):
    """Sees to it that it is called by one run at a time, and writes to a screen."""

    def __init__(self, *, is_async: bool = False) -> None:
        super().__init__(is_async=is_async)
        self.screen = Screen()
        self._inside = False

    def _plain(self, text: str) -> None:
        assert not self._inside
        self._inside = True
        for character in text:  # where another thread could come in between
            self.screen.write(character)
        super()._plain(text)
        self._inside = False

    async def _coroutine(self, text: str) -> None:
        assert not self._inside
        self._inside = True
        await asyncio.sleep(0)
        self._inside = False
        self._plain(text)


@PLAIN_AND_COROUTINE
def test_many_runs_in_threads(*, is_async: bool) -> None:
    """Hazard: an indicator and its end overtake each other.  Some of the runs fail, some early."""
    screen = Once(is_async=is_async)
    handler = UIFriendlyHandler(screen.on_token, raise_error=True)
    runs = [(prompt, fail_at) for prompt in "abcdefgh" for fail_at in (0, 3, LENGTH, -1)]
    failures: list[BaseException] = []

    def run(prompt: str, fail_at: int) -> None:
        model = EchoChatModel(failure=ValueError("no"), fail_at=fail_at)
        try:
            model.invoke(prompt, with_handler(handler))
        except BaseException as error:
            if not isinstance(error, ValueError):
                failures.append(error)

    threads = [threading.Thread(target=run, args=each) for each in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert failures == []
    expected = [
        token for prompt, fail_at in runs for token in answer(prompt)[: fail_at % (LENGTH + 1)]
    ]
    assert sorted(screen.screen.text.split()) == sorted(token.strip() for token in expected)


@PLAIN_AND_COROUTINE
def test_many_runs_in_tasks(*, is_async: bool) -> None:
    """Hazard: as above, on one loop, which is not held up by whoever waits for a turn."""
    screen = Once(is_async=is_async)

    async def main() -> None:
        handler = UIFriendlyHandler(screen.on_token, raise_error=True)
        await asyncio.gather(
            *(EchoChatModel().ainvoke(prompt, with_handler(handler)) for prompt in "abcdefgh")
        )

    asyncio.run(main())
    expected = sorted(token.strip() for prompt in "abcdefgh" for token in answer(prompt))
    assert sorted(screen.screen.text.split()) == expected


def test_runs_in_threads_and_tasks_take_turns() -> None:
    """Hazard: a thread that has the turn needs the loop, where somebody waits for the turn."""
    screen = Once(is_async=True)

    async def main() -> None:
        handler = UIFriendlyHandler(screen.on_token, raise_error=True)
        config = with_handler(handler)
        await asyncio.gather(
            *(EchoChatModel().ainvoke(prompt, config) for prompt in "abcd"),
            *(asyncio.to_thread(EchoChatModel().invoke, prompt, config) for prompt in "efgh"),
        )

    asyncio.run(main())
    expected = sorted(token.strip() for prompt in "abcdefgh" for token in answer(prompt))
    assert sorted(screen.screen.text.split()) == expected


@pytest.mark.parametrize("where", ["in place", "in a thread"])
def test_sync_code_that_holds_up_the_loop_does_not_wait_for_a_turn(where: str) -> None:
    """Hazard: a deadlock: whoever has the turn needs the loop to give it back.

    1. a run in a task has the turn, and awaits in ``on_token``;
    2. sync code on the loop's own thread runs a model under the same handler, at once or
       as a step of something that waits for threads.
    """
    gate = Gate()
    texts: list[str] = []

    async def on_token(text: str) -> None:
        texts.append(text)
        await gate.wait_async()

    handlers: list[UIFriendlyHandler] = []

    async def main() -> None:
        handlers.append(UIFriendlyHandler(on_token))
        config = with_handler(handlers[0])
        slow = asyncio.create_task(EchoChatModel().ainvoke("a", config))
        await eventually_async(lambda: gate.waiting)
        # That on_token cannot run there is LangChain's to log (see StreamHandler).
        if where == "in place":
            EchoChatModel().invoke("b", config)
        else:
            RunnableParallel(b=EchoChatModel(), c=EchoChatModel()).invoke("b", config)
        gate.open()
        await slow

    thread = threading.Thread(target=lambda: asyncio.run(main()), daemon=True)
    thread.start()
    thread.join(10)
    if thread.is_alive():
        for _ in range(100):  # or the interpreter could not exit
            handlers[0]._turns._free.sync_q.put(None)
        thread.join(10)
        pytest.fail("a deadlock")
    assert texts[-LENGTH:] == answer("a")


def test_on_token_may_call_its_handler() -> None:
    """Hazard: it waits for the turn that it has itself."""
    texts: list[str] = []

    def on_token(text: str) -> None:
        texts.append(text)
        if text == "a":
            handler("b")

    handler = UIFriendlyHandler(on_token)
    ScriptedChatModel(tokens=["a", "c"]).invoke("?", with_handler(handler))
    assert texts == [INDICATOR, ERASE, "a", "b", "c"]
