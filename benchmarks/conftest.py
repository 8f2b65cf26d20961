# SPDX-License-Identifier: Apache-2.0
"""`pytest benchmarks`: what pytest-benchmark measures is said here, how in `test_operators.py` and `test_whole_training_step.py`.

Nothing here concerns `pytest` alone, which collects `tests/`.
"""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks import levels


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("operators and training steps")
    group.addoption("--device", choices=("cpu", "cuda"), default="cpu", help="where the benchmarks run (cpu)")
    group.addoption(
        "--compiled-steps", action="store_true", help="also the compiled training steps: many minutes of compiling each"
    )
    group.addoption("--threads", type=int, default=1, metavar="N", help="threads of torch (1)")


def pytest_configure(config: pytest.Config) -> None:
    if not config.pluginmanager.hasplugin("benchmark"):
        raise pytest.UsageError("`pytest benchmarks` needs pytest-benchmark: `pip install -e '.[test]'` installs it")
    try:
        levels.hold()
    except RuntimeError as error:
        raise pytest.UsageError(str(error)) from None
    import torch

    from benchmarks import machine
    from gangealing_fast.runtime import memory
    from gangealing_fast.runtime.errors import UserError

    try:
        machine.demand(torch.device(config.getoption("--device")))
    except UserError as error:
        raise pytest.UsageError(str(error)) from None
    machine.settle()
    memory.keep_large_blocks()  # for all variants alike, as in `python -m benchmarks`
    torch.set_num_threads(config.getoption("--threads"))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The clock for what has none of its own; of this folder alone, if others were collected with it."""
    import torch

    from benchmarks.timing import timer_of

    timer = timer_of(torch.device(config.getoption("--device")))
    for item in items:
        if item.path.is_relative_to(config.rootpath / "benchmarks") and not item.get_closest_marker("benchmark"):
            item.add_marker(pytest.mark.benchmark(timer=timer))


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    """Processor or GPU, vector level, torch, commit: as in the results of `python -m benchmarks`."""
    import torch

    from benchmarks import machine

    machine_info["measured_on"] = machine.describe(torch.device(config.getoption("--device")))
