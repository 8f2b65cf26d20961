# SPDX-License-Identifier: Apache-2.0
"""Modulated convolution (StyleGAN2, arXiv 1912.04958, section 2.2): a convolution whose input channels are scaled per sample.

    W'[n, o, i, k] = weight[o, i, k] * style[n, i]
    W''            = W' * d[n, o],   d[n, o] = 1 / sqrt(sum over i, k of W'^2 + 1e-8)     (demodulation, else d = 1)
    y[n]           = W''[n] * x[n]                                                        (correlation, same padding)
    y              = gain * lrelu(y + noise * noise_strength + bias)                      (where a bias is given)

Scaling the activations instead of the weight, `y = d * (weight * (style * x))`, is the same number with one shared convolution
instead of N grouped ones. The references follow the definition, sample by sample; the kernels share the convolution, and fuse
style, d and the activation into it where they can. The registered operator takes d as an input, so that its gradient leaves by
plain autograd, and keeps x and y alone for its backward: the activation goes by the sign of y, and the convolution, for the
gradient of d, is undone from y. In half precision, whose y may have lost it beside a large bias, the activation then stays outside.
On processors whose library has no convolution in half precision, all is computed in float32, and rounded at the end.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from gangealing_fast.ops._common import check_device, compute_dtype, output_format, parameter
from gangealing_fast.ops._dispatch import reference_wanted, run_reference, without_autocast
from gangealing_fast.ops._eager import eager, register_derivative
from gangealing_fast.ops._modulated_arguments import check, check_energy, checked_activation
from gangealing_fast.ops._reference import reference_vjp
from gangealing_fast.ops._triton import serve_cuda
from gangealing_fast.ops.bias_act import bias_act, bias_act_reference, bias_act_with_sign
from gangealing_fast.ops.upfirdn2d import blur_filter, upfirdn2d_reference
from gangealing_fast.runtime.precision import EMULATED

EPSILON = 1e-8
Algorithm = Literal["auto", "library", "fused"]
_algorithm: Algorithm = "auto"
_ops = torch.ops.gangealing_fast


@contextmanager
def convolution_algorithm(name: Algorithm) -> Iterator[None]:
    """Choose how `modulated_conv2d` convolves inside a `with` block; process-wide, forward and backward alike.

    "library": torch's convolution (oneDNN, cuDNN) on scaled activations. "fused": this package's own kernel wherever it can
    serve; on CPUs that is a Winograd convolution F(4x4, 3x3) for float32 3x3 kernels without resampling, whose results err
    relatively (2-norm) by 1.4e-6, 2.5e-6 and 4.6e-6 at 32, 128 and 512 channels, where the library's err by 3.1e-7, 6.0e-7 and
    1.2e-6 (tests/test_winograd.py). "auto", the default: the faster one for the shape at hand.
    """
    global _algorithm
    if name not in ("auto", "library", "fused"):
        raise ValueError(f'convolution_algorithm: choose "auto", "library" or "fused", not {name!r}.')
    previous, _algorithm = _algorithm, name
    try:
        yield
    finally:
        _algorithm = previous


def blur_padding(filter_size: int, kernel_size: int, *, up: bool) -> tuple[int, int]:
    """Padding of the low-pass filter so that an up- or downsampling convolution doubles or halves the size exactly."""
    if up:
        total = filter_size - 2 - (kernel_size - 1)
        return (total + 1) // 2 + 1, total // 2 + 1
    total = filter_size - 2 + (kernel_size - 1)
    return (total + 1) // 2, total // 2


def energy_of(weight: Tensor) -> Tensor:
    """The sum over k of the squares of `weight` `[Cout, Cin, k, k]`: `[Cout, Cin]`, in float32, or float64 for float64."""
    return weight.to(compute_dtype(weight.dtype)).square().sum((2, 3))


def demodulation_of(weight: Tensor, style: Tensor, energy: Tensor | None = None) -> Tensor:
    """d `[N, Cout]` of `weight` `[Cout, Cin, k, k]` and `style` `[N, Cin]`, in the dtype of `style`; `energy` as `energy_of`."""
    with without_autocast(style.device):
        energy = (energy_of(weight) if energy is None else energy).to(style.dtype)
        return torch.rsqrt(style.square() @ energy.t() + EPSILON)


def _per_sample(x: Tensor, modulated: Tensor, f: Tensor, up: bool, down: bool) -> Tensor:
    """One grouped convolution with a weight per sample, `modulated` `[N, Cout, Cin, k, k]`."""
    n, cin, h, w = x.shape
    cout, k = modulated.shape[1], modulated.shape[3]
    if 0 in (n, cin, cout):  # there is no convolution of no groups or channels; one of zeros has the same result
        one = F.pad(x, (0, 0) * 2 + (0, cin == 0, 0, n == 0)), F.pad(modulated, (0, 0) * 2 + (0, cin == 0, 0, cout == 0, 0, n == 0))
        return _per_sample(*one, f, up, down)[:n, :cout]
    if up:
        grouped = modulated.transpose(1, 2).reshape(n * cin, cout, k, k)
        y = F.conv_transpose2d(x.reshape(1, n * cin, h, w), grouped, stride=2, groups=n)
        y = y.reshape(n, cout, y.shape[2], y.shape[3])
        return upfirdn2d_reference(y, f, padding=blur_padding(f.shape[0], k, up=True), gain=4.0)
    stride, padding = 1, k // 2
    if down:
        x = upfirdn2d_reference(x, f, padding=blur_padding(f.shape[0], k, up=False))
        stride, padding = 2, 0
    grouped = modulated.reshape(n * cout, cin, k, k)
    y = F.conv2d(x.reshape(1, n * cin, x.shape[2], x.shape[3]), grouped, stride=stride, padding=padding, groups=n)
    return y.reshape(n, cout, y.shape[2], y.shape[3])


def modulated_conv2d_reference(
    x: Tensor,
    weight: Tensor,
    style: Tensor,
    *,
    up: bool = False,
    down: bool = False,
    demodulate: bool = True,
    energy: Tensor | None = None,
    f: Tensor | None = None,
    bias: Tensor | None = None,
    noise: Tensor | None = None,
    noise_strength: Tensor | None = None,
    slope: float = 0.2,
    gain: float = 2**0.5,
) -> Tensor:
    """The definition in plain torch; arguments as `modulated_conv2d`."""
    modulated = weight[None] * style[:, None, :, None, None]
    if demodulate and energy is not None:
        modulated = modulated * demodulation_of(weight, style, energy)[:, :, None, None, None]
    elif demodulate:
        modulated = modulated * torch.rsqrt(modulated.square().sum((2, 3, 4), keepdim=True) + EPSILON)
    y = _per_sample(x, modulated.to(x.dtype), blur_filter(device=x.device) if f is None else f, up, down)
    if bias is None:
        return y
    return bias_act_reference(y, bias, slope=slope, gain=gain, noise=noise, noise_strength=noise_strength)


def operator_reference(
    x: Tensor, weight: Tensor, style: Tensor, demodulation: Tensor | None, f: Tensor,
    bias: Tensor | None, noise: Tensor | None, noise_strength: Tensor | None,
    up: bool, down: bool, slope: float, gain: float,
) -> Tensor:  # fmt: skip
    """The registered operator in plain torch: as the definition, with d given."""
    modulated = weight.to(style.dtype)[None] * style[:, None, :, None, None]
    if demodulation is not None:
        modulated = modulated * demodulation[:, :, None, None, None]
    y = _per_sample(x, modulated.to(x.dtype), f, up, down)
    if bias is not None:
        y = bias_act_reference(y, bias, slope=slope, gain=gain, noise=noise, noise_strength=noise_strength)
    return y.contiguous(memory_format=output_format(x))


@torch.library.custom_op("gangealing_fast::modulated_conv2d", mutates_args=())
def _modulated_conv2d(
    x: Tensor, weight: Tensor, style: Tensor, demodulation: Tensor | None, f: Tensor,
    bias: Tensor | None, noise: Tensor | None, noise_strength: Tensor | None,
    up: bool, down: bool, slope: float, gain: float, algorithm: str,
) -> Tensor:  # fmt: skip
    y = operator_reference(x, weight, style, demodulation, f, None, None, None, up, down, 1.0, 1.0)
    return y if bias is None else bias_act_with_sign(y, bias, noise, noise_strength, slope, gain)


@_modulated_conv2d.register_fake
def _(
    x: Tensor, weight: Tensor, style: Tensor, demodulation: Tensor | None, f: Tensor,
    bias: Tensor | None, noise: Tensor | None, noise_strength: Tensor | None,
    up: bool, down: bool, slope: float, gain: float, algorithm: str,
) -> Tensor:  # fmt: skip
    n, _, h, w = x.shape
    k = weight.shape[2]
    if up:
        h, w = 2 * h, 2 * w
    elif down:
        h, w = h // 2, w // 2
    else:
        h, w = h + 1 - k % 2, w + 1 - k % 2
    return torch.empty((n, weight.shape[0], h, w), dtype=x.dtype, device=x.device, memory_format=output_format(x))


@torch.library.custom_op("gangealing_fast::modulated_conv2d_backward", mutates_args=())
def _modulated_conv2d_backward(
    grad: Tensor, x: Tensor, weight: Tensor, style: Tensor, demodulation: Tensor | None, f: Tensor,
    bias: Tensor | None, noise: Tensor | None, noise_strength: Tensor | None,
    y: Tensor | None, up: bool, down: bool, slope: float, gain: float, algorithm: str,
    need_x: bool, need_weight: bool, need_style: bool, need_demodulation: bool, need_activation: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of x, weight, style, demodulation, bias, noise and noise_strength, `[0]` where not needed (the last three are
    needed together). y: the operator's output, given where there is a bias or d's gradient is needed."""
    inputs = {
        "x": (x, need_x),
        "weight": (weight, need_weight),
        "style": (style, need_style),
        "demodulation": (demodulation, need_demodulation),
        "bias": (bias, need_activation),
        "noise": (noise, need_activation),
        "noise_strength": (noise_strength, need_activation),
    }
    wanted = {name: tensor for name, (tensor, needed) in inputs.items() if needed and tensor is not None}

    def function(*leaves: Tensor) -> Tensor:
        leaf = dict(zip(wanted, leaves, strict=True))
        return operator_reference(
            leaf.get("x", x), leaf.get("weight", weight), leaf.get("style", style), leaf.get("demodulation", demodulation), f,
            leaf.get("bias", bias), leaf.get("noise", noise), leaf.get("noise_strength", noise_strength),
            up, down, slope, gain,
        )  # fmt: skip

    found = dict(zip(wanted, reference_vjp(function, tuple(wanted.values()), grad), strict=True))
    if "x" in found:
        found["x"] = found["x"].contiguous(memory_format=output_format(x))

    def gradient(name: str) -> Tensor:
        return found[name] if name in found else grad.new_empty(0)

    return (
        gradient("x"), gradient("weight"), gradient("style"), gradient("demodulation"),
        gradient("bias"), gradient("noise"), gradient("noise_strength"),
    )  # fmt: skip


@_modulated_conv2d_backward.register_fake
def _(
    grad: Tensor, x: Tensor, weight: Tensor, style: Tensor, demodulation: Tensor | None, f: Tensor,
    bias: Tensor | None, noise: Tensor | None, noise_strength: Tensor | None,
    y: Tensor | None, up: bool, down: bool, slope: float, gain: float, algorithm: str,
    need_x: bool, need_weight: bool, need_style: bool, need_demodulation: bool, need_activation: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    inputs = (x, weight, style, demodulation, bias, noise, noise_strength)
    needs = (need_x, need_weight, need_style, need_demodulation, *[need_activation] * 3)
    empty = [
        torch.empty(t.shape, dtype=t.dtype, device=t.device) if needed and t is not None else grad.new_empty(0)
        for t, needed in zip(inputs, needs, strict=True)
    ]
    if need_x:
        empty[0] = torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=output_format(x))
    return tuple(empty)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.up, ctx.down, ctx.slope, ctx.gain, ctx.algorithm = inputs
    bias, demodulation = tensors[5], tensors[3]
    keeps_output = bias is not None or (demodulation is not None and demodulation.requires_grad)
    ctx.save_for_backward(*tensors, output if keeps_output else None)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, style, demodulation, f, bias, noise, noise_strength, y = ctx.saved_tensors
    needs = ctx.needs_input_grad
    found = _ops.modulated_conv2d_backward(
        grad, x, weight, style, demodulation, f, bias, noise, noise_strength, y,
        ctx.up, ctx.down, ctx.slope, ctx.gain, ctx.algorithm, *needs[:4], any(needs[5:8]),
    )  # fmt: skip
    gradients = [g if needed else None for g, needed in zip(found, (*needs[:4], *needs[5:8]), strict=True)]
    return *gradients[:4], None, *gradients[4:], *[None] * 5


