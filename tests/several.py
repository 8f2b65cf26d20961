# SPDX-License-Identifier: Apache-2.0
"""`python several.py MODE FOLDER OUT CHANGES`: a tiny training run as one of several processes, one of which may do odd things.

plain: nothing odd. killed: process 1 kills itself in its first life. silent: process 1 stops answering.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

from runs import train_config

from gangealing_fast.alignment.step import AlignmentStep
from gangealing_fast.alignment.trainer import run
from gangealing_fast.runtime.commands import run_command

if __name__ == "__main__":
    mode, folder, changes = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[4])
    config = train_config(folder, out=folder / sys.argv[3], **changes)
    original, odd = AlignmentStep.step, os.environ["RANK"] == "1"

    def step(self: AlignmentStep, index: int) -> dict[str, float]:
        if index == 7 and odd and mode == "killed" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            os.kill(os.getpid(), signal.SIGKILL)
        if index == 2 and odd and mode == "silent":
            time.sleep(600)
        return original(self, index)

    AlignmentStep.step = step
    run_command(lambda: run(config) and None, several=True)
