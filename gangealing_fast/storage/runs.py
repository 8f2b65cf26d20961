# SPDX-License-Identifier: Apache-2.0
"""A run's folder: its configuration, its log, its checkpoints; and what resuming needs.

config.json      the command, its options, and what resuming changed of them; a folder with other options is refused
log.jsonl        one line of statistics per tick, and one line for what resuming changed
checkpoint.pt    the state after the last snapshot (and checkpoint.previous.pt before it)
.lock            who uses the folder, while it is used
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gangealing_fast.runtime.errors import UserError
from gangealing_fast.storage.claims import Record, held, plain, read_record, rewrite_record, write_record

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

# What a resumed run may change without becoming another run.
FREE = {"threads", "out", "tracker", "reuse_memory", "patience", "cuda_graphs", "goals"}
# What it may change too, as a training that diverges asks for it. The run then has other numbers, so log.jsonl says from where on.
CHANGEABLE = {"learning_rate", "target_learning_rate", "generator_learning_rate", "critic_learning_rate", "precision"}


@contextlib.contextmanager
def open_run(
    folder: Path,
    command: str,
    config: DataclassInstance,
    *,
    pictures: Mapping[str, Path | None] | None = None,
    free: set[str] = FREE,
) -> Iterator[bool]:
    """Hold `folder` for a run while the block runs; gives whether it already holds this very run, which then goes on.

    Learning rates and the precision may be others than before: config.json notes it, and the loop logs it.
    pictures: as in `claims.keep_apart`. Raises UserError where the folder holds something else (another command's run, other
    options, unknown files) or is in use.
    """
    with held(folder, command, config, pictures or {}) as before:
        if before is None:
            write_record(folder, command, config)
        else:
            _check_same(folder, before, config, free)
        yield before is not None


def _check_same(folder: Path, record: Record, config: DataclassInstance, free: set[str]) -> None:
    before, options = dict(record.options), plain(config)
    for field in dataclasses.fields(config):  # an option younger than the run had its default then
        if field.name not in before and field.default is not dataclasses.MISSING:
            before[field.name] = json.loads(json.dumps(field.default, default=str))
    differing = [k for k in options if k not in free and before.get(k, "(absent)") != options[k]]
    refused = [k for k in differing if k not in CHANGEABLE]
    if refused:
        changes = ", ".join(f"{k}: {before.get(k, '(absent)')} there, {options[k]} now" for k in refused)
        raise UserError(f"{folder} holds another run ({changes}); choose another --out, or the same options to resume it")
    if differing:
        changed = [{"option": k, "from": before.get(k), "to": options[k]} for k in differing]
        now = before | {k: options[k] for k in differing}
        rewrite_record(folder, Record(record.command, now, [*record.changes, *changed]))
        print("changed on resuming: " + ", ".join(f"{c['option']} from {c['from']} to {c['to']}" for c in changed))


def changes_to_log(folder: Path) -> list[dict[str, Any]]:
    """What resuming changed and no line of the log says yet; [] if there is no configuration."""
    record = read_record(folder)
    return [] if record is None else [change for change in record.changes if "step" not in change]


def mark_logged(folder: Path, step: int) -> None:
    """Note in the configuration that the log says what changed at `step`."""
    record = read_record(folder)
    if record is not None:
        rewrite_record(folder, record._replace(changes=[{"step": step} | change for change in record.changes]))
