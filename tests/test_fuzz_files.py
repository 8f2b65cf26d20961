# SPDX-License-Identifier: Apache-2.0
"""Random names of pictures and randomly damaged tars: no other error than one sentence, and nothing lost without a word."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from fuzzing import RANDOM, Draw
from fuzzing.files import damaged_tar, draw_name
from hostile_files import encoded, write_named
from hypothesis import given
from hypothesis import strategies as st

from gangealing_fast.applications.naming import result_name
from gangealing_fast.data.config import PrepareConfig
from gangealing_fast.data.pictures import open_pictures
from gangealing_fast.data.preparing import run as prepare
from gangealing_fast.runtime.errors import UserError


@RANDOM
@given(data=st.data())
def test_names(data, capsys):
    draw = Draw(data)
    good, bad = ({draw_name(draw) for _ in range(draw.integer(1, 3))} for _ in range(2))
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "in"
        folder.mkdir()
        for name in good:
            write_named(folder, name, encoded(8))
        for name in bad - good:
            write_named(folder, name, encoded(8)[:40])
        prepare(PrepareConfig(folder, Path(place) / "out.tar", size=8))
        said = capsys.readouterr().out
        assert all(line.isprintable() for line in said.splitlines()) and len(said.splitlines()) <= 3
        pictures = open_pictures(Path(place) / "out.tar", size=8)
        found = open_pictures(folder, size=8)
        assert len(pictures) == len(found) == len(good)
        assert len(found.skipped) + len(found.others) == len(bad - good)
        for number, name in enumerate(found.names):
            write_named(Path(place), b"." + os.fsencode(result_name(number, name)) + b".tmp", b"")


@RANDOM
@given(data=st.data())
def test_tars(data):
    """A damaged header, a cut or an addition is named; a damaged picture is skipped or, if its checksum allows, read."""
    draw = Draw(data)
    with tempfile.TemporaryDirectory() as place:
        path, count, whole = damaged_tar(Path(place), draw)
        before = path.read_bytes()
        try:
            pictures = open_pictures(path, size=8)
        except UserError as error:
            assert str(path) in str(error) and "\n" not in str(error)
            return
        assert path.read_bytes() == before
        remarks = [reason for _, reason in pictures.skipped if "end mark" in reason]
        assert not (remarks and whole)
        accounted = len(pictures) + len(pictures.skipped) + len(pictures.others)
        assert remarks or accounted == count, "something was lost without a word"
