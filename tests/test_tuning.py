# SPDX-License-Identifier: Apache-2.0
"""The choice between kernels by measurement: once per card and shape, remembered, never where runs must agree."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import threading
import time

import pytest
import torch

pytest.importorskip("triton")

import triton

from tools.checkout import ROOT, use_kernels

use_kernels()
from gangealing_fast.kernels import _convolution, _launch, _tuning, modulated_conv2d  # noqa: E402
from gangealing_fast.kernels._convolution import Blocks, Card, convolve  # noqa: E402

CARD = torch.device("cuda", 1)
AMPERE, CONSUMER, HOPPER = Card(108, 163 * 1024, 8), Card(128, 99 * 1024, 8), Card(132, 227 * 1024, 9)


class Clock:
    """Runs what it is to time, and says the time it was told for it; an error in its place is raised by the run."""

    def __init__(self, times: dict[str, float | Exception]) -> None:
        self.times, self.measured, self.devices = times, [], []

    def run(self, candidate: str) -> None:
        self.last = candidate
        self.devices.append(Current.devices[-1] if Current.devices else None)
        if isinstance(self.times[candidate], Exception):
            raise self.times[candidate]

    def time(self, run) -> float:
        run()
        self.measured.append(self.last)
        return self.times[self.last]


class Current:
    """In the place of torch.cuda.device: the devices that were made current, the innermost last."""

    devices: list[torch.device] = []

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def __enter__(self) -> None:
        self.devices.append(self.device)

    def __exit__(self, *_: object) -> None:
        self.devices.pop()


@pytest.fixture
def card(monkeypatch, tmp_path):
    """A card that may be measured, and an empty memory."""
    monkeypatch.setenv("GGF_CACHE", str(tmp_path))
    monkeypatch.setattr(_tuning, "may_choose", lambda device: True)
    monkeypatch.setattr(_tuning, "device_name", lambda device: "card A")
    monkeypatch.setattr(_tuning, "_narrator", _tuning._Narrator())
    monkeypatch.setattr(torch.cuda, "device", Current)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    forget(monkeypatch)
    return tmp_path / "tuning.json"


def forget(monkeypatch) -> None:
    """As a new process."""
    monkeypatch.setattr(_tuning, "_known", {})
    _tuning._remembered.cache_clear()


def choose(clock: Clock, settings=(5, 512), candidates=("a", "b", "c")) -> str:
    return _tuning.fastest("op", settings, CARD, list(candidates), clock.run, clock.time)


def test_the_fastest_is_chosen_and_remembered_beyond_the_process(card, monkeypatch):
    clock = Clock({"a": 3.0, "b": 1.0, "c": 2.0})
    assert choose(clock) == "b" and clock.measured == ["a", "b", "c"]
    assert choose(clock) == "b" and len(clock.measured) == 3
    forget(monkeypatch)
    assert choose(Clock({})) == "b"
    (key,) = json.loads(card.read_text())
    assert "card A" in key and "(5, 512)" in key


def test_other_shapes_and_other_cards_are_measured_anew(card, monkeypatch):
    assert choose(Clock({"a": 3.0, "b": 1.0, "c": 2.0})) == "b"
    assert choose(Clock({"a": 1.0, "b": 3.0, "c": 2.0}), settings=(5, 256)) == "a"
    monkeypatch.setattr(_tuning, "device_name", lambda device: "card B")
    assert choose(Clock({"a": 3.0, "b": 2.0, "c": 1.0})) == "c"
    assert len(json.loads(card.read_text())) == 3


FAILURES = {
    "too much shared memory": triton.runtime.errors.OutOfResources(1, 0, "shared memory"),
    "source": triton.CompilationError("x = 1", ast.parse("x").body[0], "no"),
    "assertion in a kernel": triton.compiler.errors.CompileTimeAssertionFailure("x = 1", ast.parse("x").body[0], "no"),
    "construct": triton.compiler.errors.UnsupportedLanguageConstruct("x = 1", ast.parse("x").body[0], "no"),
    "assembler": triton.runtime.errors.PTXASError("internal error"),
    "error base": triton.errors.TritonError("no"),
    "passes": RuntimeError("PassManager::run failed"),
    "translation": ValueError("cannot translate"),
    "lookup": IndexError("map::at"),
    "assertion": AssertionError("layouts"),
    "program": subprocess.CalledProcessError(-11, ["ptxas"]),
    "program absent": FileNotFoundError(2, "no ptxas"),
    "memory": torch.OutOfMemoryError("CUDA out of memory"),
}


@pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES)
def test_a_candidate_that_fails_is_left_out(card, capsys, failure):
    assert choose(Clock({"a": failure, "b": 2.0, "c": 1.0})) == "c"
    said = capsys.readouterr().err
    assert ("a does not work here" in said) is not isinstance(failure, triton.runtime.errors.OutOfResources)
    assert choose(Clock({"a": failure, "b": failure, "c": failure}), settings=(1,)) == "a"
    assert len(json.loads(card.read_text())) == 1, "what nothing could be measured for is not remembered"


def test_an_error_of_the_device_is_raised(card):
    with pytest.raises(torch.AcceleratorError):
        choose(Clock({"a": 1.0, "b": torch.AcceleratorError("an illegal memory access"), "c": 1.0}))


def test_the_device_of_the_tensors_is_current_while_they_are_run(card):
    clock = Clock({"a": 1.0, "b": 2.0, "c": 3.0})
    choose(clock)
    assert set(clock.devices) == {CARD} and len(clock.devices) >= 3 and not Current.devices


def test_during_capture_the_known_choice_is_taken(card, monkeypatch):
    assert choose(Clock({"a": 3.0, "b": 1.0, "c": 2.0})) == "b"
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: Current.devices == [CARD])
    clock = Clock({})
    assert choose(clock) == "b" and choose(clock, settings=(1,)) == "a"
    assert not clock.measured
    assert len(json.loads(card.read_text())) == 1


def test_it_says_what_is_happening(card, capsys, monkeypatch):
    for size in range(3):
        choose(Clock({"a": 3.0, "b": 1.0, "c": 2.0}), settings=(size,))
    (said,) = capsys.readouterr().err.splitlines()
    assert "trying ways to compute op on card A" in said and str(card) in said
    monkeypatch.setattr(_tuning, "TELL_EVERY", 0.0)
    choose(Clock({"a": 3.0, "b": 1.0, "c": 2.0}), settings=(9,))
    assert "4 shapes tried in 0 s" in capsys.readouterr().err


WRITER = """
import sys
from tools.checkout import use_kernels
use_kernels()
from gangealing_fast.kernels import _tuning
print("ready", flush=True)
sys.stdin.readline()
for i in range(40):
    _tuning._remember(f"{sys.argv[1]} {i}", "x")
