# SPDX-License-Identifier: Apache-2.0
"""Cases of invert_grid: those of nearest_grid_point."""

from __future__ import annotations

import torch

from cases.nearest_grid_point import CASES, SMALL, Case

__all__ = ["CASES", "DIFFERENTIABLE", "SMALL", "TOLERANCE", "Case"]

DIFFERENTIABLE = (0, 1)  # grid and points
# A float32 grid knows its vertices to 1e-7 of the picture only, which is 1e-5 of a cell and more in cells that are nearly flat.
TOLERANCE = {torch.float64: (1e-9, 1e-7), torch.float32: (1e-4, 1e-2)}
