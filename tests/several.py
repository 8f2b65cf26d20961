# SPDX-License-Identifier: Apache-2.0
"""`python several.py MODE FOLDER CHANGES`: a tiny training run as one of several processes, what each of them does being odd at times.

plain: nothing odd. killed: process 1 kills itself in its first life. silent: process 1 stops answering.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from runs import train_config

from gangealing_fast.alignment.step import AlignmentStep
from gangealing_fast.alignment.trainer import run
from gangealing_fast.commands import run_command

if __name__ == "__main__":
    mode, config = sys.argv[1], train_config(Path(sys.argv[2]), **eval(sys.argv[3]))
    original, odd = AlignmentStep.step, os.environ["RANK"] == "1"

    def step(self: AlignmentStep, index: int) -> dict[str, float]:
        if index == 7 and odd and mode == "killed" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            os.kill(os.getpid(), signal.SIGKILL)
        if index == 2 and odd and mode == "silent":
            time.sleep(60)
        return original(self, index)

    AlignmentStep.step = step
    run_command(lambda: run(config) and None, several=True)
