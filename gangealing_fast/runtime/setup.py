# SPDX-License-Identifier: Apache-2.0
"""What a command sets for its whole process: device, threads, kernels or references, memory; and how many processes there are."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from gangealing_fast.runtime import implementation, memory, waiting
from gangealing_fast.runtime.config import ProcessOptions
from gangealing_fast.runtime.errors import UserError

if TYPE_CHECKING:
    import torch


def set_threads(threads: int) -> None:
    """Let torch compute with so many CPU threads; 0 leaves its own choice. Several sleep sooner while other programs compute."""
    import torch
    from tqdm import tqdm

    if threads > 0:
        torch.set_num_threads(threads)
    if torch.get_num_threads() > 1:
        waiting.watch(tqdm.write)


def prepare_process(config: ProcessOptions) -> None:
    """What a training command sets for its whole process: threads, kernels or references, and whether large blocks are kept.

    On the references alone malloc is left as it is, like everything else.
    """
    set_threads(config.threads)
    implementation.use(config.ops)
    if config.reuse_memory and config.ops == "fused" and memory.keep_large_blocks():
        print(f"large blocks of memory: {memory.describe()} (--no-reuse-memory leaves malloc alone)")


def choose_device(name: str) -> torch.device:
    """The torch device behind a `--device` option; "auto" takes CUDA where there is one. Raises UserError for others."""
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        raise UserError(f"--device {name} is not available here; use --device cpu, or auto to let the command choose") from None
    return device


def processes() -> int:
    """How many processes run this command, as torchrun tells each of them; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1
