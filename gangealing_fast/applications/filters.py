# SPDX-License-Identifier: Apache-2.0
"""Which aligned pictures are kept: by their flow scores among all others, by what lies beyond the edges, by their resolution."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from gangealing_fast.applications.aligner import Aligner
from gangealing_fast.applications.config import AlignConfig
from gangealing_fast.runtime.errors import UserError


class Filters(NamedTuple):
    """What a picture has to be to be kept.

    retain: the share of all pictures that is kept, those of the highest flow scores. out_of_bounds: the largest share of an aligned
    picture that may lie beyond the edges. effective_resolution: the fewest pixels of the original that its side may show.
    """

    retain: float
    out_of_bounds: float
    effective_resolution: float

    @classmethod
    def of(cls, config: AlignConfig, aligner: Aligner) -> Filters:
        """Raises UserError for choices that the aligner does not allow."""
        needs_network = aligner.reads is not None and (config.retain < 1 or config.similarity_only)
        transformer = aligner.transformer if needs_network else None
        if transformer is not None and config.retain < 1 and transformer.flow is None:
            raise UserError("--retain goes by the flow scores, and this aligner has no flow; leave it out")
        if transformer is not None and config.similarity_only and transformer.similarity is None:
            raise UserError("--similarity-only: this aligner has no similarity; leave it out")
        return cls(config.retain, config.out_of_bounds, config.effective_resolution)

    def reason(self, line: dict[str, Any]) -> str | None:
        """Why an aligned picture is left out, by its line of warps.jsonl; None if it is kept."""
        if line["out_of_bounds"] > self.out_of_bounds:
            return f"{line['out_of_bounds']:.3f} of it lies beyond the edges"
        resolution = line["effective_resolution"]
        if resolution is not None and resolution < self.effective_resolution:
            return f"it shows {resolution:.0f} pixels of the original a side"
        return None


LOW_SCORE = "its flow score is among the lowest"


def best(scores: Iterable[Sequence[tuple[int, float]]], share: float) -> list[frozenset[int]]:
    """Of shards, each with (number, flow score) of its pictures, the numbers in each that are kept: the best `share` of all.

    At least one is kept. Of equal scores the earlier ones are.
    """
    listed = list(scores)
    places = [(-score, shard, number) for shard, part in enumerate(listed) for number, score in part if not math.isnan(score)]
    places.sort()
    kept: list[set[int]] = [set() for _ in listed]
    for _, shard, number in places[: max(1, round(share * sum(map(len, listed))))]:
        kept[shard].add(number)
    return [frozenset(numbers) for numbers in kept]
