# SPDX-License-Identifier: Apache-2.0
"""Networks of this package as files: safetensors with a model card, or the checkpoints of other projects."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from gangealing_fast.checkpoints.reading import Parts
from gangealing_fast.geometry.warping import Warping
from gangealing_fast.models import ClusterClassifier, DcganGenerator, Generator, LatentTarget, SpatialTransformer
from gangealing_fast.models.generator import Widths
from gangealing_fast.models.spatial_transformer import FLOW_BLOCKS
from gangealing_fast.ops import blur_filter
from gangealing_fast.runtime.errors import UserError
from gangealing_fast.storage.exports import export_safetensors
from gangealing_fast.storage.files import atomic_write, make_folder, write_text

Format = Literal["safetensors", "rosinality", "original"]


def write(parts: Parts, out: Path, to: Format, *, half: bool = False) -> list[Path]:
    """Write `parts` and return the files.

    safetensors: `out` becomes a folder with generator.safetensors, aligner.safetensors (whichever there are) and README.md.
    rosinality, original: `out` is one `.pt` with the tensors that those projects' own loaders expect, constant filters included.
    Raises UserError where a part that the format needs is missing, or the file cannot be written.
    """
    if to == "safetensors":
        return _safetensors(parts, out, half)
    if parts.generator is None:
        raise UserError(f"the format {to} needs a generator, but the checkpoint holds only {' and '.join(parts.names())}")
    content: dict[str, Any] = {"g_ema": generator_state(parts.generator)}
    if to == "rosinality":
        if parts.mean_latent is not None:
            content["latent_avg"] = parts.mean_latent
    else:
        if parts.transformer is None or parts.target is None:
            raise UserError(
                "the format original needs a transformer and its target latent beside the generator: "
                "give the results folder of train with its generator.safetensors in it, or use --to rosinality"
            )
        _check_trunk(parts.transformer)
        state = transformer_state(parts.transformer)
        content |= {"t": state, "t_ema": state, "ll": parts.target.state_dict(), "args": argparse.Namespace(**_options(parts))}
    with atomic_write(out) as file:
        torch.save(content, file)
    return [out]


def _check_trunk(transformer: SpatialTransformer) -> None:
    """Raise UserError if the original's loader, which passes over what it does not know, would lose tensors."""
    if transformer.trunk != "learned":
        raise UserError(f"the format original has no transformer with --trunk {transformer.trunk}; use --to safetensors")
    if transformer.flow is not None and transformer.flow_blocks != FLOW_BLOCKS:
        raise UserError(
            f"the original's flow has {FLOW_BLOCKS} residual blocks, this one of an earlier version has {transformer.flow_blocks}: "
            "the original would lose the others; use --to safetensors"
        )


def refusals(parts: Parts, to: Format) -> list[str]:
    """Sentences on why another project's loader would refuse what `write` writes: its networks have fixed widths and sizes."""
    if to == "safetensors":
        return []
    found = []
    for name, network in (("generator", parts.generator), ("transformer", parts.transformer if to == "original" else None)):
        if network is None:
            continue
        smallest = 64 if isinstance(network, SpatialTransformer) and network.flow is not None else 8
        side = network.flow_size if isinstance(network, SpatialTransformer) else network.size
        if network.widths.base is not None or network.widths.maximum != Widths().maximum:
            found.append(f"the {name}'s numbers of channels are not the published ones, and the loader of {to} refuses others")
        elif side < smallest:
            found.append(f"the {name} is for pictures of {side}x{side}, and that of {to} begins at {smallest}x{smallest}")
    return found


def _options(parts: Parts) -> dict[str, Any]:
    assert parts.transformer is not None and parts.generator is not None
    config, generator = parts.transformer.config(), parts.generator.config()
    return parts.options | {
        "transform": list(config["transforms"]),
        "flow_size": config["flow_size"],
        "real_size": config["input_size"],
        "gen_size": generator["size"],
        "dim_latent": generator["latent_dim"],
        "n_mlp": generator["mapping_layers"],
        "stn_channel_multiplier": config["channel_multiplier"],
        "gen_channel_multiplier": generator["channel_multiplier"],
        "num_heads": config["heads"],
        **settings_of(parts.warping, parts.inject),
    }


def generator_state(generator: Generator) -> dict[str, Tensor]:
    """The state dict with the constant filters that other projects keep in theirs (up-sampling low-pass filters, gain 4)."""
    state = dict(generator.state_dict())
    kernel = blur_filter() * 4
    for level in range(len(generator.to_rgbs)):
        state[f"convs.{2 * level}.conv.blur.kernel"] = kernel.clone()
        state[f"to_rgbs.{level}.upsample.kernel"] = kernel.clone()
    return state


