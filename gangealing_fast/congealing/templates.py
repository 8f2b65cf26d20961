# SPDX-License-Identifier: Apache-2.0
"""What new pictures are registered to: for each cluster a template, coarse to fine, its mean flow and its average picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from gangealing_fast.congealing.features import Bases
from gangealing_fast.congealing.template import Level
from gangealing_fast.congealing.transforms import Model
from gangealing_fast.congealing.window import SMALLEST, Window

_MODELS = get_args(Model)
LEVELS = ("coarse", "near", "fine")


@dataclass(frozen=True)
class Template:
    """One cluster's template.

    coarse: its features in the frame. near, fine: in the window, as finely and more finely.
    offset `[g, g, 2]`: the mean flow of its members, which is taken from all flows, in a frame from -1 to 1.
    usual, support: the medians of what members find of coarse and fine, in shares of their saliency.
    picture `[3, side, side]` in [-1, 1].
    """

    coarse: Level
    near: Level
    fine: Level
    window: Window
    offset: Tensor
    usual: float
    support: float
    picture: Tensor


@dataclass(frozen=True)
class Templates:
    """The templates of a set's clusters.

    network: the name of the features they are made of. model: the transform that is fitted. side: pixels of the template.
    flips: whether pictures may be mirrored.
    """

    clusters: tuple[Template, ...]
    network: str
    model: Model
    side: int
    flips: bool

    def __len__(self) -> int:
        return len(self.clusters)

    @property
    def picture(self) -> Tensor:
        """`[K, 3, side, side]` in [-1, 1]: the average of each cluster."""
        return torch.stack([template.picture for template in self.clusters])

    def state(self) -> dict[str, Tensor]:
        """All of it as tensors, for a file; `from_state` reads them."""
        state = {
            "network": torch.tensor(list(self.network.encode()), dtype=torch.uint8),
            "numbers": torch.tensor([len(self), _MODELS.index(self.model), self.side, int(self.flips)]),
        }
        for number, template in enumerate(self.clusters):
            own = {"offset": template.offset, "picture": template.picture, "window": torch.tensor(template.window)}
            own |= {"usual": torch.tensor(template.usual), "support": torch.tensor(template.support)}
            for name in LEVELS:
                own |= level_state(getattr(template, name), name)
            state |= {f"{number}.{name}": value for name, value in own.items()}
        return {name: value.contiguous() for name, value in state.items()}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> Templates:
        """The templates in tensors of `state`. Raises ValueError if they are incomplete, or not finite."""
        try:
            count, model, side, flips = state["numbers"].tolist()
            if not 1 <= count <= 10_000 or not all(bool(value.isfinite().all()) for value in state.values()):
                raise ValueError("its numbers are not finite, or no number of clusters")
            clusters = []
            for number in range(count):
                own = {name.partition(".")[2]: value for name, value in state.items() if name.startswith(f"{number}.")}
                clusters.append(template_from_state(own))
            network = bytes(state["network"].tolist()).decode()
            return cls(tuple(clusters), network, _MODELS[model], side, bool(flips))
        except (KeyError, IndexError, RuntimeError, UnicodeDecodeError, TypeError) as error:
            raise ValueError(f"the template is damaged: {error}") from None


def template_from_state(state: Mapping[str, Tensor]) -> Template:
    """One cluster's template. Raises ValueError if it is damaged, KeyError if a part is missing."""
    window = Window(*state["window"].tolist())
    if not SMALLEST <= window.half <= 1:
        raise ValueError("the template is damaged: its window is none")
    coarse, near, fine = (level_from_state(state, name) for name in LEVELS)
    usual, support = float(state["usual"]), float(state["support"])
    return Template(coarse, near, fine, window, state["offset"], usual, support, state["picture"])


def level_state(level: Level, name: str) -> dict[str, Tensor]:
    """A level as tensors, for a file."""
    state = {f"{name}.mean": level.mean, f"{name}.known": level.known}
    for tap, (mean, projection) in enumerate(zip(level.bases.means, level.bases.projections, strict=True)):
        state |= {f"{name}.{tap}.shift": mean, f"{name}.{tap}.basis": projection}
    return state


def level_from_state(state: Mapping[str, Tensor], name: str) -> Level:
    """The level in tensors of `level_state`. Raises ValueError if it is damaged, KeyError if a part is missing."""
    mean, known = state[f"{name}.mean"], state[f"{name}.known"]
    taps = 0
    while f"{name}.{taps}.shift" in state:
        taps += 1
    bases = Bases([state[f"{name}.{tap}.shift"] for tap in range(taps)], [state[f"{name}.{tap}.basis"] for tap in range(taps)])
    width = sum(projection.shape[1] for projection in bases.projections)
    if mean.ndim != 2 or known.shape != mean.shape[:1] or round(len(mean) ** 0.5) ** 2 != len(mean) or mean.shape[1] != width:
        raise ValueError("the template is damaged: its parts do not fit together")
    return Level(mean, known.bool(), bases)
