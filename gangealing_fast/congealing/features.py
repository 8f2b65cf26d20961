# SPDX-License-Identifier: Apache-2.0
"""Frozen networks as describers of places: feature maps of a picture, and where each of their cells looks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gangealing_fast.models.efficientnet import EfficientNetPerceptual
from gangealing_fast.models.self_supervised import SelfSupervisedPerceptual
from gangealing_fast.ops import grid_sample
from gangealing_fast.runtime.errors import UserError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
RIM = 1 / 32
"""What is left out along the edges of a network that pads its layers with zeros, in shares of a picture's side."""
LARGEST_WIDTH = 128
"""Components that are kept of a place, evenly of its taps."""


class Tap(NamedTuple):
    """Feature maps `[N, C, h, w]` of pictures of `size` pixels: cell k looks at pixel `k * stride + first` of them."""

    maps: Tensor
    stride: float
    first: float
    size: int


class FeatureNetwork:
    """A frozen network that describes places of pictures.

    name: what a set says of the network it was aligned by. grids: the places a side for the coarse and for the fine steps, and the
    side of the pictures for each of them in pixels. rim: what says nothing along a picture's edges, in shares of its side. Padding
    with zeros shows a network where the edge is, so that edges look alike in all pictures and hold each to where it lies.
    side_by_side: whether several threads may run it at once.
    """

    def __init__(
        self,
        name: str,
        run: Callable[[Tensor], list[Tap]],
        *,
        coarse: tuple[int, int] = (256, 32),
        fine: tuple[int, int] = (320, 40),
        rim: float = RIM,
        side_by_side: bool = False,
    ) -> None:
        self.name, self._run, self.coarse, self.fine, self.rim, self.side_by_side = name, run, coarse, fine, rim, side_by_side

    @torch.no_grad()
    def features(self, images: Tensor) -> list[Tap]:
        """The taps of square pictures `[N, 3, S, S]` in [-1, 1], finest first; float32."""
        return self._run(images)


def efficientnet_features() -> FeatureNetwork:
    """EfficientNet-lite0 of the package's wheel at 1/8 and 1/16: 40 and 112 channels."""
    network = EfficientNetPerceptual((2, 4), padding="replicate", fused=True)

    def run(images: Tensor) -> list[Tap]:
        size = images.shape[-1]
        # A picture for each thread stays in the cache.
        parts = images.split(torch.get_num_threads())
        maps = [torch.cat(found) for found in zip(*map(network.features, parts), strict=True)]
        # TensorFlow's padding of even sides puts cell k of a tap of stride s at pixel k s + s - 1.
        return [Tap(tap, stride, stride - 1.0, size) for tap, stride in zip(maps, (8, 16), strict=True)]

    return FeatureNetwork("efficientnet-lite0", run, fine=(384, 48), rim=0.0, side_by_side=True)


def self_supervised_features(path: str | Path) -> FeatureNetwork:
    """The network of the command `contrast` at 1/4, 1/8 and 1/16. path: its results folder, or the file in it.

    Raises UserError if there is none.
    """
    network = SelfSupervisedPerceptual.load(path)
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            layer.padding_mode = "replicate"  # zeros would tell places at the edges from all others
    depth = len(network.widths)
    wanted = [level for level in (2, 3, 4) if level < depth] or [depth - 1]

    def run(images: Tensor) -> list[Tap]:
        maps = network.features(images)
        return [Tap(maps[level], 2.0**level, (2.0**level - 1) / 2, images.shape[-1]) for level in wanted]

    return FeatureNetwork("self-supervised", run, rim=0.0, side_by_side=True)


