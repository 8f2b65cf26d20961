# SPDX-License-Identifier: Apache-2.0
"""The golden vectors themselves: every case has its file, and weights are drawn as they were when the files were made."""

from __future__ import annotations

import hashlib

import pytest
from golden.recipe import named_state
from support import GOLDEN, golden, golden_index

STATES = {
    ("modulated_conv_3", "state"): "825229c7228f0a38af217647633abbadefd15095205977abea87c0e292daa9fe",
    ("generator", "latent_state"): "f024bab2c0f38a57bf6161c76b0bf9f2da1929ab7a5f532a33e2192846546e39",
    ("stn_composed", "state"): "51a1acbe0880a99343154d69cbba51797eb1eb7fdc8a993521906ef4471a53f3",
    ("stn_clusters", "classifier_state"): "bd6c226a261b0f8434fe92791d00a426da867ca7fec835a3962cf95080f30f96",
    ("training_step", "generator_state"): "ac94508952edb5f15645aca71eeb54dea93bd67cd11a2e6b37dbf92084e6faed",
    ("training_step", "lpips_state"): "08d5b838c182eca103d09235d0b44b2eb13b8419357574a663c6438a2a022867",
}


def test_every_case_has_its_file_and_every_file_its_case():
    assert {path.stem for path in GOLDEN.glob("*.npz")} == set(golden_index())


@pytest.mark.parametrize("name", sorted(golden_index()))
def test_arrays_have_the_shapes_of_the_index(name):
    settings, arrays = golden(name)
    assert {key: list(array.shape) for key, array in arrays.items()} == settings["arrays"]


@pytest.mark.parametrize(("case", "state"), STATES)
def test_the_recipe_draws_the_same_bits(case, state):
    """SHA-256 over the bytes of all weights, in the order of the index: another numpy would have to draw other numbers."""
    digest = hashlib.sha256()
    for value in named_state(golden_index()[case][state]).values():
        digest.update(value.tobytes())
    assert digest.hexdigest() == STATES[case, state]
