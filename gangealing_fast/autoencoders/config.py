# SPDX-License-Identifier: Apache-2.0
"""Options of `python -m gangealing_fast.autoencode`. Imports nothing heavy, so that --help is quick."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from gangealing_fast.runtime.config import ProcessOptions, shared_last
from gangealing_fast.runtime.ranges import LARGEST, Channels, Count, LearningRate, Natural, Range, Share, SideOrDefault, Weight

Use = Literal["basic", "conditional", "supervised", "semi", "clusters", "map"]


@shared_last
@dataclass(frozen=True)
class AutoencodeConfig(ProcessOptions):
    """Train an adversarial autoencoder. The same command resumes a killed run."""

    data: Path
    """The folder with MNIST's original files, or pictures: a folder, tar or shards."""
    out: Path
    """Results folder: autoencoder.safetensors, checkpoint.pt, log.jsonl, pictures, report.html."""
    use: Use = "basic"
    """basic: codes as the prior. conditional: the prior's parts are the classes. supervised: style apart from the told class. semi:
    classes from few labels, with style. clusters: classes from no labels. map: clusters laid out in few dimensions."""
    prior: str = "gaussian"
    """Of the style: gaussian, mixture (ten Gaussians), swiss-roll, uniform, generator (the w of --generator), a file NAME.npy of
    samples, or MODULE:FUNCTION of the number of samples. The latter is your own code, and is run."""
    generator: Path | None = None
    """Whose w are the prior of --prior generator, as written by `pretrain`."""
    style: Count = 8
    """Numbers of the style code; of a map, its dimensions."""
    prior_scale: Annotated[float, Range(0, 1000, above=True)] = 1.0
    """The prior's numbers are multiplied by this."""
    labels: Natural = 0
    """Of so many pictures, as many of each class, the class is told; 0 tells all if the use needs classes."""
    unlabelled: bool = True
    """Of semi and map: learn from pictures of unknown class too; --no-unlabelled shows what the networks learn without them."""
    categories: Natural = 0
    """Classes of the categorical code; 0: as many as the pictures have."""
    encoder: Literal["deterministic", "gaussian", "universal"] = "deterministic"
    """universal: random numbers are a further input, so that a picture may have any distribution of codes."""
    noise_inputs: Count = 20
    """Random numbers that a universal encoder gets."""
    architecture: Literal["dense", "convolutional"] = "dense"
    width: Channels = 1000
    """Units of the two hidden layers; channels of the widest layer of a convolutional one."""
    critic_width: Channels = 1000
    """Units of the two hidden layers of the critics, which see no more than codes."""
    batch_norm: bool = False
    """In the encoder's hidden layers, and of the categories' logits, so that none of them is left without pictures."""
    input_dropout: Share = 0.0
    """Share of a picture's pixels that the encoder does not see in training."""
    moves: Annotated[float, Range(0, 2)] = 0.0
    """Strength of random affine maps of the pictures in training; at 1 up to 15 degrees, 15 % and a fourteenth of the side."""
    two_views: bool = False
    """The category is told from another random map of the picture (--moves) than the style and what is to be made: it can then hold
    nothing that the maps change."""
    category_noise: Annotated[float, Range(0, 10)] = 0.0
    """Strength of Gumbel noise on the logits of the category that the decoder gets in training: little but the largest comes
    through."""
    r1: Weight = 0.0
    """Weight gamma of a penalty on the gradient of the style's critic at codes of the prior: with it codes come to be the prior's
    instead of circling around it."""
    critic_noise: Weight = 0.0
    """Deviation of the Gaussian noise on the categories that their critic sees, those drawn and those found: it then looks at which
    are frequent, not at whether they are exactly 0 and 1."""
    size: SideOrDefault = 0
    """Side of the pictures; 0: 28 for MNIST, else 64."""
    held_out: Natural = 0
    """Pictures, the last ones, that figures are computed on; 0: MNIST's test digits, else a tenth of the pictures."""
    epochs: Count = 100
    batch: Annotated[int, Range(2, LARGEST)] = 100
    labelled_batch: Annotated[int, Range(0, LARGEST)] = 0
    """Pictures of told class in a step's classification; 0: as many as --batch."""
    objective: str = "nonsaturating"
    """What encoder and critics play for, by its name in docs/objectives.md; one whose critic returns a number."""
    learning_rate: LearningRate = 5e-4
    """Of the reconstruction and of the classification; falls to 0 over the second half of the run."""
    regularisation_rate: LearningRate = 2e-4
    """Of the encoder against its critics, and of the critics; falls likewise."""
    critic_rate: LearningRate = 0.0
    """Of the critics, where another than --regularisation-rate; 0: the same."""
    ema: Share = 0.999
    """Share that one step keeps of the averaged weights, which are those that are examined and written."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the layers between pictures and codes. auto: bfloat16 where the processor or GPU computes in it. Codes and critics are in
    single precision always."""
    heads_apart: Weight = 1.0
    """Of a map: weight of the penalty on heads of clusters that come nearer to each other than --head-distance."""
    head_distance: Weight = 4.0
    snapshot_epochs: Count = 10
    """A checkpoint, figures and pictures every so many epochs."""


_SEMI = AutoencodeConfig(
    data=Path("mnist"),
    out=Path("runs/autoencode-semi"),
    use="semi",
    style=10,
    labels=100,
    labelled_batch=50,
    input_dropout=0.2,
    width=500,
    critic_width=300,
    moves=1.0,
    two_views=True,
    epochs=25,
    batch_norm=True,
    critic_noise=0.3,
)
PRESETS: dict[str, AutoencodeConfig] = {
    "mnist": AutoencodeConfig(
        data=Path("mnist"), out=Path("runs/autoencode-mnist"), use="basic", style=8, width=500, critic_width=300, r1=0.5, epochs=25
    ),
    "codes": AutoencodeConfig(
        data=Path("mnist"),
        out=Path("runs/autoencode-codes"),
        use="basic",
        style=2,
        encoder="gaussian",
        batch_norm=True,
        width=500,
        critic_width=300,
        r1=0.1,
        critic_rate=8e-4,
        ema=0.9995,
        epochs=16,
    ),
    "clusters": AutoencodeConfig(
        data=Path("mnist"),
        out=Path("runs/autoencode-clusters"),
        use="clusters",
        style=5,
        categories=16,
        batch_norm=True,
        width=500,
        critic_width=300,
        moves=1.0,
        two_views=True,
        epochs=25,
        critic_noise=0.3,
    ),
    "semi": _SEMI,
    "map": dataclasses.replace(_SEMI, out=Path("runs/autoencode-map"), use="map", style=2),
    "supervised": AutoencodeConfig(
        data=Path("mnist"),
        out=Path("runs/autoencode-supervised"),
        use="supervised",
        style=6,
        encoder="gaussian",
        batch_norm=True,
        width=500,
        critic_width=300,
        learning_rate=3e-4,
        regularisation_rate=3e-4,
        critic_rate=1e-3,
        epochs=12,
    ),
}
