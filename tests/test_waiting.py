# SPDX-License-Identifier: Apache-2.0
"""Idle threads sleep sooner while other programs compute, and spin again afterwards; a user's own setting is left alone."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from gangealing_fast.runtime import waiting

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks Linux how long threads wait")


def two_threads(code: str) -> str:
    """What `code` prints in a process of two OpenMP threads."""
    variables = {**os.environ, "OMP_NUM_THREADS": "2"}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=variables, timeout=120)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


class Machine:
    """A clock, the seconds waited, and the teams that were made and let go."""

    def __init__(self) -> None:
        self.now, self.waited = 0.0, 0.0
        self.events: list[str] = []
        self.said: list[str] = []
        self.watcher = waiting.Watcher(lambda: self.waited, lambda: self.now, self.make, self.said.append)

    def make(self) -> Machine:
        self.events.append("sleep sooner")
        return self

    def end(self) -> None:
        self.events.append("spin")

    def spend(self, share: float, times: int = 1) -> None:
        for _ in range(times):
            self.now += 0.5
            self.waited += 0.5 * share
            self.watcher.look()


def test_nothing_happens_on_a_free_machine() -> None:
    machine = Machine()
    machine.spend(0.03, 100)
    assert machine.events == [] and machine.said == []


def test_threads_sleep_sooner_beside_another_program_and_spin_again_afterwards() -> None:
    machine = Machine()
    machine.spend(0.03, 3)
    machine.spend(0.9)
    assert machine.events == ["sleep sooner"]
    machine.spend(0.5, 10)
    assert machine.events == ["sleep sooner"], "one team is enough"
    machine.spend(0.02, waiting.CALM - 1)
    machine.spend(0.5)
    machine.spend(0.02, waiting.CALM - 1)
    assert machine.events == ["sleep sooner"], "a moment's calm is not the end"
    machine.spend(0.02)
    assert machine.events == ["sleep sooner", "spin"]
    machine.spend(0.9)
    assert machine.events == ["sleep sooner", "spin", "sleep sooner"]
    assert machine.said == [waiting.NOTICE], "said once"


def test_a_thread_that_ends_takes_its_time_with_it() -> None:
    machine = Machine()
    machine.spend(0.1, 10)
    machine.waited = 0.0
    machine.now += 0.5
    machine.watcher.look()
    assert machine.events == []


@linux
@pytest.mark.parametrize("variable", waiting.VARIABLES)
def test_a_setting_of_the_user_is_left_alone(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in waiting.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(waiting, "_watcher", None)
    assert waiting.describe() == "spin, and sleep soon while other programs compute"
    monkeypatch.setenv(variable, "10")
    assert not waiting.watch()
    assert waiting.describe() == f"as the OpenMP library has it: {variable} is set"


@linux
def test_a_sleeping_team_comes_and_goes() -> None:
    code = """
import os, torch
from gangealing_fast.runtime import waiting
x = torch.ones(1 << 20)
x + x
path = waiting.library()
before = len(os.listdir("/proc/self/task"))
team = waiting.SleepingTeam(path)
during = len(os.listdir("/proc/self/task"))
assert (x + x).sum() == 2 << 20
team.end()
while len(os.listdir("/proc/self/task")) > before:
    pass
print(during - before == len(os.sched_getaffinity(0)) + 1)
"""
    assert two_threads(code) == "True"


@linux
def test_more_computing_threads_than_cores_are_seen_to_wait() -> None:
    """Nothing else has to run on the machine for that, and nothing is timed: the process itself asks for more than there is."""
    code = """
import threading, torch
from gangealing_fast.runtime import waiting
torch.set_num_threads(1)
x = torch.randn(600, 600)
seen = threading.Event()
def compute():
    while not seen.is_set():
        x @ x
for _ in range(3 * torch.multiprocessing.cpu_count()):
    threading.Thread(target=compute).start()
watcher = waiting.Watcher()
while watcher.team is None:
    threading.Event().wait(0.2)
    watcher.look()
seen.set()
watcher.team.end()
print("seen")
"""
    assert two_threads(code) == "seen"