"""


def test_entries_of_two_processes_stand_beside_each_other(card):
    command = [sys.executable, "-c", WRITER]
    writers = [
        subprocess.Popen([*command, name], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for name in "ab"
    ]
    for writer in writers:
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        writer.stdin.write("go\n")
        writer.stdin.flush()
    assert [writer.wait(300) for writer in writers] == [0, 0]
    assert json.loads(card.read_text()).keys() == {f"{name} {i}" for name in "ab" for i in range(40)}


@pytest.mark.parametrize("hardware", [AMPERE, CONSUMER, HOPPER, _convolution.ANY_CARD])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_few_ways_are_tried_for_a_shape(monkeypatch, hardware, dtype):
    monkeypatch.setattr(modulated_conv2d, "card_of", lambda device: hardware)
    for samples in (1, 5):
        for size, channels in ((4, 512), (16, 512), (64, 512), (256, 128), (1024, 32)):
            x = torch.empty(samples, channels, size, size, dtype=dtype, device="meta")
            for out in (3, channels):
                weight = torch.empty(out, channels, 3, 3, device="meta")
                for products in (False, True):
                    routes = modulated_conv2d._routes("auto", x, weight, size * size, out, scaled=True, products=products)
                    assert 3 <= len(routes) <= 4 and next(iter(routes)) == "library"
                    for blocks in list(routes.values())[1:]:
                        assert blocks.stages * blocks.k * (blocks.m + blocks.n) * dtype.itemsize <= hardware.shared
                        assert blocks.m * blocks.n <= 128 * 128 or (hardware is HOPPER and not products)


class Driver:
    """What Triton asks the driver for while it compiles."""

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self):
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 80, 32)


@pytest.fixture
def driver(monkeypatch):
    """Triton with a driver that can compile and nothing else."""
    monkeypatch.setattr(triton.runtime.driver, "_active", Driver())


def test_candidates_are_compiled_in_threads_before_they_are_timed(card, driver, monkeypatch):
    x, weight = torch.zeros(1, 16, 4, 4), torch.zeros(16, 16, 3, 3)
    ways = {str(size): Blocks(16, 16, size, 1, 1) for size in (16, 32)}
    compiled, compiler = [], triton.compiler.compiler.compile

    def compiling(*arguments, **keywords):
        compiled.append((threading.current_thread(), _launch._recording.to))
        return compiler(*arguments, **keywords)

    monkeypatch.setattr(triton.compiler, "compile", compiling)
    _convolution.modulated_convolution_kernel.device_caches.clear()

    def run(name: str) -> None:
        convolve(x, weight, None, None, output_size=(4, 4), blocks=ways[name], padding=1)

    def time(run) -> float:
        assert len(compiled) == 2, "everything is compiled before anything is timed"
        with _launch.recorded() as launches:
            run()
        return float(launches[0].arguments["BLOCK_K"])

    assert _tuning.fastest("op", (), CARD, list(ways), run, time) == "16"
    assert all(thread is not threading.main_thread() for thread, _ in compiled)
    cached = [
        kernel for kernels, *_ in _convolution.modulated_convolution_kernel.device_caches.values() for kernel in kernels.values()
    ]
    assert len(cached) == 2 and all("ptx" in kernel.asm for kernel in cached)


def test_threads_that_compile_parse_one_after_the_other(card, driver, monkeypatch):
    """CPython's makers of syntax trees disturb one another across threads."""
    x, weight, parsing, most = torch.zeros(1, 16, 4, 4), torch.zeros(16, 16, 3, 3), [], []
    function = triton.runtime.jit.JITFunction
    parse = function.parse

    def slowly(kernel):
        parsing.append(kernel)
        most.append(len(parsing))
        time.sleep(0.1)
        parsing.pop()
        return parse(kernel)

    monkeypatch.setattr(function, "parse", slowly)
    monkeypatch.setattr(triton.knobs.compilation, "always_compile", True)
    _convolution.modulated_convolution_kernel.device_caches.clear()
    launches = []
    for size in (16, 32, 64):
        with _launch.recorded() as asked:
            convolve(x, weight, None, None, output_size=(4, 4), blocks=Blocks(16, 16, size, 1, 1), padding=1)
        launches += asked
    _launch.compile_ahead(launches)
    assert len(most) >= 3 and max(most) == 1
    assert function.parse is slowly


