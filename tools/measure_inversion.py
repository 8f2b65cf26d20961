# SPDX-License-Identifier: Apache-2.0
"""How near an encoder comes to pictures, alone and with a search, against a search that begins at the generator's mean w.

    python tools/measure_inversion.py --inverter runs/inverter --digit 3 4 7 --pictures 64 --steps 100 --long 600

Pictures: samples that the encoder was not trained on, and real ones: the package's held-out digits, or the last pictures of --data.
For both it prints the mean perceptual distance of the encoder's w; after --steps of search from there; and after as many from the
mean. Then how many steps, and seconds, from the mean it takes until the mean distance is that of the encoder with its search.
The search from the mean has --long steps for that, so that its rate falls as slowly; its history says when the distance is reached.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from torch import Tensor

from gangealing_fast.data.digits import load_heldout_digits, random_similarity, warp_digits
from gangealing_fast.data.pictures import open_pictures, to_float
from gangealing_fast.inversion import Inverter


def real_pictures(given: argparse.Namespace, inverter: Inverter) -> Tensor:
    """Held-out pictures that there are."""
    if given.digit:
        digits = load_heldout_digits(given.digit)
        order = torch.randperm(len(digits.images), generator=torch.Generator().manual_seed(0))[: given.pictures]
        warps = random_similarity(len(order), generator=torch.Generator().manual_seed(7))
        return warp_digits(digits.images[order], warps)
    pictures = open_pictures(given.data, size=inverter.generator.size)
    return to_float(pictures.batch(range(len(pictures) - given.pictures, len(pictures))))


def compared(inverter: Inverter, pictures: Tensor, steps: int, long: int) -> None:
    """Print what the module's text says of these pictures."""
    began = time.perf_counter()
    encoded = inverter.encode(pictures)
    alone = time.perf_counter() - began
    began = time.perf_counter()
    refined = inverter.optimise(pictures, steps, start=encoded)
    searched = time.perf_counter() - began
    mean = inverter.mean.expand(len(pictures), -1)
    from_mean = inverter.optimise(pictures, steps, start=mean)
    began = time.perf_counter()
    far = inverter.optimise(pictures, long, start=mean)
    per_step = (time.perf_counter() - began) / long
    nearest = [value.mean().item() for value in (refined.history[0], refined.distance, from_mean.distance, far.distance)]
    print(f"  mean w {far.history[0].mean():.4f}; encoder alone {nearest[0]:.4f} ({alone:.2f} s)")
    print(f"  after {steps} steps from the encoder {nearest[1]:.4f} ({alone + searched:.1f} s)")
    print(f"  after {steps} steps from the mean {nearest[2]:.4f} ({steps * per_step:.1f} s), after {long} {nearest[3]:.4f}")
    best = far.history.cummin(0).values.mean(1)
    for name, wanted, ours in (("encoder alone", nearest[0], 0), ("encoder and search", nearest[1], steps)):
        reached = (best <= wanted).nonzero()
        needed = f"{int(reached[0])} steps, {int(reached[0]) * per_step:.1f} s" if len(reached) else f"more than {long} steps"
        print(f"  as near as {name} ({ours} steps): from the mean {needed}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inverter", type=Path, required=True)
    parser.add_argument("--digit", type=int, nargs="*", default=[])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--pictures", type=int, default=64)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--long", type=int, default=600)
    given = parser.parse_args()
    torch.set_num_threads(1)
    inverter = Inverter.load(given.inverter)
    source = torch.Generator().manual_seed(12345)
    w = inverter.generator.map(torch.randn(given.pictures, inverter.generator.latent_dim, generator=source))
    print(f"{given.pictures} samples:")
    compared(inverter, inverter.decode(w), given.steps, given.long)
    if given.digit or given.data:
        print(f"{given.pictures} real pictures:")
        compared(inverter, real_pictures(given, inverter), given.steps, given.long)


if __name__ == "__main__":
    main()
