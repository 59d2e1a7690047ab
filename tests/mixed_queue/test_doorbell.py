"""All states of the one way into a loop: who rings, who answers, and a loop that is closed.

The pairs in `test_pairs.py` whose states are all visited take a ring to be one step.  Here is
what lies in it: threads ring at any moment, two of which one rings twice, or three, and the loop
answers, or is closed before or in between.  Looked for: one who is neither opened nor said to be
lost, who waits for ever then, and one for whom both are said.
"""

from __future__ import annotations

from functools import cache, partial
from typing import TYPE_CHECKING, Any

import pytest

from queuestream._doorbell import Doorbell
from tests.support.schedule import ScheduledDeque
from tests.support.scheduled_loop import ScheduledLoop
from tests.support.scheduled_queue import Now
from tests.support.states import Outcomes, exhaust, visits_states

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.schedule import Schedule


@cache
def with_points(bell_class: type[Doorbell]) -> type[Doorbell]:
    """A bell before each of whose looks and changes another thread may go on."""

    class Bell(bell_class):  # type: ignore[valid-type, misc]
        __slots__ = ("_is_rung",)

        def __init__(self, loop: Any) -> None:
            super().__init__(loop)
            self._wishes: ScheduledDeque[Any] = ScheduledDeque(Now.schedule)  # type: ignore[misc]

        @property
        def _rung(self) -> bool:
            Now.schedule.point()
            return self._is_rung

        @_rung.setter
        def _rung(self, is_rung: bool) -> None:
            Now.schedule.point()
            self._is_rung = is_rung

    return Bell


class Wish:
    """Somebody who is to be woken, and how often he was, or was said to be lost."""

    __slots__ = ("lost", "opened", "refused")

    def __init__(self) -> None:
        self.opened = self.lost = self.refused = 0

    def open_now(self) -> None:
        self.opened += 1

    def on_lost(self, _: object) -> None:
        self.lost += 1

    @property
    def outcome(self) -> tuple[int, int, int]:
        return self.opened, self.lost, self.refused


class Case:
    """A loop, its bell, and threads that ring it.

    Args:
        schedule: The schedule.
        bell_class: The bell to test.
        is_closed: Whether the loop is, at any moment.
        rings: How often each thread rings, for another one each time.
    """

    def __init__(
        self, schedule: Schedule, bell_class: type[Doorbell], *, is_closed: bool, rings: list[int]
    ) -> None:
        Now.schedule = schedule
        self.is_closed = is_closed
        self.loop = ScheduledLoop(schedule, "loop")
        self.loop.may_be_shut = True  # or its steps would be nobody else's concern
        self.bell = with_points(bell_class)(self.loop)  # type: ignore[arg-type]
        wishes: list[Wish] = []
        for count in rings:
            mine = [Wish() for _ in range(count)]
            wishes += mine
            schedule.thread(f"rings {count} times", partial(self.ring, mine))
        if is_closed:
            schedule.thread("closes", self.loop.shut)
        self.wishes = Outcomes(wishes)

    def ring(self, wishes: list[Wish]) -> None:
        for wish in wishes:
            wish.refused += not self.bell.ring(wish)

    def check(self) -> None:
        for wish in self.wishes:
            assert sum(wish.outcome) == 1, f"(opened, lost, refused) = {wish.outcome}"
            assert wish.opened or self.is_closed, "lost, and the loop is there"
        assert not list(self.bell._wishes)


def of(bell_class: type[Doorbell], *, is_closed: bool, rings: list[int]) -> Any:
    """Return a case for the explorer."""

    def case(schedule: Schedule) -> Callable[[], object]:
        return Case(schedule, bell_class, is_closed=is_closed, rings=rings).check

    return case


@visits_states
@pytest.mark.parametrize("is_closed", [False, True])
@pytest.mark.parametrize(
    "rings", [[1, 2], pytest.param([1, 1, 1], marks=pytest.mark.stress)], ids=str
)
def test_no_state_that_a_bell_can_come_to_is_wrong(is_closed: bool, rings: list[int]) -> None:
    """Hazard: a ring that finds the bell rung by one whom no answer follows."""
    count = exhaust(of(Doorbell, is_closed=is_closed, rings=rings))
    print(f"{rings}, closed: {is_closed}: {count} states")
    assert count > 500, "where are the points?"


class IsSilentAfterTheCount(Doorbell):
    __slots__ = ()

    def answer(self) -> None:
        left = len(self._wishes)
        self._rung = False
        for _ in range(left):
            self._wishes.popleft().open_now()


class LooksBeforeItAppends(Doorbell):
    __slots__ = ()

    def ring(self, waiter: Any) -> bool:
        if self._rung and (loop := self._loop()) is not None and not loop.is_closed():
            self._wishes.append(waiter)
            return True
        return super().ring(waiter)


class LosesNobody(Doorbell):
    __slots__ = ()

    def lose(self) -> None:
        pass


@visits_states
@pytest.mark.parametrize("planted", [IsSilentAfterTheCount, LooksBeforeItAppends, LosesNobody])
def test_a_planted_bug_is_found(planted: type[Doorbell]) -> None:
    """The canary: the two orders on which the bell is built, and the news of who is lost."""
    with pytest.raises(AssertionError, match="opened, lost, refused"):
        exhaust(of(planted, is_closed=planted is LosesNobody, rings=[1, 2]))
