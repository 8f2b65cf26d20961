# SPDX-License-Identifier: Apache-2.0
"""A page to play with an aligner: draw, carry points, browse, train. Served to browsers on this machine."""
