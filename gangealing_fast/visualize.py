# SPDX-License-Identifier: Apache-2.0
"""`python -m gangealing_fast.visualize`: films and sheets of what an aligner does: pictures glide into the template."""

from __future__ import annotations

from gangealing_fast.applications.config import VisualizeConfig
from gangealing_fast.runtime.commands import parse, run_command


def main() -> None:
    config = parse(VisualizeConfig, {}, __doc__)

    def command() -> None:
        from gangealing_fast.applications.visualizing import run

        run(config)

    run_command(command)


if __name__ == "__main__":
    main()
