# SPDX-License-Identifier: Apache-2.0
"""Options of `python -m gangealing_fast.congeal`. Imports nothing heavy, so that --help is quick."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from gangealing_fast.runtime.ranges import Count, Range, SideOrDefault, Threads

Mean = Annotated[float, Range(-1e3, 1e3)]
Deviation = Annotated[float, Range(0, 1e3, above=True)]


@dataclass(frozen=True)
class CongealConfig:
    """Align a set of pictures of one kind of thing jointly: no training, no labels, nothing downloaded.

    Give 3 or more photographs, best 20 to 1 000, each with one thing in it that fills a good part. Kill it when you like: the same
    command goes on after the last finished stage, to the same numbers.
    """

    data: Path
    """The pictures: a folder (with its subfolders), a .tar, a folder of .tar shards, or an MNIST images file. Of any sizes. What is
    transparent does not belong to the picture."""
    out: Path
    """Folder for the set: set.safetensors, aligned pictures, template.png, average.png, warps.jsonl, report.html."""
    method: Literal["features", "entropy"] = "features"
    """features: places that look alike to a frozen network are brought together; for photographs. entropy: the classical method on
    the pixels themselves; for digits, letters, silhouettes, scans of one kind."""
    features: str = "efficientnet"
    """Of --method features: efficientnet, the network that comes with the package; self:FOLDER, what `contrast` wrote there; or a
    file or folder with a network of yours (TorchScript, torch.export, torch.hub). Reading such a file runs its code."""
    features_stride: Annotated[int, Range(0, 256)] = 0
    """Of a network of yours: pixels from one place of its features to the next."""
    features_mean: tuple[Mean, Mean, Mean] = (0.485, 0.456, 0.406)
    """Of a network of yours: what it wants subtracted from red, green and blue in [0, 1]."""
    features_std: tuple[Deviation, Deviation, Deviation] = (0.229, 0.224, 0.225)
    """Of a network of yours: what it wants them divided by then."""
    masks: Path | None = None
    """Folder with masks: a picture of the same name (any ending), white where the thing is. Pictures without a mask count whole."""
    flips: Literal["auto", "yes", "no"] = "auto"
    """Whether pictures may be mirrored. auto: if that clearly makes the set agree better."""
    clusters: str = "auto"
    """How many templates: a number, or auto for as many kinds of pictures as there are."""
    model: Literal["similarity", "affine", "homography"] = "affine"
    """How a picture is brought to the template before the flow bends it."""
    flow: bool = True
    """Bend what the model leaves over."""
    limit: Count | None = None
    """Only the first so many pictures."""
    read: Annotated[int, Range(16, 4096)] = 512
    """Larger pictures are looked at with their longer side at so many pixels. Aligned pictures are made of the originals."""
    side: Annotated[int, Range(32, 1024)] = 256
    """Of the template, in pixels."""
    resolution: SideOrDefault = 0
    """Side of the aligned pictures; 0 gives each the resolution that it has itself, at most 2048."""
    pictures: bool = True
    """Write the aligned pictures; without them the set, template and report remain."""
    seed: Annotated[int, Range(-(2**63), 2**63 - 1)] = 0
    threads: Threads = 0
    """CPU threads; 0 leaves torch's choice."""
