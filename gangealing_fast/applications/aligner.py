# SPDX-License-Identifier: Apache-2.0
"""Use a trained aligner: align pictures, carry points, masks and edits to the template and back, from one picture to another."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, get_args

import torch
from torch import Tensor

from gangealing_fast.alignment.clustering import align_assigned
from gangealing_fast.applications import exporting
from gangealing_fast.applications.frames import Drawing, Edits
from gangealing_fast.applications.frames import propagate as propagate_frames
from gangealing_fast.applications.smoothing import Smoothing
from gangealing_fast.applications.squares import Square, check_pictures, check_points, to_square
from gangealing_fast.checkpoints.reading import Parts, read
from gangealing_fast.geometry import points as points_of
from gangealing_fast.geometry.points import PointRule
from gangealing_fast.geometry.warping import DEFAULT, PaddingMode, Warping
from gangealing_fast.geometry.warps import mirror_grid, mirror_pictures, reads_outside
from gangealing_fast.models.cluster_classifier import ClusterClassifier
from gangealing_fast.models.spatial_transformer import Alignment, SpatialTransformer
from gangealing_fast.ops import flow_regularizer, invert_grid, mipmap_warp
from gangealing_fast.runtime.errors import UserError


class Located(NamedTuple):
    """points `[N, P, 2]`; confidence `[N, P]`: 1 where one place fits, less where the warp folds, 0 where it does not reach."""

    points: Tensor
    confidence: Tensor


class Look(NamedTuple):
    """What an aligner found out about pictures, for everything that is then asked about them.

    square: the pictures as the network saw them. cluster `[N]`, mirrored `[N]`: whose template they belong to, and whether as their
    mirror images. alignment: see `Aligner.warp`.
    """

    square: Square
    cluster: Tensor
    mirrored: Tensor
    alignment: Alignment

    def without_pictures(self) -> Look:
        """The same for whoever needs no pixels of it any more: `square.images` keeps its shape alone."""
        shape = self.square.images.new_empty(1).expand(self.square.images.shape)
        return self._replace(square=self.square._replace(images=shape))


class Aligner:
    """A trained transformer, the classifier of its clusters if it has several, and how it treats the picture's border.

    Pictures are `[N, 3, H, W]` in [-1, 1] of any size; those that are not square are padded to one (as `warping` says) for the
    network only: points are always `[N, P, 2]`, (x, y) in pixels of the pictures as given, 0 the centre of the first pixel.
    Template points are pixels of the transformer's own size. Pictures and points may be of any floating dtype, points of whole
    numbers too: the transformer's own dtype is computed in. There may be none of them. Methods run without gradients to the
    weights, and with gradients to points, pictures, and whatever is warped. An aligner can be pickled and used from several threads
    at once. Raises ValueError or TypeError for pictures and points of another shape, dtype or range.

    flips: a picture without a classifier is aligned as its mirror image if the flow of that has the lower total variation (needs a
    flow). cluster: the one that all pictures are taken for, so that a classifier chooses only the mirror. points: "exact", the map
    of the warp itself between pixels; or "published", to compare published figures by (`geometry.points`): the nearest pixel of the
    template, and template points normalised by the picture's size. Maps and edits are exact in any case.
    Raises ValueError for flips without a flow, a cluster that there is not, or another rule for points.
    """

    def __init__(
        self,
        transformer: SpatialTransformer,
        warping: Warping = DEFAULT,
        classifier: ClusterClassifier | None = None,
        *,
        flips: bool = False,
        cluster: int | None = None,
        points: PointRule = "exact",
    ) -> None:
        if flips and transformer.flow is None:
            raise ValueError("Aligner: flips are judged by the residual flow, which this transformer does not have.")
        if cluster is not None and not 0 <= cluster < transformer.heads:
            raise ValueError(f"Aligner: cluster must lie between 0 and {transformer.heads - 1}, got {cluster}.")
        if points not in get_args(PointRule):
            raise ValueError(f"Aligner: points must be one of {', '.join(get_args(PointRule))}, got {points!r}.")
        self.transformer = transformer.eval().requires_grad_(False)
        self.classifier = None if classifier is None else classifier.eval().requires_grad_(False)
        self.warping, self.flips, self.cluster, self.points = warping, flips, cluster, points

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        flips: bool = False,
        cluster: int | None = None,
        points: PointRule = "exact",
        iters: int | None = None,
        padding_mode: PaddingMode | None = None,
        say: Callable[[str], None] = print,
    ) -> Aligner:
        """From a results folder, its aligner.safetensors, or any checkpoint with an aligner (`checkpoints.reading.read`).

        iters, padding_mode: how often the similarity runs and what lies beyond a picture's edge, if not as the file states. say:
        called with one sentence for what the file does not state: the original's do not hold `iters`, and 3 is assumed, as the
        published models are used. Raises UserError if there is no aligner or `iters` is none, ValueError as the constructor.
        """
        parts = read(path).settle(path, padding_mode=padding_mode, iters=iters, say=say)
        return cls.of(parts, path, flips=flips, cluster=cluster, points=points)

    @classmethod
    def of(
        cls, parts: Parts, path: str | Path, *, flips: bool = False, cluster: int | None = None, points: PointRule = "exact"
    ) -> Aligner:
        """As `load`, of what was read from `path`."""
        if parts.transformer is None:
            raise UserError(f"{path} holds no aligner; give a results folder of the train command or the original's checkpoint")
        return cls(parts.transformer, parts.warping, parts.classifier, flips=flips, cluster=cluster, points=points)

    def export(self, path: str | Path, *, side: int | None = None, output_resolution: int | None = None) -> Path:
        """Write this aligner as a program that runs without this package: NAME.onnx, or NAME.pt2 for `torch.export.load`.

        It takes pictures `[N, 3, side, side]` of any number N, side the one it was trained for if None, and returns `image` and
        `grid` as `warp` does. Raises UserError if pictures would have to be aligned without knowing their cluster, or by the
        smoother of two flows; or if packages for ONNX are missing.
        """
        path = Path(path)
        exporting.check_ending(path)
        if self.flips:
            raise UserError(
                "an aligner that compares flows (flips=True) cannot be exported; train with --flips and classify instead"
            )
        self.check_classifier()
        made = exporting.program(
            self.transformer,
            self.classifier,
            self.warping,
            side=side,
            output_resolution=output_resolution,
            cluster=self.cluster,
        )
        return exporting.export(made, path)

    # ---- pictures

    def check_classifier(self) -> None:
        """Raise UserError if there are several clusters, none was chosen, and there is no classifier."""
        if self.classifier is None and self.transformer.heads > 1 and self.cluster is None:
            raise UserError(
                f"this aligner has {self.transformer.heads} clusters but no classifier to choose among them: run "
                "python -m gangealing_fast.classify on its results folder and use what that writes, or choose one with --cluster"
            )

    @property
    def decides(self) -> bool:
        """Whether there is a cluster or a mirror to decide on."""
        return self.classifier is not None or self.flips or self.cluster is not None

    def look(
        self,
        images: Tensor,
        *,
        output_resolution: int | None = None,
        alpha: float = 1.0,
        assignment: tuple[Tensor, Tensor] | None = None,
        base_warp: Tensor | None = None,
    ) -> Look:
        """Cluster, mirror and alignment of pictures, each found once. Arguments and errors as in `warp`."""
        square = self.square(images)
        if assignment is None and self._compares_flows:
            cluster = self._chosen(images)
            alignment, mirrored = self.transformer.best_mirror(
                square.images,
                warping=self.warping,
                output_resolution=output_resolution,
                alpha=alpha,
                assignment=cluster,
                base_warp=base_warp,
            )
            return Look(square, cluster, mirrored, alignment)
        cluster, mirrored = self._assign(square.images) if assignment is None else assignment
        alignment = align_assigned(
            self.transformer,
            square.images,
            cluster,
            mirrored,
            warping=self.warping,
            output_resolution=output_resolution,
            alpha=alpha,
            base_warp=base_warp,
            batch=max(1, len(images)),
        )
        return Look(square, cluster, mirrored, alignment)

    @property
    def _compares_flows(self) -> bool:
        return self.flips and self.classifier is None and (self.transformer.heads == 1 or self.cluster is not None)

    def _chosen(self, images: Tensor) -> Tensor:
        """`[N]`: the cluster that was chosen for all pictures, 0 if none was."""
        return torch.full((len(images),), self.cluster or 0, device=images.device)

    def _assign(self, images: Tensor) -> tuple[Tensor, Tensor]:
        self.check_classifier()
        if self.classifier is not None:
            return self.classifier.assign(images, self.cluster)
        cluster = self._chosen(images)
        return cluster, torch.zeros_like(cluster, dtype=torch.bool)

    @torch.no_grad()
    def assign(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(cluster `[N]`, whether the picture is mirrored before it is aligned `[N]`), as the classifier says; 0 and False without.

        Raises UserError if there are several clusters and no classifier.
        """
        if self._compares_flows:
            return self.look(images)[1:3]
        return self._assign(self.square(images).images)

    def warp(
        self,
        images: Tensor,
        *,
        output_resolution: int | None = None,
        alpha: float = 1.0,
        assignment: tuple[Tensor, Tensor] | None = None,
        base_warp: Tensor | None = None,
    ) -> Alignment:
        """Aligned pictures, the grid they were read at, residual flow and matrix; each picture by the head of its cluster.

        Of pictures that are not square the grid reads `square(images).images`. output_resolution: side of the result, the
        transformer's own if None. alpha: 0 leaves pictures as they are, 1 aligns them. assignment: cluster and mirror of each
        picture, both `[N]`, if they are not to be found. base_warp: similarities `[N, 2, 3]` of the squares that were found before:
        the networks see the pictures as these warp them, and what they find is composed with these.
        Raises UserError if there are several clusters and no classifier.
        """
        return self.look(
            images, output_resolution=output_resolution, alpha=alpha, assignment=assignment, base_warp=base_warp
        ).alignment

    def stages(self, images: Tensor, *, output_resolution: int | None = None, alpha: float = 1.0) -> list[Alignment]:
        """What `warp` returns, after every look of the similarity and then with the flow; the last is that of `warp` itself."""
        look = self.look(images)
        seen = mirror_pictures(look.square.images, look.mirrored)
        found = self.transformer.stages(
            seen, warping=self.warping, output_resolution=output_resolution, alpha=alpha, assignment=look.cluster
        )
        return [stage._replace(grid=mirror_grid(stage.grid, look.mirrored)) for stage in found]

    def out_of_bounds(self, images: Tensor, *, look: Look | None = None) -> Tensor:
        """`[N]` bool: whether an aligned picture shows places beyond the edges of the picture as given, which padding stands for.

        look: what `look(images)` returned, if it is at hand already.
        """
        square, _, _, record = self.look(images) if look is None else look
        height, width = images.shape[2:]
        corners = (square.left, square.top, square.left + width, square.top + height)
        left, top, right, bottom = (2 * corner / square.images.shape[3] - 1 for corner in corners)
        return reads_outside(record.grid, (left, top, right, bottom)).flatten(1).any(1)

    def align(self, images: Tensor, *, output_resolution: int | None = None, alpha: float = 1.0) -> Tensor:
        """Aligned pictures `[N, 3, R, R]`, R = output_resolution or the transformer's own size."""
        return self.warp(images, output_resolution=output_resolution, alpha=alpha).image

    def flow_scores(self, images: Tensor) -> Tensor:
        """`[N]`: minus the total variation of each picture's residual flow. The higher, the better a picture suits its template
        (arXiv 2112.05143, section 3.5): what scores least is what to leave out of a data set. Raises ValueError without a flow.
        """
        scores = flow_scores_of(self.warp(images))
        if scores is None:
            raise ValueError("flow scores need a transformer with a 'flow' transform; this one has none.")
        return scores

    def square(self, images: Tensor) -> Square:
        """Pictures `[N, 3, H, W]` in the middle of a square, padded as `warping` says; square ones as they are."""
        check_pictures(images)
        return to_square(images.to(self._dtype), self.warping.padding_mode)

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.transformer.parameters()).dtype

    # ---- points

    def from_template(self, images: Tensor, points: Tensor) -> Tensor:
        """Points of the template → pixels of each picture, sub-pixel; differentiable by the points."""
        check_points(images, points)
        square, _, mirrored, record = self.look(images)
        side, size = square.images.shape[3], self.transformer.flow_size
        if self.points == "exact":
            found = points_of.from_template(record.grid, points, side)
        elif record.residual_flow is None and record.matrix is not None:
            shown = points_of.similarity_from_template(record.matrix, points.to(record.matrix.dtype), size, side)
            found = points_of.mirror_points(shown, mirrored, side)
        else:
            found = points_of.published_from_template(record.grid, points, side)
        return square.leave(found)

    def locate(self, images: Tensor, points: Tensor, *, look: Look | None = None) -> Located:
        """Pixels of each picture → points of the template: sub-pixel, differentiable by the points, with a confidence for each.

        look: what `look(images)` returned, if it is at hand already. With the published rule for points and a flow they are whole
        pixels of the template without gradients, and the confidence is 1: that rule always finds one.
        """
        check_points(images, points)
        dtype, points = torch.promote_types(points.dtype, self._dtype), points.to(self._dtype)
        look = self.look(images) if look is None else look
        record, size = look.alignment, self.transformer.flow_size
        if record.grid.shape[1] != size:
            raise ValueError(f"a look at the transformer's own size {size} is needed, got one of {record.grid.shape[1]}.")
        if self.points == "exact" or record.residual_flow is None:
            return Located(*(found.to(dtype) for found in self._locate(look, points)))
        side = look.square.images.shape[3]
        seen = points_of.mirror_points(look.square.enter(points), look.mirrored, side)
        found = points_of.published_to_template(record.residual_flow, record.matrix, seen, side).to(dtype)
        return Located(found, torch.ones_like(found[..., 0]))

    def _locate(self, look: Look, points: Tensor) -> Located:
        """The exact rule of `locate`."""
        square, _, mirrored, record = look
        side, size = square.images.shape[3], self.transformer.flow_size
        shifted = square.enter(points)
        if record.residual_flow is None and record.matrix is not None:  # a similarity has an exact inverse everywhere
            seen = points_of.mirror_points(shifted, mirrored, side)
            found = points_of.similarity_to_template(record.matrix, seen, size, side)
            inside = ((found > -0.5 - 1e-4) & (found < size - 0.5 + 1e-4)).all(-1)
            return Located(found, inside.to(found.dtype))
        return Located(*invert_grid(record.grid, points_of.normalize_points(shifted, side)))

    def to_template(self, images: Tensor, points: Tensor) -> Tensor:
        """`locate(images, points).points`."""
        return self.locate(images, points).points

    def transfer(self, first: Tensor, second: Tensor, points: Tensor) -> Tensor:
        """Pixels of the first pictures → the corresponding pixels of the second ones."""
        return self.from_template(second, self.to_template(first, points))

    # ---- masks and edits

    def maps_to_template(self, images: Tensor, maps: Tensor) -> Tensor:
        """What is drawn on pictures, `[N, C, H, W]` (masks, label scores, edits), as it lies on the template, `[N, C, F, F]`."""
        check_pictures(images)
        if maps.ndim != 4 or maps.shape[0] != images.shape[0] or maps.shape[2:] != images.shape[2:]:
            raise ValueError(f"maps must be [N, C, H, W] of the pictures' size, got {list(maps.shape)} for {list(images.shape)}.")
        padding_mode = self.warping.padding_mode
        drawn = to_square(maps, padding_mode, nothing=0.0).images
        return mipmap_warp(drawn, self.warp(images).grid, padding_mode=padding_mode)

    def maps_from_template(
        self, images: Tensor, maps: Tensor, *, look: Look | None = None, rows: slice = slice(None)
    ) -> tuple[Tensor, Tensor]:
        """What is drawn on the template, `[1 or N, C, R, R]`, as it lies on pictures: (`[N, C, H, W]`, confidence `[N, 1, H, W]`).

        Every pixel of a picture is sought on the template, so nothing is left out between two pixels; where the template does
        not reach, the result is 0 and so is the confidence. look: as in `locate`, then the pictures' own pixels are not read. rows:
        those that are wanted, without a step; the result has these alone.
        """
        if look is None:
            check_pictures(images)
        n, _, height, width = images.shape
        if maps.ndim != 4 or maps.shape[0] not in (1, n) or maps.shape[2] != maps.shape[3]:
            raise ValueError(f"maps must be [1, C, R, R] or [{n}, C, R, R], got {list(maps.shape)}.")
        first, last, _ = rows.indices(height)
        # The pixels above and below tell how coarsely a pixel reads the map.
        low, high = max(0, first - 1), min(height, last + 1)
        y, x = torch.meshgrid(torch.arange(low, high), torch.arange(width), indexing="ij")
        pixels = torch.stack([x, y], -1).reshape(1, -1, 2).to(images.device, self._dtype).expand(n, -1, -1)
        place, confidence = self._locate(self.look(images) if look is None else look, pixels)
        grid = ((2 * place + 1) / self.transformer.flow_size - 1).reshape(n, high - low, width, 2)
        wanted = slice(first - low, last - low)
        confidence = confidence.reshape(n, 1, high - low, width)[:, :, wanted]
        drawn = mipmap_warp(maps.expand(n, -1, -1, -1), grid, padding_mode="border")[:, :, wanted]
        return torch.where(confidence > 0, drawn, 0.0), confidence

    def propagate(
        self,
        frames: Iterable[Tensor],
        edit: Edits,
        *,
        drawing: Drawing | None = None,
        smoothing: Smoothing | None = None,
        rate: float = 25.0,
        batch: int = 8,
    ) -> Iterator[Tensor]:
        """An edit of the template on one frame of a video after the other: uint8 `[3, H, W]`, as many as there are frames.

        frames: pictures `[3, H, W]` of one size, uint8 or floating in [-1, 1]; they are read as results are asked for, `batch` at a
        time. edit: `[1, 4, R, R]` in [0, 1], its colours multiplied by its opacity, or one (or None) for each cluster. drawing: how
        it is shown, see `applications.frames.Drawing`. smoothing: of the warps in time, see `applications.smoothing.Smoothing`; by
        default none. rate: frames a second, for the smoothing. Raises ValueError for frames or edits of another shape.
        """
        return propagate_frames(self, frames, edit, drawing=drawing, smoothing=smoothing, rate=rate, batch=batch)


def flow_scores_of(alignment: Alignment) -> Tensor | None:
    """The flow scores `[N]` of `Aligner.flow_scores`, of pictures that are aligned already; None without a residual flow."""
    return None if alignment.residual_flow is None else -flow_regularizer(alignment.residual_flow)[0]
