# SPDX-License-Identifier: Apache-2.0
"""docs/performance.md from results files: `python -m benchmarks.report [RESULTS.json ...]`. Imports no torch.

Each file holds what one machine, at one vector level, measured: another process on this machine (`GGF_CPU_LEVEL=avx2`), or a file
that was brought from another one. Each is a column of the targets and a section of the operators. The page is written beside the
first.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks import results
from benchmarks.verdicts import OTHERS, Record, fractions, number, share, verdicts
from gangealing_fast.runtime.errors import UserError
from gangealing_fast.storage.files import write_text

NOTES = "performance-notes.md"
WORDS = {True: "met", False: "**missed**", None: "not measured"}
GRAPH = "graph: "


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(head)} |", "|" + "---|" * len(head), *(f"| {' | '.join(row)} |" for row in rows), ""]


def _targets(machines: dict[str, Record]) -> list[str]:
    """One row for each target, with a column for each machine; where goals differ, a row for each goal."""
    met, rows = [], dict[tuple[str, ...], dict[str, str]]()
    for name, found in machines.items():
        judged = verdicts(found)
        if not judged:
            continue
        met.append(
            f"{sum(row['met'] is True for row in judged)} of {len(judged)} met" + (f" on {name}" if len(machines) > 1 else "")
        )
        for row in judged:
            key = tuple(row[part] for part in ("operator", "case", "what", "goal"))
            measured = f"{row['measured']}, " if row["measured"] else ""
            rows.setdefault(key, {})[name] = measured + WORDS[row["met"]]
    if not rows:
        return []
    heads = list(machines) if len(machines) > 1 else ["measured"]
    body = [[*key, *(cells.get(name, "") for name in machines)] for key, cells in rows.items()]
    lines = ["## Targets", "", f"{'; '.join(met)}. One thread unless said; ratios of medians.", ""]
    return lines + _table(["operator", "case", "figure", "goal", *heads], body)


def _cell(values: Record | None) -> str:
    if values is None:
        return ""
    if "ms" not in values:
        return "fails"
    return f"{number(values['ms'])}" + (f" ({number(values['ratio'])}x)" if "ratio" in values else "")


def _spread(values: Record | None) -> str:
    if values is None or "ms" not in values:
        return _cell(values)
    return f"{number(values['ms'])} [{number(values['lower_ms'])}, {number(values['upper_ms'])}]"


def _others(records: list[Record]) -> list[str]:
    """The variants beside ours, in the order of the columns."""
    names = {variant for record in records for variant in record["variants"]}
    return [variant for variant in OTHERS if variant in names] + sorted(names - {"ours", *OTHERS})


def _rows(records: list[Record], others: list[str], limits: Record) -> list[list[str]]:
    """A row for each pass; behind the variants their times within a CUDA graph, where there are any."""
    body = []
    for record in sorted(records, key=lambda record: (record["threads"], record["pass"] != records[-1]["pass"])):
        reached, graphs = fractions(record, limits), record.get("graphs", {})
        body.append(
            [
                record["case"] + ("" if record["dtype"] == "float32" else f", {record['dtype']}"),
                record["pass"],
                str(record["threads"]),
                _spread(record["variants"].get("ours")),
                *(_cell(record["variants"].get(variant)) for variant in others),
                _spread(graphs.get("ours")),
                *(_cell(graphs.get(variant)) for variant in others),
                share(reached.get("bandwidth")),
                share(reached.get("throughput")),
            ]
        )
    return body


def _failures(records: list[Record]) -> list[str]:
    """Why torch.compile, or a recording of a CUDA graph, failed."""
    compiled = {values["error"] for record in records for values in record["variants"].values() if "error" in values}
    lines = [f"`torch.compile` fails: {reason}\n" for reason in sorted(compiled)]
    graphs = {
        f"{OTHERS.get(variant, variant)}, {record['case']}, {record['pass']}: {values['error']}"
        for record in records
        for variant, values in record.get("graphs", {}).items()
        if "error" in values
    }
    return lines + [f"No CUDA graph of {reason}\n" for reason in sorted(graphs)]


def _operator(name: str, records: list[Record], found: Record) -> list[str]:
    others = _others(records)
    body = _rows(records, others, found["limits"])
    columns = [f"{OTHERS.get(variant, variant)}, ms (ratio)" for variant in others]
    mine = "ours, ms [quartiles]"
    graphs = [GRAPH + column for column in (mine, *columns)]
    heads = ["case", "pass", "threads", mine, *columns, *graphs, "bandwidth", "throughput"]
    filled = [index for index in range(len(heads)) if any(row[index] for row in body)]
    heads, body = [heads[index] for index in filled], [[row[index] for index in filled] for row in body]
    notes = {variant: note for record in records for variant, note in record.get("notes", {}).items() if variant in others}
    lines = [f"### {name}", "", *_table(heads, body)]
    said = [f"{OTHERS.get(variant, variant)}: {note}" for variant, note in notes.items() if variant != "compile"]
    if said:
        lines += ["; ".join(said) + ".", ""]
    lines += _failures(records)
    for record in found["memory"]:
        if record["operator"] == name and record["bytes"]:
            sizes = ", ".join(f"{variant} {number(count / 2**20)} MiB" for variant, count in record["bytes"].items())
            lines += [f"Peak memory beyond the inputs, {record['case']}, {record['pass']}: {sizes}.", ""]
    return lines


def labelled(files: list[Record]) -> dict[str, Record]:
    """The results by what the page calls them: the card, the processor and its level, or the level alone if all have one processor.
    What would have the same name is counted."""
    alone = len({found["machine"].get("processor") for found in files}) == 1
    machines: dict[str, Record] = {}
    for found in files:
        machine = found["machine"]
        processor, level = machine.get("processor", "an unknown processor"), machine.get("vectors", "")
        wanted = machine.get("device") or (level if alone and level else f"{processor}, {level}".rstrip(", "))
        name, number = wanted, 2
        while name in machines:
            name, number = f"{wanted} ({number})", number + 1
        machines[name] = found
    return machines


def _level(machine: Record) -> str:
    """The level at which the kernels ran, and torch beside them."""
    if machine.get("device"):
        return ""
    kernels = f"; kernels {machine['level']}" if machine.get("level") else ""
    return f"torch {machine['vectors']}{kernels}"


def _machine(machines: dict[str, Record]) -> list[str]:
    """Two tables: what the machines are, and what they can do at best."""
    described = {name: found["machine"] for name, found in machines.items() if found["machine"]}
    if not described:
        return []
    heads = ["machine", "processor", "level", "cores", "memory, GB", "system", "Python, torch", "commit", "malloc"]
    rows = [
        [
            name,
            machine["processor"],
            _level(machine),
            str(machine["cores"]),
            str(machine["memory_gb"]),
            machine["system"],
            f"{machine['python']}, {machine['torch']}",
            f"{machine['commit']}, {machine['date']}",
            "" if machine["device"] else "keeps freed memory" if machine.get("freed_memory_kept") else "as the system has it",
        ]
        for name, machine in described.items()
    ]
    lines = ["## Machines" if len(machines) > 1 else "## Machine", "", *_table(heads, rows)]
    said = ["malloc that keeps freed memory takes no fresh pages at every call; it is the same for all variants."]
    if any(machine["device"] for machine in described.values()):
        said = ["TF32 is off. Every variant is warm before its clock starts, and takes copies of its inputs in turn, more than the"]
        said += [
            f"cache holds. Columns that begin with `{GRAPH.strip()}` are calls within a CUDA graph, which are free of launches."
        ]
    if any(machine.get("level_asked") for machine in described.values()):
        said += ["A level that `GGF_CPU_LEVEL` asked for is that of torch, oneDNN and MKL too. The processor stays what it is:"]
        said += ["its caches, its clock and its memory are not those of a processor that has this level alone."]
    lines += [" ".join(said), ""]
    rows = [
        [name, threads, *(number(limit.get(what)) for what in ("bandwidth", "float32", "bfloat16"))]
        for name, found in machines.items()
        for threads, limit in sorted(found["limits"].items())
    ]
    return lines + _table(["machine", "threads", "triad, GB/s", "3x3 convolution float32, GFLOP/s", "bfloat16, GFLOP/s"], rows)


def _training_step(machines: dict[str, Record]) -> list[str]:
    rows = [
        [
            name,
            record["configuration"],
            record["variant"],
            record["allocator"],
            str(record["threads"]),
            f"{number(record['seconds'])} [{number(record['lower'])}, {number(record['upper'])}]",
            f"{number(record['peak_bytes'] / 2**30)} GiB",
            "" if record.get("ratio") is None else f"{number(record['ratio'])}x",
            share(record.get("memory_ratio")),
        ]
        for name, found in machines.items()
        for record in found["training_step"]
    ]
    if not rows:
        return []
    heads = ["machine", "configuration", "variant", "allocator", "threads", "seconds a step [quartiles]"]
    heads += ["peak memory", "against reference", "memory"]
    first = 0 if len(machines) > 1 else 1
    return [
        "## The whole training step",
        "",
        "`python -m benchmarks.training_step`: every variant in a process of its own; they take turns. The losses of the first step"
        " are compared before any is timed. Standard widths of StyleGAN2, LPIPS on VGG16, random weights. Default allocator: each"
        " process as a user would run it. Same allocator: malloc keeps freed memory in all. Peak memory: of the whole process.",
        "",
        *_table(heads[first:], [row[first:] for row in rows]),
    ]


def _operators(machines: dict[str, Record]) -> list[str]:
    """A section for each machine, with a table for each operator and what was not timed."""
    lines = []
    for machine, found in machines.items():
        suffix = f", {machine}" if len(machines) > 1 else ""
        lines += [f"## Operators{suffix}", ""]
        for name in sorted({record["operator"] for record in found["records"]}):
            lines += _operator(name, [record for record in found["records"] if record["operator"] == name], found)
        if found["refused"]:
            lines += [f"## Not timed{suffix}", "", *(f"- {record['reason']}" for record in found["refused"]), ""]
    return lines


def render(files: list[Record], notes: str, command: str) -> str:
    """The whole page."""
    machines = labelled(files)
    lines = [
        "# Performance",
        "",
        f"Generated by `{command}`; do not edit. Medians of interleaved runs in one process; a ratio is the other's time over ours:"
        " above 1 ours is faster. bandwidth: the bytes that any implementation has to move, over the time, as a share of the"
        " measured triad bandwidth (data that stays in caches can exceed 100 %). throughput: its operations as a share of torch's"
        " own 3x3 convolution in that number format. Every variant was compared with the reference before it was timed, and a quick"
        " one's turn begins with an untimed call.",
        "",
        *_machine(machines),
        *_targets(machines),
        *_training_step(machines),
        *_operators(machines),
    ]
    return "\n".join(lines) + ("\n" + notes.strip() + "\n" if notes.strip() else "")


def main(arguments: list[str] | None = None) -> int:
    """The command; its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.report", description="Write the report beside the first results file."
    )
    parser.add_argument("results", nargs="*", type=Path, default=[Path("docs/performance.json")], metavar="RESULTS.json")
    parser.add_argument("--command", default="make bench", help="what the page says makes it")
    options = parser.parse_args(arguments)
    try:
        for path in options.results:
            if not path.exists():
                raise UserError(f"{path} does not exist: run `{options.command}`, which measures first.")
        first = options.results[0]
        notes = first.parent / NOTES
        files = [results.load(path) for path in options.results]
        write_text(first.with_suffix(".md"), render(files, notes.read_text() if notes.exists() else "", options.command))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
