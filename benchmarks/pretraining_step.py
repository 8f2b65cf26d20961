# SPDX-License-Identifier: Apache-2.0
"""Pictures a second that a generator is trained with, and the arithmetic of its convolutions beside them.

    python -m benchmarks.pretraining_step --data photos.tar --size 32 --threads 1

Preset `cats` in float32. Operations are those of the convolutions and products of matrices of `--ops reference`, by the formulas
of `torch.utils.flop_counter`, over as many steps as lie between two regularisations of the critic. They are compared with the rate
of torch's own 3x3 convolution of 512 channels at 32². Winograd convolutions need fewer, so that more than 100 % is possible.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import levels

if TYPE_CHECKING:
    from gangealing_fast.pretraining.trainer import Pretraining


def steps(work: Pretraining, count: int) -> None:
    """Make `count` steps."""
    from gangealing_fast.training.loop import Means, Progress

    means = Means()
    for index in range(count):
        work.step(Progress(step=index, done=index * work.config.batch), means)


def operations_of(function: Callable[[], object]) -> int:
    """Operations of the convolutions and products of matrices that a call makes, forward and backward."""
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils.flop_counter import flop_registry

    class Counter(TorchDispatchMode):
        total = 0

        def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
            found = function(*arguments, **(keywords or {}))
            if function._overloadpacket in flop_registry:
                self.total += flop_registry[function._overloadpacket](*arguments, **(keywords or {}), out_val=found)
            return found

    with Counter() as counter:
        function()
    return counter.total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a folder or .tar of pictures")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    levels.hold()
    import torch

    from benchmarks import machine
    from gangealing_fast.pretraining.config import PRESETS
    from gangealing_fast.pretraining.options import make_objective, resolved
    from gangealing_fast.pretraining.source import open_source
    from gangealing_fast.pretraining.trainer import make_work
    from gangealing_fast.runtime import implementation
    from gangealing_fast.runtime.setup import prepare_process

    device = torch.device("cpu")
    with tempfile.TemporaryDirectory() as folder:
        config = replace(PRESETS["cats"], r1=0.02, data=options.data, out=Path(folder), size=options.size, threads=options.threads)
        config = replace(config, precision="float32", score_pictures=0)
        objective = make_objective(config)
        config = resolved(config, objective)
        source = open_source(config)
        prepare_process(config)
        work = make_work(config, objective, source, device)
        period = config.r1_interval
        implementation.use("reference")
        operations = operations_of(lambda: steps(work, period)) / (period * config.batch)
        implementation.use("fused")
        steps(work, 2)
        seconds = []
        for _ in range(options.rounds):
            start = time.perf_counter()
            steps(work, period)
            seconds.append((time.perf_counter() - start) / (period * config.batch))
        rate = machine.convolution_rate(device, torch.float32)
    picture = statistics.median(seconds)
    print(
        f"{levels.current()}, {options.threads} threads: {1 / picture:.1f} pictures/s, {operations / 1e9:.2f} GFLOP a picture, ",
        end="",
    )
    print(f"{operations / picture / rate:.0%} of {rate / 1e9:.0f} GFLOP/s")


if __name__ == "__main__":
    main()
