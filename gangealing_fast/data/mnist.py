# SPDX-License-Identifier: Apache-2.0
"""IDX files, the format of MNIST (http://yann.lecun.com/exdb/mnist/): unsigned bytes, plain or gzipped."""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy

from gangealing_fast.runtime.errors import UserError
from gangealing_fast.storage.files import read_bytes

_GZIP = b"\x1f\x8b"


def is_idx_name(path: str | os.PathLike[str]) -> bool:
    """Whether a file name says IDX: it contains `idx1` or `idx3`, or ends in `.idx` (a `.gz` behind it allowed)."""
    name = Path(path).name.lower().removesuffix(".gz")
    return "idx1" in name or "idx3" in name or name.endswith(".idx")


def read_idx(path: str | os.PathLike[str], *, dimensions: int | None = None) -> numpy.ndarray:
    """The uint8 array of an IDX file: images `[N, H, W]` or labels `[N]`.

    Args:
        path: the file, gzipped or not (told by its content, not by its name).
        dimensions: 3 demands images, 1 labels; None takes either.

    Raises:
        UserError: missing, truncated, damaged, not IDX, or of another rank than asked for.
    """
    content = read_bytes(path)
    if content.startswith(_GZIP):
        try:
            content = gzip.decompress(content)
        except (EOFError, OSError, zlib.error) as error:
            raise UserError(f"the gzip file {path} is truncated or damaged; download it again") from error
    if len(content) < 4 or content[:2] != b"\0\0" or content[3] not in (1, 2, 3, 4):
        raise UserError(f"{path} is not an IDX file; give MNIST's images file, for example train-images-idx3-ubyte.gz")
    if content[2] != 0x08:
        raise UserError(f"{path} holds numbers of IDX type 0x{content[2]:02x}; only unsigned bytes (0x08) are read")
    rank = content[3]
    if dimensions is not None and rank != dimensions:
        wanted = {1: "labels (idx1)", 3: "images (idx3)"}.get(dimensions, f"{dimensions} dimensions")
        raise UserError(f"{path} holds an array of {rank} dimensions, but {wanted} are needed; give the other file of the pair")
    header = 4 + 4 * rank
    if len(content) < header:
        raise UserError(f"the IDX file {path} is truncated in its header; download it again")
    shape = tuple(int(n) for n in numpy.frombuffer(content, ">u4", rank, 4))
    expected = int(numpy.prod(shape, dtype=numpy.uint64))
    if len(content) - header != expected:
        raise UserError(
            f"the IDX file {path} should hold {expected} bytes of data but holds {len(content) - header}; download it again"
        )
    return numpy.frombuffer(content, numpy.uint8, expected, header).reshape(shape).copy()


def labels_path(images: str | os.PathLike[str]) -> Path:
    """The labels file beside an images file, gzipped or not.

    Raises:
        UserError: there is none.
    """
    images = Path(images)
    stem = images.name.removesuffix(".gz").replace("images", "labels").replace("idx3", "idx1")
    for name in (stem, stem + ".gz"):
        if name != images.name and (images.parent / name).is_file():
            return images.parent / name
    raise UserError(f"the labels of {images} are missing: put {stem} or {stem}.gz beside it")


def find_images(folder: str | os.PathLike[str], part: str = "train") -> Path:
    """MNIST's images file in a folder: `part` is "train" or "t10k"; `-idx3` and `.idx3` spellings, gzipped or not.

    Raises:
        UserError: there is none.
    """
    for name in (f"{part}-images-idx3-ubyte", f"{part}-images.idx3-ubyte"):
        for ending in (".gz", ""):
            if (Path(folder) / (name + ending)).is_file():
                return Path(folder) / (name + ending)
    raise UserError(f"there is no {part}-images-idx3-ubyte.gz in {folder}; give the folder with MNIST's original files")


def read_images(path: str | os.PathLike[str], *, labels: Sequence[int] | None = None) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Images and where they are in the file.

    Args:
        path: an images file; with `labels`, its labels file must lie beside it.
        labels: keep only these classes; None keeps all and needs no labels file.

    Returns:
        `(images [M, H, W] uint8, positions [M] int64)`.

    Raises:
        UserError: as in `read_idx`; also where the two files differ in length or a class does not occur.
    """
    images = read_idx(path, dimensions=3)
    if labels is None:
        return images, numpy.arange(len(images))
    beside = labels_path(path)
    found = read_idx(beside, dimensions=1)
    if len(found) != len(images):
        raise UserError(f"{path} holds {len(images)} images but {beside} {len(found)} labels; they do not belong together")
    absent = sorted(set(labels) - set(found.tolist()))
    if absent:
        raise UserError(f"{beside} has no image of class {absent[0]}; its classes are {sorted(set(found.tolist()))}")
    positions = numpy.flatnonzero(numpy.isin(found, list(labels)))
    return images[positions], positions
