# SPDX-License-Identifier: Apache-2.0
"""Compiles and links one library through ninja, which knows from depfiles exactly which headers each object was made from."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

Job = tuple[list[str], Path]
"""A compiler's command without source and output, and the source."""


class BuildError(Exception):
    """Ninja is missing, or a command of the build failed; the message carries what was said."""


def find_ninja() -> list[str]:
    """The command that runs ninja: that of this interpreter's environment, else the one on the PATH."""
    beside = Path(sysconfig.get_path("scripts")) / "ninja"
    if beside.exists():
        return [str(beside)]
    if found := shutil.which("ninja"):
        return [found]
    if find_spec("ninja"):
        return [sys.executable, "-m", "ninja"]
    raise BuildError("ninja, which runs the compilers, was not found; `pip install ninja` brings it")


def _path(path: Path) -> str:
    """A path as a build line spells it."""
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


def _command(words: Sequence[str]) -> str:
    """A command line as a variable spells it."""
    return shlex.join(words).replace("$", "$$")


def object_of(source: Path, folder: Path) -> Path:
    """The object file in `folder` that is made from `source`."""
    return folder / f"{source.parent.name}_{source.stem}.o"


def write(folder: Path, jobs: Sequence[Job], link: tuple[list[str], list[str]], tag: str) -> Path:
    """Write `folder/build.ninja`; returns the path of the library that it makes.

    Args:
        jobs: what is compiled, by g++, clang++ or nvcc.
        link: the linker's words before and after the object files.
        tag: part of every command, so that another tag compiles everything anew.
    """
    library = folder / "library.so"
    lines = ["ninja_required_version = 1.5", f"tag = {tag.replace('$', '$$')}", "rule compile"]
    lines += ["  command = $line -MD -MF $out.d  # $tag", "  depfile = $out.d", "  deps = gcc", "  description = compiling $in"]
    lines += ["rule link", "  command = $line  # $tag", "  description = linking"]
    objects = []
    for command, source in jobs:
        target = object_of(source, folder)
        objects.append(target)
        line = _command([*command, str(source), "-o", str(target)])
        lines += [f"build {_path(target)}: compile {_path(source)}", f"  line = {line}"]
    before, after = link
    line = _command([*before, *map(str, objects), "-o", str(library), *after])
    lines += [f"build {_path(library)}: link {' '.join(map(_path, objects))}", f"  line = {line}"]
    (folder / "build.ninja").write_text("\n".join(lines) + "\n")
    return library


def run(folder: Path, workers: int, anew: bool = False) -> str:
    """Build what changed, `workers` commands at a time, printing as it goes; with `anew` everything.

    Returns what ninja printed. Raises BuildError if there is no ninja or a command fails.
    """
    ninja = [*find_ninja(), "-C", str(folder)]
    if anew:
        subprocess.run([*ninja, "-t", "clean"], capture_output=True)
    variables = {**os.environ, "NINJA_STATUS": "[%f/%t] "}
    process = subprocess.Popen(
        [*ninja, "-j", str(workers)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=variables
    )
    assert process.stdout
    said = []
    for line in process.stdout:
        said.append(line)
        print(line, end="", file=sys.stderr, flush=True)
    if process.wait():
        raise BuildError(f"ninja failed:\n{''.join(said)[-4000:]}")
    return "".join(said)
