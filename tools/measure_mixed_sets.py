# SPDX-License-Identifier: Apache-2.0
"""Joint alignment of sets that are not of one kind: strangers among faces, two kinds, and digits of which half are mirrored.

    python tools/measure_mixed_sets.py strangers --faces faces128.tar --cats cats64.tar --seeds 1 11
    python tools/measure_mixed_sets.py kinds --faces faces128.tar --cats cats64.tar --seeds 1
    python tools/measure_mixed_sets.py mirrored --mnist FOLDER --classes 7 2 4
    python tools/measure_mixed_sets.py turned --faces faces128.tar --seeds 3 4

strangers: 40 faces and 10 cats; the area under the curve of confidence, who is left out, PCK of the faces with and without cats.
kinds: 30 of each, in which cluster they are, and PCK of the faces with and without cats. mirrored: 30 digits of a class, and how
many are told right, by `--flips auto` with half of them mirrored and with none, and by `--flips yes`. turned: 30 faces that look to
one side, with half of them, a tenth and none mirrored; how many `--flips auto` tells right, and PCK. Those that look the least to
one side among all, and cats with --cats, are symmetrical: there none should be mirrored.
"""

from __future__ import annotations

import argparse
import io
import tarfile
from pathlib import Path
from typing import Literal

import numpy
import torch
import torch.nn.functional as F
from measure_congealing import Example, draw, pck
from PIL import Image
from torch import Tensor

from gangealing_fast.congealing import FeatureCongealed, Registered, congeal
from gangealing_fast.data.keypoints.mirrors import read_mirror
from gangealing_fast.data.mnist import find_images, read_images
from gangealing_fast.geometry.points import mirror_points
from gangealing_fast.geometry.warps import mirror_pictures


def cats(path: Path, seed: int, count: int) -> Tensor:
    """`[count, 3, 128, 128]` in [-1, 1]: pictures of the tar, enlarged."""
    with tarfile.open(path) as archive:
        names = sorted(name for name in archive.getnames() if name.endswith(".png"))
        rows = torch.randperm(len(names), generator=torch.Generator().manual_seed(1000 + seed))[:count].tolist()
        found = []
        for row in rows:
            file = archive.extractfile(names[row])
            assert file is not None
            picture = Image.open(io.BytesIO(file.read())).convert("RGB").resize((128, 128), Image.Resampling.BICUBIC)
            found.append(torch.from_numpy(numpy.array(picture)).permute(2, 0, 1))
    return torch.stack(found).float() / 127.5 - 1


