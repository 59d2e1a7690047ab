"""`streamlit_stream`: what ``st.write_stream`` iterates, and stops when the script does.

Streamlit stops a script by raising an exception in its thread, at the next ``st`` call.  While
the model is silent there is no such call, and the iterator is never closed.  But whatever asks
a script to stop (a rerun, the stop button, the end of the session) asks its `ScriptRequests`.
So the methods of that object are put between: the request is noted as ever, then the streams
of that script are closed, the thread that waits for a token wakes, and an ``st`` call is made.
"""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Generator
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

from langchain_core.runnables import Runnable

from queuestream.errors import StreamClosedError
from queuestream.ui._options import open_stream, require_extra

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from langchain_core.runnables import RunnableConfig

    from queuestream.events import TokenEvent
    from queuestream.token_stream import TokenStream

__all__ = ["StreamlitStream", "streamlit_stream"]

_CAN_RUN_IN_BACKGROUND = sys.version_info >= (3, 11)
_WATCH = "_queuestream_watch"
"""Where a `ScriptRequests` keeps our `_Watch`."""


def streamlit_stream(
    target: Runnable[Any, Any] | Callable[..., Any],
    input: Any,  # noqa: A002 - LangChain's name for it
    config: RunnableConfig | None = None,
    *,
    restart: str = "\n\n---\n\n",
    **options: Any,
) -> StreamlitStream:
    """Stream a run for ``st.write_stream``; the run stops when the script does.

    Nothing starts before the first token is asked for.  The run is stopped when the script is
    run again, stopped or left by an exception, and when the session ends (Streamlit says so
    when it gives up on a browser that has left); at once, also while the model is silent.  No
    stream outlives the run of the script that began it.

    Example::

        answer = streamlit_stream(model, question)
        st.write_stream(answer)
        messages.append(("ai", answer.text))

    Args:
        target: As for `queuestream.stream`.
        input: The target's input.
        config: Its ``RunnableConfig``.
        restart: What is written when a failed attempt is made anew: ``st.write_stream`` cannot
            take back what it has written.  `StreamlitStream.text` is without it, and without
            the failed attempt.
        options: What else `queuestream.stream` takes.  Unless they are given, ``overflow`` is
            ``"merge"``, and ``run_in`` is ``"background"`` for a ``Runnable``, since a model in
            a thread cannot be stopped before its next token (from Python 3.11 on; Python 3.10
            would lose callbacks).

    Returns:
        A generator of texts.

    Raises:
        ModuleNotFoundError: If Streamlit is not installed.
        TypeError: If an argument is none that `queuestream.stream` takes, or is ``select``.
        ValueError: As of `queuestream.stream`.

    **Cancellation**: Streamlit's own exceptions for a stop and a rerun pass through.

    **Thread safety**: iterate it in the script's thread.  The run is in another one, where ``st``
    calls have no effect.
    """
    require_extra("streamlit", "streamlit", "streamlit_stream")
    if isinstance(target, Runnable) and _CAN_RUN_IN_BACKGROUND:
        options = {"run_in": "background", **options}  # a silent thread cannot be stopped
    if not isinstance(restart, str):
        raise TypeError(f"restart must be a text to write, not {restart!r}")
    return StreamlitStream(open_stream("streamlit_stream", target, input, config, options), restart)


