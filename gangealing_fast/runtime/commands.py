# SPDX-License-Identifier: Apache-2.0
"""What every command shares: options from a dataclass, presets, and errors that are one sentence."""

from __future__ import annotations

import argparse
import dataclasses
import errno
import os
import shlex
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn, TypeVar

from gangealing_fast.runtime.errors import UserError
from gangealing_fast.runtime.interrupts import after_imports
from gangealing_fast.runtime.ranges import check_ranges
from gangealing_fast.runtime.setup import processes
from gangealing_fast.runtime.text import printable

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Config = TypeVar("Config", bound="DataclassInstance")

MISTAKE, INTERRUPTED, PIPE_CLOSED = 2, 130, 141
"""Exit statuses; the last two are those of a shell for SIGINT and SIGPIPE."""


def action_of(
    actions: Mapping[str, object], description: str | None, arguments: Sequence[str] | None = None
) -> tuple[str, list[str]]:
    """Of a command that does several things: which one the command line begins with, and its other arguments.

    Without one --help says which there are; anything else ends the program with one sentence.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    with one_sentence():
        if given and given[0] in actions:
            return given[0], given[1:]
        names = " or ".join(actions)
        if given and given[0] in ("-h", "--help"):
            print(f"{(description or '').strip()}\n\nThe first word is {names}; each has its own --help.")
            sys.exit(0)
        what = f"got {given[0]!r}" if given else "nothing was given"
        raise UserError(f"the first word must be {names}, {what}; each has its own --help")
    raise AssertionError  # one_sentence has ended the program


def parse(
    kind: type[Config], presets: Mapping[str, Config], description: str | None, arguments: Sequence[str] | None = None
) -> Config:
    """Options of the command line as a `kind`; `--preset NAME` chooses the defaults that the other options then change.

    A number out of its range ends the program with one sentence, as `run_command` does.
    """
    with one_sentence():
        config = _parse(kind, presets, description, arguments)
        check_ranges(config)
    return config


def _parse(kind: type[Config], presets: Mapping[str, Config], description: str | None, arguments: Sequence[str] | None) -> Config:
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


def command_line(command: str, config: DataclassInstance) -> str:
    """The command that gives `config`, with the options that are not their defaults alone."""
    words = ["python", "-m", f"gangealing_fast.{command}"]
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if value == field.default:
            continue
        option = field.name.replace("_", "-")
        if isinstance(value, bool):
            name = option if value else f"no-{option}"
            words.append(f"--{name}")
        else:
            words += [f"--{option}", *map(str, value if isinstance(value, tuple) else [value])]
    return shlex.join(words)


def run_command(command: Callable[[], None], *, several: bool = False) -> None:
    """Run `command`; a user's mistake prints one sentence on standard error and exits with status 2, Ctrl-C with 130.

    several: whether torchrun may run it in several processes, of which then the first alone prints to standard output.
    """
    # Pillow's warning about large pictures: those that are too large to read are named among the skipped ones.
    warnings.filterwarnings("ignore", message="Image size .* exceeds limit")
    with one_sentence(), after_imports():
        if processes() > 1:
            if not several:
                raise UserError("this command runs in one process: start it without torchrun")
            if os.environ["RANK"] != "0":
                sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - until the process ends
        command()


@contextmanager
def one_sentence() -> Iterator[None]:
    """End the program without a traceback for a user's mistake, Ctrl-C, too little memory, or if nobody takes what is printed."""
    try:
        _print_anything()
        try:
            yield
        finally:
            sys.stdout.flush()
    except UserError as error:
        _end(f"error: {printable(error)}", MISTAKE)
    except KeyboardInterrupt:
        _end("interrupted", INTERRUPTED)
    except BrokenPipeError:
        _end("", PIPE_CLOSED)
    except MemoryError:
        _end("error: there is not enough memory for this; use smaller pictures or batches", MISTAKE)
    except RuntimeError as error:
        if "can't allocate memory" not in str(error) and "out of memory" not in str(error):
            raise
        _end(
            f"error: there is not enough memory for this ({printable(str(error)[:200])}); use smaller pictures or batches", MISTAKE
        )
    except OSError as error:
        if error.filename is not None or error.errno not in (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EFBIG):
            raise
        _end(f"error: what the command prints cannot be written: {error.strerror}", MISTAKE)


def _print_anything() -> None:
    """Let a terminal that does not know a character show its number instead of ending the program."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _end(sentence: str, status: int) -> NoReturn:
    """Print and exit. What standard output still holds is dropped if it cannot be written: Python would try again at the exit."""
    try:
        if sentence:
            print(sentence, file=sys.stderr, flush=True)
        sys.stdout.flush()
    except OSError:
        for stream in (sys.stdout, sys.stderr):
            _forget(stream.fileno())
    sys.exit(status)


def _forget(descriptor: int) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)
