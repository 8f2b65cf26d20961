# SPDX-License-Identifier: Apache-2.0
"""Time and memory of what training does with a million latents before its first step: `python -m benchmarks.million_latents`.

Principal components of w = mapping(z), drawn and mapped in batches; then K-means++ over the latents' coefficients. The mapping
network is that of the published generators: eight layers of 512.
"""

from __future__ import annotations

import argparse
import resource
import time

import torch
from torch import Tensor

from gangealing_fast.alignment.templates import spread_centres
from gangealing_fast.models import Generator
from gangealing_fast.models.latent_target import principal_components
from gangealing_fast.runtime.randomness import normal_rows


def peak() -> float:
    """The most memory that this process has held so far, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--samples", type=int, default=1_000_000)
    parser.add_argument("--components", type=int, default=32)
    parser.add_argument("--clusters", type=int, default=16)
    parser.add_argument("--threads", type=int, default=0, help="0 leaves torch's choice")
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    generator = Generator(8, 512, 8, channel_base=64).requires_grad_(False)
    start, before = time.perf_counter(), peak()
    found = principal_components(generator.map, 512, components=options.components, samples=options.samples)
    seconds = time.perf_counter() - start
    print(
        f"principal components of {options.samples:,} w: {seconds:.1f} s, peak {peak():.2f} GiB "
        f"({before:.2f} GiB before), {torch.get_num_threads()} threads",
        flush=True,
    )
    coefficients = normal_rows(("coefficients",), [0], options.samples * options.components).view(options.samples, -1)
    coefficients *= found.deviation

    def distance_to(index: int) -> Tensor:
        return torch.cat([(chunk - coefficients[index]).norm(dim=1) for chunk in coefficients.split(10_000)])

    start = time.perf_counter()
    spread_centres(distance_to, options.samples, options.clusters)
    print(
        f"K-means++ of {options.samples:,} coefficients, K = {options.clusters}: {time.perf_counter() - start:.1f} s, "
        f"peak {peak():.2f} GiB ({coefficients.nbytes / 2**30:.2f} GiB of it are the coefficients)"
    )


if __name__ == "__main__":
    main()
