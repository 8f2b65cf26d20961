# SPDX-License-Identifier: Apache-2.0
"""Peak memory of prepare, align and propagate on a panorama and on a very large 16-bit picture.

python tools/measure_memory.py

Makes the two pictures and an untrained aligner in a temporary folder. Each command runs on each picture in a process of its own.
Prints the largest resident memory of that process (VmHWM, Linux), and that of a process which only loads what commands need.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy
import torch
from PIL import Image

from gangealing_fast.checkpoints.writing import export_aligner
from gangealing_fast.geometry.warping import Warping
from gangealing_fast.models import SpatialTransformer

PANORAMA, LARGE = (300, 16_000), 13_000
COMMAND = """
import re, runpy, sys
name = sys.argv.pop(1)
try:
    runpy.run_module("gangealing_fast." + name, run_name="__main__", alter_sys=True)
except SystemExit as end:
    assert not end.code, end.code
finally:
    print("kB at most:", re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
"""


def make(folder: Path) -> None:
    """panorama/a.png, large/a.png (16 bits), aligner.safetensors and edit.png."""
    for name in ("panorama", "large"):
        (folder / name).mkdir()
    noise = numpy.random.default_rng(0).integers(0, 256, (*PANORAMA, 3), numpy.uint8)
    Image.fromarray(noise).save(folder / "panorama" / "a.png")
    ramp = numpy.arange(LARGE, dtype=numpy.uint32)
    Image.fromarray((5 * ramp[:, None] + ramp).astype(numpy.uint16)).save(folder / "large" / "a.png", compress_level=1)
    torch.manual_seed(0)
    transformer = SpatialTransformer(("similarity",), 128, channel_multiplier=0.25)
    export_aligner(folder / "aligner.safetensors", transformer, None, Warping("reflection"))
    edit = Image.new("RGBA", (128, 128))
    edit.paste((255, 0, 0, 255), (32, 32, 96, 96))
    edit.save(folder / "edit.png")


def peak(command: str, options: list[object]) -> float:
    """Gigabytes at most."""
    words = [sys.executable, "-c", COMMAND, command, *map(str, options)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    found = re.search(r"kB at most: (\d+)", done.stdout)
    if done.returncode or found is None:
        raise SystemExit(f"{command} {options} failed:\n{done.stderr}")
    return int(found[1]) / 1e6


def main() -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        make(folder)
        print(f"env alone: {peak('env', []):.2f} GB", flush=True)
        learned = ["--checkpoint", folder / "aligner.safetensors"]
        for name in ("panorama", "large"):
            data, out = folder / name, folder / f"{name}-out"
            runs: dict[str, list[object]] = {
                "prepare": ["--source", data, "--size", 256, "--out", f"{out}.tar"],
                "align": [*learned, "--data", data, "--out", f"{out}-aligned"],
                "propagate": [*learned, "--data", data, "--edit", folder / "edit.png", "--out", f"{out}-edited"],
            }
            for command, options in runs.items():
                print(f"{command}, {name}: {peak(command, options):.2f} GB", flush=True)


if __name__ == "__main__":
    main()
