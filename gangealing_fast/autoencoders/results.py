# SPDX-License-Identifier: Apache-2.0
"""Figures, pictures and report of an adversarial autoencoder, all on pictures that it has not learned from."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from PIL.Image import Image
from PIL.Image import new as new_picture
from torch import Tensor

from gangealing_fast.autoencoders.autoencoder import AdversarialAutoencoder
from gangealing_fast.autoencoders.collection import Collection, Part
from gangealing_fast.autoencoders.config import AutoencodeConfig
from gangealing_fast.autoencoders.priors import Prior
from gangealing_fast.metrics.clusters import best_examples, majority
from gangealing_fast.metrics.codes import emptiest_place, mmd_test, neighbour_error
from gangealing_fast.metrics.likelihood import choose_sigma, parzen_log_likelihood
from gangealing_fast.report.page import write_report
from gangealing_fast.report.pictures import save_grid
from gangealing_fast.report.scatter import scatter_picture
from gangealing_fast.report.sections import Configuration, Curves, Metrics, Pictures, Section
from gangealing_fast.runtime.randomness import private_stream
from gangealing_fast.runtime.text import printable
from gangealing_fast.storage.claims import plain
from gangealing_fast.storage.files import read_json_lines, save_picture, write_json

SAMPLES = 10_000
"""Of the decoder, for the likelihood; as many as in the paper."""
TESTED = 1_500
"""Codes and samples of the prior in the two-sample test."""
GRID = 12
"""Pictures in a row and column of a sheet along percentiles."""
DRAWN = 2_000
"""Codes in a plot."""


def quick_figures(model: AdversarialAutoencoder, collection: Collection, config: AutoencodeConfig) -> dict[str, float]:
    """What every line of the log says of the test pictures."""
    code = model.encode(collection.test.images)
    figures = {"test_reconstruction": _reconstruction(model, collection.test, config, code.style, code.probabilities)}
    return figures | _class_figures(model, collection, config, code.probabilities)


def _map_figures(model: AdversarialAutoencoder, collection: Collection) -> dict[str, float]:
    """neighbour_error: of test pictures on the map, whose neighbours there are the pictures to tune by."""
    test, tuned = collection.test, collection.validation
    if model.decoder.heads is None or test.classes is None or tuned.classes is None or len(tuned) < 5:
        return {}
    places = [_places(model, part.images) for part in (tuned, test)]
    return {"neighbour_error": neighbour_error(places[0], tuned.classes, places[1], test.classes)}


def _places(model: AdversarialAutoencoder, images: Tensor) -> Tensor:
    """Where pictures lie on a map, `[N, style]`."""
    code = model.encode(images)
    return model.decoder.place(code.style, code.probabilities)


def _reconstruction(
    model: AdversarialAutoencoder, part: Part, config: AutoencodeConfig, style: Tensor, probabilities: Tensor | None
) -> float:
    """Mean squared error in [0, 1]; a decoder that is told the class is told the true one."""
    category = probabilities
    if config.use == "supervised" and part.classes is not None:
        category = F.one_hot(part.classes).float()
    return F.mse_loss(model.decode(style, category), part.shown()).item()


def _class_figures(
    model: AdversarialAutoencoder, collection: Collection, config: AutoencodeConfig, found: Tensor | None
) -> dict[str, float]:
    """test_error where classes were told; cluster_error by the paper's protocol and by majority where none was."""
    test, tuned = collection.test, collection.validation
    if found is None or test.classes is None or tuned.classes is None:
        return {}
    if config.use == "semi" or (config.use == "map" and config.labels):
        return {"test_error": (found.argmax(1) != test.classes).float().mean().item()}
    known = model.encode(tuned.images).probabilities
    assert known is not None
    figures = {}
    for name, standing in (
        ("cluster_error", best_examples(known, tuned.classes)),
        ("cluster_error_majority", majority(known.argmax(1), tuned.classes, known.shape[1])),
    ):
        figures[name] = (torch.tensor(standing)[found.argmax(1)] != test.classes).float().mean().item()
    return figures


