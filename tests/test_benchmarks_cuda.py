# SPDX-License-Identifier: Apache-2.0
"""What the harness does on a CUDA device, with a device that only writes down what it is asked for: tensors stay on the CPU."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import graphs, machine, training_step
from benchmarks.case import BOTH, COMPILE, FORWARD, Case, Variant
from benchmarks.harness import compare
from benchmarks.runner import MOST_COPIES, WARM_UP_CALLS, Runner, copies_for
from benchmarks.timing import Plan, timer_of

ONCE = Plan(seconds=0.0, rounds=(2, 2), sample=0.0)
DEVICE = torch.device("cuda")
CACHE = 1000  # bytes


class Device:
    """A CUDA device: `log` holds, in order, waits, marks on its stream, recordings, replays, and the variants' calls."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.recording = False
        self.refuses = False

    def call(self, name: str) -> None:
        if self.recording and self.refuses and name == "ours":
            raise RuntimeError("operation not permitted when stream is capturing\nand more")
        self.log.append(f"recorded {name}" if self.recording else name)

    @contextmanager
    def graph(self, _: Any):
        self.recording = True
        try:
            yield
        finally:
            self.recording = False


class Event:
    def __init__(self, device: Device) -> None:
        self.device = device

    def record(self) -> None:
        self.device.log.append("mark")

    def synchronize(self) -> None:
        self.device.log.append("wait for mark")

    def elapsed_time(self, other: Event) -> float:
        return 1.0


@pytest.fixture
def device(monkeypatch) -> Device:
    found = Device()
    cuda = torch.cuda
    monkeypatch.setattr(cuda, "synchronize", lambda device=None: found.log.append("wait"))
    monkeypatch.setattr(cuda, "get_device_properties", lambda device: SimpleNamespace(L2_cache_size=CACHE))
    monkeypatch.setattr(cuda, "Event", lambda enable_timing: Event(found))
    stream = SimpleNamespace(wait_stream=lambda other: None)
    monkeypatch.setattr(cuda, "Stream", lambda device: stream)
    monkeypatch.setattr(cuda, "current_stream", lambda device: stream)
    monkeypatch.setattr(cuda, "stream", lambda stream: contextmanager(lambda: iter([None]))())
    monkeypatch.setattr(cuda, "CUDAGraph", lambda: SimpleNamespace(replay=lambda: found.log.append("replay")))
    monkeypatch.setattr(cuda, "graph", found.graph)
    return found


def _case(device: Device, elements: int = 4, *others: Variant, passes: tuple[str, ...] = (FORWARD,)) -> Case:
    def variant(name):
        def run(x, weight):
            device.call(name)
            return x * x * weight

        return Variant(name, run)

    def inputs(_):
        return torch.randn(elements).requires_grad_(), torch.rand(elements)

    return Case("square", "[4]", inputs, (variant("ours"), variant("reference"), *others), passes=passes)


@pytest.mark.parametrize("what", [FORWARD, BOTH])
def test_nothing_is_timed_before_it_is_warm_and_the_device_is_idle(device, what):
    compare(_case(device, 4, passes=(what,)), 1, plan=ONCE, device=DEVICE)
    eager = device.log[: device.log.index("recorded ours")]
    start = eager.index("mark")
    before, timed = eager[:start], eager[start - 1 :]
    assert before.count("ours") == before.count("reference") == 1 + WARM_UP_CALLS
    for index, entry in enumerate(before):
        if entry in ("ours", "reference"):
            assert before[index - 1] == before[index + 1] == "wait"
    marks = [index for index, entry in enumerate(timed) if entry == "mark"]
    assert len(marks) == 2 * 2 * 4  # a first call, then three rounds, of two variants; a mark before and a mark behind
    for first, last in zip(marks[::2], marks[1::2], strict=True):
        assert timed[first - 1] == "wait" and timed[last + 1] == "wait for mark"
        assert last > first + 1 and set(timed[first + 1 : last]) <= {"ours", "reference"}


