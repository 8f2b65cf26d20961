# SPDX-License-Identifier: Apache-2.0
"""Equal runs write equal bytes: every file of a results folder, but for the seconds in log.jsonl."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from runs import pretrain_config, train_config, write_generator, write_pictures


def contents(folder: Path) -> dict[str, bytes]:
    """Every file by name; of the log, all but the times."""
    found = {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    lines = [json.loads(line) for line in found["log.jsonl"].splitlines()]
    return found | {"log.jsonl": json.dumps([{k: v for k, v in line.items() if k != "seconds"} for line in lines]).encode()}


@pytest.mark.parametrize("command", ["train", "pretrain"])
def test_two_runs(tmp_path, command):
    write_generator(tmp_path / "generator.safetensors")
    write_pictures(tmp_path / "pictures")
    found = []
    for _ in range(2):
        if command == "train":
            from gangealing_fast.alignment.trainer import run as train

            config = train_config(tmp_path, steps=2, anneal_psi=1, period=1)
            train(config)
        else:
            from gangealing_fast.pretraining.trainer import run as pretrain

            config = pretrain_config(tmp_path, kimg=0.016)
            pretrain(config)
        found.append(contents(config.out))
        shutil.rmtree(config.out)
    assert found[0].keys() == found[1].keys() and len(found[0]) >= 6
    for name, content in found[0].items():
        assert content == found[1][name], name


def test_conversions(tmp_path):
    from foreign_files import small_parts

    from gangealing_fast.checkpoints.writing import write

    parts = small_parts()
    for to in ("safetensors", "original", "rosinality"):
        files = [write(parts, tmp_path / f"{to}{k}" / "same", to) for k in range(2) if (tmp_path / f"{to}{k}").mkdir() is None]
        for first, second in zip(*files, strict=True):
            assert first.read_bytes() == second.read_bytes(), first.name
