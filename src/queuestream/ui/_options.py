"""What the surfaces have in common: the extra that each needs, and the options of its streams."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

from queuestream.token_stream import TokenStream, stream

if TYPE_CHECKING:
    from langchain_core.runnables import RunnableConfig

    from queuestream.events import TokenEvent

__all__ = ["open_stream", "require_extra"]


def require_extra(package: str, extra: str, surface: str) -> None:
    """Check that a package is installed, without importing it.

    Raises:
        ModuleNotFoundError: If it is not; the message says which extra to install.
    """
    if importlib.util.find_spec(package) is None:
        raise ModuleNotFoundError(
            f"{surface} needs the package {package}, which is not installed: "
            f'pip install "queuestream[{extra}]"',
            name=package,
        )


def open_stream(
    surface: str, target: Any, value: Any, config: RunnableConfig | None, options: dict[str, Any]
) -> TokenStream[TokenEvent]:
    """Make a stream of events for a screen, which starts nothing yet.

    Waiting tokens are merged, unless the options say otherwise: who lags behind on a screen
    wants to catch up.

    Raises:
        TypeError: If ``select`` is given, or an argument is none that `stream` takes.
        ValueError: As `stream` raises it.
    """
    if "select" in options:
        raise TypeError(f"{surface} shows text and selects by itself: leave select= out")
    if options.get("queue") is None:
        options = {"overflow": "merge", **options}
    return stream(target, value, config, select="event", **options)
