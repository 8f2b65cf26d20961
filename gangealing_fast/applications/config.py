# SPDX-License-Identifier: Apache-2.0
"""Options of the commands that use an aligner. Imports nothing heavy, so that --help is quick."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from gangealing_fast.runtime.config import WarpingOptions, shared_last
from gangealing_fast.runtime.ranges import LARGEST, Count, Natural, Positive, Range, Share, Side, SideOrDefault, Threads, Weight


@dataclass(frozen=True, kw_only=True)
class UseOptions(WarpingOptions):
    """How an aligner is used on pictures, whatever its training was."""

    flips: bool = False
    """Without a classifier: align a picture's mirror image where that fits better (needs a flow)."""
    cluster: Natural | None = None
    """Take all pictures for this cluster, from 0; None for what the classifier says."""
    set_features: str | None = None
    """Of a set that `congeal --features` made with a network of yours: that network, to register other pictures by. Reading it runs
    its code, so a set's file alone never has it read."""
    through: Path | None = None
    """A translator of `translate train`, for pictures of another domain than the aligner's: their translations are aligned, and the
    warps are applied to the pictures themselves."""
    through_styles: Annotated[int, Range(1, 1000)] = 5
    """So many styles of translation vote on each warp; how far they are apart is written as spread, in pixels of the template."""
    through_like: tuple[Path, ...] = ()
    """Pictures like those that the aligner was made for: their styles vote instead of random ones."""
    through_direction: Literal["first-to-second", "second-to-first", "within-first", "within-second"] = "first-to-second"
    """From the domain that the pictures are of to the aligner's; within: the same domain in another style (with --through-like)."""
    refine: bool = False
    """Bring what a trained aligner finds to the pixel: some of the pictures make a template of what it aligns, and every picture is
    registered to that, near the place that the aligner finds."""
    refine_pictures: Annotated[int, Range(3, 10_000)] = 100
    """How many pictures make that template."""


@shared_last
@dataclass(frozen=True)
class AlignConfig(UseOptions):
    """Align every picture of a folder, tar, zip, LMDB or MNIST file, or of any number of tar shards.

    Pictures of a folder of tars are written as tars, one for each; if it is stopped, the same command goes on. Several processes
    share them: torchrun --nproc-per-node 2 -m gangealing_fast.align ...
    """

    checkpoint: Path
    """Results folder of `train` or `classify`, its aligner.safetensors, the original's checkpoint, or a folder of `congeal`."""
    data: Path
    """The pictures, of any size and shape."""
    out: Path
    """Folder for the aligned pictures, their average before and after, and warps.jsonl."""
    size: SideOrDefault = 0
    """Side of the pictures as the aligner sees them, cropped; 0 takes the size that it was trained for."""
    resolution: SideOrDefault = 0
    """Side of the aligned pictures, which are read from the originals; 0 takes the transformer's own."""
    crop: Literal["center", "none"] = "center"
    """Cut out the centred square, or keep pictures whole, at their own size; beyond their edges lies what --padding-mode says.
    Pictures for an aligner of a set stay whole, unless --size is given."""
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
    """Results folder of `train` or `classify`, its aligner.safetensors, the original's checkpoint, or a folder of `congeal`."""
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
    """Results folder of `train` or `classify`, its aligner.safetensors, the original's checkpoint, or a folder of `congeal`."""
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


EVALUATE_EXAMPLES = """
Examples:
  An aligner on any folder or tar of pictures with a file keypoints.npy, .csv or .json (COCO) among them:
    python -m gangealing_fast.evaluate --checkpoint runs/align --data photos --out runs/figures
  SPair-71k, its pairs of the category cat:
    python -m gangealing_fast.evaluate --checkpoint runs/align --data SPair-71k --category cat --out runs/cats
  CUB-200 as ACSM uses it, 10 000 random pairs of the validation pictures both ways:
    python -m gangealing_fast.evaluate --checkpoint runs/align --data CUB_200_2011 --keypoints val_cub_cleaned.mat --out runs/birds
  Another system by the same code: carry the points of runs/pairs/pairs.npz with it, write them as NAME.npz, and
    python -m gangealing_fast.evaluate --data photos --out runs/figures --results NAME.npz
"""


