# SPDX-License-Identifier: Apache-2.0
"""Commands called as a user types them, tiny runs of both trainers, and what a killed and resumed one is compared by."""

from __future__ import annotations

import dataclasses
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from gangealing_fast.alignment.config import TrainConfig
from gangealing_fast.pretraining.config import PretrainConfig

SIZE = 32


def call(monkeypatch: pytest.MonkeyPatch, command: ModuleType, *arguments: object) -> int | str | None:
    """Exit status of a command's `main`, given what a user would type behind the command's name."""
    monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments)])
    try:
        command.main()
    except SystemExit as end:
        return end.code
    return 0


def write_generator(path: Path, size: int = SIZE) -> Path:
    """An untrained slim generator, as `pretrain` would export it."""
    from gangealing_fast.checkpoints.writing import export_generator
    from gangealing_fast.models import Generator

    torch.manual_seed(0)
    export_generator(Generator(size, 8, 1, channel_base=64, max_channels=8), path, {})
    return path


def write_pictures(folder: Path, count: int = 12, size: int = SIZE) -> Path:
    """Noisy colour gradients."""
    from gangealing_fast.storage.files import save_picture

    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    for k in range(count):
        save_picture(folder / f"{k:03d}.png", torch.rand(3, size, size, generator=generator) * 2 - 1)
    return folder


def train_config(folder: Path, **changes: Any) -> TrainConfig:
    """A few steps of alignment on the generator of `write_generator`."""
    options: dict[str, Any] = {
        "generator": folder / "generator.safetensors",
        "out": folder / "run",
        "flow_size": SIZE,
        "channel_base": 64,
        "max_channels": 8,
        "steps": 12,
        "batch": 4,
        "micro_batch": 3,
        "anneal_psi": 6,
        "period": 6,
        "inject": 3,
        "directions": 2,
        "principal_samples": 100,
        "perceptual_size": 32,
        "held_out": 8,
        "snapshot": 2,
        "threads": 1,
        "reuse_memory": False,
    }
    return TrainConfig(**(options | changes))


def pretrain_config(folder: Path, **changes: Any) -> PretrainConfig:
    """A few steps of adversarial training on the pictures of `write_pictures`."""
    options: dict[str, Any] = {
        "data": folder / "pictures",
        "out": folder / "run",
        "size": 16,
        "kimg": 0.04,
        "batch": 4,
        "latent_dim": 8,
        "mapping_layers": 1,
        "channel_base": 64,
        "max_channels": 8,
        "r1_interval": 2,
        "snapshot_kimg": 0.008,
        "score_pictures": 8,
        "threads": 1,
        "reuse_memory": False,
    }
    return PretrainConfig(**(options | changes))


def assert_identical(a: Any, b: Any, where: str = "state") -> None:
    """Fail unless two nested states are equal to the last bit."""
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_identical(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for k, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_identical(x, y, f"{where}[{k}]")
    else:
        assert a == b, where


def _kill_repeatedly(run: Callable[[], None], kills: int, seed: int) -> int:
    """Fork and SIGKILL `run` at `kills` random moments, then let it end; the number of lives that were really cut short.

    Each life is forked from this fresh process: importing torch anew 20 times would take minutes.
    """
    chance, cut = random.Random(seed), 0
    for life in range(kills + 1):
        child = os.fork()
        if child == 0:
            run()
            os._exit(0)
        if life < kills:
            time.sleep(chance.uniform(0.05, 1.2))
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        cut += os.WIFSIGNALED(status)
    if not os.WIFEXITED(status) or os.WEXITSTATUS(status) != 0:
        raise SystemExit("the last life did not end well")
    return cut


if __name__ == "__main__":
    command, folder, kills, changes = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), eval(sys.argv[4])
    if command == "train":
        from gangealing_fast.alignment.trainer import run as train

        print("cut short:", _kill_repeatedly(lambda: train(train_config(folder, **changes)), kills, 0))
    else:
        from gangealing_fast.pretraining.trainer import run as pretrain

        print("cut short:", _kill_repeatedly(lambda: pretrain(pretrain_config(folder, **changes)) and None, kills, 0))


def assert_pretraining_resumes(config: PretrainConfig, folder: Path, monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """Stopped in a generator step after `steps` of them and resumed, the run ends as an uninterrupted one, tensor by tensor."""
    from gangealing_fast.adversarial.step import AdversarialStep
    from gangealing_fast.pretraining.trainer import run
    from gangealing_fast.storage import checkpoint

    run(dataclasses.replace(config, out=folder / "whole"))
    original = AdversarialStep.generator_step
    calls = iter(range(100))

    def interrupted(self, *arguments):
        if next(calls) == steps:
            raise KeyboardInterrupt
        return original(self, *arguments)

    monkeypatch.setattr(AdversarialStep, "generator_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(config)
    monkeypatch.undo()
    run(config)
    assert_identical(*(checkpoint.load(folder / name / "checkpoint.pt") for name in ("whole", "run")))
