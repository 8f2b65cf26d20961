# SPDX-License-Identifier: Apache-2.0
"""Joint alignment of a set by the classical entropy method, and the funnel that aligns new pictures to it."""

from __future__ import annotations

from gangealing_fast.congealing.entropy import congeal_entropy, congeal_stack
from gangealing_fast.congealing.funnel import Funnel
from gangealing_fast.congealing.records import Congealed, Pictures, Registered

__all__ = ["Congealed", "Funnel", "Pictures", "Registered", "congeal_entropy", "congeal_stack"]
