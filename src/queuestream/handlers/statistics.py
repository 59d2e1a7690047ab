"""`StatisticsStreamHandler`: how many tokens, how fast."""

from __future__ import annotations

from collections import deque
from time import monotonic
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from queuestream._messages import token_counts_of_result
from queuestream.handlers.base import StreamHandler

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from uuid import UUID

    from langchain_core.outputs import LLMResult

    from queuestream.events import About

__all__ = ["RunStatistics", "StatisticsStreamHandler"]

_RUNS = 100
"""Runs that are remembered."""

_GAPS = 10_000
"""Gaps between tokens that are remembered of each run, the last ones."""


class RunStatistics:
    """What is measured of one model run; live, and final when it has ended.

    Attributes:
        name: The run's name.
        token_count: The tokens that have come.
        start_time: When the run started, in seconds of the monotonic clock.
        prompt_tokens: The tokens of the input, as the model reports at its end; else None.
        completion_tokens: Those of the output; else None.
    """

    __slots__ = (
        "__weakref__",
        "_end_time",
        "_first_time",
        "_gaps",
        "_last_time",
        "completion_tokens",
        "name",
        "prompt_tokens",
        "start_time",
        "token_count",
    )

    def __init__(self, name: str) -> None:
        self.name: str = name
        self.token_count: int = 0
        self.start_time: float = monotonic()
        self._first_time: float | None = None
        self._last_time = self.start_time
        self._end_time: float | None = None
        self._gaps: deque[float] = deque(maxlen=_GAPS)
        self.prompt_tokens: int | None = None
        self.completion_tokens: int | None = None

    def note_token(self) -> None:
        """A token has come."""
        now = monotonic()
        if self._first_time is None:
            self._first_time = now
        else:
            self._gaps.append(now - self._last_time)
        self._last_time = now
        self._end_time = None  # see `StatisticsStreamHandler._new_state`
        self.token_count += 1

    def note_end(self, response: LLMResult | None) -> None:
        """The run has ended."""
        self._end_time = monotonic()
        if response is not None:
            self.prompt_tokens, self.completion_tokens = token_counts_of_result(response)

    @property
    def time_to_first_token(self) -> float | None:
        """Seconds from the start of the run to its first token; None before that."""
        return None if self._first_time is None else self._first_time - self.start_time

    @property
    def duration(self) -> float:
        """Seconds from the start of the run to its end, or until now."""
        return (monotonic() if self._end_time is None else self._end_time) - self.start_time

    @property
    def tokens_per_second(self) -> float:
        """`token_count` over `duration`; 0.0 where that is 0."""
        duration = self.duration
        return self.token_count / duration if duration else 0.0

    @property
    def median_gap(self) -> float | None:
        """The median of the seconds between two tokens; None for fewer than two."""
        return self._quantile(0.5)

    @property
    def p95_gap(self) -> float | None:
        """The seconds that 95 % of the gaps between two tokens do not exceed."""
        return self._quantile(0.95)

    def _quantile(self, share: float) -> float | None:
        """By linear interpolation."""
        gaps = sorted(self._gaps.copy())
        if not gaps:
            return None
        place = share * (len(gaps) - 1)
        below = int(place)
        above = min(below + 1, len(gaps) - 1)
        return gaps[below] + (place - below) * (gaps[above] - gaps[below])

    def summary(self) -> str:
        """All of it in one line, for people."""
        speed = f"{self.tokens_per_second:.1f} tokens/s"
        parts = [f"{self.token_count} tokens in {self.duration:.2f} s ({speed})"]
        if (first := self.time_to_first_token) is not None:
            parts.append(f"first after {first:.2f} s")
        if (median := self.median_gap) is not None and (p95 := self.p95_gap) is not None:
            parts.append(f"gap median {median * 1000:.1f} ms, p95 {p95 * 1000:.1f} ms")
        if self.prompt_tokens is not None:
            parts.append(f"{self.prompt_tokens} prompt tokens")
        if self.completion_tokens is not None:
            parts.append(f"{self.completion_tokens} completion tokens")
        return ", ".join(parts)


