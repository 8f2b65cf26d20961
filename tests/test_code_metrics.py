# SPDX-License-Identifier: Apache-2.0
"""Parzen windows, the two-sample test, holes, and what categories stand for, against plain formulas."""

from __future__ import annotations

import math

import pytest
import torch

from gangealing_fast.metrics.clusters import best_examples
from gangealing_fast.metrics.codes import emptiest_place, mmd_test, neighbour_error
from gangealing_fast.metrics.likelihood import choose_sigma, parzen_log_likelihood


def test_the_density_of_a_parzen_window_is_a_mean_of_gaussians():
    torch.manual_seed(0)
    pictures, samples, sigma = torch.rand(7, 4), torch.rand(9, 4), 0.3
    normal = torch.distributions.MultivariateNormal(torch.zeros(4).double(), sigma**2 * torch.eye(4).double())
    each = normal.log_prob((pictures[:, None] - samples).double())
    expected = torch.logsumexp(each, 1) - math.log(9)
    torch.testing.assert_close(parzen_log_likelihood(pictures, samples, sigma), expected, atol=1e-5, rtol=1e-6)


def test_sigma_is_the_one_that_validation_prefers():
    torch.manual_seed(0)
    samples = torch.randn(3000, 2)
    assert choose_sigma(torch.randn(500, 2), samples, [0.001, 0.2, 5.0]) == 0.2


def test_equal_distributions_are_not_told_apart_and_others_are():
    torch.manual_seed(0)
    values = [mmd_test(torch.randn(200, 3), torch.randn(200, 3), permutations=100, seed=k).p_value for k in range(20)]
    assert sum(value < 0.05 for value in values) <= 4 and max(values) > 0.5
    assert mmd_test(torch.randn(200, 3), 1.5 * torch.randn(200, 3), permutations=100).p_value < 0.05
    assert mmd_test(torch.randn(200, 3), torch.randn(200, 3) + 0.5, permutations=100).p_value < 0.05


def test_the_statistic_is_that_of_the_formula():
    torch.manual_seed(0)
    x, y = torch.randn(6, 2).double(), torch.randn(6, 2).double() + 1
    both = torch.cat([x, y])
    squared = torch.cdist(both, both).square()
    width = squared[~torch.eye(12, dtype=torch.bool)].median()

    def kernel(a, b):
        return torch.exp(-torch.cdist(a, b).square() / width).mean()

    expected = kernel(x, x) + kernel(y, y) - 2 * kernel(x, y)
    assert mmd_test(x, y, permutations=1).statistic == pytest.approx(expected.item())


def test_a_hole_is_found_and_a_full_distribution_has_none():
    torch.manual_seed(0)
    prior, places = torch.rand(4000, 2), torch.rand(500, 2)
    full = torch.rand(4000, 2)
    assert emptiest_place(full, prior, places) >= 3
    holed = full.clone()
    inside = (holed - 0.5).norm(dim=1) < 0.15
    holed[inside] = torch.rand(int(inside.sum()), 2) * 0.2
    assert emptiest_place(holed, prior, places) == 0


def test_a_category_stands_for_its_surest_example():
    probabilities = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8]])
    assert best_examples(probabilities, torch.tensor([4, 5, 6])) == [4, 6]


@pytest.mark.parametrize(
    "call",
    [
        lambda: parzen_log_likelihood(torch.zeros(2, 3), torch.zeros(2, 4), 0.1),
        lambda: parzen_log_likelihood(torch.zeros(2, 3), torch.zeros(2, 3), 0.0),
        lambda: choose_sigma(torch.zeros(0, 3), torch.zeros(2, 3)),
        lambda: mmd_test(torch.zeros(3, 2), torch.zeros(4, 2)),
        lambda: emptiest_place(torch.zeros(5, 2), torch.zeros(5, 2), torch.zeros(3, 2)),
        lambda: best_examples(torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64)),
    ],
)
def test_what_does_not_fit_is_a_value_error(call):
    with pytest.raises(ValueError):
        call()


def test_the_neighbours_of_a_code_vote():
    known = torch.tensor([[0.0], [0.1], [0.2], [5.0], [5.1], [5.2]])
    classes = torch.tensor([0, 0, 1, 1, 1, 0])
    codes = torch.tensor([[0.05], [5.05], [5.3]])
    assert neighbour_error(known, classes, codes, torch.tensor([0, 1, 0]), neighbours=3) == pytest.approx(1 / 3)
    assert neighbour_error(known, classes, codes, torch.tensor([0, 1, 0]), neighbours=1) == 0
    for wrong in (
        lambda: neighbour_error(known, classes, torch.zeros(3, 2), torch.zeros(3, dtype=torch.int64)),
        lambda: neighbour_error(known, classes, codes, torch.zeros(2, dtype=torch.int64)),
        lambda: neighbour_error(known[:4], classes[:4], codes, torch.zeros(3, dtype=torch.int64)),
    ):
        with pytest.raises(ValueError, match=r"codes must be|each code needs"):
            wrong()
