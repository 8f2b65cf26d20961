# SPDX-License-Identifier: Apache-2.0
"""What `python -m gangealing_fast.propagate` does with a video: an edit on every frame, in one pass, in bounded memory."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm import tqdm

from gangealing_fast.applications.aligner import Aligner
from gangealing_fast.applications.config import PropagateConfig, VideoOptions
from gangealing_fast.applications.correspondences import Correspondences, collected
from gangealing_fast.applications.frames import Drawing, Frame, Seen, congealed, draw, see
from gangealing_fast.applications.smoothing import Jitter, Smoothing
from gangealing_fast.applications.tracking import in_picture, lattice
from gangealing_fast.data.video import Video, VideoWriter, video_writer
from gangealing_fast.runtime.errors import UserError
from gangealing_fast.runtime.text import printable
from gangealing_fast.storage.files import JsonLines, save_picture

WRITES = r"(edited|aligned)\.(mp4|mkv|mov)|frame-[0-9]{6,}\.png|correspondences\.(npz|safetensors)"
_FOLLOWED = 9
"""Points along each side of the template whose trembling is measured."""


def refuse_for_pictures(config: PropagateConfig) -> None:
    """Raise UserError for an option of videos: what --data names are pictures."""
    shared = {field.name for base in VideoOptions.__bases__ for field in dataclasses.fields(base)}
    for field in dataclasses.fields(VideoOptions):
        if field.name not in shared and getattr(config, field.name) != field.default:
            option = "--" + field.name.replace("_", "-")
            raise UserError(f"{option} belongs to videos, but --data {config.data} is none by its name; leave the option out")


def film(config: PropagateConfig, aligner: Aligner, edits: Mapping[int, Tensor | None], folder: Path) -> None:
    """Edit the video `config.data` into `folder`. Raises UserError for a user's mistakes: then no video is written."""
    if config.crop != "none":
        raise UserError("--crop belongs to pictures; frames of a video are kept whole")
    with Video(config.data, limit=config.limit) as video:
        if min(video.width, video.height) < 2:
            raise UserError(f"{config.data} is {video.width}x{video.height}, but frames need sides of two pixels or more")
        work = _Film(config, aligner, edits, folder, video)
        began = time.perf_counter()
        count = work.run()
        passed = time.perf_counter() - began
    print(f"{count} frames in {passed:.1f} s, {count / passed:.1f} a second")
    if video.frames is not None and count < video.frames:
        print(f"notice: {printable(config.data)} says that it has {video.frames} frames, but no more than these can be read")
    print(work.told())
    print(f"{work.edited.name} and edits.jsonl (a line for each frame) are in {printable(config.out)}")
    if config.smooth == "none" and not config.smooth_flow:
        print("next: if the edit trembles, give --smooth kalman or --smooth one-euro")


