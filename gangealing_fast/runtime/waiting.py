# SPDX-License-Identifier: Apache-2.0
"""How a process's idle threads wait for their next piece of work, if other programs compute on the same cores.

A step runs some hundred parallel regions. After each, GNU's OpenMP library lets a thread spin for milliseconds before it sleeps,
because waking a sleeping thread costs more than most regions take. On a free machine that is right. If another program computes,
the thread spins on the core that the thread it waits for needs, and a step takes up to 20 times longer.

The library spins a few hundred times shorter while it manages more threads than there are cores. `watch` uses that: it asks the
kernel how long the threads of this process waited for a core. While that is much, it keeps a second team of threads that sleep.
Results do not depend on it: the threads that compute, and what each of them computes, stay the same.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Protocol

# Variables by which a user says how threads wait. If one is set, nothing here happens.
VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
# The part of the time that this process's threads together wait for a core: 0.03 on a free machine, 0.5 beside one busy program.
BUSY_SHARE = 0.15
# How often the kernel is asked, and for how many answers in a row the machine must be free before threads spin again.
SECONDS, CALM = 0.5, 4

NOTICE = "other programs compute on this machine's cores: idle threads sleep sooner while they do; fewer --threads may be as fast"

_watcher: Watcher | None = None


class Team(Protocol):
    """A second team of sleeping threads."""

    def end(self) -> None: ...


def waited() -> float | None:
    """Seconds that this process's threads, all together, were ready to run and had no core; None if the system does not say."""
    total, found = 0, False
    try:
        tasks = os.listdir("/proc/self/task")
    except OSError:
        return None
    for task in tasks:
        try:
            with open(f"/proc/self/task/{task}/schedstat") as file:
                total += int(file.read().split()[1])
            found = True
        except (OSError, ValueError, IndexError):
            continue  # the thread has ended since, or the kernel keeps no such statistics
    return total / 1e9 if found else None


def library() -> str | None:
    """The path of GNU's OpenMP library in this process; None if it is not loaded, or if torch was built with another."""
    try:
        with open("/proc/self/maps") as file:
            paths = {line.split()[-1] for line in file if "libgomp" in line}
    except OSError:
        return None
    return min(paths) if len(paths) == 1 else None


class SleepingTeam:
    """One thread more than there are cores, in a team of GNU's OpenMP library that has nothing to do until `end`."""

    def __init__(self, path: str) -> None:
        self._begun, self._over = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._sleep, args=(path,), name="gangealing_fast-waiting", daemon=True)
        self._thread.start()
        self._begun.wait()

    def _sleep(self, path: str) -> None:
        # A team belongs to the thread that asked for it and lasts as long. free(NULL) is work that does nothing.
        gomp, nothing = ctypes.CDLL(path), ctypes.cast(ctypes.CDLL(None).free, ctypes.c_void_p)
        gomp.GOMP_parallel(nothing, None, ctypes.c_uint(gomp.omp_get_num_procs() + 1), ctypes.c_uint(0))
        self._begun.set()
        self._over.wait()

    def end(self) -> None:
        """Let the team go; idle threads spin again as the library has it."""
        self._over.set()
        self._thread.join()


def _make_team() -> Team | None:
    path = library()
    return SleepingTeam(path) if path is not None else None


class Watcher:
    """Decides from the time that threads waited whether they are to sleep sooner.

    Args:
        waited: seconds waited so far, as the function `waited` gives them.
        clock: seconds, of any origin.
        team: makes the sleeping team; None if there is no library to ask.
        notice: is told once when the first team is made.
    """

    def __init__(
        self,
        waited: Callable[[], float | None] = waited,
        clock: Callable[[], float] = time.monotonic,
        team: Callable[[], Team | None] = _make_team,
        notice: Callable[[str], object] | None = None,
    ) -> None:
        self._waited, self._clock, self._make, self._notice = waited, clock, team, notice
        self._last = (clock(), waited() or 0.0)
        self._calm = 0
        self.team: Team | None = None

    def look(self) -> None:
        """Ask once, and let the team come or go."""
        now, waited = self._clock(), self._waited()
        if waited is None or now <= self._last[0]:
            return
        # Threads that have ended took their time with them.
        share = max(0.0, waited - self._last[1]) / (now - self._last[0])
        self._last = (now, waited)
        self._calm = 0 if share > BUSY_SHARE else self._calm + 1
        if self._calm == 0 and self.team is None:
            self.team = self._make()
            if self.team is not None and self._notice is not None:
                self._notice(NOTICE)
                self._notice = None
        elif self._calm >= CALM and self.team is not None:
            self.team.end()
            self.team = None

    def run(self) -> None:
        """Look for as long as the process lives."""
        while True:
            time.sleep(SECONDS)
            self.look()


def watch(notice: Callable[[str], object] | None = None) -> bool:
    """Let this process's idle threads sleep sooner while other programs compute on its cores, until the process ends.

    Commands call it for themselves. A program that calls the package's operators may call it too, at any time. A second call does
    nothing.

    Args:
        notice: is given one sentence when other programs are seen for the first time.

    Returns:
        Whether it is done: False if the user has set OMP_WAIT_POLICY or GOMP_SPINCOUNT, or if the system (not Linux, a kernel
        without scheduler statistics) does not say how long threads wait.
    """
    global _watcher
    if _watcher is None and reason_against() is None:
        _watcher = Watcher(notice=notice)
        threading.Thread(target=_watcher.run, name="gangealing_fast-watch", daemon=True).start()
    return _watcher is not None


def reason_against() -> str | None:
    """Why `watch` leaves threads alone in this process; None if it does not."""
    for name in VARIABLES:
        if name in os.environ:
            return f"{name} is set"
    if not sys.platform.startswith("linux") or waited() is None:
        return "the system does not say how long threads wait for a core"
    return None


def describe() -> str:
    """One line on how idle threads of this package's commands wait."""
    reason = reason_against()
    return "spin, and sleep soon while other programs compute" if reason is None else f"as the OpenMP library has it: {reason}"
