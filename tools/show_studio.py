# SPDX-License-Identifier: Apache-2.0
"""Take the pictures of docs/studio.md: the page of `studio` with the package's digits, in a headless Chromium.

python tools/show_studio.py FOLDER
"""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

SIZE = {"width": 1200, "height": 760}
STROKES = (((0.42, 0.3), (0.6, 0.36)), ((0.42, 0.68), (0.6, 0.62)))


def main(out: Path) -> None:
    """Start a studio, use it as a reader would, and write edit.png, points.png, collection.png and runs.png."""
    with tempfile.TemporaryDirectory() as scratch, sync_playwright() as play:
        said = Path(scratch) / "said.txt"
        command = [sys.executable, "-m", "gangealing_fast.studio", "--out", f"{scratch}/studio", "--port", "0", "--threads", "1"]
        with open(said, "w") as file:
            studio = subprocess.Popen(command, stdout=file, stderr=file)
        own = play.chromium.executable_path
        path = own if Path(own).exists() else shutil.which("chromium")
        browser = play.chromium.launch(executable_path=path, args=["--no-sandbox"])
        try:
            while not (found := re.search(r"open (http\S+)", said.read_text())):
                if studio.poll() is not None:
                    sys.exit(said.read_text())
                time.sleep(0.2)
            page = browser.new_context(viewport=SIZE).new_page()
            page.goto(found[1])
            _use(page, out)
        finally:
            browser.close()
            studio.send_signal(signal.SIGINT)
            studio.wait()


def _use(page: Any, out: Path) -> None:
    page.wait_for_function("() => document.querySelectorAll('[data-studio=edited] figure').length > 0")
    for begin, end in STROKES:
        _drag(page, "#studio-canvas", begin, end)
    page.wait_for_timeout(5000)
    _shoot(page, out / "studio-edit.png")
    page.get_by_role("tab", name="Points").click()
    page.wait_for_selector("#studio-main .studio-frame")
    for place in ((0.56, 0.3), (0.44, 0.5), (0.58, 0.66)):
        _drag(page, "#studio-main .studio-frame", place, place)
        page.wait_for_timeout(1500)
    _shoot(page, out / "studio-points.png")
    page.get_by_role("tab", name="Collection").click()
    page.wait_for_timeout(6000)
    _shoot(page, out / "studio-collection.png")
    page.get_by_role("tab", name="Runs").click()
    page.get_by_label("method").click()
    page.get_by_role("option", name="entropy").click()
    page.click("#studio-start")
    page.wait_for_function("() => document.querySelector('.studio-run')?.dataset.state === 'finished'", timeout=300_000)
    page.wait_for_timeout(2000)
    _shoot(page, out / "studio-runs.png")


def _drag(page: Any, place: str, begin: tuple[float, float], end: tuple[float, float]) -> None:
    box = page.locator(place).bounding_box()
    at = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in (begin, end)]
    page.mouse.move(*at[0])
    page.mouse.down()
    page.mouse.move(*at[1], steps=8)
    page.mouse.up()


def _shoot(page: Any, path: Path) -> None:
    """A picture of the page with 128 colours, which keeps the file small."""
    page.evaluate("() => window.scrollTo(0, 0)")
    page.screenshot(path=path)
    with Image.open(path) as picture:
        small = picture.convert("RGB").quantize(128)
    small.save(path, optimize=True)
    print(path)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
