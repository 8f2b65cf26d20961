# SPDX-License-Identifier: Apache-2.0
"""The inverted residual block of mobile networks (MobileNetV2, arXiv 1801.04381, section 3.3), of which nothing hidden is stored.

    hidden = relu6(expand * x + expand_bias)                      1x1 convolution, [N, hidden, H, W]
    deep = relu6(depthwise * padded(hidden) + depthwise_bias)     each channel by itself, [N, hidden, H', W']
    y = project * deep + project_bias (+ x)                       1x1 convolution, [N, Cout, H', W']

`relu6(v)` = min(max(v, 0), 6). Normalisations are folded into weights and biases. What is hidden is mostly six times what comes in,
so that the three convolutions one after the other are bound by memory. The backward computes it anew.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from gangealing_fast.ops._common import check_device, check_tensor, check_whole, compute_dtype, output_format, parameter
from gangealing_fast.ops._dispatch import reference_wanted, run_reference
from gangealing_fast.ops._eager import eager, register_derivative
from gangealing_fast.ops._reference import reference_vjp

LARGEST_KERNEL = 15
PaddingMode = Literal["zeros", "replicate"]
Seven = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def inverted_residual_reference(
    x: Tensor,
    expand_weight: Tensor | None,
    expand_bias: Tensor | None,
    depthwise_weight: Tensor,
    depthwise_bias: Tensor,
    project_weight: Tensor,
    project_bias: Tensor,
    *,
    stride: int = 1,
    padding: Sequence[int] = (1, 1, 1, 1),
    padding_mode: PaddingMode = "zeros",
    residual: bool = False,
) -> Tensor:
    """Plain torch version of `inverted_residual`, differentiable to any order."""
    dtype = compute_dtype(x.dtype)
    hidden = x.to(dtype)
    if expand_weight is not None and expand_bias is not None:
        hidden = F.hardtanh(_convolved(hidden, expand_weight, expand_bias), 0.0, 6.0)
    if any(padding):
        # torch does not replicate what is empty.
        hidden = F.pad(hidden, list(padding), mode="replicate" if padding_mode == "replicate" and hidden.numel() else "constant")
    deep = _convolved(hidden, depthwise_weight, depthwise_bias, stride, groups=len(depthwise_weight))
    y = _convolved(F.hardtanh(deep, 0.0, 6.0), project_weight, project_bias)
    return (x.to(dtype) + y if residual else y).to(x.dtype).contiguous(memory_format=output_format(x))


def _convolved(x: Tensor, weight: Tensor, bias: Tensor, stride: int = 1, groups: int = 1) -> Tensor:
    weight, bias = weight.to(x.dtype), bias.to(x.dtype)
    if x.numel() and weight.numel():
        return F.conv2d(x, weight, bias, stride, groups=groups)
    # torch has no convolution of no channels: an empty sum is 0.
    height, width = ((length - weight.shape[2]) // stride + 1 for length in x.shape[2:])
    return bias.view(1, -1, 1, 1).repeat(x.shape[0], 1, height, width)


@torch.library.custom_op("gangealing_fast::inverted_residual", mutates_args=())
def _inverted_residual(
    x: Tensor,
    expand_weight: Tensor | None,
    expand_bias: Tensor | None,
    depthwise_weight: Tensor,
    depthwise_bias: Tensor,
    project_weight: Tensor,
    project_bias: Tensor,
    stride: int,
    left: int,
    right: int,
    top: int,
    bottom: int,
    replicate: bool,
    residual: bool,
) -> Tensor:
    tensors = x, expand_weight, expand_bias, depthwise_weight, depthwise_bias, project_weight, project_bias
    options = stride, left, right, top, bottom, replicate, residual
    return _of_present(tensors, options)(*_present(tensors))


@_inverted_residual.register_fake
def _(x: Tensor, *others: Any) -> Tensor:
    depthwise, project, (stride, left, right, top, bottom, _, _) = others[2], others[4], others[6:]
    kernel = depthwise.shape[2]
    height, width = (x.shape[2] + top + bottom - kernel) // stride + 1, (x.shape[3] + left + right - kernel) // stride + 1
    size = x.shape[0], project.shape[0], height, width
    return torch.empty(size, dtype=x.dtype, device=x.device, memory_format=output_format(x))


def _present(tensors: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
    return tuple(tensor for tensor in tensors if tensor is not None)


def _of_present(tensors: Sequence[Tensor | None], options: Sequence[Any]) -> Callable[..., Tensor]:
    """The reference as a function of those of the seven tensors that there are."""
    stride, left, right, top, bottom, replicate, residual = options

    def forward(*present: Tensor) -> Tensor:
        x, *weights = present if tensors[1] is not None else (present[0], None, None, *present[1:])
        return inverted_residual_reference(
            x,  # type: ignore[arg-type]
            *weights,  # type: ignore[arg-type]
            stride=stride,
            padding=(left, right, top, bottom),
            padding_mode="replicate" if replicate else "zeros",
            residual=residual,
        )

    return forward


def _spread(gradients: Sequence[Tensor], tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Gradients of the tensors that there are, None for the others."""
    left = iter(gradients)
    return [None if tensor is None else next(left) for tensor in tensors]


