# SPDX-License-Identifier: Apache-2.0
"""Holds the promise `torch>=2.10`: compiles against the headers of older releases, and runs operators and Triton kernels under one.

    python tools/check_torch_versions.py

Headers: every C++ and CUDA source against those of the oldest promised torch and of 2.11, syntax alone, out of their wheels.
Tests: a selection for each operator under torch 2.11 with the library as it is built, and Triton 3.6, the oldest in use, in its
interpreter. That environment shares what this interpreter has, and adds torch, Triton and NumPy. All is kept in build/versions.
A release that cannot be had ends the check with a sentence and exit status 1.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / "build" / "versions"
HEADERS = ("2.10.0", "2.11.0")
"""The oldest release that pyproject.toml promises, and the next."""
OLD = {"torch": "torch==2.11.0", "triton": "triton==3.6.0", "numpy": "numpy<2.4"}
TARGET_VERSION = "0x020a000000000000"
FLAGS = ("-std=c++20", "-fsyntax-only", "-fvisibility=hidden", f"-DTORCH_TARGET_VERSION={TARGET_VERSION}", "-Wall", "-Wextra")
# The emulation's headers stand for CUDA's, so that no toolkit is needed.
CUDA_FLAGS = ("-x", "c++", f"-I{ROOT / 'tests' / 'emulation'}", "-Wno-unused-parameter", "-Wno-unknown-pragmas")
OPERATOR_TESTS = "registration or compil or kernels_are_compiled or golden"
KERNEL_TESTS = "(adain and image) or (lpips and tiles) or (modulated and plain)"


class CheckError(Exception):
    """A release that cannot be had, or one that does not fit; the message is one sentence and what was said."""


def _run(command: Sequence[str], what: str, **variables: str) -> str:
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, **variables})
    if result.returncode:
        raise CheckError(f"{what}:\n{(result.stdout + result.stderr)[-6000:]}")
    return result.stdout


def wheel(version: str) -> Path:
    """The wheel of torch `version`, downloaded once. Raises CheckError if it cannot be had."""
    folder = CACHE / "wheels"
    found = list(folder.glob(f"torch-{version}[-+]*.whl"))
    if not found:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), f"torch=={version}"]
        _run(command, f"torch {version} cannot be had, so that nothing is known about it")
        found = list(folder.glob(f"torch-{version}[-+]*.whl"))
    return found[0]


def headers(version: str) -> Path:
    """The include folder of torch `version`, out of its wheel."""
    folder = CACHE / f"headers-{version}"
    if not folder.exists():
        partial = folder.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        with zipfile.ZipFile(wheel(version)) as archive:
            archive.extractall(partial, [name for name in archive.namelist() if name.startswith("torch/include/")])
        partial.rename(folder)
    return folder / "torch" / "include"


def sources() -> list[Path]:
    """Every file that the library is compiled from."""
    folder = ROOT / "csrc"
    return [folder / "register.cpp", *sorted((folder / "cpu").glob("*.cpp")), *sorted((folder / "cuda").glob("*.cu"))]


def _compiled_once(compiler: str, include: Path, folder: Path) -> list[str]:
    """What makes the compiler take torch's headers as `folder` holds them, parsed once; nothing where they do not parse alone."""
    text = "\n".join(file.read_text() for file in sorted((ROOT / "csrc").rglob("*.[ch]*")))
    header = folder / "torch_headers.h"
    header.write_text(
        "".join(f"#include <{name}>\n" for name in sorted(set(re.findall(r"^#include <(torch/.*)>", text, re.MULTILINE))))
    )
    command = [
        compiler,
        *(flag for flag in FLAGS if flag != "-fsyntax-only"),
        f"-isystem{include}",
        "-x",
        "c++-header",
        str(header),
    ]
    compiled = subprocess.run([*command, "-o", f"{header}.gch"], capture_output=True)
    return [] if compiled.returncode else ["-include", str(header)]


