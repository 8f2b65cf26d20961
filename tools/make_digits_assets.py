# SPDX-License-Identifier: Apache-2.0
"""Make gangealing_fast/assets/digits/heldout.npz from MNIST's original test files.

python tools/make_digits_assets.py FOLDER_WITH_MNIST
"""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import numpy

from gangealing_fast.data.mnist import find_images, read_images
from gangealing_fast.runtime.commands import run_command
from gangealing_fast.storage.files import write_bytes

CLASSES = (3, 4, 7)
EACH = 300
ATTRIBUTION = (
    "MNIST test set (t10k), Yann LeCun, Corinna Cortes and Christopher J.C. Burges, derived from NIST's Special "
    "Databases 1 and 3; distributed under CC BY-SA 3.0"
)
TARGET = Path(__file__).resolve().parent.parent / "gangealing_fast" / "assets" / "digits" / "heldout.npz"


def main() -> None:
    """Take 300 evenly spaced images of each class, unchanged, with their positions in the file."""
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    source = find_images(sys.argv[1], "t10k")
    images, labels, ids = [], [], []
    for digit in CLASSES:
        found, positions = read_images(source, labels=(digit,))
        # The test file's two halves come from different writers: even spacing takes both.
        chosen = numpy.linspace(0, len(found) - 1, EACH).round().astype(int)
        images.append(found[chosen])
        ids.append(positions[chosen])
        labels.append(numpy.full(EACH, digit))
    buffer = io.BytesIO()
    numpy.savez_compressed(
        buffer,
        images=numpy.concatenate(images),
        labels=numpy.concatenate(labels).astype(numpy.uint8),
        ids=numpy.concatenate(ids).astype(numpy.int32),
        about=numpy.array(json.dumps({"attribution": ATTRIBUTION, "source": source.name})),
    )
    write_bytes(TARGET, buffer.getvalue())
    print(f"{TARGET}: {len(CLASSES) * EACH} digits, {len(buffer.getvalue())} bytes")


if __name__ == "__main__":
    run_command(main)
