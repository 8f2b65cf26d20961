# SPDX-License-Identifier: Apache-2.0
"""Pictures from zips, LMDBs and videos, and shards that `prepare` makes one by one."""

from __future__ import annotations

import gzip
import io
import json
import struct
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from picture_files import fill, noise
from PIL import Image

from gangealing_fast.data import preparing_shards
from gangealing_fast.data.config import PrepareConfig
from gangealing_fast.data.pictures import open_pictures
from gangealing_fast.data.preparing import run
from gangealing_fast.data.sources import list_entries
from gangealing_fast.runtime.errors import UserError


def prepare(source, out, **options) -> None:
    run(PrepareConfig(source, out, **options))


def zipped(path, source, method=zipfile.ZIP_DEFLATED, **more):
    with zipfile.ZipFile(path, "w", method) as archive:
        for picture in sorted(source.iterdir()):
            archive.write(picture, f"deep/{picture.name}")
        for name, content in more.items():
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_zip_is_read_as_the_folder_in_it(tmp_path, method):
    fill(tmp_path / "in", 5)
    picture = (tmp_path / "in" / "000.png").read_bytes()
    path = zipped(tmp_path / "in.zip", tmp_path / "in", method, notes=b"text", unnamed=picture, **{"__MACOSX/x.png": b"x"})
    found = list_entries(path)
    assert [entry.name for entry in found.entries] == [*(f"deep/{k:03}.png" for k in range(5)), "unnamed"]
    assert found.others == ["notes"] and not found.skipped
    assert torch.equal(open_pictures(path, size=16).batch(range(5)), open_pictures(tmp_path / "in", size=16).batch(range(5)))


def test_what_a_zip_cannot_give_is_named(tmp_path):
    fill(tmp_path / "in", 3, size=40)
    path = zipped(tmp_path / "a.zip", tmp_path / "in", zipfile.ZIP_STORED)
    content = bytearray(path.read_bytes())
    place = content.index(b"IDAT") + 60
    content[place] ^= 255  # a picture's own bytes
    (tmp_path / "damaged.zip").write_bytes(content)
    pictures = open_pictures(tmp_path / "damaged.zip", size=16)
    assert len(pictures) == 2 and "the zip is damaged in this picture" in pictures.summary()
    (tmp_path / "cut.zip").write_bytes(path.read_bytes()[:-30])
    with pytest.raises(UserError, match="cut.zip is damaged or cut short"):
        list_entries(tmp_path / "cut.zip")
    other = zipped(tmp_path / "b.zip", tmp_path / "in", zipfile.ZIP_BZIP2)
    with pytest.raises(UserError, match="the zip .*b.zip has no pictures in it"):
        list_entries(other)


