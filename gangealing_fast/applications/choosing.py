# SPDX-License-Identifier: Apache-2.0
"""The aligner that the options of a command name, used as they say: the one place that `align` and `propagate` share for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from gangealing_fast.applications.aligner import Aligner
from gangealing_fast.applications.config import UseOptions
from gangealing_fast.runtime.errors import UserError


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
    return aligner


def centre(images: Tensor) -> Tensor:
    """The largest centred square of pictures `[N, C, H, W]`, at their own size."""
    height, width = images.shape[2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return images[:, :, top : top + side, left : left + side]
