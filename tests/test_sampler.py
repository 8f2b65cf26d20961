# SPDX-License-Identifier: Apache-2.0
"""The order in which pictures are shown."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from gangealing_fast.data.pictures import open_pictures, to_uint8
from gangealing_fast.data.sampler import InfiniteSampler
from gangealing_fast.pretraining.source import PictureSource
from gangealing_fast.runtime.errors import UserError


def test_sampler_visits_every_picture_once_an_epoch():
    sampler = InfiniteSampler(10, seed=3)
    drawn = torch.cat([sampler.next(4) for _ in range(5)])
    assert drawn[:10].sort().values.tolist() == drawn[10:].sort().values.tolist() == list(range(10))
    assert drawn[:10].tolist() != drawn[10:].tolist()
    assert InfiniteSampler(10, 4).next(10).tolist() != InfiniteSampler(10, 3).next(10).tolist()
    assert InfiniteSampler(3, 0).next(10).shape == (10,) and sampler.next(0).shape == (0,)


@settings(max_examples=30, deadline=None)
@given(
    n=st.integers(1, 20),
    seed=st.integers(-5, 1 << 40),
    counts=st.lists(st.integers(0, 30), max_size=6),
    at=st.integers(0, 6),
)
def test_sampler_resumes_exactly(n, seed, counts, at):
    whole, first = InfiniteSampler(n, seed), InfiniteSampler(n, seed)
    expected = [whole.next(count).tolist() for count in counts]
    before = [first.next(count).tolist() for count in counts[:at]]
    second = InfiniteSampler(n, seed)
    second.load_state_dict(first.state_dict())
    assert before + [second.next(count).tolist() for count in counts[at:]] == expected


def test_sampler_refuses_other_runs():
    sampler = InfiniteSampler(10, 0)
    with pytest.raises(UserError, match="started with 9 pictures but there are 10"):
        sampler.load_state_dict(InfiniteSampler(9, 0).state_dict())
    with pytest.raises(UserError, match="resume with the same seed"):
        sampler.load_state_dict(InfiniteSampler(10, 1).state_dict())
    with pytest.raises(ValueError, match="at least one picture"):
        InfiniteSampler(0, 0)


def test_held_out_pictures_are_never_shown_to_a_critic(tmp_path):
    for index in range(7):
        Image.new("RGB", (8, 8), (40 * index,) * 3).save(tmp_path / f"{index}.png")
    source = PictureSource(open_pictures(tmp_path, size=8), 0, mirror=True, held_out=3)
    shown = to_uint8(torch.cat([source.next(5)[0] for _ in range(8)] + list(source.fixed(100))))
    assert set(shown[:, 0, 0, 0].tolist()) == {0, 40, 80, 120}
    assert "the last 3 are held out" in source.summary()
    with pytest.raises(UserError, match="cannot hold out 7 of 7"):
        PictureSource(open_pictures(tmp_path, size=8), 0, mirror=True, held_out=7)
