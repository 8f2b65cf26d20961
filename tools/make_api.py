# SPDX-License-Identifier: Apache-2.0
"""Write docs/api.md from the docstrings of what a user would import. `make api` runs this; a test compares the page with it.

python tools/make_api.py [FILE]
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

OUT = Path(__file__).resolve().parent.parent / "docs" / "api.md"
WIDTH = 120
SHAPE = re.compile(r"\[[A-Z0-9][A-Za-z0-9 ,*/+'-]*\]|\[\.\.\.")
KEPT = re.compile(r"^(Returns|Raises|Args)\b")


class Section(NamedTuple):
    """The names of one module that go onto the page; all public ones if `names` is empty."""

    module: str
    names: tuple[str, ...] = ()


# What a user would import, in the order of the page. This is the one place that says so.
SECTIONS = (
    Section("gangealing_fast"),
    Section("gangealing_fast.applications.aligner", ("Located", "Look")),
    Section("gangealing_fast.applications.squares"),
    Section("gangealing_fast.applications.frames", ("Drawing",)),
    Section("gangealing_fast.applications.blending"),
    Section("gangealing_fast.applications.smoothing"),
    Section("gangealing_fast.data.video"),
    Section("gangealing_fast.ops"),
    Section("gangealing_fast.models"),
    Section("gangealing_fast.geometry.warps"),
    Section("gangealing_fast.geometry.points"),
    Section("gangealing_fast.geometry.warping"),
    Section("gangealing_fast.metrics"),
    Section("gangealing_fast.data.pictures", ("open_pictures", "Pictures", "PictureStream", "to_float", "to_uint8")),
    Section("gangealing_fast.data.keypoints"),
    Section("gangealing_fast.data.sampler"),
    Section(
        "gangealing_fast.data.digits",
        ("HeldOutDigits", "load_heldout_digits", "training_digits", "object_box", "random_similarity", "warp_digits"),
    ),
    Section("gangealing_fast.data.mnist", ("read_images",)),
    Section("gangealing_fast.checkpoints.reading"),
    Section("gangealing_fast.checkpoints.writing", ("export_generator", "export_aligner", "write", "model_card")),
    Section("gangealing_fast.storage.checkpoint"),
    Section("gangealing_fast.storage.exports"),
    Section("gangealing_fast.adversarial.objectives"),
    Section("gangealing_fast.adversarial.step"),
    Section("gangealing_fast.pretraining.classification", ("Classifier",)),
    Section("gangealing_fast.autoencoders"),
    Section("gangealing_fast.inversion"),
    Section("gangealing_fast.translation", ("Translator",)),
    Section("gangealing_fast.translation.making", ("edges",)),
    Section("gangealing_fast.congealing", ("congeal_entropy", "Funnel", "congeal_stack")),
)

INTRODUCTION = """# Python interface

`make api` (`python tools/make_api.py`) makes this page from the docstrings. `tests/test_api_page.py` fails if it is older.
Every name has its signature, the first paragraph of its docstring, and what else the docstring says of shapes, results and errors.
The docstring itself (`help(NAME)`) has the rest. [conventions.md](conventions.md) says what pixels, grids and templates are.
"""


def public_names(module: ModuleType) -> list[str]:
    """What a module offers: its `__all__`, or the functions, classes and constants with a docstring that it defines itself."""
    if hasattr(module, "__all__"):
        return sorted(module.__all__)
    own = [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__ and callable(value)
    ]
    return sorted(own)


def chosen_names(section: Section) -> list[str]:
    """The names that a section shows."""
    return list(section.names) or public_names(importlib.import_module(section.module))


def paragraphs(value: Any) -> list[str]:
    """The first paragraph of a docstring and those that speak of shapes, results or errors, each on lines of its own."""
    text = inspect.getdoc(value) or ""
    if inspect.isclass(value) and "__doc__" not in vars(value):  # its parent's
        return []
    blocks = [block for block in re.split(r"\n\s*\n", text) if block.strip()]
    kept = blocks[:1] + [block for block in blocks[1:] if SHAPE.search(block) or KEPT.match(block)]
    return [flow(block) for block in kept]


def flow(block: str) -> str:
    """A paragraph filled to the page's width; what is indented in it stays as it is."""
    lines = block.split("\n")
    if lines[0].startswith("    "):
        return textwrap.indent(textwrap.dedent(block), "    ")
    if any(line.startswith("    ") for line in lines):
        return "\n".join([lines[0], "", *("    " + line.strip() for line in lines[1:])])
    return textwrap.fill(" ".join(line.strip() for line in lines), WIDTH, break_long_words=False, break_on_hyphens=False)


