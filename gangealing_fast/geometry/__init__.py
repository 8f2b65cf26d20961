# SPDX-License-Identifier: Apache-2.0
"""Warps as matrices and grids, and points carried through them."""
