# SPDX-License-Identifier: Apache-2.0
"""Measures joint alignment by features on pictures with known key points, and prints a table.

    python tools/measure_congealing.py --tar faces128.tar --counts 30 --seeds 11 12 13

The tar holds pictures `NAME/00000.jpg` ... of one size and `NAME/keypoints.npy` `[N, K, 2]`. A set is the first of a random
order of the seed. Warped pictures are turned by up to 30 degrees, scaled by 0.7 to 1.2 and shifted by up to 15 % of the side.
PCK: of all ordered pairs of pictures and all key points, the share carried to within 0.05, 0.1 and 0.15 of the longer side of
the target's box of key points.
"""

from __future__ import annotations

import argparse
import cProfile
import io
import math
import pstats
import resource
import tarfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from gangealing_fast.congealing import FeatureCongealed, Registered, congeal, register
from gangealing_fast.congealing.newcomers import joined_places

SHARES = (0.05, 0.1, 0.15)
PARTS = (
    "congeal",
    "features",
    "efficientnet_features",
    "mutual_matches",
    "pictures",
    "sample_similarities",
    "search",
    "fit",
    "apply",
)
LARGEST_TURN, SMALLEST, LARGEST, LARGEST_SHIFT = math.radians(30), 0.7, 1.2, 0.15


class Example(NamedTuple):
    """Pictures `[n, 3, S, S]` and masks `[n, 1, S, S]` in [-1, 1], and key points `[n, K, 2]` in pixels."""

    pictures: Tensor
    masks: Tensor
    points: Tensor


def draw(path: Path, seed: int, count: int, warped: bool) -> Example:
    """A set of pictures of the tar."""
    source = torch.Generator().manual_seed(seed)
    with tarfile.open(path) as archive:
        names = sorted(name for name in archive.getnames() if name.endswith((".jpg", ".png")))
        points = numpy.load(io.BytesIO(_content(archive, next(n for n in archive.getnames() if n.endswith("keypoints.npy")))))
        rows = torch.randperm(len(names), generator=source)[:count].tolist()
        decoded = [numpy.array(Image.open(io.BytesIO(_content(archive, names[row]))).convert("RGB")) for row in rows]
    pictures = torch.stack([torch.from_numpy(picture).permute(2, 0, 1) for picture in decoded]).float() / 127.5 - 1
    example = Example(pictures, torch.ones_like(pictures[:, :1]), torch.from_numpy(points[rows]).double())
    return _pose(example, source) if warped else example


def _content(archive: tarfile.TarFile, name: str) -> bytes:
    file = archive.extractfile(name)
    assert file is not None
    return file.read()


def _pose(example: Example, source: torch.Generator) -> Example:
    count, size = len(example.pictures), example.pictures.shape[-1]
    turn, scale = ((torch.rand(count, generator=source)) for _ in range(2))
    turn, scale = (turn * 2 - 1) * LARGEST_TURN, SMALLEST * (LARGEST / SMALLEST) ** scale
    matrix = torch.zeros(count, 3, 3)
    matrix[:, 0, 0] = matrix[:, 1, 1] = scale * turn.cos()
    matrix[:, 1, 0] = scale * turn.sin()
    matrix[:, 0, 1] = -matrix[:, 1, 0]
    matrix[:, :2, 2] = (torch.rand(count, 2, generator=source) * 2 - 1) * 2 * LARGEST_SHIFT
    matrix[:, 2, 2] = 1
    grid = F.affine_grid(torch.linalg.inv(matrix)[:, :2], [count, 3, size, size], align_corners=False)
    seen = F.grid_sample(example.pictures, grid, align_corners=False)
    inside = F.grid_sample(torch.ones(count, 1, size, size), grid, align_corners=False)
    places = (example.points + 0.5) * 2 / size - 1
    moved = places @ matrix[:, :2, :2].double().mT + matrix[:, None, :2, 2].double()
    return Example(seen, inside * 2 - 1, (moved + 1) * size / 2 - 0.5)


def _flow_at(found: Registered, points: Tensor, side: int) -> Tensor:
    at = (points + 0.5) * 2 / side - 1
    read = F.grid_sample(found.flow.double().permute(0, 3, 1, 2), at[:, None], padding_mode="border", align_corners=False)
    return read[:, :, 0].mT


def _carry(matrix: Tensor, points: Tensor) -> Tensor:
    moved = points @ matrix[:, :2, :2].mT + matrix[:, None, :2, 2]
    return moved / (points @ matrix[:, 2, :2, None] + matrix[:, 2, 2, None, None])


