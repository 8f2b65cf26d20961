# SPDX-License-Identifier: Apache-2.0
"""How objectives behave on points in the plane, where the truth is known, and on digits: `python -m benchmarks.objectives`."""