@torch.library.custom_op("gangealing_fast::inverted_residual_backward", mutates_args=())
def _inverted_residual_backward(
    grad: Tensor,
    x: Tensor,
    expand_weight: Tensor | None,
    expand_bias: Tensor | None,
    depthwise_weight: Tensor,
    depthwise_bias: Tensor,
    project_weight: Tensor,
    project_bias: Tensor,
    stride: int,
    left: int,
    right: int,
    top: int,
    bottom: int,
    replicate: bool,
    residual: bool,
) -> Seven:
    tensors = x, expand_weight, expand_bias, depthwise_weight, depthwise_bias, project_weight, project_bias
    options = stride, left, right, top, bottom, replicate, residual
    gradients = reference_vjp(_of_present(tensors, options), _present(tensors), grad)
    # That of a bias may be the result's own, of a picture of one pixel.
    return tuple(x.new_empty(0) if g is None else g.clone() for g in _spread(gradients, tensors))  # type: ignore[return-value]


@_inverted_residual_backward.register_fake
def _(grad: Tensor, *others: Any) -> Seven:
    x = others[0]
    return tuple(x.new_empty(0) if t is None else t.new_empty(t.shape) for t in others[:7])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.options = inputs[-7:]
    ctx.save_for_backward(*inputs[:-7])


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    tensors = ctx.saved_tensors
    gradients = _inverted_residual_backward(grad, *tensors, *ctx.options)
    return *(None if t is None else g for t, g in zip(tensors, gradients, strict=True)), *([None] * 7)


def _double_backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
    grad, *tensors = ctx.saved_tensors
    forward = _of_present(tensors, ctx.options)

    def first_order(grad: Tensor, *present: Tensor) -> tuple[Tensor, ...]:
        return torch.func.vjp(forward, *present)[1](grad)

    given = tuple(g for g, tensor in zip(gradients, tensors, strict=True) if tensor is not None)
    found = torch.func.vjp(first_order, grad, *_present(tensors))[1](given)
    return found[0], *_spread(found[1:], tensors), *([None] * 7)


register_derivative(_inverted_residual, _backward, _setup_context)
register_derivative(_inverted_residual_backward, _double_backward, _setup_context)
_call = eager(_inverted_residual, _setup_context, _backward)


_SHAPES = {
    "expand_weight": "[hidden, Cin, 1, 1]",
    "expand_bias": "[hidden]",
    "depthwise_weight": "[hidden, 1, k, k]",
    "depthwise_bias": "[hidden]",
    "project_weight": "[Cout, hidden, 1, 1]",
    "project_bias": "[Cout]",
}


def _check_weights(x: Tensor, weights: dict[str, Tensor | None]) -> None:
    if (weights["expand_weight"] is None) != (weights["expand_bias"] is None):
        raise ValueError("inverted_residual: expand_weight and expand_bias belong together; give both or none.")
    given = {name: weight for name, weight in weights.items() if weight is not None or not name.startswith("expand")}
    for name, weight in given.items():
        check_tensor("inverted_residual", name, weight, 1 if name.endswith("bias") else 4, _SHAPES[name])  # type: ignore[arg-type]
    check_device("inverted_residual", x, **given)
    depthwise, project = weights["depthwise_weight"], weights["project_weight"]
    assert depthwise is not None and project is not None
    channels, hidden, kernel, outputs = x.shape[1], depthwise.shape[0], depthwise.shape[2], project.shape[0]
    if "expand_weight" not in given and hidden != channels:
        raise ValueError(
            f"inverted_residual: without expand_weight depthwise_weight must be for the {channels} channels of x, not for {hidden}."
        )
    expected = {
        "expand_weight": [hidden, channels, 1, 1],
        "expand_bias": [hidden],
        "depthwise_weight": [hidden, 1, kernel, kernel],
        "depthwise_bias": [hidden],
        "project_weight": [outputs, hidden, 1, 1],
        "project_bias": [outputs],
    }
    for name, weight in given.items():
        if weight is not None and list(weight.shape) != expected[name]:
            raise ValueError(f"inverted_residual: {name} must be of shape {expected[name]}, but it is {list(weight.shape)}.")
    if not 1 <= kernel <= LARGEST_KERNEL:
        raise ValueError(f"inverted_residual: depthwise_weight has a kernel of {kernel}; 1 to {LARGEST_KERNEL} are possible.")


