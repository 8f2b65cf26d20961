# SPDX-License-Identifier: Apache-2.0
"""Which cluster a picture belongs to (and whether it is mirrored): the similarity trunk with a linear head (arXiv 2112.05143)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gangealing_fast.models.generator import Widths
from gangealing_fast.models.layers import EqualLinear, resize_to
from gangealing_fast.models.spatial_transformer import SpatialTransformer, Trunk


class ClusterClassifier(Trunk):
    """`[N, 3, H, W]` in [-1, 1] to logits `[N, K]`, or `[N, 2K]` with flips (class c + K: its mirror image is of cluster c).

    size: side at which it looks at a picture, a power of two >= 8; larger pictures are downsampled. clusters: K. flips: whether
    mirrored pictures are classes of their own. Widths as in `SpatialTransformer`. State-dict keys are the published ones.
    Raises ValueError if the size is no such power of two or there is no cluster.
    """

    def __init__(
        self,
        size: int = 128,
        clusters: int = 2,
        *,
        flips: bool = False,
        channel_multiplier: float = 0.5,
        max_channels: int = 512,
        channel_base: int | None = None,
    ) -> None:
        if size < 8 or size & (size - 1):
            raise ValueError(f"ClusterClassifier: size must be a power of two of at least 8, got {size}.")
        if clusters < 1:
            raise ValueError(f"ClusterClassifier: clusters must be 1 or more, got {clusters}.")
        widths = Widths(channel_multiplier, max_channels, channel_base)
        super().__init__(size, widths)
        self.size, self.clusters, self.flips, self.widths = size, clusters, flips, widths
        # The published head ends in a leaky ReLU: its logits are only compared with one another.
        self.to_logits = EqualLinear(widths.at(4) * 16, clusters * (1 + flips), activation=True)

    def config(self) -> dict[str, Any]:
        """The constructor's arguments, for checkpoints: `ClusterClassifier(**config)` rebuilds the network."""
        return {
            "size": self.size,
            "clusters": self.clusters,
            "flips": self.flips,
            "channel_multiplier": self.widths.multiplier,
            "max_channels": self.widths.maximum,
            "channel_base": self.widths.base,
        }

    @classmethod
    def like(cls, transformer: SpatialTransformer, *, flips: bool = False) -> ClusterClassifier:
        """For the clusters of `transformer`, its trunk initialised from the similarity's if that is one of learned layers."""
        config = transformer.config()
        widths = {key: config[key] for key in ("channel_multiplier", "max_channels", "channel_base")}
        made = cls(transformer.flow_size, transformer.heads, flips=flips, **widths)
        source = transformer.stns[0].state_dict()
        trunk = {key: value for key, value in source.items() if key.startswith(("convs.", "final_conv."))}
        if transformer.similarity is None or transformer.trunk != "learned":
            # A flow's trunk halves the picture three times only, without low-pass filters after that: it is no start for this one.
            return made.to(next(iter(source.values())).device)
        made.load_state_dict(trunk, strict=False)
        return made.to(next(iter(source.values())).device)

    def forward(self, images: Tensor) -> Tensor:
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"ClusterClassifier: images must be [N, 3, H, W], got {list(images.shape)}.")
        return self.to_logits(self.features(resize_to(images, self.size)).flatten(1))

    @torch.no_grad()
    def assign(self, images: Tensor, cluster: int | None = None) -> tuple[Tensor, Tensor]:
        """(cluster `[N]` int64, whether to mirror the picture first `[N]` bool) of the largest logit.

        cluster: the one that all pictures are taken for, so that only the mirror is chosen.
        """
        logits = self(images)
        if cluster is None:
            best = logits.argmax(1)
            return best % self.clusters, best >= self.clusters
        chosen = logits.unflatten(1, (-1, self.clusters))[:, :, cluster].argmax(1)
        return torch.full_like(chosen, cluster), chosen > 0
