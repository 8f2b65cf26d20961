# SPDX-License-Identifier: Apache-2.0
"""Options of `python -m gangealing_fast.translate`. Imports nothing heavy, so that --help is quick."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from gangealing_fast.runtime.config import ProcessOptions, shared_last
from gangealing_fast.runtime.ranges import (
    LARGEST,
    Channels,
    Count,
    LearningRate,
    Natural,
    Range,
    Share,
    Side,
    SideOrDefault,
    Threads,
    Weight,
)

Made = Literal["none", "edges", "edges-digits"]
Direction = Literal["first-to-second", "second-to-first", "within-first", "within-second"]


@shared_last
@dataclass(frozen=True)
class TranslateTrainConfig(ProcessOptions):
    """Learn to translate between two collections of pictures that are not paired. The same command resumes a killed run."""

    out: Path
    """Results folder: translator.safetensors, checkpoint.pt, log.jsonl, pictures, figures.json, report.html."""
    first: Path | None = None
    """Pictures of the first domain: a folder, tar or zip."""
    second: Path | None = None
    """Pictures of the second domain. With --made edges both domains are made from these. With --made edges-digits the folder with
    MNIST's original files; without it the digits of the package."""
    made: Made = "none"
    """edges: the first domain are the edges of one half of --second, the second domain is the other half. edges-digits: edges of
    digits, and other digits in seven colours."""
    size: Side = 64
    """Side of the pictures in training; a translator takes any size that its stride divides."""
    mirror: bool = False
    """Show every picture mirrored half of the time."""
    held_out: Natural = 0
    """Pictures of each domain, the last ones, that are not learned from: figures are computed on them. 0: a tenth, at most 500."""
    steps: Count = 100_000
    batch: Annotated[int, Range(1, LARGEST)] = 4
    """Pictures of each domain in a step."""
    width: Channels = 64
    """Channels at the pictures' full size; doubled by each halving."""
    halvings: Annotated[int, Range(1, 6)] = 2
    """The content is smaller than the picture by 2 to this power."""
    blocks: Annotated[int, Range(1, 64)] = 4
    """Residual blocks of encoder and decoder each."""
    style: Channels = 8
    """Numbers of a style code."""
    hidden: Channels = 256
    """Units of the layers between a style code and the scales and shifts that it gives."""
    style_halvings: Annotated[int, Range(1, 6)] = 4
    """Of the style encoder, before it takes the mean over the picture."""
    outer_kernel: Literal[3, 5, 7] = 7
    """Side of the convolutions at the pictures' full size; small pictures need less."""
    critic_width: Channels = 64
    critic_layers: Annotated[int, Range(1, 8)] = 4
    critic_scales: Annotated[int, Range(1, 5)] = 3
    """Sizes at which critics see each picture."""
    objective: str = "lsgan-01"
    """What translations and critics play for, by its name in docs/objectives.md; one whose critic returns a number."""
    image_weight: Weight = 10.0
    content_weight: Weight = 1.0
    style_weight: Weight = 1.0
    adversarial_weight: Weight = 1.0
    cycle_weight: Weight = 0.0
    """Of the style-augmented cycle: there and back with the picture's own style."""
    perceptual_weight: Weight = 0.0
    """Of the domain-invariant perceptual distance between a picture and its translation; for pictures of 64 pixels or more."""
    learning_rate: LearningRate = 1e-4
    """Of encoders and decoders; falls to 0 over the second half of the run."""
    critic_learning_rate: LearningRate = 1e-4
    ema: Share = 0.999
    """Share that one step keeps of the averaged weights, which are those that are examined and written."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of convolutions. auto: bfloat16 on a GPU that computes in it, float32 on a CPU."""
    classifier: Path | None = None
    """A .pt2 file of torch.export, or a TorchScript file, for the conditional inception score: logits [N, K] of pictures of the
    second domain, [N, 3, H, W] in [-1, 1]. It is a program that is run."""
    tick: Count = 200
    """A line of the log every so many steps."""
    snapshot: Count = 2000
    """A checkpoint, figures and pictures every so many steps."""


@shared_last
@dataclass(frozen=True)
class TranslateApplyConfig:
    """Translate pictures with a translator that `translate train` made."""

    translator: Path
    """Results folder of `translate train`, or its translator.safetensors."""
    data: Path
    """The pictures: a folder, tar or zip."""
    out: Path
    """Folder for the translations, styles.json and sheet.png."""
    direction: Direction = "first-to-second"
    """within-second: pictures of the second domain with another style of their own domain; likewise within-first."""
    styles: Natural = 4
    """So many random styles for each picture, style k from the seed --seed + k."""
    like: tuple[Path, ...] = ()
    """Pictures of the domain translated into, whose styles are taken instead of random ones."""
    path: Natural = 0
    """Instead of the styles themselves so many steps along the way from the first style to the last."""
    size: SideOrDefault = 0
    """Side of the pictures as read, cropped to squares; 0: that of the training."""
    sheet: Annotated[int, Range(0, 1024)] = 16
    """So many pictures on the contact sheet, at most."""
    limit: Count | None = None
    """Only the first so many pictures."""
    batch: Count = 32
    seed: Annotated[int, Range(0, 2**63 - 1)] = 0
    threads: Threads = 0


@shared_last
@dataclass(frozen=True)
class TranslateExportConfig:
    """Write a translator as a program that runs without this package, for any number of pictures."""

    translator: Path
    """Results folder of `translate train`, or its translator.safetensors."""
    out: Path
    """A file NAME.onnx or NAME.pt2 (torch.export)."""
    direction: Direction = "first-to-second"
    size: SideOrDefault = 0
    """Side of its pictures; 0: that of the training."""
    overwrite: bool = False
    """Replace a file that exists."""


PRESETS: dict[str, TranslateTrainConfig] = {
    "edges-digits": TranslateTrainConfig(
        out=Path("runs/edges-digits"),
        made="edges-digits",
        size=32,
        steps=6000,
        tick=100,
        snapshot=1000,
        batch=8,
        width=16,
        blocks=2,
        style=2,
        hidden=64,
        style_halvings=2,
        outer_kernel=3,
        critic_width=16,
        critic_layers=3,
        learning_rate=1e-3,
        critic_learning_rate=5e-4,
        held_out=500,
    ),
    "folders": TranslateTrainConfig(first=Path("first"), second=Path("second"), out=Path("runs/translate"), mirror=True),
    "edges-cats": TranslateTrainConfig(
        out=Path("runs/edges-cats"),
        second=Path("../shared/data/cats64.tar"),
        made="edges",
        size=64,
        mirror=True,
        steps=12_000,
        batch=4,
        width=24,
        blocks=3,
        hidden=128,
        critic_width=24,
        learning_rate=4e-4,
        critic_learning_rate=4e-4,
        cycle_weight=1.0,
    ),
}

ACTIONS: dict[str, type[TranslateTrainConfig] | type[TranslateApplyConfig] | type[TranslateExportConfig]] = {
    "train": TranslateTrainConfig,
    "apply": TranslateApplyConfig,
    "export": TranslateExportConfig,
}
