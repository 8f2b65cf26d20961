# SPDX-License-Identifier: Apache-2.0
"""`propagate` on videos: frames, times and sound are kept, the edit lies where it should, mistakes are sentences."""

from __future__ import annotations

import re
import sys
from fractions import Fraction

import numpy as np
import pytest
import torch
from aligners import aligner, clustered, composed
from PIL import Image
from runs import call
from safetensors.numpy import load_file
from videos import RATE, pictures, read_video, write_video

from gangealing_fast import propagate
from gangealing_fast.applications.blending import lay_over
from gangealing_fast.applications.frames import Drawing, Frame, draw, see
from gangealing_fast.applications.propagating import read_edit
from gangealing_fast.applications.smoothing import Smoothing
from gangealing_fast.checkpoints.writing import export_aligner
from gangealing_fast.data.pictures import to_float, to_uint8
from gangealing_fast.data.video import Video, is_video, video_writer
from gangealing_fast.runtime.errors import UserError
from gangealing_fast.storage.files import read_json_lines


def square_edit(path, colour=(255, 0, 0, 255)):
    """A red square in the middle of nothing."""
    values = np.zeros((32, 32, 4), np.uint8)
    values[8:24, 8:24] = colour
    Image.fromarray(values).save(path)
    return path


@pytest.fixture
def place(tmp_path):
    """An aligner that moves everything a little, and an edit."""
    model = composed()
    export_aligner(tmp_path / "aligner.safetensors", model.transformer, None, model.warping)
    square_edit(tmp_path / "edit.png")
    return tmp_path


def run(monkeypatch, place, data, *options):
    arguments = ["--checkpoint", place / "aligner.safetensors", "--data", data, "--edit", place / "edit.png"]
    return call(monkeypatch, propagate, *arguments, "--out", place / "out", *options)


def close(first, second, tolerance=6):
    """Whether two 8-bit pictures are alike but for what H.264 changes."""
    return np.abs(first.astype(int) - second.astype(int)).mean() < tolerance


def test_frames_rate_times_and_sound_are_kept(place, monkeypatch, capsys):
    stamps = [0, 1, 2, 4, 5, 9, 10, 11, 12, 13, 20, 21, 22, 23, 24, 25]
    source = write_video(place / "a.mp4", pictures(16), stamps=stamps)
    assert run(monkeypatch, place, source, "--batch", 5, "--quality", 6) == 0
    before, after = read_video(source), read_video(place / "out" / "edited.mp4")
    assert len(after.pictures) == 16 and after.rate == before.rate
    assert after.seconds == before.seconds == pytest.approx([stamp / 25 for stamp in stamps])
    assert after.codecs == ["aac"] and after.sound == before.sound and len(after.sound) > 10
    model, edit = composed(), read_edit(place / "edit.png")
    for number in (0, 9, 15):  # what is drawn is what the aligner says of that very frame
        image = to_float(torch.from_numpy(before.pictures[number]).permute(2, 0, 1)[None])
        expected = to_uint8(lay_over(image, model.maps_from_template(image, edit)[0]).clamp(-1, 1))[0].permute(1, 2, 0).numpy()
        assert close(after.pictures[number], expected) and not close(after.pictures[number], before.pictures[number])
    lines = read_json_lines(place / "out" / "edits.jsonl")
    assert [line["frame"] for line in lines] == list(range(16)) and all(0 < line["covered"] < 1 for line in lines)
    assert [line["seconds"] for line in lines] == pytest.approx(before.seconds)
    assert "16 frames in" in (said := capsys.readouterr().out) and "jitter: " in said


def test_a_turned_video_is_edited_upright(place, monkeypatch):
    frames = pictures(4, 48, 64)
    source = write_video(place / "a.mov", frames, rotation=90, sound=None)
    with Video(source) as video:
        assert (video.width, video.height) == (48, 64)
        first = next(iter(video.read())).picture[0].permute(1, 2, 0).numpy()
    assert close(first, np.rot90(frames[0]))
    assert run(monkeypatch, place, source, "--show", "mask", "--container", "mov") == 0
    assert read_video(place / "out" / "edited.mov").pictures[0].shape == (64, 48, 3)


