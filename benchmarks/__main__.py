"""``python -m benchmarks``: measure, judge, and show."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import burst, importing, memory, over_http, paced, queues, relay
from benchmarks.harness import FULL, QUICK
from benchmarks.plots import draw_all
from benchmarks.report import Report, environment
from benchmarks.targets import TARGETS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from benchmarks.harness import Series, Sizes

PARTS: dict[str, Callable[[Sizes, int], list[Series]]] = {
    "burst": burst.run,
    "queues": queues.run,
    "paced": paced.run,
    "memory": memory.run,
    "importing": importing.run,
    "over_http": over_http.run,
    "relay": relay.run,
}
ROUNDS = 7


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure what the package costs, next to LangChain alone and to its peers.",
        epilog="Exits with 1 if a threshold is missed, or could not be measured.",
    )
    parser.add_argument(
        "parts", nargs="*", metavar="PART", help=f"what to measure: {', '.join(PARTS)}; all if none"
    )
    parser.add_argument("--rounds", type=int, help=f"default: {ROUNDS}; 1 with --quick")
    parser.add_argument(
        "--quick", action="store_true", help="a few tokens of everything, to see that it runs"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers there")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="draw the plots there")
    parser.add_argument(
        "--markdown", type=Path, metavar="FILE", help="write tables between the marks of this page"
    )
    parser.add_argument(
        "--from", dest="source", type=Path, metavar="FILE", help="measure nothing: take this JSON"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says; return the exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    rounds = (1 if options.quick else ROUNDS) if options.rounds is None else options.rounds
    if rounds < 1:
        parser.error("--rounds must be 1 or more")
    targets = [] if options.quick else TARGETS
    if options.source:
        report = Report.from_json(options.source.read_text(encoding="utf-8"), targets)
    else:
        sizes = QUICK if options.quick else FULL
        found: dict[str, list[Series]] = {}
        for part in options.parts or PARTS:
            began = time.perf_counter()
            print(f"{part} ...", end=" ", file=sys.stderr, flush=True)
            found[part] = PARTS[part](sizes, rounds)
            print(f"{time.perf_counter() - began:.0f} s", file=sys.stderr)
        report = Report(environment(), rounds, found, targets)
    print(report.as_text())
    if options.json:
        options.json.write_text(report.as_json(), encoding="utf-8")
    if options.markdown:
        report.write_into_page(options.markdown)
    if options.plots:
        draw_all(report.parts, options.plots)
    return 1 if report.failures else 0


if __name__ == "__main__":
    sys.exit(main())
