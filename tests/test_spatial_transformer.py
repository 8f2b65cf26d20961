# SPDX-License-Identifier: Apache-2.0
"""The spatial transformer and the point maps: golden vectors, options, slim sizes, errors."""

from __future__ import annotations

import functools

import pytest
import torch
from support import assert_close, assert_golden, golden, golden_state, relative_error

from gangealing_fast.geometry.points import (
    denormalize_points,
    from_template,
    normalize_points,
    similarity_from_template,
    similarity_to_template,
    to_template,
    transfer,
)
from gangealing_fast.geometry.warping import Warping
from gangealing_fast.geometry.warps import compose, identity_grid, similarity_matrix, transform_points
from gangealing_fast.models.spatial_transformer import SpatialTransformer, halving_blocks
from gangealing_fast.models.warp_heads import similarity_of
from gangealing_fast.ops import mipmap_warp

SLIM = {"flow_size": 32, "channel_multiplier": 0.125, "max_channels": 16}


@functools.cache
def golden_transformer(case: str, heads: int = 1, **options) -> SpatialTransformer:
    settings, _ = golden(case)
    transformer = SpatialTransformer(**({"flow_size": 64, "channel_multiplier": 0.5, "heads": heads} | options))
    state = golden_state(settings["state"])
    if not any(key.startswith("stns.") for key in state):  # a transformer alone is not wrapped there
        state = {f"stns.0.{key}": value for key, value in state.items()}
    # a published checkpoint's constant buffers are dropped; everything else must match
    state["stns.0.warp_head.one_hot"] = torch.zeros(1, 1, 1, 3)
    state[f"stns.{len(transformer.stns) - 1}.warp_head.warper.blur_filter"] = torch.zeros(1, 1, 4, 4)
    transformer.load_state_dict(state)
    return transformer.requires_grad_(False)


def warped(**options) -> SpatialTransformer:
    """A slim transformer away from the identity it starts at."""
    generator = torch.Generator().manual_seed(0)
    transformer = SpatialTransformer(**{**SLIM, **options})
    with torch.no_grad():
        for name, parameter in transformer.named_parameters():
            if "warp_head.linear" in name or "flow_out.2" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * (0.1 if "linear" in name else 0.02))
    return transformer


# ---- golden vectors


def test_golden_composed():
    _, arrays = golden("stn_composed")
    transformer = golden_transformer("stn_composed", 1)
    result = transformer(arrays["img"])
    assert_golden(result.image, arrays["out"], what="image")
    assert_golden(result.grid, arrays["grid"], what="grid")
    assert_golden(result.residual_flow, arrays["residual_flow"], what="flow")
    assert_golden(result.matrix, arrays["sim_matrix"], what="matrix")
    similarity = mipmap_warp(arrays["img"], transform_points(result.matrix, identity_grid(64, 64)[None]))
    assert_golden(similarity, arrays["sim_image"], what="similarity alone")


def test_golden_published_flow_size():
    _, arrays = golden("stn_flow128")
    transformer = golden_transformer("stn_flow128", flow_size=128, input_size=256)
    result = transformer(arrays["img"], warping=Warping("reflection"))
    assert_golden(result.image, arrays["out"], what="image")
    assert_golden(result.grid, arrays["grid"], what="grid")
    assert_golden(result.residual_flow, arrays["residual_flow"], what="flow")


def test_golden_similarity_alone_at_another_resolution():
    _, arrays = golden("stn_similarity_resolution")
    transformer = golden_transformer("stn_similarity_resolution", flow_size=32, input_size=64, transforms=("similarity",))
    result = transformer(arrays["img"], output_resolution=96)
    assert_golden(result.image, arrays["out"], what="image")
    assert_golden(result.grid, arrays["grid"], what="grid")


