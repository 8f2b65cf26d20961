# SPDX-License-Identifier: Apache-2.0
"""Ways to carry points from one picture to another, all asked in the same words: by an aligner, by features, and not at all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from gangealing_fast.applications.aligner import Aligner
from gangealing_fast.data.keypoints import KeypointSet
from gangealing_fast.data.pictures import to_float
from gangealing_fast.models.features import FeatureNetwork

Tick = Callable[[], None]
"""Called for every picture that was looked at."""


class Method(Protocol):
    """A way to carry points. name: for files. label: for people."""

    name: str
    label: str

    def looks(self, pairs: Tensor) -> int:
        """How many times `transfer` of these pairs will call `tick`."""

    def transfer(self, pairs: Tensor, points: Tensor, tick: Tick) -> Tensor:
        """Points `[M, P, 2]` of first pictures in their second ones, `[M, P, 2]` float64; NaN if there is none. pairs: `[M, 2]`."""

    def mirrored(self, pairs: Tensor) -> Tensor | None:
        """`[M]` bool: pairs in which one picture of both was mirrored; None if the method mirrors nothing. After `transfer`."""


def of_picture(index: Tensor) -> Iterator[tuple[int, Tensor]]:
    """(picture, the rows of `index` `[M]` that name it), picture by picture."""
    order = torch.argsort(index, stable=True)
    pictures, counts = torch.unique_consecutive(index[order], return_counts=True)
    yield from zip(pictures.tolist(), order.split(counts.tolist()), strict=True)


def _looks(pairs: Tensor) -> int:
    return len(pairs[:, 0].unique()) + len(pairs[:, 1].unique())


class Identity:
    """Every point stays where it is in the square about its picture: what an aligner that has learned nothing does."""

    name, label = "identity", "Identity"

    def __init__(self, data: KeypointSet) -> None:
        self._sizes = data.sizes

    def looks(self, pairs: Tensor) -> int:
        return 0

    def transfer(self, pairs: Tensor, points: Tensor, tick: Tick) -> Tensor:
        first, second = (self._sizes[pairs[:, k]][:, None] for k in (0, 1))
        ratio = second.amax(2, keepdim=True) / first.amax(2, keepdim=True)
        return (points - (first - 1) / 2) * ratio + (second - 1) / 2

    def mirrored(self, pairs: Tensor) -> Tensor | None:
        return None


class ByAligner:
    """Through the template of an aligner, by `Aligner.look`, `locate`, `assign` and `from_template` alone.

    Pictures of different clusters have no template in common, so that nothing is found between them.
    """

    def __init__(self, data: KeypointSet, aligner: Aligner) -> None:
        published = aligner.points == "published"
        self.name = "aligner-published" if published else "aligner"
        self.label = "Aligner, points by the published rule" if published else "Aligner"
        self._data, self._aligner = data, aligner
        self._cluster, self._mirrored = torch.full((len(data),), -1), torch.zeros(len(data), dtype=torch.bool)

    def looks(self, pairs: Tensor) -> int:
        return _looks(pairs)

    @torch.no_grad()
    def transfer(self, pairs: Tensor, points: Tensor, tick: Tick) -> Tensor:
        template = torch.zeros(points.shape, dtype=torch.float64)
        for picture, rows in of_picture(pairs[:, 0]):
            template[rows] = self._locate(picture, points[rows])
            tick()
        found = torch.zeros_like(template)
        for picture, rows in of_picture(pairs[:, 1]):
            images = self._picture(picture)
            if self._cluster[picture] < 0:
                self._remember(picture, *self._aligner.assign(images))
            flat = self._aligner.from_template(images, template[rows].reshape(1, -1, 2).float())
            found[rows] = flat.reshape(template[rows].shape).double()
            tick()
        apart = self._cluster[pairs[:, 0]] != self._cluster[pairs[:, 1]]
        return found.masked_fill(apart[:, None, None], torch.nan)

    def mirrored(self, pairs: Tensor) -> Tensor | None:
        return self._mirrored[pairs[:, 0]] != self._mirrored[pairs[:, 1]]

    def _picture(self, picture: int) -> Tensor:
        return to_float(self._data.picture(picture))[None]

    def _remember(self, picture: int, cluster: Tensor, mirrored: Tensor) -> None:
        self._cluster[picture], self._mirrored[picture] = int(cluster), bool(mirrored)

    def _locate(self, picture: int, points: Tensor) -> Tensor:
        """Points `[K, P, 2]` of a picture on the template; equal rows are sought once."""
        images = self._picture(picture)
        look = self._aligner.look(images)
        self._remember(picture, look.cluster, look.mirrored)
        wanted = points[:1] if bool((points == points[:1]).all()) else points
        found = self._aligner.locate(images, wanted.reshape(1, -1, 2).float(), look=look).points
        return found.double().reshape(wanted.shape).expand_as(points)


class NearestNeighbour:
    """The place of the second picture whose features are most alike (by their cosine) to those at the point of the first one.

    Pictures are made to fit into the middle of a square of the network's side; only places within the picture are compared.
    """

    name, label = "nearest", "Nearest neighbour of features"

    def __init__(self, data: KeypointSet, network: FeatureNetwork) -> None:
        self._data, self._network = data, network

    def looks(self, pairs: Tensor) -> int:
        return _looks(pairs)

    @torch.no_grad()
    def transfer(self, pairs: Tensor, points: Tensor, tick: Tick) -> Tensor:
        described: list[Tensor] = [torch.empty(0)] * len(pairs)
        for picture, rows in of_picture(pairs[:, 0]):
            same = bool((points[rows] == points[rows][:1]).all())
            wanted = points[rows][:1] if same else points[rows]
            seen = self._describe(picture, wanted.reshape(-1, 2)).reshape(len(wanted), points.shape[1], -1)
            for place, row in enumerate(rows.tolist()):
                described[row] = seen[0 if same else place]
            tick()
        found = torch.zeros(points.shape, dtype=torch.float64)
        for picture, rows in of_picture(pairs[:, 1]):
            wanted = torch.stack([described[row] for row in rows.tolist()])
            found[rows] = self._nearest(picture, wanted.flatten(0, 1)).reshape(wanted.shape[0], -1, 2)
            tick()
        return found

    def mirrored(self, pairs: Tensor) -> Tensor | None:
        return None

    def _look(self, picture: int) -> tuple[Tensor, Tensor, Tensor]:
        """Unit features `[D, h, w]`, and how pixels become those of the square: pixel * scale + shift, both `[2]`."""
        images = to_float(self._data.picture(picture))[None]
        height, width = images.shape[2:]
        side = self._network.side
        inner = [max(1, round(size * side / max(height, width))) for size in (height, width)]
        left, top = (side - inner[1]) // 2, (side - inner[0]) // 2
        small = F.interpolate(images, inner, mode="bilinear", antialias=True).clamp(-1, 1)
        square = F.pad(small, (left, side - inner[1] - left, top, side - inner[0] - top), value=0.0)
        features = F.normalize(self._network.features(square).float(), dim=1)[0]
        scale = torch.tensor([inner[1] / width, inner[0] / height], dtype=torch.float64)
        return features, scale, (scale - 1) / 2 + torch.tensor([left, top])

    def _describe(self, picture: int, points: Tensor) -> Tensor:
        """Unit features `[K, D]` at points `[K, 2]` of a picture, bilinear between places."""
        features, scale, shift = self._look(picture)
        place = (2 * (points * scale + shift) + 1) / self._network.side - 1
        read = F.grid_sample(features[None], place[None, None].float(), padding_mode="border", align_corners=False)
        return F.normalize(read[0, :, 0].T, dim=1)

    def _nearest(self, picture: int, wanted: Tensor) -> Tensor:
        """`[K, 2]`: pixels of a picture whose features are most alike to `wanted` `[K, D]`."""
        features, scale, shift = self._look(picture)
        height, width = features.shape[1:]
        x = (torch.arange(width, dtype=torch.float64) + 0.5) * self._network.side / width - 0.5
        y = (torch.arange(height, dtype=torch.float64) + 0.5) * self._network.side / height - 0.5
        places = torch.stack([x.expand(height, -1), y[:, None].expand(-1, width)], 2).reshape(-1, 2)
        pixels = (places - shift) / scale
        inside = ((pixels > -0.5) & (pixels < self._data.sizes[picture] - 0.5)).all(1)
        alike = wanted @ features.flatten(1)
        return pixels[alike.masked_fill(~inside, -torch.inf).argmax(1)]
