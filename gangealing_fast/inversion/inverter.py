# SPDX-License-Identifier: Apache-2.0
"""`Inverter`: an encoder with the generator it belongs to, from and to a file."""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gangealing_fast.autoencoders.networks import Encoder
from gangealing_fast.checkpoints.reading import load_generator
from gangealing_fast.inversion.searching import Inversion, search
from gangealing_fast.metrics.perceptual import Distance
from gangealing_fast.models.generator import Generator
from gangealing_fast.models.layers import resize_to
from gangealing_fast.models.perceptual import build_perceptual
from gangealing_fast.runtime.errors import UserError
from gangealing_fast.storage.exports import export_safetensors, load_safetensors
from gangealing_fast.storage.networks import build_network

EXPORT_NAME = "encoder.safetensors"
KIND = "inverter"
BATCH = 64
STATISTICS = 10_000
"""Latents that mean and deviation of w are estimated from."""


class Inverter:
    """Latents of pictures in a generator.

    encoder: pictures in [0, 1] to w in deviations from its mean; None for no encoder: every picture's first w is the mean.
    perceptual: what the search makes small; that of EfficientNet by default. All of it computes where the generator lies.

    mean: `[1, D]`, the generator's mean w. deviation: the root mean square of w's distance from it along an axis.
    """

    def __init__(self, generator: Generator, encoder: Encoder | None = None, perceptual: Distance | None = None) -> None:
        self.generator = generator.eval().requires_grad_(False)
        self.encoder = encoder
        self._perceptual = perceptual
        self.device = generator.input.input.device
        self.mean, self.deviation = _statistics(generator)

    @cached_property
    def perceptual(self) -> Distance:
        return build_perceptual().to(self.device) if self._perceptual is None else self._perceptual

    def prepared(self, pictures: Tensor) -> Tensor:
        """Pictures `[N, 3, H, W]` in [-1, 1], or uint8 in 0..255, as the generator makes them: float32 `[N, 3, S, S]`.

        Raises ValueError for other shapes.
        """
        if pictures.ndim != 4 or pictures.shape[1] != 3:
            raise ValueError(f"pictures must be [N, 3, H, W], got {list(pictures.shape)}.")
        pictures = pictures.to(self.device)
        pictures = pictures.float() / 127.5 - 1 if pictures.dtype == torch.uint8 else pictures.float()
        return resize_to(pictures, self.generator.size)

    @torch.no_grad()
    def encode(self, pictures: Tensor) -> Tensor:
        """w `[N, D]` of pictures `[N, 3, H, W]`, by the encoder alone."""
        parts = [self.place(part) for part in self.prepared(pictures).split(BATCH)]
        return torch.cat(parts) if parts else self.mean[:0]

    def place(self, pictures: Tensor) -> Tensor:
        """As `encode`, with gradients, of pictures as `prepared` gives them."""
        if self.encoder is None:
            return self.mean.expand(len(pictures), -1)
        return self.mean + self.deviation * self.encoder((pictures + 1) / 2).style

    @torch.no_grad()
    def decode(self, w: Tensor) -> Tensor:
        """The generator's pictures `[N, 3, S, S]` of w `[N, D]` or `[N, layers, D]`, with its fixed noise."""
        return torch.cat([self.generator.synthesize(part, "fixed").float() for part in w.to(self.device).split(BATCH)])

    def optimise(self, pictures: Tensor, steps: int = 100, *, start: Tensor | None = None, **options: Any) -> Inversion:
        """Search the latents of pictures `[N, 3, H, W]` from `start`, by default the encoder's, in so many steps.

        options: those of `searching.search`: rate, w_plus, noise, pixel_weight. All pictures are searched at a time.
        """
        prepared = self.prepared(pictures)
        begin = self.encode(prepared) if start is None else start.to(self.device)
        return search(self.generator, self.perceptual, prepared, begin, self.deviation, steps=steps, **options)

    def export(self, path: Path, about: dict[str, Any]) -> None:
        """Write the encoder, with what tells its generator from others; `about`: what else the file shall say, as plain values."""
        assert self.encoder is not None
        record = {"kind": KIND, "encoder": self.encoder.config(), "generator": fingerprint(self.generator), "about": about}
        export_safetensors(path, self.encoder.state_dict(), record)

    @classmethod
    def load(
        cls, path: str | Path, generator: Generator | str | Path | None = None, *, perceptual: Distance | None = None
    ) -> Inverter:
        """From encoder.safetensors or the results folder of `invert`.

        generator: the one that the encoder was trained for, or its file; by default the file that `invert` was given.
        Raises UserError if a file is missing or damaged, or the generator is another one.
        """
        path = Path(path)
        path = path / EXPORT_NAME if path.is_dir() else path
        tensors, record = load_safetensors(path)
        if record.get("kind") != KIND:
            raise UserError(f"{path} holds no encoder of a generator's latents; give the {EXPORT_NAME} that invert writes")
        about = record.get("about")
        source = about.get("generator_file") if generator is None and isinstance(about, dict) else generator
        if source is None:
            raise UserError(f"name the generator that {path} belongs to: --generator generator.safetensors")
        found = source if isinstance(source, Generator) else load_generator(Path(source))
        if record.get("generator") != fingerprint(found):
            named = "the generator given" if isinstance(source, Generator) else source
            raise UserError(f"{path} was trained for another generator than {named}; give its own, or train an encoder with invert")
        try:
            encoder = build_network(Encoder, record.get("encoder"), tensors)
        except ValueError as error:
            raise UserError(f"{path} is damaged ({str(error)[:120]}); make it again with invert") from None
        return cls(found, encoder.to(found.input.input.device), perceptual)


@torch.no_grad()
def _statistics(generator: Generator) -> tuple[Tensor, float]:
    """Mean w `[1, D]` and the root mean square of an axis's distance from it; functions of the generator alone."""
    z = torch.randn(STATISTICS, generator.latent_dim, generator=torch.Generator().manual_seed(0))
    w = generator.map(z.to(generator.input.input.device)).float()
    mean = w.mean(0, keepdim=True)
    return mean, max((w - mean).square().mean().sqrt().item(), 1e-6)


def fingerprint(generator: Generator) -> str:
    """A hash of the generator's weights in half precision, in which files hold them."""
    digest = hashlib.sha256()
    for name, parameter in sorted(generator.named_parameters()):
        digest.update(name.encode() + parameter.detach().cpu().half().contiguous().numpy().tobytes())
    return digest.hexdigest()
