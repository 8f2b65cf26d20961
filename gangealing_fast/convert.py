# SPDX-License-Identifier: Apache-2.0
"""`python -m gangealing_fast.convert`: checkpoints of other projects into this package's files, and back."""

from __future__ import annotations

from gangealing_fast.applications.config import ConvertConfig
from gangealing_fast.runtime.commands import parse, run_command


def main() -> None:
    config = parse(ConvertConfig, {}, __doc__)

    def command() -> None:
        from gangealing_fast.applications.converting import run

        run(config)

    run_command(command)


if __name__ == "__main__":
    main()
