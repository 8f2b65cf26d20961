# SPDX-License-Identifier: Apache-2.0
"""What the studio does with an aligner: looks at pictures are kept, so that an edit or a dragged point is shown at once."""

from __future__ import annotations

import collections
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from gangealing_fast.applications.aligner import Aligner, Located, flow_scores_of
from gangealing_fast.applications.blending import Blend, blend
from gangealing_fast.applications.frames import Frame, Seen, congealed
from gangealing_fast.applications.looks import Look
from gangealing_fast.applications.propagating import edit_picture, look_at
from gangealing_fast.congealing.folder import fingerprint, load_set
from gangealing_fast.data.pictures import to_float, to_uint8
from gangealing_fast.interface.pictures import PREVIEW, Picture, resized
from gangealing_fast.models.layers import resize_to
from gangealing_fast.ops import mipmap_warp

SEEN = 1024
"""Longer side of a picture that a network looks at; sets look at the original, by which they know their pictures."""
AVERAGED = 100
"""So many pictures make the template that is drawn on, at most."""
KEPT_TEMPLATES = 16
PLACES = 48
"""Of so many pictures it is kept where each pixel lies on the template: 0.8 MB each."""
_COMPARED = 64

computing = threading.RLock()
"""Held while torch computes: one browser at a time, so that memory does not add up."""

Edits = Mapping[int, Tensor]
"""Edits `[1, 4, R, R]` as `edit_of` returns them, by the number of their template."""


class Viewed(NamedTuple):
    """The look at a picture of `size` (width, height); score: its flow score, None without a flow; mark: of a set's pictures."""

    look: Look
    size: tuple[int, int]
    score: float | None
    mark: str


class Standing(NamedTuple):
    """How a picture stands in a collection: flow score, likeness to its template in [-1, 1], and what `congeal` found of it."""

    score: float | None
    likeness: float
    confidence: float | None
    outlier: bool


