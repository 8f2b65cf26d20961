# SPDX-License-Identifier: Apache-2.0
"""Damaged tars: wherever reading stops before the end, it is said where, by every command that reads tars."""

from __future__ import annotations

import importlib
import io
import tarfile
from pathlib import Path

import pytest
from hostile_files import block_of, encoded, write_tar
from runs import call

from gangealing_fast.data.pictures import PictureStream, open_pictures
from gangealing_fast.data.tars import read_members
from gangealing_fast.runtime.errors import UserError

COUNT = 5
MEMBERS = {f"{index}.png": encoded(32, seed=index) for index in range(COUNT)}


@pytest.fixture
def whole(tmp_path):
    return write_tar(tmp_path / "whole.tar", MEMBERS)


def headers(path: Path) -> list[int]:
    with tarfile.open(path) as archive:
        return [member.offset for member in archive]


def damaged_header(content: bytes, at: list[int]) -> bytes:
    return content[: at[2]] + bytes([content[at[2]] ^ 255]) + content[at[2] + 1 :]


DAMAGES = {
    "a damaged header": (damaged_header, r"damaged after 2 files: at byte \S+ of \S+ there is no header"),
    "a checksum": (lambda c, at: c[: at[3] + 148] + b"0000000\0" + c[at[3] + 156 :], "damaged after 3 files"),
    "zeros in the middle": (lambda c, at: c[: at[2]] + bytes(512) + c[at[2] + 512 :], "ends after 2 files .* but more follows"),
    "a second archive": (lambda c, at: c + c, rf"ends after {COUNT} files at byte .* \(was a second archive appended\?\)"),
    "something behind the end": (lambda c, at: c + b"x", "more follows at byte"),
    "cut in a picture": (lambda c, at: c[: at[4] + 700], f"truncated or damaged after {COUNT} files"),
    "cut in a header": (lambda c, at: c[: at[4] + 100], "truncated or damaged after 4 files"),
    "an overwritten block": (lambda c, at: c[: at[1]] + b"\xa5" * 512 + c[at[1] + 512 :], "damaged after 1 files"),
    "a header of a header that is too large": (lambda c, at: c[: at[2]] + long_name(10**13) + c[at[2] :], "damaged after 2 files"),
    "a picture that claims too much": (lambda c, at: c[: at[2]] + block_of("x.png", 10**7) + c[at[2] :], "damaged after 3 files"),
}


def long_name(size: int) -> bytes:
    header = tarfile.TarInfo("name")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, size
    return header.tobuf(format=tarfile.GNU_FORMAT)


@pytest.mark.parametrize("damage", DAMAGES)
def test_where_reading_stopped_is_named_by_every_reader(whole, damage):
    change, words = DAMAGES[damage]
    whole.write_bytes(change(whole.read_bytes(), headers(whole)))
    for read in (
        lambda: open_pictures(whole, size=8),
        lambda: PictureStream(whole, size=8),
        lambda: open_pictures(whole.parent, size=8),
    ):
        with pytest.raises(UserError, match=words) as caught:
            read()
        assert str(whole) in str(caught.value)


@pytest.mark.parametrize("command", ["prepare", "pretrain", "contrast"])
def test_commands_say_it_in_one_sentence(whole, monkeypatch, capsys, command):
    whole.write_bytes(whole.read_bytes() * 2)
    out = whole.parent / ("out.tar" if command == "prepare" else "out")
    option = "--source" if command == "prepare" else "--data"
    assert call(monkeypatch, importlib.import_module(f"gangealing_fast.{command}"), option, whole, "--out", out) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "was a second archive appended?" in error and not out.exists()


def test_a_tar_without_its_end_mark_is_read_and_that_is_said(whole):
    content = whole.read_bytes()
    with tarfile.open(whole) as archive:
        archive.getmembers()
        whole.write_bytes(content[: archive.offset])
    pictures = open_pictures(whole, size=8)
    assert len(pictures) == COUNT
    assert pictures.skipped == [("whole.tar", f"the tar has no end mark after {COUNT} files, so that some may be missing")]


@pytest.mark.parametrize("layout", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
@pytest.mark.parametrize("padding", [0, 512, 10240])
def test_sound_tars_are_sound(tmp_path, layout, padding):
    with tarfile.open(tmp_path / "a.tar", "w", format=layout) as archive:
        for name, content in {**MEMBERS, "deep/" * 12 + "long.png": MEMBERS["0.png"], "notes.txt": b"x", "empty.txt": b""}.items():
            header = tarfile.TarInfo(name)
            header.size = len(content)
            archive.addfile(header, io.BytesIO(content))
    with open(tmp_path / "a.tar", "ab") as file:
        file.write(bytes(padding))
    members, remark = read_members(tmp_path / "a.tar")
    assert remark is None and len(members) == COUNT + 3
    pictures = open_pictures(tmp_path / "a.tar", size=8)
    assert len(pictures) == COUNT + 1 and not pictures.skipped and pictures.others == ["empty.txt", "notes.txt"]


def test_links_and_devices_in_tars_are_read_or_named(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, kind, target in (
            ("a.png", tarfile.REGTYPE, ""),
            ("hard.png", tarfile.LNKTYPE, "a.png"),
            ("lost.png", tarfile.LNKTYPE, "gone.png"),
            ("soft.png", tarfile.SYMTYPE, "a.png"),
            ("fifo.png", tarfile.FIFOTYPE, ""),
        ):
            header = tarfile.TarInfo(name)
            header.type, header.linkname = kind, target
            header.size = len(MEMBERS["0.png"]) if kind == tarfile.REGTYPE else 0
            archive.addfile(header, io.BytesIO(MEMBERS["0.png"]) if kind == tarfile.REGTYPE else None)
    pictures = open_pictures(tmp_path / "a.tar", size=8)
    assert pictures.names == ["a.png", "hard.png"]
    assert [name for name, _ in pictures.skipped] == ["fifo.png", "lost.png", "soft.png"]
