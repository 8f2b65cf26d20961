# SPDX-License-Identifier: Apache-2.0
"""What `python -m gangealing_fast.translate apply` and `export` do: pictures in other styles, and programs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import cast

import torch
from torch import Tensor
from tqdm import tqdm

from gangealing_fast.applications.naming import result_name
from gangealing_fast.data.decoding import decode
from gangealing_fast.data.pictures import PictureStream, read_or_reason, to_float
from gangealing_fast.models import EfficientNetPerceptual
from gangealing_fast.report.pictures import save_grid
from gangealing_fast.runtime.errors import UserError
from gangealing_fast.runtime.setup import set_threads
from gangealing_fast.runtime.text import printable
from gangealing_fast.storage.claims import results_folder
from gangealing_fast.storage.files import JsonLines, read_bytes, save_picture, write_json
from gangealing_fast.translation.config import TranslateApplyConfig, TranslateExportConfig
from gangealing_fast.translation.translator import DomainName, Translator

COMMAND = "translate apply"
WRITES = r"[0-9]{6,}-.*-style[0-9]{2,}\.png|styles\.json|sheet\.png|translations\.jsonl"


def use(config: TranslateApplyConfig | TranslateExportConfig) -> str:
    """Do what the options say; returns what to print. Raises UserError for a user's mistakes."""
    translator = Translator.load(config.translator)
    source, target = domains_of(config.direction)
    if isinstance(config, TranslateApplyConfig):
        return _apply(config, translator, source, target)
    if config.out.exists() and not config.overwrite:
        raise UserError(f"{config.out} exists: choose another --out, or give --overwrite")
    written = translator.export(config.out, source=source, target=target, side=config.size or None)
    return f"{printable(written)} takes pictures [N, 3, S, S] in [-1, 1] and styles [N, {translator.style_numbers}]"


def domains_of(direction: str) -> tuple[DomainName, DomainName]:
    """Source and target of a --direction."""
    if direction.startswith("within-"):
        domain = cast(DomainName, direction.removeprefix("within-"))
        return domain, domain
    source, target = direction.split("-to-")
    return cast(DomainName, source), cast(DomainName, target)


def read_examples(paths: tuple[Path, ...], size: int, option: str = "--like") -> Tensor:
    """Example pictures `[K, 3, size, size]` in [-1, 1], cut to squares. Raises UserError for one that is no picture."""
    examples = []
    for path in paths:
        content = read_bytes(path)
        found = read_or_reason(lambda content=content: decode(content, size, "center"))  # type: ignore[misc]
        if isinstance(found, str):
            raise UserError(f"{option} {path} is no picture that can be read ({found}); give a PNG or JPEG file")
        examples.append(to_float(torch.from_numpy(found).permute(2, 0, 1)))
    return torch.stack(examples)


def styles_for(config: TranslateApplyConfig, translator: Translator, target: DomainName, size: int) -> tuple[Tensor, list[str]]:
    """The style codes `[K, style_numbers]` that the options ask for, and what each is in words."""
    if config.like:
        codes, words = translator.style(read_examples(config.like, size), target), [f"like {path}" for path in config.like]
    elif config.styles:
        codes = translator.random_styles(config.styles, config.seed)
        words = [f"seed {config.seed + k}" for k in range(config.styles)]
    else:
        raise UserError("--styles 0 asks for nothing: give --styles 1 or more, or --like with example pictures")
    if not config.path:
        return codes, words
    if config.path < 2 or len(codes) < 2:
        raise UserError("--path goes from the first style to the last: give it 2 or more steps, and at least two styles")
    steps = [f"{k / (config.path - 1):.3f} of the way from {words[0]} to {words[-1]}" for k in range(config.path)]
    return translator.path(codes[0], codes[-1], config.path), steps


def _apply(config: TranslateApplyConfig, translator: Translator, source: DomainName, target: DomainName) -> str:
    set_threads(config.threads)
    size = config.size or translator.size
    if size % translator.stride or size < translator.networks.least:
        raise UserError(f"--size {size} must be a multiple of {translator.stride} and at least {translator.networks.least}")
    codes, words = styles_for(config, translator, target, size)
    pictures = PictureStream(config.data, size=size, batch=config.batch, limit=config.limit)
    inputs = [("--translator", config.translator), *(("--like", path) for path in config.like)]
    with results_folder(config.out, COMMAND, config, WRITES, pictures={"--data": config.data}, inputs=inputs) as folder:
        write_json(
            folder / "styles.json",
            {
                "direction": config.direction,
                "styles": [{"style": w, "code": c} for w, c in zip(words, codes.tolist(), strict=True)],
            },
        )
        shown, done = [], 0
        with JsonLines(folder / "translations.jsonl") as lines:
            for name, image, made in _translated(pictures, translator, codes, source, target):
                files = [result_name(done, name).removesuffix(".png") + f"-style{k:02d}.png" for k in range(len(made))]
                for file, picture in zip(files, made, strict=True):
                    save_picture(folder / file, picture)
                lines.append({"picture": name, "files": files})
                if done < config.sheet:
                    shown.append(torch.cat([image[None], made]))
                done += 1
        if shown:
            save_grid(torch.cat(shown), folder / "sheet.png", columns=len(codes) + 1)
    if pictures.summary():
        print(pictures.summary())
    return (
        f"{done} pictures in {len(codes)} styles are in {printable(config.out)}; styles.json has the codes, sheet.png shows "
        "the first ones, each beside its translations"
    )


def _translated(
    pictures: PictureStream, translator: Translator, codes: Tensor, source: DomainName, target: DomainName
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Name, picture `[3, S, S]` and its translations `[K, 3, S, S]`; says it if the first ones look like the other domain."""
    with tqdm(total=len(pictures), unit="picture", desc="translate") as progress:
        for number, (names, batch) in enumerate(pictures):
            images = to_float(batch)
            if number == 0:
                warn_if_swapped(translator, images, source)
            made = translator.translate(images, styles=codes, source=source, target=target)
            yield from zip(names, images, made, strict=True)
            progress.update(len(names))


def warn_if_swapped(translator: Translator, images: Tensor, source: DomainName) -> None:
    """Say it if pictures `[N, 3, S, S]` look like the domain that they are not taken for."""
    if translator.other_domain(images[:32], source, EfficientNetPerceptual(min_size=64)):
        names = translator.domain_names()
        other = "second" if source == "first" else "first"
        tqdm.write(
            f"these pictures look like the {other} domain ({names[other == 'second']}), but are translated as the {source} one "
            f"({names[source == 'second']}): if that is a mistake, change --direction"
        )
