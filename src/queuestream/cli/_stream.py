"""``queuestream demo`` and ``queuestream run``: a target, through ``for`` and ``async for``.

A consumer here does no more than any program of a user's would: it prints each token as it
comes and leaves the ``with`` block when it has had enough, be it the end, Ctrl-C, or a reader
of its output that went away.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from queuestream._ctrl_c import closed_by_ctrl_c
from queuestream.cli._ends import DONE, RUN_FAILED, UsageError, complain, say
from queuestream.cli._targets import load_model, load_target, read_input
from queuestream.demo import DemoChatModel
from queuestream.errors import PlacementError
from queuestream.token_stream import stream

if TYPE_CHECKING:
    from collections.abc import Coroutine, Generator

    from queuestream.token_stream import TokenStream

__all__ = ["OutputClosedError", "add_demo", "add_run"]


class OutputClosedError(Exception):
    """Nobody reads the output any more."""


# ------------------------------------------------------------------------- what to stream


def add_demo(commands: Any) -> None:
    """Add ``demo`` to the commands."""
    demo = commands.add_parser(
        "demo",
        parents=[_common()],
        help="stream a passage from an embedded model; needs no network",
        description="Stream a passage from a model that needs no network, token by token.",
    )
    demo.add_argument(
        "--pace",
        type=_pace,
        default=0.03,
        metavar="S",
        help="seconds from one token to the next (default: %(default)s; 0: all at once)",
    )
    demo.set_defaults(command=_stream_all, choose=_choose_demo)


def add_run(commands: Any) -> None:
    """Add ``run`` to the commands."""
    run = commands.add_parser(
        "run",
        parents=[_common()],
        help="stream a runnable of yours, or a model of a provider",
        usage="queuestream run [options] module:attribute INPUT\n"
        "       queuestream run [options] --model PROVIDER:NAME TEXT",
        description="Stream a LangChain runnable, or a callable that takes callbacks=, by its "
        "import path; or a chat model by its name. Ctrl-C stops the run.",
    )
    run.add_argument(
        "--model",
        metavar="PROVIDER:NAME",
        help="a chat model that LangChain's init_chat_model knows, openai:gpt-5 for example",
    )
    run.add_argument(
        "--run-in",
        choices=["auto", "thread", "task", "background"],
        default="auto",
        help="where the run happens (default: %(default)s); a Runnable that is only "
        "asynchronous needs background for its turn in a for loop",
    )
    # One argument with two values: argparse would hand a lone optional one out too early.
    run.add_argument(
        "words",
        nargs="+",
        metavar="module:attribute INPUT",
        help="the target, found from the current directory as `python -m` would, the "
        "attribute dotted if need be; and its input: text, or JSON if it parses as a JSON "
        "object or array",
    )
    run.set_defaults(command=_stream_all, choose=_choose_run)


def _common() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--iterate",
        choices=["for", "async-for", "both"],
        default="both",
        help="which loop takes the tokens; both, the default, runs the target twice, one "
        "after the other",
    )
    return common


def _pace(text: str) -> float:
    pace = float(text)  # argparse makes its own message of a ValueError
    if not 0 <= pace < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number of seconds from 0 up")
    return pace


def _choose_demo(arguments: argparse.Namespace) -> tuple[Any, Any, str]:
    return DemoChatModel(pace=arguments.pace), "What is a stream?", "auto"


def _choose_run(arguments: argparse.Namespace) -> tuple[Any, Any, str]:
    words: list[str] = arguments.words
    if arguments.model is not None:
        if len(words) != 1:
            raise UsageError(
                f"with --model comes one text, and {len(words)} were given; quote it if it has "
                "spaces"
            )
        return load_model(arguments.model), words[0], arguments.run_in
    if len(words) != 2:  # noqa: PLR2004 - module:attribute and INPUT
        raise UsageError(
            f"expected module:attribute and INPUT, got {len(words)} argument"
            f"{'s' if len(words) > 1 else ''}; quote the input if it has spaces"
        )
    path, text = words
    return load_target(path), read_input(text), arguments.run_in


# ---------------------------------------------------------------------------- the two loops


def _stream_all(arguments: argparse.Namespace) -> int:
    target, value, run_in = arguments.choose(arguments)
    if arguments.iterate in {"for", "both"}:
        code = _with_for(target, value, run_in)
        if code != DONE:
            return code
    if arguments.iterate in {"async-for", "both"}:
        return run_loop(_with_async_for(target, value, run_in))
    return DONE


def _open(target: Any, value: Any, run_in: Any) -> TokenStream[str]:
    try:
        return stream(target, value, run_in=run_in)  # starts nothing yet
    except (TypeError, ValueError) as error:
        raise UsageError(f"{error}") from error


def _with_for(target: Any, value: Any, run_in: str) -> int:
    screen = _Screen("for token in stream(...)")
    tokens = _open(target, value, run_in)
    screen.begin()
    try:
        with tokens, closed_by_ctrl_c(tokens.close):
            for token in tokens:
                screen.show(token)
    except OutputClosedError:
        raise
    except PlacementError as error:
        raise UsageError(f"{error}") from error
    except KeyboardInterrupt:
        screen.end("stopped: ")
        raise
    except Exception as error:
        return screen.fail(error)
    screen.end(result=tokens.result)
    return DONE


async def _with_async_for(target: Any, value: Any, run_in: str) -> int:
    screen = _Screen("async for token in stream(...)")
    tokens = _open(target, value, run_in)
    screen.begin()
    try:
        async with tokens:
            async for token in tokens:
                screen.show(token)
    except OutputClosedError:
        raise
    except PlacementError as error:
        raise UsageError(f"{error}") from error
    except (asyncio.CancelledError, KeyboardInterrupt):
        screen.end("stopped: ")
        raise
    except Exception as error:
        return screen.fail(error)
    screen.end(result=tokens.result)
    return DONE


def run_loop(main: Coroutine[Any, Any, int]) -> int:
    """Run a coroutine as ``asyncio.run`` does, but leave without waiting for its threads.

    `asyncio.run` would wait for the default executor, in which LangChain runs what is only
    synchronous, and so for a model that is silent.  Ctrl-C cancels the coroutine; a second
    one interrupts whatever is being executed.
    """
    loop = asyncio.new_event_loop()
    try:
        task = loop.create_task(main)
        with _cancelled_by_ctrl_c(loop, task):
            try:
                return loop.run_until_complete(task)
            except asyncio.CancelledError:
                raise KeyboardInterrupt from None
    finally:
        if left := asyncio.all_tasks(loop):
            for other in left:
                other.cancel()
            loop.run_until_complete(asyncio.wait(left))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


@contextlib.contextmanager
def _cancelled_by_ctrl_c(
    loop: asyncio.AbstractEventLoop, task: asyncio.Task[int]
) -> Generator[None]:
    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield  # somebody has other plans for Ctrl-C, or it was ignored for us
        return

    def cancel(*_signal_and_frame: object) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        loop.call_soon_threadsafe(task.cancel)

    try:
        # The loop hears of it even when it is about to sleep, see `closed_by_ctrl_c`.
        loop.add_signal_handler(signal.SIGINT, cancel)
    except NotImplementedError:  # Windows
        signal.signal(signal.SIGINT, cancel)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


# ------------------------------------------------------------------------------- the screen


@dataclass
class _Screen:
    """Shows one run: a heading, its tokens, a closing line."""

    heading: str
    started: float = 0.0
    first: float | None = None
    count: int = 0
    at_line_start: bool = field(default=True)

    def begin(self) -> None:
        self._write(f"# {self.heading}\n")
        self.started = time.perf_counter()

    def show(self, token: str) -> None:
        if self.first is None:
            self.first = time.perf_counter() - self.started
        self.count += 1
        self._write(token)

    def end(self, how: str = "", *, result: Any = None) -> None:
        took = time.perf_counter() - self.started
        if not self.at_line_start:
            self._write("\n")
        if self.first is None:
            said = f"no token in {took:.2f} s"
            if not how:
                said += f", result: {result!r}"
        else:
            said = (
                f"{self.count} tokens in {took:.2f} s, the first after {self.first:.3f} s, "
                f"{self.count / took:.1f} tokens/s"
            )
        self._write(f"-- {how}{said}\n\n")

    def fail(self, error: Exception) -> int:
        self.end("failed: ")
        complain(f"the run raised {say(error)}")
        return RUN_FAILED

    def _write(self, text: str) -> None:
        try:
            sys.stdout.write(text)
            sys.stdout.flush()
        except BrokenPipeError:
            raise OutputClosedError from None
        self.at_line_start = text.endswith("\n")
