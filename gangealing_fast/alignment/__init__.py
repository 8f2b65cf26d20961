# SPDX-License-Identifier: Apache-2.0
"""The commands `train` and `classify`: learning an aligner from a generator's samples."""
