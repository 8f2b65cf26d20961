# SPDX-License-Identifier: Apache-2.0
"""The digits preset's data: warps go where their matrices say, boxes hold the ink, the shipped digits are MNIST's."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from support import shared

from gangealing_fast.data import digits, mnist
from gangealing_fast.geometry.warps import transform_points
from gangealing_fast.runtime.errors import UserError


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def ink_of(pictures: torch.Tensor) -> torch.Tensor:
    return (pictures[:, 0] + 1) / 2


def centre_of_mass(ink: torch.Tensor) -> torch.Tensor:
    """(x, y) normalised, `[N, 2]`, of ink `[N, H, W]`."""
    n, height, width = ink.shape
    x = (torch.arange(width) + 0.5) * 2 / width - 1
    y = (torch.arange(height) + 0.5) * 2 / height - 1
    total = ink.sum((1, 2))
    return torch.stack(((ink.sum(1) * x).sum(1) / total, (ink.sum(2) * y).sum(1) / total), 1)


def test_random_similarity_stays_in_range():
    a = digits.random_similarity(4000, generator=generator())
    assert a.shape == (4000, 2, 3) and a.dtype == torch.float32
    scale = a[:, :, 0].norm(dim=1)
    angle = torch.atan2(a[:, 1, 0], a[:, 0, 0]) * 180 / math.pi
    assert torch.allclose(a[:, 0, 0], a[:, 1, 1]) and torch.allclose(a[:, 0, 1], -a[:, 1, 0])
    for values, low, high in ((scale, 0.6, 1.1), (angle, -45, 45), (a[:, 0, 2], -0.3, 0.3), (a[:, 1, 2], -0.3, 0.3)):
        span = high - low
        assert low - 1e-4 <= values.min() < low + 0.02 * span and high - 0.02 * span < values.max() <= high + 1e-4
    assert abs(scale.log().mean() - (math.log(0.6) + math.log(1.1)) / 2) < 0.02
    assert torch.equal(a, digits.random_similarity(4000, generator=generator()))
    fixed = digits.random_similarity(3, rotation=0, scale=(1, 1), shift=0)
    assert torch.equal(fixed, torch.eye(2, 3).expand(3, 2, 3))
    assert digits.random_similarity(0).shape == (0, 2, 3)


def test_ink_is_found_where_the_matrix_sends_it():
    images = digits.load_heldout_digits((3,)).images[:100]
    a = digits.random_similarity(100, generator=generator())
    upright, warped = ink_of(digits.warp_digits(images)), ink_of(digits.warp_digits(images, a))
    scale = a[:, :, 0].norm(dim=1)
    kept = warped.sum((1, 2)) / (upright.sum((1, 2)) * scale**2)
    whole = kept > 0.9995
    assert whole.float().mean() > 0.9
    expected = transform_points(a, centre_of_mass(upright)[:, None])[:, 0]
    error = (centre_of_mass(warped) - expected).norm(dim=1)[whole]
    assert error.max() < 0.02 * 2 / 32  # a fiftieth of a pixel


def test_known_quarter_turn():
    """A = a quarter turn: x → y, so that what was right of the centre is found below it."""
    images = np.zeros((1, 32, 32), np.uint8)
    images[0, 15:17, 24:28] = 255
    a = torch.tensor([[[0.0, -1, 0], [1, 0, 0]]])
    warped = ink_of(digits.warp_digits(images, a))[0]
    assert warped[24:28, 15:17].min() > 0.75
    # Only bilinear interpolation's soft edge lies outside.
    assert 0.9 < warped[23:29, 14:18].sum() / warped.sum()


def test_identity_warp_and_background():
    images = digits.load_heldout_digits((7,)).images[:5]
    plain = digits.warp_digits(images)
    assert plain.shape == (5, 3, 32, 32) and plain.min() == -1 and plain.max() <= 1
    assert torch.equal(plain[:, 0, 2:30, 2:30], images.float() / 255 * 2 - 1)
    assert torch.equal(plain[:, 0], plain[:, 2])
    away = digits.random_similarity(5, rotation=0, scale=(1, 1), shift=0)
    away[:, 0, 2] = 3.0
    assert (digits.warp_digits(images, away) == -1).all()
    assert digits.warp_digits(images[:0], away[:0]).shape == (0, 3, 32, 32)
    for wrong in (images.float(), images[0], torch.zeros(1, 20, 20, dtype=torch.uint8)):
        with pytest.raises(ValueError, match="digits must be uint8"):
            digits.warp_digits(wrong)


def test_shrinking_is_free_of_aliasing():
    """Finest stripes at 0.6 of their size would beat with the pixels if they were sampled once."""
    images = np.zeros((1, 32, 32), np.uint8)
    images[0, :, ::2] = 255
    a = torch.tensor([[[0.6, 0, 0], [0, 0.6, 0]]])
    inner = ink_of(digits.warp_digits(images, a))[0, 10:22, 10:22]
    single = ink_of(digits.warp_digits(images, a, oversampling=1))[0, 10:22, 10:22]
    assert inner.std() < 0.6 * single.std() and abs(inner.mean() - 0.5) < 0.05


def test_object_box():
    images = np.zeros((2, 28, 28), np.uint8)
    images[0, 5:9, 10:20] = 200
    images[0, 0, 0] = 30  # faint
    box = digits.object_box(images)
    left, right, top, bottom = (2 * (v + 2) / 32 - 1 for v in (10, 20, 5, 9))
    assert torch.allclose(box[0], torch.tensor([[left, top], [right, top], [right, bottom], [left, bottom]]))
    assert torch.equal(box[1], torch.tensor([[-1.0, -1], [1, -1], [1, 1], [-1, 1]]))
    real = digits.object_box(digits.load_heldout_digits().images)
    side = (real[:, 2] - real[:, 0]).max(1).values * 16
    assert side.min() > 15 and side.max() <= 21  # MNIST's digits are 20 pixels long


def test_heldout_digits():
    everything = digits.load_heldout_digits()
    assert everything.images.shape == (900, 28, 28) and everything.images.dtype == torch.uint8
    assert "LeCun" in everything.attribution and "CC BY-SA 3.0" in everything.attribution
    for digit in (3, 4, 7):
        part = digits.load_heldout_digits((digit,))
        assert len(part.images) == 300 and (part.labels == digit).all()
    assert len(digits.load_heldout_digits((3,), limit=10).images) == 10
    assert len(set(everything.ids.tolist())) == 900
    assert digits.ASSET.stat().st_size < 300_000
    with pytest.raises(UserError, match=r"no digits of class 5, only of \[3, 4, 7\]"):
        digits.load_heldout_digits((5,))


def test_damaged_asset(tmp_path, monkeypatch):
    monkeypatch.setattr(digits, "ASSET", tmp_path / "gone.npz")
    digits._read_heldout.cache_clear()
    for content in (None, b"", b"PK\x03\x04 no zip"):
        if content is not None:
            digits.ASSET.write_bytes(content)
        with pytest.raises(UserError, match="install the package again"):
            digits.load_heldout_digits()
    digits._read_heldout.cache_clear()


def test_heldout_digits_are_mnists_test_digits():
    path = shared("data", "mnist", "t10k-images-idx3-ubyte.gz")
    images, labels = mnist.read_idx(path), mnist.read_idx(mnist.labels_path(path))
    stored = digits.load_heldout_digits()
    assert np.array_equal(stored.images.numpy(), images[stored.ids]) and np.array_equal(stored.labels, labels[stored.ids])


def test_training_digits():
    folder = shared("data", "mnist")
    images, classes = digits.training_digits(folder, (3,))
    assert images.shape == (6131, 28, 28) and images.dtype == torch.uint8
    assert classes.dtype == torch.int64 and not classes.any()
    assert torch.equal(images, digits.training_digits(folder / "train-images-idx3-ubyte.gz", (3,))[0])
    both, classes = digits.training_digits(folder, (7, 3))
    assert torch.equal(both[classes == 1], images) and (classes == 0).sum() == len(both) - len(images)
    held = {image.numpy().tobytes() for image in digits.load_heldout_digits((3,)).images}
    assert not held & {image.numpy().tobytes() for image in images}


def test_training_digits_missing(tmp_path):
    with pytest.raises(UserError, match="no train-images-idx3-ubyte.gz in"):
        digits.training_digits(tmp_path, (3,))


def test_warped_digits_are_the_same_every_time():
    images = digits.load_heldout_digits((4,)).images[:20]
    first, second = (digits.WarpedDigits(images, seed=5, copies=3) for _ in range(2))
    assert len(first) == 60 == len(first.names)
    assert torch.equal(first.batch([3, 59]), second.batch([3, 59])) and first.batch([0]).shape == (1, 3, 32, 32)
    assert torch.equal(first.batch([59])[0], first.batch([3, 59])[1])
    assert not torch.equal(first.batch([0]), first.batch([20]))
    assert not torch.equal(first.batch([0]), digits.WarpedDigits(images, seed=6).batch([0]))
    assert "20 MNIST digits" in first.summary()
