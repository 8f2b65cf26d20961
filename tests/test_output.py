# SPDX-License-Identifier: Apache-2.0
"""What happens to commands whose output nobody takes, or whose work does not fit the memory: one sentence or none, no traceback."""

from __future__ import annotations

import errno
import importlib
import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gangealing_fast.__main__ import COMMANDS
from gangealing_fast.runtime.commands import run_command

ROOT = Path(__file__).resolve().parents[1]
LINES = [["env"], ["env", "--json"], [""], *([command, "--help"] for command in COMMANDS)]
# Each command in a child of one process: starting Python for each would take a minute.
EACH = """
import importlib, os, sys
lines, output = eval(sys.argv[1]), os.open(sys.argv[2], os.O_WRONLY) if sys.argv[2] else None
import tyro, gangealing_fast.runtime.commands
for words in lines:
    print(words, end=" ", file=sys.stderr, flush=True)
    child = os.fork()
    if child == 0:
        if output is None:
            read, output = os.pipe()
            os.close(read)
        os.dup2(output, 1)
        sys.argv = [f"python -m gangealing_fast.{words[0]}", *words[1:]]
        importlib.import_module("gangealing_fast." + (words[0] or "__main__")).main()
        sys.exit()
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), file=sys.stderr, flush=True)
"""


def said_by_each(output: str) -> list[str]:
    """A line for each command whose output goes to the file `output`, or to a closed pipe: what it says on standard error."""
    done = subprocess.run([sys.executable, "-c", EACH, repr(LINES), output], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stderr.splitlines()


def test_a_closed_pipe_ends_a_command_quietly():
    assert said_by_each("") == [f"{words} 141" for words in LINES]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_under_the_output_is_one_sentence():
    error = "error: what the command prints cannot be written: No space left on device"
    assert said_by_each("/dev/full") == [line for words in LINES for line in (f"{words} {error}", "2")]


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


SWALLOWING = """
import os, signal, time
try:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.02)
    WHOLE = True
except BaseException:
    WHOLE = False
"""


def test_ctrl_c_amid_an_import_that_swallows_it_ends_the_command_after_it(tmp_path, monkeypatch, capsys):
    (tmp_path / "swallowing_import.py").write_text(SWALLOWING)
    monkeypatch.syspath_prepend(tmp_path)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    whole = []

    def command() -> None:
        whole.append(importlib.import_module("swallowing_import").WHOLE)
        time.sleep(10)

    try:
        with pytest.raises(SystemExit) as end:
            run_command(command)
        assert end.value.code == 130 and whole == [True] and capsys.readouterr().err == "interrupted\n"
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
        sys.modules.pop("swallowing_import", None)


def test_a_program_keeps_its_own_way_with_ctrl_c():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        run_command(lambda: os.kill(os.getpid(), signal.SIGINT))
    finally:
        signal.signal(signal.SIGINT, before)


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
