# SPDX-License-Identifier: Apache-2.0
"""The networks of MUNIT (Huang et al. 2018, arXiv 1804.04732, section 5.1 and appendix B.1), one set for each domain.

Content is where something is, style is how it looks. The content encoder normalises every instance, which takes the style out. The
style encoder normalises nothing. The decoder's residual blocks get scale and shift of their normalisation from the style.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gangealing_fast.models.layers import activation_format
from gangealing_fast.ops import adain, bias_act
from gangealing_fast.ops._dispatch import reference_wanted

LEAST_STYLE_HALVINGS = 2


class Convolution(nn.Module):
    """Convolution that keeps the size, or halves it (stride 2, an even kernel), beyond the edge the nearest pixels; no bias."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs, kernel, kernel))
        nn.init.kaiming_normal_(self.weight, nonlinearity="relu")
        self.stride, self.padding = stride, (kernel - 1) // 2

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, stride=self.stride, padding=self.padding)


class InstanceNorm(nn.Module):
    """Every channel of every sample to mean 0 and spread 1, then ReLU if wanted."""

    def __init__(self, *, activate: bool = True) -> None:
        super().__init__()
        self.activate = activate

    def forward(self, x: Tensor) -> Tensor:
        ones = x.new_ones(x.shape[:2], dtype=torch.float32)
        x = adain(x, ones, torch.zeros_like(ones))
        return F.relu(x, inplace=not torch.is_grad_enabled()) if self.activate else x


class ContentBlock(nn.Module):
    """x + IN(conv(ReLU(IN(conv(x)))))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            Convolution(channels, channels, 3),
            InstanceNorm(),
            Convolution(channels, channels, 3),
            InstanceNorm(activate=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class ContentEncoder(nn.Module):
    """Pictures `[N, 3, H, W]` in [-1, 1] to content `[N, C, H / stride, W / stride]`, stride = 2 ** halvings."""

    def __init__(self, width: int, halvings: int, blocks: int, kernel: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [Convolution(3, width, kernel), InstanceNorm()]
        for _ in range(halvings):
            layers += [Convolution(width, 2 * width, 4, 2), InstanceNorm()]
            width *= 2
        self.channels = width
        self.layers = nn.Sequential(*layers, *(ContentBlock(width) for _ in range(blocks)))

    def forward(self, images: Tensor) -> Tensor:
        content: Tensor = self.layers(images.contiguous(memory_format=activation_format()))
        return content


class Activated(nn.Module):
    """Convolution, bias, leaky ReLU of the given slope (0: ReLU), without any normalisation."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, slope: float) -> None:
        super().__init__()
        self.convolution = Convolution(inputs, outputs, kernel, stride)
        self.bias, self.slope = nn.Parameter(torch.zeros(outputs)), slope

    def forward(self, x: Tensor) -> Tensor:
        return bias_act(self.convolution(x), self.bias, slope=self.slope, gain=1.0)


