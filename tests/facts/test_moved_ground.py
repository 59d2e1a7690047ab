"""The canary of the facts: where the ground has moved, the fact's own test fails.

Here a library is made to behave as it does not, and the test of the fact is called.  It is done
for the facts which say that something does *not* happen: no token, no retry, no error, no
clean-up, no other task.  Such a test passes as well where nothing is looked at.  The other
facts are equalities with what came, or two cases that must differ, which do not hold by chance.
"""

from __future__ import annotations

import asyncio
import contextvars
import re
import sys
import threading
from contextlib import suppress
from functools import partialmethod
from typing import TYPE_CHECKING, Any

import anyio.from_thread
import janus
import pytest
import sniffio
from langchain_core.callbacks import CallbackManagerForLLMRun, manager
from langchain_core.language_models import BaseChatModel
from langchain_core.runnables import Runnable

from queuestream import MixedQueue
from tests.facts import test_facts as facts
from tests.support.models import ScriptedLLM, WholeAnswerChatModel

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

    from langchain_core.outputs import LLMResult
    from typing_extensions import Self

    Plant = Callable[[pytest.MonkeyPatch], None]


# LangChain


def models_always_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BaseChatModel, "_should_stream", lambda *_, **__: True)


def coroutines_may_raise(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(coroutines: list[Coroutine[Any, Any, None]]) -> None:
        for one in coroutines:
            with suppress(NotImplementedError):  # asked for something else then
                asyncio.run(one)

    monkeypatch.setattr(manager, "_run_coros", run)


def no_error_reaches_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    handle_event = manager.handle_event

    def handle(*args: Any, **kwargs: Any) -> None:
        try:
            handle_event(*args, **kwargs)
        except Exception:
            assert args[1] == "on_llm_new_token"

    monkeypatch.setattr(manager, "handle_event", handle)


def starts_are_not_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    handle_event = manager.ahandle_event

    async def handle(handlers: Any, name: str, /, *args: Any, **kwargs: Any) -> None:
        if not name.endswith("_start"):
            await handle_event(handlers, name, *args, **kwargs)

    monkeypatch.setattr(manager, "ahandle_event", handle)


def whatever_is_raised_is_retried(monkeypatch: pytest.MonkeyPatch) -> None:
    retry: Any = partialmethod(
        Runnable.with_retry,
        retry_if_exception_type=(BaseException,),
        wait_exponential_jitter=False,
    )
    monkeypatch.setattr(Runnable, "with_retry", retry)


def whatever_is_raised_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    fall_back: Any = partialmethod(Runnable.with_fallbacks, exceptions_to_handle=(BaseException,))
    monkeypatch.setattr(Runnable, "with_fallbacks", fall_back)


def the_whole_answer_is_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    on_llm_end = CallbackManagerForLLMRun.on_llm_end

    def end(run: CallbackManagerForLLMRun, response: LLMResult, **kwargs: Any) -> None:
        run.on_llm_new_token(response.generations[0][0].text)
        on_llm_end(run, response, **kwargs)

    monkeypatch.setattr(CallbackManagerForLLMRun, "on_llm_end", end)


def there_is_another_second_protocol(monkeypatch: pytest.MonkeyPatch) -> None:
    streaming = pytest.importorskip("langchain_core.tracers._streaming")
    if hasattr(streaming, "_V2StreamingCallbackHandler"):  # else the test of the fact skips
        monkeypatch.setattr(streaming, "_V2StreamingCallbackHandler", type("Other", (), {}))


# Python, asyncio, anyio


def threads_inherit_the_context(monkeypatch: pytest.MonkeyPatch) -> None:
    if getattr(sys.flags, "thread_inherit_context", False):
        pytest.skip("here they do")
    start = threading.Thread.start

    def start_in_a_copy(thread: threading.Thread) -> None:
        context, run = contextvars.copy_context(), thread.run
        thread.run = lambda: context.run(run)  # type: ignore[method-assign]
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_in_a_copy)


def closed_loops_say_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asyncio.BaseEventLoop, "_check_closed", lambda _: None)


def wake_ups_are_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    call_soon_threadsafe = asyncio.BaseEventLoop.call_soon_threadsafe

    def call_soon(loop: Any, callback: Any, *args: Any) -> Any:
        if loop._ready:
            return loop.call_soon(callback, *args)
        return call_soon_threadsafe(loop, callback, *args)

    monkeypatch.setattr(asyncio.BaseEventLoop, "call_soon_threadsafe", call_soon)


def the_running_loop_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    current_async_library = sniffio.current_async_library

    def current() -> str:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return current_async_library()
        return "asyncio"

    monkeypatch.setattr(sniffio, "current_async_library", current)


def portals_cancel_once(monkeypatch: pytest.MonkeyPatch) -> None:
    class Scope:
        def __enter__(self) -> Self:
            self.task = asyncio.current_task()
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def cancel(self, *_: object) -> None:
            assert self.task is not None
            self.task.cancel()

    monkeypatch.setattr(anyio.from_thread, "CancelScope", Scope)


# janus, starlette


def janus_is_like_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(janus, "Queue", MixedQueue)


def starlette_closes_all(monkeypatch: pytest.MonkeyPatch) -> None:
    responses = pytest.importorskip("starlette.responses", reason="starlette is an extra")
    iterate_in_threadpool = responses.iterate_in_threadpool

    async def iterate(iterator: Any) -> AsyncIterator[Any]:
        try:
            async for item in iterate_in_threadpool(iterator):
                yield item
        finally:
            iterator.close()

    monkeypatch.setattr(responses, "iterate_in_threadpool", iterate)


