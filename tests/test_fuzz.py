# SPDX-License-Identifier: Apache-2.0
"""Random calls of every operator, outputs and gradients, against its reference in float64: shapes, dtypes, layouts, values."""

from __future__ import annotations

import pytest
from fuzzing import EXAMPLES, RANDOM, Draw, grids, hold, hold_transforms, images
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gangealing_fast import ops

DRAWN = {function.__name__: function for function in (*images.OPERATORS, *grids.OPERATORS)}


@pytest.mark.parametrize("operator", DRAWN)
@RANDOM
@given(data=st.data())
def test_operator(operator, data):
    draw = Draw(data)
    drawn = DRAWN[operator](draw)
    assume(drawn is not None)
    hold(drawn, draw)


FEWER = settings(RANDOM, max_examples=max(EXAMPLES // 10, 1))
TRANSFORMED = [name for name in DRAWN if name not in ("adam_ema", "nearest_grid_point", "mutual_nearest")]


@pytest.mark.parametrize("operator", TRANSFORMED)
@FEWER
@given(data=st.data())
def test_transforms(operator, data):
    """The same calls under torch.func; the three left out have no derivative."""
    draw = Draw(data)
    drawn = DRAWN[operator](draw)
    assume(drawn is not None)
    hold_transforms(drawn, draw)


def test_every_operator_is_drawn():
    public = {name.removesuffix("_reference") for name in ops.__all__ if name.endswith("_reference")}
    assert public == set(DRAWN)
