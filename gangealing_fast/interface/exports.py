# SPDX-License-Identifier: Apache-2.0
"""What a browser takes home: its pictures edited and aligned, the edit, the template and how each picture lies, in one zip."""

from __future__ import annotations

import json
import secrets
import zipfile
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from gangealing_fast.applications.naming import result_name
from gangealing_fast.interface.pictures import Picture
from gangealing_fast.interface.sessions import Desk
from gangealing_fast.runtime.errors import UserError
from gangealing_fast.storage.files import atomic_write, picture_bytes

PARTS = ("edited pictures", "aligned pictures", "template and edit", "list of scores")
NAME = "studio.zip"
LEAST, MOST = 0, 4096


def export(
    desk: Desk,
    pictures: Sequence[Picture],
    parts: Collection[str],
    *,
    side: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """Write a zip to the desk's folder and offer it for download.

    side: of aligned pictures; edited ones keep their own size, made larger if their longer side is below it. Raises UserError if
    nothing is wanted, there is nothing to write, or a picture can no longer be read.
    """
    chosen = [part for part in PARTS if part in parts]
    if not chosen:
        raise UserError("nothing is chosen; tick what the zip is to hold")
    if not pictures:
        raise UserError("there are no pictures; add some first")
    if not 32 <= side <= MOST:
        raise UserError(f"aligned pictures have sides from 32 to {MOST} pixels")
    path = desk.folder / f"{secrets.token_hex(8)}.zip"
    with atomic_write(path) as file, zipfile.ZipFile(file, "w") as archive:
        for number, picture in enumerate(pictures):
            if desk.gone:
                raise UserError("this page was closed")
            _write(archive, desk, number, picture, chosen, side)
            progress(number + 1, len(pictures))
        if "template and edit" in chosen:
            _write_templates(archive, desk)
        if "list of scores" in chosen:
            lines = [json.dumps(_line(desk, number, picture)) for number, picture in enumerate(pictures)]
            archive.writestr("scores.jsonl", "\n".join(lines) + "\n")
        film = desk.made.get("edited.mp4")
        if film is not None and "edited pictures" in chosen:
            archive.write(film, "edited.mp4")
    desk.keep(NAME, path)
    return path


def _write(archive: zipfile.ZipFile, desk: Desk, number: int, picture: Picture, chosen: Sequence[str], side: int) -> None:
    name = result_name(number, picture.name)
    if "edited pictures" in chosen:
        whole = desk.bench.edited_whole(picture, desk.edits, desk.opacity, desk.blend, side)
        archive.writestr(f"edited/{name}", picture_bytes(whole))
    if "aligned pictures" in chosen:
        aligned = desk.bench.aligned(picture, side, pixels=picture.original())
        archive.writestr(f"aligned/{name}", picture_bytes(aligned))


def _write_templates(archive: zipfile.ZipFile, desk: Desk) -> None:
    templates = desk.templates()
    for k, template in templates.items():
        tail = "" if len(templates) == 1 else f"-{k}"
        archive.writestr(f"template{tail}.png", picture_bytes(template))
        if k in desk.edits:
            archive.write(desk.edit_file(k), f"edit{tail}.png")


def _line(desk: Desk, number: int, picture: Picture) -> dict[str, object]:
    standing = desk.standing(picture)
    known = {"flow_score": standing.score, "likeness": standing.likeness, "confidence": standing.confidence}
    line: dict[str, object] = {"picture": picture.name, "file": result_name(number, picture.name)}
    line |= {name: value for name, value in known.items() if value is not None}
    return line | {"cluster": desk.bench.cluster(picture)}
