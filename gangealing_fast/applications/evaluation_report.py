# SPDX-License-Identifier: Apache-2.0
"""`report.html` of `evaluate`: tables of figures, pictures with carried points."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw

from gangealing_fast.applications.carried import Carried
from gangealing_fast.applications.judging import pick
from gangealing_fast.data.keypoints import KeypointSet, Pairs
from gangealing_fast.report.page import write_report
from gangealing_fast.report.sections import Commands, Pictures, Section, Table, Text
from gangealing_fast.storage.files import to_picture

WORDS = {"keypoints": "the key points' box", "object": "the object's box", "picture": "the picture"}
SIDE = 256


def percent(value: float | None) -> str:
    """A share as per cent with one decimal; a dash for none."""
    return "–" if value is None or value != value else f"{100 * value:.1f}"


def write_evaluation_report(
    folder: Path,
    figures: dict[str, Any],
    data: KeypointSet,
    pairs: Pairs,
    carried: Sequence[Carried],
    *,
    pictures: int,
) -> Path:
    """Write `folder`/report.html. figures: what figures.json holds. pictures: how many pairs are shown."""
    of, alpha = figures["shown"]["of"], figures["shown"]["alpha"]
    about = f"{len(data)} pictures with key points ({data.kind}), {len(pairs.pairs)} pairs (protocol {pairs.protocol})."
    sections: list[Section] = [_main(figures, of), _ways(figures, alpha)]
    if len(pairs.names) > 1:
        sections.append(_groups(figures, pairs, alpha))
    sections.append(_points(figures, of, alpha))
    if any(figures["cycles"].values()):
        sections.append(_cycles(figures, of, alpha))
    if pictures:
        sections.append(_transfers(data, pairs, carried, pictures))
    sections.append(Text("How to read this", READING, listed=True))
    sections.append(Commands("Command", [("These figures come from:", figures["command"])]))
    title = f"PCK-Transfer, thresholds of {WORDS[of]}"
    return write_report(folder, title, sections, subtitle=about, footer="gangealing_fast evaluate")


READING = (
    "PCK is the percentage of points that land within alpha times a size from where a person marked them.",
    "Per point: every point counts the same. Per pair: every pair of pictures counts the same.",
    "With mirrored labels: in a pair of which a method mirrored one picture, the left eye is looked for at the right one.",
    "Intervals come from sets of pictures that were drawn anew: pairs share pictures, so that drawn pairs would tell too little.",
    "Two methods differ if the interval of their difference, in figures.json, leaves out 0.",
)


def _interval(line: dict[str, Any]) -> str:
    if line["low"] is None or line["low"] != line["low"]:
        return percent(line["value"])
    return f"{percent(line['value'])} ({percent(line['low'])}–{percent(line['high'])})"


def _main(figures: dict[str, Any], of: str) -> Table:
    rows = []
    alphas = sorted({line["alpha"] for method in figures["methods"].values() for line in method["figures"]})
    for method in figures["methods"].values():
        for mirroring in (False, True):
            lines = [pick(method["figures"], of=of, alpha=alpha, per="point", mirroring=mirroring) for alpha in alphas]
            note = "with mirrored labels" if mirroring else "labels as they are"
            rows.append((method["label"], note, *(_interval(line) for line in lines)))
    text = f"Per point, thresholds alpha times the longer side of {WORDS[of]}, in per cent with intervals."
    return Table("Figures", ("Method", "Labels", *(f"PCK@{alpha:g}" for alpha in alphas)), rows, text=text, left=2)


def _ways(figures: dict[str, Any], alpha: float) -> Table:
    known = [of for of in WORDS if any(line["of"] == of for line in next(iter(figures["methods"].values()))["figures"])]
    rows = []
    for method in figures["methods"].values():
        cells = []
        for of in known:
            for per in ("point", "image"):
                cells.append(percent(pick(method["figures"], of=of, alpha=alpha, per=per, mirroring=True)["value"]))
        rows.append((method["label"], *cells))
    heads = [f"of {WORDS[of]}, per {'pair' if per == 'image' else per}" for of in known for per in ("point", "image")]
    return Table(f"All ways to count PCK@{alpha:g}", ("Method", *heads), rows, text="With mirrored labels, in per cent.")


def _groups(figures: dict[str, Any], pairs: Pairs, alpha: float) -> Table:
    alphas = [line["alpha"] for line in next(iter(figures["methods"].values()))["figures"]]
    k = list(dict.fromkeys(alphas)).index(alpha)
    methods = figures["methods"].values()
    rows = [(name, *(percent(method["groups"]["true"][name][k]) for method in methods)) for name in pairs.names]
    means = []
    for method in methods:
        values = torch.tensor([method["groups"]["true"][name][k] for name in pairs.names])
        means.append(percent(values.nanmean().item()))
    heads = ("Set or class", *(method["label"] for method in methods))
    return Table(f"PCK@{alpha:g} by set or class", heads, [*rows, ("Mean", *means)], text="Per point, with mirrored labels.")


def _points(figures: dict[str, Any], of: str, alpha: float) -> Table:
    methods = list(figures["methods"].values())
    counted = [name for name, value in methods[0]["points"].items() if value == value]
    rows = [(name, *(percent(method["points"][name]) for method in methods)) for name in counted]
    heads = ("Key point", *(method["label"] for method in methods))
    return Table(f"PCK@{alpha:g} by key point", heads, rows, text=f"Of {WORDS[of]}, with mirrored labels, in per cent.")


def _cycles(figures: dict[str, Any], of: str, alpha: float) -> Table:
    lengths = sorted({length for found in figures["cycles"].values() for length in found}, key=int)
    rows = []
    for name, found in figures["cycles"].items():
        lines = [pick(found[length], of=of, alpha=alpha, per="point", mirroring=False) for length in lengths]
        rows.append((figures["methods"][name]["label"], *(_interval(line) for line in lines)))
    heads = ("Method", *(f"{length} pictures" for length in lengths))
    text = "Points that are back where they began after a cycle of pictures. It measures consistency: identity has all."
    return Table(f"Cycle consistency, PCK@{alpha:g}", heads, rows, text=text)


def _transfers(data: KeypointSet, pairs: Pairs, carried: Sequence[Carried], pictures: int) -> Pictures:
    chosen = torch.linspace(0, len(pairs.pairs) - 1, min(pictures, len(pairs.pairs))).round().long().unique().tolist()
    shown = []
    for row in chosen:
        first, second = pairs.pairs[row].tolist()
        seen = data.visible[first] & data.visible[second]
        seen = seen if pairs.points is None else seen & pairs.points[row]
        panels = [draw_points(data, first, data.points[first], seen)]
        panels += [draw_points(data, second, one.points[row], seen, true=data.points[second]) for one in carried]
        names = ", ".join(one.label for one in carried)
        shown.append((f"{data.names[first]} to {data.names[second]}: points, then {names}", _beside(panels)))
    text = "Dots: points as carried. Lines end where the points were marked."
    return Pictures("Transfers", shown, text=text)


def draw_points(
    data: KeypointSet, index: int, points: torch.Tensor, seen: torch.Tensor, *, true: torch.Tensor | None = None
) -> Image.Image:
    """A picture of side 256 at most with points `[P, 2]` that are `seen` `[P]`, each in its colour; lines from there to `true`."""
    picture = to_picture(data.picture(index)).convert("RGB")
    scale = SIDE / max(picture.size)
    picture = picture.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale))))
    draw = ImageDraw.Draw(picture)
    for k in seen.nonzero().flatten().tolist():
        if not bool(points[k].isfinite().all()):
            continue
        colour = tuple(round(255 * part) for part in colorsys.hsv_to_rgb(k / len(seen), 0.9, 1.0))
        x, y = ((points[k] + 0.5) * scale).tolist()
        if true is not None:
            draw.line((x, y, *((true[k] + 0.5) * scale).tolist()), fill=colour, width=1)
        draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=colour, outline=(0, 0, 0))
    return picture


def _beside(panels: Sequence[Image.Image]) -> Image.Image:
    gap = 4
    sheet = Image.new("RGB", (sum(p.width + gap for p in panels) - gap, max(p.height for p in panels)), "white")
    left = 0
    for panel in panels:
        sheet.paste(panel, (left, 0))
        left += panel.width + gap
    return sheet
