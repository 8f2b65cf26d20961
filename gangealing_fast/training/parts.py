# SPDX-License-Identifier: Apache-2.0
"""Work in the loop whose state is that of its named parts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from gangealing_fast.training.optim import Stateful, restore


class InParts(ABC):
    """A `Stateful` of others: each part is saved and restored under its name."""

    @abstractmethod
    def named_parts(self) -> Mapping[str, Stateful]:
        """What a checkpoint holds, by name."""

    def state_dict(self) -> dict[str, Any]:
        return {name: part.state_dict() for name, part in self.named_parts().items()}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        for name, part in self.named_parts().items():
            restore(part, state[name])
