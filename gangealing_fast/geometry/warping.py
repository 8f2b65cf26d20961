# SPDX-License-Identifier: Apache-2.0
"""How a transformer is used on a picture: what lies beyond the picture's edge, and how often the similarity corrects itself."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Literal, cast, get_args

PaddingMode = Literal["zeros", "border", "reflection"]
MOST_ITERS = 100
"""More corrections change nothing, and a damaged number must not keep a machine busy for years."""


@dataclass(frozen=True)
class Warping:
    """padding_mode: what is read beyond the edge, as in `ops.mipmap_warp`. iters: how often the similarity runs, each time on its
    own output, 1 to 100.

    Raises ValueError for another padding or another number of iterations.
    """

    padding_mode: PaddingMode = "border"
    iters: int = 1

    def __post_init__(self) -> None:
        if not isinstance(self.padding_mode, str) or self.padding_mode not in get_args(PaddingMode):
            raise ValueError(f"padding_mode must be one of {', '.join(get_args(PaddingMode))}, got {self.padding_mode!r:.40}.")
        if type(self.iters) is not int or not 1 <= self.iters <= MOST_ITERS:
            raise ValueError(f"iters must be a whole number from 1 to {MOST_ITERS}, got {self.iters!r:.40}.")

    @classmethod
    def of(cls, padding_mode: object, iters: object) -> Warping:
        """From the plain values of a file, which are checked."""
        return cls(cast(PaddingMode, padding_mode), cast(int, iters))


DEFAULT = Warping()
"""What is used if nothing is said."""
PUBLISHED = Warping("reflection", 3)
"""What is assumed of the original's checkpoints, which do not say how often the similarity runs: how published models are used."""

Setting = Literal["padding_mode", "iters"]
_WORDS: dict[Setting, str] = {
    "iters": "how often the similarity runs (--iters, iters=)",
    "padding_mode": "what lies beyond the edge of a picture (--padding-mode, padding_mode=)",
}


def settle(
    stated: Warping,
    assumed: Collection[Setting],
    source: object,
    *,
    padding_mode: str | None = None,
    iters: int | None = None,
    say: Callable[[str], None] = print,
) -> Warping:
    """How an aligner is used: as the user chooses, else as its file states, else as is assumed, which is said.

    stated: of the file `source`, with what is assumed in place of the settings `assumed` that the file does not hold. say: called
    with one sentence on what was assumed, if that was. Raises ValueError for a choice that `Warping` refuses.
    """
    found = Warping.of(
        stated.padding_mode if padding_mode is None else padding_mode,
        stated.iters if iters is None else iters,
    )
    for name in assumed:
        if (padding_mode if name == "padding_mode" else iters) is None:
            say(f"notice: {source} does not say {_WORDS[name]}: {getattr(found, name)} is assumed")
    return found
