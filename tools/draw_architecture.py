# SPDX-License-Identifier: Apache-2.0
"""Draw how data flows through the commands, and through one step of `train`: docs/images/architecture.svg.

python tools/draw_architecture.py [FILE]
"""

from __future__ import annotations

import sys
from html import escape
from pathlib import Path
from typing import NamedTuple

OUT = Path(__file__).resolve().parent.parent / "docs" / "images" / "architecture.svg"
WIDTH, HEIGHT = 1000, 670
LINE_HEIGHT, FONT_SIZE = 17, 13
# Plain attributes instead of a style sheet, on a white ground: some viewers know no CSS and some pages are dark.
LOOKS = {
    "command": ("#dbe9f6", "#2f5d8a"),
    "file": ("#fdf3d7", "#9a7414"),
    "network": ("#e2f1de", "#3e7a34"),
    "loss": ("#f8dedb", "#a03a30"),
}


class Box(NamedTuple):
    """A box of `text` lines about the centre (x, y), of the given width, in one of the LOOKS."""

    look: str
    x: int
    y: int
    width: int
    text: tuple[str, ...]

    @property
    def height(self) -> int:
        return LINE_HEIGHT * len(self.text) + 16


class Arrow(NamedTuple):
    """A line through points (x, y) with a head at the last; dashed: what is optional."""

    points: tuple[tuple[int, int], ...]
    dashed: bool = False


COMMANDS = (
    Box("file", 85, 110, 130, ("your pictures", "folder or .tar")),
    Box("command", 85, 210, 110, ("congeal",)),
    Box("file", 235, 210, 130, ("set.safetensors",)),
    Box("command", 245, 110, 100, ("prepare",)),
    Box("file", 385, 110, 110, ("photos.tar",)),
    Box("command", 385, 210, 110, ("pretrain",)),
    Box("file", 555, 210, 160, ("generator.safetensors",)),
    Box("command", 555, 110, 110, ("contrast",)),
    Box("file", 745, 110, 170, ("perceptual.safetensors",)),
    Box("command", 745, 210, 110, ("train",)),
    Box("file", 905, 210, 150, ("aligner.safetensors",)),
    Box("command", 905, 300, 110, ("classify",)),
    Box("command", 555, 300, 110, ("align",)),
    Box("command", 385, 300, 110, ("propagate",)),
    Box("file", 225, 300, 150, ("edited pictures", "and videos")),
    Box("command", 225, 375, 110, ("visualize", "films, flows")),
    Box("file", 555, 375, 190, ("aligned pictures", "template.png, warps.jsonl")),
    Box("file", 385, 375, 120, ("your edit", "of the template")),
    Box("command", 745, 375, 110, ("convert",)),
    Box("file", 905, 375, 150, ("ONNX, pt2, original",)),
    Box("command", 925, 110, 110, ("autoencode", "codes")),
    Box("command", 662, 160, 60, ("invert",)),
    Box("command", 925, 45, 110, ("translate",)),
    Box("command", 80, 300, 110, ("evaluate",)),
    Box("file", 80, 375, 120, ("figures.json", "report.html")),
    Box("command", 665, 300, 90, ("studio",)),
)
COMMAND_ARROWS = (
    Arrow(((600, 193), (600, 160), (632, 160)), True),
    Arrow(((692, 160), (720, 160), (720, 193)), True),
    Arrow(((85, 85), (85, 68), (925, 68), (925, 85)), True),
    Arrow(((85, 85), (85, 68), (850, 68), (850, 45), (870, 45)), True),
    Arrow(((150, 110), (195, 110))),
    Arrow(((85, 135), (85, 193))),
    Arrow(((140, 210), (170, 210))),
    Arrow(((235, 227), (235, 255), (385, 255), (385, 283))),
    Arrow(((235, 227), (235, 255), (555, 255), (555, 283))),
    Arrow(((295, 110), (330, 110))),
    Arrow(((385, 127), (385, 193))),
    Arrow(((440, 210), (475, 210))),
    Arrow(((440, 110), (500, 110)), True),
    Arrow(((555, 193), (555, 127)), True),
    Arrow(((610, 110), (660, 110)), True),
    Arrow(((745, 127), (745, 193)), True),
    Arrow(((635, 210), (690, 210))),
    Arrow(((800, 210), (830, 210))),
    Arrow(((890, 227), (890, 283)), True),
    Arrow(((920, 283), (920, 227)), True),
    Arrow(((860, 227), (860, 255), (555, 255), (555, 283))),
    Arrow(((860, 227), (860, 255), (385, 255), (385, 283))),
    Arrow(((860, 227), (860, 255), (745, 255), (745, 358))),
    Arrow(((860, 227), (860, 255), (665, 255), (665, 283))),
    Arrow(((800, 375), (830, 375))),
    Arrow(((555, 317), (555, 350))),
    Arrow(((460, 375), (445, 375))),
    Arrow(((385, 350), (385, 317))),
    Arrow(((330, 300), (300, 300))),
    Arrow(((860, 227), (860, 255), (80, 255), (80, 283))),
    Arrow(((80, 317), (80, 350))),
    Arrow(((860, 227), (860, 255), (143, 255), (143, 338), (225, 338), (225, 350))),
)
STEP = (
    Box("file", 65, 545, 90, ("z, noise", "pose")),
    Box("network", 190, 545, 120, ("Generator", "map: z to w")),
    Box("network", 355, 610, 160, ("LatentTarget", "c mixed with w by psi")),
    Box("network", 350, 505, 150, ("Generator", "synthesize")),
    Box("file", 515, 505, 130, ("sample", "in a random pose")),
    Box("network", 670, 505, 140, ("SpatialTransformer", "grid, warp")),
    Box("file", 535, 610, 160, ("target", "in the template's pose")),
    Box("file", 825, 505, 120, ("aligned sample",)),
    Box("loss", 825, 610, 170, ("perceptual distance", "+ flow, + equivariance")),
)
STEP_ARROWS = (
    Arrow(((110, 545), (130, 545))),
    Arrow(((220, 520), (220, 505), (275, 505))),
    Arrow(((220, 570), (220, 610), (275, 610))),
    Arrow(((425, 505), (450, 505))),
    Arrow(((435, 610), (455, 610))),
    Arrow(((580, 505), (600, 505))),
    Arrow(((740, 505), (765, 505))),
    Arrow(((825, 522), (825, 585))),
    Arrow(((615, 610), (740, 610))),
)
HEADINGS = ((20, 30, "Commands and their files"), (20, 432, "One step of train"))
NOTES = (
    (
        20,
        52,
        "Yellow: files. Blue: python -m gangealing_fast.NAME. Dashed: optional. align, propagate, evaluate read your pictures too.",
    ),
    (
        20,
        452,
        "Green: networks. The loss moves SpatialTransformer and LatentTarget; Generator and perceptual network stay as they are.",
    ),
    (275, 655, "Between LatentTarget and the target the same Generator synthesizes."),
)