def pck(found: Registered, points: Tensor, side: int, others: int = 0) -> list[float]:
    """Percentages at `SHARES`. points `[n, K, 2]` in pixels; side: of the template.

    others: then only pairs count that one of the last `others` makes with one of those before, both ways.
    """
    straight = _carry(found.matrix, points)
    there = straight.clone()
    for _ in range(30):
        there = (there + straight - _flow_at(found, there, side)) / 2
    box = (points.amax(1) - points.amin(1)).amax(1)
    back, hits = torch.linalg.inv(found.matrix), torch.zeros(len(SHARES))
    last = torch.arange(len(points)) >= len(points) - others
    pairs = 0
    for row in range(len(points)):
        own = there[row : row + 1].expand(len(points), -1, -1)
        distance = (_carry(back, own + _flow_at(found, own, side)) - points).norm(dim=-1) / box[:, None]
        counts = last != last[row] if others else torch.arange(len(points)) != row
        hits += torch.stack([(distance[counts] <= share).float().mean(1).sum() for share in SHARES])
        pairs += int(counts.sum())
    return (hits / pairs * 100).tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description="Measures joint alignment by features on pictures with key points.")
    parser.add_argument("--tar", type=Path, required=True)
    parser.add_argument("--counts", type=int, nargs="+", default=[30])
    parser.add_argument("--seeds", type=int, nargs="+", default=[11, 12, 13])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--kinds", choices=("as-they-are", "warped"), nargs="+", default=("as-they-are", "warped"))
    parser.add_argument("--profile", action="store_true", help="print which parts of the work take how much processor time")
    parser.add_argument("--within", type=int, default=0, help="judge the first so many pictures of each set by themselves too")
    parser.add_argument(
        "--new", type=int, default=0, help="register so many further pictures to the template, and align them as members too"
    )
    options = parser.parse_args()
    if not options.tar.is_file():
        parser.exit(0, f"{options.tar} is not on this machine: nothing was measured.\n")
    torch.set_num_threads(options.threads)
    print("count | seed | pictures | PCK 0.05 / 0.1 / 0.15 | seconds | of processors | mirrored | left out", flush=True)
    for count in options.counts:
        for seed in options.seeds:
            for kind in options.kinds:
                example = draw(options.tar, seed, count + options.new, kind == "warped")
                _row(example, count, seed, kind, profile=options.profile, within=options.within)
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


def profiled(images: Tensor, masks: Tensor) -> FeatureCongealed:
    """Congeal, and print the processor seconds of `PARTS` of the room, with what they call."""
    profile = cProfile.Profile(time.process_time)
    found = profile.runcall(congeal, images, masks=masks)
    rows: dict[tuple[str, int, str], tuple[int, int, float, float, object]] = vars(pstats.Stats(profile))["stats"]
    for (file, _, name), (_, calls, _, seconds, _) in sorted(rows.items(), key=lambda row: -row[1][3]):
        if Path(file).parent.name == "congealing" and name in PARTS:
            print(f"  {Path(file).stem}.{name}: {seconds:.2f} s of the processor in {calls} calls", flush=True)
    return found


def _row(example: Example, count: int, seed: int, kind: str, *, profile: bool, within: int) -> None:
    images, masks = example.pictures[:count], example.masks[:count]
    begin, used = time.perf_counter(), time.process_time()
    found = profiled(images, masks) if profile else congeal(images, masks=masks)
    seconds = f"{time.perf_counter() - begin:.1f} | {time.process_time() - used:.1f}"
    side = found.templates.side
    figures = " / ".join(f"{value:.1f}" for value in pck(found, example.points[:count], side))
    left = f"{int(found.mirrored.sum())} | {int(found.outlier.sum())}"
    print(f"{count} | {seed} | {kind} | {figures} | {seconds} | {left}", flush=True)
    if within:
        first = Registered(*(getattr(found, name)[:within] for name in Registered.__dataclass_fields__))
        figures = " / ".join(f"{value:.1f}" for value in pck(first, example.points[:within], side))
        print(f"first {within} of {count} | {seed} | {kind} | {figures} | | | |", flush=True)
    if len(example.pictures) > count:
        begin = time.perf_counter()
        new = register(example.pictures[count:], found.templates, masks=example.masks[count:])
        others = len(example.pictures) - count
        each = (time.perf_counter() - begin) / others
        figures = " / ".join(f"{value:.1f}" for value in pck(joined_places([found, new]), example.points, side, others))
        print(f"{others} new, with the {count} | {seed} | {kind} | {figures} | {each:.2f} a picture |", flush=True)
        together = congeal(example.pictures, masks=example.masks)
        figures = " / ".join(f"{value:.1f}" for value in pck(together, example.points, side, others))
        print(f"the same as members | {seed} | {kind} | {figures} | |", flush=True)


if __name__ == "__main__":
    main()
