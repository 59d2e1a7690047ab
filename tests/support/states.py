"""Every state of a small case: all schedules, without running one twice from the same state.

`exhaust` runs a case to its end by some schedule, and then by others, as `explore` does, with no
bound on how often turns are taken away.  What makes that end is that two schedules which have
come to the same *state* have the same future: only one of them is followed.  A state is where
each thread stands and all that it can reach from there: the frames with their variables, the
tasks of its loop and what is due on it, the queue, its lines, its waiters.  `Picture` writes
it down as a sequence in which an object that was met before is its number, so that two states
are the same if their objects hang together in the same way, whatever their addresses are.

Left out is what no future depends on: the time (a timed wait may run out at any moment), the age
of waiters but for their order, how many operations a thread has left of its turn, and the count
for those who join a queue, where nobody does.

Fewer schedules are run than there are, and no state is missed by it:

- Threads that do the same are not told apart.  All orders of those that stand at the same place
  are drawn, and the least number is that of the state.
- A step that concerns nobody else is taken at once, see ``is_alone``.
- What the holder of a lock does is one step.  Others wait for the lock, or could as well have
  taken their step before; but for those who try the lock, which fails while it is held, those who
  request something of its holder, and those who take an item or end the queue, for which they do
  not need the lock.  They may go on before and after what he does, the last also between.  Between
  the release and the holder's look for requests is no point: what is requested there could as
  well have been before the release.  And if others have done it before he looks, he might as well
  have looked before that: he tries the lock then for nothing, and is where he is if he does not.
- What somebody else does to a loop takes its place among the loop's handles, and that is all.  So
  a task is cancelled just before another handle is appended, by the loop or from elsewhere, or
  while the loop sleeps; and a loop is told to close between two handles, where it looks for that,
  and closes at once: nobody else can see that it was told.  Where the package itself cancels a task
  on it, from elsewhere (``is_exposed``), all that comes from elsewhere is explored at each of its
  handles, and before each that it appends.
- Once nobody sleeps and nobody will again, one schedule is run to the end, where a case says so
  (``is_decided``): it must not matter to it then who goes on first.
"""

from __future__ import annotations

import asyncio
import dis
import enum
import functools
import itertools
import os
import sys
import threading
import types
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

