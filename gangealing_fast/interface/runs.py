# SPDX-License-Identifier: Apache-2.0
"""Runs that the page starts: the ordinary commands as processes of their own, below the studio's folder.

runs/NAME       the results folder, which the command claims as it does from a terminal; the same command resumes it
pictures/NAME   the pictures that were handed to it, if it works on those of the page
jobs/NAME.json  the command line, who may see it, how it ended
jobs/NAME.txt   what it said
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gangealing_fast.applications.naming import result_name
from gangealing_fast.interface.options import COMMANDS, takes_pictures, teacher_words, words_of
from gangealing_fast.interface.pictures import Picture
from gangealing_fast.runtime.errors import UserError
from gangealing_fast.runtime.text import printable
from gangealing_fast.storage.files import read_json, save_picture, write_bytes, write_text
from gangealing_fast.storage.locks import locked

NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")
SHOWN = re.compile(r"(samples-[0-9]+|average|template(-[0-9]+)?)\.png|report\.html")
"""Files of a run that the page shows."""
MOST = 200
"""Runs that the folder of a studio holds."""
_PATIENCE = 10.0


@dataclass(frozen=True)
class Job:
    """A run: its name, command, words of the command line, who may see it ("" for all), and its exit status, None before that."""

    name: str
    command: str
    words: tuple[str, ...]
    owner: str
    status: int | None = None

    @property
    def line(self) -> str:
        """What would be typed in a terminal."""
        return shlex.join(["python", "-m", f"gangealing_fast.{self.command}", *self.words])


def owner_of(key: str) -> str:
    """What tells a browser from others in a file, without its cookie."""
    return hashlib.blake2b(key.encode(), digest_size=16).hexdigest()


class Runs:
    """All runs below a folder. most: how many may go on at a time. threads: of each."""

    def __init__(self, folder: Path, most: int, threads: int) -> None:
        self._folder, self.most, self._threads = folder, most, threads
        self._lock = threading.RLock()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def folder(self, name: str) -> Path:
        """The results folder of a run."""
        return self._folder / "runs" / name

    def _job_file(self, name: str, ending: str) -> Path:
        return self._folder / "jobs" / f"{name}{ending}"

    # ---- what there is

    def seen_by(self, key: str) -> list[Job]:
        """The runs that a browser may see, newest first."""
        places = sorted((self._folder / "jobs").glob("*.json"), key=lambda path: -path.stat().st_mtime)
        found = [job for job in (self._read(path.stem) for path in places) if job is not None]
        return [job for job in found if job.owner in ("", owner_of(key))]

    def job(self, name: str, key: str) -> Job:
        """A run that a browser may see. Raises UserError if there is none of that name, or if it is another browser's."""
        found = self._read(name) if NAME.fullmatch(name) else None
        if found is None or found.owner not in ("", owner_of(key)):
            raise UserError(f"there is no run {printable(name)[:60]} on this page")
        return found

    def _read(self, name: str) -> Job | None:
        with contextlib.suppress(UserError, TypeError):
            found = read_json(self._job_file(name, ".json"))
            if isinstance(found, dict) and NAME.fullmatch(name) and found.get("command") in COMMANDS:
                return Job(**{**found, "words": tuple(found["words"])})
        return None

    def exists(self, name: str) -> bool:
        """Whether there is a run of that name, whoever may see it."""
        return self._job_file(name, ".json").exists() or self.folder(name).exists()

    def is_going(self, job: Job) -> bool:
        """Whether a run goes on, started by this studio or by anybody else."""
        process = self._processes.get(job.name)
        if process is not None:
            return process.poll() is None
        if not self.folder(job.name).is_dir():
            return False
        try:
            with locked(self.folder(job.name), "studio"):
                return False
        except UserError:
            return True

    def state(self, job: Job) -> str:
        """What is to be said of a run, in a few words."""
        with self._lock:
            if self.is_going(job):
                return "running"
            self._note_end(job.name)
            status = (self._read(job.name) or job).status
        if status == 0:
            return "finished"
        return "stopped" if status is None or status < 0 or status in (130, 143) else "failed"

    def said(self, job: Job, lines: int = 1) -> str:
        """The last lines that a run said."""
        path = self._job_file(job.name, ".txt")
        text = path.read_bytes()[-4000:].decode(errors="replace") if path.exists() else ""
        found = [line.strip() for line in re.split(r"[\r\n]", text) if line.strip()]
        if found and found[-1] == "KeyboardInterrupt":  # so early that the command could not say it in its own way
            return "interrupted"
        return "\n".join(found[-lines:])

    def shown_files(self, job: Job) -> list[str]:
        """Names of the files of a run that the page shows, the newest sheet of samples first."""
        folder = self.folder(job.name)
        names = (
            sorted((path.name for path in folder.iterdir() if SHOWN.fullmatch(path.name)), reverse=True) if folder.is_dir() else []
        )
        samples = [name for name in names if name.startswith("samples-")]
        return samples[:1] + sorted(name for name in names if name not in samples)

    def teachers(self, key: str) -> dict[str, Path]:
        """Folders of runs that `train` can learn from, by the runs' names."""
        files = ("generator.safetensors", "set.safetensors")
        folders = {job.name: self.folder(job.name) for job in self.seen_by(key)}
        return {name: folder for name, folder in folders.items() if any((folder / file).exists() for file in files)}

    # ---- starting and stopping

    def start(
        self, command: str, name: str, values: Mapping[str, Any], *, key: str, pictures: Sequence[Picture] = (), teacher: str = ""
    ) -> Job:
        """Start a run, or go on with one of that name. Raises UserError for a wrong option, and if too many go on."""
        words = words_of(command, values)
        if not NAME.fullmatch(name):
            raise UserError("a run is named by up to 40 of the letters a to z, digits and dashes")
        with self._lock:
            self._check_room(name)
            before = self._read(name)
            if before is not None:
                self.job(name, key)  # not another browser's
            out = self.folder(name)
            private = any(picture.own for picture in pictures) and takes_pictures(command)
            if command == "train":
                before_it = self.teachers(key)
                words = [*teacher_words(teacher, before_it), *words]
                taught_by = self._read(teacher) if teacher in before_it else None
                private = taught_by is not None and taught_by.owner != ""
            if command == "pretrain":
                words = ["--preset", "cats", *words, "--held-out", "0", "--score-pictures", "0"]
            if takes_pictures(command):
                words += ["--data", str(self._hand_over(name, pictures, command, new=before is None))]
            words += ["--out", str(out), "--threads", str(self._threads)]
            job = Job(name, command, tuple(words), owner_of(key) if private else "")
            if before is not None and (before.command, before.words) != (job.command, job.words):
                raise UserError(f"there is a run {name} with other options already; choose another name, or resume it")
            self._spawn(before or job)
            return job

    def resume(self, name: str, key: str) -> Job:
        """Go on with a run by the same command. Raises UserError if it cannot be."""
        with self._lock:
            job = self.job(name, key)
            self._check_room(name)
            self._spawn(job)
            return job

    def _check_room(self, name: str) -> None:
        job = self._read(name)
        if job is not None and self.is_going(job):
            raise UserError(f"the run {name} goes on already")
        going = sum(process.poll() is None for process in self._processes.values())
        if going >= self.most:
            what = "starts no runs" if not self.most else f"has {going} of {self.most} runs going; stop one first"
            raise UserError(f"this studio {what}")
        if job is None and len(list((self._folder / "jobs").glob("*.json"))) >= MOST:
            raise UserError(f"this studio holds {MOST} runs, which is the most; remove some of its folder")

    def _hand_over(self, name: str, pictures: Sequence[Picture], command: str, *, new: bool) -> Path:
        """Write the pictures of the page to a folder of the run's own."""
        folder = self._folder / "pictures" / name
        if not new and folder.is_dir():
            return folder
        if len(pictures) < 3:
            raise UserError(f"{command} needs 3 pictures or more; add some first")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for number, picture in enumerate(pictures):
            path = folder / result_name(number, picture.name)
            if picture.path is not None:
                write_bytes(path, picture.path.read_bytes())
            else:
                save_picture(path, picture.original())
        return folder

    def _spawn(self, job: Job) -> None:
        (self._folder / "jobs").mkdir(parents=True, exist_ok=True)
        (self._folder / "runs").mkdir(parents=True, exist_ok=True)
        self._write(Job(job.name, job.command, job.words, job.owner))
        command = [sys.executable, "-m", f"gangealing_fast.{job.command}", *job.words]
        with open(self._job_file(job.name, ".txt"), "wb") as said:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, start_new_session=True)
        self._processes[job.name] = process

    def _write(self, job: Job) -> None:
        write_text(self._job_file(job.name, ".json"), json.dumps(asdict(job), indent=1) + "\n")

    def _note_end(self, name: str) -> None:
        process = self._processes.get(name)
        job = self._read(name)
        if process is not None and job is not None and process.poll() is not None and job.status is None:
            self._write(Job(job.name, job.command, job.words, job.owner, process.returncode))

    def stop(self, name: str, key: str) -> Job:
        """Interrupt a run as Ctrl-C does, and wait until it has ended; it can be resumed. Raises UserError if it does not go on."""
        job = self.job(name, key)
        process = self._processes.get(name)
        if process is None or process.poll() is not None:
            here = "was not started by this studio: stop it where it was started" if self.is_going(job) else "does not go on"
            raise UserError(f"the run {name} {here}")
        _end(process)
        with self._lock:
            self._note_end(name)
        return job

    def stop_all(self) -> None:
        """Interrupt all runs of this studio."""
        going = [(name, process) for name, process in self._processes.items() if process.poll() is None]
        for _, process in going:
            _signal(process, signal.SIGINT)
        for name, process in going:
            _end(process)
            self._note_end(name)


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _end(process: subprocess.Popen[bytes], sleep: Callable[[float], None] = time.sleep) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        _signal(process, number)
        until = time.monotonic() + _PATIENCE
        while time.monotonic() < until:
            if process.poll() is not None:
                return
            sleep(0.05)
