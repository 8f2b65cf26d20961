# SPDX-License-Identifier: Apache-2.0
"""Joint alignment of a set of pictures by frozen features: the stages, their order, and how they are kept."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple, Protocol, get_args

import torch
from torch import Tensor

from gangealing_fast.congealing.features import FeatureNetwork, efficientnet_features
from gangealing_fast.congealing.initial import Start, first_alignment
from gangealing_fast.congealing.joint import COARSE_STEPS, align_core
from gangealing_fast.congealing.outliers import FRACTION
from gangealing_fast.congealing.pictures import Squares
from gangealing_fast.congealing.records import Congealed, Pictures, Registered
from gangealing_fast.congealing.registering import place, refine
from gangealing_fast.congealing.templates import Template, Templates, level_from_state, level_state
from gangealing_fast.congealing.transforms import Model, carry
from gangealing_fast.congealing.views import Views
from gangealing_fast.runtime.errors import UserError
from gangealing_fast.runtime.randomness import derived_seed

CORE = 100
"""Pictures that are aligned jointly; those beyond this number are registered to the template that these make."""
FEWEST = 3
STRANGERS = 0.15
"""If more of a cluster's pictures than this share do not belong, it is aligned again without them."""
ALIKE = 0.5
"""If more than this share of a cluster's pictures is found on another's template, the two are one.

Measured: 0.9 in halves of a set of one kind, 0 to 0.4 between faces and cats.
"""
_SAMPLE = 12
_BATCH = 16
Progress = Callable[[str, int, int], None]


class Keep(Protocol):
    """Where finished stages are kept, so that a run that was killed goes on behind them to the same numbers."""

    def load(self, stage: str) -> dict[str, Tensor] | None: ...

    def save(self, stage: str, tensors: dict[str, Tensor]) -> None: ...


@dataclass(frozen=True)
class FeatureCongealed(Congealed):
    """A set aligned by features.

    templates: what new pictures are registered to. matches `[N, 32, 5]`: the best matches of each picture with its template: (x, y)
    in the picture, (x, y) in the template, both in pixels, and the weight, 0 for padding.
    """

    templates: Templates
    matches: Tensor


class _Found(NamedTuple):
    """What is known of some pictures, in squares and frames from -1 to 1."""

    matrix: Tensor
    flow: Tensor
    mirrored: Tensor
    cluster: Tensor
    explained: Tensor
    matches: Tensor
    outlier: Tensor


class _Kind(NamedTuple):
    """A cluster: its template, what is known of its members, their rows, and those of pictures that are looked for afterwards."""

    template: Template
    found: _Found
    rows: Tensor
    lost: Tensor

    def without_strangers(self) -> _Kind:
        """The same with the members that do not belong among the lost ones."""
        inside = ~self.found.outlier
        found = _Found(*(values[inside] for values in self.found))
        return _Kind(self.template, found, self.rows[inside], torch.cat([self.lost, self.rows[~inside]]))


