# SPDX-License-Identifier: Apache-2.0
"""What the machine is and what it can do at best, the yardsticks of the reports; and the memory that a computation takes."""

from __future__ import annotations

import gc
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import levels
from benchmarks.runner import synchronise
from gangealing_fast.ops.environment import cpu_level
from gangealing_fast.runtime import memory
from gangealing_fast.runtime.errors import UserError
from gangealing_fast.runtime.precision import EMULATED

TRIAD_BYTES = 256 << 20
# The convolution that most of a 256² generator's time goes to: 512 to 512 channels at 32², a batch of 5.
CONVOLUTION = {"batch": 5, "channels": 512, "size": 32}


def demand(device: torch.device) -> None:
    """Raise UserError if torch does not find the device on this machine."""
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "These benchmarks need a CUDA device, and torch finds none on this machine; nothing was measured. "
            "Measure the CPU with --device cpu, or install a torch that knows the device."
        )


def convolves_in_bfloat16() -> bool:
    """Whether torch has convolutions in bfloat16 for this processor, at the level that it is held to. If not, it makes them number
    by number: a step takes many minutes, and its time says nothing."""
    return torch.bfloat16 not in EMULATED


def settle() -> None:
    """What every measuring process sets on CUDA: float32 means float32, and torch may choose its fastest convolutions, as a user
    who wants speed would have it."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True


def release(device: torch.device) -> None:
    """Hand free memory back between cases, so that no case finds what another one left."""
    gc.collect()
    memory.release()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) << 10
    raise OSError(f"/proc/self/status has no {field}")


def peak_resident() -> int:
    """The largest resident size of this process so far, in bytes."""
    return _status("VmHWM")


def memory_is_short() -> bool:
    """Whether less than half of the machine's memory is available."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    sizes = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    return sizes["MemAvailable"] < sizes["MemTotal"] / 2


def peak_during(function: Callable[[], Any], device: torch.device) -> int:
    """Bytes by which memory in use rises above what it was before while `function` runs (resident size on a CPU)."""
    function()
    if device.type == "cuda":
        synchronise(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        function()
        return torch.cuda.max_memory_allocated(device) - before
    release(device)
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM back to the present size
    function()
    return max(peak_resident() - before, 0)


def _best(function: Callable[[], Any], device: torch.device, seconds: float) -> float:
    """The shortest time of one call; the first counts only where it alone takes longer than `seconds`."""

    def once() -> float:
        synchronise(device)
        start = time.perf_counter()
        function()
        synchronise(device)
        return time.perf_counter() - start

    first = once()
    best, spent = (first, first) if first >= seconds and device.type == "cpu" else (float("inf"), 0.0)
    while spent < seconds:
        elapsed = once()
        best, spent = min(best, elapsed), spent + elapsed
    return best


def triad_bandwidth(device: torch.device, seconds: float = 0.5) -> float:
    """Bytes per second of `a = b + s c` on arrays far larger than the caches, counting the two reads and the write."""
    elements = TRIAD_BYTES // 4
    a, b, c = (torch.ones(elements, device=device) for _ in range(3))
    return 3.0 * TRIAD_BYTES / _best(lambda: torch.add(b, c, alpha=1.5, out=a), device, seconds)


def convolution_rate(device: torch.device, dtype: torch.dtype, seconds: float = 0.5) -> float:
    """Operations per second of torch's own 3x3 convolution (oneDNN, cuDNN), channels-last."""
    n, c, size = CONVOLUTION.values()

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape).to(device, dtype).contiguous(memory_format=torch.channels_last)

    x, weight = draw(n, c, size, size), draw(c, c, 3, 3)
    with torch.no_grad():
        return 2.0 * n * c * c * 9 * size * size / _best(lambda: F.conv2d(x, weight, padding=1), device, seconds)


def limits(threads: int, device: torch.device) -> dict[str, float]:
    """Bandwidth in GB/s and convolution rates in GFLOP/s by dtype."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        rates = {
            str(dtype).removeprefix("torch."): convolution_rate(device, dtype) / 1e9 for dtype in (torch.float32, torch.bfloat16)
        }
        return {"bandwidth": triad_bandwidth(device) / 1e9, **rates}
    finally:
        torch.set_num_threads(before)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _commit() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--exclude", "*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def describe(device: torch.device) -> dict[str, Any]:
    """The machine and the software, for the head of a report."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": round(pages / 1e9, 1),
        "vectors": torch.backends.cpu.get_cpu_capability(),
        "level": cpu_level(),
        "level_asked": os.environ.get(levels.VARIABLE) or None,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "system": platform.platform(),
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "commit": _commit(),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }
