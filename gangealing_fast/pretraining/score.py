# SPDX-License-Identifier: Apache-2.0
"""How near a generator's pictures are to real ones, by features that need no download."""

from __future__ import annotations

import torch
from torch import Tensor

from gangealing_fast.adversarial.codes import Codes
from gangealing_fast.metrics import FeatureStatistics, batch_diversity, frechet_distance, kernel_distance, precision_recall
from gangealing_fast.models import EfficientNetPerceptual
from gangealing_fast.pretraining.sampling import PictureGenerator, latents
from gangealing_fast.pretraining.source import Source
from gangealing_fast.runtime.precision import autocast
from gangealing_fast.runtime.randomness import private_stream

NEIGHBOURS = 3


class Score:
    """Distances between the same real and newly generated pictures on EfficientNet features.

    `score`, the Fréchet distance, and `kid`, the kernel distance, are like FID and KID, but not comparable with published ones.
    `precision` and `recall` are shares; `diversity` is the mean distance within batches of generated pictures, over real ones'.
    """

    def __init__(self, source: Source, count: int, dtype: torch.dtype, device: torch.device, codes: Codes | None = None) -> None:
        self.network = EfficientNetPerceptual(min_size=64, fused=True).to(device)
        self.count, self.dtype, self.device, self.codes = count, dtype, device, codes
        self.real = torch.cat([self._embed(batch.to(device)) for batch in source.fixed(count)])
        self.statistics = FeatureStatistics().update(self.real)

    @torch.no_grad()
    def _embed(self, images: Tensor) -> Tensor:
        with autocast(self.device, self.dtype):
            return self.network.embedding(images.clamp(-1, 1)).cpu()

    @torch.no_grad()
    def __call__(self, generator: PictureGenerator) -> dict[str, float]:
        found = []
        with private_stream(1234):
            for start in range(0, self.count, 64):
                inputs = latents(generator, min(64, self.count - start), self.codes)
                with autocast(self.device, self.dtype):
                    images = generator(*inputs)
                found.append(self._embed(images))
        fake = torch.cat(found)
        figures = {
            "score": float(frechet_distance(self.statistics, FeatureStatistics().update(fake))),
            "kid": kernel_distance(self.real, fake),
            "diversity": batch_diversity(fake) / max(batch_diversity(self.real), 1e-12),
        }
        if min(len(self.real), len(fake)) > NEIGHBOURS:
            figures["precision"], figures["recall"] = precision_recall(self.real, fake, NEIGHBOURS)
        return figures
