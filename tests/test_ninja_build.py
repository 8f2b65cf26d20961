# SPDX-License-Identifier: Apache-2.0
"""The build through ninja: exactly what depends on a changed file is made anew, and failures are one message."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def ninja_build(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "_build"))
    import ninja_build

    return ninja_build


@pytest.fixture
def project(tmp_path, ninja_build):
    """Two sources in a folder with a space, one of which includes a header through another; a function that builds them."""
    compiler = shutil.which("g++")
    if not compiler:
        pytest.skip("needs g++")
    sources = tmp_path / "some sources"
    sources.mkdir()
    (sources / "inner.h").write_text("inline int number() { return 1; }\n")
    (sources / "outer.h").write_text('#include "inner.h"\n')
    (sources / "with.cpp").write_text('#include "outer.h"\nint with() { return number(); }\n')
    (sources / "without.cpp").write_text("int without() { return 2; }\n")
    objects = tmp_path / "objects"
    objects.mkdir()

    def build(flag: str = "-O0", tag: str = "1", anew: bool = False) -> set[str]:
        jobs = [([compiler, flag, "-fPIC", "-c"], source) for source in sorted(sources.glob("*.cpp"))]
        library = ninja_build.write(objects, jobs, ([compiler, "-shared"], []), tag)
        said = ninja_build.run(objects, 2, anew)
        assert library.exists()
        return {source.stem for _, source in jobs if f"{source.name}" in said and "compiling" in said}

    build.sources = sources
    return build


def test_only_what_a_change_concerns_is_compiled(project):
    assert project() == {"with", "without"}
    assert project() == set()
    (project.sources / "inner.h").write_text("inline int number() { return 3; }\n")
    assert project() == {"with"}
    (project.sources / "without.cpp").write_text("int without() { return 4; }\n")
    assert project() == {"without"}


@pytest.mark.parametrize("changed", [{"flag": "-O1"}, {"tag": "2"}, {"anew": True}], ids=str)
def test_another_command_another_torch_and_force_compile_everything(project, changed):
    project()
    assert project(**changed) == {"with", "without"}


def test_a_failed_compile_says_what_the_compiler_said(project, ninja_build):
    (project.sources / "with.cpp").write_text("int broken(\n")
    with pytest.raises(ninja_build.BuildError, match="error:"):
        project()


def test_without_ninja_the_sentence_says_what_to_install(ninja_build, monkeypatch, tmp_path):
    monkeypatch.setattr(ninja_build.sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setattr(ninja_build.shutil, "which", lambda name: None)
    monkeypatch.setattr(ninja_build, "find_spec", lambda name: None)
    with pytest.raises(ninja_build.BuildError, match="pip install ninja"):
        ninja_build.find_ninja()
