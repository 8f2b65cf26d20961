# SPDX-License-Identifier: Apache-2.0
"""Pictures of any sizes as squares of one side, kept in a file, so that a set of any number needs the memory of a few.

Smaller pictures are kept at their own size.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from gangealing_fast.congealing.records import Pictures
from gangealing_fast.runtime.errors import UserError

LONGEST_ASPECT = 5.0


class Squares:
    """Pictures in the middles of squares of at most `side` pixels, with masks that say what belongs to the picture.

    Raises UserError if a picture has values that are not finite, is empty, has an aspect beyond 5, or has a mask of another size.
    """

    def __init__(
        self,
        images: Tensor | Pictures,
        masks: Tensor | Pictures | None,
        side: int,
        names: Sequence[str] | None = None,
    ) -> None:
        self.side, self._names = side, names
        self._file, self._reading = tempfile.TemporaryFile(), threading.Lock()
        if masks is not None and len(masks) != len(images):
            raise UserError(f"there are {len(images)} pictures but {len(masks)} masks: give one for each")
        placed = []
        self._places: list[tuple[int, int]] = []  # where in the file a picture begins, and its side there
        for index in range(len(images)):
            picture, inside, place = self._prepare(index, images[index], None if masks is None else masks[index])
            row = torch.cat([(picture + 1) * 127.5, inside * 255]).round().clamp(0, 255).to(torch.uint8)
            self._places.append((self._file.tell(), row.shape[-1]))
            self._file.write(row.contiguous().numpy().tobytes())
            placed.append(place)
        self.placing = torch.stack(placed) if placed else torch.zeros(0, 3, 3, dtype=torch.float64)
        """`[N, 3, 3]`, float64: from a picture's pixels to its square, whose edges lie at -1 and 1."""

    def __len__(self) -> int:
        return len(self.placing)

    def stored(self, rows: Sequence[int] | Tensor) -> list[tuple[Tensor, Tensor]]:
        """Pictures of these numbers in groups of one side: places in `rows` `[k]`, int64, and values `[k, 4, s, s]`, uint8.

        The fourth channel is the mask. s is at most `side`.
        """
        groups: dict[int, tuple[list[int], list[Tensor]]] = {}
        for place, row in enumerate(rows):
            begin, side = self._places[int(row)]
            with self._reading:
                self._file.seek(begin)
                content = bytearray(self._file.read(4 * side * side))
            if len(content) != 4 * side * side:
                raise UserError("the temporary file of the pictures is cut short: is the disk full?")
            numbers, values = groups.setdefault(side, ([], []))
            numbers.append(place)
            values.append(torch.frombuffer(content, dtype=torch.uint8).view(4, side, side))
        return [(torch.tensor(numbers), torch.stack(values)) for numbers, values in groups.values()]

    def _name(self, index: int) -> str:
        return f"picture {index}" if self._names is None else str(self._names[index])

    def _prepare(self, index: int, picture: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """A picture in its square, its mask there, and the matrix that puts it there."""
        if picture.ndim != 3 or picture.shape[0] not in (1, 3, 4) or min(picture.shape[1:]) < 8:
            raise UserError(f"{self._name(index)} is {list(picture.shape)}: pictures are [3, H, W] with sides of 8 pixels or more")
        picture = picture.detach().float().cpu()
        if not bool(picture.isfinite().all()):
            raise UserError(f"{self._name(index)} has values that are not finite numbers: leave it out")
        height, width = picture.shape[1:]
        if max(height, width) > LONGEST_ASPECT * min(height, width):
            raise UserError(
                f"{self._name(index)} is a panorama of {width}x{height} pixels: crop it to less than five times its width"
            )
        inside = torch.ones(1, height, width)
        if picture.shape[0] == 4:
            picture, inside = picture[:3], (picture[3:] + 1) / 2
        if mask is not None:
            if mask.shape[-2:] != picture.shape[-2:]:
                raise UserError(
                    f"the mask of {self._name(index)} is {list(mask.shape[-2:])}, the picture {[height, width]}: they must agree"
                )
            inside = inside * (mask.detach().float().cpu().reshape(1, height, width) + 1) / 2
        side = min(self.side, max(height, width))
        rows, columns = (max(1, round(length * side / max(height, width))) for length in (height, width))
        both = torch.cat([picture.expand(3, -1, -1), inside])[None]
        if (rows, columns) != (height, width):
            both = F.interpolate(both, size=(rows, columns), mode="bilinear", align_corners=False, antialias=True)
        top, left = (side - rows) // 2, (side - columns) // 2
        room = (left, side - columns - left, top, side - rows - top)
        placing = torch.eye(3, dtype=torch.float64)
        for axis, new, old, start in ((0, columns, width, left), (1, rows, height, top)):
            placing[axis, axis] = 2 * new / old / side
            placing[axis, 2] = (new / old + 2 * start) / side - 1
        padded = F.pad(both[:, :3], room, mode="replicate")[0].clamp(-1, 1)
        return padded, F.pad(both[0, 3:], room).clamp(0, 1), placing
