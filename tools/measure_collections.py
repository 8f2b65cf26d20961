# SPDX-License-Identifier: Apache-2.0
"""How quickly `align` goes through collections, in how much memory, and how much of the time is decoding.

python tools/measure_collections.py OUT small [--pictures 20000] [--kills 3]
python tools/measure_collections.py OUT photographs [--pictures 200] [--resolution 1024]

OUT is a folder for what is made; what is there is used again. small: 64x64 pictures in tars of 1 000, aligned by the command, which
is killed on the way; beside it the network called picture by picture in one process. photographs: JPEG files of 12 megapixels,
aligned from their full resolution; beside it decoding alone. The aligner is untrained: 16 channels at
most, weights moved a little.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import resource
import signal
import statistics
import subprocess
import sys
import tarfile
import time
from itertools import pairwise
from pathlib import Path

import numpy
import torch
from PIL import Image

from gangealing_fast import Aligner
from gangealing_fast.checkpoints.writing import export_aligner
from gangealing_fast.data.decoding import decode_view
from gangealing_fast.data.packing import Packer
from gangealing_fast.data.pictures import to_float
from gangealing_fast.data.sources import list_entries
from gangealing_fast.geometry.warping import Warping
from gangealing_fast.models import SpatialTransformer

SIDE, SHARD, PHOTOGRAPH = 64, 1000, (3000, 4000)
PEAK = """
import re, runpy, sys
try:
    runpy.run_module("gangealing_fast.align", run_name="__main__", alter_sys=True)
except SystemExit as end:
    assert not end.code, end.code
finally:
    print("kB at most:", re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
"""


def make_aligner(path: Path) -> Path:
    """A similarity and a flow at 64 pixels of 16 channels at most."""
    if not path.exists():
        torch.manual_seed(0)
        transformer = SpatialTransformer(("similarity", "flow"), SIDE, channel_base=256, max_channels=16)
        for stage in transformer.stns:
            for parameter in stage.warp_head.parameters():
                torch.nn.init.normal_(parameter, std=0.02)
        export_aligner(path, transformer, None, Warping("border"))
    return path


def smooth(chance: numpy.random.Generator, height: int, width: int, detail: int) -> Image.Image:
    """Coloured clouds with fine grain."""
    values = chance.integers(0, 256, (detail, detail, 3), numpy.uint8)
    picture = Image.fromarray(values).resize((width, height), Image.Resampling.BICUBIC)
    grain = chance.integers(0, 24, (height, width, 1), numpy.uint8)
    return Image.fromarray(numpy.minimum(numpy.asarray(picture), 231) + grain)


def make_shards(folder: Path, count: int) -> Path:
    chance = numpy.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(-(-count // SHARD)):
        path = folder / f"{index:06d}.tar"
        if path.exists():
            continue
        with open(path, "wb") as file:
            packer = Packer(file)
            for number in range(index * SHARD, min(count, (index + 1) * SHARD)):
                buffer = io.BytesIO()
                smooth(chance, SIDE, SIDE, 8).save(buffer, "png")
                packer.add_sample(f"{number:07d}.png", {"png": buffer.getvalue()})
            packer.close()
    return folder


def make_photographs(folder: Path, count: int) -> Path:
    chance = numpy.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        path = folder / f"{number:05d}.jpg"
        if not path.exists():
            smooth(chance, *PHOTOGRAPH, 40).save(path, quality=90)
    return folder


def start(aligner: Path, data: Path, out: Path, *options: object) -> subprocess.Popen[str]:
    words = ["--checkpoint", aligner, "--data", data, "--out", out, *options]
    return subprocess.Popen(
        [sys.executable, "-c", PEAK, *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )


def finish(process: subprocess.Popen[str]) -> float:
    """Gigabytes of resident memory at most."""
    said, _ = process.communicate()
    found = re.search(r"kB at most: (\d+)", said)
    if process.returncode or found is None:
        raise SystemExit(f"align failed:\n{said}")
    return int(found[1]) / 1e6


def rate_one_by_one(aligner: Path, data: Path, count: int) -> float:
    """Pictures a second if the network is called with one at a time; reading and writing are left out."""
    model = Aligner.load(aligner)
    entries = list_entries(data).entries[:count]
    pictures = [to_float(torch.from_numpy(decode_view(entry.read(), SIDE, 0).small).permute(2, 0, 1)[None]) for entry in entries]
    model.align(pictures[0])
    began = time.perf_counter()
    for picture in pictures:
        model.align(picture)
    return count / (time.perf_counter() - began)


def check(out: Path, count: int) -> None:
    """Nothing lost, nothing doubled."""
    pictures = []
    for path in sorted(out.glob("*.tar")):
        with tarfile.open(path) as archive:
            pictures += [json.load(archive.extractfile(m))["picture"] for m in archive if m.name.endswith(".json")]  # type: ignore[arg-type]
    assert len(pictures) == len(set(pictures)) == count, (len(pictures), len(set(pictures)), count)


def measure_small(out: Path, count: int, kills: int) -> None:
    aligner, data = make_aligner(out / "aligner.safetensors"), make_shards(out / "small", count)
    results = out / "small-aligned"
    killed_behind = []
    for life in range(kills):
        process = start(aligner, data, results)
        goal = (life + 1) * (count // SHARD) // (kills + 2)
        while len(list(results.glob("[0-9]*.json"))) <= goal and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
        killed_behind.append(len(list(results.glob("[0-9]*.json"))))
    memory = finish(start(aligner, data, results))
    check(results, count)
    times = sorted(path.stat().st_mtime for path in results.glob("[0-9]*.json"))
    each = statistics.median(later - earlier for earlier, later in pairwise(times))
    single, rate = rate_one_by_one(aligner, data, 300), SHARD / each
    print(f"killed behind {killed_behind} shards; {count} pictures are there, none is lost, none is there twice")
    print(f"half of the shards took {each:.2f} s or less: {rate:.0f} pictures a second; {memory:.2f} GB at most")
    print(f"the network picture by picture: {single:.0f} a second; align is {rate / single:.1f} times as quick")


def measure_photographs(out: Path, count: int, resolution: int) -> None:
    aligner, data = make_aligner(out / "aligner.safetensors"), make_photographs(out / "photographs", count)
    results = out / "photographs-aligned"
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    memory = finish(start(aligner, data, results, "--resolution", resolution, "--shard", 100, "--format", "jpg"))
    seconds, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    check(results, count)
    each = (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / count
    entries = list_entries(data).entries[: min(count, 20)]
    began_decoding = time.process_time()
    for entry in entries:
        decode_view(entry.read(), SIDE, 4 * resolution)
    decoding = (time.process_time() - began_decoding) / len(entries)
    print(f"{count} photographs of {PHOTOGRAPH[1]}x{PHOTOGRAPH[0]} to {resolution}x{resolution}: {seconds:.1f} s, start included")
    print(f"{count / seconds:.2f} a second by the clock; {each:.3f} s of a core for each; {memory:.2f} GB at most")
    print(f"decoding takes {decoding:.3f} s of a core for each, {decoding / each:.0%} of it")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("what", choices=["small", "photographs"])
    parser.add_argument("--pictures", type=int, default=None)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--resolution", type=int, default=1024)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    if given.what == "small":
        measure_small(given.out, given.pictures or 20_000, given.kills)
    else:
        measure_photographs(given.out, given.pictures or 200, given.resolution)


if __name__ == "__main__":
    main()
