# SPDX-License-Identifier: Apache-2.0
"""StyleGAN2 generator with skip connections (arXiv 1912.04958, figure 7), sizes from 8 to 1024."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gangealing_fast.models.layers import EqualLinear, FusedLeakyReLU, ModulatedConv2d, PixelNorm, activation_format, computed_dtype
from gangealing_fast.ops.upfirdn2d import blur_filter, upfirdn2d

Noise = Literal["random", "fixed"]


@dataclass(frozen=True)
class Widths:
    """How many channels a resolution has: 512 up to 32², then 256 m, 128 m, …; or `base / resolution` where `base` is set."""

    multiplier: float = 2.0
    maximum: int = 512
    base: int | None = None

    def at(self, resolution: int) -> int:
        if self.base is not None:
            return max(8, min(self.maximum, self.base // resolution))
        full = 512 if resolution <= 32 else int(256 * self.multiplier * 64 / resolution)
        return min(self.maximum, full)


class NoiseInjection(nn.Module):
    """Strength of the noise added to a layer; the sum itself is part of the convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))


class StyledConv(nn.Module):
    """Modulated convolution, noise, bias and leaky ReLU."""

    def __init__(self, in_channels: int, out_channels: int, latent_dim: int, *, up: bool = False, normalize: bool = False) -> None:
        super().__init__()
        self.conv = ModulatedConv2d(in_channels, out_channels, 3, latent_dim, up=up, normalize=normalize)
        self.noise = NoiseInjection()
        self.activate = FusedLeakyReLU(out_channels)

    def forward(self, x: Tensor, latent: Tensor, noise: Tensor | None) -> Tensor:
        dtype = computed_dtype(x)
        if noise is None:
            scale = 2 if self.conv.up else 1
            noise = torch.randn(x.shape[0], 1, scale * x.shape[2], scale * x.shape[3], device=x.device, dtype=dtype)
        return self.conv(x, latent, bias=self.activate.bias, noise=noise.to(dtype), noise_strength=self.noise.weight)


class Upsample(nn.Module):
    """Double the size with the low-pass filter [1, 3, 3, 1], gain 4."""

    kernel: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kernel", blur_filter(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return upfirdn2d(x, self.kernel, up=2, padding=(2, 1), gain=4.0)


class ToRGB(nn.Module):
    """1x1 modulated convolution to three channels, added to the upsampled image so far."""

    def __init__(self, in_channels: int, latent_dim: int, *, up: bool = True) -> None:
        super().__init__()
        if up:
            self.upsample = Upsample()
        self.conv = ModulatedConv2d(in_channels, 3, 1, latent_dim, demodulate=False)
        self.bias = nn.Parameter(torch.zeros(1, 3, 1, 1))

    def forward(self, x: Tensor, latent: Tensor, skip: Tensor | None = None) -> Tensor:
        image = (self.conv(x, latent) + self.bias.to(x.dtype)).float()
        return image if skip is None else image + self.upsample(skip)


