# SPDX-License-Identifier: Apache-2.0
"""Networks in files, of this project and of others, read without running code.

pickles.py        bytes → tensors and plain containers, everything else refused by name
stylegan2_ada.py  names of NVIDIA's StyleGAN2-ADA (PyTorch) → names of our generator
recover.py        the shape of a network from its tensors
reading.py        any supported file → `Parts`
writing.py        `Parts` → files of this package and of others, with a model card
download.py       a file from an address, with its checksum
"""
