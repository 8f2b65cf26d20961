# SPDX-License-Identifier: Apache-2.0
"""The data of the `digits` preset: real MNIST digits of one class under known random similarity warps.

Coordinates and matrices are as in `geometry/warps.py`. A warp is a matrix A `[2, 3]` that maps a point p of the *upright*
digit's frame to the point A p of the *warped* picture, where that piece of ink is then found. The warped picture is therefore
sampled at `grid = A⁻¹(output grid)`: `warped(q) = upright(A⁻¹ q)`. With an aligner that reads the warped picture at `W(u)` for
the template's point u, the map u → A⁻¹ W(u) leads from the template to the upright digit, whichever A was drawn.

Upright frames are 32x32: MNIST's 28x28 images with a margin of 2 black pixels on every side.
"""

from __future__ import annotations

import functools
import json
import math
import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, grid_sample, pad

from gangealing_fast.data.mnist import find_images, labels_path, read_idx, read_images
from gangealing_fast.data.pictures import to_uint8
from gangealing_fast.geometry.warps import invert, similarity_matrix, transform_points
from gangealing_fast.runtime.errors import UserError

SIZE = 32
ASSET = Path(__file__).resolve().parent.parent / "assets" / "digits" / "heldout.npz"


def random_similarity(
    n: int,
    *,
    rotation: float = 45.0,
    scale: tuple[float, float] = (0.6, 1.1),
    shift: float = 0.15,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw warps A (see the module's text), float32 `[n, 2, 3]`.

    Args:
        n: how many.
        rotation: degrees; angles are uniform in ±rotation.
        scale: range of the factor; uniform in its logarithm, so that twice and half are equally likely.
        shift: part of the picture's side, each axis uniform in ±shift (0.15 is ±4.8 of 32 pixels, ±0.3 normalised).
        generator: source of randomness; None uses torch's global one.
    """
    draw = torch.rand(n, 4, generator=generator, dtype=torch.float64)
    angle = (2 * draw[:, 0] - 1) * math.radians(rotation)
    low, high = math.log(scale[0]), math.log(scale[1])
    log_scale = low + (high - low) * draw[:, 1]
    # A picture's side is 2 in normalised units.
    x, y = ((2 * part - 1) * 2 * shift for part in draw[:, 2:].unbind(1))
    return similarity_matrix(angle, log_scale, x, y).float()


def upright(images: Tensor | numpy.ndarray) -> Tensor:
    """Ink in [0, 1], float32 `[N, 1, 32, 32]`, of uint8 digits `[N, 28, 28]` or `[N, 32, 32]`.

    Raises:
        ValueError: another shape or dtype.
    """
    images = torch.as_tensor(images)
    if images.dtype != torch.uint8 or images.ndim != 3 or tuple(images.shape[1:]) not in ((28, 28), (SIZE, SIZE)):
        raise ValueError(f"digits must be uint8 [N, 28, 28] or [N, 32, 32], got {images.dtype} {list(images.shape)}")
    margin = (SIZE - images.shape[-1]) // 2
    return pad(images[:, None].float().div_(255), (margin,) * 4)


def warp_digits(images: Tensor | numpy.ndarray, matrices: Tensor | None = None, *, oversampling: int = 3) -> Tensor:
    """Real digits as training pictures, float32 `[N, 3, 32, 32]` in [-1, 1], black (-1) around.

    Args:
        images: uint8 `[N, 28, 28]` or `[N, 32, 32]`.
        matrices: warps A `[N, 2, 3]`; None leaves the digits upright.
        oversampling: samples per pixel and axis that are averaged. Three keep a shrinking to 0.6 free of aliasing.
    """
    ink = upright(images)
    if matrices is not None:
        side = oversampling * SIZE
        # Not `identity_grid`, which rounds otherwise: single grey levels would differ from those that networks were trained on.
        centres = (torch.arange(side) + 0.5) * (2 / side) - 1
        output = torch.stack(torch.meshgrid(centres, centres, indexing="xy"), -1).reshape(1, -1, 2)
        grid = transform_points(invert(matrices.to(ink)), output).view(-1, side, side, 2)
        ink = avg_pool2d(grid_sample(ink, grid, mode="bilinear", padding_mode="zeros", align_corners=False), oversampling)
    return ink.mul(2).sub(1).expand(-1, 3, -1, -1).contiguous()


def object_box(images: Tensor | numpy.ndarray, *, threshold: int = 64) -> Tensor:
    """Corners of each upright digit's bounding box, normalised, float32 `[N, 4, 2]`.

    Order: top left, top right, bottom right, bottom left. The box encloses the pixels with at least `threshold` of 255
    ink, edges included; an image without ink has the whole frame as its box.
    """
    ink = upright(images)[:, 0] * 255 >= threshold - 0.5
    spans = []
    for axis in (1, 2):  # over rows gives the columns with ink (x), over columns the rows (y)
        used = ink.any(axis)
        first = used.int().argmax(1)
        last = SIZE - used.flip(1).int().argmax(1)
        spans.append(torch.stack((first, last), 1) * (2.0 / SIZE) - 1)
    x, y = spans
    return torch.stack(
        (
            torch.stack((x[:, 0], y[:, 0]), 1),
            torch.stack((x[:, 1], y[:, 0]), 1),
            torch.stack((x[:, 1], y[:, 1]), 1),
            torch.stack((x[:, 0], y[:, 1]), 1),
        ),
        1,
    )


@dataclass(frozen=True)
class HeldOutDigits:
    """Real digits of MNIST's test set, for evaluation only.

    Attributes:
        images: uint8 `[N, 28, 28]`.
        labels: int64 `[N]`, the class of each.
        ids: int64 `[N]`, the position of each in MNIST's t10k file.
        attribution: one line on where they come from.
    """

    images: Tensor
    labels: Tensor
    ids: Tensor
    attribution: str


@functools.cache
def _read_heldout() -> HeldOutDigits:
    try:
        with numpy.load(ASSET, allow_pickle=False) as stored:
            images, labels, ids = (torch.from_numpy(stored[key]) for key in ("images", "labels", "ids"))
            about = json.loads(str(stored["about"]))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"the held-out digits {ASSET} are missing or damaged; install the package again") from error
    return HeldOutDigits(images, labels.long(), ids.long(), about["attribution"])


def load_heldout_digits(classes: Sequence[int] | None = None, limit: int | None = None) -> HeldOutDigits:
    """The digits inside the package: 300 each of the classes 3, 4 and 7.

    Args:
        classes: only these.
        limit: only the first so many.

    Raises:
        UserError: a class that the package does not hold, or a damaged installation.
    """
    stored = _read_heldout()
    held = sorted(set(stored.labels.tolist()))
    absent = [] if classes is None else sorted(set(classes) - set(held))
    if absent:
        raise UserError(f"the package holds no digits of class {absent[0]}, only of {held}")
    wanted = torch.tensor(held if classes is None else list(classes))
    chosen = torch.isin(stored.labels, wanted).nonzero()[:limit, 0]
    return HeldOutDigits(stored.images[chosen], stored.labels[chosen], stored.ids[chosen], stored.attribution)


def training_digits(source: str | os.PathLike[str], digits: Sequence[int]) -> tuple[Tensor, Tensor]:
    """MNIST's training digits of some classes, in the file's order.

    Args:
        source: the folder with MNIST's original files, or the path of an images file (its labels beside it).
        digits: the classes.

    Returns:
        Images, uint8 `[M, 28, 28]`, and where in `digits` the class of each stands, int64 `[M]`.

    Raises:
        UserError: files missing, damaged or not 28x28, or a class does not occur.
    """
    path = find_images(source, "train") if Path(source).is_dir() else Path(source)
    images, positions = read_images(path, labels=digits)
    if images.shape[1:] != (28, 28):
        raise UserError(f"{path} holds images of {images.shape[1]}x{images.shape[2]}, but digits of 28x28 are needed")
    classes = torch.from_numpy(read_idx(labels_path(path), dimensions=1)[positions].astype(numpy.int64))
    return torch.from_numpy(images), (classes[:, None] == torch.tensor(list(digits))).int().argmax(1)


class WarpedDigits:
    """Digits under fixed random warps, indexable like `Pictures`: index i is digit `i % n` under the i-th warp.

    Args:
        images: uint8 `[n, 28, 28]`.
        seed: of the warps; the same seed gives the same pictures on every machine.
        copies: how many warps of every digit there are; the length is `n * copies`.
        rotation, scale, shift: as in `random_similarity`.
    """

    def __init__(
        self,
        images: Tensor | numpy.ndarray,
        *,
        seed: int = 0,
        copies: int = 10,
        rotation: float = 45.0,
        scale: tuple[float, float] = (0.6, 1.1),
        shift: float = 0.15,
    ) -> None:
        self.images = torch.as_tensor(images)
        self.size = SIZE
        count = len(self.images) * copies
        self.matrices = random_similarity(
            count, rotation=rotation, scale=scale, shift=shift, generator=torch.Generator().manual_seed(seed)
        )
        self.names = [f"digit {i % len(self.images)} warp {i // len(self.images)}" for i in range(count)]
        self.skipped: list[tuple[str, str]] = []

    def __len__(self) -> int:
        return len(self.matrices)

    def floats(self, indices: Sequence[int] | Tensor) -> Tensor:
        """float32 `[N, 3, 32, 32]` in [-1, 1]."""
        index = torch.as_tensor(indices, dtype=torch.int64).reshape(-1)
        return warp_digits(self.images[index % len(self.images)], self.matrices[index])

    def batch(self, indices: Sequence[int] | Tensor) -> Tensor:
        """uint8 `[N, 3, 32, 32]`."""
        return to_uint8(self.floats(indices))

    def summary(self) -> str:
        """One sentence on the set."""
        return f"{len(self)} pictures of {SIZE}x{SIZE}: {len(self.images)} MNIST digits under random similarity warps"