class StatisticsStreamHandler(StreamHandler):
    """Passes every token on, and measures.

    Its attributes are those of the model run that started last, and stay when that has
    ended; `runs` has the others, too.

    >>> from langchain_core.language_models import FakeListChatModel
    >>> handler = StatisticsStreamHandler(lambda token: None)
    >>> _ = FakeListChatModel(responses=["Hello!"]).invoke("Hi", {"callbacks": [handler]})
    >>> handler.token_count
    6
    >>> handler.summary()  # doctest: +ELLIPSIS
    '6 tokens in ... s (... tokens/s), first after ... s, gap median ... ms, p95 ... ms'

    Args:
        on_token: See `StreamHandler`.
        raise_error: As of `StreamHandler`.

    Raises:
        TypeError: If ``on_token`` is not callable.

    **Thread safety**: as of `StreamHandler`; any thread may look at any time.
    """

    holds_back: bool = True  # the end of a run, which LangChain does not report if it is cancelled

    def __init__(self, on_token: Callable[[str], object], *, raise_error: bool = False) -> None:
        super().__init__(on_token, raise_error=raise_error)
        self._runs: deque[RunStatistics] = deque(maxlen=_RUNS)
        self._by_id: WeakKeyDictionary[UUID, RunStatistics] = WeakKeyDictionary()

    @property
    def runs(self) -> tuple[RunStatistics, ...]:
        """What was measured of each of the last 100 model runs, in the order of their start."""
        return tuple(self._runs.copy())

    @property
    def _latest_run(self) -> RunStatistics | None:
        return self._runs[-1] if self._runs else None

    @property
    def token_count(self) -> int:
        """The tokens that have come; 0 before the first run."""
        run = self._latest_run
        return 0 if run is None else run.token_count

    @property
    def start_time(self) -> float | None:
        """When the run started, in seconds of the monotonic clock; None before the first."""
        run = self._latest_run
        return None if run is None else run.start_time

    @property
    def time_to_first_token(self) -> float | None:
        """Seconds from the start of the run to its first token; None before that."""
        run = self._latest_run
        return None if run is None else run.time_to_first_token

    @property
    def tokens_per_second(self) -> float:
        """`token_count` over the time from the run's start to its end, or until now; else 0.0."""
        run = self._latest_run
        return 0.0 if run is None else run.tokens_per_second

    @property
    def median_gap(self) -> float | None:
        """The median of the seconds between two tokens; None for fewer than two."""
        run = self._latest_run
        return None if run is None else run.median_gap

    @property
    def p95_gap(self) -> float | None:
        """The seconds that 95 % of the gaps between two tokens do not exceed."""
        run = self._latest_run
        return None if run is None else run.p95_gap

    @property
    def prompt_tokens(self) -> int | None:
        """The tokens of the input, if the model has reported them at its end; else None."""
        run = self._latest_run
        return None if run is None else run.prompt_tokens

    @property
    def completion_tokens(self) -> int | None:
        """The tokens of the output, if the model has reported them at its end; else None."""
        run = self._latest_run
        return None if run is None else run.completion_tokens

    def summary(self) -> str:
        """All of it in one line, for people."""
        run = self._latest_run
        return "no tokens yet" if run is None else run.summary()

    def _new_state(self, about: About) -> RunStatistics:
        # A run whose task has ended may as well go on in another one.
        run = None if about.run_id is None else self._by_id.get(about.run_id)
        if run is None:
            run = RunStatistics(about.name)
            self._runs.append(run)
            if about.run_id is not None:
                self._by_id[about.run_id] = run
        return run

    def _texts_of_token(self, state: RunStatistics, token: str) -> Iterable[str]:
        state.note_token()
        return (token,)

    def _texts_at_end(self, state: RunStatistics, response: LLMResult | None) -> Iterable[str]:
        state.note_end(response)
        return ()
