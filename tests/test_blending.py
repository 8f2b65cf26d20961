# SPDX-License-Identifier: Apache-2.0
"""Blending by pyramids, against what its definition says."""

from __future__ import annotations

import pytest
import torch

from gangealing_fast.applications import blending


def noise(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def test_reduce_and_expand_are_the_sums_of_the_paper():
    """g_(k+1)(i) = sum w(m) g_k(2i + m), and expand: 2 sum w(m) g((i - m) / 2) over whole places, in one dimension."""
    weights = (0.05, 0.25, 0.4, 0.25, 0.05)
    row = noise(11).double()
    reduced = blending.reduce(row.expand(1, 1, 4, 11))[0, 0, 0]
    assert reduced.shape == (6,)
    for i in range(6):
        expected = sum(w * row[min(max(2 * i + m, 0), 10)] for m, w in zip(range(-2, 3), weights, strict=True))
        torch.testing.assert_close(reduced[i], expected)
    expanded = blending.expand(row.expand(1, 1, 4, 11), 8, 22)[0, 0, 0]
    for i in range(22):
        parts = [(w, (i - m) // 2) for m, w in zip(range(-2, 3), weights, strict=True) if (i - m) % 2 == 0]
        torch.testing.assert_close(expanded[i], 2 * sum(w * row[min(max(k, 0), 10)] for w, k in parts))


@pytest.mark.parametrize("size", [(64, 64), (37, 50), (5, 9)])
def test_bands_add_up_to_the_picture(size):
    picture = noise(2, 3, *size)
    levels = blending.most_levels(*size)
    bands = blending.laplacian_pyramid(picture, levels)
    assert len(bands) == levels and min(bands[-1].shape[2:]) >= 3
    torch.testing.assert_close(blending.collapse(bands), picture)
    flat = torch.full((1, 1, *size), 0.7)
    torch.testing.assert_close(blending.expand(blending.reduce(flat), *size), flat)


def test_a_mask_of_one_value_mixes_and_two_levels_are_the_formula():
    first, second = noise(1, 3, 40, 56), noise(1, 3, 40, 56, seed=1)
    mixed = blending.multiresolution_spline(first, second, torch.full((1, 1, 40, 56), 0.3), 4)
    torch.testing.assert_close(mixed, 0.3 * first + 0.7 * second, atol=1e-5, rtol=0)
    mask = (noise(1, 1, 40, 56, seed=2) > 0.5).float()

    def bands(picture):
        coarse = blending.reduce(picture)
        return picture - blending.expand(coarse, 40, 56), coarse

    (fine_a, coarse_a), (fine_b, coarse_b) = bands(first), bands(second)
    reduced = blending.reduce(mask)
    coarse = reduced * coarse_a + (1 - reduced) * coarse_b
    expected = mask * fine_a + (1 - mask) * fine_b + blending.expand(coarse, 40, 56)
    torch.testing.assert_close(blending.multiresolution_spline(first, second, mask, 2), expected)


def test_a_seam_is_softer_in_a_pyramid():
    """Half of a grey picture under a white edit: the step at its rim is spread, more so with all bands."""
    edit = torch.zeros(1, 4, 64, 64)
    edit[..., 32:] = 1
    grey = torch.zeros(1, 3, 64, 64)
    rows = {how: blending.blend(grey, edit, how)[0, 0, 32] for how in ("alpha", "laplacian-light", "laplacian")}
    steps = {how: row.diff().abs().max().item() for how, row in rows.items()}
    assert steps["alpha"] == 1 and steps["laplacian"] <= steps["laplacian-light"] < 0.6
    reach = {how: int(((row > 0.02) & (row < 0.98)).sum()) for how, row in rows.items()}
    assert reach["alpha"] == 0 and 2 < reach["laplacian-light"] < 24 < reach["laplacian"]


@pytest.mark.parametrize("how", ["laplacian", "laplacian-light"])
def test_pictures_without_the_edit_stay_and_colours_do_not_darken(how):
    pictures = noise(2, 3, 48, 48) * 2 - 1
    edit = torch.zeros(2, 4, 48, 48)
    edit[1, [0, 3], 10:30, 10:30] = 0.5  # half transparent red
    result = blending.blend(pictures, edit, how)
    assert torch.equal(result[0], pictures[0])
    # The transparent rest of the edit has no colour of its own: it is continued, not black.
    colours = blending.extend_colours(edit[1:])
    torch.testing.assert_close(colours[:, 0], torch.ones(1, 48, 48))
    assert colours[:, 1:].abs().max() == 0
    red = torch.tensor([1.0, -1.0, -1.0])[None, :, None, None].expand(1, 3, 48, 48)
    full = torch.cat([torch.tensor([1.0, 0, 0])[None, :, None, None].expand(1, 3, 48, 48), torch.ones(1, 1, 48, 48)], 1)
    torch.testing.assert_close(blending.blend(pictures[:1], full, how), red, atol=1e-5, rtol=0)
