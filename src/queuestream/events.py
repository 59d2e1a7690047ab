"""From what LangChain reports to what the user iterates.

Text is taken from the chunk, never from the ``token`` argument: that one may be a list of
content blocks, and is empty where the model reasons or calls a tool.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from langchain_core.outputs import LLMResult

__all__ = ["text_of_chunk", "text_of_content", "text_of_result"]


def text_of_chunk(token: object, chunk: Any) -> str:
    """The text of one ``on_llm_new_token`` call; empty if it carries none.

    Args:
        token: The first argument, used only where there is no chunk (a direct call).
        chunk: A ``ChatGenerationChunk``, a ``GenerationChunk``, or None.
    """
    if chunk is None:
        return text_of_content(token)
    message = getattr(chunk, "message", None)
    if message is None:
        return str(chunk.text)
    return text_of_content(message.content)


def text_of_content(content: Any) -> str:
    """The text of a message's content: a string, or the text blocks of a list, joined."""
    if isinstance(content, str):
        return content
    return "".join(map(_text_of_block, content or ()))


def _text_of_block(block: Any) -> str:
    if isinstance(block, str):
        return block
    try:
        return str(block["text"] or "") if block["type"] == "text" else ""
    except (KeyError, TypeError):
        return ""


def text_of_result(result: LLMResult) -> str:
    """The text of the first generation of a finished model run."""
    generations = result.generations
    if not generations or not generations[0]:
        return ""
    generation = generations[0][0]
    message = getattr(generation, "message", None)
    return generation.text if message is None else text_of_content(message.content)
