# SPDX-License-Identifier: Apache-2.0
"""An aligner as one file that runs without this package: a program of torch.export, or ONNX.

Both hold the operators' plain definitions, so that any runtime knows them, and take any number of pictures.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from gangealing_fast import ops
from gangealing_fast.geometry.warping import Warping
from gangealing_fast.geometry.warps import mirror_grid, mirror_pictures
from gangealing_fast.models.cluster_classifier import ClusterClassifier
from gangealing_fast.models.spatial_transformer import SpatialTransformer
from gangealing_fast.storage.programs import check_ending as check_ending
from gangealing_fast.storage.programs import write_program

INPUT, OUTPUTS = "images", ("aligned", "grid")


class _Whole(nn.Module):
    """Everything that `Aligner.warp` does, as one module without choices that depend on the pictures."""

    def __init__(
        self,
        transformer: SpatialTransformer,
        classifier: ClusterClassifier | None,
        warping: Warping,
        output_resolution: int | None,
        cluster: int | None,
    ) -> None:
        super().__init__()
        self.transformer, self.classifier, self.cluster = transformer, classifier, cluster
        self.warping, self.output_resolution = warping, output_resolution

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        cluster = mirrored = None
        if self.classifier is not None:
            cluster, mirrored = self.classifier.assign(images, self.cluster)
            images = mirror_pictures(images, mirrored)
        elif self.cluster is not None:
            cluster = torch.full((images.shape[0],), self.cluster, device=images.device)
        record = self.transformer(images, warping=self.warping, output_resolution=self.output_resolution, assignment=cluster)
        return record.image, record.grid if mirrored is None else mirror_grid(record.grid, mirrored)


def program(
    transformer: SpatialTransformer,
    classifier: ClusterClassifier | None,
    warping: Warping,
    *,
    side: int | None = None,
    output_resolution: int | None = None,
    cluster: int | None = None,
) -> torch.export.ExportedProgram:
    """An aligner as a program from pictures `[N, 3, side, side]` to (aligned `[N, 3, R, R]`, grid `[N, R, R, 2]`) for any N.

    side: that of the pictures; what the transformer was trained for if None. R: output_resolution, the transformer's own if None.
    cluster: the one that all pictures are taken for; None for what the classifier says.
    """
    # Of one picture, export would take the number for a constant.
    side = side or transformer.input_size
    example = torch.zeros(2, 3, side, side, device=next(transformer.parameters()).device)
    with ops.reference(), torch.no_grad():
        module = _Whole(transformer, classifier, warping, output_resolution, cluster).eval()
        return torch.export.export(module, (example,), dynamic_shapes={INPUT: {0: torch.export.Dim("batch")}})


def export(made: torch.export.ExportedProgram, path: Path) -> Path:
    """Write a `program` to a file NAME.onnx or NAME.pt2 (torch.export), as its ending says; returns the path.

    Raises UserError as `check_ending`, or if the file cannot be written.
    """
    return write_program(made, path, [INPUT], OUTPUTS)
