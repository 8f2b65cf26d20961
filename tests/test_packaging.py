# SPDX-License-Identifier: Apache-2.0
"""Imports stay light, the build's own code finds its tools, and the library holds no Python and no newer torch."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
import yaml

import gangealing_fast
from gangealing_fast.__main__ import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = Path(gangealing_fast.__file__).with_name("_C.so")


def imported_by(code: str) -> set[str]:
    """Top-level packages in sys.modules after running `code` in a fresh interpreter."""
    code = f"import sys\ntry:\n    exec({code!r})\nexcept SystemExit:\n    pass\nprint('\\n@@' + ' '.join(sys.modules))"
    variables = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=variables, timeout=120)
    assert result.returncode == 0, result.stderr
    return {name.split(".")[0] for name in result.stdout.rsplit("@@", 1)[1].split()}


@pytest.mark.no_torch
def test_import_is_light():
    assert not imported_by("import gangealing_fast; gangealing_fast.__version__; dir(gangealing_fast)") & {
        "torch",
        "numpy",
        "PIL",
        "matplotlib",
    }


@pytest.mark.no_torch
@pytest.mark.parametrize("command", COMMANDS)
def test_help_does_not_import_torch(command):
    module = f"gangealing_fast.{command}"
    code = f"import runpy; sys.argv = ['{command}', '--help']; runpy.run_module('{module}', run_name='__main__', alter_sys=True)"
    assert "torch" not in imported_by(code)


def test_unknown_attributes_are_attribute_errors():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        gangealing_fast.nothing  # noqa: B018


def test_kernels_package_is_mapped():
    try:
        metadata.distribution("gangealing_fast")
    except metadata.PackageNotFoundError:
        pytest.skip("the package is not installed, only on the search path")
    from gangealing_fast import kernels

    assert kernels.__name__ == "gangealing_fast.kernels"


def declared_version() -> str:
    """What pyproject.toml says."""
    (version,) = re.findall(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    return version


def test_versions_agree():
    changes = (ROOT / "CHANGELOG.md").read_text()
    assert gangealing_fast.__version__ == declared_version()
    headings = re.findall(r"^## (\S+)", changes, re.MULTILINE)
    assert headings[:2] == ["Unreleased", declared_version()]


def test_the_citation_is_that_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0" and citation["type"] == "software" and citation["message"]
    assert citation["title"] == "gangealing_fast" and citation["license"] == "Apache-2.0"
    assert citation["version"] == declared_version() and citation["authors"] == [{"name": "The gangealing_fast authors"}]
    (paper,) = citation["references"]
    assert paper["year"] == 2022 and len(paper["authors"]) == 6 and "2112.05143" in paper["url"]


def test_hooks_before_a_commit_are_those_of_make_lint():
    makefile = (ROOT / "Makefile").read_text()
    recipe = re.search(r"^lint:.*\n((?:\t.*\n)+)", makefile, re.MULTILINE)
    assert recipe
    (local,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    entries = [hook["entry"].replace(".venv/bin/python", "$(RUN)").replace(".venv/bin/", "$(BIN)/") for hook in local["hooks"]]
    assert entries == [line.strip().removesuffix(" $(CPP)") for line in recipe[1].splitlines()]
    pattern = local["hooks"][-1]["files"]
    files = [file for folder in ("csrc", "tests") for file in (ROOT / folder).rglob("*")]
    found = {file for file in files if re.search(pattern, file.relative_to(ROOT).as_posix())}
    assert found == {file for file in files if file.suffix in (".cpp", ".h", ".cu", ".cuh")}


def test_what_is_installed_is_the_package_alone(tmp_path):
    """Neither tests nor golden vectors enter a wheel."""
    command = [sys.executable, "setup.py", "--quiet", "build_py", "--build-lib", str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    files = {file.relative_to(tmp_path).as_posix() for file in tmp_path.rglob("*") if file.is_file()}
    assert {"gangealing_fast/__main__.py", "gangealing_fast/py.typed", "gangealing_fast/kernels/adain.py"} <= files
    assert all(file.startswith("gangealing_fast/") and "golden" not in file for file in files)


def needs(tool: str) -> str:
    found = shutil.which(tool)
    if not found or not LIBRARY.exists():
        pytest.skip(f"needs {tool} and the compiled library")
    return found


def test_library_needs_no_python_and_no_cuda():
    listing = subprocess.run([needs("readelf"), "-d", str(LIBRARY)], capture_output=True, text=True).stdout
    needed = re.findall(r"NEEDED.*\[(.*?)\]", listing)
    assert "libtorch_cpu.so" in needed
    assert not [name for name in needed if re.match(r"libpython|libtorch_python|libtorch_cuda|libc10_cuda|libcudart", name)]


def test_library_uses_only_the_stable_abi():
    """Of torch and c10 it may ask for the C shims alone: no mangled C++ symbol of theirs, which change between releases."""
    listing = subprocess.run([needs("nm"), "-D", "--undefined-only", str(LIBRARY)], capture_output=True, text=True).stdout
    symbols = [line.split()[-1].split("@")[0] for line in listing.splitlines()]
    assert any(symbol.startswith(("aoti_torch", "torch_")) for symbol in symbols)
    unstable = [symbol for symbol in symbols if re.match(r"_ZNK?(2at|3c10|5torch)|Py", symbol)]
    assert not unstable


@pytest.mark.slow
def test_a_wheel_runs_on_a_machine_without_a_compiler(tmp_path):
    """Built from what `make` has compiled, unpacked elsewhere, run without any program on the path."""
    if not any((ROOT / "build").glob("objects-*/*.o")) or not LIBRARY.exists():
        pytest.skip("needs the objects of a build in this checkout: make rebuild")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        str(tmp_path),
        ".",
    ]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert "-py3-none-" in wheel.name
    unpacked = tmp_path / "unpacked"
    zipfile.ZipFile(wheel).extractall(unpacked)
    variables = {**os.environ, "PATH": "", "PYTHONPATH": str(unpacked)}
    command = [sys.executable, "-m", "gangealing_fast.env", "--json"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=variables, timeout=120)
    assert result.returncode == 0, result.stderr
    library = json.loads(result.stdout)["library"]
    assert library["loaded"] and library["path"].startswith(str(unpacked))


def test_the_image_is_built_from_what_is_there_and_from_nothing_else():
    recipe = (ROOT / "Dockerfile").read_text()
    copied = {name for line in re.findall(r"^COPY (?!--from)(.*) \S+$", recipe, re.MULTILINE) for name in line.split()}
    assert {"pyproject.toml", "setup.py", "gangealing_fast", "csrc"} <= copied and all((ROOT / name).exists() for name in copied)
    let_through = set(re.findall(r"^!(\S+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE))
    assert let_through == copied


@pytest.fixture
def toolchain(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "_build"))
    import toolchain

    return toolchain


def test_build_finds_the_torch_in_use(toolchain):
    import torch

    root = toolchain.find_torch()
    assert root == Path(torch.__file__).parent
    assert toolchain.torch_version(root) == torch.__version__


def test_build_refuses_a_torch_that_is_too_old(toolchain, tmp_path, monkeypatch):
    header = tmp_path / "torch" / "include" / "torch" / "csrc" / "stable" / "library.h"
    header.parent.mkdir(parents=True)
    header.touch()
    (tmp_path / "torch" / "version.py").write_text("__version__ = '2.9.1+cpu'\n")
    monkeypatch.setattr(toolchain, "_torch_candidates", lambda: iter([tmp_path / "torch"]))
    assert toolchain.find_torch() is None
    with pytest.raises(RuntimeError, match="install torch first"):
        toolchain.python_torch_root()
    (tmp_path / "torch" / "version.py").write_text("__version__ = '2.10.0'\n")
    assert toolchain.find_torch() == tmp_path / "torch"


def test_nvcc_behind_a_wrapper_names_its_own_toolkit(toolchain, tmp_path, monkeypatch):
    home = tmp_path / "toolkit"
    for file in ("bin/nvcc", "include/cuda_runtime.h"):
        (home / file).parent.mkdir(parents=True, exist_ok=True)
        (home / file).touch()
    wrapper = tmp_path / "wrapper" / "nvcc"
    wrapper.parent.mkdir()
    wrapper.write_text(f"#!/bin/sh\necho '#$ TOP={home}' >&2\n")
    wrapper.chmod(0o755)
    monkeypatch.setenv("PATH", str(wrapper.parent), prepend=os.pathsep)
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.delenv("CUDA_PATH", raising=False)
    assert toolchain.find_cuda() == home


def build(tmp_path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A build of a copy of the sources that leaves this checkout alone."""
    copy = tmp_path / "copy"
    copy.mkdir()
    for part in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        if (ROOT / part).exists():
            shutil.copy(ROOT / part, copy)
    for part in ("_build", "csrc", "kernels"):
        shutil.copytree(ROOT / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "gangealing_fast").mkdir()
    (copy / "gangealing_fast" / "__init__.py").touch()
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    variables = {**os.environ, "FORCE_CUDA": "0", **environment}
    return subprocess.run(command, cwd=copy, capture_output=True, text=True, env=variables, timeout=600)


