# SPDX-License-Identifier: Apache-2.0
"""Triton kernels, imported as `gangealing_fast.kernels`; the folder holds none yet."""
