# SPDX-License-Identifier: Apache-2.0
"""tools/show_rows.py: which pictures of a sheet it takes, and at which size."""

from __future__ import annotations

import sys

import pytest
import torch
from PIL import Image

from gangealing_fast.report.pictures import save_grid
from tools import show_rows


@pytest.mark.parametrize("columns", [8, 16])
def test_the_first_pictures_of_each_sheet_below_one_another(columns, tmp_path, monkeypatch):
    sheets = []
    for k in range(2):
        grey = torch.arange(columns * 3) / (columns * 3) - k  # every picture of both sheets has a grey of its own
        pictures = grey[:, None, None, None].expand(-1, 3, 4, 4)
        sheets.append(tmp_path / f"sheet-{k}.png")
        save_grid(pictures, sheets[-1], columns=columns)
    out = tmp_path / "rows.png"
    arguments = ["show_rows", out, *sheets, "--columns", columns, "--rows", 2, "--side", 8]
    monkeypatch.setattr(sys, "argv", [str(argument) for argument in arguments])
    show_rows.main()
    shown = Image.open(out)
    assert shown.size == (8 * 10 - 2, 4 * 10 - 2)
    for row in range(4):
        with Image.open(sheets[row // 2]) as sheet:
            for column in range(8):
                wanted = sheet.convert("RGB").getpixel((column * 6 + 1, (row % 2) * 6 + 1))
                assert shown.getpixel((column * 10, row * 10)) == shown.getpixel((column * 10 + 7, row * 10 + 7)) == wanted