def _check_window(x: Tensor, kernel: int, stride: int, padding: Sequence[int], padding_mode: str) -> None:
    check_whole("inverted_residual", stride=stride)
    if not 1 <= stride <= LARGEST_KERNEL:
        raise ValueError(f"inverted_residual: stride must be from 1 to {LARGEST_KERNEL}, not {stride}.")
    if not isinstance(padding, Sequence) or len(padding) != 4:
        raise ValueError(f"inverted_residual: padding must be four numbers (left, right, top, bottom), not {padding!r}.")
    check_whole("inverted_residual", **dict(zip(("left", "right", "top", "bottom"), padding, strict=True)))
    if min(padding) < 0 or max(padding) >= kernel:
        raise ValueError(f"inverted_residual: padding must be from 0 to {kernel - 1}, less than the kernel, not {tuple(padding)}.")
    if padding_mode not in ("zeros", "replicate"):
        raise ValueError(f"inverted_residual: padding_mode must be zeros or replicate, not {padding_mode!r}.")
    left, right, top, bottom = padding
    height, width = x.shape[2:]
    if min(height, width) < 1 or height + top + bottom < kernel or width + left + right < kernel:
        raise ValueError(
            f"inverted_residual: x is of {height}x{width} pixels, too small for a kernel of {kernel} and this padding."
        )


def inverted_residual(
    x: Tensor,
    expand_weight: Tensor | None,
    expand_bias: Tensor | None,
    depthwise_weight: Tensor,
    depthwise_bias: Tensor,
    project_weight: Tensor,
    project_bias: Tensor,
    *,
    stride: int = 1,
    padding: Sequence[int] = (1, 1, 1, 1),
    padding_mode: PaddingMode = "zeros",
    residual: bool = False,
) -> Tensor:
    """Expand, convolve each channel by itself, project: the inverted residual block with ReLU6 and folded normalisations.

    x: `[N, Cin, H, W]`, float64, float32, bfloat16 or float16, any strides; channels-last is quickest.
    expand_weight `[hidden, Cin, 1, 1]` with expand_bias `[hidden]`, or both None, then hidden = Cin. depthwise_weight
    `[hidden, 1, k, k]`, k from 1 to 15, depthwise_bias `[hidden]`. project_weight `[Cout, hidden, 1, 1]`, project_bias `[Cout]`.
    All of these in x's dtype or the one computed in: float64 for float64, else float32.
    stride: of the depthwise convolution, 1 to 15. padding: (left, right, top, bottom) of what is hidden, each less than k; by
    zeros, or by its outermost values with padding_mode "replicate". residual: whether x is added, which needs results of its shape.
    Returns `[N, Cout, H', W']` in x's dtype, channels-last where x is. Results are bit-identical between runs and numbers of
    threads on a CPU. Differentiable to any order; derivatives run through the plain reference, and so does all on CUDA.
    Raises TypeError or ValueError for inputs that do not fit together.
    """
    check_tensor("inverted_residual", "x", x, 4, "[N, Cin, H, W]")
    weights = {
        "expand_weight": expand_weight,
        "expand_bias": expand_bias,
        "depthwise_weight": depthwise_weight,
        "depthwise_bias": depthwise_bias,
        "project_weight": project_weight,
        "project_bias": project_bias,
    }
    _check_weights(x, weights)
    _check_window(x, depthwise_weight.shape[2], stride, padding, padding_mode)
    left, right, top, bottom = padding
    same = stride == 1 and left + right == top + bottom == depthwise_weight.shape[2] - 1
    if residual and not (same and x.shape[1] == len(project_weight)):
        raise ValueError("inverted_residual: residual needs a result of the shape of x; here it is another one.")
    arguments = [None if w is None else parameter("inverted_residual", name, w, x) for name, w in weights.items()]
    if reference_wanted():
        keywords = {"stride": stride, "padding": padding, "padding_mode": padding_mode, "residual": residual}
        return run_reference(inverted_residual_reference, x, *arguments, **keywords)
    return _call(x, *arguments, stride, left, right, top, bottom, padding_mode == "replicate", residual)
