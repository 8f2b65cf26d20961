# SPDX-License-Identifier: Apache-2.0
"""From a picture to the latent w of a given generator: by an encoder, by optimisation, or by both."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gangealing_fast.inversion.inverter import Inverter

__all__ = ["Inverter"]


def __getattr__(name: str) -> Any:
    # Not at once, as the options of the command lie in this room and import no torch.
    if name == "Inverter":
        from gangealing_fast.inversion.inverter import Inverter

        return Inverter
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
