# SPDX-License-Identifier: Apache-2.0
"""LPIPS with a VGG16 backbone (arXiv 1801.03924), and the choice of a perceptual distance by name.

Nothing is downloaded and no pickled code runs: weights come from files that are already on the machine.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gangealing_fast.models.efficientnet import EfficientNetPerceptual
from gangealing_fast.models.layers import FrozenCopies, activation_format, computed_dtype
from gangealing_fast.models.self_supervised import UNCALIBRATED_DIVISOR, SelfSupervisedPerceptual
from gangealing_fast.ops.lpips_distance import lpips_distance
from gangealing_fast.runtime.errors import UserError
from gangealing_fast.storage.networks import fitting, read_weights

# (index in VGG16's list of layers, output channels) of the convolutions of each slice; a slice but the first starts
# by pooling
_SLICES = (
    ((0, 64), (2, 64)),
    ((5, 128), (7, 128)),
    ((10, 256), (12, 256), (14, 256)),
    ((17, 512), (19, 512), (21, 512)),
    ((24, 512), (26, 512), (28, 512)),
)
BACKBONE_FILE = "vgg16-397923af.pth"
PERCEPTUAL_NAMES = ("efficientnet", "lpips", "self")


def _heads_file() -> Path | None:
    """Heads for VGG16 inside the installed `lpips` package; finding it imports nothing."""
    spec = importlib.util.find_spec("lpips")
    for root in spec.submodule_search_locations or () if spec else ():
        file = Path(root, "weights", "v0.1", "vgg.pth")
        if file.is_file():
            return file
    return None


def _backbone_file() -> Path:
    return Path(torch.hub.get_dir(), "checkpoints", BACKBONE_FILE)


class _Scaling(nn.Module):
    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188])[None, :, None, None])
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450])[None, :, None, None])

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.shift) / self.scale


class _Vgg16(nn.Module):
    """VGG16's convolutions, named as in LPIPS (`slice{1..5}.{index}`); returns relu 1_2, 2_2, 3_3, 4_3 and 5_3."""

    def __init__(self) -> None:
        super().__init__()
        channels = 3
        for number, layers in enumerate(_SLICES, start=1):
            convolutions = nn.ModuleDict()
            for index, width in layers:
                convolutions[str(index)] = nn.Conv2d(channels, width, 3, padding=1)
                channels = width
            setattr(self, f"slice{number}", convolutions)
        self._copies = {(number, index): FrozenCopies() for number, layers in enumerate(_SLICES, 1) for index, _ in layers}

    def forward(self, x: Tensor) -> list[Tensor]:
        taps = []
        for number in range(1, len(_SLICES) + 1):
            if number > 1:
                x = F.max_pool2d(x, 2)
            for index, convolution in getattr(self, f"slice{number}").items():
                weight = self._copies[number, int(index)].cast(convolution.weight, computed_dtype(x))
                x = F.relu(F.conv2d(x, weight, convolution.bias, padding=1))
            taps.append(x)
        return taps


