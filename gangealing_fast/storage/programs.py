# SPDX-License-Identifier: Apache-2.0
"""Networks as files that run without this package: programs of torch.export (.pt2), or ONNX."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import torch

from gangealing_fast.runtime.errors import UserError
from gangealing_fast.storage.files import atomic_write, write_bytes


def check_ending(path: Path) -> None:
    """Raise UserError if a program cannot be written to `path`: for another ending, or if packages for ONNX are missing."""
    if path.suffix not in (".onnx", ".pt2"):
        raise UserError(f"cannot export to {path}: its name must end in .onnx or .pt2")
    if path.suffix == ".onnx":
        missing = [package for package in ("onnx", "onnxscript") if importlib.util.find_spec(package) is None]
        if missing:
            raise UserError(f"ONNX files need the package {missing[0]}, which is not installed: pip install gangealing_fast[onnx]")


def write_program(made: torch.export.ExportedProgram, path: Path, inputs: Sequence[str], outputs: Sequence[str]) -> Path:
    """Write a program to a file NAME.onnx or NAME.pt2 (torch.export), as its ending says; returns the path.

    inputs, outputs: their names in ONNX. Raises UserError as `check_ending`, or if the file cannot be written.
    """
    check_ending(path)
    if path.suffix == ".pt2":
        with atomic_write(path) as file:
            torch.export.save(made, file)
        return path
    # The optimiser of onnxscript takes minutes here and saves nothing: runtimes have their own.
    found = torch.onnx.export(
        made, dynamo=True, optimize=False, input_names=list(inputs), output_names=list(outputs), verbose=False
    )
    assert found is not None  # as dynamo=True promises
    write_bytes(path, found.model_proto.SerializeToString())
    return path
