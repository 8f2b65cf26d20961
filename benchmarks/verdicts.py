# SPDX-License-Identifier: Apache-2.0
"""Targets beside what was measured, as words for the report. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Record = dict[str, Any]
Show = Callable[[float | None], str]
OTHERS = {"reference": "the reference", "torch": "torch's best", "compile": "`torch.compile`"}


def number(value: float | None, digits: int = 3) -> str:
    """A number with that many digits, all of those before the point; "" for None."""
    if value is None:
        return ""
    if value >= 10 ** (digits - 1):
        return f"{value:.0f}"
    return f"{value:.{digits}g}"


def share(value: float | None) -> str:
    """A fraction in percent."""
    return "" if value is None else f"{100 * value:.0f} %"


def times(value: float | None) -> str:
    """A ratio."""
    return "" if value is None else f"{number(value)}x"


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


def _verdict(operator: str, case: str, what: str, goal: float, measured: float | None, *, show: Show, most: bool = False) -> Record:
    met = None if measured is None else measured <= goal if most else measured >= goal
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
                rows.append(_verdict(record["operator"], case, f"of the {name} limit", goal, reached.get(name), show=share))
            elif name == "memory":
                measured = held["ours"] / held["reference"] if held.get("reference") and "ours" in held else None
                what = "peak memory against the reference"
                rows.append(_verdict(record["operator"], case, what, goal, measured, show=share, most=True))
            else:
                measured = record["variants"].get(name, {}).get("ratio")
                rows.append(_verdict(record["operator"], case, f"against {OTHERS.get(name, name)}", goal, measured, show=times))
    for record in found["training_step"]:
        case = f"{record['configuration']}, {record['variant']}, {record['allocator']} allocator"
        for name, goal in record["targets"].items():
            measured, memory_goal = record.get(name), name == "memory_ratio"
            what = "peak memory against `--ops reference`" if memory_goal else "against `--ops reference`"
            rows.append(
                _verdict("training step", case, what, goal, measured, show=share if memory_goal else times, most=memory_goal)
            )
    return rows
