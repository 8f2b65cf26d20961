# SPDX-License-Identifier: Apache-2.0
"""House rules that no formatter checks: short functions, short lines in documents, no test that imports another test."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.no_torch

ROOT = Path(__file__).resolve().parent.parent
# Kernels of Triton are long because what one of them calls is compiled into it: they are left out.
FOLDERS = ("_build", "benchmarks", "gangealing_fast", "tests", "tools")
FILES = [*sorted(ROOT.glob("*.py")), *(path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py")))]
TEST_FILES = sorted((ROOT / "tests").rglob("test_*.py"))
GENERATED = {"docs/performance.md", "docs/gpu-report.md"}
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *(path for folder in ("docs", *FOLDERS) for path in sorted((ROOT / folder).rglob("*.md")))]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def functions(path: Path) -> Iterator[tuple[str, int]]:
    """Name and number of lines of every function of a file, those inside others included; decorators do not count."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            yield node.name, node.end_lineno - node.lineno + 1


@pytest.mark.parametrize("folder", ["", *FOLDERS])
def test_no_function_is_longer_than_60_lines(folder):
    files = [path for path in FILES if name_of(path).rpartition("/")[0].split("/")[0] == folder]
    assert files
    long = [f"{name_of(path)}: {name} has {lines}" for path in files for name, lines in functions(path) if lines > 60]
    assert not long, "\n".join(long)


def prose(text: str) -> Iterator[tuple[int, str]]:
    """Number and text of the lines of a document that are neither a table's nor a code block's."""
    fenced = False
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif not fenced and not line.lstrip().startswith("|"):
            yield number, line


def test_lines_of_documents_that_count():
    text = "words\n```\ncode\n```\n| a | table |\n  ```sh\n  code\n  ```\nmore\n"
    assert list(prose(text)) == [(1, "words"), (9, "more")]


@pytest.mark.parametrize("path", [path for path in DOCUMENTS if name_of(path) not in GENERATED], ids=name_of)
def test_lines_of_documents_are_short(path):
    long = [f"{name_of(path)}:{number} has {len(line)}" for number, line in prose(path.read_text()) if len(line) >= 140]
    assert not long, "\n".join(long)


@pytest.mark.parametrize("path", TEST_FILES, ids=name_of)
def test_no_test_imports_another(path):
    """What several tests need lies in a module that is no test: pytest would run what is imported twice, or not at all."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        else:
            continue
        assert not {part for name in names for part in name.split(".")} & {other.stem for other in TEST_FILES}
