# SPDX-License-Identifier: Apache-2.0
"""What every command shares: options from a dataclass, presets, and errors that are one sentence."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from gangealing_fast.runtime.errors import UserError
from gangealing_fast.runtime.setup import processes

Config = TypeVar("Config")


def parse(
    kind: type[Config], presets: Mapping[str, Config], description: str | None, arguments: Sequence[str] | None = None
) -> Config:
    """Options of the command line as a `kind`; `--preset NAME` chooses the defaults that the other options then change."""
    import tyro

    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--preset", choices=sorted(presets))
    chosen, rest = first.parse_known_args(arguments)
    text = (description or "").strip()
    if presets:
        text += f"\n\n--preset {{{','.join(sorted(presets))}}} sets the defaults of all options below."
    # `python -m` puts the path of the file into sys.argv, which is not what is typed.
    started = getattr(sys.modules["__main__"], "__spec__", None)
    program = f"python -m {started.name}" if started is not None and started.name.startswith("gangealing_fast.") else None
    if chosen.preset is None:
        return tyro.cli(kind, prog=program, args=rest, description=text)
    return tyro.cli(kind, prog=program, args=rest, description=text, default=presets[chosen.preset])


def run_command(command: Callable[[], None], *, several: bool = False) -> None:
    """Run `command`; a user's mistake prints one sentence on standard error and exits with status 2, Ctrl-C with 130.

    several: whether torchrun may run it in several processes, of which then the first alone prints to standard output.
    """
    try:
        if processes() > 1:
            if not several:
                raise UserError("this command runs in one process: start it without torchrun")
            if os.environ["RANK"] != "0":
                sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - until the process ends
        command()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
