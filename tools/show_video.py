# SPDX-License-Identifier: Apache-2.0
"""A packaged held-out digit moving in a known way, with noise and a tone; how an edit is propagated to it; its pictures.

python tools/show_video.py make FOLDER                       # FOLDER/moving.mp4, 10 s of 512 x 512, and FOLDER/truth.npz
python tools/show_video.py measure RUN FOLDER                # jitter and error of every way of smoothing
python tools/show_video.py pictures RUN FOLDER docs/images   # the pictures of docs/editing.md
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from gangealing_fast import Aligner
from gangealing_fast.applications.blending import blend
from gangealing_fast.applications.frames import Drawing, Frame, Seen, draw, see
from gangealing_fast.applications.smoothing import Jitter, Smoothing
from gangealing_fast.applications.tracking import in_picture, lattice
from gangealing_fast.data.digits import load_heldout_digits, warp_digits
from gangealing_fast.data.pictures import to_float
from gangealing_fast.data.video import Video, pyav
from gangealing_fast.geometry.warps import identity_grid, invert, similarity_matrix, transform_points
from gangealing_fast.ops import mipmap_warp
from gangealing_fast.report.pictures import save_grid

SIDE, SECONDS, RATE = 512, 10, 25
COUNT = SECONDS * RATE
WAYS = (
    ("none", Smoothing()),
    ("one-euro", Smoothing("one-euro")),
    ("kalman", Smoothing("kalman")),
    ("kalman, cutoff 0.5", Smoothing("kalman", cutoff=0.5)),
)


def motion(number: int) -> Tensor:
    """`[1, 2, 3]`: where the still picture lies in frame `number`: it turns, grows and wanders slowly, in half pictures."""
    seconds = number / RATE
    values = (
        0.35 * math.sin(0.9 * seconds),
        0.12 * math.sin(0.7 * seconds + 1),
        0.16 * math.sin(0.8 * seconds),
        0.12 * math.cos(1.1 * seconds),
    )
    return similarity_matrix(*(torch.tensor([value]) for value in values))


def frames() -> Iterator[Tensor]:
    """uint8 `[3, H, W]`: a digit that moves, under noise that is new in every frame."""
    digit = F.interpolate(warp_digits(load_heldout_digits((3,)).images[4:5]), size=(SIDE, SIDE), mode="bicubic").clamp(-1, 1)
    generator = torch.Generator().manual_seed(0)
    base = identity_grid(SIDE, SIDE)[None]
    for number in range(COUNT):
        moved = mipmap_warp(digit, transform_points(invert(motion(number)), base), padding_mode="border")
        coarse = torch.randn(1, 1, SIDE // 8, SIDE // 8, generator=generator)
        noisy = moved + 0.25 * F.interpolate(coarse, size=(SIDE, SIDE), mode="bilinear")
        yield ((noisy + 1) * 127.5).clamp(0, 255).to(torch.uint8)[0]


def make(folder: Path) -> None:
    """Write the video and the true motion."""
    folder.mkdir(parents=True, exist_ok=True)
    av, heard = pyav(), 48000
    with av.open(str(folder / "moving.mp4"), "w") as file:
        video = file.add_stream("libx264", rate=Fraction(RATE), options={"crf": "14"})
        video.width = video.height = SIDE
        video.pix_fmt = "yuv420p"
        tone = file.add_stream("aac", rate=heard, layout="mono")
        for number, picture in enumerate(frames()):
            frame = av.VideoFrame.from_ndarray(picture.permute(1, 2, 0).contiguous().numpy(), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, RATE)
            file.mux(video.encode(frame))
            samples = numpy.arange(number * heard // RATE, (number + 1) * heard // RATE)
            wave = (0.2 * numpy.sin(2 * numpy.pi * 440 * samples / heard)).astype(numpy.float32)
            sound = av.AudioFrame.from_ndarray(wave[None], format="fltp", layout="mono")
            sound.sample_rate, sound.pts = heard, int(samples[0])
            file.mux(tone.encode(sound))
        file.mux(video.encode())
        file.mux(tone.encode())
    numpy.savez(folder / "truth.npz", matrices=torch.cat([motion(number) for number in range(COUNT)]).numpy())
    print(f"{COUNT} frames of {SIDE} x {SIDE} with a tone: {folder / 'moving.mp4'}; the motion: truth.npz")


def read(folder: Path) -> list[Frame]:
    """All frames of the video: it is short."""
    with Video(folder / "moving.mp4") as video:
        return [Frame(frame.picture, video.seconds(frame.stamp)) for frame in video.read()]


def error_of(looks: list[Seen], matrices: Tensor) -> tuple[float, float]:
    """(jitter, error) in pixels. A point that is tracked should stay with the digit: carried back by the true motion, it should lie
    where it lies on average. The error is the root of the mean square distance to that place."""
    jitter, still = Jitter(), []
    for seen, matrix in zip(looks, matrices, strict=True):
        points = in_picture(seen.look.square, seen.look.alignment.grid, lattice(9))
        jitter.add(points)
        places = (2 * points + 1) / SIDE - 1
        still.append(transform_points(invert(matrix[None]), places[None])[0] * (SIDE / 2))
    stays = torch.stack(still)
    error = (stays - stays.mean(0)).square().sum(-1).mean().sqrt().item()
    assert jitter.value is not None
    return jitter.value, error


def measure(run: Path, folder: Path) -> None:
    """A table: each way of smoothing, with the jitter of the true motion itself for comparison."""
    aligner, taken = Aligner.load(run), read(folder)
    matrices = torch.from_numpy(numpy.load(folder / "truth.npz")["matrices"])
    true = Jitter()
    for matrix in matrices:
        true.add(transform_points(matrix[None], lattice(9)[None])[0] * (SIDE / 2))
    print(f"| smoothing | jitter (pixels of {SIDE}) | error against the true motion (pixels) |\n|---|---|---|")
    for name, smoothing in WAYS:
        jitter, error = error_of(list(see(aligner, taken, smoothing=smoothing)), matrices)
        print(f"| {name} | {jitter:.2f} | {error:.2f} |", flush=True)
    print(f"| the true motion itself | {true.value:.3f} | 0 |")


def edit(side: int = 256) -> Tensor:
    """A disc and a bar with soft rims as `[1, 4, S, S]`: colours times opacity, and opacity."""
    drawn = Image.new("RGBA", (side, side))
    pen = ImageDraw.Draw(drawn)
    pen.ellipse((70, 40, 130, 100), fill=(255, 60, 40, 255))
    pen.rectangle((60, 200, 200, 218), fill=(60, 160, 255, 255))
    values = torch.from_numpy(numpy.array(drawn)).permute(2, 0, 1)[None].float() / 255
    return torch.cat([values[:, :3] * values[:, 3:], values[:, 3:]], 1)


def pictures(run: Path, folder: Path, images: Path) -> None:
    """video-frames.png: frames as they are, with an edit, a mask and points; blending.png: the three ways to lay an edit over."""
    aligner, taken = Aligner.load(run), read(folder)
    chosen = [taken[number] for number in range(0, COUNT, COUNT // 4)][:4]
    everywhere = torch.ones(1, 4, 64, 64)
    everywhere[:, :3] = 0
    ways = (
        (edit(), Drawing()),
        (edit(), Drawing("mask")),
        (everywhere, Drawing("points", points=40, radius=3.0, colours="place")),
    )
    rows = [torch.cat([to_float(frame.picture) for frame in chosen])]
    for marks, drawing in ways:
        looks = see(aligner, chosen)
        rows.append(torch.stack([to_float(draw(aligner, one.frame.picture, marks, one.look, drawing)[0]) for one in looks]))
    small = F.interpolate(torch.cat(rows), size=(88, 88), mode="bilinear", antialias=True)
    save_grid(small, images / "video-frames.png", columns=4)
    x = torch.linspace(-0.6, 0.5, 160).expand(1, 3, 160, 160)
    patch = torch.zeros(1, 4, 160, 160)
    patch[:, :, 50:110, 50:110] = torch.tensor([0.85, 0.55, 0.2, 1.0])[None, :, None, None]
    patch[:, :3, 60:100:8, 60:100] *= 0.6
    shown = torch.cat([blend(x, patch, "alpha"), blend(x, patch, "laplacian-light"), blend(x, patch, "laplacian")])
    save_grid(shown.clamp(-1, 1), images / "blending.png", columns=3)
    print(f"{images / 'video-frames.png'} and {images / 'blending.png'}")


if __name__ == "__main__":
    {"make": make, "measure": measure, "pictures": pictures}[sys.argv[1]](*map(Path, sys.argv[2:]))
