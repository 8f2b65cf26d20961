# SPDX-License-Identifier: Apache-2.0
"""Pictures from folders and tars, good and bad."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from picture_files import fill, noise
from PIL import Image
from support import shared

from gangealing_fast.data import pictures as pictures_module
from gangealing_fast.data.decoding import decode
from gangealing_fast.data.pictures import PictureStream, open_pictures, to_float, to_uint8
from gangealing_fast.data.sampler import split_held_out
from gangealing_fast.runtime.errors import UserError
from gangealing_fast.storage.files import save_picture


def encoded(picture: Image.Image, file_format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, file_format, **options)
    return buffer.getvalue()


# ---- one picture


def test_right_size_is_left_alone():
    pixels = noise(16, 16)
    assert np.array_equal(decode(encoded(Image.fromarray(pixels)), 16, "center"), pixels)
    assert np.array_equal(decode(encoded(Image.fromarray(pixels)), 16, "border"), pixels)


def test_centre_crop_takes_the_middle():
    pixels = noise(16, 24)
    assert np.array_equal(decode(encoded(Image.fromarray(pixels)), 16, "center"), pixels[:, 4:20])
    assert np.array_equal(decode(encoded(Image.fromarray(pixels.transpose(1, 0, 2))), 16, "center"),
                          pixels.transpose(1, 0, 2)[4:20])  # fmt: skip


def test_padding_keeps_everything():
    pixels = noise(10, 16)
    result = decode(encoded(Image.fromarray(pixels)), 16, "border")
    assert np.array_equal(result[3:13], pixels)
    assert np.array_equal(result[:3], np.repeat(pixels[:1], 3, 0)) and np.array_equal(result[13:], result[12:13].repeat(3, 0))


def test_shrinking_does_not_alias():
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::2] = 255
    result = decode(encoded(Image.fromarray(stripes)), 32, "center")
    assert abs(result.astype(int) - 128).max() < 8


def test_grey_palette_and_one_bit():
    grey = noise(16, 16, 1)
    for mode in ("L", "P"):
        result = decode(encoded(Image.fromarray(grey).convert(mode)), 16, "center")
        assert np.array_equal(result, np.repeat(grey[:, :, None], 3, 2))
    result = decode(encoded(Image.fromarray((grey > 128).astype(np.uint8) * 255).convert("1")), 16, "center")
    assert np.array_equal(result[:, :, 0], np.where(grey > 128, 255, 0))


def test_transparency_is_laid_on_white():
    pixels = noise(16, 16, 4)
    pixels[:8, :, 3], pixels[8:, :, 3] = 0, 255
    result = decode(encoded(Image.fromarray(pixels)), 16, "center")
    assert (result[:8] == 255).all() and np.array_equal(result[8:], pixels[8:, :, :3])
    grey_alpha = Image.fromarray(pixels).convert("LA")
    assert (decode(encoded(grey_alpha), 16, "center")[:8] == 255).all()
    palette = Image.new("P", (16, 16), 0)
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.paste(1, (0, 0, 16, 8))
    result = decode(encoded(palette, transparency=0), 16, "center")
    assert (result[8:] == 255).all() and (result[:8] == [40, 50, 60]).all()


def test_sixteen_bits_are_scaled():
    levels = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    result = decode(encoded(Image.fromarray(levels)), 16, "center")
    assert np.array_equal(result[:, :, 1], np.arange(256).reshape(16, 16))
    result = decode(encoded(Image.fromarray(levels.astype(np.int32)), "TIFF"), 16, "center")
    assert np.array_equal(result[:, :, 1], np.arange(256).reshape(16, 16))
    result = decode(encoded(Image.fromarray((levels / 65535).astype(np.float32)), "TIFF"), 16, "center")
    assert np.array_equal(result[:, :, 1], np.arange(256).reshape(16, 16))


def test_cmyk_and_first_frame():
    assert decode(encoded(Image.new("CMYK", (8, 8), (0, 0, 0, 0)), "JPEG"), 8, "center").min() > 250
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    content = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (decode(content, 8, "center") == [255, 0, 0]).all()


def test_exif_orientation_is_applied():
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[:8] = 255  # white above
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise: white on the right
    result = decode(encoded(Image.fromarray(pixels), exif=exif), 16, "center")
    assert (result[:, 8:] == 255).all() and (result[:, :8] == 0).all()
    large = Image.fromarray(pixels).resize((512, 512), Image.Resampling.NEAREST)
    result = decode(encoded(large, "JPEG", exif=exif), 16, "center")
    assert result[:, 9:].min() > 240 and result[:, :7].max() < 15


@pytest.mark.parametrize("content", [b"", b"hello", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0" + b"x" * 50])
def test_no_picture(content):
    with pytest.raises(ValueError, match="empty|not a picture|cannot be decoded"):
        decode(content, 8, "center")


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP", "GIF", "TIFF"])
def test_truncated_files_are_refused(file_format):
    content = encoded(Image.fromarray(noise(32, 32)), file_format)
    for part in (0.1, 0.5, 0.8):
        with pytest.raises(ValueError):
            decode(content[: int(len(content) * part)], 16, "center")


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_damage_never_ends_in_another_error(data):
    content = bytearray(encoded(Image.fromarray(noise(16, 16)), data.draw(st.sampled_from(["PNG", "JPEG", "GIF", "BMP"]))))
    for _ in range(data.draw(st.integers(1, 5))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        assert decode(bytes(content), 8, "center").shape == (8, 8, 3)
    except ValueError as error:
        assert "\n" not in str(error)


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    size=st.integers(1, 24),
    pad=st.sampled_from(["center", "border", "zero"]),
)
def test_any_size_becomes_square(height, width, size, pad):
    result = decode(encoded(Image.fromarray(noise(height, width))), size, pad)
    assert result.shape == (size, size, 3) and result.dtype == np.uint8


# ---- sets


def test_folder_is_sorted_and_searched(tmp_path):
    fill(tmp_path / "b", 2)
    fill(tmp_path / "a", 3)
    (tmp_path / "a" / "notes.txt").write_text("no picture")
    (tmp_path / "a" / "._000.png").write_text("what a Mac leaves")
    fill(tmp_path / ".hidden", 1)
    pictures = open_pictures(tmp_path, size=16)
    assert pictures.names == ["a/000.png", "a/001.png", "a/002.png", "b/000.png", "b/001.png"]
    assert pictures.skipped == [] and len(pictures) == 5
    batch = pictures.batch([1, 4])
    assert batch.dtype == torch.uint8 and batch.shape == (2, 3, 16, 16)
    assert np.array_equal(batch[0].permute(1, 2, 0).numpy(), noise(16, 16, seed=1)) and torch.equal(batch[0], batch[1])
    assert pictures.batch([]).shape == (0, 3, 16, 16)
    assert len(open_pictures(tmp_path, size=16, limit=2)) == 2
    for index in (-1, 5):
        with pytest.raises(IndexError, match="must be in 0 … 4"):
            pictures.batch([index])


def test_bad_pictures_among_good_ones_are_skipped_counted_and_named(tmp_path):
    fill(tmp_path, 4)
    whole = (tmp_path / "001.png").read_bytes()
    (tmp_path / "001.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "004.jpg").write_text("no picture at all")
    (tmp_path / "005.png").write_bytes(b"")
    Image.fromarray(noise(16, 16, 1)).save(tmp_path / "006.png")
    os.symlink(tmp_path / "gone", tmp_path / "007.png")
    pictures = open_pictures(tmp_path, size=8)
    assert pictures.names == ["000.png", "002.png", "003.png", "006.png"]
    assert [name for name, _ in pictures.skipped] == ["001.png", "004.jpg", "005.png", "007.png"]
    text = pictures.summary()
    assert text.startswith("4 pictures of 8x8") and "4 skipped: 001.png (cannot be decoded" in text
    assert "004.jpg (not a picture in a known format)" in text and "005.png (the file is empty)" in text


def test_mixed_kinds_in_one_folder(tmp_path):
    for name, mode in (("a", "L"), ("b", "RGBA"), ("c", "P"), ("d", "RGB"), ("e", "I;16")):
        source = Image.fromarray(noise(20, 13))
        (source.convert("L").convert("I").convert("I;16") if mode == "I;16" else source.convert(mode)).save(
            tmp_path / f"{name}.png"
        )
    pictures = open_pictures(tmp_path, size=8)
    assert len(pictures) == 5 and not pictures.skipped and pictures.batch(range(5)).shape == (5, 3, 8, 8)


def test_nothing_to_open(tmp_path):
    with pytest.raises(UserError, match="there is no file or folder .*gone; give a folder"):
        open_pictures(tmp_path / "gone", size=8)
    with pytest.raises(UserError, match="is empty; give a folder with pictures"):
        open_pictures(tmp_path, size=8)
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(UserError, match="has no pictures in it"):
        open_pictures(tmp_path, size=8)
    with pytest.raises(UserError, match="neither a folder, nor an uncompressed .tar"):
        open_pictures(tmp_path / "a.txt", size=8)
    (tmp_path / "a.png").write_text("x")
    with pytest.raises(UserError, match="none of the 1 pictures in .* can be read: 1 skipped: a.png"):
        open_pictures(tmp_path, size=8)
    fill(tmp_path / "few", 2)
    with pytest.raises(UserError, match=r"only 2 usable pictures \(1 skipped: a.png.*at least 3 are needed"):
        open_pictures(tmp_path, size=8, minimum=3)
    with pytest.raises(UserError, match="has no labels"):
        open_pictures(tmp_path, size=8, label=3)
    for wrong in ({"size": 0}, {"size": 8, "limit": 0}, {"size": 8, "pad": "left"}):
        with pytest.raises(ValueError, match="must be positive"):
            open_pictures(tmp_path, **wrong)


def make_tar(path, members: dict[str, bytes], mode: str = "w") -> None:
    with tarfile.open(path, mode) as archive:
        for name, content in members.items():
            header = tarfile.TarInfo(name)
            header.size = len(content)
            archive.addfile(header, io.BytesIO(content))


def test_tar_equals_folder(tmp_path):
    fill(tmp_path / "in", 5)
    members = {f"x/{path.name}": path.read_bytes() for path in sorted((tmp_path / "in").iterdir(), reverse=True)}
    make_tar(tmp_path / "a.tar", members | {"x/000.json": b"{}", "x/000.cls": b"3"})
    pictures = open_pictures(tmp_path / "a.tar", size=16)
    assert pictures.names == sorted(members)
    assert torch.equal(pictures.batch(range(5)), open_pictures(tmp_path / "in", size=16).batch(range(5)))


def test_shards(tmp_path):
    for shard in range(2):
        make_tar(tmp_path / f"{shard}.tar", {f"{shard}{i}.png": encoded(Image.fromarray(noise(8, 8))) for i in range(3)})
    assert open_pictures(tmp_path, size=8).names == ["00.png", "01.png", "02.png", "10.png", "11.png", "12.png"]


def test_bad_tars(tmp_path):
    members = {f"{i}.png": encoded(Image.fromarray(noise(32, 32, seed=i))) for i in range(3)}
    make_tar(tmp_path / "bad.tar", members | {"1.png": b"x"})
    assert open_pictures(tmp_path / "bad.tar", size=8).skipped == [("1.png", "not a picture in a known format")]
    make_tar(tmp_path / "whole.tar", members)
    (tmp_path / "cut.tar").write_bytes((tmp_path / "whole.tar").read_bytes()[:5000])
    with pytest.raises(UserError, match="truncated or damaged after"):
        open_pictures(tmp_path / "cut.tar", size=8)
    make_tar(tmp_path / "none.tar", {"a.txt": b"x"})
    with pytest.raises(UserError, match="has no pictures in it"):
        open_pictures(tmp_path / "none.tar", size=8)
    make_tar(tmp_path / "packed.tar", members, "w:gz")
    with pytest.raises(UserError, match="unpack it first"):
        open_pictures(tmp_path / "packed.tar", size=8)
    (tmp_path / "empty.tar").write_bytes(b"")
    with pytest.raises(UserError):
        open_pictures(tmp_path / "empty.tar", size=8)


def test_large_sets_are_decoded_when_used(tmp_path):
    fill(tmp_path, 6)
    (tmp_path / "003.png").write_bytes(b"")
    whole = open_pictures(tmp_path, size=16)
    lazy = open_pictures(tmp_path, size=16, memory_budget=100)
    assert "decoded when used" in lazy.summary() and len(lazy) == 6 and not lazy.skipped
    assert torch.equal(lazy.batch([0, 5]), whole.batch([0, 4]))
    # The unreadable one is replaced by the next, the same in every run.
    assert torch.equal(lazy.batch([3]), lazy.batch([4])) and lazy.batch([3, 3]).shape == (2, 3, 16, 16)
    assert lazy.skipped == [("003.png", "the file is empty")]
    part = lazy.subset([3, 2])
    assert part.names == ["003.png", "002.png"] and torch.equal(part.batch([1]), whole.batch([2]))
    for path in tmp_path.iterdir():
        path.unlink()
    with pytest.raises(UserError, match="can no longer be read"):
        lazy.batch([0])


def test_subset_and_split(tmp_path):
    fill(tmp_path, 10)
    pictures = open_pictures(tmp_path, size=16)
    training, held = split_held_out(pictures.names, 3)
    assert training == list(range(7)) and held == [7, 8, 9]
    part = pictures.subset(held).subset([2, 0])
    assert part.names == ["009.png", "007.png"] and torch.equal(part.batch([0, 1]), pictures.batch([9, 7]))
    training, held = split_held_out(pictures.names, 3, by="hash")
    assert sorted(training + held) == list(range(10)) and len(held) == 3
    shuffled = pictures.names[::-1]
    assert {shuffled[i] for i in split_held_out(shuffled, 3, by="hash")[1]} == {pictures.names[i] for i in held}
    assert split_held_out(pictures.names, 0) == (list(range(10)), [])
    with pytest.raises(UserError, match="cannot hold out 10 of 10"):
        split_held_out(pictures.names, 10)


def test_float_and_back():
    levels = torch.arange(256, dtype=torch.uint8)
    values = to_float(levels)
    assert values.dtype == torch.float32 and values[0] == -1 and values[-1] == 1
    assert torch.equal(to_uint8(values), levels)
    assert to_uint8(torch.tensor([-3.0, 3.0])).tolist() == [0, 255]


def test_cats_load_in_seconds():
    path = shared("data", "cats64.tar")
    start = time.perf_counter()
    pictures = open_pictures(path, size=64)
    assert len(pictures) == 8000 and not pictures.skipped
    assert time.perf_counter() - start < 30  # about 3 s on an idle machine


def test_a_stream_of_pictures_reads_ahead_a_little_and_leaves_out_what_is_broken(tmp_path, monkeypatch):
    save_picture(tmp_path / "0000.png", torch.zeros(3, 8, 8))
    for k in range(1, 1000):
        shutil.copy(tmp_path / "0000.png", tmp_path / f"{k:04d}.png")
    (tmp_path / "0003.png").write_bytes(b"not a picture")
    decoded = []
    original = pictures_module.decode
    monkeypatch.setattr(pictures_module, "decode", lambda *a: decoded.append(0) or original(*a))
    stream = PictureStream(tmp_path, size=16, batch=4)
    batches = iter(stream)
    names, first = next(batches)
    assert names == ["0000.png", "0001.png", "0002.png", "0004.png"] and first.shape == (4, 3, 16, 16)
    assert len(decoded) <= 256 and len(stream) == 1000
    sizes = [len(batch) for _, batch in batches]
    assert sum(sizes) == 995 and max(sizes) == 4 and [name for name, _ in stream.skipped] == ["0003.png"]
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_bytes(b"nothing")
    with pytest.raises(UserError, match="none of the 1 pictures"):
        list(PictureStream(tmp_path / "broken", size=16, batch=4))
