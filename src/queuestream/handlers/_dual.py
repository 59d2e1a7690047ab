"""Methods with two bodies: for LangChain's synchronous runs, and for its asynchronous ones.

Asynchronous runs look at ``handler.on_llm_new_token`` *before* they call it: a coroutine
function is awaited; a plain one is called in place if the handler has ``run_inline``.
Synchronous runs call it, and run a coroutine that comes back in a new event loop in another
thread, swallowing its errors (``tests/facts`` pins each).  So what may wait is a `dual`
method: a coroutine function where an asyncio loop runs in the calling thread, a plain
function elsewhere.

Synchronous code on a loop's own thread (an ``async def`` node that calls ``llm.invoke``)
gets the coroutine function, too, and runs it on another loop.  That is how it is known.  It
*holds up* its loop.  Until it returns nobody else looks anything up on that thread, so that
after its start its other callbacks are looked up as plain functions.

Users derive from handlers, override one of LangChain's methods and call ``super()``, and
need not know all this: what they write becomes a `dual` method as well (`dual_overrides`).
"""

from __future__ import annotations

import inspect
from contextvars import ContextVar
from functools import partial, wraps
from types import MethodType
from typing import TYPE_CHECKING, Any, Protocol

from queuestream._wakeups import running_asyncio_loop

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Collection, Coroutine

    class Handler(Protocol):
        """What a dual method asks of its handler.

        Attributes:
            may_wait: Whether its dual methods are coroutine functions on a loop.
            has_overrides: Whether a user's class overrides some of them.
            held_loops: The loops that synchronous code is known to hold up.
        """

        may_wait: bool
        has_overrides: bool
        held_loops: dict[asyncio.AbstractEventLoop, Any]

        def finish_in_thread(self, coroutine: Coroutine[Any, Any, Any]) -> None:
            """Run a coroutine of the user's to its end, from a thread."""
            ...


__all__ = ["dual", "dual_overrides"]


class dual:  # noqa: N801 - used as a decorator is
    """A method with two bodies, chosen where it is looked up.

    The coroutine's first argument is the loop on which it was looked up.  On another loop
    it was called by synchronous code that holds up the first one.

    Args:
        plain: The body for threads.
        coroutine: The body for tasks.
        detects: Whether this method finds out who holds up a loop; what is known of that
            does not decide, then.
    """

    def __init__(
        self,
        plain: Callable[..., None],
        coroutine: Callable[..., Coroutine[Any, Any, None]],
        *,
        detects: bool = False,
    ) -> None:
        self._plain = plain
        self._coroutine = coroutine
        self._detects = detects
        self.__doc__ = plain.__doc__

    def __get__(self, handler: Handler | None, owner: type | None = None) -> Any:
        if handler is None:
            return self._plain
        loop = running_asyncio_loop()
        if loop is None or not handler.may_wait:
            return MethodType(self._plain, handler)
        if handler.has_overrides:
            outer = _override.get()
            if outer is not None and outer.handler is handler:
                return partial(outer.call_later, partial(self._coroutine, handler, outer.loop))
        if handler.held_loops and loop in handler.held_loops and not self._detects:
            return MethodType(self._plain, handler)
        return partial(self._coroutine, handler, loop)


class _Override:
    """A user's plain method, while it runs where ``super()`` answers with coroutines.

    Attributes:
        handler: Its ``self``.
        loop: The loop on which it was looked up.
        calls: What it has called of its bases, to be awaited when it returns.
    """

    __slots__ = ("calls", "handler", "loop")

    def __init__(self, handler: object, loop: object) -> None:
        self.handler = handler
        self.loop = loop
        self.calls: list[Callable[[], Coroutine[Any, Any, None]]] = []

    def call_later(
        self, method: Callable[..., Coroutine[Any, Any, None]], *args: Any, **kwargs: Any
    ) -> None:
        self.calls.append(partial(method, *args, **kwargs))


_override: ContextVar[_Override | None] = ContextVar("queuestream override", default=None)


def _dual_of_plain(method: Callable[..., object], *, detects: bool) -> dual:
    """A dual method of a user's ``def``, which calls ``super()`` as if there were no loops."""

    @wraps(method)
    async def in_task(self: Handler, loop: object, *args: Any, **kwargs: Any) -> None:
        override = _Override(self, loop)
        token = _override.set(override)
        try:
            outcome = method(self, *args, **kwargs)
        finally:
            _override.reset(token)
        for call in override.calls:
            await call()
        if inspect.isawaitable(outcome):
            await outcome

    # What it returns, LangChain drops.
    return dual(method, in_task, detects=detects)  # type: ignore[arg-type]


def _dual_of_coroutine(method: Callable[..., Coroutine[Any, Any, None]], *, detects: bool) -> dual:
    """A dual method of a user's ``async def``, which awaits ``super()``."""

    @wraps(method)
    def plain(self: Handler, *args: Any, **kwargs: Any) -> None:
        self.finish_in_thread(method(self, *args, **kwargs))

    @wraps(method)
    async def in_task(self: Handler, _loop: object, *args: Any, **kwargs: Any) -> None:
        await method(self, *args, **kwargs)

    return dual(plain, in_task, detects=detects)


def _has_no_chat_form(_self: object, *_args: Any, **_kwargs: Any) -> None:
    """LangChain calls ``on_llm_start`` instead, as of any handler without this method."""
    raise NotImplementedError


def dual_overrides(cls: type, events: Collection[str]) -> None:
    """Make dual methods of what a user's class overrides.

    It gets the class attributes ``has_overrides`` and, with an ``async def`` among them,
    ``has_async_overrides``: then ``super()`` is to answer with coroutines.
    """
    own = dict(vars(cls))
    if "on_llm_start" in own and "on_chat_model_start" not in own:
        cls.on_chat_model_start = _has_no_chat_form  # type: ignore[attr-defined]
    for name in events:
        method = own.get(name)
        detects = name.endswith("_start")
        if inspect.iscoroutinefunction(method):
            cls.has_overrides = cls.has_async_overrides = True  # type: ignore[attr-defined]
            setattr(cls, name, _dual_of_coroutine(method, detects=detects))
        elif inspect.isfunction(method):
            cls.has_overrides = True  # type: ignore[attr-defined]
            setattr(cls, name, _dual_of_plain(method, detects=detects))
