# SPDX-License-Identifier: Apache-2.0
"""How a transformer is used on a picture: what lies beyond the picture's edge, and how often the similarity corrects itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast, get_args

PaddingMode = Literal["zeros", "border", "reflection"]


@dataclass(frozen=True)
class Warping:
    """padding_mode: what is read beyond the edge, as in `ops.mipmap_warp`. iters: how often the similarity runs, each time on its
    own output.

    Raises ValueError for another padding or fewer than one iteration.
    """

    padding_mode: PaddingMode = "border"
    iters: int = 1

    def __post_init__(self) -> None:
        if self.padding_mode not in get_args(PaddingMode):
            raise ValueError(f"padding_mode must be one of {', '.join(get_args(PaddingMode))}, got {self.padding_mode!r}.")
        if self.iters < 1:
            raise ValueError(f"iters must be 1 or more, got {self.iters}.")

    @classmethod
    def of(cls, padding_mode: str, iters: int) -> Warping:
        """From the plain values of a file, which are checked."""
        return cls(cast(PaddingMode, padding_mode), iters)


DEFAULT = Warping()
"""What is used if nothing is said."""
