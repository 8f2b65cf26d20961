# SPDX-License-Identifier: Apache-2.0
"""The examples run to their end, as notebooks, and each notebook is that of its script."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tools import make_notebooks

SCRIPTS = sorted(make_notebooks.EXAMPLES.glob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_the_notebook_is_that_of_the_script(script):
    assert script.with_suffix(".ipynb").read_text() == make_notebooks.text_of(script), "run python tools/make_notebooks.py"


def test_there_is_no_notebook_without_a_script():
    assert [path.with_suffix(".py") for path in sorted(make_notebooks.EXAMPLES.glob("*.ipynb"))] == SCRIPTS and SCRIPTS


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_it_runs_in_jupyter(script, tmp_path, monkeypatch):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[1]) + os.pathsep + os.environ.get("PYTHONPATH", ""))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    book = nbformat.read(script.with_suffix(".ipynb"), as_version=4)
    nbformat.validate(book)
    nbclient.NotebookClient(book, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    printed = "".join(output.get("text", "") for cell in book.cells for output in cell.get("outputs", ()))
    assert printed.strip(), "an example shows something"
