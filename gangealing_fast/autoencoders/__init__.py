# SPDX-License-Identifier: Apache-2.0
"""Adversarial autoencoders (Makhzani et al., arXiv 1511.05644): codes of pictures that are distributed as one likes."""