def load_features(
    path: str | Path,
    *,
    stride: int,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    side: int | None = None,
) -> FeatureNetwork:
    """A backbone of the user's own: a TorchScript file, a `.pt2` file of `torch.export`, or `FOLDER:ENTRY` of a torch.hub folder.

    Such a file is a program. Loading it runs that program, so only a file that the user names and trusts may be given.

    stride: pixels of a cell. mean, std: of the three channels of pictures in [0, 1] that the network expects.
    side: the side of its pictures if it takes one size alone; a multiple of the stride. Otherwise any multiple of the stride.
    The network gives a map `[N, C, h, w]`, tokens `[N, T, C]` whose last h w are the cells row by row, or a dictionary or a
    sequence that holds one of these. Raises UserError if the file cannot be loaded or gives anything else.
    """
    if stride < 1 or len(mean) != 3 or len(std) != 3 or min(std) <= 0 or (side is not None and (side < stride or side % stride)):
        raise UserError(
            "the features need a stride of at least 1, three means, three positive deviations, and a side that the stride divides"
        )
    network = _program(str(path))
    shift, scale = torch.tensor(mean).view(1, 3, 1, 1), torch.tensor(std).view(1, 3, 1, 1)

    def run(images: Tensor) -> list[Tap]:
        wanted = side or max(stride, round(images.shape[-1] / stride) * stride)
        if images.shape[-1] != wanted:
            images = F.interpolate(images, size=(wanted, wanted), mode="bilinear", align_corners=False, antialias=True)
        try:
            found = network(((images + 1) / 2 - shift) / scale)
        except (RuntimeError, TypeError, ValueError, AssertionError) as error:
            reason = (str(error).strip().splitlines() or ["no reason given"])[-1][:160]
            raise UserError(f"the features {path} do not take pictures of {wanted}x{wanted} pixels: {reason}") from None
        return [Tap(_as_map(found, wanted // stride, str(path)), float(stride), (stride - 1) / 2, wanted)]

    def level(size: int, cells: int) -> tuple[int, int]:
        return (side, cells) if side else (max(stride, round(size / stride) * stride), cells)

    # A coarse stride gets larger pictures, so that a place is described as finely as by a stride of 8 at 256 pixels.
    grow = max(1.0, min(2.0, stride / 8))
    return FeatureNetwork(Path(str(path)).name, run, coarse=level(round(256 * grow), 32), fine=level(round(320 * grow), 40))


def _program(path: str) -> Callable[[Tensor], Any]:
    """The network in a file or a torch.hub folder."""
    folder, _, entry = path.rpartition(":")
    try:
        if folder and Path(folder).is_dir():
            model = torch.hub.load(folder, entry, source="local")
        elif not Path(path).is_file():
            raise UserError(f"the features {path} do not exist: give a TorchScript file, a .pt2 file, or FOLDER:ENTRY")
        elif Path(path).suffix == ".pt2":
            model = torch.export.load(path).module()
            return model
        else:
            model = torch.jit.load(path, map_location="cpu")
    except UserError:
        raise
    except Exception as error:  # whatever a program of the user's raises
        reason = (str(error).strip().splitlines() or ["no reason given"])[-1][:160]
        raise UserError(f"the features {path} cannot be loaded ({reason}): is it a complete file of this format?") from None
    model.eval()
    return model


def _as_map(found: Any, cells: int, path: str) -> Tensor:
    """The map `[N, C, cells, cells]` in what a network returned."""
    if isinstance(found, Mapping):
        names = [name for name in ("x_norm_patchtokens", "last_hidden_state") if name in found] or list(found)[:1]
        found = found[names[0]] if names else None
    elif isinstance(found, Sequence):
        found = found[-1] if found else None
    if isinstance(found, Tensor) and found.ndim == 4 and found.shape[2:] == (cells, cells):
        return found.float()
    if isinstance(found, Tensor) and found.ndim == 3 and found.shape[1] >= cells * cells:
        return found[:, -cells * cells :].float().mT.unflatten(2, (cells, cells))
    shape = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
    raise UserError(
        f"the features {path} give {shape} where [N, C, {cells}, {cells}] or that many tokens were expected; check the stride"
    )


def places(grid: int) -> Tensor:
    """`[grid * grid, 2]`: the middles of the cells of a frame from -1 to 1, row by row."""
    middle = (torch.arange(grid) + 0.5) * 2 / grid - 1
    return torch.stack([middle.expand(grid, grid), middle[:, None].expand(grid, grid)], -1).reshape(-1, 2)


def read_places(tap: Tap, size: int, grid: int) -> Tensor:
    """`[N, grid * grid, C]`: a tap of pictures of `size` pixels, read at the middles of grid x grid cells."""
    pixel = (torch.arange(grid) + 0.5) * tap.size / grid - 0.5
    cell = (pixel - tap.first) / tap.stride
    along = (cell + 0.5) * 2 / tap.maps.shape[-1] - 1
    at = torch.stack([along.expand(grid, grid), along[:, None].expand(grid, grid)], -1)
    read = grid_sample(tap.maps, at.expand(len(tap.maps), -1, -1, -1), padding_mode="border")
    return read.flatten(2).mT


class Bases:
    """Whitening of taps: the mean of the set, and its principal components times (variance / largest)^(-1/4)."""

    def __init__(self, means: list[Tensor], projections: list[Tensor]) -> None:
        self.means, self.projections = means, projections

    @classmethod
    def fit(
        cls, taps: Sequence[Tensor], inside: Tensor, source: torch.Generator, *, power: float = 0.25, most: int = 20000
    ) -> Bases:
        """taps: `[N, P, C]` each. inside `[N, P]`, bool: the places to learn from."""
        means, projections = [], []
        for tap in taps:
            rows = tap[inside]
            rows = rows[torch.randperm(len(rows), generator=source)[:most]]
            mean = rows.mean(0)
            values, vectors = torch.linalg.eigh(((rows - mean).T @ (rows - mean) / max(len(rows), 1)).double())
            width = min(LARGEST_WIDTH // len(taps), tap.shape[-1])
            values, vectors = values.flip(0)[:width].clamp_min(1e-6), vectors.flip(1)[:, :width]
            means.append(mean)
            projections.append((vectors * (values / values[0]) ** -power).float())
        return cls(means, projections)

    def apply(self, taps: Sequence[Tensor]) -> Tensor:
        """Unit vectors `[N, P, D]`: each tap whitened to unit length, side by side."""
        parts = [
            F.normalize((tap - mean) @ projection, dim=-1)
            for tap, mean, projection in zip(taps, self.means, self.projections, strict=True)
        ]
        return F.normalize(torch.cat(parts, -1), dim=-1)
