# SPDX-License-Identifier: Apache-2.0
"""Files that are complete or not there, a run's folder, the checkpoint format."""
