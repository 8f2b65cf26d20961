# SPDX-License-Identifier: Apache-2.0
"""Adversarial autoencoders (Makhzani et al., arXiv 1511.05644): codes of pictures that are distributed as one likes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gangealing_fast.autoencoders.autoencoder import AdversarialAutoencoder

__all__ = ["AdversarialAutoencoder"]


def __getattr__(name: str) -> Any:
    # Not at once, as the options of the command lie in this room and import no torch.
    if name == "AdversarialAutoencoder":
        from gangealing_fast.autoencoders.autoencoder import AdversarialAutoencoder

        return AdversarialAutoencoder
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
