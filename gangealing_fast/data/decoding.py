# SPDX-License-Identifier: Apache-2.0
"""One encoded picture file to one square array of 8-bit RGB."""

from __future__ import annotations

import io
from typing import Literal

import numpy
from PIL import Image, ImageOps

Crop = Literal["center", "pad"]
ENDINGS = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"})


def is_transparent(picture: Image.Image) -> bool:
    """Whether a picture has an alpha channel or a transparent colour, whatever they hold."""
    return picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info


def to_rgb(picture: Image.Image) -> Image.Image:
    """8-bit RGB of a picture of any mode: transparency is laid on white, 16-bit and floating grey are scaled."""
    if picture.mode == "RGB" and "transparency" not in picture.info:
        return picture
    if picture.mode.startswith("I") or picture.mode == "F":
        return Image.fromarray(_to_eight_bits(numpy.asarray(picture), picture.mode)).convert("RGB")
    if is_transparent(picture):
        picture = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    return picture.convert("RGB")


def _to_eight_bits(values: numpy.ndarray, mode: str) -> numpy.ndarray:
    """16-bit, 32-bit or floating grey levels as 8 bits: full scale is 65535, or 1 for floating in [0, 1]."""
    values = values.astype(numpy.float64)
    if mode == "F":
        scale = 255.0 if values.max(initial=0.0) <= 1 else 1.0
    else:
        scale = 255 / 65535 if mode.startswith("I;16") or values.max(initial=0.0) > 255 else 1.0
    return numpy.clip(numpy.rint(numpy.nan_to_num(values) * scale), 0, 255).astype(numpy.uint8)


def to_square(picture: Image.Image, size: int, crop: Crop) -> numpy.ndarray:
    """`[size, size, 3]` uint8 of an RGB picture.

    `center` cuts the largest centred square; `pad` keeps everything and repeats the border pixels to a square. Both are
    resized with an anti-aliased Lanczos filter, and left alone where the size is right already.
    """
    width, height = picture.size
    if crop == "center":
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        if side == size:
            return numpy.array(picture.crop((left, top, left + side, top + side)))
        box = (left, top, left + side, top + side)
        return numpy.array(picture.resize((size, size), Image.Resampling.LANCZOS, box=box, reducing_gap=3.0))
    scale = size / max(width, height)
    inner = (max(1, round(width * scale)), max(1, round(height * scale)))
    if inner != picture.size:
        picture = picture.resize(inner, Image.Resampling.LANCZOS, reducing_gap=3.0)
    left, top = (size - inner[0]) // 2, (size - inner[1]) // 2
    margins = ((top, size - inner[1] - top), (left, size - inner[0] - left), (0, 0))
    return numpy.pad(numpy.array(picture), margins, mode="edge")


def decode(content: bytes, size: int | None, crop: Crop = "center") -> numpy.ndarray:
    """Decode one picture file, turned upright by its EXIF orientation, to `[size, size, 3]` uint8 (first frame only).

    size None leaves the picture as it is, `[height, width, 3]`.

    Raises:
        ValueError: with the reason, for anything that is not a complete picture.
    """
    if not content:
        raise ValueError("the file is empty")
    try:
        with Image.open(io.BytesIO(content)) as picture:
            if picture.format == "JPEG" and size is not None:
                # Decodes a large photograph at a half, quarter or eighth, still twice as large as needed.
                picture.draft("RGB", (2 * size, 2 * size))
            picture.load()
            upright = ImageOps.exif_transpose(picture)
            rgb = to_rgb(upright)
            return numpy.array(rgb) if size is None else to_square(rgb, size, crop)
    except Image.UnidentifiedImageError:
        raise ValueError("not a picture in a known format") from None
    except Exception as error:  # decoders raise whatever they like on damaged files: SyntaxError, struct.error, OSError
        raise ValueError(f"cannot be decoded ({' '.join(str(error).split()) or type(error).__name__})") from error
