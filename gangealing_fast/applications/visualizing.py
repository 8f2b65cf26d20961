# SPDX-License-Identifier: Apache-2.0
"""What `python -m gangealing_fast.visualize` does: films and sheets of what an aligner does with pictures, read once."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from gangealing_fast.applications.aligner import Aligner, Look
from gangealing_fast.applications.aligning import Averages
from gangealing_fast.applications.choosing import aligner_of
from gangealing_fast.applications.config import VisualizeConfig
from gangealing_fast.applications.movies import congealing_movie, write_movie
from gangealing_fast.applications.naming import result_name
from gangealing_fast.applications.refining import refined_by, spread
from gangealing_fast.data.pictures import PictureStream, to_float
from gangealing_fast.data.video import pyav
from gangealing_fast.geometry.warps import identity_grid
from gangealing_fast.models.layers import resize_to
from gangealing_fast.report.pictures import flow_pictures, save_grid
from gangealing_fast.runtime.errors import UserError
from gangealing_fast.runtime.setup import set_threads
from gangealing_fast.runtime.text import printable
from gangealing_fast.storage.claims import results_folder
from gangealing_fast.storage.files import save_picture

COMMAND = "visualize"
WRITES = r"movie\.(mp4|gif)|flow(-[0-9]{6,}-.*)?\.png|(template(-[0-9]+)?|average)\.png|cluster-[0-9]+\.png"
_COLUMNS = 16


class Shown:
    """What is kept of the pictures while they go by: the first few, the first few of each cluster, and sums of all."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.names: list[str] = []
        self.images: list[Tensor] = []
        self.grids: list[Tensor] = []
        self.clusters: dict[int, list[Tensor]] = {}
        self.averages = Averages()

    def add(self, names: list[str], images: Tensor, look: Look) -> None:
        """Pictures `[N, 3, S, S]` in [-1, 1] and the look at them."""
        self.averages.add(images, look)
        left = self.most - len(self.names)
        self.names += names[:left]
        self.images += list(images[:left])
        self.grids += list(look.alignment.grid[:left])
        side = look.alignment.image.shape[2]
        for index, cluster in enumerate(look.cluster.tolist()):
            pairs = self.clusters.setdefault(cluster, [])
            if len(pairs) < 2 * self.most:
                pairs += [resize_to(images[index : index + 1], side)[0], look.alignment.image[index]]


def run(config: VisualizeConfig) -> None:
    """Make what --show names. Raises UserError for a user's mistakes."""
    set_threads(config.threads)
    if "movie" in config.show and config.film == "mp4":
        pyav()
    if round(config.seconds * config.rate) < 2:
        raise UserError("--seconds and --rate make a movie of less than two frames; raise one of them")
    aligner = aligner_of(config.checkpoint, config)
    if config.refine:
        examples = PictureStream(config.data, size=config.size, pad=config.crop, limit=config.limit)
        aligner = refined_by(aligner, config, spread(config, examples))
    pictures = PictureStream(config.data, size=config.size, batch=config.batch, pad=config.crop, limit=_needed(config))
    with results_folder(config.out, COMMAND, config, WRITES, pictures={"--data": config.data}) as folder:
        shown = Shown(config.pictures)
        with tqdm(total=len(pictures), unit="picture", desc="visualize") as progress:
            for names, batch in pictures:
                images = to_float(batch)
                shown.add(names, images, aligner.look(images, output_resolution=config.resolution or None))
                progress.update(len(names))
        written = _write(config, aligner, shown, folder)
    if pictures.summary():
        print(pictures.summary())
    print(f"{', '.join(written)} are in {printable(config.out)}")


def _needed(config: VisualizeConfig) -> int | None:
    """Averages and clusters take all pictures, the rest the first few."""
    if {"average", "clusters"} & set(config.show):
        return config.limit
    return min(config.pictures, config.limit or config.pictures)


def _write(config: VisualizeConfig, aligner: Aligner, shown: Shown, folder: Path) -> list[str]:
    """Write what is asked for; the names of the files."""
    images = torch.stack(shown.images)
    side = shown.grids[0].shape[1]
    written = []
    if "average" in config.show:
        shown.averages.write(folder, side)
        written.append("average.png")
    if "clusters" in config.show:
        for cluster, pairs in sorted(shown.clusters.items()):
            written.append(f"cluster-{cluster}.png")
            save_grid(torch.stack(pairs), folder / written[-1], columns=min(_COLUMNS, len(pairs)))
    if "flow" in config.show:
        written.append("flow.png")
        _write_flows(shown, side, folder)
    if "movie" in config.show:
        written.append(f"movie.{config.film}")
        count = round(config.seconds * config.rate)
        sheets = congealing_movie(aligner, images, count, side)
        write_movie(folder / written[-1], iter(tqdm(sheets, total=count, unit="frame", desc="movie")), config.rate)
    return written


def _write_flows(shown: Shown, side: int, folder: Path) -> None:
    """flow.png, each picture as read and its flow beside it; and each flow by itself."""
    grids = torch.stack(shown.grids)
    flows = flow_pictures(grids - identity_grid(side, side, device=grids.device))
    for number, (name, flow) in enumerate(zip(shown.names, flows, strict=True)):
        save_picture(folder / f"flow-{result_name(number, name)}", flow)
    pairs = torch.stack([resize_to(torch.stack(shown.images), side), flows], 1).flatten(0, 1)
    save_grid(pairs, folder / "flow.png", columns=min(8, len(pairs)))
