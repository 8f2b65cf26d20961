# SPDX-License-Identifier: Apache-2.0
"""The backward of an operator that has no formula of its own: the derivative of its plain reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes


def reference_vjp(function: Callable[..., Any], inputs: tuple[torch.Tensor, ...], grads: Any) -> tuple[torch.Tensor, ...]:
    """Gradients of `function(*inputs)` for output gradients `grads`, contiguous; for the bodies of registered operators.

    Autograd is off inside an operator's body: it is switched on again here. Dispatch modes (counters, tracers) are set
    aside, as they do not see into a compiled kernel either.
    """
    included, excluded = torch._C._dispatch_tls_local_include_set(), torch._C._dispatch_tls_local_exclude_set()
    for name in ("AutogradFunctionality", "AutogradOther", "AutogradNestedTensor", "ADInplaceOrView"):
        if hasattr(torch._C.DispatchKey, name):
            excluded = excluded.remove(getattr(torch._C.DispatchKey, name))
    with _disable_current_modes(), torch._C._ForceDispatchKeyGuard(included, excluded), torch.enable_grad():
        leaves = [tensor.detach().requires_grad_() for tensor in inputs]
        outputs = function(*leaves)
        gradients = torch.autograd.grad(outputs, leaves, grads, allow_unused=True, materialize_grads=True)
    return tuple(gradient.detach().contiguous() for gradient in gradients)
