# SPDX-License-Identifier: Apache-2.0
"""The order in which training sees its pictures, and the split into training and held-out ones."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from gangealing_fast.runtime.errors import UserError
from gangealing_fast.runtime.randomness import derived_seed


class InfiniteSampler:
    """Indices 0 … n-1 in a fresh order every epoch, for ever; the same for the same (n, seed) on every machine.

    Args:
        n: how many pictures there are, at least 1.
        seed: any integer.
    """

    def __init__(self, n: int, seed: int) -> None:
        if n < 1:
            raise ValueError(f"a sampler needs at least one picture, got n={n}")
        self.n, self.seed = n, seed
        self.epoch, self.position = 0, 0
        self._order = self._shuffle()

    def _shuffle(self) -> torch.Tensor:
        return torch.randperm(self.n, generator=torch.Generator().manual_seed(derived_seed(self.seed, self.epoch)))

    def next(self, count: int) -> torch.Tensor:
        """The next `count` indices, int64 `[count]`; a batch may span the end of an epoch."""
        parts: list[torch.Tensor] = [self._order[:0]]
        while count > 0:
            part = self._order[self.position : self.position + count]
            parts.append(part)
            count -= len(part)
            self.position += len(part)
            if self.position == self.n:
                self.epoch, self.position = self.epoch + 1, 0
                self._order = self._shuffle()
        return torch.cat(parts)

    def state_dict(self) -> dict[str, int]:
        """Plain numbers that `load_state_dict` continues from exactly."""
        return {"n": self.n, "seed": self.seed, "epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue where `state_dict` was taken.

        Raises:
            UserError: the state belongs to another number of pictures or another seed.
        """
        if state["n"] != self.n:
            raise UserError(
                f"the run was started with {state['n']} pictures but there are {self.n} now; "
                "resume with the same pictures, or start a new run"
            )
        if state["seed"] != self.seed:
            raise UserError(f"the run was started with seed {state['seed']}, not {self.seed}; resume with the same seed")
        epoch, position = state["epoch"], state["position"]
        if type(epoch) is not int or type(position) is not int or epoch < 0 or not 0 <= position < self.n:
            raise UserError(f"the run's place in the pictures is nonsense (epoch {epoch!r:.40}, {position!r:.40}); start a new run")
        self.epoch, self.position = epoch, position
        self._order = self._shuffle()


def split_held_out(names: Sequence[str], count: int, *, by: Literal["last", "hash"] = "last") -> tuple[list[int], list[int]]:
    """Split pictures into training and held-out ones.

    Args:
        names: one name per picture.
        count: how many to hold out, in [0, len(names)).
        by: "last" holds out the last ones; "hash" those whose names have the smallest SHA-256, which stays the same
            choice when the order of the pictures changes.

    Returns:
        `(training indices, held-out indices)`, each ascending.

    Raises:
        UserError: nothing would be left for training.
    """
    if not 0 <= count < len(names):
        raise UserError(f"cannot hold out {count} of {len(names)} pictures; hold out fewer or give more pictures")
    order = range(len(names))
    if by == "hash":
        ranked = sorted(order, key=lambda i: (hashlib.sha256(names[i].encode()).digest(), i))
        held = set(ranked[:count])
    else:
        held = set(order[len(names) - count :])
    return [i for i in order if i not in held], sorted(held)


def balanced(classes: Tensor, count: int, seed: int) -> Tensor:
    """Where `count` samples stand whose classes `[N]` (0, 1, ...) occur equally often, or once more for the first of them.

    Raises UserError where there are fewer of a class, or a class would have none.
    """
    order = torch.randperm(len(classes), generator=torch.Generator().manual_seed(derived_seed(seed, "labels")))
    shuffled, kinds, chosen = classes[order], int(classes.max()) + 1, []
    for kind in range(kinds):
        wanted = count // kinds + (kind < count % kinds)
        found = order[shuffled == kind]
        if not 0 < wanted <= len(found):
            raise UserError(f"--labels must give each of {kinds} classes between 1 and {len(found)} digits, got {count} in all")
        chosen.append(found[:wanted])
    return torch.cat(chosen)
