"""`ManagedStreamHandler`: closes what it was given, whatever happens."""

from __future__ import annotations

import asyncio
import io
import threading
from typing import Any

import pytest

from queuestream.handlers import ManagedStreamHandler
from tests.support.gates import Gate, eventually_async
from tests.support.handlers import EchoChatModel, Received, answer

SYNC_AND_ASYNC = pytest.mark.parametrize("is_async", [False, True], ids=["with", "async with"])


class Resource:
    """Notes in a list that all share when it is closed; may fail."""

    def __init__(self, name: str, closed: list[str], error: BaseException | None = None) -> None:
        self.name = name
        self.closed = closed
        self.error = error
        self.loop: Any = None

    def __repr__(self) -> str:
        return f"<{self.name}>"

    def _note(self, how: str) -> None:
        self.closed.append(f"{self.name}.{how}")
        if self.error is not None:
            raise self.error


class Closes(Resource):
    def close(self) -> None:
        self._note("close")


class AClosesOnly(Resource):
    async def aclose(self) -> None:
        await asyncio.sleep(0)
        self.loop = asyncio.get_running_loop()
        self._note("aclose")


class ClosesBoth(Closes):
    async def aclose(self) -> None:
        await asyncio.sleep(0)
        self._note("aclose")


class ClosesByCoroutine(Resource):
    """As of many a client: ``close`` itself is a coroutine function."""

    async def close(self) -> None:
        await asyncio.sleep(0)
        self._note("close")


def managed(
    *resources: Resource, is_async: bool, body: BaseException | None = None
) -> ManagedStreamHandler:
    """Enter and leave a handler with these resources; in a ``with`` or an ``async with``."""
    handler = ManagedStreamHandler(print, *resources)
    if is_async:

        async def main() -> None:
            async with handler as entered:
                assert entered is handler
                if body is not None:
                    raise body

        asyncio.run(main())
    else:
        with handler as entered:
            assert entered is handler
            if body is not None:
                raise body
    return handler


# -- closing ---------------------------------------------------------------------------------------


@SYNC_AND_ASYNC
def test_in_reverse_order(*, is_async: bool) -> None:
    """Hazard: what was opened last may need what was opened first."""
    closed: list[str] = []
    resources = [
        Closes("a", closed),
        AClosesOnly("b", closed),
        ClosesBoth("c", closed),
        ClosesByCoroutine("d", closed),
    ]
    handler = managed(*resources, is_async=is_async)
    both = "c.aclose" if is_async else "c.close"
    assert closed == ["d.close", both, "b.aclose", "a.close"]
    assert handler.resources == tuple(resources)


@SYNC_AND_ASYNC
def test_none_at_all(*, is_async: bool) -> None:
    assert managed(is_async=is_async).resources == ()


def test_not_before_the_end_of_the_block() -> None:
    """Hazard: the document closes what nobody has given it.  Runs do not close anything."""
    received = Received()
    file = io.StringIO()
    with ManagedStreamHandler(received.on_token, file) as handler:
        for _ in range(2):
            EchoChatModel().invoke("a", {"callbacks": [handler]})
        was_closed = file.closed
    assert (was_closed, file.closed) == (False, True)
    assert received.texts == answer("a") * 2


def test_a_real_file() -> None:
    file = io.StringIO()
    closed: list[str] = []

    class Last(Closes):
        def close(self) -> None:
            closed.append(file.getvalue())

    with ManagedStreamHandler(file.write, file, Last("last", closed)) as handler:
        EchoChatModel().invoke("a", {"callbacks": [handler]})
    assert closed == ["".join(answer("a"))]
    assert file.closed


def test_what_has_to_be_awaited_in_sync_code_has_a_loop_of_ours() -> None:
    """Hazard: a new loop for each."""
    resources = [AClosesOnly(name, []) for name in "ab"]
    managed(*resources, is_async=False)
    assert resources[0].loop is resources[1].loop is not None


def test_what_has_to_be_awaited_in_a_thread_is_on_the_loop_where_the_handler_was_made() -> None:
    """Hazard: a connection of that loop is closed from another one."""
    resource = AClosesOnly("a", [])

    async def main() -> None:
        handler = ManagedStreamHandler(print, resource)

        def body() -> None:
            with handler:
                pass

        await asyncio.to_thread(body)
        assert resource.loop is asyncio.get_running_loop()

    asyncio.run(main())


def test_what_cannot_be_awaited_is_refused_and_the_others_are_closed() -> None:
    """Hazard: a deadlock: ``with`` on the loop's own thread waits for that loop."""
    closed: list[str] = []
    resources = [Closes("a", closed), AClosesOnly("b", closed), ClosesByCoroutine("c", closed)]

    async def main() -> None:
        with ManagedStreamHandler(print, *resources):
            pass

    with pytest.raises(RuntimeError, match="synchronous code holds up that very loop"):
        asyncio.run(main())
    assert closed == ["a.close"]


