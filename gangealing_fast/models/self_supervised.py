# SPDX-License-Identifier: Apache-2.0
"""A small VGG-like perceptual distance whose weights come from the user's own pictures (`python -m gangealing_fast.contrast`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gangealing_fast.models.layers import activation_format
from gangealing_fast.ops.lpips_distance import lpips_distance
from gangealing_fast.runtime.errors import UserError
from gangealing_fast.storage.exports import export_safetensors, load_safetensors
from gangealing_fast.storage.networks import build_network

EXPORT_KIND = "perceptual"
EXPORT_NAME = "perceptual.safetensors"
UNCALIBRATED_DIVISOR = 18.0  # of a distance whose heads are ones


class SelfSupervisedPerceptual(nn.Module):
    """Distance `[N]` between pictures `[N, 3, H, W]` in [-1, 1], H and W 16 or more, on features learned without labels.

    Five slices of two 3x3 convolutions with ReLU, halved by max-pooling between them as in VGG16; each slice's output is a tap.
    The distance is that of LPIPS (arXiv 1801.03924) with heads of ones, divided by 18. widths: channels of the slices.
    """

    def __init__(self, widths: Sequence[int] = (32, 64, 96, 128, 128)) -> None:
        super().__init__()
        self.widths = tuple(widths)
        self.slices = nn.ModuleList()
        channels = 3
        for width in self.widths:
            self.slices.append(nn.ModuleList([nn.Conv2d(channels, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)]))
            channels = width
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                assert module.bias is not None
                nn.init.zeros_(module.bias)
        self.to(memory_format=activation_format())

    def config(self) -> dict[str, Any]:
        """The constructor's arguments: `SelfSupervisedPerceptual(**config)` rebuilds the network."""
        return {"widths": list(self.widths)}

    def features(self, x: Tensor) -> list[Tensor]:
        """The feature maps of all slices, finest first."""
        if x.ndim != 4 or x.shape[1] not in (1, 3) or min(x.shape[2:]) < 16:
            raise ValueError(f"pictures must be [N, 3, H, W] (or [N, 1, H, W]) with sides of 16 or more, got {list(x.shape)}.")
        x = x.expand(-1, 3, -1, -1).contiguous(memory_format=activation_format())
        maps = []
        for number, layers in enumerate(self.slices):
            if number:
                x = F.max_pool2d(x, 2)
            assert isinstance(layers, nn.ModuleList)
            for convolution in layers:
                x = F.relu(convolution(x))
            maps.append(x)
        return maps

    def embedding(self, x: Tensor) -> Tensor:
        """`[N, D]`: the spatial means of all feature maps, side by side, in float32."""
        return torch.cat([feature.float().mean((2, 3)) for feature in self.features(x)], dim=1)

    def distance(self, features_a: Sequence[Tensor], features_b: Sequence[Tensor]) -> Tensor:
        """Distance `[N]` of pictures whose `features` are at hand."""
        return lpips_distance(features_a, features_b) / UNCALIBRATED_DIVISOR

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.distance(self.features(a), self.features(b))

    def export(self, path: Path, statistics: dict[str, Any]) -> None:
        """Write the weights with their configuration, for `load`."""
        export_safetensors(path, self.state_dict(), {"kind": EXPORT_KIND, "network": self.config(), "statistics": statistics})

    @classmethod
    def load(cls, path: str | Path) -> SelfSupervisedPerceptual:
        """The frozen network in a file of `export` or the results folder that holds it. Raises UserError where there is none."""
        path = Path(path)
        file = path / EXPORT_NAME if path.is_dir() else path
        tensors, about = load_safetensors(file)
        try:
            if about.get("kind") != EXPORT_KIND:
                raise ValueError("it is of another kind")
            return build_network(cls, about.get("network"), tensors)
        except ValueError as error:
            raise UserError(
                f"{file} holds no perceptual network ({str(error)[:120]}); give what the contrast command wrote"
            ) from None
