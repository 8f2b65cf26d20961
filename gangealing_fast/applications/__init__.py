# SPDX-License-Identifier: Apache-2.0
"""Using a trained aligner: in Python, and behind `align`, `propagate` and `convert`."""
