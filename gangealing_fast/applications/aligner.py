# SPDX-License-Identifier: Apache-2.0
"""Use an aligner: align pictures, carry points, masks and edits to the template and back, from one picture to another."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from gangealing_fast import __version__
from gangealing_fast.applications import hub, points_and_maps
from gangealing_fast.applications.frames import Drawing, Edits
from gangealing_fast.applications.frames import propagate as propagate_frames
from gangealing_fast.applications.looks import Finder, Look, joined
from gangealing_fast.applications.opening import finder_of, trained_of
from gangealing_fast.applications.points_and_maps import Located
from gangealing_fast.applications.refined import refined
from gangealing_fast.applications.smoothing import Smoothing
from gangealing_fast.applications.squares import Square, check_pictures, check_points, to_square
from gangealing_fast.applications.trained import Trained
from gangealing_fast.checkpoints.reading import Parts
from gangealing_fast.congealing import FeatureNetwork
from gangealing_fast.geometry.points import PointRule
from gangealing_fast.geometry.warping import DEFAULT, PaddingMode, Warping
from gangealing_fast.geometry.warps import reads_outside
from gangealing_fast.models.cluster_classifier import ClusterClassifier
from gangealing_fast.models.spatial_transformer import Alignment, SpatialTransformer
from gangealing_fast.ops import flow_regularizer

Images = Tensor | Sequence[str]
"""Pictures `[N, 3, H, W]` in [-1, 1]; or, of an aligner of a set, the names of pictures of the set."""


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

    An aligner of a set (`load` of a folder that `congeal` wrote) has the same methods. A picture of the set is aligned as the set
    was, any other one is registered to the set's template. If a method takes pictures, it then takes names of pictures of the set
    too, a list of them: `aligner.transfer(["a.png"], ["b.png"], points)`. Those may differ in size. Raises UserError for a name
    that the set does not have, or if pixels are asked for and the file has changed.
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
        self._use(Trained(transformer, warping, classifier, flips=flips, cluster=cluster), points)

    def _use(self, finder: Finder, points: PointRule) -> None:
        if points not in get_args(PointRule):
            raise ValueError(f"Aligner: points must be one of {', '.join(get_args(PointRule))}, got {points!r}.")
        self.finder, self.points = finder, points

    @classmethod
    def by(cls, finder: Finder, *, points: PointRule = "exact") -> Aligner:
        """An aligner by whatever finds how pictures lie on a template. Raises ValueError for another rule for points."""
        made = cls.__new__(cls)
        made._use(finder, points)
        return made

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
        features: FeatureNetwork | str | Path | None = None,
        say: Callable[[str], None] = print,
    ) -> Aligner:
        """From a results folder, its aligner.safetensors, any checkpoint with an aligner (`checkpoints.reading.read`), or a set.

        iters, padding_mode: how often the similarity runs and what lies beyond a picture's edge, if not as the file states. say:
        called with one sentence for what the file does not state: the original's do not hold `iters`, and 3 is assumed, as the
        published models are used. features: of a set that was made with a network of the user's, that network or where it is,
        to register new pictures by: a set's file never says which other file is to be run. What lies at a path is a program.

        Raises UserError if there is no aligner or `iters` is none, ValueError as the constructor, and for choices that an aligner
        of a set does not have.
        """
        finder = finder_of(
            Path(path), flips=flips, cluster=cluster, iters=iters, padding_mode=padding_mode, features=features, say=say
        )
        return cls.by(finder, points=points)

    @classmethod
    def of(
        cls, parts: Parts, path: str | Path, *, flips: bool = False, cluster: int | None = None, points: PointRule = "exact"
    ) -> Aligner:
        """As `load`, of what was read from `path`."""
        return cls.by(trained_of(parts, Path(path), flips=flips, cluster=cluster), points=points)

    @classmethod
    def from_pretrained(cls, source: str | Path, *, revision: str | None = None, token: str | None = None, **use: Any) -> Aligner:
        """From a folder that `save_pretrained` wrote, from whatever `load` takes, or a model NAME/MODEL of the Hugging Face hub.

        revision: a branch, tag or commit there; token: for private models. use: arguments of `load`, in place of those that were
        saved. Raises UserError if there is no such folder or model, or it cannot be downloaded, and as `load`.
        """
        path = hub.local(source, revision, token)
        return cls.load(path, **(hub.saved_use(path) | use if path.is_dir() else use))

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write aligner.safetensors, config.json and a model card (README.md) to `folder`, for `from_pretrained`; returns it.

        Raises UserError if a file cannot be written, and for an aligner of a set: share the folder that `congeal` wrote.
        """
        return hub.save(self._parts(), self._saved_use(), folder)

    def push_to_hub(self, name: str, *, private: bool = False, token: str | None = None, message: str = "Upload an aligner") -> str:
        """Upload what `save_pretrained` writes as the model NAME/MODEL of the Hugging Face hub; returns the address.

        Raises UserError if the package huggingface_hub is missing, or the hub refuses or cannot be reached.
        """
        return hub.push(self._parts(), self._saved_use(), name, private=private, token=token, message=message)

    def _parts(self) -> Parts:
        return Parts(
            f"gangealing_fast {__version__}", transformer=self.transformer, classifier=self.classifier, warping=self.warping
        )

    def _saved_use(self) -> hub.Use:
        return hub.Use(self.flips, self.cluster, self.points)

    def export(self, path: str | Path, *, side: int | None = None, output_resolution: int | None = None) -> Path:
        """Write this aligner as a program that runs without this package: NAME.onnx, or NAME.pt2 for `torch.export.load`.

        It takes pictures `[N, 3, side, side]` of any number N, side the one it was trained for if None, and returns `image` and
        `grid` as `warp` does. Raises UserError if pictures would have to be aligned without knowing their cluster, or by the
        smoother of two flows; if packages for ONNX are missing; or for an aligner of a set.
        """
        return self.finder.export(Path(path), side=side, output_resolution=output_resolution)

    def refine(self, images: Tensor | Sequence[Tensor], *, flow: bool = True, seed: int = 0) -> Aligner:
        """An aligner that starts from what this one finds and brings it to the pixel.

        images: pictures `[N, 3, H, W]`, or a list of pictures `[3, H, W]` of any sizes, 3 or more, of the kind that is to be
        aligned; a hundred are enough. As this aligner aligns them they make a template, in the frame of this one's. Any picture is
        then registered to it, near the place that this aligner finds. flow: find a residual flow too; this aligner's own is left
        out. seed: of what is drawn at random. Raises UserError if there are too few pictures, ValueError for an aligner without a
        similarity.
        """
        return Aligner.by(refined(self.finder, images, flow=flow, seed=seed))

    # ---- what it is

    @property
    def transformer(self) -> SpatialTransformer:
        """The network of a trained aligner. Raises UserError for an aligner of a set."""
        return self.finder.transformer

    @property
    def classifier(self) -> ClusterClassifier | None:
        return self.finder.classifier

    @property
    def flips(self) -> bool:
        return self.finder.flips

    @property
    def cluster(self) -> int | None:
        return self.finder.cluster

    @property
    def warping(self) -> Warping:
        return self.finder.warping

    @warping.setter
    def warping(self, warping: Warping) -> None:
        self.finder.warping = warping

    @property
    def size(self) -> int:
        """Side of the template, in pixels."""
        return self.finder.size

    @property
    def reads(self) -> int | None:
        """Side of the squares that commands cut pictures to, if nothing else is said; None for pictures as they are."""
        return self.finder.reads

    @property
    def clusters(self) -> int:
        """How many templates there are."""
        return self.finder.clusters

    @property
    def names(self) -> tuple[str, ...]:
        """Of an aligner of a set: the pictures that methods take by name."""
        return self.finder.names

    # ---- pictures

    def check_classifier(self) -> None:
        """Raise UserError if there are several clusters, none was chosen, and there is no classifier."""
        self.finder.check()

    @property
    def decides(self) -> bool:
        """Whether there is a cluster or a mirror to decide on."""
        return self.finder.decides

    def look(
        self,
        images: Images,
        *,
        output_resolution: int | None = None,
        alpha: float = 1.0,
        assignment: tuple[Tensor, Tensor] | None = None,
        base_warp: Tensor | None = None,
    ) -> Look:
        """Cluster, mirror and alignment of pictures, each found once. Arguments and errors as in `warp`.

        Raises ValueError for names of pictures of several sizes, whose looks have no common shape.
        """
        if not isinstance(images, Tensor):
            found = self._members(images, pixels=True, output_resolution=output_resolution, alpha=alpha)
            return joined([look for _, look in found])
        return self.finder.look(
            images,
            self.square(images),
            output_resolution=output_resolution,
            alpha=alpha,
            assignment=assignment,
            base_warp=base_warp,
        )

    def _members(
        self, names: Sequence[str], *, pixels: bool, output_resolution: int | None = None, alpha: float = 1.0
    ) -> Iterator[tuple[Tensor, Look]]:
        """Pictures `[1, 3, H, W]` of a set one by one, with the look at each; without `pixels` both are shapes alone."""
        if isinstance(names, str):
            raise TypeError(f"names of pictures are a list, got the single text {names!r}.")
        for name in names:
            yield self.finder.member(name, pixels=pixels, output_resolution=output_resolution, alpha=alpha)

    @torch.no_grad()
    def assign(self, images: Images) -> tuple[Tensor, Tensor]:
        """(cluster `[N]`, whether the picture is mirrored before it is aligned `[N]`), as the classifier says; 0 and False without.

        Raises UserError if there are several clusters and no classifier.
        """
        if not isinstance(images, Tensor):
            looks = [look for _, look in self._members(images, pixels=False)]
            return torch.cat([look.cluster for look in looks]), torch.cat([look.mirrored for look in looks])
        return self.finder.assign(images, self.square(images))

    def warp(
        self,
        images: Images,
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
        Raises UserError if there are several clusters and no classifier. An aligner of a set takes no assignment.
        """
        return self.look(
            images, output_resolution=output_resolution, alpha=alpha, assignment=assignment, base_warp=base_warp
        ).alignment

    def stages(self, images: Tensor, *, output_resolution: int | None = None, alpha: float = 1.0) -> list[Alignment]:
        """What `warp` returns, after every look of the similarity and then of the flow; the last is that of `warp` itself."""
        return self.finder.stages(images, self.square(images), output_resolution=output_resolution, alpha=alpha)

    def out_of_bounds(self, images: Images, *, look: Look | None = None) -> Tensor:
        """`[N]` bool: whether an aligned picture shows places beyond the edges of the picture as given, which padding stands for.

        look: what `look(images)` returned, if it is at hand already.
        """
        if not isinstance(images, Tensor):
            return torch.cat([self.out_of_bounds(one, look=seen) for one, seen in self._members(images, pixels=False)])
        look = self.look(images) if look is None else look
        square, record = look.square, look.alignment
        height, width = images.shape[2:]
        corners = (square.left, square.top, square.left + width, square.top + height)
        left, top, right, bottom = (2 * corner / square.images.shape[3] - 1 for corner in corners)
        return reads_outside(record.grid, (left, top, right, bottom)).flatten(1).any(1)

    def align(self, images: Images, *, output_resolution: int | None = None, alpha: float = 1.0) -> Tensor:
        """Aligned pictures `[N, 3, R, R]`, R = output_resolution or the transformer's own size."""
        if not isinstance(images, Tensor):
            found = self._members(images, pixels=True, output_resolution=output_resolution, alpha=alpha)
            return torch.cat([look.alignment.image for _, look in found])
        return self.warp(images, output_resolution=output_resolution, alpha=alpha).image

    def flow_scores(self, images: Images) -> Tensor:
        """`[N]`: minus the total variation of each picture's residual flow. The higher, the better a picture suits its template
        (arXiv 2112.05143, section 3.5): what scores least is what to leave out of a data set. Raises ValueError without a flow.
        """
        if not isinstance(images, Tensor):
            return torch.cat([_scored(look.alignment) for _, look in self._members(images, pixels=False)])
        return _scored(self.warp(images))

    def square(self, images: Tensor) -> Square:
        """Pictures `[N, 3, H, W]` in the middle of a square, padded as `warping` says; square ones as they are."""
        check_pictures(images)
        return to_square(images.to(self.finder.dtype), self.warping.padding_mode)

    # ---- points

    def from_template(self, images: Images, points: Tensor, *, look: Look | None = None) -> Tensor:
        """Points of the template → pixels of each picture, sub-pixel; differentiable by the points.

        look: what `look(images)` returned, if it is at hand already.
        """
        check_points(images, points)
        if not isinstance(images, Tensor):
            members = zip(self._members(images, pixels=False), points.split(1), strict=True)
            return torch.cat([self.from_template(one, row, look=seen) for (one, seen), row in members])
        return points_and_maps.points_from_template(self.look(images) if look is None else look, points, self.size, self.points)

    def locate(self, images: Images, points: Tensor, *, look: Look | None = None) -> Located:
        """Pixels of each picture → points of the template: sub-pixel, differentiable by the points, with a confidence for each.

        look: what `look(images)` returned, if it is at hand already. With the published rule for points and a flow they are whole
        pixels of the template without gradients, and the confidence is 1: that rule always finds one.
        """
        check_points(images, points)
        if not isinstance(images, Tensor):
            members = zip(self._members(images, pixels=False), points.split(1), strict=True)
            rows = [self.locate(one, row, look=seen) for (one, seen), row in members]
            return Located(torch.cat([row.points for row in rows]), torch.cat([row.confidence for row in rows]))
        look = self.look(images) if look is None else look
        return points_and_maps.points_to_template(look, points, self.size, self.points, self.finder.dtype)

    def to_template(self, images: Images, points: Tensor) -> Tensor:
        """`locate(images, points).points`."""
        return self.locate(images, points).points

    def transfer(self, first: Images, second: Images, points: Tensor) -> Tensor:
        """Pixels of the first pictures → the corresponding pixels of the second ones."""
        return self.from_template(second, self.to_template(first, points))

    # ---- masks and edits

    def maps_to_template(self, images: Images, maps: Tensor) -> Tensor:
        """What is drawn on pictures, `[N, C, H, W]` (masks, label scores, edits), as it lies on the template, `[N, C, F, F]`.

        Pictures by name have to be of one size, that of the maps.
        """
        if not isinstance(images, Tensor):
            members = list(self._members(images, pixels=False))
            sizes = {tuple(one.shape[2:]) for one, _ in members}
            if maps.ndim != 4 or maps.shape[0] != len(members) or sizes != {tuple(maps.shape[2:])}:
                raise ValueError(f"maps must be [{len(members)}, C, H, W] of the pictures' size {sizes}, got {list(maps.shape)}.")
            rows = zip(members, maps.split(1), strict=True)
            return torch.cat([points_and_maps.maps_to_template(look, row, self.warping.padding_mode) for (_, look), row in rows])
        check_pictures(images)
        if maps.ndim != 4 or maps.shape[0] != images.shape[0] or maps.shape[2:] != images.shape[2:]:
            raise ValueError(f"maps must be [N, C, H, W] of the pictures' size, got {list(maps.shape)} for {list(images.shape)}.")
        return points_and_maps.maps_to_template(self.look(images), maps, self.warping.padding_mode)

    def maps_from_template(
        self, images: Images, maps: Tensor, *, look: Look | None = None, rows: slice = slice(None)
    ) -> tuple[Tensor, Tensor]:
        """What is drawn on the template, `[1 or N, C, R, R]`, as it lies on pictures: (`[N, C, H, W]`, confidence `[N, 1, H, W]`).

        Every pixel of a picture is sought on the template, so nothing is left out between two pixels; where the template does
        not reach, the result is 0 and so is the confidence. look: as in `locate`, then the pictures' own pixels are not read. rows:
        those that are wanted, without a step; the result has these alone. Pictures by name have to be of one size.
        """
        if not isinstance(images, Tensor):
            members = list(self._members(images, pixels=False))
            if len({tuple(one.shape[2:]) for one, _ in members}) > 1:
                raise ValueError("the pictures have several sizes, and maps on them no common shape: ask for one at a time.")
            each = maps.split(1) * (len(members) if maps.shape[0] == 1 else 1)
            found = [
                self.maps_from_template(one, row, look=seen, rows=rows) for (one, seen), row in zip(members, each, strict=True)
            ]
            return torch.cat([drawn for drawn, _ in found]), torch.cat([sure for _, sure in found])
        if look is None:
            check_pictures(images)
        n, _, height, width = images.shape
        if maps.ndim != 4 or maps.shape[0] not in (1, n) or maps.shape[2] != maps.shape[3]:
            raise ValueError(f"maps must be [1, C, R, R] or [{n}, C, R, R], got {list(maps.shape)}.")
        look = self.look(images) if look is None else look
        maps = maps.expand(n, -1, -1, -1)
        return points_and_maps.maps_from_template(look, maps, (height, width), rows, self.size, self.finder.dtype)

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


def _scored(alignment: Alignment) -> Tensor:
    scores = flow_scores_of(alignment)
    if scores is None:
        raise ValueError("flow scores need a transformer with a 'flow' transform; this one has none.")
    return scores


def flow_scores_of(alignment: Alignment) -> Tensor | None:
    """The flow scores `[N]` of `Aligner.flow_scores`, of pictures that are aligned already; None without a residual flow."""
    return None if alignment.residual_flow is None else -flow_regularizer(alignment.residual_flow)[0]
