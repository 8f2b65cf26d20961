# SPDX-License-Identifier: Apache-2.0
"""Seconds a step of preset `digits` while other programs compute on the same cores: `python -m benchmarks.busy_machine`.

Every run is a process of its own that is ended after some steps. Neighbours are Python in a loop, and torch multiplying matrices on
one thread. Prints the table of docs/performance-notes.md.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gangealing_fast.runtime import waiting

LOOP = "while True: pass"
TORCH = "import torch\ntorch.set_num_threads(1)\nx = torch.randn(800, 800)\nwhile True: x @ x"
NEIGHBOURS = {
    "free machine": [],
    "beside one busy loop": [LOOP],
    "beside one computing torch process of one thread": [TORCH],
    "beside both": [LOOP, TORCH],
}
# How the OpenMP library waits if nobody says anything; naming its own number of turns keeps commands from watching.
WAITING = {
    "default": {},
    "library's own": {"GOMP_SPINCOUNT": "300000"},
    "`OMP_WAIT_POLICY=PASSIVE`": {"OMP_WAIT_POLICY": "PASSIVE"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}


@contextmanager
def neighbours(programs: list[str]) -> Iterator[None]:
    """Run the programs beside what happens inside."""
    started = [subprocess.Popen([sys.executable, "-c", program]) for program in programs]
    try:
        time.sleep(3.0 if started else 0.0)
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def seconds_a_step(variables: dict[str, str], lines: int, limit: float) -> float:
    """The median over so many lines of the log, each two steps, after the first; NaN if `limit` seconds were too few."""
    variables = {**{name: value for name, value in os.environ.items() if name not in waiting.VARIABLES}, **variables}
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "run" / "log.jsonl"
        command = [sys.executable, "-m", "gangealing_fast.train", "--preset", "digits", "--steps", "400", "--snapshot", "20"]
        run = subprocess.Popen(
            [*command, "--out", str(log.parent)], env=variables, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        start, written = time.monotonic(), ""
        while time.monotonic() - start < limit and run.poll() is None and written.count("\n") < lines + 2:
            time.sleep(0.2)
            written = log.read_text() if log.exists() else ""
        run.kill()
        run.wait()
    rows = [json.loads(line) for line in written.splitlines()][1:]
    pairs = list(zip(rows, rows[1:], strict=False))
    each = [(later["seconds"] - earlier["seconds"]) / (later["step"] - earlier["step"]) for earlier, later in pairs]
    return statistics.median(each) if each else float("nan")


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=3, help="every variant runs so often, in turns; the median counts")
    parser.add_argument("--lines", type=int, default=6, help="lines of the log that are timed in a run, two steps each")
    parser.add_argument("--limit", type=float, default=90.0, help="seconds after which a run is ended")
    options = parser.parse_args(arguments)
    print("| | " + " | ".join(WAITING) + " |\n|" + "---|" * (len(WAITING) + 1), flush=True)
    for place, programs in NEIGHBOURS.items():
        found: dict[str, list[float]] = {name: [] for name in WAITING}
        with neighbours(programs):
            for _ in range(options.rounds):
                for name, variables in WAITING.items():
                    found[name].append(seconds_a_step(variables, options.lines, options.limit))
        print(f"| {place} | " + " | ".join(f"{statistics.median(times):.2f}" for times in found.values()) + " |", flush=True)


if __name__ == "__main__":
    main()
