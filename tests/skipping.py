# SPDX-License-Identifier: Apache-2.0
"""The last line of a test run: what was skipped, and why."""

from __future__ import annotations

from collections import Counter
from typing import Any


def why_skipped(reports: list[Any]) -> str | None:
    """One line: how many tests were skipped for which reason, the most frequent first; None if none was."""
    reasons = Counter(
        str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr).removeprefix("Skipped: ")
        for report in reports
    )
    if not reasons:
        return None
    return f"{reasons.total()} skipped: " + "; ".join(f"{count} because: {reason}" for reason, count in reasons.most_common())