def _setup_backward_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.up, ctx.down, ctx.slope, ctx.gain, ctx.algorithm = inputs[:15]
    ctx.computed = (*inputs[15:19], *[inputs[19]] * 3)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors)


def _double_backward(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor | None, ...]:
    """The backward is the transpose of the operator's derivative: its own gradient is that derivative along `tangents`
    (for grad), and the transpose of that derivative's derivatives (for the rest). Without the activation the operator is
    linear in each tensor, so that all of it is the operator again."""
    grad, *saved, y = ctx.saved_tensors
    needs = ctx.needs_input_grad[1:9]
    with torch.enable_grad():
        leaves = [t if t is None else t.detach().requires_grad_(needed) for t, needed in zip(saved, needs, strict=True)]
        x, weight, style, demodulation, f, bias, noise, strength = leaves
        assert x is not None and weight is not None and style is not None  # which every call has
        along_x, along_weight, along_style, along_d, *along_activation = (
            t if computed else None for t, computed in zip(tangents, ctx.computed, strict=True)
        )
        convolve = partial(
            _ops.modulated_conv2d, f=f, bias=None, noise=None, noise_strength=None,
            up=ctx.up, down=ctx.down, slope=1.0, gain=1.0, algorithm=ctx.algorithm,
        )  # fmt: skip
        scaled = [along_x * style[:, :, None, None]] if along_x is not None else []
        scaled += [x * along_style[:, :, None, None]] if along_style is not None else []
        terms = [convolve(sum(scaled).to(x.dtype), weight, torch.ones_like(style), demodulation)] if scaled else []
        terms += [convolve(x, along_weight, style, demodulation)] if along_weight is not None else []
        terms += [convolve(x, weight, style, along_d)] if along_d is not None and demodulation is not None else []
        factors = (bias if bias is None else bias.new_ones(()), strength, noise)
        shapes = ((1, -1, 1, 1), None, (1,))
        for along, factor, shape in zip(along_activation, factors, shapes, strict=True):
            if along is not None and factor is not None:
                terms += [(along.reshape(shape) if shape else along) * factor]
        if not terms:
            return (None,) * 20
        total = sum(terms).to(x.dtype)
        if bias is not None:
            total = _ops.bias_act_backward(total.expand(y.shape), y, ctx.slope, ctx.gain, False, -1)[0]
        wanted = [t for t in leaves if t is not None and t.requires_grad]
        found = iter(torch.autograd.grad(total, wanted, grad, allow_unused=True) if wanted and total.requires_grad else ())
    rest = [next(found, None) if t is not None and t.requires_grad else None for t in leaves]
    return total.detach(), *rest, *[None] * 11


