# SPDX-License-Identifier: Apache-2.0
"""The table of tools/compare_objectives.py: generators of several objectives, each handed to an aligner."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from gangealing_fast.runtime.errors import UserError

TOOLS = Path(__file__).parents[1] / "tools"


@pytest.fixture
def compare_objectives(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))  # as where the tool itself is started
    specification = importlib.util.spec_from_file_location("compare_objectives", TOOLS / "compare_objectives.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    yield module
    sys.modules.pop("compare_precision", None)


def test_each_objective_feeds_an_aligner_of_its_own(compare_objectives, tmp_path, monkeypatch, capsys):
    generated, aligned = [], []

    def generate(objective, out, mnist, seed, kimg, threads):
        generated.append((objective, seed, kimg))
        return out / "generator.safetensors", {"score": 100.0 * (seed + 1), "recall": 0.25, "diversity": 0.5}

    def train(config):
        aligned.append((config.generator, config.seed, config.steps, config.anneal_psi, config.period))
        return {"Pair error": 0.1 + 0.1 * config.seed}

    monkeypatch.setattr(compare_objectives, "generate", generate)
    monkeypatch.setattr(compare_objectives, "train", train)
    options = ["--out", str(tmp_path), "--mnist", "m", "--objectives", "lsgan", "hinge", "--seeds", "0", "1", "2", "--steps", "100"]
    compare_objectives.main(options)
    assert generated == [(name, seed, 16.0) for seed in (0, 1, 2) for name in ("lsgan", "hinge")]
    assert aligned[3] == (tmp_path / "hinge-1" / "generator" / "generator.safetensors", 1, 100, 65, 35)
    assert "| `hinge` | 200 (100, 200, 300) | 0.250 (0.250, 0.250, 0.250) |" in capsys.readouterr().out
    assert "these 6 runs: 1.00" in (tmp_path / "table.md").read_text()
    assert "| Pair error |" in (tmp_path / "table.md").read_text()
    with pytest.raises(UserError, match="--objectives must all differ"):
        compare_objectives.main([*options, "--objectives", "lsgan", "lsgan"])
