# SPDX-License-Identifier: Apache-2.0
"""What a training run shows: sample pictures, averages and warnings on the way; export, figures and the report at the end."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gangealing_fast.alignment.clustering import Assignment, align_assigned, assign_to_templates
from gangealing_fast.alignment.config import TrainConfig
from gangealing_fast.alignment.evaluation import (
    Evaluation,
    Figures,
    evaluate_clustered_digits,
    evaluate_clustered_pictures,
    evaluate_digits,
    evaluate_pictures,
    held_out,
    with_goals,
)
from gangealing_fast.alignment.frame import keep_area
from gangealing_fast.alignment.options import warping_in_use
from gangealing_fast.alignment.step import AlignmentStep, Samples
from gangealing_fast.checkpoints.writing import export_aligner
from gangealing_fast.data.digits import load_heldout_digits, random_similarity, warp_digits
from gangealing_fast.data.pictures import open_pictures
from gangealing_fast.geometry.warps import identity_grid
from gangealing_fast.metrics import average_image, before_after, inspect_warps
from gangealing_fast.models.perceptual import build_perceptual
from gangealing_fast.report.pictures import save_grid
from gangealing_fast.report.run import write_run_report
from gangealing_fast.runtime.precision import autocast
from gangealing_fast.storage.claims import plain

WATCHED = 16


def real_pictures(config: TrainConfig, size: int) -> Tensor | None:
    """Held-out real pictures to watch the run on, `[N, 3, size, size]`; None where the options name none."""
    if config.digit:
        digits = load_heldout_digits(config.digit)
        warps = random_similarity(len(digits.images), generator=torch.Generator().manual_seed(7))
        return warp_digits(digits.images, warps)
    if config.data is None:
        return None
    pictures = open_pictures(config.data, size=size, minimum=2)
    print(pictures.summary())
    return held_out(pictures, config.held_out)


@torch.no_grad()
def watch(trainer: AlignmentStep, step: int) -> Samples:
    """Samples of fixed latents, aligned by the running average, at the target's current psi."""
    return trainer.samples(trainer.draw("watch", range(WATCHED)), trainer.schedule.psi(step), trainer.average)


