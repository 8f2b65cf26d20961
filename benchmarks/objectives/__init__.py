# SPDX-License-Identifier: Apache-2.0
"""How objectives behave on points in the plane, where the truth is known: `python -m benchmarks.objectives`."""
