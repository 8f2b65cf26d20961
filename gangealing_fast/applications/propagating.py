# SPDX-License-Identifier: Apache-2.0
"""What `python -m gangealing_fast.propagate` does: read an edit of the template, lay it over pictures or over a video."""

from __future__ import annotations

import io
import itertools
import math
from pathlib import Path

import numpy
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from gangealing_fast.applications.aligner import Aligner, Look
from gangealing_fast.applications.blending import lay_over
from gangealing_fast.applications.choosing import aligner_of, centre
from gangealing_fast.applications.config import PropagateConfig
from gangealing_fast.applications.filming import WRITES as WRITES_OF_VIDEOS
from gangealing_fast.applications.filming import film, refuse_for_pictures
from gangealing_fast.applications.frames import Drawing, draw
from gangealing_fast.applications.naming import result_name
from gangealing_fast.applications.refining import refined_by, spacing, spread
from gangealing_fast.data.decoding import formats, is_transparent
from gangealing_fast.data.pictures import PictureStream, to_float, to_uint8
from gangealing_fast.data.video import Video, is_video
from gangealing_fast.runtime.errors import UserError
from gangealing_fast.runtime.setup import set_threads
from gangealing_fast.runtime.text import printable
from gangealing_fast.storage.claims import results_folder
from gangealing_fast.storage.files import JsonLines, read_bytes, save_picture

NO_EDIT = "none"
COMMAND = "propagate"
WRITES = r"[0-9]{6,}-.*\.png|edits\.jsonl|" + WRITES_OF_VIDEOS
BAND = 1 << 22
"""Pixels of a picture that are edited at a time."""
SEEN = 1 << 26
"""Pixels of a picture that the network is shown at most."""


def read_edit(path: Path) -> Tensor:
    """A square picture with transparency as `[1, 4, R, R]` in [0, 1]: its colours times its opacity, and the opacity.

    Raises UserError for anything else, and for one that is transparent everywhere.
    """
    return edit_of(read_bytes(path), f"the edit {path}")


def edit_of(content: bytes, what: str) -> Tensor:
    """The same of an encoded picture, which errors call `what`."""
    try:
        with Image.open(io.BytesIO(content), formats=formats()) as picture:
            picture.load()
            opaque = not is_transparent(picture)
            values = numpy.array(picture.convert("RGBA"))
    except Exception as error:  # decoders raise whatever they like on damaged files
        reason = " ".join(str(error).split())
        raise UserError(f"{what} is no picture that can be read ({reason}); save it as PNG") from None
    if opaque:
        raise UserError(f"{what} has no transparency and would hide the pictures; save it as PNG with an alpha channel")
    if values.shape[0] != values.shape[1]:
        raise UserError(f"{what} is {values.shape[1]}x{values.shape[0]}, but a template is square; draw on template.png")
    edit = torch.from_numpy(values).permute(2, 0, 1)[None].float() / 255
    if not edit[:, 3].any():
        raise UserError(f"{what} is transparent everywhere; draw something on it")
    # Colours of transparent pixels mean nothing and must not bleed into the edit's rim when both are interpolated.
    return torch.cat([edit[:, :3] * edit[:, 3:], edit[:, 3:]], 1)


def _edits(config: PropagateConfig, clusters: int) -> dict[int, Tensor | None]:
    """The edit of every cluster that a picture may be of."""
    wanted = range(clusters) if config.cluster is None else [config.cluster]
    if len(config.edit) != len(wanted):
        raise UserError(f'--edit takes a picture, or "{NO_EDIT}", for each of the {len(wanted)} templates, got {len(config.edit)}')
    edits = [None if name == NO_EDIT else read_edit(Path(name)) * config.opacity for name in config.edit]
    return dict(zip(wanted, edits, strict=True))


def _aligner(config: PropagateConfig) -> Aligner:
    """The aligner that the options name; with --refine, refined on the pictures or frames."""
    aligner = aligner_of(config.checkpoint, config)
    if not config.refine:
        return aligner
    if is_video(config.data):
        with Video(config.data, limit=config.limit) as video:
            frames = itertools.islice(video.read(), 0, None, spacing(config, video.frames or 0))
            return refined_by(aligner, config, (frame.picture[0] for frame in frames))
    pictures = PictureStream(config.data, size=None, limit=config.limit)
    shown = spread(config, pictures)
    return refined_by(aligner, config, shown if config.crop == "none" else (centre(picture[None])[0] for picture in shown))


