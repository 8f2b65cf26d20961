# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of other projects: what is in them arrives, what is not data is refused, damage is one sentence."""

from __future__ import annotations

import argparse
import collections
import hashlib
import os
import pickle
import random
import sys
import threading
import types
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from support import golden_index

from gangealing_fast import convert
from gangealing_fast.errors import UserError
from gangealing_fast.foreign.download import fetch
from gangealing_fast.foreign.reading import Parts, read
from gangealing_fast.foreign.writing import generator_state, transformer_state, write
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
    settings = {"padding_mode": "reflection", "iters": 3, "inject": 4}
    return Parts("a test", small_generator(), torch.randn(8), transformer, target, settings=settings)


def assert_same_pictures(a: Generator, b: Generator) -> None:
    z = torch.randn(2, a.latent_dim)
    torch.testing.assert_close(a(z, "fixed"), b(z, "fixed"), rtol=1e-5, atol=1e-5)


def original_file(path: Path, parts: Parts, **more) -> Path:
    """As the original's trainer writes it: optimiser and schedule states, options in a pickled namespace."""
    state = transformer_state(parts.transformer)
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.ones(2))])
    options = argparse.Namespace(padding_mode="reflection", iters=3, inject=4, lr=0.001, transform=["similarity", "flow"])
    content = {"g_ema": generator_state(parts.generator), "t": state, "t_ema": state, "ll": parts.target.state_dict()}
    content |= {"t_optim": optimizer.state_dict(), "t_sched": {"last_epoch": 3.5, "base_lrs": [0.001]}, "args": options}
    torch.save(content | more, path)
    return path


# ---- the original


def test_the_originals_checkpoint(tmp_path):
    parts = small_parts()
    found = read(original_file(tmp_path / "a.pt", parts))
    assert found.settings == parts.settings and found.options["lr"] == 0.001
    assert_same_pictures(found.generator, parts.generator)
    assert torch.equal(found.target.target(), parts.target.target())
    images = torch.rand(2, 3, 64, 64)
    assert (found.transformer.heads, found.transformer.flow_size, found.transformer.input_size) == (2, 32, 64)
    assert torch.equal(found.transformer(images).grid, parts.transformer(images).grid)


@pytest.mark.parametrize("transforms", [("similarity",), ("flow",)])
def test_the_originals_checkpoint_of_a_single_transform(tmp_path, transforms):
    parts = small_parts()
    parts.transformer = SpatialTransformer(transforms, 32, channel_base=64, max_channels=8)
    found = read(original_file(tmp_path / "a.pt", parts)).transformer
    assert found.transforms == transforms
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(found(images).grid, parts.transformer(images).grid)


def test_written_names_and_shapes_are_those_of_the_original():
    settings = golden_index()["stn_composed"]
    state = transformer_state(SpatialTransformer(("similarity", "flow"), 64, 128, 0.5))
    assert {k: list(v.shape) for k, v in state.items()} == settings["state"]
    settings = golden_index()["generator"]
    state = generator_state(Generator(settings["size"], 512, 2))
    assert {k: list(v.shape) for k, v in state.items()} == settings["state"]


@pytest.mark.parametrize("to", ["safetensors", "rosinality", "original"])
def test_there_and_back(tmp_path, to):
    parts = small_parts()
    out = tmp_path / ("folder" if to == "safetensors" else "a.pt")
    files = write(parts, out, to)
    assert all(file.exists() for file in files)
    found = read(out)
    assert_same_pictures(found.generator, parts.generator)
    if to != "rosinality":
        images = torch.rand(1, 3, 64, 64)
        assert torch.equal(found.transformer(images).grid, parts.transformer(images).grid)
        assert torch.equal(found.target.target(), parts.target.target())
        assert found.settings["padding_mode"] == "reflection" and found.settings["iters"] == 3
    if to == "rosinality":
        assert torch.equal(found.mean_latent, parts.mean_latent)
    if to == "safetensors":
        card = (out / "README.md").read_text()
        assert "Converted from: a test" in card and "| flow_size | 32 |" in card


def test_half_precision_export(tmp_path):
    parts = small_parts()
    whole, half = (sum(f.stat().st_size for f in write(parts, tmp_path / str(h), "safetensors", half=h)) for h in (False, True))
    assert half < 0.6 * whole
    read(tmp_path / "True")


def test_a_part_that_the_format_needs_is_missing(tmp_path):
    parts = small_parts()
    parts.transformer = parts.target = None
    with pytest.raises(UserError, match="needs a transformer"):
        write(parts, tmp_path / "a.pt", "original")
    parts.generator = None
    with pytest.raises(UserError, match="needs a generator"):
        write(parts, tmp_path / "a.pt", "rosinality")
    assert not list(tmp_path.iterdir())


# ---- rosinality's StyleGAN2


@pytest.mark.parametrize("zipped", [True, False])
def test_rosinality(tmp_path, zipped):
    generator = small_generator()
    content = {"g_ema": generator_state(generator), "latent_avg": torch.ones(8), "d": {}, "g_optim": {"state": {}}}
    torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    found = read(tmp_path / "a.pt")
    assert found.names() == ["generator"] and torch.equal(found.mean_latent, torch.ones(8))
    assert_same_pictures(found.generator, generator)


