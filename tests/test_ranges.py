# SPDX-License-Identifier: Apache-2.0
"""Every number that a command takes has a range, and whatever lies outside ends the command in one sentence."""

from __future__ import annotations

import dataclasses
import importlib
import math
from typing import Any, get_args, get_type_hints

import pytest
from runs import call

from gangealing_fast.__main__ import COMMANDS
from gangealing_fast.alignment.config import PRESETS as TRAIN_PRESETS
from gangealing_fast.alignment.config import ClassifyConfig, TrainConfig
from gangealing_fast.applications.config import AlignConfig, ConvertConfig, EvaluateConfig, PropagateConfig, VisualizeConfig
from gangealing_fast.autoencoders.config import AutoencodeConfig
from gangealing_fast.congealing.config import CongealConfig
from gangealing_fast.contrastive.config import ContrastConfig
from gangealing_fast.data.config import PrepareConfig
from gangealing_fast.interface.config import StudioConfig
from gangealing_fast.inversion.config import InvertConfig
from gangealing_fast.pretraining.config import PRESETS as PRETRAIN_PRESETS
from gangealing_fast.pretraining.config import PretrainConfig
from gangealing_fast.runtime.config import EnvConfig
from gangealing_fast.runtime.errors import UserError
from gangealing_fast.runtime.ranges import Range, check_ranges, ranges_in
from gangealing_fast.translation.config import PRESETS as TRANSLATE_PRESETS
from gangealing_fast.translation.config import TranslateApplyConfig, TranslateExportConfig, TranslateTrainConfig

CONFIGURATIONS: dict[str, type] = {
    "congeal": CongealConfig,
    "prepare": PrepareConfig,
    "pretrain": PretrainConfig,
    "contrast": ContrastConfig,
    "train": TrainConfig,
    "classify": ClassifyConfig,
    "align": AlignConfig,
    "propagate": PropagateConfig,
    "evaluate": EvaluateConfig,
    "visualize": VisualizeConfig,
    "autoencode": AutoencodeConfig,
    "invert": InvertConfig,
    "convert": ConvertConfig,
    "studio": StudioConfig,
    "translate train": TranslateTrainConfig,
    "translate apply": TranslateApplyConfig,
    "translate export": TranslateExportConfig,
    "env": EnvConfig,
}


def numbers_in(hint: Any) -> set[type]:
    """The types of numbers that occur in a type."""
    if hint in (int, float):
        return {hint}
    return {kind for part in get_args(hint) for kind in numbers_in(part)}


def numeric_options() -> list[tuple[str, str]]:
    found = []
    for command, kind in CONFIGURATIONS.items():
        hints = get_type_hints(kind, include_extras=True)
        found += [(command, field.name) for field in dataclasses.fields(kind) if numbers_in(hints[field.name])]
    return [option for option in found if option[1] != "goals"]  # of presets, no option of the command line


def words_of(value: Any) -> list[str]:
    return [str(item) for item in value] if isinstance(value, tuple) else [str(value)]


def needed(kind: type) -> list[str]:
    """What the command line must name, so that it can be parsed."""
    return [word for field in dataclasses.fields(kind) if field.default is dataclasses.MISSING and field.default_factory is
            dataclasses.MISSING for word in (f"--{field.name.replace('_', '-')}", "none")]  # fmt: skip


def test_every_command_is_gone_over():
    assert {name.split()[0] for name in CONFIGURATIONS} == set(COMMANDS) and len(numeric_options()) > 80


@pytest.mark.parametrize(("command", "option"), numeric_options())
def test_what_lies_outside_is_one_sentence(command, option, monkeypatch, capsys):
    kind = CONFIGURATIONS[command]
    hint = get_type_hints(kind, include_extras=True)[option]
    shape = (1,) * (2 if Ellipsis in get_args(hint) else len(get_args(hint))) if "tuple" in str(hint) else 1
    ranges = [found for found, _ in ranges_in(hint, shape)]
    assert all(isinstance(found, Range) for found in ranges), "a number without a range"
    range_ = ranges[0]
    wrong: list[float] = [range_.low - 1, range_.high + 1 if isinstance(range_.high, int) else range_.high * 2]
    if float in numbers_in(hint):
        wrong += [math.nan, math.inf, -math.inf] + ([range_.low] if range_.above else [])
    name = "--" + option.replace("_", "-")
    door, *action = command.split()
    module = importlib.import_module(f"gangealing_fast.{door}")
    for value in wrong:
        given = (value,) * len(shape) if isinstance(shape, tuple) else value
        assert call(monkeypatch, module, *action, *needed(kind), name, *words_of(given)) == 2
        said = capsys.readouterr()
        assert said.err.count("\n") == 1 and said.err.startswith(f"error: {name} must be "), said.err
        assert not said.out


@pytest.mark.parametrize(
    "config", [*TRAIN_PRESETS.values(), *PRETRAIN_PRESETS.values(), *TRANSLATE_PRESETS.values()], ids=lambda config: str(config.out)
)
def test_presets_lie_within(config):
    check_ranges(config)


def test_a_range_says_what_it_is():
    assert str(Range(0, 0.5, above=True)) == "above 0 and at most 0.5"
    assert (
        Range(0, 1).holds(0) and Range(0, 1).holds(1) and not Range(0, 1, above=True).holds(0) and not Range(0, 1).holds(math.nan)
    )


def test_constants_of_objectives_are_finite():
    from gangealing_fast.pretraining.options import make_objective

    for text in ("weight=nan", "weight=inf", "weight=x"):
        with pytest.raises(UserError, match="--objective-options takes"):
            make_objective(PretrainConfig(data="a", out="b", objective="ebgan", objective_options=(text,)))  # type: ignore[arg-type]
