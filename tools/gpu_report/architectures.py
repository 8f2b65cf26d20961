# SPDX-License-Identifier: Apache-2.0
"""The architectures that kernels are compiled for, and how many blocks of a kernel fit a multiprocessor of each."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Architecture:
    """Limits of a multiprocessor (CUDA C++ Programming Guide, compute capabilities) and one card that has it.

    shared: bytes per multiprocessor. bandwidth: bytes per second of the card's memory, from its data sheet.
    """

    number: int
    warps: int
    blocks: int
    shared: int
    card: str
    bandwidth: float

    @property
    def shared_per_block(self) -> int:
        """Most bytes of shared memory that one block can have."""
        return self.shared - 1024


ARCHITECTURES = {
    a.number: a
    for a in (
        Architecture(80, 64, 32, 164 * 1024, "A100 40 GB", 1555e9),
        Architecture(86, 48, 16, 100 * 1024, "RTX 3090", 936e9),
        Architecture(89, 48, 24, 100 * 1024, "RTX 4090", 1008e9),
        Architecture(90, 64, 32, 228 * 1024, "H100 SXM", 3350e9),
        Architecture(100, 64, 32, 228 * 1024, "B200", 8000e9),
        Architecture(120, 48, 24, 100 * 1024, "RTX 5090", 1792e9),
    )
}


@dataclass(frozen=True)
class Occupancy:
    """Share of a multiprocessor's warps that can be resident, the blocks that hold them, and what keeps out more."""

    share: float
    blocks: int
    limiter: str


def occupancy(architecture: Architecture, threads: int, registers: int, shared: int) -> Occupancy:
    """How much of a multiprocessor a kernel can fill, from `registers` per thread and `shared` bytes per block.

    Registers are handed out to warps in units of 256, warps in fours; a block's shared memory in units of 128 bytes, 1 KiB
    of which the system keeps for itself.
    """
    warps = -(-threads // 32)
    limits = {"blocks": architecture.blocks, "warps": architecture.warps // warps}
    if registers:
        per_warp = -(-registers * 32 // 256) * 256
        limits["registers"] = (65536 // per_warp // 4 * 4) // warps
    if shared:
        limits["shared memory"] = architecture.shared // (-(-(shared + 1024) // 128) * 128)
    limiter = min(limits, key=limits.__getitem__)
    return Occupancy(limits[limiter] * warps / architecture.warps, limits[limiter], limiter)
