"""`serve()`: any runnable as an OpenAI-compatible server, with a chat page.

``POST /v1/chat/completions`` and ``GET /v1/models`` speak OpenAI's protocol; ``/`` is the page,
which is a client of the first like any other.  A connection is an answer: whoever leaves stops
the run.  It needs the extra ``web``.

`inputs` makes a target's input of a conversation, `request` reads what is asked, `answers`
counts and stops what answers, `completions` joins the three, `kept` lets answers outlive their
connection, `guards` decides who may ask, `failures` says no, `page` has the page, `server` the
process.
"""

from __future__ import annotations

import importlib
import time
from typing import TYPE_CHECKING, Any, cast

try:
    importlib.import_module("starlette")  # before the modules that need it
except ModuleNotFoundError as _error:
    raise ModuleNotFoundError(
        "queuestream.web.serve needs starlette, which is not installed: "
        'pip install "queuestream[web]"',
        name=_error.name,
    ) from _error

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse
from starlette.routing import Route

from queuestream._checks import checked_seconds
from queuestream.token_stream import stream
from queuestream.web.serve.answers import Runs
from queuestream.web.serve.completions import ChatCompletions
from queuestream.web.serve.failures import HANDLERS, Refused
from queuestream.web.serve.guards import (
    BearerToken,
    KnownHosts,
    SafeHeaders,
    SameOrigin,
    checked_token,
)
from queuestream.web.serve.inputs import input_maker
from queuestream.web.serve.kept import KeptAnswers
from queuestream.web.serve.page import page_routes

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from langchain_core.messages import BaseMessage
    from langchain_core.runnables import Runnable
    from starlette.requests import Request

    from queuestream.web.serve.kept import Relay

__all__ = ["MAX_BODY", "MAX_STREAMS", "create_app", "serve"]

MAX_BODY = 4 * 2**20
"""The most bytes of a request, unless told otherwise."""
MAX_STREAMS = 2000
"""The most answers at a time, unless told otherwise."""


def create_app(
    target: Runnable[Any, Any] | Callable[..., Any],
    *,
    name: str | None = None,
    to_input: Callable[[list[BaseMessage]], Any] | str | None = None,
    token: str | None = None,
    allow_hosts: Collection[str] = (),
    allow_origins: Collection[str] = (),
    max_body: int = MAX_BODY,
    max_streams: int = MAX_STREAMS,
    ping: float | None = 15.0,
    send_timeout: float | None = 30.0,
    relay: Relay | None = None,
    **options: Any,
) -> Starlette:
    """Make the application: the API under ``/v1/``, and the chat page at ``/``.

    Each answer is a run of its own.  It ends early when its client leaves, or takes nothing
    for ``send_timeout`` seconds.  `serve` runs the application; any ASGI server can.

    Example::

        app = create_app(chain, name="rivers", to_input="topic=text")

    Args:
        target: As for `queuestream.stream`.
        name: What clients call the model; the target's own name if None.
        to_input: Makes the target's input of the list of messages: a function, or
            ``"messages"``, ``"text"`` (that of the last question), ``"KEY=text"``,
            ``"KEY=messages"``, or ``"KEY=text,KEY=messages"`` (the question, and what came
            before it).  If None, what the target tells of its input decides.
        token: Asked for as ``Authorization: Bearer`` under ``/v1/``; compared in constant time.
        allow_hosts: Names that this server has, besides addresses and ``localhost``; ``*`` for
            any.  Nothing is refused for its ``Host`` if there is a ``token``.
        allow_origins: Origins whose pages may ask, besides the server's own; ``*`` for any.
        max_body: The most bytes of a request.
        max_streams: The most answers at a time.
        ping: Seconds of silence after which a comment is sent in a stream; None for never.
        send_timeout: Seconds that a client may take nothing; None for no limit.
        relay: A `queuestream.relay.RedisRelay`: answers that are asked for under
            ``/v1/answers/{id}`` go on without their connection, and without this process they
            can be read. The page does so then. On asyncio only.
        options: What else `queuestream.stream` takes, ``token_timeout=30`` say.

    Returns:
        The application.  ``app.state.runs.close_all()`` stops all runs and begins no more.

    Raises:
        TypeError: If an argument is of the wrong type, is none that `queuestream.stream` takes,
            or is ``select`` or ``queue``.
        ValueError: If ``max_body`` or ``max_streams`` is less than 1, ``token`` is no word of
            ASCII, ``to_input`` cannot be read, or the target's input is none that a
            conversation can fill; and as of `queuestream.stream`.

    **Thread safety**: it belongs to the loop that serves it.
    """
    for what in ("select", "queue"):
        if what in options:
            raise TypeError(f"each answer selects and queues by itself: leave {what}= out")
    for what, value in (("max_body", max_body), ("max_streams", max_streams)):
        if not isinstance(cast("object", value), int) or isinstance(value, bool):
            raise TypeError(f"{what} must be an int, not {value!r}")
        if value < 1:
            raise ValueError(f"{what} must be 1 or more, not {value}")
    for what, words in (("allow_hosts", allow_hosts), ("allow_origins", allow_origins)):
        if isinstance(words, str):
            raise TypeError(f"{what} must be a list of strings, not {words!r}")
    for what, given in (("ping", ping), ("send_timeout", send_timeout)):
        if checked_seconds(what, given) == 0:
            raise ValueError(f"{what} must be more than 0 seconds, or None")
    if relay is not None and not callable(getattr(relay, "publish", None)):
        raise TypeError(f"relay must be a queuestream.relay.RedisRelay, or None; not {relay!r}")
    stream(target, None, select="event", **options).close()  # is all of it allowed?
    called = name or _name_of(target)
    runs = Runs(max_streams)
    response_options = {"ping": ping, "send_timeout": send_timeout}
    completions = ChatCompletions(
        target,
        name=called,
        to_input=input_maker(target, to_input),
        runs=runs,
        max_body=max_body,
        stream_options=options,
        response_options=response_options,
    )
    kept: list[Route] = []
    if relay is not None:
        answers = KeptAnswers(
            relay, completions, runs=runs, name=called, response_options=response_options
        )
        kept.append(Route("/v1/answers/{id}", answers, methods=["DELETE", "GET", "PUT"]))
    app = Starlette(
        routes=[
            Route("/v1/chat/completions", completions, methods=["POST"]),
            *kept,
            *_model_routes(called, keeps_answers=relay is not None),
            *page_routes(),
        ],
        middleware=_guards(checked_token(token), allow_hosts, allow_origins),
        exception_handlers=HANDLERS,
    )
    app.router.redirect_slashes = False
    app.state.runs = runs
    return app


