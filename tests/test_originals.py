# SPDX-License-Identifier: Apache-2.0
"""Pictures by their names, read when they are asked for: transparency, masks, turned photographs, what cannot be read."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from picture_files import noise, write_idx
from PIL import Image, PngImagePlugin

from gangealing_fast.data.decoding import decode, decode_layers
from gangealing_fast.data.originals import Masks, Originals, Reduced
from gangealing_fast.data.pictures import to_float
from gangealing_fast.runtime.errors import UserError


@pytest.fixture
def folder(tmp_path):
    """A large and a small picture, a transparent one, a broken one, a panorama, a dot, and a file that is no picture."""
    place = tmp_path / "pictures"
    place.mkdir()
    Image.fromarray(noise(60, 90)).save(place / "a.png")
    Image.fromarray(noise(20, 16, seed=1)).save(place / "b.png")
    transparent = np.dstack([noise(20, 20, seed=2), np.zeros((20, 20), np.uint8)])
    transparent[:, 10:, 3] = 255
    Image.fromarray(transparent).save(place / "c.png")
    (place / "broken.png").write_bytes(b"\x89PNG nothing")
    Image.fromarray(noise(10, 80)).save(place / "long.png")
    Image.fromarray(noise(4, 4)).save(place / "dot.png")
    (place / "notes.txt").write_text("notes")
    return place


def test_what_can_be_aligned_is_read_and_the_rest_is_named(folder):
    said = []
    pictures = Reduced(Originals(folder), 45, progress=lambda done, total: said.append((done, total)))
    assert pictures.names == ["a.png", "b.png", "c.png"] and pictures.sizes == [(90, 60), (16, 20), (20, 20)]
    reasons = dict(pictures.skipped)
    assert reasons.keys() == {"broken.png", "long.png", "dot.png"}
    assert "panorama of 80x10" in reasons["long.png"] and "4x4 pixels" in reasons["dot.png"]
    assert [tuple(pictures[k].shape) for k in range(3)] == [(3, 30, 45), (3, 20, 16), (4, 20, 20)]
    assert said[-1] == (6, 6)


def test_transparency_is_the_last_channel_and_lies_on_white(folder):
    shown = Reduced(Originals(folder), 64)[2]
    assert (shown[3, :, :10] == -1).all() and (shown[3, :, 10:] == 1).all()
    assert (shown[:3, :, :10] == 1).all()
    assert torch.equal(shown[:3], to_float(Originals(folder).read("c.png")))


@pytest.mark.parametrize("memory", [0, 4000, 1 << 20])
def test_pictures_are_the_same_however_many_are_kept(folder, memory):
    expected = Reduced(Originals(folder), 45)
    found = Reduced(Originals(folder), 45, memory=memory)
    assert all(torch.equal(found[k], expected[k]) for k in range(3))


def test_a_mask_says_what_belongs_to_a_picture(folder, tmp_path):
    masks = tmp_path / "masks"
    masks.mkdir()
    half = np.zeros((120, 180), np.uint8)
    half[:, :90] = 255
    Image.fromarray(half).save(masks / "a.jpg", quality=95)
    Image.fromarray(np.full((20, 20), 255, np.uint8)).save(masks / "c.png")
    pictures = Reduced(Originals(folder), 90, masks=Masks(masks))
    assert pictures.masked == {"a.png", "c.png"} and pictures[1].shape[0] == 3
    assert (pictures[0][3, :, :44] > 0.95).all() and (pictures[0][3, :, 46:] < -0.95).all()
    assert (pictures[2][3, :, :10] == -1).all(), "what is transparent stays out"
    Image.fromarray(half.T.copy()).save(masks / "b.png")
    Image.fromarray(half).save(masks / "b.jpg")
    with pytest.raises(UserError, match="two masks of one picture"):
        Masks(masks)
    (masks / "b.png").unlink()
    with pytest.raises(UserError, match=r"the mask b.jpg is 180x120, but b.png is 16x20"):
        Reduced(Originals(folder), 90, masks=Masks(masks))
    (masks / "b.jpg").write_bytes(b"nothing")
    with pytest.raises(UserError, match="the mask b.jpg in .* cannot be read"):
        Reduced(Originals(folder), 90, masks=Masks(masks))


def test_a_turned_photograph_has_its_upright_size(tmp_path):
    (tmp_path / "p").mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(noise(300, 400)).save(tmp_path / "p" / "turned.jpg", exif=exif)
    content = (tmp_path / "p" / "turned.jpg").read_bytes()
    layers = decode_layers(content, 50)
    assert layers.size == (300, 400) and layers.colours.shape == (50, 38, 3) and layers.opacity is None
    assert np.array_equal(decode_layers(content).colours, decode(content, None))
    assert Originals(tmp_path / "p").read("turned.jpg").shape == (3, 400, 300)


@pytest.mark.parametrize("orientation", [None, 6])
def test_a_picture_is_decoded_once(tmp_path, monkeypatch, orientation):
    exif, path = Image.Exif(), tmp_path / "p.png"
    if orientation is not None:
        exif[0x0112] = orientation
    Image.fromarray(noise(300, 400)).save(path, exif=exif)
    ended, load_end = [], PngImagePlugin.PngImageFile.load_end
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load_end", lambda picture: (ended.append(1), load_end(picture)))
    layers = decode_layers(path.read_bytes(), 50)
    assert layers.size == ((400, 300) if orientation is None else (300, 400)) and len(ended) == 1


def test_digits_of_an_mnist_file_have_names_too(tmp_path):
    path = tmp_path / "t10k-images-idx3-ubyte"
    write_idx(path, np.stack([noise(28, 28, 1, seed=k) for k in range(4)]))
    originals = Originals(path, limit=3)
    pictures = Reduced(originals, 512)
    assert len(pictures) == 3 and pictures[1].shape == (3, 32, 32)
    assert torch.equal(to_float(originals.read(pictures.names[1])), pictures[1])


def test_a_picture_that_is_gone_or_changed_is_a_sentence(folder):
    originals = Originals(folder)
    pictures = Reduced(originals, 45, memory=0)
    (folder / "a.png").write_bytes(b"")
    with pytest.raises(UserError, match="a.png in .* cannot be read"):
        originals.read("a.png")
    with pytest.raises(UserError, match="a.png can no longer be read"):
        pictures[0]
    with pytest.raises(UserError, match="there is no picture z.png"):
        originals.read("z.png")