def health(samples: Samples, step: int, config: TrainConfig) -> list[str]:
    """Sentences on what is going wrong with samples after `step`; empty if all is well."""
    found = inspect_warps(
        samples.aligned.grid.float(), samples.aligned.residual_flow, samples.unaligned.float(), samples.aligned.image.float()
    )
    if samples.aligned.residual_flow is None:  # a similarity folds nothing: what it reads in a point only seems to, by rounding
        found = dataclasses.replace(found, folded=0.0)
    return found.warnings(started=step > max(100, config.anneal_psi // 2))


def pictures(config: TrainConfig, trainer: AlignmentStep, samples: Samples, real: Tensor | None, step: int) -> None:
    """Write samples (sample, target, aligned) and the averages of real pictures, before and after."""
    save_grid(torch.cat(list(sample_rows(samples).values())), config.out / f"samples-{step:07d}.png", columns=WATCHED)
    if real is not None:
        chosen = real[:200].to(trainer.target.lat_mean.device)
        found = assign_real(config, trainer, chosen)
        aligned = align_assigned(trainer.average, chosen, *found[:2], warping=warping_in_use(config))
        before = trainer.average.network_input(chosen)
        save_averages(before, aligned.image, config.out / f"average-{step:07d}.png", found.cluster)


@torch.no_grad()
def assign_real(config: TrainConfig, trainer: AlignmentStep, images: Tensor) -> Assignment:
    """Cluster (and mirror) of real pictures `[N, 3, S, S]`, by their distance to the templates; all 0 where there is but one."""
    if trainer.target.heads == 1 and not trainer.clusters.flips:
        nothing = torch.zeros(len(images), dtype=torch.long, device=images.device)
        return Assignment(nothing, nothing.bool(), nothing.float())
    generator = trainer.generator
    templates = generator.synthesize([trainer.target.target()] * generator.n_latent, noise="fixed")
    templates = trainer.average.network_input(templates)
    return assign_to_templates(
        trainer.average,
        trainer.perceptual,
        images,
        templates,
        flips=trainer.clusters.flips,
        warping=warping_in_use(config),
    )


def sample_rows(samples: Samples) -> dict[str, Tensor]:
    """Rows of pictures of one size, `[N, 3, F, F]` in [-1, 1] on the CPU: the samples, their targets, the samples aligned."""
    unaligned = F.interpolate(samples.unaligned.float(), size=samples.target.shape[2:], antialias=True, mode="bilinear")
    rows = {"Sample": unaligned, "Target": samples.target, "Aligned": samples.aligned.image}
    return {name: images.float().clamp(-1, 1).cpu() for name, images in rows.items()}


def cluster_averages(before: Tensor, after: Tensor, cluster: Tensor) -> dict[int, tuple[Tensor, Tensor]]:
    """Averages `[1, 3, F, F]` of the pictures of each cluster that has any, before and after."""
    used = sorted(set(cluster.tolist()))
    return {k: (average_image(before[cluster == k]), average_image(after[cluster == k])) for k in used}


def save_averages(before: Tensor, after: Tensor, path: Path, cluster: Tensor) -> None:
    """Write the averages of pictures `[N, 3, F, F]` before and after, side by side and large enough to see; a row per cluster."""
    pairs = [image for pair in cluster_averages(before, after, cluster).values() for image in pair]
    both = torch.cat(pairs).clamp(-1, 1).cpu()
    save_grid(both, path, columns=2, scale=max(1, 256 // both.shape[2]))


@torch.no_grad()
def new_samples(trainer: AlignmentStep, purpose: str, count: int) -> Tensor:
    """`count` samples `[count, 3, S, S]` of the generator that no step of training has drawn, the same ones for each `purpose`."""
    rows = [trainer.draw(purpose, range(start, min(start + 64, count))) for start in range(0, count, 64)]
    return torch.cat([trainer.generated(numbers).float() for numbers in rows])


def finish(config: TrainConfig, trainer: AlignmentStep, watched: Samples, real: Tensor | None, warnings: list[str]) -> Evaluation:
    """What comes after the last step: the template's frame, export, figures, report; `watched` are the samples looked at last."""
    if config.keep_area:
        watched = scale_frame(config, trainer, watched)
    export(config, trainer)
    evaluation = evaluate(config, trainer, real)
    write_report(config, evaluation, watched, warnings)
    print_figures(evaluation.figures)
    return evaluation


@torch.no_grad()
def scale_frame(config: TrainConfig, trainer: AlignmentStep, watched: Samples) -> Samples:
    """Rescale the averaged transformer's template so that objects keep their area; `watched` as it is aligned from then on.

    The checkpoint keeps the transformer as it was trained.
    """
    samples = new_samples(trainer, "area", 1024)
    try:
        factor = keep_area(trainer.average, samples, warping=warping_in_use(config))
    except ValueError as error:
        print(f"the template's frame is left as it is: {error}")
        return watched
    print(f"the template's frame is scaled by {factor:.3f}, so that the objects keep their area")
    with autocast(watched.unaligned.device, trainer.dtype):
        return watched._replace(aligned=trainer.average(watched.unaligned, warping=trainer.warping))


def export(config: TrainConfig, trainer: AlignmentStep) -> None:
    """Write aligner.safetensors: the averaged transformer, the template's latent and what is needed to use them."""
    export_aligner(config.out / "aligner.safetensors", trainer.average, trainer.target, warping_in_use(config), config.inject)


def evaluate(config: TrainConfig, trainer: AlignmentStep, real: Tensor | None) -> Evaluation:
    """Figures on held-out real pictures; where there are none, on new samples of the generator."""
    what = "held-out pictures"
    if real is None:
        print("no --data: judged by new samples of the generator instead of real pictures")
        real, what = new_samples(trainer, "judged", config.held_out).cpu(), "new samples"
    found = _evaluate(config, trainer, real)
    return dataclasses.replace(found, what=what, figures=with_goals(found.figures, config.goals))


def _evaluate(config: TrainConfig, trainer: AlignmentStep, real: Tensor) -> Evaluation:
    distance = build_perceptual("efficientnet")
    transformer = copy.deepcopy(trainer.average).to("cpu")
    warping, device = warping_in_use(config), trainer.target.lat_mean.device
    if config.clusters > 1 or config.flips:

        def decide(images: Tensor) -> tuple[Tensor, Tensor]:
            found = assign_real(config, trainer, images.to(device))
            return found.cluster.cpu(), found.mirrored.cpu()

        if config.digit:
            return evaluate_clustered_digits(transformer, decide, config.digit, distance, warping=warping)
        return evaluate_clustered_pictures(transformer, decide, real, distance, warping=warping)
    if config.digit:
        return evaluate_digits(transformer, config.digit, distance, warping=warping)
    return evaluate_pictures(transformer, real, distance, poses=trainer.poses, warping=warping)


def write_report(config: TrainConfig, evaluation: Evaluation, watched: Samples, warnings: list[str]) -> None:
    """report.html, average.png and aligned.png in the results folder."""
    height, width = evaluation.grid.shape[1:3]
    content: dict[str, Any] = {
        "metrics": evaluation.figures,
        "baseline": evaluation.baseline,
        "what": evaluation.what,
        "averages": captioned_averages(evaluation),
        "real": {"Before": evaluation.before[:12], "After": evaluation.after[:12]},
        "flows": (evaluation.grid - identity_grid(height, width))[:12],
    }
    save_averages(evaluation.before, evaluation.after, config.out / "average.png", evaluation.cluster)
    if evaluation.posed is not None:
        save_averages(*evaluation.posed, config.out / "average-posed.png", evaluation.cluster)
    save_grid(torch.cat([evaluation.before[:16], evaluation.after[:16]]).clamp(-1, 1), config.out / "aligned.png", columns=16)
    write_run_report(
        config.out,
        title=f"Alignment: {config.out.name}",
        summary=f"{config.steps} steps of {config.batch} samples, {config.transforms.replace(',', ' and ')}",
        warnings=warnings,
        samples=sample_rows(watched),
        configuration=plain(config),
        commands=[*classify_command(config), ("Align pictures of your own", align_command(config.out))],
        next_steps=["Align pictures of your own with the command below.", "Train longer with a larger --steps in a new --out."],
        **content,
    )


def align_command(out: Path, *, refine: bool = False) -> str:
    """The command that uses what was learned in the folder `out`. refine: whether a set taught it, whose flow it lacks."""
    return f"python -m gangealing_fast.align --checkpoint {out}{' --refine' * refine} --data YOUR_PICTURES --out aligned"


def classify_command(config: TrainConfig) -> list[tuple[str, str]]:
    """What has to come before, where a picture's cluster is to be told without a generator."""
    if config.clusters == 1 and not config.flips:
        return []
    return [
        (
            "Learn to tell the clusters of real pictures",
            f"python -m gangealing_fast.classify --checkpoint {config.out} --out {config.out}-classified",
        )
    ]


def captioned_averages(evaluation: Evaluation) -> list[tuple[str, Tensor]]:
    """(caption, average) before and after; of every cluster where there are several."""
    found = cluster_averages(evaluation.before, evaluation.after, evaluation.cluster)
    captioned = []
    for k, (before, after) in found.items():
        name = f"cluster {k}, " if len(found) > 1 else ""
        count = int((evaluation.cluster == k).sum())
        captioned += [
            (f"{name}average of {count} {evaluation.what} before".capitalize(), before),
            ("The same aligned", after),
        ]
    if evaluation.posed is not None:
        before, after = (average_image(images) for images in evaluation.posed)
        captioned += [("The same in random poses", before), ("Those aligned", after)]
    return captioned


def print_figures(figures: Figures) -> None:
    """One line per figure."""
    for name, figure in figures.items():
        print(f"  {name}: {_figure_text(figure)}")


def _figure_text(figure: dict[str, Any]) -> str:
    if "before" not in figure:
        return f"ratio {figure['ratio']:.3f}"
    ratio = before_after(figure["before"], figure["after"])["ratio"]
    return f"{figure['before']:.4g} -> {figure['after']:.4g} (ratio {ratio:.3f})"