def test_everything_beside_the_edit(place, monkeypatch):
    source = write_video(place / "a.mkv", pictures(6, 40, 56))
    options = ["--congealed", "--congealed-resolution", 48, "--save-frames", "--correspondences", "safetensors"]
    assert run(monkeypatch, place, source, *options, "--correspondence-points", 4, "--no-sound", "--container", "mkv") == 0
    out = place / "out"
    aligned, edited = read_video(out / "aligned.mkv"), read_video(out / "edited.mkv")
    assert len(aligned.pictures) == len(edited.pictures) == 6 and edited.codecs == []
    model, found = composed(), load_file(out / "correspondences.safetensors")
    assert found["points"].shape == (6, 16, 2) and found["seconds"] == pytest.approx(edited.seconds)
    for number, picture in enumerate(read_video(source).pictures):
        image = to_float(torch.from_numpy(picture).permute(2, 0, 1)[None])
        expected = model.from_template(image, torch.from_numpy(found["template"])[None])[0]
        np.testing.assert_allclose(found["points"][number], expected.numpy(), atol=1e-3)
    assert close(aligned.pictures[5], to_uint8(model.align(image, output_resolution=48))[0].permute(1, 2, 0).numpy())
    saved = np.asarray(Image.open(out / "frame-000005.png"))
    assert saved.shape == (40, 56, 3) and close(saved, edited.pictures[5]) and not list(out.glob(".*.tmp"))


def test_correspondences_as_npz(place, monkeypatch):
    source = write_video(place / "a.mp4", pictures(3), sound=None)
    assert run(monkeypatch, place, source, "--correspondences", "npz", "--correspondence-points", 3) == 0
    found = np.load(place / "out" / "correspondences.npz")
    assert found["points"].shape == (3, 9, 2) and found["template"].shape == (9, 2) and found["seconds"].shape == (3,)
    assert np.isfinite(found["points"]).all()


def test_odd_sides_get_one_pixel_more(place, monkeypatch, capsys):
    source = write_video(place / "a.mkv", pictures(3, 63, 61), codec="ffv1", sound=None)
    assert run(monkeypatch, place, source, "--save-frames") == 0
    assert "gets one pixel more" in capsys.readouterr().out
    assert read_video(place / "out" / "edited.mp4").pictures[0].shape == (64, 62, 3)
    assert Image.open(place / "out" / "frame-000000.png").size == (61, 63)


def test_limit_takes_the_first_frames(place, monkeypatch):
    source = write_video(place / "a.mp4", pictures(20))
    assert run(monkeypatch, place, source, "--limit", 7) == 0
    after = read_video(place / "out" / "edited.mp4")
    assert len(after.pictures) == 7 and after.seconds == pytest.approx(np.arange(7) / 25)


def test_points_are_painted_where_they_lie():
    """Each of a few points of the template colours the pixels of the picture that `from_template` names, and no others."""
    model, side = aligner(scale=0.05), 4
    edit = torch.zeros(1, 4, 32, 32)
    edit[:, 3], edit[:, 1] = 1, 1
    picture = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    look = model.look(to_float(picture))
    drawn, covered = draw(model, picture, edit, look, Drawing("points", points=side, radius=1.0))
    template = torch.stack(torch.meshgrid(*[(torch.arange(side) + 0.5) * 8 - 0.5] * 2, indexing="xy"), -1).reshape(1, -1, 2)
    expected = model.from_template(to_float(picture), template)[0]
    inside = ((expected > 2) & (expected < 61)).all(1)
    rows, columns = np.mgrid[:64, :64]
    distance = np.min([np.hypot(columns - x, rows - y) for x, y in expected.tolist()], axis=0)
    green = drawn[1].numpy()
    assert inside.sum() > 8 and (green[distance < 0.4] > 230).all() and not green[distance > 4].any()
    assert not drawn[0].any() and covered == pytest.approx(green.mean() / 255, abs=2e-3)
    coloured, _ = draw(model, picture, edit, look, Drawing("points", points=side, radius=1.0, colours="place"))
    assert len({tuple(coloured[:, round(y), round(x)].tolist()) for x, y in expected[inside].tolist()}) > 6


