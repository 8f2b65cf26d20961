# SPDX-License-Identifier: Apache-2.0
"""`open_pictures`: a folder, tar or MNIST file as one indexable set of square 8-bit pictures."""

from __future__ import annotations

import collections
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar, get_args

import numpy
import torch

from gangealing_fast.data.decoding import Pad, Square, decode, formats, to_square
from gangealing_fast.data.mnist import is_idx_name, read_images
from gangealing_fast.data.sources import Entry, Listing, list_entries, others_summary
from gangealing_fast.runtime.errors import UserError
from gangealing_fast.runtime.text import printable

MEMORY_BUDGET = 2 << 30
"""Decoded pictures are kept in memory up to this many bytes (43 000 of 128x128, 170 000 of 64x64)."""

_THREADS = 2
_AHEAD = 256  # pictures of the wanted size that are decoded before they are asked for
_WHOLE_AHEAD = 1  # and whole ones: a large photograph takes a hundred megabytes


def to_float(pictures: torch.Tensor) -> torch.Tensor:
    """uint8 0 … 255 to float32 [-1, 1], any shape."""
    return pictures.to(torch.float32).div_(127.5).sub_(1)


def to_uint8(pictures: torch.Tensor) -> torch.Tensor:
    """Floating [-1, 1] to uint8 0 … 255, rounded and clipped, any shape; the inverse of `to_float`."""
    return pictures.detach().float().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)


_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def mapped(
    function: Callable[[_Item], _Result], items: Iterable[_Item], *, ahead: int, workers: int = _THREADS
) -> Iterator[_Result]:
    """`function` of each item in order, by `workers` threads, at most `ahead` results before they are asked for."""
    begun: collections.deque[Future[_Result]] = collections.deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for item in items:
                begun.append(pool.submit(function, item))
                if len(begun) > ahead:
                    yield begun.popleft().result()
            while begun:
                yield begun.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def read_or_reason(read: Callable[[], _Result]) -> _Result | str:
    """What `read` returns, or why a picture cannot be read."""
    try:
        return read()
    except ValueError as error:
        return str(error)
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"
    except MemoryError:
        return "too large for the memory"


