# SPDX-License-Identifier: Apache-2.0
"""What `python -m gangealing_fast.propagate` does: read an edit of the template, lay it over picture after picture."""

from __future__ import annotations

import io
from pathlib import Path, PurePath

import numpy
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from gangealing_fast.applications.choosing import aligner_of, centre
from gangealing_fast.applications.config import PropagateConfig
from gangealing_fast.data.decoding import is_transparent
from gangealing_fast.data.pictures import PictureStream, skipped_summary, to_float
from gangealing_fast.runtime.errors import UserError
from gangealing_fast.runtime.setup import set_threads
from gangealing_fast.storage.files import JsonLines, make_folder, read_bytes, save_picture

NO_EDIT = "none"


def read_edit(path: Path) -> Tensor:
    """A square picture with transparency as `[1, 4, R, R]` in [0, 1]: its colours times its opacity, and the opacity.

    Raises UserError for anything else, and for one that is transparent everywhere.
    """
    try:
        with Image.open(io.BytesIO(read_bytes(path))) as picture:
            picture.load()
            opaque = not is_transparent(picture)
            values = numpy.array(picture.convert("RGBA"))
    except UserError:
        raise
    except Exception as error:  # decoders raise whatever they like on damaged files
        reason = " ".join(str(error).split())
        raise UserError(f"the edit {path} is no picture that can be read ({reason}); save it as PNG") from None
    if opaque:
        raise UserError(f"the edit {path} has no transparency and would hide the pictures; save it as PNG with an alpha channel")
    if values.shape[0] != values.shape[1]:
        raise UserError(f"the edit {path} is {values.shape[1]}x{values.shape[0]}, but a template is square; draw on template.png")
    edit = torch.from_numpy(values).permute(2, 0, 1)[None].float() / 255
    if not edit[:, 3].any():
        raise UserError(f"the edit {path} is transparent everywhere; draw something on it")
    # Colours of transparent pixels mean nothing and must not bleed into the edit's rim when both are interpolated.
    return torch.cat([edit[:, :3] * edit[:, 3:], edit[:, 3:]], 1)


def lay_over(images: Tensor, edit: Tensor) -> Tensor:
    """Pictures `[N, 3, H, W]` in [-1, 1] under `edit` `[N, 4, H, W]`, as `read_edit` returns it."""
    return images * (1 - edit[:, 3:]) + 2 * edit[:, :3] - edit[:, 3:]


def _edits(config: PropagateConfig, clusters: int) -> dict[int, Tensor | None]:
    """The edit of every cluster that a picture may be of."""
    wanted = range(clusters) if config.cluster is None else [config.cluster]
    if len(config.edit) != len(wanted):
        raise UserError(f'--edit takes a picture, or "{NO_EDIT}", for each of the {len(wanted)} templates, got {len(config.edit)}')
    edits = [None if name == NO_EDIT else read_edit(Path(name)) * config.opacity for name in config.edit]
    return dict(zip(wanted, edits, strict=True))


def run(config: PropagateConfig) -> None:
    """Edit all pictures. Raises UserError for a user's mistakes; finished pictures stay."""
    set_threads(config.threads)
    if not 0 <= config.opacity <= 1:
        raise UserError(f"--opacity must be in [0, 1], got {config.opacity}")
    aligner = aligner_of(config.checkpoint, config)
    edits = _edits(config, aligner.transformer.heads)
    pictures = PictureStream(config.data, size=None, limit=config.limit)
    folder = make_folder(config.out)
    done = 0
    with JsonLines(folder / "edits.jsonl") as lines, tqdm(total=len(pictures), unit="picture", desc="propagate") as progress:
        for (name,), batch in pictures:
            images = to_float(batch if config.crop == "none" else centre(batch))
            line: dict[str, object] = {"picture": name, "file": f"{done:06d}-{PurePath(name).stem}.png"}
            if min(images.shape[2:]) < 2:
                line |= {"file": None, "why": "a side of one pixel"}
            else:
                look = aligner.look(images)
                cluster = int(look.cluster)
                edit, covered = edits[cluster], 0.0
                if edit is not None:
                    drawn, _ = aligner.maps_from_template(images, edit, look=look)
                    images, covered = lay_over(images, drawn), drawn[:, 3].mean().item()
                save_picture(folder / str(line["file"]), images[0].clamp(-1, 1))
                line |= {"cluster": cluster, "mirrored": bool(look.mirrored), "covered": covered}
                done += 1
            lines.append(line)
            progress.update()
    if pictures.skipped:
        print(skipped_summary(pictures.skipped))
    print(f"edited {done} of {len(pictures)} pictures; they and edits.jsonl (cluster, share that is covered) are in {folder}")
