# SPDX-License-Identifier: Apache-2.0
"""What `python -m gangealing_fast.convert` does: read any supported checkpoint, write it as another file."""

from __future__ import annotations

from pathlib import Path

from gangealing_fast.applications.aligner import Aligner
from gangealing_fast.applications.config import ConvertConfig
from gangealing_fast.checkpoints.download import fetch
from gangealing_fast.checkpoints.reading import Parts, read
from gangealing_fast.checkpoints.writing import refusals, write
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
    if config.to not in ("onnx", "pt2") and config.cluster is not None:
        raise UserError(f"--cluster belongs to --to onnx and pt2: a file of --to {config.to} holds all clusters")
    parts = read(path)
    print(f"{printable(path)}: {parts.origin}, {' and '.join(parts.names())}")
    parts.settle(path, padding_mode=config.padding_mode, iters=config.iters)
    if config.to == "safetensors":
        with results_folder(config.out, COMMAND, config, WRITES, inputs=[("--source", path)]) as folder:
            written = _convert(config, parts, path, folder)
        written = [config.out / file.name for file in written]
    else:
        with results_file(config.out, COMMAND, config, overwrite=config.overwrite, inputs=[("--source", path)]):
            written = _convert(config, parts, path, config.out)
    for file in written:
        print(f"wrote {printable(file)} ({file.stat().st_size:,} bytes)")


def _convert(config: ConvertConfig, parts: Parts, path: Path, out: Path) -> list[Path]:
    if config.to == "onnx" or config.to == "pt2":
        try:
            aligner = Aligner.of(parts, path, cluster=config.cluster)
        except ValueError as error:
            raise UserError(f"{path}: {error}") from None
        return [aligner.export(out)]
    for sentence in refusals(parts, config.to):
        print(f"notice: {sentence}")
    return write(parts, out, config.to, half=config.half)
