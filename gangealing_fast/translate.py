# SPDX-License-Identifier: Apache-2.0
"""`python -m gangealing_fast.translate`: translate between two unpaired collections of pictures, in many styles."""

from __future__ import annotations

from gangealing_fast.runtime.commands import action_of, parse, run_command
from gangealing_fast.runtime.text import printable
from gangealing_fast.translation.config import ACTIONS, PRESETS, TranslateTrainConfig


def main() -> None:
    action, arguments = action_of(ACTIONS, __doc__)
    config = parse(ACTIONS[action], PRESETS if action == "train" else {}, __doc__, arguments)

    def command() -> None:
        if not isinstance(config, TranslateTrainConfig):
            from gangealing_fast.applications.translating import use

            print(use(config))
            return
        from gangealing_fast.translation.trainer import run

        file = run(config)
        print(f"the translator is {printable(file)}; report.html, figures.json, pictures and log are beside it")
        print(f"next: python -m gangealing_fast.translate apply --translator {printable(file)} --data PICTURES --out FOLDER")

    run_command(command)


if __name__ == "__main__":
    main()
