# SPDX-License-Identifier: Apache-2.0
"""Time whole training steps of GAN-supervised alignment: ours in float32 and bfloat16 against `--ops reference`.

Every variant runs in a process of its own (`step_process.py`), each of which makes some steps when its turn comes while the others
wait. The losses of the first step are compared before anything is timed. Peak memory is that of the whole process.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import levels, results
from benchmarks.step_process import Step, StepProcess, disagreement, write_weights
from gangealing_fast.runtime.errors import UserError

BASE = "reference, float32"
# Settings of `Step` by the variant's name; what is left out is as a user has it.
VARIANTS: dict[str, dict[str, Any]] = {
    "ours, float32": {},
    "ours, bfloat16": {"precision": "bfloat16"},
    BASE: {"ops": "reference"},
}
GRAPHS: dict[str, dict[str, Any]] = {f"{name}, CUDA graphs": {**VARIANTS[name], "cuda_graphs": True} for name in list(VARIANTS)[:2]}
# Minutes of compilation in every process: measured when it is asked for.
COMPILED: dict[str, dict[str, Any]] = {f"{BASE}, compiled": {**VARIANTS[BASE], "compile": True}}
ALL_VARIANTS = {**VARIANTS, **GRAPHS, **COMPILED}


def variants_for(device: str) -> list[str]:
    """The variants that are measured on a kind of device unless others are asked for."""
    from benchmarks import machine

    if device == "cpu" and not machine.convolves_in_bfloat16():
        return [name for name, settings in VARIANTS.items() if settings.get("precision") != "bfloat16"]
    return [*VARIANTS, *(GRAPHS if device == "cuda" else ())]


@dataclass(frozen=True)
class Configuration:
    """Picture side, transformer side, batch.

    targets: how many times faster than `--ops reference`, by variant and allocator, with AVX-512 and bfloat16 units.
    avx2: the same of "ours, float32" with the default allocator, with AVX2 alone; there is no other target there.
    """

    size: int
    flow_size: int
    batch: int
    targets: dict[tuple[str, str], float] = field(default_factory=dict)
    avx2: float | None = None

    def __str__(self) -> str:
        return f"{self.size}²/{self.flow_size}, batch {self.batch}"

    def goals(self, variant: str, allocator: str, level: str) -> dict[str, float]:
        """{"ratio": least, "memory_ratio": most}, what there is of it, at a processor's level."""
        if variant == BASE:
            return {}
        plain = (variant, allocator) == ("ours, float32", "default")
        ratio = self.targets.get((variant, allocator)) if level == "avx512" else self.avx2 if plain else None
        return {**({"ratio": ratio} if ratio else {}), **({"memory_ratio": 0.45} if allocator == "default" else {})}


def _targets(*values: float) -> dict[tuple[str, str], float]:
    keys = [(variant, allocator) for allocator in ("default", "same") for variant in ("ours, float32", "ours, bfloat16")]
    return dict(zip(keys, values, strict=False))


CONFIGURATIONS = {
    "256": Configuration(256, 128, 5, _targets(5.5, 6.5, 3.5, 4.0), avx2=6.0),
    "256-small": Configuration(256, 128, 2, avx2=4.0),
    "128": Configuration(128, 128, 2, _targets(3.0, 4.2)),
    "64": Configuration(64, 64, 2, _targets(2.8, 3.7)),
}


def step_of(configuration: Configuration, variant: str, folder: Path, *, threads: int, device: str, keep: bool = False) -> Step:
    """What a process of that variant runs, with the weights that `write_weights` put into the folder."""
    settings = {"threads": threads, "device": device, "keep": keep, **ALL_VARIANTS[variant]}
    return Step(str(folder), configuration.flow_size, configuration.batch, **settings)


@contextmanager
def processes(
    configuration: Configuration, names: list[str], *, threads: int, device: str, keep: bool
) -> Iterator[dict[str, StepProcess]]:
    """A process for every variant, all of which have made one step with the same losses; they end with the block.

    Raises:
        UserError: a process ended, or its losses differ from those of `--ops reference` (or of the first, where that is missing).
    """
    made: dict[str, StepProcess] = {}
    with tempfile.TemporaryDirectory() as folder:
        write_weights(Path(folder), configuration.size)
        try:
            for name in names:
                step = step_of(configuration, name, Path(folder), threads=threads, device=device, keep=keep)
                made[name] = StepProcess(step)
            losses = {name: process.step().losses for name, process in made.items()}
            judge = BASE if BASE in losses else names[0]
            for name in names:
                difference = disagreement(losses[name], losses[judge], ALL_VARIANTS[name].get("precision", "float32"))
                if difference:
                    raise UserError(
                        f"{configuration}: {name} does not compute what {judge} computes: {difference}; nothing was timed"
                    )
            yield made
        finally:
            for process in made.values():
                process.kill()


