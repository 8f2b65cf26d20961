# SPDX-License-Identifier: Apache-2.0
"""Several processes that train one model: their shares of a batch, what they tell one another, and how long they wait for it.

`torchrun --nproc-per-node 2 -m gangealing_fast.train ...` starts them and tells each its place in environment variables. Every
process holds all networks and makes the gradients of its share of the batch; the sums travel, and all take the same step.

Everything but the gradients of a CUDA device goes over gloo, and goes first: gloo raises an error where a process does not answer
in time, which becomes one sentence, while NCCL would end the process from a thread of its own. Gradients travel once all have
answered.
"""

from __future__ import annotations

import io
import os
import secrets
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed
from torch import Tensor

from gangealing_fast.runtime.errors import UserError
from gangealing_fast.runtime.setup import choose_device, processes

START_SECONDS = 300.0
"""How long processes may take to find one another, those that torchrun starts anew included."""
POLL_SECONDS = 0.05


@dataclass(frozen=True)
class Group:
    """This process (`rank` of `world`), its device, and for how many seconds it waits for the others."""

    device: torch.device
    rank: int = 0
    world: int = 1
    patience: float = 1800.0

    @property
    def lead(self) -> bool:
        """Whether this is the process that writes files, evaluates and speaks."""
        return self.rank == 0

    def share(self, count: int) -> range:
        """The rows of a batch of `count` that this process computes; together the processes compute each row once."""
        return range(self.rank * count // self.world, (self.rank + 1) * count // self.world)

    def wait(self, what: str) -> None:
        """Until all processes have come here."""
        if self.world > 1:
            with self._bounded(what):
                torch.distributed.all_reduce(torch.zeros(1))

    def total(self, values: Tensor, what: str) -> Tensor:
        """The sum over all processes of `values`, on the CPU."""
        values = values.cpu()
        if self.world > 1:
            with self._bounded(what):
                torch.distributed.all_reduce(values)
        return values

    def add_gradients(self, parameters: Iterable[Tensor], what: str) -> None:
        """Replace the gradients by their sums over all processes, the same to the last bit in each of them.

        One exchange of all gradients side by side, after the last pass of a step. DistributedDataParallel would hook into every
        backward pass instead: it would have to be told which passes of a step only accumulate, wants one module with one forward
        (here two modules are trained, called from several places), and its prefix would have to come off the checkpoint's names.
        What it would gain, the exchange going on during the backward pass, is small beside a pass through two generators.
        A gradient is None in all processes or in none, as they compute the same graph.
        """
        if self.world == 1:
            return
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        with self._bounded(what):
            torch.distributed.all_reduce(flat)
        for gradient, part in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
            gradient.copy_(part.view(gradient.shape))

    def from_lead(self, state: dict[str, Any], what: str) -> dict[str, Any]:
        """`state` of process 0 (tensors and plain values, as a checkpoint holds them) in all processes; tensors on the CPU."""
        if self.world == 1:
            return state
        buffer = io.BytesIO()
        if self.lead:
            torch.save(state, buffer)
        size = torch.tensor([buffer.tell()])
        with self._bounded(what):
            torch.distributed.broadcast(size, 0)
            content = bytearray(buffer.getvalue() if self.lead else int(size))
            torch.distributed.broadcast(torch.frombuffer(content, dtype=torch.uint8), 0)
        return state if self.lead else torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)

    @contextmanager
    def _bounded(self, what: str) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        except RuntimeError as error:
            waited = time.monotonic() - began
            cause = f"none came for {waited:.0f} s" if waited >= 0.9 * self.patience else "the connection to one of them broke"
            raise UserError(
                f"process {self.rank} of {self.world} waited for the other processes at {what}, but {cause}: see what they "
                "report, then start the same command again to resume (--patience says for how many seconds a process waits)"
            ) from error


def _give_up(group: Group) -> None:
    print(
        f"error: process {group.rank} of {group.world} waited for the other processes at the start, but they did not all come: "
        "see what they report, then start the same command again",
        file=sys.stderr,
        flush=True,
    )
    os._exit(2)


def meet(store: torch.distributed.Store, rank: int, world: int) -> str:
    """A name that only the processes of this life share; returns in all of them once each is known to be there.

    torchrun keeps its store when it starts processes anew, and the dead have left gloo's addresses in it under the names that the
    living use. So every process draws a number for its life. Process 0 announces the numbers that it sees, the others confirm an
    announcement that holds their own, and process 0 closes the matter once all have confirmed one and the same.
    """
    mine = secrets.token_hex(8)
    store.set(f"life {rank}", mine)
    lives, answers = [f"life {other}" for other in range(world)], [f"answer {other}" for other in range(1, world)]
    announced = ""
    while rank == 0:
        if store.check(lives):
            seen = " ".join(store.get(life).decode() for life in lives)
            if seen != announced:
                store.set("announcement", seen)
                announced = seen
            if store.check(answers) and all(store.get(answer).decode() == seen for answer in answers):
                store.set("closed", seen)
                return seen
        time.sleep(POLL_SECONDS)
    while True:
        if store.check(["announcement"]):
            seen = store.get("announcement").decode()
            if seen != announced and seen.split()[rank : rank + 1] == [mine]:
                store.set(f"answer {rank}", seen)
                announced = seen
        if announced and store.check(["closed"]) and store.get("closed").decode() == announced:
            return announced
        time.sleep(POLL_SECONDS)


@contextmanager
def join(device: str, patience: float) -> Iterator[Group]:
    """The group of processes that torchrun started, or this process alone.

    device: as `--device`; with several processes each takes the CUDA device of its number on the machine. Raises UserError where
    the others do not come within `patience` seconds.
    """
    if processes() == 1:
        yield Group(choose_device(device), patience=patience)
        return
    if device in ("auto", "cuda") and torch.cuda.is_available():
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    chosen = choose_device(device)
    group = Group(chosen, int(os.environ["RANK"]), processes(), patience)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    # Gloo may wait five times its timeout for a connection, or for ever, and nothing but the end of the process interrupts it.
    watchdog = threading.Timer(min(patience, START_SECONDS), _give_up, [group])
    watchdog.daemon = True
    watchdog.start()
    with group._bounded("the start"):
        limit = timedelta(seconds=patience)
        store, _, _ = next(torch.distributed.rendezvous("env://", group.rank, group.world, timeout=limit))
        name = meet(torch.distributed.PrefixStore("gangealing_fast", store), group.rank, group.world)
        torch.distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo",
            store=torch.distributed.PrefixStore(name, store),
            rank=group.rank,
            world_size=group.world,
            timeout=limit,
        )
        group.wait("the start")
    watchdog.cancel()
    yield group
    # Not after an error: what is left of the group might wait for those that are gone.
    torch.distributed.destroy_process_group()
