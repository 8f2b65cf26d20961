# SPDX-License-Identifier: Apache-2.0
"""What `python -m gangealing_fast.classify` does: learn from samples which cluster a picture belongs to (arXiv 2112.05143, 3.4)."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gangealing_fast.alignment.clustering import Assignment, assign, cluster_distances
from gangealing_fast.alignment.distances import Chooser, beside, check_distance, make_chooser
from gangealing_fast.alignment.evaluation import (
    Decision,
    Evaluation,
    evaluate_clustered_digits,
    evaluate_clustered_pictures,
    held_out,
    with_goals,
)
from gangealing_fast.alignment.options import check_truncation
from gangealing_fast.alignment.results import align_command, captioned_averages, print_figures, save_averages
from gangealing_fast.checkpoints.reading import Parts, load_generator, read
from gangealing_fast.checkpoints.writing import write
from gangealing_fast.data.pictures import open_pictures
from gangealing_fast.geometry.warping import Warping
from gangealing_fast.metrics.perceptual import Distance
from gangealing_fast.models import ClusterClassifier, Generator, LatentTarget, SpatialTransformer
from gangealing_fast.models.generator import Noise, truncate
from gangealing_fast.models.perceptual import build_perceptual
from gangealing_fast.ops.environment import print_notice
from gangealing_fast.report.run import write_run_report
from gangealing_fast.runtime.errors import UserError
from gangealing_fast.runtime.precision import autocast, resolve
from gangealing_fast.runtime.setup import choose_device, prepare_process
from gangealing_fast.storage.claims import plain, read_record
from gangealing_fast.storage.runs import open_run
from gangealing_fast.training.fitting import fit

if TYPE_CHECKING:
    from gangealing_fast.alignment.config import ClassifyConfig

COMMAND = "classify"


class Teacher:
    """Samples with the cluster (and mirror) whose template they align to best."""

    def __init__(
        self,
        generator: Generator,
        transformer: SpatialTransformer,
        target: LatentTarget,
        perceptual: Distance,
        *,
        inject: int,
        flips: bool,
        warping: Warping,
        truncation: float = 1.0,
    ) -> None:
        self.generator, self.transformer, self.target, self.perceptual = generator, transformer, target, perceptual
        self.inject, self.flips, self.warping, self.truncation = inject, flips, warping, truncation

    @torch.no_grad()
    def lesson(self, n: int) -> tuple[Tensor, Tensor]:
        """n samples `[n, 3, S, S]` and their classes `[n]`."""
        generator = self.generator
        mean = self.target.lat_mean
        w = truncate(generator.map(torch.randn(n, generator.latent_dim, device=mean.device)).float(), self.truncation, mean)
        samples = generator.synthesize(w)
        found = self.judged(samples, w)
        return samples, found.cluster + self.target.heads * found.mirrored

    @torch.no_grad()
    def judged(self, pictures: Tensor, w: Tensor, noise: Noise = "random") -> Assignment:
        """Cluster (and mirror) of pictures `[N, 3, S, S]` of latents w `[N, D]`: the template that each, aligned, is nearest to.

        For each picture a template looks like it in all but the layers that templates set."""
        latents = self.target.mix_layers(w, 0.0, self.inject, self.generator.n_latent)
        targets = self.transformer.network_input(self.generator.synthesize(latents, noise))
        distances = cluster_distances(self.transformer, self.perceptual, pictures, targets, flips=self.flips, warping=self.warping)
        return assign(distances, self.target.heads)


def recorded_options(folder: Path) -> dict[str, Any]:
    """The options that a results folder of train records; {} where there are none. Raises UserError for a damaged record."""
    record = read_record(folder) if folder.is_dir() else None
    return record.options if record is not None and record.command == "train" else {}


def run(config: ClassifyConfig) -> Path:
    """Train the classifier, or go on; returns the folder with the complete aligner. Raises UserError for a user's mistakes."""
    print_notice(config.ops)
    with open_run(config.out, COMMAND, config, pictures={"--data": config.data}) as resuming:
        return _run(config, resuming)


def _run(config: ClassifyConfig, resuming: bool) -> Path:
    device = choose_device(config.device)
    prepare_process(config)
    check_distance(config)
    parts, options = read(config.checkpoint), recorded_options(config.checkpoint)
    parts.settle(config.checkpoint, padding_mode=config.padding_mode, iters=config.iters)
    teacher = make_teacher(config, parts, options, device)
    chooser = make_chooser(config, teacher.generator, teacher.perceptual, teacher.judged)
    dtype = resolve(config.precision, device)
    torch.manual_seed(config.seed)
    classifier = ClusterClassifier.like(teacher.transformer, flips=config.flips).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(classifier.parameters(), config.learning_rate, fused=True)

    def lesson() -> tuple[Tensor, float]:
        with autocast(device, dtype):
            samples, classes = teacher.lesson(config.batch)
            logits = classifier(samples).float()
        return F.cross_entropy(logits, classes), (logits.argmax(1) == classes).float().mean().item()

    fit(config, COMMAND, optimizer, {"classifier": classifier}, lesson, "accuracy", resuming=resuming)
    classifier.eval().requires_grad_(False).cpu()
    parts.classifier, parts.generator = classifier, None
    write(parts, config.out, "safetensors")
    report(config, teacher, classifier, options, chooser)
    return config.out


def make_teacher(config: ClassifyConfig, parts: Parts, options: dict[str, Any], device: torch.device) -> Teacher:
    """From the aligner, `options` of its training, and the generator that it was trained with. Raises UserError without these."""
    if parts.transformer is None or parts.target is None:
        raise UserError(f"{config.checkpoint} holds no aligner with its templates; give a results folder of the train command")
    if parts.target.heads == 1 and not config.flips:
        raise UserError(f"{config.checkpoint} has one cluster, and without --flips there is nothing to tell apart")
    source = config.generator or options.get("generator")
    generator = parts.generator or (load_generator(Path(source)) if source else None)
    if generator is None:
        raise UserError("name the generator that the aligner was trained with: --generator generator.safetensors")
    truncation = float(options.get("truncation", 1.0)) if config.truncation is None else config.truncation
    check_truncation(truncation)
    parts.inject = parts.inject or int(options.get("inject", 5))
    weights = {"weights": options.get("perceptual_weights")} if options.get("perceptual") == "self" else {}
    return Teacher(
        generator.to(device),
        parts.transformer.to(device),
        parts.target.to(device),
        build_perceptual("self" if weights else "efficientnet", **weights).to(device),
        inject=config.inject or parts.inject,
        flips=config.flips,
        warping=parts.warping,
        truncation=truncation,
    )


def evaluate(config: ClassifyConfig, teacher: Teacher, decide: Decision, options: dict[str, Any]) -> Evaluation | None:
    """Figures on held-out real pictures, by the choice of `decide`; None if neither run names any."""
    transformer, distance = copy.deepcopy(teacher.transformer).cpu(), build_perceptual("efficientnet")
    data, classes = config.data or options.get("data"), () if config.data else tuple(options.get("digit") or ())
    if classes:
        return evaluate_clustered_digits(transformer, decide, classes, distance, warping=teacher.warping)
    if data is None:
        return None
    pictures = held_out(open_pictures(Path(data), size=transformer.input_size, minimum=2), config.held_out)
    return evaluate_clustered_pictures(transformer, decide, pictures, distance, warping=teacher.warping)


def report(
    config: ClassifyConfig, teacher: Teacher, classifier: ClusterClassifier, options: dict[str, Any], chooser: Chooser | None
) -> None:
    """Print the figures and write report.html; with a chooser clusters.json too, and what it says beside the classifier."""
    content: dict[str, Any] = {}
    evaluation = evaluate(config, teacher, classifier.assign, options)
    if evaluation is not None:
        figures = with_goals(evaluation.figures, options.get("goals") or {})
        if chooser is not None:
            figures |= beside(config.out, evaluation, evaluate(config, teacher, chooser, options))
        print_figures(figures)
        content = {"metrics": figures, "averages": captioned_averages(evaluation)}
        content["real"] = {"Before": evaluation.before[:12], "After": evaluation.after[:12]}
        save_averages(evaluation.before, evaluation.after, config.out / "average.png", evaluation.cluster)
    write_run_report(
        config.out,
        title=f"Clusters: {config.out.name}",
        summary=f"{teacher.target.heads} clusters{' and their mirror images' if config.flips else ''}, {config.steps} steps",
        configuration=plain(config),
        commands=[("Align pictures of your own", align_command(config.out))],
        **content,
    )
