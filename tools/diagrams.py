"""Draw the diagrams of the docs: ``python tools/diagrams.py``.

The states of a stream come from the table in the code (`queuestream._states`), the way of a
token from ``docs/explanation/token.txt``.  A test fails where the drawings are not up to date.
"""

from __future__ import annotations

import re
from html import escape
from pathlib import Path

from queuestream._states import TRANSITIONS

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "explanation"

_LOOK = """<style>
text { font: 14px system-ui, sans-serif; fill: #222 }
.small { font-size: 12px; fill: #444 }
rect { fill: #eef4fb; stroke: #2980b9; rx: 6 }
path { fill: none; stroke: #555; stroke-width: 1.3; marker-end: url(#tip) }
path.waits { stroke-dasharray: 5 4 }
line { stroke: #bbb }
</style>
<defs><marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7"
orient="auto-start-reverse">
<path d="M0 0 L10 5 L0 10 z" style="fill:#555;stroke:none;marker-end:none"/>
</marker></defs>
<rect x="0" y="0" width="100%" height="100%" style="fill:#fff;stroke:none;rx:0"/>"""


def _svg(width: int, height: int, title: str, parts: list[str]) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" role="img" aria-label="{escape(title)}">'
    )
    return "\n".join([head, f"<title>{escape(title)}</title>", _LOOK, *parts, "</svg>", ""])


def _text(x: float, y: float, said: str, *, small: bool = False, anchor: str = "middle") -> str:
    look = ' class="small"' if small else ""
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}"{look}>{escape(said)}</text>'


def _box(x: float, y: float, width: float, height: float, said: str) -> str:
    return (
        f'<rect x="{x - width / 2:g}" y="{y - height / 2:g}" width="{width:g}" '
        f'height="{height:g}"/>{_text(x, y + 5, said)}'
    )


_PLACES = {"new": (90, 70), "running": (340, 70), "finished": (620, 70), "closed": (340, 210)}


def states() -> str:
    """The states of a stream."""
    parts: list[str] = []
    for before, event, after in TRANSITIONS:
        (x1, y1), (x2, y2) = _PLACES[before], _PLACES[after]
        if before == after:
            parts.append(
                f'<path d="M{x1 - 25} {y1 - 20} C{x1 - 40} 8 {x1 + 40} 8 {x1 + 25} {y1 - 20}"/>'
            )
            parts.append(_text(x1 + 36, 24, event, small=True, anchor="start"))
        elif y1 == y2:
            parts.append(f'<path d="M{x1 + 55} {y1} L{x2 - 56} {y2}"/>')
            parts.append(_text((x1 + x2) / 2, y1 - 8, event, small=True))
        else:
            start = (x1, y1 + 20)
            end = (x2 - 56, y2) if x1 != x2 else (x2, y2 - 21)
            parts.append(f'<path d="M{start[0]} {start[1]} L{end[0]} {end[1]}"/>')
            middle = (start[0] + end[0]) / 2, (start[1] + end[1]) / 2
            side = 8 if x1 == x2 else -26
            parts.append(
                _text(middle[0] + side, middle[1] + 4, event, small=True,
                      anchor="start" if side > 0 else "end")
            )  # fmt: skip
    parts += [_box(x, y, 110, 40, name) for name, (x, y) in _PLACES.items()]
    return _svg(720, 250, "The states of a stream", parts)


_LANE, _STEP, _TOP = 195, 46, 64
_LINE = re.compile(r"(?P<one>\w+) (?P<arrow>->|=>) (?P<other>\w+): (?P<said>.+)")


def token() -> str:
    """The way of a token: lanes from left to right, steps from top to bottom."""
    lines = (FOLDER / "token.txt").read_text(encoding="utf-8").splitlines()
    names, *steps = [line for line in lines if line and not line.startswith("#")]
    lanes = {name.strip(): 90 + place * _LANE for place, name in enumerate(names.split("|"))}
    height = _TOP + _STEP * len(steps) + 20
    parts = [f'<line x1="{x}" y1="50" x2="{x}" y2="{height - 10}"/>' for x in lanes.values()]
    parts += [_box(x, 30, 120, 36, name) for name, x in lanes.items()]
    for place, line in enumerate(steps):
        step = _LINE.fullmatch(line)
        if step is None:
            raise ValueError(f"no step: {line!r}")
        y = _TOP + _STEP * place + 26
        x1, x2 = lanes[step["one"]], lanes[step["other"]]
        look = ' class="waits"' if step["arrow"] == "=>" else ""
        if x1 == x2:
            parts.append(f'<path{look} d="M{x1} {y - 10} h26 v16 h-22"/>')
            parts.append(_text(x1 + 32, y + 3, step["said"], small=True, anchor="start"))
        else:
            parts.append(f'<path{look} d="M{x1} {y} L{x2 - 3 if x2 > x1 else x2 + 3} {y}"/>')
            parts.append(_text((x1 + x2) / 2, y - 7, step["said"], small=True))
    return _svg(2 * 90 + 4 * _LANE + 60, height, "The way of a token", parts)


DRAWINGS = {"states.svg": states, "token.svg": token}
"""What is drawn, by file."""


def main() -> None:
    """Draw all."""
    for name, draw in DRAWINGS.items():
        (FOLDER / name).write_text(draw(), encoding="utf-8")


if __name__ == "__main__":
    main()
