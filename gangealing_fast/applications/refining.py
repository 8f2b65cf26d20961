# SPDX-License-Identifier: Apache-2.0
"""What --refine does first: a template of some of the pictures, as the aligner aligns them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

from torch import Tensor

from gangealing_fast.applications.aligner import Aligner
from gangealing_fast.applications.config import UseOptions
from gangealing_fast.congealing.newcomers import reduced
from gangealing_fast.data.pictures import PictureStream, to_float
from gangealing_fast.runtime.errors import UserError


def refined_by(aligner: Aligner, options: UseOptions, pictures: Iterable[Tensor], total: int) -> Aligner:
    """The aligner refined on `options.refine_pictures` of the pictures `[3, H, W]` in [-1, 1], evenly spread.

    total: how many pictures there are; 0 if that is unknown: the first ones are taken then. Raises UserError if there are too few,
    or the aligner is one of a set.
    """
    if aligner.names:
        raise UserError("--checkpoint is a set, which registers to the pixel already; leave out --refine")
    every = max(1, total // options.refine_pictures)
    usable = (picture for picture in itertools.islice(pictures, 0, None, every) if min(picture.shape[1:]) >= 2)
    examples = [reduced(picture)[0] for picture in itertools.islice(usable, options.refine_pictures)]
    print(f"refining: a template of {len(examples)} pictures")
    return aligner.refine(examples)


def streamed(pictures: PictureStream) -> Iterator[Tensor]:
    """The pictures of a stream one by one, `[3, H, W]` in [-1, 1]."""
    for _, batch in pictures:
        yield from to_float(batch)
