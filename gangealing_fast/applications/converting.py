# SPDX-License-Identifier: Apache-2.0
"""What `python -m gangealing_fast.convert` does: read any supported checkpoint, write it as another file."""

from __future__ import annotations

from gangealing_fast.applications.aligner import Aligner
from gangealing_fast.applications.config import ConvertConfig
from gangealing_fast.checkpoints.download import fetch
from gangealing_fast.checkpoints.reading import read
from gangealing_fast.checkpoints.writing import write
from gangealing_fast.runtime.errors import UserError
from gangealing_fast.runtime.text import printable
from gangealing_fast.storage.claims import results_file, results_folder

COMMAND = "convert"
WRITES = r"(generator|aligner)\.safetensors|README\.md"


def run(config: ConvertConfig) -> None:
    """Convert a checkpoint. Raises UserError for a user's mistakes."""
    path = fetch(config.source, config.sha256)
    if config.to in ("onnx", "pt2") and config.out.suffix != f".{config.to}":
        raise UserError(f"--to {config.to} writes a file: give --out a name that ends in .{config.to}")
    parts = read(path)
    print(f"{printable(path)}: {parts.origin}, {' and '.join(parts.names())}")
    if config.to == "safetensors":
        with results_folder(config.out, COMMAND, config, WRITES, inputs=[("--source", path)]):
            written = write(parts, config.out, config.to, half=config.half)
    else:
        with results_file(config.out, COMMAND, config, overwrite=config.overwrite, inputs=[("--source", path)]):
            if config.to == "onnx" or config.to == "pt2":
                written = [Aligner.of(parts, path).export(config.out)]
            else:
                written = write(parts, config.out, config.to)
    for file in written:
        print(f"wrote {printable(file)} ({file.stat().st_size:,} bytes)")
