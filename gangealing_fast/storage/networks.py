# SPDX-License-Identifier: Apache-2.0
"""Networks from files: names, counts, shapes and numbers are checked before a network of any size is built."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gangealing_fast.runtime.errors import UserError
from gangealing_fast.storage.exports import load_safetensors
from gangealing_fast.storage.pickles import Refused
from gangealing_fast.storage.settings import check_settings
from gangealing_fast.storage.torch_files import Damaged, read_torch_file

# What a network needs beside its weights: filters, and the file that frozen features are read from.
_SPARE = 1 << 26
_MAKING = {torch.empty, torch.zeros, torch.ones, torch.rand, torch.randn, torch.full}
Network = TypeVar("Network", bound=nn.Module)


def build_network(
    kind: Callable[..., Network], settings: object, tensors: Mapping[str, Tensor], *, constants: Collection[str] = ()
) -> Network:
    """`kind(**settings)` with the weights `tensors`, frozen and in evaluation mode.

    The network gets no more memory than tensors of its file's size need: what its settings ask for beyond that is refused before
    it is allocated.

    constants: last parts of the names of tensors that are left out if the network has none of that name.
    Raises ValueError that names the setting or the tensor that is missing, too many, of another shape or kind, or not finite.
    """
    checked = check_settings(settings)
    depth = checked.get("mapping_layers", 0)
    if depth > len(tensors):
        raise ValueError(f"its header says mapping_layers {depth}, but it has {len(tensors)} tensors in all")
    with _Bounded(2 * sum(4 * value.numel() for value in tensors.values() if isinstance(value, Tensor)) + _SPARE):
        network = kind(**checked)
    network.load_state_dict(fitting(tensors, network.state_dict(), constants=constants))
    return network.eval().requires_grad_(False)


class _Bounded(TorchFunctionMode):
    """Refuses to make new tensors once those made inside the block need more than so many bytes.

    Building on torch's meta device would say the same, but its first use loads torch's compiler, for 1.6 s of processor time.
    """

    def __init__(self, room: int) -> None:
        super().__init__()
        self._room = room

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _MAKING:
            size = args[0] if args and not isinstance(args[0], int) else args
            self._room -= math.prod(size) * ((kwargs or {}).get("dtype") or torch.float32).itemsize
            if self._room < 0:
                raise ValueError("its settings ask for a larger network than the file holds tensors for")
        return func(*args, **(kwargs or {}))


def fitting(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor], *, constants: Collection[str] = ()) -> dict[str, Tensor]:
    """`tensors` in the dtypes of `wanted`, if they have its names and shapes and are finite. Errors as in `build_network`."""
    if not isinstance(tensors, Mapping) or not all(isinstance(name, str) for name in tensors):
        raise ValueError("its weights are no record of tensors")
    found = {k: v for k, v in tensors.items() if k in wanted or k.rsplit(".", 1)[-1] not in constants}
    missing, unexpected = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    if missing or unexpected:
        raise ValueError(f"{missing[0]} is missing" if missing else f"{unexpected[0]} has no place in this network")
    return {name: _fitted(name, value, wanted[name]) for name, value in found.items()}


def _fitted(name: str, value: object, wanted: Tensor) -> Tensor:
    if not isinstance(value, Tensor) or value.shape != wanted.shape:
        raise ValueError(f"{name} does not have the shape {list(wanted.shape)}")
    if value.is_floating_point() != wanted.is_floating_point() or value.is_complex():
        raise ValueError(f"{name} is of dtype {value.dtype}, but must be {wanted.dtype}")
    converted = value.to(wanted.dtype)
    if converted.is_floating_point() and not torch.isfinite(converted).all():
        raise ValueError(f"{name} holds values that are not finite")
    return converted


def read_weights(path: Path, what: str) -> dict[str, Any]:
    """The tensors by name in a file of weights of another project, `.safetensors` or of `torch.save`.

    what: what the file is, for the sentence. Raises UserError if the file is missing or damaged, or holds anything else.
    """
    if not path.is_file():
        raise UserError(f"the {what} file {path} does not exist: give the path of an existing file.")
    try:
        found = load_safetensors(path, dtype=None)[0] if path.suffix == ".safetensors" else read_torch_file(path)
    except (UserError, Refused, Damaged, OSError) as error:
        raise UserError(f"the {what} file {path} cannot be read ({error}): is it a complete .pth or .safetensors file?") from None
    state = found.get("state_dict", found) if isinstance(found, dict) else found
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise UserError(f"the {what} file {path} holds no named tensors: give a file with a state dict.")
    return state
