# SPDX-License-Identifier: Apache-2.0
"""`python -m gangealing_fast.classify`: teach an aligner with several clusters to tell which one a picture belongs to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gangealing_fast.commands import parse, run_command


@dataclass(frozen=True)
class ClassifyConfig:
    """Learn the clusters from the generator's samples. Kill it when you like: the same command resumes to the same numbers."""

    checkpoint: Path
    """Results folder of `train` with several --clusters (or with --flips)."""
    out: Path
    """Results folder: aligner.safetensors with the classifier in it, checkpoint.pt, log.jsonl, report.html."""
    generator: Path | None = None
    """The generator that the aligner was trained with; the one that the results folder records where it is not given."""
    data: Path | None = None
    """Real pictures for the figures; those of the training run where they are not given."""
    held_out: int = 500
    """How many of the last pictures of --data are used."""
    flips: bool = False
    """Whether mirrored pictures are classes of their own; as in training."""
    inject: int = 0
    """How many of the generator's first latents the template sets; 0 takes the training run's."""
    steps: int = 1500
    batch: int = 32
    learning_rate: float = 1e-3
    snapshot: int = 250
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    ops: Literal["fused", "reference"] = "fused"
    """reference: every operator as its plain definition in torch."""
    reuse_memory: bool = True
    """Keep freed memory for the next step instead of handing it back to the system (CPU, glibc)."""
    seed: int = 0
    threads: int = 0
    device: str = "auto"


def main() -> None:
    config = parse(ClassifyConfig, {}, __doc__)

    def command() -> None:
        from gangealing_fast.alignment.classifying import run
        from gangealing_fast.alignment.results import align_command

        folder = run(config)
        print(f"the aligner with its classifier, log and report.html are in {folder}")
        print(f"next: {align_command(folder)}")

    run_command(command)


if __name__ == "__main__":
    main()