class _Head(nn.Module):
    """One tap's 1x1 head, under the published name `lin{i}.model.1.weight`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.model = nn.ModuleDict({"1": nn.Conv2d(channels, 1, 1, bias=False)})

    @property
    def weight(self) -> Tensor:
        convolution = self.model["1"]
        assert isinstance(convolution, nn.Conv2d)
        return convolution.weight


class Lpips(nn.Module):
    """LPIPS between pictures `[N, 3, H, W]` in [-1, 1], H and W 16 or more: `[N]`.

    backbone: a VGG16 file (torchvision's, or one with the keys of a whole `Lpips`), torchvision's cache where None.
    heads: a file of calibrated heads; that of the installed `lpips` package (or those in the backbone's file) where
    None.
    calibrated: False takes heads of ones, and divides the sum by 18 as the self-supervised backbone is used.
    pretrained: False leaves the weights as initialised, to be loaded by `load_state_dict`.
    Frozen: gradients reach the pictures only. Raises UserError where a file is missing or wrong.
    """

    def __init__(
        self,
        backbone: str | Path | None = None,
        heads: str | Path | None = None,
        *,
        calibrated: bool = True,
        pretrained: bool = True,
    ) -> None:
        super().__init__()
        self.calibrated = calibrated
        self.scaling_layer = _Scaling()
        self.net = _Vgg16()
        for index, layers in enumerate(_SLICES):
            setattr(self, f"lin{index}", _Head(layers[-1][1]))
        self.register_load_state_dict_pre_hook(_drop_aliases)
        if pretrained:
            self._load(backbone, heads)
        self.requires_grad_(False).to(memory_format=activation_format())
        self.eval()

    def _load(self, backbone: str | Path | None, heads: str | Path | None) -> None:
        path = Path(backbone) if backbone is not None else _backbone_file()
        if not path.is_file():
            raise UserError(
                f"the VGG16 weights of the lpips distance were not found at {path}: put torchvision's {BACKBONE_FILE} "
                "there, give its path, or use the efficientnet distance, whose weights are installed with this package."
            )
        state = read_weights(path, "VGG16")
        if "features.0.weight" in state:
            numbers = {index: number for number, layers in enumerate(_SLICES, start=1) for index, _ in layers}
            state = {
                f"net.slice{number}.{index}.{kind}": state[f"features.{index}.{kind}"]
                for index, number in numbers.items()
                for kind in ("weight", "bias")
                if f"features.{index}.{kind}" in state
            }
        if self.calibrated:
            found = Path(heads) if heads is not None else None if "lin0.model.1.weight" in state else _heads_file()
            if found is not None:
                state = {**state, **{k: v for k, v in read_weights(found, "LPIPS heads").items() if k.startswith("lin")}}
            elif "lin0.model.1.weight" not in state:
                raise UserError(
                    "the heads of the lpips distance were not found: install the package lpips (pip install lpips), "
                    "give the path of its weights/v0.1/vgg.pth, or use calibrated=False."
                )
        wanted = {k: v for k, v in state.items() if self.calibrated or not k.startswith("lin")}
        own = {k for k in self.state_dict() if not k.startswith("scaling_layer.") and (self.calibrated or not k.startswith("lin"))}
        if missing := sorted(own - wanted.keys()):
            raise UserError(f"the VGG16 or LPIPS file {path} lacks {missing[0]}: give torchvision's {BACKBONE_FILE}.")
        try:
            stated = self.state_dict()
            self.load_state_dict(fitting({k: wanted[k] for k in own}, {k: stated[k] for k in own}), strict=False)
        except ValueError as error:
            raise UserError(f"the VGG16 or LPIPS file {path} does not fit: {error}.") from None

    def features(self, x: Tensor) -> list[Tensor]:
        """The five feature maps, finest first."""
        if x.ndim != 4 or x.shape[1] not in (1, 3) or min(x.shape[2:]) < 16:
            raise ValueError(f"pictures must be [N, 3, H, W] (or [N, 1, H, W]) with sides of 16 or more, got {list(x.shape)}.")
        return self.net(self.scaling_layer(x).contiguous(memory_format=activation_format()))

    def embedding(self, x: Tensor) -> Tensor:
        """`[N, D]`: the spatial means of all feature maps, side by side, in float32."""
        return torch.cat([feature.float().mean((2, 3)) for feature in self.features(x)], dim=1)

    def distance(self, features_a: Sequence[Tensor], features_b: Sequence[Tensor]) -> Tensor:
        """Distance `[N]` of pictures whose `features` are at hand."""
        if self.calibrated:
            heads = [getattr(self, f"lin{index}").weight for index in range(len(_SLICES))]
            return lpips_distance(features_a, features_b, heads)
        return lpips_distance(features_a, features_b) / UNCALIBRATED_DIVISOR

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.distance(self.features(a), self.features(b))

    def train(self, mode: bool = True) -> Lpips:
        return super().train(False)


def _drop_aliases(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Published state dicts name every head twice, `lin0` and `lins.0`."""
    for key in [key for key in state if key.startswith(f"{prefix}lins.")]:
        del state[key]


def build_perceptual(name: str = "efficientnet", **options: Any) -> EfficientNetPerceptual | Lpips | SelfSupervisedPerceptual:
    """The perceptual distance called `name`, with that class's options.

    "efficientnet" works offline, "lpips" needs VGG16's weights, "self" the `weights` that the contrast command learned.
    """
    if name == "efficientnet":
        return EfficientNetPerceptual(**options)
    if name == "lpips":
        return Lpips(**options)
    if name == "self":
        if options.get("weights") is None:
            raise UserError(
                "the self-supervised distance has no weights yet: learn them with python -m gangealing_fast.contrast and give its "
                "results folder with --perceptual-weights"
            )
        return SelfSupervisedPerceptual.load(options["weights"])
    raise UserError(f"the perceptual distance must be one of {', '.join(PERCEPTUAL_NAMES)}, got {name!r}.")
