# SPDX-License-Identifier: Apache-2.0
"""`python -m gangealing_fast.classify`: teach an aligner with several clusters to tell which one a picture belongs to."""

from __future__ import annotations

from gangealing_fast.alignment.config import ClassifyConfig
from gangealing_fast.runtime.commands import parse, run_command
from gangealing_fast.runtime.text import printable


def main() -> None:
    config = parse(ClassifyConfig, {}, __doc__)

    def command() -> None:
        from gangealing_fast.alignment.classifying import run
        from gangealing_fast.alignment.results import align_command

        folder = run(config)
        print(f"the aligner with its classifier, log and report.html are in {printable(folder)}")
        print(f"next: {printable(align_command(folder))}")

    run_command(command)


if __name__ == "__main__":
    main()
