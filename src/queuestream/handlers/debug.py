"""`DebugStreamHandler`: tells all that is known of each token."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Any
from uuid import UUID

from queuestream._checks import checked_count
from queuestream._token_queue import logger
from queuestream.handlers.base import StreamHandler

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from queuestream.events import About

__all__ = ["DebugStreamHandler"]


class _Known:
    """What is known of a run.

    Its id is a copy, or what is kept of a run that never reports its end would be kept as
    long as this is, and the log.
    """

    __slots__ = ("metadata", "name", "run_id", "tags")

    def __init__(self, about: About) -> None:
        self.run_id = None if about.run_id is None else UUID(int=about.run_id.int)
        self.name = about.name
        self.tags = about.tags
        self.metadata = about.metadata


class DebugStreamHandler(StreamHandler):
    """Passes every token on, and logs it with its time, run id and metadata.

    To logger ``queuestream``, at level INFO.  `token_log` has the last ones, as dictionaries
    with ``token``, ``timestamp`` (seconds since the epoch), ``run_id``, ``name`` (the run's),
    ``tags`` and ``metadata``.

    >>> handler = DebugStreamHandler(lambda token: None, verbose=False)
    >>> handler("Hi")
    >>> handler.get_stats()["total_tokens"], handler.token_log[0]["token"]
    (1, 'Hi')

    Args:
        on_token: See `StreamHandler`.
        verbose: Whether tokens are logged as they come.
        max_log: The number of entries in ``token_log``; older ones are dropped.
        raise_error: As of `StreamHandler`.

    Raises:
        TypeError: If ``on_token`` is not callable, or ``max_log`` no integer.
        ValueError: If ``max_log`` is less than 1.

    **Thread safety**: as of `StreamHandler`; where several threads bring tokens at once,
    the statistics may miss some.
    """

    def __init__(
        self,
        on_token: Callable[[str], object],
        verbose: bool = True,  # noqa: FBT001, FBT002 - the reference document's signature
        *,
        max_log: int = 1000,
        raise_error: bool = False,
    ) -> None:
        super().__init__(on_token, raise_error=raise_error)
        self.verbose = verbose
        self._log: deque[dict[str, Any]] = deque(maxlen=checked_count("max_log", max_log, least=1))
        self._tokens = 0
        self._characters = 0
        self._first = 0.0  # by the monotonic clock
        self._last = 0.0

    @property
    def token_log(self) -> list[dict[str, Any]]:
        """The last tokens, of all runs, with what is known of each."""
        return list(self._log.copy())

    def get_stats(self) -> dict[str, float]:
        """What has come, over all runs.

        Returns:
            ``total_tokens``, ``avg_token_length`` (characters; 0.0 without tokens) and
            ``duration`` (seconds from the first token to the last; 0.0 for fewer than two).
        """
        tokens = self._tokens
        return {
            "total_tokens": tokens,
            "avg_token_length": self._characters / tokens if tokens else 0.0,
            "duration": self._last - self._first,
        }

    def _new_state(self, about: About) -> _Known:
        return _Known(about)

    def _texts_of_token(self, state: _Known, token: str) -> Iterable[str]:
        number = self._tokens
        self._last = time.monotonic()
        if not number:
            self._first = self._last
        self._tokens += 1
        self._characters += len(token)
        entry = {
            "token": token,
            "timestamp": time.time(),
            "run_id": state.run_id,
            "name": state.name,
            "tags": state.tags,
            "metadata": state.metadata,
        }
        self._log.append(entry)
        if self.verbose:
            logger.info(
                "token %d: %r, run %s (%s), tags %s, metadata %s",
                number,
                token,
                state.run_id,
                state.name,
                list(state.tags),
                dict(state.metadata),
            )
        return (token,)
