"""`create_safe_handler`: errors of the callback stay away from the run."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from queuestream.handlers import (
    BatchStreamHandler,
    ResilientStreamHandler,
    StreamHandler,
    UIFriendlyHandler,
    create_safe_handler,
)
from tests.support.handlers import (
    INVOKE_AND_AINVOKE,
    PLAIN_AND_COROUTINE,
    EchoChatModel,
    Received,
    Way,
    answer,
)
from tests.support.models import ScriptedChatModel, tokens


class FailingAt(Received):
    """Raises for some of the texts."""

    def __init__(self, *bad: str, error: BaseException | None = None, is_async: bool) -> None:
        super().__init__(is_async=is_async)
        self._bad = bad
        self.error = error or ValueError("the callback's")

    def _plain(self, text: str) -> None:
        if text in self._bad:
            raise self.error
        super()._plain(text)


@INVOKE_AND_AINVOKE
@PLAIN_AND_COROUTINE
@pytest.mark.parametrize("is_told_async", [False, True])
def test_an_exception_is_logged_and_passed_on(
    way: Way, caplog: pytest.LogCaptureFixture, *, is_async: bool, is_told_async: bool
) -> None:
    """Hazard: it has no traceback, it is told twice, or the token is passed on again."""
    failing = FailingAt("t1 ", "t3 ", is_async=is_async)
    errors: list[Exception] = []

    async def on_error(error: Exception) -> None:
        await asyncio.sleep(0)
        errors.append(error)

    way.run(
        ScriptedChatModel(tokens=tokens(5)),
        lambda: create_safe_handler(
            failing.on_token, on_error=on_error if is_told_async else errors.append
        ),
    )
    assert failing.texts == ["t0 ", "t2 ", "t4 "]
    assert errors == [failing.error] * 2
    records = [record for record in caplog.records if record.name == "queuestream"]
    assert len(records) == 2
    for record in records:
        assert record.levelname == "ERROR"
        assert "an exception in the callback" in record.getMessage()
        assert record.exc_info is not None
        assert record.exc_info[1] is failing.error
    assert caplog.text.count("Traceback (most recent call last)") == 2


@INVOKE_AND_AINVOKE
@PLAIN_AND_COROUTINE
def test_without_on_error(way: Way, *, is_async: bool, caplog: pytest.LogCaptureFixture) -> None:
    failing = FailingAt("t1 ", is_async=is_async)
    way.run(ScriptedChatModel(tokens=tokens(3)), lambda: create_safe_handler(failing.on_token))
    assert failing.texts == ["t0 ", "t2 "]
    assert caplog.text.count("ValueError: the callback's") == 1


@INVOKE_AND_AINVOKE
@pytest.mark.parametrize("kind", ["plain", "coroutine", "lambda around a coroutine"])
def test_on_error_fails_itself(way: Way, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """Hazard: it ends the run; or a coroutine is dropped, and nothing is said."""
    failing = FailingAt("t1 ", is_async=False)

    def on_error(_: Exception) -> None:
        raise OSError("on_error's")

    async def on_error_async(_: Exception) -> None:
        raise OSError("on_error's")

    given: dict[str, Any] = {
        "plain": on_error,
        "coroutine": on_error_async,
        "lambda around a coroutine": lambda error: on_error_async(error),  # noqa: PLW0108
    }
    way.run(
        ScriptedChatModel(tokens=tokens(3)),
        lambda: create_safe_handler(failing.on_token, on_error=given[kind]),
    )
    assert failing.texts == ["t0 ", "t2 "]
    assert "an exception in on_error" in caplog.text
    if not (kind.startswith("lambda") and way.is_async):  # nothing can await it there
        assert "OSError: on_error's" in caplog.text


def test_a_stop_is_no_error() -> None:
    """Hazard: what is no ``Exception`` is to end the run: Ctrl-C, a cancellation, a stop."""
    failing = FailingAt("t1 ", error=KeyboardInterrupt(), is_async=False)
    errors: list[Exception] = []
    handler = create_safe_handler(failing.on_token, on_error=errors.append)
    with pytest.raises(KeyboardInterrupt):
        ScriptedChatModel(tokens=tokens(3)).invoke("?", {"callbacks": [handler]})
    assert failing.texts == ["t0 "]
    assert errors == []


def test_a_cancellation_is_no_error() -> None:
    """Hazard: as above, where it is awaited."""
    errors: list[Exception] = []

    async def on_token(_: str) -> None:
        raise asyncio.CancelledError

    async def main() -> None:
        with pytest.raises(asyncio.CancelledError):
            await create_safe_handler(on_token, on_error=errors.append)("a")

    asyncio.run(main())
    assert errors == []


@INVOKE_AND_AINVOKE
@PLAIN_AND_COROUTINE
@pytest.mark.parametrize("fail_at", [None, 4])
def test_errors_at_the_start_and_the_end_of_a_handler_within(
    way: Way, fail_at: int | None, *, is_async: bool
) -> None:
    """Hazard: only errors of tokens are caught; those of an indicator, or a flush, are not."""
    failing = FailingAt("⋯", "a3 ", is_async=is_async)
    model = EchoChatModel()
    if fail_at is not None:
        model.failure, model.fail_at = ValueError("the model's"), fail_at
    errors: list[Exception] = []

    def run() -> None:
        way.run(
            model,
            lambda: create_safe_handler(
                BatchStreamHandler(
                    UIFriendlyHandler(failing.on_token), batch_size=3, raise_error=True
                ),
                on_error=errors.append,
            ),
        )

    if fail_at is None:
        run()
        assert failing.texts == ["a0 a1 a2 ", "a3 a4 a5 ", "a6 "]
        assert errors == [failing.error]  # the indicator's
    else:
        with pytest.raises(ValueError, match="the model's"):
            run()
        assert failing.texts == ["a0 a1 a2 "]
        assert errors == [failing.error] * 2


@INVOKE_AND_AINVOKE
@PLAIN_AND_COROUTINE
def test_a_handler_within_that_would_end_the_run(way: Way, *, is_async: bool) -> None:
    """Hazard: what raises within is raised without."""
    failing = FailingAt(*answer("a")[2:4], error=ConnectionError("no"), is_async=is_async)
    errors: list[Exception] = []
    way.run(
        EchoChatModel(),
        lambda: create_safe_handler(
            ResilientStreamHandler(failing.on_token, 1, backoff=0, on_exhausted="raise"),
            on_error=errors.append,
        ),
    )
    assert failing.texts == answer("a")[:2] + answer("a")[4:]
    assert errors == [failing.error] * 2


def test_around_it_another_one_knows_that_it_is_safe() -> None:
    """Hazard: ``raise_error`` is handed up from far within."""
    inner = StreamHandler(print, raise_error=True)
    assert not create_safe_handler(inner).raise_error
    assert not StreamHandler(create_safe_handler(inner)).raise_error


def test_it_is_a_handler() -> None:
    assert isinstance(create_safe_handler(print), StreamHandler)


@pytest.mark.parametrize("given", [1, "log"])
def test_bad_arguments(given: Any) -> None:
    with pytest.raises(TypeError, match="on_error must be a function of one exception or None"):
        create_safe_handler(print, on_error=given)
