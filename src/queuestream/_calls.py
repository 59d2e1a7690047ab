"""What a run does: a target with its arguments, made ready to be called in its place.

Whatever is wrong with the arguments of ``stream()`` is said here, at the call.
"""

from __future__ import annotations

import contextvars
import difflib
import inspect
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from langchain_core.callbacks import BaseCallbackManager, CallbackManager
from langchain_core.runnables import Runnable, RunnableLambda
from langchain_core.runnables.config import ensure_config, var_child_runnable_config

from queuestream._waits import join_run

if TYPE_CHECKING:
    from langchain_core.runnables import RunnableConfig

    from queuestream._token_queue import TokenQueue
    from queuestream.handlers.feed import FeedHandler

__all__ = ["Call", "check_arguments", "is_async_only", "make_call"]


@dataclass(slots=True, eq=False)
class Call:
    """What a run does: the target with its arguments, the context, and where tokens go.

    Attributes:
        plain: Does it in a thread; None if the target is asynchronous only.
        coroutine: Does it in a task; None if the target is synchronous only.
        context: The context variables that it sees.
        tokens: The queue between it and its consumer.
        feed: The callback handler that fills the queue.
    """

    plain: Callable[[], object] | None
    coroutine: Callable[[], Awaitable[object]] | None
    context: contextvars.Context
    tokens: TokenQueue[Any]
    feed: FeedHandler


def is_async_only(target: object) -> bool:
    """Whether a target is known to have no synchronous form."""
    if isinstance(target, RunnableLambda):
        return not hasattr(cast("object", target), "func")
    if isinstance(target, Runnable):
        return False
    return inspect.iscoroutinefunction(target) or inspect.iscoroutinefunction(
        getattr(target, "__call__", None)  # noqa: B004 - an object whose call is async
    )


def check_arguments(target: object, config: object, kwargs: Mapping[str, Any]) -> None:
    """See whether a run can be made of them.

    Raises:
        TypeError: As ``stream()`` says.
    """
    _check_keywords(kwargs, _checked_target(target))
    if config is None:
        return
    if not isinstance(config, Mapping):
        raise TypeError(f"config must be a RunnableConfig (a dict) or None, not {config!r}")
    callbacks: object = cast("Mapping[str, object]", config).get("callbacks")
    if callbacks is not None and not isinstance(callbacks, (list, BaseCallbackManager)):
        raise TypeError(
            "config['callbacks'] must be a list of handlers or a callback manager, not "
            f"{callbacks!r}"
        )


def _checked_target(target: object) -> Mapping[str, inspect.Parameter]:
    """The parameters of a function that was given as target; none for a Runnable."""
    if isinstance(target, Runnable):
        return {}
    if isinstance(target, type) and issubclass(target, Runnable):
        raise TypeError(f"target must be an instance of {target.__name__}, not the class")
    if not callable(target):
        raise TypeError(
            "target must be a Runnable, or a function that takes the input and has a callbacks "
            f"parameter; got {target!r}"
        )
    if inspect.isasyncgenfunction(target) or inspect.isgeneratorfunction(target):
        raise TypeError(
            f"target {target!r} is a generator function, and does nothing when it is called: make "
            "it a function that returns its result, or wrap it in a RunnableGenerator"
        )
    try:
        parameters = inspect.signature(target).parameters
    except ValueError as error:
        raise TypeError(f"target {target!r} does not tell its parameters") from error
    by_keyword = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    callbacks = parameters.get("callbacks")
    if not (callbacks is not None and callbacks.kind in by_keyword) and not any(
        parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()
    ):
        raise TypeError(
            f"target {target!r} has no callbacks parameter, so its tokens cannot be heard: add "
            "one and pass it to the model, as in model.invoke(query, {'callbacks': callbacks})"
        )
    return parameters


_OURS = (
    "target",
    "input",
    "config",
    "select",
    "maxsize",
    "overflow",
    "run_in",
    "first_token_timeout",
    "token_timeout",
    "include_names",
    "include_tags",
    "include_nodes",
    "exclude_names",
    "exclude_tags",
    "exclude_nodes",
    "queue",
)
"""The parameters of ``stream()``."""


