# SPDX-License-Identifier: Apache-2.0
"""`python -m gangealing_fast.autoencode`: train an adversarial autoencoder: codes, clusters, classes from few labels, maps."""

from __future__ import annotations

from gangealing_fast.autoencoders.config import PRESETS, AutoencodeConfig
from gangealing_fast.runtime.commands import parse, run_command
from gangealing_fast.runtime.text import printable


def main() -> None:
    config = parse(AutoencodeConfig, PRESETS, __doc__)

    def command() -> None:
        from gangealing_fast.autoencoders.trainer import run

        file = run(config)
        print(f"the autoencoder is {printable(file)}; report.html, figures.json, pictures and log are beside it")
        print(f"next: AdversarialAutoencoder.load({str(file)!r}) of gangealing_fast.autoencoders encodes pictures in Python")

    run_command(command)


if __name__ == "__main__":
    main()
