# SPDX-License-Identifier: Apache-2.0
"""How soon the studio answers: milliseconds for a picture that is edited, the first time and from then on, and for dragged points.

python tools/measure_studio.py
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from gangealing_fast.interface.pictures import Picture, examples
from gangealing_fast.interface.serving import PACKAGED
from gangealing_fast.interface.sessions import Workbenches
from gangealing_fast.storage.files import picture_bytes

ROUNDS = 5


def milliseconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return 1000 * (time.perf_counter() - began)


def main() -> None:
    """On one thread, with the package's aligner and digits, and an edit of 512 pixels a side."""
    torch.set_num_threads(1)
    bench = Workbenches().of(PACKAGED)
    edit = torch.zeros(1, 4, 512, 512)
    edit[:, [0, 3], 200:220, 150:360] = 1
    points = torch.tensor([[0.5, 0.5], [0.4, 0.4], [0.6, 0.3]])
    with tempfile.TemporaryDirectory() as folder:
        shown = examples(Path(folder))

        def edited() -> float:
            def one(picture: Picture) -> float:
                return milliseconds(lambda: picture_bytes(bench.edited(picture, {0: edit}, 1.0, "alpha"), file_format="jpeg"))

            return statistics.median(map(one, shown))

        print(f"a picture is edited for the first time: {edited():.0f} ms")
        print(f"and again: {statistics.median([edited() for _ in range(ROUNDS)]):.1f} ms")
        carried = [milliseconds(lambda: [bench.from_template(picture, points) for picture in shown]) for _ in range(ROUNDS)]
        print(f"three points are carried to {len(shown)} pictures: {statistics.median(carried):.1f} ms")


if __name__ == "__main__":
    main()
