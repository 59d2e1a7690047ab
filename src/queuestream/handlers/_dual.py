"""Methods with two bodies: for LangChain's synchronous runs, and for its asynchronous ones.

Asynchronous runs look at ``handler.on_llm_new_token`` *before* they call it: a coroutine
function is awaited; a plain one is called in place if the handler has ``run_inline``.
Synchronous runs call it, and run a coroutine that comes back in a new event loop in another
thread, swallowing its errors (``tests/facts`` pins each).  So what may wait is a `dual`
method: a coroutine function where an asyncio loop runs in the calling thread, a plain
function elsewhere.

Synchronous code on a loop's own thread (an ``async def`` node that calls ``llm.invoke``)
gets the coroutine function, too, and runs it on another loop.  That is how it is known.  It
*holds up* its loop.  What it calls from then on, which names its run, is the plain function;
for the other runs of that loop, which may go on between two steps of a synchronous generator,
nothing changes.

Users derive from handlers, override one of LangChain's methods and call ``super()``, and
need not know all this: what they write becomes a `dual` method as well (`dual_overrides`).
"""

from __future__ import annotations

import inspect
from contextvars import ContextVar
from functools import partial, wraps
from types import MethodType
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakKeyDictionary

from queuestream._wakeups import running_asyncio_loop

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Collection, Coroutine
    from uuid import UUID

    from typing_extensions import Self

    class Handler(Protocol):
        """What a dual method asks of its handler.

        Attributes:
            may_wait: Whether its dual methods are coroutine functions on a loop.
            has_overrides: Whether a user's class overrides some of them.
            has_held_up: Whether it has heard a run that is in `held_up`.
        """

        may_wait: bool
        has_overrides: bool
        has_held_up: bool

        def finish_in_thread(self, coroutine: Coroutine[Any, Any, Any]) -> None:
            """Run a coroutine of the user's to its end, from a thread."""
            ...


__all__ = ["dual", "dual_overrides", "held_up", "note_held_up"]

held_up: WeakKeyDictionary[UUID, tuple[asyncio.AbstractEventLoop, ...]] = WeakKeyDictionary()
"""Runs that must not wait, with the loops that wait for them; whoever heard them start.

A run's id lives as long as LangChain has a use for it.
"""


def note_held_up(
    handler: Handler,
    loop: asyncio.AbstractEventLoop | None,
    run_id: UUID | None,
    parent_run_id: UUID | None = None,
) -> None:
    """Take note of a run that holds up a loop, or that is part of one that does.

    Args:
        handler: Who has heard of it.
        loop: Where its callback was looked up, if that was on a loop.
        run_id: The run's id.
        parent_run_id: The run that it is part of.
    """
    if run_id is None:
        return
    loops = held_up.get(parent_run_id, ()) if parent_run_id is not None and held_up else ()
    if loop is not None and running_asyncio_loop() is not loop and loop not in loops:
        loops = *loops, loop
    if loops:
        handler.has_held_up = True
        held_up[run_id] = loops


class dual:  # noqa: N801 - used as a decorator is
    """A method with two bodies, chosen where it is looked up.

    The coroutine's first argument is the loop on which it was looked up.  On another loop
    it was called by synchronous code that holds up the first one.

    Args:
        plain: The body for threads.
        coroutine: The body for tasks.
    """

    def __init__(
        self, plain: Callable[..., None], coroutine: Callable[..., Coroutine[Any, Any, None]]
    ) -> None:
        self._plain = plain
        self._coroutine = coroutine
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
        if handler.has_held_up:
            return _UnlessHeldUp(self._coroutine, handler, loop, plain=self._plain)
        return partial(self._coroutine, handler, loop)


class _UnlessHeldUp(partial[Any]):
    """A coroutine function; but a call for a run that holds up the loop is done in place."""

    plain: Callable[..., None]

    def __new__(cls, *args: Any, plain: Callable[..., None]) -> Self:
        self = super().__new__(cls, *args)
        self.plain = plain
        return self

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        run_id = kwargs.get("run_id")
        if run_id is not None and self.args[1] in held_up.get(run_id, ()):
            return self.plain(self.args[0], *args, **kwargs)
        return super().__call__(*args, **kwargs)


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


def _dual_of_plain(method: Callable[..., object]) -> dual:
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
    return dual(method, in_task)  # type: ignore[arg-type]


def _dual_of_coroutine(method: Callable[..., Coroutine[Any, Any, None]]) -> dual:
    """A dual method of a user's ``async def``, which awaits ``super()``."""

    @wraps(method)
    def plain(self: Handler, *args: Any, **kwargs: Any) -> None:
        self.finish_in_thread(method(self, *args, **kwargs))

    @wraps(method)
    async def in_task(self: Handler, _loop: object, *args: Any, **kwargs: Any) -> None:
        await method(self, *args, **kwargs)

    return dual(plain, in_task)


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
        if inspect.iscoroutinefunction(method):
            cls.has_overrides = cls.has_async_overrides = True  # type: ignore[attr-defined]
            setattr(cls, name, _dual_of_coroutine(method))
        elif inspect.isfunction(method):
            cls.has_overrides = True  # type: ignore[attr-defined]
            setattr(cls, name, _dual_of_plain(method))
