# SPDX-License-Identifier: Apache-2.0
"""Options of the commands that use an aligner. Imports nothing heavy, so that --help is quick."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gangealing_fast.runtime.ranges import Count, Share, SideOrDefault, Threads


@dataclass(frozen=True)
class AlignConfig:
    """Align every picture of a folder, tar or MNIST file."""

    checkpoint: Path
    """Results folder of `train`, or its aligner.safetensors."""
    data: Path
    """The pictures; non-square ones are cropped to their centre."""
    out: Path
    """Folder for the aligned pictures, their average before and after, and warps.jsonl."""
    size: SideOrDefault = 0
    """Side of the pictures as read; 0 takes the size the aligner was trained for."""
    resolution: SideOrDefault = 0
    """Side of the aligned pictures; 0 takes the transformer's own."""
    limit: Count | None = None
    """Only the first so many pictures."""
    batch: Count = 64
    threads: Threads = 0


@dataclass(frozen=True)
class PropagateConfig:
    """Carry an edit of the template to every picture of a folder, tar or MNIST file, at the pictures' own size."""

    checkpoint: Path
    """Results folder of `train` or `classify`, its aligner.safetensors, or the original's checkpoint."""
    data: Path
    """The pictures, of any size and shape."""
    edit: tuple[str, ...]
    """A square picture with transparency, drawn over the template.png that `align` writes (any resolution). With several clusters
    one for each in order; "none" leaves a cluster's pictures as they are."""
    out: Path
    """Folder for the edited pictures and edits.jsonl."""
    opacity: Share = 1.0
    """How strongly the edit covers the picture, in [0, 1], on top of its own transparency."""
    flips: bool = False
    """Without a classifier: align a picture's mirror image where that fits better (needs a flow)."""
    limit: Count | None = None
    """Only the first so many pictures."""
    threads: Threads = 0


@dataclass(frozen=True)
class ConvertConfig:
    """Convert a checkpoint. Nothing in it is executed."""

    source: str
    """The original's .pt, rosinality's StyleGAN2 .pt, NVIDIA's .pkl, a file or folder of this package, or a https address."""
    out: Path
    """A folder (--to safetensors: generator.safetensors, aligner.safetensors, README.md) or a file NAME.pt, NAME.onnx, NAME.pt2."""
    to: Literal["safetensors", "rosinality", "original", "onnx", "pt2"] = "safetensors"
    """onnx, pt2 (torch.export): the aligner as a program that runs without this package, for any number of pictures."""
    half: bool = False
    """Store safetensors in half precision."""
    sha256: str | None = None
    """The file's checksum; required for an address, checked for a file too."""
    overwrite: bool = False
    """Replace an output file that exists."""