def check_headers(version: str, include: Path) -> None:
    """Compile every source, syntax alone, against `include`. Raises CheckError with the compiler's words."""
    compiler = os.environ.get("CXX") or "g++"

    def check(source: Path) -> None:
        extra = CUDA_FLAGS if source.suffix == ".cu" else ()
        command = [compiler, *FLAGS, *extra, f"-isystem{include}", f"-I{ROOT / 'csrc'}", *once, str(source)]
        _run(command, f"{source.relative_to(ROOT)} does not compile against torch {version}")

    with TemporaryDirectory() as folder, ThreadPoolExecutor(int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)) as pool:
        once = _compiled_once(compiler, include, Path(folder))
        list(pool.map(check, sources()))
    print(f"torch {version}: {len(sources())} sources compile against its headers", flush=True)


def environment() -> Path:
    """The interpreter of an environment with torch 2.11 and Triton 3.6 that shares all else with this one."""
    folder = CACHE / "environment"
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        shutil.rmtree(folder, ignore_errors=True)
        _run([sys.executable, "-m", "venv", str(folder)], "no environment could be made")
        # Most of torch's Python is never imported here: what is, Python compiles then.
        pip = [str(python), "-m", "pip", "install", "--quiet", "--no-compile"]
        old = [str(wheel(OLD["torch"].split("==")[1])), OLD["triton"], OLD["numpy"]]
        _run([*pip, "--no-deps", *old], f"{', '.join(OLD.values())} cannot be had, so that nothing is known about them")
        # Found last, after what was installed above: shared, not copied.
        shared = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
        query = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
        own = Path(_run(query, "the new environment does not run").strip())
        (own / "zz_shared.pth").write_text("\n".join(shared) + "\n")
        if subprocess.run([str(python), "-c", "import torch"], capture_output=True).returncode:
            # This interpreter's torch has no CUDA libraries to share.
            _run([*pip, OLD["torch"]], "what the older torch needs cannot be had")
        (folder / "complete").touch()
    return python


def operator_tests() -> list[str]:
    """The test file of every operator."""
    names = (file.stem for file in (ROOT / "gangealing_fast" / "ops").glob("[a-z]*.py"))
    return [f"tests/test_{name}.py" for name in sorted(names) if (ROOT / "tests" / f"test_{name}.py").exists()]


def check_tests(python: Path) -> None:
    """Run the operators' tests, and the Triton kernels in the interpreter. Raises CheckError if one fails."""
    query = "import numpy, torch, triton; print(torch.__version__, triton.__version__, numpy.__version__)"
    versions = _run([str(python), "-c", query], "the older torch cannot be imported").split()
    named = f"torch {versions[0]}, Triton {versions[1]}, NumPy {versions[2]}"
    workers = os.environ.get("MAX_JOBS") or str(os.cpu_count() or 1)
    pytest = [str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", workers]
    variables = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    said = _run([*pytest, "-k", OPERATOR_TESTS, *operator_tests()], f"operators fail under {named}", **variables)
    print(f"{named}: operators: {said.strip().splitlines()[-1]}", flush=True)
    command = [*pytest, "-k", KERNEL_TESTS, "tests/triton_kernels"]
    said = _run(command, f"Triton kernels fail under {named}", TRITON_INTERPRET="1", **variables)
    print(f"{named}: Triton's interpreter: {said.strip().splitlines()[-1]}", flush=True)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--only", choices=("headers", "tests"), help="one of the two checks alone")
    options = parser.parse_args()
    if platform.system() != "Linux":
        sys.exit("this check needs Linux, whose wheels of torch it compares.")
    CACHE.mkdir(parents=True, exist_ok=True)
    try:
        if options.only != "tests":
            with ThreadPoolExecutor(1) as pool:
                # One is fetched while the compiler checks the other.
                fetched = [pool.submit(headers, version) for version in HEADERS]
                for version, include in zip(HEADERS, fetched, strict=True):
                    check_headers(version, include.result())
        if options.only != "headers":
            check_tests(environment())
    except CheckError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
