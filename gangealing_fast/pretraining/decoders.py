# SPDX-License-Identifier: Apache-2.0
"""A generator that begins with what the decoder of an autoencoder has learned to draw."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from gangealing_fast.autoencoders.autoencoder import EXPORT_NAME, KIND, AdversarialAutoencoder
from gangealing_fast.autoencoders.networks import Decoder
from gangealing_fast.models import DcganGenerator
from gangealing_fast.pretraining.sampling import PictureGenerator
from gangealing_fast.runtime.errors import UserError
from gangealing_fast.storage.exports import load_safetensors


def autoencoder_in(path: Path) -> AdversarialAutoencoder | None:
    """The autoencoder in a file or in a results folder of `autoencode`; None if `path` is something else."""
    if path.is_dir():
        return AdversarialAutoencoder.load(path) if (path / EXPORT_NAME).is_file() else None
    if path.suffix != ".safetensors" or not path.is_file() or load_safetensors(path)[1].get("kind") != KIND:
        return None
    return AdversarialAutoencoder.load(path)


@torch.no_grad()
def start_from_decoder(path: Path, decoder: Decoder, generator: PictureGenerator) -> None:
    """Give a DCGAN generator the decoder's convolutions, all but those that make the first 4x4 pixels, which differ in kind.

    A decoder's pictures are sigmoids, the generator's tanh(x) = 2 sigmoid(2 x) - 1: the last layer is halved. Grey pictures become
    three equal colours. The generator's normalisation is its own, so that its first pictures are not yet the decoder's.
    Raises UserError for a generator with styles, or layers of other shapes.
    """
    if not isinstance(generator, DcganGenerator):
        raise UserError(f"--start-from {path} is an autoencoder, whose decoder has no styles: give --architecture dcgan for it")
    theirs = [module for module in decoder.modules() if isinstance(module, nn.ConvTranspose2d)]
    if not theirs:
        raise UserError(f"--start-from {path} has dense layers alone: train one with autoencode --architecture convolutional")
    own = [module for module in generator.layers if isinstance(module, nn.ConvTranspose2d)][1:]
    widest = theirs[0].in_channels
    # The last layer has as many colours as the pictures; all others must agree.
    if [module.in_channels for module in theirs] != [module.in_channels for module in own]:
        raise UserError(
            f"--start-from {path} has layers of other shapes: give --size {decoder.side} --max-channels {widest} "
            f"--channel-base {4 * widest}"
        )
    for source, target in zip(theirs[:-1], own[:-1], strict=True):
        target.weight.copy_(source.weight)
    last, drawn = theirs[-1], own[-1]
    assert last.bias is not None and drawn.bias is not None
    drawn.weight.copy_(last.weight.expand_as(drawn.weight) / 2)
    drawn.bias.copy_(last.bias.expand_as(drawn.bias) / 2)
    print(f"{path}: {len(own)} of the generator's {len(own) + 1} layers begin as the decoder's; the critic begins anew")
