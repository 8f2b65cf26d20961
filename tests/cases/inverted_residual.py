# SPDX-License-Identifier: Apache-2.0
"""Cases of inverted_residual: kernels, strides, paddings, channels that do and do not fill a vector, sizes of one pixel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from zlib import crc32

import torch
from torch import Tensor

TOLERANCE = {torch.float64: (1e-12, 1e-12), torch.float32: (3e-6, 3e-6)}


@dataclass(frozen=True)
class Case:
    """channels: in, hidden (None: no expansion) and out. padding: (left, right, top, bottom)."""

    name: str
    size: tuple[int, int, int]
    channels: tuple[int, int | None, int]
    kernel: int = 3
    stride: int = 1
    padding: tuple[int, int, int, int] = (1, 1, 1, 1)
    mode: str = "replicate"
    residual: bool = False

    @property
    def kwargs(self) -> dict[str, Any]:
        """Keyword arguments of the public function."""
        return {"stride": self.stride, "padding": self.padding, "padding_mode": self.mode, "residual": self.residual}

    def called(self, operator: Callable[..., Any]) -> Callable[..., Any]:
        """The operator as a function of `tensors`."""

        def call(x: Tensor, *weights: Tensor) -> Any:
            return operator(x, *(() if self.channels[1] is not None else (None, None)), *weights, **self.kwargs)

        return call

    def tensors(self, dtype: torch.dtype = torch.float64) -> list[Tensor]:
        """x, and weight and bias of the two or three convolutions; the same in every run and, rounded, in every dtype."""
        generator = torch.Generator().manual_seed(crc32(self.name.encode()))
        draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
        batch, height, width = self.size
        inputs, wide, outputs = self.channels
        hidden = inputs if wide is None else wide
        x, expand = draw(batch, inputs, height, width), draw(hidden, inputs, 1, 1) * (2 / max(inputs, 1) ** 0.5)
        depthwise = draw(hidden, 1, self.kernel, self.kernel) / self.kernel
        project = draw(outputs, hidden, 1, 1) / max(hidden, 1) ** 0.5
        expansion = [] if wide is None else [expand, draw(hidden)]
        return [tensor.to(dtype) for tensor in (x, *expansion, depthwise, draw(hidden), project, draw(outputs))]


CASES = (
    Case("expansion-six", (2, 9, 13), (16, 96, 24)),
    Case("residual", (1, 8, 8), (24, 144, 24), residual=True),
    Case("kernel-five", (1, 10, 11), (40, 48, 40), 5, 1, (2, 2, 2, 2), residual=True),
    Case("stride-two", (2, 12, 14), (8, 32, 40), 3, 2, (0, 1, 0, 1)),
    Case("kernel-five-stride-two", (1, 11, 12), (24, 40, 16), 5, 2, (1, 2, 2, 2)),
    Case("zeros", (2, 7, 9), (16, 32, 16), mode="zeros", residual=True),
    Case("zeros-stride-two", (1, 8, 9), (16, 24, 8), 5, 2, (1, 2, 2, 1), "zeros"),
    Case("no-expansion", (2, 9, 8), (32, None, 16)),
    Case("no-expansion-odd", (1, 5, 6), (21, None, 21), mode="zeros", residual=True),
    Case("odd-channels", (2, 6, 7), (3, 19, 5)),
    Case("one-channel", (2, 6, 5), (1, 1, 1), residual=True),
    Case("no-padding", (1, 9, 9), (8, 20, 12), 3, 1, (0, 0, 0, 0)),
    Case("kernel-one", (2, 4, 5), (6, 17, 6), 1, 1, (0, 0, 0, 0), residual=True),
    Case("kernel-four-stride-three", (1, 11, 13), (5, 18, 9), 4, 3, (3, 0, 1, 2)),
    Case("kernel-larger-than-picture", (1, 2, 3), (4, 16, 4), 7, 1, (3, 3, 3, 3), residual=True),
    Case("one-pixel", (2, 1, 1), (8, 24, 8), residual=True),
    Case("one-row", (1, 1, 40), (8, 24, 8), residual=True),
    Case("one-column", (1, 30, 1), (8, 24, 8), mode="zeros", residual=True),
    Case("wide", (1, 3, 150), (4, 16, 4), 5, 2, (2, 2, 2, 2)),
    Case("many-hidden", (1, 12, 24), (56, 700, 33), 5, 1, (2, 2, 2, 2)),
    Case("stride-beyond-kernel", (1, 13, 9), (4, 8, 4), 2, 4, (0, 0, 1, 0)),
    Case("no-samples", (0, 5, 5), (4, 8, 4)),
    Case("no-hidden", (1, 5, 5), (4, 0, 4), residual=True),
    Case("no-channels", (1, 5, 5), (0, 8, 4)),
)
# Small enough for gradcheck and gradgradcheck.
SMALL = (
    Case("small", (1, 3, 3), (2, 3, 2), residual=True),
    Case("small-zeros", (1, 4, 3), (2, None, 1), 3, 2, (0, 1, 0, 1), "zeros"),
)