def test_a_recording_is_of_its_thread(card):
    seen = []
    with _launch.recorded():
        thread = threading.Thread(target=lambda: seen.append(_launch._recording.to))
        thread.start()
        thread.join()
    assert seen == [None]


def test_a_remembered_choice_that_is_gone_is_measured_anew(card):
    assert choose(Clock({"a": 3.0, "b": 1.0, "c": 2.0})) == "b"
    assert choose(Clock({"a": 3.0, "c": 2.0}), candidates=("a", "c")) == "c"


@pytest.mark.parametrize("content", ["", "[1]", "{", '{"x": 1}'])
def test_a_broken_file_is_as_none(card, content):
    card.write_text(content)
    assert choose(Clock({"a": 3.0, "b": 1.0, "c": 2.0})) == "b"
    assert "b" in json.loads(card.read_text()).values()


def test_a_folder_that_cannot_be_written_to_costs_the_memory_only(card, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("GGF_CACHE", str(tmp_path / "file" / "below"))
    assert choose(Clock({"a": 3.0, "b": 1.0, "c": 2.0})) == "b"


def test_nothing_is_measured_where_runs_must_agree(monkeypatch):
    torch.use_deterministic_algorithms(False)
    assert _tuning.may_choose(CARD) and not _tuning.may_choose(torch.device("cpu"))
    monkeypatch.setenv("GGF_TUNE", "0")
    assert not _tuning.may_choose(CARD)
    monkeypatch.delenv("GGF_TUNE")
    torch.use_deterministic_algorithms(True)
    assert not _tuning.may_choose(CARD)
    assert _tuning.fastest("op", (), CARD, ["a", "b"], Clock({}).run) == "a"
