# SPDX-License-Identifier: Apache-2.0
"""Options of `python -m gangealing_fast.pretrain` and its presets. Imports nothing heavy, so that --help is quick."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from gangealing_fast.runtime.config import ProcessOptions, shared_last
from gangealing_fast.runtime.ranges import LARGEST, Channels, Count, Digit, LearningRate, Natural, Positive, Range, Share, Weight

ObjectiveName = Literal[
    "minimax",
    "nonsaturating",
    "hinge",
    "lsgan",
    "lsgan-01",
    "wgan",
    "wgan-gp",
    "dragan",
    "ebgan",
    "began",
    "catgan",
    "semi-supervised",
    "acgan",
    "infogan",
]


@shared_last
@dataclass(frozen=True)
class PretrainConfig(ProcessOptions):
    """Train a generator on your pictures. Kill it whenever you like: the same command resumes to the same numbers."""

    data: Path
    """A folder of pictures, a .tar of pictures, or (with --digit) the folder of MNIST's IDX files."""
    out: Path
    """Results folder: checkpoint.pt, generator.safetensors, samples-*.png, log.jsonl."""
    digit: tuple[Digit, ...] = ()
    """Train on these digits of MNIST."""
    warp: bool = True
    """Show digits under random similarity warps (rotation, scale and shift); --no-warp: upright as they are."""
    start_from: Path | None = None
    """Begin with this exported generator, or with the generator and critic of this run's folder; its size may be half of --size.
    With --architecture dcgan: with the convolutions of a decoder that `autoencode --architecture convolutional` trained."""
    held_out: Natural = 0
    """Never show so many of the last pictures of --data: those that `train` is judged by (its --held-out)."""
    size: Annotated[int, Range(8, 2**15)] = 64
    """Side of the pictures, a power of two of at least 8; others are cropped to a square and resized."""
    kimg: Positive = 1000.0
    """Length: thousands of real pictures shown to the critic."""
    batch: Annotated[int, Range(2, LARGEST)] = 32
    """Pictures per step."""
    latent_dim: Channels = 256
    mapping_layers: Annotated[int, Range(0, 100)] = 4
    channel_base: Annotated[int, Range(1, 2**24)] = 4096
    """A resolution r has min(max_channels, channel_base / r) channels."""
    max_channels: Channels = 256
    architecture: Literal["stylegan2", "dcgan"] = "stylegan2"
    """dcgan: plain convolutional networks, to study objectives with; the aligner needs the styles of stylegan2."""
    discriminator: Literal["stylegan2", "projected"] = "stylegan2"
    """stylegan2: a critic from scratch, of the kind that --architecture and --objective ask for. projected: a critic on frozen
    EfficientNet features (experimental: docs/results.md)."""
    objective: ObjectiveName = "nonsaturating"
    """What the two networks play for: docs/objectives.md."""
    objective_options: tuple[str, ...] = ()
    """Constants of the objective as NAME=NUMBER, for example weight=0.1."""
    critic_steps: Natural = 0
    """Updates of the critic for one of the generator; 0: as the objective has it."""
    conditional: bool = False
    """Give both networks the class of each picture (with --digit and --architecture dcgan)."""
    labels: Natural = 0
    """Of so many training digits the critic is told the class, as many of each; the others are shown without (catgan,
    semi-supervised)."""
    labelled_share: Annotated[float, Range(0, 1, above=True)] = 0.5
    """With --labels: the share of each batch that is drawn from the labelled digits."""
    critic_norm: Literal["auto", "batch", "layer", "none"] = "auto"
    """Normalisation in the critic of dcgan; auto: batch, layer where gradients at single samples are penalised, none in an
    autoencoder."""
    critic_noise: Weight = 0.0
    """Deviation of the Gaussian noise on every picture that the critic sees; keeps it from being sure too early."""
    generator_learning_rate: LearningRate | None = None
    """None: 0.002 for stylegan2, the objective's own for dcgan."""
    critic_learning_rate: LearningRate | None = None
    r1: Weight | None = None
    """Weight gamma of the R1 penalty, 0 for none. None: 1 for stylegan2 where the objective does not hold its critic by itself."""
    r1_interval: Count = 16
    path_length: Weight = 0.0
    """Weight of StyleGAN2's path-length regularisation (2 there), every fourth step; 0 for none."""
    style_mixing: Share = 0.9
    truncation: Share = 1.0
    """Of the samples that are shown, in [0, 1]: below 1 their latents keep nearer to the mean and they look better."""
    augment: Literal["adaptive", "fixed", "none"] = "adaptive"
    """adaptive: probability steered by the critic's overconfidence. fixed: always --augment-p."""
    augment_p: Share = 0.6
    augment_target: Annotated[float, Range(-1, 1)] = 0.6
    mirror: bool = True
    """Also show mirrored pictures (never for digits)."""
    ema_kimg: Positive = 10.0
    """Half-life of the running average of the weights, in thousands of pictures."""
    snapshot_kimg: Positive = 10.0
    """Every so many thousand pictures: checkpoint, sample grid, score."""
    score_pictures: Natural = 2000
    """How many real and generated pictures the score compares; 0 for no score."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"


PRESETS: dict[str, PretrainConfig] = {
    "cats": PretrainConfig(
        data=Path("cats"),
        out=Path("runs/pretrain-cats"),
        held_out=500,
        size=64,
        kimg=4000,
        batch=16,
        mapping_layers=2,
        channel_base=3072,
        r1=0.05,
        augment="adaptive",
        snapshot_kimg=16.0,
        score_pictures=1000,
    ),
    "digits": PretrainConfig(
        data=Path("mnist"),
        out=Path("runs/pretrain-digits"),
        digit=(3,),
        size=32,
        kimg=96,
        batch=16,
        latent_dim=128,
        mapping_layers=4,
        channel_base=2048,
        max_channels=128,
        r1=2.0,
        augment="none",
        mirror=False,
        ema_kimg=3.0,
        snapshot_kimg=8.0,
        score_pictures=500,
    ),
}
