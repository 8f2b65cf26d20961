# SPDX-License-Identifier: Apache-2.0
"""Peak memory of a case's variants, every one in a process of its own with that process's default allocator."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from typing import Any

import torch

from benchmarks import cases, machine
from benchmarks.case import COMPILE, Case
from benchmarks.runner import Runner


def peaks(case: Case, index: int, device: str) -> dict[str, Any]:
    """Bytes above the inputs of every variant in the case's last pass, by name; `index` is the case's place in its file."""
    record: dict[str, Any] = {"operator": case.operator, "case": case.name, "pass": case.passes[-1], "bytes": {}}
    for variant in case.variants:
        if variant.name == COMPILE:  # the compiler's own memory would be counted
            continue
        command = [sys.executable, "-m", "benchmarks.peaks", case.operator, str(index), variant.name, device]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            record["bytes"][variant.name] = json.loads(done.stdout.splitlines()[-1])
        else:
            print(f"peak memory of {case.operator}, {variant.name}: {done.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
    return record


def main() -> None:
    """The child's side: prints the bytes of one variant."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peaks", description="Peak memory of one variant of one case.")
    parser.add_argument("operator")
    parser.add_argument("index", type=int)
    parser.add_argument("variant")
    parser.add_argument("device")
    options = parser.parse_args()
    torch.set_num_threads(1)
    machine.settle()
    case = cases(options.operator)[options.index]
    variant = next(variant for variant in case.variants if variant.name == options.variant)
    device = torch.device(options.device)
    runner = Runner(case, variant, device)
    print(machine.peak_during(lambda: runner.run(case.passes[-1]), device))


if __name__ == "__main__":
    main()
