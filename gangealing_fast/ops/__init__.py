# SPDX-License-Identifier: Apache-2.0
"""Operators: one module each, with the maths, a readable reference, the registered operator and the public function.

The public functions are attributes of this package (`ops.upfirdn2d(x, f)`); a module of the same name stays importable
through `importlib.import_module("gangealing_fast.ops.upfirdn2d")` and `from gangealing_fast.ops.upfirdn2d import ...`.

`ops.use("reference")` for a process, or `with ops.reference():` for a block, runs the plain definitions in place of the
kernels; a new operator joins in by the two lines shown in `ops/_dispatch.py`.
"""

from __future__ import annotations

from gangealing_fast.ops._forward_mode import refuse_tangents
from gangealing_fast.ops.adain import adain, adain_reference
from gangealing_fast.ops.adam_ema import adam_ema, adam_ema_reference
from gangealing_fast.ops.antialiased_warp import antialiased_warp
from gangealing_fast.ops.bias_act import bias_act, bias_act_reference
from gangealing_fast.ops.bilinear_downsample import bilinear_downsample, bilinear_downsample_reference
from gangealing_fast.ops.convex_upsample import convex_upsample, convex_upsample_reference
from gangealing_fast.ops.flow_regularizer import flow_regularizer, flow_regularizer_reference
from gangealing_fast.ops.grid_sample import grid_sample, grid_sample_reference
from gangealing_fast.ops.invert_grid import invert_grid, invert_grid_reference
from gangealing_fast.ops.inverted_residual import inverted_residual, inverted_residual_reference
from gangealing_fast.ops.lpips_distance import lpips_distance, lpips_distance_reference
from gangealing_fast.ops.mipmap_warp import mipmap_warp, mipmap_warp_reference
from gangealing_fast.ops.modulated_conv2d import modulated_conv2d, modulated_conv2d_reference
from gangealing_fast.ops.mutual_nearest import mutual_nearest, mutual_nearest_reference
from gangealing_fast.ops.nearest_grid_point import nearest_grid_point, nearest_grid_point_reference
from gangealing_fast.ops.splat2d import splat2d, splat2d_reference
from gangealing_fast.ops.upfirdn2d import blur_filter, upfirdn2d, upfirdn2d_reference
from gangealing_fast.runtime.implementation import fused, reference, use, used

# When all modules above have registered theirs.
_refusing = refuse_tangents()

__all__ = [
    "adain",
    "adain_reference",
    "adam_ema",
    "adam_ema_reference",
    "antialiased_warp",
    "bias_act",
    "bias_act_reference",
    "bilinear_downsample",
    "bilinear_downsample_reference",
    "blur_filter",
    "convex_upsample",
    "convex_upsample_reference",
    "flow_regularizer",
    "flow_regularizer_reference",
    "fused",
    "grid_sample",
    "grid_sample_reference",
    "invert_grid",
    "invert_grid_reference",
    "inverted_residual",
    "inverted_residual_reference",
    "lpips_distance",
    "lpips_distance_reference",
    "mipmap_warp",
    "mipmap_warp_reference",
    "modulated_conv2d",
    "modulated_conv2d_reference",
    "mutual_nearest",
    "mutual_nearest_reference",
    "nearest_grid_point",
    "nearest_grid_point_reference",
    "reference",
    "splat2d",
    "splat2d_reference",
    "upfirdn2d",
    "upfirdn2d_reference",
    "use",
    "used",
]
