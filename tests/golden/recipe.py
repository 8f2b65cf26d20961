# SPDX-License-Identifier: Apache-2.0
"""Deterministic tensors by name, so that golden vectors need not store weights.

A tensor is drawn from numpy's Philox counter generator, keyed by crc32("<seed>:<name>"). The same name, shape and seed give the
same numbers on every machine and in every framework.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping, Sequence

import numpy as np

# How large an entry of a state dict is drawn: the first pattern that is found decides. Entries that no pattern is found in have
# scale 1 (weights of equalised learning rate). None stands for 1 + 0.1 * normal, a negative scale for absolute values.
SCALES: tuple[tuple[str, float | None], ...] = (
    (r"(^|\.)noise\.weight$", 0.0),  # noise of strength 0: the forward pass is deterministic
    (r"modulation\.bias$", None),  # style scales start at 1
    (r"warp_head\.linear\.(weight|bias)$", 0.02),
    (r"warp_head\.flow_out\.2\.(weight|bias)$", 0.05),
    (r"^style\.\d+\.weight$", 100.0),  # mapping network: a learning-rate multiplier of 0.01, so weights are drawn at 1 / 0.01
    (r"^lin\d\.model\.1\.weight$", -0.1),  # the linear heads of LPIPS are not negative
    (r"(^|\.)bias$", 0.1),
    (r"coefficients$", 0.3),
)
# Constant buffers and aliases, which stay as the network is built.
SKIP = re.compile(r"(kernel|kernel_horz|kernel_vert|blur_filter|one_hot|shift|scale)$|^lins\.")


def named_normal(name: str, shape: Sequence[int], seed: int = 0, scale: float = 1.0) -> np.ndarray:
    """A float32 array of `shape`: standard normal numbers times `scale`, a pure function of name, shape and seed."""
    key = zlib.crc32(f"{seed}:{name}".encode())
    generator = np.random.Generator(np.random.Philox(key=key))
    return generator.standard_normal(tuple(shape), dtype=np.float32) * np.float32(scale)


def named_state(shapes: Mapping[str, Sequence[int]], seed: int = 0) -> dict[str, np.ndarray]:
    """The entries of a state dict, drawn by their keys; `shapes` has a shape for each key. Constant buffers are left out."""
    state = {}
    for key, shape in shapes.items():
        if SKIP.search(key):
            continue
        scale = next((scale for pattern, scale in SCALES if re.search(pattern, key)), 1.0)
        if scale is None:
            state[key] = 1 + named_normal(key, shape, seed, 0.1)
        elif scale < 0:
            state[key] = np.abs(named_normal(key, shape, seed, -scale))
        else:
            state[key] = named_normal(key, shape, seed, scale)
    return state
