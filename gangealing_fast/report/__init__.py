# SPDX-License-Identifier: Apache-2.0
"""Pictures, plots and the self-contained report of a run."""

from __future__ import annotations

from gangealing_fast.report.pictures import flow_pictures, picture_grid, png_bytes, save_grid, to_picture

__all__ = ["flow_pictures", "picture_grid", "png_bytes", "save_grid", "to_picture"]
