# SPDX-License-Identifier: Apache-2.0
"""The command `pretrain`: a generator from pictures, by any adversarial objective."""
