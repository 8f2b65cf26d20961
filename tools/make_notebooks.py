# SPDX-License-Identifier: Apache-2.0
"""Notebooks of the examples: examples/NAME.py becomes examples/NAME.ipynb.

    python tools/make_notebooks.py          # after a change of an example

A script is cut at its lines `# %%`. After `# %% [markdown]` comments become text. Notebooks hold no results: whoever reads them
runs them, and tests/test_examples.py does.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def notebook(script: str) -> dict[str, Any]:
    """The notebook of a script, in the format of Jupyter's version 4.5."""
    _, *parts = re.split(r"^# %%", script, flags=re.MULTILINE)
    cells: list[dict[str, Any]] = []
    for number, part in enumerate(parts):
        head, _, body = part.partition("\n")
        text = head.strip() == "[markdown]"
        if text:
            body = "\n".join(line.removeprefix("#").removeprefix(" ") for line in body.splitlines())
        cell: dict[str, Any] = {"cell_type": "markdown" if text else "code", "id": f"cell-{number}", "metadata": {}}
        if not text:
            cell |= {"execution_count": None, "outputs": []}
        cells.append(cell | {"source": body.strip("\n").splitlines(keepends=True)})
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    about = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return {"cells": cells, "metadata": about, "nbformat": 4, "nbformat_minor": 5}


def text_of(path: Path) -> str:
    """What the notebook of the example at `path` holds."""
    return json.dumps(notebook(path.read_text(encoding="utf-8")), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    for source in sorted(EXAMPLES.glob("*.py")):
        source.with_suffix(".ipynb").write_text(text_of(source), encoding="utf-8")
        print(source.with_suffix(".ipynb"))
