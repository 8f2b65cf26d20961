# SPDX-License-Identifier: Apache-2.0
"""The perceptual distances: golden LPIPS, EfficientNet-Lite0 against a plain network, missing and damaged weight files."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from support import assert_close, assert_golden, golden, golden_lpips_state, relative_error
from torch import nn

from gangealing_fast.models import EfficientNetPerceptual, Lpips, build_perceptual
from gangealing_fast.models import perceptual as perceptual_module
from gangealing_fast.models.efficientnet import weights_file
from gangealing_fast.ops import lpips_distance
from gangealing_fast.runtime.errors import UserError


def random_backbone() -> dict[str, torch.Tensor]:
    """A state dict as torchvision's VGG16 has it."""
    state = {}
    for key, value in Lpips(pretrained=False).net.state_dict().items():
        _, index, kind = key.split(".")
        state[f"features.{index}.{kind}"] = value
    return {**state, "classifier.0.weight": torch.zeros(1)}


# ---- LPIPS


def test_golden_lpips():
    case, arrays = golden("lpips_vgg")
    network = Lpips(pretrained=False)
    missing = network.load_state_dict(golden_lpips_state(case["state"]), strict=False)
    assert set(missing.missing_keys) == {"scaling_layer.shift", "scaling_layer.scale"}
    assert not missing.unexpected_keys
    a, b = arrays["a"].requires_grad_(), arrays["b"].requires_grad_()
    distance = network(a, b)
    assert_golden(distance, arrays["distance"].flatten())
    grads = torch.autograd.grad(distance.sum(), (a, b))
    assert_golden(grads[0], arrays["grad_a"], gradient=True)
    assert_golden(grads[1], arrays["grad_b"], gradient=True)
    taps = []
    for index, (x, y) in enumerate(zip(network.features(a), network.features(b), strict=True)):
        taps.append(lpips_distance([x], [y], [getattr(network, f"lin{index}").weight]))
    # the original sums in place, so that its first layer's entry holds the total
    assert_golden(torch.stack([distance, *taps[1:]]), arrays["per_layer"], what="taps")


def test_lpips_reads_torchvision_and_lpips_files(tmp_path, monkeypatch):
    backbone = random_backbone()
    file = tmp_path / "checkpoints" / perceptual_module.BACKBONE_FILE
    file.parent.mkdir()
    torch.save(backbone, file)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    pytest.importorskip("lpips")
    network = Lpips()
    heads = torch.load(perceptual_module._heads_file(), map_location="cpu", weights_only=True)
    assert torch.equal(network.lin2.weight, heads["lin2.model.1.weight"])
    assert torch.equal(network.net.slice4["21"].weight, backbone["features.21.weight"])
    assert not any(p.requires_grad for p in network.parameters()) and not network.train().training
    x, y = torch.rand(2, 3, 32, 32) * 2 - 1, torch.rand(2, 3, 32, 32) * 2 - 1
    assert network(x, x).abs().max() == 0 and (network(x, y) > 0).all()
    plain = Lpips(file, calibrated=False)
    assert_close(plain(x, y), lpips_distance(network.features(x), network.features(y)) / 18, 1e-5)
    torch.save(network.state_dict(), tmp_path / "whole.pth")
    monkeypatch.setattr(perceptual_module, "_heads_file", lambda: None)
    assert torch.equal(Lpips(tmp_path / "whole.pth")(x, y), network(x, y))


def test_lpips_without_weights_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(UserError, match="not found at .*vgg16"):
        build_perceptual("lpips")
    torch.save(random_backbone(), tmp_path / "vgg.pth")
    monkeypatch.setattr(perceptual_module, "_heads_file", lambda: None)
    with pytest.raises(UserError, match="heads .* install the package lpips"):
        Lpips(tmp_path / "vgg.pth")
    Lpips(tmp_path / "vgg.pth", calibrated=False)


def test_damaged_and_foreign_files_are_refused(tmp_path):
    (tmp_path / "damaged.pth").write_bytes(b"PK\x03\x04 not a checkpoint")
    torch.save({"a": torch.zeros(1)}, tmp_path / "foreign.pth")
    torch.save({"x": nn.Linear(1, 1)}, tmp_path / "code.pth")  # a pickled object: must not be run
    wrong = random_backbone()
    wrong["features.5.weight"] = torch.zeros(3)
    torch.save(wrong, tmp_path / "wrong.pth")
    for name, words in {"damaged": "cannot be read", "foreign": "lacks", "code": "cannot be read"}.items():
        with pytest.raises(UserError, match=words):
            Lpips(tmp_path / f"{name}.pth", calibrated=False)
    with pytest.raises(UserError, match="does not fit"):
        Lpips(tmp_path / "wrong.pth", calibrated=False)
    for name in ("damaged", "foreign", "code", "absent"):
        with pytest.raises(UserError, match="weight file"):
            EfficientNetPerceptual(weights=tmp_path / f"{name}.pth")


# ---- EfficientNet


