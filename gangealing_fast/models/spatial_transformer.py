# SPDX-License-Identifier: Apache-2.0
"""The spatial transformer of GAN-supervised alignment (arXiv 2112.05143): a similarity, then a residual flow.

    similarity   (rot, scale, tx, ty) = head(trunk(x));  R = pi tanh(rot), s = exp(scale)
                 M = [[s cos R, -s sin R, tx], [s sin R, s cos R, ty]]
    flow         grid = identity + convex_upsample(head(trunk(x)))
    composed     grid = M · (identity + flow), the flow network seeing the picture that M has aligned

Matrices and grids are as in `geometry/warps.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from gangealing_fast.geometry.warping import DEFAULT, Warping
from gangealing_fast.geometry.warps import (
    compose,
    compose_flows,
    identity_grid,
    mirror_grid,
    mirror_matrix,
    reads_outside,
    resize_grid,
    transform_points,
)
from gangealing_fast.models.feature_similarity import FeatureSimilarityTransformer
from gangealing_fast.models.generator import Widths
from gangealing_fast.models.layers import ConvLayer, EqualLinear, ResBlock, resize_to
from gangealing_fast.models.place_flow import PlaceFlow
from gangealing_fast.models.place_similarity import PlaceSimilarityTransformer
from gangealing_fast.models.warp_heads import FLOW_FACTOR, FlowHead, SimilarityHead
from gangealing_fast.ops.flow_regularizer import flow_regularizer
from gangealing_fast.ops.mipmap_warp import mipmap_warp

CONSTANT_BUFFERS = ("kernel", "kernel_horz", "kernel_vert", "one_hot", "blur_filter")
FLOW_BLOCKS = 4
"""Residual blocks of the published flow's trunk, whatever the size of the pictures."""
FLOW_HALVINGS = int(math.log2(FLOW_FACTOR))


def halving_blocks(size: int) -> int:
    """How many blocks take pictures of side `size` down to 4x4: those of a similarity; of a flow too in earlier versions' files."""
    return int(math.log2(size)) - 2


class Alignment(NamedTuple):
    """What a transformer returns, for N pictures (N * K of them with K heads, head fastest).

    image: `[N, C, R, R]`, the warped pictures; grid: `[N, R, R, 2]`, where their pixels were read;
    residual_flow: `[N, flow_size, flow_size, 2]`, None without a flow; matrix: `[N, 2, 3]`, None without a similarity.
    """

    image: Tensor
    grid: Tensor
    residual_flow: Tensor | None
    matrix: Tensor | None

    @property
    def out_of_bounds(self) -> Tensor:
        """`[N]` bool: whether a pixel was read beyond the edges of its picture, where padding stands for what is not known."""
        return reads_outside(self.grid).flatten(1).any(1)


