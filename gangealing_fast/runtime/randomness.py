# SPDX-License-Identifier: Apache-2.0
"""Random numbers that a run can be repeated by: derived from names instead of drawn from a state, or drawn beside the run's own."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


def derived_seed(*parts: int | str) -> int:
    """A 63-bit seed for a sequence of names and numbers: a hash, since neighbouring seeds would give neighbouring states."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def normal_rows(names: Sequence[int | str], rows: Sequence[int], width: int, device: torch.device | str = "cpu") -> Tensor:
    """Standard normal numbers `[len(rows), width]`, float32; each row is a function of (names, its number in `rows`, device) alone.

    So whoever needs a row draws that row, whatever the batch it is in and the process that asks.
    """
    # A generator of a CPU keeps 32 bits of its seed: of fifty million rows, about one in a hundred repeats another one.
    source = torch.Generator(device)
    numbers = torch.empty(len(rows), width, device=device)
    for position, row in enumerate(rows):
        numbers[position].normal_(generator=source.manual_seed(derived_seed(*names, row)))
    return numbers


def generator_states() -> dict[str, Any]:
    """The states of torch's default generators, for a checkpoint: the CPU's, and those of all CUDA devices if any is in use."""
    on_cards = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return {"random_state": torch.get_rng_state(), "cuda_random_states": on_cards}


def restore_generators(state: Mapping[str, Any]) -> None:
    """Set torch's default generators to what `generator_states` gave; what else is in `state` is left alone.

    A device whose state is not there (a checkpoint from another machine, or from before these states were kept) draws numbers
    that follow from the CPU's state, not those that the run began with.
    """
    torch.set_rng_state(state["random_state"])
    known = state.get("cuda_random_states", [])
    for index in range(torch.cuda.device_count()):
        if index < len(known):
            torch.cuda.set_rng_state(known[index], index)
        else:
            digest = hashlib.sha256(state["random_state"].numpy().tobytes()).hexdigest()
            torch.cuda.default_generators[index].manual_seed(derived_seed(digest, index))


@contextmanager
def private_stream(seed: int) -> Iterator[None]:
    """Inside the block torch's default generators start at `seed`; afterwards they are where they were."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield
