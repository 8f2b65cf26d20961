# SPDX-License-Identifier: Apache-2.0
"""Congealing by entropy on MNIST's digits: time, entropy, ink, known warps, and the funnel on digits that it has not seen.

python tools/measure_entropy_congealing.py --mnist FOLDER [--parts held-out classes] [--classes 1 2 3 4 7] [--models similarity]

The part held-out: the package's held-out threes, congealed with both of their warps, as the baseline of `train`, and by funnels of
300 training threes. The part classes: 300 training digits of each class are congealed, as they are and in random poses (seed: the
class). The next 200 go through the funnel in two random poses each. Ratios are after over before.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from gangealing_fast import metrics
from gangealing_fast.congealing import Funnel, Registered, congeal_entropy, congeal_stack
from gangealing_fast.congealing.moves import MOVES, Model, warp
from gangealing_fast.data.digits import SIZE, load_heldout_digits, object_box, random_similarity, warp_digits
from gangealing_fast.data.mnist import find_images, read_images
from gangealing_fast.runtime.commands import run_command

MEMBERS, NEW = 300, 200
Row = dict[str, str]


def read_as(found: Registered) -> Tensor:
    """Warps from template to picture, `[N, 2, 3]` in normalised coordinates: pictures and template are SIZE wide."""
    half = SIZE / 2
    to_pixels = torch.tensor([[half, 0, half - 0.5], [0, half, half - 0.5], [0, 0, 1]], dtype=torch.float64)
    return (torch.linalg.inv(to_pixels) @ torch.linalg.inv(found.matrix) @ to_pixels)[:, :2].float()


def stack_figures(pictures: Tensor, warps: Tensor) -> Row:
    """Entropy of the stack, and ink, after over before. pictures: `[N, 1, S, S]` in [-1, 1], black around."""
    after = warp((pictures + 1) / 2, warps[:, None], "binary")[:, :, 0] * 2 - 1
    entropy = [float(metrics.stack_entropy(images)) for images in (pictures, after)]
    return {"entropy": f"{entropy[1] / entropy[0]:.3f}", "ink": f"{float(metrics.ink_kept(pictures, after)):.3f}"}


def warp_figures(known: list[Tensor], found: list[Tensor], boxes: Tensor) -> Row:
    """Pair error and set spread at the corners of the digits' boxes, after over before."""
    pair = metrics.pair_error_ratio(known[0], found[0], known[1], found[1], boxes, SIZE)
    return {
        "pair error": f"{pair['ratio']:.3f}",
        "set spread": f"{metrics.set_spread_ratio(known[0], found[0], boxes, SIZE)['ratio']:.3f}",
    }


def congeal(digits: Tensor, known: Tensor | None, model: Model) -> tuple[Funnel, Row]:
    """Congeal digits, uint8 `[N, 28, 28]`, in poses `known`."""
    pictures = warp_digits(digits, known)[:, :1]
    start = time.perf_counter()
    found, funnel = congeal_entropy(pictures, model=model)
    seconds = time.perf_counter() - start
    return funnel, {"seconds": f"{seconds:.1f}"} | stack_figures(pictures, read_as(found)) | {
        "outliers": f"{int(found.outlier.sum())}"
    }


def through(funnel: Funnel, digits: Tensor, known: list[Tensor]) -> Row:
    """New digits, uint8 `[N, 28, 28]`, in two poses each."""
    pictures = [warp_digits(digits, pose)[:, :1] for pose in known]
    found = [read_as(funnel.align(half)) for half in pictures]
    return stack_figures(pictures[0], found[0]) | warp_figures(known, found, object_box(digits))


def print_table(rows: Iterator[Row]) -> None:
    """Markdown, row by row as they are measured."""
    for number, row in enumerate(rows):
        if number == 0:
            print("\n| " + " | ".join(row) + " |\n" + "|---" * len(row) + "|")
        print("| " + " | ".join(row.values()) + " |", flush=True)


def poses(count: int, generator: torch.Generator, times: int) -> list[Tensor]:
    return [random_similarity(count, generator=generator) for _ in range(times)]


def of_classes(images: Path, classes: list[int], models: list[Model]) -> Iterator[Row]:
    """A row for each class, pose and model."""
    for digit in classes:
        digits = torch.from_numpy(read_images(images, labels=[digit])[0][: MEMBERS + NEW].copy())
        for model in models:
            generator = torch.Generator().manual_seed(digit)
            (known,), both = poses(MEMBERS, generator, 1), poses(NEW, generator, 2)
            for name, pose in (("as they are", None), ("random", known)):
                funnel, figures = congeal(digits[:MEMBERS], pose, model)
                new = through(funnel, digits[MEMBERS:], both) if pose is not None else dict.fromkeys(_NEW, "")
                yield {"class": str(digit), "poses": name, "model": model} | figures | {f"new: {key}": new[key] for key in _NEW}


_NEW = ("entropy", "ink", "pair error", "set spread")


def of_held_out(images: Path, models: list[Model]) -> Iterator[Row]:
    """The held-out threes in the poses of `train`'s evaluation."""
    held = load_heldout_digits([3])
    boxes, known = object_box(held.images), poses(len(held.images), torch.Generator().manual_seed(7), 2)
    pictures = [warp_digits(held.images, pose)[:, :1] for pose in known]
    matrices, _ = congeal_stack((torch.cat(pictures) + 1) / 2)
    found = list(matrices.split(len(boxes)))
    yield {"held-out threes": "congealed, both warps"} | warp_figures(known, found, boxes) | stack_figures(pictures[0], found[0])
    digits = torch.from_numpy(read_images(images, labels=[3])[0][:MEMBERS].copy())
    (pose,) = poses(MEMBERS, torch.Generator().manual_seed(3), 1)
    for model in models:
        funnel, _ = congeal(digits, pose, model)
        new = through(funnel, held.images, known)
        yield {"held-out threes": f"funnel, {model}"} | {key: new[key] for key in ("pair error", "set spread", "entropy", "ink")}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", type=Path, required=True, help="folder of MNIST's IDX files")
    parser.add_argument("--classes", type=int, nargs="+", default=[1, 2, 3, 4, 7])
    parser.add_argument("--models", choices=list(MOVES), nargs="+", default=list(MOVES))
    parser.add_argument("--parts", choices=("held-out", "classes"), nargs="+", default=("held-out", "classes"))
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    images = find_images(options.mnist)
    if "held-out" in options.parts:
        print_table(of_held_out(images, options.models))
    if "classes" in options.parts:
        print_table(of_classes(images, options.classes, options.models))


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
