# SPDX-License-Identifier: Apache-2.0
"""Options of `python -m gangealing_fast.contrast`. Imports nothing heavy, so that --help is quick."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from gangealing_fast.runtime.config import ProcessOptions, shared_last
from gangealing_fast.runtime.ranges import LARGEST, Channels, Count, LearningRate, Positive, Range, Share


@shared_last
@dataclass(frozen=True)
class ContrastConfig(ProcessOptions):
    """Learn a perceptual distance from your own pictures and a generator's samples. The same command resumes a killed run."""

    out: Path
    """Results folder: perceptual.safetensors, checkpoint.pt, log.jsonl."""
    data: Path | None = None
    """Pictures: a folder or a .tar."""
    generator: Path | None = None
    """A generator; where --data is given too, half of each batch are samples."""
    truncation: Share = 1.0
    """How far samples' latents keep from their mean, in [0, 1]: below 1 they are more alike and look better."""
    size: Annotated[int, Range(16, 2**15)] = 64
    """Side of the pictures, 16 or more."""
    steps: Count = 1500
    batch: Annotated[int, Range(4, LARGEST)] = 64
    """Pictures per step, each seen in two views."""
    widths: tuple[Channels, ...] = (32, 64, 96, 128, 128)
    """Channels of the five slices."""
    temperature: Positive = 0.2
    mirror: bool = True
    """Whether a picture and its mirror image count as the same."""
    learning_rate: LearningRate = 1e-3
    snapshot: Count = 250
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
