# SPDX-License-Identifier: Apache-2.0
"""Options that commands share. Imports nothing heavy, so that --help is quick."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EnvConfig:
    """Say what is installed, what was compiled, and which kernel serves each operator where."""

    json: bool = False
    """Print one JSON object instead of text."""
