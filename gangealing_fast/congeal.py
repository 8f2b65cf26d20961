# SPDX-License-Identifier: Apache-2.0
"""`python -m gangealing_fast.congeal`: align a set of photographs jointly, without a generator or any training."""

from __future__ import annotations

from gangealing_fast.congealing.config import CongealConfig
from gangealing_fast.runtime.commands import parse, run_command
from gangealing_fast.runtime.text import printable


def main() -> None:
    config = parse(CongealConfig, {}, __doc__)

    def command() -> None:
        from gangealing_fast.applications.congealing import run

        run(config)
        out, data = printable(config.out), printable(config.data)
        print(f"everything is in {out}: open {printable(config.out / 'report.html')} first")
        print(f"next: python -m gangealing_fast.align --checkpoint {out} --data MORE-PICTURES --out aligned")
        print("next: draw on a copy of template.png, transparent elsewhere, save that as drawn.png, and give")
        print(f"python -m gangealing_fast.propagate --checkpoint {out} --data {data} --edit drawn.png --out edited")

    run_command(command)


if __name__ == "__main__":
    main()