def full_figures(model: AdversarialAutoencoder, collection: Collection, prior: Prior, config: AutoencodeConfig) -> dict[str, float]:
    """All figures, those that take a minute too; the same for the same weights."""
    figures = quick_figures(model, collection, config) | _map_figures(model, collection)
    with private_stream(0):
        # Means of a Gaussian encoder are nearer to each other than its codes, which are what the critic sees.
        styles = model.encode(collection.test.images, drawn=True).style
        order = torch.randperm(len(styles))
        count = min(TESTED, len(styles))
        test = mmd_test(styles[order[:count]], prior.sample(count))
        figures |= {"style_mmd": test.statistic, "style_mmd_p": test.p_value}
        if len(styles) >= 20:
            places = prior.sample(1000)
            figures["emptiest_place"] = float(emptiest_place(styles, prior.sample(len(styles)), places))
        if config.use == "basic":
            samples = model.decode(prior.sample(SAMPLES)).flatten(1)
            sigma = choose_sigma(collection.validation.shown(slice(0, 1000)).flatten(1), samples)
            found = parzen_log_likelihood(collection.test.shown().flatten(1), samples, sigma)
            figures |= {
                "log_likelihood": found.mean().item(),
                "log_likelihood_error": (found.std() / len(found) ** 0.5).item(),
                "sigma": sigma,
            }
    return figures


def pictures(model: AdversarialAutoencoder, collection: Collection, prior: Prior, config: AutoencodeConfig) -> None:
    """reconstructions.png, samples.png and percentiles.png or, with a categorical code, categories.png and members.png; of a map
    plane.png and map.png too."""
    with private_stream(0):
        for name, sheet in _sheets(model, collection, prior, config).items():
            save_grid(sheet[0] * 2 - 1, config.out / f"{name}.png", columns=sheet[1])
        maps = [picture for title, picture in _plots(model, collection, prior) if title.startswith("The map")]
        if maps:
            save_picture(config.out / "map.png", _side_by_side(maps))


def _sheets(
    model: AdversarialAutoencoder, collection: Collection, prior: Prior, config: AutoencodeConfig
) -> dict[str, tuple[Tensor, int]]:
    """Pictures in [0, 1] and how many lie in a row, by name."""
    shown = collection.test.shown(slice(0, 16))
    code = model.encode(shown)
    kinds = model.decoder.categories
    category = code.probabilities
    if config.use == "supervised" and collection.test.classes is not None:
        category = F.one_hot(collection.test.classes[:16], kinds).float()
    sheets = {"reconstructions": (torch.cat([shown, model.decode(code.style, category)]), 16)}
    if not kinds:
        sheets["samples"] = model.decode(prior.sample(100)), 10
        if prior.name in ("gaussian", "uniform") and model.decoder.style > 1:
            sheets["percentiles"] = model.decode(_along_percentiles(prior.sample(SAMPLES))), GRID
        return sheets
    if model.decoder.heads is not None and model.decoder.style > 1:
        sheets["plane"] = model.decoder.from_place(_along_percentiles(_places(model, collection.test.images[:DRAWN]))), GRID
    styles = prior.sample(10).repeat_interleave(kinds, 0)
    sheets["categories"] = model.decode(styles, torch.eye(kinds).repeat(10, 1)), kinds
    if code.logits is not None:
        sheets["members"] = _members(model, collection.test, kinds), 11
    return sheets


def _along_percentiles(codes: Tensor) -> Tensor:
    """Codes `[GRID², D]` whose first two numbers go through percentiles 5 to 95 of those of `codes` `[N, D]`, the first to the
    right and the second up; the others are the median."""
    shares = torch.linspace(0.05, 0.95, GRID)
    across, up = codes[:, 0].quantile(shares), codes[:, 1].quantile(shares).flip(0)
    rest = codes[:, 2:].median(0).values.expand(GRID * GRID, -1)
    return torch.cat([across.repeat(GRID)[:, None], up.repeat_interleave(GRID)[:, None], rest], 1)


