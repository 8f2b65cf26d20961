# SPDX-License-Identifier: Apache-2.0
"""`python -m gangealing_fast.studio`: a page to draw on a template, carry points, browse pictures, and start and watch runs."""

from __future__ import annotations

from gangealing_fast.interface.config import StudioConfig
from gangealing_fast.runtime.commands import parse, run_command


def main() -> None:
    config = parse(StudioConfig, {}, __doc__)

    def command() -> None:
        from gangealing_fast.interface.serving import run

        run(config)

    run_command(command)


if __name__ == "__main__":
    main()
