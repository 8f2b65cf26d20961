# SPDX-License-Identifier: Apache-2.0
"""A set on disk: `set.safetensors`, read without running code.

Tensors   matrix `[N, 3, 3]` float64, flow `[N, F, F, 2]` float16, mirrored, outlier `[N]` bool, cluster `[N]` int64, confidence
          `[N]` float32, template `[K, 3, side, side]` float16 as in `records`; size `[N, 2]` int64, (width, height) of the pictures
          in pixels; and, under `state.`, what new pictures are registered to.
Settings  kind "set", version, method, source (where the pictures were), names and fingerprints `[N]` of the pictures, settings of
          what new pictures are registered by.
The whole file has a checksum (`storage.exports`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gangealing_fast.congealing.records import Congealed
from gangealing_fast.runtime.errors import UserError
from gangealing_fast.storage.exports import export_safetensors, load_safetensors

FILE = "set.safetensors"
KIND = "set"
VERSION = 3
METHODS = ("features", "entropy")
_STATE = "state."


@dataclass(frozen=True)
class SavedSet:
    """A congealed set with the names, sizes `[N, 2]` (width, height) and fingerprints of its pictures.

    method: what made it. state, settings: what new pictures are registered to, as its maker gives and takes it. source: where the
    pictures came from.
    """

    found: Congealed
    names: tuple[str, ...]
    sizes: Tensor
    fingerprints: tuple[str, ...]
    method: str
    state: Mapping[str, Tensor]
    source: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def side(self) -> int:
        """Of the template, in pixels."""
        return int(self.found.template.shape[-1])


def fingerprint(pixels: Tensor) -> str:
    """What tells a picture, uint8 `[3, H, W]`, from all others: a hash of its pixels."""
    made = hashlib.blake2b(repr(tuple(pixels.shape)).encode(), digest_size=16)
    made.update(pixels.contiguous().numpy().data)
    return made.hexdigest()


def save_set(path: Path, saved: SavedSet) -> None:
    """Write a set; equal ones give equal bytes. Raises UserError if the file cannot be written."""
    found = saved.found
    tensors = {
        "matrix": found.matrix.double(),
        "flow": found.flow.half(),
        "mirrored": found.mirrored.bool(),
        "outlier": found.outlier.bool(),
        "cluster": found.cluster.long(),
        "confidence": found.confidence.float(),
        "template": found.template.half(),
        "size": saved.sizes.long(),
    }
    about = {
        "kind": KIND,
        "version": VERSION,
        "method": saved.method,
        "source": saved.source,
        "names": list(saved.names),
        "fingerprints": list(saved.fingerprints),
        "settings": dict(saved.settings),
    }
    export_safetensors(path, tensors | {_STATE + name: tensor for name, tensor in saved.state.items()}, about)


def load_set(path: Path) -> SavedSet:
    """The set in a folder that `congeal` wrote, or in its `set.safetensors`.

    Raises UserError if it is missing, damaged, no set, or of another version.
    """
    path = path / FILE if path.is_dir() else path
    tensors, about = load_safetensors(path, dtype=None)
    if about.get("kind") != KIND:
        raise UserError(f"{path} holds no set; give a folder that python -m gangealing_fast.congeal wrote")
    if about.get("version") != VERSION:
        raise UserError(
            f"{path} is a set of version {about.get('version')!r:.20}, this package reads version {VERSION}; "
            "install the release that wrote it, or congeal again"
        )
    try:
        return _checked(tensors, about)
    except (ValueError, KeyError, TypeError) as error:
        reason = f"{error.args[0]} is missing" if isinstance(error, KeyError) else str(error)
        raise UserError(f"{path} is damaged ({reason[:120]}); congeal again, or restore it") from None


def is_set(path: Path) -> bool:
    """Whether a path is a folder with a set, or the file of one by its name."""
    return path.name == FILE or (path.is_dir() and (path / FILE).is_file())


def _checked(tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> SavedSet:
    """Raise ValueError, KeyError or TypeError if a set's content does not fit together."""
    names, fingerprints = _texts(about["names"], "names"), _texts(about["fingerprints"], "fingerprints")
    method, source, settings = about["method"], about["source"], about["settings"]
    if method not in METHODS or not isinstance(source, str) or not isinstance(settings, dict):
        raise ValueError("its method, source or settings are none")
    count, template, flow = len(names), tensors["template"], tensors["flow"]
    if len(fingerprints) != count or not count:
        raise ValueError(f"{count} names and {len(fingerprints)} fingerprints")
    if template.ndim != 4 or template.shape[1] != 3 or template.shape[2] != template.shape[3] or not template.numel():
        raise ValueError(f"its template is {list(template.shape)}")
    if flow.ndim != 4 or flow.shape[1] != flow.shape[2] or flow.shape[1] < 1:
        raise ValueError(f"its flow is {list(flow.shape)}")
    shapes: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
        "matrix": ((count, 3, 3), torch.float64),
        "flow": ((count, *flow.shape[1:3], 2), torch.float16),
        "mirrored": ((count,), torch.bool),
        "outlier": ((count,), torch.bool),
        "cluster": ((count,), torch.int64),
        "confidence": ((count,), torch.float32),
        "template": (tuple(template.shape), torch.float16),
        "size": ((count, 2), torch.int64),
    }
    for name, (shape, dtype) in shapes.items():
        tensor = tensors[name]
        if tuple(tensor.shape) != shape or tensor.dtype != dtype:
            raise ValueError(f"{name} is {tensor.dtype} {list(tensor.shape)}")
    cluster, sizes = tensors["cluster"], tensors["size"]
    if bool((cluster < 0).any() | (cluster >= len(template)).any()):
        raise ValueError("a picture belongs to a cluster that there is not")
    if bool((sizes < 1).any() | (sizes > 1 << 24).any()):
        raise ValueError("a picture's size is none")
    if bool((torch.linalg.det(tensors["matrix"]).abs() < 1e-18).any()):
        raise ValueError("a matrix is singular")
    found = Congealed(
        matrix=tensors["matrix"],
        flow=flow.float(),
        mirrored=tensors["mirrored"],
        cluster=cluster,
        confidence=tensors["confidence"],
        outlier=tensors["outlier"],
        template=template.float(),
    )
    state = {name[len(_STATE) :]: tensor for name, tensor in tensors.items() if name.startswith(_STATE)}
    return SavedSet(found, names, sizes, fingerprints, method, state, source, settings)


def _texts(value: object, what: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ValueError(f"its {what} are no list of texts")
    return tuple(value)