def _members(model: AdversarialAutoencoder, part: Part, kinds: int) -> Tensor:
    """A row for each category: what its head shows with a style of zero, then the ten test pictures that are in it most surely."""
    probabilities = model.encode(part.images).probabilities
    assert probabilities is not None
    heads = model.decode(torch.zeros(kinds, model.decoder.style), torch.eye(kinds))
    members = probabilities.topk(min(10, len(probabilities)), 0).indices.T
    rows = [torch.cat([heads[k : k + 1], part.shown(members[k])]) for k in range(kinds)]
    return torch.cat(rows)


def nearest(samples: Tensor, part: Part) -> Tensor:
    """The pictures of `part` nearest to samples `[N, C, S, S]`, by Euclidean distance, in the samples' order."""
    every = part.shown().flatten(1)
    return part.shown(torch.cat([torch.cdist(one, every).argmin(1) for one in samples.flatten(1).split(50)]))


def _plots(model: AdversarialAutoencoder, collection: Collection, prior: Prior) -> list[tuple[str, Image]]:
    """The first two numbers of codes coloured by class, beside the prior's."""
    part = collection.test
    style = model.encode(part.images[:DRAWN], drawn=True).style
    if style.shape[1] < 2:
        return []
    classes = None if part.classes is None else part.classes[:DRAWN].tolist()
    drawn = [("Codes of test pictures", scatter_picture(style[:, :2].tolist(), classes))]
    if model.decoder.heads is not None:
        place = _places(model, part.images[:DRAWN])
        for first, second in itertools.combinations(range(min(3, place.shape[1])), 2):
            title = "The map: places of test pictures" + (f", axes {first + 1} and {second + 1}" if place.shape[1] > 2 else "")
            drawn.append((title, scatter_picture(place[:, [first, second]].tolist(), classes)))
    return [*drawn, ("The prior", scatter_picture(prior.sample(DRAWN)[:, :2].tolist()))]


def _side_by_side(pictures: list[Image]) -> Image:
    """Pictures of one size in a row."""
    width, height = pictures[0].size
    row = new_picture("RGB", (width * len(pictures), height), "white")
    for number, picture in enumerate(pictures):
        row.paste(picture, (width * number, 0))
    return row


def report(model: AdversarialAutoencoder, collection: Collection, prior: Prior, config: AutoencodeConfig) -> dict[str, float]:
    """Write figures.json and report.html, print the figures; returns them."""
    figures = full_figures(model, collection, prior, config)
    write_json(config.out / "figures.json", figures)
    with private_stream(0):
        sheets = _sheets(model, collection, prior, config)
        sections: list[Section] = [Metrics("Figures", figures, text="On pictures that the networks have not learned from.")]
        for name, (images, columns) in sheets.items():
            title = name.capitalize()
            sections.append(Pictures(title, [(title, images * 2 - 1)], columns=columns, width=640))
        if "samples" in sheets:
            samples = sheets["samples"][0][:10]
            pairs = torch.cat([samples, nearest(samples, collection.training)]) * 2 - 1
            text = "Ten samples, and beneath each the nearest picture that was learned from."
            sections.append(Pictures("Nearest pictures", [("Samples and neighbours", pairs)], text=text, columns=10, width=640))
        sections.append(Pictures("Codes", _plots(model, collection, prior), width=480))
    sections.append(Curves("Training", read_json_lines(config.out / "log.jsonl")))
    sections.append(Configuration("Configuration", plain(config)))
    page = write_report(config.out, f"Adversarial autoencoder: {config.use}", sections, subtitle=collection.summary())
    for name, value in figures.items():
        print(f"{name:24} {value:.4f}")
    print(f"figures.json and pictures are beside {printable(page)}")
    return figures