class Workbench:
    """One aligner and what it found about the pictures of all browsers. path: where the aligner was read from."""

    def __init__(self, aligner: Aligner, path: Path) -> None:
        self.aligner, self.path = aligner, path
        self._viewed: dict[str, Viewed] = {}
        self._places: collections.OrderedDict[str, Located] = collections.OrderedDict()
        self._templates: dict[tuple[str, ...], dict[int, Tensor]] = {}
        self._found = _found_by_congeal(path) if aligner.names else {}

    @property
    def clusters(self) -> int:
        return self.aligner.clusters

    def forget(self, pictures: Iterable[Picture]) -> None:
        """Drop what is kept about pictures that are gone."""
        with computing:
            for picture in pictures:
                self._viewed.pop(picture.key, None)
                self._places.pop(picture.key, None)

    def viewed(self, picture: Picture) -> Viewed:
        """The look at a picture, found once."""
        with computing, torch.no_grad():
            known = self._viewed.get(picture.key)
            if known is None:
                pixels = picture.original()
                mark = fingerprint(pixels) if self._found else ""
                if not self.aligner.names and max(pixels.shape[1:]) > SEEN:
                    pixels = resized(pixels, SEEN)
                look = look_at(self.aligner, pixels[None])
                scores = flow_scores_of(look.alignment)
                score = None if scores is None else float(scores[0])
                known = Viewed(_slim(look), (pixels.shape[2], pixels.shape[1]), score, mark)
                self._viewed[picture.key] = known
            return known

    def look(self, picture: Picture, size: tuple[int, int]) -> Look:
        """The look at a picture as it is at another `size` (width, height)."""
        look, seen, _, _ = self.viewed(picture)
        x, y = look.square.scale
        return look._replace(square=look.square._replace(scale=(x * seen[0] / size[0], y * seen[1] / size[1])))

    def cluster(self, picture: Picture) -> int:
        """The template that a picture lies on."""
        return int(self.viewed(picture).look.cluster[0])

    # ---- templates and scores

    def aligned(self, picture: Picture, side: int = PREVIEW, *, pixels: Tensor | None = None) -> Tensor:
        """A picture as its template sees it, uint8 `[3, side, side]`; of its preview, or of other `pixels` of it."""
        with computing, torch.no_grad():
            shown = (picture.preview() if pixels is None else pixels)[None]
            look = self.viewed(picture).look
            return congealed(self.aligner, Seen(Frame(shown, 0.0), look, look), side)

    def templates(self, pictures: Sequence[Picture]) -> dict[int, Tensor]:
        """The average uint8 `[3, R, R]` of the aligned pictures of each cluster; of a cluster without pictures plain grey.

        Pictures of --data make it, so that it does not change while others are added; a browser's own if there are no others.
        """
        given = [picture for picture in pictures if not picture.own] or list(pictures)
        shown = [one for one in given if not self._outlier(one)][:AVERAGED]
        with computing:
            names = tuple(picture.key for picture in shown)
            if names not in self._templates:
                while len(self._templates) >= KEPT_TEMPLATES:
                    del self._templates[next(iter(self._templates))]
                self._templates[names] = self._average(shown)
            return self._templates[names]

    def _average(self, pictures: Sequence[Picture]) -> dict[int, Tensor]:
        sums = {k: torch.zeros(3, PREVIEW, PREVIEW) for k in range(self.clusters)}
        counts = dict.fromkeys(sums, 0)
        for picture in pictures:
            k = self.cluster(picture)
            sums[k] += self.aligned(picture).float()
            counts[k] += 1
        return {k: (sums[k] / counts[k] if counts[k] else sums[k] + 128).round().to(torch.uint8) for k in sums}

    def known(self, picture: Picture) -> tuple[float, bool] | None:
        """Of a picture of the set: its confidence, and whether it does not belong to the others. None of any other picture."""
        return self._found.get(self.viewed(picture).mark) if self._found else None

    def _outlier(self, picture: Picture) -> bool:
        return (self.known(picture) or (0.0, False))[1]

    def standing(self, picture: Picture, templates: Mapping[int, Tensor]) -> Standing:
        """How well a picture suits its template."""
        known = self.known(picture)
        likeness = _correlation(self.aligned(picture), templates[self.cluster(picture)])
        return Standing(self.viewed(picture).score, likeness, None if known is None else known[0], known is not None and known[1])

    # ---- edits

    def edited(self, picture: Picture, edits: Edits, opacity: float, how: Blend) -> Tensor:
        """The preview of a picture with the edit of its template, uint8 `[3, h, w]`."""
        with computing, torch.no_grad():
            shown = picture.preview()
            edit = edits.get(self.cluster(picture))
            if edit is None or not opacity:
                return shown
            height, width = shown.shape[1:]
            place, confidence = self._place(picture, (width, height))
            grid = ((2 * place + 1) / self.aligner.size - 1).reshape(1, height, width, 2)
            reached = confidence.reshape(1, 1, height, width) > 0
            drawn = torch.where(reached, mipmap_warp(edit * opacity, grid, padding_mode="border"), 0.0)
            return to_uint8(blend(to_float(shown[None]), drawn, how).clamp(-1, 1))[0]

    def _place(self, picture: Picture, size: tuple[int, int]) -> Located:
        """Where on the template each pixel of the preview lies."""
        if picture.key in self._places:
            self._places.move_to_end(picture.key)
            return self._places[picture.key]
        width, height = size
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        pixels = torch.stack([x, y], -1).reshape(1, -1, 2).float()
        found = self.aligner.locate(_shape_alone(size), pixels, look=self.look(picture, size))
        self._places[picture.key] = found
        while len(self._places) > PLACES:
            self._places.popitem(last=False)
        return found

    def edited_whole(self, picture: Picture, edits: Edits, opacity: float, how: Blend, least: int = 0) -> Tensor:
        """A picture at its own size with the edit, uint8 `[3, H, W]`; one with a longer side below `least` is made larger first."""
        with computing, torch.no_grad():
            pixels = picture.original()
            if max(pixels.shape[1:]) < least:
                pixels = resized(pixels, least)
            edit = edits.get(self.cluster(picture))
            if edit is None or not opacity:
                return pixels
            look = self.look(picture, (pixels.shape[2], pixels.shape[1]))
            if how == "alpha":
                return edit_picture(self.aligner, pixels[None], edit * opacity, look)[0]
            drawn, _ = self.aligner.maps_from_template(pixels[None], edit * opacity, look=look)
            return to_uint8(blend(to_float(pixels[None]), drawn, how).clamp(-1, 1))[0]

    # ---- points

    def to_template(self, picture: Picture, points: Tensor) -> Located:
        """Points `[P, 2]` in [0, 1] of a picture → the same of its template, and their confidence `[P]`."""
        with computing, torch.no_grad():
            size = picture.size
            found = self.aligner.locate(_shape_alone(size), _pixels(points, size)[None], look=self.look(picture, size))
            places = _shares(found.points[0], (self.aligner.size, self.aligner.size))
            return Located(places, torch.where(places.isfinite().all(-1), found.confidence[0], 0.0))

    def from_template(self, picture: Picture, points: Tensor) -> Located:
        """Points `[P, 2]` in [0, 1] of the template → the same of a picture; confidence: of the way back, 0 outside the picture."""
        with computing, torch.no_grad():
            size, side = picture.size, self.aligner.size
            look, images = self.look(picture, size), _shape_alone(size)
            found = self.aligner.from_template(images, _pixels(points, (side, side))[None], look=look)
            back = self.aligner.locate(images, found, look=look)
            places = _shares(found[0], size)
            inside = ((places >= 0) & (places <= 1)).all(-1)
            return Located(places, torch.where(inside, back.confidence[0], 0.0))


def _slim(look: Look) -> Look:
    """A look without pixels and without the residual flow's values, which are in the grid too."""
    record = look.alignment
    flow = None if record.residual_flow is None else record.residual_flow.new_zeros(1).expand(record.residual_flow.shape)
    image = record.image.new_zeros(1).expand(record.image.shape)
    return look.without_pictures()._replace(alignment=record._replace(image=image, residual_flow=flow))


def _shape_alone(size: tuple[int, int]) -> Tensor:
    """Pictures of which a method with a look needs the shape alone."""
    return torch.zeros(1).expand(1, 3, size[1], size[0])


def _pixels(points: Tensor, size: tuple[int, int]) -> Tensor:
    return points * points.new_tensor(size) - 0.5


def _shares(points: Tensor, size: tuple[int, int]) -> Tensor:
    return (points + 0.5) / points.new_tensor(size)


def _correlation(one: Tensor, other: Tensor) -> float:
    """Normalised cross-correlation of two pictures uint8 `[3, R, R]` in grey, at a small size."""
    rows = []
    for picture in (one, other):
        grey = resize_to(to_float(picture[None]), _COMPARED).mean(1).flatten()
        rows.append(grey - grey.mean())
    lengths = rows[0].norm() * rows[1].norm()
    return float(rows[0] @ rows[1] / lengths) if lengths > 1e-6 else 0.0


def _found_by_congeal(path: Path) -> dict[str, tuple[float, bool]]:
    """Confidence of each picture of a set, and whether it does not belong to the others, by its fingerprint."""
    saved = load_set(path)
    known = zip(saved.fingerprints, saved.found.confidence.tolist(), saved.found.outlier.tolist(), strict=True)
    return {mark: (float(confidence), bool(outlier)) for mark, confidence, outlier in known}
