# SPDX-License-Identifier: Apache-2.0
r"""Distance of two feature maps in the manner of LPIPS (arXiv 1801.03924).

For one tap, features a, b `[N, C, H, W]`, head h `[C]`, with â = a / (|a| + 1e-10) over channels at every pixel:

    d[n] = 1 / (H W) * sum_{c,y,x} h[c] (â - b̂)²

A pixel whose channels are all 0 is taken as â = 0, with gradient 0 (the limit of the derivative there is 1e10, which
no training survives). Sums are accumulated in float32, or float64 for float64 features; the result has that type.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gangealing_fast.ops._common import check_device, check_tensor, compute_dtype, output_format
from gangealing_fast.ops._dispatch import reference_wanted, run_reference
from gangealing_fast.ops._eager import eager, register_derivative
from gangealing_fast.ops._triton import serve_cuda

_EPS = 1e-10


def _unit(x: Tensor) -> Tensor:
    squared = x.square().sum(1, keepdim=True)
    nonzero = squared > 0
    return x * torch.where(nonzero, 1 / (torch.where(nonzero, squared, 1).sqrt() + _EPS), 0)


def lpips_distance_reference(a: Tensor, b: Tensor, head: Tensor) -> Tensor:
    """One tap: `a`, `b` `[N, C, H, W]`, `head` `[C]`; returns `[N]`."""
    accumulate = compute_dtype(a.dtype)
    difference = _unit(a.to(accumulate)) - _unit(b.to(accumulate))
    return (difference.square() * head.to(accumulate)[:, None, None]).sum((1, 2, 3)) / (a.shape[2] * a.shape[3])


def _unit_backward(x: Tensor, grad: Tensor) -> Tensor:
    squared = x.square().sum(1, keepdim=True)
    nonzero = squared > 0
    norm = torch.where(nonzero, squared, 1).sqrt()
    inverse = torch.where(nonzero, 1 / (norm + _EPS), 0)
    return grad * inverse - x * ((x * grad).sum(1, keepdim=True) * inverse.square() / norm)


def lpips_distance_backward_reference(
    grad: Tensor, a: Tensor, b: Tensor, head: Tensor, need_a: bool = True, need_b: bool = True, need_head: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `a`, `b`, `head` for `grad` `[N]`, `[0]` where not needed; itself differentiable."""
    accumulate = compute_dtype(a.dtype)
    wide_a, wide_b = a.to(accumulate), b.to(accumulate)
    difference = _unit(wide_a) - _unit(wide_b)
    scale = (grad.to(accumulate) / (a.shape[2] * a.shape[3]))[:, None, None, None]
    grad_unit = difference * (2 * scale * head.to(accumulate)[:, None, None])
    memory_format = output_format(a)
    return (
        _unit_backward(wide_a, grad_unit).to(a.dtype).contiguous(memory_format=memory_format) if need_a else a.new_empty(0),
        _unit_backward(wide_b, -grad_unit).to(b.dtype).contiguous(memory_format=memory_format) if need_b else b.new_empty(0),
        (difference.square() * scale).sum((0, 2, 3)).to(head.dtype) if need_head else head.new_empty(0),
    )


@torch.library.custom_op("gangealing_fast::lpips_distance", mutates_args=())
def _lpips_distance(a: Tensor, b: Tensor, head: Tensor) -> Tensor:
    return lpips_distance_reference(a, b, head)


@_lpips_distance.register_fake
def _(a: Tensor, b: Tensor, head: Tensor) -> Tensor:
    return a.new_empty(a.shape[0], dtype=compute_dtype(a.dtype))


