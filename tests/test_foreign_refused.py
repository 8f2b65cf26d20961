# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of other projects: what is not data is refused, damage is one sentence, downloads need a checksum."""

from __future__ import annotations

import argparse
import hashlib
import os
import pickle
import random
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from foreign_files import (
    ada_network,
    original_file,
    pretend_modules,
    small_generator,
    small_parts,
)

from gangealing_fast import convert
from gangealing_fast.checkpoints.download import fetch
from gangealing_fast.checkpoints.reading import read
from gangealing_fast.checkpoints.writing import generator_state, write
from gangealing_fast.runtime.errors import UserError

# ---- code


class Evil:
    """Creates a file when it is unpickled without restrictions."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_the_trap_works(tmp_path):
    pickle.loads(pickle.dumps(Evil(tmp_path / "executed")))
    assert (tmp_path / "executed").exists()


@pytest.mark.parametrize("kind", ["pickle", "zip", "old", "storage", "namespace", "builtins"])
def test_pickles_that_run_code_are_refused(tmp_path, kind):
    trap, path = Evil(tmp_path / "executed"), tmp_path / "a.pt"
    name = "mkdir"
    if kind == "pickle":
        path.write_bytes(pickle.dumps({"G_ema": trap}))
    elif kind == "zip":
        torch.save({"g_ema": {}, "x": trap}, path)
    elif kind == "old":
        torch.save({"g_ema": {}, "x": trap}, path, _use_new_zipfile_serialization=False)
    elif kind == "storage":  # a storage inside StyleGAN2-ADA's pickle is a pickle again
        inner = tmp_path / "inner"
        torch.save({"x": trap}, inner, _use_new_zipfile_serialization=False)

        class Storage:
            def __reduce__(self):
                return torch.storage._load_from_bytes, (inner.read_bytes(),)

        path.write_bytes(pickle.dumps({"G_ema": Storage()}))
    elif kind == "namespace":
        torch.save({"t_ema": {}, "args": argparse.Namespace(x=trap)}, path)
    else:

        class Eval:
            def __reduce__(self):
                return eval, (f"__import__('os').mkdir({str(tmp_path / 'executed')!r})",)

        path.write_bytes(pickle.dumps({"G_ema": Eval()}))
        name = "eval"
    with pytest.raises(UserError, match=f"{name}.*would have to run code"):
        read(path)
    assert not (tmp_path / "executed").exists()


def test_other_classes_are_refused_by_name(tmp_path):
    torch.save({"g_ema": {}, "x": torch.nn.Linear(1, 1)}, tmp_path / "a.pt")
    with pytest.raises(UserError, match="torch.nn.modules.linear.Linear"):
        read(tmp_path / "a.pt")
    (tmp_path / "b.pkl").write_bytes(b"cdnnlib.tflib.network\nNetwork\n.")
    with pytest.raises(UserError, match="TensorFlow"):
        read(tmp_path / "b.pkl")


# ---- damage


def test_two_hundred_corrupted_checkpoints(tmp_path, monkeypatch):
    """Cut, overwritten, shuffled: always one sentence; or, where nothing that matters was hit, the very same networks."""
    pretend_modules(monkeypatch)
    parts, chance = small_parts(), random.Random(5)
    write(parts, tmp_path / "own", "safetensors")
    write(parts, tmp_path / "rosinality.pt", "rosinality")
    original_file(tmp_path / "original.pt", parts)
    (tmp_path / "ada.pkl").write_bytes(pickle.dumps({"G_ema": ada_network(parts.generator)}))
    sources = [
        tmp_path / "rosinality.pt",
        tmp_path / "original.pt",
        tmp_path / "ada.pkl",
        tmp_path / "own" / "generator.safetensors",
    ]
    refused = 0
    for number in range(200):
        source = sources[number % 4]
        content = bytearray(source.read_bytes())
        kind = (number // 4) % 4
        if kind == 0:
            content = content[: chance.randrange(len(content))]
        elif kind == 1:  # a few bytes near the front, where the structure is
            for _ in range(4):
                content[chance.randrange(min(4000, len(content)))] = chance.randrange(256)
        elif kind == 2:
            for _ in range(50):
                content[chance.randrange(len(content))] = chance.randrange(256)
        else:
            at, length = chance.randrange(len(content)), chance.randrange(1, 2000)
            content[at : at + length] = b""
        path = tmp_path / f"damaged{source.suffix}"
        path.write_bytes(content)
        try:
            found = read(path)
        except UserError as error:
            refused += 1
            assert str(path) in str(error) and "\n" not in str(error) and len(str(error)) < 500
        else:
            assert found.generator is not None and all(torch.isfinite(p).all() for p in found.generator.parameters())
    assert refused > 120


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "truncated, corrupt or no checkpoint"),
        (b"just text", "truncated, corrupt or no checkpoint"),
        (pickle.dumps([1, 2]), "truncated, corrupt or no checkpoint"),
        (pickle.dumps({"a": 1}), "truncated, corrupt or no checkpoint"),
    ],
)
def test_files_that_are_no_checkpoints(tmp_path, content, sentence):
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(UserError, match=sentence):
        read(tmp_path / "a.pt")
    with pytest.raises(UserError, match="no such file"):
        read(tmp_path / "b.pt")
    with pytest.raises(UserError, match="holds neither generator.safetensors"):
        read(tmp_path)
    torch.save({"a": 1}, tmp_path / "c.pt")
    with pytest.raises(UserError, match="neither g_ema nor t_ema"):
        read(tmp_path / "c.pt")


# ---- the command and downloads


def test_the_command(tmp_path, monkeypatch, capsys):
    source = original_file(tmp_path / "a.pt", small_parts())
    monkeypatch.setattr(sys, "argv", ["convert", "--source", str(source), "--out", str(tmp_path / "out"), "--half"])
    convert.main()
    assert "GANgealing (original), generator and transformer and target latent" in capsys.readouterr().out
    assert {f.name for f in (tmp_path / "out").iterdir()} == {
        "generator.safetensors",
        "aligner.safetensors",
        "README.md",
        "config.json",
    }
    monkeypatch.setattr(sys, "argv", ["convert", "--source", str(tmp_path / "none.pt"), "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as stopped:
        convert.main()
    assert stopped.value.code == 2
    assert "no such file" in capsys.readouterr().err


@pytest.fixture
def server(tmp_path):
    """An address that serves a folder."""
    (tmp_path / "served").mkdir()
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path / "served"))
    handler.log_message = lambda *_: None
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield tmp_path / "served", f"http://127.0.0.1:{http.server_port}"
        http.shutdown()


def test_downloads_only_with_a_checksum(server, tmp_path, monkeypatch):
    folder, address = server
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "cache"))
    torch.save({"g_ema": generator_state(small_generator())}, folder / "a.pt")
    digest = hashlib.sha256((folder / "a.pt").read_bytes()).hexdigest()
    with pytest.raises(UserError, match="only with its checksum"):
        fetch(f"{address}/a.pt", None)
    with pytest.raises(UserError, match="64 hexadecimal digits"):
        fetch(f"{address}/a.pt", "12")
    with pytest.raises(UserError, match="nothing was kept"):
        fetch(f"{address}/a.pt", "0" * 64)
    with pytest.raises(UserError, match="cannot be downloaded"):
        fetch(f"{address}/missing.pt", digest)
    with pytest.raises(UserError, match="no http address"):
        fetch("ftp://host/a.pt", digest)
    assert not any(p.is_file() for p in (tmp_path / "cache").rglob("*"))
    path = fetch(f"{address}/a.pt", digest)
    assert read(path).generator is not None
    (folder / "a.pt").unlink()
    assert fetch(f"{address}/a.pt", digest) == path  # from the cache, offline
    with pytest.raises(UserError, match="has the checksum"):
        fetch(str(path), "0" * 64)
