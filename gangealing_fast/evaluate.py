# SPDX-License-Identifier: Apache-2.0
"""`python -m gangealing_fast.evaluate`: judge by marked points how well points are carried from picture to picture."""

from __future__ import annotations

from gangealing_fast.applications.config import EVALUATE_EXAMPLES, EvaluateConfig
from gangealing_fast.runtime.commands import parse, run_command


def main() -> None:
    config = parse(EvaluateConfig, {}, f"{__doc__}\n{EVALUATE_EXAMPLES}")

    def command() -> None:
        from gangealing_fast.applications.evaluating import run

        run(config)

    run_command(command)


if __name__ == "__main__":
    main()
