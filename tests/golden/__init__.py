# SPDX-License-Identifier: Apache-2.0
"""Golden vectors: what the original implementation computes, one `.npz` per case; see README.md."""
