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
need not know all this: what they write becomes a `dual` method as well (`dual_overrides`),
and while it goes on, what it calls of its bases fits the way in which it was called::

    called in a thread, a def            the plain function
    called in a thread, an async def     the plain function, in a thread, to be awaited: the
                                         method itself was handed to a loop
    looked up on a loop, a def           the coroutine function, awaited when the method returns
    looked up on a loop, an async def    the coroutine function
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from contextvars import ContextVar
from functools import partial, wraps
from types import MethodType
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakKeyDictionary

from queuestream._background import in_daemon_thread
from queuestream._turns import running_asyncio_loop

if TYPE_CHECKING:
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

        def finish_in_thread(
            self, coroutine: Coroutine[Any, Any, Any], run_id: UUID | None = None
        ) -> None:
            """Run a coroutine of the user's to its end, from a thread."""
            ...

        def note_token(self, run_id: UUID | None) -> None:
            """Take note of a run that streams."""
            ...


__all__ = ["dual", "dual_overrides", "heard_by", "held_up", "note_held_up"]

held_up: WeakKeyDictionary[UUID, tuple[asyncio.AbstractEventLoop, ...]] = WeakKeyDictionary()
"""Runs that must not wait, with the loops that wait for them; whoever heard them start.

A run's id lives as long as LangChain has a use for it.
"""

heard_by: WeakKeyDictionary[UUID, tuple[str, ...]] = WeakKeyDictionary()
"""Runs whose tokens go into queues, with the names of those."""


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
        name: The method's name, if it is not made in a class.
        in_place: Whether the plain body is also for tasks, unless ``super()`` is to be awaited:
            it never waits, and may be called by the collector, in the middle of whatever goes on.
        is_override: Whether a user has written it.
    """

    def __init__(
        self,
        plain: Callable[..., object],
        coroutine: Callable[..., Coroutine[Any, Any, None]],
        name: str = "",
        *,
        in_place: bool = False,
        is_override: bool = False,
    ) -> None:
        self.plain = plain
        self.coroutine = coroutine
        self.name = name
        self.in_place = in_place
        self.is_override = is_override
        self.__doc__ = plain.__doc__

        @wraps(plain)
        def of_class(handler: Handler, /, *args: Any, **kwargs: Any) -> Any:
            return self.__get__(handler)(*args, **kwargs)

        self._of_class = of_class

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, handler: Handler | None, owner: type | None = None) -> Any:
        if handler is None:  # Base.method(self, ...) is to be as good as super().method(...)
            return self._of_class
        if handler.has_overrides:
            override = _override.get()
            if override is not None and override.is_of(handler):
                return partial(override.call_base, self)
        loop = running_asyncio_loop()
        if loop is None or not handler.may_wait or self.in_place:
            return MethodType(self.plain, handler)
        if handler.has_held_up:
            return _UnlessHeldUp(self.coroutine, handler, loop, plain=self.plain)
        return partial(self.coroutine, handler, loop)


class _UnlessHeldUp(partial[Any]):
    """A coroutine function; but a call for a run that holds up the loop is done in place."""

    plain: Callable[..., object]

    def __new__(cls, *args: Any, plain: Callable[..., object]) -> Self:
        self = super().__new__(cls, *args)
        self.plain = plain
        return self

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        run_id = kwargs.get("run_id")
        if run_id is not None and self.args[1] in held_up.get(run_id, ()):
            return self.plain(self.args[0], *args, **kwargs)
        return super().__call__(*args, **kwargs)


class _Override:
    """A call of a user's method, while it goes on: what it calls of its bases fits it.

    A block in which it is made known to the dual methods of its handler; to them alone, and
    only where the method itself calls them: in its task, its thread.

    Args:
        name: The method's name.
        handler: Its ``self``.
        call: How a dual method is called here.
        given: What the method was given.
    """

    __slots__ = ("_call", "_given", "_handler", "_name", "_place", "_token")

    def __init__(
        self,
        name: str,
        handler: Handler,
        call: Callable[..., Any],
        given: tuple[tuple[Any, ...], dict[str, Any]],
    ) -> None:
        self._name = name
        self._handler = handler
        self._call = call
        self._given = given

    def __enter__(self) -> None:
        self._place: object = _place()
        self._token = _override.set(self)

    def __exit__(self, *_: object) -> None:
        self._place = None  # a context that was copied meanwhile knows it still
        try:
            _override.reset(self._token)
        except ValueError:  # dropped in the middle, and closed by the collector in another context
            pass

    def is_of(self, handler: Handler) -> bool:
        return self._handler is handler and self._place == _place()

    def call_base(self, method: dual, *args: Any, **kwargs: Any) -> Any:
        if method.name == self._name:
            self._complete(args, kwargs)
        return self._call(method, *args, **kwargs)

    def _complete(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """What ``super()`` is given is the same run's; and a token that was changed counts."""
        given_args, given = self._given
        if "run_id" in given:
            kwargs.setdefault("run_id", given["run_id"])
        chunk = kwargs.get("chunk")
        if chunk is not None and chunk is given.get("chunk"):
            token = args[0] if args else kwargs.get("token")
            if token != (given_args[0] if given_args else given.get("token")):
                del kwargs["chunk"]


