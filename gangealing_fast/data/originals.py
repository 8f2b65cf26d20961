# SPDX-License-Identifier: Apache-2.0
"""Pictures by their names or numbers, read when they are asked for, so that a set of any number needs the memory of a few."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import numpy
import torch
from PIL import Image
from torch import Tensor

from gangealing_fast.data.decoding import Layers, decode, decode_layers
from gangealing_fast.data.mnist import is_idx_name
from gangealing_fast.data.pictures import open_pictures, to_float
from gangealing_fast.data.sources import Entry, list_entries
from gangealing_fast.runtime.errors import UserError

DIGITS = 32
"""MNIST's digits are read padded to that many pixels."""
SMALLEST, LONGEST_ASPECT = 8, 5
"""A picture that is aligned has at least so many pixels a side, and no side more than so many times the other."""


class Originals:
    """The pictures of a folder, a tar, a folder of tars or an MNIST file, at their own size, by name. Errors as `open_pictures`.

    names: of all files that are pictures by their name or content, sorted; none is decoded beforehand. skipped: (name, reason) of
    what could not be looked into. others: names of files that are no pictures.
    """

    def __init__(self, path: str | os.PathLike[str], limit: int | None = None) -> None:
        self.path = Path(path)
        self._digits: Tensor | None = None
        self._entries: list[Entry] = []
        self.skipped: list[tuple[str, str]] = []
        self.others: list[str] = []
        if self.path.is_file() and is_idx_name(path):
            digits = open_pictures(path, size=DIGITS, limit=limit)
            self._digits, self.names = digits.batch(range(len(digits))), tuple(digits.names)
        else:
            found = list_entries(path)
            self._entries, self.skipped, self.others = found.entries[:limit], list(found.skipped), list(found.others)
            self.names = tuple(entry.name for entry in self._entries)
        self._numbers = {name: number for number, name in reversed(list(enumerate(self.names)))}
        self._reading = threading.Lock()

    def __len__(self) -> int:
        return len(self.names)

    def read(self, name: str) -> Tensor:
        """A picture as it is, uint8 `[3, H, W]`, transparency laid on white.

        Raises UserError if there is no such picture, or if it cannot be read.
        """
        if name not in self._numbers:
            raise UserError(f"there is no picture {name} in {self.path} any more; restore it")
        number = self._numbers[name]
        if self._digits is not None:
            return self._digits[number]
        try:
            return _channels_first(decode(self._content(number), None))
        except (OSError, ValueError, MemoryError) as error:
            raise UserError(f"{name} in {self.path} cannot be read: {error}; restore it") from None

    def layers(self, number: int, longest: int | None = None) -> tuple[Layers, str]:
        """A picture by its number with its opacity, its longer side at most `longest`; and a mark of its file's content.

        Raises ValueError or OSError with the reason, if it cannot be read.
        """
        if self._digits is not None:
            digit = self._digits[number].permute(1, 2, 0).numpy()
            return Layers(digit, None, (digit.shape[1], digit.shape[0])), hashlib.blake2b(
                digit.tobytes(), digest_size=8
            ).hexdigest()
        content = self._content(number)
        return decode_layers(content, longest), hashlib.blake2b(content, digest_size=8).hexdigest()

    def _content(self, number: int) -> bytes:
        # Entries of one archive share its file.
        with self._reading:
            return self._entries[number].read()


def _channels_first(values: numpy.ndarray) -> Tensor:
    return torch.from_numpy(values).permute(2, 0, 1)


