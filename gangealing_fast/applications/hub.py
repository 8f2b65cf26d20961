# SPDX-License-Identifier: Apache-2.0
"""Aligners as folders that others can load by name: aligner.safetensors, config.json and a model card; and the Hugging Face hub.

Nothing in such a folder is executed. Only `pull` and `push` use the network, and huggingface_hub (the extra `[hub]`).
"""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from gangealing_fast import __version__
from gangealing_fast.checkpoints.reading import Parts
from gangealing_fast.checkpoints.writing import model_card, write
from gangealing_fast.runtime.errors import UserError
from gangealing_fast.runtime.text import reason_of
from gangealing_fast.storage.files import read_error, write_text

FORMAT = 1
CONFIG = "config.json"
FILES = ("aligner.safetensors", CONFIG, "README.md")
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_FRONT = """---
library_name: gangealing_fast
tags:
- image-alignment
- dense-correspondence
- gangealing
---

"""


class Use(NamedTuple):
    """How an aligner is used beyond what its weights say, see `Aligner`."""

    flips: bool
    cluster: int | None
    points: str


def save(parts: Parts, use: Use, folder: str | Path) -> Path:
    """Write the aligner in `parts` to `folder`, which is made if need be. Raises UserError if a file cannot be written."""
    folder = Path(folder)
    write(parts, folder, "safetensors")
    assert parts.transformer is not None
    config = {
        "library": "gangealing_fast",
        "version": __version__,
        "format": FORMAT,
        "transformer": parts.transformer.config(),
        "use": use._asdict(),
    }
    write_text(folder / CONFIG, json.dumps(config, indent=2, default=list) + "\n")
    card = model_card(parts, half=False).replace('Aligner.load("aligner.safetensors")', 'Aligner.from_pretrained("NAME/OF-THIS")')
    write_text(folder / "README.md", _FRONT + card)
    return folder


def saved_use(folder: Path) -> dict[str, Any]:
    """How the aligner of a folder that `save` wrote is meant to be used; {} of a folder without config.json.

    Raises UserError for a config.json that is damaged or of another version of the format.
    """
    path = folder / CONFIG
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise read_error(path, error) from None
    except ValueError:
        config = None
    if not isinstance(config, dict) or config.get("library") != "gangealing_fast":
        return {}
    use = config.get("use")
    if config.get("format") != FORMAT or not isinstance(use, dict) or set(use) != set(Use._fields):
        raise UserError(f"{path} is damaged or was written by a newer gangealing_fast than {__version__}: get it again, or upgrade")
    return use


def local(source: str | Path, revision: str | None, token: str | None) -> Path:
    """`source` as a folder or file that is there: itself, or downloaded from the hub.

    Raises UserError if it is neither, or cannot be had.
    """
    path = Path(source)
    if path.exists():
        return path
    if not isinstance(source, str) or not _HUB_ID.fullmatch(source):
        raise UserError(f"{source} is neither a folder nor a file nor the NAME/MODEL of the Hugging Face hub; check the path")
    return pull(source, revision, token)


def pull(name: str, revision: str | None, token: str | None) -> Path:
    """The aligner's files of a model on the hub, in the hub's own cache. Raises UserError if they cannot be had."""
    hub = _hub()
    try:
        return Path(hub.snapshot_download(name, revision=revision, token=token, allow_patterns=list(FILES)))
    except Exception as error:
        raise UserError(
            f"{name} is no folder here and cannot be had from the Hugging Face hub ({reason_of(error)}): check the name and the "
            "network, or download its files elsewhere and give their folder"
        ) from None


def push(parts: Parts, use: Use, name: str, *, private: bool, token: str | None, message: str) -> str:
    """Upload the aligner as the model NAME/MODEL, made if need be; returns its address. Raises UserError if that fails."""
    if not _HUB_ID.fullmatch(name):
        raise UserError(f"{name} is no name of a model on the hub; it must be NAME/MODEL")
    hub = _hub()
    with tempfile.TemporaryDirectory() as folder:
        save(parts, use, folder)
        try:
            hub.create_repo(name, private=private, token=token, exist_ok=True)
            return str(hub.upload_folder(repo_id=name, folder_path=folder, token=token, commit_message=message))
        except Exception as error:
            raise UserError(
                f"{name} cannot be written to the Hugging Face hub ({reason_of(error)}): log in with `hf auth login`, check name "
                "and network, or keep the folder that save_pretrained writes"
            ) from None


def _hub() -> Any:
    try:
        import huggingface_hub
    except ImportError:
        raise UserError("the Hugging Face hub needs the package huggingface_hub: pip install 'gangealing_fast[hub]'") from None
    return huggingface_hub
