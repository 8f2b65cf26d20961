# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from golden.recipe import named_normal
from support import assert_golden, golden, golden_state

from gangealing_fast.models import Discriminator, Generator, LatentTarget


def load(settings, state_key="state", **options):
    generator = Generator(settings["size"], 512, 2, **options)
    state = golden_state(settings[state_key])
    assert set(state) <= set(generator.state_dict())
    generator.load_state_dict(state, strict=False)
    return generator


def test_agrees_with_the_published_generator():
    settings, arrays = golden("generator")
    generator = load(settings, channel_multiplier=settings["channel_multiplier"])
    w = generator.map(arrays["z"])
    assert_golden(w, arrays["w"], what="w")
    w = arrays["w"].requires_grad_()
    image = generator.synthesize(w, noise="fixed")
    assert_golden(image, arrays["image"], what="image")
    weight = torch.from_numpy(named_normal("generator.grad", tuple(image.shape), 0))
    assert_golden(torch.autograd.grad((image * weight).sum(), w)[0], arrays["grad_w"], gradient=True, what="grad_w")
    latent = golden_state(settings["latent_state"])
    target = LatentTarget(latent["directions"], latent["lat_mean"])
    target.load_state_dict(latent, strict=False)
    layers = target.mix_layers(arrays["w"].detach(), settings["psi"], settings["inject"], generator.n_latent)
    assert_golden(torch.stack(layers, 1), arrays["mixed_latents"], what="mixed latents")
    mixed = generator.synthesize(layers, noise="fixed")
    assert_golden(mixed, arrays["target_image"], what="target")
    gradient = torch.autograd.grad((mixed * weight).sum(), target.coefficients)[0]
    assert_golden(gradient, arrays["grad_coefficients"], gradient=True, what="grad_coefficients")


@pytest.mark.parametrize("size", [8, 32])
def test_slim_networks_of_every_size(size):
    generator = Generator(size, 16, 2, channel_base=64, max_channels=16)
    image = generator(torch.randn(3, 16))
    assert image.shape == (3, 3, size, size) and torch.isfinite(image).all()
    rebuilt = Generator(**generator.config())
    rebuilt.load_state_dict(generator.state_dict())
    z = torch.randn(2, 16)
    assert torch.equal(rebuilt(z, "fixed"), generator(z, "fixed"))
    logits = Discriminator(size, channel_base=64, max_channels=16)(image)
    assert logits.shape == (3,)


def test_noise_is_drawn_anew_unless_fixed():
    generator = Generator(8, 16, 1, channel_base=64, max_channels=16)
    for module in generator.modules():
        if hasattr(module, "noise"):
            torch.nn.init.ones_(module.noise.weight)
    z = torch.randn(1, 16)
    assert not torch.equal(generator(z), generator(z))
    assert torch.equal(generator(z, "fixed"), generator(z, "fixed"))


def test_frozen_generator_needs_gradients_of_injected_layers_only():
    generator = Generator(16, 16, 1, channel_base=64, max_channels=16).requires_grad_(False)
    c, w = torch.randn(2, 16, requires_grad=True), torch.randn(2, 16)
    image = generator.synthesize([c] * 2 + [w] * (generator.n_latent - 2), "fixed")
    stacked = generator.synthesize(torch.stack([c] * 2 + [w] * (generator.n_latent - 2), 1), "fixed")
    assert torch.equal(image, stacked)
    assert torch.autograd.grad(image.sum(), c)[0].abs().sum() > 0


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="power of two"):
        Generator(24)
    generator = Generator(8, 16, 1, channel_base=64)
    with pytest.raises(ValueError, match="z must be"):
        generator.map(torch.zeros(2, 8))
    with pytest.raises(ValueError, match="4 latents"):
        generator.synthesize(torch.zeros(2, 5, 16))
    with pytest.raises(ValueError, match="noise must be"):
        generator.synthesize(torch.zeros(2, 16), "none")
    with pytest.raises(ValueError, match="images must be"):
        Discriminator(8, channel_base=64)(torch.zeros(2, 3, 16, 16))
