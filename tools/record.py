"""Record ``queuestream demo`` for the README: ``python tools/record.py`` writes docs/demo.svg.

The program runs, what it prints is noted with the time at which it came, and becomes a picture in
which each piece appears when it did.  It moves once, and stands still for whoever wants no
motion.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from html import escape
from pathlib import Path

TO = Path(__file__).parents[1] / "docs" / "demo.svg"
COMMAND = ["queuestream", "demo", "--pace", "0.04"]
LINES = 15  # of the first half: `for`
WIDTH, LINE, LEFT, TOP = 700, 22, 20, 62

_HEAD = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}"
height="{height}" role="img" aria-label="queuestream demo prints a passage token by token">
<title>queuestream demo, as it printed</title>
<style>
text {{ font: 15px ui-monospace, Menlo, Consolas, monospace; fill: #d7dce2; white-space: pre }}
.p {{ fill: #7bd88f }}
.n {{ fill: #8a939e }}
tspan {{ animation: show .01s both }}
@keyframes show {{ from {{ opacity: 0 }} to {{ opacity: 1 }} }}
@media (prefers-reduced-motion: reduce) {{ tspan {{ animation: none }} }}
</style>
<rect width="{width}" height="{height}" rx="8" fill="#1d2126"/>
<circle cx="22" cy="20" r="6" fill="#ff6159"/><circle cx="42" cy="20" r="6" fill="#ffbd2e"/>
<circle cx="62" cy="20" r="6" fill="#28c941"/>
<text x="{left}" y="{first}"><tspan class="p">$ </tspan>queuestream demo</text>"""


def recorded() -> list[tuple[float, str]]:
    """What the program printed, piece by piece, and after how many seconds."""
    began = time.monotonic()
    pieces: list[tuple[float, str]] = []
    with subprocess.Popen(
        [sys.executable, "-m", *COMMAND], stdout=subprocess.PIPE, bufsize=0
    ) as program:
        assert program.stdout is not None
        while piece := program.stdout.read(4096):
            pieces.append((time.monotonic() - began, piece.decode()))
    return pieces


def drawn(pieces: list[tuple[float, str]]) -> str:
    """The picture."""
    start = pieces[0][0]
    lines: list[list[tuple[float, str]]] = [[]]
    for when, piece in pieces:
        for part in re.split(r"(\n)", piece):
            if part == "\n":
                lines.append([])
            elif part:
                lines[-1].append((when - start + 0.5, part))
    parts = [
        _HEAD.format(width=WIDTH, height=TOP + LINE * (LINES + 1), left=LEFT, first=TOP - LINE + 10)
    ]
    for place, line in enumerate(lines[:LINES]):
        if not line:
            continue
        look = ' class="n"' if line[0][1].startswith(("#", "-")) else ""
        words = "".join(
            f'<tspan{look} style="animation-delay:{when:.2f}s">{escape(said)}</tspan>'
            for when, said in line
        )
        parts.append(f'<text x="{LEFT}" y="{TOP + LINE * place + 14}">{words}</text>')
    return "\n".join([*parts, "</svg>", ""])


if __name__ == "__main__":
    TO.write_text(drawn(recorded()), encoding="utf-8")
