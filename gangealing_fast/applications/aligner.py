# SPDX-License-Identifier: Apache-2.0
"""Use a trained aligner: align pictures, carry points, masks and edits to the template and back, from one picture to another."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from gangealing_fast.alignment.clustering import align_assigned
from gangealing_fast.checkpoints.reading import Parts, read
from gangealing_fast.geometry import points as points_of
from gangealing_fast.models.cluster_classifier import ClusterClassifier
from gangealing_fast.models.spatial_transformer import Alignment, SpatialTransformer
from gangealing_fast.ops import flow_regularizer, invert_grid, mipmap_warp
from gangealing_fast.runtime.errors import UserError

_PADS = {"reflection": "reflect", "border": "replicate", "zeros": "constant"}


class Located(NamedTuple):
    """points `[N, P, 2]`; confidence `[N, P]`: 1 where one place fits, less where the warp folds, 0 where it does not reach."""

    points: Tensor
    confidence: Tensor


class Square(NamedTuple):
    """Pictures padded to a square `[N, C, S, S]`, and where the original begins in it (x, y) in pixels."""

    images: Tensor
    left: int
    top: int


class Aligner:
    """A trained transformer, the classifier of its clusters where it has several, and how it treats the picture's border.

    Pictures are `[N, 3, H, W]` in [-1, 1] of any size; those that are not square are padded to one (as `padding_mode` says) for the
    network only: points are always `[N, P, 2]`, (x, y) in pixels of the pictures as given, 0 the centre of the first pixel.
    Template points are pixels of the transformer's own size. Methods run without gradients to the weights, and with gradients to
    points and to whatever is warped. An aligner can be pickled and used from several threads at once.

    alpha: 0 leaves pictures as they are, 1 aligns them. flips: a picture without a classifier is aligned as its mirror image where
    the flow of that has the lower total variation (needs a flow).
    """

    def __init__(
        self,
        transformer: SpatialTransformer,
        padding_mode: str = "border",
        iters: int = 1,
        classifier: ClusterClassifier | None = None,
        *,
        flips: bool = False,
    ) -> None:
        if flips and transformer.flow is None:
            raise ValueError("Aligner: flips are judged by the residual flow, which this transformer does not have.")
        self.transformer = transformer.eval().requires_grad_(False)
        self.classifier = None if classifier is None else classifier.eval().requires_grad_(False)
        self.padding_mode, self.iters, self.flips = padding_mode, iters, flips

    @classmethod
    def load(cls, path: str | Path, *, flips: bool = False) -> Aligner:
        """From a results folder, its aligner.safetensors, or any checkpoint with an aligner (`checkpoints.reading.read`).

        Raises UserError where there is none.
        """
        return cls.of(read(path), path, flips=flips)

    @classmethod
    def of(cls, parts: Parts, path: str | Path, *, flips: bool = False) -> Aligner:
        """As `load`, of what was read from `path`."""
        if parts.transformer is None:
            raise UserError(f"{path} holds no aligner; give a results folder of the train command or the original's checkpoint")
        return cls(parts.transformer, parts.settings["padding_mode"], parts.settings["iters"], parts.classifier, flips=flips)

    def export(self, path: str | Path, *, side: int | None = None, output_resolution: int | None = None) -> Path:
        """Write this aligner as a program that runs without this package: NAME.onnx, or NAME.pt2 for `torch.export.load`.

        It takes pictures `[N, 3, side, side]` of any number N, side the one it was trained for where None, and returns `image` and
        `grid` as `warp` does. Raises UserError where that is not possible or packages for ONNX are missing.
        """
        from gangealing_fast.applications.exporting import export  # imports what few need

        return export(self, Path(path), side=side, output_resolution=output_resolution)

    # ---- pictures

    def check_classifier(self) -> None:
        """Raise UserError where there are several clusters and no classifier."""
        if self.classifier is None and self.transformer.heads > 1:
            raise UserError(
                f"this aligner has {self.transformer.heads} clusters but no classifier to choose among them: run "
                "python -m gangealing_fast.classify on its results folder and use what that writes"
            )

    @torch.no_grad()
    def assign(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(cluster `[N]`, whether the picture is mirrored before it is aligned `[N]`), as the classifier says; 0 and False without.

        Raises UserError where there are several clusters and no classifier.
        """
        square = self.square(images).images
        self.check_classifier()
        if self.classifier is not None:
            return self.classifier.assign(square)
        nothing = torch.zeros(len(images), dtype=torch.long, device=images.device)
        if not self.flips:
            return nothing, nothing.bool()
        return nothing, self.transformer.best_mirror(square, padding_mode=self.padding_mode, iters=self.iters)[1]

    @torch.no_grad()
    def warp(
        self,
        images: Tensor,
        *,
        output_resolution: int | None = None,
        alpha: float = 1.0,
        assignment: tuple[Tensor, Tensor] | None = None,
    ) -> Alignment:
        """Aligned pictures, the grid they were read at, residual flow and matrix; each picture by the head of its cluster.

        Of pictures that are not square the grid reads `square(images).images`. output_resolution: side of the result, the
        transformer's own where None. assignment: what `assign` returned, where it is at hand already.
        """
        cluster, mirrored = self.assign(images) if assignment is None else assignment
        use: dict[str, Any] = {"padding_mode": self.padding_mode, "iters": self.iters, "alpha": alpha}
        square = self.square(images).images
        return align_assigned(
            self.transformer, square, cluster, mirrored, output_resolution=output_resolution, batch=max(1, len(images)), **use
        )

    def align(self, images: Tensor, *, output_resolution: int | None = None, alpha: float = 1.0) -> Tensor:
        """Aligned pictures `[N, 3, R, R]`, R = output_resolution or the transformer's own size."""
        return self.warp(images, output_resolution=output_resolution, alpha=alpha).image

    def flow_scores(self, images: Tensor) -> Tensor:
        """`[N]`: minus the total variation of each picture's residual flow. The higher, the better a picture suits its template
        (arXiv 2112.05143, section 3.5): what scores least is what to leave out of a data set. Raises ValueError without a flow.
        """
        residual = self.warp(images).residual_flow
        if residual is None:
            raise ValueError("flow scores need a transformer with a 'flow' transform; this one has none.")
        return -flow_regularizer(residual)[0]

    def square(self, images: Tensor) -> Square:
        """Pictures `[N, C, H, W]` in the middle of a square, padded as `padding_mode` says; square ones as they are."""
        if images.ndim != 4 or min(images.shape[2:]) < 2:
            raise ValueError(f"pictures must be [N, C, H, W] with sides of 2 or more, got {list(images.shape)}.")
        height, width = images.shape[2:]
        side = max(height, width)
        if height == width:
            return Square(images, 0, 0)
        left, top = (side - width) // 2, (side - height) // 2
        wanted = (left, side - width - left, top, side - height - top)
        if self.padding_mode == "reflection":  # a reflection reaches no further than the picture: the rest repeats its edge
            reach = [min(pad, size - 1) for pad, size in zip(wanted, (width, width, height, height), strict=True)]
            images = F.pad(images, reach, mode="reflect")
            wanted = tuple(pad - done for pad, done in zip(wanted, reach, strict=True))
            return Square(F.pad(images, wanted, mode="replicate"), left, top)
        value = -1.0 if self.padding_mode == "zeros" else None
        return Square(F.pad(images, wanted, mode=_PADS[self.padding_mode], value=value), left, top)

    # ---- points

    def from_template(self, images: Tensor, points: Tensor) -> Tensor:
        """Points of the template → pixels of each picture, sub-pixel; differentiable by the points."""
        square = self.square(images)
        found = points_of.from_template(self.warp(images).grid, points, square.images.shape[3])
        return found - found.new_tensor([square.left, square.top])

    def locate(self, images: Tensor, points: Tensor, *, assignment: tuple[Tensor, Tensor] | None = None) -> Located:
        """Pixels of each picture → points of the template: sub-pixel, differentiable by the points, with a confidence for each.

        assignment: what `assign` returned, where it is at hand already.
        """
        square = self.square(images)
        cluster, mirrored = self.assign(images) if assignment is None else assignment
        record = self.warp(images, assignment=(cluster, mirrored))
        shifted = points + points.new_tensor([square.left, square.top])
        side, size = square.images.shape[3], self.transformer.flow_size
        if record.residual_flow is None and record.matrix is not None:  # a similarity has an exact inverse everywhere
            shifted = torch.where(
                mirrored[:, None, None], shifted * shifted.new_tensor([-1, 1]) + shifted.new_tensor([side - 1, 0]), shifted
            )
            found = points_of.similarity_to_template(record.matrix, shifted, size, side)
            inside = ((found > -0.5 - 1e-4) & (found < size - 0.5 + 1e-4)).all(-1)
            return Located(found, inside.to(found.dtype))
        found, confidence = invert_grid(record.grid, points_of.normalize_points(shifted.to(record.grid.dtype), side))
        return Located(found.to(points.dtype), confidence.to(points.dtype))

    def to_template(self, images: Tensor, points: Tensor) -> Tensor:
        """`locate(images, points).points`."""
        return self.locate(images, points).points

    def transfer(self, first: Tensor, second: Tensor, points: Tensor) -> Tensor:
        """Pixels of the first pictures → the corresponding pixels of the second ones."""
        return self.from_template(second, self.to_template(first, points))

    # ---- masks and edits

    def maps_to_template(self, images: Tensor, maps: Tensor) -> Tensor:
        """What is drawn on pictures, `[N, C, H, W]` (masks, label scores, edits), as it lies on the template, `[N, C, F, F]`."""
        _same_size(images, maps)
        square = Aligner.square(self, maps) if self.padding_mode != "zeros" else _zero_square(maps)
        return mipmap_warp(square.images, self.warp(images).grid.to(maps.dtype), padding_mode=self.padding_mode)

    def maps_from_template(
        self, images: Tensor, maps: Tensor, *, assignment: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """What is drawn on the template, `[1 or N, C, R, R]`, as it lies on pictures: (`[N, C, H, W]`, confidence `[N, 1, H, W]`).

        Every pixel of a picture is sought on the template, so nothing is left out between two pixels; where the template does
        not reach, the result is 0 and so is the confidence.
        """
        n, _, height, width = images.shape
        if maps.ndim != 4 or maps.shape[0] not in (1, n) or maps.shape[2] != maps.shape[3]:
            raise ValueError(f"maps must be [1, C, R, R] or [{n}, C, R, R], got {list(maps.shape)}.")
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        pixels = torch.stack([columns, rows], -1).reshape(1, -1, 2).to(images).expand(n, -1, -1)
        place, confidence = self.locate(images, pixels, assignment=assignment)
        grid = ((2 * place + 1) / self.transformer.flow_size - 1).reshape(n, height, width, 2)
        confidence = confidence.reshape(n, 1, height, width)
        drawn = mipmap_warp(maps.expand(n, -1, -1, -1), grid.to(maps.dtype), padding_mode="border")
        return torch.where(confidence > 0, drawn, 0.0), confidence


def _same_size(images: Tensor, maps: Tensor) -> None:
    if maps.ndim != 4 or maps.shape[0] != images.shape[0] or maps.shape[2:] != images.shape[2:]:
        raise ValueError(f"maps must be [N, C, H, W] of the pictures' size, got {list(maps.shape)} for {list(images.shape)}.")


def _zero_square(maps: Tensor) -> Square:
    """As `Aligner.square`, with nothing drawn on the padding (of pictures it is black, which is -1)."""
    height, width = maps.shape[2:]
    side = max(height, width)
    left, top = (side - width) // 2, (side - height) // 2
    return Square(F.pad(maps, (left, side - width - left, top, side - height - top)), left, top)
