# SPDX-License-Identifier: Apache-2.0
"""What `python -m gangealing_fast.convert` does: read any supported checkpoint, write it as another file."""

from __future__ import annotations

from gangealing_fast.applications.aligner import Aligner
from gangealing_fast.applications.config import ConvertConfig
from gangealing_fast.checkpoints.download import fetch
from gangealing_fast.checkpoints.reading import read
from gangealing_fast.checkpoints.writing import refusals, write
from gangealing_fast.runtime.errors import UserError


def run(config: ConvertConfig) -> None:
    """Convert a checkpoint. Raises UserError for a user's mistakes."""
    path = fetch(config.source, config.sha256)
    parts = read(path)
    print(f"{path}: {parts.origin}, {' and '.join(parts.names())}")
    parts.settle(path, padding_mode=config.padding_mode, iters=config.iters)
    if config.to == "onnx" or config.to == "pt2":
        if config.out.suffix != f".{config.to}":
            raise UserError(f"--to {config.to} writes a file: give --out a name that ends in .{config.to}")
        try:
            aligner = Aligner.of(parts, path, cluster=config.cluster)
        except ValueError as error:
            raise UserError(f"{path}: {error}") from None
        written = [aligner.export(config.out)]
    else:
        if config.cluster is not None:
            raise UserError(f"--cluster belongs to --to onnx and pt2: a file of --to {config.to} holds all clusters")
        for sentence in refusals(parts, config.to):
            print(f"notice: {sentence}")
        written = write(parts, config.out, config.to, half=config.half)
    for file in written:
        print(f"wrote {file} ({file.stat().st_size:,} bytes)")
