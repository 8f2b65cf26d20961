# SPDX-License-Identifier: Apache-2.0
"""Launches of the CUDA C++ kernels at training's shapes (256² pictures, flow 128, batch 5), for the report.

Traffic counts what reaches device memory if the cache keeps an element between the threads of neighbouring columns, and
loses it between blocks: rows that two threads' columns of output share are counted twice, atomic sums as read and written.
"""

from __future__ import annotations

from tools.gpu_report.workloads import CudaKernel

THREADS = 256
BATCH, COLOURS, PICTURE, FLOW = 5, 3, 256, 128
POINTS = BATCH * FLOW * FLOW
IMAGE = BATCH * COLOURS * PICTURE * PICTURE  # elements
WARPED = COLOURS * POINTS
SMALL_LEVELS = (128, 64, 32)
SMALL = BATCH * COLOURS * sum(size * size for size in SMALL_LEVELS)
KEYPOINTS = 30  # of a picture, in evaluation
TILES = FLOW * FLOW // 128  # of a grid, 16 x 8 vertices each
LOOKED_INTO = 2  # tiles of a grid that a point is looked for in
SPLATTED, SPREAD = 1000, 9  # points of a picture, and the width of one in pixels


def _row(source: str, kernel: str, instance: str, shape: str, threads: int, moved: int, minimum: int | None = None) -> CudaKernel:
    """`threads`: of the whole launch."""
    blocks = -(-threads // THREADS)
    return CudaKernel(source, kernel, instance, shape, THREADS, blocks, 0, moved, moved if minimum is None else minimum)


def _resample(
    what: str, channels: int, size: int, out: int, up: int, down: int, dtype: str, vector: int, phase: int = 0
) -> CudaKernel:
    """upfirdn2d of [BATCH, channels, size, size] with a 4x4 filter."""
    element = 4 if dtype == "float" else 2
    rows = 4 if vector > 4 else 8  # output rows of a thread
    groups = -(-out // rows)
    read = min(((rows - 1) * down + 3 - phase) // up + 1, size) * groups  # input rows, those read twice counted twice
    images = BATCH * channels
    return _row(
        "upfirdn2d.cu",
        "filter_4x4",
        rf"<{'c10::' if element == 2 else ''}{dtype}, {vector}, {up}, {down}, {phase}>",
        f"{what}, [{BATCH}, {channels}, {size}, {size}], {dtype}{', channels-last' if vector > 1 else ''}",
        images // vector * groups * out,
        images * element * (read * size + out * out),
        images * element * (size * size + out * out),
    )


def _sums(source: str, planes: int, texels: int, channels_points: int) -> tuple[CudaKernel, ...]:
    """Finding the largest gradient and rounding the sums, in the backward of an operator."""
    shape = f"gradient by [{BATCH}, {COLOURS}, {PICTURE}, {PICTURE}], float"
    return (
        _row(source, "largest_of_rows", "<float>", shape, BATCH * 49152 // 4, 4 * channels_points),
        _row(source, "round_sums", "<float>", shape, planes * texels, planes * texels * (8 + 4), planes * texels * 4),
    )


def _search(per_point: int) -> tuple[int, int]:
    """Bytes that looking for points in tiles moves and must move: boxes twice, then vertices, and what a point takes itself."""
    vertices = LOOKED_INTO * 128 * 8 + per_point
    return BATCH * KEYPOINTS * (2 * 16 * TILES + vertices), BATCH * (16 * TILES + KEYPOINTS * vertices)


def _boxes(source: str, halo: int) -> CudaKernel:
    """The bounding boxes of all tiles; with a halo they overlap."""
    read = TILES * (16 + halo) * (8 + halo) * 8
    shape = f"tiles of 128², float{', with the cells between them' if halo else ''}"
    moved = BATCH * (read + 16 * TILES)
    return _row(source, "build_boxes", "<float>", shape, 32 * BATCH * TILES, moved, BATCH * (8 * FLOW * FLOW + 16 * TILES))


CUDA_KERNELS: tuple[CudaKernel, ...] = (
    _resample("blur of the generator", 128, 257, 256, 1, 1, "float", 1),
    _resample("blur of the generator", 128, 257, 256, 1, 1, "float", 4),
    _resample("blur of the generator", 128, 257, 256, 1, 1, "BFloat16", 8),
    _resample("blur of the generator, backward", 128, 256, 257, 1, 1, "float", 4),
    _resample("blur of the transformer", 64, 128, 129, 1, 1, "float", 4),
    _resample("blurred skip of the transformer", 64, 128, 64, 1, 2, "float", 4),
    _resample("colours of the generator, up", COLOURS, 128, 256, 2, 1, "float", 1),
    _resample("colours of the generator, up", COLOURS, 128, 256, 2, 1, "BFloat16", 1),
    _row(
        "upfirdn2d.cu", "filter_any", "<float>", f"any filter, [{BATCH}, {COLOURS}, 256, 256], float", IMAGE, 8 * IMAGE
    ),
    _row("bilinear_downsample.cu", "downsample", "<float>", "256 to 128, float", WARPED, 4 * (IMAGE + WARPED)),
    _row("bilinear_downsample.cu", "adjoint", "<float>", "256 to 128, backward, float", IMAGE, 4 * (IMAGE + WARPED)),
    _row("grid_sample.cu", "sample_points", "<float>", "256 to 128, float", POINTS, 4 * (IMAGE + WARPED) + 8 * POINTS),
    _row(
        "grid_sample.cu", "grid_gradient", "<float>", "256 to 128, float", POINTS, 4 * (IMAGE + WARPED) + 16 * POINTS
    ),
    _row(
        "grid_sample.cu", "scatter", "<float>", "256 to 128, float", POINTS, 4 * WARPED + 8 * POINTS + 16 * IMAGE,
        4 * WARPED + 8 * POINTS + 4 * IMAGE,
    ),
    *_sums("grid_sample.cu", BATCH * COLOURS, PICTURE * PICTURE, WARPED),
    *(
        _row(
            "mipmap_warp.cu", "halve", "<float>", f"level of {size}², float", BATCH * COLOURS * size * size,
            4 * BATCH * COLOURS * 5 * size * size,
        )
        for size in SMALL_LEVELS
    ),
    _row(
        "mipmap_warp.cu", "warp", "<float>", "256 to 128, four levels, float", POINTS,
        4 * (IMAGE + SMALL + WARPED) + 8 * POINTS, 4 * (IMAGE + WARPED) + 8 * POINTS,
    ),
    _row(
        "mipmap_warp.cu", "grid_gradient", "<float>", "256 to 128, four levels, float", POINTS,
        4 * (IMAGE + SMALL + WARPED) + 20 * POINTS, 4 * (IMAGE + WARPED) + 16 * POINTS,
    ),
    _row("mipmap_warp.cu", "level_gradient", "<float>", "256 to 128, float", POINTS, 28 * POINTS, 16 * POINTS),
    _row(
        "mipmap_warp.cu", "scatter", "<float>", "256 to 128, four levels, float", POINTS,
        4 * WARPED + 8 * POINTS + 16 * (IMAGE + SMALL), 4 * WARPED + 8 * POINTS + 4 * IMAGE,
    ),
    _row(
        "mipmap_warp.cu", "spread", "<float>", "level of 128², float", WARPED, 8 * WARPED + 16 * IMAGE,
        8 * WARPED + 16 * IMAGE,
    ),
    *_sums("mipmap_warp.cu", BATCH * COLOURS, PICTURE * PICTURE, WARPED),
    _row(
        "splat2d.cu", "paint", "<float>", f"{SPLATTED} points on [{BATCH}, {COLOURS}, 256, 256], float",
        BATCH * PICTURE * PICTURE, 8 * IMAGE + 4 * BATCH * (PICTURE**2 + PICTURE**2 // THREADS * SPLATTED * 3 + 3 * SPLATTED),
        8 * IMAGE + 4 * BATCH * (PICTURE**2 + 6 * SPLATTED),
    ),
    _row(
        "splat2d.cu", "pixel_gradient", "<float>", f"[{BATCH}, {COLOURS}, 256, 256], float", BATCH * PICTURE * PICTURE,
        12 * IMAGE + 8 * BATCH * PICTURE**2,
    ),
    _row(
        "splat2d.cu", "point_gradient", "<float>", f"{SPLATTED} points, float", 32 * BATCH * SPLATTED,
        4 * BATCH * SPLATTED * (SPREAD**2 * (COLOURS + 1) + 12), 4 * BATCH * (PICTURE**2 * (COLOURS + 1) + 12 * SPLATTED),
    ),
    _row(
        "nearest_grid_point.cu", "search", "<float>", f"{KEYPOINTS} points in 128², float",
        32 * BATCH * KEYPOINTS, *_search(24),
    ),
    _boxes("nearest_grid_point.cu", 0),
    _row(
        "invert_grid.cu", "locate_points", "<float>", f"{KEYPOINTS} points in 128², float", 32 * BATCH * KEYPOINTS, *_search(36),
    ),
    _boxes("invert_grid.cu", 1),
    _row(
        "invert_grid.cu", "point_gradient", "<float>", f"{KEYPOINTS} points, float", BATCH * KEYPOINTS,
        BATCH * KEYPOINTS * 76,
    ),
    _row(
        "invert_grid.cu", "scatter", "<float>", f"{KEYPOINTS} points, float", BATCH * KEYPOINTS,
        BATCH * KEYPOINTS * (36 + 8 * 16),
    ),
)  # fmt: skip
