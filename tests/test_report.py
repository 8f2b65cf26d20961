# SPDX-License-Identifier: Apache-2.0
"""The report is one file, says what it was given, escapes it, and draws what can be drawn."""

from __future__ import annotations

import base64
import io
import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from PIL import Image

from gangealing_fast import report
from gangealing_fast.geometry.warps import identity_grid
from gangealing_fast.runtime.errors import UserError

EMPTY = {"meta", "link", "img", "br"}


class Page(HTMLParser):
    """Collects tags, checks that they nest, and decodes the pictures."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.pictures: list[Image.Image] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = dict(attributes)
        self.tags.append(tag)
        if tag not in EMPTY:
            self.open.append(tag)
        if values.get("id"):
            self.ids.append(str(values["id"]))
        if tag == "a":
            self.links.append(str(values["href"]))
        if tag == "img":
            assert values["alt"]
            header, data = str(values["src"]).split(",")
            assert header == "data:image/png;base64"
            self.pictures.append(Image.open(io.BytesIO(base64.b64decode(data))))

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def pictures(count: int, channels: int = 3, size: int = 8, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_picture_grid_places_every_picture() -> None:
    images = pictures(5, 1, 4)
    sheet = report.picture_grid(images, 3, scale=2, gap=1, background=(1, 2, 3))
    assert sheet.size == (3 * 8 + 2, 2 * 8 + 1)
    for index in range(5):
        x, y = index % 3 * 9, index // 3 * 9
        for row in range(4):
            for column in range(4):
                expected = round((float(images[index, 0, row, column]) + 1) * 127.5)
                pixel = sheet.getpixel((x + 2 * column + 1, y + 2 * row))
                assert max(pixel) - min(pixel) == 0 and abs(pixel[0] - expected) <= 1
    assert sheet.getpixel((8, 0)) == (1, 2, 3) and sheet.getpixel((20, 12)) == (1, 2, 3)
    assert report.picture_grid(images, background=None).mode == "RGBA"


def test_picture_grid_takes_any_values_and_refuses_nothing_to_draw(tmp_path: Path) -> None:
    odd = torch.tensor([math.nan, 9.0, -9.0, math.inf]).view(1, 1, 2, 2).to(torch.bfloat16)
    assert report.to_pixels(odd)[0, :, :, 0].tolist() == [[0, 255], [0, 255]]
    with pytest.raises(ValueError, match="empty"):
        report.picture_grid(torch.zeros(0, 3, 4, 4))
    with pytest.raises(ValueError, match="1 or 3"):
        report.picture_grid(torch.zeros(2, 4, 4, 4))
    path = report.save_grid(pictures(4), tmp_path / "grid.png")
    assert Image.open(path).size == (18, 18) and [p.name for p in tmp_path.iterdir()] == ["grid.png"]
    with pytest.raises(UserError, match="does not exist"):
        report.save_grid(pictures(4), tmp_path / "none" / "grid.png")


def test_flow_pictures() -> None:
    still = report.flow_pictures(torch.zeros(2, 4, 4, 2))
    assert still.shape == (2, 3, 4, 4) and float(still.min()) == 1
    flow = torch.zeros(2, 4, 4, 2)
    flow[0, ..., 0], flow[1, ..., 0] = 0.2, 0.1
    strong, weak = report.flow_pictures(flow)
    assert float(strong.min()) < float(weak.min()) < 1
    torch.testing.assert_close(report.flow_pictures(flow[1:], largest=0.2)[0], weak)
    assert report.flow_pictures(flow[:0]).shape == (0, 3, 4, 4)
    assert bool(report.flow_pictures(flow * math.nan).isfinite().all())


@pytest.mark.parametrize(
    "values",
    [
        [1.0],
        [2.0, 2.0, 2.0],
        [0.0, 0.0],
        [1e-9, 1e9, 3.0],
        [-5.0, math.nan, 5.0, None, math.inf],
        [None, None],
        [1e-30, 1e-30],
        list(range(5000)),
    ],
)
@pytest.mark.parametrize("start", [0.0, 1e6])
def test_line_plot_is_a_drawing_inside_its_frame(values: list, start: float) -> None:
    x = [start + index * 0.04 for index in range(len(values))]
    svg = ElementTree.fromstring(report.line_plot("a <b> & c", x, values, x_label="step"))
    assert svg.attrib["aria-label"].startswith("a <b> & c")
    for shape in svg.iter():
        for pair in shape.attrib.get("points", "").split():
            across, down = map(float, pair.split(","))
            assert 0 <= across <= 400 and 0 <= down <= 230
    for side in "me":
        ticks = [text.text for text in svg.iter("text") if text.attrib["class"] == side]
        assert len(ticks) < 16 and len(set(ticks)) == len(ticks)


def test_line_plot_goes_logarithmic_by_itself() -> None:
    svg = report.line_plot("tv", [0, 1, 2], [1.0, 0.1, 0.001])
    assert ">0.001<" in svg and ">0.1<" in svg
    with pytest.raises(ValueError, match="positive"):
        report.line_plot("tv", [0, 1], [0.0, 1.0], log=True)


def records(count: int = 50) -> list[dict]:
    keys = ("loss", "perceptual", "tv", "identity", "psi", "lr")
    lines = [{"step": i, "kimg": i * 0.04, "seconds": i, **{key: 1 / (i + 1) for key in keys}} for i in range(count)]
    lines[3]["loss"] = None
    lines[7]["fid"] = 30.0
    lines[8]["message"] = "not a number"
    return lines


def test_run_report_holds_everything_and_nothing_from_outside(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in records()) + '{"step": 51, "lo')
    images = pictures(14, 1)
    path = report.write_run_report(
        tmp_path,
        title="Digits <3>",
        summary="A & B",
        warnings=["The flow folds."],
        metrics={
            "Pair error": {"before": 8.0, "after": 2.0, "unit": "px", "goal": 0.35},
            "Ink kept": {"ratio": 1.3, "goal": (0.9, 1.1)},
            "Sharpness": 0.125,
            "Distance": {"before": 0.0, "after": math.nan, "note": "<script>"},
        },
        baseline={"Pair error": {"before": 8.0, "after": 4.0}},
        averages=[("Before", images.mean(0)), ("After", images.mean(0, keepdim=True))],
        real={"Before": images, "After": -images},
        samples={"Sample": images[:3], "Target": images[3:6], "Aligned": images[6:9]},
        flows=torch.zeros(14, 8, 8, 2) + identity_grid(8, 8) * 0.1,
        configuration={"transforms": ("similarity", "flow"), "seed": 0, "data": None},
        commands=[("Align", 'python -m gangealing_fast.align --data "my <cats>"')],
        next_steps=["Look at it."],
        footer="Version 0",
    )
    assert path == tmp_path / "report.html"
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert "script" not in page.tags and "http" not in re.sub(r"base64,[^\"]*", "", text)
    assert len(page.pictures) == 2 + 3 + 3 and page.tags.count("svg") == 7
    assert page.pictures[2].size == (12 * 8 + 11, 8)
    assert len(set(page.ids)) == len(page.ids) and {link[1:] for link in page.links} <= set(page.ids)
    for expected in (
        "Digits &lt;3&gt;",
        "A &amp; B",
        "&lt;script&gt;",
        "my &lt;cats&gt;",
        "0.250",
        "0.500",
        "2.000 px",
    ):
        assert expected in text
    assert '"badge met">met' in text and '"badge missed">missed' in text and "at most 0.35" in text
    assert "similarity, flow" in text and "not finite" in text and "prefers-color-scheme" in text
    again = report.write_run_report(tmp_path, title="Digits", records=[])
    assert again == path and Page(path.read_text()).tags.count("section") == 0


def test_same_sections_same_page() -> None:
    sections = [report.Curves("Curves", records()), report.Curves("Curves", []), report.Text("Curves", ["a", "b"])]
    first, second = (report.render_report("Run", sections) for _ in range(2))
    assert first == second and Page(first).ids == ["curves", "curves-2", "curves-3"]


def test_long_configuration_is_folded_and_mismatched_rows_are_named() -> None:
    many = report.Configuration("Options", {str(index): index for index in range(40)}).html()
    assert "<details>" in many and "40 options" in many
    with pytest.raises(ValueError, match="same number of pictures"):
        report.Rows("Real", {"Before": pictures(2), "After": pictures(3)}).html()


def test_unwritable_folder_is_a_users_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError):
        report.write_report(tmp_path / "file", "Run", [])


def test_importing_the_report_needs_no_torch() -> None:
    code = "import sys, gangealing_fast.report; sys.exit('torch' in sys.modules or 'matplotlib' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])
