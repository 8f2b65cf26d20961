# SPDX-License-Identifier: Apache-2.0
"""Entry points of `torch.hub.load("OWNER/gangealing_fast", NAME, PATH)`, or of a local clone with `source="local"`.

torch.hub runs this file from the sources without installing the package, so that the plain references serve. `pip install .` makes
the compiled operators.
"""

from __future__ import annotations

from pathlib import Path as _Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

    from gangealing_fast import Aligner
    from gangealing_fast.models import Generator

dependencies = ["torch", "numpy", "PIL", "safetensors", "tqdm"]


def aligner(source: str, **use: Any) -> Aligner:
    """`Aligner.from_pretrained(source, **use)`: a folder, a checkpoint, or a model of the Hugging Face hub."""
    from gangealing_fast import Aligner

    return Aligner.from_pretrained(source, **use)


def generator(source: str) -> Generator:
    """The frozen StyleGAN2 generator in any checkpoint that the package reads, or "digits" or "cats", which come with it."""
    import gangealing_fast
    from gangealing_fast.checkpoints.reading import load_generator

    packaged = _Path(gangealing_fast.__file__).parent / "assets" / source / "generator.safetensors"
    return load_generator(packaged if source in ("digits", "cats") else source)
