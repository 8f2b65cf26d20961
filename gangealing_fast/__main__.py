# SPDX-License-Identifier: Apache-2.0
"""`python -m gangealing_fast`: lists the commands, a line each, and says which comes after which."""

from __future__ import annotations

import importlib
import shlex
import sys

from gangealing_fast.runtime.commands import run_command
from gangealing_fast.runtime.errors import UserError

# In the order of use. What stands in brackets can be left out.
FIRST = "congeal"
STEPS = ("prepare", "pretrain", "[contrast]", "train", "[classify]", "align", "propagate")
BESIDE = ("studio", "visualize", "evaluate", "convert", "autoencode", "invert", "translate", "env")
COMMANDS = (FIRST, *(step.strip("[]") for step in STEPS), *BESIDE)


def summary(command: str) -> str:
    """What a command does, in the words that its `--help` begins with."""
    text = importlib.import_module(f"gangealing_fast.{command}").__doc__ or ""
    return text.strip().partition("`: ")[2]


def listing() -> str:
    """All commands, a line each, then their order."""
    width = max(map(len, COMMANDS))
    lines = ["python -m gangealing_fast.COMMAND --help shows the options of a command."]
    lines += [f"  {command:{width}}  {summary(command)}" for command in COMMANDS]
    lines += [f"For a set of photographs: {FIRST} -> align, propagate. Nothing is trained."]
    lines += [
        f"For collections that keep growing: {' -> '.join(STEPS)}.",
        "What is in brackets can be left out.",
        f"Beside them: {', '.join(BESIDE)}.",
    ]
    return "\n".join(lines)


def main() -> None:
    arguments = sys.argv[1:]

    def command() -> None:
        if not arguments or arguments[0] in ("-h", "--help"):
            print(listing())
        elif arguments[0] in COMMANDS:
            given = shlex.join(["python", "-m", f"gangealing_fast.{arguments[0]}", *arguments[1:]])
            raise UserError(f"a command is called with a dot before its name: {given}")
        else:
            raise UserError(f"there is no command {arguments[0]!r}: python -m gangealing_fast lists those that there are")

    run_command(command)


if __name__ == "__main__":
    main()
