# SPDX-License-Identifier: Apache-2.0
"""Files of `torch.save`, read as plain data, and never larger than the file.

Both formats are read: the zip files of today, and what came before them. `torch.load` trusts what such a file says of sizes: it
makes storages larger if a tensor asks for more, unpacks members that are compressed, and shows one number as a million. Here a
tensor shows what the file holds, or the file is refused.
"""

from __future__ import annotations

import io
import math
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy
import torch
from torch import Tensor

from gangealing_fast.storage.pickles import Machine, Maker, Refused

OLD_MAGIC = 0x1950A86A20F9469CFC6C
OLD_START = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""The first bytes of the old format: a pickle of that number."""
_BLOCK = 1 << 24
_SMALL = 4096

_STORAGES = {
    f"torch.{name}Storage": dtype
    for name, dtype in {
        "Double": torch.float64,
        "Float": torch.float32,
        "Half": torch.float16,
        "BFloat16": torch.bfloat16,
        "Long": torch.int64,
        "Int": torch.int32,
        "Short": torch.int16,
        "Char": torch.int8,
        "Byte": torch.uint8,
        "Bool": torch.bool,
    }.items()
}
_DTYPES = {str(value): value for value in vars(torch).values() if isinstance(value, torch.dtype)}
VALUES: Mapping[str, Any] = _STORAGES | _DTYPES


class Damaged(ValueError):
    """A file of torch that ends early, contradicts itself, or would need more memory than it holds; the text says why."""


class NoPickle(Damaged):
    """A zip file that holds no pickle of torch."""


class Stored(NamedTuple):
    """Numbers of one kind, of which tensors show parts."""

    content: torch.UntypedStorage
    dtype: torch.dtype


def _tensor(storage: Stored, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    if type(storage) is not Stored or not all(type(n) is int and n >= 0 for n in (offset, *size, *stride)):
        raise Damaged("a tensor has sizes that are no numbers")
    if len(size) != len(stride):
        raise Damaged("a tensor has more sizes than strides")
    held = storage.content.nbytes() // storage.dtype.itemsize
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if math.prod(size) and last >= held:
        raise Damaged("a tensor reaches beyond what the file holds")
    if max((offset, *size, *stride), default=0) >= 1 << 62:
        raise Damaged("a tensor has sizes that are no numbers")
    return torch.empty(0, dtype=storage.dtype, device=storage.content.device).set_(storage.content, offset, size, stride)


def _parameter(data: Tensor, *_: Any) -> Tensor:
    if not isinstance(data, Tensor):
        raise Damaged("a parameter is no tensor")
    return data


def _ordered(pairs: Any = ()) -> OrderedDict[Any, Any]:
    """Python 2 gave the items to the constructor."""
    if not isinstance(pairs, list | tuple) or not all(type(pair) in (list, tuple) and type(pair[0]) is str for pair in pairs):
        raise Damaged("a dictionary of something that is no pairs")
    return OrderedDict(pairs)


def _bytes(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise Damaged("bytes in an unknown encoding")
    return text.encode("latin1")


def _device(*parts: str | int) -> str:
    return ":".join(map(str, parts))


MAKERS: Mapping[str, Maker] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch.Size": torch.Size,
    "torch.device": _device,
    "collections.OrderedDict": _ordered,
    "_codecs.encode": _bytes,
}


def read_torch_file(path: Path, makers: Mapping[str, Maker] | None = None, *, constants: Collection[str] = ()) -> Any:
    """The object in a file of `torch.save`, its tensors on the CPU.

    makers: what else may be made of names, beside tensors and containers. constants: last parts of the names of tensors that may
    repeat numbers (stride 0), as long as they are small.

    Raises OSError if the file cannot be read, `pickles.Refused` if it names what is not plain data, else `Damaged`.
    """
    known = {**MAKERS, **(makers or {})}
    try:
        with open(path, "rb") as file:
            start = file.read(len(OLD_START))
        found = read_old(path.read_bytes(), known) if start == OLD_START else _read_zip(path, known)
        check_tensors(found, path.stat().st_size, constants)
    except (OSError, Refused, Damaged):
        raise
    except Exception as error:  # damaged bytes can make the readers of pickles and zip files raise nearly anything
        raise Damaged(f"{type(error).__name__}: {error}") from error
    return found


def _read_zip(path: Path, makers: Mapping[str, Maker]) -> Any:
    with zipfile.ZipFile(path) as archive:
        members = {member.filename: member for member in archive.infolist()}
        if len(members) != len(archive.infolist()) or sum(m.file_size for m in members.values()) > path.stat().st_size:
            raise Damaged("its members are larger than the file")
        if any(member.compress_type != zipfile.ZIP_STORED for member in members.values()):
            raise Damaged("its members are compressed, which torch never does")
        roots = [name.removesuffix("data.pkl") for name in members if name.endswith("data.pkl")]
        if len(roots) != 1:
            raise NoPickle("it holds no data.pkl")
        order = members.get(f"{roots[0]}byteorder")
        if order is not None and archive.read(order).decode() != sys.byteorder:
            raise Damaged("it was written on a machine with another order of bytes")
        storages: dict[str, torch.UntypedStorage] = {}

        def stored(reference: Any) -> Stored:
            kind, dtype, key, _, count = reference
            if kind != "storage" or not isinstance(dtype, torch.dtype):
                raise Refused("a reference to something that is no storage")
            if key not in storages:
                member = members[f"{roots[0]}data/{key}"]
                with archive.open(member) as file:
                    storages[key] = _numbers(file, member.file_size)
            if storages[key].nbytes() != count * dtype.itemsize:
                raise Damaged("a storage has another size than it says")
            return Stored(storages[key], dtype)

        return Machine(io.BytesIO(archive.read(members[f"{roots[0]}data.pkl"])), makers, VALUES, stored).load()


def _numbers(file: Any, length: int) -> torch.UntypedStorage:
    """`length` bytes of a file; of a zip file's member only those that agree with its checksum."""
    content = torch.empty(length, dtype=torch.uint8, device="cpu")
    view, at = content.numpy(), 0
    while at < length:
        block = file.read(min(_BLOCK, length - at))
        if not block:
            raise Damaged("it ends early")
        view[at : at + len(block)] = numpy.frombuffer(block, numpy.uint8)
        at += len(block)
    return content.untyped_storage()


