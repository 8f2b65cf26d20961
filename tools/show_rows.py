# SPDX-License-Identifier: Apache-2.0
"""Put the first pictures of the first rows of several sheets of samples below one another, for docs/images.

python tools/show_rows.py docs/images/generator-stages.png SHEET...
python tools/show_rows.py docs/images/aligner-samples.png runs/cats/samples-0001200.png --columns 16 --rows 3

A sheet of `pretrain` has 8 columns, one of `train` 16.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image

SHOWN, GAP = 8, 2


def first_rows(sheet: Path, columns: int, rows: int, side: int) -> list[list[Image.Image]]:
    """The first pictures of the first rows of a sheet that has so many columns, each enlarged to `side` without smoothing."""
    whole = Image.open(sheet).convert("RGB")
    step = (whole.width + GAP) // columns
    size = step - GAP
    return [
        [
            whole.crop((column * step, row * step, column * step + size, row * step + size)).resize(
                (side, side), Image.Resampling.NEAREST
            )
            for column in range(SHOWN)
        ]
        for row in range(rows)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("sheets", type=Path, nargs="+", help="samples-*.png, from above to below")
    parser.add_argument("--columns", type=int, default=8, help="of each sheet")
    parser.add_argument("--rows", type=int, default=1, help="of each sheet")
    parser.add_argument("--side", type=int, default=64, help="of each picture, in pixels")
    options = parser.parse_args()
    rows = [row for sheet in options.sheets for row in first_rows(sheet, options.columns, options.rows, options.side)]
    step = options.side + GAP
    result = Image.new("RGB", (SHOWN * step - GAP, len(rows) * step - GAP), "white")
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            result.paste(picture, (x * step, y * step))
    result.save(options.out, optimize=True)
    print(f"{len(rows)} rows: {options.out}")


if __name__ == "__main__":
    main()
