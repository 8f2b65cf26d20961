# SPDX-License-Identifier: Apache-2.0
"""The frames of a video as pictures, one after the other, upright, whatever their sizes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from gangealing_fast.data.video import opened, pyav, upright
from gangealing_fast.runtime.errors import UserError


def read_frames(path: Path, *, every: int = 1, first: int = 0) -> Iterator[tuple[int, Image.Image]]:
    """(number in the video, picture in mode RGB) of every `every`-th frame from the `first` of these on.

    Raises UserError if the file is no video that can be decoded, or the package av is missing.
    """
    av = pyav()
    try:
        with opened(path) as container:
            if not container.streams.video:
                raise UserError(f"{path} has no pictures in it, only sound; give a video")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            for number, frame in enumerate(container.decode(stream)):
                if number % every == 0 and number // every >= first:
                    yield number, Image.fromarray(upright(frame)[0].permute(1, 2, 0).numpy())
    except (av.FFmpegError, OSError) as error:
        raise UserError(f"the video {path} cannot be decoded ({error}); convert it to MP4 (H.264)") from None
