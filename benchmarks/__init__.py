# SPDX-License-Identifier: Apache-2.0
"""Measurements: `python -m benchmarks` for the operators, `python -m benchmarks.training_step` for the whole training step."""
