# SPDX-License-Identifier: Apache-2.0
"""Files that are complete or not there, whose a results folder is and who uses it, the checkpoint format."""
