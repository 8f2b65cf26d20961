# SPDX-License-Identifier: Apache-2.0
"""Files with points that were carried along pairs of pictures: those of this command, and those of other systems.

pairs.npz       names `[N]` of the pictures; first, second `[M]`: each pair's pictures by their place in `names`, from 0; points
                `[M, P, 2]`: the points of the first picture, (x, y) in pixels, 0 the centre of the first pixel; visible `[M, P]`.
NAME.npz        points `[M, P, 2]`: where another system finds them in the second picture, NaN where it finds nothing. Optional:
                first, second `[M]`, by place or by name, if the pairs are others or in another order; mirrored `[M]`: pairs in
                which the system took one picture of both for a mirror image.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from gangealing_fast.applications.config import EvaluateConfig
from gangealing_fast.applications.transfers import Method
from gangealing_fast.data.keypoints import KeypointSet, Pairs
from gangealing_fast.runtime.errors import UserError
from gangealing_fast.storage.claims import plain
from gangealing_fast.storage.files import read_bytes, write_bytes, write_error

KEPT = ("transfers-*.npz", "cycles-*.npz")
SHOWN_ALONE = {"out", "pictures", "threads", "alpha", "of", "bootstrap", "confidence", "results"}
"""Options that change no carried point."""


@dataclass(frozen=True)
class Carried:
    """points `[M, P, 2]` float64 in the second pictures, NaN if nothing was found; mirrored `[M]` bool, or None."""

    name: str
    label: str
    points: Tensor
    mirrored: Tensor | None


def fingerprint(config: EvaluateConfig, data: KeypointSet, pairs: Pairs) -> str:
    """What the carried points depend on: options, key points, pairs, and the files of the checkpoint and the features."""
    about: dict[str, Any] = {key: value for key, value in plain(config).items() if key not in SHOWN_ALONE}
    about["names"], about["files"] = list(data.names), [_stamp(config.checkpoint), _stamp(Path(config.features))]
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode("utf-8", "surrogateescape"))
    for tensor in (data.points, data.sizes, pairs.pairs):
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _stamp(path: Path | None) -> list[tuple[str, int, int]]:
    if path is None or not path.exists():
        return []
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.is_file()]


def write_pairs(file: Path, data: KeypointSet, pairs: Pairs) -> None:
    """pairs.npz."""
    first, second = pairs.pairs.unbind(1)
    visible = data.visible[first] & data.visible[second]
    names = numpy.array([name.encode("utf-8", "backslashreplace").decode() for name in data.names])
    arrays = {"names": names, "first": first.numpy(), "second": second.numpy(), "points": data.points[first].numpy()}
    _write(file, arrays | {"visible": (visible if pairs.points is None else visible & pairs.points).numpy()})


def keep(file: Path, carried: Carried, mark: str) -> None:
    """Write what a method carried."""
    arrays = {"points": carried.points.numpy(), "mark": numpy.array(mark)}
    _write(file, arrays if carried.mirrored is None else arrays | {"mirrored": carried.mirrored.numpy()})


def kept(file: Path, mark: str, method: Method) -> Carried | None:
    """What was carried before; None if there is none of the same run."""
    if not file.exists():
        return None
    arrays = _read(file)
    if str(arrays.get("mark")) != mark or "points" not in arrays:
        return None
    mirrored = torch.from_numpy(arrays["mirrored"]) if "mirrored" in arrays else None
    return Carried(method.name, method.label, torch.from_numpy(arrays["points"]), mirrored)


def move_kept(folder: Path, place: Path) -> None:
    """Move what was kept in `folder` to `place`, and remove `folder`."""
    try:
        for file in sorted(folder.iterdir()):
            file.replace(place / file.name)
        folder.rmdir()
    except OSError as error:
        raise write_error(folder, error) from error


def remove_kept(folder: Path, mark: str) -> None:
    """Remove what earlier runs carried, but for what bears `mark`."""
    for pattern in KEPT:
        for file in folder.glob(pattern):
            try:
                same = str(_read(file).get("mark")) == mark
            except UserError:
                same = False
            if not same:
                try:
                    file.unlink()
                except OSError as error:
                    raise write_error(file, error) from error


def read_results(file: Path, data: KeypointSet, pairs: Pairs) -> Carried:
    """What another system carried along `pairs`. Raises UserError for a file that is not as above or lacks a pair."""
    arrays = _read(file)
    if "points" not in arrays:
        raise UserError(f"{file} has no array named points; write it as docs/evaluation.md says")
    points = torch.from_numpy(numpy.asarray(arrays["points"], dtype=numpy.float64))
    wanted = (points.shape[0] if points.ndim else 0, data.points.shape[1], 2)
    if tuple(points.shape) != wanted:
        raise UserError(f"{file} has points {list(points.shape)}, but [pairs, {wanted[1]}, 2] are needed")
    mirrored = torch.from_numpy(numpy.asarray(arrays["mirrored"]).astype(bool)) if "mirrored" in arrays else None
    if mirrored is not None and mirrored.shape != points.shape[:1]:
        raise UserError(f"{file} has {list(mirrored.shape)} mirrored for {len(points)} pairs; one for each pair is needed")
    if "first" in arrays and "second" in arrays:
        rows = _rows(file, arrays, data, pairs, len(points))
        points, mirrored = points[rows], None if mirrored is None else mirrored[rows]
    elif len(points) != len(pairs.pairs):
        raise UserError(
            f"{file} has points of {len(points)} pairs, but there are {len(pairs.pairs)} in pairs.npz; "
            "carry these, in their order, or add the arrays first and second"
        )
    return Carried(file.stem, file.stem, points, mirrored)


def _rows(file: Path, arrays: Mapping[str, numpy.ndarray], data: KeypointSet, pairs: Pairs, count: int) -> Tensor:
    """`[M]`: the row of the file that belongs to each pair."""
    place = {name: row for row, name in enumerate(data.names)}
    sides = []
    for key in ("first", "second"):
        values = numpy.asarray(arrays[key])
        if values.shape != (count,):
            raise UserError(f"{file} has {list(values.shape)} {key} for {count} pairs; one for each pair is needed")
        sides.append([place.get(str(v), -1) if values.dtype.kind in "US" else int(v) for v in values])
    row_of = {pair: row for row, pair in enumerate(zip(*sides, strict=True))}
    wanted = [(first, second) for first, second in pairs.pairs.tolist()]
    missing = [pair for pair in wanted if pair not in row_of]
    if missing:
        first, second = (data.names[k] for k in missing[0])
        raise UserError(
            f"{file} lacks {len(missing)} of the {len(wanted)} pairs, the first of {first} to {second}; "
            "give NaN where nothing is found"
        )
    return torch.tensor([row_of[pair] for pair in wanted])


def _read(file: Path) -> dict[str, numpy.ndarray]:
    try:
        with numpy.load(io.BytesIO(read_bytes(file)), allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except UserError:
        raise
    except Exception as error:  # a damaged archive ends in errors of many kinds
        raise UserError(f"{file} is no .npz file that can be read ({error}); write it with numpy.savez") from None


def _write(file: Path, arrays: Mapping[str, numpy.ndarray]) -> None:
    content = io.BytesIO()
    numpy.savez(content, **dict(arrays))  # type: ignore[arg-type]
    write_bytes(file, content.getvalue())
