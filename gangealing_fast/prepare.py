# SPDX-License-Identifier: Apache-2.0
"""`python -m gangealing_fast.prepare`: any folder, tar or MNIST file becomes one tar of equally large square pictures."""

from __future__ import annotations

from gangealing_fast.data.config import PrepareConfig
from gangealing_fast.runtime.commands import parse, run_command
from gangealing_fast.runtime.text import printable


def main() -> None:
    config = parse(PrepareConfig, {}, __doc__)

    def command() -> None:
        from gangealing_fast.data.preparing import run

        run(config)
        print(f"next: python -m gangealing_fast.pretrain --data {printable(config.out)} --size {config.size} --out runs/generator")

    run_command(command)


if __name__ == "__main__":
    main()
