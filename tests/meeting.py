# SPDX-License-Identifier: Apache-2.0
"""`python meeting.py KILLS`: some processes meet, and in each of the first KILLS lives one of them kills itself."""

from __future__ import annotations

import os
import signal
import sys

from gangealing_fast.runtime.distributed import join

if __name__ == "__main__":
    life = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    with join("cpu", 60.0) as group:
        group.wait("the first meeting")
        if life < int(sys.argv[1]) and group.rank == life % group.world:
            os.kill(os.getpid(), signal.SIGKILL)
        group.wait("the second meeting")
        if group.lead:
            print(f"met in life {life}")
