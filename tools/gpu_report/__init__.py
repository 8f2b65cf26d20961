# SPDX-License-Identifier: Apache-2.0
"""What can be shown about the GPU kernels without a GPU: `python -m tools.gpu_report` writes docs/gpu-report.md."""
