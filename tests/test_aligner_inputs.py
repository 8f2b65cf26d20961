# SPDX-License-Identifier: Apache-2.0
"""Every public method of `Aligner` that takes pictures, with none of them, in every dtype, in the wrong range, with gradients."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from aligners import aligner, bend, clustered
from support import assert_close
from torch import Tensor

from gangealing_fast import Aligner

N, HEIGHT, WIDTH, POINTS = 2, 40, 32, 5
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def similar() -> Aligner:
    return aligner(scale=0.1)


def flowing() -> Aligner:
    model = aligner(("similarity", "flow"), scale=0.1)
    bend(model, 0.02)
    return model


def comparing() -> Aligner:
    return Aligner(flowing().transformer, flips=True)


MODELS = {"similarity": similar, "flow": flowing, "flips": comparing, "clusters": clustered}


def pictures(count: int = N) -> Tensor:
    return torch.sin(torch.arange(count * 3 * HEIGHT * WIDTH) * 0.05).reshape(count, 3, HEIGHT, WIDTH) * 0.9


def places(count: int = N, points: int = POINTS) -> Tensor:
    """Near the middle of pictures and template."""
    return 14 + 4 * torch.sin(torch.arange(count * points * 2)).reshape(count, points, 2)


# Takes an aligner, pictures and points; returns what there is to compare, the results that follow from the pictures first.
METHODS: dict[str, Callable[[Aligner, Tensor, Tensor], Any]] = {
    "look": lambda model, images, points: model.look(images).alignment,
    "assign": lambda model, images, points: model.assign(images),
    "warp": lambda model, images, points: model.warp(images),
    "stages": lambda model, images, points: model.stages(images)[0],
    "out_of_bounds": lambda model, images, points: model.out_of_bounds(images),
    "align": lambda model, images, points: model.align(images),
    "flow_scores": lambda model, images, points: model.flow_scores(images),
    "square": lambda model, images, points: model.square(images).images,
    "from_template": lambda model, images, points: model.from_template(images, points),
    "locate": lambda model, images, points: model.locate(images, points),
    "to_template": lambda model, images, points: model.to_template(images, points),
    "transfer": lambda model, images, points: model.transfer(images, images.roll(7, -1), points),
    "maps_to_template": lambda model, images, points: model.maps_to_template(images, images[:, :2]),
    "maps_from_template": lambda model, images, points: model.maps_from_template(images, images.new_ones(1, 2, 9, 9)),
}
WITH_POINTS = ("from_template", "locate", "to_template", "transfer")
CASES = [(model, method) for model in MODELS for method in METHODS if method != "flow_scores" or model in ("flow", "flips")]


def results(model: str, method: str, images: Tensor, points: Tensor) -> list[Tensor]:
    found = METHODS[method](MODELS[model](), images, points)
    found = [found] if isinstance(found, Tensor) else found
    return [t for t in found if t is not None]


def test_every_method_is_here():
    def takes_pictures(method: Any) -> bool:
        return any(name in ("images", "first") for name in inspect.signature(method).parameters)

    public: Iterable[str] = (name for name in vars(Aligner) if not name.startswith("_"))
    callables = {name for name in public if callable(getattr(Aligner, name))}
    asked = {name for name in callables if takes_pictures(getattr(Aligner, name))} - {"refine"}  # which makes another aligner
    assert asked <= set(METHODS)


@pytest.mark.parametrize(("model", "method"), CASES)
def test_no_pictures_and_no_points(model, method):
    """The shapes of a batch, with no rows; and of points, with none of them."""
    full = results(model, method, pictures(), places())
    for found, expected in zip(results(model, method, pictures(0), places(0)), full, strict=True):
        assert found.shape == (0, *expected.shape[1:]) and found.dtype == expected.dtype
    none = results(model, method, pictures(), places(points=0))
    for found, expected in zip(none, full, strict=True):
        if method in WITH_POINTS:
            assert found.shape == (N, 0, *expected.shape[2:])
        else:
            assert torch.equal(found, expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("model", "method"), CASES)
def test_pictures_of_every_floating_dtype(model, method, dtype):
    """Computed in the transformer's dtype: pictures that are rounded alike give the same."""
    images = pictures().to(dtype)
    expected = results(model, method, images.float(), places())
    for found, other in zip(results(model, method, images, places()), expected, strict=True):
        assert found.shape == other.shape
        assert_close(found.float(), other.float(), 1e-2 if found.dtype in (torch.bfloat16, torch.float16) else 1e-5)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.int64, torch.int32, torch.uint8], ids=str)