def test_golden_large_picture_iterations_alpha_and_resolution():
    _, arrays = golden("stn_composed")
    result = golden_transformer("stn_composed", 1)(
        arrays["big"], warping=Warping(iters=3), alpha=torch.tensor([0.3, 0.8]), output_resolution=96
    )
    assert_golden(result.grid, arrays["grid2"], what="grid")
    assert_golden(result.image, arrays["out2"], what="image")


def test_golden_mirrors():
    _, arrays = golden("stn_composed")
    transformer = golden_transformer("stn_composed", 1)
    result, mirrored = transformer.best_mirror(arrays["img"])
    assert torch.equal(mirrored, arrays["flip_idx"].flatten())
    assert_golden(result.image, arrays["flip_out"], what="image")
    assert_golden(result.grid, arrays["flip_warp"], what="grid")
    # Of a pair of pictures the four combinations were compared by the sums of their flows' TV (0 neither is mirrored, 1 the first,
    # 2 the second, 3 both). A sum of two is least if each part is, so that this is what each picture chooses for itself.
    own, partner = mirrored.long(), mirrored.flip(0).long()
    assert torch.equal(own + 2 * partner, arrays["match_pick"].flatten())


def test_golden_points():
    _, arrays = golden("stn_composed")
    grid, size = arrays["grid"], 64
    found = to_template(grid, arrays["points"], size)
    assert torch.equal(found, arrays["congealed_points"].long())
    other = transfer(grid, grid.flip(0), arrays["points"], size, size)
    assert_golden(other, arrays["transferred_points"], what="transferred")
    place = torch.tensor([30.0, 40.0]).expand(2, 5, 2)
    assert_golden(from_template(grid, place, size), arrays["uncongealed_30_40"], what="from the template")


def test_golden_clusters():
    _, arrays = golden("stn_clusters")
    transformer = golden_transformer("stn_clusters", 3)
    every = transformer(arrays["img"])
    assert_golden(every.image, arrays["out"], what="every head")
    assert_golden(every.residual_flow, arrays["residual_flow"], what="flow")
    assigned = transformer(arrays["img"], assignment=torch.tensor([2, 0]))
    assert_golden(assigned.image, arrays["assigned_out"], what="assigned head")
    assert_golden(assigned.grid, arrays["assigned_grid"], what="grid")


def test_golden_similarity_matrix():
    _, arrays = golden("similarity_matrix")
    names = ("rot", "scale", "shift_x", "shift_y")
    inputs = [arrays[name].requires_grad_() for name in names]
    matrix = similarity_of(torch.stack(inputs, -1))
    assert_golden(matrix, arrays["matrix"])
    grads = torch.autograd.grad(matrix, inputs, arrays["grad_out"])
    for name, grad in zip(names, grads, strict=True):
        assert_golden(grad, arrays[f"grad_{name}"], gradient=True, what=name)
    grid = transform_points(matrix[:, 0], identity_grid(6, 6)[None])
    assert_golden(grid, arrays["grid_head0_6x6"])


# ---- behaviour


@pytest.mark.parametrize("transforms", [("similarity",), ("flow",), ("similarity", "flow")])
def test_starts_at_the_identity(transforms):
    x = torch.rand(2, 3, 32, 32)
    result = SpatialTransformer(transforms, **SLIM)(x)
    assert_close(result.grid, identity_grid(32, 32).expand(2, -1, -1, -1), 1e-6)
    assert_close(result.image, x, 1e-5)
    assert (result.residual_flow is None) == ("flow" not in transforms)
    assert (result.matrix is None) == ("similarity" not in transforms)