register_derivative(_modulated_conv2d, _backward, _setup_context)
register_derivative(_modulated_conv2d_backward, _double_backward, _setup_backward_context)
_call = eager(_modulated_conv2d, _setup_context, _backward)
serve_cuda(
    "modulated_conv2d",
    _modulated_conv2d,
    _modulated_conv2d_backward,
    note="or cuDNN where that was measured to be faster, for the weight's gradient and in float64",
)


def _under_autocast(x: Tensor) -> Tensor:
    """`x` in the dtype that autocast would give a convolution's input."""
    device = x.device.type
    if x.dtype != torch.float64 and device != "meta" and torch.is_autocast_enabled(device):
        return x.to(torch.get_autocast_dtype(device))
    return x


def _can_be_undone(x: Tensor, demodulation: Tensor | None, slope: float, gain: float) -> bool:
    """Whether the gradient of d may be found from the operator's output, which holds bias and noise as well.

    A narrow output has lost the convolution's digits where a bias is large beside it, and a tiny slope or gain lets them underflow.
    """
    if demodulation is None or not demodulation.requires_grad:
        return True
    return x.dtype in (torch.float64, torch.float32) and slope * gain >= 1e-12 and 1e-12 <= gain <= 1e12


def modulated_conv2d(
    x: Tensor,
    weight: Tensor,
    style: Tensor,
    *,
    up: bool = False,
    down: bool = False,
    demodulate: bool = True,
    energy: Tensor | None = None,
    f: Tensor | None = None,
    bias: Tensor | None = None,
    noise: Tensor | None = None,
    noise_strength: Tensor | None = None,
    slope: float = 0.2,
    gain: float = 2**0.5,
) -> Tensor:
    """Convolve `x` with `weight` scaled per sample by `style`; with a bias, add noise and bias and apply a leaky ReLU too.

    Args:
        x: activations `[N, Cin, H, W]`, any floating dtype; channels-last is fastest on CPUs. Autocast applies.
        weight: `[Cout, Cin, k, k]`, already multiplied by its run-time scale; of the dtype of `x` or float32 beside half precision.
        style: `[N, Cin]`, of the dtype of `x` or float32 beside half precision, like the parameters below.
        up: double the size (stride-2 transposed convolution, then the low-pass filter with gain 4).
        down: halve the size (low-pass filter, then a stride-2 convolution).
        demodulate: normalise every output map (eq. 3 of the paper).
        energy: `energy_of(weight)`, `[Cout, Cin]`, for a frozen weight that serves many calls; computed where None.
        f: constant low-pass filter `[n, n]`, [1, 3, 3, 1] by default.
        bias: `[Cout]`; where given, the result is `bias_act` of the convolution, with the arguments below.
        noise, noise_strength, slope, gain: as in `bias_act`.

    Returns:
        `[N, Cout, H', W']`, H' = H, 2H or H/2, in the dtype and layout of `x`. Twice differentiable in all tensors but f.
        `convolution_algorithm` chooses between kernels.

    Raises:
        ValueError, TypeError: an argument does not fit; the message says which and how.
    """
    check(x, weight, style, f, up, down)
    check_device("modulated_conv2d", x, weight=weight, style=style, f=f, energy=energy)
    check_device("modulated_conv2d", x, bias=bias, noise=noise, noise_strength=noise_strength)
    x = _under_autocast(x)
    style = parameter("modulated_conv2d", "style", style, x)
    if weight.dtype not in (x.dtype, style.dtype):
        parameter("modulated_conv2d", "weight", weight, x)
    check_energy(weight, energy)
    f = blur_filter(device=x.device).to(style.dtype) if f is None else f.detach().to(style.dtype)
    bias, noise, noise_strength = checked_activation(x, weight, up, down, bias, noise, noise_strength, slope, gain)
    options: dict[str, Any] = {"up": up, "down": down, "demodulate": demodulate, "energy": energy, "f": f, "bias": bias}
    options |= {"noise": noise, "noise_strength": noise_strength, "slope": slope, "gain": gain}
    if reference_wanted():
        return run_reference(modulated_conv2d_reference, x, weight, style, **options)
    if x.device.type == "cpu" and x.dtype in EMULATED:
        with without_autocast(x.device):
            return modulated_conv2d(x.float(), weight.float(), style, **options).to(x.dtype)
    demodulation = demodulation_of(weight, style, energy) if demodulate else None
    convolve = partial(_call, x, weight, style, demodulation, f)
    if bias is None or not _can_be_undone(x, demodulation, slope, gain):
        y = convolve(None, None, None, up, down, 1.0, 1.0, _algorithm)
        return y if bias is None else bias_act(y, bias, slope=slope, gain=gain, noise=noise, noise_strength=noise_strength)
    return convolve(bias, noise, noise_strength, up, down, float(slope), float(gain), _algorithm)
