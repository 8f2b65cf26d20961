# SPDX-License-Identifier: Apache-2.0
"""Networks of twice the size that begin where trained ones ended.

A critic and a generator learn what pictures show at half the size in a quarter of the time (Karras et al. 2018,
arXiv 1710.10196); the fine detail comes after. `start_generator` and `start_critic` keep what the small networks compute: the
new last block of the generator adds nothing yet to the doubled picture, and the new first block of the critic hands the halved
picture to the old layers as they knew it.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gangealing_fast.checkpoints.reading import load_generator
from gangealing_fast.models import Discriminator, Generator
from gangealing_fast.models.generator import ToRGB
from gangealing_fast.models.layers import ConvLayer, ResBlock
from gangealing_fast.runtime.errors import UserError
from gangealing_fast.storage import checkpoint

SLOPE = 0.2


def start_from(path: Path, kind: str, generator: Generator, critic: nn.Module) -> None:
    """Load what training is to begin with: the generator's weights, and the critic's if `path` has those of such a critic.

    path: a file with a generator, or the folder of a run whose checkpoints are of this kind. Raises UserError if the networks
    there have another shape than these; the size may be half.
    """
    start = _read_start(path, kind, generator.config())
    start_generator(generator, start["generator"])
    if isinstance(critic, Discriminator) and _outputs(start.get("critic", {})) == critic.outputs:
        start_critic(critic, start["critic"])


def _outputs(critic: dict[str, Tensor]) -> int:
    """How many outputs the weights of a StyleGAN2 critic have; 0 for those of another critic, which has other layers."""
    last = critic.get("final_linear.1.weight")
    return 0 if last is None else last.shape[0]


def _read_start(path: Path, kind: str, wanted: dict[str, Any]) -> dict[str, dict[str, Tensor]]:
    """Weights to begin with: "generator", and "critic" if `path` is the folder of a run; `wanted`: the generator's options."""
    if path.is_dir():
        state = checkpoint.load_latest(path, kind=kind)
        config, start = state["config"], {"generator": state["average"], "critic": state["critic"]}
        if "mapping_layers" not in config:
            raise UserError(f"--start-from {path} is a run of --architecture dcgan, which has no StyleGAN2 generator to begin with")
    else:
        generator = load_generator(path)
        config, start = generator.config(), {"generator": generator.state_dict()}
    differing = [key for key, value in wanted.items() if config[key] != value and not (key == "size" and 2 * config[key] == value)]
    if differing:
        raise UserError(
            f"--start-from {path} has another shape ({', '.join(f'{k} {config[k]}' for k in differing)}); give the options that "
            "it was trained with (--size may be twice its size)"
        )
    return start


@torch.no_grad()
def start_generator(generator: Generator, weights: dict[str, Tensor]) -> None:
    """Load the weights of a generator of the same or half the size; new layers keep their random weights but show nothing."""
    missing, unexpected = generator.load_state_dict(weights, strict=False)
    if unexpected:
        raise ValueError(f"{unexpected[0]} is no weight of this generator")
    if missing:
        last = generator.to_rgbs[-1]
        assert isinstance(last, ToRGB)
        nn.init.zeros_(last.conv.weight)


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
    assert isinstance(from_rgb, ConvLayer) and isinstance(block, ResBlock)
    colours, pairs = weight.shape[1], 2 * weight.shape[1]
    signs = torch.cat([torch.eye(colours), -torch.eye(colours)]).to(weight)
    entry, middle = from_rgb.convolution, block.conv1.convolution
    last, skip = block.conv2.convolution, block.skip.convolution
    entry.weight[:pairs] = (signs / entry.scale)[:, :, None, None]
    middle.weight[:pairs] = 0
    middle.weight[range(pairs), range(pairs), 1, 1] = 1 / middle.scale
    # Both activations before the last convolution multiply by sqrt(2); a pair's difference after two is (1 + slope²) a.
    carried = 2 * (1 + SLOPE**2)
    # The small network's first layer has its own He constant, and the block divides its sum by sqrt(2).
    wanted = weight[:, :, 0, 0] / math.sqrt(colours) * math.sqrt(2)
    last.weight.zero_()
    last.weight[:, :pairs, 1, 1] = wanted @ signs.T / carried / last.scale
    block.conv2.activation.bias.copy_(bias * math.sqrt(2))
    skip.weight.zero_()
