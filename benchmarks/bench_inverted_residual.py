# SPDX-License-Identifier: Apache-2.0
"""Blocks of EfficientNet-lite0 as joint alignment meets them, one picture of 384² pixels, channels-last; and all eleven of them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.case import FORWARD, Case, Variant, compiled
from gangealing_fast.models import EfficientNetPerceptual
from gangealing_fast.ops.inverted_residual import inverted_residual, inverted_residual_reference

# side of x, channels in, hidden and out, kernel, stride
BLOCKS = (
    (192, 16, 96, 24, 3, 2),
    (96, 24, 144, 24, 3, 1),
    (48, 40, 240, 40, 5, 1),
    (24, 80, 480, 80, 3, 1),
    (24, 112, 672, 112, 5, 1),
)


def _keywords(kernel: int, stride: int) -> dict[str, object]:
    # TensorFlow's "same" padding of an even side.
    before, after = (kernel - stride) // 2, (kernel - stride + 1) // 2
    return {"stride": stride, "padding": (before, after, before, after), "padding_mode": "replicate"}


def _network() -> Case:
    """The features at 1/8 and 1/16: stem and eleven blocks, by the operator and layer by layer."""
    blocks, layers = (EfficientNetPerceptual((2, 4), padding="replicate", fused=fused) for fused in (True, False))

    def inputs(device: torch.device) -> tuple[Tensor, ...]:
        for network in (blocks, layers):
            network.to(device)
        return ((torch.rand(1, 3, 384, 384) * 2 - 1).to(device),)

    return Case(
        operator="inverted_residual",
        name="stem and eleven blocks of EfficientNet-lite0 at 384²",
        inputs=inputs,
        variants=(
            Variant("ours", torch.no_grad()(blocks.features)),
            Variant("reference", torch.no_grad()(layers.features), note="the network's layers one by one, ReLU6 in place"),
        ),
        passes=(FORWARD,),
        operations={FORWARD: 2 * 0.714e9},
        targets={"reference": 1.4},
    )


def cases() -> list[Case]:
    result = [_network()]
    for side, inputs_of, hidden, outputs, kernel, stride in BLOCKS:
        keywords = {**_keywords(kernel, stride), "residual": stride == 1 and inputs_of == outputs}

        def inputs(
            device: torch.device, side: int = side, ins: int = inputs_of, hidden: int = hidden, outs: int = outputs, k: int = kernel
        ) -> tuple[Tensor, ...]:
            weights = [torch.randn(hidden, ins, 1, 1) / ins**0.5, torch.randn(hidden), torch.randn(hidden, 1, k, k) / k]
            weights += [torch.randn(hidden), torch.randn(outs, hidden, 1, 1) / hidden**0.5, torch.randn(outs)]
            x = torch.randn(1, ins, side, side).contiguous(memory_format=torch.channels_last)
            return x.to(device), *(weight.to(device) for weight in weights)

        def ours(*tensors: Tensor, keywords: dict = keywords) -> Tensor:
            return inverted_residual(*tensors, **keywords)

        def reference(*tensors: Tensor, keywords: dict = keywords) -> Tensor:
            return inverted_residual_reference(*tensors, **keywords)

        def by_torch(x: Tensor, *weights: Tensor, keywords: dict = keywords) -> Tensor:
            expand, expand_bias, depthwise, depthwise_bias, project, project_bias = weights
            y = F.pad(F.conv2d(x, expand, expand_bias).clamp_(0, 6), keywords["padding"], mode="replicate")
            y = F.conv2d(y, depthwise, depthwise_bias, keywords["stride"], groups=len(depthwise)).clamp_(0, 6)
            y = F.conv2d(y, project, project_bias)
            return y.add_(x) if keywords["residual"] else y

        out = side // stride
        products = side**2 * inputs_of * hidden + out**2 * hidden * (kernel**2 + outputs)
        weights = hidden * (inputs_of + kernel**2 + outputs + 2) + outputs
        result.append(
            Case(
                operator="inverted_residual",
                name=f"{inputs_of}-{hidden}-{outputs} at {side}², kernel {kernel}, stride {stride}",
                inputs=inputs,
                variants=(
                    Variant("ours", ours),
                    Variant("reference", reference),
                    Variant("torch", by_torch, note="three convolutions, channels-last, in place"),
                    *((compiled(reference),) if side == 192 else ()),
                ),
                passes=(FORWARD,),
                moved={FORWARD: 4.0 * (side**2 * inputs_of + out**2 * outputs + weights)},
                operations={FORWARD: 2.0 * products},
                targets={"torch": 1.1},
            )
        )
    return result
