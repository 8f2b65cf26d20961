# SPDX-License-Identifier: Apache-2.0
"""What `python -m gangealing_fast.invert` does: train an encoder, or take one; invert pictures in parts; say how near it came."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor
from tqdm import tqdm

from gangealing_fast.checkpoints.reading import load_generator
from gangealing_fast.inversion.config import InvertConfig
from gangealing_fast.inversion.inverter import EXPORT_NAME, Inverter
from gangealing_fast.inversion.pictures import Source, Wanted, open_sources
from gangealing_fast.inversion.searching import Inversion
from gangealing_fast.inversion.training import COMMAND, Training, plan_of
from gangealing_fast.metrics.perceptual import Distance
from gangealing_fast.models.perceptual import build_perceptual
from gangealing_fast.ops.environment import print_notice
from gangealing_fast.report.page import write_report
from gangealing_fast.report.pictures import save_grid
from gangealing_fast.report.sections import Configuration, Curves, Metrics, Rows, Section
from gangealing_fast.runtime.errors import UserError
from gangealing_fast.runtime.randomness import derived_seed
from gangealing_fast.runtime.setup import choose_device, prepare_process
from gangealing_fast.runtime.text import printable, reason_of
from gangealing_fast.storage.claims import plain
from gangealing_fast.storage.files import make_folder, read_bytes, read_json_lines, save_picture, write_bytes, write_json
from gangealing_fast.storage.runs import open_run
from gangealing_fast.training import loop

LATENTS = "latents.npz"
PARTS = "parts"
SHOWN = 12
JUDGED = 64
"""Fresh samples that the encoder is judged on."""


def run(config: InvertConfig) -> Path:
    """Train if wanted, invert, report; goes on where it was killed. Returns the folder. Raises UserError for a user's mistakes."""
    print_notice(config.ops)
    if config.encoder is None and not config.train_steps and not config.steps:
        raise UserError("there is nothing to do: give --train-steps for an encoder, --encoder, or --steps of search")
    with open_run(config.out, COMMAND, config, pictures={"--data": config.data}) as resuming:
        device = choose_device(config.device)
        prepare_process(config)
        torch.manual_seed(derived_seed(config.seed, COMMAND))
        generator = load_generator(config.generator).to(device)
        learned, wanted = open_sources(config, generator.size)
        inverter = Inverter(generator, None, make_perceptual(config).to(device))
        if config.encoder is not None:
            inverter = Inverter.load(config.encoder, generator, perceptual=inverter.perceptual)
        elif config.train_steps:
            _train(config, inverter, learned, resuming)
        figures = judge_on_samples(inverter, config)
        sections: list[Section] = []
        if wanted is not None:
            found, more, sections = _invert(config, inverter, wanted)
            figures |= more
            print(f"latents of {found} pictures are in {printable(config.out / LATENTS)}")
        _report(config, figures, sections)
        return config.out


def make_perceptual(config: InvertConfig) -> Any:
    """The perceptual distance that the options name. Raises UserError if its weights cannot be read."""
    if config.perceptual == "efficientnet":
        return build_perceptual("efficientnet", min_size=config.perceptual_size)
    named = (
        {}
        if config.perceptual_weights is None
        else {"weights" if config.perceptual == "self" else "backbone": config.perceptual_weights}
    )
    return build_perceptual(config.perceptual, **named)


def _train(config: InvertConfig, inverter: Inverter, real: Source | None, resuming: bool) -> None:
    """Leave the averaged encoder in `inverter`."""
    work, plan = Training(config, inverter, real), plan_of(config)
    loop.run(work, plan, config.out, loop.resume(work, plan, config.out) if resuming else loop.Progress())
    inverter.encoder = work.average


@torch.no_grad()
def judge_on_samples(inverter: Inverter, config: InvertConfig) -> dict[str, float]:
    """Of fresh samples: how far the encoder's w are from the true ones, in deviations, and the distance of what they make; and both
    for the mean w, which is what there is without an encoder."""
    generator = inverter.generator
    source = torch.Generator().manual_seed(derived_seed(config.seed, "judged"))
    w = generator.map(torch.randn(JUDGED, generator.latent_dim, generator=source).to(inverter.device)).float()
    pictures = inverter.decode(w)
    figures = {}
    for name, found in (("encoder", inverter.encode(pictures)), ("mean", inverter.mean.expand_as(w))):
        figures[f"samples_latent_{name}"] = ((found - w) / inverter.deviation).square().mean().sqrt().item()
        figures[f"samples_distance_{name}"] = distances(inverter.perceptual, inverter.decode(found), pictures).mean().item()
    return figures


@torch.no_grad()
def distances(perceptual: Distance, images: Tensor, pictures: Tensor) -> Tensor:
    """Perceptual distance `[N]` of two stacks, in parts."""
    return torch.cat([perceptual(a, b) for a, b in zip(images.split(64), pictures.split(64), strict=True)])


