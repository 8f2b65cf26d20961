# SPDX-License-Identifier: Apache-2.0
"""Checkpoints in the formats of other projects, made from small networks."""

from __future__ import annotations

import argparse
import collections
import sys
import types
from pathlib import Path

import pytest
import torch

from gangealing_fast.checkpoints.reading import Parts
from gangealing_fast.checkpoints.writing import generator_state, transformer_state
from gangealing_fast.geometry.warping import Warping
from gangealing_fast.models import Generator, LatentTarget, SpatialTransformer


def small_generator() -> Generator:
    generator = Generator(16, 8, 2, channel_base=64, max_channels=12).eval().requires_grad_(False)
    for parameter in generator.parameters():
        torch.nn.init.normal_(parameter)
    return generator


def small_parts() -> Parts:
    transformer = SpatialTransformer(("similarity", "flow"), 32, 64, channel_base=64, max_channels=8, heads=2).eval()
    for parameter in transformer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    target = LatentTarget(torch.eye(8)[:3], torch.randn(8), heads=2)
    torch.nn.init.normal_(target.coefficients)
    return Parts("a test", small_generator(), torch.randn(8), transformer, target, warping=Warping("reflection", 3), inject=4)


def assert_same_pictures(a: Generator, b: Generator) -> None:
    z = torch.randn(2, a.latent_dim)
    torch.testing.assert_close(a(z, "fixed"), b(z, "fixed"), rtol=1e-5, atol=1e-5)


def original_file(path: Path, parts: Parts, **more) -> Path:
    """As the original's trainer writes it: optimiser and schedule states, options in a pickled namespace."""
    state = transformer_state(parts.transformer)
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.ones(2))])
    sizes = {"flow_size": parts.transformer.flow_size, "real_size": parts.transformer.input_size}
    options = argparse.Namespace(padding_mode="reflection", iters=3, inject=4, lr=0.001, transform=["similarity", "flow"], **sizes)
    content = {"g_ema": generator_state(parts.generator), "t": state, "t_ema": state, "ll": parts.target.state_dict()}
    content |= {"t_optim": optimizer.state_dict(), "t_sched": {"last_epoch": 3.5, "base_lrs": [0.001]}, "args": options}
    torch.save(content | more, path)
    return path


class PersistentStandIn:
    """Pickles as StyleGAN2-ADA's networks do: a function of another module, called with a dictionary."""

    def __init__(self, class_name: str, **state) -> None:
        self.meta = {"type": "class", "version": 6, "module_src": "raise SystemExit", "class_name": class_name, "state": state}

    def __reduce__(self):
        return sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj, (self.meta,)


def pretend_modules(monkeypatch: pytest.MonkeyPatch) -> type[dict]:
    """Modules of StyleGAN2-ADA's names, so that pickles with those names can be written; returns its EasyDict."""

    def reconstruct(meta):
        raise AssertionError("the foreign function ran")

    module = types.ModuleType("torch_utils.persistence")
    reconstruct.__module__, reconstruct.__qualname__ = module.__name__, "_reconstruct_persistent_obj"
    module._reconstruct_persistent_obj = reconstruct
    easy = type("EasyDict", (dict,), {"__module__": "dnnlib.util"})
    util = types.ModuleType("dnnlib.util")
    util.EasyDict = easy
    for name, value in {
        "torch_utils": types.ModuleType("torch_utils"),
        "torch_utils.persistence": module,
        "dnnlib": types.ModuleType("dnnlib"),
        "dnnlib.util": util,
    }.items():
        monkeypatch.setitem(sys.modules, name, value)
    return easy


def ada_network(generator: Generator, **extra: torch.Tensor) -> PersistentStandIn:
    """The generator's tensors under StyleGAN2-ADA's names, nested as its modules are."""
    tensors: dict[str, torch.Tensor] = {"mapping.w_avg": torch.full((generator.latent_dim,), 0.25), **extra}
    for k in range(generator.mapping_layers):
        layer = generator.style[k + 1]
        tensors |= {f"mapping.fc{k}.weight": layer.weight, f"mapping.fc{k}.bias": layer.bias}
    noises = dict(generator.noises.named_buffers())

    def styled(name, layer, noise):
        tensors.update(
            {
                f"{name}.weight": layer.conv.weight[0],
                f"{name}.bias": layer.activate.bias,
                f"{name}.affine.weight": layer.conv.modulation.weight,
                f"{name}.affine.bias": layer.conv.modulation.bias,
                f"{name}.noise_strength": layer.noise.weight[0],
                f"{name}.noise_const": noises[noise][0, 0],
                f"{name}.resample_filter": torch.ones(4, 4),
            }
        )

    def rgb(name, layer):
        tensors.update(
            {
                f"{name}.weight": layer.conv.weight[0],
                f"{name}.bias": layer.bias.flatten(),
                f"{name}.affine.weight": layer.conv.modulation.weight,
                f"{name}.affine.bias": layer.conv.modulation.bias,
            }
        )

    tensors["synthesis.b4.const"] = generator.input.input[0]
    styled("synthesis.b4.conv1", generator.conv1, "noise_0")
    rgb("synthesis.b4.torgb", generator.to_rgb1)
    for level, resolution in enumerate((8, 16)):
        styled(f"synthesis.b{resolution}.conv0", generator.convs[2 * level], f"noise_{2 * level + 1}")
        styled(f"synthesis.b{resolution}.conv1", generator.convs[2 * level + 1], f"noise_{2 * level + 2}")
        rgb(f"synthesis.b{resolution}.torgb", generator.to_rgbs[level])

    def nest(prefix):
        own, inner = {}, collections.OrderedDict()
        for name, value in tensors.items():
            if name.startswith(prefix):
                first, _, rest = name[len(prefix) :].partition(".")
                if rest:
                    inner[first] = None
                else:
                    own[first] = value.detach().clone()
        for first in inner:
            inner[first] = nest(f"{prefix}{first}.")
        parameters = collections.OrderedDict((k, torch.nn.Parameter(v)) for k, v in own.items() if k in ("weight", "bias", "const"))
        buffers = collections.OrderedDict((k, v) for k, v in own.items() if k not in parameters)
        return PersistentStandIn("Module", training=False, _parameters=parameters, _buffers=buffers, _modules=inner)

    return nest("")
