# SPDX-License-Identifier: Apache-2.0
"""`python -m gangealing_fast.align`: align real pictures with what `train` has learned."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gangealing_fast.commands import parse, run_command


@dataclass(frozen=True)
class AlignConfig:
    """Align every picture of a folder, tar or MNIST file."""

    checkpoint: Path
    """Results folder of `train`, or its aligner.safetensors."""
    data: Path
    """The pictures; non-square ones are cropped to their centre."""
    out: Path
    """Folder for the aligned pictures, their average before and after, and warps.jsonl."""
    size: int = 0
    """Side of the pictures as read; 0 takes the size the aligner was trained for."""
    resolution: int = 0
    """Side of the aligned pictures; 0 takes the transformer's own."""
    limit: int | None = None
    """Only the first so many pictures."""
    batch: int = 64
    threads: int = 0


def main() -> None:
    config = parse(AlignConfig, {}, __doc__)

    def command() -> None:
        from gangealing_fast.alignment.aligning import run

        run(config)

    run_command(command)


if __name__ == "__main__":
    main()
