# SPDX-License-Identifier: Apache-2.0
"""The studio as somebody uses it, in a headless Chromium: everything that its page is for, and what it has to refuse."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
from browsers import chromium

pytest.importorskip("gradio", reason="the studio is the extra [ui]")

from studios import HOSTILE, picture
from videos import write_video

from gangealing_fast.data.digits import load_heldout_digits, warp_digits
from gangealing_fast.data.pictures import to_uint8
from gangealing_fast.storage.files import save_picture

WAIT = 60_000.0  # milliseconds, for machines that do other work too
SIZES = ((1280, 900), (800, 1100), (390, 844))
SEES = "(key) => [...document.querySelectorAll(`[data-studio=edited] figure`)].some((one) => one.dataset.key === key)"


def _heeds() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a studio, a process of its own, which ends as by Ctrl-C."""
    command = [sys.executable, "-m", "gangealing_fast.studio", "--out", str(folder), "--port", "0", "--threads", "1"]
    with open(folder.with_suffix(".txt"), "w+") as said:
        # A shell that runs commands in the background lets them ignore Ctrl-C.
        process = subprocess.Popen(command, stdout=said, stderr=said, preexec_fn=_heeds)
        try:
            until, found = time.monotonic() + 120, None
            while found is None:
                assert process.poll() is None and time.monotonic() < until, folder.with_suffix(".txt").read_text()
                time.sleep(0.1)
                found = re.search(r"open (http://127\.0\.0\.1:\d+/)", folder.with_suffix(".txt").read_text())
            yield found[1]
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(60)
    text = folder.with_suffix(".txt").read_text()
    assert "Traceback" not in text, text
    assert process.returncode == 130 and not (folder / ".sessions").exists()


class Tab:
    """A page in a browser of its own, and what it complains of. address: where the studio is."""

    def __init__(self, browser: Any, address: str) -> None:
        self.address, self.complaints = address, list[str]()
        self.page = browser.new_context(viewport={"width": SIZES[0][0], "height": SIZES[0][1]}, accept_downloads=True).new_page()
        self.page.set_default_timeout(WAIT)
        self.page.on("console", lambda message: self._note(message) if message.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", self._check)
        self.page.goto(address)
        self.wait("() => document.querySelectorAll('[data-studio=edited] figure').length === 24")

    def _note(self, message: Any) -> None:
        self.complaints.append(f"{message.type}: {message.text}")

    def _check(self, request: Any) -> None:
        if not request.url.startswith((self.address, "data:", "blob:")):
            self.complaints.append(f"asks {request.url}")

    def wait(self, holds: str, argument: Any = None) -> None:
        """Until a function of the page holds."""
        self.page.wait_for_function(holds, arg=argument, timeout=WAIT)

    def says(self, words: str) -> None:
        """Until the page says so."""
        self.wait("(words) => document.querySelector('[data-studio=top] .studio-said').textContent.includes(words)", words)

    def open(self, name: str) -> None:
        self.page.get_by_role("tab", name=name).click()

    def tiles(self) -> list[dict[str, str]]:
        """Key and name of the pictures that are edited."""
        script = "(all) => all.map((one) => ({key: one.dataset.key, name: one.querySelector('img').alt}))"
        return self.page.locator("[data-studio=edited] figure").evaluate_all(script)

    def sources(self, place: str) -> list[str]:
        return self.page.locator(f"[data-studio={place}] img").evaluate_all("(all) => all.map((one) => one.src)")

    def drag(self, place: str, begin: tuple[float, float], end: tuple[float, float]) -> None:
        """With the mouse, from one place of an element to another, in parts of its sides."""
        self.page.locator(place).scroll_into_view_if_needed()
        box, mouse = self.page.locator(place).bounding_box(), self.page.mouse
        at = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in (begin, end)]
        mouse.move(*at[0])
        mouse.down()
        mouse.move(*at[1], steps=4)
        mouse.up()


@pytest.mark.slow
def test_the_studio_from_upload_to_export(tmp_path):
    with chromium() as browser, served(tmp_path / "studio") as address:
        tab = Tab(browser, address)
        mine = uploads(tab, tmp_path)
        draws(tab)
        films(tab, tmp_path)
        points(tab)
        refuses(tab)
        exported(tab, tmp_path)
        runs(tab, tmp_path / "studio")
        alone(browser, tab, mine)
        assert tab.complaints == []