MOVED: list[tuple[Plant, Callable[..., object], tuple[Any, ...], str]] = [
    (
        models_always_stream,
        facts.test_fact_01_two_methods_make_a_model_stream_inside_invoke,
        (facts.Plain, []),
        r"\['a', 'b', ''\] == \[\]",
    ),
    (
        coroutines_may_raise,
        facts.test_fact_02_async_method_of_a_sync_run_gets_a_fresh_loop_and_its_errors_vanish,
        (True,),
        "RefusedError",
    ),
    (
        no_error_reaches_the_run,
        facts.test_fact_03_an_exception_in_a_handler_reaches_the_run_only_with_raise_error,
        (),
        "DID NOT RAISE .*RefusedError",
    ),
    (
        whatever_is_raised_is_retried,
        facts.test_fact_04_a_base_exception_stops_a_sync_run,
        ("with_retry",),
        "DID NOT RAISE .*Stop",
    ),
    (
        whatever_is_raised_falls_back,
        facts.test_fact_04_a_base_exception_stops_a_sync_run,
        ("with_fallbacks",),
        "DID NOT RAISE .*Stop",
    ),
    *(
        (
            plant,
            facts.test_fact_04_a_base_exception_from_each_start_stops_a_sync_run,
            (start,),
            complaint,
        )
        for start in ("on_chat_model_start", "on_tool_start")
        for plant, complaint in (
            (whatever_is_raised_is_retried, "2 == 1"),
            (whatever_is_raised_falls_back, "DID NOT RAISE .*Stop"),
        )
    ),
    (
        whatever_is_raised_falls_back,
        facts.test_fact_04_cancelling_the_task_of_an_async_run_starts_no_retry_and_no_fallback,
        (),
        "DID NOT RAISE .*CancelledError",
    ),
    (
        starts_are_not_reported,
        facts.test_fact_04_an_exception_from_the_token_and_each_start_lets_no_token_be_made,
        (),
        "DID NOT RAISE .*RefusedError",
    ),
    (
        threads_inherit_the_context,
        facts.test_fact_05_a_thread_sees_the_callers_context_only_in_a_copy,
        (),
        r"\['set', 'set'\] == \['unset', 'set'\]",
    ),
    (
        the_whole_answer_is_a_token,
        facts.test_fact_07_an_answer_can_end_with_no_token_before_it,
        (WholeAnswerChatModel(tokens=["a"]),),
        r"\(\['a'\], 1\) == \(\[\], 1\)",
    ),
    (
        the_whole_answer_is_a_token,
        facts.test_fact_07_an_answer_can_end_with_no_token_before_it,
        (ScriptedLLM(tokens=["a"]),),
        r"\(\['a'\], 1\) == \(\[\], 1\)",
    ),
    (
        janus_is_like_ours,
        facts.test_fact_11_a_janus_queue_binds_to_one_loop,
        (),
        "DID NOT RAISE .*RuntimeError",
    ),
    (
        janus_is_like_ours,
        facts.test_fact_11_a_janus_queue_cannot_run_on_trio,
        (),
        "DID NOT RAISE .*RuntimeError",
    ),
    (
        janus_is_like_ours,
        facts.test_fact_11_a_janus_queue_makes_a_task_for_a_wake_up,
        (),
        "0 > 0",
    ),
    (
        closed_loops_say_nothing,
        facts.test_fact_12_waking_a_loop_that_has_gone_raises_runtime_error,
        ("asyncio",),
        "DID NOT RAISE .*RuntimeError",
    ),
    (
        closed_loops_say_nothing,
        facts.test_fact_12_a_look_at_is_closed_is_no_protection,
        (),
        "DID NOT RAISE .*RuntimeError",
    ),
    (
        wake_ups_are_joined,
        facts.test_fact_13_each_call_soon_threadsafe_writes_to_a_socket,
        (),
        "1 == 10",
    ),
    (
        starlette_closes_all,
        facts.test_fact_14_starlette_closes_an_async_generator_but_no_sync_one,
        (),
        r"\['sync', 'async'\] == \['async'\]",
    ),
    (
        the_running_loop_is_looked_at,
        facts.test_fact_16_a_context_copied_from_anyios_trio_says_trio_elsewhere,
        (),
        "DID NOT RAISE .*BaseException",
    ),
    (
        there_is_another_second_protocol,
        facts.test_fact_19_beside_a_v2_handler_no_token_comes,
        (),
        r"\['a', ''\] == \[\]",
    ),
    (
        portals_cancel_once,
        facts.test_fact_20_cancelling_a_portals_future_cancels_each_await_of_the_clean_up,
        (),
        r"\['portal', 'task'\] == \['task'\]",
    ),
]


@pytest.mark.parametrize(
    "plant, fact, args, complaint",
    [pytest.param(*moved, id=f"{moved[1].__name__[5:12]} {moved[0].__name__}") for moved in MOVED],
)
def test_the_test_of_a_fact_can_fail(
    plant: Plant,
    fact: Callable[..., object],
    args: tuple[Any, ...],
    complaint: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plant(monkeypatch)
    with pytest.raises((AssertionError, pytest.fail.Exception, facts.RefusedError)) as failure:
        fact(*args)
    assert re.search(complaint, f"{failure.typename}: {failure.value}")
