# SPDX-License-Identifier: Apache-2.0
"""Options of the commands that use an aligner. Imports nothing heavy, so that --help is quick."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from gangealing_fast.runtime.config import WarpingOptions, shared_last
from gangealing_fast.runtime.ranges import Count, Natural, Positive, Range, Share, Side, SideOrDefault, Threads, Weight


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
    """Results folder of `train` or `classify`, its aligner.safetensors, or the original's checkpoint."""
    data: Path
    """The pictures, of any size and shape."""
    out: Path
    """Folder for the aligned pictures, their average before and after, and warps.jsonl."""
    size: SideOrDefault = 0
    """Side of the pictures as read and cropped; 0 takes the size the aligner was trained for."""
    resolution: SideOrDefault = 0
    """Side of the aligned pictures; 0 takes the transformer's own."""
    crop: Literal["center", "none"] = "center"
    """Cut out the centred square, or keep pictures whole, at their own size; beyond their edges lies what --padding-mode says."""
    limit: Count | None = None
    """Only the first so many pictures."""
    batch: Count = 64
    threads: Threads = 0


@dataclass(frozen=True, kw_only=True)
class VideoOptions(UseOptions):
    """What there is to choose for a video alone."""

    show: Literal["edit", "mask", "points"] = "edit"
    """Of a video: the edit; where it covers the frame, white on black; or the points of the template that it covers, in colours."""
    smooth: Literal["none", "one-euro", "kalman"] = "none"
    """Of a video: a filter in time for the similarity. one-euro follows fast motions, kalman steady ones."""
    smooth_cutoff: Positive = 1.0
    """In hertz: what changes faster is taken for trembling. Lower is smoother."""
    smooth_beta: Weight = 10.0
    """Of one-euro: how much the cutoff grows with the speed."""
    smooth_flow: Annotated[float, Range(0, 0.99)] = 0.0
    """Of a video: weight of the flow of the frame before; 0 leaves flows as they are."""
    points: Annotated[int, Range(2, 8192)] = 256
    """Of --show points: so many points along each side of the template."""
    point_colours: Literal["edit", "place"] = "edit"
    """Of --show points: the edit's colours, or one for each place of the template."""
    point_radius: Positive = 1.0
    """Of --show points: standard deviation of a point in pixels."""
    correspondences: Literal["none", "npz", "safetensors"] = "none"
    """Of a video: save where points of the template lie in each frame."""
    correspondence_points: Annotated[int, Range(2, 1024)] = 32
    """So many of them along each side of the template."""
    congealed: bool = False
    """Of a video: write the aligned video too, aligned.mp4."""
    congealed_resolution: SideOrDefault = 0
    """Side of the aligned video; 0 takes the template's own."""
    save_frames: bool = False
    """Of a video: write every frame as a PNG too."""
    sound: bool = True
    """Copy the sound of a video."""
    container: Literal["mp4", "mkv", "mov"] = "mp4"
    """Of a video; mkv holds every kind of sound."""
    quality: Annotated[int, Range(0, 51)] = 18
    """Of a video: the rate factor of H.264. 0 is lossless, 51 the smallest file."""
    batch: Count = 8
    """Frames of a video that the network sees at once."""


@shared_last
@dataclass(frozen=True)
class PropagateConfig(VideoOptions):
    """Carry an edit of the template to every picture of a folder, tar or MNIST file, or to every frame of a video."""

    checkpoint: Path
    """Results folder of `train` or `classify`, its aligner.safetensors, or the original's checkpoint."""
    data: Path
    """The pictures, of any size and shape; or a video (.mp4, .mov, .mkv, .webm, .avi and others)."""
    edit: tuple[str, ...]
    """A square picture with transparency, drawn over the template.png that `align` writes (any resolution). With several clusters
    one for each in order; "none" leaves a cluster's pictures as they are. With --cluster one for that cluster."""
    out: Path
    """Folder for the edited pictures, or edited.mp4, and edits.jsonl."""
    opacity: Share = 1.0
    """How strongly the edit covers the picture, in [0, 1], on top of its own transparency."""
    blend: Literal["alpha", "laplacian", "laplacian-light"] = "alpha"
    """By the edit's opacity; in all bands of a Laplacian pyramid, so that the edit takes on the light of its surroundings; or in
    the finest bands alone, which softens the seam."""
    crop: Literal["center", "none"] = "none"
    """Keep pictures whole, or cut out the centred square, at their own size."""
    limit: Count | None = None
    """Only the first so many pictures or frames."""
    threads: Threads = 0


@shared_last
@dataclass(frozen=True)
class VisualizeConfig(UseOptions):
    """Films and sheets that show what an aligner does with pictures."""

    checkpoint: Path
    """Results folder of `train` or `classify`, its aligner.safetensors, or the original's checkpoint."""
    data: Path
    """The pictures, of any size and shape."""
    out: Path
    """Folder for what --show names."""
    show: tuple[Literal["movie", "flow", "average", "clusters"], ...] = ("movie", "flow", "average", "clusters")
    """movie: pictures glide into the template and back. flow: where every pixel is read, as colours. average: of all pictures,
    before and after. clusters: a sheet for each cluster."""
    pictures: Annotated[int, Range(1, 1024)] = 16
    """So many are shown in the movie, as flows, and of each cluster; the average takes all."""
    resolution: SideOrDefault = 0
    """Side of a picture; 0 takes the template's own."""
    size: Side = 256
    """Side of the pictures as read."""
    crop: Literal["center", "border", "zero"] = "center"
    """How pictures become square: the centred square is cut out, edges are repeated, or black is added."""
    film: Literal["mp4", "gif"] = "mp4"
    """mp4 needs the package av (pip install gangealing_fast[video])."""
    seconds: Annotated[float, Range(0.1, 600)] = 4.0
    """Of the movie, both ways."""
    rate: Annotated[int, Range(1, 60)] = 25
    """Frames a second of the movie."""
    limit: Count | None = None
    """Only the first so many pictures."""
    batch: Count = 64
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
