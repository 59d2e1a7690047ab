"""The plots that the docs show, drawn of what was measured.

Each has a light ground of its own, so that it can be read on a page of any colour.  Ours is
always of the same colour, and so is LangChain alone.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from benchmarks.harness import Series

__all__ = ["draw_all"]

OURS, FLOOR, PEER = "#0b6e99", "#9aa5ad", "#d08c3f"
COLOURS = {
    "no consumer": FLOOR,
    "queuestream: thread -> async for": OURS,
    "thread -> janus -> async for": "#b5483a",
    "thread -> call_soon_threadsafe -> async for": PEER,
}
STYLE = {
    "figure.facecolor": "#fbfbfa",
    "axes.facecolor": "#fbfbfa",
    "savefig.facecolor": "#fbfbfa",
    "axes.edgecolor": "#c5cbd0",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlepad": 10,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e7ea",
    "text.color": "#22292f",
    "axes.labelcolor": "#22292f",
    "xtick.color": "#4a545c",
    "ytick.color": "#22292f",
    "font.size": 10,
    "font.family": "DejaVu Sans",
    "legend.frameon": False,
    "svg.hashsalt": "queuestream",  # the same numbers make the same file
    "svg.fonttype": "path",
}


def draw_all(parts: Mapping[str, Sequence[Series]], folder: Path, suffix: str = "svg") -> None:
    """Draw each plot whose part was measured, into files of this folder."""
    pyplot: Any = importlib.import_module("matplotlib.pyplot")
    pyplot.switch_backend("agg")
    folder.mkdir(parents=True, exist_ok=True)
    plots = {
        "cost": ("burst", _draw_cost),
        "cpu": ("paced", _draw_cpu),
        "latency": ("paced", _draw_latency),
        "memory": ("memory", _draw_memory),
    }
    for name, (part, draw) in plots.items():
        found = [series for series in parts.get(part, ()) if series.values]
        if found:
            with pyplot.rc_context(STYLE):
                figure = draw(pyplot, found)
                metadata = {"Date": None} if suffix == "svg" else None
                figure.savefig(folder / f"{name}.{suffix}", metadata=metadata, dpi=120)
                pyplot.close(figure)


def _draw_cost(pyplot: Any, found: Sequence[Series]) -> Any:
    """Microseconds a token of each way, by what LangChain itself costs under it."""
    floors = [series for series in found if not series.floor]
    groups = [[floor, *(one for one in found if one.floor == floor.name)] for floor in floors]
    figure, axes = pyplot.subplots(
        len(groups),
        1,
        figsize=(8.6, 0.8 + 0.3 * len(found) + 0.7 * len(groups)),
        height_ratios=[len(group) + 1 for group in groups],
        layout="constrained",
        sharex=True,
        squeeze=False,
    )
    most = max(high for _, high in (series.quartiles for series in found))
    for axis, group in zip(axes[:, 0], groups, strict=True):
        group.sort(key=lambda series: series.median, reverse=True)
        floor = next(series for series in group if not series.floor)
        medians = [series.median for series in group]
        reach = [series.quartiles for series in group]
        spread = [
            [middle - low for middle, (low, _) in zip(medians, reach, strict=True)],
            [high - middle for middle, (_, high) in zip(medians, reach, strict=True)],
        ]
        axis.barh(
            [series.name for series in group],
            medians,
            xerr=spread,
            color=[
                FLOOR
                if series is floor
                else OURS
                if series.name.startswith("queuestream")
                else PEER
                for series in group
            ],
            error_kw={"ecolor": "#4a545c", "elinewidth": 1},
            height=0.72,
        )
        for place, (series, (_, high)) in enumerate(zip(group, reach, strict=True)):
            axis.text(high + most * 0.01, place, f"{series.median:.1f}", va="center", fontsize=9)
        axis.axvline(floor.median, color="#4a545c", linewidth=1, linestyle=":")
        call = floor.name.split(",")[0]
        axis.set_title(f"Runs that call {call}: microseconds a token, in a burst")
        axis.set_xlim(0, most * 1.1)
        axis.grid(visible=False, axis="y")
        axis.tick_params(length=0, labelbottom=True)
    marks = [pyplot.Rectangle((0, 0), 1, 1, color=colour) for colour in (OURS, PEER, FLOOR)]
    names = ["this package", "others", "LangChain with a handler that does nothing: the floor"]
    figure.legend(marks, names, loc="outside lower right", ncols=3)
    return figure


def _draw_cpu(pyplot: Any, found: Sequence[Series]) -> Any:
    """CPU time a token against the number of streams."""
    figure, axis = pyplot.subplots(figsize=(8, 4.2), layout="constrained")
    ticks: set[int] = set()
    for name, colour in COLOURS.items():
        counted = [_way_and_streams(series.name) for series in found]
        ours = [(n, one) for (way, n), one in zip(counted, found, strict=True) if way == name]
        streams = [number for number, _ in ours]
        ticks.update(streams)
        axis.plot(streams, [one.median for _, one in ours], "o-", color=colour, label=name)
        low = [one.quartiles[0] for _, one in ours]
        high = [one.quartiles[1] for _, one in ours]
        axis.fill_between(streams, low, high, color=colour, alpha=0.15, linewidth=0)
    axis.set_xscale("log")
    axis.set_xticks(sorted(ticks), [f"{tick:,}" for tick in sorted(ticks)])
    axis.minorticks_off()
    axis.set_ylim(bottom=0)
    axis.set_title("CPU time a token, streams at a provider's pace")
    axis.set_xlabel("open streams, each with a run in a thread, all iterated on one asyncio loop")
    axis.set_ylabel("microseconds of CPU a token")
    axis.legend(loc="upper left", bbox_to_anchor=(0, -0.16), ncols=2)
    return figure


def _way_and_streams(name: str) -> tuple[str, int]:
    """Take the name of a case with several streams apart; of others, there are none."""
    way, _, streams = name.rpartition(", ")
    return (way, int(streams.split()[0])) if streams.endswith(" streams") else (name, 0)


def _draw_latency(pyplot: Any, found: Sequence[Series]) -> Any:
    """How many of the tokens of one paced stream were there after how long."""
    figure, axis = pyplot.subplots(figsize=(8, 4.2), layout="constrained")
    curves = [series for series in found if series.curve]
    for series in curves:
        name = series.name.split(", ", 1)[1]
        axis.plot(
            [late for late, _ in series.curve],
            [percent for _, percent in series.curve],
            color=COLOURS[name],
            label=name,
            linewidth=2,
        )
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axis.xaxis.set_minor_formatter(lambda _value, _: "")
    axis.grid(which="minor", axis="x", linewidth=0.4)
    axis.set_ylim(0, 101)
    axis.set_title("Latency of a token of one stream")
    axis.set_xlabel("microseconds from LangChain's callback to the consumer")
    axis.set_ylabel("per cent of the tokens")
    axis.legend(loc="lower right")
    return figure


def _draw_memory(pyplot: Any, found: Sequence[Series]) -> Any:
    """Memory by the number of open streams."""
    figure, axis = pyplot.subplots(figsize=(8, 4.2), layout="constrained")
    for series in found:
        if series.curve:
            name = series.name.split(": ", 1)[1]
            is_bare = "bare" in name
            axis.plot(
                [0.0, *(streams for streams, _ in series.curve)],
                [0.0, *(mebibytes for _, mebibytes in series.curve)],
                "o-",
                color=FLOOR if is_bare else OURS,
                label="bare tasks: ainvoke, and a task that waits" if is_bare else name,
            )
    axis.set_xlim(left=0)
    axis.set_ylim(bottom=0)
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axis.set_title("Memory of streams that wait for their first token")
    axis.set_xlabel("open streams")
    axis.set_ylabel("MiB of resident memory")
    axis.legend(loc="upper left")
    return figure
