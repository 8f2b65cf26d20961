# SPDX-License-Identifier: Apache-2.0
"""Measurements: `python -m benchmarks` for the operators, `python -m benchmarks.training_step` for the whole training step."""

import os

from benchmarks.levels import hold_torch

hold_torch(os.environ.get("GGF_CPU_LEVEL"))