def _check_keywords(kwargs: Mapping[str, Any], parameters: Mapping[str, inspect.Parameter]) -> None:
    if "callbacks" in kwargs:
        raise TypeError(
            "stream() adds a callback of its own; write stream(target, input, "
            "{'callbacks': [...]}) for yours"
        )
    for name in kwargs:
        if name in parameters:
            continue
        plain = name.lower().replace("_", "")
        near = [own for own in _OURS if own.replace("_", "") == plain]
        # One wrong letter in seven: run_id, a word of LangChain's, is not run_in.
        near += difflib.get_close_matches(name, _OURS, 1, 0.85)
        if near:
            raise TypeError(f"stream() has no parameter {name!r}; did you mean {near[0]!r}?")


def _merged_config(config: RunnableConfig | None) -> RunnableConfig:
    """``config`` over what the caller inherits, if the caller is itself in a run.

    LangChain lets explicit callbacks replace the inherited ones; here they join them, so
    that an outer stream and the caller's tracers hear the run.
    """
    merged = ensure_config(config)
    given = (config or {}).get("callbacks")
    inherited = (var_child_runnable_config.get() or {}).get("callbacks")
    if given is not None and inherited is not None:
        if isinstance(given, list):
            merged["callbacks"] = _joined(inherited, given)
        else:  # it says itself whose child the run is
            handlers = inherited if isinstance(inherited, list) else inherited.inheritable_handlers
            merged["callbacks"] = _joined(given, handlers)
    return merged


def _joined(callbacks: Any, more: list[Any]) -> Any:
    """A new list or manager, with ``more`` at its end."""
    if isinstance(callbacks, BaseCallbackManager):
        manager = callbacks.copy()
        for handler in more:
            manager.add_handler(handler, inherit=True)
        return manager
    return [*(callbacks or ()), *more]


def _inherited_part(config: RunnableConfig) -> RunnableConfig:
    """``config`` without what is one run's, and not that of each run within it.

    With a callback manager: a ``RunnableBinding`` adds the callbacks that it is given to the
    inherited ones, and a manager takes none twice.
    """
    own = ("run_id", "run_name")
    part = {key: value for key, value in config.items() if key not in own}
    if isinstance(part.get("callbacks"), list):
        handlers = cast("list[Any]", part["callbacks"])
        part["callbacks"] = CallbackManager(list(handlers), list(handlers))
    return cast("RunnableConfig", part)


def make_call(
    target: Any,
    input: object,  # noqa: A002 - LangChain's name for it
    config: RunnableConfig | None,
    kwargs: dict[str, Any],
    *,
    feed: FeedHandler,
) -> Call:
    """Join a target to its arguments, with ``feed`` as the last callback.

    The caller's context variables are copied here.
    """
    context = contextvars.copy_context()
    if "sniffio" in sys.modules:
        # A context from a trio task says that trio runs wherever it is used.
        context.run(sys.modules["sniffio"].current_async_library_cvar.set, None)
    context.run(join_run, feed.tokens.name, feed.tokens)
    merged = _merged_config(config)
    inherited = merged.get("callbacks")
    feed.others = (
        inherited.handlers if isinstance(inherited, BaseCallbackManager) else inherited or []
    )
    merged["callbacks"] = _joined(inherited, [feed])
    plain: Callable[[], Any] | None
    coroutine: Callable[[], Any] | None
    if isinstance(cast("object", target), Runnable):
        plain = partial(target.invoke, input, merged, **kwargs)
        coroutine = partial(target.ainvoke, input, merged, **kwargs)
        if sys.version_info < (3, 11):
            # There, LangGraph hands nothing to the nodes of an ainvoke but by the context.
            context.run(var_child_runnable_config.set, _inherited_part(merged))
    else:
        work = partial(target, input, callbacks=merged["callbacks"], **kwargs)
        plain, coroutine = (None, work) if is_async_only(target) else (work, None)
        # The rest of the config (tags, metadata) reaches the function's runs by inheritance.
        rest = cast("RunnableConfig", {**merged, "callbacks": inherited})
        context.run(var_child_runnable_config.set, _inherited_part(rest))
    return Call(plain, coroutine, context, feed.tokens, feed)
