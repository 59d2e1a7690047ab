"""Forcing an interleaving: a lock with hooks, and all schedules of a small case.

`HookedLock` is for one interleaving, written down as steps: what happens when the lock is
wanted, held, about to be released, free.  `explore` is for all of them: it runs a case
again and again, with one thread at a time and another choice at each boundary of a lock,
and at each operation on a `ScheduledDeque` or `ScheduledList`.  Its threads are greenlets:
only one runs anyway, and to change from one to the next costs next to nothing.
A wake-up that is lost shows as a schedule in which nobody can go on.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import random
import sys
import threading
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from greenlet import getcurrent, greenlet

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = [
    "Boundary",
    "HookedLock",
    "Schedule",
    "ScheduledDeque",
    "ScheduledList",
    "ScheduledLocal",
    "ScheduledLock",
    "ScheduledRequests",
    "Step",
    "collections_between_runs",
    "explore",
    "explored",
    "run",
    "sample",
]

T = TypeVar("T")

explored = [0]
"""How many schedules this process has run, for the summary of the tests."""

Boundary = Literal["wanted", "held", "releasing", "free"]
Step = Literal["request", "try", "look", "end", "cancel", "close"]
"""What the holder of a lock may meet: a request, a try for the lock, which fails, one who looks at
or takes what lies there without the lock, and the end.  And what a loop may: a cancel, and that it
is to close.
"""


class HookedLock:
    """A lock that takes a step of the test at a boundary: before or after acquire or release.

    >>> lock = HookedLock()
    >>> lock.at("held", lambda: print("step 1"))
    >>> lock.at("free", lambda: print("step 2"))
    >>> with lock:
    ...     pass
    step 1
    step 2
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._steps: dict[Boundary, deque[Callable[[], object]]] = {
            "wanted": deque(),
            "held": deque(),
            "releasing": deque(),
            "free": deque(),
        }

    def at(self, boundary: Boundary, step: Callable[[], object]) -> None:
        """Take a step the next time that a thread is there, once."""
        self._steps[boundary].append(step)

    def locked(self) -> bool:
        """Return whether somebody holds it."""
        return self._lock.locked()

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Do what `threading.Lock` does."""
        self._pass("wanted")
        acquired = self._lock.acquire(blocking, timeout)
        if acquired:
            self._pass("held")
        return acquired

    def release(self) -> None:
        """Do what `threading.Lock` does."""
        self._pass("releasing")
        self._lock.release()
        self._pass("free")

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()

    def _pass(self, boundary: Boundary) -> None:
        steps = self._steps[boundary]
        if steps:
            steps.popleft()()  # taken out first: a step may pass here, too


class _AbandonedError(BaseException):
    """Ends the threads of a schedule in which nobody can go on."""


@contextmanager
def _abandoning() -> Iterator[None]:
    """Say nothing of finalizers that are abandoned at a point, and all of others that fail."""
    tell = sys.unraisablehook

    def tell_of_others(failed: sys.UnraisableHookArgs) -> None:
        if failed.exc_type is not _AbandonedError:
            tell(failed)

    sys.unraisablehook = tell_of_others
    try:
        yield
    finally:
        sys.unraisablehook = tell


@dataclass(eq=False)
class _Actor:
    """A thread of a schedule: a greenlet, so that to change between two costs next to nothing."""

    number: int
    name: str
    body: Callable[[], object]
    stack: greenlet
    can_go_on: Callable[[], bool] | None = None
    is_alone: Callable[[], bool] | None = lambda: True  # what it does before its first point
    is_last: bool = False
    is_idle: bool = False
    step: Step | None = None
    handled: type[BaseException] | None = None


@dataclass
class _Choice:
    """One decision: which of `count` threads went on, `cost` 1 where that was a preemption."""

    taken: int
    count: int
    is_free: bool
    preemptions_before: int


class Schedule:
    """One run of a case.  One thread runs at a time; at each boundary of a lock another may.

    Args:
        prefix: The choices to repeat.
        seed: Of the choices after them; without, each thread runs as far as it can.
        trace: Instead of all that: the threads to repeat, by their numbers.

    Attributes:
        trace: The number of whoever went on at each point.

    """

    def __init__(
        self, prefix: Sequence[int] = (), seed: int | None = None, trace: Sequence[int] = ()
    ) -> None:
        self._prefix = prefix
        self._repeated = trace
        self.trace: list[int] = []
        self._random = None if seed is None else random.Random(seed)
        self._actors: list[_Actor] = []
        self._current: _Actor | None = None
        self._test = getcurrent()
        self._is_past = False
        self._at_end: list[Callable[[], object]] = []
        self.choices: list[_Choice] = []
        self.stuck: list[str] = []
        """The threads that wait for ever, if any do."""
        self.errors: list[BaseException] = []
        self.is_cut = False
        """Whether it was ended because what would come is known."""
        self.is_over = False
        """Whether the case is through with what it is for, and only comes to its end."""
        self.is_short = False
        """Whether what comes to the same is left out, see `tests.support.states`."""
        self.is_decided: Callable[[], bool] = lambda: False
        """Asked where nobody sleeps: whether nobody will again, so that no order matters."""

    def lock(
        self,
        *,
        locked: bool = False,
        is_certain: bool = False,
        requests: list[Any] | None = None,
    ) -> ScheduledLock:
        """Return a lock whose boundaries are points of this schedule."""
        return ScheduledLock(self, locked=locked, is_certain=is_certain, requests=requests)

    @property
    def step(self) -> Step | None:
        """What the thread that runs was said to do next, at its last point."""
        return None if self._current is None else self._current.step

    @property
    def name(self) -> str:
        """Of the thread that runs."""
        return "" if self._current is None else self._current.name

    def thread(self, name: str, body: Callable[[], object]) -> None:
        """Add a thread."""
        stack = greenlet(partial(self._act, body), self._test)
        self._actors.append(_Actor(len(self._actors), name, body, stack))

    def run(self) -> None:
        """Run all threads to their end, or until none can go on."""
        while (chosen := self._chosen()) is not None:
            chosen.stack.switch()  # comes back when one has ended, or none can go on
            self._current = None
        self.stuck = [
            actor.name for actor in self._actors if not actor.stack.dead and not actor.is_idle
        ]
        self._is_past = True
        with _abandoning():
            for actor in self._actors:
                if actor.stack:  # begun, and not ended
                    actor.stack.throw(_AbandonedError)
            for leave in self._at_end:
                leave()

    def at_end(self, leave: Callable[[], object]) -> None:
        """Have something done after the run, however it came to its end."""
        self._at_end.append(leave)

    @property
    def taken(self) -> list[int]:
        """The choices, as a prefix that repeats this schedule."""
        return [choice.taken for choice in self.choices]

    def point(
        self,
        can_go_on: Callable[[], bool] | None = None,
        *,
        is_alone: Callable[[], bool] | None = None,
        is_last: bool = False,
        is_idle: bool = False,
        step: Step | None = None,
        beside: tuple[Step, ...] | None = None,
    ) -> None:
        """Let another thread go on, if it is chosen; return when this one may.

        Args:
            can_go_on: Whether it can, asked whenever somebody is chosen; always, if None.
            is_alone: Whether it makes no difference to anybody when it goes on from here,
                once it can.  None is never, to be on the safe side.
            is_last: Whether it goes on only when nobody else can.
            is_idle: Whether nothing is wrong if it waits here for ever.
            step: What it does next, if a lock's holder may see it.
            beside: If given, only those may go on instead whose next step is one of these.
        """
        if self._is_past:  # a finalizer, of something that the schedule has left behind
            return
        actor = self._current
        if actor is None:  # the test itself, before and after the run
            return
        actor.can_go_on, actor.is_alone = can_go_on, is_alone
        actor.is_last, actor.is_idle = is_last, is_idle
        actor.step = step
        # A frame that handles an exception has it where nobody can look.
        actor.handled = sys.exc_info()[0]
        chosen = self._chosen(beside)
        if chosen is not actor:
            loop = asyncio._get_running_loop()
            try:
                (self._test if chosen is None else chosen.stack).switch()
            finally:
                asyncio._set_running_loop(loop)

    def _act(self, body: Callable[[], object]) -> None:
        asyncio._set_running_loop(None)
        try:
            body()
        except _AbandonedError:
            return
        except BaseException as error:
            if not self._is_past:
                self.errors.append(error)
        finally:
            asyncio._set_running_loop(None)

    def _chosen(self, beside: tuple[Step, ...] | None = None) -> _Actor | None:
        """Choose who goes on; None if nobody can or shall."""
        if len(self.trace) < len(self._repeated):
            self._current = self._actors[self._repeated[len(self.trace)]]
            self.trace.append(self._current.number)
            return self._current
        able = self._able(beside)
        if not able:
            return None
        actor = self._current
        if actor in able:  # first: to go on is choice 0, and no preemption
            able.remove(actor)
            able.insert(0, actor)
        self._current = chosen = able[self._choose(able)]
        self.trace.append(chosen.number)
        return chosen

    def _able(self, beside: tuple[Step, ...] | None) -> list[_Actor]:
        """Those who may go on."""
        alive = [one for one in self._actors if not one.stack.dead]
        if beside is not None:
            return [one for one in alive if one is self._current or one.step in beside]
        able = [one for one in alive if one.can_go_on is None or one.can_go_on()]
        return [one for one in able if not one.is_last] or able

    def _choose(self, able: list[_Actor]) -> int:
        count = len(able)
        if count == 1:
            return 0
        position = len(self.choices)
        taken = 0
        if position < len(self._prefix):
            taken = self._prefix[position]
        elif self._random is not None:
            taken = self._random.randrange(count)
        before = 0
        if self.choices:
            last = self.choices[-1]
            before = last.preemptions_before + (last.taken > 0 and not last.is_free)
        self.choices.append(_Choice(taken, count, able[0] is not self._current, before))
        return taken

    def next_prefix(self, preemptions: float = inf, delays: int | None = None) -> list[int] | None:
        """Return the schedule after this one, depth first; None if this was the last."""
        for position in reversed(range(len(self.choices))):
            choice = self.choices[position]
            if choice.taken + 1 == choice.count:
                continue
            if delays is None:
                costs = choice.preemptions_before + (not choice.is_free)
                is_within = costs <= preemptions
            else:
                skipped = sum(self.taken[:position]) + choice.taken + 1
                is_within = skipped <= delays
            if is_within:
                return [*self.taken[:position], choice.taken + 1]
        return None


class ScheduledLocal:
    """A `threading.local` for the threads of schedules.

    Args:
        **first: Makes the first value of each attribute.
    """

    def __init__(self, **first: Callable[[], object]) -> None:
        vars(self)["first"] = first

    def __getattr__(self, name: str) -> Any:
        mine = vars(getcurrent())
        if name not in mine:
            mine[name] = vars(self)["first"][name]()
        return mine[name]

    def __setattr__(self, name: str, value: object) -> None:
        vars(getcurrent())[name] = value


class ScheduledLock:
    """A lock that is only a flag, because one thread runs at a time.

    A timed acquire may run out at any moment: it can always go on, and fails if the lock
    is not free then.

    Args:
        schedule: The schedule.
        locked: Whether it is at first: a gate, for which one thread waits.
        is_certain: Whether nobody waits for it with a timeout.
        requests: If given: what its holder is asked for without the lock.  Then only those may
            go on between its boundaries to whom it makes a difference that it is held: who try it,
            and who request something, so that they find it held when they try it.
    """

    def __init__(
        self,
        schedule: Schedule,
        *,
        locked: bool = False,
        is_certain: bool = False,
        requests: list[Any] | None = None,
    ) -> None:
        self._schedule = schedule
        self._requests = requests
        self._is_certain = is_certain
        self._locked = locked
        self._is_gate = locked  # one thread only ever waits for it, and others release it
        self._holder: object = None

    def locked(self) -> bool:
        """Return whether somebody holds it."""
        return self._locked

    def is_mine(self) -> bool:
        """Return whether the thread that asks holds it."""
        return self._holder is getcurrent()

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Do what `threading.Lock` does."""
        if blocking and timeout == -1:
            self._schedule.point(lambda: not self._locked, is_alone=lambda: self._is_gate)
        else:
            # To a gate: whoever is woken goes on; else he gives up, and requests to leave the line.
            self._schedule.point(
                is_alone=lambda: self._is_gate and not self._locked,
                step="request" if self._is_gate else "try",
            )
        if self._locked:
            return False
        self._locked = True
        if not self._is_gate:
            self._holder = getcurrent()
            # Others run while this one holds it.
            self._schedule.point(beside=None if self._requests is None else ("try",))
        return True

    def release(self) -> None:
        """Do what `threading.Lock` does."""
        if self._is_gate:
            # Whoever is about to be woken is not asleep any more, perhaps.
            self._schedule.point(is_alone=lambda: self._is_certain)
        elif self._requests is not None:
            self._schedule.point(beside=("request", "end"))
        if not self._locked:
            raise RuntimeError("release unlocked lock")
        self._locked, self._holder = False, None
        if not self._is_gate and self._requests is None:
            self._schedule.point()

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


