# SPDX-License-Identifier: Apache-2.0
"""Cases of every operator, shared by the tests of its CPU kernel, its CUDA kernel and its reference: plain data."""
