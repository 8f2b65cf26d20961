# SPDX-License-Identifier: Apache-2.0
"""What `make bench` and `make bench-gpu` run: operators and the training step, at every level of the processor, then the page.

A step that fails (a variant that computes something else, a process that ends) makes the exit status 1. What can be measured is
measured and reported all the same. Only a command that could not begin, with no CUDA device for example, ends it.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from benchmarks import levels

REFUSED = 2
FOLDER = Path("docs")


def pages(device: str, folder: Path = FOLDER) -> dict[str, Path]:
    """The results file of every level that is measured on this machine; "" is the processor's own."""
    if device == "cuda":
        return {"": folder / "performance-gpu.json"}
    return {"": folder / "performance.json", **{level: folder / f"performance-{level}.json" for level in levels.lower()}}


def run(module: str, arguments: list[str], level: str = "") -> int:
    """The exit status of `python -m MODULE`, held to a level."""
    environment = {**os.environ, **levels.environment(level)}
    return subprocess.run([sys.executable, "-m", module, *arguments], env=environment, check=False).returncode


def main(arguments: list[str] | None = None) -> int:
    """The command; 0 if all was measured and agreed, 1 if not, 2 if it could not begin."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.suite", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--out", type=Path, default=FOLDER, metavar="FOLDER", help="where results and page are written")
    parser.add_argument("--command", default="python -m benchmarks.suite", help="what the page says makes it")
    options = parser.parse_args(arguments)
    worst = 0
    files = pages(options.device, options.out)
    for level, path in files.items():
        for module in ("benchmarks", "benchmarks.training_step"):
            status = run(module, ["--device", options.device, "--json", str(path)], level)
            if status == REFUSED:
                return REFUSED
            worst = max(worst, 1 if status else 0)
    measured = [path for path in files.values() if path.exists()]
    # Files that were measured on other machines and put beside them are sections of the same page.
    others = sorted(options.out.glob("performance-*.json")) if options.device == "cpu" else []
    others = [path for path in others if path not in measured and path.name != "performance-gpu.json"]
    status = run("benchmarks.report", [*map(str, measured + others), "--command", options.command])
    return max(worst, 1 if status else 0)


if __name__ == "__main__":
    sys.exit(main())
