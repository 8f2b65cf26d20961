# SPDX-License-Identifier: Apache-2.0
"""The parts a report is made of. Each is plain data and knows how to say itself in HTML."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, Any, TypeGuard

from PIL.Image import Image

from gangealing_fast.report.pictures import picture_grid
from gangealing_fast.report.plots import histogram, line_plot
from gangealing_fast.storage.files import picture_bytes

if TYPE_CHECKING:
    from torch import Tensor

    Picture = Image | Tensor


@dataclass(frozen=True)
class Text:
    """Paragraphs, or a list where `listed`; `alert` sets them off as something to heed."""

    heading: str
    paragraphs: Sequence[str]
    listed: bool = False
    alert: bool = False

    def html(self) -> str:
        if self.listed:
            body = "<ul>" + "".join(f"<li>{escape(text)}</li>" for text in self.paragraphs) + "</ul>"
        else:
            body = "".join(f"<p>{escape(text)}</p>" for text in self.paragraphs)
        return f'<div class="alert" role="note">{body}</div>' if self.alert else body


@dataclass(frozen=True)
class Pictures:
    """Pictures side by side, each with its caption.

    pictures: (caption, PIL picture or tensor [C, H, W] or [N, C, H, W] in [-1, 1]); a batch becomes a sheet of
    `columns`. width: pixels on the page to which small pictures are enlarged.
    """

    heading: str
    pictures: Sequence[tuple[str, Picture]]
    text: str = ""
    columns: int | None = None
    width: int = 256

    def html(self) -> str:
        figures = []
        for caption, picture in self.pictures:
            image = picture if isinstance(picture, Image) else picture_grid(picture, self.columns, background=None)
            figures.append(_figure(caption, image, max(self.width, image.width)))
        return _paragraph(self.text) + f'<div class="pictures">{"".join(figures)}</div>'


@dataclass(frozen=True)
class Rows:
    """Rows of pictures under each other, column by column the same sample.

    rows: name of the row → tensor [N, 1 or 3, H, W] in [-1, 1]; every row has the same N and the same size is best.
    width: pixels on the page of each picture; all but the first `most` samples are left out.
    """

    heading: str
    rows: Mapping[str, Tensor]
    text: str = ""
    width: int = 72
    most: int = 12

    def html(self) -> str:
        counts = {int(images.shape[0]) for images in self.rows.values()}
        if len(counts) != 1 or counts == {0}:
            raise ValueError(f"{self.heading}: every row needs the same number of pictures, at least 1, got {sorted(counts)}")
        count = min(counts.pop(), self.most)
        figures = []
        for name, images in self.rows.items():
            gap = max(1, round(images.shape[3] / 32))
            sheet = picture_grid(images[:count], count, gap=gap, background=None)
            figures.append(_figure(name, sheet, round(sheet.width * self.width / images.shape[3]), f"{name}: {count} pictures"))
        return _paragraph(self.text) + f'<div class="rows" tabindex="0">{"".join(figures)}</div>'


@dataclass(frozen=True)
class Curves:
    """Small plots of a run's records (the lines of log.jsonl), one for each quantity.

    keys: which, in this order; by default the losses and schedules that are there, then every other number.
    """

    heading: str
    records: Sequence[Mapping[str, Any]]
    keys: Sequence[str] | None = None
    text: str = ""

    KNOWN = ("loss", "perceptual", "tv", "identity", "psi", "lr")
    AXES = ("kimg", "step", "seconds")

    def html(self) -> str:
        axis = next((name for name in self.AXES if any(_is_number(r.get(name)) for r in self.records)), None)
        rows = [r for r in self.records if axis and _is_number(r.get(axis))]
        if axis is None or not rows:
            return "<p>The run wrote no statistics.</p>"
        present = list(dict.fromkeys(key for r in rows for key, value in r.items() if _is_number(value)))
        others = [key for key in present if key not in self.KNOWN and key not in self.AXES]
        keys = self.keys if self.keys is not None else [key for key in self.KNOWN if key in present] + others
        label = {"kimg": "thousand pictures", "step": "step", "seconds": "seconds"}[axis]
        plots = []
        for key in keys:
            having = [r for r in rows if key in r]
            values = [r[key] if _is_number(r[key]) else None for r in having]
            plots.append(line_plot(key, [r[axis] for r in having], values, x_label=label))
        return _paragraph(self.text) + f'<div class="plots">{"".join(plots)}</div>'


@dataclass(frozen=True)
class Histogram:
    """How often values occur in each part of [low, high]."""

    heading: str
    values: Sequence[float]
    label: str
    low: float = 0.0
    high: float = 1.0
    text: str = ""

    def html(self) -> str:
        drawing = histogram(self.heading, self.values, low=self.low, high=self.high, x_label=self.label)
        return _paragraph(self.text) + f'<div class="plots">{drawing}</div>'


@dataclass(frozen=True)
class Metrics:
    """A table of figures: before, after, after / before, and what a baseline reaches.

    metrics: name → a number (shown under "after") or {"before", "after", "ratio", "unit", "goal", "met", "note"}, all
    optional; a missing ratio is after / before. goal: the most that the ratio (else the figure after) may be, a pair
    (lowest, highest) for it, or a text, which comes with met: whether it was reached.
    baseline: name → the same kind of entry, of which the ratio is shown under `baseline_name`.
    """

    heading: str
    metrics: Mapping[str, float | Mapping[str, Any]]
    baseline: Mapping[str, float | Mapping[str, Any]] = field(default_factory=dict)
    baseline_name: str = "Congealing (classical)"
    text: str = ""

    def html(self) -> str:
        entries = {name: _entry(value) for name, value in self.metrics.items()}
        goals = any(entry.get("goal") is not None for entry in entries.values())
        headings = ["Figure", "Before", "After", "After / before"]
        headings += [self.baseline_name + ", after / before"] * bool(self.baseline) + ["Goal"] * goals
        lines = []
        for name, entry in entries.items():
            unit = f" {entry['unit']}" if entry.get("unit") else ""
            note = f"<small>{escape(str(entry['note']))}</small>" if entry.get("note") else ""
            cells = [_figure_text(entry.get("before"), unit), _figure_text(entry.get("after"), unit)]
            cells.append(f"<strong>{_figure_text(entry.get('ratio'))}</strong>")
            if self.baseline:
                cells.append(_figure_text(_entry(self.baseline.get(name, {})).get("ratio")))
            if goals:
                cells.append(_goal_text(entry))
            lines.append(f'<tr><th scope="row">{escape(name)}{note}</th>' + "".join(f"<td>{c}</td>" for c in cells) + "</tr>")
        head = "".join(f'<th scope="col">{escape(name)}</th>' for name in headings)
        table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
        return _paragraph(self.text) + f'<div class="scroll" tabindex="0">{table}</div>'


@dataclass(frozen=True)
class Configuration:
    """Options and their values; more than `open_rows` of them are folded away."""

    heading: str
    values: Mapping[str, Any]
    text: str = ""
    open_rows: int = 12

    def html(self) -> str:
        lines = [
            f'<tr><th scope="row">{escape(str(key))}</th><td class="left">{escape(_plain(value))}</td></tr>'
            for key, value in self.values.items()
        ]
        table = f'<div class="scroll" tabindex="0"><table><tbody>{"".join(lines)}</tbody></table></div>'
        if len(lines) > self.open_rows:
            table = f"<details><summary>All {len(lines)} options</summary>{table}</details>"
        return _paragraph(self.text) + table


@dataclass(frozen=True)
class Commands:
    """Command lines to copy, each under what it does."""

    heading: str
    commands: Sequence[tuple[str, str]]

    def html(self) -> str:
        return "".join(
            f'{_paragraph(purpose)}<pre tabindex="0"><code>{escape(line)}</code></pre>' for purpose, line in self.commands
        )


@dataclass(frozen=True)
class Table:
    """A table of texts: columns are its headings, rows have as many cells each; the first `left` columns are words."""

    heading: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    text: str = ""
    left: int = 1

    def html(self) -> str:
        head = "".join(f'<th scope="col"{self._side(k)}>{escape(name)}</th>' for k, name in enumerate(self.columns))
        lines = []
        for row in self.rows:
            cells = "".join(f"<td{self._side(k)}>{escape(cell)}</td>" for k, cell in enumerate(row[1:], 1))
            lines.append(f'<tr><th scope="row">{escape(row[0])}</th>{cells}</tr>')
        table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
        return _paragraph(self.text) + f'<div class="scroll" tabindex="0">{table}</div>'

    def _side(self, column: int) -> str:
        return ' class="left"' if column < self.left else ""


Section = Text | Pictures | Rows | Curves | Histogram | Metrics | Configuration | Commands | Table


def _paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>" if text else ""


def _figure(caption: str, image: Image, width: int, alternative: str | None = None) -> str:
    data = base64.b64encode(picture_bytes(image)).decode("ascii")
    height = round(image.height * width / image.width)
    alternative = escape(alternative or caption, quote=True)
    tag = f'<img alt="{alternative}" width="{width}" height="{height}" src="data:image/png;base64,{data}">'
    return f"<figure>{tag}<figcaption>{escape(caption)}</figcaption></figure>"


def _entry(value: float | Mapping[str, Any]) -> dict[str, Any]:
    entry: dict[str, Any] = dict(value) if isinstance(value, Mapping) else {"after": value}
    before, after = entry.get("before"), entry.get("after")
    if "ratio" not in entry and _is_number(before) and _is_number(after) and before:
        entry["ratio"] = after / before
    return entry


def _goal_text(entry: Mapping[str, Any]) -> str:
    goal, met = entry.get("goal"), entry.get("met")
    value = entry.get("ratio", entry.get("after"))
    if _is_number(goal):
        goal = (-math.inf, goal)
    if isinstance(goal, (tuple, list)):
        low, high = goal
        met = _is_number(value) and low <= value <= high
        goal = f"at most {high:g}" if low == -math.inf else f"{low:g} to {high:g}"
    verdict = {True: "met", False: "missed", None: ""}[met]
    badge = f' <span class="badge {verdict}">{verdict}</span>' if verdict else ""
    return escape("" if goal is None else str(goal)) + badge


def _figure_text(value: object, unit: str = "") -> str:
    if not _is_number(value):
        return "–" if value is None else escape(str(value))
    if not math.isfinite(value):
        return "not finite"
    text = f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3f}" if abs(value) >= 0.1 else f"{value:.3g}"
    return text + escape(unit)


def _plain(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(_plain(item) for item in value)
    return "none" if value is None else str(value)


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
