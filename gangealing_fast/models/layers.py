# SPDX-License-Identifier: Apache-2.0
"""Building blocks that the generator, the discriminator, the transformer and the classifier share (StyleGAN2, arXiv 1912.04958).

Weights are drawn from N(0, 1) and multiplied at run time by their He constant ("equalised learning rate").
State-dict keys are those of the published checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gangealing_fast.ops._dispatch import reference_wanted, transformed
from gangealing_fast.ops.bias_act import bias_act
from gangealing_fast.ops.bilinear_downsample import bilinear_downsample
from gangealing_fast.ops.modulated_conv2d import blur_padding, energy_of, modulated_conv2d
from gangealing_fast.ops.upfirdn2d import blur_filter, upfirdn2d


def activation_format() -> torch.memory_format:
    """The layout that networks compute in: channels-last, which suits the kernels; torch's default under `ops.use("reference")`."""
    return torch.contiguous_format if reference_wanted() else torch.channels_last


def computed_dtype(x: Tensor) -> torch.dtype:
    """The dtype that a convolution of `x` computes in: what autocast asks for, else that of `x`."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) and x.dtype != torch.float64 else x.dtype


class FrozenCopies:
    """What is made of a frozen weight (a cast, a sum), kept until the weight changes; of a weight in training it is made anew.

    Autocast casts the weights of a frozen network in every call, which may cost more than a small layer's convolution.
    """

    def __init__(self) -> None:
        self._kept: dict[str, tuple[tuple[int, int], Tensor]] = {}

    def get(self, weight: Tensor, name: str, make: Callable[[Tensor], Tensor]) -> Tensor:
        """`make(weight)`, from memory where it can be; `name` tells what is made."""
        if torch.compiler.is_compiling() or transformed() or weight.requires_grad or weight.is_inference():
            return make(weight)
        stamp = (weight.data_ptr(), weight._version)
        kept = self._kept.get(name)
        if kept is None or kept[0] != stamp:
            self._kept[name] = kept = (stamp, make(weight.detach()))
        return kept[1]

    def cast(self, weight: Tensor, dtype: torch.dtype) -> Tensor:
        """`weight` in `dtype`."""
        return weight if weight.dtype == dtype else self.get(weight, str(dtype), lambda tensor: tensor.to(dtype))

    def __deepcopy__(self, memo: dict[int, object]) -> FrozenCopies:
        return FrozenCopies()


class PixelNorm(nn.Module):
    """Normalise every vector `[N, C]` to unit root mean square."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-8)


class EqualLinear(nn.Module):
    """Fully connected layer, `weight [out, in]` times `learning_rate_multiplier / sqrt(in)`; optional leaky ReLU."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias_init: float = 0.0,
        learning_rate_multiplier: float = 1.0,
        activation: bool = False,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_features, in_features) / learning_rate_multiplier)
        self.bias = nn.Parameter(torch.full((out_features,), float(bias_init)))
        self.scale = learning_rate_multiplier / math.sqrt(in_features)
        self.multiplier = learning_rate_multiplier
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        bias = self.bias * self.multiplier
        if reference_wanted():
            y = F.linear(x, self.weight * self.scale, bias)
        else:
            # A batch is smaller than the weight: it is the one to scale, and casting the weight for autocast would cost more than
            # the product.
            with torch.autocast(x.device.type, enabled=False):
                y = F.linear(x.to(self.weight.dtype) * self.scale, self.weight, bias)
        return F.leaky_relu(y, 0.2) * math.sqrt(2) if self.activation else y


class EqualConv2d(nn.Module):
    """Convolution, `weight [out, in, k, k]` times `1 / sqrt(in k^2)`."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, *, stride: int = 1, padding: int = 0, bias: bool = True
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        self.scale = 1 / math.sqrt(in_channels * kernel_size**2)
        self.stride, self.padding = stride, padding

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * self.scale, self.bias, stride=self.stride, padding=self.padding)


class FusedLeakyReLU(nn.Module):
    """`leaky_relu(x + bias, 0.2) * sqrt(2)` over channels, in one pass."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, noise: Tensor | None = None, noise_strength: Tensor | None = None) -> Tensor:
        return bias_act(x, self.bias, noise=noise, noise_strength=noise_strength)


class Blur(nn.Module):
    """Low-pass filter [1, 3, 3, 1] with the given padding."""

    kernel: Tensor

    def __init__(self, padding: tuple[int, int]) -> None:
        super().__init__()
        self.register_buffer("kernel", blur_filter(), persistent=False)
        self.padding = padding

    def forward(self, x: Tensor) -> Tensor:
        return upfirdn2d(x, self.kernel, padding=self.padding)


class ConvLayer(nn.Sequential):
    """[blur] → convolution → [leaky ReLU]; `downsample` halves the size."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, *, downsample: bool = False, activate: bool = True
    ) -> None:
        layers: list[nn.Module] = []
        if downsample:
            layers.append(Blur(blur_padding(4, kernel_size, up=False)))
            layers.append(EqualConv2d(in_channels, out_channels, kernel_size, stride=2, bias=False))
        else:
            layers.append(EqualConv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False))
        if activate:
            layers.append(FusedLeakyReLU(out_channels))
        super().__init__(*layers)
        self.activate = activate

    @property
    def convolution(self) -> EqualConv2d:
        """The layer's convolution."""
        found = self[-2 if self.activate else -1]
        assert isinstance(found, EqualConv2d)
        return found

    @property
    def activation(self) -> FusedLeakyReLU:
        """The layer's bias and leaky ReLU, which a layer has that was built with `activate`."""
        found = self[-1]
        assert isinstance(found, FusedLeakyReLU)
        return found

    def forward(self, x: Tensor) -> Tensor:
        if reference_wanted() or not self.activate or computed_dtype(x) == torch.float16:  # without the scale it might overflow
            return super().forward(x)
        *before, convolution, activation = self
        assert isinstance(convolution, EqualConv2d) and isinstance(activation, FusedLeakyReLU)
        for layer in before:
            x = layer(x)
        # lrelu(s y + b) = s lrelu(y + b / s): the run-time scale s of the weight costs nothing in the activation.
        y = F.conv2d(x, convolution.weight, stride=convolution.stride, padding=convolution.padding)
        return bias_act(y, activation.bias / convolution.scale, gain=math.sqrt(2) * convolution.scale)