def uploads(tab: Tab, folder: Path) -> list[str]:
    """Two pictures of one's own come first; their keys."""
    digits = to_uint8(warp_digits(load_heldout_digits((3,), 40).images[-2:]))
    for number in range(2):
        save_picture(folder / f"mine-{number}.png", digits[number])
    tab.page.set_input_files("#studio-add", [folder / "mine-0.png", folder / "mine-1.png"])
    tab.says("2 pictures were added")
    found = tab.tiles()
    assert len(found) == 26 and [one["name"] for one in found[:3]] == ["mine-0.png", "mine-1.png", "three-00.png"]
    return [one["key"] for one in found[:2]]


def pixels(tab: Tab, source: str) -> numpy.ndarray:
    """A picture as the page shows it."""
    import io

    from PIL import Image

    return numpy.asarray(Image.open(io.BytesIO(tab.page.request.get(source).body())).convert("RGB")).astype(int)


def draws(tab: Tab) -> None:
    """A stroke on the template appears on the pictures, as a picture that is dropped there does; undo takes it away."""
    before = tab.sources("edited")
    assert not reddish(pixels(tab, before[0]))
    tab.drag("#studio-canvas", (0.4, 0.3), (0.6, 0.7))
    tab.wait("(before) => document.querySelector('[data-studio=edited] img').src !== before", before[0])
    drawn = tab.sources("edited")[0]
    assert reddish(pixels(tab, drawn))
    tab.page.set_input_files("#studio-stamp", {"name": "blue.png", "mimeType": "image/png", "buffer": picture(64, 64, (0, 0, 255))})
    tab.wait("(before) => document.querySelector('[data-studio=edited] img').src !== before", drawn)
    shown = pixels(tab, tab.sources("edited")[0])
    assert ((shown[..., 2] > 150) & (shown[..., 0] < 90)).sum() > 50
    before = tab.sources("edited")[0]
    tab.page.get_by_role("button", name="Undo").click()
    tab.wait("(before) => document.querySelector('[data-studio=edited] img').src !== before", before)
    assert reddish(pixels(tab, tab.sources("edited")[0]))


def reddish(values: numpy.ndarray) -> bool:
    return bool(((values[..., 0] > 150) & (values[..., 1] < 100)).sum() > 50)


def films(tab: Tab, folder: Path) -> None:
    """A video is edited at once in some of its frames, and whole on demand."""
    digit = to_uint8(warp_digits(load_heldout_digits((3,), 1).images))[0].permute(1, 2, 0).numpy()
    large = numpy.kron(digit, numpy.ones((3, 3, 1), numpy.uint8))
    path = write_video(folder / "walk.mp4", [numpy.roll(large, step, 1) for step in range(-8, 8)])
    tab.page.set_input_files("#studio-add-video", path)
    tab.wait("() => document.querySelector('.studio-flip')?.dataset.drawn")
    assert reddish(pixels(tab, tab.sources("video")[0]))
    tab.page.click("#studio-film")
    tab.wait("() => document.querySelector('.studio-film')?.readyState >= 2")
    assert tab.page.evaluate("() => document.querySelector('.studio-film').videoWidth") == 96


def points(tab: Tab) -> None:
    """A point that is dragged moves in the other pictures too."""
    tab.open("Points")
    seen = "() => document.querySelectorAll('.studio-small .studio-dot:not([hidden])').length >= 20"
    tab.page.wait_for_selector("#studio-main .studio-frame")
    tab.drag("#studio-main .studio-frame", (0.5, 0.5), (0.5, 0.5))
    tab.wait(seen)
    places = "String([...document.querySelectorAll('.studio-small .studio-dot')].map((one) => one.style.left + one.style.top))"
    before = tab.page.evaluate(places)
    tab.drag("#studio-main .studio-frame", (0.5, 0.5), (0.6, 0.4))
    tab.wait(f"(before) => before !== {places}", before)
    sure = tab.page.locator(".studio-small .studio-dot").evaluate_all("(all) => all.map((one) => Number(one.dataset.confidence))")
    assert len(sure) == 26 and max(sure) > 0.5 and all(0 <= value <= 1 for value in sure)
    tab.page.locator(".studio-small figure").first.click()  # and goes on in another picture
    tab.wait("() => document.querySelector('#studio-main img').alt !== 'template'")


