"""`MemoryEfficientHandler`: the last tokens, and how many there were."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from queuestream._checks import checked_count
from queuestream.handlers.base import StreamHandler

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["MemoryEfficientHandler"]


class MemoryEfficientHandler(StreamHandler):
    """Passes every token on, and keeps the last ones.

    >>> from langchain_core.language_models import FakeListChatModel
    >>> handler = MemoryEfficientHandler(lambda token: None, max_buffer_size=3)
    >>> _ = FakeListChatModel(responses=["Hello!"]).invoke("Hi", {"callbacks": [handler]})
    >>> handler.recent, handler.token_count
    (('l', 'o', '!'), 6)

    Args:
        on_token: See `StreamHandler`.
        max_buffer_size: How many tokens are kept.
        raise_error: As of `StreamHandler`.

    Attributes:
        max_buffer_size: As given.
        token_count: The number of tokens that have come, over all runs.

    Raises:
        TypeError: If ``on_token`` is not callable, or ``max_buffer_size`` no integer.
        ValueError: If ``max_buffer_size`` is less than 1.

    **Thread safety**: as of `StreamHandler`; where several threads bring tokens at once,
    ``token_count`` may miss some.
    """

    def __init__(
        self,
        on_token: Callable[[str], object],
        max_buffer_size: int = 1000,
        *,
        raise_error: bool = False,
    ) -> None:
        super().__init__(on_token, raise_error=raise_error)
        self.max_buffer_size: int = checked_count("max_buffer_size", max_buffer_size, least=1)
        self._recent: deque[str] = deque(maxlen=max_buffer_size)
        self.token_count: int = 0

    @property
    def recent(self) -> tuple[str, ...]:
        """The last tokens, of all runs, in the order in which they came."""
        return tuple(self._recent.copy())

    def _texts_of_token(self, state: object, token: str) -> Iterable[str]:
        self._recent.append(token)
        self.token_count += 1
        return (token,)
