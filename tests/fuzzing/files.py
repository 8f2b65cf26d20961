# SPDX-License-Identifier: Apache-2.0
"""Random names of pictures and randomly damaged tars."""

from __future__ import annotations

import tarfile
from pathlib import Path

from hostile_files import encoded, write_tar

from fuzzing import Draw

ODD = [b"\x1b", b"\n", b"\r", b"\xff", b"\xc3", b"\xc3\xa4", b"\xe2\x80\xae", b" ", b"'", b'"', b"$", b"-", b".", b"\\"]


def draw_name(draw: Draw) -> bytes:
    """A file name of up to 255 bytes, none of them 0 or "/", mostly of what terminals and shells treat in their own way."""
    parts = [bytes([draw.integer(1, 255)]) if draw.boolean() else draw.choice(*ODD) for _ in range(draw.integer(1, 40))]
    stem = b"".join(parts).replace(b"/", b"_")[: draw.choice(3, 30, 251)]
    return b"x" + stem + draw.choice(b".png", b".jfif", b"")


def damaged_tar(folder: Path, draw: Draw) -> tuple[Path, int, bool]:
    """A tar of pictures, how many were put into it, and whether what tells where its members lie is still whole."""
    count = draw.integer(1, 4)
    path = write_tar(folder / "a.tar", {f"{index}.png": encoded(seed=index) for index in range(count)})
    content, kind = bytearray(path.read_bytes()), draw.integer(0, 4)
    with tarfile.open(path) as archive:
        members = archive.getmembers()
    end = members[-1].offset_data + -(-members[-1].size // 512) * 512
    whole = False
    if kind == 0:  # a bit of a header
        place = draw.choice(*members).offset + draw.integer(0, 511)
        content[place] ^= 1 << draw.integer(0, 7)
    elif kind == 1:  # cut before the end mark
        del content[draw.integer(1, end - 1) :]
    elif kind == 2:  # something behind the end mark
        content += bytes(draw.integer(0, 2000)) + b"x"
    elif kind == 3:  # a picture's own bytes: the tar is sound
        member, whole = draw.choice(*members), True
        content[member.offset_data + draw.integer(0, member.size - 1)] ^= 1 << draw.integer(0, 7)
    else:
        place = draw.choice(*members).offset
        content[place : place + 512] = bytes(draw.integer(0, 255) for _ in range(8)) * 64
    path.write_bytes(content)
    return path, count, whole
