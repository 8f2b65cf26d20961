# SPDX-License-Identifier: Apache-2.0
"""Shows that one built library serves several torch versions: loads it under each interpreter given and runs its kernels.

    python tools/check_abi.py /path/to/other/venv/bin/python ...

Each interpreter needs torch alone, in whatever version and build; the library is not recompiled.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = ROOT / "gangealing_fast" / "_C.so"

PROBE = """
import sys, torch
sys.path.insert(0, {root!r})
from gangealing_fast.ops import _extension
from gangealing_fast import ops
assert _extension.load(), "no library"
torch.manual_seed(0)
worst = 0.0
def compare(function, reference, *tensors, **kwargs):
    global worst
    tensors = [t.requires_grad_() for t in tensors]
    for a, b in zip(
        [function(*tensors, **kwargs), *torch.autograd.grad(function(*tensors, **kwargs).square().sum(), tensors)],
        [reference(*tensors, **kwargs), *torch.autograd.grad(reference(*tensors, **kwargs).square().sum(), tensors)],
    ):
        worst = max(worst, ((a - b).norm() / b.norm()).item())
f = ops.blur_filter()
for layout in (torch.contiguous_format, torch.channels_last):
    x = torch.randn(2, 16, 33, 18).contiguous(memory_format=layout)
    compare(lambda x: ops.upfirdn2d(x, f, up=2, padding=(2, 1)), lambda x: ops.upfirdn2d_reference(x, f, up=2, padding=(2, 1)), x)
    compare(ops.bias_act, ops.bias_act_reference, x.detach(), torch.randn(16))
    compare(lambda x: ops.bilinear_downsample(x, 4), lambda x: ops.bilinear_downsample_reference(x, 4), x.detach())
names = [n for n in torch._C._dispatch_get_all_op_names() if n.startswith("gangealing_fast::")]
compiled = [n for n in names if torch._C._dispatch_has_kernel_for_dispatch_key(n, "CPU")]
print(f"Python {{sys.version.split()[0]}}, torch {{torch.__version__}}: {{len(compiled)}} compiled kernels, "
      f"largest relative difference to the references {{worst:.1e}}")
assert worst < 1e-5
"""


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split(":", 1)[0])
    parser.add_argument("interpreters", nargs="*", type=Path, help="further interpreters with a torch of their own")
    options = parser.parse_args()
    if not LIBRARY.exists():
        sys.exit(f"{LIBRARY} does not exist; run `pip install -e .` first.")
    print(f"{LIBRARY.name}: {LIBRARY.stat().st_size} bytes, sha256 {hashlib.sha256(LIBRARY.read_bytes()).hexdigest()[:16]}")
    failed = False
    for interpreter in [Path(sys.executable), *options.interpreters]:
        result = subprocess.run([str(interpreter), "-c", PROBE.format(root=str(ROOT))], capture_output=True, text=True)
        print(result.stdout.strip() or f"{interpreter}: failed\n{result.stderr.strip()}")
        failed |= result.returncode != 0
    sys.exit(failed)


if __name__ == "__main__":
    main()
