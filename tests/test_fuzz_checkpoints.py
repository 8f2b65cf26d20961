# SPDX-License-Identifier: Apache-2.0
"""Random damage to files with networks: other settings, other shapes, other bytes. One sentence, or a network that is whole."""

from __future__ import annotations

import pytest
import torch
from damage import KINDS, records, rewrite, valid_files, weights_in
from fuzzing import EXAMPLES, RANDOM
from hypothesis import given, settings
from hypothesis import strategies as st

from gangealing_fast.runtime.errors import UserError

NUMBERS = st.one_of(
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.booleans(),
    st.none(),
    st.text(max_size=20),
    st.lists(st.integers(-2, 2**40), max_size=3),
)
# Formats of other projects that have no checksum: damaged numbers in them are read as numbers.
UNCHECKED = ("old torch", "stylegan2-ada")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        found = valid_files(tmp_path_factory.mktemp("files"), patch)
    return {kind: (path, path.read_bytes(), reader, weights_in(reader(path))) for kind, (path, reader) in found.items()}


def hold(file, *, equal=False):
    """What is read of `file` as it lies there now; its content is put back."""
    path, whole, reader, expected = file
    try:
        found = weights_in(reader(path))
    except UserError as error:
        assert str(path) in str(error) and "\n" not in str(error) and len(str(error)) < 700
    else:
        assert all(torch.isfinite(value).all() for value in found.values())
        assert not equal or (found.keys() == expected.keys() and all(torch.equal(v, expected[k]) for k, v in found.items()))
    finally:
        path.write_bytes(whole)


@pytest.mark.parametrize("kind", KINDS)
@RANDOM
@given(data=st.data())
def test_bytes(files, kind, data):
    path, whole, _, _ = files[kind]
    content = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        at, length = data.draw(st.integers(0, len(whole) - 1)), data.draw(st.integers(1, 40))
        how = data.draw(st.sampled_from(("flip", "cut", "double", "zero")))
        if how == "flip":
            content[at % len(content)] ^= 1 << data.draw(st.integers(0, 7))
        elif how == "cut":
            del content[at : at + length]
        elif how == "double":
            content[at:at] = content[at : at + length]
        else:
            content[at : at + length] = bytes(len(content[at : at + length]))
        if not content:
            break
    path.write_bytes(content)
    hold(files[kind], equal=kind not in UNCHECKED)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "stylegan2-ada"])
@settings(RANDOM, max_examples=max(5, EXAMPLES // 3))
@given(data=st.data())
def test_settings_and_shapes(files, kind, data):
    def change(tensors):
        name = data.draw(st.sampled_from(sorted(tensors)))
        shape = list(tensors[name].shape)
        how = data.draw(st.sampled_from(("keep", "keep", "narrow", "empty", "rename", "scale", "transpose")))
        if how == "narrow" and shape:
            tensors[name] = tensors[name].narrow(data.draw(st.integers(0, len(shape) - 1)), 0, 1).contiguous()
        elif how == "empty":
            tensors[name] = torch.zeros(*shape, 0)
        elif how == "rename":
            tensors[data.draw(st.text(max_size=8))] = tensors.pop(name)
        elif how == "scale":
            tensors[name] = tensors[name] * data.draw(st.floats(width=32))
        elif how == "transpose":
            tensors[name] = tensors[name].flatten().flip(0).reshape(shape[::-1])

    def other_settings(about):
        record = data.draw(st.sampled_from([about, *records(about)]))
        record[data.draw(st.sampled_from(sorted(map(str, record))))] = data.draw(NUMBERS)

    try:
        rewrite(files[kind][0], change, other_settings if data.draw(st.booleans()) else None)
        hold(files[kind])
    finally:
        files[kind][0].write_bytes(files[kind][1])
