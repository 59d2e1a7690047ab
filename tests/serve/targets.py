"""What the tests serve, by import path."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessageChunk
from langchain_core.outputs import ChatGenerationChunk

from tests.ui.apps.model import ObedientModel, tell

if TYPE_CHECKING:
    from collections.abc import Iterator

    from langchain_core.outputs import ChatResult

MARKUP = "<img src=x onerror=\"document.title='taken over'\"> **bold** & <b>tags</b>"


class TalkativeModel(ObedientModel):
    """``markup``: text that a page must not take for HTML.  ``long``: a long answer, slowly."""

    def _tokens(self, question: str, messages: Any) -> Iterator[str]:
        if question == "markup":
            return iter([MARKUP[:7], MARKUP[7:]])
        if question == "long":
            words = "Every token is shown as it comes, and nothing waits for the end. "
            return (f"{word} " for word in (words * 12).split())
        return super()._tokens(question, messages)


class StubbornModel(BaseChatModel):
    """A model that is synchronous only, says one token, and hears of nothing after that."""

    @property
    def _llm_type(self) -> str:
        return "stubborn"

    def _generate(self, *_: Any, **__: Any) -> ChatResult:
        raise NotImplementedError

    def _stream(self, *_: Any, **__: Any) -> Iterator[ChatGenerationChunk]:
        yield ChatGenerationChunk(message=AIMessageChunk(content="one "))
        tell("made 1")
        threading.Event().wait()


model = TalkativeModel()
stubborn = StubbornModel()
