# SPDX-License-Identifier: Apache-2.0
"""psi, learning-rate restarts, their zeros and the decay of averaged weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support import assert_golden, golden

from gangealing_fast.alignment.schedules import (
    DecayingCosineRestarts,
    ema_decay,
    learning_rate_factor,
    psi_at,
    zero_learning_rate_steps,
)


def test_golden():
    _, arrays = golden("schedules")
    restarts = DecayingCosineRestarts()
    factors = torch.tensor([restarts(float(epoch)) for epoch in arrays["epoch"]])
    assert_golden(factors, arrays["lr"])
    assert (factors - arrays["lr"]).abs().max() < 1e-5
    for shape in ("cosine", "linear"):
        psi = torch.tensor([psi_at(step, 1000, shape) for step in range(0, 1025, 25)])
        assert_golden(psi, arrays[f"psi_{shape}"])
    steps = zero_learning_rate_steps(150_000, 37_500, 1_500_000)
    assert steps == arrays["zero_lr_iters"].tolist()


@pytest.mark.parametrize("shape", ["cosine", "linear"])
def test_psi_falls_from_one_to_zero(shape):
    values = [psi_at(step, 100, shape) for step in range(150)]
    assert values[0] == 1 and values[100:] == [0] * 50
    assert all(a > b for a, b in zip(values[:100], values[1:101], strict=True))
    assert psi_at(0, 0, shape) == 0


def test_restarts_start_lower_and_last_longer():
    restarts = DecayingCosineRestarts(period=2.0, multiplier=3, decay=0.5)
    assert [restarts(e) for e in (0, 2, 8, 26)] == [1, 0.5, 0.25, 0.125]
    assert restarts.ends(26.0) == [2, 8, 26]
    assert restarts(1.0) == pytest.approx(0.5)
    assert DecayingCosineRestarts(multiplier=1)(5.0) == pytest.approx(0.9**5)


def test_learning_rate_waits_for_psi():
    factors = [learning_rate_factor(step, 100, 10) for step in range(141)]
    assert factors[:101] == [1.0] * 101
    assert factors[109] < 0.03 and factors[110] == pytest.approx(0.9) and factors[130] == pytest.approx(0.81)
    ends = zero_learning_rate_steps(100, 10, 140)
    assert ends == [99, 109, 129]
    assert all(factors[end] < 0.03 for end in ends[1:])
    assert learning_rate_factor(10**6, 100, 0) == 1.0
    assert zero_learning_rate_steps(100, 0, 140) == [99]


def test_ema_decay():
    assert ema_decay() == 0.5 ** (32 / 10_000)
    assert ema_decay(10, 10) == 0.5
    np.testing.assert_allclose(ema_decay(5, 100) ** 20, 0.5)


@pytest.mark.parametrize(
    "call",
    [
        lambda: psi_at(-1, 10),
        lambda: psi_at(1, 10, "square"),
        lambda: DecayingCosineRestarts(period=0),
        lambda: DecayingCosineRestarts(decay=0),
        lambda: DecayingCosineRestarts()(-0.1),
        lambda: ema_decay(0),
    ],
)
def test_errors(call):
    with pytest.raises(ValueError):
        call()
