# SPDX-License-Identifier: Apache-2.0
"""Options that commands share. Imports nothing heavy, so that --help is quick."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

from gangealing_fast.runtime.ranges import Iterations, Range, Threads

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

TrackerName = Literal["none", "tensorboard", "wandb", "trackio"]
Config = TypeVar("Config", bound="DataclassInstance")


@dataclass(frozen=True)
class EnvConfig:
    """Say what is installed, what was compiled, and which kernel serves each operator where."""

    json: bool = False
    """Print one JSON object instead of text."""


@dataclass(frozen=True, kw_only=True)
class ProcessOptions:
    """What a command that trains sets for its whole process."""

    ops: Literal["fused", "reference"] = "fused"
    """reference: every operator as its plain definition in torch, in torch's default layout, to see what the kernels buy."""
    reuse_memory: bool = True
    """Keep freed memory for the next step instead of handing it back to the system (CPU, glibc): saves the kernel its zeroing."""
    seed: Annotated[int, Range(-(2**63), 2**63 - 1)] = 0
    threads: Threads = 0
    """CPU threads; 0 leaves torch's choice."""
    device: str = "auto"
    """auto: CUDA if there is a device, else the CPU."""
    tracker: TrackerName = "none"
    """Hand figures and pictures to a tracker of experiments too; log.jsonl and report.html hold them in any case."""


@dataclass(frozen=True, kw_only=True)
class WarpingOptions:
    """How an aligner is used on pictures, if not as its checkpoint says."""

    iters: Iterations | None = None
    """How often the similarity looks at its own result and corrects it; None for the checkpoint's number (one of the original does
    not say: 3)."""
    padding_mode: Literal["reflection", "border", "zeros"] | None = None
    """What is read beyond the edge of a picture; None for the checkpoint's."""


def shared_last(kind: type[Config]) -> type[Config]:
    """Decorator of a command's options: its own come first in --help, those that commands share after them."""
    fields = kind.__dataclass_fields__
    for shared in kind.__bases__:
        for name in getattr(shared, "__dataclass_fields__", {}):
            fields[name] = fields.pop(name)
    return kind
