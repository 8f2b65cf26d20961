# SPDX-License-Identifier: Apache-2.0
"""Points of a plane as a picture, coloured by class. A drawing of thousands of SVG circles would make a page slow."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence

from PIL import Image, ImageDraw

MARGIN = 12
FINER = 3
"""Points are drawn so many times as large and then averaged, for smooth edges."""


def class_colour(number: int, count: int) -> tuple[int, int, int]:
    """A colour for each class: hues around the circle, every other one darker."""
    red, green, blue = colorsys.hsv_to_rgb(number / max(1, count), 0.8, 0.85 if number % 2 else 0.6)
    return round(255 * red), round(255 * green), round(255 * blue)


def scatter_picture(points: Sequence[Sequence[float]], classes: Sequence[int] | None = None, *, side: int = 480) -> Image.Image:
    """Points (x, y) as dots on white, x to the right and y up, both at one scale; those that are not finite are left out.

    classes: of each point, 0, 1, ..., for its colour; grey without. Raises ValueError if they are not equally many.
    """
    if classes is not None and len(classes) != len(points):
        raise ValueError(f"there are {len(points)} points but {len(classes)} classes.")
    kept = [k for k, (x, y) in enumerate(points) if math.isfinite(x) and math.isfinite(y)]
    picture = Image.new("RGB", (side * FINER, side * FINER), "white")
    if kept:
        xs, ys = [points[k][0] for k in kept], [points[k][1] for k in kept]
        middle = (max(xs) + min(xs)) / 2, (max(ys) + min(ys)) / 2
        reach = max(max(xs) - min(xs), max(ys) - min(ys)) / 2 or 1.0
        scale = (side / 2 - MARGIN) * FINER / reach
        count = 1 + max(classes[k] for k in kept) if classes is not None else 0
        draw, radius = ImageDraw.Draw(picture), 2 * FINER
        for k in kept:
            x, y = (points[k][0] - middle[0]) * scale, (middle[1] - points[k][1]) * scale
            centre = side * FINER / 2
            colour = (110, 110, 110) if classes is None else class_colour(classes[k], count)
            draw.ellipse((centre + x - radius, centre + y - radius, centre + x + radius, centre + y + radius), fill=colour)
    return picture.resize((side, side), Image.Resampling.BOX)
