# SPDX-License-Identifier: Apache-2.0
"""`python -m gangealing_fast.align`: align real pictures with what `train` has learned."""

from __future__ import annotations

from gangealing_fast.applications.config import AlignConfig
from gangealing_fast.runtime.commands import parse, run_command


def main() -> None:
    config = parse(AlignConfig, {}, __doc__)

    def command() -> None:
        from gangealing_fast.applications.aligning import run

        run(config)

    run_command(command, several=True)


if __name__ == "__main__":
    main()
