# SPDX-License-Identifier: Apache-2.0
"""What happens to commands whose output nobody takes, or whose work does not fit the memory: one sentence or none, no traceback."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gangealing_fast.__main__ import COMMANDS
from gangealing_fast.runtime.commands import run_command

ROOT = Path(__file__).resolve().parents[1]
LINES = [["env"], ["env", "--json"], [], *([command, "--help"] for command in COMMANDS)]


def started(words: list[str], **options) -> subprocess.Popen:
    module = ".".join(["gangealing_fast", *words[:1]])
    return subprocess.Popen([sys.executable, "-m", module, *words[1:]], cwd=ROOT, stderr=subprocess.PIPE, **options)


@pytest.mark.parametrize("words", LINES, ids=" ".join)
def test_a_closed_pipe_ends_a_command_quietly(words):
    read, write = os.pipe()
    os.close(read)
    process = started(words, stdout=write)
    os.close(write)
    _, error = process.communicate(timeout=300)
    assert error == b"" and process.returncode == 141


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("words", LINES, ids=" ".join)
def test_a_full_disk_under_the_output_is_one_sentence(words):
    with open("/dev/full", "w") as full:
        process = started(words, stdout=full)
        _, error = process.communicate(timeout=300)
    assert error == b"error: what the command prints cannot be written: No space left on device\n" and process.returncode == 2


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (MemoryError(), 2, "there is not enough memory for this"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), 2, "there is not enough memory"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (BrokenPipeError(), 141, ""),
    ],
    ids=str,
)
def test_how_a_command_ends(error, status, words, capsys):
    def command() -> None:
        raise error

    with pytest.raises(SystemExit) as end:
        run_command(command)
    said = capsys.readouterr().err
    assert end.value.code == status and words in said and said.count("\n") == (1 if words else 0)


FAULTS = [RuntimeError("a fault of ours"), OSError(errno.ENOSPC, "full", "a file"), KeyError("x")]


@pytest.mark.parametrize("error", FAULTS, ids=str)
def test_faults_of_ours_keep_their_traceback(error):
    def command() -> None:
        raise error

    with pytest.raises(type(error)):
        run_command(command)


def test_a_stream_that_knows_no_letters(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    run_command(lambda: print("Kätzchen \udcff"))
    sys.stdout.flush()
    assert raw.getvalue() == b"K\\xe4tzchen \\udcff\n"
