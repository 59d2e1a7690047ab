"""What is judged, and how: the table of targets and its verdicts."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks import burst, memory, over_http, paced, queues
from benchmarks.harness import FULL, Series
from benchmarks.importing import OURS as IMPORT
from benchmarks.targets import TARGETS, Target, judge
from benchmarks.ways import CALL_SOON


def series(name: str, *values: float, floor: str = "", missing: str = "") -> Series:
    return Series(name, "us", list(values), missing, floor)


FOUND = [
    series("floor", 10.0, 9.0, 11.0),
    series("ours", 12.0, 13.0, 1000.0, floor="floor"),
    series("peer", 40.0, 4.0, 41.0, floor="floor"),
    series("as quick as the floor", 10.0, floor="floor"),
    series("absent", missing="not installed: absent"),
]


def verdict(target: Target) -> tuple[float | None, str]:
    (found,) = judge({"part": FOUND}, [target])
    return found.value, found.state


def test_a_ratio_is_that_of_the_medians() -> None:
    assert verdict(Target("part", "ours", "floor", 1.3)) == (1.3, "ok")


def test_added_is_what_is_above_the_floor() -> None:
    assert verdict(Target("part", "ours", "peer", 0.2, kind="added")) == (0.1, "ok")


def test_a_peer_that_adds_nothing_is_never_beaten() -> None:
    """Hazard: a noisy run in which a peer is below the floor turns the ratio's sign."""
    target = Target("part", "ours", "as quick as the floor", 0.2, kind="added")
    assert verdict(target) == (float("inf"), "MISSED")


def test_items_a_second_go_the_other_way() -> None:
    target = Target("part", "floor", "peer", at_least=4, kind="speed")
    assert verdict(target) == (4.0, "ok")
    assert verdict(Target("part", "peer", "floor", at_least=4, kind="speed")) == (0.25, "MISSED")


def test_a_difference_and_a_bare_number() -> None:
    assert verdict(Target("part", "ours", "floor", 3, kind="difference")) == (3.0, "ok")
    assert verdict(Target("part", "ours", at_most=12.9, kind="value")) == (13.0, "MISSED")


@pytest.mark.parametrize("kind, unit", [("time", ""), ("difference", "us"), ("value", "us")])
def test_what_is_no_ratio_has_a_unit(kind: Any, unit: str) -> None:
    (found,) = judge({"part": FOUND}, [Target("part", "ours", "floor", 1, kind=kind)])
    assert found.unit == unit


@pytest.mark.parametrize("limit, state", [(1.29, "MISSED"), (1.3, "ok"), (None, "shown")])
def test_a_threshold_is_met_up_to_itself(limit: float | None, state: str) -> None:
    assert verdict(Target("part", "ours", "floor", limit)) == (1.3, state)


def test_a_goal_is_no_threshold() -> None:
    assert verdict(Target("part", "ours", "floor", 1.35, goal=1.1)) == (1.3, "ok")


def test_what_could_not_be_measured_counts_against_the_run() -> None:
    """Hazard: a machine without the peer says that the peer was beaten."""
    (found,) = judge({"part": FOUND}, [Target("part", "ours", "absent", 0.5)])
    assert (found.value, found.state, found.is_failure) == (None, "not measured", True)
    (shown,) = judge({"part": FOUND}, [Target("part", "ours", "absent")])
    assert not shown.is_failure


def test_a_part_that_was_not_asked_for_is_not_judged() -> None:
    assert judge({"part": FOUND}, [Target("another", "ours", "floor", 1)]) == []


def test_each_target_names_cases_that_there_are() -> None:
    """Hazard: a case is renamed, and a run of minutes ends in a KeyError."""
    paced_names = {case.name for size in FULL.paced for case in paced.cpu_cases(*size)}
    for way in (paced.OURS, CALL_SOON):
        paced_names |= {f"p50 of latency, {way.name}", f"p99 of latency, {way.name}"}
    names = {
        "burst": {case.name for case in burst.cases(1)},
        "queues": {case.name for case in queues.cases(1)},
        "paced": paced_names,
        "memory": {case.name for case in memory.cases(1)}
        | {f"memory: {kind}" for kind in (memory.OURS, memory.BARE)},
        "importing": {IMPORT},
        "over_http": set(over_http.NAMES),
    }
    for target in TARGETS:
        assert {target.ours, target.peer} - {""} <= names[target.part], target.what


def test_each_case_of_a_burst_has_the_floor_of_its_own_side() -> None:
    floors = {case.name: case.floor for case in burst.cases(1)}
    assert floors.pop(burst.INVOKE) == floors.pop(burst.AINVOKE) == ""
    for name, floor in floors.items():
        is_task = name.startswith(
            (
                "queuestream: task",
                "queuestream: background",
                "model.astream",
                "astream_events",
                "AsyncIteratorCallbackHandler",
            )
        )
        assert floor == (burst.AINVOKE if is_task else burst.INVOKE), name
