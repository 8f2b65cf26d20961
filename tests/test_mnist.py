# SPDX-License-Identifier: Apache-2.0
"""MNIST's own files, good and bad."""

from __future__ import annotations

import gzip

import numpy as np
import pytest
from picture_files import noise, write_idx

from gangealing_fast.data import mnist
from gangealing_fast.data.pictures import open_pictures
from gangealing_fast.runtime.errors import UserError


def test_idx_round_trip(tmp_path):
    images = noise(5, 28 * 28, 1).reshape(5, 28, 28)
    labels = np.array([3, 7, 3, 4, 7], np.uint8)
    for squeeze, ending in ((False, ""), (True, ".gz")):
        folder = tmp_path / f"x{ending}"
        folder.mkdir()
        write_idx(folder / f"train-images-idx3-ubyte{ending}", images, squeeze=squeeze)
        write_idx(folder / f"train-labels-idx1-ubyte{ending}", labels, squeeze=squeeze)
        path = mnist.find_images(folder)
        assert np.array_equal(mnist.read_idx(path), images)
        found, positions = mnist.read_images(path, labels=(7,))
        assert positions.tolist() == [1, 4] and np.array_equal(found, images[[1, 4]])
        pictures = open_pictures(path, size=32, label=3)
        assert len(pictures) == 2 and pictures.names[1].endswith("#2")
        padded = np.pad(images[2], 2)
        assert all(np.array_equal(channel, padded) for channel in pictures.batch([1])[0].numpy())
        assert open_pictures(path, size=16, limit=3).batch([0, 2]).shape == (2, 3, 16, 16)


def test_bad_idx_files(tmp_path):
    path = tmp_path / "train-images-idx3-ubyte"
    images = np.zeros((3, 28, 28), np.uint8)

    def refused(match, **arguments):
        with pytest.raises(UserError, match=match):
            mnist.read_idx(path, **arguments)

    refused("no such file")
    path.write_bytes(b"")
    refused("not an IDX file")
    path.write_bytes(b"hello world")
    refused("not an IDX file")
    write_idx(path, images, kind=0x0D)
    refused("IDX type 0x0d")
    write_idx(path, images)
    refused("labels", dimensions=1)
    whole = path.read_bytes()
    path.write_bytes(whole[:10])
    refused("truncated in its header")
    path.write_bytes(whole[:-1])
    refused("should hold 2352 bytes of data but holds 2351")
    path.write_bytes(gzip.compress(whole)[:-20])
    refused("gzip file .* is truncated or damaged")
    path.write_bytes(whole)
    with pytest.raises(UserError, match="labels of .* are missing: put train-labels-idx1-ubyte"):
        open_pictures(path, size=32, label=3)
    write_idx(tmp_path / "train-labels-idx1-ubyte", np.zeros(2, np.uint8))
    with pytest.raises(UserError, match="do not belong together"):
        open_pictures(path, size=32, label=3)
    write_idx(tmp_path / "train-labels-idx1-ubyte", np.zeros(3, np.uint8))
    with pytest.raises(UserError, match="no image of class 3"):
        open_pictures(path, size=32, label=3)
    write_idx(path, images[:0])
    with pytest.raises(UserError, match="holds no images"):
        open_pictures(path, size=32)
    with pytest.raises(UserError, match="no t10k-images"):
        mnist.find_images(tmp_path, "t10k")
