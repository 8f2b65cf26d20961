# SPDX-License-Identifier: Apache-2.0
"""docs/api.md: every public name is there, and the page is what tools/make_api.py writes."""

from __future__ import annotations

import importlib

import pytest

from tools import make_api

PAGE = make_api.OUT.read_text()
# Rooms whose __init__ names what they offer: all of it belongs onto the page.
ROOMS = ("gangealing_fast", "gangealing_fast.ops", "gangealing_fast.models", "gangealing_fast.metrics")
NAMES = [(section.module, name) for section in make_api.SECTIONS for name in make_api.chosen_names(section)]


def test_the_page_is_what_the_program_writes():
    assert make_api.page() == PAGE, "run `make api`"


@pytest.mark.parametrize("room", ROOMS)
def test_every_public_name_is_on_the_page(room):
    prefix = "" if room == "gangealing_fast" else room.rpartition(".")[2] + "."
    missing = [name for name in importlib.import_module(room).__all__ if f"`{prefix}{name}`" not in PAGE]
    assert not missing


@pytest.mark.parametrize(("module", "name"), NAMES)
def test_every_name_on_the_page_is_explained(module, name):
    value = getattr(importlib.import_module(module), name)
    if isinstance(value, type) or hasattr(value, "__code__"):
        assert make_api.paragraphs(value), f"{module}.{name} has no docstring"


def test_a_signature_is_written_as_in_the_source():
    def example(first: int, *rest: str, size: float = 0.5, make: object = print, **more: int) -> list[int]:
        """Nothing."""
        return []

    assert make_api.signature("example", example) == (
        "example(first: int, *rest: str, size: float = 0.5, make: object = ..., **more: int) -> list[int]"
    )