def test_a_zip_that_unpacks_to_more_than_it_says_is_not_believed(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", bytes(10_000_000))
    content = (tmp_path / "bomb.zip").read_bytes().replace((10_000_000).to_bytes(4, "little"), (1000).to_bytes(4, "little"))
    (tmp_path / "bomb.zip").write_bytes(content)
    (entry,) = list_entries(tmp_path / "bomb.zip").entries
    with pytest.raises(ValueError, match="damaged in this picture"):
        entry.read()


def encoded(seed: int, size: int = 16) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(noise(size, size, seed=seed)).save(buffer, "png")
    return buffer.getvalue()


@pytest.mark.parametrize("subdir", [True, False])
def test_an_lmdb_is_read_in_its_largest_size(tmp_path, subdir):
    lmdb = pytest.importorskip("lmdb")
    path = tmp_path / "pictures.lmdb"
    with lmdb.open(str(path), subdir=subdir, map_size=1 << 24) as environment, environment.begin(write=True) as values:
        for index in range(3):
            for size in (8, 16):
                values.put(f"{size}-{index:05d}".encode(), encoded(index, size))
        values.put(b"length", b"3")
    found = list_entries(path)
    assert [entry.name for entry in found.entries] == ["16-00000", "16-00001", "16-00002"] and found.others == ["length"]
    assert np.array_equal(open_pictures(path, size=16).batch([1])[0].permute(1, 2, 0).numpy(), noise(16, 16, seed=1))


def test_an_lmdb_of_any_keys(tmp_path):
    lmdb = pytest.importorskip("lmdb")
    with lmdb.open(str(tmp_path / "a"), map_size=1 << 24) as environment, environment.begin(write=True) as values:
        values.put(b"\xffkey", encoded(0))
        values.put(b"words", b"no picture")
    found = list_entries(tmp_path / "a")
    assert [entry.name for entry in found.entries] == ["\\xffkey"] and found.others == ["words"]
    with lmdb.open(str(tmp_path / "empty"), map_size=1 << 24):
        pass
    with pytest.raises(UserError, match="has no pictures in it"):
        list_entries(tmp_path / "empty")


def test_the_frames_of_a_video_become_pictures(tmp_path):
    videos = pytest.importorskip("videos", reason="needs PyAV")
    videos.write_video(tmp_path / "v.mp4", [np.full((48, 64, 3), 20 * index + 10, np.uint8) for index in range(7)])
    prepare(tmp_path / "v.mp4", tmp_path / "all.tar", size=16)
    pictures = open_pictures(tmp_path / "all.tar", size=16)
    assert pictures.names == [f"v-{index:06d}.png" for index in range(7)]
    grey = pictures.batch(range(7)).float().mean((1, 2, 3))
    assert torch.allclose(grey, 20 * torch.arange(7) + 10.0, atol=6)
    prepare(tmp_path / "v.mp4", tmp_path / "some", size=16, every=2, limit=3, shard=2)
    assert [entry.name for entry in list_entries(tmp_path / "some").entries] == [f"v-{n:06d}.png" for n in (0, 2, 4)]
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    with pytest.raises(UserError, match="the video .*bad.mp4 cannot be decoded"):
        prepare(tmp_path / "bad.mp4", tmp_path / "bad.tar", size=16)
    (tmp_path / "list.mp4").write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile://{tmp_path}/v.mp4\n#EXT-X-ENDLIST\n")
    with pytest.raises(UserError, match="the video .*list.mp4 cannot be decoded"):
        prepare(tmp_path / "list.mp4", tmp_path / "list.tar", size=16)
    fill(tmp_path / "in", 1)
    with pytest.raises(UserError, match="is no video; leave --every 2 out"):
        prepare(tmp_path / "in", tmp_path / "in.tar", every=2)


def test_the_frames_of_a_turned_video_stand_upright(tmp_path):
    videos = pytest.importorskip("videos", reason="needs PyAV")
    frame = np.full((48, 64, 3), 20, np.uint8)
    frame[:, 32:] = 220  # the right half, which a turn to the left brings to the top
    videos.write_video(tmp_path / "v.mov", [frame] * 2, rotation=90, sound=None)
    prepare(tmp_path / "v.mov", tmp_path / "all.tar", size=16)
    rows = open_pictures(tmp_path / "all.tar", size=16).batch([0])[0].float().mean((0, 2))
    assert (rows[:7] > 200).all() and (rows[9:] < 40).all()


def test_mnist_files_go_into_shards_too(tmp_path):
    with gzip.open(tmp_path / "digits-images-idx3-ubyte.gz", "wb") as file:
        file.write(struct.pack(">IIII", 2051, 5, 28, 28) + bytes(range(0, 250, 50)) * 784)
    prepare(tmp_path / "digits-images-idx3-ubyte.gz", tmp_path / "out", size=28, shard=2)
    assert [entry.name for entry in list_entries(tmp_path / "out").entries] == [f"{n:05d}.png" for n in range(5)]
    assert sorted(path.name for path in (tmp_path / "out").glob("*.tar")) == ["000000.tar", "000001.tar", "000002.tar"]


# ---- shards


def test_shards_are_what_webdataset_reads(tmp_path, capsys):
    fill(tmp_path / "in" / "deep", 5)
    (tmp_path / "in" / "deep" / "001.jpg").write_bytes((tmp_path / "in" / "deep" / "001.png").read_bytes())
    (tmp_path / "in" / "deep" / "b.1.png").write_bytes((tmp_path / "in" / "deep" / "000.png").read_bytes())
    (tmp_path / "in" / "deep" / "003.png").write_bytes(b"x")
    prepare(tmp_path / "in", tmp_path / "out", size=16, shard=3, workers=3)
    said = capsys.readouterr().out
    assert "6 pictures of 16x16 in 3 shards" in said and "1 skipped: deep/003.png" in said
    names = [tarfile.open(tmp_path / "out" / f"{k:06d}.tar").getnames() for k in range(3)]
    assert names == [["deep/000.png", "deep/001.png", "deep/001_png.png"], ["deep/002.png", "deep/004.png"], ["deep/b_1.png"]]
    again = open_pictures(tmp_path / "out", size=16)
    assert len(again) == 6 and not again.others
    webdataset = pytest.importorskip("webdataset")
    urls = [str(tmp_path / "out" / f"{k:06d}.tar") for k in range(3)]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode("rgb8"))
    assert [sample["__key__"] for sample in samples] == [name[:-4] for shard in names for name in shard]
    assert np.array_equal(samples[0]["png"], noise(16, 16, seed=0))


def test_shards_go_on_where_they_were_stopped(tmp_path, monkeypatch, capsys):
    fill(tmp_path / "in", 10)
    prepare(tmp_path / "in", tmp_path / "whole", size=8, shard=3)
    original, writes = preparing_shards.atomic_write, iter(range(9))

    def stopped(path):
        if next(writes) == 2:
            raise KeyboardInterrupt
        return original(path)

    monkeypatch.setattr(preparing_shards, "atomic_write", stopped)
    with pytest.raises(KeyboardInterrupt):
        prepare(tmp_path / "in", tmp_path / "out", size=8, shard=3)
    monkeypatch.undo()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.tar")}
    assert len(before) == 2
    prepare(tmp_path / "in", tmp_path / "out", size=8, shard=3, workers=1)
    assert "goes on behind 2 finished shards" in capsys.readouterr().out
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    for path in (tmp_path / "whole").glob("*.tar"):
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes()
    assert json.loads((tmp_path / "out" / "report.json").read_text())["pictures"] == 10
    with pytest.raises(UserError, match="holds another run .size: 8 there, 9 now"):
        prepare(tmp_path / "in", tmp_path / "out", size=9, shard=3)
    fill(tmp_path / "in", 11)
    with pytest.raises(UserError, match="are not those that .* was begun with"):
        prepare(tmp_path / "in", tmp_path / "out", size=8, shard=3)


def test_shards_refuse_what_makes_no_sense(tmp_path):
    fill(tmp_path / "in", 1)
    for match, out, options in (
        ("give --out a name without .tar", "out.tar", {}),
        ("--overwrite is for one tar", "out", {"overwrite": True}),
        ("lies in --source", "in/out", {}),
    ):
        with pytest.raises(UserError, match=match):
            prepare(tmp_path / "in", tmp_path / out, shard=2, **options)
