"""``queuestream serve``: a target as an OpenAI-compatible server, with a chat page."""

from __future__ import annotations

import argparse
import gc
import importlib
import logging
import os
import sys
from typing import Any

from queuestream.cli._ends import DONE, UsageError, leave
from queuestream.cli._targets import load_model, load_target
from queuestream.demo import DemoChatModel
from queuestream.errors import RelayError

__all__ = ["add_serve"]

_TOKEN_VARIABLE = "QUEUESTREAM_TOKEN"  # noqa: S105 - where it is, not what
_LOOPBACK = ("127.", "localhost", "::1")
_MOST_FILES = 65_536
_LEASE = 5.0  # seconds until a server that was killed counts as dead


def add_serve(commands: Any) -> None:
    """Add ``serve`` to the commands."""
    serve = commands.add_parser(
        "serve",
        help="serve a runnable of yours, or a model, as an OpenAI-compatible API with a chat page",
        description="Serve a LangChain runnable by its import path, or a chat model by its name, "
        "or else the demo model: POST /v1/chat/completions and GET /v1/models as OpenAI has them, "
        "and a chat page at /. Ctrl-C stops it, and every run.",
    )
    serve.add_argument(
        "target",
        nargs="?",
        metavar="module:attribute",
        help="what to serve, found from the current directory as `python -m` would; the demo "
        "model if it is left out",
    )
    serve.add_argument(
        "--model",
        metavar="PROVIDER:NAME",
        help="a chat model that LangChain's init_chat_model knows, openai:gpt-5 for example",
    )
    serve.add_argument("--host", default="127.0.0.1", help="where to listen (default: %(default)s)")
    serve.add_argument(
        "--port", type=_port, default=8000, help="default: %(default)s; 0 for one that is free"
    )
    serve.add_argument(
        "--name", help="what clients call the model (default: as it is given here, or 'demo')"
    )
    serve.add_argument(
        "--input",
        metavar="HOW",
        help="how the input is made of a conversation: messages, text (that of the last "
        "question), KEY=text, KEY=messages, or KEY=text,KEY=messages (the question, and what came "
        "before it); what the target tells of its input decides, if this is left out",
    )
    serve.add_argument(
        "--run-in",
        choices=["auto", "thread", "task", "background"],
        default="auto",
        help="where the runs happen (default: %(default)s, as tasks of the server's own loop)",
    )
    serve.add_argument(
        "--redis",
        metavar="URL",
        help="keep answers in this Redis or Valkey, redis://localhost:6379 for example, so that "
        "the page goes on after a reload, and after this process has gone; all processes with "
        "the same --name share them",
    )
    _add_guards(serve)
    serve.add_argument(
        "--verbose", action="store_true", help="log each answer, too, and not only what went wrong"
    )
    serve.set_defaults(command=_serve)


def _add_guards(serve: argparse.ArgumentParser) -> None:
    serve.add_argument(
        "--token",
        "--api-key",
        metavar="TOKEN",
        help="ask for this bearer token; others on this machine can read it here, so prefer the "
        f"environment variable {_TOKEN_VARIABLE}",
    )
    serve.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a name that this server has, behind a proxy for example; '*' for any; "
        "may be repeated",
    )
    serve.add_argument(
        "--allow-origin",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="let pages of this origin ask (CORS), https://example.org for example; '*' for any; "
        "may be repeated",
    )
    serve.add_argument(
        "--max-streams",
        type=_positive,
        metavar="N",
        help="the most answers at a time (default: 2000)",
    )
    serve.add_argument(
        "--max-body",
        type=_positive,
        metavar="BYTES",
        help="the most bytes of a request (default: 4 MiB)",
    )
    serve.add_argument(
        "--first-token-timeout",
        type=_seconds,
        metavar="S",
        help="seconds that a client may wait for the first token (default: no limit)",
    )
    serve.add_argument(
        "--token-timeout",
        type=_seconds,
        metavar="S",
        help="the same for each token after the first",
    )


def _port(text: str) -> int:
    port = int(text)
    if not 0 <= port <= 65_535:  # noqa: PLR2004 - TCP's
        raise argparse.ArgumentTypeError(f"{text} is no port from 0 to 65535")
    return port


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return number


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 <= seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number of seconds from 0 up")
    return seconds


def _serve(arguments: argparse.Namespace) -> int:
    try:
        importlib.import_module("uvicorn")
        from queuestream.web.serve import serve  # noqa: PLC0415 - an extra
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in {"starlette", "uvicorn"}:
            raise
        raise UsageError(
            f"serve needs the package {missing}, which is not installed: "
            'pip install "queuestream[web]"'
        ) from error
    target, name = _choose(arguments)
    token = os.environ.get(_TOKEN_VARIABLE) if arguments.token is None else arguments.token
    given = {
        option: value
        for option in ("max_streams", "max_body", "first_token_timeout", "token_timeout")
        if (value := getattr(arguments, option)) is not None
    }
    if arguments.redis is not None:
        given["relay"] = _relay(arguments.redis)
    is_ready = False

    def ready(url: str) -> None:
        nonlocal is_ready
        is_ready = True
        logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
        logging.getLogger("queuestream").setLevel("INFO" if arguments.verbose else "WARNING")
        _allow_many_files()
        _collect_seldom()
        _say_where(url, name)
        if token is None and not arguments.host.startswith(_LOOPBACK):
            logging.getLogger("queuestream").warning(
                "whoever reaches this address can use the model: %s asks for a token",
                _TOKEN_VARIABLE,
            )

    try:
        serve(
            target,
            name=arguments.name or name,
            host=arguments.host,
            port=arguments.port,
            to_input=arguments.input,
            run_in=arguments.run_in,
            token=token,
            allow_hosts=arguments.allow_host,
            allow_origins=arguments.allow_origin,
            on_ready=ready,
            **given,
        )
    except (TypeError, ValueError, OSError) as error:
        if is_ready:
            raise
        where = f"cannot listen on {arguments.host}, port {arguments.port}: "
        raise UsageError(f"{where if isinstance(error, OSError) else ''}{error}") from error
    return leave(DONE)


def _relay(url: str) -> Any:
    """A relay over a server that answers now."""
    try:
        from queuestream.relay import RedisRelay  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise UsageError(f"--redis: {error}") from error
    try:
        with RedisRelay.from_url(url, outage=0.0) as probe:
            probe.status_sync("serve")
        return RedisRelay.from_url(url, lease=_LEASE)
    except (TypeError, ValueError, RelayError) as error:
        raise UsageError(f"--redis: {error}") from error


def _choose(arguments: argparse.Namespace) -> tuple[Any, str]:
    if arguments.model is not None:
        if arguments.target is not None:
            raise UsageError(f"either --model or {arguments.target} can be served, and not both")
        return load_model(arguments.model), arguments.model
    if arguments.target is not None:
        return load_target(arguments.target), arguments.target
    return DemoChatModel(), "demo"


def _say_where(url: str, name: str) -> None:
    sys.stdout.write(
        f"queuestream serves {name}\n  chat page: {url}/\n  API:       {url}/v1\nCtrl-C stops it.\n"
    )
    sys.stdout.flush()


def _allow_many_files() -> None:
    """Each client is an open file, and many systems allow a program a thousand."""
    try:
        import resource  # noqa: PLC0415 - POSIX
    except ImportError:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _collect_seldom() -> None:
    """A thousand open runs are many objects, and the collector looks at them again and again.

    With this it takes a third less CPU to serve five hundred clients (19 s before, 12 s after),
    and no more memory.
    """
    gc.freeze()  # what was imported stays
    gc.set_threshold(10_000, 20, 10)
