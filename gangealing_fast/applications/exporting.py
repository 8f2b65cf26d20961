# SPDX-License-Identifier: Apache-2.0
"""An aligner as one file that runs without this package: a program of torch.export, or ONNX.

Both hold the operators' plain definitions, so that any runtime knows them, and take any number of pictures.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from gangealing_fast import ops
from gangealing_fast.geometry.warps import mirror_grid, mirror_pictures
from gangealing_fast.runtime.errors import UserError
from gangealing_fast.storage.files import atomic_write, write_bytes

if TYPE_CHECKING:
    from gangealing_fast.applications.aligner import Aligner

INPUT, OUTPUTS = "images", ("aligned", "grid")


class _Whole(nn.Module):
    """Everything that `Aligner.warp` does, as one module without choices that depend on the pictures."""

    def __init__(self, aligner: Aligner, output_resolution: int | None) -> None:
        super().__init__()
        self.transformer, self.classifier = aligner.transformer, aligner.classifier
        self.options = {"padding_mode": aligner.padding_mode, "iters": aligner.iters, "output_resolution": output_resolution}

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        if self.classifier is None:
            record = self.transformer(images, **self.options)
            return record.image, record.grid
        cluster, mirrored = self.classifier.assign(images)
        record = self.transformer(mirror_pictures(images, mirrored), assignment=cluster, **self.options)
        return record.image, mirror_grid(record.grid, mirrored)


def program(aligner: Aligner, *, side: int | None = None, output_resolution: int | None = None) -> torch.export.ExportedProgram:
    """`aligner` as a program from pictures `[N, 3, side, side]` to (aligned `[N, 3, R, R]`, grid `[N, R, R, 2]`) for any N.

    side: that of the pictures, what the aligner was trained for where None. Raises UserError where pictures would have to be
    aligned without knowing their cluster, or by the smoother of two flows.
    """
    if aligner.flips:
        raise UserError("an aligner that compares flows (flips=True) cannot be exported; train with --flips and classify instead")
    aligner.check_classifier()
    side = side or aligner.transformer.input_size
    # Of one picture, export would take the number for a constant.
    example = torch.zeros(2, 3, side, side, device=next(aligner.transformer.parameters()).device)
    with ops.reference(), torch.no_grad():
        module = _Whole(aligner, output_resolution).eval()
        return torch.export.export(module, (example,), dynamic_shapes={INPUT: {0: torch.export.Dim("batch")}})


def export(aligner: Aligner, path: Path, *, side: int | None = None, output_resolution: int | None = None) -> Path:
    """Write `program(aligner)` to a file NAME.onnx or NAME.pt2 (torch.export), as its ending says; returns the path.

    Raises UserError for another ending, where packages for ONNX are missing, or where the file cannot be written.
    """
    if path.suffix not in (".onnx", ".pt2"):
        raise UserError(f"cannot export to {path}: its name must end in .onnx or .pt2")
    if path.suffix == ".onnx":
        missing = [package for package in ("onnx", "onnxscript") if importlib.util.find_spec(package) is None]
        if missing:
            raise UserError(f"ONNX files need the package {missing[0]}, which is not installed: pip install gangealing_fast[onnx]")
    made = program(aligner, side=side, output_resolution=output_resolution)
    if path.suffix == ".pt2":
        with atomic_write(path) as file:
            torch.export.save(made, file)
        return path
    # The optimiser of onnxscript takes minutes here and saves nothing: runtimes have their own.
    found = torch.onnx.export(made, dynamo=True, optimize=False, input_names=[INPUT], output_names=list(OUTPUTS), verbose=False)
    write_bytes(path, found.model_proto.SerializeToString())
    return path