def annotation(value: Any) -> str:
    """A type as it stands in the source."""
    if value is inspect.Parameter.empty:
        return ""
    return value if isinstance(value, str) else getattr(value, "__name__", str(value))


def default(value: Any) -> str:
    """A default as it can be written; dots for what has no such form (a function, a value made anew for each object)."""
    shown = repr(value)
    return "..." if "<" in shown else shown


def signature(name: str, value: Callable[..., Any]) -> str:
    """`name(argument: type = default) -> type`, on one line if it fits, else with a line for each argument."""
    found = inspect.signature(value)
    arguments, keyword_only = [], False
    for parameter in found.parameters.values():
        if parameter.name == "self":
            continue
        stars = "*" if parameter.kind is parameter.VAR_POSITIONAL else "**" if parameter.kind is parameter.VAR_KEYWORD else ""
        if parameter.kind is parameter.KEYWORD_ONLY and not keyword_only:
            arguments.append("*")
        keyword_only = keyword_only or parameter.kind in (parameter.KEYWORD_ONLY, parameter.VAR_POSITIONAL)
        text = stars + parameter.name + (f": {kind}" if (kind := annotation(parameter.annotation)) else "")
        if parameter.default is not parameter.empty:
            text += f" = {default(parameter.default)}"
        arguments.append(text)
    result = annotation(found.return_annotation) if not inspect.isclass(value) else ""
    end = f") -> {result}" if result else ")"
    line = f"{name}({', '.join(arguments)}{end}"
    return line if len(line) <= WIDTH else "\n".join([f"{name}(", *(f"    {argument}," for argument in arguments), end])


def methods(kind: type) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Public methods that a class defines itself and explains, in the order of the source; `forward` of a network too."""
    for name, value in vars(kind).items():
        function = value.__func__ if isinstance(value, classmethod | staticmethod) else value
        if inspect.isfunction(function) and not name.startswith("_") and function.__doc__:
            yield name, getattr(kind, name)


def entry(name: str, value: Any) -> list[str]:
    """The part of the page about one name."""
    lines = [f"### `{name}`", ""]
    if isinstance(value, dict):
        return [*lines, flow(f"{type(value).__name__}: {', '.join(f'`{key}`' for key in value)}"), ""]
    if isinstance(value, str | int | float):
        return [*lines, f"`{value!r}`", ""]
    if not (inspect.isclass(value) or inspect.isfunction(value)):
        return [*lines, "A name for a type in the signatures.", ""]
    short = name.rpartition(".")[2]
    if not (inspect.isclass(value) and issubclass(value, BaseException)):
        lines += ["```python", signature(short, value), "```", ""]
    for block in paragraphs(value):
        lines += [block, ""]
    for method, function in methods(value) if inspect.isclass(value) else ():
        lines += [f"#### `{short}.{method}`", "", "```python", signature(method, function), "```", ""]
        for block in paragraphs(function):
            lines += [block, ""]
    return lines


def section_lines(section: Section) -> list[str]:
    """The part of the page about one module. An operator's reference is named with the operator, whose arguments it has."""
    module = importlib.import_module(section.module)
    names = chosen_names(section)
    first = inspect.getdoc(module) or ""
    lines = [f"## `{section.module}`", "", flow(re.split(r"\n\s*\n", first)[0]), ""]
    prefix = "" if section.module == "gangealing_fast" else section.module.rpartition(".")[2] + "."
    for name in names:
        if name.endswith("_reference") and name.removesuffix("_reference") in names:
            continue
        value = getattr(module, name)
        lines += entry(prefix + name, value)
        if f"{name}_reference" in names:
            lines += [f"`{prefix}{name}_reference` has the same arguments and is the plain definition.", ""]
        if isinstance(value, dict):
            for function in value.values():
                lines += entry(prefix + function.__name__, function)
    return lines


def page() -> str:
    """The whole page."""
    contents = []
    for section in SECTIONS:
        names = chosen_names(section)
        shown = [name for name in names if name.removesuffix("_reference") not in names or not name.endswith("_reference")]
        contents.append(flow(f"- `{section.module}`: {', '.join(f'`{name}`' for name in shown)}"))
    lines = [INTRODUCTION, *contents, ""]
    for section in SECTIONS:
        lines += section_lines(section)
    return "\n".join(lines).rstrip() + "\n"


def main(path: Path) -> None:
    from gangealing_fast.storage.files import write_text  # an incomplete page must never stand in the tree

    write_text(path, page())
    print(path)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else OUT)
