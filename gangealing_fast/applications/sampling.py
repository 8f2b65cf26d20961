# SPDX-License-Identifier: Apache-2.0
"""Aligned pictures read from the originals: the network sees a picture at its own small size, the warp reads the picture itself.

Also what is known of each aligned picture beside its pixels: how much of it lies beyond the edges, and how many pixels of the
original it shows.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy
import torch
from torch import Tensor

from gangealing_fast.applications.aligner import Aligner, Look, flow_scores_of
from gangealing_fast.applications.config import AlignConfig
from gangealing_fast.data.decoding import View, decode_bounded, decode_view, formats
from gangealing_fast.data.entries import Entry, Listing
from gangealing_fast.data.mnist import is_idx_name
from gangealing_fast.data.pictures import PictureStream, mapped, read_or_reason, skipped_summary, to_float
from gangealing_fast.data.sources import list_entries, others_summary
from gangealing_fast.geometry.warps import identity_grid, mirror_grid, reads_outside, transform_points
from gangealing_fast.models.layers import resize_to
from gangealing_fast.models.spatial_transformer import Alignment
from gangealing_fast.ops import mipmap_warp
from gangealing_fast.runtime.errors import UserError

SHARPNESS, LARGEST_SIDE = 4, 4096
"""An aligned picture of R pixels is read from an original of at most SHARPNESS * R pixels a side, and at most LARGEST_SIDE."""
WHOLE = 1 << 24
"""Pixels of a picture that is aligned whole; a larger one is made smaller, to as many."""
QUALITY = 95
"""Of aligned pictures in JPEG."""
ONE_PIXEL = "a side of one pixel"
_RESULTS = 1 << 22  # pixels of the aligned pictures of one batch
_READ_AHEAD = 1 << 27  # bytes of decoded pictures


class Seeing(NamedTuple):
    """How pictures are read: size: the side that the network sees, None for whole pictures. resolution: that of the results."""

    size: int | None
    resolution: int

    @property
    def largest(self) -> int:
        """Side of the original that is kept at most."""
        return max(self.resolution, min(SHARPNESS * self.resolution, LARGEST_SIDE))

    def batch(self, most: int) -> int:
        """How many pictures are aligned at once, `most` at most: large results are few."""
        return 1 if self.size is None else max(1, min(most, _RESULTS // self.resolution**2))


def seeing_of(config: AlignConfig, aligner: Aligner) -> Seeing:
    """What the options say, or what the aligner was trained for."""
    if config.crop == "none" and config.size:
        raise UserError("--size is the side of cropped pictures: leave it out, or leave --crop none out")
    size = None if config.crop == "none" else config.size or aligner.reads
    return Seeing(size, config.resolution or aligner.size)


class Sight(NamedTuple):
    """A picture by its name and number, or the reason why there is none."""

    number: int
    name: str
    view: View | str


def sights(entries: Sequence[Entry], seeing: Seeing, *, small_alone: bool = False) -> Iterator[Sight]:
    """Pictures in order, decoded in threads, a bounded number of bytes ahead. small_alone: without originals, which is quicker."""
    size = seeing.size

    def one(item: tuple[int, Entry]) -> Sight:
        number, entry = item
        if size is None:
            return Sight(number, entry.name, _whole(read_or_reason(lambda: decode_bounded(entry.read(), WHOLE))))
        largest = 0 if small_alone else seeing.largest
        return Sight(number, entry.name, read_or_reason(lambda: decode_view(entry.read(), size, largest)))

    formats()  # before several threads need them
    ahead = 1 if size is None else max(2, min(128, _READ_AHEAD // (3 * max(size, seeing.largest) ** 2)))
    return mapped(one, enumerate(entries), ahead=ahead)


class Collection:
    """All pictures of a folder, tar, zip, LMDB or MNIST file. skipped: (name, reason) of what could not be looked into."""

    def __init__(self, path: Path, seeing: Seeing, limit: int | None) -> None:
        self.path, self.seeing, self._digits = path, seeing, None
        self._listing = Listing()
        if path.is_file() and is_idx_name(path):
            self._digits = PictureStream(path, size=seeing.size, limit=limit)
        else:
            self._listing = list_entries(path)
        self._entries = self._listing.entries[:limit]
        self.skipped: list[tuple[str, str]] = list(self._listing.skipped)

    def __len__(self) -> int:
        return len(self._entries) if self._digits is None else len(self._digits)

    def sights(self, *, small_alone: bool = False) -> Iterator[Sight]:
        """See `sights`."""
        if self._digits is None:
            return sights(self._entries, self.seeing, small_alone=small_alone)
        found = ((name, batch[0].permute(1, 2, 0).numpy()) for (name,), batch in self._digits)
        return (Sight(number, name, _whole(pixels)) for number, (name, pixels) in enumerate(found))

    def summary(self) -> str:
        """What was left out so far, in a sentence for each kind; "" if nothing."""
        skipped = [skipped_summary(self.skipped)] if self.skipped else []
        return "; ".join(skipped + ([others_summary(self._listing.others)] if self._listing.others else []))


def _whole(pixels: numpy.ndarray | str) -> View | str:
    if isinstance(pixels, str):
        return pixels
    return View(pixels, pixels, min(pixels.shape[:2]))


def batches(found: Iterator[Sight], size: int, skipped: list[tuple[str, str]]) -> Iterator[list[tuple[int, str, View]]]:
    """(number, name, view) of the pictures that can be read, so many at a time; the others are entered into `skipped`."""

    def usable() -> Iterator[tuple[int, str, View]]:
        for number, name, view in found:
            if isinstance(view, str):
                skipped.append((name, view))
            elif min(view.small.shape[:2]) < 2:
                skipped.append((name, ONE_PIXEL))
            else:
                yield number, name, view

    stream = usable()
    while chunk := list(islice(stream, size)):
        yield chunk


def look_at(aligner: Aligner, views: Sequence[View], seeing: Seeing, *, similarity_only: bool = False) -> tuple[Tensor, Look]:
    """Pictures `[N, 3, S, S]` as the network sees them, and the look at them, whose aligned pictures are read from the originals.

    similarity_only: they are aligned by the similarity alone; residual flow and scores are those of the whole warp.
    """
    images = to_float(torch.stack([torch.from_numpy(view.small).permute(2, 0, 1) for view in views]))
    look = aligner.look(images, output_resolution=seeing.resolution)
    record, warped = look.alignment, False
    if similarity_only and record.residual_flow is not None:
        assert record.matrix is not None
        base = identity_grid(seeing.resolution, seeing.resolution, device=record.matrix.device)[None]
        grid = mirror_grid(transform_points(record.matrix, base), look.mirrored)
        record, warped = record._replace(grid=grid), True
    rows = []
    for row, view in enumerate(views):
        if view.original is view.small and not warped:
            rows.append(record.image[row : row + 1])
        else:
            whole = view.original is view.small
            pixels = torch.from_numpy(view.original).permute(2, 0, 1)[None]
            source = look.square.images[row : row + 1] if whole else to_float(pixels).to(record.grid.dtype)
            rows.append(mipmap_warp(source, record.grid[row : row + 1], padding_mode=aligner.warping.padding_mode))
    return images, look._replace(alignment=record._replace(image=torch.cat(rows)))


def before_of(images: Tensor, look: Look, seeing: Seeing) -> Tensor:
    """The pictures as they were, all of one size."""
    return look.square.images if seeing.size is not None else resize_to(look.square.images, seeing.resolution)


def rows_of(look: Look, rows: Sequence[int]) -> Look:
    """The look at some of the pictures."""
    record = look.alignment
    residual = None if record.residual_flow is None else record.residual_flow[rows]
    matrix = None if record.matrix is None else record.matrix[rows]
    part = Alignment(record.image[rows], record.grid[rows], residual, matrix)
    square, spread = look.square._replace(images=look.square.images[rows]), None if look.spread is None else look.spread[rows]
    return Look(square, look.cluster[rows], look.mirrored[rows], part, spread)


def flow_bytes(flow: Tensor) -> bytes:
    """A residual flow `[side, side, 2]` as a file .npy."""
    buffer = io.BytesIO()
    numpy.save(buffer, flow.detach().cpu().float().numpy(), allow_pickle=False)
    return buffer.getvalue()


def lines_of(names: Sequence[str], views: Sequence[View], images: Tensor, look: Look, *, decided: bool) -> list[dict[str, Any]]:
    """What is written of each aligned picture beside its pixels. decided: whether there was a cluster or a mirror to decide on."""
    record, scores = look.alignment, flow_scores_of(look.alignment)
    outside, resolutions = outside_shares(images, look), effective_resolutions(views, images, look)
    lines = []
    for k, name in enumerate(names):
        matrix = None if record.matrix is None else record.matrix[k].flatten().tolist()
        line: dict[str, Any] = {"picture": name, "matrix": matrix}
        if scores is not None:
            line["flow_score"] = scores[k].item()
        line |= {"out_of_bounds": outside[k], "effective_resolution": resolutions[k]}
        if look.spread is not None:
            line["spread"] = look.spread[k].item()
        if decided:
            line |= {"cluster": int(look.cluster[k]), "mirrored": bool(look.mirrored[k])}
        lines.append(line)
    return lines


def scores_of(
    aligner: Aligner, found: Iterator[Sight], seeing: Seeing, batch: int, seen: Callable[[int], object] = lambda count: None
) -> list[tuple[int, float]]:
    """(number, flow score) of each picture that can be read; seen: called with how many more were looked at."""
    scores: list[tuple[int, float]] = []
    small = seeing._replace(resolution=aligner.size)
    for chunk in batches(found, small.batch(batch), []):
        _, look = look_at(aligner, [view for _, _, view in chunk], small)
        values = flow_scores_of(look.alignment)
        assert values is not None
        scores += [(number, value) for (number, _, _), value in zip(chunk, values.tolist(), strict=True)]
        seen(len(chunk))
    return scores


def outside_shares(images: Tensor, look: Look) -> list[float]:
    """Which share of each aligned picture lies beyond the edges of the picture as given, `images` `[N, 3, H, W]`."""
    square, side = look.square, look.square.images.shape[3]
    width, height = images.shape[3] * square.scale[0], images.shape[2] * square.scale[1]
    corners = (square.left, square.top, square.left + width, square.top + height)
    left, top, right, bottom = (2 * corner / side - 1 for corner in corners)
    return reads_outside(look.alignment.grid, (left, top, right, bottom)).double().flatten(1).mean(1).tolist()


def effective_resolutions(views: Sequence[View], images: Tensor, look: Look) -> list[float | None]:
    """For each aligned picture the side of a square of as many pixels of its file as it shows; None for results of one pixel.

    It is the mean area between neighbouring points of the grid, times the number of the result's pixels.
    """
    grid = look.alignment.grid.double()
    resolution = grid.shape[1]
    if resolution < 2:
        return [None] * len(views)
    right = grid[:, :-1, 1:] - grid[:, :-1, :-1]
    down = grid[:, 1:, :-1] - grid[:, :-1, :-1]
    area = (right[..., 0] * down[..., 1] - right[..., 1] * down[..., 0]).abs().flatten(1).mean(1)
    square = look.square.images.shape[3] / (look.square.scale[0] * min(images.shape[2:]))  # of the side of the picture
    return [math.sqrt(a) * resolution * view.side * square / 2 for a, view in zip(area.tolist(), views, strict=True)]
