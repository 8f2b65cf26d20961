# SPDX-License-Identifier: Apache-2.0
"""`python -m gangealing_fast.pretrain`: train a generator on a folder, a tar or MNIST digits, by any adversarial objective."""

from __future__ import annotations

from gangealing_fast.pretraining.config import PRESETS, PretrainConfig
from gangealing_fast.runtime.commands import parse, run_command
from gangealing_fast.runtime.text import printable


def main() -> None:
    config = parse(PretrainConfig, PRESETS, __doc__)

    def command() -> None:
        from gangealing_fast.pretraining.trainer import run

        generator = run(config)
        print(f"samples, report, log and checkpoint are in {printable(config.out)}; the best generator is {printable(generator)}")
        if config.architecture == "stylegan2":
            options = f"--generator {printable(generator)} --data {printable(config.data)} --out runs/align"
            print(f"next: python -m gangealing_fast.train {options}")

    run_command(command)


if __name__ == "__main__":
    main()
