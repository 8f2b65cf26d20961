# SPDX-License-Identifier: Apache-2.0
"""Joint alignment of a set of pictures by frozen features; new pictures on its templates; templates of what is aligned roughly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor

from gangealing_fast.congealing.features import FeatureNetwork, efficientnet_features
from gangealing_fast.congealing.initial import Start
from gangealing_fast.congealing.kinds import (
    BATCH,
    FEWEST,
    Keep,
    Making,
    Progress,
    all_kinds,
    core_of,
    kept,
    members_of,
    template_from_state,
)
from gangealing_fast.congealing.pictures import Squares
from gangealing_fast.congealing.placed import Found, frame_from_pixels, join, pixels_of, register_rows, registered_from
from gangealing_fast.congealing.records import Congealed, Pictures, Registered
from gangealing_fast.congealing.templates import Templates
from gangealing_fast.congealing.transforms import Model, carry
from gangealing_fast.congealing.views import Views
from gangealing_fast.runtime.errors import UserError
from gangealing_fast.runtime.randomness import derived_seed

CORE = 100
"""Pictures that are aligned jointly; those beyond this number are registered to the template that these make."""


@dataclass(frozen=True)
class FeatureCongealed(Congealed):
    """A set aligned by features.

    templates: what new pictures are registered to. matches `[N, 32, 5]`: the best matches of each picture with its template: (x, y)
    in the picture, (x, y) in the template, both in pixels, and the weight, 0 for padding.
    """

    templates: Templates
    matches: Tensor


@torch.no_grad()
def congeal(
    images: Tensor | Pictures,
    *,
    masks: Tensor | Pictures | None = None,
    flips: bool | Literal["auto"] = "auto",
    clusters: int | Literal["auto"] = "auto",
    features: FeatureNetwork | None = None,
    model: Model = "affine",
    flow: bool = True,
    side: int = 256,
    seed: int = 0,
    names: Sequence[str] | None = None,
    progress: Progress | None = None,
    keep: Keep | None = None,
) -> FeatureCongealed:
    """Align pictures of one kind of thing (or of a few kinds) jointly.

    Args:
        images: `[N, 3, H, W]` in [-1, 1], or pictures of any sizes; a fourth channel says what belongs to the picture.
        masks: the same for pictures without one: `[N, 1, H, W]` or `[1, H, W]` each in [-1, 1], 1 inside.
        flips: True if there are mirror images among them; "auto" mirrors none unless the set clearly says that there are.
        clusters: how many kinds there are; "auto" takes the parts that the matches fall into.
        features: the network that describes places; EfficientNet-lite0 by default.
        model: the transform of each picture. flow: whether a smooth flow follows it.
        side: pixels of the template's side.
        seed: of all draws; the same seed, pictures and number of threads give the same numbers.
        names: of the pictures, for sentences of errors.
        progress: called with a stage's name, how much of it is done, and of how much.
        keep: where finished stages are kept.

    Up to 100 pictures are aligned jointly. If there are more, 100 drawn ones make the template and the others are registered to it,
    so that time a picture and memory do not grow. Runs on the processor.
    Raises UserError for fewer than 3 pictures, pictures that have nothing in common, and pictures that cannot be used.
    """
    count = len(images)
    _check(count, clusters, model, side)
    tell: Progress = progress or (lambda stage, done, total: None)
    network = features or efficientnet_features()
    views = Views(Squares(images, masks, network.fine[0], names), network)
    source = torch.Generator().manual_seed(derived_seed(seed, "core") % 2**32)
    rows = torch.randperm(count, generator=source)[:CORE].sort().values if count > CORE else torch.arange(count)
    kinds = all_kinds(Making(views, flips, model, flow, side, seed, keep, tell), rows, clusters)
    mirrored = any(bool(kind.found.mirrored.any()) for kind in kinds)
    templates = Templates(tuple(kind.template for kind in kinds), network.name, model, side, bool(flips) and mirrored)
    found, order = members_of(views, kinds, templates, flow, seed, keep)
    others = torch.ones(count, dtype=torch.bool).index_fill(0, rows, False).nonzero()[:, 0]
    joined = len(rows)
    for part in others.split(BATCH) if len(others) else ():
        first = int(part[0])
        new = kept(keep, f"join-{first}", partial(join, views, part, templates, flow, seed))
        found.append(Found(**new))
        order.append(part)
        joined += len(part)
        tell("join", joined - len(rows), len(others))
    return _congealed(Found.joined(found, order), views.squares, templates)


@torch.no_grad()
def register(
    images: Tensor | Pictures,
    templates: Templates,
    *,
    masks: Tensor | Pictures | None = None,
    features: FeatureNetwork | None = None,
    start: Tensor | None = None,
    flow: bool = True,
    names: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> Registered:
    """Where new pictures lie on templates.

    images, masks, names, progress: as in `congeal`. features: the network that the templates were made with.
    start `[N, 3, 3]`: where they lie roughly, from a picture's pixels to the template's; then nothing is looked for far away.
    Deterministic. Raises UserError if the features are not those of the templates, and for pictures that cannot be used.
    """
    network = features or efficientnet_features()
    if network.name != templates.network:
        raise UserError(f"the template was made with the features {templates.network}, these are {network.name}: give the same")
    grids = (network.coarse[1], network.coarse[1], network.fine[1])
    if any((one.coarse.grid, one.near.grid, one.fine.grid) != grids for one in templates.clusters):
        raise UserError(f"the template was made with other grids of places than {network.name} has now: congeal again")
    count = len(images)
    if start is not None and tuple(start.shape) != (count, 3, 3):
        raise UserError(f"start must be [{count}, 3, 3], a matrix for each picture, got {list(start.shape)}")
    squares = Squares(images, masks, network.fine[0], names)
    views = Views(squares, network)
    rough = None if start is None else frame_from_pixels(templates.side) @ start.double() @ torch.linalg.inv(squares.placing)
    found, order = [], torch.arange(count).split(BATCH)
    for part in order:
        found.append(register_rows(views, part, templates, flow, 0, None if rough is None else rough[part]))
        if progress is not None:
            progress("register", int(part[-1]) + 1, count)
    return registered_from(Found.joined(found, order), squares, templates)


@torch.no_grad()
def build_templates(
    images: Tensor | Pictures,
    matrix: Tensor,
    *,
    masks: Tensor | Pictures | None = None,
    features: FeatureNetwork | None = None,
    model: Model = "affine",
    side: int = 256,
    seed: int = 0,
    names: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> Templates:
    """The template of pictures whose alignment is roughly known, `matrix` `[N, 3, 3]`: from a picture's pixels to the template's.

    The pictures are first brought to the pixel against each other; at most 100 of them are used. Other arguments and errors as in
    `congeal`.
    """
    count = len(images)
    _check(count, 1, model, side)
    tell: Progress = progress or (lambda stage, done, total: None)
    network = features or efficientnet_features()
    squares = Squares(images, masks, network.fine[0], names)
    views = Views(squares, network)
    source = torch.Generator().manual_seed(derived_seed(seed, "core") % 2**32)
    rows = torch.randperm(count, generator=source)[:CORE].sort().values if count > CORE else torch.arange(count)
    rough = (frame_from_pixels(side) @ matrix.double() @ torch.linalg.inv(squares.placing)).float()[rows]
    start = Start(rough, torch.zeros(len(rows), dtype=torch.bool), torch.zeros(len(rows), dtype=torch.int64))
    state = core_of(views, rows, start, 0, model, True, side, seed, tell, far=False)
    return Templates((template_from_state(state),), network.name, model, side, False)


def _check(count: int, clusters: int | str, model: str, side: int) -> None:
    if count < FEWEST:
        raise UserError(f"joint alignment needs {FEWEST} pictures or more, got {count}")
    if clusters != "auto" and not (isinstance(clusters, int) and 1 <= clusters <= count // FEWEST):
        raise UserError(f"clusters must be auto or a number from 1 to a third of the pictures ({count // FEWEST}), got {clusters}")
    if model not in get_args(Model):
        raise UserError(f"model must be one of {', '.join(get_args(Model))}, got {model}")
    if side < 16:
        raise UserError(f"the template needs a side of 16 pixels or more, got {side}")


def _congealed(found: Found, squares: Squares, templates: Templates) -> FeatureCongealed:
    registered = registered_from(found, squares, templates)
    to_square, _ = pixels_of(found, squares, templates)
    points = carry(torch.linalg.inv(to_square), found.matches[..., :2].double())
    there = carry(torch.linalg.inv(frame_from_pixels(templates.side)), found.matches[..., 2:4].double())
    matches = torch.cat([points, there, found.matches[..., 4:].double()], -1).float()
    return FeatureCongealed(
        registered.matrix,
        registered.flow,
        registered.mirrored,
        registered.cluster,
        registered.confidence,
        found.outlier,
        templates.picture,
        templates,
        matches,
    )
