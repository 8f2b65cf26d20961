# SPDX-License-Identifier: Apache-2.0
"""Uploaded videos: judged by the package's own reader; some frames are shown at once, the whole is made by `propagate`."""

from __future__ import annotations

import secrets
import shutil
import subprocess
import sys
from pathlib import Path

from gangealing_fast.data.originals import SMALLEST
from gangealing_fast.data.video import Video, opened, pyav
from gangealing_fast.interface.pictures import Picture, plain_name, read_picture, resized
from gangealing_fast.interface.sessions import Clip, Desk
from gangealing_fast.runtime.errors import UserError
from gangealing_fast.runtime.text import printable
from gangealing_fast.storage.files import save_picture, write_bytes

STRIP = 12
"""Frames that are shown at once: as many at least, where there are as many, and less than twice as many at most."""
LARGEST_FRAME = 4096 * 2304
"""Pixels of a frame, at most."""
_LONGEST = 512
SMOOTHINGS = ("none", "kalman", "one-euro")


def uploaded(content: bytes, name: str, folder: Path, frames: int) -> Clip:
    """Keep an uploaded file, in a folder of its own, if it is a video.

    Raises UserError with one sentence otherwise, and keeps nothing.
    """
    name = plain_name(name)
    place = folder / f"clip-{secrets.token_hex(12)}"
    place.mkdir()
    path = place / "video.mp4"
    try:
        write_bytes(path, content)
        return _read(path, name, frames)
    except BaseException as error:
        shutil.rmtree(place, ignore_errors=True)
        if not isinstance(error, UserError):
            raise
        reason = str(error).replace(str(path), "it")
        raise UserError(f"{printable(name)} is refused: {reason}") from None


def _read(path: Path, name: str, frames: int) -> Clip:
    every, count = 1, 0
    kept: dict[int, Path] = {}
    _check_frames(*_said_size(path))  # before anything is decoded
    with Video(path, limit=frames) as video:
        _check_frames(video.width, video.height)
        for frame in video.read():
            if count % every == 0:
                kept[count] = path.with_name(f"frame-{count:06d}.png")
                save_picture(kept[count], resized(frame.picture[0], min(_LONGEST, max(frame.picture.shape[2:]))))
                if len(kept) >= 2 * STRIP:
                    every *= 2
                    for number in [number for number in kept if number % every]:
                        kept.pop(number).unlink()
            count += 1
        seconds = float(every / video.rate)
    if count < 2:
        raise UserError("it has one frame alone; add it as a picture")
    strip = [_shown(number, place) for number, place in kept.items()]
    return Clip(name, path, strip, seconds, count)


def _shown(number: int, path: Path) -> Picture:
    return Picture(f"frame {number}", lambda: read_picture(path), path.with_name("preview"), path=path)


def _said_size(path: Path) -> tuple[int, int]:
    """(width, height) of the frames as the file says, (0, 0) if it is no video: whoever reads it says why."""
    try:
        with opened(path) as container:
            stream = container.streams.video[0]
            return int(getattr(stream, "width", 0)), int(getattr(stream, "height", 0))
    except (OSError, IndexError, pyav().error.FFmpegError):
        return 0, 0


def _check_frames(width: int, height: int) -> None:
    if width * height > LARGEST_FRAME or 0 < min(width, height) < SMALLEST:
        raise UserError(f"its frames are {width}x{height}, but sides from {SMALLEST} and as many pixels as 4096x2304 are taken")


class Rendering:
    """`propagate` at work on a desk's video, as a process of its own, which ends with the desk.

    Raises UserError if there is no video, or nothing is drawn.
    """

    def __init__(self, desk: Desk, smooth: str, threads: int) -> None:
        if desk.clip is None:
            raise UserError("there is no video yet; add one first")
        if not desk.edits:
            raise UserError("there is nothing on the template yet; draw something first")
        if smooth not in SMOOTHINGS:
            raise UserError(f"there is no smoothing {printable(smooth)}; choose one of {', '.join(SMOOTHINGS)}")
        self.desk, self.out = desk, desk.folder / f"film-{secrets.token_hex(6)}"
        names = [desk.edit_file(k) if k in desk.edits else "none" for k in range(desk.bench.clusters)]
        words: list[object] = ["--checkpoint", desk.bench.path, "--data", desk.clip.path, "--edit", *names, "--out", self.out]
        words += ["--opacity", f"{desk.opacity:g}", "--blend", desk.blend, "--limit", desk.clip.frames]
        words += ["--smooth", smooth, "--threads", threads]
        self._said = desk.folder / f"{self.out.name}.txt"
        with open(self._said, "wb") as said:
            command = [sys.executable, "-m", "gangealing_fast.propagate", *map(str, words)]
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, start_new_session=True)
        desk.jobs.append(self.stop)

    def stop(self) -> None:
        """End it, if it still runs."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def done(self) -> bool:
        """Whether it has ended."""
        return self._process.poll() is not None

    def share(self) -> str:
        """How far it is, in the words of its progress bar."""
        return _last(self._said)

    def result(self) -> Path:
        """The video. Raises UserError if there is none, with the command's sentence."""
        self._process.wait()
        path = self.out / "edited.mp4"
        if not path.exists():
            reason = _last(self._said).removeprefix("error: ") or "it was stopped"
            raise UserError(f"the video could not be made: {reason.replace(str(self.desk.folder), '')}")
        return path


def _last(path: Path) -> str:
    lines = path.read_bytes()[-2000:].decode(errors="replace").replace("\r", "\n").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
