# SPDX-License-Identifier: Apache-2.0
"""Figures of a translator on pictures that it has not learned from, each beside the same of real pictures or of chance."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from gangealing_fast.data.pictures import to_float
from gangealing_fast.metrics import frechet_distance, kernel_distance
from gangealing_fast.metrics.perceptual import random_pairs
from gangealing_fast.models import EfficientNetPerceptual
from gangealing_fast.translation.domains import DomainPictures, Domains
from gangealing_fast.translation.making import COLOURS, colour_of
from gangealing_fast.translation.reader import DigitReader
from gangealing_fast.translation.translator import NAMES, Translator

COLLAPSED = 0.05
"""Translations of one picture with different styles that differ by less than this share of what real pictures differ by."""
STYLES = 8
"""Styles for each picture in what is measured over styles."""
COLOURED, COLOURED_STYLES = 16, 32
"""Pictures, and styles of each, whose colours are looked at."""
_SEED = 20_000

Classifier = Callable[[Tensor], Tensor]


class Figure(NamedTuple):
    """value: of translations. beside: the same of real pictures, or of what chance gives; None if there is no such thing."""

    value: float
    beside: float | None = None
    what: str = ""


def absolute(first: Tensor, second: Tensor) -> float:
    """Mean absolute difference."""
    return (first.float() - second.float()).abs().mean().item()


def _codes(translator: Translator, count: int, salt: int) -> Tensor:
    return translator.random_styles(count, _SEED + 1000 * salt)


@torch.no_grad()
def code_figures(translator: Translator, domains: Domains, target: int, most: int = 500) -> dict[str, Figure]:
    """Reconstruction, style, content and cycle of translations into domain `target` (0 or 1)."""
    source, into = NAMES[1 - target], NAMES[target]
    images, real = to_float(domains[1 - target].test[:most]), to_float(domains[target].test[:most])
    other = images.roll(1, 0)
    contents, own = translator.content(images, source), translator.style(images, source)
    drawn = _codes(translator, len(images), target)
    translated = translator.decode(contents, drawn, into)
    again = translator.content(translated, into)
    back = translator.decode(again, own, source)
    rebuilt = translator.decode(translator.content(real, into), translator.style(real, into), into)
    strange = translator.decode(contents.roll(1, 0), own, source)
    return {
        "reconstruction": Figure(absolute(rebuilt, real), absolute(real, real.roll(1, 0)), "another real picture"),
        "style": Figure(absolute(translator.style(translated, into), drawn), drawn.abs().mean().item(), "predicting zero"),
        "content": Figure(absolute(again, contents), absolute(contents, contents.roll(1, 0)), "another picture's content"),
        "cycle": Figure(absolute(back, images), absolute(strange, images), "another picture's content"),
        "moved": Figure(absolute(translated, images), absolute(other, images), "another picture of the source"),
    }


@torch.no_grad()
def variety_figures(
    translator: Translator, domains: Domains, target: int, network: EfficientNetPerceptual, pictures: int = 32
) -> dict[str, Figure]:
    """diversity: mean perceptual distance of two translations of one picture, beside that of two real pictures of the domain."""
    images, real = to_float(domains[1 - target].test[:pictures]), to_float(domains[target].test)
    made = translator.translate(
        images, styles=_codes(translator, STYLES, 7 + target), source=NAMES[1 - target], target=NAMES[target]
    )
    pairs = random_pairs(STYLES, len(images), torch.Generator().manual_seed(0))
    rows = torch.arange(len(images))
    between = network(made[rows, pairs[:, 0]], made[rows, pairs[:, 1]])
    chosen = random_pairs(len(real), 4 * pictures, torch.Generator().manual_seed(1))
    beside = network(real[chosen[:, 0]], real[chosen[:, 1]])
    return {"diversity": Figure(between.mean().item(), beside.mean().item(), "two real pictures")}


@torch.no_grad()
def distribution_figures(
    translator: Translator, domains: Domains, target: int, network: EfficientNetPerceptual, most: int = 500
) -> dict[str, Figure]:
    """Fréchet and kernel distance between translations and real pictures of the domain that were learned from, beside those of real
    pictures that were not. The network is not Inception: figures compare here alone."""
    images, domain = to_float(domains[1 - target].test[:most]), domains[target]
    styles = _codes(translator, len(images), 14 + target)
    made = translator.decode(translator.content(images, NAMES[1 - target]), styles, NAMES[target])
    count = min(len(made), len(domain.test), len(domain.training))
    translated, held, known = (
        torch.cat([network.embedding(part) for part in pictures.split(50)])
        for pictures in (made[:count], to_float(domain.test[:count]), to_float(domain.training[:count]))
    )
    return {
        "frechet": Figure(float(frechet_distance(known, translated)), float(frechet_distance(known, held)), "real pictures"),
        "kernel": Figure(kernel_distance(known, translated), kernel_distance(known, held), "real pictures"),
    }


@torch.no_grad()
def digit_figures(translator: Translator, domains: Domains, reader: DigitReader, most: int = 500) -> dict[str, Figure]:
    """Of translations into coloured digits: the share that is read as what it was, and how colours vary."""
    shown, real = domains.first, domains.second
    assert shown.digits is not None and real.digits is not None
    images = to_float(shown.test[:most])
    styles = _codes(translator, len(images), 21)
    made = translator.decode(translator.content(images, "first"), styles, "second")
    real_images = to_float(real.test[:most])
    right = (reader.read(made) == shown.digits.classes[: len(images)]).float().mean().item()
    right_real = (reader.read(real_images) == real.digits.classes[: len(real_images)]).float().mean().item()
    # Of one picture with many styles, so that nothing but the style makes the colours. No style occurs twice.
    contents = translator.content(images[:COLOURED], "first").repeat_interleave(COLOURED_STYLES, 0)
    several = translator.decode(contents, _codes(translator, len(contents), 22), "second")
    spread = torch.tensor([_colour_spread(one) for one in several.split(COLOURED_STYLES)]).mean().item()
    colours = colour_of(several)
    shares = torch.stack([(colours == k).float().mean() for k in range(len(COLOURS))])
    real_shares = torch.stack([(real.digits.colours == k).float().mean() for k in range(len(COLOURS))])
    return {
        "readable": Figure(right, right_real, "real digits"),
        "colour_diversity": Figure(spread, _colour_spread(real_images), "real digits"),
        "colours": Figure(float((shares > 0).sum()), float((real_shares > 0).sum()), "real digits"),
        "rarest_colour": Figure(shares.min().item(), real_shares.min().item(), "real digits"),
    }


def _colour_spread(images: Tensor) -> float:
    """Mean Euclidean distance of the mean ink colours of two different digits."""
    light = (images + 1) / 2
    strongest = light.amax(1, keepdim=True)
    weight = (strongest > 0.5 * strongest.flatten(1).amax(1).reshape(-1, 1, 1, 1)) * strongest
    mean = (light * weight).sum((2, 3)) / weight.sum((2, 3)).clamp_min(1e-6)
    return torch.pdist(mean).mean().item()


@torch.no_grad()
def conditional_inception(translator: Translator, images: Tensor, classifier: Classifier, real: Tensor) -> dict[str, Figure]:
    """CIS (section 5.2 of the paper): over translations of one picture, the mean divergence of a classifier's answer from the mean
    answer; the mean over pictures `[N, 3, H, W]` of the first domain. inception: the same with one mean over all, beside real."""
    made = translator.translate(images, styles=_codes(translator, STYLES, 28))
    answers = classifier(made.flatten(0, 1)).float().log_softmax(1).reshape(*made.shape[:2], -1)
    everything = answers.flatten(0, 1)
    return {
        "conditional_inception": Figure(sum(map(_divergence, answers)) / len(answers)),
        "inception": Figure(_divergence(everything), _divergence(classifier(real).float().log_softmax(1)), "real pictures"),
    }


def _divergence(log_answers: Tensor) -> float:
    """Mean over rows `[N, K]` of KL(row || mean row), in nats."""
    mean = log_answers.exp().mean(0).clamp_min(1e-12).log()
    return (log_answers.exp() * (log_answers - mean)).sum(1).mean().item()


def collapse(figures: dict[str, Figure], into: str) -> str | None:
    """A sentence if all styles give the same translations, else None."""
    found = figures.get("diversity")
    if found is None or not found.beside or found.value >= COLLAPSED * found.beside:
        return None
    return (
        f"collapsed to one style: translations of one picture into the {into} domain differ by {found.value:.4f}, real pictures by "
        f"{found.beside:.4f}; raise --style-weight or lower --image-weight"
    )


def quick_figures(
    translator: Translator, domains: Domains, reader: DigitReader | None, network: EfficientNetPerceptual
) -> dict[str, float]:
    """What a snapshot's line of the log says, of a few pictures: parts of `code_figures`, `variety_figures`, `digit_figures`."""
    line: dict[str, float] = {}
    for target, name in enumerate(NAMES):
        found = code_figures(translator, domains, target, 100) | variety_figures(translator, domains, target, network, 16)
        for what in ("style", "cycle", "diversity"):
            figure = found[what]
            line[f"{what}_{name}_ratio"] = figure.value / max(figure.beside or 0.0, 1e-9)
    if reader is not None:
        digits = digit_figures(translator, domains, reader, 200)
        line |= {name: digits[name].value for name in ("readable", "colours")}
        line["colour_diversity_ratio"] = digits["colour_diversity"].value / max(digits["colour_diversity"].beside or 0, 1e-9)
    return line


def all_figures(
    translator: Translator,
    domains: Domains,
    reader: DigitReader | None,
    network: EfficientNetPerceptual,
    classifier: Classifier | None = None,
) -> dict[str, dict[str, Figure]]:
    """Every figure, by direction."""
    found: dict[str, dict[str, Figure]] = {}
    for target in (1, 0):
        one = code_figures(translator, domains, target)
        one |= variety_figures(translator, domains, target, network)
        one |= distribution_figures(translator, domains, target, network)
        if target == 1 and reader is not None:
            one |= digit_figures(translator, domains, reader)
        if target == 1 and classifier is not None:
            images, real = (to_float(part.test[:100]) for part in (domains.first, domains.second))
            one |= conditional_inception(translator, images, classifier, real)
        found[f"{NAMES[1 - target]}-to-{NAMES[target]}"] = one
    return found


def pictures_of(domain: DomainPictures, count: int) -> Tensor:
    """The first `count` pictures that are examined, float32 in [-1, 1]."""
    return to_float(domain.test[:count])
