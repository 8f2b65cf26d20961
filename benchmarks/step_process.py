# SPDX-License-Identifier: Apache-2.0
"""A training step in a process of its own, as a user would run it: both ends of the pipe.

The networks are those of a real run, with random weights: the StyleGAN2 generator (channel multiplier 2, latent 512), similarity
and flow (channel multiplier 0.5), LPIPS on VGG16. The same seed gives every process the same networks and the same samples, so
that the losses of a step can be compared.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from gangealing_fast.runtime.errors import UserError

if TYPE_CHECKING:
    from gangealing_fast.runtime.implementation import Kind
    from gangealing_fast.runtime.precision import Precision

INDEX = 500  # of the step: in the midst of the schedules
TOLERANCES = {"float32": 1e-3, "bfloat16": 5e-2}


@dataclass(frozen=True)
class Step:
    """What a process is to run: see `TrainConfig`. keep: malloc keeps freed memory, whatever a user would have."""

    folder: str
    flow_size: int
    batch: int
    threads: int
    device: str = "cpu"
    precision: Precision = "float32"
    ops: Kind = "fused"
    compile: bool = False
    cuda_graphs: bool = False
    keep: bool = False


@dataclass(frozen=True)
class Made:
    """What a step took, in seconds, and what it computed."""

    seconds: float
    losses: dict[str, float]


def write_weights(folder: Path, size: int) -> None:
    """A random generator and a random LPIPS network as files that the trainer reads."""
    import torch

    from gangealing_fast.checkpoints.writing import export_generator
    from gangealing_fast.models import Generator
    from gangealing_fast.models.perceptual import Lpips
    from gangealing_fast.storage.exports import export_safetensors

    torch.manual_seed(0)
    export_generator(Generator(size), folder / "generator.safetensors", {}, half=False)
    state = {name: value.abs() if name.startswith("lin") else value for name, value in Lpips(pretrained=False).state_dict().items()}
    export_safetensors(folder / "vgg16.safetensors", state, {})


class StepProcess:
    """The parent's end: a process that makes a step whenever it is asked to. The first is not timed, see `serve`.

    Raises UserError, from every method, if the process has ended.
    """

    def __init__(self, step: Step) -> None:
        command = [sys.executable, "-m", "benchmarks.step_process", json.dumps(asdict(step))]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdin is not None and self.process.stdout is not None
        self._to, self._from = self.process.stdin, self.process.stdout

    def step(self) -> Made:
        """One more step."""
        try:
            self._to.write("\n")
            self._to.flush()
        except BrokenPipeError:
            pass  # reading says so
        return Made(**self._read())

    def finish(self) -> int:
        """End the process; its peak memory in bytes."""
        self._to.close()
        peak = int(self._read())
        self.process.wait()
        return peak

    def kill(self) -> None:
        """End the process, whatever it does."""
        self.process.kill()
        self.process.wait()

    def _read(self) -> Any:
        line = self._from.readline()
        if not line:
            raise UserError(f"a measuring process ended with status {self.process.wait()}; its message is above")
        return json.loads(line)


def disagreement(made: dict[str, float], expected: dict[str, float], precision: str) -> str | None:
    """How the losses of a step differ from the expected ones, as a clause; None if they agree within the precision."""
    for name in ("loss", "perceptual", "tv", "identity"):
        error = abs(made[name] - expected[name]) / (abs(expected[name]) or 1.0)
        if not error <= TOLERANCES[precision]:
            return f"its {name} is {made[name]:.6g} instead of {expected[name]:.6g}"
    return None


def serve(step: Step, figures: TextIO) -> None:
    """The child's end: builds the step as `gangealing_fast.train` does, then for every line on standard input makes a step, after
    some to warm up where that is needed, and writes its seconds and losses to `figures`; at the end of the input the peak memory.
    """
    import torch

    from benchmarks import machine
    from benchmarks.runner import synchronise
    from gangealing_fast.alignment.building import build
    from gangealing_fast.alignment.config import TrainConfig
    from gangealing_fast.runtime import memory
    from gangealing_fast.runtime.distributed import Group
    from gangealing_fast.runtime.setup import prepare_process

    folder, device = Path(step.folder), torch.device(step.device)
    config = TrainConfig(
        generator=folder / "generator.safetensors",
        out=folder,
        flow_size=step.flow_size,
        batch=step.batch,
        micro_batch=step.batch,
        anneal_psi=2 * INDEX,
        principal_samples=2000,
        perceptual="lpips",
        perceptual_weights=folder / "vgg16.safetensors",
        precision=step.precision,
        ops=step.ops,
        threads=step.threads,
        compile=step.compile,
        cuda_graphs=step.cuda_graphs,
    )
    prepare_process(config)
    kept = memory.keep_large_blocks() if step.keep else config.reuse_memory and config.ops == "fused"
    torch.manual_seed(0)
    trainer = build(config, Group(device))

    def make() -> Made:
        synchronise(device)
        start = time.perf_counter()
        losses = trainer.step(INDEX)
        memory.trim()  # as the training loop does
        synchronise(device)
        return Made(time.perf_counter() - start, losses)

    # The first step is compared. On CUDA it compiles kernels and tries their tiles. Kept memory is complete after a few steps
    # only, and has to be given back where the other processes need the room.
    warm_ups = 0
    for number, _ in enumerate(sys.stdin):
        for _ in range(warm_ups):
            make()
        print(json.dumps(asdict(make())), file=figures, flush=True)
        if number == 0:
            warm_ups = 2 if device.type == "cuda" else 1 if kept else 0
        else:
            warm_ups = 2 if kept and machine.memory_is_short() and memory.release() else 0
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else machine.peak_resident()
    print(peak, file=figures, flush=True)


def standard_output_for_figures() -> TextIO:
    """Standard output for figures alone: whatever else is printed, by libraries in C++ too, goes to standard error from now on."""
    figures = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return figures


if __name__ == "__main__":
    serve(Step(**json.loads(sys.argv[1])), standard_output_for_figures())
