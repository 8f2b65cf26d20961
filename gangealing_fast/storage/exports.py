# SPDX-License-Identifier: Apache-2.0
"""Weights to ship: tensors and a JSON configuration in one safetensors file, with a checksum of the whole file.

Equal content gives equal bytes. The file is written here, as the package safetensors puts the header's records in an order that
differs between runs. What is written, that package reads.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gangealing_fast.runtime.errors import UserError
from gangealing_fast.storage.files import read_bytes, write_bytes
from gangealing_fast.storage.settings import strict_json

PRODUCER = "gangealing_fast"
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_UNSET = "0" * 64
_CHECKSUM = re.compile(rb'"checksum":"([0-9a-f]{64})"')
_EARLIER = {"format", "producer", "config"}
"""What earlier versions wrote beside the tensors, without a checksum."""


def export_safetensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], config: Mapping[str, Any], *, half: bool = False
) -> None:
    """Write tensors and a configuration; equal ones give equal bytes.

    Args:
        path: the file, named `*.safetensors`.
        tensors: a state dict; stored on the CPU, contiguous.
        config: JSON values only (what is needed to build the model, data, steps, score).
        half: store floating tensors in float16 (values beyond its range raise ValueError).

    Raises:
        UserError: the file cannot be written, or a tensor holds values that are not finite.
    """
    stored: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu()
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise UserError(f"{path} was not written, as {name} holds values that are not finite: the training has diverged")
        if half and tensor.is_floating_point():
            narrow = tensor.half()
            if not torch.isfinite(narrow).all():
                raise ValueError(f"tensor {name} does not fit into half precision (largest value {tensor.abs().max():.3g})")
            tensor = narrow
        stored[name] = tensor.contiguous()
    write_bytes(path, _serialise(stored, json.dumps(dict(config), sort_keys=True, allow_nan=False)))


def _serialise(tensors: Mapping[str, Tensor], config: str) -> bytes:
    """The bytes of a file: the header's length, the header, the tensors' numbers; wide dtypes first, as they are aligned then."""
    if sys.byteorder != "little":
        raise UserError("safetensors files are written on machines with little-endian numbers only")
    header: dict[str, Any] = {
        "__metadata__": {"format": "pt", "producer": PRODUCER, "config": config, "checksum": _UNSET},
    }
    parts, at = [], 0
    for name, tensor in sorted(tensors.items(), key=lambda item: (-item[1].itemsize, item[0])):
        content = tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
        header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [at, at + len(content)]}
        parts.append(content)
        at += len(content)
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    start = len(text).to_bytes(8, "little") + text
    digest = hashlib.sha256(start)
    for content in parts:
        digest.update(content)
    return b"".join([start.replace(f'"checksum":"{_UNSET}"'.encode(), f'"checksum":"{digest.hexdigest()}"'.encode(), 1), *parts])


def load_safetensors(
    path: str | os.PathLike[str], *, dtype: torch.dtype | None = torch.float32
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and configuration that `export_safetensors` wrote.

    A file with a checksum is compared with it. Files of other projects and of earlier versions have none.

    Args:
        path: the file.
        dtype: floating tensors are converted to it; None keeps them as stored.

    Returns:
        `(tensors, config)`; `config` is {} where a foreign file has none.

    Raises:
        UserError: missing, truncated, damaged, not a safetensors file, or with values that are not finite.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load as deserialise

    content = read_bytes(path)
    try:
        length = int.from_bytes(content[:8], "little")
        tensors = deserialise(content)
        metadata = strict_json(content[8 : 8 + length]).get("__metadata__", {})
        _check_sum(content, length, metadata)
        config = strict_json(metadata.get("config", "{}"))
        if not isinstance(config, dict):
            raise ValueError("its configuration is no record")
    except _Damaged:
        raise UserError(f"{path} is damaged: its checksum is another one; get it from its source again") from None
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is truncated or not a safetensors file; restore it or install the package again") from error
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise UserError(f"{path} holds values that are not finite ({name}); get it from its source again, or train anew")
    if dtype is not None:
        tensors = {name: t.to(dtype) if t.is_floating_point() else t for name, t in tensors.items()}
    return tensors, config


class _Damaged(Exception):
    """The content of a file is not what its checksum was made of."""


def _check_sum(content: bytes, length: int, metadata: Mapping[str, str]) -> None:
    """Raise _Damaged if a file of this package has another content than its checksum says.

    A damaged name must not turn the comparison off: a file with two of our names has to have all of them.
    """
    own = metadata.keys() & {*_EARLIER, "checksum"} - {"format"}
    if len(own) < 2 or metadata.keys() == _EARLIER:
        return
    found = _CHECKSUM.search(content, 8, 8 + length)
    if found is None or metadata.keys() != {*_EARLIER, "checksum"}:
        raise _Damaged
    at, end = found.span(1)
    digest = hashlib.sha256(content[:at])
    digest.update(_UNSET.encode())
    digest.update(memoryview(content)[end:])
    if digest.hexdigest() != found[1].decode():
        raise _Damaged
