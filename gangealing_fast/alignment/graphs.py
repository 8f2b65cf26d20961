# SPDX-License-Identifier: Apache-2.0
"""Passes of a training step recorded as CUDA graphs: hundreds of kernels started by one call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

Pass = Callable[..., Tensor]


class _Recording(NamedTuple):
    graph: torch.cuda.CUDAGraph
    inputs: list[Tensor]
    gradients: list[Tensor | None]
    result: Tensor


class RecordedPasses:
    """Stands for `run(*tensors)`, which adds to the parameters' gradients and returns a tensor.

    Inputs of a new shape are recorded anew. `run` must do the same work whatever its inputs hold and draw no random numbers.
    Parameters may only change in place.
    """

    WARM_UP = 3
    """Runs before the recording, in which kernels are chosen and what is kept of frozen weights is made."""

    def __init__(self, run: Pass, parameters: Sequence[Tensor]) -> None:
        self.run, self.parameters = run, list(parameters)
        self._recordings: dict[tuple[torch.Size, ...], _Recording] = {}

    def __call__(self, *inputs: Tensor) -> Tensor:
        key = tuple(tensor.shape for tensor in inputs)
        if key not in self._recordings:
            self._recordings[key] = self._record(inputs)
        graph, places, gradients, result = self._recordings[key]
        for place, tensor in zip(places, inputs, strict=True):
            place.copy_(tensor)
        graph.replay()
        # The graph writes its gradients always to the same places: they are copied before the next replay.
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            if gradient is not None:
                parameter.grad = gradient.clone() if parameter.grad is None else parameter.grad.add_(gradient)
        return result.clone()

    def _record(self, inputs: Sequence[Tensor]) -> _Recording:
        before = [parameter.grad for parameter in self.parameters]
        places = [tensor.clone() for tensor in inputs]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(self.WARM_UP):
                self._forget()
                self.run(*places)
        torch.cuda.current_stream().wait_stream(side)
        self._forget()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = self.run(*places)
        gradients = [parameter.grad for parameter in self.parameters]
        for parameter, gradient in zip(self.parameters, before, strict=True):
            parameter.grad = gradient
        return _Recording(graph, places, gradients, result)

    def _forget(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None
