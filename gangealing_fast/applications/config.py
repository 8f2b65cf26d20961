# SPDX-License-Identifier: Apache-2.0
"""Options of the commands that use an aligner. Imports nothing heavy, so that --help is quick."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from gangealing_fast.runtime.config import WarpingOptions, shared_last
from gangealing_fast.runtime.ranges import Count, Natural, Range, Share, SideOrDefault, Threads


@dataclass(frozen=True, kw_only=True)
class UseOptions(WarpingOptions):
    """How an aligner is used on pictures, whatever its training was."""

    flips: bool = False
    """Without a classifier: align a picture's mirror image where that fits better (needs a flow)."""
    cluster: Natural | None = None
    """Take all pictures for this cluster, from 0; None for what the classifier says."""


@shared_last
@dataclass(frozen=True)
class AlignConfig(UseOptions):
    """Align every picture of a folder, tar or MNIST file."""

    checkpoint: Path
    """Results folder of `train` or `classify`, its aligner.safetensors, the original's checkpoint, or a folder of `congeal`."""
    data: Path
    """The pictures, of any size and shape."""
    out: Path
    """Folder for the aligned pictures, their average before and after, and warps.jsonl."""
    size: SideOrDefault = 0
    """Side of the pictures as read and cropped; 0 takes the size the aligner was trained for."""
    resolution: SideOrDefault = 0
    """Side of the aligned pictures; 0 takes the transformer's own."""
    crop: Literal["center", "none"] = "center"
    """Cut out the centred square, or keep pictures whole, at their own size; beyond their edges lies what --padding-mode says.
    Pictures for an aligner of a set stay whole, unless --size is given."""
    refine: bool = False
    """Bring what a trained aligner finds to the pixel: some of the pictures make a template of what it aligns, and every picture is
    registered to that, near the place that the aligner finds."""
    refine_pictures: Annotated[int, Range(3, 10_000)] = 100
    """How many pictures make that template."""
    limit: Count | None = None
    """Only the first so many pictures."""
    batch: Count = 64
    threads: Threads = 0


@shared_last
@dataclass(frozen=True)
class PropagateConfig(UseOptions):
    """Carry an edit of the template to every picture of a folder, tar or MNIST file, at the pictures' own size."""

    checkpoint: Path
    """Results folder of `train` or `classify`, its aligner.safetensors, the original's checkpoint, or a folder of `congeal`."""
    data: Path
    """The pictures, of any size and shape."""
    edit: tuple[str, ...]
    """A square picture with transparency, drawn over the template.png that `align` writes (any resolution). With several clusters
    one for each in order; "none" leaves a cluster's pictures as they are. With --cluster one for that cluster."""
    out: Path
    """Folder for the edited pictures and edits.jsonl."""
    opacity: Share = 1.0
    """How strongly the edit covers the picture, in [0, 1], on top of its own transparency."""
    crop: Literal["center", "none"] = "none"
    """Keep pictures whole, or cut out the centred square, at their own size."""
    limit: Count | None = None
    """Only the first so many pictures."""
    threads: Threads = 0


@shared_last
@dataclass(frozen=True)
class ConvertConfig(WarpingOptions):
    """Convert a checkpoint. Nothing in it is executed."""

    source: str
    """The original's .pt, rosinality's StyleGAN2 .pt, NVIDIA's .pkl, a file or folder of this package, or a https address."""
    out: Path
    """A folder (--to safetensors: generator.safetensors, aligner.safetensors, README.md) or a file NAME.pt, NAME.onnx, NAME.pt2."""
    to: Literal["safetensors", "rosinality", "original", "onnx", "pt2"] = "safetensors"
    """onnx, pt2 (torch.export): the aligner as a program that runs without this package, for any number of pictures."""
    half: bool = False
    """Store safetensors in half precision."""
    cluster: Natural | None = None
    """Of onnx and pt2: take all pictures for this cluster, from 0; None for what the classifier says."""
    sha256: str | None = None
    """The file's checksum; required for an address, checked for a file too."""
    overwrite: bool = False
    """Replace an output file that exists."""
