# SPDX-License-Identifier: Apache-2.0
"""What all readers of key points return: pictures with marked points, whatever file they came from."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy
import torch
from PIL import Image
from torch import Tensor

from gangealing_fast.data.decoding import decode, formats
from gangealing_fast.data.sources import Entry
from gangealing_fast.runtime.errors import UserError

UPRIGHT = {5, 6, 7, 8}
"""EXIF orientations that exchange width and height."""


@dataclass(frozen=True)
class KeypointSet:
    """N pictures with P points each, in pixels (x, y) of the pictures as `picture` returns them, 0 the centre of the first pixel.

    kind: the format, in words. entries: the N pictures. points `[N, P, 2]` float64; those that are not visible mean nothing.
    visible `[N, P]` bool: marked. sizes `[N, 2]` float64: width and height of the pictures. boxes `[N, 4]` float64: left, top,
    right, bottom of the object, or None. groups: the class of each picture, or () if there are none. point_names: P of them.
    mirror `[N, P]` int64: the point that each becomes in the picture's mirror image, or None. pairs `[M, 2]`: those that the data
    set prescribes, or None. pair_points `[M, P]` bool: the points that these pairs count, or None for all that are visible in both.
    crops `[N, 4]` int64: the part of the file's pixels that is the picture, which may reach beyond them, or None for all.
    notes: sentences for the user.
    """

    kind: str
    entries: tuple[Entry, ...]
    points: Tensor
    visible: Tensor
    sizes: Tensor
    boxes: Tensor | None = None
    groups: tuple[str, ...] = ()
    point_names: tuple[str, ...] = ()
    mirror: Tensor | None = None
    pairs: Tensor | None = None
    pair_points: Tensor | None = None
    crops: Tensor | None = None
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the pictures."""
        return tuple(entry.name for entry in self.entries)

    def picture(self, index: int) -> Tensor:
        """`[3, H, W]` uint8. Raises UserError if the picture cannot be read or has another size than was read before."""
        entry = self.entries[index]
        try:
            array = decode(entry.read(), None)
        except (OSError, ValueError) as error:
            raise UserError(
                f"the picture {entry.name} with key points cannot be read ({error}); restore it or leave it out"
            ) from None
        if self.crops is not None:
            array = cut(array, *self.crops[index].tolist())
        if [array.shape[1], array.shape[0]] != self.sizes[index].tolist():
            raise UserError(
                f"the picture {entry.name} has {array.shape[1]}x{array.shape[0]} pixels, but its key points belong to one of "
                f"{self.sizes[index, 0]:g}x{self.sizes[index, 1]:g}; give the pictures that the points were marked on"
            )
        return torch.from_numpy(array).permute(2, 0, 1)

    def choose(self, indices: Sequence[int] | Tensor) -> KeypointSet:
        """These pictures alone, in this order, with those of the prescribed pairs that lie among them."""
        index = torch.as_tensor(indices, dtype=torch.int64).reshape(-1)
        pairs, pair_points = self.pairs, self.pair_points
        if pairs is not None:
            place = torch.full((len(self),), -1).scatter_(0, index, torch.arange(len(index)))
            kept = (place[pairs] >= 0).all(1)
            pairs = place[pairs][kept]
            pair_points = None if pair_points is None else pair_points[kept]
        rows = index.tolist()
        return dataclasses.replace(
            self,
            entries=tuple(self.entries[i] for i in rows),
            points=self.points[index],
            visible=self.visible[index],
            sizes=self.sizes[index],
            boxes=None if self.boxes is None else self.boxes[index],
            groups=tuple(self.groups[i] for i in rows) if self.groups else (),
            mirror=None if self.mirror is None else self.mirror[index],
            pairs=pairs,
            pair_points=pair_points,
            crops=None if self.crops is None else self.crops[index],
        )

    def cropped(self, margin: float = 0.05) -> KeypointSet:
        """Squares about the objects' boxes instead of whole pictures, as ACSM (arXiv 2004.00614) cuts birds out.

        The square's side is the longer one of the box, and `margin` of it more on each side. What lies beyond the picture repeats
        its edge. Raises UserError if there are no boxes.
        """
        if self.boxes is None:
            raise UserError("--crop object needs the objects' boxes, which these key points come without; leave --crop out")
        left, top, right, bottom = self.boxes.unbind(1)
        side = (torch.maximum(right - left, bottom - top) * (1 + 2 * margin)).round().clamp(min=2)
        corner = torch.stack([(left + right - side) / 2, (top + bottom - side) / 2], 1).round()
        crops = torch.cat([corner, corner + side[:, None]], 1).to(torch.int64)
        return dataclasses.replace(
            self,
            points=self.points - corner[:, None],
            boxes=self.boxes - corner.repeat(1, 2),
            sizes=side[:, None].expand(-1, 2).contiguous(),
            crops=crops,
        )


def cut(array: numpy.ndarray, left: int, top: int, right: int, bottom: int) -> numpy.ndarray:
    """Rows top to bottom and columns left to right of a picture `[height, width, 3]`; beyond its edge, the edge is repeated."""
    rows = numpy.arange(top, bottom).clip(0, array.shape[0] - 1)
    columns = numpy.arange(left, right).clip(0, array.shape[1] - 1)
    return array[rows[:, None], columns[None]]


def picture_size(entry: Entry) -> tuple[int, int]:
    """Width and height of a picture as `decode` turns it upright, from its header. Raises UserError if it cannot be read."""
    try:
        content = io.BytesIO(entry.read())
        with Image.open(content, formats=formats()) as picture:
            turned = picture.getexif().get(0x0112) in UPRIGHT
            width, height = picture.size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"the picture {entry.name} with key points cannot be read ({error}); restore it or leave it out") from None
    return (height, width) if turned else (width, height)


def picture_sizes(entries: Sequence[Entry]) -> Tensor:
    """`[N, 2]`: `picture_size` of every picture."""
    return torch.tensor([picture_size(entry) for entry in entries], dtype=torch.float64).reshape(-1, 2)
