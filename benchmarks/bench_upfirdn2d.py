# SPDX-License-Identifier: Apache-2.0
"""The 4x4 blurs of generator and transformer, and the upsampling of the generator's picture so far.

The reference gets contiguous activations, which it filters plane by plane; ours and torch's depthwise convolution get the
channels-last ones that the convolutions around them produce.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.case import BOTH, FORWARD, Case, Variant, channels_last, compiled
from gangealing_fast.ops.upfirdn2d import blur_filter, upfirdn2d, upfirdn2d_reference

BATCH = 5
# Channels, input side, padding of the plain blurs: after the generator's transposed convolutions, then before the
# transformer's strided ones.
BLURS = ((512, 33, 1), (512, 65, 1), (256, 129, 1), (128, 257, 1), (64, 128, 2), (512, 32, 2))


def _case(
    name: str,
    channels: int,
    size: int,
    out: int,
    arguments: dict[str, Any],
    torch_best: Callable[..., Tensor],
    *,
    targets: dict[str, float],
    compile_it: bool,
) -> Case:
    gain = float(arguments["up"] ** 2)
    ours = partial(upfirdn2d, up=arguments["up"], padding=arguments["padding"], gain=gain)
    reference = partial(upfirdn2d_reference, up=arguments["up"], padding=arguments["padding"], gain=gain)
    moved = 4.0 * BATCH * channels * (size**2 + out**2)
    return Case(
        operator="upfirdn2d",
        name=name,
        inputs=lambda device: (torch.randn(BATCH, channels, size, size).to(device).requires_grad_(), blur_filter().to(device)),
        variants=(
            Variant("ours", ours, channels_last),
            Variant("reference", reference),
            Variant("torch", torch_best, channels_last, note="depthwise channels-last convolution"),
            *((compiled(reference, passes=(BOTH,)),) if compile_it else ()),
        ),
        moved={FORWARD: moved, BOTH: 2 * moved},
        targets=targets,
    )


def _depthwise(x: Tensor, f: Tensor, padding: int) -> Tensor:
    return F.conv2d(x, f.expand(x.shape[1], 1, 4, 4), padding=padding, groups=x.shape[1])


def _depthwise_up(x: Tensor, f: Tensor) -> Tensor:
    return F.conv_transpose2d(x, 4 * f.expand(x.shape[1], 1, 4, 4), stride=2, padding=1, groups=x.shape[1])


def cases() -> list[Case]:
    result = [
        _case(
            f"blur [{BATCH}, {channels}, {size}, {size}] pad {pad}",
            channels,
            size,
            size + 2 * pad - 3,
            {"up": 1, "padding": (pad, pad)},
            partial(_depthwise, padding=pad),
            targets={"reference": 60, "torch": 2, "bandwidth": 0.5} if size >= 32 else {},
            compile_it=channels == 512 and size == 33,
        )
        for channels, size, pad in BLURS
    ]
    result.append(
        _case(
            f"up 2 [{BATCH}, 3, 128, 128]", 3, 128, 256, {"up": 2, "padding": (2, 1)}, _depthwise_up, targets={}, compile_it=False
        )
    )
    return result
