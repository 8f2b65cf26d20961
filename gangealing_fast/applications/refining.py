# SPDX-License-Identifier: Apache-2.0
"""What `align --refine` does first: a template of some of the pictures, as the aligner aligns them."""

from __future__ import annotations

from torch import Tensor

from gangealing_fast.applications.aligner import Aligner
from gangealing_fast.applications.config import AlignConfig
from gangealing_fast.congealing.newcomers import reduced
from gangealing_fast.data.pictures import PictureStream, to_float
from gangealing_fast.runtime.errors import UserError


def refined_by(aligner: Aligner, config: AlignConfig) -> Aligner:
    """The aligner refined on `config.refine_pictures` of the pictures, evenly spread. Raises UserError if there are too few."""
    if aligner.names:
        raise UserError(f"{config.checkpoint} is a set, which registers to the pixel already; leave out --refine")
    examples = _examples(aligner, config)
    print(f"refining: a template of {len(examples)} pictures")
    return aligner.refine(examples)


def _examples(aligner: Aligner, config: AlignConfig) -> list[Tensor]:
    size = None if config.crop == "none" else config.size or aligner.reads
    pictures = PictureStream(config.data, size=size, limit=config.limit)
    every = max(1, len(pictures) // config.refine_pictures)
    examples: list[Tensor] = []
    for number, (_, batch) in enumerate(pictures):
        if len(examples) < config.refine_pictures and number % every == 0 and min(batch.shape[2:]) >= 2:
            examples.append(reduced(to_float(batch)[0])[0])
    return examples
