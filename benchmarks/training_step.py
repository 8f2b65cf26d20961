# SPDX-License-Identifier: Apache-2.0
"""Time whole training steps of GAN-supervised alignment: ours in float32 and bfloat16 against `--ops reference`.

The networks are those of a real run, with random weights: the StyleGAN2 generator (channel multiplier 2, latent 512), similarity
and flow (channel multiplier 0.5), LPIPS on VGG16. Every variant runs in a process of its own, each of which makes some steps
when its turn comes while the others wait. Peak memory is that of the whole process.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from statistics import quantiles
from typing import Any

from benchmarks import machine, results
from gangealing_fast.runtime.errors import UserError

INDEX = 500
VARIANTS = {
    "ours, float32": {"precision": "float32", "ops": "fused"},
    "ours, bfloat16": {"precision": "bfloat16", "ops": "fused"},
    "reference, float32": {"precision": "float32", "ops": "reference"},
}
BASE = "reference, float32"


@dataclass(frozen=True)
class Configuration:
    """Picture side, transformer side, batch; targets by (variant, allocator)."""

    size: int
    flow_size: int
    batch: int
    targets: dict[tuple[str, str], float]

    def __str__(self) -> str:
        return f"{self.size}²/{self.flow_size}, batch {self.batch}"


def _targets(*values: float) -> dict[tuple[str, str], float]:
    keys = [(variant, allocator) for allocator in ("default", "same") for variant in ("ours, float32", "ours, bfloat16")]
    return dict(zip(keys, values, strict=False))


CONFIGURATIONS = {
    "256": Configuration(256, 128, 5, _targets(5.5, 6.5, 3.5, 4.0)),
    "128": Configuration(128, 128, 2, _targets(3.0, 4.2)),
    "64": Configuration(64, 64, 2, _targets(2.8, 3.7)),
}


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


def serve(options: dict[str, Any]) -> None:
    """The child's side: builds the step as `gangealing_fast.train` does, then for every line on standard input makes a step, after
    some to warm up where that is needed, and prints its seconds; at the end of the input prints the peak memory."""
    import torch

    from gangealing_fast.alignment.building import build
    from gangealing_fast.alignment.config import TrainConfig
    from gangealing_fast.runtime import memory
    from gangealing_fast.runtime.distributed import Group
    from gangealing_fast.runtime.setup import prepare_process

    folder, device = Path(options["folder"]), torch.device(options["device"])
    config = TrainConfig(
        generator=folder / "generator.safetensors",
        out=folder,
        flow_size=options["flow_size"],
        batch=options["batch"],
        micro_batch=options["batch"],
        anneal_psi=2 * INDEX,
        principal_samples=2000,
        perceptual="lpips",
        perceptual_weights=folder / "vgg16.safetensors",
        precision=options["precision"],
        ops=options["ops"],
        threads=options["threads"],
    )
    with redirect_stdout(sys.stderr):  # standard output carries the figures
        prepare_process(config)
        kept = memory.keep_large_blocks() if options["keep"] else config.reuse_memory and config.ops == "fused"
    torch.manual_seed(0)
    trainer = build(config, Group(device))

    def step() -> float:
        start = time.perf_counter()
        trainer.step(INDEX)
        memory.trim()  # as the training loop does
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    # Kept memory is complete after a few steps only, and has to be given back where the other processes need the room.
    cold = True
    for _ in sys.stdin:
        for _ in range((2 if kept else 1) if cold else 0):
            step()
        print(json.dumps(step()), flush=True)
        cold = kept and machine.memory_is_short() and memory.release()
    print(torch.cuda.max_memory_allocated(device) if device.type == "cuda" else machine.peak_resident(), flush=True)


class _Child:
    def __init__(self, options: dict[str, Any]) -> None:
        command = [sys.executable, "-m", "benchmarks.training_step", "--serve", json.dumps(options)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def step(self) -> float:
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self._read()

    def finish(self) -> int:
        self.process.stdin.close()
        peak = self._read()
        self.process.wait()
        return peak

    def _read(self) -> Any:
        line = self.process.stdout.readline()
        if not line:
            raise UserError(f"a measuring process ended with status {self.process.wait()}; its message is above")
        return json.loads(line)


def measure(key: str, allocator: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """All variants of a configuration, taking turns; one record each. Raises UserError where a process fails."""
    configuration = CONFIGURATIONS[key]
    with tempfile.TemporaryDirectory() as folder:
        write_weights(Path(folder), configuration.size)
        shared = {
            "folder": folder,
            "flow_size": configuration.flow_size,
            "batch": configuration.batch,
            "threads": options.threads,
            "device": options.device,
            "keep": allocator == "same",
        }
        children = {name: _Child({**shared, **VARIANTS[name]}) for name in options.variants}
        try:
            seconds: dict[str, list[float]] = {name: [] for name in children}
            for turn in range(options.rounds if allocator == "default" else max(options.rounds - 1, 1)):
                names = list(children)[turn % len(children) :] + list(children)[: turn % len(children)]
                for name in names:
                    seconds[name].append(children[name].step())
                    print(f"{configuration}, {allocator} allocator, {name}: {seconds[name][-1]:.3f} s", flush=True)
            peaks = {name: child.finish() for name, child in children.items()}
        finally:
            for child in children.values():
                child.process.kill()
                child.process.wait()
    found = [record(configuration, allocator, name, seconds, peaks) for name in children]
    # The targets are those of a CPU.
    return [{**entry, "threads": options.threads, **({"targets": {}} if options.device == "cuda" else {})} for entry in found]


def record(
    configuration: Configuration, allocator: str, name: str, seconds: dict[str, list[float]], peaks: dict[str, int]
) -> dict[str, Any]:
    """A variant's figures, with its ratios to `--ops reference` where that was measured beside it."""
    middle = {key: quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3 for key, values in seconds.items()}
    lower, median, upper = middle[name]
    found: dict[str, Any] = {
        "configuration": str(configuration),
        "variant": name,
        "allocator": allocator,
        "seconds": median,
        "lower": lower,
        "upper": upper,
        "rounds": len(seconds[name]),
        "peak_bytes": peaks[name],
        "targets": {},
    }
    if BASE in middle and name != BASE:
        found["ratio"], found["memory_ratio"] = middle[BASE][1] / median, peaks[name] / peaks[BASE]
    if name != BASE:
        goal = configuration.targets.get((name, allocator))
        found["targets"] = {**({"ratio": goal} if goal else {}), **({"memory_ratio": 0.45} if allocator == "default" else {})}
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training_step", description=(__doc__ or "").splitlines()[0])
    sizes, names = list(CONFIGURATIONS), list(VARIANTS)
    parser.add_argument("--only", nargs="+", choices=sizes, default=sizes, metavar="SIZE", help=", ".join(sizes))
    parser.add_argument("--variants", nargs="+", choices=names, default=names, metavar="NAME", help="; ".join(names))
    parser.add_argument(
        "--allocator",
        choices=("default", "same", "both"),
        default="both",
        help="as a user runs it, malloc that keeps freed memory in every process (256 only), or one after the other (the default)",
    )
    parser.add_argument("--rounds", type=int, default=3, help="timed steps of every variant, one less for --allocator same")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", type=Path, metavar="FILE", help="put the results into this file, beside what is there")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.serve:
        serve(json.loads(options.serve))
        return 0
    allocators = ["default", "same"] if options.allocator == "both" and options.device == "cpu" else [options.allocator]
    try:
        for key in options.only:
            for allocator in allocators if key == "256" or options.allocator == "same" else ["default"]:
                found = measure(key, allocator, options)
                for entry in found:
                    ratio = f", {entry['ratio']:.2f}x the reference" if "ratio" in entry else ""
                    figures = f"{entry['seconds']:.3f} s, {entry['peak_bytes'] / 2**30:.2f} GiB{ratio}"
                    print(f"{entry['configuration']}, {allocator} allocator, {entry['variant']}: {figures}", flush=True)
                if options.json:
                    keys = {(entry["configuration"], entry["variant"], allocator) for entry in found}

                    def replaced(_: str, old: dict[str, Any], keys: set[tuple[str, str, str]] = keys) -> bool:
                        return (old["configuration"], old["variant"], old["allocator"]) in keys

                    results.merge(options.json, replaces=replaced, training_step=found)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
