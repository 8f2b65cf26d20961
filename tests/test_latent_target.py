# SPDX-License-Identifier: Apache-2.0
"""The learned target latent and the principal components it moves along."""

from __future__ import annotations

import pytest
import torch
from golden.recipe import named_normal
from support import assert_close, assert_golden, golden, golden_state

from gangealing_fast.models import Generator, LatentTarget, principal_components


def test_golden_mixed_latents_and_gradient():
    case, arrays = golden("generator")
    generator = Generator(case["size"], 512, 2, channel_multiplier=case["channel_multiplier"]).requires_grad_(False)
    generator.load_state_dict(golden_state(case["state"]), strict=False)
    state = golden_state(case["latent_state"])
    target = LatentTarget(torch.zeros(case["ndirs"], 512), torch.zeros(512))
    target.load_state_dict(state)
    w = generator.map(arrays["z"])
    assert_golden(target.mix(w, case["psi"], case["inject"], generator.n_latent), arrays["mixed_latents"])
    image = generator.synthesize(target.mix_layers(w, case["psi"], case["inject"], generator.n_latent))
    assert_golden(image, arrays["target_image"])
    weight = torch.from_numpy(named_normal("generator.grad", tuple(image.shape), 0))
    (grad,) = torch.autograd.grad((image * weight).sum(), target.coefficients)
    assert_golden(grad, arrays["grad_coefficients"], gradient=True)


def test_starts_at_the_mean_and_mixes():
    target = LatentTarget(torch.eye(2, 6), torch.arange(6.0))
    w = torch.randn(3, 6)
    assert torch.equal(target.target(), torch.arange(6.0)[None])
    mixed = target.mix(w, 0.0, 2, 5)
    assert mixed.shape == (3, 5, 6)
    assert torch.equal(mixed[:, :2], torch.arange(6.0).expand(3, 2, 6)) and torch.equal(mixed[:, 2:], w[:, None].expand(3, 3, 6))
    assert_close(target.mix(w, 1.0, 5, 5), w[:, None].expand(3, 5, 6), 1e-6)
    assert [x.requires_grad for x in target.mix_layers(w, 0.5, 2, 5)] == [True, True, False, False, False]


def test_heads_are_fastest():
    target = LatentTarget(torch.eye(2, 4), torch.zeros(1, 4), heads=3)
    with torch.no_grad():
        target.coefficients.copy_(torch.tensor([[1.0, 0], [2.0, 0], [3.0, 0]]))
    mixed = target.mix(torch.tensor([[0.0, 0, 0, 1], [0, 0, 0, 2]]), 0.0, 1, 2)
    assert mixed.shape == (6, 2, 4)
    assert mixed[:, 0, 0].tolist() == [1, 2, 3, 1, 2, 3] and mixed[:, 1, 3].tolist() == [1, 1, 1, 2, 2, 2]


def test_principal_components_are_exact_and_repeatable():
    mixing = torch.randn(5, 5)
    seen = []

    def map_latents(z):
        seen.append(z)
        return z @ mixing + 100.0

    found = principal_components(map_latents, 5, samples=1000, batch=300, seed=3)
    assert [len(z) for z in seen] == [300, 300, 300, 100]
    w = (torch.cat(seen) @ mixing + 100.0).double()
    values, vectors = torch.linalg.eigh(torch.cov(w.T))
    assert_close(found.mean[0], w.mean(0), 1e-6)
    assert_close(found.deviation, values.flip(0).sqrt(), 1e-5)
    assert_close((found.directions.double() @ vectors.flip(1)).abs(), torch.eye(5).double(), 1e-4)
    assert (found.directions.gather(1, found.directions.abs().argmax(1, keepdim=True)) > 0).all()
    again = principal_components(map_latents, 5, samples=1000, batch=300, seed=3, components=2)
    assert torch.equal(again.directions, found.directions[:2])


@pytest.mark.parametrize(
    "call",
    [
        lambda: LatentTarget(torch.eye(2, 6), torch.zeros(5)),
        lambda: LatentTarget(torch.eye(2, 6), torch.zeros(6), heads=0),
        lambda: LatentTarget(torch.eye(2, 6), torch.zeros(6)).mix(torch.zeros(1, 5), 0.5, 1, 2),
        lambda: LatentTarget(torch.eye(2, 6), torch.zeros(6)).mix(torch.zeros(1, 6), 0.5, 3, 2),
        lambda: principal_components(lambda z: z, 4, samples=1),
        lambda: principal_components(lambda z: z, 4, samples=10, components=5),
    ],
)
def test_errors(call):
    with pytest.raises(ValueError):
        call()
