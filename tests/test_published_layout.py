# SPDX-License-Identifier: Apache-2.0
"""What the original's loader would look for, built here from the published description, and every export held to it.

Its loader passes over names that it does not know and over names that a file lacks: what does not fit is lost without a word.
Its constructor knows flows from 64x64 on.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from foreign_files import small_parts
from runs import call
from support import golden_index

from gangealing_fast import convert
from gangealing_fast.checkpoints.reading import Parts, read
from gangealing_fast.checkpoints.writing import export_aligner, generator_state, transformer_state, write
from gangealing_fast.geometry.warping import Warping
from gangealing_fast.models import Generator, LatentTarget, SpatialTransformer
from gangealing_fast.models.spatial_transformer import halving_blocks
from gangealing_fast.runtime.errors import UserError
from gangealing_fast.storage import checkpoint

Shapes = dict[str, list[int]]


# ---- the published layout


def widths(resolution: int, multiplier: float) -> int:
    return 512 if resolution <= 32 else int(256 * multiplier * 64 / resolution)


def trunk(size: int, multiplier: float, *, flow: bool) -> tuple[Shapes, int]:
    """Names and shapes of a trunk, and the channels it ends with."""

    def at(resolution: int) -> int:
        return widths(resolution, multiplier)

    found: Shapes = {"convs.0.0.weight": [at(size), 3, 1, 1], "convs.0.1.bias": [at(size)]}
    blocks = 4 if flow else size.bit_length() - 3
    for k in range(blocks):
        inside, out, name = at(size >> k), at(size >> (k + 1)), f"convs.{k + 1}"
        halves = not flow or k < 3
        found |= {f"{name}.conv1.0.weight": [inside, inside, 3, 3], f"{name}.conv1.1.bias": [inside]}
        if halves:
            found |= {f"{name}.conv2.0.kernel": [4, 4], f"{name}.skip.0.kernel": [4, 4]}
        found |= {
            f"{name}.conv2.{int(halves)}.weight": [out, inside, 3, 3],
            f"{name}.conv2.{int(halves) + 1}.bias": [out],
            f"{name}.skip.{int(halves)}.weight": [out, inside, 1, 1],
        }
    return found | {"final_conv.0.weight": [512, at(size >> blocks), 3, 3], "final_conv.1.bias": [512]}, 512


def stage(kind: str, size: int, real_size: int, multiplier: float, heads: int) -> Shapes:
    found, channels = trunk(size, multiplier, flow=kind == "flow")
    if real_size > size:
        taps = 2 * (real_size // size)
        found |= {"input_downsample.kernel_horz": [3, 1, 1, taps], "input_downsample.kernel_vert": [3, 1, taps, 1]}
    head: Shapes = {"warper.blur_filter": [1, 1, 4, 4]}
    if kind == "similarity":
        found |= {"final_linear.weight": [channels, 16 * channels], "final_linear.bias": [channels]}
        head |= {"one_hot": [1, 1, 1, 3], "linear.weight": [4 * heads, channels], "linear.bias": [4 * heads]}
    else:
        for name, outputs in (("flow_out", 2 * heads), ("mask_out", 9 * 8 * 8 * heads)):
            head |= {f"{name}.0.weight": [channels, channels, 3, 3], f"{name}.0.bias": [channels]}
            head |= {f"{name}.2.weight": [outputs, channels, 3, 3], f"{name}.2.bias": [outputs]}
    return found | {f"warp_head.{key}": shape for key, shape in head.items()}


def published_transformer(transforms: list[str], size: int, real_size: int, multiplier: float, heads: int) -> Shapes:
    stages = [stage(kind, size, real_size, multiplier, heads) for kind in transforms]
    if len(stages) == 1:
        return stages[0]
    return {f"stns.{k}.{name}": shape for k, found in enumerate(stages) for name, shape in found.items()}


def published_generator(size: int, latent: int, layers: int, multiplier: float) -> Shapes:
    def at(resolution: int) -> int:
        return widths(resolution, multiplier)

    def convolution(name: str, inside: int, out: int, kernel: int) -> Shapes:
        affine = {f"{name}.modulation.weight": [inside, latent], f"{name}.modulation.bias": [inside]}
        return {f"{name}.weight": [1, out, inside, kernel, kernel], **affine}

    def styled(name: str, inside: int, out: int, *, up: bool) -> Shapes:
        found = convolution(f"{name}.conv", inside, out, 3) | {f"{name}.noise.weight": [1], f"{name}.activate.bias": [out]}
        return found | ({f"{name}.conv.blur.kernel": [4, 4]} if up else {})

    found: Shapes = {"input.input": [1, at(4), 4, 4], "noises.noise_0": [1, 1, 4, 4], "to_rgb1.bias": [1, 3, 1, 1]}
    found |= styled("conv1", at(4), at(4), up=False) | convolution("to_rgb1.conv", at(4), 3, 1)
    for k in range(1, layers + 1):
        found |= {f"style.{k}.weight": [latent, latent], f"style.{k}.bias": [latent]}
    for level, resolution in enumerate(2**e for e in range(3, size.bit_length())):
        inside, out = at(resolution // 2), at(resolution)
        found |= styled(f"convs.{2 * level}", inside, out, up=True) | styled(f"convs.{2 * level + 1}", out, out, up=False)
        found |= convolution(f"to_rgbs.{level}.conv", out, 3, 1)
        found |= {f"to_rgbs.{level}.bias": [1, 3, 1, 1], f"to_rgbs.{level}.upsample.kernel": [4, 4]}
        found |= {f"noises.noise_{2 * level + k}": [1, 1, resolution, resolution] for k in (1, 2)}
    return found


def shapes(state: dict[str, torch.Tensor]) -> Shapes:
    return {key: list(value.shape) for key, value in state.items()}


CASES = [
    *itertools.product(
        (["similarity", "flow"], ["flow"]), ((64, 64), (64, 128), (128, 128), (128, 256), (256, 256)), (0.5, 1), (1, 3)
    ),
    *itertools.product((["similarity"],), ((32, 64), (64, 64), (128, 256), (256, 1024)), (0.5, 1), (1, 3)),
]


def test_the_description_here_is_that_of_the_published_files():
    index = golden_index()
    both = ["similarity", "flow"]
    assert published_transformer(both, 64, 128, 0.5, 1) == index["stn_composed"]["state"]
    assert published_transformer(both, 128, 256, 0.5, 1) == index["stn_flow128"]["state"]
    assert published_transformer(both, 64, 64, 0.5, 3) == index["stn_clusters"]["state"]
    assert published_transformer(["similarity"], 32, 64, 0.5, 1) == index["stn_similarity_resolution"]["state"]
    assert published_generator(16, 512, 2, 2) == index["generator"]["state"]


@pytest.mark.parametrize(("transforms", "sizes", "multiplier", "heads"), CASES)
def test_a_transformer_is_written_as_the_original_reads_it(transforms, sizes, multiplier, heads):
    with torch.device("meta"):
        ours = transformer_state(SpatialTransformer(transforms, *sizes, multiplier, heads))
    assert shapes(ours) == published_transformer(transforms, *sizes, multiplier, heads)


@pytest.mark.parametrize(("size", "multiplier"), [(8, 2), (64, 2), (256, 2), (256, 1), (1024, 2)])
def test_a_generator_is_written_as_the_original_reads_it(size, multiplier):
    with torch.device("meta"):
        ours = generator_state(Generator(size, 512, 8, multiplier))
    assert shapes(ours) == published_generator(size, 512, 8, multiplier)


def test_a_file_is_read_back_by_the_originals_rules(tmp_path):
    """Of full widths, so that its networks take what the arguments in the file say they are."""
    torch.manual_seed(0)
    transformer = SpatialTransformer(("similarity", "flow"), 128, 256, 0.5, heads=2).eval()
    parts = Parts(
        "a test", Generator(256, 512, 2, 1).eval(), None, transformer, LatentTarget(torch.eye(512)[:3], torch.randn(512), 2)
    )
    parts.inject = 5
    write(parts, tmp_path / "a.pt", "original")
    content = torch.load(tmp_path / "a.pt", weights_only=False)
    said = content["args"]
    expected = published_transformer(said.transform, said.flow_size, said.real_size, said.stn_channel_multiplier, said.num_heads)
    assert shapes(content["t"]) == shapes(content["t_ema"]) == expected
    assert shapes(content["g_ema"]) == published_generator(said.gen_size, said.dim_latent, said.n_mlp, said.gen_channel_multiplier)
    assert shapes(content["ll"]) == {"coefficients": [2, 3], "directions": [3, 512], "lat_mean": [1, 512]}


# ---- there and back, at every size


@pytest.mark.parametrize("size", [32, 64, 128, 256])
@pytest.mark.parametrize("transforms", [("similarity",), ("flow",), ("similarity", "flow")])
@pytest.mark.parametrize("to", ["original", "safetensors"])
def test_every_size_comes_back(tmp_path, to, transforms, size):
    parts = small_parts()
    parts.transformer = SpatialTransformer(transforms, size, 2 * size, channel_base=4 * size, max_channels=8, heads=2).eval()
    moved(parts.transformer)
    out = tmp_path / ("a.pt" if to == "original" else "folder")
    write(parts, out, to)
    found = read(out).transformer
    assert (found.flow_size, found.input_size, found.transforms) == (size, 2 * size, transforms)
    assert shapes(found.state_dict()) == shapes(parts.transformer.state_dict())
    images = torch.rand(1, 3, size, size)
    assert torch.equal(found(images).grid, parts.transformer(images).grid)


def moved(transformer: SpatialTransformer) -> SpatialTransformer:
    """Away from the identity."""
    for module in transformer.stns:
        for parameter in module.warp_head.parameters():
            torch.nn.init.normal_(parameter, std=0.05)
    return transformer


# ---- files of earlier versions


def earlier(size: int) -> SpatialTransformer:
    """A transformer whose flow has the trunk of earlier versions."""
    made = SpatialTransformer(("similarity", "flow"), size, channel_base=4 * size, max_channels=8, flow_blocks=halving_blocks(size))
    return moved(made).eval().requires_grad_(False)


@pytest.mark.parametrize("kind", ["aligner", "checkpoint", "original"])
@pytest.mark.parametrize("size", [32, 64, 128])
def test_what_earlier_versions_wrote_still_loads(tmp_path, monkeypatch, size, kind):
    parts = small_parts()
    parts.transformer = transformer = earlier(size)
    parts.target = LatentTarget(torch.eye(8)[:3], torch.randn(8))  # one head, as the transformer has
    config = transformer.config()
    del config["flow_blocks"]  # they did not say it
    path = tmp_path / ("a.safetensors" if kind == "aligner" else "a.pt")
    if kind == "aligner":
        monkeypatch.setattr(transformer, "config", lambda: config)
        export_aligner(path, transformer, parts.target, Warping())
    elif kind == "checkpoint":
        state = {"transformer_config": config, "average": transformer.state_dict(), "target": parts.target.state_dict()}
        checkpoint.save(path, state, kind="train")
    else:
        state = transformer_state(transformer)
        torch.save({"t": state, "t_ema": state, "args": {"flow_size": size}}, path)
    found = read(path).transformer
    images = torch.rand(1, 3, size, size)
    assert found.flow_blocks == halving_blocks(size) and torch.equal(found(images).grid, transformer(images).grid)


@pytest.mark.parametrize("size", [32, 128])
def test_the_original_is_not_given_a_flow_that_it_would_lose(tmp_path, size):
    parts = small_parts()
    parts.transformer = earlier(size)
    with pytest.raises(UserError, match=f"4 residual blocks, this one of an earlier version has {halving_blocks(size)}"):
        write(parts, tmp_path / "a.pt", "original")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("to", ["original", "rosinality", "safetensors"])
def test_what_another_loader_would_refuse_is_said(tmp_path, monkeypatch, capsys, to):
    write(small_parts(), tmp_path / "parts", "safetensors")
    assert call(monkeypatch, convert, "--source", tmp_path / "parts", "--out", tmp_path / "out", "--to", to) == 0
    assert capsys.readouterr().out.count(f"the loader of {to} refuses") == {"original": 2, "rosinality": 1, "safetensors": 0}[to]


def test_a_flow_alone_needs_its_size_stated(tmp_path):
    state = transformer_state(SpatialTransformer(("flow",), 64, channel_base=64, max_channels=8))
    for size, words in ((None, "do not show the flow_size"), (48, "power of two"), ("64", "power of two"), (8, "does not suit")):
        torch.save({"t": state, "t_ema": state, "args": {} if size is None else {"flow_size": size}}, tmp_path / "a.pt")
        with pytest.raises(UserError, match=words):
            read(tmp_path / "a.pt")
