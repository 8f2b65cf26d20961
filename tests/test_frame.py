# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from runs import train_config, write_generator

from gangealing_fast.alignment import results
from gangealing_fast.alignment.frame import keep_area
from gangealing_fast.alignment.trainer import run
from gangealing_fast.geometry.warping import Warping
from gangealing_fast.geometry.warps import compose
from gangealing_fast.models import SpatialTransformer


def test_the_mean_area_is_kept_and_the_warps_differ_by_one_scaling():
    torch.manual_seed(0)
    transformer = SpatialTransformer(("similarity",), 16, channel_base=64, max_channels=8).requires_grad_(False)
    torch.nn.init.normal_(transformer.similarity.warp_head.linear.weight, std=0.3)
    transformer.similarity.warp_head.linear.bias[1] = 0.4
    images = torch.rand(20, 3, 16, 16) * 2 - 1
    before = transformer(images).matrix
    factor = keep_area(transformer, images, warping=Warping(), batch=7)
    after = transformer(images).matrix
    assert factor != pytest.approx(1, abs=0.05)
    torch.testing.assert_close(torch.linalg.det(after[:, :, :2]).mean(), torch.tensor(1.0), rtol=1e-4, atol=0)
    scaling = torch.tensor([[factor, 0, 0], [0, factor, 0]]).expand(20, -1, -1)
    torch.testing.assert_close(after, compose(before, scaling), rtol=1e-4, atol=1e-5)


def test_a_flow_is_refused():
    transformer = SpatialTransformer(("similarity", "flow"), 32, channel_base=64, max_channels=8)
    with pytest.raises(ValueError, match="similarity alone"):
        keep_area(transformer, torch.zeros(1, 3, 32, 32), warping=Warping())


def test_the_area_is_kept_where_the_similarity_corrects_itself():
    """Then one round is not enough, as the factor changes what the network sees of its own result."""
    torch.manual_seed(0)
    transformer = SpatialTransformer(("similarity",), 16, channel_base=64, max_channels=8).requires_grad_(False)
    torch.nn.init.normal_(transformer.similarity.warp_head.linear.weight, std=0.1)
    transformer.similarity.warp_head.linear.bias[1] = 0.2
    images = torch.rand(20, 3, 16, 16) * 2 - 1
    factor = keep_area(transformer, images, warping=Warping(iters=3))
    assert factor != pytest.approx(1, abs=0.05)
    after = transformer(images, warping=Warping(iters=3)).matrix
    torch.testing.assert_close(torch.linalg.det(after[:, :, :2]).mean(), torch.tensor(1.0), rtol=1e-3, atol=0)


@pytest.mark.parametrize("bias", [-500.0, float("nan")])
def test_collapsed_warps_have_no_scale_and_change_nothing(bias):
    """exp(-500) of a picture's side is 0 in float32."""
    torch.manual_seed(0)
    transformer = SpatialTransformer(("similarity",), 16, channel_base=64, max_channels=8).requires_grad_(False)
    transformer.similarity.warp_head.linear.bias[1] = bias
    before = transformer.similarity.warp_head.linear.bias.clone()
    with pytest.raises(ValueError, match="the warps have collapsed"):
        keep_area(transformer, torch.rand(4, 3, 16, 16), warping=Warping())
    torch.testing.assert_close(transformer.similarity.warp_head.linear.bias, before, rtol=0, atol=0, equal_nan=True)


def test_a_run_that_has_collapsed_ends_without_a_traceback(tmp_path, monkeypatch, capsys):
    def collapsed(*_, **__):
        raise ValueError("the warps have collapsed")

    monkeypatch.setattr(results, "keep_area", collapsed)
    write_generator(tmp_path / "generator.safetensors")
    run(train_config(tmp_path, transforms="similarity", keep_area=True, steps=2))
    assert "the template's frame is left as it is: the warps have collapsed" in capsys.readouterr().out
    assert (tmp_path / "run" / "report.html").exists()
