# SPDX-License-Identifier: Apache-2.0
"""Adversarial training: objectives, penalties, augmentation, critics, and the loop that trains a generator on pictures."""
