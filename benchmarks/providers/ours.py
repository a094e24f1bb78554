"""softmax_ops: every cell by its public functions, into `out`."""

from __future__ import annotations

from torch import Tensor

import softmax_ops
from softmax_ops.explanation import Explanation
from transformer_softmax_lib import scaled_masked_softmax_forward

from ..cells import Cell
from ..tensors import Tensors
from . import OURS, Call, Provider


def prepare(cell: Cell) -> Call:
    return _backward if cell.direction == "bwd" else _like if cell.mask == "like" else _forward


def _forward(tensors: Tensors) -> Tensor:
    return softmax_ops.softmax(
        tensors.inputs[0],
        scale=tensors.scale,
        mask=tensors.mask,
        bias=tensors.bias,
        causal=tensors.causal,
        out=tensors.out,
    )


def _like(tensors: Tensors) -> Tensor:
    """A mask of the scores' dtype: the interface that takes it fills with -10000 and allocates its result."""
    return scaled_masked_softmax_forward(tensors.inputs[0], tensors.mask, tensors.scale)


def _backward(tensors: Tensors) -> Tensor:
    dy, y = tensors.inputs
    return softmax_ops.softmax_backward(dy, y, scale=tensors.scale, causal=tensors.causal, out=tensors.out)


def explanation(cell: Cell, tensors: Tensors) -> Explanation | None:
    """What runs; None for a mask that `explain` does not take."""
    if cell.mask == "like":
        return None
    return softmax_ops.explain(
        tensors.inputs[0],
        scale=tensors.scale,
        mask=tensors.mask,
        bias=tensors.bias,
        causal=tensors.causal,
        out=tensors.out,
        backward=cell.direction == "bwd",
    )


PROVIDER = Provider(OURS, prepare, allowed=1.0)
