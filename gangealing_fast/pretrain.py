# SPDX-License-Identifier: Apache-2.0
"""`python -m gangealing_fast.pretrain`: train a generator on a folder, a tar or MNIST digits, by any adversarial objective."""

from __future__ import annotations

from gangealing_fast.pretraining.config import PRESETS, PretrainConfig
from gangealing_fast.runtime.commands import parse, run_command


def main() -> None:
    config = parse(PretrainConfig, PRESETS, __doc__)

    def command() -> None:
        from gangealing_fast.pretraining.trainer import run

        generator = run(config)
        print(f"samples, report, log and checkpoint are in {config.out}; the best generator is {generator}")
        if config.architecture == "stylegan2":
            print(f"next: python -m gangealing_fast.train --generator {generator} --data {config.data} --out runs/align")

    run_command(command)


if __name__ == "__main__":
    main()
