# SPDX-License-Identifier: Apache-2.0
"""`python -m gangealing_fast.env`: versions, what was compiled, which kernel serves each operator where, and why."""

from __future__ import annotations

from gangealing_fast.runtime.commands import parse, run_command
from gangealing_fast.runtime.config import EnvConfig


def main() -> None:
    config = parse(EnvConfig, {}, __doc__)

    def command() -> None:
        from gangealing_fast.ops.environment import run

        run(config)

    run_command(command)


if __name__ == "__main__":
    main()