def measure(key: str, allocator: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """All variants of a configuration, taking turns; one record each. Raises UserError where a process fails or disagrees."""
    configuration, names = CONFIGURATIONS[key], options.variants or variants_for(options.device)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    with processes(configuration, names, threads=options.threads, device=options.device, keep=allocator == "same") as children:
        for turn in range(options.rounds if allocator == "default" else max(options.rounds - 1, 1)):
            first = turn % len(names)
            for name in names[first:] + names[:first]:
                seconds[name].append(children[name].step().seconds)
                print(f"{configuration}, {allocator} allocator, {name}: {seconds[name][-1]:.3f} s", flush=True)
        peaks = {name: child.finish() for name, child in children.items()}
    # The targets are those of a CPU.
    level = levels.current() if options.device == "cpu" else None
    return [{**record(configuration, allocator, name, seconds, peaks, level), "threads": options.threads} for name in names]


def record(
    configuration: Configuration,
    allocator: str,
    name: str,
    seconds: dict[str, list[float]],
    peaks: dict[str, int],
    level: str | None,
) -> dict[str, Any]:
    """A variant's figures, with its ratios to `--ops reference` where that was measured beside it, and the goals of that level."""
    from benchmarks.timing import quartiles

    middle = {key: quartiles(values) for key, values in seconds.items()}
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
        "targets": configuration.goals(name, allocator, level) if level else {},
    }
    if BASE in middle and name != BASE:
        found["ratio"], found["memory_ratio"] = middle[BASE][1] / median, peaks[name] / peaks[BASE]
    return found


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The options of the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training_step", description=(__doc__ or "").splitlines()[0])
    sizes, names = list(CONFIGURATIONS), list(ALL_VARIANTS)
    parser.add_argument("--only", nargs="+", choices=sizes, default=sizes, metavar="SIZE", help=", ".join(sizes))
    parser.add_argument(
        "--variants", nargs="+", choices=names, metavar="NAME", help=f"{'; '.join(names)} (those without compilation)"
    )
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
    return parser.parse_args(arguments)


def report(found: list[dict[str, Any]], path: Path | None) -> None:
    """Print a line for each record; put them into the results file."""
    for entry in found:
        ratio = f", {entry['ratio']:.2f}x the reference" if "ratio" in entry else ""
        figures = f"{entry['seconds']:.3f} s, {entry['peak_bytes'] / 2**30:.2f} GiB{ratio}"
        print(f"{entry['configuration']}, {entry['allocator']} allocator, {entry['variant']}: {figures}", flush=True)
    if path:
        names = ("configuration", "variant", "allocator")
        keys = {tuple(entry[name] for name in names) for entry in found}
        results.merge(path, replaces=lambda _, old: tuple(old[name] for name in names) in keys, training_step=found)


def refuse(configuration: Configuration, allocator: str, reason: str, path: Path | None) -> None:
    """Say why a configuration has no figures, in the results file too."""
    print(f"not timed: {reason}", file=sys.stderr)
    if path:
        entry = {"operator": "training step", "case": f"{configuration}, {allocator} allocator", "reason": reason}
        results.merge(path, replaces=lambda _, old: {**entry, "reason": ""} == {**old, "reason": ""}, refused=[entry])


def main(arguments: list[str] | None = None) -> int:
    """The command; 1 if a configuration could not be measured, 2 if none could begin."""
    options = parse(arguments)
    try:
        demand(options.device)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    status = 0
    for key in options.only:
        for allocator in allocators(key, options):
            try:
                report(measure(key, allocator, options), options.json)
            except UserError as error:
                refuse(CONFIGURATIONS[key], allocator, str(error), options.json)
                status = 1
    return status


def demand(device: str) -> None:
    """Raise UserError if torch does not find the kind of device on this machine."""
    import torch

    from benchmarks import machine

    machine.demand(torch.device(device))


def allocators(key: str, options: argparse.Namespace) -> list[str]:
    """The allocators that a configuration is measured with, in turn: on CUDA they make no difference."""
    if options.allocator == "same" and options.device == "cpu":
        return ["same"]
    return ["default", "same"] if (options.allocator, options.device, key) == ("both", "cpu", "256") else ["default"]


if __name__ == "__main__":
    levels.hold()
    sys.exit(main())
