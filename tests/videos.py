# SPDX-License-Identifier: Apache-2.0
"""Small videos with sound, made by PyAV, and what is read back of them."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np

RATE = Fraction(25)
SOUND_RATE = 16000


def pictures(count: int, height: int = 64, width: int = 64) -> list[np.ndarray]:
    """uint8 `[H, W, 3]`: a smooth pattern that moves a pixel a frame."""
    rows, columns = np.mgrid[:height, :width]
    made = []
    for number in range(count):
        wave = np.stack([np.sin((columns + number) / 14), np.cos(rows / 11), np.sin((rows + columns) / 19)], -1)
        made.append((127.5 + 100 * wave).astype(np.uint8))
    return made


def write_video(
    path: Path,
    frames: Sequence[np.ndarray],
    *,
    rate: Fraction = RATE,
    stamps: Sequence[int] | None = None,
    codec: str = "libx264",
    sound: str | None = "aac",
    rotation: int = 0,
) -> Path:
    """A video of `frames`, with a tone if `sound` names a codec. stamps: in units of 1 / rate; rotation: counterclockwise."""
    stamps = range(len(frames)) if stamps is None else stamps
    with av.open(str(path), "w") as file:
        video = file.add_stream(codec, rate=rate, options={"crf": "4"} if codec == "libx264" else {})
        video.height, video.width = frames[0].shape[:2]
        video.pix_fmt = "yuv420p"
        video.codec_context.time_base = 1 / rate
        if rotation:
            video.set_display_rotation(rotation)
        tone = file.add_stream(sound, rate=SOUND_RATE, layout="mono") if sound else None
        for picture, stamp in zip(frames, stamps, strict=True):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = stamp, 1 / rate
            file.mux(video.encode(frame))
        file.mux(video.encode())
        if tone is not None:
            length = int(SOUND_RATE * (stamps[-1] + 1) / rate)
            for start in range(0, length - 1023, 1024):
                wave = np.sin(2 * np.pi * 440 * np.arange(start, start + 1024) / SOUND_RATE) * 0.3
                of = tone.codec_context.format.name
                values = wave.astype(np.float32) if of == "fltp" else (wave * 127 + 128).astype(np.uint8)
                heard = av.AudioFrame.from_ndarray(values[None], format=of, layout="mono")
                heard.sample_rate, heard.pts = SOUND_RATE, start
                file.mux(tone.encode(heard))
            file.mux(tone.encode())
    return path


class Read(NamedTuple):
    """pictures: uint8 `[H, W, 3]`. seconds: their times. rate: frames a second. sound: its packets. codecs: by name."""

    pictures: list[np.ndarray]
    seconds: list[float]
    rate: Fraction
    sound: list[bytes]
    codecs: list[str]


def read_video(path: Path) -> Read:
    """All of a video."""
    with av.open(str(path)) as file:
        stream = file.streams.video[0]
        rate, codecs = stream.average_rate, [other.codec_context.name for other in file.streams.audio]
        frames = [(frame.to_ndarray(format="rgb24"), float(frame.pts * frame.time_base)) for frame in file.decode(video=0)]
    with av.open(str(path)) as file:
        sound = [bytes(packet) for packet in file.demux(audio=0) if packet.size] if codecs else []
    return Read([picture for picture, _ in frames], [time for _, time in frames], rate, sound, codecs)