def draw_box(box: Box) -> str:
    """A rounded rectangle with centred lines of text."""
    fill, stroke = LOOKS[box.look]
    top = box.y - box.height / 2
    lines = [
        f'<text x="{box.x}" y="{top + 20 + LINE_HEIGHT * row:g}" text-anchor="middle">{escape(line)}</text>'
        for row, line in enumerate(box.text)
    ]
    frame = (
        f'<rect x="{box.x - box.width / 2:g}" y="{top:g}" width="{box.width}" height="{box.height}" rx="5" '
        f'fill="{fill}" stroke="{stroke}"/>'
    )
    return "\n".join([frame, *lines])


def draw_arrow(arrow: Arrow) -> str:
    """A line and a triangle at its end."""
    (before_x, before_y), (x, y) = arrow.points[-2:]
    across, along = (x > before_x) - (x < before_x), (y > before_y) - (y < before_y)
    path = " ".join(f"{px},{py}" for px, py in arrow.points)
    dash = ' stroke-dasharray="5 4"' if arrow.dashed else ""
    back_x, back_y = x - 8 * across, y - 8 * along
    corners = f"{x},{y} {back_x + 4 * along},{back_y + 4 * across} {back_x - 4 * along},{back_y - 4 * across}"
    return f'<polyline points="{path}" fill="none" stroke="#444"{dash}/>\n<polygon points="{corners}" fill="#444"/>'


def drawing() -> str:
    """The whole picture as SVG."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'font-family="DejaVu Sans, Verdana, sans-serif" font-size="{FONT_SIZE}" fill="#222">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        f'<line x1="20" y1="410" x2="{WIDTH - 20}" y2="410" stroke="#bbb"/>',
        *(f'<text x="{x}" y="{y}" font-size="18" font-weight="bold">{escape(text)}</text>' for x, y, text in HEADINGS),
        *(f'<text x="{x}" y="{y}" fill="#555">{escape(text)}</text>' for x, y, text in NOTES),
        *(draw_arrow(arrow) for arrow in COMMAND_ARROWS + STEP_ARROWS),
        *(draw_box(box) for box in COMMANDS + STEP),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def main(path: Path) -> None:
    path.write_text(drawing())
    print(path)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else OUT)
