"""``POST /v1/chat/completions``: a request becomes a run, and the run an answer.

`ChatCompletions.run` makes the run of an answer, also of one that outlives its connection.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import anyio
from langchain_core.language_models import BaseChatModel
from langchain_core.runnables.base import RunnableBindingBase
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse

from queuestream.token_stream import stream
from queuestream.web import sse_response
from queuestream.web.formats import (
    Answer,
    Frame,
    OpenAIFormat,
    openai_error,
    retry_after,
    safe_message,
    status_of,
    to_json,
)
from queuestream.web.serve.answers import Run
from queuestream.web.serve.failures import Refused, logger, who
from queuestream.web.serve.request import ChatRequest, read_chat_request

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from queuestream.web.serve.answers import Runs
    from queuestream.web.serve.inputs import ToInput

__all__ = ["ChatCompletions"]

_HEADERS = {"Cache-Control": "no-store"}
_SHUTTING_DOWN = openai_error("The server is shutting down.", 503, "shutting_down")
_CLEAN_UP = 5.0  # seconds that a run which was stopped may take before it is left alone


class ChatCompletions:
    """The application behind the address.

    Args:
        target: What answers.
        name: What the model is called.
        to_input: Makes the target's input of the messages.
        runs: Counts the answers.
        max_body: The most bytes of a request.
        stream_options: What else `stream` is given.
        response_options: What else `sse_response` is given.
    """

    def __init__(
        self,
        target: Any,
        *,
        name: str,
        to_input: ToInput,
        runs: Runs,
        max_body: int,
        stream_options: dict[str, Any],
        response_options: dict[str, Any],
    ) -> None:
        self._target = target
        self._model = _chat_model_in(target)
        self._name = name
        self._to_input = to_input
        self._runs = runs
        self._max_body = max_body
        self._stream_options = stream_options
        self._response_options = response_options

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        request = Request(scope, receive)
        try:
            asked = await self.read(request)
        except ClientDisconnect:
            logger.warning("%s left before the request was there", who(request))
            return
        run = self.run(asked)
        with self._runs.opened(run, who(request)):
            if asked.is_streamed:
                wire = _Wire(self._name, self._runs, include_usage=asked.include_usage)
                response = sse_response(run, wire, **self._response_options)
                await response(scope, receive, send)
            elif answer := await self._whole(run, receive):
                await answer(scope, receive, send)

    @property
    def serves_a_model(self) -> bool:
        """Whether the target is a model, whose tools its client calls."""
        return self._model is not None

    async def read(self, request: Request) -> ChatRequest:
        """What a request asks for.

        Raises:
            Refused: If it is none, or for another model.
            ClientDisconnect: If the client has left.
        """
        asked = await read_chat_request(request, self._max_body)
        if asked.model not in (None, self._name):
            raise Refused(
                404,
                f"There is no model {asked.model!r}; this server has {self._name!r}.",
                param="model",
                code="model_not_found",
            )
        return asked

    def run(self, asked: ChatRequest) -> Run:
        """The run that answers; it has not started yet."""
        tokens = stream(
            self._target,
            self._to_input(asked.messages),
            select="event",
            **self._stream_options,
            **self._options(asked),
        )
        return Run(tokens, with_tool_calls=self.serves_a_model)

    def _options(self, asked: ChatRequest) -> dict[str, Any]:
        """What the model itself is asked for; a chain has decided that for its models."""
        if self._model is None:
            return {}
        options = dict(asked.options)
        tools, choice = options.pop("tools", None), options.pop("tool_choice", None)
        known = {"stop", *type(self._model).model_fields}
        found = {name: value for name, value in options.items() if name in known}
        if tools is not None:
            more = {} if choice is None else {"tool_choice": choice}
            try:
                bound: Any = self._model.bind_tools(tools, **more)
            except NotImplementedError:
                raise Refused(400, "This model takes no tools.", param="tools") from None
            except Exception as error:
                logger.warning("the tools of a request were refused: %r", error)
                raise Refused(
                    400, "The tools are not as the model needs them.", param="tools"
                ) from error
            found |= bound.kwargs
        return found

    async def _whole(self, run: Run, receive: Receive) -> JSONResponse | None:
        """The answer as one object; None if the client has left meanwhile."""
        answer: JSONResponse | None = None
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_cancel_when_gone, receive, tasks.cancel_scope)
                answer = await self._gathered(run)
                tasks.cancel_scope.cancel()
        finally:
            with anyio.move_on_after(_CLEAN_UP, shield=True):
                await run.aclose()
        return answer

    async def _gathered(self, run: Run) -> JSONResponse:
        gathered = Answer()
        try:
            async for item in run:
                gathered.add(item)
        except Exception as error:
            if self._runs.is_closing:
                return JSONResponse(_SHUTTING_DOWN, 503)
            logger.error("a run failed", exc_info=error)
            status, wait = status_of(error), retry_after(error)
            headers = _HEADERS if wait is None else {**_HEADERS, "Retry-After": str(wait)}
            body = openai_error(safe_message(error), status)
            return JSONResponse(body, status, headers=headers)
        whole = gathered.completion(self._name, run.usage, finish_reason=run.finish_reason)
        return JSONResponse(whole, headers=_HEADERS)


class _Wire(OpenAIFormat):
    """OpenAI's chunks; an error that is the server's end says so to programs."""

    def __init__(self, name: str, runs: Runs, *, include_usage: bool) -> None:
        super().__init__(name, include_usage=include_usage)
        self._runs = runs

    def error(self, message: str) -> list[Frame]:
        """As of every answer, unless the server ends."""
        frames = super().error(message)
        if not self._runs.is_closing:
            return frames
        return [Frame(to_json(_SHUTTING_DOWN))]


async def _cancel_when_gone(receive: Receive, scope: anyio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


def _chat_model_in(target: object) -> BaseChatModel | None:
    """The chat model that a target is, perhaps with arguments bound to it."""
    while isinstance(target, RunnableBindingBase):
        target = cast("Any", target).bound
    return target if isinstance(target, BaseChatModel) else None
