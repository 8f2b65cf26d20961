# SPDX-License-Identifier: Apache-2.0
"""The frames of a video as pictures, one after the other, upright; PyAV decodes them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from gangealing_fast.runtime.errors import UserError

ENDINGS = frozenset({".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ogv", ".mts", ".m2ts", ".wmv", ".flv"})
_TURNS = {
    90: Image.Transpose.ROTATE_90,
    180: Image.Transpose.ROTATE_180,
    270: Image.Transpose.ROTATE_270,
}


def is_video(path: Path) -> bool:
    """Whether a file's name ends as those of videos do."""
    return path.is_file() and path.suffix.lower() in ENDINGS


def read_frames(path: Path, *, every: int = 1, first: int = 0) -> Iterator[tuple[int, Image.Image]]:
    """(number in the video, picture in mode RGB) of every `every`-th frame from the `first` of these on.

    Raises UserError if the file is no video that can be decoded, or the package av is missing.
    """
    try:
        import av
    except ImportError:
        raise UserError(f"{path} is a video, whose frames the package av reads: pip install gangealing_fast[scale]") from None
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise UserError(f"{path} has no pictures in it, only sound; give a video")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            for number, frame in enumerate(container.decode(stream)):
                if number % every == 0 and number // every >= first:
                    picture = frame.to_image()
                    turn = _TURNS.get(round(getattr(frame, "rotation", 0)) % 360)
                    yield number, picture if turn is None else picture.transpose(turn)
    except (av.FFmpegError, OSError) as error:
        raise UserError(f"the video {path} cannot be decoded ({error}); convert it to MP4 (H.264)") from None
