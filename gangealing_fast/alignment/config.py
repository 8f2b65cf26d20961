# SPDX-License-Identifier: Apache-2.0
"""Options of `python -m gangealing_fast.train` and its presets. Imports nothing heavy, so that --help is quick."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from gangealing_fast.runtime.config import ProcessOptions, WarpingOptions, shared_last
from gangealing_fast.runtime.ranges import (
    LARGEST,
    Channels,
    Count,
    Digit,
    Factor,
    Iterations,
    LearningRate,
    Natural,
    Positive,
    Range,
    Share,
    Side,
    Weight,
)

ASSETS = Path(__file__).resolve().parent.parent / "assets"


@shared_last
@dataclass(frozen=True)
class TrainConfig(ProcessOptions):
    """Learn to align pictures from a generator's samples. Kill it when you like: the same command resumes to the same numbers."""

    out: Path
    """Results folder: checkpoint.pt, aligner.safetensors, pictures, log.jsonl, report.html."""
    generator: Path | None = None
    """The generator that the samples come from, as written by `pretrain` (generator.safetensors)."""
    teach_from: Path | None = None
    """Instead of a generator: a set, as `congeal` wrote it. The similarity learns to do in one pass what was found of its pictures,
    shown in the poses of --pose-rotation, --pose-scale and --pose-shift; see --preset set."""
    data: Path | None = None
    """Real pictures (folder, .tar or MNIST file) to watch and to evaluate on; never trained on."""
    start_from: Path | None = None
    """A checkpoint of the original to go on from: its transformer, template and optimisers, at its step of --steps."""
    digit: tuple[Digit, ...] = ()
    """Evaluate on the package's held-out digits of these classes, whose true warps are known."""
    clusters: Annotated[int, Range(1, 1000)] = 1
    """How many templates are learned, each with a warping head of its own."""
    flips: bool = False
    """Whether a sample or its mirror image is aligned, whichever comes nearer to the template."""
    cluster_candidates: Count = 256
    """Among how many samples the first templates are chosen (K-means++)."""
    single_steps: Natural = 0
    """First learn so many steps to align all samples to the generator's mean; then choose the clusters' templates among aligned
    samples, so that they differ in kind instead of pose. 0 starts with all clusters, as published."""
    held_out: Annotated[int, Range(2, LARGEST)] = 500
    """How many of the last pictures of --data are used."""
    transforms: Literal["similarity", "flow", "similarity,flow"] = "similarity,flow"
    trunk: Literal["learned", "efficientnet", "places"] = "learned"
    """What the similarity looks at pictures with. learned: layers from scratch, as published. efficientnet: frozen features with a
    few layers on top; for photographs it learns the pose in a fraction of the steps, also from a generator of poor pictures.
    places: frozen features too, and a similarity fitted to what is read at every place of them."""
    flow_trunk: Literal["learned", "places"] = "learned"
    """What the flow looks at pictures with. learned: layers from scratch, as published. places: it is spread from what --trunk
    places reads, and has no weights of its own."""
    flow_size: Side = 128
    """Side at which the transformer looks at pictures, and of its output."""
    channel_multiplier: Factor = 0.5
    channel_base: Annotated[int, Range(1, 2**24)] | None = None
    """A resolution r of the transformer has min(max_channels, channel_base / r) channels; None for the published widths."""
    max_channels: Channels = 512
    iters: Iterations = 1
    """How often the similarity looks at its own result and corrects it, in training."""
    iters_in_use: Iterations = 2
    """The same for real pictures: in evaluation, and in `align` and `Aligner` from then on (docs/results.md: what it brings)."""
    keep_area: bool = False
    """At the end, scale the template's frame so that the objects keep their area in all (a similarity alone)."""
    steps: Count = 1_500_000
    batch: Count = 40
    """Samples per step over all passes; small batches are known to collapse."""
    micro_batch: Natural = 0
    """Samples per pass (gradients are accumulated up to --batch); 0 chooses by the size of the pictures."""
    anneal_psi: Natural = 150_000
    """Steps over which the targets move from the samples' own pose to the learned template."""
    psi_shape: Literal["cosine", "linear"] = "cosine"
    period: Natural = 37_500
    """Steps of the first cosine cycle of the learning rates after the annealing; 0 keeps them constant."""
    inject: Count = 5
    """How many of the generator's first latents the template sets; the others keep each sample's look."""
    directions: Count = 1
    """How many principal directions of w the template may move along."""
    principal_samples: Annotated[int, Range(2, LARGEST)] = 1_000_000
    template: tuple[Path, ...] = ()
    """Begin with these pictures as the templates, one for each cluster: they are inverted first. Of the learned part of a template
    only what the first --inject latents set is seen."""
    inverter: Path | None = None
    """With --template: the encoder that `invert` trained for the generator (its results folder); without it the search for a
    picture's latent begins at the generator's mean."""
    template_steps: Natural = 300
    """Steps of the search for the latent of each --template."""
    freeze_target: bool = False
    """Keep the template where it begins, at the generator's mean or at --template, instead of learning it."""
    learning_rate: LearningRate = 1e-3
    target_learning_rate: LearningRate = 1e-2
    tv_weight: Weight = 1000.0
    identity_weight: Weight = 1.0
    padding_mode: Literal["reflection", "border", "zeros"] = "reflection"
    perceptual: Literal["efficientnet", "lpips", "self"] = "efficientnet"
    """self: features learned from --data and the generator's samples; done first, beside --out, where no weights are given."""
    perceptual_size: Side = 64
    """Smaller pictures are enlarged to this side before the perceptual network looks at them (efficientnet)."""
    perceptual_weights: Path | None = None
    """Backbone file of lpips, where it is not in torchvision's cache; for self, what the contrast command learned."""
    perceptual_steps: Count = 1500
    """How long features are learned for --perceptual self where no weights are given."""
    pose_rotation: Annotated[float, Range(0, 360)] = 0.0
    """Show samples turned by up to so many degrees; with the next two, for pictures in more poses than the generator makes. With
    one template real pictures are then judged in such poses too, whose truth is known."""
    pose_scale: tuple[Factor, Factor] = (1.0, 1.0)
    """Show samples at a size between these factors of their own."""
    pose_shift: Annotated[float, Range(0, 100)] = 0.0
    """Show samples shifted by up to this part of their side."""
    equivariance_weight: Weight = 1.0
    """How much it counts that a sample lands on the template in the same way whatever pose it is shown in; see --pose-rotation."""
    sample_from_full_resolution: bool = True
    """Warp the generator's full-size samples; otherwise those already downsampled to --flow-size."""
    average_half_life: Positive = 10_000.0
    """Half-life of the running average of the transformer, in samples counted as 32 a step."""
    truncation: Share = 1.0
    """How far samples' latents keep from their mean, in [0, 1]: below 1 they are more alike and look better."""
    snapshot: Count = 2000
    """Steps between checkpoints with pictures; log lines come ten times as often."""
    zero_learning_rate: bool = False
    """Keep a checkpoint, checkpoint-STEP.pt, whenever the learning rates have come down to zero, as the original does."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """auto: bfloat16 where the device computes in it natively, else float32. float16 scales the loss; for GPUs without bfloat16."""
    compile: bool = False
    """Run the loss through torch.compile; the first step takes minutes."""
    cuda_graphs: bool = False
    """Record the passes of a step as CUDA graphs and replay them."""
    patience: Positive = 1800.0
    """With several processes (torchrun): for how many seconds one waits for the others before it ends with an error."""
    goals: Annotated[Mapping[str, float | tuple[float, float]], tyro.conf.Suppress] = field(default_factory=dict)
    """What a preset's figures are held to, shown beside them in the report: no option of the command line."""


