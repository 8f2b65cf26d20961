# SPDX-License-Identifier: Apache-2.0
"""Pictures of random latents, and latents for pictures to look at, of generators with and without styles."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from gangealing_fast.adversarial.codes import Codes
from gangealing_fast.models import DcganGenerator, Generator
from gangealing_fast.runtime.randomness import private_stream

COLUMNS, ROWS = 8, 8
PictureGenerator: TypeAlias = Generator | DcganGenerator


def picture_sampler(
    generator: PictureGenerator, style_mixing: float, codes: Codes | None = None
) -> Callable[[int, Tensor | None], Tensor]:
    """sample(n, labels) → pictures `[n, 3, S, S]` of random latents, with style mixing where the generator has styles.

    labels: codes `[n, C]` where there are `codes`, classes `[n]` for a conditional generator, else None.
    """

    def styles(n: int, labels: Tensor | None) -> Tensor:
        assert isinstance(generator, Generator)
        z = torch.randn(2 * n, generator.latent_dim, device=generator.input.input.device)
        w = generator.map(z if codes is None or labels is None else codes.into(z, labels.repeat(2, 1)))
        cut = generator.n_latent
        if torch.rand(()).item() < style_mixing:
            cut = int(torch.randint(1, generator.n_latent, ()).item())
        return generator.synthesize([w[:n]] * cut + [w[n:]] * (generator.n_latent - cut))

    def plain(n: int, labels: Tensor | None) -> Tensor:
        z = torch.randn(n, generator.latent_dim, device=next(generator.parameters()).device)
        if codes is not None and labels is not None:
            return generator(codes.into(z, labels))
        return generator(z) if labels is None else generator(z, labels)

    return styles if isinstance(generator, Generator) else plain


def latents(generator: PictureGenerator, n: int, codes: Codes | None = None) -> tuple[Tensor, ...]:
    """Arguments for n samples: z, with random codes where there are any, and for a conditional generator the classes in turn."""
    device = next(generator.parameters()).device
    z = torch.randn(n, generator.latent_dim, device=device)
    if codes is not None:
        return (codes.into(z, codes.draw(n, device)),)
    classes = getattr(generator, "classes", 0)
    return (z, torch.arange(n, device=device) % classes) if classes else (z,)


def table_latents(generator: PictureGenerator, codes: Codes, rows: int) -> Tensor:
    """z for a table of samples, row by row: one column for each category, everything else the same along a row."""
    device = next(generator.parameters()).device
    z, numbers = torch.randn(rows, generator.latent_dim, device=device), codes.draw(rows, device)[:, codes.categories :]
    category = torch.arange(codes.categories, device=device).repeat(rows)
    z, numbers = (values.repeat_interleave(codes.categories, 0) for values in (z, numbers))
    return codes.into(z, codes.of(category, numbers))


@torch.no_grad()
def samples(generator: PictureGenerator, codes: Codes | None = None, *, seed: int = 1, truncation: float = 1.0) -> Tensor:
    """Rows of pictures `[N, 3, S, S]` in [-1, 1] of fixed latents, on the CPU: a column for each category, or eight columns.

    truncation: of a generator with styles, towards its mean latent.
    """
    with private_stream(seed):
        z = latents(generator, ROWS * COLUMNS) if codes is None else (table_latents(generator, codes, ROWS),)
        if truncation == 1 or not isinstance(generator, Generator):
            return generator(*z).clamp(-1, 1).cpu()
        return generator(*z, truncation=truncation, truncation_latent=generator.mean_latent()).clamp(-1, 1).cpu()


def columns(codes: Codes | None) -> int:
    """How many columns the pictures of `samples` are meant for."""
    return COLUMNS if codes is None else codes.categories
