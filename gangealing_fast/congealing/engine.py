# SPDX-License-Identifier: Apache-2.0
"""Joint alignment of a set of pictures by frozen features: the stages and their order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from gangealing_fast.congealing.features import FeatureNetwork, efficientnet_features
from gangealing_fast.congealing.pictures import Squares
from gangealing_fast.congealing.records import Congealed, Pictures, Registered
