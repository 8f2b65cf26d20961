# SPDX-License-Identifier: Apache-2.0
"""`python -m gangealing_fast.invert`: find the latents of pictures in a generator, by an encoder, by a search, or both."""

from __future__ import annotations

from gangealing_fast.inversion.config import InvertConfig
from gangealing_fast.runtime.commands import parse, run_command
from gangealing_fast.runtime.text import printable


def main() -> None:
    config = parse(InvertConfig, {}, __doc__)

    def command() -> None:
        from gangealing_fast.inversion.inverting import run

        folder = run(config)
        print(f"everything is in {printable(folder)}: open {printable(folder / 'report.html')} first")
        if config.encoder is None and config.train_steps:
            print(f"next: python -m gangealing_fast.train --template PICTURE --inverter {printable(folder)} ...")

    run_command(command)


if __name__ == "__main__":
    main()