class _Film:
    """One video on its way: what is written of it, and its jitter before and after smoothing."""

    def __init__(
        self, config: PropagateConfig, aligner: Aligner, edits: Mapping[int, Tensor | None], folder: Path, video: Video
    ) -> None:
        self._config, self._aligner, self._edits, self._folder, self._video = config, aligner, edits, folder, video
        self.edited = folder / f"edited.{config.container}"
        self._drawing = Drawing(config.show, config.blend, config.points, config.point_radius, config.point_colours)
        self._smoothing = Smoothing(config.smooth, config.smooth_cutoff, config.smooth_beta, config.smooth_flow)
        self._before, self._after = Jitter(), Jitter()
        self._followed = lattice(_FOLLOWED)
        self._last: tuple[int, bool] | None = None

    def run(self) -> int:
        """Edit all frames; returns how many."""
        config, video = self._config, self._video
        sound = video.sound if config.sound else []
        count = 0
        with contextlib.ExitStack() as files:
            writer = files.enter_context(self._writer(self.edited, (video.width, video.height), sound, video.aspect))
            lines = files.enter_context(JsonLines(self._folder / "edits.jsonl"))
            stamps: list[tuple[int, int]] = []
            seen_frames = see(
                self._aligner,
                self._frames(stamps, writer.copy if sound else None),
                batch=config.batch,
                smoothing=self._smoothing,
            )
            aligned: VideoWriter | None = None
            places: Correspondences | None = None
            for seen in tqdm(seen_frames, total=video.frames, unit="frame", desc="propagate"):
                if count == 0:
                    aligned = self._aligned(files, seen)
                    places = self._places(files, seen)
                stamp = stamps.pop(0)
                lines.append(self._one(seen, count, stamp, writer))
                if aligned is not None:
                    aligned.write(congealed(self._aligner, seen, aligned.size[0]), *stamp)
                if places is not None:
                    found = in_picture(seen.look.square, seen.look.alignment.grid, lattice(config.correspondence_points))
                    places.add(found, seen.frame.seconds)
                count += 1
        return count

    def _frames(self, stamps: list[tuple[int, int]], sound: Any) -> Iterator[Frame]:
        for frame in self._video.read(sound):
            stamps.append((frame.stamp, frame.duration))
            yield Frame(frame.picture, self._video.seconds(frame.stamp))

    def _writer(
        self, path: Path, size: tuple[int, int], sound: Any = (), aspect: Any = 1
    ) -> contextlib.AbstractContextManager[VideoWriter]:
        config, video = self._config, self._video
        if size[0] % 2 or size[1] % 2:
            print(f"notice: {path.name} gets one pixel more where {size[0]}x{size[1]} is odd: H.264 in 4:2:0 has even sides alone")
        return video_writer(
            path,
            size,
            video.rate,
            video.time_base,
            container=config.container,
            sound=sound,
            aspect=aspect,
            quality=config.quality,
        )

    def _aligned(self, files: contextlib.ExitStack, seen: Seen) -> VideoWriter | None:
        if not self._config.congealed:
            return None
        side = self._config.congealed_resolution or seen.look.alignment.grid.shape[1]
        return files.enter_context(self._writer(self._folder / f"aligned.{self._config.container}", (side, side)))

    def _places(self, files: contextlib.ExitStack, seen: Seen) -> Correspondences | None:
        if self._config.correspondences == "none":
            return None
        size = seen.look.alignment.grid.shape[1]
        template = (lattice(self._config.correspondence_points) + 1) * (size / 2) - 0.5
        path = self._folder / f"correspondences.{self._config.correspondences}"
        return files.enter_context(collected(path, template))

    def _one(self, seen: Seen, number: int, stamp: tuple[int, int], writer: VideoWriter) -> dict[str, Any]:
        """Draw and write one frame; its line of edits.jsonl."""
        look = seen.look
        cluster, mirrored = int(look.cluster), bool(look.mirrored)
        drawn, covered = draw(self._aligner, seen.frame.picture, self._edits.get(cluster), look, self._drawing)
        writer.write(drawn, *stamp)
        if self._config.save_frames:
            save_picture(self._folder / f"frame-{number:06d}.png", drawn)
        self._measure(seen, (cluster, mirrored))
        matrix = look.alignment.matrix
        return {
            "frame": number,
            "seconds": seen.frame.seconds,
            "cluster": cluster,
            "mirrored": mirrored,
            "covered": covered,
            "matrix": None if matrix is None else matrix[0].flatten().tolist(),
        }

    def _measure(self, seen: Seen, of: tuple[int, bool]) -> None:
        if of != self._last:
            self._before.restart()
            self._after.restart()
        self._last = of
        for jitter, look in ((self._before, seen.found), (self._after, seen.look)):
            jitter.add(in_picture(look.square, look.alignment.grid, self._followed))

    def told(self) -> str:
        """The jitter in a sentence."""
        if self._before.value is None or self._after.value is None:
            return "jitter: three frames are needed to measure it"
        text = f"jitter: {self._before.value:.3f} pixels"
        return text + (f", {self._after.value:.3f} after smoothing" if self._smoothing.active else "")
