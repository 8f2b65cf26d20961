# SPDX-License-Identifier: Apache-2.0
"""The learned target: a latent that every sample's own latent is drawn towards (arXiv 2112.05143, section 3.2).

    c     = mean + coefficients @ directions
    mixed = lerp(c, w, psi)      for the first `inject` layers of the generator
    w                            for all others

The directions are principal components of w, so that a handful of coefficients moves the target within the
generator's range.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gangealing_fast.ops._dispatch import reference_wanted


class PrincipalComponents(NamedTuple):
    """`directions` `[C, D]`, orthonormal rows, strongest first; `mean` `[1, D]`; `deviation` `[C]`."""

    directions: Tensor
    mean: Tensor
    deviation: Tensor


@torch.no_grad()
def principal_components(
    map_latents: Callable[[Tensor], Tensor],
    latent_dim: int,
    *,
    components: int | None = None,
    samples: int = 1_000_000,
    batch: int = 10_000,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> PrincipalComponents:
    """Principal components of `w = map_latents(z)` for `samples` standard normal `z`, drawn and mapped in batches.

    Exact: mean and covariance are accumulated in float64 and decomposed once; memory does not grow with `samples`.
    A component's sign is fixed by making its largest entry positive. The same seed gives the same result.
    """
    if samples < 2 or batch < 1:
        raise ValueError(f"principal components need 2 samples or more in batches of 1 or more, got {samples}, {batch}.")

    def batches() -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        for start in range(0, samples, batch):
            z = torch.randn(min(batch, samples - start), latent_dim, generator=generator).to(device)
            yield map_latents(z).double()

    rest = batches()
    first = next(rest)
    offset = first.mean(0)  # moments about the first batch's mean: no cancellation if the mean is large
    total, moment = torch.zeros_like(offset), offset.new_zeros(first.shape[1], first.shape[1])
    for w in chain([first], rest):
        w = w - offset
        total += w.sum(0)
        moment += w.T @ w
    shift = total / samples
    covariance = (moment - samples * torch.outer(shift, shift)) / (samples - 1)
    values, vectors = torch.linalg.eigh(covariance)
    values, directions = values.flip(0).clamp_min(0), vectors.flip(1).T
    largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
    directions = directions * torch.where(largest < 0, -1.0, 1.0)
    keep = directions.shape[0] if components is None else components
    if not 1 <= keep <= directions.shape[0]:
        raise ValueError(f"components must lie between 1 and the latent dimension {directions.shape[0]}, got {keep}.")
    return PrincipalComponents(directions[:keep].float().contiguous(), (offset + shift).float()[None], values[:keep].sqrt().float())


class LatentTarget(nn.Module):
    """K target latents, learned as coefficients of fixed directions about a fixed mean; they start at the mean.

    directions: `[C, D]`, mean: `[1, D]` or `[D]`, heads: K. State: `coefficients` `[K, C]`, `directions`, `lat_mean`.
    """

    directions: Tensor
    lat_mean: Tensor

    def __init__(self, directions: Tensor, mean: Tensor, heads: int = 1) -> None:
        super().__init__()
        if directions.ndim != 2 or mean.numel() != directions.shape[1]:
            raise ValueError(
                f"directions must be [C, D] and mean hold D numbers, got {list(directions.shape)} and {list(mean.shape)}."
            )
        if heads < 1:
            raise ValueError(f"heads must be 1 or more, got {heads}.")
        self.coefficients = nn.Parameter(directions.new_zeros(heads, directions.shape[0]))
        self.register_buffer("directions", directions.detach().clone())
        self.register_buffer("lat_mean", mean.detach().reshape(1, -1).clone())

    @property
    def heads(self) -> int:
        return self.coefficients.shape[0]

    def target(self) -> Tensor:
        """The target latents c, `[K, D]`."""
        return self.lat_mean + self.coefficients @ self.directions

    def blend(self, w: Tensor, psi: float | Tensor) -> Tensor:
        """`lerp(c, w, psi)` for `w` `[N, D]`: `[N * K, D]`, cluster fastest. psi: a number, or a tensor `[]` of one."""
        if w.ndim != 2 or w.shape[1] != self.directions.shape[1]:
            raise ValueError(f"w must be [N, {self.directions.shape[1]}], got {list(w.shape)}.")
        return torch.lerp(self.target()[None], w[:, None].expand(-1, self.heads, -1), psi).flatten(0, 1)

    def latents(
        self, w: Tensor, psi: float | Tensor, inject: int, num_latents: int, *, head: int | None = None
    ) -> Tensor | list[Tensor]:
        """As `mix_layers`, of cluster `head` alone (`[N, D]` a layer) unless None; on the plain definitions stacked as `mix` does.

        Both give the same numbers. Layer by layer is quicker, stacked is what the method's formula says.
        """
        layers = self.mix_layers(w, psi, inject, num_latents)
        if head is not None:
            layers = [layer[head :: self.heads] for layer in layers]
        return torch.stack(layers, dim=1) if reference_wanted() else layers

    def mix(self, w: Tensor, psi: float | Tensor, inject: int, num_latents: int) -> Tensor:
        """Latents of the target pictures, `[N * K, num_latents, D]`: `inject` blended ones, the rest `w` itself."""
        return torch.stack(self.mix_layers(w, psi, inject, num_latents), dim=1)

    def mix_layers(self, w: Tensor, psi: float | Tensor, inject: int, num_latents: int) -> list[Tensor]:
        """As `mix`, as one `[N * K, D]` tensor for each layer.

        Only the first `inject` of them require a gradient, which spares a frozen generator the rest of its backward
        pass's style gradients: stacking them would make every layer require one.
        """
        if not 0 <= inject <= num_latents:
            raise ValueError(f"inject must lie between 0 and the generator's {num_latents} latents, got {inject}.")
        blended = self.blend(w, psi)
        own = w.repeat_interleave(self.heads, dim=0)
        return [blended] * inject + [own] * (num_latents - inject)
