"""What ``import queuestream`` adds for a program that has LangChain's callbacks already.

Each number is the wall time of the import in a new interpreter, after
``import langchain_core.callbacks``; of that import itself, beside it.  The warm-up round has
compiled the files.
"""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial

from benchmarks.harness import Series, Sizes, alternate

__all__ = ["run"]

CALLBACKS = "import langchain_core.callbacks"
OURS = "import queuestream, after that"

_PROGRAM = """\
import json, time
start = time.perf_counter()
import langchain_core.callbacks
middle = time.perf_counter()
import queuestream
end = time.perf_counter()
print(json.dumps([(middle - start) * 1e3, (end - middle) * 1e3]))
"""


def run(_: Sizes, rounds: int) -> list[Series]:
    """Measure both imports."""
    taken = alternate({"both": partial(_import_once)}, rounds)["both"]
    return [
        Series(name, "ms", [times[place] for times in taken])
        for place, name in enumerate((CALLBACKS, OURS))
    ]


def _import_once() -> list[float]:
    output = subprocess.check_output([sys.executable, "-c", _PROGRAM], encoding="utf-8")
    return [float(milliseconds) for milliseconds in json.loads(output)]
