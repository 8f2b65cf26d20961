# SPDX-License-Identifier: Apache-2.0
"""Pictures with marked points: SPair-71k, CUB-200-2011, ACSM's files, COCO JSON, CSV and `.npy`; and the pairs to judge by."""

from __future__ import annotations

from gangealing_fast.data.keypoints.opening import open_keypoints
from gangealing_fast.data.keypoints.protocols import Pairs, choose_pairs, draw_cycles
from gangealing_fast.data.keypoints.record import KeypointSet

__all__ = ["KeypointSet", "Pairs", "choose_pairs", "draw_cycles", "open_keypoints"]
