# SPDX-License-Identifier: Apache-2.0
"""The error every user's mistake ends in."""

from __future__ import annotations


class UserError(ValueError):
    """Something the user can put right: the message says in one sentence what was wrong and what to do."""
