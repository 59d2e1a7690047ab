"""Write a handler of your own, on langchain-core alone: start, tokens, end, error."""

from collections.abc import AsyncIterator, Iterator
from itertools import islice
from time import perf_counter
from typing import Any
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import BaseMessage
from langchain_core.outputs import ChatGenerationChunk, LLMResult

from queuestream.demo import DemoChatModel


class CustomStreamHandler(BaseCallbackHandler):
    """Prints a chat model's tokens, and how long each run took."""

    def __init__(self) -> None:
        self.tokens: list[str] = []
        self._started: dict[UUID, float] = {}  # by run: several may go on at once

    def on_chat_model_start(
        self,
        serialized: dict[str, Any],
        messages: list[list[BaseMessage]],
        *,
        run_id: UUID,
        **kwargs: Any,
    ) -> None:
        """LangChain calls this when a chat model starts."""
        self._started[run_id] = perf_counter()
        print(f"Starting with {messages[0][-1].text!r}")

    def on_llm_new_token(self, token: Any, *, chunk: Any = None, **kwargs: Any) -> None:
        """LangChain calls this for each token."""
        # The token itself may be a list of content blocks; that of the last chunk is empty.
        text = token if chunk is None else chunk.message.text
        if text:
            self.tokens.append(text)
            print(text, end="", flush=True)

    def on_llm_end(self, response: LLMResult, *, run_id: UUID, **kwargs: Any) -> None:
        """LangChain calls this when the model has answered."""
        seconds = perf_counter() - self._started.pop(run_id)
        print(f"\nCompleted in {seconds:.2f} s: {len(response.generations[0][0].text)} characters")

    def on_llm_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """LangChain calls this instead when the model fails."""
        seconds = perf_counter() - self._started.pop(run_id)
        print(f"\nFailed after {seconds:.2f} s: {error}")

    # Within `invoke`, LangChain streams a model only if some handler has these two methods.
    # They have to be here; what they are for is to look at the output, or to replace it.

    def tap_output_iter(self, run_id: UUID, output: Iterator[Any]) -> Iterator[Any]:
        """Return the output as it is."""
        return output

    def tap_output_aiter(self, run_id: UUID, output: AsyncIterator[Any]) -> AsyncIterator[Any]:
        """Return the output as it is."""
        return output


class BreakingModel(DemoChatModel):
    """A model whose connection breaks in the middle of the answer."""

    def _stream(self, *args: Any, **kwargs: Any) -> Iterator[ChatGenerationChunk]:
        yield from islice(super()._stream(*args, **kwargs), 8)
        raise ConnectionError("the line went dead")


if __name__ == "__main__":
    passage = "A stream is water that knows where it is going."
    handler = CustomStreamHandler()
    DemoChatModel(passage=passage, pace=0.01).invoke("And a stream?", {"callbacks": [handler]})
    try:
        BreakingModel(passage=passage, pace=0.01).invoke("Again?", {"callbacks": [handler]})
    except ConnectionError as error:
        # A handler is told of an error; it is still the caller who has to deal with it.
        print(f"The caller got it, too: {error!r}")
    print(f"{len(handler.tokens)} tokens in all")