def _invert(config: InvertConfig, inverter: Inverter, wanted: Wanted) -> tuple[int, dict[str, float], list[Section]]:
    """Invert what is wanted, part by part; a part that is already there is read."""
    make_folder(config.out / PARTS)
    parts = []
    for start in tqdm(range(0, len(wanted.names), config.batch), desc="invert", unit="part"):
        stop = min(start + config.batch, len(wanted.names))
        path = config.out / PARTS / f"{start:06d}.npz"
        if not path.is_file():
            pictures = inverter.prepared(wanted.floats(start, stop))
            encoded = inverter.encode(pictures)
            found = inverter.optimise(
                pictures,
                config.steps,
                start=encoded,
                rate=config.search_rate,
                w_plus=config.w_plus,
                noise=config.noise,
                pixel_weight=config.pixel_weight,
            )
            # The pictures come first: a part that is there is not made again.
            _write_pictures(config.out, start, found)
            _write_part(path, wanted.names[start:stop], found)
        parts.append(_read_part(path))
    whole = {name: numpy.concatenate([part[name] for part in parts]) for name in parts[0]}
    write_bytes(config.out / LATENTS, _npz(whole))
    figures = {
        "distance_first": float(whole["distance_first"].mean()),
        "distance": float(whole["distance"].mean()),
    }
    sections = _shown(config, inverter, wanted, torch.from_numpy(whole["w"][:SHOWN]))
    return len(whole["w"]), figures, sections


def _write_part(path: Path, names: list[str], found: Inversion) -> None:
    content = {
        "names": numpy.array(names),
        "w": found.w.cpu().numpy(),
        "distance_first": found.history[0].cpu().numpy(),
        "distance": found.distance.cpu().numpy(),
    }
    if found.noise is not None:
        content |= {f"noise_{k}": layer.detach().cpu().numpy().astype(numpy.float16) for k, layer in enumerate(found.noise)}
    write_bytes(path, _npz(content))


def _npz(content: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    numpy.savez(buffer, **content)
    return buffer.getvalue()


def _read_part(path: Path) -> dict[str, Any]:
    try:
        with numpy.load(io.BytesIO(read_bytes(path)), allow_pickle=False) as stored:
            return dict(stored)
    except (OSError, ValueError, EOFError, KeyError) as error:
        raise UserError(f"{path} is damaged ({reason_of(error, 100)}); delete it and give the same command again") from None


def _write_pictures(out: Path, start: int, found: Inversion) -> None:
    make_folder(out / "reconstructions")
    for k, image in enumerate(found.images.cpu()):
        save_picture(out / "reconstructions" / f"{start + k:06d}.png", image.clamp(-1, 1))


def _shown(config: InvertConfig, inverter: Inverter, wanted: Wanted, w: Tensor) -> list[Section]:
    """Pictures, what the encoder's first w makes, and what was written: as rows, and as reconstructions.png."""
    pictures = inverter.prepared(wanted.floats(0, len(w)))
    first = inverter.decode(inverter.encode(pictures))
    rows = {"Picture": pictures.cpu(), "First": first.cpu()}
    if config.steps:
        written = [Path(config.out / "reconstructions" / f"{k:06d}.png") for k in range(len(w))]
        rows["After the search"] = torch.stack([_read_picture(path) for path in written])
    rows = {name: images.clamp(-1, 1) for name, images in rows.items()}
    save_grid(torch.cat(list(rows.values())), config.out / "reconstructions.png", columns=len(w))
    text = "Under each picture what the generator makes of the first w, by the encoder or the mean, and of the w that was searched."
    return [Rows("Reconstructions", rows, text=text)]


def _read_picture(path: Path) -> Tensor:
    from PIL import Image

    with Image.open(io.BytesIO(read_bytes(path))) as picture:
        return torch.from_numpy(numpy.array(picture.convert("RGB"))).permute(2, 0, 1).float() / 127.5 - 1


def _report(config: InvertConfig, figures: dict[str, float], sections: list[Section]) -> None:
    """figures.json, report.html and a line for each figure."""
    write_json(config.out / "figures.json", figures)
    text = (
        "Samples: fresh ones of the generator. Latent: root mean square in deviations of w. Distance: perceptual, to the picture; "
        "of the pictures that were inverted, at the first w and at the one that is written."
    )
    page: list[Section] = [Metrics("Figures", figures, text=text), *sections]
    if (config.out / EXPORT_NAME).is_file():
        page.append(Curves("Training of the encoder", read_json_lines(config.out / "log.jsonl")))
    page.append(Configuration("Configuration", plain(config)))
    subtitle = f"in {config.generator.name}, {config.steps} steps of search"
    write_report(config.out, f"Inversion: {config.out.name}", page, subtitle=subtitle)
    for name, value in figures.items():
        print(f"{name:28} {value:.4f}")