class ConstantInput(nn.Module):
    """The learned 4x4 start."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.input = nn.Parameter(torch.randn(1, channels, 4, 4))


class Generator(nn.Module):
    """StyleGAN2 generator.

    size: picture side, a power of two >= 8. latent_dim: length of z and w. mapping_layers: depth of the mapping network.
    channel_multiplier, max_channels, channel_base: see `Widths`. num_fp16_res: how many of the last resolutions use the
    half-precision-safe modulation. Raises ValueError where size is no power of two of at least 8.
    """

    def __init__(
        self,
        size: int,
        latent_dim: int = 512,
        mapping_layers: int = 8,
        channel_multiplier: float = 2.0,
        *,
        max_channels: int = 512,
        channel_base: int | None = None,
        num_fp16_res: int = 0,
    ) -> None:
        super().__init__()
        if size < 8 or size & (size - 1):
            raise ValueError(f"Generator: size must be a power of two of at least 8, got {size}")
        self.size, self.latent_dim, self.mapping_layers = size, latent_dim, mapping_layers
        self.widths = Widths(channel_multiplier, max_channels, channel_base)
        self.num_fp16_res = num_fp16_res
        self.log_size = int(math.log2(size))
        self.n_latent = 2 * self.log_size - 2
        mapping = [
            EqualLinear(latent_dim, latent_dim, learning_rate_multiplier=0.01, activation=True) for _ in range(mapping_layers)
        ]
        self.style = nn.Sequential(PixelNorm(), *mapping)
        channels = self.widths.at(4)
        self.input = ConstantInput(channels)
        self.conv1 = StyledConv(channels, channels, latent_dim)
        self.to_rgb1 = ToRGB(channels, latent_dim, up=False)
        self.convs, self.to_rgbs, self.noises = nn.ModuleList(), nn.ModuleList(), nn.Module()
        self.noises.register_buffer("noise_0", torch.randn(1, 1, 4, 4))
        for exponent in range(3, self.log_size + 1):
            resolution = 2**exponent
            half = exponent > self.log_size - num_fp16_res
            out = self.widths.at(resolution)
            self.convs.append(StyledConv(channels, out, latent_dim, up=True, normalize=half))
            self.convs.append(StyledConv(out, out, latent_dim, normalize=half))
            self.to_rgbs.append(ToRGB(out, latent_dim))
            for k in (2 * exponent - 5, 2 * exponent - 4):
                self.noises.register_buffer(f"noise_{k}", torch.randn(1, 1, resolution, resolution))
            channels = out

    def config(self) -> dict[str, Any]:
        """The constructor's arguments, for checkpoints: `Generator(**config)` rebuilds the network."""
        widths = asdict(self.widths)
        return {
            "size": self.size,
            "latent_dim": self.latent_dim,
            "mapping_layers": self.mapping_layers,
            "channel_multiplier": widths["multiplier"],
            "max_channels": widths["maximum"],
            "channel_base": widths["base"],
            "num_fp16_res": self.num_fp16_res,
        }

    def map(self, z: Tensor, *, truncation: float = 1.0, truncation_latent: Tensor | None = None) -> Tensor:
        """z `[N, latent_dim]`, standard normal → w `[N, latent_dim]`.

        truncation: psi in [0, 1]: w is drawn to `truncation_latent` `[1, latent_dim]` (`mean_latent`, say) until psi of its
        distance is left (arXiv 1812.04948, appendix B). 1 leaves w as it is. Raises ValueError for a latent that is missing or of
        another shape.
        """
        if z.dim() != 2 or z.shape[1] != self.latent_dim:
            raise ValueError(f"Generator.map: z must be [N, {self.latent_dim}], got {list(z.shape)}")
        return truncate(self.style(z), truncation, truncation_latent)

    @torch.no_grad()
    def mean_latent(self, samples: int = 10_000, *, seed: int = 0) -> Tensor:
        """The mean of w over so many z, `[1, latent_dim]`; a function of the seed."""
        z = torch.randn(samples, self.latent_dim, generator=torch.Generator().manual_seed(seed))
        return self.style(z.to(self.input.input.device)).mean(0, keepdim=True)

    def _per_layer(self, latents: Tensor | Sequence[Tensor]) -> Sequence[Tensor]:
        if isinstance(latents, Tensor) and latents.dim() == 2:
            return [latents] * self.n_latent
        layers = latents.unbind(1) if isinstance(latents, Tensor) else list(latents)
        if len(layers) != self.n_latent:
            raise ValueError(f"Generator.synthesize: {self.n_latent} latents per sample are needed, got {len(layers)}")
        return layers

    def synthesize(self, latents: Tensor | Sequence[Tensor], noise: Noise | Sequence[Tensor] = "random") -> Tensor:
        """Pictures `[N, 3, size, size]`, about [-1, 1], from w `[N, D]`, `[N, n_latent, D]` or one `[N, D]` per layer.

        One tensor per layer keeps the layers that need no gradient out of the graph. noise: "random" draws anew in every
        call from torch's default generator, "fixed" uses the stored buffers; or one tensor `[N, 1, r, r]` per layer.
        """
        w = self._per_layer(latents)
        if noise == "random":
            fixed: list[Tensor | None] = [None] * (self.n_latent - 1)
        elif noise == "fixed":
            fixed = list(self.noises.buffers())
        elif isinstance(noise, str) or len(noise) != self.n_latent - 1:
            raise ValueError(f'Generator.synthesize: noise must be "random", "fixed" or {self.n_latent - 1} tensors, got {noise!r}')
        else:
            fixed = list(noise)
        x = self.input.input.expand(w[0].shape[0], -1, -1, -1).contiguous(memory_format=activation_format())
        x = self.conv1(x, w[0], fixed[0])
        image = self.to_rgb1(x, w[1])
        for k, to_rgb in enumerate(self.to_rgbs):
            x = self.convs[2 * k](x, w[2 * k + 1], fixed[2 * k + 1])
            x = self.convs[2 * k + 1](x, w[2 * k + 2], fixed[2 * k + 2])
            image = to_rgb(x, w[2 * k + 3], image)
        return image

    def forward(
        self, z: Tensor, noise: Noise = "random", *, truncation: float = 1.0, truncation_latent: Tensor | None = None
    ) -> Tensor:
        """`synthesize(map(z))`; arguments as in these."""
        return self.synthesize(self.map(z, truncation=truncation, truncation_latent=truncation_latent), noise)


def truncate(w: Tensor, truncation: float, latent: Tensor | None) -> Tensor:
    """w `[N, D]` drawn to a latent `[1, D]` until `truncation` of the distance is left; w itself if that is 1.

    Raises ValueError for a truncation outside [0, 1] and, below 1, a latent that is missing or of another shape.
    """
    if not 0 <= truncation <= 1:
        raise ValueError(f"truncation must be in [0, 1], got {truncation}")
    if truncation == 1:
        return w
    if latent is None or latent.shape != (1, w.shape[1]):
        found = "none" if latent is None else list(latent.shape)
        raise ValueError(
            f"truncation needs the latent that w is drawn to, [1, {w.shape[1]}], got {found}; see Generator.mean_latent"
        )
    return torch.lerp(latent.to(w.dtype), w, truncation)