# -- errors ----------------------------------------------------------------------------------------


@SYNC_AND_ASYNC
@pytest.mark.parametrize("body", [ValueError("the body's"), KeyboardInterrupt()])
def test_an_error_of_the_body(body: BaseException, *, is_async: bool) -> None:
    """Hazard: nothing is closed, or the error is swallowed."""
    closed: list[str] = []
    if is_async and isinstance(body, KeyboardInterrupt):
        body = SystemExit()
    with pytest.raises(type(body)) as caught:
        managed(Closes("a", closed), Closes("b", closed), is_async=is_async, body=body)
    assert caught.value is body
    assert closed == ["b.close", "a.close"]


@SYNC_AND_ASYNC
def test_an_error_of_a_close(*, is_async: bool, caplog: pytest.LogCaptureFixture) -> None:
    """Hazard: the others stay open; or nobody is told; or the last error hides the first."""
    closed: list[str] = []
    with pytest.raises(OSError, match="c's"):
        managed(
            Closes("a", closed),
            Closes("b", closed, ValueError("b's")),
            Closes("c", closed, OSError("c's")),
            Closes("d", closed),
            is_async=is_async,
        )
    assert closed == ["d.close", "c.close", "b.close", "a.close"]
    assert "<c> failed to close" in caplog.text
    assert "<b> failed to close" in caplog.text
    assert caplog.text.count("Traceback (most recent call last)") == 2


@SYNC_AND_ASYNC
@pytest.mark.parametrize("kind", [Closes, AClosesOnly, ClosesByCoroutine])
def test_errors_of_both(
    kind: type[Resource], *, is_async: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Hazard: the body's error is replaced; or the other is not even logged."""
    closed: list[str] = []
    with pytest.raises(ValueError, match="the body's"):
        managed(
            Closes("a", closed),
            kind("b", closed, OSError("b's")),
            is_async=is_async,
            body=ValueError("the body's"),
        )
    assert closed[-1] == "a.close"
    assert len(closed) == 2
    assert "<b> failed to close" in caplog.text
    assert "OSError: b's" in caplog.text


@SYNC_AND_ASYNC
@pytest.mark.parametrize("body", [None, ValueError("the body's")])
def test_what_is_no_error_comes_first(body: Exception | None, *, is_async: bool) -> None:
    """Hazard: Ctrl-C, in the middle of a close, is one of several errors."""
    closed: list[str] = []
    with pytest.raises(SystemExit):
        managed(
            Closes("a", closed),
            Closes("b", closed, SystemExit()),
            Closes("c", closed, OSError("c's")),
            is_async=is_async,
            body=body,
        )
    assert closed == ["c.close", "b.close", "a.close"]


def test_cancelled_while_something_is_closed() -> None:
    """Hazard: what is closed after it stays open, or the cancellation is lost."""
    closed: list[str] = []
    gate = Gate()

    class Slow(Resource):
        async def aclose(self) -> None:
            self._note("begun")
            await gate.wait_async()
            self._note("never")

    async def body() -> None:
        async with ManagedStreamHandler(print, AClosesOnly("a", closed), Slow("b", closed)):
            pass

    async def main() -> None:
        task = asyncio.create_task(body())
        await eventually_async(lambda: gate.waiting)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert closed == ["b.begun", "a.aclose"]


def test_after_a_run_that_fails() -> None:
    closed: list[str] = []
    model = EchoChatModel(failure=ValueError("no"), fail_at=3)
    with (
        pytest.raises(ValueError, match="no"),
        ManagedStreamHandler(lambda _: None, Closes("a", closed)) as handler,
    ):
        model.invoke("a", {"callbacks": [handler]})
    assert closed == ["a.close"]


# -- arguments -------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [1, None, "file", object()])
def test_bad_arguments(given: Any) -> None:
    """Hazard: found at the end of the block, when the others are closed."""
    with pytest.raises(TypeError, match=r"a resource must have close\(\) or aclose\(\); .* has n"):
        ManagedStreamHandler(print, io.StringIO(), given)


def test_a_name_that_is_no_method_is_none() -> None:
    class Odd:
        close = True

    with pytest.raises(TypeError, match="has none"):
        ManagedStreamHandler(print, Odd())

    class Half:
        close = None

        def __init__(self) -> None:
            self.threads: list[int] = []

        async def aclose(self) -> None:
            self.threads.append(threading.get_ident())

    half = Half()
    with ManagedStreamHandler(print, half):
        pass
    assert len(half.threads) == 1
