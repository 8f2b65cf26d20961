# SPDX-License-Identifier: Apache-2.0
"""What `modulated_conv2d` asks of its arguments, each refusal a sentence."""

from __future__ import annotations

from torch import Tensor

from gangealing_fast.ops._common import check_tensor, parameter


def check(x: Tensor, weight: Tensor, style: Tensor, f: Tensor | None, up: bool, down: bool) -> None:
    """Raise ValueError or TypeError for what does not fit together, but for the activation and the energy."""
    check_tensor("modulated_conv2d", "x", x, 4, "[N, Cin, H, W]")
    check_tensor("modulated_conv2d", "weight", weight, 4, "[Cout, Cin, k, k]")
    check_tensor("modulated_conv2d", "style", style, 2, "[N, Cin]")
    if weight.shape[2] != weight.shape[3] or weight.shape[2] < 1:
        raise ValueError(f"modulated_conv2d: weight must have shape [Cout, Cin, k, k], but it has shape {list(weight.shape)}.")
    if weight.shape[1] != x.shape[1]:
        raise ValueError(f"modulated_conv2d: weight expects {weight.shape[1]} input channels but x has {x.shape[1]}.")
    if tuple(style.shape) != (x.shape[0], x.shape[1]):
        raise ValueError(f"modulated_conv2d: style must be {[x.shape[0], x.shape[1]]}, but it has shape {list(style.shape)}.")
    if up and down:
        raise ValueError("modulated_conv2d: up and down exclude each other; choose one.")
    if min(x.shape[2:]) < (2 if down else 1):
        raise ValueError(f"modulated_conv2d: x of {x.shape[2]} x {x.shape[3]} is too small.")
    if f is not None:
        check_tensor("modulated_conv2d", "f", f, 2, "[n, n]")
        if f.shape[0] != f.shape[1] or f.shape[0] < 1:
            raise ValueError(f"modulated_conv2d: f must be a square filter [n, n], but it has shape {list(f.shape)}.")


def check_energy(weight: Tensor, energy: Tensor | None) -> None:
    """Raise ValueError for an energy that is not of this weight."""
    if energy is not None:
        check_tensor("modulated_conv2d", "energy", energy, 2, "[Cout, Cin]")
    if energy is not None and tuple(energy.shape) != tuple(weight.shape[:2]):
        raise ValueError(f"modulated_conv2d: energy must be {list(weight.shape[:2])} beside this weight, got {list(energy.shape)}.")


def checked_activation(
    x: Tensor, weight: Tensor, up: bool, down: bool,
    bias: Tensor | None, noise: Tensor | None, noise_strength: Tensor | None, slope: float, gain: float,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:  # fmt: skip
    """Bias, noise and its strength in the dtype computed in."""
    if bias is None:
        if noise is not None or noise_strength is not None:
            raise ValueError("modulated_conv2d: noise is added where a bias is given; pass a bias too.")
        return None, None, None
    if list(bias.shape) != [weight.shape[0]]:
        raise ValueError(f"modulated_conv2d: bias must have shape {[weight.shape[0]]}, but it has shape {list(bias.shape)}.")
    if not gain > 0 or not slope >= 0:
        raise ValueError(f"modulated_conv2d: gain must be positive and slope not negative, not gain={gain}, slope={slope}.")
    if (noise is None) != (noise_strength is None):
        raise ValueError("modulated_conv2d: noise and noise_strength belong together; give both or neither.")
    if noise is not None and noise_strength is not None:
        even = 1 - weight.shape[2] % 2
        size = [2 * s if up else s // 2 if down else s + even for s in x.shape[2:]]
        if list(noise.shape) not in ([x.shape[0], 1, *size], [1, 1, *size]):
            raise ValueError(
                f"modulated_conv2d: noise has shape {list(noise.shape)}, expected {[x.shape[0], 1, *size]} or a batch of 1."
            )
        if noise_strength.numel() != 1:
            raise ValueError(f"modulated_conv2d: noise_strength must be one number, but has shape {list(noise_strength.shape)}.")
        noise = parameter("modulated_conv2d", "noise", noise, x)
        noise_strength = parameter("modulated_conv2d", "noise_strength", noise_strength, x)
    return parameter("modulated_conv2d", "bias", bias, x), noise, noise_strength
