# SPDX-License-Identifier: Apache-2.0
"""Mechanism of every command that trains: the loop, the fitting of one network, optimisers."""
