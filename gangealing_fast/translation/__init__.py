# SPDX-License-Identifier: Apache-2.0
"""Multimodal translation between two unpaired collections of pictures (MUNIT, Huang et al. 2018, arXiv 1804.04732)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gangealing_fast.translation.translator import Translator

__all__ = ["Translator"]


def __getattr__(name: str) -> Any:
    # Not at once, as the options of the command lie in this room and import no torch.
    if name == "Translator":
        from gangealing_fast.translation.translator import Translator

        return Translator
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
