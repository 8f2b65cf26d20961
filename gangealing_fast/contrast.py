# SPDX-License-Identifier: Apache-2.0
"""`python -m gangealing_fast.contrast`: learn a perceptual distance from your own pictures, without outside weights."""

from __future__ import annotations

from gangealing_fast.contrastive.config import ContrastConfig
from gangealing_fast.runtime.commands import parse, run_command
from gangealing_fast.runtime.text import printable


def main() -> None:
    config = parse(ContrastConfig, {}, __doc__)

    def command() -> None:
        from gangealing_fast.contrastive.training import run

        file = run(config)
        print(f"the distance is {printable(file)}; log and checkpoint are beside it")
        print(f"next: python -m gangealing_fast.train --perceptual self --perceptual-weights {printable(file)} ...")

    run_command(command)


if __name__ == "__main__":
    main()
