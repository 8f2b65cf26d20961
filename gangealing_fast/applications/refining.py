# SPDX-License-Identifier: Apache-2.0
"""What --refine does first: a template of some of the pictures, as the aligner aligns them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

from torch import Tensor

from gangealing_fast.applications.aligner import Aligner
from gangealing_fast.applications.config import AlignConfig, EvaluateConfig, PropagateConfig, VisualizeConfig
from gangealing_fast.congealing.newcomers import reduced
from gangealing_fast.data.pictures import PictureStream, to_float
from gangealing_fast.runtime.errors import UserError

Config = AlignConfig | EvaluateConfig | PropagateConfig | VisualizeConfig


def refined_by(aligner: Aligner, config: Config, pictures: Iterable[Tensor]) -> Aligner:
    """The aligner refined on the first `config.refine_pictures` of the pictures, uint8 `[3, H, W]`.

    Raises UserError if there are too few, or the aligner is one of a set.
    """
    if aligner.names:
        raise UserError(f"{config.checkpoint} is a set, which registers to the pixel already; leave out --refine")
    usable = (picture for picture in pictures if min(picture.shape[1:]) >= 2)
    examples = [reduced(to_float(picture[None])[0])[0] for picture in itertools.islice(usable, config.refine_pictures)]
    print(f"refining: a template of {len(examples)} pictures")
    return aligner.refine(examples)


def spacing(config: Config, total: int) -> int:
    """Every so-manieth of `total` pictures makes the template; each if their number is unknown, 0."""
    return max(1, total // config.refine_pictures)


def spread(config: Config, pictures: PictureStream) -> Iterator[Tensor]:
    """Pictures of a stream that gives them one by one, uint8 `[3, H, W]`, evenly spread."""
    for _, batch in itertools.islice(pictures, 0, None, spacing(config, len(pictures))):
        yield batch[0]
