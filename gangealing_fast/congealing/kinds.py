# SPDX-License-Identifier: Apache-2.0
"""The clusters of a set: their first alignment, their templates, and who moves from one to another."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from gangealing_fast.congealing.initial import Start, first_alignment
from gangealing_fast.congealing.joint import COARSE_STEPS, FINE_STEPS, align_core
from gangealing_fast.congealing.placed import Found, generator_of, join, register_rows
from gangealing_fast.congealing.templates import LEVELS, Template, Templates, level_state, template_from_state
from gangealing_fast.congealing.transforms import Model
from gangealing_fast.congealing.views import Views
from gangealing_fast.runtime.errors import UserError

FEWEST = 3
STRANGERS = 0.15
"""If more of a cluster's pictures than this share do not belong, it is aligned again without them."""
ALIKE = 0.5
"""If more than this share of a cluster's pictures is found on another's template, the two are one.

Measured: 0.9 in halves of a set of one kind, 0 to 0.4 between faces and cats.
"""
BATCH = 16
"""Pictures that are looked at together."""
_SAMPLE = 12
Progress = Callable[[str, int, int], None]


class Keep(Protocol):
    """Where finished stages are kept, so that a run that was killed goes on behind them to the same numbers."""

    def load(self, stage: str) -> dict[str, Tensor] | None: ...

    def save(self, stage: str, tensors: dict[str, Tensor]) -> None: ...


class Kind(NamedTuple):
    """A cluster: its template, what is known of its members, their rows, and those of pictures that are looked for afterwards."""

    template: Template
    found: Found
    rows: Tensor
    lost: Tensor

    def without_strangers(self) -> Kind:
        """The same with the members that do not belong among the lost ones."""
        inside = ~self.found.outlier
        found = Found(*(values[inside] for values in self.found))
        return Kind(self.template, found, self.rows[inside], torch.cat([self.lost, self.rows[~inside]]))


class Making(NamedTuple):
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
            **kept(self.keep, stage, lambda: _first(self.views, rows, self.flips, clusters, self.seed, self.tell)),
        )

    def core(self, stage: str, rows: Tensor, start: Start, number: int) -> dict[str, Tensor]:
        """What `core_of` finds of a cluster, made or kept."""
        make = partial(core_of, self.views, rows, start, number, self.model, self.flow, self.side, self.seed, self.tell)
        return kept(self.keep, stage, make)


def kept(keep: Keep | None, stage: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """What a stage found: kept from an earlier run, or made and kept."""
    found = keep.load(stage) if keep is not None else None
    if found is None:
        found = make()
        if keep is not None:
            keep.save(stage, {name: value.contiguous() for name, value in found.items()})
    return found


def _first(
    views: Views, rows: Tensor, flips: bool | Literal["auto"], clusters: int | Literal["auto"] | Tensor, seed: int, tell: Progress
) -> dict[str, Tensor]:
    done = iter(range(1, 4))
    start = first_alignment(
        views,
        rows,
        flips=flips,
        clusters=clusters,
        generator=generator_of(seed, "graph"),
        tick=lambda: tell("graph", next(done), 3),
    )
    return start._asdict()


def all_kinds(making: Making, rows: Tensor, clusters: int | Literal["auto"]) -> list[Kind]:
    """All clusters; of "auto" those that are not of one kind by their templates."""
    parts: int | Literal["auto"] | Tensor = clusters
    for number in itertools.count():
        kinds, label = _kinds(making, rows, parts, f"-{number}" if number else "")
        if clusters != "auto" or len(kinds) < 2:
            return kinds
        alike = kept(making.keep, f"alike-{number}", partial(_alike, making, kinds))["pair"].tolist()
        if not alike:
            return kinds
        parts = torch.where(label == alike[1], alike[0], label)
    raise AssertionError  # each attempt has one cluster less


def members_of(
    views: Views, kinds: Sequence[Kind], templates: Templates, flow: bool, seed: int, keep: Keep | None
) -> tuple[list[Found], list[Tensor]]:
    """What is known of the members of all clusters and of those that were lost on the way, and their rows."""
    found, order = [], []
    for number, kind in enumerate(kinds):
        if len(kinds) > 1:
            kind = kind.without_strangers()
        found.append(kind.found)
        order.append(kind.rows)
        if len(kind.lost):
            # Pairs alone do not always say of which kind a picture is, or whether it is a stranger; the templates do.
            found.append(Found(**kept(keep, f"move-{number}", partial(join, views, kind.lost, templates, flow, seed))))
            order.append(kind.lost)
    return found, order


def _kinds(making: Making, rows: Tensor, clusters: int | Literal["auto"] | Tensor, stage: str) -> tuple[list[Kind], Tensor]:
    """All clusters, and whose each picture was at first. stage: how names of what is kept end."""
    start = making.first(f"graph{stage}", rows, clusters)
    made = [_kind(making, rows, start, number, stage) for number in range(int(start.cluster.max()) + 1)]
    return made, start.cluster


def _alike(making: Making, kinds: Sequence[Kind]) -> dict[str, Tensor]:
    """pair: the numbers of two clusters that are of one kind, or none: most pictures of one are found on the other's template.

    Of a kind whose poses differ much, hardly any pair across two groups may match, though its template fits both.
    """
    for first, second in itertools.combinations(range(len(kinds)), 2):
        for there, of in ((first, second), (second, first)):
            members = kinds[of].rows[~kinds[of].found.outlier][:_SAMPLE]
            flips = bool(kinds[of].found.mirrored.any())
            template = Templates((kinds[there].template,), making.views.network.name, making.model, 0, flips)
            if (~register_rows(making.views, members, template, False, making.seed).outlier).float().mean() > ALIKE:
                return {"pair": torch.tensor([first, second])}
    return {"pair": torch.empty(0, dtype=torch.int64)}


def _kind(making: Making, rows: Tensor, start: Start, number: int, stage: str) -> Kind:
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
    found = Found(**{name: state[name] for name in Found._fields})._replace(cluster=torch.full((len(own),), number))
    return Kind(template_from_state(state), found, own, lost)


def core_of(
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
    ticks = (COARSE_STEPS if far else 1) + FINE_STEPS
    done = iter(range(1, ticks + 1))
    core = align_core(
        views,
        own,
        start.matrix[members],
        mirrored,
        model=model,
        flow=flow,
        generator=generator_of(seed, "steps", number),
        tick=lambda: tell(f"template {number + 1}", next(done), ticks),
        far=far,
    )
    aligned, use = core.aligned, (~core.outlier)
    offset = aligned.flow[use].mean(0)
    aligned = aligned._replace(flow=aligned.flow - offset)
    found = Found(
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
        "window": torch.tensor(core.window),
        "usual": torch.tensor(core.usual),
        "support": aligned.explained[use].median(),
        "picture": _average(views, own[use], aligned.matrix[use], mirrored[use], aligned.flow[use], side),
    }
    levels = {part: value for name in LEVELS for part, value in level_state(getattr(core, name), name).items()}
    return found._asdict() | template | levels


def _average(views: Views, rows: Tensor, matrix: Tensor, mirrored: Tensor, flow: Tensor, side: int) -> Tensor:
    """`[3, side, side]` in [-1, 1]: the mean of the pictures in the frame, each where it has something."""
    total, count = torch.zeros(3, side, side), torch.zeros(1, side, side)
    for part in torch.arange(len(rows)).split(BATCH):
        images, masks = views.pictures(rows[part], matrix[part], mirrored[part], side, flow[part])
        total += (images * masks).sum(0)
        count += masks.sum(0)
    return (total / count.clamp_min(1e-3)).clamp(-1, 1)
