# SPDX-License-Identifier: Apache-2.0
"""`python -m gangealing_fast.convert`: checkpoints of other projects into this package's files, and back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gangealing_fast.commands import parse, run_command


@dataclass(frozen=True)
class ConvertConfig:
    """Convert a checkpoint. Nothing in it is executed."""

    source: str
    """The original's .pt, rosinality's StyleGAN2 .pt, NVIDIA's .pkl, a file or folder of this package, or a https address."""
    out: Path
    """A folder (--to safetensors: generator.safetensors, aligner.safetensors, README.md) or a file NAME.pt, NAME.onnx, NAME.pt2."""
    to: Literal["safetensors", "rosinality", "original", "onnx", "pt2"] = "safetensors"
    """onnx, pt2 (torch.export): the aligner as a program that runs without this package, for any number of pictures."""
    half: bool = False
    """Store safetensors in half precision."""
    sha256: str | None = None
    """The file's checksum; required for an address, checked for a file too."""


def main() -> None:
    config = parse(ConvertConfig, {}, __doc__)

    def command() -> None:
        from gangealing_fast.alignment.aligner import Aligner
        from gangealing_fast.errors import UserError
        from gangealing_fast.foreign.download import fetch
        from gangealing_fast.foreign.reading import read
        from gangealing_fast.foreign.writing import write

        path = fetch(config.source, config.sha256)
        parts = read(path)
        print(f"{path}: {parts.origin}, {' and '.join(parts.names())}")
        if config.to in ("onnx", "pt2"):
            if config.out.suffix != f".{config.to}":
                raise UserError(f"--to {config.to} writes a file: give --out a name that ends in .{config.to}")
            written = [Aligner.of(parts, path).export(config.out)]
        else:
            written = write(parts, config.out, config.to, half=config.half)
        for file in written:
            print(f"wrote {file} ({file.stat().st_size:,} bytes)")

    run_command(command)


if __name__ == "__main__":
    main()
