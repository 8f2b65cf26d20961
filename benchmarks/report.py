# SPDX-License-Identifier: Apache-2.0
"""docs/performance.md from docs/performance.json: `python -m benchmarks.report [RESULTS.json]`. Imports no torch."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from benchmarks import results
from gangealing_fast.runtime.errors import UserError
from gangealing_fast.storage.files import write_text

Record = dict[str, Any]
NOTES = "performance-notes.md"
OTHERS = {"reference": "the reference", "torch": "torch's best", "compile": "`torch.compile`"}


def _number(value: float | None, digits: int = 3) -> str:
    if value is None:
        return ""
    if value >= 10 ** (digits - 1):
        return f"{value:.0f}"
    return f"{value:.{digits}g}"


def _share(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.0f} %"


def _times(value: float | None) -> str:
    return "" if value is None else f"{_number(value)}x"


def fractions(record: Record, limits: Record) -> Record:
    """{"bandwidth": ..., "throughput": ...}: what ours reaches of the measured limits, where the case says what it must do."""
    limit = limits.get(str(record["threads"]), {})
    seconds = record["variants"]["ours"]["ms"] / 1e3
    found = {}
    if record.get("bytes") and limit.get("bandwidth"):
        found["bandwidth"] = record["bytes"] / seconds / 1e9 / limit["bandwidth"]
    if record.get("operations") and limit.get(record["dtype"]):
        found["throughput"] = record["operations"] / seconds / 1e9 / limit[record["dtype"]]
    return found


def _verdict(operator: str, case: str, what: str, goal: float, measured: float | None, share: bool, most: bool = False) -> Record:
    met = None if measured is None else measured <= goal if most else measured >= goal
    show = _share if share else _times
    return {
        "operator": operator,
        "case": case,
        "what": what,
        "goal": ("at most " if most else "") + show(goal),
        "measured": show(measured),
        "met": met,
    }


def verdicts(found: Record) -> list[Record]:
    """Every target beside its figure as text: operator, case, what, goal, measured; met is None where nothing was measured."""
    rows = []
    memory = {(record["operator"], record["case"]): record["bytes"] for record in found["memory"]}
    for record in found["records"]:
        reached = fractions(record, found["limits"])
        held = memory.get((record["operator"], record["case"]), {})
        for name, goal in record["targets"].items():
            threads = f", {record['threads']} threads" if record["threads"] > 1 else ""
            case = f"{record['case']}, {record['dtype']}, {record['pass']}{threads}"
            if name in ("bandwidth", "throughput"):
                rows.append(_verdict(record["operator"], case, f"of the {name} limit", goal, reached.get(name), share=True))
            elif name == "memory":
                measured = held["ours"] / held["reference"] if held.get("reference") and "ours" in held else None
                what = "peak memory against the reference"
                rows.append(_verdict(record["operator"], case, what, goal, measured, share=True, most=True))
            else:
                measured = record["variants"].get(name, {}).get("ratio")
                rows.append(_verdict(record["operator"], case, f"against {OTHERS.get(name, name)}", goal, measured, share=False))
    for record in found["training_step"]:
        case = f"{record['configuration']}, {record['variant']}, {record['allocator']} allocator"
        for name, goal in record["targets"].items():
            measured, memory_goal = record.get(name), name == "memory_ratio"
            what = "peak memory against `--ops reference`" if memory_goal else "against `--ops reference`"
            rows.append(_verdict("training step", case, what, goal, measured, share=memory_goal, most=memory_goal))
    return rows


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(head)} |", "|" + "---|" * len(head), *(f"| {' | '.join(row)} |" for row in rows), ""]


def _targets(found: Record) -> list[str]:
    rows = verdicts(found)
    if not rows:
        return []
    words = {True: "met", False: "**missed**", None: "not measured"}
    lines = [
        "## Targets",
        "",
        f"{sum(row['met'] is True for row in rows)} of {len(rows)} met. One thread unless said; ratios of medians.",
        "",
    ]
    body = [[row["operator"], row["case"], row["what"], row["goal"], row["measured"], words[row["met"]]] for row in rows]
    return lines + _table(["operator", "case", "figure", "goal", "measured", ""], body)


def _cell(record: Record, name: str) -> str:
    values = record["variants"].get(name)
    if values is None:
        return ""
    if "ms" not in values:
        return "fails"
    return f"{_number(values['ms'])} ({_number(values['ratio'])}x)"


def _operator(name: str, records: list[Record], found: Record) -> list[str]:
    others = [variant for variant in OTHERS if any(variant in record["variants"] for record in records)]
    others += sorted({variant for record in records for variant in record["variants"]} - {"ours", *OTHERS})
    body = []
    for record in sorted(records, key=lambda record: (record["threads"], record["pass"] != records[-1]["pass"])):
        ours, reached = record["variants"]["ours"], fractions(record, found["limits"])
        body.append(
            [
                record["case"] + ("" if record["dtype"] == "float32" else f", {record['dtype']}"),
                record["pass"],
                str(record["threads"]),
                f"{_number(ours['ms'])} [{_number(ours['lower_ms'])}, {_number(ours['upper_ms'])}]",
                *(_cell(record, variant) for variant in others),
                _share(reached.get("bandwidth")),
                _share(reached.get("throughput")),
            ]
        )
    columns = [f"{OTHERS.get(variant, variant)}, ms (ratio)" for variant in others]
    heads = ["case", "pass", "threads", "ours, ms [quartiles]", *columns, "bandwidth", "throughput"]
    filled = [index for index in range(len(heads)) if any(row[index] for row in body)]
    heads, body = [heads[index] for index in filled], [[row[index] for index in filled] for row in body]
    notes = {variant: note for record in records for variant, note in record.get("notes", {}).items() if variant in others}
    lines = [f"### {name}", "", *_table(heads, body)]
    said = [f"{OTHERS.get(variant, variant)}: {note}" for variant, note in notes.items() if variant != "compile"]
    if said:
        lines += ["; ".join(said) + ".", ""]
    failed = {values["error"] for record in records for values in record["variants"].values() if "error" in values}
    lines += [f"`torch.compile` fails: {reason}\n" for reason in sorted(failed)]
    for record in found["memory"]:
        if record["operator"] == name and record["bytes"]:
            sizes = ", ".join(f"{variant} {_number(count / 2**20)} MiB" for variant, count in record["bytes"].items())
            lines += [f"Peak memory beyond the inputs, {record['case']}, {record['pass']}: {sizes}.", ""]
    return lines


def _machine(found: Record) -> list[str]:
    machine = found["machine"]
    if not machine:
        return []
    kept = "keeps freed memory (no fresh pages at every call)" if machine.get("freed_memory_kept") else "is the system's default"
    lines = [
        "## Machine",
        "",
        f"{machine['device'] or machine['processor']}, {machine['cores']} cores, {machine['memory_gb']} GB, {machine['vectors']};"
        f" {machine['system']}, Python {machine['python']}, torch {machine['torch']}."
        f" Commit {machine['commit']}, {machine['date']}."
        + (" TF32 off." if machine["device"] else f" malloc {kept}, for all variants alike."),
        "",
    ]
    rows = [
        [threads, *(_number(limit.get(name)) for name in ("bandwidth", "float32", "bfloat16"))]
        for threads, limit in sorted(found["limits"].items())
    ]
    head = ["threads", "triad, GB/s", "3x3 convolution float32, GFLOP/s", "bfloat16, GFLOP/s"]
    return lines + _table(head, rows)


def _training_step(found: Record) -> list[str]:
    if not found["training_step"]:
        return []
    rows = [
        [
            record["configuration"],
            record["variant"],
            record["allocator"],
            f"{_number(record['seconds'])} [{_number(record['lower'])}, {_number(record['upper'])}]",
            f"{_number(record['peak_bytes'] / 2**30)} GiB",
            "" if record.get("ratio") is None else f"{_number(record['ratio'])}x",
            _share(record.get("memory_ratio")),
        ]
        for record in found["training_step"]
    ]
    head = ["configuration", "variant", "allocator", "seconds a step [quartiles]", "peak memory", "against reference", "memory"]
    return [
        "## The whole training step",
        "",
        f"`python -m benchmarks.training_step`: {found['training_step'][0]['threads']} threads, every variant in a process of its"
        " own; they take turns. Standard widths of StyleGAN2, LPIPS on VGG16, random weights. Default allocator: each process as a"
        " user would run it. Same allocator: malloc keeps freed memory in all. Peak memory is that of the whole process.",
        "",
        *_table(head, rows),
    ]


def render(found: Record, notes: str, command: str) -> str:
    """The whole page."""
    lines = [
        "# Performance",
        "",
        f"Generated by `{command}`; do not edit. Medians of interleaved runs in one process; a ratio is the other's time over ours:"
        " above 1 ours is faster. bandwidth: the bytes that any implementation has to move, over the time, as a share of the"
        " measured triad bandwidth (data that stays in caches can exceed 100 %). throughput: its operations as a share of torch's"
        " own 3x3 convolution in that number format. Every variant was compared with the reference before it was timed, and a quick"
        " one's turn begins with an untimed call.",
        "",
        *_machine(found),
        *_targets(found),
        *_training_step(found),
        "## Operators",
        "",
    ]
    for name in sorted({record["operator"] for record in found["records"]}):
        lines += _operator(name, [record for record in found["records"] if record["operator"] == name], found)
    if found["refused"]:
        lines += ["## Not timed", "", *(f"- {record['reason']}" for record in found["refused"]), ""]
    return "\n".join(lines) + ("\n" + notes.strip() + "\n" if notes.strip() else "")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description="Write the report beside a results file.")
    parser.add_argument("results", nargs="?", type=Path, default=Path("docs/performance.json"))
    parser.add_argument("--command", default="make bench", help="what the page says makes it")
    options = parser.parse_args(arguments)
    try:
        if not options.results.exists():
            raise UserError(f"{options.results} does not exist: run `{options.command}`, which measures first.")
        notes = options.results.parent / NOTES
        page = render(results.load(options.results), notes.read_text() if notes.exists() else "", options.command)
        write_text(options.results.with_suffix(".md"), page)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