@pytest.mark.parametrize("method", WITH_POINTS)
@pytest.mark.parametrize("model", MODELS)
def test_points_of_every_dtype(model, method, dtype):
    points = places().round()
    expected = results(model, method, pictures(), points)
    found = results(model, method, pictures(), points.to(dtype))
    for a, b in zip(found, expected, strict=True):
        assert a.is_floating_point() and a.shape == b.shape
        assert_close(a.double(), b.double(), 1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_pictures_in_another_range_or_dtype_are_refused(method):
    model = "flow"
    whole = (pictures() * 127 + 128).to(torch.uint8)
    with pytest.raises(TypeError, match=r"^pictures must be floating numbers in \[-1, 1\], got torch.uint8; .*\.?$"):
        results(model, method, whole, places())
    with pytest.raises(ValueError, match=r"^pictures must lie in \[-1, 1\], but reach from .* to 2\d\d"):
        results(model, method, whole.float(), places())
    for images in (pictures()[0], pictures()[:, :1], pictures()[:, :, :1]):
        with pytest.raises(ValueError, match=r"^pictures must be \[N, 3, H, W\]|^points must be|^maps must be"):
            results(model, method, images, places())


@pytest.mark.parametrize("method", WITH_POINTS)
@pytest.mark.parametrize("model", MODELS)
def test_points_that_do_not_fit_are_refused(model, method):
    for points in (places(1), places(3), places()[0], places()[:, :, :1]):
        with pytest.raises(ValueError, match=r"^points must be \[N, P, 2\] with N = 2"):
            results(model, method, pictures(), points)
    for points in (places() > 0, places().tolist()):
        with pytest.raises(TypeError, match="^points must be a tensor of numbers"):
            results(model, method, pictures(), points)


SMOOTH = ("look", "warp", "align", "flow_scores", "square", "from_template", "to_template", "transfer", "maps_to_template")


@pytest.mark.parametrize("method", SMOOTH)
@pytest.mark.parametrize("model", ["similarity", "flow"])
def test_gradients_reach_pictures(model, method):
    """Through the warp and through the networks that chose it: against differences along a smooth direction."""
    if method == "flow_scores" and model == "similarity":
        return
    aligned = MODELS[model]()

    def loss(images: Tensor) -> Tensor:
        found = METHODS[method](aligned, images, places())
        parts = [found] if isinstance(found, Tensor) else [t for t in found if t is not None]
        return sum((part.double() * torch.cos(0.1 * torch.arange(part.numel())).reshape(part.shape)).sum() for part in parts)

    images = pictures()
    leaf = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(leaf), leaf)
    direction = torch.cos(torch.arange(images.numel()) * 0.05).reshape(images.shape)
    step = 5e-3
    expected = (loss(images + step * direction) - loss(images - step * direction)).item() / (2 * step)
    found = (gradient * direction).sum().item()
    assert found and abs(found - expected) < 0.1 * abs(expected), (found, expected)


def test_nothing_is_recorded_without_being_asked_for():
    for make in MODELS.values():
        model = make()
        assert not model.align(pictures()).requires_grad and not model.to_template(pictures(), places()).requires_grad
        with torch.no_grad():
            assert not model.align(pictures().requires_grad_()).requires_grad
        assert model.align(pictures().requires_grad_()).requires_grad
        assert all(parameter.grad is None for parameter in model.transformer.parameters())
