# SPDX-License-Identifier: Apache-2.0
"""What `make bench` and `make bench-gpu` run: operators and the training step, at every level of the processor, then the page.

A step that fails (a variant that computes something else, a process that ends) makes the exit status 1. What can be measured is
measured and reported all the same. If a command could not begin, for want of a CUDA device for example, its level is left out.
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
OWN, CARD = "performance.json", "performance-gpu.json"


def pages(device: str, folder: Path = FOLDER) -> dict[str, Path]:
    """The results file of every level that is measured: of the one that `GGF_CPU_LEVEL` asks for alone, or else of the processor's
    own, which is "", and of those below."""
    if device == "cuda":
        return {"": folder / CARD}
    asked = os.environ.get(levels.VARIABLE)
    if asked:
        return {asked: folder / f"performance-{asked}.json"}
    return {"": folder / OWN, **{level: folder / f"performance-{level}.json" for level in levels.lower()}}


def shown(device: str, folder: Path) -> list[Path]:
    """The results files that the page shows: those measured on other machines and put into the folder are sections of it too."""
    others = sorted(path for path in folder.glob("performance-*.json") if path.name != CARD)
    return [path for path in ([folder / CARD] if device == "cuda" else [folder / OWN, *others]) if path.exists()]


def run(module: str, arguments: list[str], level: str = "") -> int:
    """The exit status of `python -m MODULE`, held to a level."""
    environment = {**os.environ, **levels.environment(level)}
    status = subprocess.run([sys.executable, "-m", module, *arguments], env=environment, check=False).returncode
    if status < 0:
        print(f"{module} was ended by signal {-status}: what it had not measured by then is missing", file=sys.stderr)
    return status


def main(arguments: list[str] | None = None) -> int:
    """The command; 0 if all was measured and agreed, 1 if not, 2 if it could not begin."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.suite", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--out", type=Path, default=FOLDER, metavar="FOLDER", help="where results and page are written")
    parser.add_argument("--command", default="python -m benchmarks.suite", help="what the page says makes it")
    options = parser.parse_args(arguments)
    worst = 0
    for level, path in pages(options.device, options.out).items():
        for module in ("benchmarks", "benchmarks.training_step"):
            status = run(module, ["--device", options.device, "--json", str(path)], level)
            worst = max(worst, REFUSED if status == REFUSED else 1 if status else 0)
            if status == REFUSED:
                break
    files = [str(path) for path in shown(options.device, options.out)]
    if files and run("benchmarks.report", [*files, "--command", options.command]):
        worst = max(worst, 1)
    return worst


if __name__ == "__main__":
    sys.exit(main())
