# SPDX-License-Identifier: Apache-2.0
"""Names from outside as text that a terminal only shows."""

from __future__ import annotations


def printable(value: object) -> str:
    """`value` as text in which line ends, escape sequences, invisible characters and bytes that are no UTF-8 are written out.

    A name on a disk may be any bytes but 0 and "/". Python keeps bytes that are no UTF-8 as surrogates, which no encoding writes.
    """
    text = str(value)
    return text if text.isprintable() else "".join(map(_shown, text))


def _shown(character: str) -> str:
    if character.isprintable():
        return character
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is no UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")


def reason_of(error: BaseException, most: int = 160) -> str:
    """What an error says, on one line of at most `most` characters; its kind if it says nothing."""
    return " ".join(str(error).split())[:most] or type(error).__name__
