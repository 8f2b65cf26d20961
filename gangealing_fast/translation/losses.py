# SPDX-License-Identifier: Apache-2.0
"""What MUNIT's encoders and decoders minimise beside the critics' verdict (arXiv 1804.04732, sections 3.1 and 5.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from gangealing_fast.models import EfficientNetPerceptual
from gangealing_fast.translation.networks import TranslationNetworks


@dataclass(frozen=True)
class Weights:
    """Of the losses: of pictures (equation 1), contents (2), styles (3), the critics' verdict (4), the style-augmented cycle
    (section 3.1) and the domain-invariant perceptual distance (section 5.1)."""

    image: float = 10.0
    content: float = 1.0
    style: float = 1.0
    adversarial: float = 1.0
    cycle: float = 0.0
    perceptual: float = 0.0


class Passed(NamedTuple):
    """Both domains' pictures, once through everything. Index 0 is the first domain.

    contents, styles: of the real pictures. rebuilt: pictures from their own content and style. drawn: the styles `[N, style]` that
    translations were made with; translated[k] is a picture *of domain k*, with the other domain's content and drawn[k].
    """

    contents: tuple[Tensor, Tensor]
    styles: tuple[Tensor, Tensor]
    rebuilt: tuple[Tensor, Tensor]
    drawn: tuple[Tensor, Tensor]
    translated: tuple[Tensor, Tensor]


def pass_through(networks: TranslationNetworks, images: Sequence[Tensor], drawn: Sequence[Tensor]) -> Passed:
    """Encode, rebuild and translate pictures `[N, 3, S, S]` of both domains; one call of each decoder does both."""
    contents = [networks[k].content(images[k]) for k in (0, 1)]
    styles = [networks[k].style(images[k]) for k in (0, 1)]
    rebuilt, translated = [], []
    for k in (0, 1):
        both = networks[k].decoder(torch.cat([contents[k], contents[1 - k]]), torch.cat([styles[k], drawn[k]]))
        own, other = both.split([len(contents[k]), len(contents[1 - k])])
        rebuilt.append(own)
        translated.append(other)
    return Passed(*(tuple(part) for part in (contents, styles, rebuilt, drawn, translated)))


def reconstruction_losses(
    networks: TranslationNetworks, images: Sequence[Tensor], passed: Passed, weights: Weights
) -> dict[str, Tensor]:
    """Scalars by name, without their weights; those of weight 0 are left out. All are L1 means, as in the paper."""
    losses: dict[str, list[Tensor]] = {}
    for k, domain in enumerate(("first", "second")):
        if weights.image:
            losses.setdefault("image", []).append(F.l1_loss(passed.rebuilt[k], images[k]))
        translated = passed.translated[k]
        again = networks[k].content(translated) if weights.content or weights.cycle else None
        if again is not None and weights.content:
            losses.setdefault("content", []).append(F.l1_loss(again.float(), passed.contents[1 - k].float()))
        if weights.style:
            # The style that was drawn for this very domain, from the translation into it.
            losses[f"style_{domain}"] = [F.l1_loss(networks[k].style(translated), passed.drawn[k])]
        if again is not None and weights.cycle:
            back = networks[1 - k].decoder(again, passed.styles[1 - k])
            losses.setdefault("cycle", []).append(F.l1_loss(back, images[1 - k]))
    return {name: torch.stack(found).sum() for name, found in losses.items()}


def invariant_distance(network: EfficientNetPerceptual, first: Tensor, second: Tensor) -> Tensor:
    """Scalar: mean squared difference of features that are normalised per instance and channel, mean over the tapped stages.

    Normalisation takes out means and spreads of channels, which hold what a domain looks like (section 5.1, with another network).
    """
    maps = zip(network.features(first), network.features(second), strict=True)
    return torch.stack([F.mse_loss(F.instance_norm(a.float()), F.instance_norm(b.float())) for a, b in maps]).mean()


def weight_of(name: str, weights: Weights) -> float:
    """The weight of a loss by its name in `reconstruction_losses`."""
    found: float = getattr(weights, name.partition("_")[0])
    return found
