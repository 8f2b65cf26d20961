# SPDX-License-Identifier: Apache-2.0
"""What a machine can check of documents: commands parse, paths and links exist, the recipe has one wording, messages are real."""

from __future__ import annotations

import ast
import contextlib
import importlib
import re
import shlex
from collections.abc import Iterator
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import pytest

from gangealing_fast.alignment.config import PRESETS as TRAIN_PRESETS
from gangealing_fast.alignment.config import ClassifyConfig, TrainConfig
from gangealing_fast.applications.config import AlignConfig, ConvertConfig, EvaluateConfig, PropagateConfig, VisualizeConfig
from gangealing_fast.autoencoders.config import PRESETS as AUTOENCODE_PRESETS
from gangealing_fast.autoencoders.config import AutoencodeConfig
from gangealing_fast.congealing.config import CongealConfig
from gangealing_fast.contrastive.config import ContrastConfig
from gangealing_fast.data.config import PrepareConfig
from gangealing_fast.interface.config import StudioConfig
from gangealing_fast.inversion.config import InvertConfig
from gangealing_fast.metrics import WarpHealth
from gangealing_fast.pretraining.config import PRESETS as PRETRAIN_PRESETS
from gangealing_fast.pretraining.config import PretrainConfig
from gangealing_fast.runtime.commands import parse
from gangealing_fast.runtime.config import EnvConfig
from gangealing_fast.translation.config import PRESETS as TRANSLATE_PRESETS
from gangealing_fast.translation.config import TranslateApplyConfig, TranslateExportConfig, TranslateTrainConfig
from tools import draw_architecture

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "gangealing_fast" / "assets").glob("*/README.md")])
NAMES = [path.relative_to(ROOT).as_posix() for path in DOCUMENTS]
DOORS = {path.stem for path in (ROOT / "gangealing_fast").glob("*.py")} - {"__init__", "__main__"}
# The pages that tell how to get from photographs to an aligner.
RECIPE = ("README.md", "docs/quickstart.md", "docs/training.md")
CONFIGURATIONS: dict[str, tuple[type, dict[str, Any]]] = {
    "congeal": (CongealConfig, {}),
    "prepare": (PrepareConfig, {}),
    "pretrain": (PretrainConfig, PRETRAIN_PRESETS),
    "train": (TrainConfig, TRAIN_PRESETS),
    "classify": (ClassifyConfig, {}),
    "contrast": (ContrastConfig, {}),
    "align": (AlignConfig, {}),
    "propagate": (PropagateConfig, {}),
    "evaluate": (EvaluateConfig, {}),
    "autoencode": (AutoencodeConfig, AUTOENCODE_PRESETS),
    "invert": (InvertConfig, {}),
    "visualize": (VisualizeConfig, {}),
    "convert": (ConvertConfig, {}),
    "studio": (StudioConfig, {}),
    "translate train": (TranslateTrainConfig, TRANSLATE_PRESETS),
    "translate apply": (TranslateApplyConfig, {}),
    "translate export": (TranslateExportConfig, {}),
    "env": (EnvConfig, {}),
}
COMMAND = re.compile(r"python -m gangealing_fast\.(\w+)((?:\\\n|[^\n`])*)")
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
PATH = re.compile(r"`([\w.-]+(?:/[\w.*-]+)+/?|[\w-]+\.(?:md|toml|py))`")
OPTION = re.compile(r"`(?:\w+ )?(--[a-z][a-z0-9-]*)")
# Where a path in a document may begin.
BEGINNINGS = ("", "gangealing_fast/", "docs/", "tests/", "benchmarks/")
# Files of other projects that documents speak of.
FOREIGN = {
    "legacy.py",
    "train_cluster_classifier.py",
    "prepare_data.py",
    "propagate_to_images.py",
    "mixed_reality.py",
    "pck.py",
    "vis_correspondence.py",
    "flow_scores.py",
    "congeal_dataset.py",
}
# What runs, builds and users make; never files of the repository.
MADE = ("runs/", "weights/v0.1/", "photos/", "converted/", "aligned/", "edited/", "set/", "~/")


def document(name: str) -> str:
    return (ROOT / name).read_text()


