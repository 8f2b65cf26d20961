# SPDX-License-Identifier: Apache-2.0
"""Signs that an alignment is going wrong: degenerate warps and folded flows, each with a sentence of advice."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gangealing_fast.geometry.warps import identity_grid

MAX_OUTSIDE = 0.5
"""Share of grid points beyond the picture's edge above which the warps are said to leave the picture."""
MIN_AREA = 0.05
"""Mean area of the window that is read, as a share of the picture, below which it is said to shrink to a point."""
MAX_AREA = 12.0
"""The same, above which the object is said to shrink away."""
MAX_FOLDED = 0.02
"""Share of grid cells turned inside out above which a flow is said to fold."""
MIN_VARIATION = 1e-3
"""Root mean square difference between grids of different samples (normalised) below which they are all equal."""
MIN_CONTRAST = 0.1
"""Contrast of the aligned pictures over that of their inputs below which they are said to be flat."""


@dataclass(frozen=True)
class WarpHealth:
    """What `inspect_warps` found; all plain numbers, so that they can go into a line of JSON."""

    finite: bool
    variation: float
    """Root mean square distance of the grids to their batch mean (normalised units); NaN for a single sample."""
    displacement: float
    """Root mean square distance of the grids to the identity (normalised units)."""
    outside: float
    """Share of grid points beyond [-1, 1]."""
    area: float
    """Mean area of the window that is read over that of the whole picture: 1 for the identity."""
    folded: float
    """Largest share over the samples of cells whose orientation differs from the rest of the warp."""
    contrast: float
    """Standard deviation within the aligned pictures over that within their inputs; NaN without pictures."""

    def warnings(self, *, started: bool = True) -> list[str]:
        """One sentence of what is wrong and what to do for every finding, the gravest first; empty if all is well.

        The sentences hold no numbers, so that the same finding is the same sentence at every step. started: False
        during the first steps, when a transformer that starts at the identity has not moved yet.
        """
        if not self.finite:
            return [
                "The warps hold NaN or infinity; go back to the last checkpoint with a lower --learning-rate, "
                "or use --precision float32."
            ]
        found = []
        if self.area < MIN_AREA:
            found.append(
                "The warps shrink to a point, where all pictures match; raise the overall --batch (40 or more), lower "
                "--learning-rate or use --padding-mode zeros."
            )
        elif self.area > MAX_AREA:
            found.append(
                "The warps read an area many times the picture, so the object shrinks away; use --padding-mode "
                "reflection or border, lower --learning-rate or raise the overall --batch."
            )
        if self.outside > MAX_OUTSIDE:
            found.append(
                "Most of the warped positions lie outside the picture; lower --learning-rate, or raise the overall "
                "--batch: small batches are known to collapse."
            )
        if started and self.variation < MIN_VARIATION:
            place = "the identity" if self.displacement < 2 * MIN_VARIATION else "one and the same warp"
            found.append(
                f"The warps of different samples are all {place}, so nothing is being aligned; let it run longer, "
                "raise the overall --batch or slow the annealing (--anneal-psi)."
            )
        if self.folded > MAX_FOLDED:
            found.append("The flow folds over itself; raise --tv-weight or train with --transforms similarity first.")
        if self.contrast < MIN_CONTRAST:
            found.append(
                "The aligned pictures are almost flat, so the transformer hides the object; raise the overall --batch "
                "or use --padding-mode reflection."
            )
        return found


@torch.no_grad()
def inspect_warps(
    grid: Tensor, residual_flow: Tensor | None = None, inputs: Tensor | None = None, outputs: Tensor | None = None
) -> WarpHealth:
    """Look at a batch of warps of different pictures; ask the result for its `warnings()`.

    grid: [N, H, W, 2], N >= 1, H, W >= 2, normalised. residual_flow: [N, h, w, 2]; its folds are counted on identity +
    flow, else those of the grid. inputs, outputs: the pictures [N, C, H, W] before and after, for the contrast.
    """
    _check_grid(grid, "grid")
    grid = grid.detach().to(torch.float64)
    reference = identity_grid(grid.shape[1], grid.shape[2], dtype=torch.float64, device=grid.device)
    folds = grid
    if residual_flow is not None:
        _check_grid(residual_flow, "residual_flow")
        flow = residual_flow.detach().to(torch.float64)
        folds = flow + identity_grid(flow.shape[1], flow.shape[2], dtype=torch.float64, device=flow.device)
    contrast = float("nan")
    if inputs is not None and outputs is not None:
        contrast = float(_contrast(outputs) / _contrast(inputs).clamp(min=1e-12))
    return WarpHealth(
        finite=bool(grid.isfinite().all() and folds.isfinite().all()),
        variation=_root_mean_square(grid - grid.mean(0, keepdim=True)) if grid.shape[0] > 1 else float("nan"),
        displacement=_root_mean_square(grid - reference),
        outside=float((grid.abs() > 1).any(-1).to(torch.float64).mean()),
        area=float(relative_areas(grid).mean((1, 2)).abs().mean()),
        folded=float(folded_share(folds).max()),
        contrast=contrast,
    )


def relative_areas(grid: Tensor) -> Tensor:
    """Signed area of each cell of a grid [N, H, W, 2] over that of the identity's: [N, H-1, W-1].

    Half the cross product of the cell's diagonals; 1 everywhere for the identity, negative if the warp is turned
    inside out (a mirrored warp is negative everywhere).
    """
    _check_grid(grid, "grid")
    first = grid[:, 1:, 1:] - grid[:, :-1, :-1]
    second = grid[:, 1:, :-1] - grid[:, :-1, 1:]
    cross = first[..., 0] * second[..., 1] - first[..., 1] * second[..., 0]
    return cross / 2 * (grid.shape[1] * grid.shape[2] / 4)


def folded_share(grid: Tensor) -> Tensor:
    """Per sample [N]: share of cells whose signed area is not of the sign of the sample's mean area."""
    areas = relative_areas(grid)
    sign = torch.sign(areas.mean((1, 2), keepdim=True))
    return (areas * sign <= 0).to(torch.float64).mean((1, 2))


def _contrast(images: Tensor) -> Tensor:
    return images.detach().to(torch.float64).flatten(1).std(1, unbiased=False).mean()


def _root_mean_square(difference: Tensor) -> float:
    return float(difference.square().sum(-1).mean().sqrt())


def _check_grid(grid: Tensor, name: str) -> None:
    if grid.dim() != 4 or grid.shape[-1] != 2 or grid.shape[0] == 0 or min(grid.shape[1:3]) < 2:
        raise ValueError(f"{name} must be [N, H, W, 2] with N >= 1 and H, W >= 2, got {tuple(grid.shape)}")
