"""`console_stream`: show an answer in the terminal while it comes.

In a terminal: Markdown, rendered anew as the text grows, above a line that says what is going
on.  What does not fit stays out of sight until the answer is complete; then the live view goes,
and the whole answer is printed, so that it can be scrolled.  Elsewhere (a pipe, a file): the
tokens as plain text, each at once, and nothing else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from queuestream._ctrl_c import closed_by_ctrl_c
from queuestream.ui._options import open_stream, require_extra

if TYPE_CHECKING:
    from collections.abc import Callable

    from langchain_core.runnables import Runnable, RunnableConfig
    from rich.console import Console, ConsoleOptions, RenderResult

    from queuestream.events import TokenEvent
    from queuestream.token_stream import TokenStream

__all__ = ["console_stream"]

_RESTARTED = "\n[restarted]\n"


def console_stream(
    target: Runnable[Any, Any] | Callable[..., Any],
    input: Any,  # noqa: A002 - LangChain's name for it
    config: RunnableConfig | None = None,
    *,
    console: Console | None = None,
    markdown: bool = True,
    statistics: bool = True,
    **options: Any,
) -> Any:
    """Run a target and show its tokens on the console as they come.

    A terminal shows the text so far, as Markdown, and a typing indicator with the statistics.
    A restart clears the text of the failed attempt.  The indicator is turned by a thread of
    rich's, ten times a second, while the stream is open.  Where the output is no terminal, the
    tokens are written as they are and flushed, and a restart is marked by ``[restarted]``.

    Example::

        answer = console_stream(model, "What is a stream?")

    Args:
        target: As for `queuestream.stream`.
        input: The target's input.
        config: Its ``RunnableConfig``.
        console: The ``rich.console.Console`` to show it on; one for the standard output if None.
        markdown: Whether the text is Markdown; else it is shown as it is.
        statistics: Whether a line of statistics stays under the answer in a terminal.
        options: What else `queuestream.stream` takes; ``overflow`` is ``"merge"`` unless given.

    Returns:
        What the target returned.

    Raises:
        ModuleNotFoundError: If rich is not installed.
        TypeError: If an argument is none that `queuestream.stream` takes, or is ``select``.
        ValueError: As of `queuestream.stream`.
        KeyboardInterrupt: At Ctrl-C.  The run was stopped; the text stays, and the cursor is back.
        BaseException: What the run raised; the text that came before stays.

    **Cancellation**: Ctrl-C, at once, also while the model is silent.

    **Thread safety**: call it from any thread; Ctrl-C reaches the main one.  One live view at a
    time on each console.
    """
    require_extra("rich", "cli", "console_stream")
    from rich.console import Console  # noqa: PLC0415 - an extra

    screen = Console() if console is None else console
    tokens = open_stream("console_stream", target, input, config, options)
    with tokens, closed_by_ctrl_c(tokens.close):
        if screen.is_interactive:
            _show_live(tokens, screen, markdown=markdown, statistics=statistics)
        else:
            _write(tokens, screen)
    return tokens.result


def _write(tokens: TokenStream[TokenEvent], console: Console) -> None:
    file = console.file
    last = "\n"
    try:
        for event in tokens:
            if event.kind == "text":
                last = event.text
            elif event.kind == "restart":
                last = _RESTARTED
            else:
                continue
            file.write(last)
            file.flush()
    finally:
        if not last.endswith("\n"):
            file.write("\n")
            file.flush()


def _show_live(
    tokens: TokenStream[TokenEvent], console: Console, *, markdown: bool, statistics: bool
) -> None:
    from rich.live import Live  # noqa: PLC0415 - an extra

    view = _View(tokens, markdown=markdown)
    live = Live(view, console=console, transient=True, refresh_per_second=10)
    how = "stopped"
    try:
        try:
            live.start(refresh=True)  # in here, too, Ctrl-C must not leave the cursor hidden
            for _ in tokens:  # the view looks at the stream when it is drawn
                pass
        finally:
            live.stop()
        how = "done"
    except Exception:
        how = "failed"
        raise
    finally:
        if tokens.text:
            console.print(view.text())
        if statistics:
            console.print(view.summary(how), style="dim", highlight=False)


class _View:
    """What is on the screen while the stream is open."""

    def __init__(self, tokens: TokenStream[TokenEvent], *, markdown: bool) -> None:
        from rich.spinner import Spinner  # noqa: PLC0415 - an extra

        self._tokens = tokens
        self._markdown = markdown
        self._spinner = Spinner("dots")

    def text(self) -> Any:
        """What came so far, to be printed."""
        from rich.markdown import Markdown  # noqa: PLC0415 - an extra
        from rich.text import Text  # noqa: PLC0415 - an extra

        text = self._tokens.text
        return Markdown(text) if self._markdown else Text(text)

    def summary(self, how: str) -> str:
        """One line on the tokens so far."""
        numbers = self._tokens.statistics
        first = numbers.time_to_first_token
        if first is None:
            return f"{how}: no token in {numbers.duration:.1f} s"
        said = (
            f"{how}: {numbers.tokens} tokens in {numbers.duration:.1f} s, the first after "
            f"{first:.2f} s, {numbers.tokens_per_second or 0:.0f} tokens/s"
        )
        return said if numbers.attempts == 1 else f"{said}, {numbers.attempts} attempts"

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.segment import Segment  # noqa: PLC0415 - an extra
        from rich.text import Text  # noqa: PLC0415 - an extra

        height = max(1, (options.max_height or console.height) - 2)
        lines = console.render_lines(self.text(), options, pad=False) if self._tokens.text else []
        for line in lines[-height:]:  # its end is what is read
            yield from line
            yield Segment.line()
        # One row, however narrow the screen is.
        said = Text(self.summary("typing"), "dim", no_wrap=True, overflow="ellipsis")
        said.truncate(max(1, options.max_width - 2))
        self._spinner.update(text=said)
        yield self._spinner
