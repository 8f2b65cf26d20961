# SPDX-License-Identifier: Apache-2.0
"""The classical entropy method of joint alignment, the baseline."""

from __future__ import annotations

from gangealing_fast.congealing.similarity import congeal, soft_stack_entropy

__all__ = ["congeal", "soft_stack_entropy"]
