# SPDX-License-Identifier: Apache-2.0
"""Pickled checkpoints of other projects as plain data.

Only the names listed here and in `storage.torch_files` are known. Each stands for code of this package that builds tensors and
containers; any other name ends the reading with a sentence that says it.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from torch import Tensor

from gangealing_fast.models.spatial_transformer import CONSTANT_BUFFERS
from gangealing_fast.runtime.errors import UserError
from gangealing_fast.storage.files import read_bytes, read_error
from gangealing_fast.storage.pickles import Machine, Maker, Record, Refused
from gangealing_fast.storage.torch_files import MAKERS, VALUES, Damaged, check_tensors, read_old, read_torch_file

TENSORFLOW = "dnnlib.tflib"


class Persistent(Record):
    """What a network of StyleGAN2-ADA leaves in a pickle: its class name and its attributes. The source inside is ignored."""

    def __init__(self, meta: dict[str, Any]) -> None:
        super().__init__(class_name=str(meta["class_name"]), state=dict(meta["state"]))

    @property
    def class_name(self) -> str:
        return self["class_name"]

    def tensors(self, prefix: str = "") -> dict[str, Tensor]:
        """Parameters and buffers of the network and of those inside it, by dotted name."""
        found: dict[str, Tensor] = {}
        for group in ("_parameters", "_buffers"):
            for name, value in self["state"].get(group, {}).items():
                if isinstance(value, Tensor):
                    found[prefix + name] = value
        for name, module in self["state"].get("_modules", {}).items():
            if isinstance(module, Persistent):
                found |= module.tensors(f"{prefix}{name}.")
        return found


_STYLEGAN2_ADA: dict[str, Maker] = {
    "torch_utils.persistence._reconstruct_persistent_obj": Persistent,
    "dnnlib.util.EasyDict": Record,
    "torch.storage._load_from_bytes": read_old,
}


def refused(path: Path, name: str) -> UserError:
    """The sentence for a pickle that names something that is not plain data."""
    if name.startswith(TENSORFLOW):
        return UserError(f"{path} is a network of TensorFlow ({name}): convert it with StyleGAN2-ADA's own legacy.py first")
    return UserError(
        f"{path} was not read, because it holds {name}, which would have to run code to load: only tensors and "
        "plain containers are accepted; get the file from its source again, or export its weights alone"
    )


def damaged(path: Path, reason: str = "") -> UserError:
    """The sentence for a file that ends early or makes no sense."""
    why = f" ({reason[:160]})" if reason else ""
    return UserError(f"{path} is truncated, corrupt or no checkpoint{why}; get it from its source again")


def read_pickle(path: Path) -> Any:
    """The object in a plain pickle (StyleGAN2-ADA's `.pkl`): containers, tensors and `Persistent` networks.

    Raises UserError where the file is missing or damaged, or names anything else.
    """
    content = read_bytes(path)
    try:
        found = Machine(io.BytesIO(content), {**MAKERS, **_STYLEGAN2_ADA}, VALUES).load()
        check_tensors(found, len(content))
    except Refused as error:
        raise refused(path, str(error)) from None
    except Exception:  # damaged bytes can make the pickle machine raise nearly anything
        raise damaged(path) from None
    return found


def read_torch(path: Path) -> Any:
    """The object in a file of `torch.save`, old or new format; argparse namespaces come as dictionaries.

    Raises UserError where the file is missing or damaged, or holds anything but tensors and plain containers.
    """
    try:
        return read_torch_file(path, {"argparse.Namespace": Record}, constants=CONSTANT_BUFFERS)
    except OSError as error:
        raise read_error(path, error) from None
    except Refused as error:
        raise refused(path, str(error)) from None
    except Damaged as error:
        raise damaged(path, str(error)) from None
