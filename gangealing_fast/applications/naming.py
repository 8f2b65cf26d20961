# SPDX-License-Identifier: Apache-2.0
"""Names of the pictures that are made from other pictures."""

from __future__ import annotations

from pathlib import PurePath

# A file system holds 255 bytes; what is written has a number before it, an ending and, while it is written, a longer ending.
_LONGEST = 200


def result_name(number: int, picture: str) -> str:
    """NUMBER-NAME.png for a result made from `picture`; what no file name should hold becomes "_", what is too long is cut."""
    stem = "".join(c if c.isprintable() else "_" for c in PurePath(picture).stem)
    return f"{number:06d}-{stem.encode()[:_LONGEST].decode(errors='ignore')}.png"
