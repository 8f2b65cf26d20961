# SPDX-License-Identifier: Apache-2.0
"""Torch has two switches for TF32; what the fused convolution does follows both, in any order."""

from __future__ import annotations

import re
import subprocess
import sys

import torch

from gangealing_fast.runtime import precision
from tools.checkout import ROOT

SWITCHED = {
    "nothing": ("", True),
    "older, off": ("b.cudnn.allow_tf32 = False", False),
    "older, off and on": ("b.cudnn.allow_tf32 = False; b.cudnn.allow_tf32 = True", True),
    "newer, convolutions off": ("b.cudnn.conv.fp32_precision = 'ieee'", False),
    "newer, convolutions on": ("b.cudnn.conv.fp32_precision = 'tf32'", True),
    "newer, cuDNN off": ("b.cudnn.fp32_precision = 'ieee'", False),
    "newer, cuDNN on": ("b.cudnn.fp32_precision = 'tf32'", True),
    "newer, everything off": ("b.fp32_precision = 'ieee'", False),
    "newer, everything on": ("b.fp32_precision = 'tf32'", True),
    "older, then newer": ("b.cudnn.allow_tf32 = False; b.cudnn.conv.fp32_precision = 'tf32'", True),
    "newer, then older": ("b.cudnn.conv.fp32_precision = 'ieee'; b.cudnn.allow_tf32 = True", True),
    "newer, products alone": ("b.cuda.matmul.fp32_precision = 'ieee'", True),
}
PROGRAM = """
import os, torch
from gangealing_fast.runtime.precision import tf32_convolutions
b = torch.backends
for line in {lines!r}:
    if os.fork() == 0:
        exec(line)
        print(tf32_convolutions(), flush=True)
        os._exit(0)
    os.wait()
"""


def test_tf32_follows_whichever_switch_was_used():
    """Each in a process of its own, as torch does not forget which switch was used."""
    program = PROGRAM.format(lines=[line for line, _ in SWITCHED.values()])
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    found = dict(zip(SWITCHED, result.stdout.split(), strict=True))
    assert found == {name: str(expected) for name, (_, expected) in SWITCHED.items()}, result.stderr


def test_nothing_reads_the_older_switch():
    """It raises once the newer one was used."""
    sources = [*(ROOT / "gangealing_fast").rglob("*.py"), *(ROOT / "kernels").glob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]
    reading = re.compile(r"^(?!.*`).*\ballow_tf32\b(?!\s*=[^=])", re.MULTILINE)
    assert not [source.name for source in sources if reading.search(source.read_text())]


def test_bfloat16_on_a_processor_without_units_for_it_is_said(monkeypatch, capsys):
    cpu = torch.device("cpu")
    for has_units, formats in ((True, (torch.bfloat16, torch.bfloat16)), (False, (torch.float32, torch.bfloat16))):
        monkeypatch.setattr(precision, "_cpu_computes_in_bfloat16", lambda has_units=has_units: has_units)
        assert precision.resolve("auto", cpu) == formats[0] and not capsys.readouterr().out
        assert precision.resolve("bfloat16", cpu) == formats[1]
        assert ("float32, which auto takes, is faster" in capsys.readouterr().out) == (not has_units)