from queuestream._turns import _Turn
from queuestream.mixed_queue import AsyncFace, MixedQueue, SyncFace
from tests.support.schedule import (
    Schedule,
    ScheduledLock,
    collections_between_runs,
    explored,
    run,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tests.support.schedule import Step

__all__ = ["ALL_STATES", "Hidden", "Outcomes", "Picture", "exhaust", "visits_states"]

ALL_STATES = os.environ.get("QUEUESTREAM_STATES") == "all"
"""Whether to visit the states of all cases, which takes hours."""

F = TypeVar("F", bound="Callable[..., object]")
T = TypeVar("T")


class Hidden(list[T]):
    """A list that no future depends on."""


class Outcomes(tuple[T, ...]):
    """Things of which it does not matter which is which, but only what became of them."""

    __slots__ = ()


_ATOMS = frozenset({type(None), bool, int, str, bytes})


def _live(code: types.CodeType) -> dict[int, frozenset[str]]:
    """Which variables of a function are read after each of its instructions, before they change.

    The others differ from one schedule to another, and nothing comes of it.
    """
    instructions = list(dis.get_instructions(code))
    at = {each.offset: number for number, each in enumerate(instructions)}
    count = len(instructions)
    reads: list[set[str]] = [set() for _ in range(count)]
    writes: list[set[str]] = [set() for _ in range(count)]
    then: list[set[int]] = [set() for _ in range(count)]
    shared = {*code.co_cellvars, *code.co_freevars}
    for number, each in enumerate(instructions):
        name, argument = each.opname, each.argval
        if not name.startswith(("RETURN_", "RAISE_", "RERAISE", "JUMP_")) and number + 1 < count:
            then[number].add(number + 1)
        if each.opcode in dis.hasjrel or each.opcode in dis.hasjabs:
            then[number].add(at[argument])
        if name == "STORE_FAST_LOAD_FAST":
            writes[number].add(argument[0])
            reads[number] |= {argument[1]} - {argument[0]}
        elif name == "STORE_FAST_STORE_FAST":
            writes[number].update(argument)
        elif name == "STORE_FAST":
            writes[number].add(argument)
        elif "FAST_LOAD_FAST" in name:
            reads[number].update(argument)
        elif name == "DELETE_FAST":
            writes[number].add(argument)
        elif "_FAST" in name:
            reads[number].add(argument)
            if instructions[number + 1].opname == "GET_ITER":  # how far it is, a name does not say
                shared.add(argument)
    for entry in dis._parse_exception_table(code):  # type: ignore[attr-defined]
        for number, each in enumerate(instructions):
            if entry.start <= each.offset < entry.end:
                then[number].add(at[entry.target])
    before: list[set[str]] = [set() for _ in range(count)]
    after: list[set[str]] = [set() for _ in range(count)]
    changes = True
    while changes:
        changes = False
        for number in reversed(range(count)):
            out = set().union(*(before[each] for each in then[number]))
            changes = changes or out != after[number]
            after[number], before[number] = out, reads[number] | (out - writes[number])
    return {each.offset: frozenset(after[n] | shared) for n, each in enumerate(instructions)}


_live_in: dict[types.CodeType, dict[int, frozenset[str]]] = {}


class Picture:
    """A state, written down.

    Attributes:
        out: The sequence, so far.
    """

    def __init__(self) -> None:
        self.out: list[Any] = []
        self._numbers: dict[int, int] = {}
        self._kept: list[object] = []  # whose addresses are in use
        self._tickets: list[int] = []  # where in `out` one stands

    def add(self, thing: Any) -> None:
        """Add an object and what hangs on it."""
        kind = type(thing)
        if kind in _ATOMS:
            self.out.append(thing)
            return
        if (number := self._numbers.get(id(thing))) is not None:
            self.out.append((number,))
            return
        self._numbers[id(thing)] = len(self._kept)
        self._kept.append(thing)
        self.out.append(kind)
        way = _WAYS.get(kind)
        if way is None:
            way = _WAYS[kind] = _way(kind)
        way(self, thing)

    def add_frame(self, frame: types.FrameType) -> None:
        """Add a function that runs: where it stands, and those of its variables that count."""
        code, place = frame.f_code, frame.f_lasti
        if (live := _live_in.get(code)) is None:
            live = _live_in[code] = _live(code)
        self.out += (id(code), place)
        counts = live[place]
        for name, value in frame.f_locals.items():
            if name in counts:
                self.out.append(name)
                self.add(value)

    def add_ticket(self, ticket: int) -> None:
        """Add the age of a waiter, of which only the order counts."""
        self._tickets.append(len(self.out))
        self.out.append(ticket)

    def key(self) -> int:
        """The state as a number: that of another state is another, but for one in 2**64."""
        out = self.out
        ages = sorted({0, *(out[place] for place in self._tickets)})  # 0: it never stood in a line
        for place in self._tickets:
            out[place] = ("age", ages.index(out[place]))
        return hash(tuple(out))


def _nothing(picture: Picture, thing: Any) -> None:
    pass


def _sequence(picture: Picture, thing: Any) -> None:
    for each in thing:  # which is no point, where its length is one
        picture.add(each)
    picture.out.append("]")


def _outcomes(picture: Picture, thing: Outcomes[Any]) -> None:
    picture.out.append(tuple(sorted(each.outcome for each in thing)))


def _mapping(picture: Picture, thing: dict[Any, Any]) -> None:
    for key, value in thing.items():
        picture.add(key)
        picture.add(value)
    picture.out.append("}")


def _set(picture: Picture, thing: Any) -> None:
    picture.out.append(len(thing))


def _lock(picture: Picture, thing: ScheduledLock) -> None:
    picture.out.append(thing.locked())


def _function(picture: Picture, thing: types.FunctionType) -> None:
    picture.out.append(id(thing.__code__))
    for cell in thing.__closure__ or ():
        picture.add(cell)


def _cell(picture: Picture, thing: types.CellType) -> None:
    try:
        picture.add(thing.cell_contents)
    except ValueError:
        picture.out.append("empty")


def _method(picture: Picture, thing: types.MethodType) -> None:
    picture.out.append(thing.__func__)
    picture.add(thing.__self__)


def _bound(picture: Picture, thing: Any) -> None:
    picture.out.append(getattr(thing, "__qualname__", ""))
    picture.add(thing.__self__)


def _partial(picture: Picture, thing: functools.partial[Any]) -> None:
    picture.add(thing.func)
    picture.add(thing.args)
    picture.add(thing.keywords)


def _weak(picture: Picture, thing: weakref.ref[Any]) -> None:
    picture.add(thing())


def _coroutine(picture: Picture, thing: Any) -> None:
    if thing.cr_frame is not None:
        picture.add_frame(thing.cr_frame)
    picture.add(thing.cr_await)


def _generator(picture: Picture, thing: Any) -> None:
    if thing.gi_frame is not None:
        picture.add_frame(thing.gi_frame)
    picture.add(thing.gi_yieldfrom)


def _task(picture: Picture, thing: Any) -> None:
    picture.out.append((thing._state, thing._must_cancel))
    picture.add(thing._fut_waiter)
    picture.add(thing.get_coro())
    picture.add(thing._callbacks)


def _future(picture: Picture, thing: Any) -> None:
    picture.out.append(thing._state)
    picture.add(thing._callbacks)


def _handle(picture: Picture, thing: asyncio.Handle) -> None:
    picture.out.append(thing.cancelled())
    picture.add(thing._callback)  # type: ignore[attr-defined]
    picture.add(thing._args)


def _loop(picture: Picture, thing: Any) -> None:
    picture.out.append((thing.is_closed(), thing._is_shut))
    picture.add(thing._ready)
    picture.add(thing.tasks)


def _error(picture: Picture, thing: BaseException) -> None:
    picture.add(thing.args)


def _plain(kind: type) -> Callable[[Picture, Any], None]:
    hidden = getattr(kind, "hidden", ())
    slots = [
        (name, slot)
        for each in kind.__mro__
        if "__slots__" in vars(each)
        for name, slot in vars(each).items()
        if isinstance(slot, types.MemberDescriptorType) and name not in hidden
    ]
    has_dict = kind.__dictoffset__ != 0

    def way(picture: Picture, thing: Any) -> None:
        for name, slot in slots:
            try:
                value = slot.__get__(thing)
            except AttributeError:
                continue
            if name == "ticket":
                picture.add_ticket(value)
            else:
                picture.out.append(name)
                picture.add(value)
        if has_dict:
            for name, value in vars(thing).items():
                picture.out.append(name)
                picture.add(value)

    return way


_OPAQUE = (
    types.ModuleType,
    type,
    threading.Thread,
    Schedule,
    itertools.count,
    threading.local,
    enum.Enum,
    float,
    Hidden,
    _Turn,
    MixedQueue,  # with its faces: they never change
    SyncFace,
    AsyncFace,
)
_WAYS: dict[type, Callable[[Picture, Any], None]] = {}
_BY_BASE: list[tuple[type | tuple[type, ...], Callable[[Picture, Any], None]]] = [
    (_OPAQUE, _nothing),
    (Outcomes, _outcomes),
    ((list, tuple, deque), _sequence),
    (dict, _mapping),
    ((set, frozenset), _set),
    (ScheduledLock, _lock),
    (types.FunctionType, _function),
    (types.CellType, _cell),
    (types.MethodType, _method),
    ((types.BuiltinMethodType, types.MethodWrapperType), _bound),
    (functools.partial, _partial),
    (weakref.ref, _weak),
    (types.CoroutineType, _coroutine),
    (types.GeneratorType, _generator),
    (asyncio.Task, _task),
    (asyncio.Future, _future),
    (asyncio.Handle, _handle),
    (asyncio.BaseEventLoop, _loop),
    (BaseException, _error),
]


def _way(kind: type) -> Callable[[Picture, Any], None]:
    for base, way in _BY_BASE:
        if issubclass(kind, base):
            return way
    if kind.__module__ == "_asyncio":
        # What a loop calls to go on with a task; or the await of a future, which its task has, too.
        return _bound if hasattr(kind, "__self__") else _nothing
    return _plain(kind)


class _Exhaustive(Schedule):
    """A schedule that ends at a state in which another one was before.

    Attributes:
        forks: Where somebody else could have gone on, from a state that was new: how many went on
            before, and the numbers of those who could.
    """

    def __init__(self, trace: list[int], known: set[int], *, is_short: bool) -> None:
        super().__init__(trace=trace)
        self._known = known
        self.is_short = is_short
        self.forks: list[tuple[int, list[int]]] = []

    def _able(self, beside: tuple[Step, ...] | None) -> list[Any]:
        if self.is_cut:
            return []
        able = super()._able(beside)
        if self.is_short and not self.is_over and beside is None:
            self.is_over = not any(map(self._sleeps, self._actors)) and self.is_decided()
        if self.is_over:
            return able[:1]
        for actor in able if self.is_short else ():
            if actor.is_alone is not None and actor.is_alone():
                return [actor]
        if len(able) > 1:
            state = hash((self._state(), beside))
            if state in self._known:
                self.is_cut = True
                return []
            self._known.add(state)
        return able

    def _sleeps(self, actor: Any) -> bool:
        """Whether it waits for others; who cancels or closes waits for its place only."""
        if actor.stack.dead or actor.is_last or actor.is_idle or actor.step in ("cancel", "close"):
            return False
        return actor.can_go_on is not None and not actor.can_go_on()

    def _choose(self, able: list[Any]) -> int:
        if len(able) > 1:
            self.forks.append((len(self.trace), [actor.number for actor in able[1:]]))
        return 0

    def _state(self) -> int:
        """The state as a number, which does not tell apart threads of the same name."""
        frames = {actor.number: self._frames(actor) for actor in self._actors}
        places = {
            number: [(id(each.f_code), each.f_lasti) for each in stack]
            for number, stack in frames.items()
        }
        if not self.is_short:
            return self._key(self._actors, frames)
        alike: dict[object, list[Any]] = {}
        for actor in sorted(self._actors, key=lambda one: (places[one.number], one.name)):
            alike.setdefault((actor.name, *places[actor.number]), []).append(actor)
        orders = itertools.product(*map(itertools.permutations, alike.values()))
        return min(self._key(itertools.chain(*order), frames) for order in orders)

    def _frames(self, actor: Any) -> list[types.FrameType]:
        frame = sys._getframe() if actor is self._current else actor.stack.gr_frame
        frames = []
        while frame is not None and frame.f_code is not _ACT:
            if frame.f_code not in _OWN:
                frames.append(frame)
            frame = frame.f_back
        return frames[::-1]

    def _key(self, actors: Iterable[Any], frames: dict[int, list[types.FrameType]]) -> int:
        picture = Picture()
        for actor in actors:
            stack = actor.stack
            picture.out += (actor.name, stack.dead)
            if not stack.dead and not stack:  # to begin
                picture.add(actor.body)
            for frame in frames[actor.number]:
                picture.add_frame(frame)
            picture.add(vars(stack).get("bell"))
            picture.out.append(actor.handled)
        return picture.key()


_ACT = Schedule._act.__code__
_OWN = {
    Schedule.point.__code__,
    Schedule._chosen.__code__,
    _Exhaustive._able.__code__,
    _Exhaustive._choose.__code__,
    _Exhaustive._state.__code__,
    _Exhaustive._frames.__code__,
}


def exhaust(case: Callable[[Schedule], Callable[[], object]], *, is_short: bool = True) -> int:
    """Visit all states of a case.

    Args:
        case: As of `explore`.
        is_short: Whether to leave out what comes to the same, see above.

    Returns:
        The number of states in which there was a choice.

    Raises:
        AssertionError: As of `explore`.
    """
    known: set[int] = set()
    traces: list[list[int]] = [[]]
    with collections_between_runs() as collect:
        while traces:
            schedule = _Exhaustive(traces.pop(), known, is_short=is_short)
            run(case, schedule)
            collect()
            explored[0] += 1
            traces += (
                [*schedule.trace[:length], other]
                for length, others in schedule.forks
                for other in others
            )
    return len(known)


def visits_states(test: F) -> F:
    """Mark a test that calls `exhaust`."""
    reason = "to look at the variables of a function that runs changes it, before Python 3.13"
    pytest.mark.skipif(sys.version_info < (3, 13), reason=reason)(test)
    return test
