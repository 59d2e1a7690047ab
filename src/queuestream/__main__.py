"""``python -m queuestream``: the same as the command ``queuestream``."""

from __future__ import annotations

import sys

from queuestream.cli import main

if __name__ == "__main__":
    sys.exit(main())