class _Making(NamedTuple):
    """What is the same for all clusters and attempts; the fields are arguments of `congeal`."""

    views: Views
    flips: bool | Literal["auto"]
    model: Model
    flow: bool
    side: int
    seed: int
    keep: Keep | None
    tell: Progress

    def first(self, stage: str, rows: Tensor, clusters: int | Literal["auto"] | Tensor) -> Start:
        """The first alignment of `rows`, made or kept."""
        return Start(
            **_kept(self.keep, stage, lambda: _first(self.views, rows, self.flips, clusters, self.seed, self.tell)),
        )

    def core(self, stage: str, rows: Tensor, start: Start, number: int) -> dict[str, Tensor]:
        """What `_core` finds of a cluster, made or kept."""
        make = partial(_core, self.views, rows, start, number, self.model, self.flow, self.side, self.seed, self.tell)
        return _kept(self.keep, stage, make)


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
    kinds = _all_kinds(_Making(views, flips, model, flow, side, seed, keep, tell), rows, clusters)
    mirrored = any(bool(kind.found.mirrored.any()) for kind in kinds)
    templates = Templates(tuple(kind.template for kind in kinds), network.name, model, side, bool(flips) and mirrored)
    found, order = _members(views, kinds, templates, flow, seed, keep)
    others = torch.ones(count, dtype=torch.bool).index_fill(0, rows, False).nonzero()[:, 0]
    joined = len(rows)
    for part in others.split(_BATCH) if len(others) else ():
        first = int(part[0])
        new = _kept(keep, f"join-{first}", partial(_join, views, part, templates, flow, seed))
        found.append(_Found(**new))
        order.append(part)
        joined += len(part)
        tell("join", joined - len(rows), len(others))
    back = torch.cat(order).argsort()
    together = _Found(*(torch.cat([getattr(part, name) for part in found])[back] for name in _Found._fields))
    return _congealed(together, views.squares, templates)


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
    if any((one.coarse.grid, one.fine.grid) != (network.coarse[1], network.fine[1]) for one in templates.clusters):
        raise UserError(f"the template was made with other grids of places than {network.name} has now: congeal again")
    count = len(images)
    if start is not None and tuple(start.shape) != (count, 3, 3):
        raise UserError(f"start must be [{count}, 3, 3], a matrix for each picture, got {list(start.shape)}")
    squares = Squares(images, masks, network.fine[0], names)
    views = Views(squares, network)
    rough = None if start is None else frame_from_pixels(templates.side) @ start.double() @ torch.linalg.inv(squares.placing)
    found = []
    for part in torch.arange(count).split(_BATCH):
        found.append(_register(views, part, templates, flow, 0, None if rough is None else rough[part]))
        if progress is not None:
            progress("register", int(part[-1]) + 1, count)
    together = _Found(*(torch.cat([getattr(part, name) for part in found]) for name in _Found._fields))
    return _registered(together, squares, templates)


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
    state = _core(views, rows, start, 0, model, True, side, seed, tell, far=False)
    return Templates((_template(state),), network.name, model, side, False)


def frame_from_pixels(side: int) -> Tensor:
    """`[3, 3]`, float64: from pixels of a square of `side` to the frame whose edges lie at -1 and 1."""
    scale, shift = 2 / side, 1 / side - 1
    return torch.tensor([[scale, 0, shift], [0, scale, shift], [0, 0, 1]], dtype=torch.float64)


