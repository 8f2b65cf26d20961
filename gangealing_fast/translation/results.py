# SPDX-License-Identifier: Apache-2.0
"""Pictures, figures and report of a translator, all on pictures that it has not learned from."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from gangealing_fast.data.pictures import to_float
from gangealing_fast.models import EfficientNetPerceptual
from gangealing_fast.report.page import write_report
from gangealing_fast.report.pictures import save_grid
from gangealing_fast.report.sections import Configuration, Curves, Pictures, Section, Table, Text
from gangealing_fast.runtime.text import printable
from gangealing_fast.storage.claims import plain
from gangealing_fast.storage.files import read_json_lines, write_json, write_text
from gangealing_fast.translation.config import TranslateTrainConfig
from gangealing_fast.translation.domains import Domains
from gangealing_fast.translation.figures import Classifier, Figure, all_figures, collapse, pictures_of
from gangealing_fast.translation.reader import DigitReader
from gangealing_fast.translation.translator import EXPORT_NAME, NAMES, DomainName, Translator

CONTENTS, STYLES = 8, 8


@torch.no_grad()
def matrix(translator: Translator, contents: Tensor, styles: Tensor, source: DomainName, target: DomainName) -> tuple[Tensor, int]:
    """Pictures content x style and how many lie in a row. The first column has the pictures whose content it is, the first row the
    pictures `[K, 3, S, S]` whose style it is, and the corner is black."""
    made = translator.translate(contents, like=styles, source=source, target=target)
    head = torch.cat([torch.full_like(contents[:1], -1), styles])
    rows = torch.cat([contents[:, None], made], 1).flatten(0, 1)
    return torch.cat([head, rows]), len(styles) + 1


@torch.no_grad()
def rows_of(
    translator: Translator, contents: Tensor, source: DomainName, target: DomainName, styles: int = STYLES
) -> tuple[Tensor, int]:
    """A row for each picture: itself, then translations with random styles, the same in every row; and how many lie in a row."""
    made = translator.translate(contents, n=styles, source=source, target=target)
    return torch.cat([contents[:, None], made], 1).flatten(0, 1), styles + 1


def sheets_of(translator: Translator, domains: Domains) -> dict[str, tuple[Tensor, int]]:
    """Sheets by name, each with how many pictures lie in a row."""
    sheets = {}
    for target in (1, 0):
        source, into = NAMES[1 - target], NAMES[target]
        contents, styles = pictures_of(domains[1 - target], CONTENTS), to_float(domains[target].test[-STYLES:])
        sheets[f"{source}-to-{into}"] = rows_of(translator, contents, source, into)
        sheets[f"matrix-{source}-to-{into}"] = matrix(translator, contents, styles, source, into)
    return sheets


def write_sheets(translator: Translator, domains: Domains, folder: Path) -> None:
    """A file NAME.png for each of `sheets_of`."""
    for name, (images, columns) in sheets_of(translator, domains).items():
        save_grid(images, folder / f"{name}.png", columns=columns)


def report(
    translator: Translator,
    domains: Domains,
    config: TranslateTrainConfig,
    reader: DigitReader | None,
    network: EfficientNetPerceptual,
    classifier: Classifier | None,
) -> dict[str, dict[str, Figure]]:
    """Write figures.json, report.html and README.md, print the figures and a collapse; returns the figures."""
    figures = all_figures(translator, domains, reader, network, classifier)
    stored = {way: {name: figure._asdict() for name, figure in found.items()} for way, found in figures.items()}
    write_json(config.out / "figures.json", stored)
    sections: list[Section] = []
    for way, found in figures.items():
        sentence = collapse(found, way.rpartition("-")[2])
        if sentence is not None:
            print(sentence)
            sections.append(Text(f"Collapse, {way}", sentence))
    for way, found in figures.items():
        lines = [(name, _number(one.value), _number(one.beside), one.what) for name, one in found.items()]
        sections.append(Table(f"Figures {way}", ("figure", "translations", "beside", "of"), lines))
        for name, value, beside, what in lines:
            print(f"{way:16} {name:22} {value:>10}" + (f" beside {beside} of {what}" if beside else ""))
    for name, (images, columns) in sheets_of(translator, domains).items():
        text = "First column: contents. First row: styles." if name.startswith("matrix") else "First column: the pictures."
        title = name.replace("-", " ").capitalize()
        sections.append(Pictures(title, [(title, images)], text=text, columns=columns, width=640))
    sections.append(Curves("Training", read_json_lines(config.out / "log.jsonl")))
    sections.append(Configuration("Configuration", plain(config)))
    page = write_report(config.out, "Translation", sections, subtitle=domains.summary())
    write_text(config.out / "README.md", card(translator, config, figures))
    print(f"figures.json and pictures are beside {printable(page)}")
    return figures


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def card(translator: Translator, config: TranslateTrainConfig, figures: dict[str, dict[str, Figure]]) -> str:
    """The model card beside the weights."""
    first, second = translator.domain_names()
    lines = [
        "---",
        "library_name: gangealing_fast",
        "tags: [image-to-image, unpaired, munit]",
        "---",
        "",
        f"# Translator between {first} and {second}",
        "",
        f"Networks of MUNIT (arXiv 1804.04732), {config.size} pixels a side, {translator.style_numbers} style numbers,",
        f"{config.steps} steps of {config.batch} pictures of each domain. Sides of pictures are multiples of {translator.stride}.",
        "",
        "```python",
        "from gangealing_fast.translation import Translator",
        "",
        f'translator = Translator.load("{EXPORT_NAME}")',
        "pictures = translator.translate(images, n=4)  # [N, 4, 3, H, W] of [N, 3, H, W] in [-1, 1]",
        "```",
        "",
        "| direction | figure | translations | beside | of |",
        "|---|---|---|---|---|",
    ]
    for way, found in figures.items():
        lines += [f"| {way} | {name} | {_number(f.value)} | {_number(f.beside)} | {f.what} |" for name, f in found.items()]
    return "\n".join(lines) + "\n"