PRESETS: dict[str, TrainConfig] = {
    "digits": TrainConfig(
        generator=ASSETS / "digits" / "generator.safetensors",
        out=Path("runs/digits"),
        digit=(3,),
        transforms="similarity",
        flow_size=32,
        channel_base=2048,
        max_channels=128,
        keep_area=True,
        goals={
            "Pair error": 0.35,
            "Set spread": 0.60,
            "Stack entropy": 0.70,
            "Ink kept": (0.9, 1.1),
            "Mean pairwise perceptual distance": 1.0,
        },
        steps=2000,
        batch=16,
        anneal_psi=1300,
        period=700,
        inject=5,
        directions=5,
        principal_samples=20_000,
        padding_mode="border",
        average_half_life=2000.0,
        snapshot=500,
    ),
    "cats": TrainConfig(
        generator=ASSETS / "cats" / "generator.safetensors",
        out=Path("runs/cats"),
        transforms="similarity",
        trunk="efficientnet",
        flow_size=64,
        pose_rotation=30.0,
        pose_scale=(0.7, 1.2),
        pose_shift=0.15,
        equivariance_weight=3.0,
        goals={"Pair error": 0.35, "Set spread": 0.60, "Mean pairwise perceptual distance": 1.0},
        steps=1200,
        batch=24,
        anneal_psi=500,
        period=700,
        inject=5,
        directions=5,
        principal_samples=100_000,
        padding_mode="reflection",
        average_half_life=2000.0,
        snapshot=200,
    ),
}
PRESETS["set"] = TrainConfig(
    out=Path("runs/taught"),
    trunk="places",
    flow_trunk="places",
    flow_size=128,
    pose_rotation=30.0,
    pose_scale=(0.7, 1.2),
    pose_shift=0.15,
    padding_mode="border",
    iters_in_use=3,
    steps=1500,
    batch=24,
    snapshot=250,
)
PRESETS["clusters"] = replace(
    PRESETS["digits"],
    generator=ASSETS / "digits" / "generator-347.safetensors",
    out=Path("runs/clusters"),
    digit=(3, 4, 7),
    clusters=3,
    keep_area=False,
    goals={"Cluster purity": (0.85, 1.0), "Pair error": 0.45, "Mean pairwise perceptual distance": 1.0},
    directions=32,
    single_steps=1200,
    anneal_psi=800,
    period=400,
    steps=3600,
    freeze_target=True,
)