def run(config: PropagateConfig) -> None:
    """Edit all pictures. Raises UserError for a user's mistakes; finished pictures stay."""
    set_threads(config.threads)
    aligner = _aligner(config)
    edits = _edits(config, aligner.clusters)
    read = [("--edit", Path(name)) for name in config.edit if name != NO_EDIT]
    if is_video(config.data):
        with results_folder(config.out, COMMAND, config, WRITES, pictures={"--data": config.data}, inputs=read) as folder:
            film(config, aligner, edits, folder)
        return
    refuse_for_pictures(config)
    pictures = PictureStream(config.data, size=None, limit=config.limit)
    with results_folder(config.out, COMMAND, config, WRITES, pictures={"--data": config.data}, inputs=read) as folder:
        done = _propagate(config, aligner, edits, pictures, folder)
    if pictures.summary():
        print(pictures.summary())
    where = printable(config.out)
    print(f"edited {done} of {len(pictures)} pictures; they and edits.jsonl (cluster, share that is covered) are in {where}")


def _propagate(
    config: PropagateConfig, aligner: Aligner, edits: dict[int, Tensor | None], pictures: PictureStream, folder: Path
) -> int:
    """Edit picture after picture; returns how many."""
    done = 0
    with JsonLines(folder / "edits.jsonl") as lines, tqdm(total=len(pictures), unit="picture", desc="propagate") as progress:
        for (name,), batch in pictures:
            batch = batch if config.crop == "none" else centre(batch)
            line: dict[str, object] = {"picture": name, "file": result_name(done, name)}
            if min(batch.shape[2:]) < 2:
                line |= {"file": None, "why": "a side of one pixel"}
            else:
                look = look_at(aligner, batch)
                edit = edits[int(look.cluster)]
                if config.blend == "alpha":
                    edited, covered = edit_picture(aligner, batch, edit, look)
                else:  # a pyramid is made of the whole picture
                    edited, covered = draw(aligner, batch, edit, look, Drawing(blend=config.blend))
                save_picture(folder / str(line["file"]), edited)
                line |= {"cluster": int(look.cluster), "mirrored": bool(look.mirrored), "covered": covered}
                if look.spread is not None:
                    line["spread"] = look.spread.item()
                done += 1
            lines.append(line)
            progress.update()
    return done


def look_at(aligner: Aligner, batch: Tensor) -> Look:
    """The aligner's look at one picture `[1, 3, H, W]`, uint8, without its pixels. One beyond `SEEN` is made smaller for it."""
    height, width = batch.shape[2:]
    if height * width <= SEEN:
        return aligner.look(to_float(batch)).without_pictures()
    ratio = math.sqrt(SEEN / (height * width))
    smaller = (max(2, int(height * ratio)), max(2, int(width * ratio)))
    look = aligner.look(to_float(F.interpolate(batch, smaller, mode="bilinear", antialias=True))).without_pictures()
    x, y = look.square.scale
    return look._replace(square=look.square._replace(scale=(x * smaller[1] / width, y * smaller[0] / height)))


def edit_picture(aligner: Aligner, batch: Tensor, edit: Tensor | None, look: Look) -> tuple[Tensor, float]:
    """One picture `[1, 3, H, W]`, uint8, under `edit` as uint8 `[3, H, W]`, and the share of it that is covered.

    look: the aligner's of the picture. A large picture is edited a few rows at a time.
    """
    _, _, height, width = batch.shape
    if edit is None:
        return batch[0], 0.0
    edited, covered = torch.empty_like(batch[0]), 0.0
    rows = max(1, BAND // width)
    for top in range(0, height, rows):
        band = slice(top, min(height, top + rows))
        drawn, _ = aligner.maps_from_template(batch, edit, look=look, rows=band)
        edited[:, band] = to_uint8(lay_over(to_float(batch[:, :, band]), drawn).clamp(-1, 1))[0]
        share = (band.stop - band.start) / height
        covered += drawn[:, 3].mean().item() * share
    return edited, covered
