# SPDX-License-Identifier: Apache-2.0
"""Options of the commands that use an aligner. Imports nothing heavy, so that --help is quick."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from gangealing_fast.runtime.config import WarpingOptions, shared_last
from gangealing_fast.runtime.ranges import Count, Natural, Range, Share, SideOrDefault, Threads, Weight


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
    """Align every picture of a folder, tar, zip, LMDB or MNIST file, or of any number of tar shards.

    Pictures of a folder of tars are written as tars, one for each; if it is stopped, the same command goes on. Several processes
    share them: torchrun --nproc-per-node 2 -m gangealing_fast.align ...
    """

    checkpoint: Path
    """Results folder of `train` or `classify`, its aligner.safetensors, or the original's checkpoint."""
    data: Path
    """The pictures, of any size and shape."""
    out: Path
    """Folder for the aligned pictures, their average before and after, and warps.jsonl."""
    size: SideOrDefault = 0
    """Side of the pictures as the aligner sees them, cropped; 0 takes the size that it was trained for."""
    resolution: SideOrDefault = 0
    """Side of the aligned pictures, which are read from the originals; 0 takes the transformer's own."""
    crop: Literal["center", "none"] = "center"
    """Cut out the centred square, or keep pictures whole, at their own size; beyond their edges lies what --padding-mode says."""
    limit: Count | None = None
    """Only the first so many pictures."""
    batch: Count = 64
    """How many pictures the aligner sees at once, at most."""
    retain: Annotated[float, Range(0, 1, above=True)] = 1.0
    """Keep this share of all pictures, those of the highest flow scores. Pictures are then looked at twice."""
    out_of_bounds: Share = 1.0
    """Leave out pictures of which more than this share would lie beyond the edges of the original."""
    effective_resolution: Weight = 0.0
    """Leave out aligned pictures whose side shows fewer pixels of the original."""
    similarity_only: bool = False
    """Align by the similarity alone; flow scores are those of the whole warp."""
    flows: bool = False
    """Write the residual flow of each picture too, [side, side, 2] float32 in .npy."""
    format: Literal["png", "jpg"] = "png"
    """png keeps every pixel; jpg (quality 95) is smaller and quicker to write."""
    shard: Natural | None = None
    """Write tars of so many pictures each; 0 writes single pictures. None: tars if --data is a folder of tars, one for each."""
    engine: Literal["local", "ray"] = "local"
    """ray: tars are made by the processes of a Ray cluster, or of this machine (pip install gangealing_fast[scale])."""
    workers: Natural = 0
    """With --engine ray: how many processes, each with an aligner; 0 for one on each CPU."""
    threads: Threads = 0


@shared_last
@dataclass(frozen=True)
class PropagateConfig(UseOptions):
    """Carry an edit of the template to every picture of a folder, tar or MNIST file, at the pictures' own size."""

    checkpoint: Path
    """Results folder of `train` or `classify`, its aligner.safetensors, or the original's checkpoint."""
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
