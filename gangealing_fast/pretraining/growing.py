# SPDX-License-Identifier: Apache-2.0
"""Networks of twice the size that begin where trained ones ended.

A critic and a generator learn what pictures show at half the size in a quarter of the time (Karras et al. 2018,
arXiv 1710.10196); the fine detail comes after. Both functions below keep what the small networks compute: the new last block
of the generator adds nothing yet to the doubled picture, and the new first block of the critic hands the halved picture to the
old layers as they knew it.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from gangealing_fast.models import Discriminator, Generator

SLOPE = 0.2


def start_options(small: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """Names of generator options in which `small` cannot be the start of `wanted`; the size may be half."""
    return [key for key, value in wanted.items() if small[key] != value and not (key == "size" and 2 * small[key] == value)]


@torch.no_grad()
def start_generator(generator: Generator, weights: dict[str, Tensor]) -> None:
    """Load the weights of a generator of the same or half the size; new layers keep their random weights but show nothing."""
    missing, unexpected = generator.load_state_dict(weights, strict=False)
    if unexpected:
        raise ValueError(f"{unexpected[0]} is no weight of this generator")
    if missing:
        nn.init.zeros_(generator.to_rgbs[-1].conv.weight)


@torch.no_grad()
def start_critic(critic: Discriminator, weights: dict[str, Tensor]) -> None:
    """Load the weights of a critic of the same or half the size, which then judges the low-passed, halved pictures."""
    own = critic.state_dict()
    if weights.keys() == own.keys():
        critic.load_state_dict(weights)
        return
    moved = {}
    for key, value in weights.items():
        first, _, rest = key.partition(".")
        number, _, rest = rest.partition(".")
        if first == "convs" and int(number) > 0:
            moved[f"convs.{int(number) + 1}.{rest}"] = value
        elif first != "convs":
            moved[key] = value
    critic.load_state_dict(own | moved)
    _pass_through(critic, weights["convs.0.0.weight"], weights["convs.0.1.bias"])


def _pass_through(critic: Discriminator, weight: Tensor, bias: Tensor) -> None:
    """Make the first two parts of `critic` compute lrelu(weight · halved picture + bias), as the small critic's first part did.

    A colour a is carried through a leaky ReLU as the pair lrelu(a), lrelu(-a), whose difference is (1 + slope) a.
    """
    from_rgb, block = critic.convs[0], critic.convs[1]
    colours, pairs = weight.shape[1], 2 * weight.shape[1]
    signs = torch.cat([torch.eye(colours), -torch.eye(colours)]).to(weight)
    entry, middle, last, skip = from_rgb[0], block.conv1[0], block.conv2[1], block.skip[1]
    entry.weight[:pairs] = (signs / entry.scale)[:, :, None, None]
    middle.weight[:pairs] = 0
    middle.weight[range(pairs), range(pairs), 1, 1] = 1 / middle.scale
    # Both activations before the last convolution multiply by sqrt(2); a pair's difference after two is (1 + slope²) a.
    carried = 2 * (1 + SLOPE**2)
    # The small network's first layer has its own He constant, and the block divides its sum by sqrt(2).
    wanted = weight[:, :, 0, 0] / math.sqrt(colours) * math.sqrt(2)
    last.weight.zero_()
    last.weight[:, :pairs, 1, 1] = wanted @ signs.T / carried / last.scale
    block.conv2[2].bias.copy_(bias * math.sqrt(2))
    skip.weight.zero_()
