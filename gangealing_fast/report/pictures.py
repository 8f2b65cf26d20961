# SPDX-License-Identifier: Apache-2.0
"""Batches of pictures and flows to sheets."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from gangealing_fast.storage.files import save_picture

if TYPE_CHECKING:
    from torch import Tensor

Background = tuple[int, int, int]


def to_pixels(images: Tensor) -> Tensor:
    """[N, 1 or 3, H, W] in [-1, 1] (values beyond are clipped, NaN becomes -1) → [N, H, W, 3] uint8 on the CPU."""
    import torch

    if images.dim() == 3:
        images = images[None]
    if images.dim() != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"images must be [N, 1 or 3, H, W], got {tuple(images.shape)}")
    images = images.detach().to("cpu", torch.float32).expand(-1, 3, -1, -1).nan_to_num(nan=-1.0)
    return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def picture_grid(
    images: Tensor,
    columns: int | None = None,
    *,
    scale: int = 1,
    gap: int = 2,
    background: Background | None = (255, 255, 255),
) -> Image.Image:
    """A sheet of pictures, filled row by row.

    images: [N, 1 or 3, H, W] in [-1, 1], N >= 1. columns: pictures per row, by default about as many as rows. scale:
    whole factor by which pixels are repeated, so that small pictures can be seen. gap: pixels between pictures.
    background: colour of the gaps; None makes them transparent and the sheet RGBA.
    """
    pixels = to_pixels(images)
    count, height, width, _ = pixels.shape
    if count == 0:
        raise ValueError("images is empty, there is nothing to draw")
    if scale < 1 or gap < 0 or (columns is not None and columns < 1):
        raise ValueError(f"columns and scale must be at least 1 and gap at least 0, got {columns}, {scale}, {gap}")
    columns = min(columns or math.ceil(math.sqrt(count)), count)
    rows = math.ceil(count / columns)
    width, height = width * scale, height * scale
    size = (columns * (width + gap) - gap, rows * (height + gap) - gap)
    sheet = Image.new("RGBA", size, (0, 0, 0, 0)) if background is None else Image.new("RGB", size, background)
    for index, pixel in enumerate(pixels.numpy()):
        picture = Image.fromarray(pixel)
        if scale > 1:
            picture = picture.resize((width, height), Image.Resampling.NEAREST)
        sheet.paste(picture, (index % columns * (width + gap), index // columns * (height + gap)))
    return sheet


def save_grid(images: Tensor, path: str | os.PathLike[str], columns: int | None = None, *, scale: int = 1, gap: int = 2) -> Path:
    """`picture_grid` written atomically to `path` (.png, .jpg or .webp); returns the path."""
    save_picture(path, picture_grid(images, columns, scale=scale, gap=gap))
    return Path(path)


def flow_pictures(flow: Tensor, largest: float | None = None) -> Tensor:
    """Flows as colours: direction is hue, length is saturation, white is no motion.

    flow: [N, H, W, 2] normalised (a residual flow, or a grid minus the identity). largest: length of full saturation,
    by default the largest length among all samples, so that they can be compared. Returns [N, 3, H, W] in [-1, 1].
    """
    import torch
    from torchvision.utils import flow_to_image

    if flow.dim() != 4 or flow.shape[-1] != 2:
        raise ValueError(f"flow must be [N, H, W, 2], got {tuple(flow.shape)}")
    flow = flow.detach().to("cpu", torch.float32).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    if flow.shape[0] == 0:
        return flow.new_zeros(0, 3, *flow.shape[1:3])
    length = torch.linalg.vector_norm(flow, dim=-1)
    limit = max(float(length.max()) if largest is None else largest, 1e-6)
    flow = flow / length.clamp(min=limit)[..., None]
    # flow_to_image normalises by the largest length among all samples: one added sample of full length fixes the scale.
    marked = torch.cat([flow, torch.tensor([1.0, 0.0]).expand(1, *flow.shape[1:])]).permute(0, 3, 1, 2)
    return flow_to_image(marked)[:-1].to(torch.float32) / 127.5 - 1