_override: ContextVar[_Override | None] = ContextVar("queuestream override", default=None)


def _place() -> object:
    """The task that calls, or the thread."""
    task = None if running_asyncio_loop() is None else asyncio.current_task()
    return threading.get_ident() if task is None else task


def _dual_of_plain(name: str, method: Callable[..., object], *, in_place: bool) -> dual:
    """A dual method of a user's ``def``, which calls ``super()`` as if there were no loops."""

    @wraps(method)
    def plain(self: Handler, *args: Any, **kwargs: Any) -> object:
        def call(base: dual, *args: Any, **kwargs: Any) -> None:
            base.plain(self, *args, **kwargs)

        try:
            with _Override(name, self, call, (args, kwargs)):
                return method(self, *args, **kwargs)
        finally:
            _note_token(self, name, kwargs)

    @wraps(method)
    async def in_task(
        self: Handler, loop: asyncio.AbstractEventLoop, *args: Any, **kwargs: Any
    ) -> None:
        later: list[Callable[[], Coroutine[Any, Any, None]]] = []

        def call(base: dual, *args: Any, **kwargs: Any) -> None:
            later.append(partial(base.coroutine, self, loop, *args, **kwargs))

        note_held_up(self, loop, kwargs.get("run_id"), kwargs.get("parent_run_id"))
        outcome: object = None
        try:
            with _Override(name, self, call, (args, kwargs)):
                outcome = method(self, *args, **kwargs)
        finally:  # as in a thread, where it is done before whatever the method raises
            for base in later:
                await base()
            _note_token(self, name, kwargs)
        if inspect.isawaitable(outcome):
            await outcome

    # What it returns, LangChain drops.
    return dual(plain, in_task, name, in_place=in_place, is_override=True)


def _dual_of_coroutine(name: str, method: Callable[..., Coroutine[Any, Any, None]]) -> dual:
    """A dual method of a user's ``async def``, which awaits ``super()``."""

    async def handed_over(self: Handler, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        def call(base: dual, *args: Any, **kwargs: Any) -> Coroutine[Any, Any, object]:
            return in_daemon_thread(partial(base.plain, self, *args, **kwargs))

        with _Override(name, self, call, (args, kwargs)):
            await method(self, *args, **kwargs)

    @wraps(method)
    def plain(self: Handler, *args: Any, **kwargs: Any) -> None:
        try:
            self.finish_in_thread(handed_over(self, args, kwargs), kwargs.get("run_id"))
        finally:
            _note_token(self, name, kwargs)

    @wraps(method)
    async def in_task(
        self: Handler, loop: asyncio.AbstractEventLoop, *args: Any, **kwargs: Any
    ) -> None:
        def call(base: dual, *args: Any, **kwargs: Any) -> Coroutine[Any, Any, None]:
            return base.coroutine(self, loop, *args, **kwargs)

        note_held_up(self, loop, kwargs.get("run_id"), kwargs.get("parent_run_id"))
        try:
            with _Override(name, self, call, (args, kwargs)):
                await method(self, *args, **kwargs)
        finally:
            _note_token(self, name, kwargs)

    return dual(plain, in_task, name, is_override=True)


def _note_token(handler: Handler, name: str, details: dict[str, Any]) -> None:
    if name == "on_llm_new_token":
        handler.note_token(details.get("run_id"))


def _has_no_chat_form(_self: object, *_args: Any, **_kwargs: Any) -> None:
    """LangChain calls ``on_llm_start`` instead, as of any handler without this method."""
    raise NotImplementedError


def dual_overrides(cls: Any, events: Collection[str]) -> None:
    """Make dual methods of what a user's class, or one that it is mixed with, overrides.

    It gets the class attributes ``has_overrides`` and, with an ``async def`` among them,
    ``has_async_overrides``: then ``super()`` is to answer with coroutines.
    """
    for name in events:
        method = inspect.getattr_static(cls, name)
        if method is _has_no_chat_form:
            continue
        if inspect.iscoroutinefunction(method):
            cls.has_overrides = cls.has_async_overrides = True
            setattr(cls, name, _dual_of_coroutine(name, method))
        elif inspect.isfunction(method):
            cls.has_overrides = True
            base = next(vars(base)[name] for base in cls.__mro__ if _has_dual(base, name))
            setattr(cls, name, _dual_of_plain(name, method, in_place=base.in_place))
    if _is_ours(cls, "on_chat_model_start") and not _is_ours(cls, "on_llm_start"):
        cls.on_chat_model_start = _has_no_chat_form


def _has_dual(cls: type, name: str) -> bool:
    return isinstance(vars(cls).get(name), dual)


def _is_ours(cls: type, name: str) -> bool:
    method = inspect.getattr_static(cls, name)
    return isinstance(method, dual) and not method.is_override