def plain_efficientnet(x: torch.Tensor, stages: int) -> list[torch.Tensor]:
    """The same network from its published description: padding, convolution, batch normalisation, ReLU6 one by one."""
    state = torch.load(weights_file(), weights_only=True)

    def layer(x, conv, norm, stride=1, groups=1, activate=True):
        weight = state[f"{conv}.weight"]
        kernel, size = weight.shape[-1], x.shape[-1]
        pad = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        x = F.conv2d(F.pad(x, [pad // 2, pad - pad // 2] * 2), weight, None, stride, groups=groups)
        names = ("running_mean", "running_var", "weight", "bias")
        x = F.batch_norm(x, *[state[f"{norm}.{name}"] for name in names], eps=1e-3)
        return x.clamp(0, 6) if activate else x

    x = layer(x, "_conv_stem", "_bn0", 2)
    layout = [(1, 1), (2, 2), (2, 2), (3, 2), (3, 1), (4, 2), (1, 1)]
    block, outputs = 0, []
    for repeats, stride in layout[:stages]:
        for repeat in range(repeats):
            prefix, y = f"_blocks.{block}", x
            if f"{prefix}._expand_conv.weight" in state:
                y = layer(y, f"{prefix}._expand_conv", f"{prefix}._bn0")
            y = layer(y, f"{prefix}._depthwise_conv", f"{prefix}._bn1", 1 if repeat else stride, y.shape[1])
            y = layer(y, f"{prefix}._project_conv", f"{prefix}._bn2", activate=False)
            x = x + y if repeat else y
            block += 1
        outputs.append(x)
    return outputs


@pytest.mark.parametrize("size", [64, 75])
def test_efficientnet_features(size):
    x = torch.rand(2, 3, size, size) * 2 - 1
    expected = plain_efficientnet(x, 7)
    found = EfficientNetPerceptual(range(7)).features(x)
    for index, (a, b) in enumerate(zip(found, expected, strict=True)):
        assert_close(a, b, 1e-4, f"stage {index}")
    some = EfficientNetPerceptual((1, 4)).features(x)
    assert torch.equal(some[0], found[1]) and torch.equal(some[1], found[4]) and len(some) == 2


def test_efficientnet_distance():
    network = build_perceptual("efficientnet")
    assert not list(network.parameters()) and not network.train().training
    a, b = torch.rand(3, 3, 64, 64) * 2 - 1, torch.rand(3, 3, 64, 64) * 2 - 1
    distance = network(a, b)
    assert distance.shape == (3,) and distance.dtype == torch.float32
    assert (distance > 0.05).all() and (distance < 4).all()
    assert not network(a, a).any()
    assert_close(network(b, a), distance, 1e-5)
    near = network(a, a + 0.01 * torch.randn_like(a))
    assert (near < distance / 5).all()
    assert network.embedding(a).shape == (3, 16 + 24 + 40 + 112 + 320)


def test_efficientnet_gradient():
    network = EfficientNetPerceptual((0, 2, 4), min_size=0).double()
    a, b = (torch.rand(1, 3, 24, 24).double() for _ in range(2))
    a.requires_grad_()
    direction = torch.randn_like(a)
    (grad,) = torch.autograd.grad(network(a, b).sum(), a)
    step = 1e-5
    slope = (network(a + step * direction, b) - network(a - step * direction, b)).sum() / (2 * step)
    assert_close((grad * direction).sum(), slope, 1e-3)


def test_small_and_grey_pictures():
    network = EfficientNetPerceptual()
    grey = torch.rand(2, 1, 32, 32) * 2 - 1
    doubled = F.interpolate(grey.expand(-1, 3, -1, -1), scale_factor=2.0, mode="bilinear", align_corners=False)
    for a, b in zip(network.features(grey), network.features(doubled), strict=True):
        assert torch.equal(a, b)
    assert EfficientNetPerceptual((0,), min_size=0).features(grey)[0].shape == (2, 16, 16, 16)


def test_bfloat16_agrees_roughly_and_empty_batches_pass():
    network = EfficientNetPerceptual()
    a, b = torch.rand(2, 3, 64, 64) * 2 - 1, torch.rand(2, 3, 64, 64) * 2 - 1
    exact = network(a, b)
    a.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        rough = network(a, b)
        rough.sum().backward()
    assert relative_error(rough, exact) < 0.05 and torch.isfinite(a.grad).all()
    assert network(a[:0], b[:0]).shape == (0,)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: build_perceptual("vgg"), "one of efficientnet, lpips"),
        (lambda: EfficientNetPerceptual(()), "taps"),
        (lambda: EfficientNetPerceptual((2, 1)), "taps"),
        (lambda: EfficientNetPerceptual((7,)), "taps"),
        (lambda: EfficientNetPerceptual()(torch.rand(3, 8, 8), torch.rand(3, 8, 8)), "pictures"),
        (lambda: Lpips(pretrained=False)(torch.rand(1, 3, 8, 8), torch.rand(1, 3, 8, 8)), "sides of 16"),
    ],
)
def test_errors(call, words):
    with pytest.raises(ValueError, match=words):
        call()
