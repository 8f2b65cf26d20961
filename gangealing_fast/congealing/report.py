# SPDX-License-Identifier: Apache-2.0
"""`report.html` of a set: averages, templates, pictures before and after, matches, confidence, outliers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from gangealing_fast.congealing.config import CongealConfig
from gangealing_fast.congealing.records import Congealed
from gangealing_fast.models.layers import resize_to
from gangealing_fast.report import Commands, Configuration, Histogram, Pictures, Rows, Section, Text, write_report
from gangealing_fast.runtime.text import printable
from gangealing_fast.storage.claims import plain
from gangealing_fast.storage.files import to_picture

SIDE = 160
MOST, SUREST, OUTLIERS, MATCHED = 12, 8, 24, 4


class Shown:
    """Small copies of the few pictures that the report shows: the surest and the least sure of the set, and those left out."""

    def __init__(self, found: Congealed) -> None:
        order = found.confidence.argsort(descending=True, stable=True).tolist()
        members = [k for k in order if not found.outlier[k]]
        self.members = members if len(members) <= MOST else members[:SUREST] + members[SUREST - MOST :]
        self.outliers = [k for k in reversed(order) if found.outlier[k]][:OUTLIERS]
        self.before: dict[int, Tensor] = {}
        self.after: dict[int, Tensor] = {}

    def add(self, number: int, square: Tensor, aligned: Tensor) -> None:
        """Picture `number` of the set, `[1, 3, S, S]`, and the same aligned."""
        if number in self.members or number in self.outliers:
            self.before[number] = resize_to(square, SIDE)[0].clamp(-1, 1)
            self.after[number] = resize_to(aligned, SIDE)[0].clamp(-1, 1)


def write_set_report(
    folder: Path,
    config: CongealConfig,
    found: Congealed,
    names: Sequence[str],
    shown: Shown,
    averages: Mapping[int, tuple[Tensor, Tensor]],
    matches: Mapping[int, Tensor],
) -> Path:
    """Write `folder`/report.html.

    averages: of each cluster, `[3, side, side]`, before and after. matches: of some pictures by their number, `[M, 5]`: x and y in
    [0, 1] of the square that holds the picture, x and y in [0, 1] of the template, and a weight in [0, 1].
    """
    members = ~found.outlier
    sections = _averages(found, averages)
    sections += _before_after(found, names, shown)
    sections += _matches(found, names, shown, matches)
    confidence = found.confidence[members].tolist()
    text = "How well each picture agrees with its template. Look at the pictures of least confidence first."
    sections.append(Histogram("Confidence", confidence, "confidence", text=text))
    sections += _outliers(found, names, shown)
    sections.append(Text("What to do next", _advice(found), listed=True))
    sections.append(Commands("Commands", _commands(config)))
    sections.append(Configuration("Configuration", plain(config)))
    subtitle = f"{int(members.sum())} pictures aligned, {int(found.outlier.sum())} left out, {len(found.template)} template"
    return write_report(folder, "Joint alignment of a set", sections, subtitle=subtitle + "s" * (len(found.template) > 1))


def _averages(found: Congealed, averages: Mapping[int, tuple[Tensor, Tensor]]) -> list[Section]:
    pictures: list[tuple[str, Image.Image | Tensor]] = []
    for k, (before, after) in averages.items():
        count = int(((found.cluster == k) & ~found.outlier).sum())
        of = f" of cluster {k}" if len(averages) > 1 else ""
        pictures += [(f"before{of}, {count} pictures", before.clamp(-1, 1)), (f"after{of}: the template", after.clamp(-1, 1))]
    text = "The mean of the pictures, pixel by pixel. The sharper it is after, the better they are aligned."
    return [Pictures("Average picture", pictures, text=text)]


def _before_after(found: Congealed, names: Sequence[str], shown: Shown) -> list[Section]:
    there = [k for k in shown.members if k in shown.before]
    if not there:
        return []
    rows = {"before": torch.stack([shown.before[k] for k in there]), "after": torch.stack([shown.after[k] for k in there])}
    listed = ", ".join(f"{printable(names[k])} ({float(found.confidence[k]):.2f})" for k in there)
    text = f"The surest pictures first, the least sure last, with their confidence: {listed}."
    return [Rows("Before and after", rows, text=text, width=112)]


def _matches(found: Congealed, names: Sequence[str], shown: Shown, matches: Mapping[int, Tensor]) -> list[Section]:
    drawn = []
    for k in [k for k in shown.members if k in matches and k in shown.before][:MATCHED]:
        template = resize_to(found.template[int(found.cluster[k])][None], SIDE)[0]
        drawn.append((printable(names[k]), draw_matches(shown.before[k], template, matches[k])))
    if not drawn:
        return []
    text = "Left the picture, right its template. A line joins two places that were taken for the same; the brighter, the surer."
    return [Pictures("Matches", drawn, text=text)]


def draw_matches(picture: Tensor, template: Tensor, matches: Tensor, most: int = 40) -> Image.Image:
    """A picture `[3, S, S]` beside its template, the surest `most` matches `[M, 5]` (see `write_set_report`) as lines."""
    side, gap, scale = picture.shape[-1], 8, 2
    width = 2 * side + gap
    sheet = Image.new("RGB", (width * scale, side * scale), (255, 255, 255))
    for at, shown in ((0, picture), (side + gap, template)):
        enlarged = to_picture(shown.clamp(-1, 1)).resize((side * scale, side * scale), Image.Resampling.BICUBIC)
        sheet.paste(enlarged, (at * scale, 0))
    pen = ImageDraw.Draw(sheet)
    surest = matches[matches[:, 4].argsort(descending=True)[:most]]
    largest = max(float(surest[:, 4].max()) if len(surest) else 0.0, 1e-9)
    for x, y, u, v, weight in surest.flip(0).tolist():
        strength = weight / largest
        colour = (int(255 * strength), int(90 + 120 * strength), int(40 + 30 * (1 - strength)))
        start, end = (x * side * scale, y * side * scale), ((u * side + side + gap) * scale, v * side * scale)
        pen.line([start, end], fill=colour, width=1 + round(strength))
        for cx, cy in (start, end):
            pen.ellipse([cx - 3, cy - 3, cx + 3, cy + 3], outline=colour)
    return sheet.resize((round(0.7 * sheet.width), round(0.7 * sheet.height)), Image.Resampling.LANCZOS)


def _outliers(found: Congealed, names: Sequence[str], shown: Shown) -> list[Section]:
    left_out = [names[k] for k in found.outlier.nonzero().flatten().tolist()]
    if not left_out:
        return [Text("Left out", ["Every picture belongs to the others."])]
    pictures = [(f"{printable(names[k])} ({float(found.confidence[k]):.2f})", shown.before[k]) for k in shown.outliers]
    rest = len(left_out) - len(pictures)
    text = "They agree too little with the others, and are kept out of the template. They are aligned all the same."
    text += f" {rest} more: {', '.join(printable(name) for name in left_out[-rest:])}." if rest > 0 else ""
    return [Pictures("Left out", pictures, text=text, width=112)]


def _advice(found: Congealed) -> list[str]:
    advice = ["A template is blurred: give more pictures, masks (--masks), or pictures in which the thing is larger."]
    if bool(found.outlier.any()):
        advice.append("A picture was left out although it belongs: crop it, so that the thing fills it as in the others.")
    if len(found.template) > 1:
        advice.append("The clusters are one kind to you: give --clusters 1.")
    else:
        advice.append("The pictures show several kinds or views: give --clusters 2 or more.")
    return advice


def _commands(config: CongealConfig) -> list[tuple[str, str]]:
    out, data = printable(config.out), printable(config.data)
    return [
        (
            "Align more pictures to this set",
            f"python -m gangealing_fast.align --checkpoint {out} --data MORE-PICTURES --out aligned",
        ),
        (
            "Draw on a copy of the template, transparent elsewhere, and see it in every picture",
            f"python -m gangealing_fast.propagate --checkpoint {out} --data {data} --edit drawn.png --out edited",
        ),
    ]
