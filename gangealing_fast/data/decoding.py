# SPDX-License-Identifier: Apache-2.0
"""One encoded picture file to one array of 8-bit RGB, in memory that is bounded by the picture's own size.

Beside the encoded file, at most two copies of the picture with four bytes a pixel exist at a time.
"""

from __future__ import annotations

import contextlib
import functools
import io
import math
import threading
from collections.abc import Callable, Iterator
from typing import IO, Literal, NamedTuple, TypeVar, get_args

import numpy
from PIL import ExifTags, Image, ImageOps

Square = Literal["center", "border", "zero"]
Pad = Literal["center", "border", "zero", "shorter-side", "none"]
# Files with these endings are pictures, whole or damaged. Others are looked at.
ENDINGS = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"})
# EPS is a program for another program (Ghostscript). The others are names that Pillow has without a decoder of its own.
_NOT_READ = frozenset({"EPS", "BUFR", "GRIB", "HDF5", "WMF", "MPEG"})
_HEIF_BRANDS = frozenset({b"heic", b"heix", b"hevc", b"heim", b"heis", b"hevm", b"hevs", b"mif1", b"msf1"})
_BAND = 1 << 22  # pixels that are converted at a time
_LARGE = 1 << 25  # pixels beyond which pictures are decoded one at a time
_one_large = threading.Lock()


@functools.cache
def formats() -> tuple[str, ...]:
    """Names of the picture formats that are read: those of Pillow that need no other program, and HEIF with pillow-heif."""
    Image.preinit()
    Image.init()
    with contextlib.suppress(ImportError, OSError):
        import pillow_heif

        pillow_heif.register_heif_opener()
    return tuple(name for name in Image.ID if name not in _NOT_READ)


def is_heif(head: bytes) -> bool:
    """Whether a file begins as HEIF pictures do (ISO 23008-12): a box `ftyp` with one of their brands."""
    return head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS


def is_picture(file: IO[bytes]) -> bool:
    """Whether a file is a picture by its content: its header is read, no pixel is decoded."""
    try:
        if is_heif(file.read(12)):
            return True
        file.seek(0)
        with Image.open(file, formats=formats()):
            return True
    except Image.DecompressionBombError:
        return True
    except Exception:  # whatever a header is not
        return False


def is_transparent(picture: Image.Image) -> bool:
    """Whether a picture has an alpha channel or a transparent colour, whatever they hold."""
    return picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info


def to_eight_bits(picture: Image.Image) -> Image.Image:
    """Grey ("L") or "RGB" of a picture of any mode: transparency is laid on white, 16-bit and floating grey are scaled."""
    if picture.mode.startswith("I") or picture.mode == "F":
        scale = _scale_of(picture)
        return _in_bands(picture, "L", lambda band: Image.fromarray(_scaled(numpy.asarray(band), scale)))
    if is_transparent(picture):
        return _in_bands(picture, "RGB", _on_white)
    return picture if picture.mode in ("L", "RGB") else picture.convert("RGB")


