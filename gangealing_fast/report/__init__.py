# SPDX-License-Identifier: Apache-2.0
"""Pictures, plots and the self-contained report of a run."""

from __future__ import annotations

from gangealing_fast.report.page import render_report, write_report
from gangealing_fast.report.pictures import flow_pictures, picture_grid, save_grid, to_pixels
from gangealing_fast.report.plots import histogram, line_plot
from gangealing_fast.report.run import write_run_report
from gangealing_fast.report.sections import (
    Commands,
    Configuration,
    Curves,
    Histogram,
    Metrics,
    Pictures,
    Rows,
    Section,
    Table,
    Text,
)

__all__ = [
    "Commands",
    "Configuration",
    "Curves",
    "Histogram",
    "Metrics",
    "Pictures",
    "Rows",
    "Section",
    "Table",
    "Text",
    "flow_pictures",
    "histogram",
    "line_plot",
    "picture_grid",
    "render_report",
    "save_grid",
    "to_pixels",
    "write_report",
    "write_run_report",
]