def transformer_state(transformer: SpatialTransformer) -> dict[str, Tensor]:
    """The state dict with the constants of the published transformer; a single transform loses its prefix, as there."""
    state = dict(transformer.state_dict())
    kernel = blur_filter()
    taps = transformer.input_size // transformer.flow_size
    for index, stage in enumerate(transformer.stns):
        prefix = f"stns.{index}."
        for name, module in stage.named_modules():
            if type(module).__name__ == "Blur":
                state[f"{prefix}{name}.kernel"] = kernel.clone()
        state[f"{prefix}warp_head.warper.blur_filter"] = kernel[None, None].clone()
        if transformer.transforms[index] == "similarity":
            state[f"{prefix}warp_head.one_hot"] = torch.tensor([[[[0.0, 0.0, 1.0]]]])
        if taps > 1:
            ramp = torch.arange(1, 2 * taps, 2, dtype=torch.float32)
            tent = torch.cat([ramp, ramp.flip(0)])
            row = (tent / tent.sum()).reshape(1, 1, 1, -1).expand(3, 1, 1, -1)
            state[f"{prefix}input_downsample.kernel_horz"] = row.clone()
            state[f"{prefix}input_downsample.kernel_vert"] = row.mT.clone()
    if len(transformer.stns) == 1:
        state = {key.removeprefix("stns.0."): value for key, value in state.items()}
    return state


def export_generator(generator: Generator, path: Path, statistics: dict[str, Any], *, half: bool = True) -> None:
    """Write generator.safetensors: the generator alone, with its configuration and `statistics` in the header."""
    about = {"kind": "generator", "generator": generator.config(), "statistics": statistics}
    export_safetensors(path, generator.state_dict(), about, half=half)


def export_plain_generator(generator: DcganGenerator, path: Path, statistics: dict[str, Any]) -> None:
    """Write generator.safetensors as `export_generator`, in half precision, for `reading.load_plain_generator`."""
    about = {"kind": "dcgan", "generator": generator.config(), "statistics": statistics}
    export_safetensors(path, generator.state_dict(), about, half=True)


def settings_of(warping: Warping, inject: int | None) -> dict[str, Any]:
    """How an aligner is used, as files record it."""
    return dataclasses.asdict(warping) | ({} if inject is None else {"inject": inject})


def export_aligner(
    path: Path,
    transformer: SpatialTransformer,
    target: LatentTarget | None,
    warping: Warping,
    inject: int | None = None,
    classifier: ClusterClassifier | None = None,
    *,
    half: bool = False,
) -> None:
    """Write aligner.safetensors: the transformer and what there is beside it, with how it is used in the header."""
    about: dict[str, Any] = {"kind": "aligner", "transformer": transformer.config(), **settings_of(warping, inject)}
    if classifier is not None:
        about["classifier"] = classifier.config()
    modules = {"transformer": transformer, "target": target, "classifier": classifier}
    there = {name: module.state_dict() for name, module in modules.items() if module is not None}
    tensors = {f"{name}.{key}": value for name, state in there.items() for key, value in state.items()}
    export_safetensors(path, tensors, about, half=half)


def _safetensors(parts: Parts, out: Path, half: bool) -> list[Path]:
    make_folder(out)
    written = []
    if parts.generator is not None:
        written.append(out / "generator.safetensors")
        export_generator(parts.generator, written[-1], {"origin": parts.origin}, half=half)
    if parts.transformer is not None:
        written.append(out / "aligner.safetensors")
        export_aligner(written[-1], parts.transformer, parts.target, parts.warping, parts.inject, parts.classifier, half=half)
    write_text(out / "README.md", model_card(parts, half))
    return [*written, out / "README.md"]


def model_card(parts: Parts, half: bool) -> str:
    """What the files are and how to use them, in Markdown."""
    lines = [f"# {' and '.join(parts.names()).capitalize()}", "", f"Converted from: {parts.origin}.", ""]
    lines.append(f"Weights in {'half' if half else 'single'} precision, safetensors; the configuration is in the files' headers.")
    for title, module in (("Generator", parts.generator), ("Transformer", parts.transformer)):
        if module is not None:
            lines += ["", f"## {title}", "", "| option | value |", "|---|---|"]
            lines += [f"| {key} | {value} |" for key, value in module.config().items()]
            lines.append(f"| weights | {sum(p.numel() for p in module.parameters()):,} |")
    if parts.transformer is not None:
        use = 'aligned = Aligner.load("aligner.safetensors").align(images)'
        lines += ["", "```python", "from gangealing_fast import Aligner", "", use, "```"]
    if parts.options:
        lines += ["", "## Recorded options", "", "| option | value |", "|---|---|"]
        lines += [f"| {key} | {value} |" for key, value in sorted(parts.options.items())]
    lines += ["", "The licence of the weights is that of their source; ask there before passing them on.", ""]
    return "\n".join(lines)
