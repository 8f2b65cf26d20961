# SPDX-License-Identifier: Apache-2.0
"""Training in several processes: the same curve as in one, with one of them killed too, and no waiting without end."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from runs import train_config, write_generator

from gangealing_fast import pretrain
from gangealing_fast.alignment.trainer import run
from gangealing_fast.runtime.distributed import Group, meet
from gangealing_fast.storage import checkpoint
from gangealing_fast.storage.files import read_json_lines

SCRIPT = Path(__file__).with_name("several.py")
ENVIRONMENT = {key: value for key, value in os.environ.items() if not key.startswith("TORCHELASTIC")} | {
    "PYTHONPATH": os.pathsep.join([str(SCRIPT.parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]),
    "OMP_NUM_THREADS": "1",
}


@pytest.fixture
def folder(tmp_path):
    write_generator(tmp_path / "generator.safetensors")
    return tmp_path


def launch(folder, mode, out, changes, only=(0, 1)):
    """Two processes, or only some of them, as torchrun would start them, without its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    command = [sys.executable, str(SCRIPT), mode, str(folder), out, json.dumps(changes)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return [subprocess.Popen(command, env=ENVIRONMENT | place | {"RANK": str(rank)}, **pipes) for rank in only]


def curve(folder):
    return [{k: v for k, v in line.items() if k != "seconds"} for line in read_json_lines(folder / "log.jsonl")]


def assert_same_curve(one, other, tolerance):
    assert [line["step"] for line in one] == [line["step"] for line in other] and len(one) > 1
    for a, b in zip(one, other, strict=True):
        assert a == pytest.approx(b, rel=tolerance, abs=1e-7)


def test_every_row_is_somebodys():
    for count, world in ((8, 2), (7, 3), (3, 3)):
        shares = [Group(torch.device("cpu"), rank, world).share(count) for rank in range(world)]
        assert [row for share in shares for row in share] == list(range(count))


def meeting(store, ranks):
    """The names that processes of these ranks, one starting after the other, agree on."""
    with ThreadPoolExecutor(len(ranks)) as pool:
        names = []
        for rank in ranks:
            names.append(pool.submit(meet, store, rank, len(ranks)))
            time.sleep(0.02)
        return {name.result(timeout=60) for name in names}


@pytest.mark.parametrize("ranks", [(0, 1), (1, 0), (2, 0, 1), (1, 2, 0), (0, 4, 3, 2, 1)])
def test_every_life_has_a_name_of_its_own_in_a_store_that_keeps_the_last_ones(ranks):
    store = torch.distributed.HashStore()
    names = [meeting(store, ranks) for _ in range(3)]
    assert [len(agreed) for agreed in names] == [1, 1, 1] and len(set.union(*names)) == 3


def test_a_process_that_died_at_the_start_is_not_waited_for():
    """Process 1 draws a number and is gone; process 0 announces it, process 2 confirms; then process 1 comes anew."""
    store = torch.distributed.HashStore()
    store.set("life 1", "dead")
    with ThreadPoolExecutor(3) as pool:
        first = [pool.submit(meet, store, rank, 3) for rank in (0, 2)]
        while not store.check(["answer 2"]):
            time.sleep(0.01)
        outdated = store.get("answer 2").decode()
        names = {name.result(timeout=60) for name in [pool.submit(meet, store, 1, 3), *first]}
    assert len(names) == 1 and "dead" in outdated and outdated not in names


def test_killed_workers_meet_again(tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "3"]
    command = [*torchrun, str(SCRIPT.with_name("meeting.py")), "3"]
    result = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0 and result.stdout == "met in life 3\n", result.stderr[-3000:]


@pytest.mark.slow
def test_two_processes_of_4_learn_what_one_of_8_learns(folder):
    changes = {"batch": 8, "steps": 6, "anneal_psi": 3, "period": 3, "precision": "float32", "micro_batch": 8}
    changes |= {"clusters": 2, "single_steps": 3, "cluster_candidates": 4}
    run(train_config(folder, out=folder / "one", **changes))
    two = launch(folder, "plain", "two", changes | {"micro_batch": 3})
    said = [process.communicate(timeout=300) for process in two]
    assert [process.returncode for process in two] == [0, 0], said
    assert said[1][0] == "" and "train" not in said[1][1]
    assert_same_curve(curve(folder / "one"), curve(folder / "two"), 1e-4)
    states = [checkpoint.load(folder / name / "checkpoint.pt") for name in ("one", "two")]
    for a, b in zip(states[0]["transformer"].values(), states[1]["transformer"].values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    assert (folder / "two" / "report.html").exists()


@pytest.mark.slow
def test_a_killed_worker_is_restarted_to_the_same_curve(folder):
    """torchrun ends the others, starts all anew, and they go on from the last checkpoint."""
    changes = {"steps": 10, "snapshot": 3, "transforms": "similarity", "precision": "float32", "patience": 60.0}
    run(train_config(folder, out=folder / "one", **changes))
    whole = launch(folder, "plain", "whole", changes)
    said = [process.communicate(timeout=300) for process in whole]
    assert [process.returncode for process in whole] == [0, 0], said
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "3"]
    command = [*torchrun, str(SCRIPT), "killed", str(folder), "run", json.dumps(changes)]
    result = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "resuming" in result.stdout and "at step 6 of 10" in result.stdout
    one, two = curve(folder / "one"), curve(folder / "whole")
    # A batch and its halves round differently, and each step makes that larger: 1e-6 at the second, 2e-4 at the ninth on an EPYC.
    assert_same_curve(one[:4], two[:4], 1e-5)
    assert_same_curve(one, two, 1e-3)
    assert_same_curve(two, curve(folder / "run"), 0)
    states = [checkpoint.load(folder / name / "checkpoint.pt") for name in ("whole", "run")]
    assert all(torch.equal(a, states[1]["transformer"][key]) for key, a in states[0]["transformer"].items())


@pytest.mark.slow
def test_nobody_waits_for_ever(folder):
    processes = launch(folder, "silent", "run", {"patience": 15.0, "steps": 4, "transforms": "similarity"})
    _, error = processes[0].communicate(timeout=120)
    processes[1].kill()
    processes[1].communicate()
    assert processes[0].returncode == 2
    sentence = error.split("error: ")[1].splitlines()[0]
    assert "process 0 of 2 waited" in sentence and "the losses of step 3" in sentence and "none came for 15 s" in sentence
    assert "Traceback" not in error


def test_nobody_waits_for_ever_for_the_others_to_start(folder):
    (process,) = launch(folder, "plain", "run", {"patience": 2.0}, only=[1])
    _, error = process.communicate(timeout=120)
    assert process.returncode == 2 and "error: process 1 of 2 waited for the other processes at the start" in error
    assert "Traceback" not in error


def test_commands_of_one_process_say_so(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(sys, "argv", ["pretrain", "--data", "nowhere", "--out", "nowhere"])
    with pytest.raises(SystemExit):
        pretrain.main()
    assert "one process" in capsys.readouterr().err
