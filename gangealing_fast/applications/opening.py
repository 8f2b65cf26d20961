# SPDX-License-Identifier: Apache-2.0
"""What finds how pictures lie on a template, from the file or folder that holds it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from gangealing_fast.applications.looks import Finder
from gangealing_fast.applications.members import Members
from gangealing_fast.applications.trained import Trained
from gangealing_fast.checkpoints.reading import Parts, read
from gangealing_fast.congealing import FeatureNetwork
from gangealing_fast.congealing.folder import is_set, load_set
from gangealing_fast.geometry.warping import PaddingMode
from gangealing_fast.runtime.errors import UserError


def finder_of(
    path: Path,
    *,
    flips: bool = False,
    cluster: int | None = None,
    iters: int | None = None,
    padding_mode: PaddingMode | None = None,
    features: FeatureNetwork | str | Path | None = None,
    say: Callable[[str], None] = print,
) -> Finder:
    """Arguments and errors as `Aligner.load`."""
    if not is_set(path):
        if features is not None:
            raise UserError(f"{path} is no set, so it takes no features (--set-features): leave them out")
        parts = read(path).settle(path, padding_mode=padding_mode, iters=iters, say=say)
        return trained_of(parts, path, flips=flips, cluster=cluster)
    if flips or cluster is not None or iters is not None:
        raise ValueError(
            "a set finds mirrors and clusters by itself: leave out flips (--flips), cluster (--cluster), iters (--iters)"
        )
    return Members(load_set(path), path, padding_mode or "border", features)


def trained_of(parts: Parts, path: Path, *, flips: bool = False, cluster: int | None = None) -> Trained:
    """Of what was read from `path`. Raises UserError if there is no aligner in it, ValueError as `Aligner`."""
    if parts.transformer is None:
        raise UserError(f"{path} holds no aligner; give a results folder of the train command or the original's checkpoint")
    return Trained(parts.transformer, parts.warping, parts.classifier, flips=flips, cluster=cluster)
