# SPDX-License-Identifier: Apache-2.0
"""The generator of NVIDIA's StyleGAN2-ADA (PyTorch) under the names of our own.

Both compute StyleGAN2 (arXiv 1912.04958), so tensors differ in name and in axes of length one only. Its convolutions that are
demodulated are not multiplied by 1 / sqrt(fan in) at run time, which demodulation cancels up to its epsilon.
"""

from __future__ import annotations

import re

from torch import Tensor

_MAPPING = re.compile(r"mapping\.fc(\d+)\.(weight|bias)")
_BLOCK = re.compile(r"synthesis\.b(\d+)\.(const|conv0|conv1|torgb)(?:\.([\w.]+))?")
_LAYER = {
    "weight": "conv.weight",
    "affine.weight": "conv.modulation.weight",
    "affine.bias": "conv.modulation.bias",
    "bias": "activate.bias",
    "noise_strength": "noise.weight",
}
_CONSTANTS = ("resample_filter",)


def is_generator(names: set[str]) -> bool:
    """Whether these are the tensors of such a generator."""
    return "synthesis.b4.const" in names


def rename(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor | None]:
    """(state dict of `models.Generator`, the mean latent `[D]` where it is stored).

    Raises ValueError with the name of a tensor that has no place in an unconditional StyleGAN2 generator.
    """
    state: dict[str, Tensor] = {}
    mean = None
    for name, value in tensors.items():
        if name.rsplit(".", 1)[-1] in _CONSTANTS:
            continue
        if name == "mapping.w_avg":
            mean = value.float()
            continue
        if name.startswith("mapping.embed"):
            raise ValueError("it is conditional (mapping.embed), and only unconditional generators are supported")
        if match := _MAPPING.fullmatch(name):
            state[f"style.{int(match[1]) + 1}.{match[2]}"] = value.float()
            continue
        match = _BLOCK.fullmatch(name)
        if match is None:
            raise ValueError(f"{name} is no part of an unconditional StyleGAN2 generator with skip connections")
        new, shaped = _synthesis(name, int(match[1]), match[2], match[3], value.float())
        state[new] = shaped
    return state, mean


def _synthesis(name: str, resolution: int, part: str, rest: str | None, value: Tensor) -> tuple[str, Tensor]:
    level = resolution.bit_length() - 3  # 0 for 4x4
    if part == "const":
        return "input.input", value[None]
    if part == "torgb":
        place = "to_rgb1" if level == 0 else f"to_rgbs.{level - 1}"
        if rest == "bias":
            return f"{place}.bias", value.reshape(1, -1, 1, 1)
        new = _LAYER.get(rest or "")
        if new is None or not new.startswith("conv."):
            raise ValueError(f"{name} is no part of an unconditional StyleGAN2 generator with skip connections")
        return f"{place}.{new}", value[None] if rest == "weight" else value
    second = part == "conv1"
    place = "conv1" if level == 0 else f"convs.{2 * (level - 1) + second}"
    if rest == "noise_const":
        index = 0 if level == 0 else 2 * level - 1 + second
        return f"noises.noise_{index}", value[None, None]
    new = _LAYER.get(rest or "")
    if new is None:
        raise ValueError(f"{name} is no part of an unconditional StyleGAN2 generator with skip connections")
    if rest == "weight":
        value = value[None]
    return f"{place}.{new}", value.reshape(1) if rest == "noise_strength" else value
