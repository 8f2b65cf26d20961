# SPDX-License-Identifier: Apache-2.0
"""`python -m gangealing_fast.propagate`: an edit drawn once on the template appears in every picture."""

from __future__ import annotations

from gangealing_fast.applications.config import PropagateConfig
from gangealing_fast.runtime.commands import parse, run_command


def main() -> None:
    config = parse(PropagateConfig, {}, __doc__)

    def command() -> None:
        from gangealing_fast.applications.propagating import run

        run(config)

    run_command(command)


if __name__ == "__main__":
    main()
