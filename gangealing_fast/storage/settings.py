# SPDX-License-Identifier: Apache-2.0
"""What a network's settings in a file may be: a damaged or hostile file is named before anything is made of it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple


class Rule(NamedTuple):
    """What a setting may be, in words, and whether a value is."""

    allowed: str
    holds: Callable[[object], bool]


def is_whole(value: object, low: int, high: int) -> bool:
    """Whether `value` is a whole number between both, which True and 2.0 are not."""
    return type(value) is int and low <= value <= high


def whole(low: int, high: int, *, none: bool = False) -> Rule:
    """A whole number between both; none: or nothing."""
    words = f"a whole number from {low} to {high}"
    return Rule(f"{words} or null" if none else words, lambda value: is_whole(value, low, high) or (none and value is None))


def one_of(*values: object) -> Rule:
    """One of these."""
    return Rule(f"one of {', '.join(map(str, values))}", lambda value: any(type(value) is type(v) and value == v for v in values))


def _number(low: float, high: float) -> Rule:
    return Rule(
        f"a number from {low:g} to {high:g}",
        lambda value: type(value) in (int, float) and math.isfinite(value) and low <= value <= high,  # type: ignore[arg-type,operator]
    )


def _list_of(rule: Rule, most: int) -> Rule:
    def holds(value: object) -> bool:
        return isinstance(value, list) and 1 <= len(value) <= most and all(rule.holds(item) for item in value)

    return Rule(f"a list of up to {most} items, each {rule.allowed}", holds)


_SIDE = one_of(*(8 << k for k in range(10)))
_CHANNELS = 1 << 16
RULES: Mapping[str, Rule] = {
    "size": _SIDE,
    "latent_dim": whole(1, _CHANNELS),
    "mapping_layers": whole(0, 100),
    "channel_multiplier": _number(1 / 64, 64),
    "max_channels": whole(1, _CHANNELS),
    "channel_base": whole(1, 1 << 26, none=True),
    "num_fp16_res": whole(0, 12),
    "transforms": _list_of(one_of("similarity", "flow"), 2),
    "flow_size": _SIDE,
    "input_size": whole(8, _CHANNELS),
    "heads": whole(1, _CHANNELS),
    "flow_blocks": whole(1, 16),
    "trunk": one_of("learned", "efficientnet", "places"),
    "flow_trunk": one_of("learned", "places"),
    "clusters": whole(1, _CHANNELS),
    "flips": one_of(False, True),
    "classes": whole(0, _CHANNELS),
    "label_dim": whole(1, _CHANNELS),
    "outputs": whole(1, _CHANNELS),
    "norm": one_of("batch", "layer", "none"),
    "features": one_of(False, True),
    "group": whole(1, _CHANNELS),
    "widths": _list_of(whole(1, _CHANNELS), 16),
    "inject": whole(0, 64, none=True),
    "side": whole(4, 1 << 10),
    "channels": whole(1, 4),
    "style": whole(1, _CHANNELS),
    "categories": whole(0, _CHANNELS),
    "kind": one_of("deterministic", "gaussian", "universal"),
    "architecture": one_of("dense", "convolutional"),
    "width": whole(1, _CHANNELS),
    "batch_norm": one_of(False, True),
    "noise_inputs": whole(0, _CHANNELS),
    "as_map": one_of(False, True),
    "halvings": whole(1, 6),
    "style_halvings": whole(1, 6),
    "blocks": whole(1, 64),
    "hidden": whole(1, _CHANNELS),
    "outer_kernel": one_of(3, 5, 7),
}
"""Of every setting that a file of this package states about a network, or about how it is used, by its name."""


def check_settings(settings: object, *, names: Sequence[str] = (), where: str = "its header") -> dict[str, Any]:
    """`settings` as a dictionary, once each of them (or of those in `names` alone) is what its rule allows.

    Raises ValueError that names the first one that is not.
    """
    if not isinstance(settings, dict) or not all(type(name) is str for name in settings):
        raise ValueError(f"{where} has no record of settings, but {_shown(settings)}")
    for name in names or settings:
        if name not in RULES:
            raise ValueError(f"{where} has a setting {name[:40]!r} that this version does not know")
        if name in settings and not RULES[name].holds(settings[name]):
            raise ValueError(f"{where} says {name} {_shown(settings[name])}, but it must be {RULES[name].allowed}")
    return settings


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def strict_json(text: str | bytes) -> Any:
    """The value of a JSON text, which has no word for NaN and infinity. Raises ValueError for anything else."""

    def refuse(word: str) -> float:
        raise ValueError(f"{word} is no number of JSON")

    try:
        return json.loads(text, parse_constant=refuse)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
