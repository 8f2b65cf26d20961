# SPDX-License-Identifier: Apache-2.0
"""Random calls of the operators on activations: resampling, bias_act, adain, convolutions, lpips_distance, adam_ema."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fuzzing import DTYPES, Draw, Drawn, beside
from gangealing_fast import ops


def upfirdn2d(draw: Draw) -> Drawn | None:
    taps, up, down = (draw.integer(1, 6), draw.integer(1, 6)), draw.integer(1, 3), draw.integer(1, 3)
    shape = draw.batch(), draw.choice(1, 2, 3, 5, 16, 33, 0), draw.integer(1, 12), draw.integer(1, 24)
    padding = tuple(draw.integer(-3, 6) for _ in range(4))
    if shape[2] * up + padding[2] + padding[3] < taps[0] or shape[3] * up + padding[0] + padding[1] < taps[1]:
        return None
    f = draw.normal(*taps)
    f = (torch.outer(f[:, 0], f[0]) if draw.boolean() else f).float()
    keywords = {"up": up, "down": down, "padding": padding, "gain": draw.choice(1.0, 4.0, 0.3)}
    dtype = draw.choice(*DTYPES)
    return Drawn(
        lambda x: ops.upfirdn2d(x, f, **keywords),
        lambda x: ops.upfirdn2d_reference(x, f, **keywords),
        [draw.signal(*shape)],
        [dtype],
        floors=lambda inputs, weights: [f.norm().item() * keywords["gain"] * t.norm().item() for t in (*inputs, *weights)],
        keeps_layout=True,
    )


def bilinear_downsample(draw: Draw) -> Drawn:
    stride = 2 * draw.integer(1, 4)
    shape = draw.batch(), draw.choice(1, 2, 3, 5, 16, 33, 0), stride + draw.integer(0, 14), stride + draw.integer(0, 30)
    return Drawn(
        lambda x: ops.bilinear_downsample(x, stride),
        lambda x: ops.bilinear_downsample_reference(x, stride),
        [draw.signal(*shape)],
        [draw.choice(*DTYPES)],
        floors=lambda inputs, weights: [t.norm().item() for t in (*inputs, *weights)],
        keeps_layout=True,
    )


def bias_act(draw: Draw) -> Drawn:
    rank = draw.integer(2, 5)
    shape = [draw.batch(), draw.choice(3, 1, 2, 16, 0, 37), *[draw.choice(5, 1, 2, 3, 11, 7, 0, 9) for _ in range(rank - 2)]]
    dtype = draw.choice(*DTYPES)
    names, tensors, dtypes = ["x"], [draw.normal(*shape) * draw.choice(1.0, 0.1, 30.0)], [dtype]
    if draw.boolean():
        names, tensors, dtypes = [*names, "b"], [*tensors, draw.normal(shape[1])], [*dtypes, beside(draw, dtype)]
    if draw.boolean():
        noise = draw.normal(draw.choice(1, shape[0]), 1, *shape[2:])
        names, tensors = [*names, "noise", "noise_strength"], [*tensors, noise, draw.normal(*draw.choice((), (1,)))]
        dtypes += [beside(draw, dtype), beside(draw, dtype)]
    keywords = {"slope": draw.choice(0.2, 0.2, 0.0, 1.0, 0.01), "gain": draw.choice(2**0.5, 1.0, 0.3)}

    def called(function):
        return lambda *tensors: function(**{"b": None, **dict(zip(names, tensors, strict=True))}, **keywords)

    def kinks(inputs: list[Tensor], outputs: list[Tensor]) -> list[Tensor]:
        given = dict(zip(names, inputs, strict=True))
        argument = ops.bias_act_reference(**{"b": None, **given}, slope=1.0, gain=1.0)
        return [argument.abs() < 1e-4 * (1 + sum(t.abs().max().item() for t in inputs if t.numel()))]

    return Drawn(
        called(ops.bias_act),
        called(ops.bias_act_reference),
        tensors,
        dtypes,
        layouts=range(len(tensors)),
        differentiable=range(len(tensors)),
        kinks=kinks,
        # the strength's gradient is the sum of noise times gradients
        floors=lambda inputs, weights: [0.0, *[weights[0].norm().item() * max(t.norm().item(), 1.0) for t in inputs]],
        keeps_layout=True,
    )


def adain(draw: Draw) -> Drawn:
    shape = [draw.batch(), draw.choice(3, 1, 16, 37, 0, 130), *[draw.integer(1, 9) for _ in range(draw.integer(1, 3))]]
    x = draw.normal(*shape) * draw.magnitude(-1, 2) + draw.integer(-3, 3)
    eps = draw.magnitude(-5, 0)
    dtype = draw.choice(*DTYPES)

    def floors(inputs: list[Tensor], weights: list[Tensor]) -> list[float]:
        # x - mean has lost the digits that both have in common; a channel of few positions has almost no gradient.
        x, scale, shift = inputs
        deviation = (x - x.flatten(2).mean(2).reshape(*x.shape[:2], *[1] * (x.dim() - 2))).square().flatten(2).mean(2)
        rstd = (deviation + eps).rsqrt().reshape(*x.shape[:2], *[1] * (x.dim() - 2))
        spread = lambda t: t.reshape(rstd.shape)  # noqa: E731
        normalised = (x.abs() * rstd).norm().item()
        worst = (x.abs() * rstd).max().item() if x.numel() else 0.0
        output = (x * rstd * spread(scale)).norm().item() + shift.norm().item() * x.shape[2:].numel() ** 0.5
        gradient = (weights[0].norm() * (rstd * spread(scale)).abs().max()).item() * (1 + worst) ** 2 if x.numel() else 0.0
        return [output, gradient, weights[0].norm().item() * (1 + normalised), weights[0].norm().item()]

    return Drawn(
        lambda *tensors: ops.adain(*tensors, eps),
        lambda *tensors: ops.adain_reference(*tensors, eps),
        [x, draw.normal(*shape[:2]), draw.normal(*shape[:2])],
        [dtype, beside(draw, dtype), beside(draw, dtype)],
        layouts=(0, 1, 2),
        differentiable=(0, 1, 2),
        floors=floors,
        keeps_layout=True,
    )


def modulated_conv2d(draw: Draw) -> Drawn:
    up = draw.choice(None, None, "up", "down")
    k = draw.choice(3, 3, 3, 1, 5)
    n, channels, out = draw.batch(), draw.choice(1, 2, 3, 5, 16, 33, 0), draw.choice(1, 2, 3, 7, 16, 35, 0)
    size = draw.integer(2 if up == "down" else 1, 9), draw.integer(2 if up == "down" else 1, 13)
    dtype = draw.choice(*DTYPES)
    tensors = {
        "x": draw.normal(n, channels, *size),
        "weight": draw.normal(out, channels, k, k) / max(channels * k * k, 1) ** 0.5,
        "style": 1 + 0.5 * draw.normal(n, channels),
    }
    keywords: dict = {} if up is None else {up: True}
    if draw.boolean():
        keywords["demodulate"] = False
    if draw.integer(0, 3) == 0:
        taps = draw.integer(1, 5)
        keywords["f"] = (draw.uniform(taps, taps) / taps**2).float()
    if draw.boolean():
        tensors["bias"] = 0.3 * draw.normal(out)
        keywords |= {"slope": draw.choice(0.2, 0.2, 1.0, 0.0), "gain": draw.choice(2**0.5, 1.0)}
        if draw.boolean():
            result = [2 * s if up == "up" else s // 2 if up == "down" else s for s in size]
            tensors["noise"], tensors["noise_strength"] = draw.normal(draw.choice(1, n), 1, *result), 0.3 * draw.normal(1)
    names, values = list(tensors), list(tensors.values())

    def called(function):
        return lambda *tensors: function(**dict(zip(names, tensors, strict=True)), **keywords)

    def kinks(inputs: list[Tensor], outputs: list[Tensor]) -> list[Tensor | None]:
        if "bias" not in names or keywords["slope"] == 1:
            return [None]
        linear = ops.modulated_conv2d_reference(**dict(zip(names, inputs, strict=True)), **{**keywords, "slope": 1.0})
        # In a narrow type the reference rounds before the bias is added, and both round the demodulated weight otherwise.
        margin = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 0.2, torch.float16: 0.03}[dtype]
        return [linear.abs() < margin * (1 + linear.abs().max().item() / 10 if linear.numel() else 1)]

    def floors(inputs: list[Tensor], weights: list[Tensor]) -> list[float]:
        given = dict(zip(names, inputs, strict=True))
        g, x, w, s = weights[0].norm().item(), *(given[name].norm().item() for name in ("x", "weight", "style"))
        d = 1.0
        if keywords.get("demodulate", True) and given["style"].numel():
            scaled = (given["weight"][None] * given["style"][:, None, :, None, None]).square().sum((2, 3, 4))
            d = (scaled + 1e-8).rsqrt().max().item()
        # With one input channel the style cancels out of the demodulated result: its gradient is what rounding leaves.
        narrow = torch.finfo(dtype).eps / torch.finfo(torch.promote_types(dtype, torch.float32)).eps
        through = (1 + d * w * s) * max(narrow / 16, 1.0)
        size = {"x": w * s, "weight": x * s * through, "style": x * w * through, "bias": 1.0}
        size |= {"noise": 1.0, "noise_strength": given["noise"].norm().item() if "noise" in given else 0.0}
        return [0.0, *[g * size[name] * (d if name in ("x", "weight", "style") else 1) for name in names]]

    return Drawn(
        called(ops.modulated_conv2d),
        called(ops.modulated_conv2d_reference),
        values,
        [dtype, *[beside(draw, dtype) for _ in values[1:]]],
        layouts=range(len(values)),
        differentiable=range(len(values)),
        kinks=kinks,
        floors=floors,
    )


def inverted_residual(draw: Draw) -> Drawn | None:
    kernel, stride = draw.choice(3, 3, 5, 1, 2, 7), draw.choice(1, 1, 2, 3)
    n, inputs, expands = draw.batch(), draw.choice(3, 1, 8, 16, 21, 0), draw.integer(0, 3) > 0
    hidden, outputs = draw.choice(6, 1, 16, 33, 48, 0) if expands else inputs, draw.choice(4, 1, 8, 24, 35, 0)
    size = draw.integer(1, 9), draw.integer(1, 14)
    before = (kernel - 1) // 2
    padding = tuple(draw.choice(before, kernel - 1 - before, draw.integer(0, kernel - 1)) for _ in range(4))
    if size[0] + padding[2] + padding[3] < kernel or size[1] + padding[0] + padding[1] < kernel:
        return None
    same = stride == 1 and inputs == outputs and padding[0] + padding[1] == padding[2] + padding[3] == kernel - 1
    mode = draw.choice("zeros", "replicate")
    keywords = {"stride": stride, "padding": padding, "padding_mode": mode, "residual": same and draw.boolean()}
    expansion = [draw.normal(hidden, inputs, 1, 1), draw.normal(hidden)] if expands else []
    depthwise = [2 * draw.normal(hidden, 1, kernel, kernel) / kernel, draw.normal(hidden)]
    values = [draw.normal(n, inputs, *size), *expansion, *depthwise, draw.normal(outputs, hidden, 1, 1), draw.normal(outputs)]
    dtype = draw.choice(*DTYPES)

    def called(function):
        return lambda x, *weights: function(x, *(() if expands else (None, None)), *weights, **keywords)

    def kinks(inputs: list[Tensor], outputs: list[Tensor]) -> list[Tensor]:
        return [_next_to_a_limit(inputs if expands else [inputs[0], None, None, *inputs[1:]], outputs[0], keywords)]

    def floors(inputs: list[Tensor], weights: list[Tensor]) -> list[float]:
        # Of what every sum is made of, however much of it cancels: all that is hidden is at most 6.
        g, x, *rest = weights[0].norm().item(), *(t.norm().item() for t in inputs)
        whole = (1 + x) * 6 * weights[0].numel() ** 0.5
        through = g * whole
        for norm in rest:
            whole, through = whole * (1 + norm), through * (1 + norm)
        return [whole, *[through] * len(inputs)]

    return Drawn(
        called(ops.inverted_residual),
        called(ops.inverted_residual_reference),
        values,
        [dtype, *[beside(draw, dtype) for _ in values[1:]]],
        layouts=range(len(values)),
        differentiable=range(len(values)),
        kinks=kinks,
        floors=floors,
        keeps_layout=True,
    )


def _next_to_a_limit(tensors: list, result: Tensor, keywords: dict) -> Tensor:
    """Where anything that a result is made of is next to 0 or 6, at which ReLU6 has a kink."""
    x, expand, expand_bias, depthwise, depthwise_bias = tensors[:5]

    def near(values: Tensor) -> Tensor:
        return torch.minimum(values.abs(), (values - 6).abs()) < 1e-4 * (1 + values.abs().max())

    if not x.numel() or not depthwise.numel() or not result.numel():
        return torch.zeros_like(result, dtype=torch.bool)
    left, right, top, bottom = keywords["padding"]
    hidden = x if expand is None else F.conv2d(x, expand, expand_bias)
    close = torch.zeros_like(hidden[:, :1]) if expand is None else near(hidden).double().amax(1, keepdim=True)
    hidden = hidden if expand is None else hidden.clamp(0, 6)
    mode = "constant" if keywords["padding_mode"] == "zeros" else "replicate"
    deep = F.conv2d(F.pad(hidden, (left, right, top, bottom), mode=mode), depthwise, depthwise_bias, keywords["stride"],
                    groups=len(depthwise))  # fmt: skip
    window = torch.ones(1, 1, *depthwise.shape[2:], dtype=torch.float64)
    touched = F.conv2d(F.pad(close, (left, right, top, bottom), mode=mode), window, stride=keywords["stride"]) > 0
    return (touched | near(deep).any(1, keepdim=True)).expand(result.shape)


def lpips_distance(draw: Draw) -> Drawn:
    shape = draw.batch(), draw.choice(3, 1, 2, 16, 37, 0), draw.integer(1, 7), draw.integer(1, 12)
    a, b = draw.normal(*shape), draw.normal(*shape)
    if draw.boolean():
        a, b = a.relu(), b.relu()
    a = a * (draw.uniform(shape[0], 1, *shape[2:]) < 0.8) * draw.magnitude(-1, 1)
    dtype = draw.choice(*DTYPES)
    positions = shape[2] * shape[3]

    def floors(inputs: list[Tensor], weights: list[Tensor]) -> list[float]:
        a, b, head = inputs
        g = weights[0].norm().item()
        largest = head.abs().max().item() if head.numel() else 0.0
        # Unit vectors have one direction less than channels: what remains in it is rounding.
        sizes = [((1 / t.norm(dim=1)).nan_to_num(posinf=0.0)).norm().item() for t in (a, b)]
        return [largest * shape[0] ** 0.5, *[g * largest * size / positions for size in sizes], g]

    return Drawn(
        lambda a, b, head: ops.lpips_distance([a], [b], [head]),
        ops.lpips_distance_reference,
        [a, b, draw.uniform(shape[1])],
        [dtype, dtype, beside(draw, dtype)],
        layouts=(0, 1, 2),
        differentiable=(0, 1, 2),
        floors=floors,
    )


def adam_ema(draw: Draw) -> Drawn:
    shapes = [tuple(draw.choice(3, 1, 9, 6, 0) for _ in range(draw.integer(0, 4))) for _ in range(draw.integer(1, 5))]
    averages = draw.boolean()
    dtype = draw.choice(torch.float64, torch.float32)
    narrow = draw.choice(dtype, dtype, torch.bfloat16, torch.float16)
    size = draw.magnitude(-3, 1)
    lists = [[draw.normal(*shape) for shape in shapes] for _ in range(5 if averages else 4)]
    lists[1] = [t * size for t in lists[1]]
    lists[3] = [t.square() * 0.1 for t in lists[3]]
    keywords = {
        "learning_rate": draw.magnitude(-4, -1),
        "beta1": draw.choice(0.9, 0.0, 0.5),
        "beta2": draw.choice(0.999, 0.99),
        "epsilon": draw.magnitude(-8, -3),
        "decay": draw.choice(0.999, 0.5, 0.0, 1.0),
    }
    steps = [float(draw.choice(1, 2, 10, 1000)) for _ in shapes]
    count = len(shapes)

    def called(function):
        def call(*tensors: Tensor) -> list[Tensor]:
            made = [torch.empty_strided(t.shape, t.stride(), dtype=t.dtype).copy_(t) for t in tensors]
            split = [made[i : i + count] for i in range(0, len(made), count)]
            # The reference in float64 is given float64 gradients: the parameters decide the dtype.
            function(*split[:4], split[4] if averages else [], steps, **keywords)
            return [t for i, tensors in enumerate(split) if i != 1 for t in tensors]

        return call

    return Drawn(
        called(ops.adam_ema),
        called(ops.adam_ema_reference),
        [t for tensors in lists for t in tensors],
        [narrow if i == 1 else dtype for i, tensors in enumerate(lists) for _ in tensors],
        layouts=range(count * len(lists)),
        differentiable=(),
    )


OPERATORS = (upfirdn2d, bilinear_downsample, bias_act, adain, modulated_conv2d, inverted_residual, lpips_distance, adam_ema)
