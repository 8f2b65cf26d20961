# SPDX-License-Identifier: Apache-2.0
# %% [markdown]
# # Edit a video
#
# The frames of a video of one thing are a set of pictures of one kind. So they can be aligned jointly, and what is drawn on their
# template once appears on every frame. Here the video is a cat of the package's generator that sways. Writing and reading videos
# needs the extra `gangealing_fast[video]`.

# %%
import math
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import torch
from PIL import Image, ImageDraw

import gangealing_fast
from gangealing_fast import Aligner, ops
from gangealing_fast.checkpoints.reading import load_generator
from gangealing_fast.data.pictures import to_float, to_uint8
from gangealing_fast.data.video import Video, video_writer
from gangealing_fast.storage.files import save_picture

torch.manual_seed(2)
generator = load_generator(Path(gangealing_fast.__file__).parent / "assets" / "cats" / "generator.safetensors")
with torch.no_grad():
    cat = generator(torch.randn(1, generator.latent_dim), truncation=0.6, truncation_latent=generator.mean_latent()).clamp(-1, 1)
side, count = 128, 16
frames = []
for number in range(count):
    angle = 0.3 * math.sin(2 * math.pi * number / count)
    turn = 2 * torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    middle, before = torch.tensor([(side - 1) / 2] * 2), torch.tensor([31.5, 31.5])
    matrix = torch.cat([turn, (middle - turn @ before)[:, None]], 1)
    frames.append(to_uint8(ops.antialiased_warp(cat, matrix[None], (side, side), padding_mode="border"))[0])
with video_writer(Path("cat.mp4"), (side, side), Fraction(8), Fraction(1, 8)) as writer:
    for number, frame in enumerate(frames):
        writer.write(frame, number)

# %% [markdown]
# Some of the frames make the template.

# %%
Path("frames").mkdir(exist_ok=True)
with Video(Path("cat.mp4")) as video:
    for number, frame in enumerate(video.read()):
        save_picture(Path("frames") / f"{number:04}.png", to_float(frame.picture)[0])
command = [sys.executable, "-m", "gangealing_fast.congeal", "--data", "frames", "--out", "set", "--no-pictures"]
subprocess.run(command, check=True)

# %% [markdown]
# An edit is drawn on `set/template.png`, or on a picture of the same size, and carried to every frame. `--smooth` steadies it.

# %%
size = Aligner.load("set").size
drawing = Image.new("RGBA", (size, size))
ImageDraw.Draw(drawing).rectangle((size // 4, size // 3, 3 * size // 4, size // 3 + size // 10), fill=(20, 90, 220, 230))
drawing.save("band.png")
command = [sys.executable, "-m", "gangealing_fast.propagate", "--checkpoint", "set", "--data", "cat.mp4", "--edit", "band.png"]
subprocess.run([*command, "--out", "edited", "--smooth", "kalman"], check=True)
print("the edited video:", *sorted(path.name for path in Path("edited").glob("*.mp4")))
