# SPDX-License-Identifier: Apache-2.0
"""Options of `python -m gangealing_fast.invert`. Imports nothing heavy, so that --help is quick."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from gangealing_fast.runtime.config import ProcessOptions, shared_last
from gangealing_fast.runtime.ranges import LARGEST, Channels, Count, Digit, LearningRate, Natural, Range, Share, Side, Weight


@shared_last
@dataclass(frozen=True)
class InvertConfig(ProcessOptions):
    """Find the latents of pictures in a generator. Kill it when you like: the same command goes on to the same numbers."""

    generator: Path
    """What the pictures are looked for in, as written by `pretrain` (generator.safetensors)."""
    out: Path
    """Results folder: encoder.safetensors, latents.npz, reconstructions, figures.json, log.jsonl, report.html."""
    data: Path | None = None
    """Pictures to invert (folder, tar, shards or MNIST file); the encoder learns to place such pictures too, from all but the last
    --held-out. Without it the encoder is trained and judged on samples alone."""
    digit: tuple[Digit, ...] = ()
    """Invert the package's held-out digits of these classes, under random warps; nothing is learned from them. --data is then the
    folder of MNIST's original files, whose training digits the encoder learns from under such warps."""
    encoder: Path | None = None
    """An encoder that an earlier run of this command has trained, for the same generator; none is trained then."""
    train_steps: Natural = 3000
    """Steps of the encoder's training; 0 for no encoder: the search then begins at the generator's mean w."""
    batch: Annotated[int, Range(2, LARGEST)] = 32
    """Samples, and as many pictures of --data, in a step of training; pictures that are inverted at a time."""
    width: Channels = 256
    """Channels of the encoder's widest layer."""
    learning_rate: LearningRate = 1e-3
    """Of the encoder; falls to 0 by a cosine."""
    latent_weight: Weight = 1.0
    """How much it counts in training that a sample's own w is found, in deviations of w."""
    pixel_weight: Weight = 1.0
    """How much the mean squared error of pixels counts beside the perceptual distance, in training and in the search."""
    picture_share: Share = 0.3
    """In the last so great share of the training it counts what the generator makes of the latents. Before that samples' own w and
    the critic teach alone, for a fraction of the work."""
    prior_weight: Weight = 0.1
    """How much it counts that latents of --data are taken for the generator's own by a critic."""
    steps: Natural = 0
    """Steps of the search for each picture's w, beginning at the encoder's; 0 takes the encoder's w as it is."""
    search_rate: LearningRate = 0.1
    """Of the search, in deviations of w; falls to 0 by a cosine."""
    w_plus: bool = False
    """Search a latent of its own for each layer of the generator."""
    noise: bool = False
    """Search the noise of the generator's layers too."""
    limit: Natural = 0
    """Invert the first so many pictures only; 0: all."""
    held_out: Natural = 0
    """So many of the last pictures of --data are kept from the encoder's training."""
    perceptual: Literal["efficientnet", "lpips", "self"] = "efficientnet"
    perceptual_size: Side = 64
    """Smaller pictures are enlarged to this side before the perceptual network looks at them (efficientnet)."""
    perceptual_weights: Path | None = None
    """Backbone file of lpips, where it is not in torchvision's cache; for self, what the contrast command learned."""
    snapshot: Count = 250
    """Steps of training between checkpoints."""