def _point_beside(schedule: Schedule, lock: ScheduledLock | None) -> None:
    """Between two looks at, or changes of, what is also used without the lock."""
    if lock is None:
        schedule.point()
    elif lock.is_mine():
        schedule.point(beside=("look", "end"))
    else:
        schedule.point(step="look")


class ScheduledDeque(deque[T]):
    """A deque that others may change between any two looks at it or changes of it.

    Args:
        schedule: The schedule.
        lock: If given: beside the thread that holds it only those may go on who do not need it.
    """

    def __init__(self, schedule: Schedule, lock: ScheduledLock | None = None) -> None:
        super().__init__()
        self._schedule = schedule
        self._lock = lock

    def _point(self) -> None:
        _point_beside(self._schedule, self._lock)

    def __len__(self) -> int:
        self._point()
        return super().__len__()

    def append(self, item: T) -> None:
        """Do what `deque` does."""
        self._point()
        super().append(item)

    def popleft(self) -> T:
        """Do what `deque` does."""
        self._point()
        return super().popleft()


class ScheduledList(list[T]):
    """A list, as `ScheduledDeque`."""

    def __init__(self, schedule: Schedule, lock: ScheduledLock | None = None) -> None:
        super().__init__()
        self._schedule = schedule
        self._lock = lock

    def _point(self) -> None:
        _point_beside(self._schedule, self._lock)

    def __len__(self) -> int:
        self._point()
        return super().__len__()

    def append(self, item: T) -> None:
        """Do what `list` does."""
        self._point()
        super().append(item)


