"""`gradio_chat`: a function for ``gr.ChatInterface`` that streams what a runnable answers.

Gradio calls an async generator function for each question, shows whatever it yields last,
and closes the generator at its stop button and when the browser leaves.  The generator holds
nothing but an open stream, whose block ends with it: so the stop reaches the model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage

from queuestream.ui._options import open_stream, require_extra

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Sequence

    from langchain_core.runnables import Runnable, RunnableConfig

__all__ = ["gradio_chat"]

_ROLES = {"user": HumanMessage, "assistant": AIMessage, "system": SystemMessage}


def gradio_chat(
    target: Runnable[Any, Any] | Callable[..., Any],
    config: RunnableConfig | None = None,
    *,
    to_input: Callable[..., Any] | None = None,
    **options: Any,
) -> Callable[..., AsyncGenerator[str, None]]:
    """Make the function that ``gr.ChatInterface`` calls with a question and the history.

    It yields the text so far, once for each token, and less often where Gradio is slower than
    the model.  When a failed attempt is made anew, its text vanishes.  What the run raises is
    raised in Gradio, which shows that something went wrong.

    Example::

        gr.ChatInterface(gradio_chat(model)).launch()

    Args:
        target: As for `queuestream.stream`.
        config: The ``RunnableConfig`` of each run.
        to_input: Makes the target's input of the list of messages, history and question; for
            a chain with variables, ``lambda messages: {"question": messages[-1].content}``,
            for a graph ``lambda messages: {"messages": messages}``.  The values of the
            interface's ``additional_inputs`` follow as further arguments.  By default the
            input is the list itself, as chat models take it.
        options: What else `queuestream.stream` takes, ``token_timeout=30`` say; ``overflow``
            is ``"merge"`` unless it is given.

    Returns:
        An async generator function of the message and the history.  Both may be in any form
        that Gradio has for them: text or a dictionary with ``text``; a list of messages or of
        pairs.  Files, and the thoughts that an agent showed, are left out.

    Raises:
        ModuleNotFoundError: If Gradio is not installed.
        TypeError: If an argument is none that `queuestream.stream` takes, or is ``select``
            or ``queue``.
        ValueError: As of `queuestream.stream`.

    **Cancellation**: Gradio's stop button, and a browser that leaves, stop the run.

    **Thread safety**: the function serves any number of chats at once.
    """
    require_extra("gradio", "gradio", "gradio_chat")
    if to_input is not None and not callable(to_input):
        raise TypeError(f"to_input must be a function of a list of messages, not {to_input!r}")
    if options.get("queue") is not None:
        raise TypeError(
            "a queue serves one stream, and each question has its own: leave queue= out"
        )
    open_stream("gradio_chat", target, None, config, options).close()  # is all of it allowed?

    async def chat(message: Any, history: Any = (), *additional: Any) -> AsyncGenerator[str, None]:
        messages = [*_messages_of(history), HumanMessage(_text_of(message))]
        if to_input is not None:
            value = to_input(messages, *additional)
        elif additional:
            raise TypeError(
                f"{len(additional)} additional inputs came with the message: give gradio_chat a "
                f"to_input(messages, ...) that makes something of them"
            )
        else:
            value = messages
        async with open_stream("gradio_chat", target, value, config, options) as tokens:
            async for event in tokens:
                if event.kind in {"text", "restart"}:
                    yield tokens.text

    return chat


def _messages_of(history: Sequence[Any]) -> list[BaseMessage]:
    messages: list[BaseMessage] = []
    for entry in history:
        if isinstance(entry, dict):
            is_thought = bool((entry.get("metadata") or {}).get("title"))
            said = [] if is_thought else [(entry["role"], entry["content"])]
        else:
            said = list(zip(("user", "assistant"), entry, strict=True))
        for role, content in said:
            if role in _ROLES and (text := _text_of(content)):
                messages.append(_ROLES[role](text))
    return messages


def _text_of(content: Any) -> str:
    """The text in a message, or in one of its parts; files and components have none."""
    if isinstance(content, str):
        return content
    if isinstance(content, dict):
        return str(content.get("text") or "")
    if isinstance(content, list):
        return "\n".join(text for part in content if (text := _text_of(part)))
    return ""
