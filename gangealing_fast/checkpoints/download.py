# SPDX-License-Identifier: Apache-2.0
"""Files from an address, only with a checksum that the user gives."""

from __future__ import annotations

import hashlib
import re
import urllib.error
import urllib.parse
from pathlib import Path

from gangealing_fast.runtime.errors import UserError
from gangealing_fast.storage.files import read_error


def fetch(source: str, sha256: str | None) -> Path:
    """`source` as a local path: itself where it is one, else downloaded once into torch's cache.

    Raises UserError for an address without a checksum, a checksum that does not agree (nothing is kept then) or a failed download.
    """
    if sha256 is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise UserError(f"--sha256 must be 64 hexadecimal digits, got {sha256!r}")
    if "://" not in source:
        path = Path(source)
        if sha256 is not None:
            _check(path, sha256)
        return path
    if not source.startswith(("https://", "http://")):
        raise UserError(f"{source} is no path and no http address; download the file yourself and give its path")
    if sha256 is None:
        raise UserError(f"{source} is downloaded only with its checksum: give it with --sha256, as its publisher states it")
    import torch

    name = Path(urllib.parse.urlsplit(source).path).name or "checkpoint"
    path = Path(torch.hub.get_dir(), "checkpoints", f"{sha256[:16].lower()}-{name}")
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            # Writes to a temporary file, compares the checksum and only then renames.
            torch.hub.download_url_to_file(source, str(path), hash_prefix=sha256.lower())
        except RuntimeError:
            raise UserError(f"{source} does not have the checksum {sha256}; nothing was kept, check both") from None
        except (urllib.error.URLError, OSError) as error:
            reason = getattr(error, "reason", error)
            raise UserError(f"{source} cannot be downloaded ({reason}): download it elsewhere and give the file's path") from None
    _check(path, sha256)
    return path


def _check(path: Path, sha256: str) -> None:
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise read_error(path, error) from None
    if digest.hexdigest() != sha256.lower():
        raise UserError(f"{path} has the checksum {digest.hexdigest()}, not {sha256}; get the file from its source again")
