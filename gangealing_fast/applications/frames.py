# SPDX-License-Identifier: Apache-2.0
"""An edit of the template on one frame of a video after the other: a few frames are in memory at a time, whatever their number."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from gangealing_fast.applications.blending import Blend, blend
from gangealing_fast.applications.smoothing import Smoother, Smoothing
from gangealing_fast.applications.tracking import Colours, paint
from gangealing_fast.data.pictures import to_float, to_uint8
from gangealing_fast.geometry.warping import Warping
from gangealing_fast.geometry.warps import identity_grid, read_grid
from gangealing_fast.ops import mipmap_warp

Show = Literal["edit", "mask", "points"]
Edits = Tensor | Mapping[int, Tensor | None]
"""An edit `[1, 4, R, R]` as `read_edit` returns it, or one (or None) for each cluster."""


class Frame(NamedTuple):
    """A picture `[1, 3, H, W]`, uint8, and its time in seconds."""

    picture: Tensor
    seconds: float


class Seen(NamedTuple):
    """A frame, and the aligner's look at it alone, as found and as smoothed: without pixels, at the template's own size."""

    frame: Frame
    found: Any
    look: Any


class FrameAligner(Protocol):
    """What of an `Aligner` is used."""

    @property
    def warping(self) -> Warping: ...

    def look(self, images: Tensor) -> Any: ...

    def square(self, images: Tensor) -> Any: ...

    def maps_from_template(self, images: Tensor, maps: Tensor, *, look: Any) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True)
class Drawing:
    """How an edit is shown. show: the edit laid over the frame as `blend` says; "mask", white on black where it covers the frame;
    or "points", the points of the template that it covers, `points`² at most, splatted with `radius` pixels in `colours`."""

    show: Show = "edit"
    blend: Blend = "alpha"
    points: int = 256
    radius: float = 1.0
    colours: Colours = "edit"


def see(aligner: FrameAligner, frames: Iterable[Frame], *, batch: int = 8, smoothing: Smoothing | None = None) -> Iterator[Seen]:
    """The aligner's look at frames of one size, `batch` at a time, smoothed in the order of time."""
    smoother, waiting = Smoother(smoothing or Smoothing()), iter(frames)
    while chunk := list(itertools.islice(waiting, batch)):
        with torch.no_grad():
            looks = aligner.look(to_float(torch.cat([frame.picture for frame in chunk]))).without_pictures()
        for index, frame in enumerate(chunk):
            found = _one(looks, index)
            alignment = smoother(found.alignment, int(found.cluster), bool(found.mirrored), frame.seconds)
            yield Seen(frame, found, found._replace(alignment=alignment))


def _one(look: Any, index: int) -> Any:
    """The look at one of the pictures."""
    chosen = slice(index, index + 1)
    alignment = type(look.alignment)(*(None if part is None else part[chosen] for part in look.alignment))
    square = look.square._replace(images=look.square.images[chosen])
    return look._replace(square=square, cluster=look.cluster[chosen], mirrored=look.mirrored[chosen], alignment=alignment)


def draw(
    aligner: FrameAligner, picture: Tensor, edit: Tensor | None, look: Any, drawing: Drawing | None = None
) -> tuple[Tensor, float]:
    """One picture `[1, 3, H, W]`, uint8, with an edit on it as `drawing` says, as uint8 `[3, H, W]`; the share that is covered.

    look: the aligner's of that picture.
    """
    how = Drawing() if drawing is None else drawing
    if edit is None:
        return (torch.zeros_like(picture[0]) if how.show == "mask" else picture[0]), 0.0
    if how.show == "points":
        painted, covered = paint(
            to_float(picture),
            look.square,
            look.alignment.grid,
            edit,
            side=how.points,
            radius=how.radius,
            colours=how.colours,
        )
        return to_uint8(painted)[0], covered
    drawn, _ = aligner.maps_from_template(picture, edit, look=look)
    covered = drawn[:, 3].mean().item()
    if how.show == "mask":
        return to_uint8(2 * drawn[:, 3:].expand(-1, 3, -1, -1) - 1)[0], covered
    return to_uint8(blend(to_float(picture), drawn, how.blend))[0], covered


def congealed(aligner: FrameAligner, seen: Seen, resolution: int) -> Tensor:
    """The frame as the (smoothed) warp aligns it, uint8 `[3, R, R]`."""
    square, grid = aligner.square(to_float(seen.frame.picture)), seen.look.alignment.grid
    if grid.shape[1] != resolution:
        grid = read_grid(grid, identity_grid(resolution, resolution, dtype=grid.dtype, device=grid.device)[None])
    return to_uint8(mipmap_warp(square.images, grid, padding_mode=aligner.warping.padding_mode))[0]


def propagate(
    aligner: FrameAligner,
    frames: Iterable[Tensor],
    edit: Edits,
    *,
    drawing: Drawing | None = None,
    smoothing: Smoothing | None = None,
    rate: float = 25.0,
    batch: int = 8,
) -> Iterator[Tensor]:
    """See `Aligner.propagate`."""
    if not rate > 0:
        raise ValueError(f"propagate: rate must be above 0 frames a second, got {rate}.")
    if isinstance(edit, Tensor) and (edit.ndim != 4 or edit.shape[:2] != (1, 4) or edit.shape[2] != edit.shape[3]):
        raise ValueError(f"propagate: edit must be [1, 4, R, R], got {list(edit.shape)}.")
    timed = (Frame(_whole(picture), number / rate) for number, picture in enumerate(frames))
    for seen in see(aligner, timed, batch=batch, smoothing=smoothing):
        chosen = edit if isinstance(edit, Tensor) else edit.get(int(seen.look.cluster))
        yield draw(aligner, seen.frame.picture, chosen, seen.look, drawing)[0]


def _whole(picture: Tensor) -> Tensor:
    if not isinstance(picture, Tensor) or picture.ndim != 3 or picture.shape[0] != 3 or min(picture.shape[1:]) < 2:
        what = list(picture.shape) if isinstance(picture, Tensor) else type(picture).__name__
        raise ValueError(f"propagate: a frame must be [3, H, W] with sides of 2 or more, got {what}.")
    return (to_uint8(picture) if picture.is_floating_point() else picture.to(torch.uint8))[None]
