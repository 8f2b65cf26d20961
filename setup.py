# SPDX-License-Identifier: Apache-2.0
"""Builds the extension `gangealing_fast/_C.so`: C++ always, CUDA where there are sources for it and nvcc is found.

The library is compiled against the LibTorch stable ABI and holds no Python symbols: one file serves every Python >= 3.10 and
every torch >= 2.10. `gangealing_fast/_C.json` beside it says what was compiled, and what was left out and why.

Environment:
    GGF_REQUIRE_EXTENSION=1  a failed compile is an error (else the references serve, with a warning)
    FORCE_CUDA=1 | 0         insist on the CUDA part, or leave it out
    TORCH_CUDA_ARCH_LIST     "8.0+PTX 9.0", as for torch's own builds; +PTX adds code for every later architecture
    CXX, MAX_JOBS, GGF_DEBUG compiler, parallel compilations, -O1 -g
    GGF_SANITIZE=1           a library for tests/test_sanitizers.py, never for use: `build_ext --build-lib FOLDER` puts it elsewhere
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError, OptionError

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "_build"))

import ninja_build  # noqa: E402
import toolchain  # noqa: E402

# The stable ABI of torch 2.10: the library loads there and in every later torch, whether built for CPU or CUDA.
TARGET_VERSION = "0x020a000000000000"
CUDA_ARCHITECTURES = "8.0+PTX 8.6 8.9 9.0 10.0 12.0"
# float-cast-overflow is no part of `undefined`, but a NaN turned into an index is what a grid can do.
SANITIZE = ["-fsanitize=address,undefined,float-cast-overflow", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]


def enabled(name: str) -> bool:
    return os.environ.get(name, "0") not in ("", "0")


def _number(architecture: str) -> str:
    """ "8.0+PTX" as nvcc writes it: "80"."""
    return architecture.removesuffix("+PTX").replace(".", "")


class Wheel(bdist_wheel):
    """The library has no Python ABI, so neither has the wheel."""

    def get_tag(self) -> tuple[str, str, str]:
        return ("py3", "none", super().get_tag()[2])


class Build(build_ext):
    """Compiles every file of csrc/cpu and csrc/cuda through ninja, in parallel and only where something changed."""

    def finalize_options(self) -> None:
        super().finalize_options()
        if enabled("GGF_SANITIZE") and (self.inplace or self.editable_mode):
            raise OptionError("GGF_SANITIZE makes a library for tests only: give build_ext a --build-lib instead of --inplace")

    def get_ext_filename(self, fullname: str) -> str:
        return os.path.join(*fullname.split(".")) + ".so"

    def copy_extensions_to_source(self) -> None:
        """For editable installs: the library (or nothing, where it did not compile) and its report into the source tree."""
        for extension in self.extensions:
            built = Path(self.build_lib) / self.get_ext_filename(extension.name)
            for file in (built, built.with_suffix(".json")):
                target = ROOT / file.relative_to(self.build_lib)
                if file.exists():
                    # Replaced, not overwritten: a running process keeps the file it has mapped.
                    partial = target.with_name(f"{target.name}.{os.getpid()}")
                    shutil.copyfile(file, partial)
                    partial.replace(target)
                else:
                    target.unlink(missing_ok=True)

    def get_outputs(self) -> list[str]:
        return [file for file in super().get_outputs() if os.path.exists(file)]

    def get_output_mapping(self) -> dict[str, str]:
        return {a: b for a, b in super().get_output_mapping().items() if os.path.exists(a)}

    def build_extension(self, ext: Extension) -> None:
        output = Path(self.get_ext_fullpath(ext.name))
        # In the source tree rather than pip's temporary folder, so that a second install recompiles only what changed.
        objects = ROOT / "build" / f"objects-{self.plat_name}{'-sanitized' if enabled('GGF_SANITIZE') else ''}"
        objects.mkdir(parents=True, exist_ok=True)
        output.parent.mkdir(parents=True, exist_ok=True)
        try:
            report = self.compile(objects, output)
        except (CompileError, ninja_build.BuildError, RuntimeError) as error:
            output.unlink(missing_ok=True)
            self.write_report(output, {"library": False, "reason": str(error)})
            if enabled("GGF_REQUIRE_EXTENSION") or enabled("FORCE_CUDA"):
                raise CompileError(str(error)) from error
            print(
                f"WARNING: the extension was not built, the slow reference implementations will serve: {error}",
                file=sys.stderr,
                flush=True,
            )
        else:
            self.write_report(output, report)

    def write_report(self, output: Path, report: dict[str, object]) -> None:
        output.with_suffix(".json").write_text(json.dumps(report, indent=2) + "\n")

    def compile(self, objects: Path, output: Path) -> dict[str, object]:
        started = time.monotonic()
        sanitize = SANITIZE if enabled("GGF_SANITIZE") else []
        torch_root = toolchain.python_torch_root()
        compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++") or "g++"
        includes = [f"-isystem{torch_root / 'include'}", f"-I{ROOT / 'csrc'}", f"-DTORCH_TARGET_VERSION={TARGET_VERSION}"]
        optimise = ["-O1", "-g1", *sanitize] if sanitize else ["-O1", "-g"] if enabled("GGF_DEBUG") else ["-O3"]
        flags = ["-std=c++20", *optimise, "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"]
        # None of these changes the value of a result; contraction only skips a rounding.
        flags += ["-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"]
        if platform.machine() in ("x86_64", "AMD64"):
            # Every x86-64 still runs the result: this only weighs instructions, and the generic weights shun gathers.
            flags += ["-mtune=haswell"]
        sources = [ROOT / "csrc" / "register.cpp", *sorted((ROOT / "csrc" / "cpu").glob("*.cpp"))]
        jobs = [([compiler, *flags, *includes, "-c"], source) for source in sources]
        cuda_jobs, link, cuda = self.cuda_jobs(includes)

        before = [compiler, "-shared", *sanitize]
        after = [f"-L{torch_root / 'lib'}", "-Wl,--no-as-needed", "-ltorch_cpu", "-lc10", "-Wl,--as-needed", *link]
        tag = f"{toolchain.torch_version(torch_root)} {torch_root}"
        library = ninja_build.write(objects, jobs + cuda_jobs, (before, after), tag)
        ninja_build.run(objects, int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1), anew=bool(self.force))
        # Replaced, not overwritten: a running process keeps the file it has mapped.
        partial = output.with_suffix(f".so.{os.getpid()}")
        shutil.copyfile(library, partial)
        partial.replace(output)
        compiler_version = subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout.splitlines()[0]
        return {
            "library": True,
            "torch": toolchain.torch_version(torch_root),
            "target_torch": "2.10",
            "compiler": compiler_version,
            "flags": flags,
            "cpu": [source.stem for source in sources[1:]],
            "cuda": cuda,
            "seconds": round(time.monotonic() - started, 1),
        }

    def cuda_jobs(self, includes: list[str]) -> tuple[list[tuple[list[str], Path]], list[str], dict[str, object]]:
        """Commands for csrc/cuda, what to link for them, and what the report says about them."""
        wish = os.environ.get("FORCE_CUDA", "")
        sources = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))

        def without(reason: str) -> tuple[list, list, dict[str, object]]:
            if enabled("FORCE_CUDA"):
                raise CompileError(f"FORCE_CUDA is set, but {reason}")
            return [], [], {"built": False, "reason": reason}

        if not sources:
            return without("this version has no CUDA sources")
        if wish == "0":
            return without("FORCE_CUDA=0 left it out")
        home = toolchain.find_cuda()
        if home is None:
            return without("no nvcc was found (on the PATH, in CUDA_HOME or in /usr/local/cuda)")
        runtime = toolchain.cuda_runtime(home)
        if runtime is None:
            return without(f"{home} has no libcudart_static.a")
        nvcc = str(home / "bin" / "nvcc")
        known = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True).stdout.split()
        wanted = re.split(r"[;, ]+", os.environ.get("TORCH_CUDA_ARCH_LIST") or CUDA_ARCHITECTURES)
        built = [item for item in wanted if f"compute_{_number(item).rstrip('af')}" in known]
        if not built:
            return without(f"{nvcc} knows none of the architectures asked for")
        # The kernels use nothing that the oldest one lacks, so its intermediate code serves all: most of nvcc's time goes there.
        virtual = min((_number(item) for item in built), key=lambda number: int(number.rstrip("af")))
        codes = [f"sm_{_number(item)}" for item in built]
        codes += [f"compute_{virtual}"] if any(item.endswith("+PTX") for item in built) else []
        generate = [f"-gencode=arch=compute_{virtual},code=[{','.join(codes)}]"]
        command = [nvcc, "-std=c++20", "-O3", "--expt-relaxed-constexpr", "-Xcompiler", "-fPIC,-fvisibility=hidden"]
        command += ["-Xptxas", "-warn-spills", *generate, *[flag.replace("-isystem", "-I") for flag in includes], "-c"]
        link = [f"-L{runtime}", "-lcudart_static", "-ldl", "-lrt", "-lpthread"]
        report = {"built": True, "toolkit": str(home), "architectures": built, "kernels": [s.stem for s in sources]}
        return [(command, source) for source in sources], link, report


setup(
    # The Triton kernels live in kernels/ but are imported as gangealing_fast.kernels: "kernels" is another package's name.
    packages=[*find_packages(include=["gangealing_fast", "gangealing_fast.*"]), "gangealing_fast.kernels"],
    package_dir={"gangealing_fast.kernels": "kernels"},
    ext_modules=[Extension("gangealing_fast._C", ["csrc/register.cpp"])],
    cmdclass={"build_ext": Build, "bdist_wheel": Wheel},
)