class ScheduledRequests(list[T]):
    """A list to which others add at any moment, and at which the holder of a lock looks.

    Args:
        schedule: The schedule.
        is_short: Whether it is one step with what comes before, if that is nobody else's concern.
    """

    def __init__(self, schedule: Schedule, *, is_short: bool) -> None:
        super().__init__()
        self._schedule = schedule
        self._is_short = is_short

    def append(self, item: T) -> None:
        """Do what `list` does."""
        if not self._is_short or self._schedule.step != "request":
            self._schedule.point(step="request")
        super().append(item)


def explore(
    case: Callable[[Schedule], Callable[[], object]],
    *,
    preemptions: int = 0,
    delays: int | None = None,
    limit: int = 20_000,
) -> int:
    """Run all schedules of a case in which at most so many turns are taken away.

    Args:
        case: Adds threads to a schedule; what it returns looks at the outcome.
        preemptions: How often a thread that could go on has to let another go first.
        delays: Instead of that: how often a thread that is next in turn is passed over, also
            where the one before it waits.  That is far fewer schedules of many threads.
        limit: More schedules than these fail: the case is too large for a test.

    Returns:
        The number of schedules.

    Raises:
        AssertionError: If a thread is left waiting, fails, or the outcome is wrong; says
            with which choices that is repeated.

    """
    prefix: list[int] | None = []
    count = 0
    with collections_between_runs() as collect:
        while prefix is not None:
            schedule = Schedule(prefix)
            run(case, schedule)
            collect()
            count += 1
            assert count <= limit, f"more than {limit} schedules"
            prefix = schedule.next_prefix(preemptions, delays)
    explored[0] += count
    return count


