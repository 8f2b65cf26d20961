# SPDX-License-Identifier: Apache-2.0
"""The alignment loss: its terms, its weights, its gradients."""

from __future__ import annotations

import pytest
import torch
from support import assert_close

from gangealing_fast.alignment.losses import alignment_loss
from gangealing_fast.alignment.options import Weights
from gangealing_fast.ops import flow_regularizer_reference


def squared_error(a, b):
    return (a - b).square().mean((1, 2, 3))


def test_terms_add_up():
    a, b, flow = torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 8), torch.randn(2, 8, 8, 2)
    loss = alignment_loss(squared_error, a, b, flow, Weights(tv=10.0, identity=2.0))
    tv, identity = flow_regularizer_reference(flow)
    assert_close(loss.perceptual, (a - b).square().mean(), 1e-6)
    assert_close(loss.tv, tv.mean(), 1e-6)
    assert_close(loss.identity, flow.square().mean(), 1e-6)
    assert_close(loss.total, loss.perceptual + 10 * tv.mean() + 2 * identity.mean(), 1e-6)


def test_gradients_reach_pictures_and_flow():
    a, b, flow = (torch.randn(s, requires_grad=True) for s in ((2, 3, 8, 8), (2, 3, 8, 8), (2, 8, 8, 2)))
    alignment_loss(squared_error, a, b, flow, Weights(tv=1.0, identity=1.0)).total.backward()
    assert all(x.grad.abs().sum() > 0 for x in (a, b, flow))


def test_similarity_alone_has_no_regularisers():
    a, b = torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 8)
    loss = alignment_loss(squared_error, a, b, None, Weights(tv=1e9, identity=1e9))
    assert loss.total == loss.perceptual and loss.tv == 0 and loss.identity == 0


def test_shapes_must_match():
    with pytest.raises(ValueError, match="one shape"):
        alignment_loss(squared_error, torch.rand(1, 3, 8, 8), torch.rand(1, 3, 8, 9), None, Weights(tv=1.0, identity=1.0))
