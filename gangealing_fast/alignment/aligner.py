# SPDX-License-Identifier: Apache-2.0
"""Use a trained aligner: align pictures, carry points to the template and back, from one picture to another."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from gangealing_fast import checkpoint
from gangealing_fast.errors import UserError
from gangealing_fast.models.spatial_transformer import Alignment, SpatialTransformer
from gangealing_fast.ops import grid_sample

EXPORT_KIND = "aligner"


class Aligner:
    """A trained transformer and how it was trained to treat the picture's border.

    Pictures are `[N, 3, H, W]` in [-1, 1], square or of any shape the transformer can look at; points are `[N, P, 2]`, (x, y) in
    pixels, 0 the centre of the first pixel.
    """

    def __init__(self, transformer: SpatialTransformer, padding_mode: str = "border") -> None:
        self.transformer = transformer.eval().requires_grad_(False)
        self.padding_mode = padding_mode

    @classmethod
    def load(cls, path: str | Path) -> Aligner:
        """From aligner.safetensors or the results folder that holds it. Raises UserError where there is none."""
        path = Path(path)
        file = path / "aligner.safetensors" if path.is_dir() else path
        tensors, about = checkpoint.load_safetensors(file)
        try:
            if about["kind"] != EXPORT_KIND:
                raise KeyError("kind")
            transformer = SpatialTransformer(**about["transformer"])
            prefix = "transformer."
            transformer.load_state_dict({k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)})
            return cls(transformer, about["padding_mode"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"{file} holds no aligner ({str(error)[:120]}); give a results folder of the train command") from None

    @torch.no_grad()
    def warp(self, images: Tensor, *, output_resolution: int | None = None) -> Alignment:
        """Aligned pictures, the grid they were read at, residual flow and matrix."""
        return self.transformer(images, padding_mode=self.padding_mode, output_resolution=output_resolution)

    def align(self, images: Tensor, *, output_resolution: int | None = None) -> Tensor:
        """Aligned pictures `[N, 3, R, R]`, R = output_resolution or the transformer's own size."""
        return self.warp(images, output_resolution=output_resolution).image

    def from_template(self, images: Tensor, points: Tensor) -> Tensor:
        """Points of the template (pixels of the transformer's own size) → pixels of each picture, by sampling the grid."""
        grid = self.warp(images).grid
        side = self.transformer.flow_size
        where = _normalise(points, (side, side))
        found = grid_sample(grid.permute(0, 3, 1, 2).contiguous(), where[:, None], padding_mode="border")
        return _pixels(found[:, :, 0].permute(0, 2, 1), images.shape[2:])

    def to_template(self, images: Tensor, points: Tensor) -> Tensor:
        """Pixels of each picture → points of the template: the grid point that reads nearest to each."""
        grid = self.warp(images).grid
        side = self.transformer.flow_size
        flat = grid.flatten(1, 2)
        nearest = torch.cdist(_normalise(points, images.shape[2:]), flat).argmin(2)
        return torch.stack([nearest % side, nearest // side], -1).to(points.dtype)

    def transfer(self, first: Tensor, second: Tensor, points: Tensor) -> Tensor:
        """Pixels of the first pictures → the corresponding pixels of the second ones."""
        return self.from_template(second, self.to_template(first, points))


def _normalise(points: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    extent = points.new_tensor([size[1], size[0]])
    return (points * 2 + 1) / extent - 1


def _pixels(points: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    extent = points.new_tensor([size[1], size[0]])
    return ((points + 1) * extent - 1) / 2
