# SPDX-License-Identifier: Apache-2.0
"""The report of one training run, from plain data."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gangealing_fast.report.page import write_report
from gangealing_fast.report.pictures import flow_pictures
from gangealing_fast.report.sections import Commands, Configuration, Curves, Metrics, Pictures, Rows, Section, Text
from gangealing_fast.storage.files import read_json_lines

if TYPE_CHECKING:
    from torch import Tensor


def write_run_report(
    folder: str | os.PathLike[str],
    *,
    title: str,
    summary: str = "",
    warnings: Sequence[str] = (),
    metrics: Mapping[str, float | Mapping[str, Any]] | None = None,
    baseline: Mapping[str, float | Mapping[str, Any]] | None = None,
    averages: Sequence[tuple[str, Tensor]] = (),
    real: Mapping[str, Tensor] | None = None,
    what: str = "held-out pictures",
    samples: Mapping[str, Tensor] | None = None,
    flows: Tensor | None = None,
    records: Sequence[Mapping[str, Any]] | None = None,
    configuration: Mapping[str, Any] | None = None,
    commands: Sequence[tuple[str, str]] = (),
    next_steps: Sequence[str] = (),
    footer: str = "",
    extra: Sequence[Section] = (),
) -> Path:
    """Write `folder`/report.html of an alignment run; whatever is left out is left out of the page.

    warnings: sentences shown first. metrics, baseline: see `Metrics`. averages: (caption, [C, H, W] in [-1, 1]), before
    and after. real, samples: rows of pictures [N, C, H, W] by name, e.g. {"Before": ..., "After": ...} and {"Sample":
    ..., "Target": ..., "Aligned": ...}. what: the pictures of averages, metrics and `real`, in words.
    flows: [N, H, W, 2] normalised, a residual flow or a grid minus the identity,
    of the real pictures in their order where N agrees, else of others. records: the lines of the log; by default read
    from `folder`/log.jsonl. commands: (what it does, command line). extra: more sections, after the curves.
    """
    if records is None:
        records = read_json_lines(Path(folder) / "log.jsonl")
    sections: list[Section] = []
    if warnings:
        sections.append(Text("Warnings", list(warnings), listed=len(warnings) > 1, alert=True))
    if averages:
        sections.append(Pictures("Average picture", averages, text=f"The mean of {what}, pixel by pixel."))
    if metrics:
        text = f"On {what}; before: identity warps. Ratios are after over before."
        sections.append(Metrics("Figures", metrics, baseline or {}, text=text))
    sections += _warps(real, flows, what)
    if samples:
        text = "What the transformer learns from: the generator's samples, the target of each, and the sample as aligned."
        sections.append(Rows("Samples", samples, text=text))
    if records:
        sections.append(Curves("Training", records, text="Line: mean; band: from the lowest to the highest value nearby."))
    sections.extend(extra)
    if next_steps:
        sections.append(Text("What to do next", list(next_steps), listed=len(next_steps) > 1))
    if commands:
        sections.append(Commands("Commands", commands))
    if configuration:
        sections.append(Configuration("Configuration", configuration))
    return write_report(folder, title, sections, subtitle=summary, footer=footer)


def _warps(real: Mapping[str, Tensor] | None, flows: Tensor | None, what: str) -> list[Section]:
    """Pictures before and after, with the flows beneath if they are theirs, else the flows by themselves."""
    sections: list[Section] = []
    if real:
        rows = dict(real)
        if flows is not None and flows.shape[0] == next(iter(rows.values())).shape[0]:
            rows["Flow (hue: direction, saturation: distance)"] = flow_pictures(flows)
            flows = None
        text = f"{what.capitalize()}, one per column, and how each was warped."
        sections.append(Rows("Before and after", rows, text=text))
    if flows is not None:
        sections.append(Rows("Flows", {"Hue: direction, saturation: distance": flow_pictures(flows)}))
    return sections