def test_points_in_chunks_are_all_points_at_once(monkeypatch):
    from gangealing_fast.applications import tracking

    model = composed()
    edit = torch.rand(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    edit[:, :3] *= edit[:, 3:]
    picture = torch.randint(0, 255, (1, 3, 40, 40), dtype=torch.uint8)
    look = model.look(to_float(picture))
    how = Drawing("points", points=64, radius=0.7)
    whole, _ = draw(model, picture, edit, look, how)
    monkeypatch.setattr(tracking, "CHUNK", 200)
    parts, _ = draw(model, picture, edit, look, how)
    assert (whole.int() - parts.int()).abs().max() <= 1 and not torch.equal(whole, picture[0])


def test_a_mask_is_white_on_black(place, monkeypatch):
    source = write_video(place / "a.mp4", pictures(3), sound=None)
    assert run(monkeypatch, place, source, "--show", "mask", "--save-frames") == 0
    values = np.asarray(Image.open(place / "out" / "frame-000001.png"))
    line = read_json_lines(place / "out" / "edits.jsonl")[1]
    assert (values[..., 0] == values[..., 2]).all() and values.max() == 255 and values.min() == 0
    assert values.mean() / 255 == pytest.approx(line["covered"], abs=2e-3)


def test_from_python_frames_come_as_they_are_read():
    model, taken = composed(), []

    def frames():
        for picture in pictures(10, 32, 40):
            taken.append(picture)
            yield torch.from_numpy(picture).permute(2, 0, 1)

    edit = torch.zeros(1, 4, 32, 32)
    edit[:, [0, 3], 8:24, 8:24] = 1
    edited = model.propagate(frames(), edit, batch=4)
    first = next(edited)
    assert len(taken) == 4 and first.dtype == torch.uint8 and first.shape == (3, 32, 40)
    rest = list(edited)
    assert len(taken) == 10 and len(rest) == 9
    image = to_float(torch.from_numpy(taken[9]).permute(2, 0, 1)[None])
    expected = to_uint8(lay_over(image, model.maps_from_template(image, edit)[0]))[0]
    assert (rest[8].int() - expected.int()).abs().max() <= 1
    floats = torch.stack([to_float(torch.from_numpy(picture).permute(2, 0, 1)) for picture in taken])
    for one, other in zip(model.propagate(floats, edit, batch=4), [first, *rest], strict=True):
        assert torch.equal(one, other)
    for wrong, words in (([torch.zeros(1, 4, 4)], "frame"), ([taken[0]], "frame")):
        with pytest.raises(ValueError, match=words):
            list(model.propagate(wrong, edit))
    with pytest.raises(ValueError, match="edit"):
        list(model.propagate(floats, edit[0]))


def test_each_cluster_of_a_frame_has_its_edit():
    model = clustered()
    frames = [torch.randint(0, 255, (3, 24, 24), dtype=torch.uint8) for _ in range(12)]
    edit = torch.ones(1, 4, 16, 16)
    result = list(model.propagate(frames, {0: None, 1: edit}, batch=5))
    clusters = model.assign(to_float(torch.stack(frames)))[0].tolist()
    assert {0, 1} == set(clusters)
    for before, after, cluster in zip(frames, result, clusters, strict=True):
        assert torch.equal(before, after) or cluster == 1


def test_smoothed_looks_shake_less_and_draw_where_they_say():
    """Frames of one picture with noise: the warps differ by noise alone."""
    model = composed()
    still = torch.from_numpy(pictures(1)[0]).permute(2, 0, 1)[None].float()
    generator = torch.Generator().manual_seed(1)
    frames = [
        Frame((still + 25 * torch.randn(still.shape, generator=generator)).clamp(0, 255).to(torch.uint8), k / 25) for k in range(24)
    ]
    seen = list(see(model, frames, batch=7, smoothing=Smoothing("kalman", cutoff=0.5, flow=0.8)))
    found = torch.cat([one.found.alignment.grid for one in seen[8:]]).std(0).mean()
    smooth = torch.cat([one.look.alignment.grid for one in seen[8:]]).std(0).mean()
    assert smooth < 0.6 * found
    plain = list(see(model, frames[:3], smoothing=Smoothing()))
    assert all(one.look.alignment is one.found.alignment for one in plain)
    torch.testing.assert_close(seen[0].look.alignment.grid, seen[0].found.alignment.grid)


@pytest.mark.parametrize("name", ["text.mp4", "empty.mp4", "cut.mp4", "missing.mp4", "sound.mp4", "list.mp4"])
def test_what_is_no_video_is_a_sentence(place, monkeypatch, capsys, name):
    whole = write_video(place / "whole.mp4", pictures(8)).read_bytes()
    words = "is no video that can be read"
    if name == "text.mp4":
        (place / name).write_text("no video at all\n" * 50)
    elif name == "empty.mp4":
        (place / name).write_bytes(b"")
    elif name == "cut.mp4":
        (place / name).write_bytes(whole[: len(whole) // 3])
    elif name == "list.mp4":  # a play list that names another file
        (place / name).write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile://{place}/whole.mp4\n#EXT-X-ENDLIST\n")
    elif name == "missing.mp4":
        words = "no such file"
    else:
        import av

        with av.open(str(place / name), "w", format="mp4") as file:
            tone = file.add_stream("aac", rate=16000, layout="mono")
            heard = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            heard.sample_rate = 16000
            file.mux(tone.encode(heard))
            file.mux(tone.encode())
        words = "has no video stream"
    assert run(monkeypatch, place, place / name) == 2
    error = capsys.readouterr().err
    assert words in error and name in error and error.count("\n") == 1 and not (place / "out").exists()


def test_a_video_that_breaks_off_leaves_no_video(place, monkeypatch, capsys):
    """Data that is damaged in the middle, as PyAV says it."""
    import av

    write_video(place / "a.mkv", pictures(40), sound=None, codec="mpeg4")
    packets = Video._packets

    def breaking(self):
        self.asked = getattr(self, "asked", 0) + 1
        if self.asked == 30:
            raise av.error.InvalidDataError(1094995529, "Invalid data found when processing input", "x")
        return packets(self)

    monkeypatch.setattr(Video, "_packets", breaking)
    assert run(monkeypatch, place, place / "a.mkv") == 2
    error = capsys.readouterr().err
    assert "a.mkv is damaged behind frame" in error
    number = int(re.search(r"--limit (\d+)$", error)[1])
    assert 3 < number < 30
    assert not (place / "out" / "edited.mp4").exists() and not list((place / "out").glob(".*.tmp"))
    assert run(monkeypatch, place, place / "a.mkv", "--limit", number) == 0
    assert len(read_video(place / "out" / "edited.mp4").pictures) == number


def test_frames_that_change_in_size_are_named(place, monkeypatch, capsys):
    """Two transport streams behind one another, as cameras write them."""
    parts = [write_video(place / f"{size}.ts", pictures(9, size, size), codec="mpeg2video", sound=None) for size in (64, 32)]
    joined = place / "joined.ts"
    joined.write_bytes(b"".join(part.read_bytes() for part in parts))
    assert run(monkeypatch, place, joined) == 2
    error = capsys.readouterr().err
    assert "is 32x32, but those before it are 64x64" in error and not (place / "out" / "edited.mp4").exists()


def test_a_stream_without_frames_is_named(tmp_path):
    source = write_video(tmp_path / "a.mp4", pictures(1))
    with pytest.raises(UserError, match="without a frame"):
        _without_frames(source)


def _without_frames(source):
    class Empty(Video):
        def _items(self):
            self._early = []
            return iter(())

    return Empty(source)


def test_sound_that_a_container_cannot_hold_is_named(place, monkeypatch, capsys):
    source = write_video(place / "a.mkv", pictures(3), sound="tta")
    assert run(monkeypatch, place, source, "--container", "mov") == 2
    error = capsys.readouterr().err
    assert "the sound is tta" in error and "--container mkv" in error and error.count("\n") == 1
    assert run(monkeypatch, place, source, "--container", "mkv") == 0
    assert read_video(place / "out" / "edited.mkv").codecs == ["tta"]


def test_without_pyav_a_sentence_names_the_extra(place, monkeypatch, capsys):
    (place / "a.mp4").write_bytes(b"x")
    monkeypatch.setitem(sys.modules, "av", None)
    assert run(monkeypatch, place, place / "a.mp4") == 2
    assert "pip install gangealing_fast[video]" in capsys.readouterr().err


def test_options_of_videos_are_refused_for_pictures(place, monkeypatch, capsys):
    (place / "pictures").mkdir()
    for option in (["--smooth", "kalman"], ["--congealed"], ["--show", "mask"]):
        assert run(monkeypatch, place, place / "pictures", *option) == 2
        assert f"{option[0]} belongs to videos" in capsys.readouterr().err
    write_video(place / "a.mp4", pictures(2))
    assert run(monkeypatch, place, place / "a.mp4", "--crop", "center") == 2
    assert "--crop belongs to pictures" in capsys.readouterr().err
    assert not (place / "out").exists()


def test_pictures_take_a_pyramid_too(place, monkeypatch):
    (place / "pictures").mkdir()
    Image.fromarray(pictures(1)[0]).save(place / "pictures" / "a.png")
    for blend in ("alpha", "laplacian", "laplacian-light"):
        assert run(monkeypatch, place, place / "pictures", "--blend", blend) == 0
        (place / f"{blend}.png").write_bytes((place / "out" / "000000-a.png").read_bytes())
    contents = {(place / f"{blend}.png").read_bytes() for blend in ("alpha", "laplacian", "laplacian-light")}
    assert len(contents) == 3


def test_a_writer_that_is_interrupted_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), video_writer(tmp_path / "a.mp4", (16, 16), RATE, Fraction(1, 25)) as writer:
        writer.write(torch.zeros(3, 16, 16, dtype=torch.uint8), 0)
        assert [path.name for path in tmp_path.iterdir()] == [".a.mp4.tmp"]
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_videos_are_told_by_their_names(tmp_path):
    (tmp_path / "folder.mp4").mkdir()
    assert is_video(tmp_path / "A.MP4") and not is_video(tmp_path / "folder.mp4") and not is_video(tmp_path / "a.tar")
