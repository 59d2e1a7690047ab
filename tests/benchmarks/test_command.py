"""``python -m benchmarks``: the parts run, and the exit code says what came out."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import benchmarks.__main__ as command
from benchmarks.harness import Series
from benchmarks.plots import draw_all
from benchmarks.report import BEGIN, END, Report
from benchmarks.targets import Target

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.harness import Sizes

ROOT = Path(__file__).parents[2]


def test_every_part_runs(tmp_path: Path) -> None:
    """With what the tests have installed: peers that are not say so."""
    file = tmp_path / "found.json"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--quick", "--json", file],
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(file.read_text("utf-8"))
    assert set(found["parts"]) == set(command.PARTS)
    assert (found["rounds"], found["targets"], found["passed"]) == (1, [], True)
    for series in (one for part in found["parts"].values() for one in part):
        assert series["name"] in done.stdout
        if series["missing"]:
            assert series["missing"].startswith("not installed: ")
            assert series["missing"] in done.stdout
        else:
            assert series["median"] > 0 or "memory" in series["name"]
    assert {"python", "cores", "packages"} <= set(found["environment"])
    assert found["environment"]["packages"]["langchain-core"]


@pytest.fixture
def two_parts(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Two parts that take no time: one that reaches its target, one that does not."""
    ran: list[tuple[str, int]] = []

    def part(name: str, ours: float) -> Callable[[Sizes, int], list[Series]]:
        def run(_: Sizes, rounds: int) -> list[Series]:
            ran.append((name, rounds))
            return [Series("ours", "us", [ours] * rounds), Series("peer", "us", [10.0] * rounds)]

        return run

    monkeypatch.setattr(command, "PARTS", {"good": part("good", 10.0), "bad": part("bad", 20.0)})
    targets = [Target(name, "ours", "peer", 1.5) for name in ("good", "bad")]
    monkeypatch.setattr(command, "TARGETS", targets)
    return ran


@pytest.mark.parametrize(
    "arguments, code", [(["good"], 0), (["bad"], 1), ([], 1), (["--quick"], 0)], ids=str
)
def test_the_exit_code_is_1_if_a_threshold_is_missed(
    two_parts: list[tuple[str, int]],
    arguments: list[str],
    code: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert command.main(arguments) == code
    said = capsys.readouterr().out
    assert ("MISSED" in said) is bool(code)
    assert ("all thresholds reached" in said) is (arguments == ["good"])


@pytest.mark.parametrize(
    "arguments, rounds", [([], 7), (["--quick"], 1), (["--rounds", "9"], 9)], ids=str
)
def test_seven_rounds_unless_asked_otherwise(
    two_parts: list[tuple[str, int]], arguments: list[str], rounds: int
) -> None:
    command.main(["good", *arguments])
    assert two_parts == [("good", rounds)]


@pytest.mark.parametrize("arguments", [["ugly"], ["--rounds", "0"]], ids=str)
def test_what_cannot_be_measured_is_refused(
    two_parts: list[tuple[str, int]], arguments: list[str]
) -> None:
    with pytest.raises(SystemExit) as refused:
        command.main(arguments)
    assert refused.value.code == 2
    assert two_parts == []


def test_what_was_found_can_be_judged_and_written_again(
    two_parts: list[tuple[str, int]], tmp_path: Path
) -> None:
    file, page = tmp_path / "found.json", tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nwhat was here\n{END}\nafter\n", encoding="utf-8")
    command.main(["--json", str(file)])
    ran = list(two_parts)
    assert command.main(["--from", str(file), "--markdown", str(page)]) == 1
    assert two_parts == ran
    text = page.read_text("utf-8")
    assert text.startswith(f"before\n{BEGIN}\n")
    assert text.endswith(f"\n{END}\nafter\n")
    assert "what was here" not in text
    assert "| ours / peer | 2.00 | at most 1.5 | MISSED |" in text
    command.main(["--from", str(file), "--markdown", str(page)])
    assert page.read_text("utf-8") == text


@pytest.mark.parametrize(
    "text", ["", f"{BEGIN}", f"{END}\n{BEGIN}"], ids=["none", "one", "swapped"]
)
def test_a_page_without_the_marks_is_left_alone(tmp_path: Path, text: str) -> None:
    page = tmp_path / "page.md"
    page.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match="once each"):
        Report({}, 1, {}, []).write_into_page(page)
    assert page.read_text("utf-8") == text


def test_the_docs_page_has_the_marks_and_its_plots() -> None:
    folder = ROOT / "docs"
    page = (folder / "performance.md").read_text("utf-8")
    assert page.count(BEGIN) == page.count(END) == 1
    for name in ("cost", "cpu", "latency", "memory"):
        assert f"(performance/{name}.svg)" in page
        assert (folder / "performance" / f"{name}.svg").is_file()


def test_every_plot_is_drawn_of_what_was_measured(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="it is in the dependency group of the benchmarks")
    parts: dict[str, Any] = {
        "burst": [
            Series("invoke", "us", [4.0, 5.0]),
            Series("queuestream: thread -> for, 64", "us", [5.0, 6.0], floor="invoke"),
            Series("peer", "us", missing="not installed: peer", floor="invoke"),
        ],
        "paced": [
            Series("no consumer, 1000 streams", "us", [1.0]),
            Series("queuestream: thread -> async for, 1000 streams", "us", [2.0], floor="f"),
            Series(
                "p50 of latency, queuestream: thread -> async for",
                "us",
                [50.0],
                curve=[(40.0, 1.0), (50.0, 50.0)],
            ),
        ],
        "memory": [Series("memory: bare tasks", "KiB", [10.0], curve=[(5.0, 0.1), (10.0, 0.2)])],
    }
    draw_all(parts, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "cost.svg",
        "cpu.svg",
        "latency.svg",
        "memory.svg",
    }
