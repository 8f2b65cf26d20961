# SPDX-License-Identifier: Apache-2.0
"""One step of GAN-supervised alignment (arXiv 2112.05143, section 3): samples, targets, loss, both optimisers, running average."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from gangealing_fast.alignment.clustering import Assignment, assign, cluster_distances, mirror_chosen
from gangealing_fast.alignment.losses import AlignmentLoss, alignment_loss
from gangealing_fast.alignment.schedules import learning_rate_factor, psi_at
from gangealing_fast.alignment.templates import split_template
from gangealing_fast.models.generator import Generator
from gangealing_fast.models.latent_target import LatentTarget
from gangealing_fast.models.spatial_transformer import Alignment, SpatialTransformer
from gangealing_fast.ops import used
from gangealing_fast.optim import AdamEma
from gangealing_fast.precision import autocast


class Samples(NamedTuple):
    """Generator samples `[N, 3, S, S]`, the targets they are aligned to `[N, 3, F, F]`, and the alignment itself.

    With clusters or flips: each sample as it was chosen (mirrored perhaps), the target of its cluster, and what was chosen.
    """

    unaligned: Tensor
    target: Tensor
    aligned: Alignment
    assignment: Assignment | None = None


class NotFinite(RuntimeError):
    """The loss was NaN or infinite; the weights are still those before the step."""


@dataclass
class AlignmentStep:
    """Networks and weights of one training step; `step(i)` changes the transformer, the target and the running average.

    `transformer_optimizer` keeps `average`, the running average of the transformer. With K clusters and `single_steps`, head 0
    alone learns first, with the generator's mean as its template; then `split` starts K templates and heads from it.
    """

    generator: Generator
    transformer: SpatialTransformer
    average: SpatialTransformer
    target: LatentTarget
    perceptual: Callable[[Tensor, Tensor], Tensor]
    transformer_optimizer: AdamEma
    target_optimizer: AdamEma
    batch: int
    micro_batch: int
    anneal_psi: int
    psi_shape: str
    period: int
    inject: int
    learning_rate: float
    target_learning_rate: float
    tv_weight: float
    identity_weight: float
    padding_mode: str
    iters: int
    freeze_target: bool = False
    flips: bool = False
    sample_from_full_resolution: bool = True
    dtype: torch.dtype = torch.float32
    single_steps: int = 0
    cluster_candidates: int = 256

    def __post_init__(self) -> None:
        self.is_split = self.single_steps == 0

    def split(self) -> None:
        """Choose K templates among samples that head 0 aligns, and let every head start as a copy of head 0."""
        with autocast(self.target.lat_mean.device, self.dtype):
            split_template(
                self.target,
                self.generator,
                self.average,
                self.perceptual,
                candidates=self.cluster_candidates,
                inject=self.inject,
                padding_mode=self.padding_mode,
                iters=self.iters,
            )
        self.average.copy_first_head()
        moments = self.transformer_optimizer.state
        self.transformer.copy_first_head(lambda parameter: [moments[parameter][name] for name in ("exp_avg", "exp_avg_sq")])
        self.is_split = True

    def samples(self, n: int, psi: float, transformer: SpatialTransformer | None = None) -> Samples:
        """Draw n samples, their targets at this psi, and align them."""
        generator, device = self.generator, self.target.lat_mean.device
        transformer = self.transformer if transformer is None else transformer
        with autocast(device, self.dtype):
            with torch.no_grad():
                w = generator.map(torch.randn(n, generator.latent_dim, device=device)).float()
                unaligned = generator.synthesize(w)
            clusters = self.target.heads
            if self.flips or (clusters > 1 and self.is_split):
                return self._assigned_samples(w, unaligned, psi, transformer)
            mix = self.target.mix if used() == "reference" else self.target.mix_layers
            latents = mix(w, psi, self.inject, generator.n_latent)
            first = None
            if clusters > 1:  # before the split: the rows of cluster 0
                latents = latents[::clusters] if isinstance(latents, Tensor) else [layer[::clusters] for layer in latents]
                zeros = torch.zeros(n, dtype=torch.long, device=device)
                first = Assignment(zeros, zeros.bool(), zeros.float())
            # The noise is drawn anew: sharing it between sample and target makes training worse (SPEC of the method).
            with torch.set_grad_enabled(torch.is_grad_enabled() and self.is_split and not self.freeze_target):
                target = generator.synthesize(latents)
            target = self.transformer.network_input(target)
            if not self.sample_from_full_resolution:
                unaligned = self.transformer.network_input(unaligned)
            assignment = None if first is None else first.cluster
            aligned = transformer(unaligned, padding_mode=self.padding_mode, iters=self.iters, assignment=assignment)
            return Samples(unaligned, target, aligned, first)

    def _assigned_samples(self, w: Tensor, unaligned: Tensor, psi: float, transformer: SpatialTransformer) -> Samples:
        """Samples `w`, `unaligned` with the cluster (and mirror) whose target each comes nearest to.

        All classes are compared without gradients, and the chosen one alone is computed again with them: the same gradient as that
        of the least of all distances, for a fraction of the work. The noise of its target is the one it was compared with.
        Before the split there is cluster 0 alone.
        """
        generator, clusters = self.generator, self.target.heads
        if not self.sample_from_full_resolution:
            unaligned = self.transformer.network_input(unaligned)
        options = {"padding_mode": self.padding_mode, "iters": self.iters}
        with torch.no_grad():
            noise = generator.draw_noise(w.shape[0] * clusters)
            latents = self.target.mix_layers(w, psi, self.inject, generator.n_latent)
            targets = self.transformer.network_input(generator.synthesize(latents, noise))
            distances = cluster_distances(transformer, self.perceptual, unaligned, targets, flips=self.flips, **options)
            if not self.is_split:
                distances.unflatten(1, (-1, clusters))[:, :, 1:] = math.inf
            found = assign(distances, clusters)
        rows = torch.arange(w.shape[0], device=w.device) * clusters + found.cluster
        target = targets[rows]
        if torch.is_grad_enabled() and self.is_split and not self.freeze_target:
            blended = self.target.blend(w, psi)[rows]
            layers = [blended] * self.inject + [w] * (generator.n_latent - self.inject)
            target = self.transformer.network_input(generator.synthesize(layers, [layer[rows] for layer in noise]))
        unaligned = mirror_chosen(unaligned, found.mirrored)
        return Samples(unaligned, target, transformer(unaligned, assignment=found.cluster, **options), found)

    def loss(self, n: int, psi: float) -> tuple[AlignmentLoss, Assignment | None]:
        """Loss of n fresh samples, and their clusters where there are several."""
        samples = self.samples(n, psi)
        with autocast(samples.target.device, self.dtype):
            loss = alignment_loss(
                self.perceptual,
                samples.aligned.image,
                samples.target,
                samples.aligned.residual_flow,
                tv_weight=self.tv_weight,
                identity_weight=self.identity_weight,
            )
        return loss, samples.assignment

    def step(self, index: int) -> dict[str, float]:
        """Step number `index`, from 0: accumulate over micro-batches, update, average. Raises NotFinite before any change."""
        if not self.is_split and index >= self.single_steps:
            self.split()
        psi = psi_at(index, self.anneal_psi, self.psi_shape)
        factor = learning_rate_factor(index, self.anneal_psi, self.period)
        self.transformer_optimizer.zero_grad(set_to_none=True)
        self.target_optimizer.zero_grad(set_to_none=True)
        sums = dict.fromkeys(("loss", "perceptual", "tv", "identity"), 0.0)
        if self.target.heads > 1:
            sums |= {f"cluster_{k}": 0.0 for k in range(self.target.heads)}
        done = 0
        while done < self.batch:
            n = min(self.micro_batch, self.batch - done)
            parts, assignment = self.loss(n, psi)
            share = n / self.batch
            for key, part in zip(("loss", "perceptual", "tv", "identity"), parts, strict=True):
                sums[key] += share * part.item()
            if assignment is not None and self.target.heads > 1:
                for cluster in assignment.cluster.tolist():
                    sums[f"cluster_{cluster}"] += 1 / self.batch
            if not math.isfinite(sums["loss"]):
                raise NotFinite(f"the loss is {sums['loss']} at step {index}")
            (parts.total * share).backward()
            done += n
        _set_learning_rate(self.transformer_optimizer, self.learning_rate * factor)
        _set_learning_rate(self.target_optimizer, self.target_learning_rate * factor)
        self.transformer_optimizer.step()
        if self.is_split and not self.freeze_target:
            self.target_optimizer.step()
        return {**sums, "psi": psi, "lr": self.learning_rate * factor}


def _set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = value