@pytest.mark.parametrize("transforms", [("similarity",), ("flow",), ("similarity", "flow")])
@pytest.mark.parametrize("size", [32, 64, 50])
def test_sizes_and_gradients(transforms, size):
    transformer = warped(transforms=transforms)
    x = torch.rand(2, 3, size, size, requires_grad=True)
    result = transformer(x, warping=Warping("reflection"))
    assert result.image.shape == (2, 3, 32, 32)
    result.image.square().sum().backward()
    missing = [name for name, p in transformer.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not missing and torch.isfinite(x.grad).all()


def test_smallest_similarity():
    result = SpatialTransformer(("similarity",), 8, max_channels=8)(torch.rand(1, 3, 8, 8))
    assert result.image.shape == (1, 3, 8, 8)


def test_iterations_compose_matrices_and_sample_the_original():
    transformer = warped(transforms=("similarity",))
    x = torch.rand(2, 3, 32, 32)
    once = transformer(x)
    twice = transformer(x, warping=Warping(iters=2))
    second = transformer(once.image).matrix
    assert_close(twice.matrix, compose(once.matrix, second), 1e-5)
    assert_close(twice.image, mipmap_warp(x, transform_points(twice.matrix, identity_grid(32, 32)[None])), 1e-5)
    three = torch.eye(3).repeat(2, 1, 1), torch.eye(3).repeat(2, 1, 1)
    three[0][:, :2], three[1][:, :2] = once.matrix, second
    assert_close(compose(once.matrix, second), (three[0] @ three[1])[:, :2], 1e-5)


def test_alpha_runs_from_the_identity_to_the_warp():
    transformer, x = warped(), torch.rand(2, 3, 32, 32)
    full, none, half = transformer(x), transformer(x, alpha=0.0), transformer(x, alpha=0.5)
    base = identity_grid(32, 32)
    assert_close(none.image, x, 1e-5)
    assert_close(half.grid, (base + full.grid) / 2, 1e-5)
    mixed = transformer(x, alpha=torch.tensor([1.0, 0.0]))
    assert_close(mixed.grid, torch.stack([full.grid[0], base]), 1e-6)


def test_source_is_sampled_and_output_resolution_resizes_the_grid():
    transformer, small, large = warped(), torch.rand(2, 3, 32, 32), torch.rand(2, 1, 128, 128)
    result = transformer(small, large, output_resolution=48)
    assert result.image.shape == (2, 1, 48, 48) and result.grid.shape == (2, 48, 48, 2)
    assert_close(result.image, mipmap_warp(large, result.grid), 1e-6)
    assert result.residual_flow.shape == (2, 32, 32, 2)


@pytest.mark.parametrize("resolution", [8, 31, 32, 33, 96])
@pytest.mark.parametrize("alpha", [1.0, 0.4])
def test_a_similarity_alone_has_its_grid_at_the_output_size(resolution, alpha):
    """Straight up to the edges, whatever the size and however far it is applied."""
    transformer, x = warped(transforms=("similarity",)), torch.rand(2, 3, 64, 64)
    result = transformer(x, output_resolution=resolution, alpha=alpha)
    base = identity_grid(resolution, resolution)
    whole = transform_points(result.matrix, base[None])
    assert_close(result.grid, base + alpha * (whole - base), 1e-6)


@pytest.mark.parametrize("size", [32, 64, 128, 256])
def test_the_flows_trunk_has_four_blocks_at_every_size(size):
    with torch.device("meta"):
        flow = SpatialTransformer(("flow",), size).flow
        older = SpatialTransformer(("flow",), size, flow_blocks=halving_blocks(size)).flow
    assert [block.conv2[0].__class__.__name__ for block in list(flow.convs)[1:]] == ["Blur"] * 3 + ["EqualConv2d"]
    assert len(older.convs) - 1 == halving_blocks(size)
    assert (size == 64) == (flow.state_dict().keys() == older.state_dict().keys())
    with pytest.raises(ValueError, match="flow_blocks"):
        SpatialTransformer(("flow",), 32, flow_blocks=2)


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("transforms", [("similarity",), ("flow",), ("similarity", "flow")])
def test_a_base_warp_is_what_was_found_before(transforms, heads):
    transformer, x = warped(transforms=transforms, heads=heads), torch.rand(2, 3, 32, 32)
    before = warped(transforms=("similarity",))(x)
    head = torch.tensor([heads - 1, 0])
    found = transformer(x, base_warp=before.matrix, assignment=head)
    alone = transformer(before.image, assignment=head)
    if alone.matrix is not None:
        assert_close(found.matrix, compose(before.matrix, alone.matrix), 1e-5)
    # The flow after a similarity sees a picture that was sampled once here and twice there.
    assert_close(found.grid, transform_points(before.matrix, alone.grid), 1e-3 if len(transforms) == 2 else 1e-5)
    every = transformer(x, base_warp=before.matrix)
    assert_close(every.grid[[heads - 1, heads]] if heads > 1 else every.grid, found.grid, 1e-5)
    with pytest.raises(ValueError, match="base_warp"):
        transformer(x, base_warp=before.matrix[:1])


def test_two_looks_are_one_with_the_first_as_its_base():
    transformer, x = warped(), torch.rand(2, 3, 64, 64)
    twice = transformer(x, warping=Warping(iters=2), output_resolution=48, alpha=0.5)
    first = transformer.stages(x)[0]
    again = transformer(x, base_warp=first.matrix, output_resolution=48, alpha=0.5)
    assert torch.equal(again.grid, twice.grid) and torch.equal(again.image, twice.image)


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("transforms", [("similarity",), ("flow",), ("similarity", "flow")])
def test_stages_show_every_look(transforms, heads):
    transformer, x, warping = warped(transforms=transforms, heads=heads), torch.rand(2, 3, 64, 64), Warping("reflection", 3)
    options = {"warping": warping, "output_resolution": 40, "alpha": torch.tensor([0.5, 1.0])}
    stages = transformer.stages(x, **options)
    assert len(stages) == 3 * ("similarity" in transforms) + ("flow" in transforms)
    last = transformer(x, **options)
    for stage in stages:
        assert stage.image.shape == last.image.shape and (stage.residual_flow is None) == (
            stage is not stages[-1] or "flow" not in transforms
        )
        assert_close(mipmap_warp(x.repeat_interleave(heads, 0), stage.grid, padding_mode="reflection"), stage.image, 1e-6)
    assert torch.equal(stages[-1].grid, last.grid) and torch.equal(stages[-1].image, last.image)
    if "similarity" in transforms:
        assert torch.equal(stages[0].matrix, transformer(x, warping=Warping("reflection")).matrix)


def test_what_reads_beyond_the_picture_is_out_of_bounds():
    transformer, x = SpatialTransformer(("similarity",), **SLIM), torch.rand(3, 3, 32, 32)
    shifts = torch.tensor([0.0, 0.1, -0.5])
    matrix = similarity_matrix(torch.zeros(3), torch.full((3,), -0.2), shifts, torch.zeros(3))
    assert transformer(x, base_warp=matrix).out_of_bounds.tolist() == [False, False, True]
    assert not transformer(x).out_of_bounds.any()


@pytest.mark.parametrize("transforms", [("similarity",), ("flow",), ("similarity", "flow")])
def test_every_head_agrees_with_the_assigned_head(transforms):
    transformer, x = warped(transforms=transforms, heads=3), torch.rand(2, 3, 32, 32)
    alpha = torch.tensor([0.5, 1.0])
    every = transformer(x, alpha=alpha)
    assert every.image.shape[0] == 6
    for head in range(3):
        one = transformer(x, alpha=alpha, assignment=torch.full((2,), head))
        assert_close(one.image, every.image[head::3], 1e-4)
    assert relative_error(every.image[0], every.image[1]) > 1e-3


def test_mirrored_inference_is_indifferent_to_mirrors():
    transformer, x = warped(), torch.rand(4, 3, 32, 32)
    a, mirrored_a = transformer.best_mirror(x)
    b, mirrored_b = transformer.best_mirror(x.flip(3))
    assert torch.equal(mirrored_a, ~mirrored_b)
    assert_close(a.image, b.image, 1e-5)
    assert_close(mipmap_warp(x, a.grid), a.image, 1e-4)


def test_bfloat16_grids_stay_float32():
    transformer, x = warped(), torch.rand(2, 3, 32, 32)
    exact = transformer(x)
    with torch.autocast("cpu", torch.bfloat16):
        rough = transformer(x)
        rough.image.sum().backward()
    assert rough.grid.dtype == torch.float32
    assert (rough.grid - exact.grid).abs().max() < 0.05


def test_a_batch_as_large_as_the_grid():
    transformer, x = warped(), torch.rand(32, 3, 32, 32)
    assert_close(transformer(x).image[5:7], transformer(x[5:7]).image, 1e-4)


def test_config_rebuilds():
    transformer = warped(heads=2)
    again = SpatialTransformer(**transformer.config())
    again.load_state_dict(transformer.state_dict())
    x = torch.rand(1, 3, 32, 32)
    assert torch.equal(again(x).image, transformer(x).image)


def test_empty_batch():
    result = SpatialTransformer(**SLIM)(torch.rand(0, 3, 32, 32))
    assert result.image.shape == (0, 3, 32, 32)


# ---- points


def test_normalisation_inverts_and_meets_pixel_edges():
    p = torch.tensor([-0.5, 0.0, 3.5, 7.5])
    assert_close(normalize_points(p, 8), torch.tensor([-1.0, -0.875, 0.0, 1.0]), 1e-6)
    assert_close(denormalize_points(normalize_points(p, 8, 5), 8, 5), p, 1e-6)


def test_points_through_the_identity_stay():
    grid = identity_grid(16, 16).expand(2, -1, -1, -1)
    p = torch.randint(0, 16, (2, 7, 2))
    assert torch.equal(to_template(grid, p, 16), p)
    assert_close(from_template(grid, p, 16), p.float(), 1e-5)
    # a picture of twice the size: pixel p of the template is centred between its pixels 2p and 2p + 1
    assert_close(from_template(grid, p, 32), 2 * p + 0.5, 1e-5)


def test_similarity_maps_agree_with_the_grid_and_invert():
    matrix = similarity_matrix(*torch.tensor([[0.3, -0.15], [-0.2, 0.1], [0.1, 0.0], [-0.1, 0.05]]))
    grid = transform_points(matrix, identity_grid(32, 32)[None])
    p = 5 + 20 * torch.rand(2, 6, 2)
    q = similarity_from_template(matrix, p, 32, 64)
    assert_close(from_template(grid, p, 64), q, 1e-4)
    assert_close(similarity_to_template(matrix, q, 32, 64), p, 1e-4)
    assert (to_template(grid, q, 64) - p).abs().max() < 1.01


# ---- errors


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: SpatialTransformer(("flow", "similarity")), "transforms"),
        (lambda: SpatialTransformer(flow_size=16), "flow_size"),
        (lambda: SpatialTransformer(flow_size=48), "flow_size"),
        (lambda: SpatialTransformer(heads=0, **SLIM), "heads"),
        (lambda: SpatialTransformer(**SLIM)(torch.rand(1, 1, 32, 32)), "images"),
        (lambda: SpatialTransformer(**SLIM)(torch.rand(2, 3, 32, 32), torch.rand(1, 3, 32, 32)), "source"),
        (lambda: Warping(iters=0), "iters"),
        (lambda: SpatialTransformer(**SLIM)(torch.rand(1, 3, 32, 32), alpha=torch.ones(2)), "alpha"),
        (lambda: SpatialTransformer(**SLIM)(torch.rand(1, 3, 32, 32), assignment=torch.zeros(2).long()), "assignment"),
        (lambda: SpatialTransformer(("similarity",), **SLIM).best_mirror(torch.rand(1, 3, 32, 32)), "flow"),
        (lambda: to_template(torch.rand(1, 4, 4, 2), torch.rand(2, 3, 2), 8), "points"),
    ],
)
def test_errors(call, words):
    with pytest.raises(ValueError, match=words):
        call()
