# SPDX-License-Identifier: Apache-2.0
"""Averages of many pictures, cluster by cluster, before and after they are aligned."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy
import torch
import torch.nn.functional as F
from torch import Tensor

from gangealing_fast.applications.aligner import Look
from gangealing_fast.report.pictures import save_grid
from gangealing_fast.storage.files import save_picture


class Averages:
    """Sums of the pictures of each cluster, before and after they are aligned."""

    def __init__(self) -> None:
        self.members: dict[int, int] = {}
        self._sums: dict[int, tuple[Tensor, Tensor]] = {}

    def add(self, images: Tensor, look: Look) -> None:
        """Count pictures `[N, 3, H, W]` in."""
        for k in look.cluster.unique().tolist():
            chosen = look.cluster == k
            before, after = self._sums.get(k, (torch.zeros(()), torch.zeros(())))
            self._sums[k] = (before + images[chosen].sum(0), after + look.alignment.image[chosen].sum(0))
            self.members[k] = self.members.get(k, 0) + int(chosen.sum())

    def content(self) -> dict[str, numpy.ndarray]:
        """The sums as arrays by name, for a file; `add_content` takes them."""
        sums = {f"sum-{k}": torch.stack(pair).cpu().numpy() for k, pair in self._sums.items()}
        return sums | {f"count-{k}": numpy.asarray(count) for k, count in self.members.items()}

    def add_content(self, content: Mapping[str, numpy.ndarray]) -> None:
        """Count what another object's `content` holds in."""
        for name in sorted(content):
            kind, _, number = name.partition("-")
            k = int(number)
            if kind == "count":
                self.members[k] = self.members.get(k, 0) + int(content[name])
            else:
                before, after = self._sums.get(k, (torch.zeros(()), torch.zeros(())))
                self._sums[k] = (before + torch.from_numpy(content[name][0]), after + torch.from_numpy(content[name][1]))

    def pairs(self, resolution: int) -> dict[int, tuple[Tensor, Tensor]]:
        """The averages `[3, R, R]` of each cluster's pictures, before and after."""
        pairs = {}
        for k in sorted(self._sums):
            before, after = (total / self.members[k] for total in self._sums[k])
            pairs[k] = (F.interpolate(before[None], size=(resolution, resolution), mode="bilinear")[0], after)
        return pairs

    def write(self, folder: Path, resolution: int) -> None:
        """average.png, a row of before and after for each cluster, and each cluster's template to draw on."""
        pairs = self.pairs(resolution)
        for k, (_, after) in pairs.items():
            save_picture(folder / ("template.png" if len(pairs) == 1 else f"template-{k}.png"), after.clamp(-1, 1))
        averages = torch.stack([picture for pair in pairs.values() for picture in pair])
        save_grid(averages.clamp(-1, 1), folder / "average.png", columns=2)
