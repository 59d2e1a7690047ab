"""`MemoryEfficientHandler`: the last tokens, all counted, in fixed memory."""

from __future__ import annotations

import gc
import itertools
import sys
import threading
import tracemalloc
from typing import Any

import pytest

from queuestream.handlers import MemoryEfficientHandler
from tests.support.handlers import (
    INVOKE_AND_AINVOKE,
    PLAIN_AND_COROUTINE,
    EchoChatModel,
    Received,
    Way,
    answer,
)
from tests.support.models import ScriptedChatModel, tokens


@INVOKE_AND_AINVOKE
@PLAIN_AND_COROUTINE
@pytest.mark.parametrize("count", [1, 3, 4, 10])
def test_the_last_ones_are_kept_and_all_are_counted(
    way: Way, count: int, *, is_async: bool
) -> None:
    """Hazard: the first ones are kept, or one too few."""
    received = Received(is_async=is_async)
    made: list[MemoryEfficientHandler] = []

    def make() -> MemoryEfficientHandler:
        made.append(MemoryEfficientHandler(received.on_token, 3))
        return made[0]

    way.run(ScriptedChatModel(tokens=tokens(count)), make)
    assert received.texts == tokens(count)
    assert made[0].recent == tuple(tokens(count)[-3:])
    assert made[0].token_count == count


def test_over_all_runs() -> None:
    """Hazard: a run clears what was kept of the one before."""
    handler = MemoryEfficientHandler(lambda _: None)
    for prompt in "ab":
        EchoChatModel().invoke(prompt, {"callbacks": [handler]})
    assert handler.recent == (*answer("a"), *answer("b"))
    assert handler.token_count == 2 * len(answer("a"))


def test_before_the_first_token() -> None:
    handler = MemoryEfficientHandler(lambda _: None)
    assert (handler.recent, handler.token_count, handler.max_buffer_size) == ((), 0, 1000)


def test_recent_is_a_copy() -> None:
    """Hazard: it changes while somebody looks at it, in another thread maybe."""
    handler = MemoryEfficientHandler(lambda _: None, 2)
    handler("a")
    before = handler.recent
    handler("b")
    assert before == ("a",)


def test_somebody_looks_while_tokens_come() -> None:
    """Hazard: "deque mutated during iteration"."""
    handler = MemoryEfficientHandler(lambda _: None, 1000)
    done = threading.Event()

    def produce() -> None:
        for number in range(20_000):
            handler(str(number))
        done.set()

    thread = threading.Thread(target=produce)
    thread.start()
    while not done.is_set():
        recent = [int(token) for token in handler.recent]
        assert recent == list(range(recent[0], recent[-1] + 1)) if recent else True
    thread.join(10)
    assert len(handler.recent) == 1000


def test_a_token_whose_delivery_fails_is_counted() -> None:
    def fail(_: str) -> None:
        raise OSError("no")

    handler = MemoryEfficientHandler(fail)
    ScriptedChatModel(tokens=tokens(3)).invoke("?", {"callbacks": [handler]})
    assert (handler.recent, handler.token_count) == (tuple(tokens(3)), 3)


def test_a_million_tokens_in_fixed_memory() -> None:
    """The issue's own test.  Promise 9.  Hazard: something grows with each token.

    Each token is an object of its own.  The first are to fill what is of fixed size.  Python
    counts its blocks of memory all the time; how much is in them is measured over the last
    of the tokens, because that takes long.
    """
    seen = itertools.count()
    handler = MemoryEfficientHandler(lambda _: next(seen), 1000)

    def call(numbers: range) -> None:
        for number in numbers:
            handler.on_llm_new_token(f"token {number:07}")
        gc.collect()

    call(range(5000))
    blocks = sys.getallocatedblocks()
    call(range(5000, 900_000))
    assert sys.getallocatedblocks() - blocks < 500
    tracemalloc.start()
    try:
        call(range(900_000, 905_000))  # what is traced takes the place of what is not
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        call(range(905_000, 1_000_000))
        now, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert handler.token_count == next(seen) == 1_000_000
    assert len(handler.recent) == 1000
    assert now - before < 10_000  # bytes: nine tokens out of ten leave nothing at all
    assert peak - before < 100_000


@pytest.mark.parametrize(
    "given, error, says",
    [
        (0, ValueError, "max_buffer_size must be 1 or more, not 0"),
        (-1, ValueError, "max_buffer_size must be 1 or more, not -1"),
        (1.5, TypeError, "max_buffer_size must be an int, not 1.5"),
        (True, TypeError, "max_buffer_size must be an int, not True"),
        (None, TypeError, "max_buffer_size must be an int, not None"),
    ],
)
def test_bad_arguments(given: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        MemoryEfficientHandler(print, given)
