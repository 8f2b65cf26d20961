# SPDX-License-Identifier: Apache-2.0
"""Smoothing of warps in time: less jitter, a bounded lag, similarities stay similarities; the figure for jitter."""

from __future__ import annotations

import math

import pytest
import torch

from gangealing_fast.applications.smoothing import Jitter, Kalman, OneEuro, Smoother, Smoothing
from gangealing_fast.geometry.warps import identity_grid, mirror_grid, similarity_matrix, transform_points
from gangealing_fast.models.spatial_transformer import Alignment

STEP = 1 / 25


def alignment(angle=0.0, log_scale=0.0, x=0.0, y=0.0, *, flow=None, mirrored=False):
    matrix = similarity_matrix(*(torch.tensor([float(value)]) for value in (angle, log_scale, x, y)))
    base = identity_grid(8, 8)[None]
    grid = mirror_grid(transform_points(matrix, base if flow is None else base + flow), torch.tensor([mirrored]))
    return Alignment(torch.zeros(1, 3, 8, 8), grid, flow, matrix)


@pytest.mark.parametrize("speed", [0.05, 0.5, 5.0])
def test_one_euro_lags_behind_a_steady_motion_by_what_its_formula_says(speed):
    cutoff, beta = 1.0, 10.0
    smooth = OneEuro(cutoff, beta)
    for k in range(400):
        shown = smooth(torch.tensor([speed * k * STEP], dtype=torch.float64), STEP)
    lag = speed * 399 * STEP - float(shown)
    assert lag == pytest.approx(speed / (2 * math.pi * (cutoff + beta * speed)), rel=1e-6)
    assert lag < 1 / (2 * math.pi * beta)


@pytest.mark.parametrize("steps", [[STEP] * 300, [STEP, 2 * STEP, STEP / 2] * 100])
def test_kalman_does_not_lag_behind_a_steady_motion(steps):
    smooth, time = Kalman(1.0), 0.0
    for step in steps:
        time += step
        shown = smooth(torch.tensor([0.3 * time + 1, -2 * time], dtype=torch.float64), step)
    torch.testing.assert_close(shown, torch.tensor([0.3 * time + 1, -2 * time], dtype=torch.float64), atol=1e-9, rtol=0)


def test_the_cutoff_of_kalman_is_a_frequency():
    """A wave passes as through (sqrt 2 s + 1) / (s² + sqrt 2 s + 1), s = i at that frequency."""

    def passed(frequency):
        smooth, values = Kalman(1.0), []
        for k in range(600):
            wave = math.sin(2 * math.pi * frequency * k / 100)
            values.append(float(smooth(torch.tensor([wave], dtype=torch.float64), 1 / 100)))
        return max(values[300:])

    natural = 1j
    expected = abs((math.sqrt(2) * natural + 1) / (natural**2 + math.sqrt(2) * natural + 1))
    assert passed(1.0) == pytest.approx(expected, rel=0.03)
    assert passed(8.0) < 0.25 and passed(0.25) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("kind", ["one-euro", "kalman"])
def test_jitter_falls_and_motion_stays(kind):
    """A turn and a shift at constant speed with noise: half the jitter at least, and the truth is met more closely."""
    generator, smoother = torch.Generator().manual_seed(0), Smoother(Smoothing(kind, cutoff=0.6, beta=1.0))
    jitter = {"before": Jitter(), "after": Jitter()}
    errors = {"before": [], "after": []}
    for k in range(150):
        truth = (0.2 * k * STEP, 0.0, 0.05 * k * STEP, 0.0)
        found = alignment(*(value + 0.02 * float(torch.randn((), generator=generator)) for value in truth))
        shown = smoother(found, 0, False, k * STEP)
        real = alignment(*truth).grid[0].reshape(-1, 2)
        for name, one in (("before", found), ("after", shown)):
            points = one.grid[0].reshape(-1, 2)
            jitter[name].add(points)
            errors[name].append((points - real).square().mean().sqrt().item() if k > 40 else 0)
    assert jitter["after"].value < 0.5 * jitter["before"].value
    assert sum(errors["after"]) < sum(errors["before"]) or kind == "one-euro"
    linear = shown.matrix[0, :, :2]
    assert linear[0, 0] == pytest.approx(float(linear[1, 1]), abs=1e-6)
    assert linear[0, 1] == pytest.approx(-float(linear[1, 0]), abs=1e-6)


def test_a_turn_past_half_a_circle_goes_on():
    smoother = Smoother(Smoothing("kalman", cutoff=2.0))
    for k in range(100):
        shown = smoother(alignment(angle=0.1 * k), 0, False, k * STEP)
    torch.testing.assert_close(shown.matrix, alignment(angle=9.9).matrix, atol=1e-4, rtol=0)


@pytest.mark.parametrize("mirrored", [False, True])
def test_the_grid_is_that_of_the_smoothed_matrix_and_flow(mirrored):
    generator, smoother = torch.Generator().manual_seed(0), Smoother(Smoothing("kalman", flow=0.75))
    kept = None
    for k in range(5):
        flow = torch.randn(1, 8, 8, 2, generator=generator) * 0.05
        kept = flow if kept is None else 0.75 * kept + 0.25 * flow
        shown = smoother(alignment(0.1 * k, 0.02 * k, 0.03, flow=flow, mirrored=mirrored), 0, mirrored, k * STEP)
    torch.testing.assert_close(shown.residual_flow, kept)
    expected = mirror_grid(transform_points(shown.matrix, identity_grid(8, 8)[None] + kept), torch.tensor([mirrored]))
    torch.testing.assert_close(shown.grid, expected)


def test_another_cluster_or_a_time_that_goes_back_begins_anew():
    smoother = Smoother(Smoothing("one-euro", cutoff=0.1, beta=0.0))
    smoother(alignment(x=0.0), 0, False, 0.0)
    assert smoother(alignment(x=1.0), 0, False, STEP).matrix[0, 0, 2] < 0.1
    for cluster, mirrored, seconds in ((1, False, 2 * STEP), (1, True, 3 * STEP), (1, True, 0.0)):
        shown = smoother(alignment(x=1.0), cluster, mirrored, seconds)
        assert float(shown.matrix[0, 0, 2]) == pytest.approx(1)


def test_without_smoothing_nothing_is_touched():
    one = alignment(0.3, 0.1, 0.2)
    assert Smoother(Smoothing())(one, 0, False, 0.0) is one and not Smoothing().active


def test_jitter_is_the_deviation_of_independent_errors_and_ignores_steady_motion():
    jitter, generator = Jitter(), torch.Generator().manual_seed(0)
    for k in range(2000):
        jitter.add(torch.tensor([[3.0 * k, -k], [1.0, k]]) + 0.7 * torch.randn(2, 2, generator=generator))
    assert jitter.value == pytest.approx(0.7, rel=0.03)
    steady = Jitter()
    for k in range(5):
        steady.add(torch.tensor([[2.0 * k, 1.0]]))
    assert steady.value == 0 and Jitter().value is None
    steady.restart()
    for k in range(2):
        steady.add(torch.tensor([[100.0 * k, 1.0]]))
    assert steady.value == 0


@pytest.mark.parametrize("wrong", [{"cutoff": 0}, {"beta": -1}, {"flow": 1}, {"matrices": "mean"}])
def test_numbers_that_make_no_filter(wrong):
    with pytest.raises(ValueError, match="Smoothing"):
        Smoothing(**wrong)
