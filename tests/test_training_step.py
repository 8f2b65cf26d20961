# SPDX-License-Identifier: Apache-2.0
"""One whole optimisation step against the original: generator, target, transformer, LPIPS, regularisers, Adam, average."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from support import assert_golden, golden, golden_state
from test_perceptual import lpips_state

from gangealing_fast import ops
from gangealing_fast.alignment.losses import alignment_loss
from gangealing_fast.alignment.schedules import ema_decay
from gangealing_fast.models import Generator, LatentTarget, Lpips, SpatialTransformer
from gangealing_fast.optim import AdamEma


def pooled(x: torch.Tensor) -> torch.Tensor:
    return F.adaptive_avg_pool2d(x, 8)


@pytest.mark.parametrize("kind", ["fused", "reference"])
def test_golden_training_step(kind):
    with ops.fused() if kind == "fused" else ops.reference():
        golden_training_step()


def golden_training_step() -> None:
    case, arrays = golden("training_step")
    size, inject = case["size"], case["inject"]
    generator = Generator(size, 512, 2).requires_grad_(False)
    generator.load_state_dict(golden_state(case["generator_state"]), strict=False)
    transformer = SpatialTransformer(flow_size=size, channel_multiplier=0.5)
    transformer.load_state_dict(golden_state(case["stn_state"]))
    target = LatentTarget(torch.zeros(case["ndirs"], 512), torch.zeros(1, 512))
    target.load_state_dict(golden_state(case["latent_state"]))
    perceptual = Lpips(pretrained=False)
    perceptual.load_state_dict(lpips_state(case["lpips_state"]), strict=False)
    average = copy.deepcopy(transformer)
    optimizers = (
        AdamEma(transformer.parameters(), 1e-3, averages=average.parameters(), decay=ema_decay()),
        AdamEma(target.parameters(), 1e-2),
    )
    head = "stns.0.warp_head.linear.weight"
    before = average.state_dict()[head].clone()

    w = generator.map(arrays["z"])
    unaligned = generator.synthesize(w)
    goal = generator.synthesize(target.mix_layers(w, 0.4, inject, generator.n_latent))
    aligned = transformer(unaligned, padding_mode=case["padding_mode"])
    loss = alignment_loss(perceptual, aligned.image, goal, aligned.residual_flow, tv_weight=1000.0, identity_weight=1.0)
    assert_golden(torch.stack([unaligned.mean(), unaligned.std()]), arrays["unaligned_mean_std"], what="unaligned")
    assert_golden(pooled(unaligned), arrays["unaligned_8x8"], what="unaligned")
    assert_golden(pooled(goal), arrays["target_8x8"], what="target")
    assert_golden(pooled(aligned.image), arrays["aligned_8x8"], what="aligned")
    assert_golden(pooled(aligned.residual_flow.permute(0, 3, 1, 2)), arrays["residual_flow_8x8"], what="flow")
    for name in ("perceptual", "tv", "identity"):
        assert_golden(getattr(loss, name), arrays[name], what=name)

    loss.total.backward()
    parameters = dict(transformer.named_parameters())
    norms = torch.stack([parameters[name].grad.norm() for name in case["grad_norm_names"]])
    assert_golden(norms, arrays["grad_norms"], gradient=True, what="gradient norms")
    total = torch.stack([p.grad.norm() for p in parameters.values()]).norm()
    assert_golden(total, arrays["grad_norm_total"], gradient=True, what="gradient norm")
    assert_golden(target.coefficients.grad, arrays["grad_coefficients"], gradient=True, what="coefficient gradient")

    for optimizer in optimizers:
        optimizer.step()
    assert_golden(target.coefficients, arrays["coefficients_after"], what="coefficients")
    assert_golden(parameters[head], arrays["linear_weight_after"], what="head")

    moved = average.state_dict()[head] - before
    assert_golden(moved, (1 - 0.5 ** (32 / 10_000)) * (arrays["linear_weight_after"] - before), gradient=True)