@shared_last
@dataclass(frozen=True)
class EvaluateConfig(UseOptions):
    """Judge by marked points how well points are carried from picture to picture."""

    data: Path
    """Folder of SPair-71k or CUB-200-2011 as downloaded, or any folder or tar of pictures."""
    out: Path
    """Folder for figures.json, report.html, pairs.npz and the carried points."""
    checkpoint: Path | None = None
    """Whatever holds an aligner: a results folder of `train` or `classify`, an aligner.safetensors, the original's checkpoint, or a
    folder of `congeal`. None for the baselines and --results alone."""
    keypoints: Path | None = None
    """File with the key points, .json (COCO), .csv, .npy or .mat (ACSM's); None for keypoints.npy, .csv or .json in --data."""
    split: Literal["train", "val", "test"] = "test"
    """Of SPair-71k and CUB-200-2011, which has no pictures for validation but those of the test."""
    category: tuple[str, ...] = ()
    """One category of SPair-71k or COCO, or classes of CUB-200 by number or name; all if not given."""
    crop: Literal["auto", "none", "object"] = "auto"
    """object: squares about the objects' boxes with 5 % more on each side. auto: that for ACSM's files, else whole pictures."""
    mirror: str | None = None
    """Which point each becomes in a mirror image: faces68, or a JSON file with a list of numbers. Otherwise the format, or "left"
    and "right" in the points' names, say."""
    protocol: Literal["auto", "given", "random", "subsets", "classes", "all"] = "auto"
    """Which pairs: those of the data set (given), --pairs random ones both ways, all ordered pairs in each of --subsets sets or of
    the first --classes classes, or all ordered pairs. auto: given, else all up to 10 000, else random."""
    pairs: Count = 10_000
    subsets: Count = 14
    subset_size: Annotated[int, Range(2, LARGEST)] = 30
    classes: Count = 3
    alpha: tuple[Positive, ...] = (0.05, 0.1, 0.15)
    """A point is correct within alpha times a size. What the report shows once is shown for the first alpha of 0.1 or more."""
    of: Literal["auto", "keypoints", "object", "picture"] = "auto"
    """The size that the report shows: the longer side of the key points' box, of the object's box or of the picture. figures.json
    has all. auto: object for SPair-71k, picture for CUB-200, otherwise keypoints."""
    features: str = "efficientnet"
    """Network of the nearest-neighbour baseline: efficientnet; a results folder of `contrast`; a TorchScript file, a .pt2 file of
    torch.export or FOLDER:ENTRY of torch.hub, which are programs that are run; or none."""
    features_stride: Annotated[int, Range(1, 1024)] = 16
    """Of a network of one's own: pixels of a cell of its map."""
    features_side: Annotated[int, Range(0, 4096)] = 0
    """Of a network of one's own: the side of its pictures if it takes that one alone; 0 if it takes any."""
    features_mean: tuple[Annotated[float, Range(-1000, 1000)], ...] = (0.485, 0.456, 0.406)
    """Of a network of one's own: the mean of red, green and blue in [0, 1] that it expects."""
    features_std: tuple[Annotated[float, Range(0, 1000)], ...] = (0.229, 0.224, 0.225)
    whiten: bool = True
    """Take the mean of the set from the features and whiten them; without it, their plain cosines are compared."""
    results: tuple[Path, ...] = ()
    """Files NAME.npz with points that other systems carried (docs/evaluation.md)."""
    cycles: tuple[Annotated[int, Range(2, 100)], ...] = (2, 3, 4)
    """Numbers of pictures that a point goes through before it should be back where it began."""
    cycle_count: Natural = 100
    """How many cycles of each length; 0 for none."""
    bootstrap: Annotated[int, Range(0, 1_000_000)] = 1000
    """Sets of pictures that are drawn for the intervals; 0 for no intervals."""
    confidence: Share = 0.95
    pictures: Natural = 8
    """Pairs that the report shows."""
    limit: Count | None = None
    """Only the first so many pictures."""
    seed: Annotated[int, Range(0, 2**63 - 1)] = 0
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
