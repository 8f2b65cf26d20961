# SPDX-License-Identifier: Apache-2.0
"""The aligner that the options of a command name, used as they say: the one place that `align` and `propagate` share for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from gangealing_fast.applications.aligner import Aligner
from gangealing_fast.applications.config import UseOptions
from gangealing_fast.applications.through import Through
from gangealing_fast.applications.translating import domains_of, read_examples
from gangealing_fast.runtime.errors import UserError
from gangealing_fast.translation import Translator


def aligner_of(checkpoint: Path, options: UseOptions, *, say: Callable[[str], None] = print) -> Aligner:
    """say: as in `Aligner.load`.

    Raises UserError for a user's mistakes; several clusters without a classifier or a choice among them.
    """
    try:
        aligner = Aligner.load(
            checkpoint,
            flips=options.flips,
            cluster=options.cluster,
            iters=options.iters,
            padding_mode=options.padding_mode,
            features=options.set_features,
            say=say,
        )
    except ValueError as error:
        raise UserError(f"{checkpoint}: {error}") from None
    aligner.check_classifier()
    if options.through is None:
        return aligner
    translator = Translator.load(options.through)
    source, target = domains_of(options.through_direction)
    codes = translator.random_styles(options.through_styles)
    if options.through_like:
        codes = translator.style(read_examples(options.through_like, translator.size, "--through-like"), target)
    return Aligner.by(Through(aligner.finder, translator, codes, source=source, target=target), points=aligner.points)


def centre(images: Tensor) -> Tensor:
    """The largest centred square of pictures `[N, C, H, W]`, at their own size."""
    height, width = images.shape[2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return images[:, :, top : top + side, left : left + side]
