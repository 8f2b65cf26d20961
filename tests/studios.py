# SPDX-License-Identifier: Apache-2.0
"""A studio without a browser: everything that answers, with an untrained aligner, and files that nobody should upload."""

from __future__ import annotations

import contextlib
import io
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from aligners import bend, composed
from PIL import Image
from runs import write_pictures

from gangealing_fast.checkpoints.writing import export_aligner
from gangealing_fast.interface.config import StudioConfig
from gangealing_fast.interface.server import Studio
from gangealing_fast.interface.serving import studio_of

PORT = 7860
HERE = f"http://127.0.0.1:{PORT}"
PAGE = {"X-Studio": "1", "Origin": HERE}


@contextlib.contextmanager
def studio(folder: Path, **changes: object) -> Iterator[Studio]:
    """With 5 pictures that every browser sees."""
    folder.mkdir(exist_ok=True)
    model = composed()
    bend(model, 0.05)
    export_aligner(folder / "aligner.safetensors", model.transformer, None, model.warping)
    write_pictures(folder / "pictures", 5, 48)
    options = {"out": folder / "studio", "checkpoint": folder / "aligner.safetensors", "data": folder / "pictures", "threads": 1}
    config = StudioConfig(**(options | changes))  # type: ignore[arg-type]
    config.out.mkdir()
    with studio_of(config) as made:
        yield made


def picture(width: int = 64, height: int = 48, colour: tuple[int, ...] = (200, 30, 30), kind: str = "PNG") -> bytes:
    """A picture file of one colour with a bright corner."""
    made = Image.new("RGBA" if len(colour) == 4 else "RGB", (width, height), colour)
    made.paste((250,) * len(colour), (0, 0, width // 3, height // 3))
    buffer = io.BytesIO()
    made.save(buffer, kind)
    return buffer.getvalue()


def drawing(side: int = 64) -> bytes:
    """An edit: a green square in the middle of nothing."""
    made = Image.new("RGBA", (side, side))
    made.paste((0, 255, 0, 255), (side // 4, side // 4, 3 * side // 4, 3 * side // 4))
    buffer = io.BytesIO()
    made.save(buffer, "PNG")
    return buffer.getvalue()


def _chunk(name: bytes, content: bytes) -> bytes:
    return len(content).to_bytes(4, "big") + name + content + zlib.crc32(name + content).to_bytes(4, "big")


def claims(width: int, height: int) -> bytes:
    """A PNG file that claims to be that large, and is small."""
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 0, 0, 0, 0])
    rows = zlib.compress(bytes(1 << 20))
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", rows) + _chunk(b"IEND", b"")


def zipped() -> bytes:
    """A zip with a picture in it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.png", picture())
    return buffer.getvalue()


SCRIPT = b'<svg xmlns="http://www.w3.org/2000/svg" width="64" height="64"><script>alert(document.cookie)</script></svg>'
HOSTILE: dict[str, tuple[str, bytes]] = {
    "a zip": ("innocent.png", zipped()),
    "40 000 x 40 000": ("large.png", claims(40_000, 40_000)),
    "10 000 x 9 000": ("large.png", claims(10_000, 9_000)),
    "a script": ("drawing.svg", SCRIPT),
    "a script named .png": ("drawing.png", SCRIPT),
    "a page": ("page.png", b"<html><script>alert(1)</script></html>"),
    "PostScript": ("program.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n(/etc/passwd) run\n"),
    "nothing": ("empty.png", b""),
    "a cut picture": ("cut.png", picture()[:70]),
    "a panorama": ("panorama.png", picture(640, 16)),
    "a line": ("line.png", picture(20, 2)),
}
"""Files that are refused, by what is wrong with them: name and content."""
