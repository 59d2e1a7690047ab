"""What was found, as a table to read, as JSON, and as tables for the docs' page."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import platform
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from benchmarks.harness import Series
from benchmarks.targets import Verdict, judge

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from benchmarks.targets import Target

__all__ = ["Report", "environment"]

PACKAGES = (
    "queuestream",
    "langchain-core",
    "janus",
    "culsans",
    "trio",
    "langchain-classic",
    "langchain-openai",
    "transformers",
    "llama-index-core",
    "redis",
)
BEGIN = "<!-- benchmarks: written by `python -m benchmarks --markdown`, from here -->"
END = "<!-- benchmarks: to here -->"


def environment() -> dict[str, Any]:
    """Say what this was measured on."""
    versions: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "gil": getattr(sys, "_is_gil_enabled", lambda: True)(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "packages": versions,
    }


@dataclass(frozen=True)
class Report:
    """All that was found in one run."""

    environment: dict[str, Any]
    rounds: int
    parts: Mapping[str, Sequence[Series]]
    targets: Sequence[Target]
    """What is to be reached; with none, nothing is judged."""

    @property
    def verdicts(self) -> list[Verdict]:
        """What became of each target."""
        return judge(self.parts, self.targets)

    @property
    def failures(self) -> list[Verdict]:
        """What has a threshold and was not seen to reach it."""
        return [verdict for verdict in self.verdicts if verdict.is_failure]

    # -- JSON ----------------------------------------------------------------------------------

    def as_json(self) -> str:
        """Return all of it, each round's numbers included."""
        parts = {
            name: [
                dataclasses.asdict(series)
                | (
                    {"median": series.median, "quartiles": series.quartiles}
                    if series.values
                    else {}
                )
                for series in found
            ]
            for name, found in self.parts.items()
        }
        verdicts = [
            dataclasses.asdict(verdict.target)
            | {"what": verdict.target.what, "value": verdict.value, "state": verdict.state}
            for verdict in self.verdicts
        ]
        whole = {
            "environment": self.environment,
            "rounds": self.rounds,
            "passed": not self.failures,
            "targets": verdicts,
            "parts": parts,
        }
        return json.dumps(whole, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str, targets: Sequence[Target]) -> Report:
        """Return what `as_json` was made of, judged by these targets."""
        whole = json.loads(text)
        names = [field.name for field in dataclasses.fields(Series)]
        parts = {
            part: [Series(**{name: entry[name] for name in names}) for entry in found]
            for part, found in whole["parts"].items()
        }
        return cls(whole["environment"], whole["rounds"], parts, targets)

    # -- to read -------------------------------------------------------------------------------

    def as_text(self) -> str:
        """Return tables for a terminal."""
        blocks = [self._about()]
        for part, found in self.parts.items():
            blocks.append(
                _aligned([f"{part}:", "median", "quartiles", "unit", "x floor"], _rows(found))
            )
        if self.verdicts:
            head = ["target", "value", "threshold", ""]
            blocks.append(_aligned(head, [_verdict_row(verdict) for verdict in self.verdicts]))
        if self.targets:
            missed = len(self.failures)
            blocks.append(f"{missed} missed" if missed else "all thresholds reached")
        return "\n\n".join(blocks)

    def _about(self) -> str:
        about = self.environment
        packages = ", ".join(
            f"{name} {version}" for name, version in about["packages"].items() if version
        )
        return (
            f"{about['implementation']} {about['python']} on {about['system']}, "
            f"{about['cores']} cores; {self.rounds} rounds; {packages}"
        )

    # -- for the docs --------------------------------------------------------------------------

    def as_markdown(self) -> str:
        """Return tables for the docs' page."""
        blocks = [f"Measured with {self._about()}."]
        if self.verdicts:
            head = ["ratio of medians, where no unit is named", "measured", "threshold", ""]
            rows = [_verdict_row(verdict) for verdict in self.verdicts]
            blocks += ["### Thresholds", _piped(head, rows)]
        for part, found in self.parts.items():
            head = ["case", "median", "quartiles", "unit", "x floor"]
            blocks += [f"### {TITLES.get(part, part)}", _piped(head, _rows(found))]
        return "\n\n".join(blocks)

    def write_into_page(self, page: Path) -> None:
        """Put the tables between the two marks of a page, in place of what is there."""
        text = page.read_text(encoding="utf-8")
        if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(END) < text.index(BEGIN):
            raise ValueError(f"{page} must have these two lines, once each: {BEGIN!r}, {END!r}")
        before, _, rest = text.partition(BEGIN)
        _, _, after = rest.partition(END)
        page.write_text(
            f"{before}{BEGIN}\n\n{self.as_markdown()}\n\n{END}{after}", encoding="utf-8"
        )


TITLES = {
    "burst": "A burst of tokens",
    "queues": "The queue alone",
    "paced": "Streams at a provider's pace",
    "memory": "Open streams",
    "importing": "Import",
    "over_http": "Over HTTP",
    "relay": "Over Redis",
}


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _rows(found: Sequence[Series]) -> list[list[str]]:
    medians = {series.name: series.median for series in found if series.values}
    rows: list[list[str]] = []
    for series in found:
        if not series.values:
            rows.append([series.name, series.missing, "", "", ""])
            continue
        low, high = series.quartiles
        times = f"{series.median / medians[series.floor]:.2f}" if series.floor in medians else ""
        quartiles = f"{_number(low)} to {_number(high)}"
        rows.append([series.name, _number(series.median), quartiles, series.unit, times])
    return rows


def _verdict_row(verdict: Verdict) -> list[str]:
    target = verdict.target
    limits = [
        f"{word} {limit:g}"
        for word, limit in (("at most", target.at_most), ("at least", target.at_least))
        if limit is not None
    ]
    if target.goal is not None:
        limits.append(f"(goal {target.goal:g})")
    value = verdict.missing if verdict.value is None else f"{verdict.value:.2f} {verdict.unit}"
    state = "" if verdict.state == "shown" else verdict.state
    return [target.what, value.rstrip(), " ".join(limits) or "none", state]


def _aligned(head: list[str], rows: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (head, *rows)
    )


def _piped(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))
