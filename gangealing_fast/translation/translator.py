# SPDX-License-Identifier: Apache-2.0
"""A trained translator: content and style of pictures, and pictures of both, from and to a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gangealing_fast import ops
from gangealing_fast.models import EfficientNetPerceptual
from gangealing_fast.runtime.errors import UserError
from gangealing_fast.runtime.randomness import normal_rows
from gangealing_fast.storage.exports import export_safetensors, load_safetensors
from gangealing_fast.storage.networks import build_network
from gangealing_fast.storage.programs import check_ending, write_program
from gangealing_fast.translation.networks import TranslationNetworks

EXPORT_NAME = "translator.safetensors"
KIND = "translator"
BATCH = 64
DomainName = Literal["first", "second"]
NAMES: tuple[DomainName, DomainName] = ("first", "second")


class Translator(nn.Module):
    """Translates pictures `[N, 3, H, W]` in [-1, 1] between two domains, "first" and "second". H and W: multiples of `stride`.

    about: how it was trained: "domains" (what the two are), "size", and what else a file shall hold, as plain values.
    """

    def __init__(self, networks: TranslationNetworks, about: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.networks, self.about = networks, dict(about or {})

    @property
    def stride(self) -> int:
        """What divides the sides of pictures."""
        return self.networks.stride

    @property
    def style_numbers(self) -> int:
        """Numbers of a style code."""
        return self.networks.style

    @property
    def size(self) -> int:
        """Side of the pictures that it was trained on."""
        return int(self.about.get("size", 0)) or 8 * self.stride

    def _checked(self, images: Tensor) -> Tensor:
        if not isinstance(images, Tensor) or images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
            shape = list(images.shape) if isinstance(images, Tensor) else type(images).__name__
            raise ValueError(f"pictures must be floating numbers [N, 3, H, W] in [-1, 1], got {shape}.")
        least = self.networks.least
        if any(side % self.stride or side < least for side in images.shape[2:]):
            height, width = images.shape[2:]
            raise ValueError(
                f"the sides of pictures must be multiples of {self.stride} and at least {least}, got {height}x{width}: "
                "resize or pad them."
            )
        return images

    @torch.no_grad()
    def content(self, images: Tensor, domain: DomainName = "first") -> Tensor:
        """Content `[N, C, H / stride, W / stride]` of pictures of `domain`. Raises ValueError for pictures that do not fit."""
        return self._encoded(self.networks[_index(domain)].content, images)

    @torch.no_grad()
    def style(self, images: Tensor, domain: DomainName = "second") -> Tensor:
        """Style codes `[N, style_numbers]` of pictures of `domain`. Raises ValueError for pictures that do not fit."""
        return self._encoded(self.networks[_index(domain)].style, images)

    def _encoded(self, encoder: nn.Module, images: Tensor) -> Tensor:
        """In parts, on the networks' device; the result is on that of the pictures."""
        device = next(encoder.parameters()).device
        return torch.cat([encoder(part.to(device)) for part in self._checked(images).split(BATCH)]).to(images.device)

    @torch.no_grad()
    def decode(self, content: Tensor, styles: Tensor, domain: DomainName = "second") -> Tensor:
        """Pictures of `domain` with contents `[N, C, h, w]` and styles `[N, style_numbers]`, on the contents' device."""
        decoder = self.networks[_index(domain)].decoder
        device = next(decoder.parameters()).device
        parts = zip(content.split(BATCH), styles.split(BATCH), strict=True)
        return torch.cat([decoder(part.to(device), style.to(device)) for part, style in parts]).to(content.device)

    def random_styles(self, count: int, seed: int = 0) -> Tensor:
        """Styles `[count, style_numbers]`; the k-th is a function of `seed + k` alone."""
        return normal_rows(["translate"], range(seed, seed + count), self.style_numbers)

    def translate(
        self,
        images: Tensor,
        *,
        styles: Tensor | None = None,
        like: Tensor | None = None,
        n: int | None = None,
        seed: int = 0,
        source: DomainName = "first",
        target: DomainName = "second",
    ) -> Tensor:
        """Pictures `[N, K, 3, H, W]` of `target` with the content of pictures `[N, 3, H, W]` of `source`, one for each of K styles.

        styles: codes `[K, style_numbers]`. like: example pictures of `target`, `[K, 3, H', W']`, whose styles are taken. n: so many
        random styles, from `seed`. One of these three; without any, one random style. source and target may be the same domain.
        Raises ValueError for two of the three, styles of another length, or pictures that do not fit.
        """
        styles = self.styles_of(styles=styles, like=like, n=n, seed=seed, target=target)
        content, count = self.content(images, source), len(styles)
        styles = styles.to(content.device)
        found = self.decode(content.repeat_interleave(count, 0), styles.repeat(len(images), 1), target)
        return found.reshape(len(images), count, *found.shape[1:])

    def styles_of(
        self,
        *,
        styles: Tensor | None = None,
        like: Tensor | None = None,
        n: int | None = None,
        seed: int = 0,
        target: DomainName = "second",
    ) -> Tensor:
        """The style codes `[K, style_numbers]` that `translate` takes for the same arguments."""
        if sum(given is not None for given in (styles, like, n)) > 1:
            raise ValueError("styles, like and n are three ways to say the styles: give one of them.")
        if like is not None:
            return self.style(like, target)
        if styles is None:
            if n is not None and n < 1:
                raise ValueError(f"n must be at least 1, got {n}.")
            return self.random_styles(n or 1, seed)
        if not isinstance(styles, Tensor) or styles.ndim != 2 or styles.shape[1] != self.style_numbers or not len(styles):
            shape = list(styles.shape) if isinstance(styles, Tensor) else type(styles).__name__
            raise ValueError(f"styles must be [K, {self.style_numbers}] for this translator, got {shape}.")
        return styles.float()

    def path(self, start: Tensor, end: Tensor, steps: int) -> Tensor:
        """Styles `[steps, style_numbers]` evenly spaced from `start` to `end`, each `[style_numbers]`, both included."""
        if steps < 2:
            raise ValueError(f"a path needs at least two steps, got {steps}.")
        ends = [self.styles_of(styles=code.reshape(1, -1)) for code in (start, end)]
        return torch.lerp(ends[0], ends[1], torch.linspace(0, 1, steps)[:, None])

    def other_domain(self, images: Tensor, domain: DomainName, network: EfficientNetPerceptual) -> bool:
        """Whether pictures `[N, 3, H, W]`, taken together, look like the domain that is not `domain`; False if nothing is known.

        Their mean features are compared with those of both domains' training pictures, each feature over its spread there.
        """
        known = self.about.get("features")
        with torch.no_grad():
            mean = torch.cat([network.embedding(part) for part in images.split(BATCH)]).mean(0).cpu()
        if not isinstance(known, dict) or any(len(known.get(part, ())) != len(mean) for part in (*NAMES, "spread")):
            return False
        first, second, spread = (torch.tensor(known[part]) for part in (*NAMES, "spread"))
        own, other = (first, second) if domain == "first" else (second, first)
        return bool(((mean - other) / spread).norm() < ((mean - own) / spread).norm())

    def learn_features(self, first: Tensor, second: Tensor, network: EfficientNetPerceptual) -> None:
        """Note what `other_domain` compares, of pictures `[N, 3, H, W]` of both domains."""
        with torch.no_grad():
            found = [torch.cat([network.embedding(part) for part in images.split(BATCH)]).cpu() for images in (first, second)]
        spread = torch.stack([features.std(0) for features in found]).mean(0).clamp_min(1e-3)
        numbers = {name: features.mean(0) for name, features in zip(NAMES, found, strict=True)} | {"spread": spread}
        self.about["features"] = {name: [round(float(x), 4) for x in value] for name, value in numbers.items()}

    def export(
        self, path: str | Path, *, source: DomainName = "first", target: DomainName = "second", side: int | None = None
    ) -> Path:
        """Write a program NAME.onnx or NAME.pt2 from pictures `[N, 3, side, side]` and styles `[N, style_numbers]` to translations.

        side: that of the training if None. Raises UserError for another ending, a side that does not fit, or missing packages.
        """
        check_ending(Path(path))
        side = side or self.size
        if side % self.stride or side < self.networks.least:
            raise UserError(f"--size {side} must be a multiple of {self.stride} and at least {self.networks.least}")
        module = _Program(self.networks[_index(source)].content, self.networks[_index(target)].decoder).eval()
        # Of one picture, export would take the number for a constant.
        example = torch.zeros(2, 3, side, side), torch.zeros(2, self.style_numbers)
        batch = torch.export.Dim("batch")
        with ops.reference(), torch.no_grad():
            made = torch.export.export(module, example, dynamic_shapes={"images": {0: batch}, "styles": {0: batch}})
        return write_program(made, Path(path), ["images", "styles"], ["translated"])

    def save(self, path: Path) -> None:
        """Write what `load` reads. Raises UserError if it cannot be written or holds values that are not finite."""
        about = {"kind": KIND, "networks": self.networks.config(), "about": self.about}
        export_safetensors(path, self.networks.state_dict(), about)

    @classmethod
    def load(cls, path: str | Path) -> Translator:
        """From translator.safetensors or the results folder of `translate train`. Raises UserError for anything else."""
        path = Path(path)
        path = path / EXPORT_NAME if path.is_dir() else path
        tensors, about = load_safetensors(path)
        if about.get("kind") != KIND:
            raise UserError(f"{path} holds no translator; give the {EXPORT_NAME} that translate train writes")
        try:
            networks = build_network(TranslationNetworks, about.get("networks"), tensors)
        except ValueError as error:
            raise UserError(f"{path} is damaged ({str(error)[:120]}); make it again with translate train") from None
        recorded = about.get("about")
        return cls(networks, recorded if isinstance(recorded, dict) else {}).eval()

    def domain_names(self) -> Sequence[str]:
        """What the two domains are, as the training said."""
        found = self.about.get("domains")
        fits = isinstance(found, list) and len(found) == 2 and all(isinstance(name, str) for name in found)
        return found if fits and found is not None else list(NAMES)


class _Program(nn.Module):
    """What an exported program does."""

    def __init__(self, content: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.content, self.decoder = content, decoder

    def forward(self, images: Tensor, styles: Tensor) -> Tensor:
        translated: Tensor = self.decoder(self.content(images), styles)
        return translated


def _index(domain: str) -> int:
    if domain not in NAMES:
        raise ValueError(f'a domain is "first" or "second", got {domain!r}.')
    return NAMES.index(domain)
