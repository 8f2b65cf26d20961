# SPDX-License-Identifier: Apache-2.0
"""A translation between domains (MUNIT), and the losses of a training step of it with their gradients, without the optimisers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from benchmarks.case import BOTH, FORWARD, Case, Inputs, Variant, compiled
from gangealing_fast import ops
from gangealing_fast.adversarial.objectives import Objective, Side
from gangealing_fast.translation.config import PRESETS, TranslateTrainConfig
from gangealing_fast.translation.critics import MultiScaleCritic
from gangealing_fast.translation.losses import Weights, pass_through, reconstruction_losses
from gangealing_fast.translation.networks import TranslationNetworks
from gangealing_fast.translation.trainer import build, make_objective, weights_of


class _Step(nn.Module):
    """Images of both domains and styles to the losses of encoders, decoders and critics."""

    def __init__(self, networks: TranslationNetworks, critics: nn.ModuleList, weights: Weights, objective: Objective) -> None:
        super().__init__()
        self.networks, self.critics, self.weights, self.objective = networks, critics, weights, objective

    def forward(self, first: Tensor, second: Tensor, *drawn: Tensor) -> tuple[Tensor, Tensor]:
        images = (first, second)
        passed = pass_through(self.networks, images, drawn)
        made = torch.stack(list(reconstruction_losses(self.networks, images, passed, self.weights).values())).sum()
        judged = made.new_zeros(())
        for k, critic in enumerate(self.critics):
            fake = passed.translated[k]
            made = made + self.objective.generator(Side(fake, critic(fake)), {})
            real, known = Side(images[k], critic(images[k])), Side(fake.detach(), critic(fake.detach()))
            judged = judged + self.objective.critic(real, known, {})
        return made, judged


class _Translate(nn.Module):
    def __init__(self, networks: TranslationNetworks) -> None:
        super().__init__()
        self.content, self.decoder = networks[0].content, networks[1].decoder

    def forward(self, images: Tensor, styles: Tensor) -> Tensor:
        translated: Tensor = self.decoder(self.content(images), styles)
        return translated


def _step(config: TranslateTrainConfig) -> nn.Module:
    critics = nn.ModuleList(
        MultiScaleCritic(config.size, width=config.critic_width, layers=config.critic_layers, scales=config.critic_scales)
        for _ in range(2)
    )
    return _Step(build(config), critics, weights_of(config), make_objective(config))


def _functions(module: nn.Module, count: int) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Ours and the reference, called with `count` tensors and then the module's parameters, which gradients are taken by."""
    names = [name for name, _ in module.named_parameters()]

    def ours(*given: Tensor) -> Any:
        return functional_call(module, dict(zip(names, given[count:], strict=True)), given[:count])

    def reference(*given: Tensor) -> Any:
        with ops.reference():
            return ours(*given)

    return ours, reference


def _case(name: str, module: nn.Module, arguments: Callable[[], Inputs], passes: tuple[str, ...]) -> Case:
    ours, reference = _functions(module, len(arguments()))
    last = passes[-1]

    def inputs(device: torch.device) -> Inputs:
        module.to(device)
        learned = [parameter.detach().to(device).requires_grad_(last == BOTH) for parameter in module.parameters()]
        return (*(tensor.to(device) for tensor in arguments()), *learned)

    return Case(
        operator="translation",
        name=name,
        inputs=inputs,
        variants=(
            Variant("ours", ours),
            Variant("reference", reference, note="`--ops reference`: torch's own normalisation, bias and upsampling"),
            compiled(reference, passes=(last,), slow=last == BOTH),
        ),
        passes=passes,
        # Absolute differences and rectifiers have kinks, and instance normalisation of few pixels magnifies rounding.
        tolerance=2e-3,
        kinks=0.02,
        peak=True,
    )


def cases() -> list[Case]:
    result = []
    for preset, batch in (("edges-digits", 8), ("edges-cats", 4)):
        config = PRESETS[preset]
        side, style = config.size, config.style

        def arguments(count: int = batch, side: int = side, style: int = style) -> Inputs:
            styles = [torch.randn(count, style) for _ in range(2)]
            return (*(torch.rand(count, 3, side, side) * 2 - 1 for _ in range(2)), *styles)

        def one(count: int = batch, side: int = side, style: int = style) -> Inputs:
            return torch.rand(count, 3, side, side) * 2 - 1, torch.randn(count, style)

        torch.manual_seed(0)
        step = _step(config)
        translate = _Translate(build(config))
        result.append(_case(f"losses of a step of {preset}, {batch} pictures of {side}²", step, arguments, (BOTH,)))
        result.append(_case(f"translation by {preset}, {batch} pictures of {side}²", translate, one, (FORWARD,)))
    return result
