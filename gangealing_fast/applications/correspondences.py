# SPDX-License-Identifier: Apache-2.0
"""Points of the template in every frame of a video, in one file that is written at the end: memory does not grow with the video."""

from __future__ import annotations

import contextlib
import json
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy
from torch import Tensor

from gangealing_fast.storage.files import atomic_write, write_error

_PIECE = 1 << 22


class Correspondences:
    """Collects points `[P, 2]` of one frame after the other in an unnamed file beside the result."""

    def __init__(self, template: Tensor, raw: IO[bytes]) -> None:
        self._template, self._raw, self._seconds = template.numpy().astype("<f4"), raw, [0.0][:0]

    def add(self, points: Tensor, seconds: float) -> None:
        """The points of the next frame, in its pixels, and its time."""
        self._raw.write(points.numpy().astype("<f4").tobytes())
        self._seconds.append(seconds)

    def write(self, path: Path) -> None:
        """template `[P, 2]` (its pixels), seconds `[F]` and points `[F, P, 2]`, as .npz or .safetensors."""
        seconds = numpy.array(self._seconds, "<f8")
        whole = {"template": self._template, "seconds": seconds}
        shape = (len(seconds), *self._template.shape)
        with atomic_write(path) as file:
            (_write_npz if path.suffix == ".npz" else _write_safetensors)(file, whole, shape, self._pieces())

    def _pieces(self) -> Iterator[bytes]:
        self._raw.seek(0)
        while piece := self._raw.read(_PIECE):
            yield piece


@contextlib.contextmanager
def collected(path: Path, template: Tensor) -> Iterator[Correspondences]:
    """`path` is written when the block ends without an error. template: the points `[P, 2]` that are followed, in its pixels."""
    try:
        with tempfile.TemporaryFile(dir=path.parent) as raw:
            found = Correspondences(template, raw)
            yield found
            found.write(path)
    except OSError as error:
        if error.filename is not None:
            raise
        raise write_error(path, error) from error


def _write_npz(file: IO[bytes], whole: Mapping[str, Any], shape: tuple[int, ...], pieces: Iterator[bytes]) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, array in whole.items():
            with archive.open(f"{name}.npy", "w") as member:
                numpy.lib.format.write_array(member, array)
        with archive.open("points.npy", "w", force_zip64=True) as member:
            header = {"descr": "<f4", "fortran_order": False, "shape": shape}
            numpy.lib.format.write_array_header_2_0(member, header)
            for piece in pieces:
                member.write(piece)


def _write_safetensors(file: IO[bytes], whole: Mapping[str, Any], shape: tuple[int, ...], pieces: Iterator[bytes]) -> None:
    """The format: eight bytes of the header's length, the header as JSON, then all values. Those of eight bytes come first."""
    entries: dict[str, Any] = {}
    arrays = sorted(whole.items(), key=lambda item: -item[1].itemsize)
    begin = 0
    for name, dtype, size, dimensions in [
        *((name, f"F{8 * array.itemsize}", array.nbytes, array.shape) for name, array in arrays),
        ("points", "F32", 4 * int(numpy.prod(shape)), shape),
    ]:
        entries[name] = {"dtype": dtype, "shape": list(dimensions), "data_offsets": [begin, begin + size]}
        begin += size
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % 8)
    file.write(len(header).to_bytes(8, "little") + header)
    for _, array in arrays:
        file.write(array.tobytes())
    for piece in pieces:
        file.write(piece)
