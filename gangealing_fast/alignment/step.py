# SPDX-License-Identifier: Apache-2.0
"""One step of GAN-supervised alignment (arXiv 2112.05143, section 3): samples, targets, loss, both optimisers, running average."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from gangealing_fast.alignment.clustering import Assignment, assign, cluster_distances
from gangealing_fast.alignment.graphs import RecordedPasses
from gangealing_fast.alignment.losses import AlignmentLoss, alignment_loss
from gangealing_fast.alignment.options import Clusters, Schedule, Targets, Weights
from gangealing_fast.alignment.poses import POSE_NUMBERS, PoseRange, equivariance_error, show
from gangealing_fast.alignment.templates import FeatureDistance, split_template
from gangealing_fast.geometry.warping import Warping
from gangealing_fast.geometry.warps import mirror_matrix, mirror_pictures
from gangealing_fast.metrics.perceptual import Distance
from gangealing_fast.models.generator import Generator, truncate
from gangealing_fast.models.latent_target import LatentTarget
from gangealing_fast.models.spatial_transformer import Alignment, SpatialTransformer
from gangealing_fast.runtime.distributed import Group
from gangealing_fast.runtime.precision import LossScale, autocast
from gangealing_fast.runtime.randomness import derived_seed, normal_rows, private_stream
from gangealing_fast.training.loop import NotFinite
from gangealing_fast.training.optim import AdamEma


class Draws(NamedTuple):
    """Everything random about N samples: z `[N, D]`, the noise of the generator's layers, `[N, 1, r, r]` each for the samples
    and `[N * K, 1, r, r]` for the targets of K clusters, and the poses `[N, 2, 3]` that they are shown in, if any."""

    z: Tensor
    noise: list[Tensor]
    target_noise: list[Tensor]
    pose: Tensor | None


class Samples(NamedTuple):
    """Generator samples `[N, 3, S, S]`, the targets they are aligned to `[N, 3, F, F]`, and the alignment itself.

    With clusters or flips: each sample as it was chosen (mirrored perhaps), the target of its cluster, and what was chosen.
    equivariance: `[N]`, how far the sample as it was made and in the pose it is shown in are carried apart; in training alone.
    """

    unaligned: Tensor
    target: Tensor
    aligned: Alignment
    assignment: Assignment | None = None
    equivariance: Tensor | None = None


@dataclass
class AlignmentStep:
    """Networks and weights of one training step; `step(i)` changes the transformer, the target and the running average.

    `transformer_optimizer` keeps `average`, the running average of the transformer. With K clusters and `clusters.single_steps`,
    head 0 alone learns first, with the generator's mean as its template; then `split` starts K templates and heads from it.
    poses: samples are shown in random poses of this range; `weights.equivariance` says how much it counts that these are undone.
    truncation: of the samples' latents, towards the generator's mean.
    compiled: run the loss through torch.compile. cuda_graphs: record each pass, backward included, once and replay it (CUDA only).
    """

    generator: Generator
    transformer: SpatialTransformer
    average: SpatialTransformer
    target: LatentTarget
    perceptual: Distance
    transformer_optimizer: AdamEma
    target_optimizer: AdamEma
    batch: int
    micro_batch: int
    schedule: Schedule
    weights: Weights
    warping: Warping
    targets: Targets
    clusters: Clusters = Clusters()
    poses: PoseRange = PoseRange()
    sample_from_full_resolution: bool = True
    truncation: float = 1.0
    dtype: torch.dtype = torch.float32
    seed: int = 0
    group: Group = field(default_factory=lambda: Group(torch.device("cpu")))
    compiled: bool = False
    cuda_graphs: bool = False

    def __post_init__(self) -> None:
        self.loss_scale = LossScale(self.dtype)
        # Without dynamic shapes: there are two sizes of a pass at most, and each deserves its own code.
        self._loss = torch.compile(self.loss, dynamic=False) if self.compiled else self.loss
        self._begin(is_split=self.clusters.single_steps == 0)

    def _begin(self, *, is_split: bool) -> None:
        self.is_split = is_split
        self._run = RecordedPasses(self._pass, self._parameters()) if self.cuda_graphs else self._pass

    @property
    def _target_learns(self) -> bool:
        return self.is_split and not self.targets.frozen

    def _parameters(self) -> list[Tensor]:
        return [*self.transformer.parameters(), *self.target.parameters()]

    def split(self) -> None:
        """Choose K templates among samples that head 0 aligns, and let every head start as a copy of head 0."""
        target = self.target
        if not isinstance(self.perceptual, FeatureDistance):
            raise TypeError("templates are split by a perceptual distance whose features can be kept")
        if self.group.lead:
            with private_stream(derived_seed(self.seed, "split")), autocast(target.lat_mean.device, self.dtype):
                split_template(
                    target,
                    self.generator,
                    self.average,
                    self.perceptual,
                    candidates=self.clusters.candidates,
                    inject=self.targets.inject,
                    truncation=self.truncation,
                    warping=self.warping,
                )
        target.load_state_dict(self.group.from_lead(target.state_dict(), "the choice of templates"))
        self.average.copy_first_head()
        moments = self.transformer_optimizer.state
        self.transformer.copy_first_head(lambda parameter: [moments[parameter][name] for name in ("exp_avg", "exp_avg_sq")])
        self._begin(is_split=True)

    def draw(self, stream: int | str, rows: Sequence[int]) -> Tensor:
        """Random numbers of samples `[len(rows), M]`, for `samples` and `loss`: a function of seed, stream, row and device.

        stream: the number of the step in training, a name elsewhere, so that looking at a run does not change it.
        """
        generator = self.generator
        noise = sum(buffer.numel() for buffer in generator.noises.buffers())
        width = generator.latent_dim + (1 + self.target.heads) * noise + POSE_NUMBERS * self.poses.wanted
        return normal_rows((self.seed, stream), rows, width, self.target.lat_mean.device)

    def _draws(self, numbers: Tensor) -> Draws:
        generator, heads = self.generator, self.target.heads
        shapes = [buffer.shape[2:] for buffer in generator.noises.buffers()]
        sizes = [shape.numel() for shape in shapes]
        pose = POSE_NUMBERS * self.poses.wanted
        z, *parts, last = numbers.split([generator.latent_dim, *sizes, *(heads * size for size in sizes), pose], 1)
        layers = [part.reshape(-1, 1, *shape) for part, shape in zip(parts, [*shapes, *shapes], strict=True)]
        return Draws(z, layers[: len(shapes)], layers[len(shapes) :], self.poses.draw(last) if pose else None)

    @torch.no_grad()
    def generated(self, numbers: Tensor) -> Tensor:
        """The samples of `draw` as the generator makes them, `[N, 3, S, S]`, in no other pose."""
        with autocast(numbers.device, self.dtype):
            return self._generated(self._draws(numbers))[1]

    @torch.no_grad()
    def _generated(self, draws: Draws) -> tuple[Tensor, Tensor]:
        """w `[N, D]` and the pictures made from it, at the size they are warped from."""
        w = truncate(self.generator.map(draws.z).float(), self.truncation, self.target.lat_mean)
        made = self.generator.synthesize(w, draws.noise)
        return w, made if self.sample_from_full_resolution else self.transformer.network_input(made)

    def samples(self, numbers: Tensor, psi: float | Tensor, transformer: SpatialTransformer | None = None) -> Samples:
        """The samples of `draw`, their targets at this psi, and how they are aligned."""
        generator = self.generator
        draws = self._draws(numbers)
        transformer = self.transformer if transformer is None else transformer
        with autocast(numbers.device, self.dtype):
            w, unaligned = self._generated(draws)
            shown = unaligned if draws.pose is None else show(unaligned, draws.pose, self.warping.padding_mode)
            clusters = self.target.heads
            if self.clusters.flips or (clusters > 1 and self.is_split):
                return self._assigned_samples(w, unaligned, shown, draws, psi, transformer)
            noise, first, head = draws.target_noise, None, None
            if clusters > 1:  # before the split: the rows of cluster 0
                head, noise = 0, [layer[::clusters] for layer in noise]
                zeros = torch.zeros(w.shape[0], dtype=torch.long, device=w.device)
                first = Assignment(zeros, zeros.bool(), zeros.float())
            latents = self.target.latents(w, psi, self.targets.inject, generator.n_latent, head=head)
            # The target has noise of its own: sharing it between sample and target makes training worse, as was found for the
            # published models.
            with torch.set_grad_enabled(torch.is_grad_enabled() and self._target_learns):
                target = generator.synthesize(latents, noise)
            target = self.transformer.network_input(target)
            aligned, apart = self._align(transformer, unaligned, shown, draws.pose, None if first is None else first.cluster)
            return Samples(shown, target, aligned, first, apart)

    def _align(
        self, transformer: SpatialTransformer, unaligned: Tensor, shown: Tensor, pose: Tensor | None, assignment: Tensor | None
    ) -> tuple[Alignment, Tensor | None]:
        """The alignment of samples as `shown`, and in training their equivariance error against the samples as they were made."""
        aligned = transformer(shown, warping=self.warping, assignment=assignment)
        if pose is None or not self.weights.equivariance or not torch.is_grad_enabled():
            return aligned, None
        as_made = transformer(unaligned, warping=self.warping, assignment=assignment)
        return aligned, equivariance_error(as_made.grid, aligned.grid, pose)

    def _assigned_samples(
        self, w: Tensor, unaligned: Tensor, shown: Tensor, draws: Draws, psi: float | Tensor, transformer: SpatialTransformer
    ) -> Samples:
        """Samples `w`, `unaligned`, as `shown`, with the cluster (and mirror) whose target each comes nearest to.

        All classes are compared without gradients, and the chosen one alone is computed again with them: the same gradient as that
        of the least of all distances, for a fraction of the work. The noise of its target is the one it was compared with.
        Before the split there is cluster 0 alone.
        """
        generator, clusters, noise, pose = self.generator, self.target.heads, draws.target_noise, draws.pose
        inject = self.targets.inject
        with torch.no_grad():
            latents = self.target.mix_layers(w, psi, inject, generator.n_latent)
            targets = self.transformer.network_input(generator.synthesize(latents, noise))
            distances = cluster_distances(
                transformer, self.perceptual, shown, targets, flips=self.clusters.flips, warping=self.warping
            )
            if not self.is_split:
                distances.unflatten(1, (-1, clusters))[:, :, 1:] = math.inf
            found = assign(distances, clusters)
        rows = torch.arange(w.shape[0], device=w.device) * clusters + found.cluster
        target = targets[rows]
        if torch.is_grad_enabled() and self._target_learns:
            blended = self.target.blend(w, psi)[rows]
            layers = [blended] * inject + [w] * (generator.n_latent - inject)
            target = self.transformer.network_input(generator.synthesize(layers, [layer[rows] for layer in noise]))
        unaligned, shown = (mirror_pictures(images, found.mirrored) for images in (unaligned, shown))
        pose = None if pose is None else mirror_matrix(pose, found.mirrored)
        aligned, apart = self._align(transformer, unaligned, shown, pose, found.cluster)
        return Samples(shown, target, aligned, found, apart)

    def loss(self, numbers: Tensor, psi: float | Tensor) -> tuple[AlignmentLoss, Assignment | None]:
        """Loss of the samples of `draw`, and their clusters where there are several."""
        samples = self.samples(numbers, psi)
        with autocast(samples.target.device, self.dtype):
            loss = alignment_loss(
                self.perceptual,
                samples.aligned.image,
                samples.target,
                samples.aligned.residual_flow,
                self.weights,
                equivariance=samples.equivariance,
            )
        return loss, samples.assignment

    def _pass(self, numbers: Tensor, psi: Tensor, share: Tensor) -> Tensor:
        """Forward and backward of one micro-batch; its part of the step's statistics: loss, its parts, samples in each cluster."""
        parts, assignment = self._loss(numbers, psi)
        (parts.total * share).backward()
        statistics = torch.stack([part.detach().float() for part in parts if part is not None]) * len(numbers)
        if assignment is None or self.target.heads == 1:
            return statistics
        members = assignment.cluster[:, None] == torch.arange(self.target.heads, device=numbers.device)
        return torch.cat([statistics, members.sum(0)])

    def step(self, index: int) -> dict[str, float]:
        """Step number `index`, from 0: accumulate over micro-batches and processes, update, average.

        In float16 a step whose gradients overflow changes nothing but the scale of the loss. Raises NotFinite, in all processes,
        before any change.
        """
        if not self.is_split and index >= self.clusters.single_steps:
            self.split()
        psi, (rate, target_rate) = self.schedule.psi(index), self.schedule.rates(index)
        self.transformer_optimizer.zero_grad(set_to_none=True)
        self.target_optimizer.zero_grad(set_to_none=True)
        names = ["loss", "perceptual", "tv", "identity"]
        if self.poses.wanted and self.weights.equivariance:
            names.append("equivariance")
        if self.target.heads > 1:
            names += [f"cluster_{k}" for k in range(self.target.heads)]
        device = self.target.lat_mean.device
        psi_there = torch.tensor(psi, device=device)
        sums = torch.zeros(len(names), device=device)
        rows = self.group.share(self.batch)
        for start in range(0, len(rows), self.micro_batch):
            numbers = self.draw(index, rows[start : start + self.micro_batch])
            share = torch.tensor(self.loss_scale.value * len(numbers) / self.batch, device=device)
            sums += self._run(numbers, psi_there, share)
        sums = self.group.total(sums, f"the losses of step {index + 1}") / self.batch
        statistics = dict(zip(names, sums.tolist(), strict=True))
        if not math.isfinite(statistics["loss"]):
            raise NotFinite(f"the loss is {statistics['loss']} at step {index}")
        self.group.add_gradients(self._parameters(), f"the gradients of step {index + 1}")
        statistics |= {"psi": psi, "lr": rate}
        if self.loss_scale.active:
            statistics["loss_scale"] = self.loss_scale.value
        if not self.loss_scale.settle(self._parameters()):
            if self.loss_scale.value < 2.0**-10:
                raise NotFinite(f"the gradients overflow whatever the loss is scaled by at step {index}")
            return statistics
        _set_learning_rate(self.transformer_optimizer, rate)
        _set_learning_rate(self.target_optimizer, target_rate)
        self.transformer_optimizer.step()
        if self._target_learns:
            self.target_optimizer.step()
        return statistics


def _set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = value
