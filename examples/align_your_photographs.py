# SPDX-License-Identifier: Apache-2.0
# %% [markdown]
# # Align your photographs
#
# A folder of unaligned pictures of one kind of thing is all that is needed: no training, no labels, no network. Here the pictures
# come from the generator of cats in the package, each turned and shifted at random. Put your own folder in place of `photos`.

# %%
import subprocess
import sys
from pathlib import Path

import torch
from PIL import Image, ImageDraw

import gangealing_fast
from gangealing_fast import Aligner, ops
from gangealing_fast.checkpoints.reading import load_generator
from gangealing_fast.data.digits import random_similarity
from gangealing_fast.geometry.warps import identity_grid, transform_points
from gangealing_fast.storage.files import save_picture

torch.manual_seed(1)
generator = load_generator(Path(gangealing_fast.__file__).parent / "assets" / "cats" / "generator.safetensors")
with torch.no_grad():
    z = torch.randn(16, generator.latent_dim)
    cats = generator(z, truncation=0.6, truncation_latent=generator.mean_latent()).clamp(-1, 1)
poses = random_similarity(len(cats), rotation=25, scale=(0.8, 1.2), shift=0.1)
grid = transform_points(poses, identity_grid(128, 128)[None])
photos = Path("photos")
photos.mkdir(exist_ok=True)
for number, picture in enumerate(ops.antialiased_warp(cats, grid, padding_mode="border")):
    save_picture(photos / f"cat-{number:02}.png", picture)

# %% [markdown]
# One command aligns them. `set/report.html` shows what came of it: the average before and after, every picture, and which of
# them do not belong to the others.

# %%
command = [sys.executable, "-m", "gangealing_fast.congeal", "--data", "photos", "--out", "set"]
subprocess.run(command, check=True)

# %% [markdown]
# In Python the set is an aligner. Where does a point of the template lie in each picture, and where does a point of one picture lie
# in another?

# %%
aligner = Aligner.load("set")
names = sorted(path.name for path in photos.glob("*.png"))
middle = torch.full((1, 1, 2), (aligner.size - 1) / 2)
for name in names[:3]:
    x, y = aligner.from_template([name], middle)[0, 0].tolist()
    print(f"the middle of the template is at ({x:.1f}, {y:.1f}) of {name}")
x, y = aligner.transfer([names[0]], [names[1]], torch.tensor([[[64.0, 64.0]]]))[0, 0].tolist()
print(f"what {names[0]} shows at (64, 64) is at ({x:.1f}, {y:.1f}) of {names[1]}")

# %% [markdown]
# What is drawn on the template once appears in every picture. `set/template.png` is what to draw on.

# %%
drawing = Image.new("RGBA", (256, 256))
ImageDraw.Draw(drawing).ellipse((96, 150, 160, 190), fill=(230, 30, 60, 200))
drawing.save("nose.png")
command = [sys.executable, "-m", "gangealing_fast.propagate", "--checkpoint", "set", "--data", "photos"]
subprocess.run([*command, "--edit", "nose.png", "--out", "edited"], check=True)
print(f"{len(list(Path('edited').glob('*.png')))} edited pictures are in the folder edited")