def decode_entries(
    entries: Iterable[Entry], size: int | None, pad: Pad, workers: int = _THREADS
) -> Iterator[tuple[Entry, numpy.ndarray | str]]:
    """Decode pictures in order on `workers` threads, a few hundred ahead at most, or one each if they keep their size or shape.

    Yields:
        `(entry, [size, size, 3] uint8)`, or `(entry, reason)` for one that cannot be used.
    """

    def one(entry: Entry) -> tuple[Entry, numpy.ndarray | str]:
        return entry, read_or_reason(lambda: decode(entry.read(), size, pad))

    formats()  # before several threads need them
    whole = size is None or pad in ("shorter-side", "none")
    yield from mapped(one, entries, ahead=_WHOLE_AHEAD * max(1, workers // _THREADS) if whole else _AHEAD, workers=workers)


class Pictures:
    """Square pictures by index; made by `open_pictures`.

    Attributes:
        names: one per usable picture, in a fixed order.
        skipped: `(name, reason)` of the pictures left out. A set too large for memory is decoded when used, so that
            unreadable pictures are found, replaced by the next one, and entered here, only then.
        others: names of the files among them that are no pictures.
        size: side length in pixels.
        source: the path, as given.
    """

    def __init__(
        self,
        source: str,
        size: int,
        pad: Square,
        names: list[str],
        skipped: list[tuple[str, str]],
        store: torch.Tensor | None,
        entries: list[Entry] | None,
        rows: torch.Tensor | None = None,
        others: Sequence[str] = (),
    ) -> None:
        self.source, self.size, self.names, self.skipped, self.others = source, size, names, skipped, others
        self._pad, self._store, self._entries = pad, store, entries
        self._rows = torch.arange(len(names)) if rows is None else rows

    def __len__(self) -> int:
        return len(self.names)

    def batch(self, indices: Sequence[int] | torch.Tensor) -> torch.Tensor:
        """The pictures of these indices, uint8 `[N, 3, size, size]`.

        Raises:
            IndexError: an index is not in 0 … len-1.
            UserError: no picture of a set decoded on use can be read any more.
        """
        index = torch.as_tensor(indices, dtype=torch.int64).reshape(-1)
        if len(index) and (int(index.min()) < 0 or int(index.max()) >= len(self)):
            raise IndexError(f"picture indices must be in 0 … {len(self) - 1}, got {int(index.min())} … {int(index.max())}")
        rows = self._rows[index]
        if self._store is not None:
            return self._store[rows]
        decoded = torch.empty(len(rows), 3, self.size, self.size, dtype=torch.uint8)
        assert self._entries is not None
        results = decode_entries((self._entries[row] for row in rows.tolist()), self.size, self._pad)
        for place, (entry, value) in enumerate(results):
            if isinstance(value, str):
                value = self._substitute(int(index[place]), entry, value)
            decoded[place] = torch.from_numpy(value).permute(2, 0, 1)
        return decoded

    def _substitute(self, index: int, entry: Entry, reason: str) -> numpy.ndarray:
        """The next readable picture: the same one in every run, so that a resumed run sees the same data."""
        if (entry.name, reason) not in self.skipped:
            self.skipped.append((entry.name, reason))
        assert self._entries is not None
        for step in range(1, min(len(self), 1000)):
            following = self._entries[int(self._rows[(index + step) % len(self)])]
            try:
                return decode(following.read(), self.size, self._pad)
            except (OSError, ValueError, MemoryError):
                continue
        raise UserError(
            f"the pictures of {self.source} can no longer be read (first: {entry.name}, {reason}); "
            "check that the disk is still there"
        )

    def subset(self, indices: Sequence[int] | torch.Tensor) -> Pictures:
        """The set of these pictures only, in this order; shares memory with this one."""
        index = torch.as_tensor(indices, dtype=torch.int64).reshape(-1)
        return Pictures(
            self.source,
            self.size,
            self._pad,
            [self.names[i] for i in index.tolist()],
            self.skipped,
            self._store,
            self._entries,
            self._rows[index],
            self.others,
        )

    def summary(self) -> str:
        """One sentence: how many pictures of which size, which were skipped, and what else there is."""
        text = f"{len(self)} picture{'s' * (len(self) != 1)} of {self.size}x{self.size} from {printable(self.source)}"
        if self._store is None:
            text += ", decoded when used"
        text += f"; {skipped_summary(self.skipped)}" if self.skipped else ""
        return text + (f"; {others_summary(self.others)}" if self.others else "")


def skipped_summary(skipped: Sequence[tuple[str, str]], most: int = 5) -> str:
    """The skipped pictures, counted and the first `most` named with their reasons."""
    named = ", ".join(f"{printable(name)} ({printable(reason)})" for name, reason in skipped[:most])
    rest = f", and {len(skipped) - most} more" if len(skipped) > most else ""
    return f"{len(skipped)} skipped: {named}{rest}"


def open_pictures(
    path: str | os.PathLike[str],
    *,
    size: int,
    pad: Square = "center",
    limit: int | None = None,
    label: int | None = None,
    minimum: int = 1,
    memory_budget: int = MEMORY_BUDGET,
) -> Pictures:
    """Open a set of pictures.

    Args:
        path: a folder (searched with its subfolders, sorted by name), a .tar (plain or WebDataset), a folder of .tar
            shards, a .zip, an LMDB, or an MNIST images file (IDX, gzipped or not).
        size: side length in pixels of the squares to make.
        pad: "center" cuts the centred square, "border" keeps all and repeats the border pixels, "zero" fills up with black.
        limit: use the first so many files only.
        label: keep only this class (MNIST files only).
        minimum: refuse a set with fewer usable pictures than this.
        memory_budget: bytes; a larger set is decoded when used instead of once.

    Returns:
        The usable pictures. Unreadable and truncated files are skipped, counted and named in `skipped`. Transparency is
        laid on white, EXIF orientation applied; 28x28 MNIST digits are padded with black to 32x32, not enlarged.

    Raises:
        UserError: missing or empty path, no picture, none readable, or too few.
        ValueError: an argument out of range.
    """
    if size < 1 or pad not in get_args(Square) or (limit is not None and limit < 1):
        raise ValueError(f"size and limit must be positive and pad 'center', 'border' or 'zero', got {size}, {limit} and '{pad}'")
    if Path(path).is_file() and is_idx_name(path):
        pictures = _open_idx(Path(path), size, pad, limit, label)
    elif label is not None:
        raise UserError(f"{path} has no labels, only MNIST images files have; leave the class {label} out")
    else:
        pictures = _open_files(path, size, pad, limit, memory_budget)
    if len(pictures) < minimum:
        because = f" ({skipped_summary(pictures.skipped)})" if pictures.skipped else ""
        raise UserError(
            f"{path} has only {len(pictures)} usable picture{'s' * (len(pictures) != 1)}{because}, "
            f"but at least {minimum} are needed; add more"
        )
    return pictures


def _open_files(path: str | os.PathLike[str], size: int, pad: Square, limit: int | None, memory_budget: int) -> Pictures:
    found = list_entries(path)
    entries, skipped, others = found.entries[:limit], list(found.skipped), found.others
    if len(entries) * 3 * size * size > memory_budget:
        return Pictures(str(path), size, pad, [entry.name for entry in entries], skipped, None, entries, others=others)
    store = torch.empty(len(entries), 3, size, size, dtype=torch.uint8)
    names: list[str] = []
    for entry, value in decode_entries(entries, size, pad):
        if isinstance(value, str):
            skipped.append((entry.name, value))
            continue
        store[len(names)] = torch.from_numpy(value).permute(2, 0, 1)
        names.append(entry.name)
    if not names:
        raise UserError(f"none of the {len(entries)} pictures in {path} can be read: {skipped_summary(skipped)}")
    return Pictures(str(path), size, pad, names, skipped, store[: len(names)], None, others=others)


def _open_idx(path: Path, size: int | None, pad: Square, limit: int | None, label: int | None) -> Pictures:
    from PIL import Image

    images, positions = read_images(path, labels=None if label is None else (label,))
    images, positions = images[:limit], positions[:limit]
    if not len(images):
        raise UserError(f"{path} holds no images; give another file")
    height, width = images.shape[1:]
    size = max(height, width) if size is None else size
    if max(height, width) <= size <= 8 * max(height, width) // 7:
        # A small margin is black background: padding keeps the strokes as they are, enlarging would blur them.
        top, left = (size - height) // 2, (size - width) // 2
        margins = ((0, 0), (top, size - height - top), (left, size - width - left))
        store = torch.from_numpy(numpy.pad(images, margins))[:, None].expand(-1, 3, -1, -1)
    else:
        squares = [to_square(Image.fromarray(image), size, pad) for image in images]
        store = torch.from_numpy(numpy.stack(squares)).permute(0, 3, 1, 2).contiguous()
    names = [f"{path.name}#{position}" for position in positions.tolist()]
    return Pictures(str(path), size, pad, names, [], store, None)


class PictureStream:
    """Pictures in batches, read once from first to last, no more than a few hundred in memory at a time (but all of an MNIST file).

    Iterating gives (names, uint8 `[n, 3, size, size]`) with n up to `batch`. Pictures that cannot be read are left out, and are in
    `skipped` as (name, reason) from then on; `others` are the files that are no pictures. Arguments and errors of the path as in
    `open_pictures`; UserError where not one picture could be read. size None leaves pictures as they are; they then come one by
    one.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, size: int | None, batch: int = 1, pad: Square = "center", limit: int | None = None
    ) -> None:
        if size is None and batch != 1:
            raise ValueError(f"pictures of different sizes make no batch: batch must be 1, got {batch}.")
        self.path, self.size, self.size_of_batch, self.pad = Path(path), size, batch, pad
        self.skipped: list[tuple[str, str]] = []
        self._digits = _open_idx(self.path, size, pad, limit, None) if self.path.is_file() and is_idx_name(path) else None
        self._listing = Listing() if self._digits is not None else list_entries(path)
        self._entries, self.others = self._listing.entries[:limit], self._listing.others

    def __len__(self) -> int:
        """How many pictures there are, unreadable ones included."""
        return len(self._entries) if self._digits is None else len(self._digits)

    def __iter__(self) -> Iterator[tuple[list[str], torch.Tensor]]:
        if self._digits is not None:
            for rows in torch.arange(len(self._digits)).split(self.size_of_batch):
                yield [self._digits.names[row] for row in rows.tolist()], self._digits.batch(rows)
            return
        usable = self._usable()
        while chunk := list(itertools.islice(usable, self.size_of_batch)):
            names, pictures = [name for name, _ in chunk], torch.stack([picture for _, picture in chunk])
            chunk.clear()  # a whole photograph need not be there twice
            yield names, pictures
        if len(self.skipped) - len(self._listing.skipped) == len(self._entries):
            raise UserError(f"none of the {len(self)} pictures in {self.path} can be read: {skipped_summary(self.skipped)}")

    def summary(self) -> str:
        """What was left out so far, in a sentence for each kind; "" if nothing."""
        skipped = [skipped_summary(self.skipped)] if self.skipped else []
        return "; ".join(skipped + ([others_summary(self.others)] if self.others else []))

    def _usable(self) -> Iterator[tuple[str, torch.Tensor]]:
        self.skipped[:] = self._listing.skipped
        for entry, value in decode_entries(self._entries, self.size, self.pad):
            if isinstance(value, str):
                self.skipped.append((entry.name, value))
            else:
                yield entry.name, torch.from_numpy(value).permute(2, 0, 1)