class ResBlock(nn.Module):
    """Two 3x3 convolutions beside a 1x1 skip, summed and divided by sqrt(2); `downsample` halves the size."""

    def __init__(self, in_channels: int, out_channels: int, *, downsample: bool = True) -> None:
        super().__init__()
        self.conv1 = ConvLayer(in_channels, in_channels, 3)
        self.conv2 = ConvLayer(in_channels, out_channels, 3, downsample=downsample)
        self.skip = ConvLayer(in_channels, out_channels, 1, downsample=downsample, activate=False)

    def forward(self, x: Tensor) -> Tensor:
        return (self.conv2(self.conv1(x)) + self.skip(x)) * (1 / math.sqrt(2))


class ModulatedConv2d(nn.Module):
    """Modulated convolution with its affine map from the latent to the style (bias initialised at 1).

    `normalize`: the variant that half precision does not overflow: before demodulation styles are divided by the largest of the
    batch and weights by their largest entry, which leaves the result unchanged up to the epsilon. fp16 inputs use it always.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        latent_dim: int,
        *,
        demodulate: bool = True,
        up: bool = False,
        down: bool = False,
        normalize: bool = False,
    ) -> None:
        super().__init__()
        weight = torch.randn(1, out_channels, in_channels, kernel_size, kernel_size)
        # A transposed convolution takes the weight with its first axes swapped, which is slow to copy from channels-last.
        layout = torch.contiguous_format if up else activation_format()
        self.weight = nn.Parameter(weight[0].contiguous(memory_format=layout)[None])
        self.modulation = EqualLinear(latent_dim, in_channels, bias_init=1.0)
        self.scale = 1 / math.sqrt(in_channels * kernel_size**2)
        self.demodulate, self.up, self.down, self.normalize = demodulate, up, down, normalize
        self._copies = FrozenCopies()

    def forward(
        self,
        x: Tensor,
        latent: Tensor,
        *,
        bias: Tensor | None = None,
        noise: Tensor | None = None,
        noise_strength: Tensor | None = None,
    ) -> Tensor:
        """x `[N, Cin, H, W]`, latent `[N, D]` → `[N, Cout, H', W']`; other arguments as in `modulated_conv2d`."""
        style = self.modulation(latent).float()
        convolve = partial(
            modulated_conv2d,
            up=self.up,
            down=self.down,
            demodulate=self.demodulate,
            bias=bias,
            noise=noise,
            noise_strength=noise_strength,
        )
        if self.demodulate and (self.normalize or computed_dtype(x) == torch.float16):
            style = style / style.abs().amax().clamp_min(1e-20)
            return convolve(x, self._copies.get(self.weight, "normalized", self._normalized), style)
        if reference_wanted():
            return convolve(x, self.weight[0] * self.scale, style)
        energy = self._copies.get(self.weight, "energy", lambda weight: energy_of(weight[0])) if self.demodulate else None
        weight = self._copies.cast(self.weight, computed_dtype(x))[0]
        # The run-time scale is the style's as well as the weight's, and the style is small.
        return convolve(x, weight, style * self.scale, energy=energy)

    def _normalized(self, weight: Tensor) -> Tensor:
        return weight[0] * (self.scale / weight[0].abs().amax((1, 2, 3), keepdim=True).clamp_min(1e-20))


def normalised(features: Tensor) -> Tensor:
    """Features `[N, C, H, W]` of unit root mean square over channels at every place."""
    return features * torch.rsqrt(features.square().mean(1, keepdim=True) + 1e-6)


def resize_to(images: Tensor, side: int) -> Tensor:
    """Pictures `[N, C, H, W]` at `side` x `side`: by the tent filter of `bilinear_downsample` if square and an even multiple."""
    height, width = images.shape[2:]
    if height == width == side:
        return images
    if height == width and height % (2 * side) == 0:
        return bilinear_downsample(images, height // side)
    return F.interpolate(images, size=(side, side), mode="bilinear", align_corners=False, antialias=True)
