# SPDX-License-Identifier: Apache-2.0
"""Pictures of the studio: uploads judged by their content, kept as files, shown at a small size."""

from __future__ import annotations

import io
import secrets
import threading
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from gangealing_fast.data.decoding import decode, decode_drawing, picture_size
from gangealing_fast.data.digits import load_heldout_digits, random_similarity, warp_digits
from gangealing_fast.data.originals import LONGEST_ASPECT, SMALLEST, Originals
from gangealing_fast.data.pictures import to_uint8
from gangealing_fast.runtime.errors import UserError
from gangealing_fast.runtime.text import printable
from gangealing_fast.storage.files import picture_bytes, read_bytes, write_bytes

PREVIEW = 256
"""Longer side of a picture as the page shows it."""
EXAMPLES = 24
"""How many of the package's digits are shown."""
_NAME = 80
_decoding = threading.Lock()


class Picture:
    """A picture of the studio. name: for people. size: (width, height). own: whether the browser uploaded it.

    key: what the page calls it, which nobody can guess. path: of the uploaded file, None for one of --data.
    """

    def __init__(self, name: str, read: Callable[[], Tensor], preview: Path, *, path: Path | None = None) -> None:
        self.key, self.name, self.path = secrets.token_hex(12), name, path
        self._read, self._preview = read, preview.with_name(f"{self.key}.png")
        whole = read()
        self.size = (int(whole.shape[2]), int(whole.shape[1]))
        write_bytes(self._preview, picture_bytes(resized(whole, PREVIEW)))

    @property
    def own(self) -> bool:
        return self.path is not None

    def original(self) -> Tensor:
        """All of it, uint8 `[3, H, W]`. Raises UserError if its file can no longer be read."""
        return self._read()

    def preview(self) -> Tensor:
        """uint8 `[3, h, w]`, the longer side `PREVIEW` pixels."""
        return torch.from_numpy(decode(self.preview_bytes(), None)).permute(2, 0, 1)

    def preview_bytes(self) -> bytes:
        """The same as a PNG file."""
        return read_bytes(self._preview)

    def remove(self) -> None:
        """Remove its files."""
        for path in (self._preview, self.path):
            if path is not None:
                path.unlink(missing_ok=True)


def read_picture(path: Path) -> Tensor:
    """uint8 `[3, H, W]` of a picture file that was judged before. Raises UserError or ValueError if it is gone or damaged."""
    with _decoding:  # so that a few large ones at once do not add up
        return torch.from_numpy(decode(read_bytes(path), None)).permute(2, 0, 1)


def resized(picture: Tensor, longest: int) -> Tensor:
    """uint8 `[3, H, W]` with a longer side of `longest` pixels, smaller or larger than it was."""
    height, width = picture.shape[1:]
    ratio = longest / max(height, width)
    size = (max(2, round(height * ratio)), max(2, round(width * ratio)))
    if size == (height, width):
        return picture
    found = F.interpolate(picture[None].float(), size, mode="bicubic", antialias=ratio < 1)
    return found.round().clamp(0, 255).to(torch.uint8)[0]


def plain_name(name: str) -> str:
    """A name from outside as one to show and to make file names of: no folders, nothing invisible, of bounded length."""
    last = PurePosixPath(name.replace("\\", "/")).name
    kept = "".join(c for c in last if c.isprintable() and c not in '<>:"|?*').strip(" .")
    stem, dot, ending = kept.rpartition(".")
    if dot and len(ending) <= 8:
        return f"{stem[:_NAME]}.{ending}" if stem else "picture"
    return kept[:_NAME] or "picture"


def check_size(content: bytes, name: str, megapixels: int) -> tuple[int, int]:
    """(width, height) of an encoded picture, of which the header alone is read. Raises UserError for anything else."""
    shown = printable(name)
    try:
        width, height = picture_size(content)
    except ValueError as error:
        raise UserError(f"{shown} is refused: {error}") from None
    if width * height > megapixels * 1_000_000:
        raise UserError(f"{shown} is refused: it has {width}x{height} pixels, but at most {megapixels} million are taken")
    if min(width, height) < SMALLEST:
        raise UserError(f"{shown} is refused: it has {width}x{height} pixels, but each side needs {SMALLEST} or more")
    if max(width, height) > LONGEST_ASPECT * min(width, height):
        raise UserError(f"{shown} is refused: it is a panorama of {width}x{height}; crop it to less than {LONGEST_ASPECT} to 1")
    return width, height


def uploaded(content: bytes, name: str, folder: Path, megapixels: int) -> Picture:
    """Keep an uploaded file if it is a picture. Raises UserError with one sentence otherwise, and keeps nothing."""
    name = plain_name(name)
    check_size(content, name, megapixels)
    path = folder / f"{secrets.token_hex(12)}.upload"
    write_bytes(path, content)
    try:
        return Picture(name, lambda: read_picture(path), folder / "preview", path=path)
    except ValueError as error:
        path.unlink(missing_ok=True)
        raise UserError(f"{printable(name)} is refused: {error}") from None
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def of_data(data: Path, limit: int, folder: Path) -> list[Picture]:
    """The first pictures of a folder, tar, zip, LMDB or MNIST file that can be read. Raises UserError if there is none."""
    originals = Originals(data, limit)
    found = []
    for name in tqdm(originals.names, unit="picture", desc="read"):
        try:
            picture = originals.read(name)
            if min(picture.shape[1:]) >= SMALLEST:
                found.append(Picture(name, lambda name=name: originals.read(name), folder / "preview"))  # type: ignore[misc]
        except UserError as error:
            tqdm.write(f"left out: {error}")
    if not found:
        raise UserError(f"none of the {len(originals)} pictures in {data} can be read; give another --data")
    return found


def examples(folder: Path, count: int = EXAMPLES) -> list[Picture]:
    """Held-out threes of the package in random poses: the aligner that comes with it has never seen them."""
    digits = load_heldout_digits((3,), count).images
    poses = random_similarity(len(digits), rotation=40, shift=0.1, generator=torch.Generator().manual_seed(4))
    shown = to_uint8(warp_digits(digits, poses))
    return [Picture(f"three-{k:02d}.png", lambda k=k: shown[k], folder / "preview") for k in range(len(shown))]  # type: ignore[misc]


def stamp(content: bytes, name: str, megapixels: int, longest: int) -> bytes:
    """A picture that was dropped on the template as a PNG file with its transparency. Raises UserError if it is none."""
    name = plain_name(name)
    check_size(content, name, megapixels)
    try:
        with _decoding:
            pixels = decode_drawing(content, longest)
    except ValueError as error:
        raise UserError(f"{printable(name)} is refused: {error}") from None
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()
