# SPDX-License-Identifier: Apache-2.0
"""Pictures in: folders, tars and MNIST files (`pictures`), their order (`sampler`), the built-in digits (`digits`)."""