def read_old(content: bytes, makers: Mapping[str, Maker] = MAKERS) -> Any:
    """The object in the bytes of torch's old format. Raises `Refused`, or nearly anything for damaged bytes."""
    file = io.BytesIO(content)
    magic, _, system = (Machine(file, {}).load() for _ in range(3))
    if magic != OLD_MAGIC or system["little_endian"] != (sys.byteorder == "little"):
        raise Damaged("it is no file of torch, or of a machine with another order of bytes")
    storages: dict[str, Stored] = {}

    def stored(reference: Any) -> Stored:
        kind, dtype, key, _, count, view = reference
        if kind != "storage" or not isinstance(dtype, torch.dtype) or view is not None:
            raise Refused("a reference to something that is no storage")
        if key not in storages:
            size = count * dtype.itemsize
            if size < 0 or size + sum(other.content.nbytes() for other in storages.values()) > len(content):
                raise Damaged("a storage is larger than the file")
            storages[key] = Stored(torch.UntypedStorage(size, device="cpu"), dtype)
        return storages[key]

    found = Machine(file, makers, VALUES, stored).load()
    for key in Machine(file, {}).load():
        storage = storages[key]
        if int.from_bytes(file.read(8), "little") * storage.dtype.itemsize != storage.content.nbytes():
            raise Damaged("a storage has another size than it says")
        storage.content.copy_(_numbers(file, storage.content.nbytes()))
    return found


def tensors_in(value: Any) -> Iterator[tuple[str, Tensor]]:
    """All tensors in nested containers, each container once, with the names that lead to them, joined by dots."""
    return ((name, item) for name, item in _leaves(value) if isinstance(item, Tensor))


def numbers_in(value: Any) -> Iterator[tuple[str, float]]:
    """As `tensors_in`, the floating numbers."""
    return ((name, item) for name, item in _leaves(value) if isinstance(item, float))


def _leaves(value: Any) -> Iterator[tuple[str, Any]]:
    work, seen = [("", value)], set()
    while work:
        place, item = work.pop()
        if not isinstance(item, Mapping | list | tuple):
            yield place, item
        elif id(item) not in seen:
            seen.add(id(item))
            inner = item.items() if isinstance(item, Mapping) else enumerate(item)
            work += [(f"{place}.{key}" if place else str(key), part) for key, part in inner]


def check_tensors(value: Any, size: int, constants: Collection[str] = ()) -> None:
    """Raise Damaged for tensors that show more numbers than the file of `size` bytes holds."""
    shown = 0
    for name, tensor in tensors_in(value):
        nbytes = tensor.numel() * tensor.itemsize
        shown += nbytes
        repeats = any(step == 0 and length > 1 for step, length in zip(tensor.stride(), tensor.shape, strict=True))
        if repeats or nbytes > tensor.untyped_storage().nbytes():
            if name.rsplit(".", 1)[-1] in constants and tensor.numel() <= _SMALL:
                continue
            raise Damaged(f"{name} shows the same numbers many times")
    # Files may name a tensor twice (LPIPS does), but not a hundred times.
    if shown > 4 * size:
        raise Damaged("its tensors show the same numbers many times")