class Masks:
    """Pictures of a folder (or tar) by the stems of their names: white is what belongs to the picture of that stem, black is not.

    Errors as `open_pictures`, and UserError if two masks have one stem.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._entries: dict[str, Entry] = {}
        for entry in list_entries(path).entries:
            stem = _stem(entry.name)
            if stem in self._entries:
                raise UserError(
                    f"--masks {path} has two masks of one picture ({self._entries[stem].name}, {entry.name}); leave one out"
                )
            self._entries[stem] = entry

    def of(self, name: str, size: tuple[int, int], shape: tuple[int, int]) -> numpy.ndarray | None:
        """The mask of picture `name`, of `size` (width, height) as a file, at `shape` (height, width); None if there is none.

        Raises UserError if the mask cannot be read, or has another shape than the picture.
        """
        entry = self._entries.get(_stem(name))
        if entry is None:
            return None
        try:
            found = decode_layers(entry.read())
        except (OSError, ValueError, MemoryError) as error:
            raise UserError(f"the mask {entry.name} in {self.path} cannot be read: {error}; replace it") from None
        width, height = found.size
        if abs(width * size[1] - height * size[0]) > 0.02 * width * size[1]:
            raise UserError(
                f"the mask {entry.name} is {width}x{height}, but {name} is {size[0]}x{size[1]}: give a mask of the picture's shape"
            )
        grey = numpy.asarray(Image.fromarray(found.colours).convert("L"))
        grey = grey if found.opacity is None else numpy.minimum(grey, found.opacity)
        return numpy.asarray(Image.fromarray(grey).resize((shape[1], shape[0]), Image.Resampling.BOX))

    def __len__(self) -> int:
        return len(self._entries)


class Reduced:
    """Pictures that can be read, made smaller where a side is longer than `longest` pixels; `congealing.records.Pictures`.

    Gives `[3, H, W]` in [-1, 1], or `[4, H, W]` if a picture has transparent parts or a mask. They are kept decoded as long as they
    take no more than `memory` bytes together, and decoded anew when asked for beyond that. Every picture is read once at the start.

    numbers, names, sizes, marks: of the pictures that can be read, their place in `originals`, names, (width, height) of the whole
    pictures, and a mark of the file's content. skipped: (name, reason) of the others. masked: names of those with a mask.
    progress: called with (done, total).
    """

    def __init__(
        self,
        originals: Originals,
        longest: int,
        *,
        masks: Masks | None = None,
        memory: int = 1 << 29,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self._originals, self._longest, self._masks = originals, longest, masks
        self.numbers: list[int] = []
        self.names: list[str] = []
        self.sizes: list[tuple[int, int]] = []
        self.marks: list[str] = []
        self.skipped: list[tuple[str, str]] = list(originals.skipped)
        self.masked: set[str] = set()
        self._kept: list[Tensor | None] = []
        self._room = memory
        for number, name in enumerate(originals.names):
            reason = self._add(number, name)
            if reason is not None:
                self.skipped.append((name, reason))
            if progress is not None:
                progress(number + 1, len(originals))

    def _add(self, number: int, name: str) -> str | None:
        """Take a picture in; why it cannot be, if so."""
        try:
            layers, mark = self._originals.layers(number, self._longest)
        except (OSError, ValueError, MemoryError) as error:
            return str(error)
        reason = _unfit(*layers.size)
        if reason is not None:
            return reason
        picture = self._stacked(name, layers)
        self._room -= picture.numel()
        self._kept.append(picture if self._room >= 0 else None)
        self.numbers.append(number)
        self.names.append(name)
        self.sizes.append(layers.size)
        self.marks.append(mark)
        return None

    def _stacked(self, name: str, layers: Layers) -> Tensor:
        """uint8 `[3 or 4, h, w]`."""
        mask = (
            None if self._masks is None else self._masks.of(name, layers.size, (layers.colours.shape[0], layers.colours.shape[1]))
        )
        if mask is not None:
            self.masked.add(name)
        known = [part for part in (layers.opacity, mask) if part is not None]
        colours = _channels_first(layers.colours)
        if not known:
            return colours.contiguous()
        return torch.cat([colours, torch.from_numpy(numpy.minimum.reduce(known))[None]])

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int, /) -> Tensor:
        picture = self._kept[index]
        if picture is None:
            try:
                layers, _ = self._originals.layers(self.numbers[index], self._longest)
            except (OSError, ValueError, MemoryError) as error:
                raise UserError(
                    f"{self.names[index]} can no longer be read ({error}); check that the disk is still there"
                ) from None
            picture = self._stacked(self.names[index], layers)
        return to_float(picture)


def _unfit(width: int, height: int) -> str | None:
    """Why nothing can be aligned in a picture of that size; None if that is not so."""
    if min(width, height) < SMALLEST:
        return f"{width}x{height} pixels, fewer than {SMALLEST} on a side"
    if max(width, height) > LONGEST_ASPECT * min(width, height):
        return f"a panorama of {width}x{height}: crop it to less than {LONGEST_ASPECT} times its width"
    return None


def _stem(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(""))