@shared_last
@dataclass(frozen=True)
class ClassifyConfig(WarpingOptions, ProcessOptions):
    """Learn the clusters from the generator's samples. Kill it when you like: the same command resumes to the same numbers."""

    checkpoint: Path
    """Results folder of `train` with several --clusters (or with --flips)."""
    out: Path
    """Results folder: aligner.safetensors with the classifier in it, checkpoint.pt, log.jsonl, report.html."""
    generator: Path | None = None
    """The generator that the aligner was trained with; the one that the results folder records where it is not given."""
    data: Path | None = None
    """Real pictures for the figures; those of the training run where they are not given."""
    held_out: Annotated[int, Range(2, LARGEST)] = 500
    """How many of the last pictures of --data are used."""
    flips: bool = False
    """Whether mirrored pictures are classes of their own; as in training."""
    inject: Natural = 0
    """How many of the generator's first latents the template sets; 0 takes the training run's."""
    truncation: Share | None = None
    """How far samples' latents keep from their mean, in [0, 1]; None takes the training run's."""
    steps: Count = 1500
    batch: Annotated[int, Range(2, LARGEST)] = 32
    learning_rate: LearningRate = 1e-3
    snapshot: Count = 250
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    by: Literal["classifier", "distance"] = "classifier"
    """distance: find the cluster of the real pictures by their true distance to the templates too, which takes their latents, and
    say how far the classifier agrees; needs --inverter."""
    inverter: Path | None = None
    """With --by distance: the encoder that `invert` trained for the generator (its results folder)."""
    inverter_steps: Natural = 100
    """Steps of the search for each picture's latent, beginning at the encoder's."""
