"""Take the pictures of the chat page that docs/serve.md shows.

    python docs/serve/screenshots.py

It needs the package with the extra ``web``, the packages playwright and pillow, and a chromium
(``/usr/bin/chromium``, or what ``QUEUESTREAM_CHROMIUM`` says).
"""  # noqa: INP001 - a program

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

FOLDER = Path(__file__).parent
PICTURES = [
    ("desktop-light", "light", {"width": 860, "height": 560}),
    ("phone-light", "light", {"width": 390, "height": 700}),
    ("phone-dark", "dark", {"width": 390, "height": 700}),
]


def main() -> None:
    """Start a server with the demo model, and a browser."""
    server = subprocess.Popen(
        [sys.executable, "-m", "queuestream", "serve", "--port=0"],
        stdout=subprocess.PIPE,
        encoding="utf-8",
    )
    assert server.stdout is not None
    try:
        url = next(line.split()[-1] for line in server.stdout if "chat page" in line)
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path=os.environ.get("QUEUESTREAM_CHROMIUM", "/usr/bin/chromium"),
                args=["--no-sandbox"],
            )
            for name, scheme, size in PICTURES:
                page = browser.new_page(color_scheme=scheme, viewport=size)  # type: ignore[arg-type]
                page.goto(url)
                page.get_by_text("ready", exact=True).wait_for()
                page.locator("#question").fill("What is a stream?")
                page.locator("#question").press("Enter")
                page.locator(".count").get_by_text(re.compile("^(9.|1..)$")).wait_for()
                path = FOLDER / f"{name}.png"
                page.screenshot(path=path)
                page.close()
                Image.open(path).convert("RGB").quantize(64).save(path, optimize=True)
    finally:
        server.terminate()
        server.wait(10)
        server.stdout.close()


if __name__ == "__main__":
    main()
