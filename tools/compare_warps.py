# SPDX-License-Identifier: Apache-2.0
"""Aliasing and speed of warps that make pictures smaller: ours, torch's and kornia's (if it is installed).

    python tools/compare_warps.py                       # prints the tables of docs/antialiasing.md
    python tools/compare_warps.py --out zone-plate.png  # the pictures, too

The picture is a zone plate, which holds every frequency and direction. "false" is the root mean square of what is shown where the
output's pixels are too wide to show anything (0 is right, a cosine has 0.71). "lost" is that of the error where the rings are at
least four pixels wide. Time is that of one call, the median of calls that take turns.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor

from gangealing_fast import ops
from gangealing_fast.ops.antialiased_warp import _grid as grid_of
from gangealing_fast.report.pictures import save_grid

Warp = Callable[[Tensor, Tensor, int], Tensor]


@dataclass
class Options:
    """Compare warps."""

    side: int = 512
    """Of the picture."""
    output: int = 128
    """Side of the warped picture."""
    batch: int = 4
    """Pictures of three channels that are timed at once."""
    rounds: int = 15
    """Calls of each warp that are timed."""
    threads: int = 2
    """Of the processor."""
    out: Path | None = None
    """A picture of the warps of the second transform side by side."""


def zone_plate(x: Tensor, y: Tensor, side: int) -> Tensor:
    """Rings around the middle whose frequency grows to half a period a pixel at the edges; at places in pixels."""
    squared = (x - (side - 1) / 2).square() + (y - (side - 1) / 2).square()
    return torch.cos(math.pi * squared / side)


def transforms(side: int, output: int) -> dict[str, Tensor]:
    """Matrices `[1, 3, 3]` from pixels of the picture to pixels of the output, middle onto middle."""
    made = {}
    for name, shrink, degrees in (
        ("3 times smaller", 3.0, 0.0),
        ("4 times smaller, turned by 20°", 4.0, 20.0),
        ("8 times smaller", 8.0, 0.0),
    ):
        angle = math.radians(degrees)
        cos, sin = math.cos(angle) / shrink, math.sin(angle) / shrink
        made[name] = _about_middle(torch.tensor([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]]), side, output)
    tilted = torch.tensor([[0.3, 0.0, 0.0], [0.0, 0.2, 0.0], [0.0, -0.8 / side, 1.0]])
    made["tilted plane"] = _about_middle(tilted, side, output)
    return made


def _about_middle(matrix: Tensor, side: int, output: int) -> Tensor:
    before, after = torch.eye(3), torch.eye(3)
    before[:2, 2], after[:2, 2] = -(side - 1) / 2, (output - 1) / 2
    return (after @ matrix @ before)[None]


class Truth(NamedTuple):
    """What a perfect warp shows, `[1, 1, output, output]` each: values; where they can be shown, and where nothing can."""

    values: Tensor
    coarse: Tensor
    too_fine: Tensor


def truth(matrix: Tensor, side: int, output: int) -> Truth:
    """The rings as they lie in the output: shown below half of its highest frequency, nothing beyond 1.2 times that."""

    def phase(shift_x: float, shift_y: float) -> tuple[Tensor, Tensor]:
        steps = torch.arange(output, dtype=torch.float64)
        x, y = (steps + shift_x).expand(output, -1), (steps + shift_y)[:, None].expand(-1, output)
        seen = torch.stack([x, y, torch.ones_like(x)], -1) @ torch.linalg.inv(matrix[0].double()).T
        places = seen[..., :2] / seen[..., 2:]
        inside = ((places > 2) & (places < side - 3)).all(-1)
        return (places - (side - 1) / 2).square().sum(-1) / (2 * side), inside

    small = 1 / 64
    (here, inside), (right, _), (below, _) = phase(0, 0), phase(small, 0), phase(0, small)
    across, down = (right - here).abs() / small, (below - here).abs() / small
    coarse = inside & (torch.hypot(across, down) < 0.25)
    too_fine = inside & (torch.maximum(across, down) > 0.6)
    return Truth(*(value[None, None] for value in (torch.cos(2 * math.pi * here).float(), coarse, too_fine)))


def plain(image: Tensor, matrix: Tensor, output: int) -> Tensor:
    """torch's bilinear sampler."""
    grid = grid_of(matrix, (image.shape[2], image.shape[3]), (output, output)).expand(image.shape[0], -1, -1, -1)
    return F.grid_sample(image, grid, align_corners=False)


def supersampled(image: Tensor, matrix: Tensor, output: int) -> Tensor:
    """The usual way around: 4 x 4 bilinear samples for each pixel of the output, averaged."""
    finer = matrix.new_tensor([[4.0, 0.0, 1.5], [0.0, 4.0, 1.5], [0.0, 0.0, 1.0]])
    return F.avg_pool2d(plain(image, finer @ matrix, output * 4), 4)


def ours(image: Tensor, matrix: Tensor, output: int) -> Tensor:
    """The operator of this package."""
    return ops.antialiased_warp(image, matrix, (output, output))


def warps() -> dict[str, Warp]:
    """All that can be had here, by name."""
    found: dict[str, Warp] = {"ops.antialiased_warp": ours, "torch grid_sample": plain, "torch, 4 x 4 samples": supersampled}
    try:
        from kornia.geometry.transform import warp_perspective
    except ImportError:
        print("kornia is not installed (pip install kornia): left out")
        return found

    def kornia(image: Tensor, matrix: Tensor, output: int) -> Tensor:
        return warp_perspective(image, matrix.expand(image.shape[0], -1, -1), (output, output))

    return found | {"kornia warp_perspective": kornia}


def seconds(options: Options, matrix: Tensor, candidates: dict[str, Warp]) -> dict[str, float]:
    """Median time of a call of each, the calls taking turns."""
    image = torch.rand(options.batch, 3, options.side, options.side)
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(options.rounds + 2):
        for name, warp in candidates.items():
            begin = time.perf_counter()
            warp(image, matrix, options.output)
            if turn >= 2:
                times[name].append(time.perf_counter() - begin)
    return {name: statistics.median(values) for name, values in times.items()}


def main(options: Options) -> None:
    torch.set_num_threads(options.threads)
    steps = torch.arange(options.side, dtype=torch.float32)
    image = zone_plate(steps[None], steps[:, None], options.side)[None, None]
    candidates, rows = warps(), []
    print(f"{options.threads} threads; {options.side}² to {options.output}², {options.batch} pictures timed\n")
    print("| transform | " + " | ".join(f"{name}: false, lost, ms" for name in candidates) + " |")
    print("|---" * (1 + len(candidates)) + "|")
    with torch.inference_mode():
        for title, matrix in transforms(options.side, options.output).items():
            right = truth(matrix, options.side, options.output)
            pictures = {name: warp(image, matrix, options.output) for name, warp in candidates.items()}
            times, cells = seconds(options, matrix, candidates), []
            for name, picture in pictures.items():
                wrong = [float(x.square().mean().sqrt()) for x in (picture[right.too_fine], (picture - right.values)[right.coarse])]
                cells.append(f"{wrong[0]:.3f}, {wrong[1]:.3f}, {times[name] * 1e3:.1f}")
            print(f"| {title} | " + " | ".join(cells) + " |")
            rows.append(torch.cat(list(pictures.values())))
    if options.out is not None:
        shown = rows[1].expand(-1, 3, -1, -1).clamp(-1, 1)
        save_grid(shown, options.out, columns=len(shown))


if __name__ == "__main__":
    main(tyro.cli(Options))
