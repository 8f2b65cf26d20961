# SPDX-License-Identifier: Apache-2.0
"""One whole optimisation step against the original: generator, target, transformer, LPIPS, regularisers, Adam, average."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support import assert_close, assert_golden, golden, golden_lpips_state, golden_state
from torch.utils._python_dispatch import TorchDispatchMode

from gangealing_fast import ops
from gangealing_fast.alignment.losses import AlignmentLoss, alignment_loss
from gangealing_fast.alignment.options import Schedule, Targets, Weights
from gangealing_fast.alignment.schedules import ema_decay
from gangealing_fast.alignment.step import AlignmentStep
from gangealing_fast.geometry.warping import Warping
from gangealing_fast.models import Generator, LatentTarget, Lpips, SpatialTransformer
from gangealing_fast.models.layers import EqualConv2d
from gangealing_fast.runtime.precision import LossScale
from gangealing_fast.training.loop import NotFinite
from gangealing_fast.training.optim import AdamEma


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
    perceptual.load_state_dict(golden_lpips_state(case["lpips_state"]), strict=False)
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
    aligned = transformer(unaligned, warping=Warping(case["padding_mode"]))
    loss = alignment_loss(perceptual, aligned.image, goal, aligned.residual_flow, Weights(tv=1000.0, identity=1.0))
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


def small_step(**changes: Any) -> AlignmentStep:
    """A step of slim networks with VGG16, in channels-last; the flow head is not zero, so that all weights get gradients."""
    torch.manual_seed(0)
    generator = Generator(32, 16, 2, channel_base=256, max_channels=16).eval().requires_grad_(False)
    transformer = SpatialTransformer(flow_size=32, channel_base=256, max_channels=16).to(memory_format=torch.channels_last)
    torch.nn.init.normal_(transformer.flow.warp_head.flow_out[2].weight, std=0.01)
    torch.nn.init.normal_(transformer.similarity.warp_head.linear.weight, std=0.01)
    average = copy.deepcopy(transformer).requires_grad_(False)
    target = LatentTarget(torch.randn(2, 16), torch.zeros(1, 16))
    options: dict[str, Any] = {
        "generator": generator,
        "transformer": transformer,
        "average": average,
        "target": target,
        "perceptual": Lpips(pretrained=False),
        "transformer_optimizer": AdamEma(transformer.parameters(), averages=average.parameters()),
        "target_optimizer": AdamEma(target.parameters()),
        "batch": 2,
        "micro_batch": 2,
        "schedule": Schedule(anneal_psi=10),
        "weights": Weights(tv=1.0, identity=1.0),
        "warping": Warping(),
        "targets": Targets(inject=3),
    }
    return AlignmentStep(**(options | changes))


class _Backwards(TorchDispatchMode):
    """The weights that convolutions and modulated convolutions compute a gradient of."""

    def __init__(self) -> None:
        super().__init__()
        self.weights: list[torch.Tensor] = []
        self.seen = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name()
        if name == "aten::convolution_backward":
            self.seen += 1
            if args[10][1]:
                self.weights.append(args[2])
        if name == "gangealing_fast::modulated_conv2d_backward":
            self.seen += 1
            given = dict(zip((argument.name for argument in func._schema.arguments), args, strict=False)) | (kwargs or {})
            if given["need_weight"]:
                self.weights.append(given["weight"])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_weight_gradient_of_a_frozen_layer_is_computed(dtype):
    step = small_step(dtype=dtype)
    with _Backwards() as backwards:
        step.step(3)
    convolutions = [module for module in step.transformer.modules() if isinstance(module, EqualConv2d)]
    assert len(backwards.weights) == len(convolutions)
    assert backwards.seen > len(convolutions) + 10  # generator and VGG16 pass gradients on to their inputs
    assert step.generator.conv1.conv.weight.grad is None


def test_only_the_injected_layers_get_style_gradients():
    step = small_step()
    w = torch.randn(2, 16)
    latents = step.target.mix_layers(w, 0.5, step.targets.inject, step.generator.n_latent)
    assert [latent.requires_grad for latent in latents] == [True] * 3 + [False] * (step.generator.n_latent - 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_layout_is_changed_on_the_way(dtype):
    """All activations of generator, transformer and VGG16 stay channels-last: no copy of one changes its strides."""
    step = small_step(dtype=dtype)
    changed: list[tuple[str, list[int]]] = []

    class Copies(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if func.name() in ("aten::clone", "aten::_to_copy", "aten::contiguous") and args[0].dim() == 4:
                x = args[0]
                if x.shape[1] > 3 and min(x.shape[2:]) > 1 and result.stride() != x.stride():
                    changed.append((func.name(), list(x.shape)))
            return result

    with Copies():
        step.step(3)
    # The heads of the flow hand over rows of vectors, [N, h, w, 2] and their masks, at an eighth of the size.
    assert [entry for entry in changed if entry[1][1] <= 64 and min(entry[1][2:]) > 4] == []


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_compiled_step_equals_the_eager_one(dtype):
    step = small_step(dtype=dtype)

    def gradients(loss: Callable[[torch.Tensor, float], tuple[AlignmentLoss, Any]]) -> list[torch.Tensor]:
        parameters = [*step.transformer.parameters(), *step.target.parameters()]
        total = loss(step.draw(0, range(2)), 0.5)[0].total
        return [total.detach(), *torch.autograd.grad(total, parameters, allow_unused=True, materialize_grads=True)]

    torch._dynamo.reset()
    compiled = torch.compile(step.loss, fullgraph=True, backend="aot_eager")
    for actual, expected in zip(gradients(compiled), gradients(step.loss), strict=True):
        assert_close(actual, expected, 1e-4 if dtype == torch.float32 else 0.1)


def step_gradients(step: AlignmentStep) -> tuple[float, list[torch.Tensor]]:
    """Loss of the next step, and the gradients that its optimisers saw."""
    loss = step.step(3)["loss"]
    return loss, [parameter.grad.clone() for parameter in step._parameters()]


def test_float16_with_a_scaled_loss_is_close_to_float32():
    wide, narrow = small_step(), small_step(dtype=torch.float16)
    loss, gradients = step_gradients(narrow)
    expected_loss, expected = step_gradients(wide)
    assert loss == pytest.approx(expected_loss, rel=0.01)
    total = torch.stack([(a - b).norm() for a, b in zip(gradients, expected, strict=True)]).norm()
    assert total < 0.05 * torch.stack([b.norm() for b in expected]).norm()
    assert narrow.loss_scale.value == 2.0**16 and wide.loss_scale.value == 1


def test_an_overflow_in_float16_leaves_the_step_out_and_halves_the_scale():
    step = small_step(dtype=torch.float16)
    step.loss_scale.value = 2.0**60
    before = copy.deepcopy([step.transformer.state_dict(), step.average.state_dict(), step.target.state_dict()])
    assert step.step(3)["loss_scale"] == 2.0**60 and step.loss_scale.value == 2.0**59
    for state, module in zip(before, (step.transformer, step.average, step.target), strict=True):
        assert all(torch.equal(value, module.state_dict()[key]) for key, value in state.items())
    step.loss_scale.value = 2.0**-10
    step.transformer.similarity.warp_head.linear.weight.register_hook(lambda gradient: gradient * torch.inf)
    with pytest.raises(NotFinite, match="overflow"):
        step.step(3)


def test_the_scale_of_the_loss_grows_after_good_steps():
    scale = LossScale(torch.float16, start=8.0, patience=2)
    weight = torch.zeros(2, requires_grad=True)
    for value, grown in ((8.0, 8.0), (8.0, 16.0)):
        weight.grad = torch.full((2,), 4.0)
        assert scale.value == value and scale.settle([weight]) and scale.value == grown
        assert torch.equal(weight.grad, torch.full((2,), 0.5))
    again = LossScale(torch.float16)
    again.load_state_dict(scale.state_dict())
    assert (again.value, again.good) == (16.0, 0)


def tiny_step(**changes: Any) -> AlignmentStep:
    """A step that torch.compile is quick with."""
    torch.manual_seed(0)
    transformer = SpatialTransformer(("similarity",), 8, channel_base=32, max_channels=4)
    torch.nn.init.normal_(transformer.similarity.warp_head.linear.weight, std=0.01)
    average, target = copy.deepcopy(transformer).requires_grad_(False), LatentTarget(torch.eye(2, 8), torch.zeros(1, 8))
    return small_step(
        generator=Generator(8, 8, 1, channel_base=32, max_channels=4).eval().requires_grad_(False),
        transformer=transformer,
        average=average,
        target=target,
        perceptual=lambda a, b: (a - b).square().mean((1, 2, 3)),
        transformer_optimizer=AdamEma(transformer.parameters(), averages=average.parameters()),
        target_optimizer=AdamEma(target.parameters()),
        **changes,
    )


@pytest.mark.slow
def test_a_step_through_torch_compile_gives_the_same_losses():
    eager, compiled = tiny_step(), tiny_step(compiled=True)
    for index in range(3):
        a, b = eager.step(index), compiled.step(index)
        assert {key: pytest.approx(value, rel=1e-3, abs=1e-6) for key, value in a.items()} == b


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_recorded_passes_equal_those_that_are_run():
    device = torch.device("cuda")
    steps = []
    for recorded in (False, True):
        step = small_step(batch=3, cuda_graphs=recorded)
        for module in (step.generator, step.transformer, step.average, step.target, step.perceptual):
            module.to(device)
        step.transformer_optimizer = AdamEma(step.transformer.parameters(), averages=step.average.parameters())
        step.target_optimizer = AdamEma(step.target.parameters())
        steps.append([step.step(index) for index in range(4)])
    for a, b in zip(*steps, strict=True):
        assert a == {key: pytest.approx(value, rel=1e-3, abs=1e-6) for key, value in b.items()}
