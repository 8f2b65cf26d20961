# SPDX-License-Identifier: Apache-2.0
"""Who does the shards: this process, those that torchrun started (each every n-th shard), or the actors of a Ray cluster.

Nobody sends pictures to anybody. Every process reads and writes the files that all of them see, and a shard is done when its record
is there. So every one of them can be killed at any time.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from gangealing_fast.applications.config import AlignConfig
from gangealing_fast.applications.shards import Worker, worker_of
from gangealing_fast.runtime.distributed import Group, join
from gangealing_fast.runtime.errors import UserError
from gangealing_fast.runtime.setup import processes, set_threads
from gangealing_fast.runtime.text import printable
from gangealing_fast.storage.runs import open_run

COMMAND = "align"
FREE = {"threads", "out", "engine", "workers"}
PATIENCE = 300.0
"""Seconds that processes wait for one another before they begin."""
_POLL = 0.2


def run(config: AlignConfig) -> None:
    """Do all shards that are not done, then what is made of all of them. Raises UserError for a user's mistakes."""
    if config.engine == "ray" and processes() > 1:
        raise UserError("--engine ray starts its processes itself: start the command without torchrun")
    lead = processes() == 1 or os.environ["RANK"] == "0"
    worker = worker_of(config, say=print if lead else lambda sentence: None)
    with contextlib.ExitStack() as stack:
        if lead:  # before the others go on
            stack.enter_context(_begun(config, worker))
        group = stack.enter_context(join("cpu", PATIENCE))
        if not worker.is_complete:
            _do_all(config, worker, group)
        if group.lead:
            worker.say()


@contextlib.contextmanager
def _begun(config: AlignConfig, worker: Worker) -> Iterator[None]:
    """Hold the results folder."""
    with open_run(config.out, COMMAND, config, pictures={"--data": config.data}, free=FREE):
        worker.folder.check_listing(f"--data {config.data}", worker.units.names())
        seen = "whole" if worker.seeing.size is None else f"as {worker.seeing.size}x{worker.seeing.size}"
        print(f"{len(worker.units)} shards of {printable(config.data)}; the aligner sees pictures {seen}")
        yield


def _do_all(config: AlignConfig, worker: Worker, group: Group) -> None:
    for stage in worker.stages:
        todo = [index for index in range(len(worker.units)) if not worker.is_done(stage, index)]
        initial = len(worker.units) - len(todo)
        if config.engine == "local":  # by the number of the shard: processes may see different ones done
            todo = [index for index in todo if index % group.world == group.rank]
        with tqdm(total=len(worker.units), initial=initial, unit="shard", desc=stage, disable=not group.lead) as progress:
            if config.engine == "ray":
                _by_ray(config, stage, todo, progress)
            for index in todo if config.engine == "local" else []:
                worker.do(stage, index)
                progress.update()
        _wait_for_all(worker, stage)
    if group.lead:
        worker.finish()
    elif group.world > 1:
        _wait_until(lambda: worker.is_complete)


def _wait_for_all(worker: Worker, stage: str) -> None:
    """Until the shards of other processes are done. If one of them fails, torchrun ends this one."""
    left = set(range(len(worker.units)))

    def none_left() -> bool:
        left.difference_update([index for index in left if worker.is_done(stage, index)])
        return not left

    _wait_until(none_left)


def _wait_until(happened: Any) -> None:
    while not happened():
        time.sleep(_POLL)


class _Actor:
    """A process of Ray's that holds an aligner."""

    def __init__(self, config: AlignConfig, stage: str) -> None:
        set_threads(config.threads)
        self.worker, self.stage = worker_of(config, say=lambda sentence: None), stage

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        for index in batch["item"]:
            if not self.worker.is_done(self.stage, int(index)):  # a shard is given out again if its process died
                self.worker.do(self.stage, int(index))
        return {"item": batch["item"]}


def _by_ray(config: AlignConfig, stage: str, todo: list[int], progress: tqdm) -> None:
    """Give the shards to actors, of which those that die are started again. The numbers of shards are all that travels."""
    if not todo:
        return
    try:
        import ray
        import ray.data
    except ImportError:
        raise UserError("--engine ray needs the package ray: pip install gangealing_fast[scale]") from None
    if not ray.is_initialized():
        _start_ray(ray)
    count = min(len(todo), config.workers or max(1, int(ray.cluster_resources().get("CPU", 1))))
    numbers = ray.data.from_items(todo, override_num_blocks=len(todo))
    made = numbers.map_batches(
        _Actor,
        fn_constructor_args=(config, stage),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=count),
        num_cpus=1,
        max_restarts=-1,
        max_task_retries=-1,
    )
    try:
        for _ in made.iter_rows():
            progress.update()
    except ray.exceptions.RayError as error:
        raise _mistake_in(error) or error from None


def _start_ray(ray: Any) -> None:
    """Join the cluster that RAY_ADDRESS names, or start one on this machine."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    package = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
    options: dict[str, Any] = {} if os.environ.get("RAY_ADDRESS") else {"include_dashboard": False}
    ray.init(log_to_driver=False, runtime_env={"env_vars": {"PYTHONPATH": path}}, **options)
    ray.data.DataContext.get_current().enable_progress_bars = False


def _mistake_in(error: BaseException) -> UserError | None:
    """The user's mistake that an actor met."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, UserError):
            return UserError(str(seen).splitlines()[-1])
        seen = getattr(seen, "cause", None) or seen.__cause__
    return None
