# SPDX-License-Identifier: Apache-2.0
"""Every operator beyond 2^31 elements: shapes, strides, results that no memory holds."""

from __future__ import annotations

import pytest
import torch
from calls import CALLS, PER_SAMPLE, N, results_of
from support import assert_cpu_kernels
from torch import Tensor

ONE = torch.ones(1)

LARGE = {
    "upfirdn2d": {"x": (1, 8, 20_000, 20_000)},
    "bias_act": {"x": (1, 3, 30_000, 30_000), "noise": (1, 1, 30_000, 30_000)},
    "bilinear_downsample": {"x": (1, 3, 30_000, 30_000)},
    "adain": {"x": (2, 3, 30_000, 30_000)},
    "modulated_conv2d": {"x": (1, 3, 30_000, 30_000), "style": (1, 3), "noise": (1, 1, 30_000, 30_000)},
    "inverted_residual": {"x": (1, 3, 30_000, 30_000)},
    "lpips_distance": {"features_a": (1, 3, 30_000, 30_000), "features_b": (1, 3, 30_000, 30_000)},
    "adam_ema": dict.fromkeys(CALLS["adam_ema"].tensors, (50_000, 50_000)),
    "grid_sample": {"x": (2, 1 << 20, 64, 64), "grid": (2, 1 << 10, 1 << 10, 2)},
    "mipmap_warp": {"x": (2, 1 << 20, 64, 64), "grid": (2, 1 << 10, 1 << 10, 2)},
    "flow_regularizer": {"flow": (3, 1 << 16, 1 << 16, 2)},
    "convex_upsample": {"flow": (2, 1 << 15, 1 << 15, 2), "mask": (2, 36, 1 << 15, 1 << 15)},
    "splat2d": {"background": (1, 3, 30_000, 30_000), "xy": (1, 2**30, 2), "values": (1, 2**30, 3), "sigma": (1, 2**30)},
    "mutual_nearest": {"first": (1, 2**28, 9), "second": (1, 2**28, 9)},
    "nearest_grid_point": {"grid": (1, 50_000, 50_000, 2), "points": (1, 2**31, 2)},
    "invert_grid": {"grid": (1, 50_000, 50_000, 2), "points": (1, 2**31, 2)},
}


@pytest.mark.parametrize("operator", CALLS)
def test_more_than_two_to_the_31_elements_keep_their_shapes(operator):
    """Forward and backward on the meta device, which holds shapes alone: no size is folded into 32 bits."""
    call = CALLS[operator]
    shapes = {**call.tensors, **LARGE[operator]}
    constant = [name for name in ("f", "energy") if name in shapes]
    with torch.device("meta"):
        tensors = {name: torch.empty(shape, requires_grad=call.differentiable) for name, shape in shapes.items()}
        tensors |= {name: tensors[name].detach() for name in constant}
        outputs = call(**tensors)
    assert any(t.numel() > 2**31 for t in (*outputs, *tensors.values()))
    for y in outputs:
        if y.requires_grad:
            leaves = [t for t in tensors.values() if t.requires_grad]
            gradients = torch.autograd.grad(y, leaves, torch.empty_like(y), allow_unused=True, retain_graph=True)
            assert all(g is None or g.shape == t.shape for g, t in zip(gradients, leaves, strict=True))


def _far_apart(x: Tensor, storage: torch.UntypedStorage) -> Tensor:
    """The values of `x` with its first axis more than 2^31 elements apart, in memory that is hardly touched."""
    strides = [0] * x.dim()
    elements = 1
    for axis in reversed(range(x.dim())):
        strides[axis], elements = elements, elements * x.shape[axis]
    strides[0] = 2**31 + 64
    placed = torch.empty(0, dtype=x.dtype).set_(storage, 0, x.shape, strides)
    placed.copy_(x)
    return placed


@pytest.mark.parametrize(("operator", "name"), PER_SAMPLE)
def test_strides_beyond_two_to_the_31(operator, name):
    """Samples so far apart that their distance does not fit 32 bits: the bits of the same call on contiguous memory."""
    call = CALLS[operator]
    tensors = call.make()
    try:
        storage = torch.UntypedStorage(4 * (2**31 + 4096))
    except RuntimeError:
        pytest.skip("8 GB of address space are not to be had")
    expected = results_of(call, tensors, call.per_sample)
    actual = results_of(call, {**tensors, name: _far_apart(tensors[name], storage)}, call.per_sample)
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("operator", "keywords"),
    [
        ("upfirdn2d", {"x": torch.ones(1, 1, 16, 16), "up": 1 << 20}),
        ("upfirdn2d", {"x": torch.ones(1, 1, 4, 4), "padding": (2**30, 2**30)}),
        ("grid_sample", {"x": ONE.view(1, 1, 1, 1).expand(1, 1 << 30, 4, 4), "grid": ONE.expand(1, 1 << 12, 1 << 12, 2)}),
    ],
)
def test_results_that_no_memory_holds(operator, keywords):
    """The allocator's own error, before anything is computed."""
    call = CALLS[operator]
    with pytest.raises(RuntimeError, match="memory|overflow|alloc"):
        call.function(**{**call.make(), **call.keywords, **keywords})


@pytest.mark.parametrize("size", [(1 << 16, 1 << 15), (1, 1 << 24)])
@pytest.mark.parametrize("operator", ["grid_sample", "mipmap_warp"])
def test_images_whose_coordinates_are_not_to_be_told_apart(operator, size):
    """One image of 2^31 texels, or with an axis on which float32 cannot count."""
    assert_cpu_kernels(operator)
    with pytest.raises(RuntimeError, match="fewer than 2.31 texels|an axis fewer than 2.24"):
        CALLS[operator](x=torch.zeros(1, 1, 1, 1).expand(N, 1, *size))