def _name_of(target: Any) -> str:
    named = getattr(target, "name", None) or getattr(target, "__name__", None)
    return str(named or type(target).__name__)


def _guards(
    token: str | None, allow_hosts: Collection[str], allow_origins: Collection[str]
) -> list[Middleware]:
    """From the outermost to the innermost."""
    guards = [Middleware(SafeHeaders)]
    if token is None:
        guards.append(Middleware(KnownHosts, names=allow_hosts))
    if allow_origins:
        guards.append(
            Middleware(
                CORSMiddleware,
                allow_origins=list(allow_origins),
                allow_methods=["DELETE", "GET", "POST", "PUT"],
                allow_headers=["*"],
                expose_headers=["Retry-After"],
            )
        )
    guards.append(Middleware(SameOrigin, allowed=allow_origins))
    if token is not None:
        guards.append(Middleware(BearerToken, token=token))
    return guards


def _model_routes(name: str, *, keeps_answers: bool) -> list[Route]:
    model: dict[str, object] = {
        "id": name,
        "object": "model",
        "created": int(time.time()),
        "owned_by": "queuestream",
    }
    if keeps_answers:
        model["keeps_answers"] = True  # for the page

    async def models(request: Request) -> JSONResponse:  # noqa: ARG001 - Starlette's signature
        return JSONResponse({"object": "list", "data": [model]})

    async def one_model(request: Request) -> JSONResponse:
        asked = request.path_params["name"]
        if asked != name:
            raise Refused(
                404,
                f"There is no model {asked[:100]!r}; this server has {name!r}.",
                param="model",
                code="model_not_found",
            )
        return JSONResponse(model)

    return [Route("/v1/models", models), Route("/v1/models/{name:path}", one_model)]


def serve(
    target: Runnable[Any, Any] | Callable[..., Any],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    on_ready: Callable[[str], object] | None = None,
    allow_hosts: Collection[str] = (),
    **options: Any,
) -> None:
    """Serve a target until SIGINT (Ctrl-C) or SIGTERM.

    Then every run is stopped, every client that streams is told, and the call returns, within
    about six seconds whatever clients and models do.

    Args:
        target: As for `queuestream.stream`.
        host: The address to listen on, or a name of it.
        port: The port; 0 for one that is free.
        on_ready: Called with the server's URL when it accepts connections.
        allow_hosts: As of `create_app`; ``host`` is allowed as well.
        options: What else `create_app` takes.

    Raises:
        OSError: If the address cannot be listened on.
        TypeError: As of `create_app`.
        ValueError: As of `create_app`.

    **Thread safety**: signals are heard in the main thread alone.
    """
    from queuestream.web.serve.server import listen, run_server  # noqa: PLC0415 - needs uvicorn

    app = create_app(target, allow_hosts=[*allow_hosts, host], **options)
    sockets = listen(host, port)
    shown = f"[{host}]" if ":" in host else host
    url = f"http://{shown}:{sockets[0].getsockname()[1]}"

    def ready() -> None:
        if on_ready is not None:
            on_ready(url)

    run_server(app, sockets, on_ready=ready, on_stop=app.state.runs.close_all)