@pytest.mark.parametrize("multiplier", [1.0, 2.0])
def test_widths_are_recovered(tmp_path, multiplier):
    generator = Generator(128, 16, 1, multiplier, max_channels=512)
    torch.save({"g_ema": generator_state(generator)}, tmp_path / "a.pt")
    assert read(tmp_path / "a.pt").generator.config() == generator.config()


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda state: state.pop("conv1.conv.weight"), "conv1.conv.weight is missing"),
        (lambda state: state.update({"extra.weight": torch.ones(1)}), "extra.weight has no place"),
        (lambda state: state.update({"conv1.noise.weight": torch.ones(3)}), "conv1.noise.weight does not have the shape"),
        (lambda state: state["input.input"].fill_(float("nan")), "input.input holds values that are not finite"),
        (lambda state: state.clear(), "is missing"),
    ],
)
def test_a_generator_that_does_not_fit(tmp_path, damage, sentence):
    state = generator_state(small_generator())
    damage(state)
    torch.save({"g_ema": state}, tmp_path / "a.pt")
    with pytest.raises(UserError, match=sentence):
        read(tmp_path / "a.pt")


# ---- StyleGAN2-ADA


class PersistentStandIn:
    """Pickles as that project's networks do: a function of another module, called with a dictionary."""

    def __init__(self, class_name: str, **state) -> None:
        self.meta = {"type": "class", "version": 6, "module_src": "raise SystemExit", "class_name": class_name, "state": state}

    def __reduce__(self):
        return sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj, (self.meta,)


@pytest.fixture
def nvidia_modules(monkeypatch):
    """Modules of that project's names, so that pickles with their names can be written."""

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


def test_stylegan2_ada(tmp_path, nvidia_modules):
    generator = small_generator()
    content = {"G_ema": ada_network(generator), "augment_pipe": None, "training_set_kwargs": nvidia_modules(resolution=16)}
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(content))
    found = read(tmp_path / "a.pkl")
    assert found.generator.size == 16
    assert_same_pictures(found.generator, generator)
    assert torch.equal(found.mean_latent, torch.full((8,), 0.25))


def test_conditional_and_foreign_networks_are_refused(tmp_path, nvidia_modules):
    extra = {"mapping.embed.weight": torch.ones(3, 3)}
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"G_ema": ada_network(small_generator(), **extra)}))
    with pytest.raises(UserError, match="conditional"):
        read(tmp_path / "a.pkl")
    (tmp_path / "b.pkl").write_bytes(pickle.dumps({"G_ema": PersistentStandIn("Other", _parameters={})}))
    with pytest.raises(UserError, match="Other is no StyleGAN2 generator"):
        read(tmp_path / "b.pkl")


# ---- code