def _check(count: int, clusters: int | str, model: str, side: int) -> None:
    if count < FEWEST:
        raise UserError(f"joint alignment needs {FEWEST} pictures or more, got {count}")
    if clusters != "auto" and not (isinstance(clusters, int) and 1 <= clusters <= count // FEWEST):
        raise UserError(f"clusters must be auto or a number from 1 to a third of the pictures ({count // FEWEST}), got {clusters}")
    if model not in get_args(Model):
        raise UserError(f"model must be one of {', '.join(get_args(Model))}, got {model}")
    if side < 16:
        raise UserError(f"the template needs a side of 16 pixels or more, got {side}")


def _kept(keep: Keep | None, stage: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """What a stage found: kept from an earlier run, or made and kept."""
    found = keep.load(stage) if keep is not None else None
    if found is None:
        found = make()
        if keep is not None:
            keep.save(stage, {name: value.contiguous() for name, value in found.items()})
    return found


def _generator(seed: int, *parts: str | int) -> torch.Generator:
    return torch.Generator().manual_seed(derived_seed(seed, *parts) % 2**32)


def _first(
    views: Views, rows: Tensor, flips: bool | Literal["auto"], clusters: int | Literal["auto"] | Tensor, seed: int, tell: Progress
) -> dict[str, Tensor]:
    done = iter(range(1, 4))
    start = first_alignment(
        views, rows, flips=flips, clusters=clusters, generator=_generator(seed, "graph"), tick=lambda: tell("graph", next(done), 3)
    )
    return start._asdict()


def _all_kinds(making: _Making, rows: Tensor, clusters: int | Literal["auto"]) -> list[_Kind]:
    """All clusters; of "auto" those that are not of one kind by their templates."""
    parts: int | Literal["auto"] | Tensor = clusters
    for number in itertools.count():
        kinds, label = _kinds(making, rows, parts, f"-{number}" if number else "")
        if clusters != "auto" or len(kinds) < 2:
            return kinds
        alike = _kept(making.keep, f"alike-{number}", partial(_alike, making, kinds))["pair"].tolist()
        if not alike:
            return kinds
        parts = torch.where(label == alike[1], alike[0], label)
    raise AssertionError  # each attempt has one cluster less


def _members(
    views: Views, kinds: Sequence[_Kind], templates: Templates, flow: bool, seed: int, keep: Keep | None
) -> tuple[list[_Found], list[Tensor]]:
    """What is known of the members of all clusters and of those that were lost on the way, and their rows."""
    found, order = [], []
    for number, kind in enumerate(kinds):
        if len(kinds) > 1:
            kind = kind.without_strangers()
        found.append(kind.found)
        order.append(kind.rows)
        if len(kind.lost):
            # Pairs alone do not always say of which kind a picture is, or whether it is a stranger; the templates do.
            found.append(_Found(**_kept(keep, f"move-{number}", partial(_join, views, kind.lost, templates, flow, seed))))
            order.append(kind.lost)
    return found, order


def _kinds(making: _Making, rows: Tensor, clusters: int | Literal["auto"] | Tensor, stage: str) -> tuple[list[_Kind], Tensor]:
    """All clusters, and whose each picture was at first. stage: how names of what is kept end."""
    start = making.first(f"graph{stage}", rows, clusters)
    made = [_kind(making, rows, start, number, stage) for number in range(int(start.cluster.max()) + 1)]
    return made, start.cluster


def _alike(making: _Making, kinds: Sequence[_Kind]) -> dict[str, Tensor]:
    """pair: the numbers of two clusters that are of one kind, or none: most pictures of one are found on the other's template.

    Of a kind whose poses differ much, hardly any pair across two groups may match, though its template fits both.
    """
    for first, second in itertools.combinations(range(len(kinds)), 2):
        for there, of in ((first, second), (second, first)):
            members = kinds[of].rows[~kinds[of].found.outlier][:_SAMPLE]
            flips = bool(kinds[of].found.mirrored.any())
            template = Templates((kinds[there].template,), making.views.network.name, making.model, 0, flips)
            if (~_register(making.views, members, template, False, making.seed).outlier).float().mean() > ALIKE:
                return {"pair": torch.tensor([first, second])}
    return {"pair": torch.empty(0, dtype=torch.int64)}


def _kind(making: _Making, rows: Tensor, start: Start, number: int, stage: str) -> _Kind:
    """Align a cluster. If many of its pictures do not belong, those that do are aligned once more, from the beginning.

    Strangers are told when the others have been found, and by then may have led some of them astray.
    """
    own = rows[start.cluster == number]
    lost = own[:0]
    state = making.core(f"template-{number}{stage}", rows, start, number)
    stays = ~state["outlier"]
    again = None
    if (~stays).sum() > STRANGERS * len(own) and stays.sum() >= FEWEST:
        with contextlib.suppress(UserError):  # so few may have too few pairs that hold; then the first alignment stands
            again = making.first(f"kept-{number}{stage}", own[stays], 1)
    if again is not None:
        own, lost = own[stays], own[~stays]
        state = making.core(f"again-{number}{stage}", own, again, 0)
    found = _Found(**{name: state[name] for name in _Found._fields})._replace(cluster=torch.full((len(own),), number))
    return _Kind(_template(state), found, own, lost)


def _core(
    views: Views,
    rows: Tensor,
    start: Start,
    number: int,
    model: Model,
    flow: bool,
    side: int,
    seed: int,
    tell: Progress,
    *,
    far: bool = True,
) -> dict[str, Tensor]:
    """Everything about a cluster's core: what its pictures found and its template, as tensors."""
    members = start.cluster == number
    own, mirrored = rows[members], start.mirrored[members]
    ticks = (COARSE_STEPS if far else 1) + 2
    done = iter(range(1, ticks + 1))
    core = align_core(
        views,
        own,
        start.matrix[members],
        mirrored,
        model=model,
        flow=flow,
        generator=_generator(seed, "steps", number),
        tick=lambda: tell(f"template {number + 1}", next(done), ticks),
        far=far,
    )
    aligned, use = core.aligned, (~core.outlier)
    offset = aligned.flow[use].mean(0)
    aligned = aligned._replace(flow=aligned.flow - offset)
    found = _Found(
        aligned.matrix,
        aligned.flow,
        mirrored,
        torch.full((len(own),), number),
        aligned.explained,
        aligned.matches,
        core.outlier,
    )
    template = {
        "offset": offset,
        "usual": torch.tensor(core.usual),
        "support": aligned.explained[use].median(),
        "picture": _average(views, own[use], aligned.matrix[use], mirrored[use], aligned.flow[use], side),
    }
    return found._asdict() | template | level_state(core.coarse, "coarse") | level_state(core.fine, "fine")


def _template(state: dict[str, Tensor]) -> Template:
    coarse, fine = level_from_state(state, "coarse"), level_from_state(state, "fine")
    return Template(coarse, fine, state["offset"], float(state["usual"]), float(state["support"]), state["picture"])


def _average(views: Views, rows: Tensor, matrix: Tensor, mirrored: Tensor, flow: Tensor, side: int) -> Tensor:
    """`[3, side, side]` in [-1, 1]: the mean of the pictures in the frame, each where it has something."""
    total, count = torch.zeros(3, side, side), torch.zeros(1, side, side)
    for part in torch.arange(len(rows)).split(_BATCH):
        images, masks = views.pictures(rows[part], matrix[part], mirrored[part], side, flow[part])
        total += (images * masks).sum(0)
        count += masks.sum(0)
    return (total / count.clamp_min(1e-3)).clamp(-1, 1)


def _register(views: Views, rows: Tensor, templates: Templates, flow: bool, seed: int, rough: Tensor | None = None) -> _Found:
    """Pictures on the template of all clusters, and mirrored or not, that most of is found in them.

    rough `[n, 3, 3]`: where they lie roughly, from square to frame; then nothing else is tried.
    """
    count, model = len(rows), templates.model
    cluster, mirrored = torch.zeros(count, dtype=torch.int64), torch.zeros(count, dtype=torch.bool)
    best = torch.full((count,), -1.0)
    matrix = torch.eye(3).repeat(count, 1, 1) if rough is None else rough.float()
    tried = [(number, mirror) for number in range(len(templates)) for mirror in ((False, True) if templates.flips else (False,))]
    for number, mirror in tried if rough is None else ():
        template, flag = templates.clusters[number], torch.full((count,), mirror)
        # One by one, so that a picture's numbers do not depend on those beside it.
        ones = [place(views, row, flag[:1], template, model, _generator(seed, "place")) for row in rows.split(1)]
        placed, explained = torch.cat([one[0] for one in ones]), torch.cat([one[1] for one in ones]) / max(template.usual, 1e-6)
        better = explained > best
        best = torch.where(better, explained, best)
        matrix = torch.where(better[:, None, None], placed, matrix)
        cluster, mirrored = torch.where(better, number, cluster), torch.where(better, flag, mirrored)
    parts, order = [], []
    for number in cluster.unique().tolist():
        own = (cluster == number).nonzero()[:, 0]
        template = templates.clusters[number]
        aligned = refine(views, rows[own], matrix[own], mirrored[own], template, model=model, flow=flow)
        outlier = aligned.explained < FRACTION * template.support
        parts.append(_Found(aligned.matrix, aligned.flow, mirrored[own], cluster[own], aligned.explained, aligned.matches, outlier))
        order.append(own)
    back = torch.cat(order).argsort()
    return _Found(*(torch.cat([getattr(part, name) for part in parts])[back] for name in _Found._fields))


def _join(views: Views, rows: Tensor, templates: Templates, flow: bool, seed: int) -> dict[str, Tensor]:
    return _register(views, rows, templates, flow, seed)._asdict()


def _pixels(found: _Found, squares: Squares, templates: Templates) -> tuple[Tensor, Tensor]:
    """Matrices from a picture's pixels to its square (after its mirror), and from there to the template's pixels."""
    mirror = torch.eye(3, dtype=torch.float64).repeat(len(found.matrix), 1, 1)
    mirror[found.mirrored, 0, 0] = -1
    to_template = torch.linalg.inv(frame_from_pixels(templates.side)) @ found.matrix.double()
    return mirror @ squares.placing, to_template


def _registered(found: _Found, squares: Squares, templates: Templates) -> Registered:
    to_square, to_template = _pixels(found, squares, templates)
    matrix = to_template @ to_square
    confidence = _confidence(found, templates)
    return Registered(matrix / matrix[:, 2:, 2:], found.flow * (templates.side / 2), found.mirrored, found.cluster, confidence)


def _confidence(found: _Found, templates: Templates) -> Tensor:
    """`[N]` in [0, 1]: how much of the template was found, beside what a middling member finds, which has 1 / 2."""
    usual = torch.tensor([template.support for template in templates.clusters])[found.cluster].clamp_min(1e-6)
    return (found.explained / (found.explained + usual)).clamp(0, 1)


def _congealed(found: _Found, squares: Squares, templates: Templates) -> FeatureCongealed:
    registered = _registered(found, squares, templates)
    to_square, _ = _pixels(found, squares, templates)
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