def refuses(tab: Tab) -> None:
    """Each hostile file ends in one sentence."""
    before = tab.tiles()
    for name, content in HOSTILE.values():
        tab.page.set_input_files("#studio-add", {"name": name, "mimeType": "image/png", "buffer": content})
        tab.says(f"{name} is refused")
        tab.page.evaluate("() => { document.querySelector('[data-studio=top] .studio-said').textContent = ''; }")
    many = """() => {
        const all = new DataTransfer();
        for (let k = 0; k < 10000; k++) all.items.add(new File(["x"], `${k}.png`));
        document.body.dispatchEvent(new DragEvent("drop", {dataTransfer: all, bubbles: true, cancelable: true}));
    }"""
    tab.page.evaluate(many)
    tab.says("10000 pictures are too many: there is room for 174 more of 200")
    assert tab.tiles() == before


def exported(tab: Tab, folder: Path) -> None:
    """Pictures are browsed in an order, and taken home."""
    tab.open("Collection")
    tab.wait("() => document.querySelectorAll('[data-studio=collection] figure').length === 26")
    figures = tab.page.locator("[data-studio=collection] figure")
    alike = figures.evaluate_all("(all) => all.map((one) => Number(one.dataset.likeness))")
    assert alike == sorted(alike, reverse=True) and alike[0] > alike[-1]
    tab.page.locator("#studio-side input[type=number]").fill("64")
    tab.page.locator("#studio-side input[type=number]").press("Enter")
    tab.page.click("#studio-export")
    with tab.page.expect_download() as waiting:
        tab.page.get_by_role("link", name="Download studio.zip").click()
    waiting.value.save_as(folder / "studio.zip")
    with zipfile.ZipFile(folder / "studio.zip") as archive:
        names = archive.namelist()
        assert archive.testzip() is None and len(names) == 2 * 26 + 4
        assert {"edited/000000-mine-0.png", "aligned/000025-three-23.png", "edit.png", "edited.mp4", "scores.jsonl"} <= set(names)


def runs(tab: Tab, folder: Path) -> None:
    """A training is started, watched and stopped."""
    tab.open("Runs")
    tab.page.get_by_label("train: learn an aligner").click()
    tab.page.get_by_label("Name").fill("short")
    tab.page.click("#studio-start")
    tab.wait("() => document.querySelector('.studio-run')?.dataset.state === 'running'")
    assert (folder / "jobs" / "short.json").exists()
    tab.page.click("#studio-stop")
    tab.wait("() => document.querySelector('.studio-run')?.dataset.state === 'stopped'")


def alone(browser: Any, tab: Tab, mine: list[str]) -> None:
    """Another browser sees the examples alone, not even by the addresses of the first one's pictures."""
    other = Tab(browser, tab.address)
    assert not {one["key"] for one in other.tiles()} & set(mine)
    for what in ("preview", "aligned", "edited"):
        assert tab.page.request.get(f"{tab.address}studio/{what}/{mine[0]}").ok
        assert other.page.request.get(f"{tab.address}studio/{what}/{mine[0]}").status == 404
    for name in ("studio.zip", "edited.mp4"):
        assert tab.page.request.get(f"{tab.address}studio/made/{name}").ok
        assert other.page.request.get(f"{tab.address}studio/made/{name}").status == 404
    assert other.complaints == []
    pictures = os.environ.get("GGF_SCREENSHOTS")
    if pictures:
        shots(tab, Path(pictures))


def shots(tab: Tab, folder: Path) -> None:
    """Pictures of all tabs in windows of several sizes."""
    folder.mkdir(parents=True, exist_ok=True)
    for width, height in SIZES:
        tab.page.set_viewport_size({"width": width, "height": height})
        for name in ("Edit", "Points", "Collection", "Runs"):
            tab.open(name)
            tab.page.wait_for_timeout(1500)
            tab.page.screenshot(path=folder / f"{name.lower()}-{width}.png")
