"""Whether tensors are like earlier ones, in one comparison of everything but addresses and values.

Compared are type, dtype, device, shape, strides, whether autograd records them, and torch's dispatch keys with the
state of the thread on top: layout, lazy negation, subclasses and fake tensors, inference mode, dispatch modes,
transforms of torch.func, autocast.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor


@cache
def guards() -> Any:
    """The guards of torch.compile, which compare in C++; None if this torch does not have them, or has others."""
    try:
        found: Any = torch._C._dynamo.guards.TensorGuards
        found(torch.empty(0, device="meta"), dynamic_dims_sizes=[[0]], dynamic_dims_strides=[[1]]).check  # noqa: B018
    except (AttributeError, TypeError):
        return None
    return found


def matcher(*tensors: Tensor, layout: bool = True) -> Callable[..., bool]:
    """A function that tells whether as many tensors, in this order, are like these are now. Keeps no tensor alive.

    Without `layout` shapes and strides are left to the caller to compare, but not the number of dimensions: 40 ns per
    tensor instead of 75. A nested tensor ends the process: the caller has to refuse it before.
    """
    sizes: list[list[int | None]] = [list(tensor.shape) if layout else [None] * tensor.dim() for tensor in tensors]
    strides: list[list[int | None]] = [list(tensor.stride()) if layout else [None] * tensor.dim() for tensor in tensors]
    return guards()(*tensors, dynamic_dims_sizes=sizes, dynamic_dims_strides=strides).check
