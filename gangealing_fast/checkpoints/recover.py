# SPDX-License-Identifier: Apache-2.0
"""The shape of a network from the shapes of its tensors: checkpoints that others wrote do not say it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from torch import Tensor

from gangealing_fast.models.feature_similarity import CHANNELS, places
from gangealing_fast.models.generator import Widths
from gangealing_fast.models.place_similarity import CHANNELS as CHANNELS_OF_PLACES
from gangealing_fast.models.spatial_transformer import halving_blocks

MULTIPLIERS = (2.0, 1.0, 0.5, 4.0, 0.25, 0.125)
SIZES = [8 << k for k in range(10)]


def _count(names: Iterable[str], pattern: str) -> int:
    """One more than the largest number that `pattern` finds, 0 where it finds none."""
    found = [int(match[1]) for name in names if (match := re.match(pattern, name))]
    return max(found, default=-1) + 1


def _widths(channels: dict[int, int]) -> dict[str, Any]:
    """Options of `Widths` that give these channels `{resolution: channels}`."""
    maximum = max(channels.values())
    for multiplier in MULTIPLIERS:
        for limit in {512, maximum}:
            widths = Widths(multiplier, limit, None)
            if all(widths.at(resolution) == c for resolution, c in channels.items()):
                return {"channel_multiplier": multiplier, "max_channels": limit, "channel_base": None}
    for base in sorted({resolution * c for resolution, c in channels.items()}):
        widths = Widths(2.0, maximum, base)
        if all(widths.at(resolution) == c for resolution, c in channels.items()):
            return {"channel_multiplier": 2.0, "max_channels": maximum, "channel_base": base}
    listed = ", ".join(f"{resolution}²: {c}" for resolution, c in sorted(channels.items()))
    raise ValueError(f"its numbers of channels ({listed}) follow no rule that this package knows")


def check(options: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """`options` that a file states, once they agree with what its tensors say (`found`): a damaged number builds no giant.

    Raises ValueError where they disagree.
    """
    for key in ("size", "latent_dim", "mapping_layers", "flow_size", "heads", "clusters", "flips", "flow_blocks"):
        if key in found and options[key] != found[key]:
            raise ValueError(f"its header says {key} {options[key]}, its tensors {found[key]}")
    stated, true = (Widths(o["channel_multiplier"], o["max_channels"], o["channel_base"]) for o in (options, found))
    side = found["size"] if "size" in found else found["flow_size"]
    for resolution in (4 << k for k in range(side.bit_length() - 2)):
        if stated.at(resolution) != true.at(resolution):
            raise ValueError(f"its header says {stated.at(resolution)} channels at {resolution}x{resolution}, its tensors differ")
    return options


def generator_options(state: dict[str, Tensor]) -> dict[str, Any]:
    """Arguments of `models.Generator` for a state dict with its names. Raises KeyError or ValueError where it is none."""
    levels = _count(state, r"to_rgbs\.(\d+)\.")
    channels = {4: state["input.input"].shape[1]}
    for level in range(levels):
        channels[8 << level] = state[f"convs.{2 * level}.conv.weight"].shape[1]
    return {
        "size": 4 << levels,
        "latent_dim": state["style.1.weight"].shape[0],
        "mapping_layers": _count(state, r"style\.(\d+)\.weight") - 1,
        **_widths(channels),
    }


def _blocks(state: dict[str, Tensor], prefix: str) -> int:
    """How many residual blocks a trunk has."""
    return _count(state, re.escape(prefix) + r"convs\.(\d+)\.") - 1


def _channels(state: dict[str, Tensor], prefix: str, size: int) -> dict[int, int]:
    """Channels by resolution of a residual trunk for pictures of side `size`: a block keeps its channels up to its last layer."""
    blocks = _blocks(state, prefix)
    channels = {size >> k: state[f"{prefix}convs.{k + 1}.conv1.0.weight"].shape[1] for k in range(blocks)}
    return channels | {
        size >> blocks: state[f"{prefix}final_conv.0.weight"].shape[1],
        4: state[f"{prefix}final_conv.0.weight"].shape[0],
    }


def complete(options: dict[str, Any]) -> dict[str, Any]:
    """`options` of a `models.SpatialTransformer` that a file states, with what files of earlier versions do not say: their flows'
    trunks were learned, and had a block for each halving down to 4x4."""
    return {"flow_blocks": halving_blocks(options["flow_size"]), "flow_trunk": "learned"} | options


def stated_transformer(options: dict[str, Any], state: dict[str, Tensor]) -> dict[str, Any]:
    """`options` of a `models.SpatialTransformer` that a file states, checked against its tensors as `check` does."""
    options = complete(options)
    if options.get("trunk", "learned") == "learned":
        return check(options, transformer_options(state, options["flow_size"]))
    if options["trunk"] == "places":
        inputs, layer, output = CHANNELS_OF_PLACES + 2, "warp_head.read.weight", "warp_head.frame_bias"
    else:
        inputs, layer, output = CHANNELS * places(options["flow_size"]) ** 2, "dense.weight", "warp_head.linear.bias"
    wanted, found = (inputs, 4 * options["heads"]), (state[f"stns.0.{layer}"].shape[1], state[f"stns.0.{output}"].shape[0])
    if found != wanted:
        raise ValueError(f"its header asks for {wanted[0]} inputs and {wanted[1]} outputs, its tensors have {found}")
    if options["transforms"] != ["similarity"] and options["flow_trunk"] == "learned":
        flow = {key.replace("stns.1.", "stns.0."): value for key, value in state.items() if key.startswith("stns.1.")}
        check(options, transformer_options(flow, options["flow_size"]))
    return options


def transformer_options(state: dict[str, Tensor], flow_size: int | None = None) -> dict[str, Any]:
    """Arguments of `models.SpatialTransformer` for a state dict with its names.

    flow_size: what the file states. The trunk of a similarity shows it; that of a flow has as many blocks whatever the size.
    Raises KeyError or ValueError.
    """
    stages = _count(state, r"stns\.(\d+)\.")
    prefixes = [f"stns.{k}." for k in range(max(1, stages))]
    kinds = ["flow" if f"{prefix}warp_head.flow_out.0.weight" in state else "similarity" for prefix in prefixes]
    if kinds[0] == "similarity":
        flow_size = 4 << _blocks(state, prefixes[0])
        heads = state["stns.0.warp_head.linear.weight"].shape[0] // 4
    else:
        heads = state["stns.0.warp_head.flow_out.2.weight"].shape[0] // 2
    if flow_size is None:
        raise ValueError("it has a flow alone, whose tensors do not show the flow_size, and states none")
    if not isinstance(flow_size, int) or flow_size not in SIZES:
        raise ValueError(f"its flow_size must be a power of two from {SIZES[0]} to {SIZES[-1]}, not {flow_size!r}")
    channels: dict[int, int] = {}
    for prefix in prefixes:
        if not 1 <= _blocks(state, prefix) < flow_size.bit_length():
            raise ValueError(f"a trunk of {_blocks(state, prefix)} blocks does not suit pictures of {flow_size}x{flow_size}")
        for resolution, found in _channels(state, prefix, flow_size).items():
            if channels.setdefault(resolution, found) != found:
                raise ValueError(f"its trunks have {channels[resolution]} and {found} channels at {resolution}x{resolution}")
    kernel = state.get("stns.0.input_downsample.kernel_horz")
    factor = 1 if kernel is None else kernel.shape[-1] // 2
    blocks = {"flow_blocks": _blocks(state, prefixes[-1])} if kinds[-1] == "flow" else {}
    return {
        "transforms": kinds,
        "flow_size": flow_size,
        "input_size": flow_size * factor,
        "heads": heads,
        **blocks,
        **_widths(channels),
    }


def classifier_options(state: dict[str, Tensor], heads: int) -> dict[str, Any]:
    """Arguments of `models.ClusterClassifier` beside a transformer of so many heads. Raises KeyError or ValueError."""
    size = 4 << _blocks(state, "")
    channels = _channels(state, "", size)
    rows = state["to_logits.weight"].shape[0]
    if rows not in (heads, 2 * heads):
        raise ValueError(f"its classifier knows {rows} classes, which fits neither {heads} clusters nor their mirror images")
    return {"size": size, "clusters": heads, "flips": rows == 2 * heads, **_widths(channels)}
