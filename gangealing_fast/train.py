# SPDX-License-Identifier: Apache-2.0
"""`python -m gangealing_fast.train`: learn to align pictures from a generator's samples."""

from __future__ import annotations

from gangealing_fast.alignment.config import PRESETS, TrainConfig
from gangealing_fast.runtime.commands import parse, run_command
from gangealing_fast.runtime.text import printable


def main() -> None:
    config = parse(TrainConfig, PRESETS, __doc__)

    def command() -> None:
        from gangealing_fast.alignment.results import align_command, classify_command
        from gangealing_fast.alignment.trainer import run

        run(config)
        report = config.out / "report.html"
        print(f"everything is in {printable(config.out)}: open {printable(report)} first")
        for _, line in classify_command(config):
            print(f"next: {printable(line)}")
        print(f"next: {printable(align_command(config.out, refine=config.teach_from is not None))}")

    run_command(command, several=True)


if __name__ == "__main__":
    main()
