# SPDX-License-Identifier: Apache-2.0
"""Pictures are told by what they hold, whatever they are called; what is no picture is counted and named."""

from __future__ import annotations

import importlib.util
import io

import numpy as np
import pytest
from hostile_files import encoded, write_tar
from picture_files import noise
from PIL import Image

from gangealing_fast.data import decoding
from gangealing_fast.data.config import PrepareConfig
from gangealing_fast.data.decoding import Square, decode, formats
from gangealing_fast.data.pictures import PictureStream, open_pictures
from gangealing_fast.data.preparing import run as prepare

WRITTEN = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "AVIF", "JPEG2000", "TGA", "ICO", "PCX", "SGI", "DDS", "QOI")
NO_PICTURES = {
    "notes.txt": b"Dear diary",
    "x.json": b'{"label": 3}',
    "x.cls": b"3",
    "empty": b"",
    "drawing.svg": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    "print.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    "film.mp4": b"\0\0\0\x20ftypisom" + bytes(100),
    "a.npy": b"\x93NUMPY\x01\0" + bytes(100),
    "zeros.bin": bytes(5000),
}


@pytest.mark.parametrize("where", ["folder", "tar"])
@pytest.mark.parametrize("ending", [".jfif", ".jpe", ".avif", ".heic", ".JPG", "", ".dat", ".txt"])
def test_every_format_under_every_name(tmp_path, where, ending):
    files = {f"{kind}{ending}": encoded(32, kind) for kind in WRITTEN}
    if where == "tar":
        source = write_tar(tmp_path / "a.tar", files | NO_PICTURES)
    else:
        source = tmp_path / "in"
        source.mkdir()
        for name, content in (files | NO_PICTURES).items():
            (source / name).write_bytes(content)
    pictures = open_pictures(source, size=32)
    assert pictures.names == sorted(files) and pictures.skipped == []
    assert pictures.others == sorted(NO_PICTURES)
    assert f"{len(NO_PICTURES)} other files are no pictures and left out (" in pictures.summary()
    assert "first: a.npy" in pictures.summary() and "1 .txt" in pictures.summary()
    assert len(PictureStream(source, size=None)) == len(files)


@pytest.mark.skipif(importlib.util.find_spec("pillow_heif") is None, reason="pillow-heif is not installed")
def test_heif_is_read_if_its_package_is_there(tmp_path):
    import pillow_heif

    buffer = io.BytesIO()
    pillow_heif.from_pillow(Image.fromarray(np.full((32, 32, 3), 200, np.uint8))).save(buffer)
    (tmp_path / "a.heic").write_bytes(buffer.getvalue())
    (tmp_path / "b.jpg").write_bytes(buffer.getvalue())
    pictures = open_pictures(tmp_path, size=16)
    assert pictures.names == ["a.heic", "b.jpg"] and abs(pictures.batch([0]).float().mean().item() - 200) < 3


def test_heif_that_cannot_be_read_is_named_with_its_package(tmp_path, monkeypatch):
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    (tmp_path / "b.png").write_bytes(encoded())
    monkeypatch.setattr(decoding, "formats", lambda: tuple(name for name in formats() if "HEI" not in name and name != "AVIF"))
    pictures = open_pictures(tmp_path, size=8)
    assert pictures.names == ["b.png"]
    assert pictures.skipped == [("a.heic", "a HEIF picture that cannot be decoded; the package pillow-heif reads most of them")]


def test_a_program_is_not_run_to_read_a_picture(tmp_path):
    assert "EPS" not in formats()
    with pytest.raises(ValueError, match="not a picture in a known format"):
        decode(NO_PICTURES["print.eps"], 8)


# ---- prepare --pad


SHAPES = {"wide": (20, 40), "tall": (40, 20), "square": (30, 30), "thin": (3, 100)}


@pytest.mark.parametrize("pad", ["center", "border", "zero", "shorter-side", "none"])
def test_pad(tmp_path, capsys, pad):
    (tmp_path / "in").mkdir()
    originals = {}
    for name, shape in SHAPES.items():
        originals[name] = noise(*shape)
        Image.fromarray(originals[name]).save(tmp_path / "in" / f"{name}.png")
    prepare(PrepareConfig(tmp_path / "in", tmp_path / "out.tar", size=20, pad=pad))
    said = capsys.readouterr().out
    expected = {"shorter-side": "with a shorter side of 20", "none": "as large as they were"}.get(pad, "of 20x20")
    assert f"4 pictures {expected}" in said
    found = {name: batch[0].permute(1, 2, 0).numpy() for (name,), batch in PictureStream(tmp_path / "out.tar", size=None)}
    assert sorted(found) == sorted(f"{name}.png" for name in SHAPES)
    for name, (height, width) in SHAPES.items():
        picture = found[f"{name}.png"]
        if pad == "none":
            assert np.array_equal(picture, originals[name])
        elif pad == "shorter-side":
            scale = 20 / min(height, width)
            assert picture.shape == (round(height * scale), round(width * scale), 3)
        else:
            assert picture.shape == (20, 20, 3)
    wide = found["wide.png"]
    if pad == "shorter-side":
        assert np.array_equal(wide, originals["wide"])
    if pad == "center":
        assert np.array_equal(wide, originals["wide"][:, 10:30])
    if pad == "zero":
        assert not wide[:5].any() and not wide[15:].any() and wide[5:15].any(1).any(1).all()
    if pad == "border":
        assert np.array_equal(wide[:5], np.repeat(wide[5:6], 5, 0)) and wide[:5].any()


def test_the_options_of_pad_are_those_of_decoding():
    from typing import get_args, get_type_hints

    assert get_args(get_type_hints(PrepareConfig)["pad"]) == get_args(decoding.Pad)
    assert set(get_args(Square)) < set(get_args(decoding.Pad))


# ---- memory


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "I;16", "I", "F", "1", "LA", "CMYK"])
@pytest.mark.parametrize("size", [None, 16])
def test_bands_change_nothing(monkeypatch, mode, size):
    """Large pictures are converted a few rows at a time."""
    values = noise(90, 70)
    if mode == "I;16":
        picture = Image.fromarray((values[:, :, 0].astype(np.uint16) * 256) + values[:, :, 1])
    elif mode in ("I", "F"):
        picture = Image.fromarray(
            values[:, :, 0].astype(np.int32) * 200 if mode == "I" else values[:, :, 0].astype(np.float32) / 255
        )
    else:
        picture = Image.fromarray(values).convert(mode)
    buffer = io.BytesIO()
    picture.save(buffer, "TIFF" if mode in ("I", "F", "CMYK") else "PNG")
    whole = [decode(buffer.getvalue(), size, pad) for pad in ("center", "border", "zero", "shorter-side", "none")]
    monkeypatch.setattr(decoding, "_BAND", 500)
    monkeypatch.setattr(decoding, "_LARGE", 1000)
    parts = [decode(buffer.getvalue(), size, pad) for pad in ("center", "border", "zero", "shorter-side", "none")]
    assert all(np.array_equal(a, b) for a, b in zip(whole, parts, strict=True))
