# SPDX-License-Identifier: Apache-2.0
"""Networks of this package as files: safetensors with a model card, or the checkpoints of other projects."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from gangealing_fast import checkpoint
from gangealing_fast.errors import UserError
from gangealing_fast.files import atomic_write, write_text
from gangealing_fast.foreign.reading import Parts
from gangealing_fast.models import Generator, SpatialTransformer
from gangealing_fast.ops import blur_filter

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
        state = transformer_state(parts.transformer)
        content |= {"t": state, "t_ema": state, "ll": parts.target.state_dict(), "args": argparse.Namespace(**_options(parts))}
    with atomic_write(out) as file:
        torch.save(content, file)
    return [out]


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
        **parts.settings,
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


def _safetensors(parts: Parts, out: Path, half: bool) -> list[Path]:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"the folder {out} cannot be made ({error.strerror}); choose another --out") from None
    written = []
    if parts.generator is not None:
        about = {"kind": "generator", "generator": parts.generator.config(), "statistics": {"origin": parts.origin}}
        checkpoint.export_safetensors(out / "generator.safetensors", parts.generator.state_dict(), about, half=half)
        written.append(out / "generator.safetensors")
    if parts.transformer is not None:
        tensors = {f"transformer.{key}": value for key, value in parts.transformer.state_dict().items()}
        if parts.target is not None:
            tensors |= {f"target.{key}": value for key, value in parts.target.state_dict().items()}
        about = {"kind": "aligner", "transformer": parts.transformer.config(), **parts.settings}
        if parts.classifier is not None:
            tensors |= {f"classifier.{key}": value for key, value in parts.classifier.state_dict().items()}
            about["classifier"] = parts.classifier.config()
        checkpoint.export_safetensors(out / "aligner.safetensors", tensors, about, half=half)
        written.append(out / "aligner.safetensors")
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