def test_what_the_first_call_took_is_not_taken_for_the_kernels_time(device, monkeypatch):
    """A first call that compiles for a second is called again all the same, to find out how long a warm one takes."""
    seconds = iter(range(1000))
    monkeypatch.setattr("benchmarks.runner.time.perf_counter", lambda: float(next(seconds)))
    ran = {name: [] for name in ("cold", "warm")}

    def timed(self, what):
        found = original(self, what)
        ran["warm" if self.seconds < 1 else "cold"].append(self.variant.name)
        return found

    original = Runner.timed
    monkeypatch.setattr(Runner, "timed", timed)
    (record,) = compare(_case(device), 1, plan=ONCE, device=DEVICE)
    assert len(ran["cold"]) == 2 * (1 + WARM_UP_CALLS)
    assert record["variants"]["ours"]["ms"] == pytest.approx(1.0)  # what the marks say, not the clock on the wall


@pytest.mark.parametrize("elements", [1, 4, 40, 400, 4000], ids=str)
def test_copies_of_the_inputs_are_more_than_the_cache_holds(device, elements):
    case = _case(device, elements, passes=(BOTH,))
    runner = Runner(case, case.variants[0], DEVICE)
    size = 2 * 4 * elements
    assert runner.copies == copies_for(runner.inputs, DEVICE) <= MOST_COPIES
    assert runner.copies * size >= 2 * CACHE
    assert runner.copies == 1 or (runner.copies - 1) * size < 2 * CACHE
    seen = []
    monitored = Variant("ours", lambda x, weight: seen.append(x.data_ptr()) or x * x * weight)
    runner = Runner(case, monitored, DEVICE)
    results = [runner.run(BOTH) for _ in range(2 * runner.copies)]
    assert len(set(seen)) == runner.copies and seen[: runner.copies] == seen[runner.copies :]
    for found in results:
        assert all(torch.equal(a, b) for a, b in zip(found, results[0], strict=True))


def test_the_cpu_has_one_copy(device):
    case = _case(device)
    assert Runner(case, case.variants[0], torch.device("cpu")).copies == 1


def test_records_have_a_time_within_a_graph_for_every_variant(device):
    (record,) = compare(_case(device, 40), 1, plan=ONCE, device=DEVICE)
    calls = device.log.count("recorded ours")
    copies = copies_for((torch.rand(80),), DEVICE)
    assert calls == device.log.count("recorded reference") >= graphs.LEAST_CALLS
    assert copies > 1 and calls % copies == 0  # so that the next replay begins with the copy whose turn it is
    assert record["graphs"]["ours"]["ms"] == pytest.approx(1.0 / calls)
    assert record["graphs"]["reference"]["ratio"] == pytest.approx(1.0)
    assert record["targets"] == {}


def test_without_a_graph_there_is_a_reason_and_the_other_times_are_kept(device):
    device.refuses = True
    (record,) = compare(_case(device), 1, plan=ONCE, device=DEVICE)
    assert record["graphs"]["ours"] == {"error": "operation not permitted when stream is capturing"}
    assert "ms" in record["graphs"]["reference"] and "ratio" not in record["graphs"]["reference"]
    assert record["variants"]["ours"]["ms"] > 0
    assert max(i for i, entry in enumerate(device.log) if entry == "ours") < device.log.index("recorded reference")


def test_a_variant_that_does_not_compile_has_no_graph(device):
    def broken(*_):
        raise RuntimeError("no such thing")

    (record,) = compare(_case(device, 4, Variant(COMPILE, broken)), 1, plan=ONCE, device=DEVICE)
    assert record["variants"]["compile"] == {"error": "no such thing"} and "compile" not in record["graphs"]


def test_the_clock_of_pytest_benchmark_waits_for_the_device(device):
    clock = timer_of(DEVICE)
    first, second = clock(), clock()
    assert device.log == ["wait", "wait"] and second >= first
    timer_of(torch.device("cpu"))()
    assert device.log == ["wait", "wait"]


def test_training_steps_on_cuda_are_measured_with_graphs_too(monkeypatch):
    monkeypatch.setattr(machine, "convolves_in_bfloat16", lambda: True)
    names = training_step.variants_for("cuda")
    assert names[: len(training_step.VARIANTS)] == training_step.variants_for("cpu") == list(training_step.VARIANTS)
    assert names[len(training_step.VARIANTS) :] == ["ours, float32, CUDA graphs", "ours, bfloat16, CUDA graphs"]
    options = training_step.parse(["--device", "cuda"])
    assert [training_step.allocators(key, options) for key in training_step.CONFIGURATIONS] == [["default"]] * 4
