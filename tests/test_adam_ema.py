# SPDX-License-Identifier: Apache-2.0
"""The fused optimiser step: the operator against its reference, the optimiser against torch's own, resuming."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from cases.adam_ema import CASES
from support import OPCHECKS, assert_close, assert_cpu_kernels
from torch import nn

from gangealing_fast import ops
from gangealing_fast.ops.adam_ema import adam_ema, adam_ema_reference
from gangealing_fast.training.optim import AdamEma


def test_kernel():
    assert_cpu_kernels("adam_ema")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", CASES)
def test_equals_reference(name, dtype):
    case = CASES[name]
    actual, expected = case.arguments(dtype), case.arguments(dtype)
    for _ in range(2):
        adam_ema(*actual, **case.keywords)
        adam_ema_reference(*expected, **case.keywords)
    for got, wanted, what in zip(actual[:5], expected[:5], ("parameter", "gradient", "m", "v", "average"), strict=True):
        for a, b in zip(got, wanted, strict=True):
            assert_close(a, b, 1e-6 if dtype == torch.float32 else 1e-13, what)
            assert a.stride() == b.stride()


def test_formulas_by_hand():
    parameter, m, v, average = (torch.tensor([value]) for value in (2.0, 0.5, 0.25, 1.0))
    adam_ema(
        [parameter], [torch.tensor([3.0])], [m], [v], [average], [2],
        learning_rate=0.1, beta1=0.8, beta2=0.5, epsilon=0.25, decay=0.75,
    )  # fmt: skip
    first, second = 0.8 * 0.5 + 0.2 * 3, 0.5 * 0.25 + 0.5 * 9
    expected = 2 - 0.1 * (first / (1 - 0.8**2)) / (math.sqrt(second / (1 - 0.5**2)) + 0.25)
    assert m.item() == pytest.approx(first) and v.item() == pytest.approx(second)
    assert parameter.item() == pytest.approx(expected)
    assert average.item() == pytest.approx(1 + 0.25 * (expected - 1))


def test_threads_change_nothing():
    case, results = CASES["more than one block"], []
    before = torch.get_num_threads()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        arguments = case.arguments()
        adam_ema(*arguments, **case.keywords)
        results.append(arguments)
    torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for x, y in zip(results[0][:5], other[:5], strict=True) for a, b in zip(x, y, strict=True))


def test_opchecks():
    arguments = CASES["steps of their own"].arguments()
    settings = tuple(CASES["steps of their own"].keywords.values())
    torch.library.opcheck(torch.ops.gangealing_fast.adam_ema, (*arguments, *settings), test_utils=OPCHECKS)


def test_compiles():
    case = CASES["first step"]
    actual, expected = case.arguments(), case.arguments()
    torch._dynamo.reset()
    torch.compile(lambda *a: adam_ema(*a, **case.keywords), fullgraph=True, backend="aot_eager")(*actual)
    adam_ema_reference(*expected, **case.keywords)
    assert_close(actual[0][0], expected[0][0], 1e-6)
    assert_close(actual[4][0], expected[4][0], 1e-6)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda a: a[1].pop(), ValueError, "2 parameters but 1 gradients"),
        (lambda a: a[4].pop(), ValueError, "but 1 averages"),
        (lambda a: a[5].pop(), ValueError, "one number"),
        (lambda a: a[5].__setitem__(0, 0), ValueError, "at least 1"),
        (lambda a: a[0].__setitem__(0, a[0][0].bfloat16()), TypeError, "float32 or float64"),
        (lambda a: a[2].__setitem__(0, a[2][0].double()), TypeError, "first_moments"),
        (lambda a: a[1].__setitem__(0, a[1][0].long()), TypeError, "gradients"),
        (lambda a: a[3].__setitem__(1, torch.ones(4)), ValueError, r"\[3\] on cpu, but in second_moments there is \[4\]"),
        (lambda a: a[1].__setitem__(1, torch.zeros(3, device="meta")), ValueError, "meta"),
        (lambda a: a[0][1].requires_grad_(), ValueError, "no_grad"),
    ],
)
def test_mistakes_are_clear_and_change_nothing(change, error, words):
    arguments = [[torch.ones(2, 2), torch.ones(3)] for _ in range(5)] + [[1, 1]]
    change(arguments)
    with pytest.raises(error, match=words):
        adam_ema(*arguments, learning_rate=0.1)
    assert all(bool((tensor == 1).all()) for tensors in arguments[:5] for tensor in tensors if tensor.device.type == "cpu")


@pytest.mark.parametrize("name", ["beta1", "beta2", "epsilon", "decay"])
def test_settings_out_of_range(name):
    with pytest.raises(ValueError, match="must lie"):
        adam_ema([torch.ones(1)], [torch.ones(1)], [torch.ones(1)], [torch.ones(1)], [], [1], learning_rate=0.1, **{name: -0.5})


def test_no_tensors_at_all():
    adam_ema([], [], [], [], [], [], learning_rate=0.1)


# ---- the optimiser


def network() -> nn.Module:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 1), nn.Flatten(), nn.Linear(72, 4), nn.Linear(4, 4))
    return model.to(memory_format=torch.channels_last)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range, each=lambda: None) -> None:
    for step in steps:
        x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model[:-1](x).square().mean().backward()  # the last layer gets no gradient
        optimizer.step()
        each()


def equal(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_agrees_with_torch_adam_and_a_separate_average():
    ours, theirs = network(), network()
    average, other = copy.deepcopy(ours), copy.deepcopy(theirs)
    adam = torch.optim.Adam(theirs.parameters(), 1e-2, betas=(0.8, 0.99))
    train(ours, AdamEma(ours.parameters(), 1e-2, (0.8, 0.99), averages=average.parameters(), decay=0.9), range(8))

    def follow() -> None:
        for x, y in zip(other.parameters(), theirs.parameters(), strict=True):
            x.data = 0.9 * x + 0.1 * y.detach()

    train(theirs, adam, range(8), follow)
    for a, b in ((ours, theirs), (average, other)):
        for x, y in zip(a.parameters(), b.parameters(), strict=True):
            assert_close(x, y, 1e-6)


def test_a_parameter_without_gradient_rests_and_its_average_follows():
    model = network()
    average = copy.deepcopy(model)
    start = model[-1].weight.detach().clone()
    with torch.no_grad():
        average[-1].weight.zero_()
    train(model, AdamEma(model.parameters(), 1e-2, averages=average.parameters(), decay=0.75), range(1))
    assert torch.equal(model[-1].weight, start)
    torch.testing.assert_close(average[-1].weight, 0.25 * start)


@pytest.mark.parametrize("options", [{}, {"fused": True}, {"foreach": True}])
def test_state_dicts_are_exchangeable_with_torch(options):
    theirs = network()
    adam = torch.optim.Adam(theirs.parameters(), 1e-2, **options)
    train(theirs, adam, range(3))
    ours = copy.deepcopy(theirs)
    optimizer = AdamEma(ours.parameters(), 1e-2)
    optimizer.load_state_dict(copy.deepcopy(adam.state_dict()))
    train(theirs, adam, range(3, 6))
    train(ours, optimizer, range(3, 6))
    back = torch.optim.Adam(theirs.parameters(), 1e-2, **options)
    back.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(ours, optimizer, range(6, 8))
    train(theirs, back, range(6, 8))
    for x, y in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert_close(x, y, 1e-6)
    assert AdamEma(ours.parameters()).state_dict().keys() == adam.state_dict().keys()


def test_resuming_is_exact():
    whole = network()
    average = copy.deepcopy(whole)
    optimizer = AdamEma(whole.parameters(), 1e-2, averages=average.parameters(), decay=0.9)
    train(whole, optimizer, range(4))
    resumed, resumed_average = copy.deepcopy(whole), copy.deepcopy(average)
    again = AdamEma(resumed.parameters(), 1e-2, averages=resumed_average.parameters(), decay=0.9)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(whole, optimizer, range(4, 7))
    train(resumed, again, range(4, 7))
    assert equal(whole, resumed) and equal(average, resumed_average)


def test_reference_mode_is_obeyed():
    fused, plain = network(), network()
    train(fused, AdamEma(fused.parameters(), 1e-2), range(2))
    with ops.reference():
        train(plain, AdamEma(plain.parameters(), 1e-2), range(2))
    for x, y in zip(fused.parameters(), plain.parameters(), strict=True):
        assert_close(x, y, 1e-6)


def test_what_the_optimiser_refuses():
    model = network()
    with pytest.raises(ValueError, match="averages"):
        AdamEma(model.parameters(), averages=[torch.ones(1)])
    adam = torch.optim.Adam(model.parameters(), weight_decay=0.1)
    train(model, adam, range(1))
    optimizer = AdamEma(model.parameters())
    optimizer.load_state_dict(copy.deepcopy(adam.state_dict()))
    with pytest.raises(ValueError, match="weight decay"):
        train(model, optimizer, range(1))


def test_closure_and_groups():
    a, b = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2))
    optimizer = AdamEma([{"params": [a]}, {"params": [b], "lr": 0.0}], 0.1)

    def closure() -> torch.Tensor:
        loss = a.sum() + b.sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 5
    torch.testing.assert_close(a.detach(), torch.full((3,), 0.9))
    assert torch.equal(b.detach(), torch.ones(2))
