# SPDX-License-Identifier: Apache-2.0
"""Files and names that nobody would make on purpose, but that lie on disks."""

from __future__ import annotations

import io
import os
import socket
import tarfile
from collections.abc import Mapping
from pathlib import Path

from picture_files import noise
from PIL import Image

NAMES = {
    "bytes that are no UTF-8": b"\xff\xfe\x80.png",
    "an escape sequence": b"\x1b[2J\x1b[31mred.png",
    "line ends": b"one\nerror: two\r.png",
    "as long as a disk allows": b"x" * 251 + b".png",
    "long in another script": "ö".encode() * 125 + b".png",
    "the other direction": "a\u202egnp.png".encode(),
    "a leading dash": b"-rf.png",
    "a quote": b'\'; echo "$HOME".png',
    "spaces": b"  .png",
}
"""Names of picture files, by what is odd about them."""


def encoded(size: int = 16, file_format: str = "PNG", seed: int = 0) -> bytes:
    """A picture file."""
    buffer = io.BytesIO()
    Image.fromarray(noise(size, size, seed=seed)).save(buffer, file_format)
    return buffer.getvalue()


def write_named(folder: Path, name: bytes, content: bytes) -> None:
    """A file whose name is any bytes."""
    with open(os.path.join(os.fsencode(folder), name), "wb") as file:
        file.write(content)


def fill_with_hostile(folder: Path) -> list[str]:
    """Everything odd that a folder may hold, beside two good pictures and one that is cut; the names of what cannot be read."""
    folder.mkdir()
    for index in range(2):
        (folder / f"good{index}.png").write_bytes(encoded(seed=index))
    for name in NAMES.values():
        write_named(folder, name, encoded())
        write_named(folder, name[:200] + b"-cut.png", encoded()[:60])
    os.mkfifo(folder / "fifo.png")
    (folder / "device.png").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as server:
        place = os.getcwd()
        os.chdir(folder)  # the path of a socket is short
        server.bind("socket.png")
        os.chdir(place)
    with open(folder / "sparse.png", "wb") as file:
        file.truncate(40 << 30)
    (folder / "itself.png").symlink_to("itself.png")
    (folder / "nowhere.png").symlink_to("gone")
    (folder / "folder.png").mkdir()
    (folder / "below").mkdir()
    (folder / "below" / "up").symlink_to("..")
    (folder / "below" / "again").symlink_to(".")
    return ["fifo.png", "device.png", "socket.png", "sparse.png", "itself.png", "nowhere.png"]


def write_tar(path: Path, members: Mapping[str, bytes]) -> Path:
    """A tar of files."""
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in members.items():
            header = tarfile.TarInfo(name)
            header.size = len(content)
            archive.addfile(header, io.BytesIO(content))
    return path


def block_of(name: str, size: int) -> bytes:
    """The header of a tar member that claims so many bytes."""
    header = tarfile.TarInfo(name)
    header.size = size
    return header.tobuf(format=tarfile.GNU_FORMAT)