class Trunk(nn.Module):
    """1x1 convolution, `blocks` residual blocks of which the first `halvings` halve the size, 3x3 convolution.

    `[N, 3, size, size]` to `[N, C, size / 2**halvings, ...]`. Block k takes as many channels as a resolution of `size / 2**k` has,
    whether the blocks before it halve or not. None: as many blocks as lead down to 4x4, or all blocks halve.
    """

    def __init__(self, size: int, widths: Widths, blocks: int | None = None, halvings: int | None = None) -> None:
        super().__init__()
        blocks = halving_blocks(size) if blocks is None else blocks
        halvings = blocks if halvings is None else halvings
        layers: list[nn.Module] = [ConvLayer(3, widths.at(size), 1)]
        for index in range(blocks):
            resolution = size >> index
            layers.append(ResBlock(widths.at(resolution), widths.at(resolution // 2), downsample=index < halvings))
        self.convs = nn.Sequential(*layers)
        self.final_conv = ConvLayer(widths.at(size >> blocks), widths.at(4), 3)

    def features(self, x: Tensor) -> Tensor:
        return self.final_conv(self.convs(x))


class SimilarityTransformer(Trunk):
    """Pictures `[N, 3, size, size]` to similarity matrices `[N, 2, 3]`; the identity at the start of training."""

    def __init__(self, size: int, widths: Widths, heads: int = 1) -> None:
        super().__init__(size, widths)
        channels = widths.at(4)
        self.final_linear = EqualLinear(channels * 16, channels, activation=True)
        self.warp_head = SimilarityHead(channels, heads)

    def features(self, x: Tensor) -> Tensor:
        return self.final_linear(super().features(x).flatten(1))

    def forward(self, x: Tensor, assignment: Tensor | None = None) -> Tensor:
        return self.warp_head(self.features(x), assignment)


class FlowTransformer(Trunk):
    """Pictures `[N, 3, size, size]` to residual flows `[N, size, size, 2]`; zero at the start of training."""

    def __init__(self, size: int, widths: Widths, heads: int = 1, blocks: int = FLOW_BLOCKS) -> None:
        super().__init__(size, widths, blocks, FLOW_HALVINGS)
        self.warp_head = FlowHead(widths.at(4), heads)

    def forward(self, x: Tensor, assignment: Tensor | None = None) -> Tensor:
        return self.warp_head(self.features(x), assignment)


Similarity = SimilarityTransformer | FeatureSimilarityTransformer | PlaceSimilarityTransformer
Flow = FlowTransformer | PlaceFlow
Stage = Similarity | Flow
TRUNKS = ("learned", "efficientnet", "places")
FLOW_TRUNKS = ("learned", "places")


class SpatialTransformer(nn.Module):
    """Aligns pictures `[N, 3, H, W]` in [-1, 1] by a similarity, a flow, or a similarity and then a flow.

    transforms: ("similarity",), ("flow",) or ("similarity", "flow"). flow_size: the side, a power of two (32 or more
    with a flow, else 8 or more), at which the networks look at a picture and at which grids are produced; larger
    pictures are downsampled for the networks. input_size: the side of the pictures it is made for, flow_size if
    None; kept for the record.
    channel_multiplier, max_channels, channel_base: widths of the trunks as in `Generator`. heads: K, one for each
    cluster. trunk: "learned", as published; "efficientnet": the similarity looks at frozen features; "places": it is
    fitted to what is read at every place of them (`models.place_similarity`).
    flow_blocks: residual blocks of the flow's trunk, 4 as published; files of earlier versions have `halving_blocks(flow_size)`.
    flow_trunk: "learned", as published; "places", beside a similarity of that trunk: spread from what the same places say
    (`models.place_flow`), so that it has no weights.
    Raises ValueError for options that do not fit together.
    """

    def __init__(
        self,
        transforms: Sequence[str] = ("similarity", "flow"),
        flow_size: int = 128,
        input_size: int | None = None,
        channel_multiplier: float = 0.5,
        heads: int = 1,
        *,
        max_channels: int = 512,
        channel_base: int | None = None,
        trunk: str = "learned",
        flow_blocks: int = FLOW_BLOCKS,
        flow_trunk: str = "learned",
    ) -> None:
        super().__init__()
        if tuple(transforms) not in (("similarity",), ("flow",), ("similarity", "flow")):
            raise ValueError(f"transforms must be ('similarity',), ('flow',) or ('similarity', 'flow'), got {tuple(transforms)}.")
        smallest = 32 if "flow" in transforms else 8
        if flow_size < smallest or flow_size & (flow_size - 1):
            raise ValueError(f"flow_size must be a power of two of at least {smallest}, got {flow_size}.")
        if heads < 1:
            raise ValueError(f"heads must be 1 or more, got {heads}.")
        if trunk not in TRUNKS or (trunk != "learned" and "similarity" not in transforms):
            raise ValueError(
                f"trunk must be 'learned', or 'efficientnet' or 'places' with a similarity, got {trunk} with {tuple(transforms)}."
            )
        if flow_trunk not in FLOW_TRUNKS or (flow_trunk == "places" and "flow" in transforms and trunk != "places"):
            raise ValueError(f"flow_trunk must be 'learned', or 'places' if the trunk is, got {flow_trunk} with the trunk {trunk}.")
        if "flow" in transforms and not FLOW_HALVINGS <= flow_blocks <= math.log2(flow_size):
            raise ValueError(f"flow_blocks must lie between {FLOW_HALVINGS} and log2 of {flow_size}, got {flow_blocks}.")
        self.transforms, self.flow_size, self.heads, self.trunk = tuple(transforms), flow_size, heads, trunk
        self.flow_blocks, self.flow_trunk = flow_blocks, flow_trunk
        self.input_size = flow_size if input_size is None else input_size
        self.widths = Widths(channel_multiplier, max_channels, channel_base)
        self.stns = nn.ModuleList(self._stage(name) for name in transforms)
        self.register_load_state_dict_pre_hook(_drop_constant_buffers)

    def _stage(self, name: str) -> Stage:
        if name == "flow" and self.flow_trunk == "places":
            return PlaceFlow(self.flow_size)
        if name == "flow":
            return FlowTransformer(self.flow_size, self.widths, self.heads, self.flow_blocks)
        if self.trunk == "learned":
            return SimilarityTransformer(self.flow_size, self.widths, self.heads)
        if self.trunk == "places":
            return PlaceSimilarityTransformer(self.heads)
        return FeatureSimilarityTransformer(self.flow_size, self.heads)

    def config(self) -> dict[str, Any]:
        """The constructor's arguments, for checkpoints: `SpatialTransformer(**config)` rebuilds the network."""
        return {
            "transforms": list(self.transforms),
            "flow_size": self.flow_size,
            "input_size": self.input_size,
            "channel_multiplier": self.widths.multiplier,
            "heads": self.heads,
            "max_channels": self.widths.maximum,
            "channel_base": self.widths.base,
            "trunk": self.trunk,
            "flow_blocks": self.flow_blocks,
            "flow_trunk": self.flow_trunk,
        }

    @property
    def similarity(self) -> Similarity | None:
        return cast(Similarity | None, self.stns[0] if "similarity" in self.transforms else None)

    @property
    def flow(self) -> Flow | None:
        return cast(Flow | None, self.stns[-1] if "flow" in self.transforms else None)

    @torch.no_grad()
    def copy_first_head(self, beside: Callable[[nn.Parameter], Sequence[Tensor]] | None = None) -> None:
        """Give every head the weights of head 0; likewise in the tensors `beside(parameter)` of each of the heads' parameters."""
        for stage in cast(Sequence[Stage], self.stns):
            for parameter, heads_first in () if isinstance(stage, PlaceFlow) else stage.warp_head.separate():
                shape = (self.heads, -1) if heads_first else (-1, self.heads)
                for tensor in (parameter, *(beside(parameter) if beside is not None else ())):
                    rows = tensor.unflatten(0, shape)
                    rows = rows if heads_first else rows.transpose(0, 1)
                    rows.copy_(rows[:1].clone())

    def network_input(self, images: Tensor) -> Tensor:
        """Pictures `[N, 3, H, W]` at the side the networks work at."""
        return resize_to(images, self.flow_size)

    def forward(
        self,
        images: Tensor,
        source: Tensor | None = None,
        *,
        warping: Warping = DEFAULT,
        alpha: float | Tensor = 1.0,
        output_resolution: int | None = None,
        assignment: Tensor | None = None,
        base_warp: Tensor | None = None,
    ) -> Alignment:
        """Align `images` `[N, 3, H, W]`.

        source: the pictures whose pixels are sampled, `[N, C, H', W']`, `images` if None (a full-resolution
        original, say).
        warping: what lies beyond the edge of a picture, and how often the similarity runs on its own output.
        alpha: 0 leaves the picture as it is, 1 aligns it, the grid being interpolated; one number, or `[N]`.
        output_resolution: side of the result, `flow_size` if None. A grid with a flow in it is resized; a similarity alone has its
        grid made at that size. assignment: `[N]`, the head of each picture;
        if None every head warps every picture and the result has N * K rows, head fastest.
        base_warp: matrices `[N, 2, 3]` of similarities that were found before. The networks see the pictures as these warp them,
        and what they find is composed with these: one look with `base_warp` is the second of two looks.
        """
        looks, source, alpha = self._look(images, source, warping, alpha, assignment, base_warp)
        return self._shown(source, *looks[-1], warping, alpha, output_resolution)

    def stages(
        self,
        images: Tensor,
        source: Tensor | None = None,
        *,
        warping: Warping = DEFAULT,
        alpha: float | Tensor = 1.0,
        output_resolution: int | None = None,
        assignment: Tensor | None = None,
        base_warp: Tensor | None = None,
    ) -> list[Alignment]:
        """What `forward` returns, after every look of the similarity and then of the flow: the last is that of `forward` itself.

        Arguments as in `forward`.
        """
        looks, source, alpha = self._look(images, source, warping, alpha, assignment, base_warp)
        return [self._shown(source, *look, warping, alpha, output_resolution) for look in looks]

    def _look(
        self,
        images: Tensor,
        source: Tensor | None,
        warping: Warping,
        alpha: float | Tensor,
        assignment: Tensor | None,
        base_warp: Tensor | None,
    ) -> tuple[list[tuple[Tensor | None, Tensor | None]], Tensor, float | Tensor]:
        """(matrix, residual flow) after every look; source and alpha with a row for each row of the result."""
        source = images if source is None else source
        _check_arguments(images, source, alpha, assignment, base_warp)
        spread = self.heads if assignment is None else 1
        seen = images
        if spread > 1:
            assignment = torch.arange(self.heads, device=images.device).repeat(images.shape[0])
            seen = images.repeat_interleave(spread, 0)
            source = seen if source is images else source.repeat_interleave(spread, 0)
            alpha = alpha.repeat_interleave(spread) if isinstance(alpha, Tensor) and alpha.ndim else alpha

        def features(stage: Similarity | FlowTransformer, x: Tensor) -> Tensor:
            found = stage.features(x)
            # The first stage sees a picture once, whatever the number of heads.
            return found if found.shape[0] == seen.shape[0] else found.repeat_interleave(spread, 0)

        def run(stage: Similarity | FlowTransformer, x: Tensor) -> Tensor:
            return stage.warp_head(features(stage, x), assignment)

        def warped(grid: Tensor) -> Tensor:
            return mipmap_warp(seen, grid, padding_mode=warping.padding_mode)

        base = identity_grid(self.flow_size, self.flow_size, device=images.device)[None]
        x, matrix = self.network_input(images), None
        if base_warp is not None:
            x = mipmap_warp(images, transform_points(base_warp, base), padding_mode=warping.padding_mode)
            matrix = base_warp.repeat_interleave(spread, 0)
        looks: list[tuple[Tensor | None, Tensor | None]] = []
        if self.similarity is not None:
            for iteration in range(warping.iters):
                found = run(self.similarity, x)
                matrix = found if matrix is None else compose(matrix, found)
                looks.append((matrix, None))
                if self.flow is not None or iteration + 1 < warping.iters:
                    x = warped(transform_points(matrix, base))
        if isinstance(self.flow, FlowTransformer):
            looks.append((matrix, run(self.flow, x)))
        elif isinstance(self.flow, PlaceFlow):
            assert isinstance(self.similarity, PlaceSimilarityTransformer) and matrix is not None
            flow = None
            for _ in range(self.flow.looks):
                x = x if flow is None else warped(transform_points(matrix, base + flow))
                found = self.flow(self.similarity.warp_head, features(self.similarity, x), assignment)
                flow = found if flow is None else compose_flows(flow, found)
                looks.append((matrix, flow))
        return looks, source, alpha

    def _shown(
        self,
        source: Tensor,
        matrix: Tensor | None,
        residual: Tensor | None,
        warping: Warping,
        alpha: float | Tensor,
        output_resolution: int | None,
    ) -> Alignment:
        """`source` as a similarity and a flow warp it, of which one may be None."""
        resolution = self.flow_size if output_resolution is None else output_resolution
        side = resolution if residual is None else self.flow_size
        base = identity_grid(side, side, device=source.device)[None]
        grid = base if residual is None else base + residual
        grid = grid if matrix is None else transform_points(matrix, grid)
        if isinstance(alpha, Tensor) or alpha != 1:
            weight = torch.as_tensor(alpha, device=grid.device, dtype=grid.dtype).expand(grid.shape[0])
            grid = base + weight[:, None, None, None] * (grid - base)
        if side != resolution:
            grid = resize_grid(grid, resolution)
        return Alignment(mipmap_warp(source, grid, padding_mode=warping.padding_mode), grid, residual, matrix)

    def best_mirror(self, images: Tensor, source: Tensor | None = None, **options: Any) -> tuple[Alignment, Tensor]:
        """Align pictures and their mirror images and keep, for each, the one whose residual flow has the lower TV.

        Takes the arguments of `forward`; needs a flow. Returns the alignment and which were mirrored `[N]`. The grid
        reads the picture as given (a mirrored warp's x is negated); residual flow and matrix are the kept run's own. A `base_warp`
        is that of the picture as given: its mirror image is seen as the mirror image of what that shows.
        """
        if self.flow is None:
            raise ValueError("mirrored inference compares residual flows: the transformer needs a 'flow' transform.")
        plain = self(images, source, **options)
        if options.get("base_warp") is not None:
            options["base_warp"] = mirror_matrix(options["base_warp"], images.new_ones(len(images), dtype=torch.bool))
        mirrored = self(images.flip(3), None if source is None else source.flip(3), **options)
        chosen = flow_regularizer(mirrored.residual_flow)[0] < flow_regularizer(plain.residual_flow)[0]

        def kept(a: Tensor, b: Tensor) -> Tensor:
            return torch.where(chosen.reshape(-1, *[1] * (a.ndim - 1)), b, a)

        matrix = None if plain.matrix is None else kept(plain.matrix, mirrored.matrix)
        grid = mirror_grid(kept(plain.grid, mirrored.grid), chosen)
        return Alignment(kept(plain.image, mirrored.image), grid, kept(plain.residual_flow, mirrored.residual_flow), matrix), chosen


def _check_arguments(
    images: Tensor, source: Tensor, alpha: float | Tensor, assignment: Tensor | None, base_warp: Tensor | None
) -> None:
    """Raise ValueError if an argument of `SpatialTransformer.forward` does not fit."""
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images must be [N, 3, H, W], got {list(images.shape)}.")
    if source.ndim != 4 or source.shape[0] != images.shape[0]:
        raise ValueError(f"source must be [N, C, H, W] with N = {images.shape[0]}, got {list(source.shape)}.")
    if assignment is not None and assignment.shape != (images.shape[0],):
        raise ValueError(f"assignment must be [N] with N = {images.shape[0]}, got {list(assignment.shape)}.")
    if isinstance(alpha, Tensor) and alpha.ndim != 0 and alpha.shape != (images.shape[0],):
        raise ValueError(f"alpha must be one number or [N] with N = {images.shape[0]}, got {list(alpha.shape)}.")
    if base_warp is not None and base_warp.shape != (images.shape[0], 2, 3):
        raise ValueError(f"base_warp must be [N, 2, 3] with N = {images.shape[0]}, got {list(base_warp.shape)}.")


def _drop_constant_buffers(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Published checkpoints carry filters and masks that are constants here."""
    own: Mapping[str, Tensor] = module.state_dict()
    for key in [key for key in state if key.startswith(prefix)]:
        if key.rsplit(".", 1)[-1] in CONSTANT_BUFFERS and key[len(prefix) :] not in own:
            del state[key]
