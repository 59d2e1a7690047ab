"""What is to be reached: all thresholds, in one table.

Each is about two cases of one run, or about one.  *Added* is what a case costs above its
floor: above what LangChain costs by itself, without a consumer.

A threshold is what every run on two cores that do nothing else must reach.  Where it is
weaker than its goal, the page on performance says line by line what is in the way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from benchmarks.burst import AINVOKE, INVOKE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from benchmarks.harness import Series

__all__ = ["TARGETS", "Target", "Verdict", "judge"]


@dataclass(frozen=True)
class Target:
    """One thing to reach."""

    part: str
    ours: str
    """The name of our case."""
    peer: str = ""
    """The name of the case that it is compared with."""
    at_most: float | None = None
    at_least: float | None = None
    kind: Literal["time", "added", "speed", "difference", "value"] = "time"
    """What is compared: medians, what is added to the floors, items a second (all three as a
    ratio), medians (as a difference), or nothing but our median."""
    goal: float | None = None
    """What is hoped for beyond that."""

    @property
    def what(self) -> str:
        """Say what is compared."""
        return {
            "time": f"{self.ours} / {self.peer}",
            "added": f"added: {self.ours} / {self.peer}",
            "speed": f"items a second: {self.ours} / {self.peer}",
            "difference": f"{self.ours} - {self.peer}",
            "value": self.ours,
        }[self.kind]

    def value(self, found: Mapping[str, Series]) -> float:
        """Return the number that is to be at most, or at least, so much."""
        ours = found[self.ours]
        if self.kind == "value":
            return ours.median
        peer = found[self.peer]
        if self.kind == "difference":
            return ours.median - peer.median
        if self.kind == "speed":
            return peer.median / ours.median
        if self.kind == "time":
            return ours.median / peer.median
        added = peer.median - found[peer.floor].median
        # A peer that adds nothing is one that nobody can be a fraction of.
        return (ours.median - found[ours.floor].median) / added if added > 0 else float("inf")


@dataclass(frozen=True)
class Verdict:
    """What became of a target."""

    target: Target
    value: float | None
    """None if it could not be measured."""
    missing: str = ""
    """Why not."""
    unit: str = ""
    """Of a value that is no ratio."""

    @property
    def state(self) -> Literal["ok", "MISSED", "not measured", "shown"]:
        """Whether it was reached; ``"shown"`` if there is no threshold."""
        at_most, at_least = self.target.at_most, self.target.at_least
        if self.value is None:
            return "not measured"
        if at_most is None and at_least is None:
            return "shown"
        is_met = (at_most is None or self.value <= at_most) and (
            at_least is None or self.value >= at_least
        )
        return "ok" if is_met else "MISSED"

    @property
    def is_failure(self) -> bool:
        """Whether it counts against the run: also what has a threshold and was not measured."""
        has_threshold = (self.target.at_most, self.target.at_least) != (None, None)
        return has_threshold and self.state in {"MISSED", "not measured"}


def judge(parts: Mapping[str, Sequence[Series]], targets: Sequence[Target]) -> list[Verdict]:
    """Say of each target of these parts whether it was reached."""
    verdicts: list[Verdict] = []
    for target in targets:
        if target.part not in parts:
            continue
        found = {series.name: series for series in parts[target.part]}
        needed = [found[name] for name in (target.ours, target.peer) if name]
        missing = next((series.missing for series in needed if series.missing), "")
        value = None if missing else target.value(found)
        unit = needed[0].unit if target.kind in {"difference", "value"} else ""
        verdicts.append(Verdict(target, value, missing, unit))
    return verdicts


# -- the table -------------------------------------------------------------------------------------


def _burst(size: int, *, to_for: float, to_async_for: float, added: float) -> list[Target]:
    ours_to_for, ours_to_async_for, task = (
        f"queuestream: {way}, {size}"
        for way in ("thread -> for", "thread -> async for", "task -> async for")
    )
    janus = f"thread -> janus -> async for, {size}"
    handler, events = "AsyncIteratorCallbackHandler", "astream_events v2"
    return [
        Target("burst", ours_to_for, INVOKE, to_for, goal=1.35),
        Target("burst", ours_to_async_for, INVOKE, to_async_for, goal=1.35),
        Target("burst", task, AINVOKE, 1.5, goal=1.35),
        Target("burst", ours_to_async_for, janus, 0.5),
        Target("burst", ours_to_async_for, janus, added, kind="added", goal=0.2),
        Target("burst", task, handler, 0.55),
        Target("burst", task, handler, 0.2, kind="added"),
        Target("burst", task, events, 0.55),
    ]


def _queue(places: str, peer: str, at_least: float, goal: float | None = None) -> Target:
    ours = f"{places}: MixedQueue"
    return Target("queues", ours, f"{places}: {peer}", at_least=at_least, kind="speed", goal=goal)


_PACED = "queuestream: thread -> async for"
_JANUS = "thread -> janus -> async for"
_CALL_SOON = "thread -> call_soon_threadsafe -> async for"

TARGETS = [
    *_burst(64, to_for=2.6, to_async_for=2.8, added=0.28),
    *_burst(1024, to_for=1.9, to_async_for=2.2, added=0.28),
    Target("burst", "model.stream", INVOKE),
    Target("burst", "model.astream", AINVOKE),
    _queue("thread -> asyncio", "janus", 2.8, goal=5),
    _queue("thread -> asyncio", "culsans", 1.5, goal=2),
    _queue("thread -> thread", "queue.Queue", 1.3, goal=1.5),
    _queue("task -> task", "asyncio.Queue", 0.45, goal=0.8),
    _queue("thread -> trio", "culsans", 3, goal=5),
    Target("paced", f"{_PACED}, 100 streams", f"{_JANUS}, 100 streams", 1.2, goal=0.6),
    Target("paced", f"{_PACED}, 100 streams", f"{_CALL_SOON}, 100 streams", 1.4, goal=0.9),
    Target("paced", f"{_PACED}, 1000 streams", f"{_PACED}, 10 streams", 1.2),
    Target("paced", f"p50 of latency, {_PACED}", f"p50 of latency, {_CALL_SOON}", 1.05, goal=1.0),
    Target("paced", f"p99 of latency, {_PACED}", f"p99 of latency, {_CALL_SOON}", 1.2),
    Target(
        "memory", "memory: queuestream, run_in=task", "memory: bare tasks", 12, kind="difference"
    ),
    Target(
        "memory",
        "open and close: queuestream, run_in=task",
        "open and close: bare task with asyncio.Queue",
        2,
    ),
    Target("importing", "import queuestream, after that", at_most=25, kind="value"),
    Target("over_http", "queuestream: thread -> for", "model.stream"),
    Target("over_http", "queuestream: task -> async for", "model.astream"),
]
