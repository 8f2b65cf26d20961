# SPDX-License-Identifier: Apache-2.0
# %% [markdown]
# # One operator in a network of your own
#
# A convolution with stride 2 keeps every second value and forgets the rest, so that a picture that moves by one pixel can give
# another answer (aliasing). `ops.upfirdn2d` smooths and halves in one fused pass, forward and backward. Here a small classifier of
# the packaged digits is trained twice, with and without it. Then the digits are moved by one pixel.

# %%
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gangealing_fast import ops
from gangealing_fast.data.digits import load_heldout_digits

torch.manual_seed(0)
digits = load_heldout_digits()
images = F.pad(digits.images[:, None].float() / 127.5 - 1, (2, 2, 2, 2), value=-1.0)  # 28x28 to 32x32
classes, labels = digits.labels.unique(return_inverse=True)
print(f"{len(images)} digits of {len(classes)} classes, {images.shape[2]}x{images.shape[3]}")

# %% [markdown]
# The operator is a function like any other: it takes tensors, has a gradient, and works within `nn.Module` and `torch.compile`.


# %%
class Halve(nn.Module):
    """Every second value, of the values themselves or of a smoothed copy of them."""

    def __init__(self, smooth: bool) -> None:
        super().__init__()
        self.smooth = smooth
        self.register_buffer("filter", ops.blur_filter())

    def forward(self, x: Tensor) -> Tensor:
        if not self.smooth:
            return x[:, :, ::2, ::2]
        return ops.upfirdn2d(x, self.filter, down=2, padding=(1, 1))


def classifier(smooth: bool) -> nn.Sequential:
    """Three convolutions, each followed by a halving, and a mean over all places."""
    layers: list[nn.Module] = []
    for channels in (1, 24, 24):
        layers += [nn.Conv2d(channels, 24, 3, padding=1), nn.ReLU(), Halve(smooth)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, len(classes)))


def train(network: nn.Module, steps: int = 220) -> nn.Module:
    """On half of the digits."""
    optimizer = torch.optim.Adam(network.parameters(), 5e-3)
    for _ in range(steps):
        chosen = torch.randint(0, len(images) // 2, (64,)) * 2
        loss = F.cross_entropy(network(images[chosen]), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval()


# %% [markdown]
# How much do the answers change if the other half of the digits moves by one pixel? Here is the mean change of the probabilities,
# over eight directions.


# %%
@torch.no_grad()
def unrest(network: nn.Module) -> float:
    """The mean change of the probabilities over all moves by one pixel."""
    held_out = images[1::2]
    still = network(held_out).softmax(1)
    moves = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0)]
    changes = [(network(held_out.roll(move, (2, 3))).softmax(1) - still).abs().sum(1).mean() / 2 for move in moves]
    return float(torch.stack(changes).mean())


found = {}
for name, smooth in (("strided", False), ("smoothed by ops.upfirdn2d", True)):
    network = train(classifier(smooth))
    right = (network(images[1::2]).argmax(1) == labels[1::2]).float().mean()
    found[name] = unrest(network)
    print(f"{name}: {right:.1%} of the held-out digits right, answers change by {found[name]:.2%} if they move by a pixel")

# %% [markdown]
# `with ops.reference():` runs the plain definition instead of the kernel. Both give the same numbers.

# %%
x = torch.randn(8, 32, 64, 64)
fast = ops.upfirdn2d(x, ops.blur_filter(), down=2, padding=(1, 1))
with ops.reference():
    plain = ops.upfirdn2d(x, ops.blur_filter(), down=2, padding=(1, 1))
print(f"largest difference between kernel and definition: {(fast - plain).abs().max():.1e}")
