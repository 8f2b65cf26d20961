# SPDX-License-Identifier: Apache-2.0
"""Every kind of file with networks that this package reads, how to read it, and hostile or damaged ones of the same kind."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign_files import ada_network, original_file, pretend_modules, small_parts
from safetensors import safe_open

from gangealing_fast.checkpoints.reading import load_plain_generator, read
from gangealing_fast.checkpoints.writing import export_aligner, export_generator, export_plain_generator, write
from gangealing_fast.models import ClusterClassifier, DcganCritic, DcganGenerator
from gangealing_fast.models.self_supervised import SelfSupervisedPerceptual
from gangealing_fast.pretraining.classification import Classifier, export_classifier
from gangealing_fast.storage import checkpoint, exports

Reader = Callable[[Path], Any]


def train_state(parts: Any) -> dict[str, Any]:
    """What `Aligner.load` needs of a checkpoint of `train`."""
    state = parts.transformer.state_dict()
    target = parts.target.state_dict()
    return {"step": 1, "transformer_config": parts.transformer.config(), "average": state, "target": target}


def valid_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[Path, Reader]]:
    """By kind: a small valid file, and what reads it."""
    pretend_modules(monkeypatch)
    torch.manual_seed(0)
    parts = small_parts()
    generator, transformer = parts.generator, parts.transformer
    assert generator is not None and transformer is not None
    found: dict[str, tuple[Path, Reader]] = {}
    for to in ("original", "rosinality"):
        write(parts, folder / f"written-{to}.pt", to)
        found[f"written for {to}"] = folder / f"written-{to}.pt", read
    found["original"] = original_file(folder / "original.pt", parts), read
    torch.save({"g_ema": generator.state_dict()}, folder / "old.pt", _use_new_zipfile_serialization=False)
    found["old torch"] = folder / "old.pt", read
    (folder / "ada.pkl").write_bytes(pickle.dumps({"G_ema": ada_network(generator)}))
    found["stylegan2-ada"] = folder / "ada.pkl", read
    export_generator(generator, folder / "generator.safetensors", {}, half=False)
    found["generator"] = folder / "generator.safetensors", read
    classifier = ClusterClassifier.like(transformer)
    export_aligner(folder / "aligner.safetensors", transformer, parts.target, parts.warping, 4, classifier)
    found["aligner"] = folder / "aligner.safetensors", read
    export_plain_generator(DcganGenerator(16, 8, max_channels=8), folder / "dcgan.safetensors", {})
    found["dcgan"] = folder / "dcgan.safetensors", load_plain_generator
    export_classifier(DcganCritic(16, outputs=3, max_channels=8), [0, 1, 2], folder / "classifier.safetensors", {})
    found["classifier"] = folder / "classifier.safetensors", Classifier.load
    SelfSupervisedPerceptual((4, 4)).export(folder / "perceptual.safetensors", {})
    found["perceptual"] = folder / "perceptual.safetensors", SelfSupervisedPerceptual.load
    checkpoint.save(folder / "train.pt", train_state(parts), kind="train")
    found["train"] = folder / "train.pt", read
    state = {"step": 1, "config": generator.config(), "average": generator.state_dict()}
    checkpoint.save(folder / "pretrain.pt", state, kind="pretrain")
    found["pretrain"] = folder / "pretrain.pt", read
    return found


KINDS = (
    "written for original",
    "written for rosinality",
    "original",
    "old torch",
    "stylegan2-ada",
    "generator",
    "aligner",
    "dcgan",
    "classifier",
    "perceptual",
    "train",
    "pretrain",
)


def deflated(source: Path, target: Path) -> Path:
    """The same zip file with its members compressed."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    return target


def networks_in(value: Any) -> list[torch.nn.Module]:
    """The networks that a reader returned."""
    if isinstance(value, torch.nn.Module):
        return [value]
    return [part for part in vars(value).values() if isinstance(part, torch.nn.Module)]


def weights_in(value: Any) -> dict[str, torch.Tensor]:
    """All weights of the networks that a reader returned, by number and name."""
    return {f"{n}.{k}": v for n, network in enumerate(networks_in(value)) for k, v in network.state_dict().items()}


def rewrite(
    path: Path, change: Callable[[dict[str, torch.Tensor]], Any], settings: Callable[[dict[str, Any]], Any] | None = None
) -> None:
    """Write a file again with other tensors, or other settings, as a program without any checks would."""
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            tensors, about = {name: file.get_tensor(name) for name in file.keys()}, json.loads(file.metadata()["config"])  # noqa: SIM118
        change(tensors)
        if settings is not None:
            settings(about)
        path.write_bytes(exports._serialise(tensors, json.dumps(about)))
        return
    content = torch.load(path, weights_only=False)
    state = content.get("state", content)
    change(next(state[name] for name in ("average", "t_ema", "g_ema") if name in state))
    if settings is not None:
        settings(vars(content["args"]) if "args" in content else state)
    torch.save(content, path, _use_new_zipfile_serialization=path.name != "old.pt")


SETTINGS = {"generator", "transformer", "classifier", "critic", "network", "config", "transformer_config"}


def records(about: dict[str, Any]) -> list[dict[str, Any]]:
    """The records of networks' settings in what `rewrite` gives to `settings`."""
    return [value for name, value in about.items() if name in SETTINGS and isinstance(value, dict)]