def test_without_a_compiler_the_build_succeeds_and_says_why(tmp_path):
    result = build(tmp_path, CXX="/nonexistent/c++", GGF_REQUIRE_EXTENSION="0")
    assert result.returncode == 0, result.stderr
    assert "the slow reference implementations will serve" in result.stderr
    package = tmp_path / "copy" / "gangealing_fast"
    assert not (package / "_C.so").exists() and "/nonexistent/c++" in (package / "_C.json").read_text()


def test_a_required_extension_makes_a_failed_compile_an_error(tmp_path):
    result = build(tmp_path, CXX="/nonexistent/c++", GGF_REQUIRE_EXTENSION="1")
    assert result.returncode != 0 and "/nonexistent/c++" in result.stderr


def test_ci_has_the_library():
    if os.environ.get("GGF_REQUIRE_EXTENSION", "0") in ("", "0"):
        pytest.skip("GGF_REQUIRE_EXTENSION is not set")
    assert LIBRARY.exists()


def test_ci_compiles_for_the_oldest_and_the_newest_architecture():
    """And the oldest one's intermediate code serves all of those that a build has."""
    (chosen,) = re.findall(r"TORCH_CUDA_ARCH_LIST:-([^}]*)}", (ROOT / ".ci" / "run").read_text())
    (everything,) = re.findall(r'^CUDA_ARCHITECTURES = "(.*)"$', (ROOT / "setup.py").read_text(), re.MULTILINE)
    assert chosen.split() == [everything.split()[0], everything.split()[-1]]
