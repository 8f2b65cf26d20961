# SPDX-License-Identifier: Apache-2.0
"""The two domains that a translator learns from and is examined on, in memory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from gangealing_fast.data.decoding import picture_size
from gangealing_fast.data.digits import load_heldout_digits, training_digits
from gangealing_fast.data.mnist import find_images, is_idx_name
from gangealing_fast.data.pictures import Pictures, open_pictures, to_float
from gangealing_fast.data.sampler import InfiniteSampler
from gangealing_fast.data.sources import list_entries
from gangealing_fast.runtime.errors import UserError
from gangealing_fast.runtime.randomness import derived_seed
from gangealing_fast.translation.config import TranslateTrainConfig
from gangealing_fast.translation.making import Digits, draw_digits, edges_of

LEAST = 4
"""Pictures of a domain, at the least: two to learn from and two to examine."""
MADE = 20_000
"""Pictures of each domain that are made of digits to learn from."""
TOO_FEW = 10
"""So many times fewer pictures than the other domain has are said."""
_LOOKED_AT = 32  # pictures of a folder whose sides stand for all
_PACKAGED_TEST = 60  # of each class of the package's digits
_ALL = tuple(range(10))


@dataclass(frozen=True)
class DomainPictures:
    """training, test: uint8 `[N, 3, S, S]`. digits: what is known of the test pictures of the second domain, if they are digits."""

    name: str
    training: Tensor
    test: Tensor
    digits: Digits | None = None


@dataclass(frozen=True)
class Domains:
    """Both domains. labelled: digits `[N, 3, 32, 32]` uint8 of the second domain with their classes, to train a reader on."""

    first: DomainPictures
    second: DomainPictures
    labelled: tuple[Tensor, Tensor] | None = None
    kinds: int = 0

    def __getitem__(self, index: int) -> DomainPictures:
        return (self.first, self.second)[index]

    def summary(self) -> str:
        """One sentence."""
        counts = ", ".join(
            f"{len(one.training)} {one.name} to learn from and {len(one.test)} to examine" for one in (self[0], self[1])
        )
        return f"{counts}, {self[0].training.shape[-1]} pixels a side"


def open_domains(config: TranslateTrainConfig) -> Domains:
    """The pictures that the options name. Raises UserError if they cannot be read, are too few or do not fit together."""
    if config.made == "edges-digits":
        return _digits(config)
    if config.second is None or (config.first is None and config.made == "none"):
        raise UserError("give the pictures of both domains with --first and --second, or --made edges-digits, which makes them")
    if config.made == "edges":
        if config.first is not None:
            raise UserError("--made edges makes the first domain of --second: leave --first out")
        pictures = _opened(config.second, config, 2 * LEAST)
        images, half = pictures.batch(range(len(pictures))), len(pictures) // 2
        return Domains(_split("edges", edges_of(images[half:]), config), _split("pictures", images[:half], config))
    assert config.first is not None
    if config.first.resolve() == config.second.resolve():
        raise UserError("--first and --second are the same pictures; give two collections, or one with --made edges")
    found = []
    for option, path in (("first", config.first), ("second", config.second)):
        pictures = _opened(path, config, LEAST)
        found.append(_split(option, pictures.batch(range(len(pictures))), config))
    for notice in unlike((config.first, config.second), (len(found[0].training), len(found[1].training)), config.size):
        print(notice)
    return Domains(found[0], found[1])


def unlike(paths: tuple[Path, Path], counts: tuple[int, int], size: int) -> list[str]:
    """Sentences on two collections of very different numbers of pictures, or of which only one is enlarged to `size` pixels."""
    notices, few = [], min(counts)
    if TOO_FEW * few <= max(counts):
        name, other = ("first", "second") if counts[0] == few else ("second", "first")
        notices.append(
            f"NOTE: --{name} has {few} pictures to learn from, --{other} {max(counts)}: the critic may learn the few by heart, "
            f"so that translations look like them; add pictures to --{name}"
        )
    first, second = (side_of(path) for path in paths)
    if first is not None and second is not None and (first < size) != (second < size):
        small, large = ("first", "second") if first < size else ("second", "first")
        notices.append(
            f"NOTE: pictures of --{small} are {min(first, second)} pixels a side and are enlarged to {size}, those of --{large} "
            f"are not: blur becomes part of what is translated; a --size of at most {min(first, second)} avoids it"
        )
    return notices


def side_of(path: Path) -> int | None:
    """The median of the shorter sides of the first pictures, in pixels, from their headers; None if there are none to read."""
    sides: list[int] = []
    if path.is_file() and is_idx_name(path):
        return None
    for entry in list_entries(path).entries[:_LOOKED_AT]:
        try:
            sides.append(min(picture_size(entry.read())))
        except (OSError, ValueError):
            continue  # what cannot be read was named when the pictures were opened
    return int(median(sides)) if sides else None


def _opened(path: Path, config: TranslateTrainConfig, least: int) -> Pictures:
    pictures = open_pictures(path, size=config.size, minimum=least)
    print(pictures.summary())
    return pictures


def _split(name: str, images: Tensor, config: TranslateTrainConfig) -> DomainPictures:
    held = config.held_out or min(500, max(2, len(images) // 10))
    if held < 2 or len(images) - held < 2:
        raise UserError(
            f"--held-out {held} of {len(images)} pictures leaves fewer than two to learn from, or to examine; change it"
        )
    return DomainPictures(name, images[:-held], images[-held:])


def _digits(config: TranslateTrainConfig) -> Domains:
    if config.first is not None:
        raise UserError("--made edges-digits makes both domains of --second, MNIST's files: leave --first out")
    if config.size != 32:
        raise UserError(f"digits are 32 pixels a side: leave --size {config.size} out")
    held = config.held_out or 500
    if held < 2:
        raise UserError(f"--held-out must be at least 2, got {held}")
    (images, classes), (test_images, test_classes), kinds = _sources(config.second)
    half, parts = len(images) // 2, []
    for number, of in enumerate(("edges", "colours")):
        # No digit is in both domains, so that nothing is paired.
        own = slice(0, half) if number == 0 else slice(half, None)
        made = draw_digits(images[own], classes[own], MADE, config.seed, of=of)
        # Those that are examined are upright, as the reader knows them; so is every other one that is learned from.
        test = draw_digits(test_images, test_classes, held, config.seed + 1, of=of, warped=0.0)
        parts.append(DomainPictures(("edges of digits", "coloured digits")[number], made.images, test.images, test))
    labelled = draw_digits(images, classes, MADE, config.seed + 2, of="colours", warped=0.0)
    return Domains(parts[0], parts[1], (labelled.images, labelled.classes), kinds)


def _sources(folder: Path | None) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], int]:
    """Digits `[N, 28, 28]` and classes to learn from, others to examine, and how many classes there are."""
    if folder is not None:
        parts = [training_digits(find_images(folder, part), _ALL) for part in ("train", "t10k")]
        return parts[0], parts[1], len(_ALL)
    packaged = load_heldout_digits()
    _, classes = packaged.labels.unique(return_inverse=True)
    kinds = int(classes.max()) + 1
    place = torch.zeros_like(classes)
    for kind in range(kinds):
        place[classes == kind] = torch.arange(int((classes == kind).sum()))
    test = place < _PACKAGED_TEST
    order = torch.randperm(len(place), generator=torch.Generator().manual_seed(0))  # they come sorted by class
    learned, examined = order[~test[order]], order[test[order]]
    return (packaged.images[learned], classes[learned]), (packaged.images[examined], classes[examined]), kinds


class Batches:
    """Endless batches of one domain. mirror: whether every picture is mirrored half of the time, by torch's default generator."""

    def __init__(self, images: Tensor, seed: int, *, mirror: bool = False) -> None:
        self.images, self.mirror = images, mirror
        self.sampler = InfiniteSampler(len(images), derived_seed(seed, "translate"))

    def next(self, count: int) -> Tensor:
        """float32 `[count, 3, S, S]` in [-1, 1]."""
        images = to_float(self.images[self.sampler.next(count)])
        if not self.mirror:
            return images
        return torch.where((torch.rand(count) < 0.5).reshape(-1, 1, 1, 1), images.flip(3), images)

    def state_dict(self) -> dict[str, Any]:
        return dict(self.sampler.state_dict())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.sampler.load_state_dict(state)
