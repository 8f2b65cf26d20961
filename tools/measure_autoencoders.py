# SPDX-License-Identifier: Apache-2.0
"""Measures adversarial autoencoders on MNIST: a row of docs/results.md at a time, and the table of all that were measured.

    python tools/measure_autoencoders.py semi-100 --data mnist --seed 0
    python tools/measure_autoencoders.py table --record docs/runs/autoencoders.json

A row is a run of `python -m gangealing_fast.autoencode` with the options below, in runs/measure/ROW-SEED; it goes on where it was
killed. `table` adds what lies there to the record, and prints all that the record holds. Row `style` asks more of its run: whether
a classifier that has seen no generated digit reads the class that was asked for, and whether a probe can tell it from the style.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gangealing_fast.autoencoders import trainer
from gangealing_fast.autoencoders.autoencoder import AdversarialAutoencoder
from gangealing_fast.autoencoders.collection import Collection, open_collection
from gangealing_fast.autoencoders.config import PRESETS, AutoencodeConfig
from gangealing_fast.autoencoders.moves import moved
from gangealing_fast.storage.files import read_json, read_json_lines, write_json

CODES = PRESETS["codes"]
ROWS: dict[str, AutoencodeConfig] = {
    "semi-100": PRESETS["semi"],
    "semi-100-alone": replace(PRESETS["semi"], unlabelled=False),
    "semi-1000": replace(PRESETS["semi"], labels=1000),
    "semi-1000-alone": replace(PRESETS["semi"], labels=1000, unlabelled=False),
    "clusters-16": PRESETS["clusters"],
    "clusters-30": replace(PRESETS["clusters"], categories=30),
    "map-100": PRESETS["map"],
    "map-1000": replace(PRESETS["map"], labels=1000),
    "likelihood": PRESETS["mnist"],
    "codes-gaussian": CODES,
    "codes-mixture": replace(CODES, prior="mixture"),
    "codes-swiss-roll": replace(
        CODES, prior="swiss-roll", r1=0.02, learning_rate=3e-4, regularisation_rate=3e-4, critic_rate=1.2e-3
    ),
    "style": PRESETS["supervised"],
}
SHOWN = {
    "semi": ["test_error"],
    "clusters": ["cluster_error", "cluster_error_majority"],
    "map": ["test_error", "style_mmd_p"],
    "likelihood": ["log_likelihood", "log_likelihood_error", "sigma"],
    "codes": ["style_mmd_p", "emptiest_place"],
    "style": ["digits_read", "style_probe", "style_mmd_p"],
}
PROBE_STEPS = 3000


def measure(row: str, data: Path, out: Path, seed: int, epochs: int) -> dict[str, float]:
    """Run a row, or go on with it; returns its figures."""
    config = replace(ROWS[row], data=data, out=out / f"{row}-{seed}", seed=seed, threads=1)
    config = replace(config, epochs=epochs) if epochs else config
    trainer.run(config)
    figures: dict[str, float] = read_json(config.out / "figures.json")
    if row == "style":
        figures |= style_figures(AdversarialAutoencoder.load(config.out), open_collection(config), seed)
        write_json(config.out / "figures.json", figures)
    print({name: round(figures[name], 4) for name in SHOWN[row.partition("-")[0]]})
    return figures


def style_figures(model: AdversarialAutoencoder, collection: Collection, seed: int) -> dict[str, float]:
    """digits_read: the share of samples, styles of the prior × classes, whose class a classifier of real digits reads. classifier:
    its accuracy on test digits. style_probe: how often a network that has learned from the styles of the digits to tune by, which
    the autoencoder has not learned from, tells the class of a test digit from its style."""
    torch.manual_seed(seed)
    learned, tuned, test = collection.training, collection.validation, collection.test
    assert learned.classes is not None and tuned.classes is not None and test.classes is not None

    def pictures(indices: Tensor) -> Tensor:
        return moved(learned.shown(indices), 1.0)

    classifier = fitted(_network(28 * 28), pictures, learned.classes)
    classes = torch.arange(10).repeat(200)
    styles = torch.randn(200, model.decoder.style).repeat_interleave(10, 0)
    samples = model.decode(styles, F.one_hot(classes, 10).float())
    known, unknown = model.encode(tuned.images).style, model.encode(test.images).style
    probe = fitted(_network(known.shape[1]), lambda indices: known[indices], tuned.classes)
    return {
        "digits_read": _right(classifier, samples, classes),
        "classifier": _right(classifier, test.shown(), test.classes),
        "style_probe": _right(probe, unknown, test.classes),
    }


def _network(inputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))


def fitted(network: nn.Module, inputs: Any, classes: Tensor) -> nn.Module:
    """The network after so many steps of Adam on `inputs(indices)` and their classes."""
    optimizer = torch.optim.Adam(network.parameters(), 1e-3, fused=True)
    for step in range(PROBE_STEPS):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * (1 - step / PROBE_STEPS)
        indices = torch.randint(len(classes), (100,))
        loss = F.cross_entropy(network(inputs(indices)), classes[indices])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    return network.eval()


@torch.no_grad()
def _right(network: nn.Module, inputs: Tensor, classes: Tensor) -> float:
    return (network(inputs).argmax(1) == classes).float().mean().item()


def recorded(out: Path, record: Path) -> dict[str, dict[str, float]]:
    """Figures, epochs and minutes by ROW-SEED: those that the record holds, and those in `out`, which replace them."""
    found: dict[str, dict[str, float]] = read_json(record) if record.is_file() else {}
    for figures in sorted(out.glob("*-[0-9]/figures.json")):
        log = read_json_lines(figures.parent / "log.jsonl")
        shown = SHOWN[figures.parent.name.partition("-")[0]]
        known = {name: value for name, value in read_json(figures).items() if name in shown}
        found[figures.parent.name] = known | {"epochs": len(log), "minutes": log[-1]["seconds"] / 60}
    write_json(record, dict(sorted(found.items())))
    return found


def table(found: dict[str, dict[str, float]]) -> None:
    """A line of Markdown for each row that was measured: medians over the seeds, all values, minutes of a run."""
    print("| row | figures, median of the seeds (each) | epochs | minutes |\n|---|---|---|---|")
    for row in ROWS:
        runs = [found[f"{row}-{seed}"] for seed in range(10) if f"{row}-{seed}" in found]
        if not runs:
            continue
        # Row style adds its own figures after the run's.
        names = [name for name in SHOWN[row.partition("-")[0]] if all(name in run for run in runs)]
        values = {name: [run[name] for run in runs] for name in names}
        text = "; ".join(
            f"{name} {statistics.median(each):.4g} ({', '.join(f'{value:.4g}' for value in each)})" for name, each in values.items()
        )
        epochs = ", ".join(sorted({f"{run['epochs']:.0f}" for run in runs}))
        print(f"| {row} | {text} | {epochs} | {statistics.median(run['minutes'] for run in runs):.0f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("row", choices=[*ROWS, "table"])
    parser.add_argument("--data", type=Path, default=Path("mnist"))
    parser.add_argument("--out", type=Path, default=Path("runs/measure"))
    parser.add_argument("--record", type=Path, default=Path("runs/measure/record.json"), help="the file of figures of `table`")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=0, help="0: as many as the preset has")
    given = parser.parse_args()
    if given.row == "table":
        table(recorded(given.out, given.record))
    else:
        measure(given.row, given.data, given.out, given.seed, given.epochs)


if __name__ == "__main__":
    main()
