# SPDX-License-Identifier: Apache-2.0
"""Tiny translators and two folders of pictures for the tests of translation."""

from __future__ import annotations

from pathlib import Path

import torch
from picture_files import fill

from gangealing_fast.translation.networks import TranslationNetworks
from gangealing_fast.translation.translator import Translator

SMALL = {"width": 4, "halvings": 2, "blocks": 1, "style": 3, "hidden": 8, "style_halvings": 2}
TINY = {**SMALL, "critic_width": 4, "critic_layers": 2, "critic_scales": 2, "size": 16, "batch": 2, "threads": 1}
RUN = {**TINY, "steps": 4, "tick": 2, "snapshot": 2}


def networks(seed: int = 0) -> TranslationNetworks:
    torch.manual_seed(seed)
    return TranslationNetworks(**SMALL)


def pictures(count: int = 2, side: int = 16, seed: int = 1) -> torch.Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def make_translator() -> Translator:
    made = Translator(networks(), {"size": 16, "domains": ["edges", "cats"]}).eval()
    return made.requires_grad_(False)


def fill_folders(folder: Path) -> Path:
    """`folder`, with pictures in its folders `first` and `second`."""
    fill(folder / "first", 8, size=16)
    fill(folder / "second", 9, size=24)
    return folder