class Evil:
    """Creates a file when it is unpickled without restrictions."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_the_trap_works(tmp_path):
    pickle.loads(pickle.dumps(Evil(tmp_path / "executed")))
    assert (tmp_path / "executed").exists()


@pytest.mark.parametrize("kind", ["pickle", "zip", "old", "storage", "namespace", "builtins"])
def test_pickles_that_run_code_are_refused(tmp_path, kind, nvidia_modules):
    trap, path = Evil(tmp_path / "executed"), tmp_path / "a.pt"
    name = "mkdir"
    if kind == "pickle":
        path.write_bytes(pickle.dumps({"G_ema": trap}))
    elif kind == "zip":
        torch.save({"g_ema": {}, "x": trap}, path)
    elif kind == "old":
        torch.save({"g_ema": {}, "x": trap}, path, _use_new_zipfile_serialization=False)
    elif kind == "storage":  # a storage inside StyleGAN2-ADA's pickle is a pickle again
        inner = tmp_path / "inner"
        torch.save({"x": trap}, inner, _use_new_zipfile_serialization=False)

        class Storage:
            def __reduce__(self):
                return torch.storage._load_from_bytes, (inner.read_bytes(),)

        path.write_bytes(pickle.dumps({"G_ema": Storage()}))
    elif kind == "namespace":
        torch.save({"t_ema": {}, "args": argparse.Namespace(x=trap)}, path)
    else:

        class Eval:
            def __reduce__(self):
                return eval, (f"__import__('os').mkdir({str(tmp_path / 'executed')!r})",)

        path.write_bytes(pickle.dumps({"G_ema": Eval()}))
        name = "eval"
    with pytest.raises(UserError, match=f"{name}.*would have to run code"):
        read(path)
    assert not (tmp_path / "executed").exists()


def test_other_classes_are_refused_by_name(tmp_path):
    torch.save({"g_ema": {}, "x": torch.nn.Linear(1, 1)}, tmp_path / "a.pt")
    with pytest.raises(UserError, match="torch.nn.modules.linear.Linear"):
        read(tmp_path / "a.pt")
    (tmp_path / "b.pkl").write_bytes(b"cdnnlib.tflib.network\nNetwork\n.")
    with pytest.raises(UserError, match="TensorFlow"):
        read(tmp_path / "b.pkl")


# ---- damage


def test_two_hundred_corrupted_checkpoints(tmp_path, nvidia_modules):
    """Cut, overwritten, shuffled: always one sentence; or, where nothing that matters was hit, the very same networks."""
    parts, chance = small_parts(), random.Random(5)
    write(parts, tmp_path / "own", "safetensors")
    write(parts, tmp_path / "rosinality.pt", "rosinality")
    original_file(tmp_path / "original.pt", parts)
    (tmp_path / "ada.pkl").write_bytes(pickle.dumps({"G_ema": ada_network(parts.generator)}))
    sources = [
        tmp_path / "rosinality.pt",
        tmp_path / "original.pt",
        tmp_path / "ada.pkl",
        tmp_path / "own" / "generator.safetensors",
    ]
    refused = 0
    for number in range(200):
        source = sources[number % 4]
        content = bytearray(source.read_bytes())
        kind = (number // 4) % 4
        if kind == 0:
            content = content[: chance.randrange(len(content))]
        elif kind == 1:  # a few bytes near the front, where the structure is
            for _ in range(4):
                content[chance.randrange(min(4000, len(content)))] = chance.randrange(256)
        elif kind == 2:
            for _ in range(50):
                content[chance.randrange(len(content))] = chance.randrange(256)
        else:
            at, length = chance.randrange(len(content)), chance.randrange(1, 2000)
            content[at : at + length] = b""
        path = tmp_path / f"damaged{source.suffix}"
        path.write_bytes(content)
        try:
            found = read(path)
        except UserError as error:
            refused += 1
            assert str(path) in str(error) and "\n" not in str(error) and len(str(error)) < 500
        else:
            assert found.generator is not None and all(torch.isfinite(p).all() for p in found.generator.parameters())
    assert refused > 120


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "truncated, corrupt or no checkpoint"),
        (b"just text", "truncated, corrupt or no checkpoint"),
        (pickle.dumps([1, 2]), "truncated, corrupt or no checkpoint"),
        (pickle.dumps({"a": 1}), "truncated, corrupt or no checkpoint"),
    ],
)
def test_files_that_are_no_checkpoints(tmp_path, content, sentence):
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(UserError, match=sentence):
        read(tmp_path / "a.pt")
    with pytest.raises(UserError, match="no such file"):
        read(tmp_path / "b.pt")
    with pytest.raises(UserError, match="holds neither generator.safetensors"):
        read(tmp_path)
    torch.save({"a": 1}, tmp_path / "c.pt")
    with pytest.raises(UserError, match="neither g_ema nor t_ema"):
        read(tmp_path / "c.pt")


# ---- the command and downloads


def test_the_command(tmp_path, monkeypatch, capsys):
    source = original_file(tmp_path / "a.pt", small_parts())
    monkeypatch.setattr(sys, "argv", ["convert", "--source", str(source), "--out", str(tmp_path / "out"), "--half"])
    convert.main()
    assert "GANgealing (original), generator and transformer and target latent" in capsys.readouterr().out
    assert {f.name for f in (tmp_path / "out").iterdir()} == {"generator.safetensors", "aligner.safetensors", "README.md"}
    monkeypatch.setattr(sys, "argv", ["convert", "--source", str(tmp_path / "none.pt"), "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as stopped:
        convert.main()
    assert stopped.value.code == 2
    assert "no such file" in capsys.readouterr().err


@pytest.fixture
def server(tmp_path):
    """An address that serves a folder."""
    (tmp_path / "served").mkdir()
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path / "served"))
    handler.log_message = lambda *_: None
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield tmp_path / "served", f"http://127.0.0.1:{http.server_port}"
        http.shutdown()


def test_downloads_only_with_a_checksum(server, tmp_path, monkeypatch):
    folder, address = server
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "cache"))
    torch.save({"g_ema": generator_state(small_generator())}, folder / "a.pt")
    digest = hashlib.sha256((folder / "a.pt").read_bytes()).hexdigest()
    with pytest.raises(UserError, match="only with its checksum"):
        fetch(f"{address}/a.pt", None)
    with pytest.raises(UserError, match="64 hexadecimal digits"):
        fetch(f"{address}/a.pt", "12")
    with pytest.raises(UserError, match="nothing was kept"):
        fetch(f"{address}/a.pt", "0" * 64)
    with pytest.raises(UserError, match="cannot be downloaded"):
        fetch(f"{address}/missing.pt", digest)
    with pytest.raises(UserError, match="no http address"):
        fetch("ftp://host/a.pt", digest)
    assert not any(p.is_file() for p in (tmp_path / "cache").rglob("*"))
    path = fetch(f"{address}/a.pt", digest)
    assert read(path).generator is not None
    (folder / "a.pt").unlink()
    assert fetch(f"{address}/a.pt", digest) == path  # from the cache, offline
    with pytest.raises(UserError, match="has the checksum"):
        fetch(str(path), "0" * 64)
