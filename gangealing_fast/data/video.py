# SPDX-License-Identifier: Apache-2.0
"""Videos read and written with PyAV, frame by frame: time stamps, frame rate, orientation and sound are kept.

PyAV is the extra `[video]`. It is imported when the first video is opened.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy
import torch
from torch import Tensor

from gangealing_fast.runtime.errors import UserError
from gangealing_fast.storage.files import atomic_write, open_regular, read_error

Container = Literal["mp4", "mkv", "mov"]
ENDINGS = {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".wmv", ".flv", ".3gp", ".ogv"}
ENCODER = "libx264"
_MUXERS = {"mp4": "mp4", "mkv": "matroska", "mov": "mov"}


def is_video(path: Path) -> bool:
    """Whether a path is that of a video, by the ending of its name."""
    return path.suffix.lower() in ENDINGS and not path.is_dir()


def pyav() -> Any:
    """The module av. Raises UserError if it is not installed."""
    try:
        import av
    except ImportError:
        raise UserError("videos are read and written with the package av: pip install gangealing_fast[video]") from None
    return av


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Any]:
    """PyAV's container of a file while the block runs. Raises OSError or av's errors if it cannot be opened."""
    # Play lists and the like name other files and addresses: none of them is opened.
    with open_regular(path) as file, pyav().open(file, options={"protocol_whitelist": "none"}) as container:
        yield container


class VideoFrame(NamedTuple):
    """number: from 0. stamp: its time in units of `Video.time_base`, duration: how long it is shown, 0 if the file does not say.
    picture: uint8 `[1, 3, H, W]`, upright."""

    number: int
    stamp: int
    duration: int
    picture: Tensor


class Video:
    """The first video stream of a file, to be read once from first to last.

    width, height: of the upright frames. rate: frames a second, on average. time_base: seconds of a unit of a time stamp. frames:
    how many frames the file says it has, or None. sound: its audio streams. limit: only the first so many frames.
    Raises UserError if the file is no video, or if what was read so far shows that it is damaged or that its frames change in size.
    """

    def __init__(self, path: Path, *, limit: int | None = None) -> None:
        self._av, self.path, self._limit = pyav(), path, limit
        with contextlib.ExitStack() as stack:
            try:
                self._container = stack.enter_context(opened(path))
            except self._av.error.FFmpegError as error:
                raise UserError(f"{path} is no video that can be read ({_reason(error)}); give another file") from None
            except OSError as error:
                raise read_error(path, error) from None
            if not self._container.streams.video:
                raise UserError(f"{path} has no video stream (it holds sound alone); give another file")
            self._stream = self._container.streams.video[0]
            self._stream.thread_type = "AUTO"
            self.sound: list[Any] = list(self._container.streams.audio)
            self.rate = Fraction(self._stream.average_rate or self._stream.guessed_rate or 25)
            self.time_base = Fraction(self._stream.time_base or 1 / self.rate)
            self.aspect = Fraction(self._stream.sample_aspect_ratio or 1)
            self._waiting = self._items()
            self._first = next((item for item in self._waiting if isinstance(item, VideoFrame)), None)
            if self._first is None:
                raise UserError(f"{path} has a video stream without a frame; give another file")
            self.height, self.width = self._first.picture.shape[2:]
            known = self._stream.frames or None
            self.frames = known if known is None or limit is None else min(known, limit)
            self._opened = stack.pop_all()

    def seconds(self, stamp: int) -> float:
        """The time of a time stamp."""
        return float(stamp * self.time_base)

    def read(self, sound: Callable[[Any], None] | None = None) -> Iterator[VideoFrame]:
        """The frames; packets of sound are handed to `sound` in the order of the file, from the beginning."""
        for packet in self._early:
            if sound is not None:
                sound(packet)
        self._early.clear()
        assert self._first is not None
        yield self._first
        for item in self._waiting:
            if not isinstance(item, VideoFrame):
                if sound is not None:
                    sound(item)
                continue
            if item.picture.shape != self._first.picture.shape:
                height, width = item.picture.shape[2:]
                raise UserError(
                    f"frame {item.number} of {self.path} is {width}x{height}, but those before it are {self.width}x{self.height}; "
                    "cut the video where its size changes"
                )
            yield item

    def _items(self) -> Iterator[Any]:
        """Frames and packets of sound; those before the first frame go to `_early`, to be handed on when reading begins."""
        self._early: list[Any] = []
        number, last = 0, None
        while True:
            try:
                packet = next(self._packets(), None)
                frames = [] if packet is None or packet.stream is not self._stream else packet.decode()
            except (self._av.error.FFmpegError, OSError) as error:
                raise UserError(
                    f"{self.path} is damaged behind frame {number} ({_reason(error)}); give a whole file, or --limit {number}"
                ) from None
            if packet is None:
                return
            if packet.stream is not self._stream:
                if packet.dts is not None and number == 0:
                    self._early.append(packet)
                elif packet.dts is not None:
                    yield packet
                continue
            for frame in frames:
                stamp = frame.pts if frame.pts is not None else round(number / self.rate / self.time_base)
                last = stamp if last is None else max(stamp, last + 1)
                yield VideoFrame(number, last, frame.duration or 0, upright(frame))
                number += 1
                if number == self._limit:
                    return

    def _packets(self) -> Iterator[Any]:
        if not hasattr(self, "_demuxed"):
            self._demuxed = self._container.demux([self._stream, *self.sound])
        return self._demuxed

    def close(self) -> None:
        """Close the file."""
        self._opened.close()

    def __enter__(self) -> Video:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def upright(frame: Any) -> Tensor:
    """uint8 `[1, 3, H, W]` of a decoded frame, turned as its file says (counterclockwise, by quarters)."""
    pixels = frame.to_ndarray(format="rgb24")
    angle = frame.rotation if math.isfinite(frame.rotation) else 0  # a damaged matrix has none
    turned = numpy.rot90(pixels, round(angle / 90) % 4)
    return torch.from_numpy(numpy.ascontiguousarray(turned)).permute(2, 0, 1)[None]


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)


@contextlib.contextmanager
def video_writer(
    path: Path,
    size: tuple[int, int],
    rate: Fraction,
    time_base: Fraction,
    *,
    container: Container = "mp4",
    sound: Sequence[Any] = (),
    aspect: Fraction = Fraction(1),
    quality: int = 18,
) -> Iterator[VideoWriter]:
    """A video of H.264 (4:2:0, BT.709) under a temporary name, which becomes `path` when the block ends without an error.

    size: (width, height) of the frames; an odd side gets one pixel more, which repeats the edge, as 4:2:0 knows even sides alone.
    rate, time_base: as in `Video`. sound: audio streams of a video whose packets will be copied as they are. aspect: width over
    height of a pixel. quality: x264's rate factor, from 0 (lossless) to 51.
    Raises UserError if a codec of the sound does not fit into the container, and for whatever a disk refuses.
    """
    av = pyav()
    with atomic_write(path) as file, av.open(file, "w", format=_MUXERS[container]) as opened:
        try:
            stream = opened.add_stream(ENCODER, rate=rate, options={"crf": str(quality)})
        except (av.error.FFmpegError, ValueError):
            raise UserError("this build of the package av has no encoder for H.264 (libx264); install another one") from None
        writer = VideoWriter(av, opened, stream, size, time_base, aspect)
        for one in sound:
            writer.expect(one, container)
        yield writer
        writer.finish()


class VideoWriter:
    """What `video_writer` gives: takes frames and packets of sound."""

    def __init__(self, av: Any, container: Any, stream: Any, size: tuple[int, int], time_base: Fraction, aspect: Fraction) -> None:
        self._av, self._container, self._stream, self.size, self.time_base = av, container, stream, size, time_base
        self.even = (size[0] + size[0] % 2, size[1] + size[1] % 2)
        self._copies: dict[int, Any] = {}
        self._durations: dict[int, int] = {}
        self._configure(aspect)

    def _configure(self, aspect: Fraction) -> None:
        stream, reformatter = self._stream, self._av.video.reformatter
        stream.width, stream.height = self.even
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.time_base = self.time_base
        context.sample_aspect_ratio = aspect
        context.colorspace = reformatter.Colorspace.ITU709
        context.color_range = reformatter.ColorRange.MPEG
        context.color_primaries = context.color_trc = 1  # BT.709

    def expect(self, stream: Any, container: Container) -> None:
        """Packets of this audio stream of another file will be copied. Raises UserError if the container cannot hold them."""
        name = stream.codec_context.name
        refused = UserError(
            f"the sound is {name}, which a file .{container} cannot hold; give --container mkv, or --no-sound to leave it out"
        )
        if stream.codec_context.codec.canonical_name not in self._container.supported_codecs:
            raise refused
        try:
            self._copies[stream.index] = self._container.add_stream_from_template(stream)
        except (self._av.error.FFmpegError, ValueError):
            raise refused from None

    def write(self, picture: Tensor, stamp: int, duration: int = 0) -> None:
        """The next frame, uint8 `[3, H, W]`, at a time stamp that is later than the one before; duration: 0 for the usual one."""
        pixels = picture.permute(1, 2, 0).numpy()
        missing = [(0, even - side) for even, side in zip(self.even[::-1], self.size[::-1], strict=True)]
        if self.even != self.size:
            pixels = numpy.pad(pixels, (*missing, (0, 0)), mode="edge")
        frame = self._av.VideoFrame.from_ndarray(numpy.ascontiguousarray(pixels), format="rgb24")
        names = self._av.video.reformatter
        frame = frame.reformat(format="yuv420p", dst_colorspace=names.Colorspace.ITU709, dst_color_range=names.ColorRange.MPEG)
        frame.pts, frame.time_base = stamp, self.time_base
        self._durations[stamp] = duration
        self._mux(self._stream.encode(frame))

    def copy(self, packet: Any) -> None:
        """A packet of sound, as it is."""
        packet.stream = self._copies[packet.stream.index]
        self._container.mux(packet)

    def finish(self) -> None:
        """Write what the encoder still holds."""
        self._mux(self._stream.encode())

    def _mux(self, packets: Sequence[Any]) -> None:
        for packet in packets:
            # The encoder takes every frame for one of the average length, which would change that average.
            packet.duration = self._durations.pop(packet.pts, 0) or packet.duration
            self._container.mux(packet)