class StyleEncoder(nn.Module):
    """Pictures `[N, 3, H, W]` in [-1, 1] to style codes `[N, style]`, float32."""

    def __init__(self, width: int, halvings: int, style: int, kernel: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [Activated(3, width, kernel, 1, 0.0)]
        widest = width << min(halvings, LEAST_STYLE_HALVINGS)
        for _ in range(halvings):
            following = min(2 * width, widest)
            layers.append(Activated(width, following, 4, 2, 0.0))
            width = following
        self.layers = nn.Sequential(*layers)
        self.last = nn.Linear(width, style)

    def forward(self, images: Tensor) -> Tensor:
        features = self.layers(images.contiguous(memory_format=activation_format()))
        with torch.autocast(images.device.type, enabled=False):
            style: Tensor = self.last(features.mean((2, 3)).float())
        return style


class StyleBlock(nn.Module):
    """x + AdaIN(conv(ReLU(AdaIN(conv(x))))), each with a scale and a shift of its own."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = Convolution(channels, channels, 3), Convolution(channels, channels, 3)

    def forward(self, x: Tensor, affine: Tensor) -> Tensor:
        """affine: `[N, 4, C]`, of both normalisations the scale less 1 and the shift."""
        y = F.relu(adain(self.first(x), 1 + affine[:, 0], affine[:, 1]))
        return x + adain(self.second(y), 1 + affine[:, 2], affine[:, 3])


class Upsampling(nn.Module):
    """Twice the size: nearest neighbour, 5x5 convolution, layer normalisation, ReLU.

    The kernels' way never makes the larger picture. A 5x5 convolution of doubled pixels is, for each of the four places within a
    doubled pixel, a 3x3 convolution of the small picture, whose weights are sums: 9 products instead of 25.
    """

    sums: Tensor

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.convolution = Convolution(inputs, outputs, 5)
        self.weight, self.bias = nn.Parameter(torch.ones(outputs)), nn.Parameter(torch.zeros(outputs))
        # [place, small, large]: which taps of five fall on which of three small pixels, at the even and at the odd place.
        sums = torch.tensor(
            [[[1, 1, 0, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 0, 1]], [[1, 0, 0, 0, 0], [0, 1, 1, 0, 0], [0, 0, 0, 1, 1]]]
        )
        self.register_buffer("sums", sums.float(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self._plain(x) if reference_wanted() else self._folded(x)
        return F.relu(F.group_norm(x, 1, self.weight, self.bias))

    def _plain(self, x: Tensor) -> Tensor:
        doubled: Tensor = self.convolution(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return doubled

    def _folded(self, x: Tensor) -> Tensor:
        full = self.convolution.weight
        outputs, inputs = full.shape[:2]
        # [out, 2, 2, in, 3, 3], as pixel_shuffle takes the places.
        rows = torch.einsum("oiyx,pry->oiprx", full, self.sums)
        small = torch.einsum("oiprx,qsx->opqirs", rows, self.sums)
        y = F.conv2d(x, small.reshape(4 * outputs, inputs, 3, 3).contiguous(memory_format=activation_format()), padding=1)
        return F.pixel_shuffle(y, 2)


class Decoder(nn.Module):
    """Content `[N, C, h, w]` and style codes `[N, style]` to pictures `[N, 3, h * stride, w * stride]` in [-1, 1]."""

    def __init__(self, width: int, halvings: int, blocks: int, style: int, hidden: int, kernel: int) -> None:
        super().__init__()
        channels = width << halvings
        self.shape = (blocks, 4, channels)
        self.mlp = nn.Sequential(
            nn.Linear(style, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, blocks * 4 * channels)
        )
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)
        self.blocks = nn.ModuleList(StyleBlock(channels) for _ in range(blocks))
        self.rising = nn.Sequential(*(Upsampling(channels >> k, channels >> (k + 1)) for k in range(halvings)))
        self.last = Convolution(width, 3, kernel)
        self.bias = nn.Parameter(torch.zeros(3))
        nn.init.normal_(self.last.weight, std=0.02)

    def forward(self, content: Tensor, style: Tensor) -> Tensor:
        with torch.autocast(content.device.type, enabled=False):
            affine = self.mlp(style.float()).reshape(-1, *self.shape)
        x = content.contiguous(memory_format=activation_format())
        for block, part in zip(self.blocks, affine.unbind(1), strict=True):
            x = block(x, part)
        y = self.last(self.rising(x)).float() + self.bias.reshape(1, 3, 1, 1)
        return y.tanh()


class Domain(nn.Module):
    """Encoders and decoder of one domain."""

    def __init__(
        self, *, width: int, halvings: int, blocks: int, style: int, hidden: int, style_halvings: int, outer_kernel: int
    ) -> None:
        super().__init__()
        self.content = ContentEncoder(width, halvings, blocks, outer_kernel)
        self.style = StyleEncoder(width, style_halvings, style, outer_kernel)
        self.decoder = Decoder(width, halvings, blocks, style, hidden, outer_kernel)


class TranslationNetworks(nn.Module):
    """Both domains.

    width: channels at the pictures' full size, doubled by each of `halvings`. blocks: residual blocks of a content encoder, and of
    a decoder. style: numbers of a style code. hidden: units of the layers that make scales and shifts. style_halvings: of the style
    encoder, before its mean over the picture. outer_kernel: side of the first and the last convolutions, 3, 5 or 7.
    """

    def __init__(
        self,
        *,
        width: int = 64,
        halvings: int = 2,
        blocks: int = 4,
        style: int = 8,
        hidden: int = 256,
        style_halvings: int = 4,
        outer_kernel: int = 7,
    ) -> None:
        super().__init__()
        self.settings = {
            "width": width,
            "halvings": halvings,
            "blocks": blocks,
            "style": style,
            "hidden": hidden,
            "style_halvings": style_halvings,
            "outer_kernel": outer_kernel,
        }
        self.style = style
        self.stride = 1 << halvings
        self.least = 1 << max(halvings + 1, style_halvings)
        self.domains = nn.ModuleList(Domain(**self.settings) for _ in range(2))
        self.to(memory_format=activation_format())

    def config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return dict(self.settings)

    def __getitem__(self, index: int) -> Domain:
        found = self.domains[index]
        assert isinstance(found, Domain)
        return found