def mixed(options: argparse.Namespace, seed: int, faces: int, others: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Faces and cats in a random order, which of them are cats, where the faces are, and the faces' key points."""
    example = draw(options.faces, seed, faces, False)
    order = torch.randperm(faces + others, generator=torch.Generator().manual_seed(seed))
    pictures = torch.cat([example.pictures, cats(options.cats, seed, others)])[order]
    return pictures, order >= faces, order.argsort()[:faces], example.points


def strangers(options: argparse.Namespace) -> None:
    for seed in options.seeds:
        pictures, stranger, faces, points = mixed(options, seed, 40, 10)
        found = congeal(pictures)
        low, high = found.confidence[stranger], found.confidence[~stranger]
        area = float(((low[:, None] < high).float() + 0.5 * (low[:, None] == high).float()).mean())
        with_cats, without = _of_faces(found, pictures, faces, points)
        left = [int((found.outlier & which).sum()) for which in (stranger, ~stranger)]
        print(f"seed {seed}: area {area:.3f}; left out {left[0]} cats, {left[1]} faces; ", end="")
        print(f"faces within 0.1 {with_cats[1]:.1f}, without cats {without[1]:.1f}", flush=True)


def _of_faces(found: FeatureCongealed, pictures: Tensor, faces: Tensor, points: Tensor) -> list[list[float]]:
    """`pck` of the faces as they were found, and of the same faces as a set of their own."""
    kept = Registered(*(getattr(found, name)[faces] for name in ("matrix", "flow", "mirrored", "cluster", "confidence")))
    return [pck(one, points, found.templates.side) for one in (kept, congeal(pictures[faces]))]


def kinds(options: argparse.Namespace) -> None:
    for seed in options.seeds:
        pictures, cat, faces, points = mixed(options, seed, 30, 30)
        found = congeal(pictures)
        for number in range(int(found.cluster.max()) + 1):
            counts = [int(((found.cluster == number) & which & ~found.outlier).sum()) for which in (~cat, cat)]
            print(f"seed {seed}, cluster {number}: {counts[0]} faces, {counts[1]} cats", flush=True)
        together, alone = _of_faces(found, pictures, faces, points)
        print(f"seed {seed}: faces within 0.1 {together[1]:.1f}, without cats {alone[1]:.1f}", flush=True)


def some_of_30(count: int) -> Tensor:
    """`[30]`, bool: true for `count` of them."""
    chosen = torch.randperm(30, generator=torch.Generator().manual_seed(5))[:count]
    return torch.zeros(30, dtype=torch.bool).index_fill(0, chosen, True)


def mirrored(options: argparse.Namespace) -> None:
    images = find_images(options.mnist)
    tried: tuple[tuple[bool, bool | Literal["auto"]], ...] = ((True, "auto"), (False, "auto"), (True, True))
    for digit in options.classes:
        grey = torch.from_numpy(read_images(images, labels=[digit])[0][:30].copy()).float() / 127.5 - 1
        pictures = F.interpolate(grey[:, None].expand(-1, 3, -1, -1), size=(112, 112), mode="bicubic").clamp(-1, 1)
        for half, flips in tried:
            true = some_of_30(15 * half)
            same = int((congeal(mirror_pictures(pictures, true), flips=flips, clusters=1).mirrored == true).sum())
            right = max(same, 30 - same) if half else same
            print(f"digit {digit}, {'half' if half else 'none'} mirrored, flips {flips}: {right} of 30 right", flush=True)


TURNED = {"much": (0, 300), "slightly": (300, 1000), "hardly": (2000, 3000)}
"""Ranks among all faces by how far the nose lies from the middle of the jaw."""


def to_one_side(every: Example, seed: int, ranks: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """30 faces that look to one side, those of the other side as their mirror images, and their key points."""
    source = torch.Generator().manual_seed(seed)
    nose, ends = every.points[:, 30, 0], every.points[:, [0, 16], 0]
    turn = (nose - ends.mean(1)) / (ends[:, 1] - ends[:, 0])
    low, high = ranks
    rows = turn.abs().argsort(descending=True)[low:high][torch.randperm(high - low, generator=source)[:30]]
    pictures, points, other = every.pictures[rows], every.points[rows], turn[rows] < 0
    permuted = mirror_points(points[:, read_mirror("faces68", 68)], torch.ones(30, dtype=torch.bool), 128)
    return mirror_pictures(pictures, other), torch.where(other[:, None, None], permuted, points)


def turned(options: argparse.Namespace) -> None:
    every = draw(options.faces, 0, 3000, False)
    for seed in options.seeds:
        for name, ranks in TURNED.items():
            pictures, points = to_one_side(every, seed, ranks)
            _tell(f"seed {seed}, {name} turned", pictures, points)
        if options.cats is not None:
            _tell(f"seed {seed}, cats", cats(options.cats, seed, 30), None)


def _tell(name: str, pictures: Tensor, points: Tensor | None) -> None:
    """What is mirrored of a set with half, a tenth and none of the pictures mirrored, and PCK where there are points."""
    for mirrored in (15, 3, 0):
        true = some_of_30(mirrored)
        found = congeal(mirror_pictures(pictures, true), clusters=1)
        same = int((found.mirrored == true).sum())
        line = f"{name}, {mirrored} of 30 mirrored: {max(same, 30 - same)} right, {int(found.mirrored.sum())} flipped"
        if points is not None:
            line += f", within 0.1 {pck(found, mirror_points(points, true, 128), found.templates.side)[1]:.1f}"
        print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("strangers", "kinds", "mirrored", "turned"))
    parser.add_argument("--faces", type=Path)
    parser.add_argument("--cats", type=Path)
    parser.add_argument("--mnist", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 11])
    parser.add_argument("--classes", type=int, nargs="+", default=[7, 2, 4])
    options = parser.parse_args()
    torch.set_num_threads(1)
    {"strangers": strangers, "kinds": kinds, "mirrored": mirrored, "turned": turned}[options.what](options)


if __name__ == "__main__":
    main()