def commands(text: str) -> Iterator[tuple[str, str]]:
    """(command, arguments) of every command line of this package: continued lines joined, comments cut off."""
    for door, rest in COMMAND.findall(text):
        arguments = rest.replace("\\\n", " ").split("  #")[0].split(" #")[0].strip()
        action, _, others = arguments.partition(" ")
        if f"{door} {action}" in CONFIGURATIONS:
            yield f"{door} {action}", others
        elif arguments or door in CONFIGURATIONS:  # the bare name of a command that does several things is no command line
            yield door, arguments


def test_every_door_is_checked_and_documented():
    assert {name.split()[0] for name in CONFIGURATIONS} == DOORS
    architecture = document("docs/architecture.md")
    assert all(f"| `{door}` |" in architecture for door in DOORS)


@pytest.mark.parametrize("name", NAMES)
def test_commands_parse(name, capsys):
    for door, arguments in commands(document(name)):
        kind, presets = CONFIGURATIONS[door]
        words = [word for word in shlex.split(arguments) if word != "..."]
        if "..." in arguments or not words:  # an incomplete line: its options must exist all the same
            known = {"--" + field.name.replace("_", "-") for field in fields(kind)}
            given = {word for word in words if word.startswith("--") and word != "--preset"}
            assert {option.replace("--no-", "--", 1) for option in given} <= known, arguments
            continue
        needed = {"--" + field.name.replace("_", "-") for field in fields(kind) if field.default is MISSING}
        try:
            parse(kind, presets, "", words)
        except SystemExit:
            missing = needed - set(words) if "--preset" not in words else set()
            pytest.fail(f"{name}: {door} {arguments}: {capsys.readouterr().err} (missing: {sorted(missing)})")


# These name options of other programs too.
OTHERS = {"docs/migration.md", "docs/performance.md", "docs/performance-notes.md", "CONTRIBUTING.md", "docs/gpu-report.md"}


@pytest.mark.parametrize("name", [name for name in NAMES if name not in OTHERS])
def test_options_exist(name):
    known = {"--" + field.name.replace("_", "-") for kind, _ in CONFIGURATIONS.values() for field in fields(kind)}
    known |= {"--preset", "--help"} | {option.replace("--", "--no-", 1) for option in known}
    others = {"--max-restarts", "--inplace", "--no-build-isolation", "--quick"}  # torchrun's, setuptools', pip's, the benchmarks'
    assert set(OPTION.findall(document(name))) - known - others == set()


@pytest.mark.parametrize("name", NAMES)
def test_links_resolve(name):
    folder = (ROOT / name).parent
    targets = [link for link in LINK.findall(document(name)) if "://" not in link]
    assert [link for link in targets if not (folder / link).exists()] == []


@pytest.mark.parametrize("name", [name for name in NAMES if name != "docs/api.md"])  # docstrings speak of files of a run
def test_paths_exist(name):
    folder = (ROOT / name).parent
    wrong = []
    for path in PATH.findall(document(name)):
        if path.startswith(MADE) or path in FOREIGN or (folder / path).exists():
            continue
        if any(True for beginning in BEGINNINGS for _ in ROOT.glob(beginning + path.rstrip("/"))):
            continue
        if "/" not in path and any(True for top in ("gangealing_fast", "tests", "tools") for _ in (ROOT / top).rglob(path)):
            continue
        wrong.append(path)
    assert wrong == []


def test_the_recipe_has_one_wording():
    """The command lines from photographs to an edit are the same, in the same order, on every page that shows them."""

    def recipe(name: str) -> list[tuple[str, str]]:
        block = re.search(r"```\n(python -m gangealing_fast\.prepare .*?)```", document(name), re.DOTALL)
        assert block, f"{name} has no recipe"
        return [(door, " ".join(arguments.split())) for door, arguments in commands(block[1])]

    first, *others = (recipe(name) for name in RECIPE)
    assert [door for door, _ in first] == ["prepare", "pretrain", "pretrain", "train", "align", "propagate"]
    assert all(other == first for other in others)


def test_the_generator_of_cats_was_made_by_the_recipe():
    """Its commands are those of the recipe, but for data, folders, and the options that its README names."""

    def options(name: str) -> list[dict[str, object]]:
        lines = [
            shlex.split(arguments) for door, arguments in commands(document(name)) if door == "pretrain" and "--kimg" in arguments
        ]
        return [vars(parse(PretrainConfig, PRETRAIN_PRESETS, "", words)) for words in lines[:2]]

    own = {"data", "out", "start_from", "held_out", "threads"}
    made, told = options("gangealing_fast/assets/cats/README.md"), options("docs/quickstart.md")
    assert len(made) == len(told) == 2
    for one, other in zip(made, told, strict=True):
        assert {key for key in one if one[key] != other[key]} <= own


