# SPDX-License-Identifier: Apache-2.0
"""A frozen classifier of digits that reads translations: it was trained on real coloured digits alone, and sees no colour."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gangealing_fast.data.pictures import to_float
from gangealing_fast.data.sampler import InfiniteSampler
from gangealing_fast.runtime.errors import UserError
from gangealing_fast.runtime.randomness import derived_seed, private_stream
from gangealing_fast.storage.exports import export_safetensors, load_safetensors
from gangealing_fast.storage.networks import build_network

EXPORT_NAME = "reader.safetensors"
KIND = "digit reader"
_EPOCHS, _BATCH, _SHIFT = 5, 64, 2


class DigitReader(nn.Module):
    """Logits `[N, classes]` of digits `[N, 3, 32, 32]` in [-1, 1]. It sees the largest of the three channels, over its maximum."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes
        layers: list[nn.Module] = []
        for inputs, outputs in ((1, 16), (16, 32), (32, 48)):
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Linear(48 * 16, 128), nn.ReLU(), nn.Linear(128, classes))

    def forward(self, images: Tensor) -> Tensor:
        ink = (images.amax(1, keepdim=True) + 1) / 2
        logits: Tensor = self.layers(ink / ink.flatten(1).amax(1).clamp_min(0.1).reshape(-1, 1, 1, 1))
        return logits

    @torch.no_grad()
    def read(self, images: Tensor) -> Tensor:
        """Classes `[N]` of digits, in parts."""
        return torch.cat([self(part).argmax(1) for part in images.split(500)])


def train_reader(images: Tensor, classes: Tensor, kinds: int, seed: int) -> DigitReader:
    """A reader of uint8 digits `[N, 3, 32, 32]`, shown with shifts of up to two pixels; torch's own random numbers stay."""
    with private_stream(derived_seed(seed, "reader")):
        reader = DigitReader(kinds)
        optimizer = torch.optim.Adam(reader.parameters(), 2e-3)
        order, steps = InfiniteSampler(len(images), seed), _EPOCHS * max(1, len(images) // _BATCH)
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = 2e-3 * min(1.0, 2 * (1 - step / steps))
            rows = order.next(_BATCH)
            across, down = torch.randint(-_SHIFT, _SHIFT + 1, (2,)).tolist()
            loss = F.cross_entropy(reader(to_float(images[rows]).roll((down, across), (2, 3))), classes[rows])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
    return reader.eval().requires_grad_(False)


def reader_of(folder: Path, images: Tensor, classes: Tensor, kinds: int, seed: int) -> DigitReader:
    """The reader of a run's folder, trained if it is not there yet. Raises UserError if its file is of something else."""
    path = folder / EXPORT_NAME
    if not path.is_file():
        reader = train_reader(images, classes, kinds, seed)
        export_safetensors(path, reader.state_dict(), {"kind": KIND, "reader": {"classes": kinds}})
        return reader
    tensors, about = load_safetensors(path)
    try:
        if about.get("kind") != KIND:
            raise ValueError(f"it holds no {KIND}")
        return build_network(DigitReader, about.get("reader"), tensors)
    except ValueError as error:
        raise UserError(f"{path} is damaged ({str(error)[:120]}); delete it, and it is made again") from None