def sample(case: Callable[[Schedule], Callable[[], object]], *, count: int, seed: int) -> None:
    """Run schedules in which every turn is taken by whomever chance picks.

    Args:
        case: As of `explore`.
        count: How many schedules.
        seed: Of the first; each has the next number.

    Raises:
        AssertionError: As of `explore`.

    """
    with collections_between_runs() as collect:
        for number in range(seed, seed + count):
            run(case, Schedule(seed=number))
            collect()
    explored[0] += count


@contextmanager
def collections_between_runs() -> Iterator[Callable[[], None]]:
    """Keep the collector out of the schedules: a finalizer passes points where nobody chose to."""
    runs = itertools.count(1)

    def collect() -> None:
        if next(runs) % 100 == 0:  # far less often, and the garbage is in no cache any more
            gc.collect()

    was_enabled = gc.isenabled()
    gc.disable()
    gc.collect()  # which does not look at all modules: tests/conftest.py has frozen them
    try:
        yield collect
    finally:
        if was_enabled:
            gc.enable()


def run(case: Callable[[Schedule], Callable[[], object]], schedule: Schedule) -> None:
    """Run one schedule of a case.

    Args:
        case: As of `explore`.
        schedule: The schedule.

    Raises:
        AssertionError: As of `explore`.
    """
    check = case(schedule)
    schedule.run()
    again = f"the schedule repeated by Schedule(trace={schedule.trace})"
    assert not schedule.errors, f"{schedule.errors!r} in {again}"
    if schedule.is_cut:
        return
    assert not schedule.stuck, f"{schedule.stuck} wait for ever in {again}"
    try:
        check()
    except AssertionError as error:
        raise AssertionError(f"{error} in {again}") from error
