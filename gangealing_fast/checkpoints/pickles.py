# SPDX-License-Identifier: Apache-2.0
"""Pickled checkpoints as plain data.

A pickle is a program. Only the names listed here are ever looked up, and each stands for code of this module or of torch that
builds tensors and containers; any other name ends the reading with a sentence that says it.
"""

from __future__ import annotations

import argparse
import collections
import io
import pickle
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gangealing_fast.runtime.errors import UserError
from gangealing_fast.storage.files import read_bytes

TENSORFLOW = "dnnlib.tflib"
_GLOBAL = re.compile(r"GLOBAL ([\w.]+)|Can only \w+ for ([\w.]+)|Unsupported class ([\w.]+)")


class Persistent:
    """What a network of StyleGAN2-ADA leaves in a pickle: its class name and its attributes. The source inside is ignored."""

    def __init__(self, meta: dict[str, Any]) -> None:
        self.class_name = str(meta["class_name"])
        self.state = dict(meta["state"])

    def tensors(self, prefix: str = "") -> dict[str, Tensor]:
        """Parameters and buffers of the network and of those inside it, by dotted name."""
        found: dict[str, Tensor] = {}
        for group in ("_parameters", "_buffers"):
            for name, value in self.state.get(group, {}).items():
                if isinstance(value, Tensor):
                    found[prefix + name] = value
        for name, module in self.state.get("_modules", {}).items():
            if isinstance(module, Persistent):
                found |= module.tensors(f"{prefix}{name}.")
        return found


class _Container(dict):
    """Stands for dictionaries with attribute access."""


def _storage(content: bytes) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def _parameter(data: Tensor, requires_grad: bool, hooks: Any) -> Tensor:
    return data.detach()


def _tensor(storage: Any, offset: int, size: tuple, stride: tuple, requires_grad: bool, hooks: Any, *_: Any) -> Tensor:
    # torch enlarges a storage that is too small: damaged sizes must not allocate what the file does not hold.
    if min((offset, *size, *stride), default=0) < 0 or len(size) != len(stride):
        raise ValueError("a tensor has negative sizes")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if 0 not in size and (last >= storage._untyped_storage.nbytes() // storage.dtype.itemsize or 0 in stride):
        raise ValueError("a tensor reaches beyond its storage")
    return torch._utils._rebuild_tensor(storage, offset, size, stride)


_ALLOWED = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): Persistent,
    ("dnnlib.util", "EasyDict"): _Container,
    ("torch.storage", "_load_from_bytes"): _storage,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
}


class _Forbidden(Exception):
    """The name that a pickle wanted to look up."""


class _Unpickler(pickle._Unpickler):
    """The machine in Python: the one in C lets a damaged file ask for a table of many gigabytes."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise _Forbidden(f"{module}.{name}") from None

    def persistent_load(self, reference: Any) -> Any:
        raise _Forbidden("a reference to another file")


def refused(path: Path, name: str) -> UserError:
    """The sentence for a pickle that names something that is not plain data."""
    if name.startswith(TENSORFLOW):
        return UserError(f"{path} is a network of TensorFlow ({name}): convert it with StyleGAN2-ADA's own legacy.py first")
    return UserError(
        f"{path} was not read, because it holds {name}, which would have to run code to load: only tensors and "
        "plain containers are accepted; get the file from its source again, or export its weights alone"
    )


def damaged(path: Path) -> UserError:
    """The sentence for a file that ends early or makes no sense."""
    return UserError(f"{path} is truncated, corrupt or no checkpoint; get it from its source again")


def read_pickle(path: Path) -> Any:
    """The object in a plain pickle (StyleGAN2-ADA's `.pkl`): containers, tensors and `Persistent` networks.

    Raises UserError where the file is missing or damaged, or names anything else.
    """
    content = read_bytes(path)
    try:
        return _Unpickler(io.BytesIO(content)).load()
    except _Forbidden as error:
        raise refused(path, str(error)) from None
    except MemoryError:
        raise damaged(path) from None
    except Exception as error:
        # Damaged bytes can make the pickle machine raise nearly anything; a storage inside is another pickle.
        match = _GLOBAL.search(str(error)) if isinstance(error, pickle.UnpicklingError) else None
        raise (refused(path, next(filter(None, match.groups()))) if match else damaged(path)) from None


def read_torch(path: Path) -> Any:
    """The object in a file of `torch.save`, old or new format; argparse namespaces come as dictionaries.

    Raises UserError where the file is missing or damaged, or holds anything but tensors and plain containers.
    """
    content = read_bytes(path)
    try:
        if content.startswith(b"PK"):
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                if archive.testzip() is not None:  # torch does not compare the tensors' checksums
                    raise damaged(path)
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore")  # on the way to an error that says the same in one sentence
            found = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        match = _GLOBAL.search(str(error))
        raise (refused(path, next(filter(None, match.groups()))) if match else damaged(path)) from None
    except Exception:
        raise damaged(path) from None
    return _plain(found)


def _plain(value: Any) -> Any:
    if isinstance(value, argparse.Namespace):
        return {key: _plain(item) for key, item in vars(value).items()}
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value
