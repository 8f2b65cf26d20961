# SPDX-License-Identifier: Apache-2.0
"""A Chromium for the tests: Playwright's own, the system's, or Debian's, which is installed if that is possible."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def _found(own: str) -> str | None:
    """own: where Playwright would have its browser."""
    return own if Path(own).exists() else next((path for path in map(shutil.which, NAMES) if path), None)


def _install() -> str:
    """Let apt install Chromium; why not, if not."""
    if os.geteuid() or not shutil.which("apt-get"):
        return "there is no Chromium, and only root on Debian can install one here (apt-get install chromium)"
    quiet: dict[str, Any] = {"env": os.environ | {"DEBIAN_FRONTEND": "noninteractive"}, "capture_output": True, "timeout": 600}
    for words in (["update"], ["install", "-y", "--no-install-recommends", "chromium"]):
        done = subprocess.run(["apt-get", "-qq", *words], **quiet)
        if done.returncode:
            return f"there is no Chromium, and apt-get {words[0]} failed: {done.stderr.decode(errors='replace').strip()[-300:]}"
    return ""


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """A headless browser by Playwright. Skips the test if there is none to be had, and says why."""
    api = pytest.importorskip("playwright.sync_api", reason="a browser is driven by the package playwright")
    with api.sync_playwright() as play:
        why = ""
        with open(Path(tempfile.gettempdir()) / "gangealing-fast-chromium.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # tests in several processes install it once
            path = _found(play.chromium.executable_path)
            if path is None:
                why = _install()
                path = _found(play.chromium.executable_path)
        if path is None:
            pytest.skip(why or "there is no Chromium")
        # Root has no sandbox, and containers have little shared memory.
        browser = play.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"])
        try:
            yield browser
        finally:
            browser.close()
