# SPDX-License-Identifier: Apache-2.0
"""Ways to carry points from one picture to another, all asked in the same words: by an aligner, by features, and not at all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from gangealing_fast.applications.aligner import Aligner
from gangealing_fast.congealing.features import Bases, FeatureNetwork, read_places
from gangealing_fast.data.keypoints import KeypointSet
from gangealing_fast.data.pictures import to_float

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

    Pictures are made to fit into the middle of a square of the network's coarse side; only places within the picture are compared.
    whiten: features lose the mean of the set and are whitened, as in joint alignment; otherwise each tap is brought to unit length.
    """

    name, label = "nearest", "Nearest neighbour of features"
    LEARNED_FROM = 60
    KEPT = 1 << 26
    """Numbers of features that are kept for the next time: those of 400 pictures with the package's network."""

    def __init__(self, data: KeypointSet, network: FeatureNetwork, *, whiten: bool = True, seed: int = 0) -> None:
        self._data, self._network = data, network
        self._bases: Bases | None = None
        self._seen: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
        self._side, self._grid = network.coarse
        middle = (torch.arange(self._grid, dtype=torch.float64) + 0.5) * self._side / self._grid - 0.5
        self._places = torch.stack([middle.expand(self._grid, -1), middle[:, None].expand(-1, self._grid)], 2).reshape(-1, 2)
        if whiten:
            self._bases = self._learn(torch.Generator().manual_seed(seed))

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
            asked = torch.stack([described[row] for row in rows.tolist()])
            found[rows] = self._nearest(picture, asked.flatten(0, 1)).reshape(len(rows), -1, 2)
            tick()
        return found

    def mirrored(self, pairs: Tensor) -> Tensor | None:
        return None

    @torch.no_grad()
    def _learn(self, source: torch.Generator) -> Bases:
        chosen = torch.randperm(len(self._data), generator=source)[: self.LEARNED_FROM].tolist()
        looks = [self._taps(picture) for picture in chosen]
        taps = [torch.cat(tap) for tap in zip(*(taps for taps, _, _ in looks), strict=True)]
        inside = torch.stack(
            [self._inside(picture, self._pixels(scale, shift)) for picture, (_, scale, shift) in zip(chosen, looks, strict=True)]
        )
        return Bases.fit(taps, inside, source)

    def _taps(self, picture: int) -> tuple[list[Tensor], Tensor, Tensor]:
        """Taps `[1, places, C]`, and how pixels become those of the square: pixel * scale + shift, both `[2]`."""
        images = to_float(self._data.picture(picture))[None]
        height, width = images.shape[2:]
        inner = [max(1, round(size * self._side / max(height, width))) for size in (height, width)]
        left, top = (self._side - inner[1]) // 2, (self._side - inner[0]) // 2
        small = F.interpolate(images, inner, mode="bilinear", antialias=True).clamp(-1, 1)
        square = F.pad(small, (left, self._side - inner[1] - left, top, self._side - inner[0] - top))
        taps = [read_places(tap, self._side, self._grid) for tap in self._network.features(square)]
        scale = torch.tensor([inner[1] / width, inner[0] / height], dtype=torch.float64)
        return taps, scale, (scale - 1) / 2 + torch.tensor([left, top])

    def _look(self, picture: int) -> tuple[Tensor, Tensor, Tensor]:
        """Unit features `[places, D]`, with scale and shift as in `_taps`."""
        if picture not in self._seen:
            taps, scale, shift = self._taps(picture)
            plain = F.normalize(torch.cat([F.normalize(tap, dim=2) for tap in taps], 2), dim=2)
            features = (plain if self._bases is None else self._bases.apply(taps))[0]
            if (len(self._seen) + 1) * features.numel() > self.KEPT:
                return features, scale, shift
            self._seen[picture] = features, scale, shift
        return self._seen[picture]

    def _pixels(self, scale: Tensor, shift: Tensor) -> Tensor:
        """`[places, 2]`: the places in pixels of the picture."""
        return (self._places - shift) / scale

    def _inside(self, picture: int, pixels: Tensor) -> Tensor:
        return ((pixels > -0.5) & (pixels < self._data.sizes[picture] - 0.5)).all(1)

    def _describe(self, picture: int, points: Tensor) -> Tensor:
        """Unit features `[K, D]` at points `[K, 2]` of a picture, bilinear between places."""
        features, scale, shift = self._look(picture)
        place = (2 * (points * scale + shift) + 1) / self._side - 1
        maps = features.T.unflatten(1, (self._grid, self._grid))[None]
        read = F.grid_sample(maps, place[None, None].float(), padding_mode="border", align_corners=False)
        return F.normalize(read[0, :, 0].T, dim=1)

    def _nearest(self, picture: int, wanted: Tensor) -> Tensor:
        """`[K, 2]`: pixels of a picture whose features are most alike to `wanted` `[K, D]`."""
        features, scale, shift = self._look(picture)
        pixels = self._pixels(scale, shift)
        alike = wanted @ features.T
        return pixels[alike.masked_fill(~self._inside(picture, pixels), -torch.inf).argmax(1)]