def _bands(size: tuple[int, int]) -> Iterator[tuple[int, int, int, int]]:
    width, height = size
    rows = max(1, _BAND // max(1, width))
    for top in range(0, height, rows):
        yield 0, top, width, min(height, top + rows)


def _in_bands(picture: Image.Image, mode: str, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """A picture of another mode, converted a few rows at a time."""
    result = Image.new(mode, picture.size)
    for box in _bands(picture.size):
        result.paste(convert(picture.crop(box)), box)
    return result


def _on_white(picture: Image.Image) -> Image.Image:
    picture = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")


def _scale_of(picture: Image.Image) -> float:
    """What 16-bit, 32-bit or floating grey levels are multiplied by: full scale is 65535, or 1 for floating in [0, 1]."""
    if picture.mode.startswith("I;16"):
        return 255 / 65535
    largest = numpy.float64(0)
    for box in _bands(picture.size):
        largest = numpy.maximum(largest, numpy.asarray(picture.crop(box)).astype(numpy.float64).max(initial=0.0))
    if picture.mode == "F":
        return 255.0 if largest <= 1 else 1.0
    return 255 / 65535 if largest > 255 else 1.0


def _scaled(values: numpy.ndarray, scale: float) -> numpy.ndarray:
    return numpy.clip(numpy.rint(numpy.nan_to_num(values.astype(numpy.float64)) * scale), 0, 255).astype(numpy.uint8)


def to_array(picture: Image.Image) -> numpy.ndarray:
    """`[height, width, 3]` uint8 of a picture in mode "L" or "RGB"."""
    array = numpy.empty((picture.height, picture.width, 3), numpy.uint8)
    for box in _bands(picture.size):
        band = numpy.asarray(picture.crop(box))
        array[box[1] : box[3]] = band[:, :, None] if band.ndim == 2 else band
    return array


def to_square(picture: Image.Image, size: int, pad: Square) -> numpy.ndarray:
    """`[size, size, 3]` uint8 of a picture in mode "L" or "RGB".

    `center` cuts the largest centred square; `border` and `zero` keep everything and fill up to a square, by repeating the border
    pixels or with black. All are resized with an anti-aliased Lanczos filter, and left alone where the size is right already.
    """
    width, height = picture.size
    if pad == "center":
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        box = (left, top, left + side, top + side)
        if side == size:
            return to_array(picture.crop(box))
        return to_array(picture.resize((size, size), Image.Resampling.LANCZOS, box=box, reducing_gap=3.0))
    scale = size / max(width, height)
    inner = (max(1, round(width * scale)), max(1, round(height * scale)))
    left, top = (size - inner[0]) // 2, (size - inner[1]) // 2
    margins = ((top, size - inner[1] - top), (left, size - inner[0] - left), (0, 0))
    return numpy.pad(to_array(_resized(picture, inner)), margins, mode="edge" if pad == "border" else "constant")


def _resized(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    return picture if size == picture.size else picture.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)


def to_shorter_side(picture: Image.Image, size: int) -> numpy.ndarray:
    """`[height, width, 3]` uint8 of a picture in mode "L" or "RGB", resized so that its shorter side is `size`."""
    scale = size / min(picture.size)
    return to_array(_resized(picture, (max(size, round(picture.width * scale)), max(size, round(picture.height * scale)))))


def decode(content: bytes, size: int | None, pad: Pad = "center") -> numpy.ndarray:
    """Decode one picture file, turned upright by its EXIF orientation, to `[size, size, 3]` uint8 (first frame only).

    pad "shorter-side" keeps the picture's shape; "none", or size None, leaves the picture as it is, `[height, width, 3]`.

    Raises:
        ValueError: with the reason, for anything that is not a complete picture.
    """
    size = None if pad == "none" else size
    # Decodes a large photograph at a half, quarter or eighth, still twice as large as needed.
    return _opened(content, None if size is None else 2 * size, lambda picture: _finish(picture, size, pad))


class Layers(NamedTuple):
    """A picture with what belongs to it: colours `[h, w, 3]` uint8, transparency laid on white; opacity `[h, w]` uint8, None if the
    picture is opaque; (width, height) of the whole picture, upright, of which h and w may be a reduction."""

    colours: numpy.ndarray
    opacity: numpy.ndarray | None
    size: tuple[int, int]


def decode_layers(content: bytes, longest: int | None = None) -> Layers:
    """Decode one picture file with its transparency, as `decode`; made smaller if a side is longer than `longest` pixels.

    Raises ValueError as `decode`.
    """
    stored = picture_size(content)  # of the whole picture: a JPEG may be decoded at a part of it
    return _opened(content, None if longest is None else 2 * longest, lambda picture: _layers(picture, longest, stored))


def picture_size(content: bytes) -> tuple[int, int]:
    """(width, height) of an encoded picture as it is stored: its header is read, no pixel is decoded.

    Whether it is stored turned is not looked at: that may stand behind the pixels. Raises ValueError as `decode`.
    """
    return _opened(content, None, lambda picture: picture.size)


def decode_drawing(content: bytes, longest: int) -> numpy.ndarray:
    """Decode one picture file to colours and opacity, `[h, w, 4]` uint8, upright; made smaller if a side is longer than `longest`.

    Colours of transparent parts are left as they are in the file. Raises ValueError as `decode`.
    """
    return _opened(content, 2 * longest, lambda picture: _drawing(picture, longest))


def _drawing(picture: Image.Image, longest: int) -> numpy.ndarray:
    picture.load()
    ImageOps.exif_transpose(picture, in_place=True)
    plain = picture.convert("RGBA") if is_transparent(picture) else to_eight_bits(picture).convert("RGBA")
    scale = longest / max(plain.size)
    return numpy.asarray(plain if scale >= 1 else _resized(plain, _scaled_size(plain.size, scale)))


def _layers(picture: Image.Image, longest: int | None, stored: tuple[int, int]) -> Layers:
    picture.load()
    turned = picture.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
    whole = stored[::-1] if turned else stored
    ImageOps.exif_transpose(picture, in_place=True)
    opacity = picture.convert("RGBA").getchannel("A") if is_transparent(picture) else None
    plain = to_eight_bits(picture)
    if longest is not None and max(whole) > longest:
        scale = longest / max(whole)
        size = (max(1, round(whole[0] * scale)), max(1, round(whole[1] * scale)))
        plain, opacity = _resized(plain, size), None if opacity is None else _resized(opacity, size)
    return Layers(to_array(plain), None if opacity is None else numpy.asarray(opacity), whole)


class View(NamedTuple):
    """The centred square of a picture: `small` `[size, size, 3]` uint8, as a network sees it.

    original: `[s, s, 3]` uint8, what an aligned picture is read from; `small` itself if the picture holds no more.
    side: that of the square in the file, in pixels.
    """

    small: numpy.ndarray
    original: numpy.ndarray
    side: int


def decode_view(content: bytes, size: int, largest: int) -> View:
    """Decode one picture file once for both: as `decode` gives it at `size`, and its own pixels, at most `largest` a side.

    A JPEG is decoded at a half, quarter or eighth if that is enough for both. Raises ValueError as `decode`.
    """
    side = _opened(content, None, lambda picture: min(picture.size))
    return _opened(content, max(2 * size, largest), lambda picture: _view(picture, size, largest, side))


def _view(picture: Image.Image, size: int, largest: int, side: int) -> View:
    plain = _upright(picture)
    small = to_square(plain, size, "center")
    if side <= size or largest <= size:
        return View(small, small, side)
    return View(small, to_square(plain, min(largest, *plain.size), "center"), side)


def decode_bounded(content: bytes, most: int) -> numpy.ndarray:
    """As `decode` with size None, `[height, width, 3]`; a picture of more than `most` pixels is made smaller, to as many."""

    def finish(picture: Image.Image) -> numpy.ndarray:
        plain = _upright(picture)
        ratio = math.sqrt(most / max(1, plain.width * plain.height))
        return to_array(plain if ratio >= 1 else _resized(plain, _scaled_size(plain.size, ratio)))

    width, height = _opened(content, None, lambda picture: picture.size)
    needed = _scaled_size((width, height), 2 * math.sqrt(most / max(1, width * height)))
    return _opened(content, max(needed) if width * height > 4 * most else None, finish)


def _scaled_size(size: tuple[int, int], ratio: float) -> tuple[int, int]:
    return max(1, int(size[0] * ratio)), max(1, int(size[1] * ratio))


_Result = TypeVar("_Result")


def _opened(content: bytes, draft: int | None, finish: Callable[[Image.Image], _Result]) -> _Result:
    """What `finish` makes of a picture file; draft: the least side that a JPEG may be decoded at. ValueError as `decode`."""
    if not content:
        raise ValueError("the file is empty")
    try:
        with Image.open(io.BytesIO(content), formats=formats()) as picture:
            if picture.format == "JPEG" and draft is not None:
                picture.draft("RGB", (draft, draft))
            with _one_large if picture.width * picture.height > _LARGE else contextlib.nullcontext():
                return finish(picture)
    except Image.UnidentifiedImageError:
        if is_heif(content[:12]):
            raise ValueError("a HEIF picture that cannot be decoded; the package pillow-heif reads most of them") from None
        raise ValueError("not a picture in a known format") from None
    except Image.DecompressionBombError:
        raise ValueError(f"more than {2 * (Image.MAX_IMAGE_PIXELS or 0) // 1_000_000} million pixels, which are not read") from None
    except MemoryError:
        raise ValueError("too large for the memory") from None
    except Exception as error:  # decoders raise whatever they like on damaged files: SyntaxError, struct.error, OSError
        raise ValueError(f"cannot be decoded ({' '.join(str(error).split()) or type(error).__name__})") from error


def _upright(picture: Image.Image) -> Image.Image:
    picture.load()
    ImageOps.exif_transpose(picture, in_place=True)
    return to_eight_bits(picture)


def _finish(picture: Image.Image, size: int | None, pad: Pad) -> numpy.ndarray:
    return fitted(_upright(picture), size, pad)


def fitted(plain: Image.Image, size: int | None, pad: Pad) -> numpy.ndarray:
    """A picture in mode "L" or "RGB" as `decode` returns it."""
    if size is None or pad == "none":
        return to_array(plain)
    return to_shorter_side(plain, size) if pad == "shorter-side" else to_square(plain, size, _square(pad))


def _square(pad: Pad) -> Square:
    if pad == "center" or pad == "border" or pad == "zero":
        return pad
    raise ValueError(f"pad must be one of {', '.join(get_args(Square))} for square pictures, got '{pad}'")