def test_the_options_that_a_preset_stands_for_are_those():
    """The long command line of docs/training.md says what the preset `cats` is."""
    lines = [shlex.split(arguments) for door, arguments in commands(document("docs/training.md")) if door == "train"]
    (spelt_out,) = [parse(TrainConfig, TRAIN_PRESETS, "", words) for words in lines if "--trunk" in words]
    own = {"generator", "data", "out", "goals"}
    preset = TRAIN_PRESETS["cats"]
    assert {field.name for field in fields(preset) if getattr(preset, field.name) != getattr(spelt_out, field.name)} <= own


def test_the_architecture_page_has_the_floors_of_the_import_test():
    rows = re.findall(r"^\| (\d+) \| `(\w+)` \|", document("docs/architecture.md"), re.MULTILINE)
    held = re.search(r"^FLOORS = (\(.*?^\))", document("tests/test_architecture.py"), re.MULTILINE | re.DOTALL)
    assert held
    floors = ast.literal_eval(held[1])
    assert rows and sorted(rows) == sorted((str(floor), room) for floor, rooms in enumerate(floors) for room in rooms)


def sentences() -> str:
    """Every string of the package, what a format string leaves open as one tab."""
    found = []
    for path in (ROOT / "gangealing_fast").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(str(part.value) if isinstance(part, ast.Constant) else "\t" for part in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)


def test_troubleshooting_quotes_messages_of_the_program():
    said = sentences()
    rows = re.findall(r"^\| (`.*?) \| ", document("docs/troubleshooting.md"), re.MULTILINE)
    quoted = [message for row in rows for message in re.findall(r"`([^`]+)`", row)]
    assert len(quoted) > 40
    wrong = []
    for message in quoted:
        # What stands for something that changes: dots, and words in capitals that are not the message's own.
        pieces = [piece.strip(" ();,'") for piece in re.split(r"\.\.\.|\b[A-Z]{1,8}\b|\bNxN\b", message)]
        wrong += [(message, piece) for piece in pieces if len(piece) > 3 and piece not in said]
    assert wrong == []


def test_troubleshooting_has_every_warning():
    page = document("docs/troubleshooting.md")
    healthy = dict(finite=True, variation=1.0, displacement=1.0, outside=0.0, area=1.0, folded=0.0, contrast=1.0)
    ill = (
        {"finite": False},
        {"area": 0.0},
        {"area": 100.0},
        {"outside": 1.0},
        {"variation": 0.0},
        {"folded": 1.0},
        {"contrast": 0.0},
    )
    assert not WarpHealth(**healthy).warnings()
    for change in ill:
        (warning,) = WarpHealth(**{**healthy, **change}).warnings()
        assert re.split(r"[;,]| all one and| so ", warning)[0] in page, warning


def test_the_drawing_is_what_the_program_draws():
    assert draw_architecture.OUT.read_text() == draw_architecture.drawing()
    drawn = {box.text[0] for box in draw_architecture.COMMANDS if box.look == "command"}
    assert drawn == DOORS - {"env"}


def test_every_page_is_listed_in_the_readme():
    readme = document("README.md")
    assert [path.name for path in (ROOT / "docs").glob("*.md") if f"(docs/{path.name})" not in readme] == []


def test_no_picture_is_large_and_every_picture_is_shown():
    shown = "".join(document(name) for name in NAMES)
    for path in (ROOT / "docs" / "images").iterdir():
        assert path.stat().st_size < 200_000, path
        assert path.name in shown, f"{path} is shown nowhere"


@pytest.mark.parametrize("name", NAMES)
def test_python_examples_import_what_exists(name):
    for line in re.findall(r"^from (gangealing_fast[\w.]*) import ([\w, ]+)$", document(name), re.MULTILINE):
        module = importlib.import_module(line[0])
        for word in line[1].split(","):
            found = getattr(module, word.strip(), None)
            if found is None:
                with contextlib.suppress(ImportError):
                    found = importlib.import_module(f"{line[0]}.{word.strip()}")
            assert found is not None, f"{name}: {line}"
