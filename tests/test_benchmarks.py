# SPDX-License-Identifier: Apache-2.0
"""The measuring side: order and figures of the timing, refusal of what does not agree, the report. No test looks at speed."""

from __future__ import annotations

import importlib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import machine, report, results, training_step
from benchmarks.__main__ import main, operators
from benchmarks.harness import BOTH, FORWARD, Case, Disagreement, Plan, Runner, Variant, compare, interleave, summarise

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
    for case in importlib.import_module(f"benchmarks.bench_{operator}").cases():
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


def _results():
    variants = {
        "ours": {"ms": 1.0, "lower_ms": 0.9, "upper_ms": 1.1, "rounds": 7, "ratio": 1.0},
        "reference": {"ms": 12.0, "lower_ms": 11.0, "upper_ms": 13.0, "rounds": 7, "ratio": 12.0},
        "compile": {"error": "cannot"},
    }
    shared = {"operator": "square", "threads": 1, "device": "cpu", "dtype": "float32", "notes": {"reference": "plainly"}}
    targets = {"reference": 10, "compile": 5, "bandwidth": 0.5, "throughput": 0.5, "memory": 0.5}
    return {
        "machine": {
            "processor": "A processor", "cores": 2, "memory_gb": 8, "vectors": "AVX2", "device": None, "system": "Linux",
            "python": "3.11", "torch": "2.14", "commit": "abc", "date": "2026-01-01", "freed_memory_kept": True,
        },
        "limits": {"1": {"bandwidth": 10.0, "float32": 200.0, "bfloat16": 400.0}},
        "records": [
            {**shared, "case": "[3, 4]", "pass": BOTH, "bytes": 4e6, "operations": 1.5e8, "targets": targets, "variants": variants}
        ],
        "refused": [{"operator": "cube", "case": "[1]", "threads": 1, "reason": "cube [1]: torch and reference differ"}],
        "memory": [{"operator": "square", "case": "[3, 4]", "pass": BOTH, "bytes": {"ours": 2 << 20, "reference": 8 << 20}}],
        "training_step": [
            {
                "configuration": "64²/64, batch 2", "variant": "ours, float32", "allocator": "default", "threads": 2,
                "seconds": 0.9, "lower": 0.8, "upper": 1.0, "rounds": 3, "peak_bytes": 1 << 30, "ratio": 2.5, "memory_ratio": 0.5,
                "targets": {"ratio": 2.8, "memory_ratio": 0.45},
            }
        ],
    }  # fmt: skip


def test_verdicts_of_the_report():
    found = {(row["operator"], row["what"]): (row["goal"], row["measured"], row["met"]) for row in report.verdicts(_results())}
    assert found == {
        ("square", "against the reference"): ("10x", "12x", True),
        ("square", "against `torch.compile`"): ("5x", "", None),
        ("square", "of the bandwidth limit"): ("50 %", "40 %", False),
        ("square", "of the throughput limit"): ("50 %", "75 %", True),
        ("square", "peak memory against the reference"): ("at most 50 %", "25 %", True),
        ("training step", "against `--ops reference`"): ("2.8x", "2.5x", False),
        ("training step", "peak memory against `--ops reference`"): ("at most 45 %", "50 %", False),
    }


def test_report_page(tmp_path):
    path = tmp_path / "performance.json"
    results.merge(path, replaces=lambda *_: False, **_results())
    (tmp_path / "performance-notes.md").write_text("## Kept\n\nNothing.\n")
    assert report.main([str(path), "--command", "make something"]) == 0
    page = (tmp_path / "performance.md").read_text()
    assert "Generated by `make something`" in page and "A processor, 2 cores" in page and page.endswith("## Kept\n\nNothing.\n")
    assert "3 of 7 met" in page and page.count("**missed**") == 3 and page.count("not measured") == 1
    row = next(line for line in page.splitlines() if line.startswith("| [3, 4] | forward+backward | 1 |"))
    assert row == "| [3, 4] | forward+backward | 1 | 1 [0.9, 1.1] | 12 (12x) | fails | 40 % | 75 % |"
    assert "the reference: plainly." in page and "`torch.compile` fails: cannot" in page
    assert "ours 2 MiB, reference 8 MiB" in page and "cube [1]: torch and reference differ" in page
    assert "| 64²/64, batch 2 | ours, float32 | default | 0.9 [0.8, 1] | 1 GiB | 2.5x | 50 % |" in page


def test_report_without_results(tmp_path, capsys):
    assert report.main([str(tmp_path / "none.json")]) == 2
    assert "run `make bench`" in capsys.readouterr().err


def test_results_replace_what_is_measured_again(tmp_path):
    path = tmp_path / "results.json"
    results.merge(path, replaces=lambda *_: False, limits={"1": {"bandwidth": 1}}, records=[{"operator": "a"}, {"operator": "b"}])
    results.merge(
        path, replaces=lambda section, record: record["operator"] == "a", limits={"2": {}}, records=[{"operator": "a", "new": 1}]
    )
    found = results.load(path)
    assert found["records"] == [{"operator": "b"}, {"operator": "a", "new": 1}]
    assert found["limits"] == {"1": {"bandwidth": 1}, "2": {}} and found["training_step"] == []


def test_training_step_figures():
    configuration = training_step.CONFIGURATIONS["256"]
    seconds = {"ours, float32": [3.0, 2.0, 4.0], "reference, float32": [12.0, 15.0, 18.0]}
    peaks = {"ours, float32": 4, "reference, float32": 10}
    ours = training_step.record(configuration, "default", "ours, float32", seconds, peaks)
    assert (ours["seconds"], ours["ratio"], ours["memory_ratio"]) == (3.0, 5.0, 0.4)
    assert ours["targets"] == {"ratio": 5.5, "memory_ratio": 0.45}
    reference = training_step.record(configuration, "default", "reference, float32", seconds, peaks)
    assert "ratio" not in reference and reference["targets"] == {}
    assert training_step.record(configuration, "same", "ours, float32", seconds, peaks)["targets"] == {"ratio": 3.5}


def test_commands_say_what_is_wrong(capsys):
    assert main(["nonsense"]) == 2
    assert "There is no benchmark of nonsense; there are" in capsys.readouterr().err
    if not torch.cuda.is_available():
        assert main(["--device", "cuda"]) == 2
        assert "need a CUDA device, and torch finds none" in capsys.readouterr().err


@pytest.mark.no_torch
@pytest.mark.parametrize("module", ["benchmarks", "benchmarks.report"])
def test_help_imports_no_torch(module):
    run = f"try: runpy.run_module({module!r}, run_name='__main__')\nexcept SystemExit: pass"
    code = f"import runpy, sys\nsys.argv = ['x', '--help']\n{run}\nassert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[1], check=False)
    assert done.returncode == 0 and "usage: python -m benchmarks" in done.stdout, done.stderr