class StreamlitStream(Generator[str, None, None]):
    """A generator of the texts of one run; made by `streamlit_stream`.

    Outside of Streamlit's scripts it is a plain generator.
    """

    def __init__(self, tokens: TokenStream[TokenEvent], restart: str) -> None:
        self._tokens = tokens
        self._restart = restart
        self._is_watched = False
        self._is_closed = False

    @property
    def stream(self) -> TokenStream[TokenEvent]:
        """The stream behind it: ``result``, ``usage``, ``statistics``."""
        return self._tokens

    @property
    def text(self) -> str:
        """The text delivered so far, of the last attempt."""
        return self._tokens.text

    def __next__(self) -> str:
        """Return the next text; wait for it.

        Raises:
            StopIteration: If the run has ended, or `close` was called.
            StreamClosedError: If the stream was closed by other means, or its script has ended.
            BaseException: What the run raised; and Streamlit's own, if the script is to stop.
        """
        if not self._is_watched:
            self._is_watched = True
            _watch(self._tokens)
        try:
            for event in self._tokens:
                if event.kind == "text":
                    return event.text
                if event.kind == "restart":
                    return self._restart
        except StreamClosedError:
            if not self._is_closed:
                _let_streamlit_stop()
                raise
        raise StopIteration

    def send(self, value: None, /) -> str:  # noqa: ARG002 - the signature of a generator
        """Return the next text, as `next` does."""
        return next(self)

    def throw(
        self,
        typ: Any,
        val: BaseException | object = None,
        tb: TracebackType | None = None,
        /,
    ) -> str:
        """Stop the run and raise the exception."""
        self.close()
        error: Any = typ if val is None else val
        if isinstance(error, type):
            error = error()
        raise error if tb is None else error.with_traceback(tb)

    def close(self) -> None:
        """Stop the run.  Idempotent, never waits, from any thread."""
        self._is_closed = True
        self._tokens.close()


class _Watch:
    """The streams of one script, and who hears that it is to stop.

    It refers to the streams weakly: one that is dropped stops by itself.
    """

    def __init__(self, requests: Any) -> None:
        self._lock = threading.Lock()
        self._streams: weakref.WeakSet[TokenStream[Any]] = weakref.WeakSet()
        # A weak reference here, too, or the object would keep itself.
        asks = weakref.ref(requests)
        for name in ("request_stop", "request_rerun", "request_rerun_batch"):
            self._stand_before(requests, name, partial(self._close_if_asked, asks))
        # Streamlit asks this when a script has ended, in whatever way.
        self._stand_before(requests, "on_scriptrunner_ready", self._close_all)

    @staticmethod
    def _stand_before(requests: Any, name: str, then: Callable[[], None]) -> None:
        method = getattr(type(requests), name, None)
        if method is None:  # a release of Streamlit that lacks it
            return
        me = weakref.ref(requests)

        def asked(*arguments: Any, **keywords: Any) -> Any:
            try:
                return method(me(), *arguments, **keywords)
            finally:
                then()

        setattr(requests, name, asked)

    def add(self, tokens: TokenStream[Any], requests: Any) -> None:
        with self._lock:
            self._streams.add(tokens)
        if _is_asked_to_stop(requests):  # before we stood there
            tokens.close()

    def _close_if_asked(self, asks: weakref.ref[Any]) -> None:
        if _is_asked_to_stop(asks()):
            self._close_all()

    def _close_all(self) -> None:
        with self._lock:
            streams = list(self._streams)
        for tokens in streams:
            tokens.close()


def _watch(tokens: TokenStream[Any]) -> None:
    """Have a stream closed when the script in this thread is asked to stop."""
    from streamlit.runtime.scriptrunner import get_script_run_ctx  # noqa: PLC0415 - an extra

    context = get_script_run_ctx(suppress_warning=True)
    requests = None if context is None else context.script_requests
    if requests is None:  # no script of Streamlit's
        return
    watch = vars(requests).get(_WATCH)
    if watch is None:
        watch = _Watch(requests)
        setattr(requests, _WATCH, watch)
    watch.add(tokens, requests)


def _is_asked_to_stop(requests: Any) -> bool:
    """Whether the next ``st`` call in the script's thread will raise.

    That of a rerun of mere fragments will not, it waits for the script's end.
    """
    state = getattr(getattr(requests, "_state", None), "name", None)
    if state != "RERUN":
        return state == "STOP"
    data = getattr(requests, "_rerun_data", None)
    fragments = getattr(data, "fragment_id_queue", None)
    return not fragments or bool(getattr(data, "is_fragment_scoped_rerun", False))


def _let_streamlit_stop() -> None:
    """Make an ``st`` call: if the script is to stop, Streamlit raises in it."""
    from streamlit.runtime.scriptrunner import get_script_run_ctx  # noqa: PLC0415 - an extra

    context = get_script_run_ctx(suppress_warning=True)
    if context is not None and _is_asked_to_stop(context.script_requests):
        st: Any = import_module("streamlit")  # a type checker would take this file for it
        st.empty()
