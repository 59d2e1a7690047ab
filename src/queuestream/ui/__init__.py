"""Where people see tokens: Gradio, Streamlit, the terminal.

Each module is a thin adapter over `queuestream.stream` and stands for itself; what it needs is
an extra of the package.  Nothing is imported before it is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from queuestream._lazy import lazy

if TYPE_CHECKING:
    from collections.abc import Callable

    from queuestream.ui.console import console_stream
    from queuestream.ui.gradio import gradio_chat
    from queuestream.ui.streamlit import StreamlitStream, streamlit_stream

__all__ = ["StreamlitStream", "console_stream", "gradio_chat", "streamlit_stream"]

__getattr__: Callable[[str], object]
__dir__: Callable[[], list[str]]
__getattr__, __dir__ = lazy(
    __name__,
    {
        "StreamlitStream": "streamlit",
        "console_stream": "console",
        "gradio_chat": "gradio",
        "streamlit_stream": "streamlit",
        "console": None,
        "gradio": None,
        "streamlit": None,
    },
)
