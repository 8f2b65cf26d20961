# SPDX-License-Identifier: Apache-2.0
"""What a process needs before any tensor: commands, errors, setup, several processes, memory, precision, randomness."""
