# SPDX-License-Identifier: Apache-2.0
"""The rooms of the package and which may import which, read from the import statements themselves."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "gangealing_fast"

# From the ground floor up. A room imports only what lies on a floor below its own: not its neighbours, not what is above.
FLOORS = (
    {"runtime"},
    {"ops"},
    {"geometry", "storage"},
    {"kernels", "report", "training", "models", "data", "metrics"},
    {"checkpoints"},
    {"adversarial"},
    {"contrastive", "congealing", "autoencoders"},
    {"pretraining", "inversion"},
    {"alignment", "translation"},
    {"applications"},
    {"interface"},
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
DOORS = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__", "__main__"}


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name; kernels/ is mapped into it."""
    found = {}
    for folder, prefix in ((PACKAGE, "gangealing_fast"), (ROOT / "kernels", "gangealing_fast.kernels")):
        for path in folder.rglob("*.py"):
            parts = path.relative_to(folder).with_suffix("").parts
            found[".".join([prefix, *(parts[:-1] if parts[-1] == "__init__" else parts)])] = path
    return found


MODULES = modules()


def imported(path: Path) -> Iterator[str]:
    """The modules of this package that a file imports anywhere, inside functions and for type checkers included."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.split(".")[0] == "gangealing_fast":
                yield name if name in MODULES else name.rpartition(".")[0]


ARROWS = {name: set(imported(path)) - {name} for name, path in MODULES.items()}


def room_of(module: str) -> str:
    """The room a module lies in; "" for the package itself, the door's own name for a door."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def test_every_room_has_a_floor_and_every_floor_its_rooms():
    rooms = {room_of(name) for name in MODULES} - DOORS - {"", "__main__"}
    assert rooms == set(FLOOR_OF)


@pytest.mark.parametrize("room", sorted(FLOOR_OF))
def test_a_room_imports_only_from_floors_below(room):
    wrong = [
        f"{name} imports {other}"
        for name, others in ARROWS.items()
        if room_of(name) == room
        for other in others
        if (there := room_of(other)) not in (room, "") and (there in DOORS or FLOOR_OF[there] >= FLOOR_OF[room])
    ]
    assert not wrong, "\n".join(wrong)


def test_no_circle_between_files():
    finished: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name not in finished:
            for other in sorted(ARROWS.get(name, ())):
                if other != "gangealing_fast":  # which names its parts lazily
                    visit(other, (*path, name))
            finished.add(name)

    for name in sorted(MODULES):
        if room_of(name):
            visit(name, ())


def test_a_room_and_a_door_never_share_a_name():
    assert not DOORS & set(FLOOR_OF)


@pytest.mark.parametrize("door", sorted(DOORS))
def test_doors_are_thin_and_alike(door):
    """Options, one import of the work inside the command, a few lines of what comes next."""
    text = (PACKAGE / f"{door}.py").read_text()
    assert text.count("\n") <= 36 and f"python -m gangealing_fast.{door}" in text
    assert "config = parse(" in text and "run_command(command" in text