@torch.library.custom_op("gangealing_fast::lpips_distance_backward", mutates_args=())
def _lpips_distance_backward(
    grad: Tensor, a: Tensor, b: Tensor, head: Tensor, need_a: bool, need_b: bool, need_head: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return lpips_distance_backward_reference(grad, a, b, head, need_a, need_b, need_head)


@_lpips_distance_backward.register_fake
def _(
    grad: Tensor, a: Tensor, b: Tensor, head: Tensor, need_a: bool, need_b: bool, need_head: bool
) -> tuple[Tensor, Tensor, Tensor]:
    def features(needed: bool) -> Tensor:
        if not needed:
            return a.new_empty(0)
        return torch.empty(a.shape, dtype=a.dtype, device=a.device, memory_format=output_format(a))

    return features(need_a), features(need_b), head.new_empty(head.shape if need_head else 0)


def _setup_forward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _forward_autograd(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    grads = _lpips_distance_backward(grad, *ctx.saved_tensors, *ctx.needs_input_grad)
    return tuple(g if needed else None for g, needed in zip(grads, ctx.needs_input_grad, strict=True))


def _setup_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.needs = inputs[4:]
    ctx.save_for_backward(*inputs[:4])


def _backward_autograd(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    wanted = ctx.needs_input_grad[:4]
    with torch.enable_grad():
        inputs = [x.detach().requires_grad_(needed) for x, needed in zip(ctx.saved_tensors, wanted, strict=True)]
        outputs = lpips_distance_backward_reference(*inputs, *ctx.needs)
        triples = zip(outputs, grads, ctx.needs, strict=True)
        pairs = [(y, g) for y, g, needed in triples if needed and g is not None and y.requires_grad]
        leaves = [x for x in inputs if x.requires_grad]
        reached, cotangents = [y for y, _ in pairs], [g for _, g in pairs]
        found = iter(torch.autograd.grad(reached, leaves, cotangents, allow_unused=True) if pairs else ())
    return *(next(found, None) if x.requires_grad else None for x in inputs), *[None] * 3


register_derivative(_lpips_distance, _forward_autograd, _setup_forward)
register_derivative(_lpips_distance_backward, _backward_autograd, _setup_backward)
_call = eager(_lpips_distance, _setup_forward, _forward_autograd)
serve_cuda("lpips_distance", _lpips_distance, _lpips_distance_backward)


def _check(index: int, a: Tensor, b: Tensor, head: Tensor | None) -> None:
    names = f"features_a[{index}]", f"features_b[{index}]"
    for name, x in zip(names, (a, b), strict=True):
        check_tensor("lpips_distance", name, x, 4, "[N, C, H, W]")
    if a.dtype != b.dtype:
        raise TypeError(f"lpips_distance: {names[0]} is {a.dtype} but {names[1]} is {b.dtype}; convert one of them.")
    if a.device != b.device:
        raise ValueError(f"lpips_distance: {names[0]} is on {a.device} but {names[1]} is on {b.device}; move one of them.")
    if a.shape != b.shape or 0 in a.shape[2:]:
        raise ValueError(
            f"lpips_distance: {names[0]} and {names[1]} must be of one shape [N, C, H, W], H and W at least 1, "
            f"but they are {list(a.shape)} and {list(b.shape)}."
        )
    if head is not None:
        name = f"heads[{index}]"
        check_device("lpips_distance", a, **{name: head})
        check_tensor("lpips_distance", name, head, head.dim(), "[C]")
        if head.numel() != a.shape[1]:
            raise ValueError(f"lpips_distance: {name} must hold one weight for each of {a.shape[1]} channels, got {head.numel()}.")


def lpips_distance(features_a: Sequence[Tensor], features_b: Sequence[Tensor], heads: Sequence[Tensor] | None = None) -> Tensor:
    """Sum over taps of the distance of two lists of feature maps `[N, C_i, H_i, W_i]`; returns `[N]`.

    heads: non-negative weights `[C_i]` (any shape with C_i numbers) of each tap; all ones where None.
    Twice differentiable in features and heads. Raises ValueError or TypeError where lists or shapes do not match.
    """
    if not features_a or len(features_a) != len(features_b):
        raise ValueError(
            "lpips_distance: features_a and features_b must be equally many feature maps, one or more, "
            f"got {len(features_a)} and {len(features_b)}."
        )
    if heads is not None and len(heads) != len(features_a):
        raise ValueError(f"lpips_distance: heads must be one for each of the {len(features_a)} feature maps, got {len(heads)}.")
    total: Tensor | None = None
    for index, (a, b) in enumerate(zip(features_a, features_b, strict=True)):
        head = None if heads is None else heads[index]
        _check(index, a, b, head)
        head = torch.ones(a.shape[1], dtype=compute_dtype(a.dtype), device=a.device) if head is None else head.reshape(-1)
        if reference_wanted():
            distance = run_reference(lpips_distance_reference, a, b, head)
        else:
            distance = _call(a, b, head)
        total = distance if total is None else total + distance
    assert total is not None  # as there is a feature map or more
    return total
