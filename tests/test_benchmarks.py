# SPDX-License-Identifier: Apache-2.0
"""The measuring side: order and figures of the timing, refusal of what does not agree, the commands. No test looks at speed."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

import benchmarks.__main__ as command
from benchmarks import cases, levels, machine, operators, results, suite
from benchmarks.__main__ import main
from benchmarks.case import BOTH, FORWARD, Case, Variant
from benchmarks.harness import compare
from benchmarks.runner import Disagreement, Runner
from benchmarks.timing import Plan, interleave, summarise

ROOT = Path(__file__).resolve().parents[1]
ONCE = Plan(seconds=0.0, rounds=(2, 2), sample=0.0)


def _square(x, weight):
    return (x * x * weight).sum(1)


def _case(*others, **settings):
    variants = (Variant("ours", _square), *others)
    settings = {"moved": {FORWARD: 8.0, BOTH: 24.0}, "targets": {"reference": 2.0}, **settings}
    return Case("square", "[3, 4]", lambda device: (torch.randn(3, 4).requires_grad_(), torch.rand(4)), variants, **settings)


def test_the_order_rotates_and_every_round_runs_every_function_once():
    ran = []
    calls = {name: (lambda name=name: ran.append(name)) for name in "abc"}

    def clock(call, count):
        for _ in range(count):
            call()
        return 0.1 * count

    samples = interleave(calls, Plan(seconds=0.4, rounds=(4, 4), sample=0.1), clock)
    assert ran[:3] == ["a", "b", "c"]  # how long one call takes
    assert ran[3::2] == ran[4::2] == ["a", "b", "c", "b", "c", "a", "c", "a", "b", "a", "b", "c"]  # untimed, then timed
    assert {name: len(values) for name, values in samples.items()} == {"a": 4, "b": 4, "c": 4}
    assert samples["a"] == pytest.approx([0.1] * 4)


def test_short_calls_are_repeated_within_a_sample():
    counted = []
    interleave({"ours": lambda: None}, Plan(rounds=(2, 2), sample=0.01), lambda call, count: counted.append(count) or 0.001 * count)
    assert counted == [1, 10, 10]


def test_what_is_known_to_be_slow_is_not_called_to_find_out_nor_a_third_time():
    counted = []

    def clock(call, count):
        counted.append(call())
        return {"ours": 0.4, "reference": 2.0}[counted[-1]] * count

    calls = {"ours": lambda: "ours", "reference": lambda: "reference"}
    interleave(calls, Plan(seconds=0.1, rounds=(7, 60)), clock, {"ours": 0.01, "reference": 2.0})
    assert counted == ["ours", "ours", "reference", "reference", "ours", "ours"]


@pytest.mark.parametrize(
    ("seconds", "variants", "rounds"),
    [(0.001, 4, 60), (0.1, 4, 16), (1.5, 4, 7), (10.0, 4, 3)],
    ids=["quick", "middle", "slow", "very slow"],
)
def test_rounds(seconds, variants, rounds):
    assert Plan(seconds=0.4, rounds=(7, 60)).rounds_for(seconds, variants) == rounds


def test_figures():
    found = summarise({"ours": [0.002, 0.001, 0.003, 0.001, 0.010], "reference": [0.008, 0.004, 0.006]})
    assert found["ours"] == pytest.approx({"ms": 2.0, "lower_ms": 1.0, "upper_ms": 3.0, "rounds": 5, "ratio": 1.0})
    assert found["reference"] == pytest.approx({"ms": 6.0, "lower_ms": 5.0, "upper_ms": 7.0, "rounds": 3, "ratio": 3.0})


def test_compare_returns_a_record_for_every_pass():
    case = _case(Variant("reference", lambda x, weight: (x.square() * weight).sum(1), note="another way"))
    threads = torch.get_num_threads()
    one, both = compare(case, 1, plan=ONCE)
    assert (one["pass"], both["pass"]) == (FORWARD, BOTH)
    assert (one["targets"], both["targets"]) == ({}, {"reference": 2.0})
    assert both["bytes"] == 24.0 and both["operations"] is None and both["notes"] == {"reference": "another way"}
    assert both["variants"]["ours"]["ratio"] == 1 and both["variants"]["reference"]["ms"] > 0
    (alone,) = compare(case, 2, plan=ONCE)
    assert alone["pass"] == BOTH and alone["threads"] == 2 and alone["targets"] == {}
    assert torch.get_num_threads() == threads
    found = [*compare(replace(case, everywhere=True), 1, plan=ONCE), *compare(replace(case, everywhere=True), 2, plan=ONCE)]
    assert [record["targets"] for record in found] == [{"reference": 2.0}] * 3


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x, weight: (x * x * weight).sum(1) * 1.01, "result 0 of other"),
        (lambda x, weight: (x * x.detach() * weight).sum(1), "result 1 of other"),
        (lambda x, weight: (x * x * weight).sum(0), "differ in shapes"),
        (lambda x, weight: (x * x * weight).sum(1) * float("nan"), "result 0 of other"),
    ],
    ids=["value", "gradient", "shape", "nan"],
)
def test_variants_that_disagree_are_not_timed(function, message):
    with pytest.raises(Disagreement, match=message):
        compare(_case(Variant("reference", _square), Variant("other", function)), 1, plan=ONCE)


def test_kinks_leave_out_the_worst_entries_of_gradients_only():
    def kinked(x, weight):
        return torch.where(x == x.detach().amax(), x.detach() * x, x * x).mul(weight).sum(1)

    with pytest.raises(Disagreement):
        compare(_case(Variant("reference", kinked)), 1, plan=ONCE)
    compare(_case(Variant("reference", kinked), kinks=0.09), 1, plan=ONCE)
    with pytest.raises(Disagreement):
        compare(_case(Variant("reference", lambda *inputs: _square(*inputs) + torch.tensor([1.0, 0, 0])), kinks=0.5), 1, plan=ONCE)


def test_a_variant_that_does_not_compile_is_reported():
    def broken(*_):
        raise RuntimeError("no such thing\nand more")

    record = compare(_case(Variant("reference", _square), Variant("compile", broken, passes=(BOTH,))), 1, plan=ONCE)[1]
    assert record["variants"]["compile"] == {"error": "no such thing"}
    assert set(record["variants"]) == {"ours", "reference", "compile"}


def test_every_variant_has_its_own_inputs_and_prepares_them():
    def spoil(x, weight):
        return _square(x, weight.add_(1) - 1)

    case = _case(Variant("reference", spoil, prepare=lambda inputs: (inputs[0].t().contiguous().t(), inputs[1])))
    runners = [Runner(case, variant, torch.device("cpu")) for variant in case.variants]
    assert torch.equal(runners[0].leaves[0], runners[1].leaves[0])
    assert runners[1].leaves[0].stride() == (1, 3) and runners[1].leaves[0].requires_grad
    before = runners[0].inputs[1].clone()
    runners[1].run(BOTH)
    assert torch.equal(runners[0].inputs[1], before) and not torch.equal(runners[1].inputs[1], before)


@pytest.mark.parametrize("operator", operators())
def test_bench_files_hold_well_formed_cases(operator):
    names = []
    for case in cases(operator):
        variants = [variant.name for variant in case.variants]
        assert case.operator == operator and variants[0] == "ours" and len(set(variants)) == len(variants)
        assert set(case.targets) <= {*variants, "bandwidth", "throughput", "memory"}
        assert set(case.moved) | set(case.operations) <= set(case.passes) <= {FORWARD, BOTH}
        assert {"bandwidth": case.moved, "throughput": case.operations}.get(next(iter(case.targets), ""), True)
        names.append((case.name, case.dtype))
    assert names and len(set(names)) == len(names)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
def test_peak_memory():
    size = 64 << 20

    def work():
        first = torch.ones(size // 4)
        return float((first + 1)[0])

    # The kernel counts resident pages in batches.
    assert 1.95 * size < machine.peak_during(work, torch.device("cpu")) < 2.5 * size


def test_results_replace_what_is_measured_again(tmp_path):
    path = tmp_path / "results.json"
    results.merge(path, replaces=lambda *_: False, limits={"1": {"bandwidth": 1}}, records=[{"operator": "a"}, {"operator": "b"}])
    results.merge(
        path, replaces=lambda section, record: record["operator"] == "a", limits={"2": {}}, records=[{"operator": "a", "new": 1}]
    )
    found = results.load(path)
    assert found["records"] == [{"operator": "b"}, {"operator": "a", "new": 1}]
    assert found["limits"] == {"1": {"bandwidth": 1}, "2": {}} and found["training_step"] == []


def test_commands_say_what_is_wrong(capsys):
    assert main(["nonsense"]) == 2
    assert "There is no benchmark of nonsense; there are" in capsys.readouterr().err
    if not torch.cuda.is_available():
        assert main(["--device", "cuda"]) == 2
        assert "need a CUDA device, and torch finds none" in capsys.readouterr().err


def test_a_case_that_fails_is_refused_and_the_next_one_is_measured(monkeypatch, tmp_path, capsys):
    def broken(*_):
        raise RuntimeError("out of memory\nand more")

    found = [
        replace(_case(Variant("reference", broken)), name="fails"),
        replace(_case(Variant("reference", lambda x, weight: x.sum(1))), name="disagrees"),
        replace(_case(Variant("reference", _square)), name="works"),
    ]
    monkeypatch.setattr(command, "cases", lambda operator: found)
    monkeypatch.setattr(command, "operators", lambda: ["square"])
    monkeypatch.setattr(machine, "limits", lambda threads, device: {})
    path = tmp_path / "results.json"
    assert main(["square", "--quick", "--threads", "1", "--allocator", "default", "--json", str(path)]) == 1
    kept = results.load(path)
    assert [record["case"] for record in kept["records"]] == ["works", "works"]
    assert [(entry["case"], entry["reason"].split(",")[0]) for entry in kept["refused"]] == [
        ("fails", "square fails: RuntimeError: out of memory"),
        ("disagrees", "square disagrees"),
    ]
    assert "not timed: square fails: RuntimeError: out of memory" in capsys.readouterr().err


@pytest.mark.parametrize(("options", "ran"), [([], []), (["--compiled-steps"], ["compile"])])
def test_what_takes_minutes_to_compile_is_measured_if_asked_for(monkeypatch, tmp_path, options, ran):
    slow = Variant("compile", _square, passes=(BOTH,), slow=True)
    monkeypatch.setattr(command, "cases", lambda operator: [_case(Variant("reference", _square), slow)])
    monkeypatch.setattr(command, "operators", lambda: ["square"])
    monkeypatch.setattr(machine, "limits", lambda threads, device: {})
    path = tmp_path / "results.json"
    given = ["square", "--quick", "--threads", "1", "--allocator", "default", "--json", str(path)]
    assert main([*given, *options]) == 0
    names = [set(record["variants"]) - {"ours", "reference"} for record in results.load(path)["records"]]
    assert names == [set(), set(ran)]


def _suite(monkeypatch, statuses, lower=()):
    """What `suite` runs, as (module, level, results file), with these exit statuses in turn."""
    ran, left = [], list(statuses)

    def run(module, arguments, level=""):
        given = arguments[arguments.index("--json") + 1] if "--json" in arguments else arguments[0]
        ran.append((module.rpartition(".")[2], level, Path(given).name))
        status = left.pop(0) if left else 0
        if "--json" in arguments and status != suite.REFUSED:
            Path(given).write_text("{}")
        return status

    monkeypatch.setattr(suite, "run", run)
    monkeypatch.setattr(levels, "lower", lambda: list(lower))
    monkeypatch.delenv(levels.VARIABLE, raising=False)
    return ran


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("failing", [0, 1])
def test_the_suite_goes_on_after_a_disagreement(monkeypatch, tmp_path, device, failing):
    ran = _suite(monkeypatch, [int(number == failing) for number in range(2)])
    assert suite.main(["--device", device, "--out", str(tmp_path)]) == 1
    page = {"cpu": "performance.json", "cuda": "performance-gpu.json"}[device]
    assert ran == [("benchmarks", "", page), ("training_step", "", page), ("report", "", page)]


def test_the_suite_ends_where_nothing_could_begin(monkeypatch, tmp_path):
    ran = _suite(monkeypatch, [2])
    assert suite.main(["--device", "cuda", "--out", str(tmp_path)]) == 2
    assert len(ran) == 1
    ran = _suite(monkeypatch, [0, 0, 2], lower=["avx2"])
    assert suite.main(["--out", str(tmp_path)]) == 2
    assert [module for module, *_ in ran] == ["benchmarks", "training_step", "benchmarks", "report"]


def test_the_suite_says_what_a_signal_ended(monkeypatch, capfd):
    monkeypatch.setattr(subprocess, "run", partial(_instead, subprocess.run, ["sh", "-c", "kill -9 $$"]))
    assert suite.run("benchmarks", []) == -9
    assert "benchmarks was ended by signal 9" in capfd.readouterr().err


def _instead(run, command, _, **options):
    return run(command, **options)


def test_the_suite_measures_every_level_and_shows_what_other_machines_measured(monkeypatch, tmp_path):
    ran = _suite(monkeypatch, [], lower=["avx2"])
    for name in ("performance-laptop.json", "performance-gpu.json"):
        (tmp_path / name).write_text("{}")
    shown = []
    measuring = suite.run
    monkeypatch.setattr(
        suite, "run", lambda module, arguments, level="": shown.append(arguments) or measuring(module, arguments, level)
    )
    assert suite.main(["--out", str(tmp_path)]) == 0
    assert [level for module, level, _ in ran if module == "training_step"] == ["", "avx2"]
    files = [Path(argument).name for argument in shown[-1] if argument.endswith(".json")]
    assert files == ["performance.json", "performance-avx2.json", "performance-laptop.json"]
    ran.clear()
    monkeypatch.setenv(levels.VARIABLE, "avx2")
    assert suite.main(["--out", str(tmp_path)]) == 0
    assert ran[:2] == [(module, "avx2", "performance-avx2.json") for module in ("benchmarks", "training_step")] and len(ran) == 3


def test_levels(monkeypatch, tmp_path):
    wide, narrow = tmp_path / "wide", tmp_path / "narrow"
    wide.write_text("flags : fpu avx2 avx512f avx512_bf16\n")
    narrow.write_text("flags : fpu avx2\n")
    monkeypatch.delenv(levels.VARIABLE, raising=False)
    assert (levels.lower(wide), levels.lower(narrow), levels.lower(tmp_path / "none")) == (["avx2"], [], [])
    assert [levels.current(path) for path in (wide, narrow, tmp_path / "none")] == ["avx512", "avx2", "default"]
    monkeypatch.setenv(levels.VARIABLE, "avx2")
    assert levels.current(wide) == "avx2"
    # Programs that torch.compile made for one level are wrong at another.
    caches = {levels.environment(level).get("TORCHINDUCTOR_CACHE_DIR") for level in ("", "default", "avx2", "avx512")}
    assert len(caches) == 4


def test_torch_follows_the_level():
    code = "from benchmarks import levels; levels.hold(); import torch; print(torch.backends.cpu.get_cpu_capability())"
    named = levels.environment("default")
    environment = {**{name: value for name, value in os.environ.items() if name not in named}, levels.VARIABLE: "default"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=ROOT, check=True)
    assert done.stdout.strip() in ("DEFAULT", "NO AVX")
    code = "import torch; from benchmarks import levels; levels.hold()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=ROOT, check=False)
    assert "torch was imported before it could be held to default: put ATEN_CPU_CAPABILITY=default" in done.stderr


@pytest.mark.no_torch
@pytest.mark.parametrize("module", ["benchmarks", "benchmarks.report", "benchmarks.training_step", "benchmarks.suite"])
def test_help_imports_no_torch(module):
    run = f"try: runpy.run_module({module!r}, run_name='__main__')\nexcept SystemExit: pass"
    code = f"import runpy, sys\nsys.argv = ['x', '--help']\n{run}\nassert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0 and "usage: python -m benchmarks" in done.stdout, done.stderr
