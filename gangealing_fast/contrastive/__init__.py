# SPDX-License-Identifier: Apache-2.0
"""Features for the perceptual distance, learned from pictures alone (SimCLR, arXiv 2002.05709)."""
