# SPDX-License-Identifier: Apache-2.0
"""A trained adversarial autoencoder: pictures to codes and back, from and to a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gangealing_fast.autoencoders.networks import Code, Decoder, Encoder
from gangealing_fast.runtime.errors import UserError
from gangealing_fast.storage.exports import export_safetensors, load_safetensors
from gangealing_fast.storage.networks import build_network

EXPORT_NAME = "autoencoder.safetensors"
KIND = "autoencoder"
BATCH = 500


class AdversarialAutoencoder(nn.Module):
    """Encoder and decoder of one run.

    about: how it was trained: "use", "prior", "prior_scale" and what else a file shall hold, as plain values.
    """

    def __init__(self, encoder: Encoder, decoder: Decoder, about: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.encoder, self.decoder, self.about = encoder, decoder, dict(about or {})

    @torch.no_grad()
    def encode(self, images: Tensor, *, drawn: bool = False) -> Code:
        """Codes of pictures `[N, C, S, S]` in [0, 1], or uint8 in 0..255, in parts.

        drawn: of a Gaussian encoder, styles drawn from each picture's Gaussian instead of its mean. Those of many pictures together
        are what the prior is compared with.
        """
        codes = [self.encoder(_to_unit(part), drawn) for part in images.split(BATCH)]
        logits = [code.logits for code in codes if code.logits is not None]
        return Code(torch.cat([code.style for code in codes]), torch.cat(logits) if logits else None)

    @torch.no_grad()
    def decode(self, style: Tensor, category: Tensor | None = None) -> Tensor:
        """Pictures `[N, C, S, S]` in [0, 1] of styles `[N, style]` and, if the decoder takes them, categories `[N, K]`."""
        parts = [None] * len(style.split(BATCH)) if category is None else category.split(BATCH)
        return torch.cat([self.decoder(one, other) for one, other in zip(style.split(BATCH), parts, strict=True)])

    def export(self, path: Path) -> None:
        """Write what `load` reads."""
        about = {"kind": KIND, "encoder": self.encoder.config(), "decoder": self.decoder.config(), "about": self.about}
        export_safetensors(path, self.state_dict(), about)

    @classmethod
    def load(cls, path: str | Path) -> AdversarialAutoencoder:
        """From autoencoder.safetensors or the results folder of `autoencode`. Raises UserError for anything else."""
        path = Path(path)
        path = path / EXPORT_NAME if path.is_dir() else path
        tensors, about = load_safetensors(path)
        if about.get("kind") != KIND:
            raise UserError(f"{path} holds no autoencoder; give the {EXPORT_NAME} that autoencode writes")
        try:
            parts = {
                name: {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}
                for name in ("encoder", "decoder")
            }
            if sum(map(len, parts.values())) != len(tensors):
                raise ValueError("it has tensors of neither encoder nor decoder")
            encoder = build_network(Encoder, about.get("encoder"), parts["encoder"])
            decoder = build_network(Decoder, about.get("decoder"), parts["decoder"])
        except ValueError as error:
            raise UserError(f"{path} is damaged ({str(error)[:120]}); make it again with autoencode") from None
        recorded = about.get("about")
        return cls(encoder, decoder, recorded if isinstance(recorded, dict) else {}).eval()


def _to_unit(images: Tensor) -> Tensor:
    return images.float() / 255 if images.dtype == torch.uint8 else images
